"""What did not become replay, to look at: rejected images of every class and source, with reasons to filter by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaygen.report.attribution import FLICKR_NOTICE
from replaygen.report.labels import Judgement, judge
from replaygen.report.sheets import Told, told_once
from replaygen.report.strips import WHERE, Look, Pictures, by_turns

if TYPE_CHECKING:
    from replaygen.plan import Plan

PAGE_REJECTED = 144
"""Rejected samples on a page, about; many classes show fewer each."""

FEWEST = 3
"""Of one class and source, however many there are."""

LEFT_OVER = "set"
"""The place of what was good enough and not wanted: it was not refused, and is not told here."""

PAGE_FLICKR = 5
"""Photos of Flickr among them."""


@dataclass(frozen=True)
class Refused:
    """One rejected sample; `look.one.reason` is its reason."""

    name: str
    source: str
    look: Look


@dataclass(frozen=True)
class Cause:
    """One reason: where it was given, in words, how many samples it refused, and how many of them are shown."""

    reason: str
    where: str
    samples: int
    shown: int


@dataclass(frozen=True)
class Rejected:
    """The section of a page.

    Attributes:
        causes: most samples first.
        names: the classes of what is shown, in channel order.
        flickr: photos of Flickr that are shown; fewer: whether some are not, because a page shows so many at most.
    """

    shown: tuple[Refused, ...]
    causes: tuple[Cause, ...]
    legend: tuple[tuple[str, str], ...]
    flickr: int
    fewer: bool

    @property
    def samples(self) -> int:
        """All that were refused."""
        return sum(cause.samples for cause in self.causes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(one.name for one in self.shown))

    @property
    def reasons(self) -> dict[str, int]:
        """Reason -> samples that are shown."""
        return dict(Counter(one.look.one.reason for one in self.shown).most_common())

    @property
    def unlicensed(self) -> bool:
        """Whether some that are shown have no licence on record."""
        return any(one.look.credit.unlicensed for one in self.shown)

    @property
    def notice(self) -> str:
        """What the terms of a source ask to say where its photos are shown; "" where nothing."""
        return FLICKR_NOTICE if self.flickr else ""


def rejected(plan: Plan, seed: int, *, flickr: int = PAGE_FLICKR) -> Rejected | None:
    """What was refused on the way into the replay sets of a plan and seed, of each class and source the first.

    Args:
        flickr: photos of Flickr that may be shown.

    Returns:
        None where nothing was refused.

    Raises:
        StoreError, DataError: an object is missing or damaged.
    """
    told = [judge(one.replay_set, one.chains[0]) for one in first_of_each(plan, seed)]
    told = [one for one in told if any(reason.at != LEFT_OVER for reason in one.reasons)]
    if not told:
        return None
    looks, legend, of_flickr, fewer = _looks(told, flickr)
    counted, where = Counter[str](), dict[str, dict[str, None]]()
    for one in told:
        for reason in (reason for reason in one.reasons if reason.at != LEFT_OVER):
            counted[reason.reason] += reason.samples
            where.setdefault(reason.reason, {})[WHERE[reason.at]] = None
    seen = Counter(one.look.one.reason for one in looks)
    causes = tuple(Cause(reason, ", ".join(where[reason]), count, seen[reason])
                   for reason, count in counted.most_common())  # fmt: skip
    return Rejected(tuple(looks), causes, legend, of_flickr, fewer)


def first_of_each(plan: Plan, seed: int) -> Iterator[Told]:
    """The first replay set of each class and source, in the order of channels."""
    from replaygen.runs.replay import replay_sets

    first: dict[tuple[str, str], Told] = {}
    for one in told_once(replay_sets(plan), seed):
        first.setdefault((str(one.replay_set.manifest["class"]), one.replay_set.source), one)
    yield from sorted(first.values(), key=lambda one: int(one.replay_set.manifest["channel"]))


def _looks(
    told: Sequence[Judgement], flickr: int
) -> tuple[list[Refused], tuple[tuple[str, str], ...], int, bool]:  # fmt: skip
    share = max(FEWEST, PAGE_REJECTED // len(told))
    found, legend, shown, fewer = list[Refused](), dict[tuple[str, str], None](), 0, False
    for place, one in enumerate(told):
        pictures = Pictures(one, -(-max(0, flickr - shown) // (len(told) - place)))
        refused = [sample for sample in one.rejected if sample.at != LEFT_OVER]
        taken = [sample for sample in by_turns(refused, share) if pictures.may(sample)]
        found += [Refused(one.name, one.source, look) for look in pictures.looks(taken, mixed=True)]
        legend |= dict.fromkeys(pictures.legend())
        shown, fewer = shown + pictures.flickr, fewer or pictures.fewer
    return found, tuple(legend), shown, fewer
