"""The samples of an export, one at a time: image, mask in exported ids, and all that is known of both.

Nothing that was purged or is no longer visible at its source gets through, and nothing whose licence forbids to hand it
on, unless somebody says why it may; what is left out is counted.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from replaygen.crawl.licences import allowed_licences, read_licence
from replaygen.errors import DataError
from replaygen.exports.choose import Chosen
from replaygen.exports.ids import Ids
from replaygen.report.attribution import link
from replaygen.report.text import stripped
from replaygen.runs.proof import licence_told
from replaygen.runs.replay import ReplaySet
from replaygen.sample import decode_mask
from replaygen.store import Shard, Store

if TYPE_CHECKING:
    from replaygen.sample import Mask8

PURGED: Final = "purged"
RESTRICTED: Final = "licence-forbids-sharing"
UNKNOWN: Final = "licence-unknown"
HIDDEN: Final = "no-longer-visible"
NEVER: Final = frozenset({PURGED, HIDDEN})
"""Reasons that no word of one's own opens the door for."""

_TEXT: Final = ("file", "title", "owner", "photo", "sha256", "prompt", "generator")
_LINKS: Final = ("page", "url", "owner_page")
_NUMBERS: Final = ("seed",)


@dataclass(frozen=True)
class Sample:
    """One image with its label.

    Attributes:
        image: the file's bytes, as they are stored; kind: "jpg" or "png".
        mask: uint8 [H, W] in exported ids, 255 = ignore.
        about: what is known of it, plain data with stable keys: `_about`.
    """

    id: str
    class_name: str
    image: bytes
    kind: str
    width: int
    height: int
    mask: Mask8
    about: dict[str, Any]


@dataclass
class Door:
    """Who may leave the store.

    Attributes:
        allowed: why restricted licences are handed on all the same; "" where they are not.
        left_out: samples that were kept back, by reason.
        let_through: samples that `allowed` alone opened for, by reason.
    """

    store: Store
    allowed: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    let_through: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.buried, self.bytes = frozenset(self.store.tombstones()), self.store.buried_bytes()
        self.checked = self.store.checked()
        self._photos: set[str] = set()

    def opens(self, sample: str, about: Mapping[str, Any]) -> bool:
        """Whether a sample may go out; where not, or only as somebody said why, it is counted."""
        reason = self.reason(sample, about)
        if reason and (reason in NEVER or not self.allowed):
            self.left_out[reason] += 1
            return False
        if reason:
            self.let_through[reason] += 1
        self._photos.add(str(about.get("photo") or ""))
        return True

    def reason(self, sample: str, about: Mapping[str, Any]) -> str:
        """Why a sample is kept back; "" where it is not."""
        photo = str(about.get("photo") or "")
        if {sample, photo} & self.buried or about.get("sha256") in self.bytes:
            return PURGED
        checked = self.checked.get(photo, {})
        if checked.get("visible") is False:
            return HIDDEN
        licences = [name for name in (about.get("licence"), checked.get("licence")) if name]
        if any(_forbids(str(name)) for name in licences):
            return RESTRICTED
        return UNKNOWN if photo and not licences else ""

    def still_open(self) -> bool:
        """Whether nothing was purged since the first look, and what went out was not withdrawn or forbidden."""
        if (frozenset(self.store.tombstones()), self.store.buried_bytes()) != (self.buried, self.bytes):
            return False
        rows = [row for photo, row in self.store.checked().items()
                if photo in self._photos and row != self.checked.get(photo)]  # fmt: skip
        forbidden = any(_forbids(str(row["licence"])) for row in rows if row.get("licence"))
        return all(row.get("visible") is not False for row in rows) and (bool(self.allowed) or not forbidden)


def _forbids(licence: str) -> bool:
    """Whether a licence allows no changed copies to be handed on; one that nobody can read counts as such."""
    known = read_licence(licence)
    try:
        return known is None or not allowed_licences([known])
    except ValueError:
        return True


