"""Who is let in, and the reason of everybody who is not."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaygen.screens.doors import Choice, Seen, choose
from replaygen.screens.looks import look

NOTHING: dict[str, Any] = {"duplicates": -1, "leaks": -1, "grayscale": False, "text": 1.0, "flat": False}
ALL: dict[str, Any] = {"duplicates": 6, "leaks": 8, "grayscale": True, "text": 0.35, "flat": True}
FAR = 0x0F0F_3C3C_5A5A_9696
"""Bits by which hashes differ that have nothing to do with one another."""


def seen(name: str, plain: int = 0, mirror: int | None = None, *, sha: str | None = None, **measures: float) -> Seen:
    """A photo with these hashes; its mirror image is far from everything unless told."""
    told = {"colour": 20.0, "tone": 8.0, "text": 0.0, "flat": 0.2, **measures}
    turned = (~plain & (1 << 64) - 1) if mirror is None else mirror
    hashes = {"hash": f"{plain:016x}", "mirror": f"{turned:016x}"}
    return Seen(f"cow-{name}", name, sha or f"sha of {name}", {**told, **hashes})


def near(plain: int, bits: int) -> int:
    """A hash that differs in so many bits."""
    return plain ^ ((1 << bits) - 1)


def decide(own: list[Seen], others: list[Seen] = (), evaluated: list[Any] = (), **changed: Any) -> Choice:  # type: ignore[assignment]
    """The choice with every screen at its default, some changed."""
    return choose(own, others, evaluated, **{**ALL, **changed})


def test_different_photos_are_kept_in_order() -> None:
    """Photos that have nothing against them are kept in the order they came."""
    own = [seen("a", 0), seen("b", FAR), seen("c", FAR << 1 & (1 << 64) - 1)]
    assert decide(own) == Choice(["cow-a", "cow-b", "cow-c"], [])


def test_nobody_at_the_door() -> None:
    """No photo gives no verdict, whoever is inside already."""
    assert decide([], [seen("a")], [("val-1", "0" * 16)]) == Choice([], [])


def test_the_first_of_near_duplicates_is_kept() -> None:
    """A photo within the threshold of an earlier one is refused, with the bits between; one bit further is kept."""
    own = [seen("a", FAR), seen("b", near(FAR, 6)), seen("c", near(FAR, 7))]
    choice = decide(own)
    assert choice.kept == ["cow-a", "cow-c"]
    assert choice.rejected == [{"id": "cow-b", "reason": "near-duplicate", "of": "cow-a", "distance": 6}]


def test_a_mirrored_copy_is_a_duplicate() -> None:
    """A mirrored copy is refused too, and the verdict says that it is mirrored."""
    own = [seen("a", FAR, 0), seen("b", near(0, 4), near(FAR, 5))]
    assert decide(own).rejected == [
        {"id": "cow-b", "reason": "near-duplicate", "of": "cow-a", "distance": 4, "mirrored": True}
    ]


def test_only_kept_photos_have_duplicates() -> None:
    """A photo close to one that was refused itself is kept: somebody has to be."""
    own = [seen("a", FAR, text=0.9), seen("b", near(FAR, 2))]
    choice = decide(own)
    assert choice.kept == ["cow-b"]
    assert choice.rejected == [{"id": "cow-a", "reason": "mostly-text", "value": 0.9}]


def test_the_nearest_kept_photo_is_named() -> None:
    """Of several kept photos the nearest is named, the first of equals."""
    own = [seen("a", FAR), seen("b", near(FAR, 8)), seen("c", near(FAR, 6)), seen("d", near(FAR, 4))]
    told = decide(own).rejected
    assert [(one["id"], one["of"], one["distance"]) for one in told] == [("cow-c", "cow-b", 2), ("cow-d", "cow-a", 4)]


def test_the_same_file_is_an_exact_duplicate() -> None:
    """The same file under another photo id is an exact duplicate of the first, even where that one was refused."""
    own = [seen("a", FAR, sha="same", flat=0.99), seen("b", FAR, sha="same")]
    assert [one["reason"] for one in decide(own).rejected] == ["flat", "exact-duplicate"]
    assert decide(own).rejected[1] == {"id": "cow-b", "reason": "exact-duplicate", "of": "cow-a", "distance": 0}


def test_a_file_under_three_ids_is_a_placeholder() -> None:
    """One file under three photo ids is refused every time, other classes counted in; under two it is a duplicate."""
    three = [seen(name, FAR, sha="same") for name in "abc"]
    assert [one["reason"] for one in decide(three).rejected] == ["placeholder"] * 3
    assert [one["reason"] for one in decide(three[:1], three[1:]).rejected] == ["placeholder"]
    assert decide(three[:2]).kept == ["cow-a"]


def test_the_same_photo_in_three_classes_is_no_placeholder() -> None:
    """One photo that several classes found is one photo id: a duplicate, not a placeholder."""
    other = [replace(seen("a", FAR, sha="same"), sample=f"{name}-a") for name in ("dog", "cat", "sheep")]
    told = decide([seen("a", FAR, sha="same")], other).rejected
    assert told == [{"id": "cow-a", "reason": "duplicate-of-other-class", "of": "dog-a", "distance": 0}]


def test_photos_of_other_classes_keep_their_place() -> None:
    """A photo close to one of another class is refused, plain or mirrored."""
    others = [seen("x", FAR, 0)]
    own = [seen("a", near(FAR, 3)), seen("b", near(0, 5)), seen("c", near(FAR, 12))]
    choice = decide(own, others)
    assert [(one["reason"], one["distance"], one.get("mirrored", False)) for one in choice.rejected] == [
        ("duplicate-of-other-class", 3, False),
        ("duplicate-of-other-class", 5, True),
    ]
    assert choice.kept == ["cow-c"]


def test_evaluation_images_do_not_leak() -> None:
    """A photo close to an evaluation image is a leak, plain or mirrored, at its own threshold."""
    own = [seen("a", near(FAR, 8)), seen("b", 7, near(FAR, 2)), seen("c", near(FAR, 9))]
    choice = decide(own, [], [("val-0", "0123456789abcdef"), ("val-1", f"{FAR:016x}")])
    assert choice.rejected == [
        {"id": "cow-a", "reason": "leak", "of": "val-1", "distance": 8},
        {"id": "cow-b", "reason": "leak", "of": "val-1", "distance": 2, "mirrored": True},
    ]
    assert choice.kept == ["cow-c"]


@pytest.mark.parametrize(
    ("measures", "reason", "value"),
    [
        ({"flat": 0.95}, "flat", 0.95),
        ({"colour": 0.4, "tone": 0.0}, "grayscale", 0.4),
        ({"colour": 3.0, "tone": 40.0}, "grayscale", 3.0),
        ({"text": 0.36}, "mostly-text", 0.36),
    ],
)
def test_measures_decide(measures: dict[str, float], reason: str, value: float) -> None:
    """Flat, grey, sepia and written pictures are refused with the measure that decided."""
    own = [seen("a", **measures)]
    assert decide(own).rejected == [{"id": "cow-a", "reason": reason, "value": value}]
    assert choose(own, [], [], **NOTHING).kept == ["cow-a"]


def test_a_pale_picture_and_a_caption_pass() -> None:
    """A pale colour photo, a strongly tinted one with colour, and one with a caption are kept."""
    own = [
        seen("a", FAR, colour=3.0, tone=5.0),
        seen("b", 3, colour=6.0, tone=60.0),
        seen("c", FAR ^ 0xFFFFF00000, text=0.35),
    ]
    assert decide(own).kept == ["cow-a", "cow-b", "cow-c"]


def test_the_order_of_reasons() -> None:
    """Of several reasons the first in the documented order is given."""
    worst = {"flat": 1.0, "colour": 0.0, "tone": 0.0, "text": 1.0}
    earlier = seen("z", FAR)
    own = [earlier, seen("a", FAR, sha="x", **worst)]
    others, evaluated = [seen("o", near(FAR, 1))], [("val-1", f"{near(FAR, 5):016x}")]
    told = []
    switches: list[dict[str, Any]] = [{"flat": False}, {"grayscale": False}, {"text": 1.0}, {"leaks": -1}]
    settings_: dict[str, Any] = {}
    for switch in [{}, *switches]:
        settings_ |= switch
        told.append(decide(own, others, evaluated, **settings_).rejected[-1]["reason"])
    told.append(decide(own, [], [], **settings_).rejected[-1]["reason"])
    assert told == ["flat", "grayscale", "mostly-text", "leak", "duplicate-of-other-class", "near-duplicate"]
    same = [replace(one, sha256="same") for one in own]
    assert decide(same).rejected[-1]["reason"] == "exact-duplicate"
    assert decide(same, [seen("o", sha="same")]).rejected[-1]["reason"] == "placeholder"


hashes = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 40).map(lambda bits: near(FAR, bits)))
photos = st.lists(
    st.tuples(hashes, hashes, st.sampled_from("abcdefgh"), st.sampled_from([3.0, 0.0]), st.sampled_from([0.1, 1.0])),
    max_size=12,
).map(
    lambda rows: [
        seen(f"p{n}", plain, mirror, sha=sha, colour=colour, flat=flat)
        for n, (plain, mirror, sha, colour, flat) in enumerate(rows)
    ]
)


def apart(first: Seen, second: Seen) -> int:
    """Bits between two photos, the mirror images of both counted in."""
    pairs = (("hash", "hash"), ("mirror", "hash"), ("hash", "mirror"))
    return min((int(first.look[one], 16) ^ int(second.look[two], 16)).bit_count() for one, two in pairs)


@settings(deadline=None)
@given(photos, photos, st.lists(hashes, max_size=5), st.integers(-1, 12), st.integers(-1, 12), st.booleans())
def test_every_photo_has_one_verdict(
    own: list[Seen], others: list[Seen], evaluated: list[int], duplicates: int, leaks: int, flat: bool
) -> None:
    """Kept and rejected are all photos, in order, once each, and asking again says the same."""
    against = [(f"val-{n}", f"{value:016x}") for n, value in enumerate(evaluated)]
    choice = decide(own, others, against, duplicates=duplicates, leaks=leaks, flat=flat)
    rejected = [one["id"] for one in choice.rejected]
    names = [one.sample for one in own]
    assert sorted(choice.kept + rejected) == sorted(names)
    assert choice.kept == [name for name in names if name in set(choice.kept)]
    assert rejected == [name for name in names if name in set(rejected)]
    assert choice == decide(own, others, against, duplicates=duplicates, leaks=leaks, flat=flat)


@settings(deadline=None)
@given(photos, photos, st.lists(hashes, max_size=5), st.integers(0, 12), st.integers(0, 12))
def test_nobody_kept_is_close(own: list[Seen], others: list[Seen], evaluated: list[int], most: int, leaks: int) -> None:
    """No two kept photos, and none of others or the evaluation, are within the thresholds; a file is kept once."""
    choice = decide(
        own, others, [(f"v{n}", f"{one:016x}") for n, one in enumerate(evaluated)], duplicates=most, leaks=leaks
    )
    kept = [one for one in own if one.sample in set(choice.kept)]
    assert all(apart(one, two) > most for n, one in enumerate(kept) for two in kept[:n])
    assert all(apart(one, two) > most for one in kept for two in others)
    told = [int(one.look[name], 16) for one in kept for name in ("hash", "mirror")]
    assert all((mine ^ other).bit_count() > leaks for mine in told for other in evaluated)
    assert len({one.sha256 for one in kept}) == len(kept)


@settings(deadline=None)
@given(photos, photos, st.lists(hashes, max_size=5))
def test_screens_that_are_off_keep_everybody(own: list[Seen], others: list[Seen], evaluated: list[int]) -> None:
    """With every screen off, copies and all are kept."""
    against = [(f"val-{n}", f"{value:016x}") for n, value in enumerate(evaluated)]
    assert choose(own, others, against, **NOTHING) == Choice([one.sample for one in own], [])


def test_many_photos_are_decided_soon() -> None:
    """1,000 photos against 10,000 others and 10,000 evaluation images take seconds, and all are checked."""
    draw = np.random.default_rng(0)

    def many(name: str, count: int) -> list[Seen]:
        pairs = draw.integers(0, 2**64, (count, 2), dtype=np.uint64)
        return [seen(f"{name}{n}", int(plain), int(mirror)) for n, (plain, mirror) in enumerate(pairs)]

    own, others = many("a", 1000), many("b", 10_000)
    evaluated = [(one.sample, one.look["hash"]) for one in many("v", 10_000)]
    evaluated[-1] = ("last", own[-1].look["mirror"])
    start = time.perf_counter()
    choice = decide(own, [*others, replace(own[500], photo="o", sha256="o")], evaluated)
    assert time.perf_counter() - start < 20
    assert [(one["id"], one["reason"]) for one in choice.rejected] == [
        ("cow-a500", "duplicate-of-other-class"),
        ("cow-a999", "leak"),
    ]


def test_pictures_go_through_the_door() -> None:
    """What `look` says is what the door understands: of a picture, its mirror image and a grey card one is let in."""
    draw = np.random.default_rng(5)
    picture = np.kron(draw.integers(0, 256, (6, 8, 3)), np.ones((24, 24, 1))).astype(np.uint8)
    drawn = {"a": picture, "b": picture[:, ::-1], "c": np.full_like(picture, 230)}
    own = [Seen(f"cow-{name}", name, name, look(image)) for name, image in drawn.items()]
    choice = decide(own)
    assert choice.kept == ["cow-a"]
    assert [one["reason"] for one in choice.rejected] == ["near-duplicate", "flat"]
