"""Which labels are trusted: limits that follow the real images, candidates that sort themselves, and odd inputs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaygen.screens.specs import TrustSpec
from replaygen.screens.trust import (
    FEWEST,
    TWO_GROUPS,
    Candidates,
    Standards,
    Verdict,
    adversarial,
    flat,
    judge,
    ridge_answers,
    sort_themselves,
    two_groups,
    typicality,
    unit,
)

OFF = TrustSpec(area=0, confidence=0, agreement=0, typical=0, split=False)
D = 12


def names(count: int) -> tuple[str, ...]:
    """Ids in their order."""
    return tuple(f"p{i:04d}" for i in range(count))


def near(centre: np.ndarray, count: int, spread: float, seed: int) -> np.ndarray:
    """float32 [count, 2, D]: regions and wholes around a direction."""
    random = np.random.default_rng(seed)
    return (centre + spread * random.normal(size=(count, 2, D))).astype(np.float32)


HOME, AWAY = np.eye(D)[0], np.eye(D)[1]


def real_images(count: int = 41, *, spread: float = 0.1) -> Standards:
    """A class's real images: areas 0.1 .. 0.5, confidences 0.5 .. 0.9, agreements 0.6 .. 1, all in equal steps."""
    steps = np.linspace(0, 1, count)
    vectors = near(HOME, count, spread, 1)
    typical = typicality(vectors[:, 0], vectors[:, 0], others=True)
    return Standards(0.1 + 0.4 * steps, 0.5 + 0.4 * steps, 0.6 + 0.4 * steps, typical, vectors)


def candidates(count: int, **given: Any) -> Candidates:
    """Candidates in the middle of everything, but for what is given."""
    fill = {"share": 0.3, "confidence": 0.8, "agreement": 0.9}
    arrays = {name: np.array(given.get(name, np.full(count, value)), np.float64) for name, value in fill.items()}
    return Candidates(names(count), vectors=given.get("vectors", near(HOME, count, 0.1, 2)), **arrays)


def reasons(verdict: Verdict) -> dict[str, str]:
    """Id -> why it was refused."""
    return {one["id"]: one["reason"] for one in verdict.rejected}


# limits


def test_limits_are_quantiles_of_the_real_images() -> None:
    """By hand: 41 equal steps, so the quantile q is where a straight line says; what equals a limit stays."""
    real = real_images()
    found = candidates(
        6, share=[0.1199, 0.1201, 0.3, 0.4799, 0.4801, 0.3], confidence=[0.8, 0.8, 0.5399, 0.5401, 0.8, 0.8],
        agreement=[0.9, 0.9, 0.9, 0.9, 0.9, 0.6],
    )  # fmt: skip
    spec = OFF.model_copy(update={"area": 0.05, "confidence": 0.1, "agreement": 0.25})
    verdict = judge(found, real, spec)
    assert reasons(verdict) == {
        "p0000": "area-too-small", "p0002": "unsure", "p0004": "area-too-large", "p0005": "views-disagree",
    }  # fmt: skip
    told = {one["id"]: one for one in verdict.rejected}
    assert told["p0000"] == {"id": "p0000", "reason": "area-too-small", "value": 0.1199, "limit": [0.12, 0.48]}
    assert told["p0004"]["limit"] == [0.12, 0.48]
    assert told["p0002"] == {"id": "p0002", "reason": "unsure", "value": 0.5399, "limit": 0.54}
    assert told["p0005"]["limit"] == pytest.approx(0.7)
    at = judge(candidates(1, confidence=[float(np.quantile(real.confidence, 0.1))]), real, spec)
    assert at.kept == ["p0000"]


def test_limits_follow_the_real_images() -> None:
    """A class whose real images get half the confidence asks for half of it."""
    real = real_images()
    half = replace(real, confidence=real.confidence / 2, area=real.area / 4)
    found = candidates(2, share=[0.05, 0.3], confidence=[0.3, 0.8])
    spec = OFF.model_copy(update={"area": 0.02, "confidence": 0.1})
    assert reasons(judge(found, real, spec)) == {"p0000": "area-too-small"}
    assert reasons(judge(found, half, spec)) == {"p0001": "area-too-large"}


