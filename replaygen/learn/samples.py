"""Samples on their way into a batch: lazily loaded items, a RAM cache over them, and the batch they become."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from replaygen.errors import DataError
from replaygen.learn.specs import ViewSpec
from replaygen.learn.views import apply_view, apply_view_to_mask
from replaygen.sample import IGNORE

if TYPE_CHECKING:
    from replaygen.sample import Image8, Mask8

    Loaded = tuple[Image8 | None, "Features | None", Mask8]

Features = tuple[Tensor, ...]


@dataclass(frozen=True)
class Item:
    """One sample, not loaded yet.

    Attributes:
        id: names it in errors and seeds its views.
        visible: channels its mask can be trusted for; never background.
        replay: a replay sample (else one of the current step).
        load: view -> (image uint8 [S, S, 3] or None, features float16 [D, h, w] a tap or None, mask uint8 [S, S]).
        views: how many fixed views there are, or that every draw is a fresh one; None: only view 0.
        read: () -> (image uint8 [H, W, 3], mask uint8 [H, W]), the sample at full size, where it is at hand.
        features, mask: view -> features, and () -> the mask at full size: `load` in two parts, where it has them.
        group: the class that replay is balanced by; None: the first of `visible`.
        view_id: the id that seeds its views, where that is not `id`.
    """

    id: str
    visible: tuple[int, ...]
    replay: bool
    load: Callable[[int], Loaded]
    views: ViewSpec | None = None
    read: Callable[[], tuple[Image8, Mask8]] | None = None
    group: int | None = None
    view_id: str | None = None
    features: Callable[[int], Features] | None = None
    mask: Callable[[], Mask8] | None = None

    def renamed(self, name: str) -> Item:
        """The same sample under another id; its views stay those of the old one."""
        return replace(self, id=name, view_id=self.seed_id)

    @property
    def seed_id(self) -> str:
        """The id that seeds its views."""
        return self.view_id if self.view_id is not None else self.id

    @property
    def balance_class(self) -> int:
        """The class this sample is drawn for; 0 where it has none."""
        if self.group is not None:
            return self.group
        return self.visible[0] if self.visible else 0


def image_item(
    sample_id: str,
    visible: tuple[int, ...],
    replay: bool,
    read: Callable[[], tuple[Image8, Mask8]],
    views: ViewSpec,
    group: int | None = None,
) -> Item:
    """An item from a full-size image and mask (already in channels), viewed as `views` says."""

    def load(v: int) -> Loaded:
        image, mask = read()
        square, mask_square = apply_view(image, mask, sample_id, v, views)
        assert mask_square is not None
        return square, None, mask_square

    return Item(sample_id, visible, replay, load, views, read, group)


def feature_item(
    sample_id: str,
    visible: tuple[int, ...],
    replay: bool,
    features: Callable[[int], Features],
    mask: Callable[[], Mask8],
    views: ViewSpec,
    group: int | None = None,
) -> Item:
    """An item from cached features of each fixed view and a full-size mask (already in channels).

    Raises:
        DataError: `views` asks for fresh views, which no cache can hold.
    """
    if views.fresh:
        raise DataError("fresh views cannot come from cached features", hint="set views.fresh = false")

    def load(v: int) -> Loaded:
        return None, features(v), apply_view_to_mask(mask(), sample_id, v, views)

    return Item(sample_id, visible, replay, load, views, group=group, features=features, mask=mask)


class Samples(Dataset["Loaded"]):
    """Items, with what they loaded kept in RAM until `ram_limit` bytes are full.

    `samples[i]` is view 0 of item i; `samples.get(i, v)` any view. Threads may ask at the same time.
    """

    def __init__(self, items: Sequence[Item], ram_limit: int = 2 * 2**30) -> None:
        self.items = tuple(items)
        self.ram_limit = ram_limit
        self.used = 0
        self._kept: dict[tuple[int, int], Loaded] = {}
        self._coming: dict[tuple[int, int], Future[Loaded]] = {}
        self._lock = threading.Lock()
        repeated = len(self.items) - len({item.id for item in self.items})
        if repeated:
            raise DataError(f"{repeated} sample ids are given twice", hint="ids name a sample; prefix them by source")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Loaded:
        return self.get(index, 0)

    def get(self, index: int, view: int) -> Loaded:
        """What item `index` loads for `view`."""
        with self._lock:
            coming = self._coming.pop((index, view), None)
        if coming is not None:
            try:
                return coming.result()
            except CancelledError:  # the loop that had asked for it ended early
                pass
        return self._load(index, view)

    def prefetch(self, index: int, view: int, pool: Executor) -> None:
        """Let `pool` load what the next `get` of this item and view will want."""
        place = (index, view)
        with self._lock:
            if place not in self._kept and place not in self._coming:
                self._coming[place] = pool.submit(self._load, index, view)

    def _load(self, index: int, view: int) -> Loaded:
        item = self.items[index]
        if item.views is not None and item.views.fresh and item.read is not None:
            # every crop is another one: keep the sample at full size (as view -1) and crop from it
            image, _, mask = self._keep((index, -1), lambda: _whole(item))
            assert image is not None
            square, mask_square = apply_view(image, mask, item.seed_id, view, item.views)
            assert mask_square is not None
            return square, None, mask_square
        return self._keep((index, view), lambda: self._view(index, view))

    def _view(self, index: int, view: int) -> Loaded:
        item = self.items[index]
        read, features, views = item.mask, item.features, item.views
        if read is None or features is None or views is None or views.count == 1:
            return item.load(view)
        # every view of a mask comes from the same file, which is read and decoded once
        mask = self._keep((index, -1), lambda: (None, None, read()))[2]
        return None, features(view), apply_view_to_mask(mask, item.seed_id, view, views)

    def _keep(self, place: tuple[int, int], load: Callable[[], Loaded]) -> Loaded:
        if place in self._kept:
            return self._kept[place]
        loaded = load()
        size = _bytes_of(loaded)
        with self._lock:
            if place not in self._kept and self.used + size <= self.ram_limit:
                self.used += size
                self._kept[place] = loaded
        return loaded


@dataclass(frozen=True)
class Batch:
    """A mini-batch. Either `images` or `features` is there.

    Attributes:
        images: float32 [B, 3, S, S] in 0..1, or None.
        features: a tensor [B, D, h, w] for each tap, or None.
        masks: int64 [B, M, M], channels or 255.
        visible: bool [B, C].
        replay: bool [B].
        ids: the samples' ids.
        progress: how far the fit is, 0 at its first batch, below 1 at its last.
    """

    images: Tensor | None
    features: Features | None
    masks: Tensor
    visible: Tensor
    replay: Tensor
    ids: tuple[str, ...]
    progress: float = 0.0

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; from page-locked memory the copy does not wait."""
        if self.masks.device == device:
            return self
        return self._each(lambda x: x.to(device, non_blocking=x.is_pinned()))

    def pinned(self) -> Batch:
        """The same batch in page-locked memory of the CPU."""
        return self._each(lambda x: x.pin_memory())

    def part(self, i: int, n: int) -> Batch:
        """Samples i, i + n, i + 2n, ...: a part of n has current and replay samples as the whole has them."""
        rows = slice(i, None, n)
        return replace(self._each(lambda x: x[rows]), ids=self.ids[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            None if self.images is None else change(self.images),
            None if self.features is None else tuple(change(feature) for feature in self.features),
            change(self.masks), change(self.visible), change(self.replay), self.ids, self.progress,
        )  # fmt: skip


def collate(items: Sequence[Item], loaded: Sequence[Loaded], channels: int) -> Batch:
    """Stack what items loaded.

    Raises:
        DataError: an item mixes images with features, differs in size, or has labels beyond `channels`; names the item.
    """
    with_images = loaded[0][0] is not None
    for item, (image, features, mask) in zip(items, loaded, strict=True):
        same_kind = (image is not None) == with_images and (features is not None) != with_images
        if not same_kind or mask.shape != loaded[0][2].shape:
            raise DataError("a batch mixes images with features, or sizes", where=item.id)
        if any(not 0 < c < channels for c in item.visible):
            raise _beyond(item, mask, channels)
    masks = np.stack([mask for _, _, mask in loaded])
    # 255 = ignore becomes 0, so the largest number is one above the highest label
    if int((masks + np.uint8(1)).max(initial=0)) > channels:
        raise next(
            _beyond(item, mask, channels)
            for item, (_, _, mask) in zip(items, loaded, strict=True) if _highest(mask) >= channels
        )  # fmt: skip
    visible = torch.zeros(len(items), channels, dtype=torch.bool)
    for row, item in enumerate(items):
        visible[row, list(item.visible)] = True
    images = stack_images([entry[0] for entry in loaded if entry[0] is not None]) if with_images else None
    maps = [entry[1] for entry in loaded if entry[1] is not None]
    features_of = None if with_images else tuple(torch.stack(tap) for tap in zip(*maps, strict=True))
    replay = torch.tensor([item.replay for item in items])
    return Batch(images, features_of, torch.from_numpy(masks).long(), visible, replay, tuple(i.id for i in items))


def stack_images(images: Sequence[Image8]) -> Tensor:
    """uint8 [S, S, 3] each -> float32 [B, 3, S, S] in 0..1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float().div_(255.0)


def _highest(mask: Mask8) -> int:
    return int(mask[mask != IGNORE].max(initial=0))


def _beyond(item: Item, mask: Mask8, channels: int) -> DataError:
    return DataError(
        f"label {_highest(mask)} or visible classes {item.visible} lie beyond the {channels} channels of the network",
        where=item.id, hint="masks hold channels in learning order, 255 = ignore",
    )  # fmt: skip


def _whole(item: Item) -> Loaded:
    assert item.read is not None
    image, mask = item.read()
    return image, None, mask


def _bytes_of(loaded: Loaded) -> int:
    image, features, mask = loaded
    return mask.nbytes + (0 if image is None else image.nbytes) + sum(f.nbytes for f in features or ())
