"""Which pseudo-labels of a class are trusted. Numbers only: no picture is read here.

What is measured of a label: the class's share of the picture, the labeler's mean confidence, the agreement of looks,
and how typical its region is. Limits come from the step's real images, labelled by helpers that were not fitted on
them; a limit at quantile q refuses what is worse than all but the share q of them. So a limit follows the class and
the model, where a fixed confidence of 0.7 lets one class through and empties another.

typical(x) = mean of the 5 largest cosines between the region's feature and those of the real regions of the class.

What strangers look like nobody knows beforehand, and where the photos are better pictures than the real ones, limits
alone let strangers in. So `split` asks whether the candidates fall into two groups. z is the distance from the real
median in interquartile ranges; s_0 = (z(confidence) + z(typical)) / 2 ranks the candidates; a ridge classifier on
features is taught the best half of them together with the real ones against the worst three tenths, and answers for
candidates that it was not taught (five folds); s = answer + z(confidence) / 2 ranks them anew, three times. Two normal
distributions are fitted to the last s. Only where they explain it much better than one does (by the Bayesian
information criterion, per candidate) there are two groups, and whoever more likely belongs to the lower one is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from replaygen.screens.specs import TrustSpec

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
"""float32 [n, 2, D]: of each picture the mean feature of the labelled region, and that of the whole."""

NEIGHBOURS = 5
FEWEST = 20
"""Candidates below which they cannot sort themselves, and real images below which there are no limits."""
ROUNDS, FOLDS, BEST, WORST, RIDGE = 3, 5, 0.5, 0.3, 0.5
SURE_WEIGHT, SURE_MOST = 0.5, 2.0
TWO_GROUPS = 0.17
"""Evidence for two groups, a candidate: sets without strangers had 0.10 at most, with 30 % strangers 0.25 at least."""


@dataclass(frozen=True)
class Candidates:
    """The labelled pictures of a class, in the order of their ids. Arrays float64 [n], shares and scores in 0..1."""

    ids: tuple[str, ...]
    share: Floats
    confidence: Floats
    agreement: Floats
    vectors: Vectors


@dataclass(frozen=True)
class Standards:
    """The same of a class's real images: what labelers that were not fitted on them make of them.

    Attributes:
        area: the true share of the class.
        confidence, agreement, typical: float64 [n], of the images in which the labeler found the class.
        vectors: of the true regions.
    """

    area: Floats
    confidence: Floats
    agreement: Floats
    typical: Floats
    vectors: Vectors

    @property
    def enough(self) -> bool:
        """Whether there are images enough to take quantiles of."""
        return len(self.confidence) >= FEWEST


@dataclass(frozen=True)
class Verdict:
    """kept: ids, best first; rejected: {"id", "reason", "value", "limit"} in order of ids; scores: by id."""

    kept: list[str]
    rejected: list[dict[str, Any]]
    scores: dict[str, dict[str, float]]


def judge(found: Candidates, real: Standards, spec: TrustSpec) -> Verdict:
    """Decide on every labelled picture of a class; the first screen that refuses one gives the reason.

    Where the class has fewer than `FEWEST` real images nothing is known of it, and everything is kept.
    """
    scores = {"share": found.share, "confidence": found.confidence, "agreement": found.agreement}
    if not real.enough or not found.ids:
        trust = found.confidence
        return _verdict(found.ids, {**scores, "trust": trust}, [], trust)
    typical = typicality(found.vectors[:, 0], real.vectors[:, 0])
    trust = (_quantile_of(found.confidence, real.confidence) + _quantile_of(typical, real.typical)) / 2
    scores |= {"typical": typical, "trust": trust}
    screens = _limits(found, real, spec, typical)

    def passed() -> npt.NDArray[np.bool_]:
        refused = [screen.refused for screen in screens] or [np.zeros(len(typical), bool)]
        made: npt.NDArray[np.bool_] = ~np.any(refused, axis=0)
        return made

    if spec.adversarial > 0 and len(found.ids) > 1:  # one alone has no other half to learn from
        seen, limit = adversarial(found.vectors, real.vectors, spec.adversarial)
        scores["real"] = seen
        screens.append(_Screen("not-like-real", seen, limit, seen < limit))
    if spec.split and len(found.ids) >= FEWEST:
        answers = sort_themselves(found, real, typical)
        groups = two_groups(answers)
        scores["belongs"] = groups.upper
        if groups.evidence > TWO_GROUPS:
            lower = _but_for(groups.upper < 0.5, answers, passed(), spec.keep)
            screens.append(_Screen("unlike-the-best", groups.upper, 0.5, lower))
    if spec.duplicates > 0:
        nearest = _duplicates(found.vectors[:, 0], trust, spec.duplicates, passed())
        screens.append(_Screen("near-duplicate", nearest, spec.duplicates, nearest > spec.duplicates))
    return _verdict(found.ids, scores, screens, trust)


@dataclass(frozen=True)
class _Screen:
    reason: str
    values: Floats
    limit: float | tuple[float, float]
    refused: npt.NDArray[np.bool_]


def _limits(found: Candidates, real: Standards, spec: TrustSpec, typical: Floats) -> list[_Screen]:
    """The screens whose limit is a quantile of the real images."""
    screens = []
    if spec.area > 0:
        low, high = (float(limit) for limit in np.quantile(real.area, [spec.area, 1 - spec.area]))
        screens.append(_Screen("area-too-small", found.share, (low, high), found.share < low))
        screens.append(_Screen("area-too-large", found.share, (low, high), found.share > high))
    for reason, level, values, known in (
        ("unsure", spec.confidence, found.confidence, real.confidence),
        ("views-disagree", spec.agreement, found.agreement, real.agreement),
        ("atypical", spec.typical, typical, real.typical),
    ):
        if level > 0 and float(known.min()) < 1.0:  # agreement is 1 everywhere where there is one look
            limit = float(np.quantile(known, level))
            screens.append(_Screen(reason, values, limit, values < limit))
    return screens


def typicality(vectors: npt.NDArray[np.float32], real: npt.NDArray[np.float32], *, others: bool = False) -> Floats:
    """Mean of the largest cosines to the real features.

    Args:
        vectors: float32 [n, D].
        real: float32 [m, D].
        others: row i of both is the same picture, and is not compared with itself.

    Returns:
        float64 [n].
    """
    cosines = unit(vectors) @ unit(real).T
    if others:
        np.fill_diagonal(cosines, -1.0)
    nearest = np.sort(cosines, axis=1)[:, ::-1][:, : min(NEIGHBOURS, cosines.shape[1])]
    made: Floats = nearest.mean(axis=1, dtype=np.float64)
    return made


def sort_themselves(found: Candidates, real: Standards, typical: Floats) -> Floats:
    """The last score of the candidates, by classifiers that others of them taught: float64 [n], the best highest."""
    distance = _distance(found.confidence, real.confidence)
    sure = SURE_WEIGHT * np.clip(distance, -SURE_MOST, SURE_MOST)
    score = (distance + _distance(typical, real.typical)) / 2
    own, known, fold = flat(found.vectors), flat(real.vectors), np.arange(len(found.ids)) % FOLDS
    for _ in range(ROUNDS):
        order = np.argsort(score, kind="stable")
        worst, best = np.zeros(len(order), bool), np.zeros(len(order), bool)
        worst[order[: int(WORST * len(order))]] = True
        best[order[int((1 - BEST) * len(order)) :]] = True
        answers = np.zeros(len(order))
        for asked in (fold == part for part in range(FOLDS)):
            yes, no = own[best & ~asked], own[worst & ~asked]
            answers[asked] = ridge_answers(np.concatenate([yes, known]), no, own[asked]) if len(no) else 1.0
        score = answers + sure
    return score


@dataclass(frozen=True)
class Groups:
    """Two normal distributions under some scores.

    Attributes:
        upper: float64 [n], how likely each belongs to the upper one.
        evidence: (2 (log L_2 - log L_1) - 3 log n) / n, how much better two explain the scores than one.
    """

    upper: Floats
    evidence: float


def two_groups(scores: Floats) -> Groups:
    """Fit two normal distributions by expectation maximisation, from a start that the quantiles give.

    Args:
        scores: float64 [n].
    """
    count, whole = len(scores), float(scores.std())
    if whole < 1e-9:
        return Groups(np.ones(count), 0.0)
    mean, deviation = np.quantile(scores, [0.2, 0.7]), np.full(2, whole / 2)
    part, least = np.array([0.3, 0.7]), 0.05 * whole
    for _ in range(200):
        density = part * np.exp(-0.5 * ((scores[:, None] - mean) / deviation) ** 2) / deviation
        total = np.maximum(density.sum(axis=1), 1e-300)
        share = density / total[:, None]
        held = np.maximum(share.sum(axis=0), 1e-9)
        part, mean = held / count, (share * scores[:, None]).sum(axis=0) / held
        deviation = np.sqrt((share * (scores[:, None] - mean) ** 2).sum(axis=0) / held) + least
    two = float(np.log(total / np.sqrt(2 * np.pi)).sum())
    one = float((-0.5 * ((scores - scores.mean()) / whole) ** 2 - np.log(whole * np.sqrt(2 * np.pi))).sum())
    high = int(mean[1] > mean[0])
    upper = np.where(scores >= mean[high], 1.0, share[:, high])
    upper = np.where(scores <= mean[1 - high], 0.0, upper)
    return Groups(upper, (2 * (two - one) - 3 * np.log(count)) / count)


def ridge_answers(yes: Floats, no: Floats, asked: Floats) -> Floats:
    """Ridge regression to +1 and -1, both sides weighing the same: w = (X' W X + r I)^-1 X' W y.

    Args:
        yes, no, asked: float64 [., D]; they are centred and scaled together first.

    Returns:
        float64 [len(asked)].
    """
    rows = np.concatenate([yes, no])
    signs = np.concatenate([np.ones(len(yes)), -np.ones(len(no))])
    weight = np.concatenate([np.full(len(yes), 0.5 / len(yes)), np.full(len(no), 0.5 / len(no))])[:, None]
    centre = (weight * rows).sum(axis=0)
    scale = float(np.sqrt((weight * (rows - centre) ** 2).sum(axis=0).mean())) or 1.0
    rows, asked = (rows - centre) / scale, (asked - centre) / scale
    squares = (rows * weight).T @ rows + RIDGE * np.eye(rows.shape[1])
    made: Floats = asked @ np.linalg.solve(squares, (rows * weight).T @ signs)
    return made


def adversarial(found: Vectors, real: Vectors, level: float) -> tuple[Floats, float]:
    """RECALL+'s adversarial selection: a discriminator is taught real against replay, and asked about the other half.

    Args:
        found, real: see `Vectors`.
        level: quantile of the real images' own answers that is the limit.

    Returns:
        answers float64 [n], higher is more real; and the limit.
    """
    own, known = flat(found), flat(real)
    answers, of_real = np.zeros(len(own)), np.zeros(len(known))
    for half in (0, 1):
        asked, asked_real = np.arange(len(own)) % 2 == half, np.arange(len(known)) % 2 == half
        taught = known[~asked_real], own[~asked]
        answers[asked] = ridge_answers(*taught, own[asked])
        of_real[asked_real] = ridge_answers(*taught, known[asked_real])
    return answers, float(np.quantile(of_real, level))


def flat(vectors: Vectors) -> Floats:
    """float32 [n, 2, D] -> float64 [n, 2 D], region and whole each of length 1."""
    made: Floats = np.concatenate([unit(vectors[:, 0]), unit(vectors[:, 1])], axis=1).astype(np.float64)
    return made


def unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of length 1; rows of zeros stay."""
    made: npt.NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return made


def _distance(values: Floats, known: Floats) -> Floats:
    """From the known median, in known interquartile ranges."""
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
    made: Floats = (values - middle) / (high - low + 1e-6)
    return made


def _quantile_of(values: Floats, known: Floats) -> Floats:
    """The share of the known values that each value reaches."""
    return np.searchsorted(np.sort(known), values, side="right") / len(known)


def _but_for(
    lower: npt.NDArray[np.bool_], answers: Floats, passed: npt.NDArray[np.bool_], keep: float
) -> npt.NDArray[np.bool_]:
    """The lower group, but for the best of those that passed so far: the share `keep` of them is never refused."""
    wanted = int(np.ceil(keep * passed.sum()))
    ranked = [index for index in np.argsort(-answers, kind="stable") if passed[index]]
    made = lower.copy()
    made[ranked[:wanted]] = False
    return made


def _duplicates(vectors: npt.NDArray[np.float32], trust: Floats, limit: float, passed: npt.NDArray[np.bool_]) -> Floats:
    """For each picture the largest cosine to a better one that is kept; 0 for the first."""
    unitary = unit(vectors)
    nearest = np.zeros(len(trust))
    kept: list[int] = []
    for index in np.argsort(-trust, kind="stable"):
        if kept:
            nearest[index] = float((unitary[kept] @ unitary[index]).max())
        if passed[index] and nearest[index] <= limit:
            kept.append(int(index))
    return nearest


def _verdict(ids: Sequence[str], scores: dict[str, Floats], screens: Sequence[_Screen], trust: Floats) -> Verdict:
    told = {name: {key: round(float(values[i]), 5) for key, values in scores.items()} for i, name in enumerate(ids)}
    rejected, kept = [], []
    for index, name in enumerate(ids):
        why = next((screen for screen in screens if screen.refused[index]), None)
        if why is None:
            kept.append(index)
        else:
            limit = [round(part, 5) for part in why.limit] if isinstance(why.limit, tuple) else round(why.limit, 5)
            value = round(float(why.values[index]), 5)
            rejected.append({"id": name, "reason": why.reason, "value": value, "limit": limit})
    kept.sort(key=lambda index: (-trust[index], ids[index]))
    return Verdict([ids[index] for index in kept], rejected, told)