def test_the_first_reason_is_told() -> None:
    """Too small comes before unsure, unsure before disagreeing looks, those before atypical."""
    worst = {"share": [0.0], "confidence": [0.0], "agreement": [0.0], "vectors": near(AWAY, 1, 0.1, 3)}
    spec = OFF.model_copy(update={"area": 0.02, "confidence": 0.1, "agreement": 0.1, "typical": 0.1})
    order = []
    for off in ({}, {"area": 0.0}, {"confidence": 0.0}, {"agreement": 0.0}, {"typical": 0.0}):
        spec = spec.model_copy(update=off)
        verdict = judge(candidates(1, **worst), real_images(), spec)
        order.append(reasons(verdict).get("p0000"))
    assert order == ["area-too-small", "unsure", "views-disagree", "atypical", None]


def test_the_best_come_first() -> None:
    """Trust is the mean of two quantiles, of confidence and of likeness; equals are in the order of their ids."""
    same = np.repeat(near(HOME, 1, 0.0, 0), 4, axis=0)
    verdict = judge(candidates(4, confidence=[0.6, 0.8, 0.8, 0.7], vectors=same), real_images(), OFF)
    assert verdict.kept == ["p0001", "p0002", "p0003", "p0000"]
    assert verdict.rejected == []
    trust = [verdict.scores[name]["trust"] for name in verdict.kept]
    assert trust == sorted(trust, reverse=True)
    # 0.7 reaches 21 of 41 confidences, and everything typical reaches all of them
    assert verdict.scores["p0003"]["trust"] == pytest.approx((21 / 41 + 1) / 2, abs=1e-5)
    assert set(verdict.scores["p0000"]) == {"share", "confidence", "agreement", "typical", "trust"}


def test_the_unlike_are_atypical() -> None:
    """A region that looks like no real one is refused; likeness is the mean of the five largest cosines."""
    vectors = np.concatenate([near(HOME, 3, 0.1, 4), near(AWAY, 2, 0.1, 5)])
    verdict = judge(candidates(5, vectors=vectors), real_images(), OFF.model_copy(update={"typical": 0.05}))
    assert reasons(verdict) == {"p0003": "atypical", "p0004": "atypical"}
    known = unit(real_images().vectors[:, 0])
    cosines = np.sort(known @ unit(vectors[:1, 0])[0])[-5:]
    assert verdict.scores["p0000"]["typical"] == pytest.approx(cosines.mean(), abs=1e-5)


def test_a_picture_is_not_compared_with_itself() -> None:
    """With `others` an image's own feature does not count; by hand for three."""
    three = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    half = math.sqrt(0.5)
    np.testing.assert_allclose(typicality(three, three), [(1 + 0 + half) / 3] * 2 + [(1 + 2 * half) / 3], rtol=1e-6)
    np.testing.assert_allclose(
        typicality(three, three, others=True), [(half + 0 - 1) / 3] * 2 + [(2 * half - 1) / 3], atol=1e-6
    )


def test_with_few_real_images_everything_is_kept() -> None:
    """Fewer than FEWEST real images in which the class was found say nothing; the surest come first."""
    worst = candidates(30, confidence=np.linspace(0, 1, 30), share=np.zeros(30), vectors=near(AWAY, 30, 0.1, 6))
    strict = TrustSpec(agreement=0.5, adversarial=0.5, duplicates=0.5)
    verdict = judge(worst, real_images(FEWEST - 1), strict)
    assert verdict.rejected == []
    assert verdict.kept == list(names(30))[::-1]
    assert judge(worst, real_images(FEWEST), strict).rejected
    nothing = Standards(*(np.zeros(0) for _ in range(4)), vectors=np.zeros((0, 2, 1), np.float32))
    assert judge(worst, nothing, strict).kept == verdict.kept


def test_no_candidates_are_no_error() -> None:
    """An empty class is judged to be empty."""
    nobody = Candidates((), *(np.zeros(0) for _ in range(3)), vectors=np.zeros((0, 2, 1), np.float32))
    assert judge(nobody, real_images(), TrustSpec(adversarial=0.1, duplicates=0.9)) == Verdict([], [], {})


# candidates that sort themselves