def samples(chosen: Chosen, ids: Ids, door: Door) -> Iterator[Sample]:
    """Every sample that may go out, in the order of channels, shards and ids.

    Images and labels are in memory a shard at a time; ids of all samples are.

    Raises:
        DataError: a label that does not fit its image, or one id in two sets.
        StoreError: an object is missing or damaged.
    """
    seen: set[str] = set()
    for _, one in chosen.sets:
        for sample in _of_set(one, ids, door):
            if sample.id in seen:
                raise DataError(f"the sample {sample.id!r} is in two replay sets", hint="export one class at a time")
            seen.add(sample.id)
            yield sample


def _of_set(one: ReplaySet, ids: Ids, door: Door) -> Iterator[Sample]:
    for part in one.manifest["shards"]:
        images = Shard(one.store.read(part["images"]), one.store.read(part["images_index"]))
        labels = Shard(one.store.read(part["labels"]), one.store.read(part["labels_index"]))
        for sample in part.get("kept", labels.ids[: part["samples"]]):
            about = json.loads(images.read(sample, "json"))
            if not door.opens(sample, about):
                continue
            kind = "png" if "png" in images.extensions(sample) else "jpg"
            label = json.loads(labels.read(sample, "label.json"))
            mask = decode_mask(labels.read(sample, "mask.png"), where=sample)
            yield _sample(sample, one, images.read(sample, kind), kind, mask, about, label, ids)


def _sample(
    sample: str, one: ReplaySet, image: bytes, kind: str, mask: Mask8, about: Mapping[str, Any],
    label: Mapping[str, Any], ids: Ids,
) -> Sample:  # fmt: skip
    width, height = _size(image, sample)
    if mask.shape != (height, width):
        raise DataError(
            f"the label of {sample!r} is {mask.shape[1]} x {mask.shape[0]}, its image {width} x {height} pixels",
            where=sample, hint="run `replaygen cache verify`",
        )  # fmt: skip
    name = str(one.manifest["class"])
    told = _about(sample, name, one, about, label, ids) | {"width": width, "height": height}
    return Sample(sample, name, image, kind, width, height, ids.apply(mask, sample), told)


def _size(image: bytes, where: str) -> tuple[int, int]:
    """(width, height) in pixels, from the file's head."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image), formats=("JPEG", "PNG")) as opened:
            return opened.size
    except Exception as error:  # Pillow raises many kinds
        raise DataError(f"not a readable image ({type(error).__name__})", where=where) from None


def _about(
    sample: str, name: str, one: ReplaySet, about: Mapping[str, Any], label: Mapping[str, Any], ids: Ids
) -> dict[str, Any]:
    """What travels with a sample: stable keys, None where a thing is not known, no control characters."""
    licence, address = licence_told(_text(about.get("licence")) or "", _text(about.get("licence_url")) or "")
    visible = [ids.by_channel[channel] for channel in label.get("visible", ()) if channel in ids.by_channel]
    told: dict[str, Any] = {
        "id": sample, "class": stripped(name), "class_id": ids.by_channel[int(one.manifest["channel"])].id,
        "source": _text(about.get("source")), "recipe_source": stripped(one.source),
        "licence": _text(about.get("licence")), "licence_name": licence or None, "licence_url": link(address) or None,
    }  # fmt: skip
    told |= {key: _text(about.get(key)) for key in _TEXT}
    told |= {key: link(str(about.get(key) or "")) or None for key in _LINKS}
    told |= {key: value if isinstance(value := about.get(key), int) else None for key in _NUMBERS}
    told["parent"] = _text(dict(about["parent"]).get("id")) if isinstance(about.get("parent"), dict) else None
    told["erased"] = bool(about.get("erased"))
    told["visible"] = [one.id for one in visible]
    told["visible_names"] = [stripped(one.name) for one in visible]
    told["labeler"] = _text(label.get("labeler"))
    told["scores"] = _numbers(label.get("scores", {}))
    return told


def _text(value: object) -> str | None:
    return (stripped(value).strip() or None) if isinstance(value, str) else None


def _numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    kept: Iterable[tuple[str, Any]] = ((name, scores[name]) for name in sorted(scores))
    return {stripped(name): float(value) for name, value in kept if isinstance(value, int | float)}
