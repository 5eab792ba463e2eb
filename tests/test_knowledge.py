"""Knowledge inpainting: older replay labels receive the classes that are learnt now, and lose nothing by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaygen.errors import DataError, ModelError
from replaygen.labelers.knowledge import fill_background
from replaygen.learn import NetworkSpec, ViewSpec, build_network, predict_over_views, save_checkpoint
from replaygen.runs.execute import parameters
from replaygen.sample import IGNORE, decode_image, decode_mask, encode_jpeg, encode_png
from replaygen.stages.base import Inputs, Out, Task
from replaygen.stages.knowledge import KnowledgeStage
from replaygen.store import Record, Shard, Store, task_key

FOUR = np.array([[[0.1, 0.3, 0.6, 0.2]], [[0.6, 0.4, 0.3, 0.2]], [[0.3, 0.3, 0.1, 0.6]]], np.float32)
"""A helper of channels (4, 7) over four pixels: sure of 4, hardly of 4, background, sure of 7."""


def test_the_sure_pixels_of_the_background_are_filled() -> None:
    """By hand: at 0.5 the second pixel, where 4 wins with 0.4, is left open; at 0.6 the others are just sure enough."""
    empty = np.zeros((1, 4), np.uint8)
    filled = fill_background(empty, FOUR, channels=(4, 7), unsure=0.5)
    assert filled.mask.tolist() == [[4, IGNORE, 0, 7]]
    assert (filled.share, filled.unsure) == (0.5, 0.25)
    assert fill_background(empty, FOUR, channels=(4, 7), unsure=0.6).mask.tolist() == [[4, IGNORE, 0, 7]]
    assert fill_background(empty, FOUR, channels=(4, 7), unsure=0.61).mask.tolist() == [[IGNORE, IGNORE, 0, IGNORE]]
    assert fill_background(empty, FOUR, channels=(7, 4)).mask.tolist() == [[7, 7, 0, 4]]


def test_labelled_pixels_and_void_stay() -> None:
    """What has a class keeps it, however sure the helper is, and void stays void."""
    filled = fill_background(np.array([[1, IGNORE, 0, 4]], np.uint8), FOUR, channels=(4, 7))
    assert filled.mask.tolist() == [[1, IGNORE, 0, 4]]
    assert (filled.share, filled.unsure) == (0.0, 0.0)


def test_other_shapes_are_refused() -> None:
    """The helper's classes and the channels are as many, and sizes agree."""
    for mask, channels in ((np.zeros((1, 4), np.uint8), (4,)), (np.zeros((4, 1), np.uint8), (4, 7))):
        with pytest.raises(ValueError, match="probabilities"):
            fill_background(mask, FOUR, channels=channels)


cases = st.tuples(
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.floats(0, 1, width=32)
)


@settings(max_examples=100, deadline=None)
@given(cases)
def test_only_background_changes_and_a_second_time_nothing(case: tuple[int, int, int, int, float]) -> None:
    """Only pixels of 0 change, to channels of the helper or 255; filling again with the same helper adds nothing."""
    n, height, width, seed, unsure = case
    random = np.random.default_rng(seed)
    odds = np.exp(random.normal(size=(1 + n, height, width)) * 3)
    probabilities = (odds / odds.sum(0)).astype(np.float32)
    mask = random.choice([0, 0, 1, 2, IGNORE], size=(height, width)).astype(np.uint8)
    channels = tuple(range(5, 5 + n))
    filled = fill_background(mask, probabilities, channels=channels, unsure=unsure)
    assert filled.mask.dtype == np.uint8
    assert (filled.mask[mask != 0] == mask[mask != 0]).all()
    assert set(filled.mask[mask == 0].tolist()) <= {0, IGNORE, *channels}
    assert filled.share == pytest.approx(np.isin(filled.mask, channels).mean())
    assert filled.unsure == pytest.approx(((filled.mask == IGNORE) & (mask == 0)).mean())
    again = fill_background(filled.mask, probabilities, channels=channels, unsure=unsure)
    assert (again.mask == filled.mask).all()
    assert again.share == 0.0
    less = fill_background(mask, probabilities, channels=channels, unsure=min(1.0, unsure + 0.1))
    assert less.share <= filled.share
    assert (less.mask == 0).sum() == (filled.mask == 0).sum()