def planted(count: int = 200, seed: int = 0, *, like: float = 0.35) -> tuple[Candidates, set[str]]:
    """Seven tenths near the real images and three tenths elsewhere, less sure on the whole; and who is elsewhere."""
    random = np.random.default_rng(seed)
    strange = np.zeros(count, bool)
    strange[random.permutation(count)[: int(0.3 * count)]] = True
    vectors = near(HOME, count, 0.25, seed + 10)
    vectors[strange] += (AWAY - like * HOME).astype(np.float32)
    confidence = np.clip(random.normal(np.where(strange, 0.62, 0.74), 0.06), 0.0, 1.0)
    found = candidates(count, confidence=confidence, vectors=vectors)
    return found, {found.ids[i] for i in np.flatnonzero(strange)}


@pytest.mark.parametrize("seed", range(6))
def test_the_split_finds_strangers(seed: int) -> None:
    """Of planted strangers at least 95 % are refused, and at least 80 % of the others are kept."""
    found, strangers = planted(seed=seed)
    verdict = judge(found, real_images(spread=0.25), OFF.model_copy(update={"split": True}))
    refused = set(reasons(verdict))
    assert set(reasons(verdict).values()) == {"unlike-the-best"}
    assert len(refused & strangers) >= 0.95 * len(strangers)
    assert len(set(verdict.kept) - strangers) >= 0.8 * (len(found.ids) - len(strangers))


def test_the_split_keeps_a_share() -> None:
    """It never refuses more than the share 1 - keep of those it judges, to within one picture; 1 switches it off."""
    real = real_images(spread=0.25)
    for keep in (0.0, 0.25, 0.5, 0.8, 1.0):
        for seed in range(4):
            found, _ = planted(50 + seed, seed, like=1.0)
            verdict = judge(found, real, OFF.model_copy(update={"split": True, "keep": keep}))
            assert len(verdict.rejected) <= math.ceil((1 - keep) * len(found.ids))
            assert all(one["value"] <= one["limit"] <= 0.5 for one in verdict.rejected)
    assert judge(found, real, OFF.model_copy(update={"split": True, "keep": 1.0})).rejected == []


def test_the_share_is_of_those_who_passed_before() -> None:
    """Who is refused for another reason does not count among those the split must keep."""
    found, strangers = planted(100, 3)
    others = [i for i, name in enumerate(found.ids) if name not in strangers]
    share = np.full(100, 0.3)
    share[others[:25]] = 0.0
    spec = OFF.model_copy(update={"area": 0.02, "split": True, "keep": 0.7})
    told = reasons(judge(replace(found, share=share), real_images(spread=0.25), spec))
    counted = [sum(reason == one for reason in told.values()) for one in ("area-too-small", "unlike-the-best")]
    assert counted[0] == 25
    assert 15 < counted[1] <= 23
    whole = reasons(judge(found, real_images(spread=0.25), spec))
    assert len(whole) > 23


def test_few_candidates_cannot_sort_themselves() -> None:
    """Below FEWEST there is no split, and no score of it."""
    found, _ = planted(FEWEST - 1, 1)
    verdict = judge(found, real_images(), OFF.model_copy(update={"split": True}))
    assert verdict.rejected == []
    assert "belongs" not in verdict.scores["p0000"]
    enough, _ = planted(FEWEST, 1)
    assert "belongs" in judge(enough, real_images(), OFF.model_copy(update={"split": True})).scores["p0000"]


@pytest.mark.parametrize("count", [FEWEST, 60, 200])
def test_without_strangers_the_worst_stay(count: int) -> None:
    """There is always a worst part; where the candidates are one group it is hard rather than wrong."""
    random = np.random.default_rng(count)
    found = candidates(
        count, confidence=np.clip(random.normal(0.72, 0.08, count), 0, 1), vectors=near(HOME, count, 0.25, count)
    )
    verdict = judge(found, real_images(spread=0.25), OFF.model_copy(update={"split": True}))
    assert verdict.rejected == []
    assert "belongs" in verdict.scores["p0000"]


def test_strangers_score_low() -> None:
    """The last score, by classifiers that others taught, puts what is like the real images far above the strangers."""
    found, strangers = planted(seed=2)
    real = real_images(spread=0.25)
    scores = sort_themselves(found, real, typicality(found.vectors[:, 0], real.vectors[:, 0]))
    mask = np.array([name in strangers for name in found.ids])
    assert scores[~mask].mean() > scores[mask].mean() + 1


