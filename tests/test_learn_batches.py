"""Views, samples, mixed batches, cached features and the public replay buffer."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from replaygen.errors import DataError, ModelError
from replaygen.learn import (
    FeatureFile,
    Item,
    MixedBatches,
    NetworkSpec,
    ReplayBuffer,
    ReplayShard,
    Samples,
    ViewSpec,
    apply_view,
    apply_view_to_mask,
    build_network,
    encode_views,
    feature_item,
    features_from_bytes,
    features_to_bytes,
    image_item,
)
from replaygen.sample import encode_png
from replaygen.store import Shard, write_shard


def picture(seed: int, height: int = 40, width: int = 60) -> tuple[Any, Any]:
    """A grey gradient, and a mask that can be read off its pixels: channel = brightness // 64."""
    rows, columns = np.mgrid[0:height, 0:width]
    grey = ((rows * 3 + columns * 2 + seed * 17) % 256).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, 2), (grey // 64).astype(np.uint8)


def items(count: int, *, replay: bool, views: ViewSpec, classes: int = 3) -> list[Item]:
    """Items whose class is their number modulo `classes`, plus one."""
    kind = "replay" if replay else "current"
    return [
        image_item(f"{kind}-{i}", (1 + i % classes,), replay, lambda i=i: picture(i), views)  # type: ignore[misc]
        for i in range(count)
    ]


def mixed(seed: int = 0, **changes: Any) -> MixedBatches:
    """Ten current samples and seven replay samples in batches of 8."""
    views = ViewSpec(size=16, count=3)
    current = Samples(items(10, replay=False, views=views))
    buffer = Samples(items(7, replay=True, views=views))
    asked = {"batch": 8, "iterations": 30, "channels": 4, "seed": seed} | changes
    return MixedBatches(current, buffer, **asked)


def test_view_zero_is_the_whole_image() -> None:
    """View 0 keeps corners and proportions: the mask's corners stay where they are."""
    image, mask = picture(0, 32, 64)
    square, small = apply_view(image, mask, "x", 0, ViewSpec(size=32))
    assert square.shape == (32, 32, 3)
    assert square.dtype == np.uint8
    assert small is not None
    assert np.array_equal(small, mask[:, 1::2])


def test_views_depend_on_id_and_number_only() -> None:
    """The same (id, v) gives the same pixels; another id or v another crop."""
    image, mask = picture(1)
    spec = ViewSpec(size=24, count=4, crop=(0.4, 0.8))
    one, again = (apply_view(image, mask, "a", 2, spec) for _ in range(2))
    assert np.array_equal(one[0], again[0])
    assert np.array_equal(one[1], again[1])  # type: ignore[arg-type]
    assert not np.array_equal(one[0], apply_view(image, mask, "a", 3, spec)[0])
    assert not np.array_equal(one[0], apply_view(image, mask, "b", 2, spec)[0])


@pytest.mark.parametrize("v", range(6))
def test_image_and_mask_stay_aligned(v: int) -> None:
    """A step edge lies at the same pixel of image and mask, to within half a pixel of resampling, in every view."""
    image = np.zeros((48, 80, 3), dtype=np.uint8)
    mask = np.zeros((48, 80), dtype=np.uint8)
    image[10:, 30:], mask[10:, 30:] = 255, 1
    square, small = apply_view(image, mask, "edge", v, ViewSpec(size=64, count=8, crop=(0.7, 1.0)))
    assert small is not None
    assert np.array_equal(small, apply_view_to_mask(mask, "edge", v, ViewSpec(size=64, count=8, crop=(0.7, 1.0))))
    sure = (square[:, :, 0] < 20) | (square[:, :, 0] > 235)
    assert sure.mean() > 0.9
    assert np.array_equal(small[sure], (square[:, :, 0] > 127)[sure])


def test_flips_can_be_forbidden() -> None:
    """Half of the crops are mirrored; none where flip is off."""
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[:, 16:] = 255
    mirrored = {
        flip: sum(
            apply_view(image, None, "f", v, ViewSpec(size=8, crop=(1.0, 1.0), flip=flip))[0][0, 0, 0] > 127
            for v in range(1, 41)
        )
        for flip in (True, False)
    }
    assert mirrored[False] == 0
    assert 8 <= mirrored[True] <= 32


def test_sizes_that_differ_are_refused() -> None:
    """A mask of another size than its image names the sample."""
    image, mask = picture(0)
    with pytest.raises(DataError, match="mask 39 x 60") as caught:
        apply_view(image, mask[1:], "odd-one", 0, ViewSpec())
    assert caught.value.where == "odd-one"


def test_every_batch_holds_both_kinds_in_ratio() -> None:
    """r_new : r_old = 3 : 1 in a batch of 8 gives 6 current and 2 replay in every batch, never fewer than one."""
    assert all(int(batch.replay.sum()) == 2 for batch in mixed(r_new=3.0, r_old=1.0, iterations=5))
    assert all(int(batch.replay.sum()) == 1 for batch in mixed(r_new=1e6, r_old=1.0, iterations=3))
    assert all(int(batch.replay.sum()) == 7 for batch in mixed(r_new=1e-6, r_old=1.0, iterations=3))


def test_batch_is_a_function_of_seed_and_number() -> None:
    """Batch t is the same whenever it is asked for, and another with another seed."""
    one, two, other = mixed(), mixed(), mixed(seed=1)
    late = one[17]
    for t in range(30):
        assert one.drawn(t)[0][1:] == two.drawn(t)[0][1:]
    assert torch.equal(late.images, two[17].images)  # type: ignore[arg-type]
    assert torch.equal(late.masks, two[17].masks)
    assert late.ids == two[17].ids
    assert [late.ids for late in (one[t] for t in range(5))] != [other[t].ids for t in range(5)]


def test_current_samples_come_epoch_by_epoch() -> None:
    """Over 4 epochs each current sample is drawn exactly 4 times, in another order each time."""
    batches = mixed(batch=8, iterations=10)
    drawn = [index for t in range(10) for samples, index, _ in batches.drawn(t) if samples is batches.current]
    assert Counter(drawn) == dict.fromkeys(range(10), 4)
    assert drawn[:10] != drawn[10:20]
    assert batches.epoch == 3


def test_replay_is_balanced_over_classes() -> None:
    """Of 7 replay samples 3 are of class 1 and 2 of classes 2 and 3, yet all classes are drawn alike."""
    batches = mixed(iterations=30)
    assert batches.buffer is not None
    replay = [index for t in range(30) for samples, index, _ in batches.drawn(t) if samples is batches.buffer]
    classes = Counter(batches.buffer.items[index].balance_class for index in replay)
    assert classes == {1: 40, 2: 40, 3: 40}
    assert set(replay) == set(range(7))


def test_current_classes_can_take_turns() -> None:
    """With `balance`, 8 samples of class 1, 3 of class 2 and 1 of class 3 are drawn alike by class, all of them."""
    views = ViewSpec(size=16)
    current = Samples([
        replace(item, group=1 if i < 8 else 2 if i < 11 else 3)
        for i, item in enumerate(items(12, replay=False, views=views))
    ])  # fmt: skip
    batches = MixedBatches(current, None, batch=4, seed=0, iterations=60, channels=4, balance=True)
    drawn = [index for t in range(60) for _, index, _ in batches.drawn(t)]
    classes = [current.items[index].balance_class for index in drawn]
    assert Counter(classes) == {1: 80, 2: 80, 3: 80}
    assert all(sorted(classes[turn : turn + 3]) == [1, 2, 3] for turn in range(0, 240, 3))
    assert set(drawn) == set(range(12))


def test_balanced_batch_is_a_function_of_seed_and_number() -> None:
    """Class turns too depend on nothing that was drawn before, and replay's turns do not follow the current ones."""
    one, two, plain = mixed(balance=True), mixed(balance=True), mixed()
    late = one.drawn(17)
    assert [place[1:] for place in late] == [place[1:] for place in two.drawn(17)]
    of = [[index for samples, index, _ in b.drawn(17) if samples is b.buffer] for b in (one, plain)]
    assert of[0] == of[1]
    assert [place[1:] for place in late[:4]] != [place[1:] for place in plain.drawn(17)[:4]]


def test_batch_knows_how_far_the_fit_is() -> None:
    """progress is t / iterations, and stays with the batch when it moves to a device."""
    batches = mixed(iterations=8)
    assert [batches[t].progress for t in (0, 2, 7)] == [0, 0.25, 0.875]
    assert batches[2].to(torch.device("cpu")).progress == 0.25


def test_batch_tensors() -> None:
    """Types, shapes, ranges, and the visible classes of each row."""
    batch = mixed()[0]
    assert batch.images is not None
    assert batch.images.shape == (8, 3, 16, 16)
    assert batch.images.dtype == torch.float32
    assert 0 <= float(batch.images.min()) < float(batch.images.max()) <= 1
    assert batch.masks.dtype == torch.int64
    for row, name in enumerate(batch.ids):
        channel = 1 + int(name.split("-")[1]) % 3
        assert batch.visible[row].tolist() == [c == channel for c in range(4)]


def test_fresh_views_change_with_every_draw() -> None:
    """With fresh views a sample is cropped anew each time, still as a function of seed and iteration."""
    views = ViewSpec(size=16, fresh=True)
    batches = [
        MixedBatches(Samples(items(2, replay=False, views=views)), None, batch=2, seed=0, iterations=6, channels=4)
        for _ in range(2)
    ]
    crops = {view for t in range(6) for _, _, view in batches[0].drawn(t)}
    assert len(crops) == 12
    assert torch.equal(batches[0][4].images, batches[1][4].images)  # type: ignore[arg-type]


def test_labels_beyond_the_network_are_refused() -> None:
    """A label that the network has no channel for names the sample, before any training."""
    with pytest.raises(DataError, match="beyond the 3 channels"):
        mixed(channels=3)[0]


@pytest.mark.parametrize("problem", ["no current", "empty buffer", "batch of one"])
def test_impossible_mixtures_are_refused(problem: str) -> None:
    """No current samples, an empty buffer, or no room for both kinds."""
    views = ViewSpec(size=16)
    some, none = Samples(items(3, replay=False, views=views)), Samples([])
    current, buffer, batch = {
        "no current": (none, some, 4), "empty buffer": (some, none, 4), "batch of one": (some, some, 1)
    }[problem]  # fmt: skip
    with pytest.raises(DataError):
        MixedBatches(current, buffer, batch=batch, seed=0, iterations=1, channels=4)


def test_ram_cache_stops_at_its_limit() -> None:
    """What fits is loaded once; what does not fit is loaded again; nothing beyond the limit is kept."""
    loads: Counter[int] = Counter()

    def item(i: int) -> Item:
        def load(view: int) -> tuple[Any, None, Any]:
            loads[i] += 1
            return np.zeros((10, 10, 3), np.uint8), None, np.zeros((10, 10), np.uint8)

        return Item(f"i{i}", (1,), False, load)

    samples = Samples([item(i) for i in range(4)], ram_limit=1000)
    for _ in range(3):
        for i in range(4):
            samples.get(i, 0)
    assert loads == {0: 1, 1: 1, 2: 3, 3: 3}
    assert samples.used == 800


def test_repeated_ids_are_refused() -> None:
    """Two samples of one name would share their views."""
    views = ViewSpec(size=16)
    with pytest.raises(DataError, match="given twice"):
        Samples(items(2, replay=False, views=views) * 2)


def frozen_net() -> Any:
    """A network whose encoder counts as frozen."""
    return build_network(NetworkSpec(widths=(8, 12), freeze="after_base"), 3, 0).at_step(1)


def test_cached_features_give_the_logits_of_images(tmp_path: Path) -> None:
    """Encoding a view, storing it, reading it back and decoding gives the image's logits, to half precision."""
    net, spec = frozen_net(), ViewSpec(size=32, count=3)
    pictures = [picture(i)[0] for i in range(2)]
    made = encode_views(net, pictures, ["a", "b"], spec)
    assert [[tuple(tap.shape) for tap in taps] for taps in made] == [[(3, 8, 16, 16), (3, 12, 8, 8)]] * 2
    data = features_to_bytes(dict(zip("ab", made, strict=True)))
    assert data == features_to_bytes(dict(zip("ba", reversed(made), strict=True)))
    path = tmp_path / "features.safetensors"
    path.write_bytes(data)
    one_view = FeatureFile(path).read("b", 2)
    assert all(
        torch.equal(mine, whole[2]) for mine, whole in zip(one_view, features_from_bytes(data)["b"], strict=True)
    )
    square, _ = apply_view(pictures[1], None, "b", 2, spec)
    with torch.no_grad():
        expected = net(torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255)
        found = net.decode(tuple(tap[None] for tap in one_view), (32, 32))
    assert torch.allclose(found, expected, atol=2e-2 * float(expected.abs().max()))


def test_feature_items_make_feature_batches() -> None:
    """Items with features make a batch without images, whose masks are the views' masks."""
    spec = ViewSpec(size=32, count=2)
    taps = encode_views(frozen_net(), [picture(0)[0]], ["a"], spec)[0]
    item = feature_item("a", (1,), False, lambda v: tuple(tap[v] for tap in taps), lambda: picture(0)[1], spec)
    batches = MixedBatches(Samples([item]), None, batch=2, seed=0, iterations=4, channels=4)
    batch, view = batches[1], batches.drawn(1)[0][2]
    assert batch.images is None
    assert batch.features is not None
    assert torch.equal(batch.features[0][0], taps[0][view])
    assert np.array_equal(batch.masks[0].numpy(), apply_view_to_mask(picture(0)[1], "a", view, spec))


def test_features_need_a_frozen_encoder_and_fixed_views() -> None:
    """An encoder that still learns has no features to cache, and fresh views none either."""
    with pytest.raises(ModelError, match="frozen"):
        encode_views(build_network(NetworkSpec(widths=(8, 12)), 3, 0), [picture(0)[0]], ["a"], ViewSpec())
    with pytest.raises(DataError, match="fresh"):
        encode_views(frozen_net(), [picture(0)[0]], ["a"], ViewSpec(fresh=True))


@pytest.mark.parametrize("data", [b"", b"x" * 100, features_to_bytes({"a": (torch.zeros(1, 1, 1, 1),)})[:-1]])
def test_damaged_features_are_refused(data: bytes, tmp_path: Path) -> None:
    """Bytes that are no features file are an error in both ways of reading."""
    with pytest.raises(DataError, match="not a features file"):
        features_from_bytes(data)
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(DataError, match="not a features file"):
        FeatureFile(tmp_path / "f")


@pytest.fixture
def shard() -> ReplayShard:
    """Three images, two of them labelled."""
    images, _ = write_shard([(f"p{i}", {"png": encode_png(picture(i)[0]), "json": b"{}"}) for i in range(3)])
    told = json.dumps({"visible": [2], "scores": {}, "labeler": "x"}).encode()
    labels, _ = write_shard(
        [
            (f"p{i}", {"mask.png": encode_png((picture(i)[1] == 2).astype(np.uint8) * 2), "label.json": told})
            for i in (0, 2)
        ]
    )
    return ReplayShard(Shard(images), Shard(labels))


def test_replay_buffer_is_a_plain_dataset(shard: ReplayShard) -> None:
    """Labelled samples only, as (image 0..1, mask, visible), and torch's DataLoader takes it as it is."""
    buffer = ReplayBuffer({"cow": [shard]}, size=24, channels=5)
    assert len(buffer) == 2
    image, mask, visible = buffer[1]
    assert (image.shape, image.dtype) == ((3, 24, 24), torch.float32)
    assert (mask.shape, mask.dtype) == ((24, 24), torch.int64)
    assert visible.tolist() == [False, False, True, False, False]
    expected, _ = apply_view(picture(2)[0], None, "p2", 0, ViewSpec(size=24))
    assert np.array_equal((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(), expected)
    images, masks, _ = next(iter(torch.utils.data.DataLoader(buffer, batch_size=2)))
    assert images.shape == (2, 3, 24, 24)
    assert set(masks.unique().tolist()) <= {0, 2}
    assert buffer.classes.tolist() == [2, 2]


def test_labels_of_another_shard_are_refused(shard: ReplayShard) -> None:
    """A label without its image means that two shards were mixed up."""
    others, _ = write_shard([("q0", {"png": encode_png(picture(0)[0])})])
    with pytest.raises(DataError, match="has no image"):
        ReplayBuffer([ReplayShard(Shard(others), shard.labels)])