# the stage

WHEN = "2026-01-01T00:00:00+00:00"
SPEC = NetworkSpec(kind="small", widths=(8, 16))
VIEWS = {"size": 32}


class World:
    """A store with three labelled images of class 1, and helpers."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.where = {"network": SPEC.model_dump(mode="json", exclude_unset=True), "device": "cpu"}
        random = np.random.default_rng(5)
        self.images = {
            f"p{i}": np.kron(random.integers(0, 256, (5, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8) for i in range(3)
        }
        self.labels = {name: random.choice([0, 0, 1, IGNORE], size=(40, 48)).astype(np.uint8) for name in self.images}
        encoded = {"p0": encode_png, "p1": encode_jpeg, "p2": encode_png}
        endings = {"p0": "png", "p1": "jpg", "p2": "png"}
        self.image_record = self.put("photos", lambda out: out.shard("images", [
            (name, {endings[name]: encoded[name](image), "json": b"{}"}) for name, image in self.images.items()
        ]))  # fmt: skip
        self.label_record = self.put("label", lambda out: out.shard("labels", [
            (name, {"mask.png": encode_png(mask), "label.json": self.told_bytes(name), "erase.png": b"e"})
            for name, mask in self.labels.items()
        ]))  # fmt: skip

    def told(self, name: str) -> dict[str, Any]:
        """What the label says of itself at first."""
        return {"visible": [1], "scores": {"share": 0.25, "confidence": 0.75}, "labeler": f"model of {name}"}

    def told_bytes(self, name: str) -> bytes:
        """The same as it is stored."""
        return json.dumps(self.told(name)).encode()

    def put(self, stage: str, write: Callable[[Out], None], **params: Any) -> Record:
        """A record of outputs written by hand."""
        task = Task(task_key(stage, 1, params, None, ()), stage, 1, params, None, (), f"{stage}/by-hand")
        inputs, out = Inputs(self.store, task), Out(self.store, task)
        write(out)
        return self.store.publish(out.record(inputs, {}, WHEN, 0.0))

    def helper(self, channels: tuple[int, ...], seed: int, **told: Any) -> Record:
        """A random helper of a step's classes, with opinions."""
        import torch

        net = build_network(SPEC, 1 + len(channels), seed)
        with torch.no_grad():
            for parameter in net.head.parameters():
                parameter.mul_(2.5)
        info = {"names": ["background", *map(str, channels)], "step": 1, "network": SPEC.identity(), **told}
        made = save_checkpoint(net, info)

        def write(out: Out) -> None:
            out.put("model.safetensors", made.tensors)
            out.put_json("model.json", made.info)

        return self.put("helper", write, channels=list(channels), seed=seed)

    def do(self, labels: Record, helper: Record, channels: tuple[int, ...], unsure: float = 0.0, **more: Any) -> Record:
        """The knowledge stage on the store, as a worker would run it."""
        params = {
            "class_name": "one", "step": 1, "channels": list(channels), "unsure": unsure, "flip": False, "looks": 1,
            "views": VIEWS, "threads": 1,
        }  # fmt: skip
        inputs = [("labels", labels.key), ("images", self.image_record.key), ("helper", helper.key)]
        inputs += [(role, record.key) for role, record in more.items()]
        task = KnowledgeStage.task(params, inputs=inputs, slot=f"knowledge/{helper.key[:8]}", where=self.where)
        read, out = Inputs(self.store, task), Out(self.store, task)
        KnowledgeStage().run(parameters(KnowledgeStage(), task.params), read, out)
        return self.store.publish(out.record(read, {}, WHEN, 0.0))

    def shard(self, record: Record) -> Shard:
        """A record's label shard."""
        return Shard(*(self.store.read(record.output(f"labels.{end}").digest) for end in ("tar", "index.json")))

    def masks(self, record: Record) -> dict[str, np.ndarray]:
        """Sample -> mask."""
        return {name: decode_mask(members["mask.png"]) for name, members in self.shard(record)}


@pytest.fixture
def world(tmp_path: Any) -> World:
    """A fresh store."""
    return World(Store(tmp_path / "cache"))