def test_two_groups_by_hand() -> None:
    """Two far heaps: everyone belongs to its own, and the evidence is that of the two densities; one heap has none."""
    random = np.random.default_rng(0)
    heap, other = random.normal(0, 0.1, 30), random.normal(3, 0.1, 70)
    groups = two_groups(np.concatenate([heap, other]))
    np.testing.assert_allclose(groups.upper, [0.0] * 30 + [1.0] * 70, atol=1e-6)
    assert groups.evidence > 5 * TWO_GROUPS
    for seed in range(20):
        assert two_groups(np.random.default_rng(seed).normal(size=100)).evidence < TWO_GROUPS
    same = two_groups(np.full(30, 0.7))
    assert (same.upper.tolist(), same.evidence) == ([1.0] * 30, 0.0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=60))
def test_a_higher_score_belongs_no_less(scores: list[float]) -> None:
    """Belonging is in 0..1, finite, and rises with the score, whatever the scores are."""
    values = np.sort(np.array(scores))
    groups = two_groups(values)
    assert np.isfinite(groups.upper).all()
    assert np.isfinite(groups.evidence)
    assert ((groups.upper >= 0) & (groups.upper <= 1)).all()
    assert (np.diff(groups.upper) >= -1e-9).all()


def test_ridge_by_hand() -> None:
    """Two points at +-1 are centred and scaled: w = 1 / (1 + 0.5); both sides weigh the same however many they are."""
    yes, no = np.array([[1.0]]), np.array([[-1.0]])
    np.testing.assert_allclose(ridge_answers(yes, no, np.array([[1.0], [0.0], [-1.0]])), [2 / 3, 0, -2 / 3])
    many = ridge_answers(np.repeat(yes, 9, axis=0), no, np.array([[1.0], [-1.0]]))
    np.testing.assert_allclose(many, [2 / 3, -2 / 3])
    same = ridge_answers(np.zeros((3, 2)), np.zeros((2, 2)), np.zeros((1, 2)))
    np.testing.assert_array_equal(same, [0.0])


# duplicates, and the discriminator


def test_the_worse_of_two_equals_is_refused() -> None:
    """Of copies the most trusted stays; what resembles only refused ones stays too, whatever they were refused for."""
    vectors = near(HOME, 4, 1.0, 7)
    vectors[2] = vectors[0]
    found = candidates(4, confidence=[0.6, 0.7, 0.8, 0.75], vectors=vectors)
    verdict = judge(found, real_images(), OFF.model_copy(update={"duplicates": 0.999}))
    assert reasons(verdict) == {"p0000": "near-duplicate"}
    assert verdict.rejected[0]["value"] == pytest.approx(1.0, abs=1e-5)
    assert verdict.rejected[0]["limit"] == 0.999
    angles = np.radians([0, 20, 40])
    chain = np.zeros((3, 2, D), np.float32)
    chain[:, :, 0], chain[:, :, 1] = np.cos(angles)[:, None], np.sin(angles)[:, None]
    found = candidates(3, confidence=[0.85, 0.55, 0.52], vectors=chain)
    verdict = judge(found, real_images(), OFF.model_copy(update={"duplicates": math.cos(math.radians(30))}))
    assert reasons(verdict) == {"p0001": "near-duplicate"}
    small = replace(found, share=np.array([0.0, 0.3, 0.3]))
    spec = OFF.model_copy(update={"duplicates": math.cos(math.radians(30)), "area": 0.02})
    assert reasons(judge(small, real_images(), spec)) == {"p0000": "area-too-small", "p0002": "near-duplicate"}


