"""Replay shards as samples: for the trainers here, and as a plain torch Dataset for anybody's own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from replaygen.errors import DataError
from replaygen.learn.features import FeatureFile
from replaygen.learn.samples import Item, Samples, collate, feature_item, image_item
from replaygen.learn.specs import ViewSpec
from replaygen.sample import decode_image, decode_mask
from replaygen.shown import notebook_html
from replaygen.store import Shard

if TYPE_CHECKING:
    from replaygen.sample import Image8, Mask8

_IMAGE_ENDINGS = ("png", "jpg", "webp")


@dataclass(frozen=True)
class ReplayShard:
    """The image shard and the label shard of some replay samples, and the features of their views where cached.

    A label's ids are among the image's; images without a label were rejected and are left out. `group` is the channel
    that the samples were made for; None: the first visible class of each label. `take`: how many of the labels belong
    to the set, the first in the order of their ids; None: all; `kept`: which ones, where they were chosen.
    """

    images: Shard
    labels: Shard
    features: FeatureFile | None = None
    group: int | None = None
    take: int | None = None
    kept: tuple[str, ...] | None = None

    @property
    def ids(self) -> tuple[str, ...]:
        """The samples that belong to the set."""
        return self.labels.ids[: self.take] if self.kept is None else self.kept


class HasShards(Protocol):
    """A replay set, as a run leaves it."""

    def shards(self) -> Iterable[ReplayShard]:
        """Its shards, in order."""


def replay_items(shards: Iterable[ReplayShard], views: ViewSpec, prefix: str = "replay-") -> list[Item]:
    """One item for each label of the shards, in order; ids get `prefix` so that they never meet a current sample's.

    Views are seeded by the sample's own id in its shard. Where a shard has features, items deliver those.

    Raises:
        DataError: a label without an image or features, or without visible classes.
    """
    return [
        _item(shard, sample_id, views, f"{prefix}{number}-{sample_id}")
        for number, shard in enumerate(shards)
        for sample_id in shard.ids
    ]


def _item(shard: ReplayShard, sample_id: str, views: ViewSpec, name: str) -> Item:
    if sample_id not in shard.images.ids:
        raise DataError(f"label {sample_id!r} has no image", hint="the label shard belongs to another image shard")
    visible = _visible(shard.labels.read(sample_id, "label.json"), sample_id)
    mask = partial(_mask, shard, sample_id)
    if shard.features is not None:
        if sample_id not in shard.features.ids:
            raise DataError(f"no features of {sample_id!r}", where=str(shard.features.path))
        made = feature_item(
            sample_id, visible, True, partial(shard.features.read, sample_id), mask, views, shard.group
        )  # fmt: skip
    else:
        made = image_item(sample_id, visible, True, partial(_image_and_mask, shard, sample_id), views, shard.group)
    return made.renamed(name)


def _visible(data: bytes, sample_id: str) -> tuple[int, ...]:
    try:
        visible = tuple(int(channel) for channel in json.loads(data)["visible"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"label.json has no list of visible classes ({error})", where=sample_id) from None
    if not visible or 0 in visible:
        raise DataError(f"visible classes {visible} are empty or hold background", where=sample_id)
    return visible


def _mask(shard: ReplayShard, sample_id: str) -> Mask8:
    return decode_mask(shard.labels.read(sample_id, "mask.png"), where=sample_id)


def _image_and_mask(shard: ReplayShard, sample_id: str) -> tuple[Image8, Mask8]:
    endings = [ending for ending in _IMAGE_ENDINGS if ending in shard.images.extensions(sample_id)]
    if not endings:
        raise DataError("the image shard has no picture of this sample", where=sample_id)
    return decode_image(shard.images.read(sample_id, endings[0]), where=sample_id), _mask(shard, sample_id)


class ReplayBuffer(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Replay as a torch Dataset, for a trainer of your own.

    `buffer[i]` is (image float32 [3, S, S] in 0..1, mask int64 [S, S], visible bool [C]): masks hold channels (0
    background, 255 ignore), and `visible` the classes that the mask can be trusted for, so any other class may hide in
    its background. `torch.utils.data.DataLoader` collates these as they are.

    Args:
        shards: replay shards, or a mapping from class name to a replay set (`run.replay`) or its shards.
        size: S, in pixels.
        channels: C; one more than the highest visible class by default.
        views: crops to choose from by `set_round`, instead of the whole image; its size wins over `size`.

    Raises:
        DataError: no samples.
    """

    def __init__(
        self,
        shards: Iterable[ReplayShard] | Mapping[str, HasShards | Iterable[ReplayShard]],
        size: int = 64,
        *,
        channels: int | None = None,
        views: ViewSpec | None = None,
        ram_limit: int = 2 * 2**30,
    ) -> None:
        groups = shards if isinstance(shards, Mapping) else {"": shards}
        named = [(name, shard) for name, group in groups.items() for shard in _shards_of(group)]
        flat = [shard for _, shard in named]
        self.names = {shard.group: name for name, shard in named if name and shard.group is not None}
        self.views = views or ViewSpec(size=size)
        self.samples = Samples(replay_items(flat, self.views), ram_limit)
        if not len(self.samples):
            raise DataError("the replay buffer is empty", hint="were all samples rejected? see the run's counts")
        self.channels = channels or 1 + max(channel for item in self.samples.items for channel in item.visible)
        self.round = 0

    def _repr_html_(self) -> str | None:
        return notebook_html("buffer", self)

    def set_round(self, number: int) -> None:
        """Use view `number` of every sample from now on (modulo the fixed views; any number for fresh ones)."""
        self.round = number

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        view = self.round if self.views.fresh else self.round % self.views.count
        item = self.samples.items[index]
        batch = collate([item], [self.samples.get(index, view)], self.channels)
        if batch.images is None:
            raise DataError("these shards hold features; a plain dataset needs images", where=item.id)
        return batch.images[0], batch.masks[0], batch.visible[0]

    @property
    def classes(self) -> torch.Tensor:
        """int64 [N]: the class each sample was made for, as for a class-balanced sampler."""
        return torch.tensor([item.balance_class for item in self.samples.items])


def _shards_of(group: HasShards | Iterable[ReplayShard]) -> Iterable[ReplayShard]:
    return group if isinstance(group, Iterable) and not hasattr(group, "shards") else group.shards()