def test_labels_receive_what_the_helper_sees(world: World) -> None:
    """The stage's masks are those of the helper's own prediction on the stored image, and the label says so."""
    helper = world.helper((4, 5), seed=0, channels_of=[4, 5])
    record = world.do(world.label_record, helper, (4, 5), unsure=0.5)
    assert record.counts.accepted == 3
    net = build_network(SPEC, 3, 0)
    from safetensors.torch import load

    net.load_state_dict(load(world.store.read(helper.output("model.safetensors").digest)))
    images = Shard(
        *(world.store.read(world.image_record.output(f"images.{end}").digest) for end in ("tar", "index.json"))
    )
    gained = 0.0
    for name, members in world.shard(record):
        image = decode_image(images.read(name, "jpg" if name == "p1" else "png"))
        probabilities = predict_over_views(net.eval(), image, name, ViewSpec(size=32), views=1)
        wanted = fill_background(world.labels[name], probabilities, channels=(4, 5), unsure=0.5)
        np.testing.assert_array_equal(decode_mask(members["mask.png"]), wanted.mask)
        told = json.loads(members["label.json"])
        before = world.told(name)
        assert told["visible"] == [1, 4, 5]
        assert told["scores"] == {**before["scores"], "knowledge": round(wanted.share, 5)}
        assert told["labeler"] == before["labeler"]
        assert told["also"] == [helper.key]
        assert members["erase.png"] == b"e"
        gained += wanted.share
    assert gained > 0


def test_steps_add_up(world: World) -> None:
    """A later step's helper fills what is still background; labels tell every helper and all they gained."""
    first = world.do(world.label_record, world.helper((4,), 1, channels_of=[4]), (4,), unsure=0.6)
    later = world.helper((2, 6), seed=2, channels_of=[2, 6])
    second = world.do(first, later, (2, 6))
    one, two = world.masks(first), world.masks(second)
    for name, mask in two.items():
        assert (mask[one[name] != 0] == one[name][one[name] != 0]).all()
        told = json.loads(world.shard(second).read(name, "label.json"))
        before = json.loads(world.shard(first).read(name, "label.json"))
        assert told["visible"] == [1, 2, 4, 6]
        assert told["also"] == [*before["also"], later.key]
        share = np.isin(mask, (2, 6)).mean()
        assert told["scores"]["knowledge"] == pytest.approx(before["scores"]["knowledge"] + share, abs=2e-5)
    assert any(np.isin(mask, (2, 6)).any() for mask in two.values())


def test_only_trusted_labels_are_kept(world: World) -> None:
    """Labels that the selection does not keep are left out, and counted."""
    told = {"kept": ["p2", "p0"], "rejected": [{"id": "p1", "reason": "unsure"}], "scores": {}}
    trusted = world.put("trust", lambda out: out.put_json("selection.json", told))
    record = world.do(world.label_record, world.helper((4,), 1, channels_of=[4]), (4,), trusted=trusted)
    assert world.shard(record).ids == ("p0", "p2")
    assert (record.counts.accepted, dict(record.counts.rejected)) == (2, {"untrusted": 1})


def test_the_same_task_gives_the_same_bytes(world: World) -> None:
    """In another store the same images, labels and helper give the same shard."""
    made = []
    for store in (world.store, Store(world.store.root.parent / "other")):
        here = World(store)
        made.append(here.do(here.label_record, here.helper((4,), 1, channels_of=[4]), (4,), unsure=0.5).outputs_digest)
    assert made[0] == made[1]


def test_foreign_helpers_and_labels_are_refused(world: World) -> None:
    """A helper of other channels, a model that is no helper, a label of another size."""
    with pytest.raises(ModelError, match=r"knows channels \[4\], step 1 learns \[5\]"):
        world.do(world.label_record, world.helper((4,), 1, channels_of=[4]), (5,))
    with pytest.raises(ModelError, match="not a helper"):
        world.do(world.label_record, world.helper((4,), 9), (4,))
    label = {"mask.png": encode_png(np.zeros((40, 47), np.uint8)), "label.json": world.told_bytes("p0")}
    odd = world.put("label", lambda out: out.shard("labels", [("p0", label)]), odd=True)
    with pytest.raises(DataError, match="differ in size"):
        world.do(odd, world.helper((4,), 1, channels_of=[4]), (4,))