def test_the_discriminator_refuses_what_is_not_like_real() -> None:
    """Each half is judged by what the other taught; replay from elsewhere is told apart, replay from here is not."""
    real = real_images(100, spread=0.2)
    elsewhere, here = near(HOME + 0.8 * AWAY, 60, 0.2, 8), near(HOME, 60, 0.2, 9)
    shares = []
    for vectors in (elsewhere, here):
        spec = OFF.model_copy(update={"adversarial": 0.1})
        verdict = judge(candidates(60, vectors=vectors), real, spec)
        assert set(reasons(verdict).values()) <= {"not-like-real"}
        assert "real" in verdict.scores["p0000"]
        shares.append(len(verdict.rejected) / 60)
        answers, limit = adversarial(vectors, real.vectors, 0.1)
        assert (answers < limit).mean() == pytest.approx(shares[-1])
    assert shares[0] > 0.9
    assert shares[1] < 0.4
    assert adversarial(elsewhere, real.vectors, 0.1)[0].mean() < 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_discriminator_is_not_asked_about_one(count: int) -> None:
    """One candidate has no other half to learn from; nothing fails, and no score is made up for it."""
    verdict = judge(candidates(count), real_images(), OFF.model_copy(update={"adversarial": 0.1}))
    assert len(verdict.kept) + len(verdict.rejected) == count
    assert ("real" in verdict.scores["p0000"]) is (count > 1)


# whatever comes


def test_the_same_candidates_get_the_same_verdict() -> None:
    """Twice the same, down to the last digit."""
    found, _ = planted(80, 5)
    spec = TrustSpec(agreement=0.1, adversarial=0.05, duplicates=0.99)
    assert judge(found, real_images(), spec) == judge(found, real_images(), spec)


@pytest.mark.parametrize("count", [1, FEWEST, 40])
def test_constant_inputs_give_no_nan(count: int) -> None:
    """All equal, zero vectors too: every score is finite, limits as well, and nothing divides by zero."""
    ones, spec = np.ones(FEWEST), TrustSpec(agreement=0.1, adversarial=0.1, duplicates=0.9)
    for vector in (np.zeros((2, D)), np.ones((2, D))):
        real = Standards(ones * 0.3, ones * 0.8, ones, ones, np.repeat(vector[None], FEWEST, 0).astype(np.float32))
        for confidence in (0.8, 0.0, 1.0):
            found = candidates(
                count, confidence=np.full(count, confidence), vectors=np.repeat(vector[None], count, 0).astype("f4")
            )
            with np.errstate(divide="raise", invalid="raise", over="raise"):
                verdict = judge(found, real, spec)
            values = [value for told in verdict.scores.values() for value in told.values()]
            values += [one["value"] for one in verdict.rejected]
            assert np.isfinite(values).all()
            assert len(verdict.kept) + len(verdict.rejected) == count


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 45), known=st.integers(0, 45), seed=st.integers(0, 2**32 - 1),
    spec=st.builds(
        TrustSpec, area=st.sampled_from([0, 0.1]), confidence=st.sampled_from([0, 0.3]),
        agreement=st.sampled_from([0, 0.3]), typical=st.sampled_from([0, 0.3]), split=st.booleans(),
        adversarial=st.sampled_from([0, 0.3]), duplicates=st.sampled_from([0, 0.7]), keep=st.floats(0, 1),
    ),
)  # fmt: skip
def test_everybody_is_kept_or_refused_once(count: int, known: int, seed: int, spec: TrustSpec) -> None:
    """Kept and rejected are all candidates, once each; everyone has finite scores, trust in 0..1, and its reason."""
    random = np.random.default_rng(seed)
    found = Candidates(names(count), *random.random((3, count)), vectors=near(HOME, count, 1.0, seed))
    vectors = near(HOME, known, 1.0, seed + 1)
    real = Standards(*random.random((3, known)), typical=random.random(known), vectors=vectors)
    verdict = judge(found, real, spec)
    refused = [one["id"] for one in verdict.rejected]
    assert sorted([*verdict.kept, *refused]) == list(found.ids)
    assert refused == sorted(refused)
    assert set(verdict.scores) == set(found.ids)
    for told in verdict.scores.values():
        assert np.isfinite(list(told.values())).all()
        assert 0 <= told["trust"] <= 1
    trust = [verdict.scores[name]["trust"] for name in verdict.kept]
    assert trust == sorted(trust, reverse=True)


def test_regions_and_wholes_weigh_the_same() -> None:
    """Each is brought to length 1; an empty region stays zero."""
    vectors = np.array([[[3, 4], [0, 0.5]], [[0, 0], [2, 0]]], np.float32)
    np.testing.assert_allclose(flat(vectors), [[0.6, 0.8, 0, 1], [0, 0, 1, 0]], rtol=1e-6)
