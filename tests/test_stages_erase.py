"""The stages that erase: what changes, what must not, what is refused, and what one bad answer costs."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAINING, Workspace
from PIL import Image

from replaygen.errors import DataError, ModelError
from replaygen.inpainters.base import Failure, checked, identity_of, open_inpainter
from replaygen.inpainters.opencv import OpenCV
from replaygen.inpainters.regions import find_erasure
from replaygen.inpainters.specs import EraseSpec
from replaygen.plan import Recipe
from replaygen.runs import run
from replaygen.runs.execute import execute
from replaygen.sample import decode_image, decode_mask, encode_png
from replaygen.sources.folder import photo_id
from replaygen.stages import STAGES, Inputs, Out, Stage, Task
from replaygen.stages.erase import EraseStage, RemoveStage
from replaygen.stages.source import PhotoStage
from replaygen.store import Record, Shard, Store
from replaygen.testing.bad_inpainter import WAYS, BadInpainter

CHANNEL = 4
OTHER, UNSURE = 1, 2
Box = tuple[int, int, int, int, int]
"""Rows from, to, columns from, to, and the mark."""

PLAIN: Box = (0, 0, 0, 0, 0)
CORNER: Box = (2, 30, 4, 40, OTHER)
DOUBT: Box = (70, 90, 60, 110, UNSURE)
THROUGH: Box = (30, 60, 0, 120, OTHER)
MOST: Box = (0, 90, 0, 100, OTHER)
BOXES = (PLAIN, CORNER, DOUBT, THROUGH, MOST)


@dataclass(frozen=True)
class HandParams:
    """boxes: what is marked in each sample, in the order of ids."""

    boxes: tuple[Box, ...]


class HandStage(Stage[HandParams]):
    """Labels by hand: an ellipse of the class with an unsure rim in the middle of each picture, and a marked box."""

    name = "by-hand"
    version = 1
    Params = HandParams

    def run(self, params: HandParams, inputs: Inputs, out: Out) -> None:
        """One label for each image."""
        items = []
        shard = inputs.shard(inputs.record("images"), "images")
        for (sample, members), box in zip(shard, params.boxes, strict=True):
            height, width = decode_image(members.get("png") or members["jpg"]).shape[:2]
            rows, columns = np.mgrid[:height, :width]
            far = ((rows - height / 2) / (height / 5)) ** 2 + ((columns - width / 2) / (width / 5)) ** 2
            mask = np.where(far < 1, CHANNEL, np.where(far < 1.3, 255, 0)).astype(np.uint8)
            marks = np.zeros_like(mask)
            marks[box[0] : box[1], box[2] : box[3]] = box[4]
            told = {"visible": [CHANNEL], "scores": {"share": 0.1, "trust": 0.5}, "labeler": "a hand"}
            label = {"mask.png": encode_png(mask), "label.json": json.dumps(told).encode()}
            items.append((sample, {**label, "erase.png": encode_png(marks)} if box[4] else label))
            out.accept()
        out.shard("labels", items)


@dataclass(frozen=True)
class PickParams:
    """kept: the ids that a screen keeps."""

    kept: tuple[str, ...]


class PickStage(Stage[PickParams]):
    """A selection, as the label screens write it."""

    name = "picked"
    version = 1
    Params = PickParams

    def run(self, params: PickParams, inputs: Inputs, out: Out) -> None:
        """selection.json."""
        out.put_json("selection.json", {"kept": list(params.kept), "rejected": [], "scores": {}})
        out.accept()


def picture(seed: int, size: tuple[int, int] = (120, 96)) -> Image.Image:
    """Soft blobs of many colours with grain."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = draw.normal(0, 6, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(coarse, np.float64) + grain, 0, 255).astype(np.uint8))


class World:
    """A store with one shard of photos, JPEG and PNG in turn."""

    def __init__(self, root: Path, boxes: tuple[Box, ...]) -> None:
        self.store = Store(root / "cache")
        files, marked = [], {}
        for number, box in enumerate(boxes):
            name = f"{number}.{'jpg' if number % 2 == 0 else 'png'}"
            picture(number).save(root / name, **({"quality": 90} if name.endswith("jpg") else {}))
            sha = hashlib.sha256((root / name).read_bytes()).hexdigest()
            files.append([name, sha])
            marked[photo_id("cow", sha)] = box
        params = {"class_name": "cow", "files": files, "max_side": None}
        self.images = self.made(PhotoStage.task(params, slot="photos/x/cow/0000", where={"root": str(root)}))
        self.boxes = [list(marked[sample]) for sample in sorted(marked)]
        self.of = {box: sample for sample, box in marked.items()}
        self.labels = self.made(
            HandStage.task({"boxes": self.boxes}, inputs=[("images", self.images.key)], slot="label/x/cow/0000")
        )

    def made(self, task: Task) -> Record:
        """The record of a task, done by the one function that does tasks."""
        assert execute(str(self.store.root), task).state in ("made", "adopted")
        record = self.store.get(task.key)
        assert record is not None
        return record

    def erased(self, *more: tuple[str, str], **changes: Any) -> Record:
        """What `EraseStage` makes of the shard."""
        spec = EraseSpec.model_validate({"unsure": True, "dilate": 4, **changes})
        inputs = [("images", self.images.key), ("labels", self.labels.key), *more]
        return self.made(erase_task(spec, inputs))

    def shard(self, record: Record, name: str) -> Shard:
        """A shard of a record."""
        tar, index = (record.output(f"{name}.{ending}").digest for ending in ("tar", "index.json"))
        return Shard(self.store.read(tar), self.store.read(index))

    def refused(self, record: Record) -> dict[str, Any]:
        """What was refused, by name."""
        told: dict[str, Any] = json.loads(self.store.read(record.output("refused.json").digest))
        return told


def by_hand(world: World, root: Path, drawn: Image.Image, max_side: int | None = None) -> tuple[Record, Record]:
    """A shard of one picture, and its label with nothing marked."""
    root.mkdir(exist_ok=True)
    drawn.save(root / "a.png")
    sha = hashlib.sha256((root / "a.png").read_bytes()).hexdigest()
    params = {"class_name": "cow", "files": [["a.png", sha]], "max_side": max_side}
    images = world.made(PhotoStage.task(params, slot="photos/y/cow/0000", where={"root": str(root)}))
    hand = HandStage.task({"boxes": [list(PLAIN)]}, inputs=[("images", images.key)], slot="label/y/cow/0000")
    return images, world.made(hand)


def erase_task(spec: EraseSpec, inputs: list[tuple[str, str]]) -> Task:
    """As the plan makes it."""
    params = {"erase": spec.identity(), "inpainter": identity_of(spec.identity()), "threads": 1}
    return EraseStage.task(params, inputs=inputs, slot="erase/x/cow/0000", where=spec.where(), requested=5)


def pixels(shard: Shard, sample: str) -> np.ndarray:
    """The decoded picture of a sample."""
    kind = "png" if "png" in shard.extensions(sample) else "jpg"
    return decode_image(shard.read(sample, kind))


@pytest.fixture(autouse=True)
def _known_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in (EraseStage, RemoveStage, HandStage, PickStage):
        monkeypatch.setitem(STAGES, stage.name, stage)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A photo with nothing to erase, three with something, and one with too much."""
    return World(tmp_path, BOXES)


def test_pixels_outside_the_region_are_those_that_were(world: World) -> None:
    """Every pixel outside the region is the decoded original's, of JPEGs too; inside, something changed."""
    record = world.erased()
    before, after = world.shard(world.images, "images"), world.shard(record, "images")
    labels = world.shard(world.labels, "labels")
    spec = EraseSpec(unsure=True, dilate=4).identity()
    kinds = set()
    for box in (CORNER, DOUBT, THROUGH):
        sample = world.of[box]
        kinds |= set(before.extensions(sample))
        assert after.extensions(sample) == ("json", "png")
        mask, marks = (decode_mask(labels.read(sample, name)) for name in ("mask.png", "erase.png"))
        region = find_erasure(spec, mask, marks).region
        old, new = pixels(before, sample), pixels(after, sample)
        assert region.any()
        assert np.array_equal(old[~region], new[~region])
        assert (old[region] != new[region]).any(axis=1).mean() > 0.5
    assert kinds == {"json", "jpg", "png"}


def test_the_class_is_never_erased(world: World) -> None:
    """A box right through the object takes nothing of it: neither its pixels nor its label."""
    sample, record = world.of[THROUGH], world.erased(dilate=20, most=1.0)
    label = decode_mask(world.shard(world.labels, "labels").read(sample, "mask.png"))
    new = decode_mask(world.shard(record, "labels").read(sample, "mask.png"))
    object_ = label == CHANNEL
    assert object_[30:60].any()
    old_pixels, new_pixels = (pixels(world.shard(of, "images"), sample) for of in (world.images, record))
    assert np.array_equal(old_pixels[object_], new_pixels[object_])
    assert np.array_equal(new == CHANNEL, object_)


def test_image_and_label_tell_the_same(world: World) -> None:
    """Erased pixels are background, whatever they were; both side-cars tell what went and why; marks are gone."""
    record = world.erased()
    images, labels = world.shard(record, "images"), world.shard(record, "labels")
    assert images.ids == labels.ids
    spec = EraseSpec(unsure=True, dilate=4).identity()
    for box, kind in ((CORNER, "others"), (DOUBT, "unsure"), (THROUGH, "others")):
        sample = world.of[box]
        old = world.shard(world.labels, "labels")
        mask, marks = (decode_mask(old.read(sample, name)) for name in ("mask.png", "erase.png"))
        found = find_erasure(spec, mask, marks)
        new = decode_mask(labels.read(sample, "mask.png"))
        assert (new[found.region] == 0).all()
        assert np.array_equal(new[~found.region], mask[~found.region])
        assert labels.extensions(sample) == ("label.json", "mask.png")
        about, told = (json.loads(s.read(sample, n)) for s, n in ((images, "json"), (labels, "label.json")))
        assert about["erased"] == told["erased"] == found.as_json("opencv")
        assert set(about["erased"]["why"]) == {kind}
        assert about["parent"] == {"shard": world.images.key, "id": sample}
        had = json.loads(world.shard(world.images, "images").read(sample, "json"))
        assert {**about, "parent": None} == {**had, "erased": about["erased"]}
        assert told == {**json.loads(old.read(sample, "label.json")), "erased": told["erased"]}
    through = decode_mask(labels.read(world.of[THROUGH], "mask.png"))
    assert (through == 255).any(), "the rim that no box touched is still unknown"


def test_untouched_samples_keep_their_bytes(world: World) -> None:
    """A sample with nothing to erase is carried over as it is, without its marks."""
    record = world.erased(unsure=False)
    for box in (PLAIN, DOUBT):
        sample = world.of[box]
        before, after = world.shard(world.images, "images"), world.shard(record, "images")
        assert before.extensions(sample) == after.extensions(sample)
        assert all(before.read(sample, kind) == after.read(sample, kind) for kind in before.extensions(sample))
        before, after = world.shard(world.labels, "labels"), world.shard(record, "labels")
        assert after.extensions(sample) == ("label.json", "mask.png")
        assert all(before.read(sample, kind) == after.read(sample, kind) for kind in after.extensions(sample))


def test_too_much_is_refused_and_counted(world: World) -> None:
    """A picture of which most would have to go is refused by name; the others are not harmed."""
    record = world.erased()
    assert (record.counts.requested, record.counts.accepted) == (5, 4)
    assert record.counts.rejected == {"too-much-to-erase": 1}
    (refused,) = world.refused(record)["rejected"]
    assert refused["id"] == world.of[MOST]
    assert 0.5 < refused["share"] < 1
    assert world.of[MOST] not in world.shard(record, "images")
    assert world.erased(most=1.0).counts.rejected == {}


def test_only_trusted_samples_are_taken(world: World) -> None:
    """With a selection of the label screens, the others are left out and counted, and nothing of them is filled."""
    kept = (world.of[CORNER], world.of[PLAIN])
    pick = world.made(PickStage.task({"kept": list(kept)}, slot="trust/x/cow"))
    record = world.erased(("trusted", pick.key))
    assert set(world.shard(record, "images").ids) == set(world.shard(record, "labels").ids) == set(kept)
    assert record.counts.rejected == {"untrusted": 3}


def test_equal_tasks_make_equal_bytes(world: World) -> None:
    """Done again, the outputs have the same digests."""
    record = world.erased()
    digests = [(output.name, output.digest) for output in record.outputs]
    world.store.forget(record.key)
    assert [(output.name, output.digest) for output in world.erased().outputs] == digests
    assert record.provenance["inpainter"]["opencv"]


def test_an_empty_shard_is_an_empty_shard(tmp_path: Path) -> None:
    """No samples in, none out; no backend is opened."""
    world = World(tmp_path, ())
    record = world.erased(backend="lama", weights="/nowhere/at.all", sha256="0" * 64)
    assert len(world.shard(record, "images")) == len(world.shard(record, "labels")) == 0
    assert record.provenance == {}


def test_text_is_erased_where_asked(tmp_path: Path) -> None:
    """Letters over a photo go when the recipe says so, and the side-cars say why."""
    from PIL import ImageDraw, ImageFont

    world = World(tmp_path, (PLAIN, PLAIN))
    plain = world.shard(world.erased(text=True), "images")
    assert not any("erased" in json.loads(plain.read(sample, "json")) for sample in plain.ids)
    drawn = picture(0, (240, 180))
    ImageDraw.Draw(drawn).text((8, 150), "copyright example", (255, 255, 255), ImageFont.load_default(18))
    world.images, world.labels = by_hand(world, tmp_path / "written", drawn)
    record = world.erased(text=True)
    before, after = world.shard(world.images, "images"), world.shard(record, "images")
    for sample in after.ids:
        about = json.loads(after.read(sample, "json"))
        assert set(about["erased"]["why"]) == {"text"}
        letters = pixels(before, sample)[150:172].min(axis=2) == 255
        assert letters.sum() > 100
        assert (pixels(after, sample)[150:172].min(axis=2) == 255)[letters].mean() < 0.05


# what one bad answer costs


class Sick:
    """OpenCV, except that some calls go wrong."""

    name, at_once = "opencv", 1

    def __init__(self, at: int | tuple[int, ...], answer: Callable[[np.ndarray], Any]) -> None:
        self._at = (at,) if isinstance(at, int) else at
        self._well, self._answer, self._calls = OpenCV("telea", 5), answer, 0
        self.closed = False

    def paint(self, image: np.ndarray, mask: np.ndarray) -> Any:
        """As `Backend`."""
        self._calls += 1
        return self._answer(image) if self._calls - 1 in self._at else self._well.paint(image, mask)

    def identity(self) -> dict[str, Any]:
        """OpenCV's."""
        return self._well.identity()

    def versions(self) -> dict[str, str]:
        """OpenCV's."""
        return self._well.versions()

    def close(self) -> None:
        """Note it."""
        self.closed = True


def _gone(image: np.ndarray) -> Any:
    raise Failure("inpainter-timeout", "no answer")


def _unwell(image: np.ndarray) -> Any:
    raise Failure("inpainter-refused", "HTTP 503 busy")


def _over(image: np.ndarray) -> Any:
    raise ModelError("the inpainter does not start")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda image: np.zeros_like(image), "inpainter-black"),
        (lambda image: np.full(image.shape, np.nan), "inpainter-not-finite"),
        (lambda image: image[:-1], "inpainter-wrong-size"),
        (lambda image: image, "inpainter-unchanged"),
        (lambda image: "no picture", "inpainter-not-an-image"),
    ],
)
@pytest.mark.parametrize("at", [0, 2])
def test_a_bad_answer_costs_one_sample(
    world: World, monkeypatch: pytest.MonkeyPatch, answer: Callable[[np.ndarray], Any], reason: str, at: int
) -> None:
    """A backend that fails once is counted by its reason; the other samples have the bytes they would have had."""
    well = world.erased()
    good = world.shard(well, "images")
    world.store.forget(well.key)
    sick = Sick(at, answer)
    monkeypatch.setattr("replaygen.inpainters.base.open_inpainter", lambda spec, where: checked(sick))
    record = world.erased()
    assert record.counts.failed == {reason: 1}
    assert (record.counts.requested, record.counts.accepted) == (5, 3)
    images, labels = world.shard(record, "images"), world.shard(record, "labels")
    assert images.ids == labels.ids
    assert len(images) == 3
    for sample in images.ids:
        assert all(images.read(sample, kind) == good.read(sample, kind) for kind in good.extensions(sample))
    assert sick.closed


@pytest.mark.parametrize("answer", [_gone, _unwell])
def test_what_passes_costs_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, answer: Callable[[np.ndarray], Any]
) -> None:
    """A picture that got no answer is tried once more, and the record is the one of a good day."""
    well = world.erased()
    world.store.forget(well.key)
    monkeypatch.setattr("replaygen.inpainters.base.open_inpainter", lambda spec, where: checked(Sick((0, 2), answer)))
    record = world.erased()
    assert (record.counts, record.outputs) == (well.counts, well.outputs)


def test_a_few_that_get_no_answer_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One hole of six that is never answered: the picture is lost by its reason, the others stand."""
    world = World(tmp_path, tuple((2, 30 + n, 4, 40, OTHER) for n in range(6)))
    sick = Sick((2, 6), _gone)
    monkeypatch.setattr("replaygen.inpainters.base.open_inpainter", lambda spec, where: checked(sick))
    record = world.erased()
    assert record.counts.failed == {"inpainter-timeout": 1}
    assert record.counts.accepted == len(world.shard(record, "images")) == 5


@pytest.mark.parametrize("way", ["crash", "half", "hang", "error"])
def test_a_server_that_is_not_well_publishes_nothing(world: World, way: str) -> None:
    """A record is for good: where nothing was filled, or too little, a later run does all of it, and all is there."""
    spec = {"backend": "lama", "sha256": "0" * 64}
    with BadInpainter(way) as server:
        with pytest.raises(ModelError, match=rf"not well: 3 of 3 .*{WAYS[way]}") as unwell:
            world.erased(**spec, server=server.url, timeout=0.5)
        assert "nothing was published" in unwell.value.hint
        assert server.asked >= 6
        server.way = "good"
        record = world.erased(**spec, server=server.url)
    assert (record.counts.accepted, record.counts.failed) == (4, {})


RUNS = """
import signal, sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
sys.path.insert(0, sys.argv[1])
import test_stages_erase as here
from replaygen.cli.stopping import stopping

here.STAGES[here.HandStage.name] = here.HandStage
with stopping():
    here.World(Path(sys.argv[2]), here.BOXES).erased(backend="lama", server=sys.argv[3], sha256="0" * 64, timeout=120)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_task_whose_server_hangs(tmp_path: Path, number: int) -> None:
    """Row 23: within ten seconds, though the recipe waits two minutes for a picture; a later run does the task."""
    with BadInpainter("hang") as server:
        child = subprocess.Popen(
            [sys.executable, "-c", RUNS, str(Path(__file__).parent), str(tmp_path), server.url], stderr=subprocess.PIPE
        )
        try:
            deadline = time.monotonic() + 120
            while server.asked < 3:
                assert child.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            began = time.monotonic()
            child.send_signal(number)
            _, words = child.communicate(timeout=60)
            assert time.monotonic() - began < 10
        finally:
            child.kill()
            child.communicate()
        assert words.rstrip().endswith(signal.Signals(number).name.encode())
        assert child.returncode != 0
        assert server.asked == 3
        server.way = "good"
        record = World(tmp_path, BOXES).erased(backend="lama", server=server.url, sha256="0" * 64)
    assert record.counts.accepted == 4


def test_too_many_that_get_no_answer_are_nobodys_fault_but_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of seventeen, each twice; or all of the first sixteen, after which the seventeenth is not tried."""
    world = World(tmp_path, tuple((2, 30 + n, 4, 40, OTHER) for n in range(17)))
    sick = Sick(tuple(range(40)), _gone)
    monkeypatch.setattr("replaygen.inpainters.base.open_inpainter", lambda spec, where: checked(sick))
    with pytest.raises(ModelError, match="not well: 16 of 16 holes"):
        world.erased()
    assert sick._calls == 32
    sick = Sick((1, 3, 5, 7, *range(16, 20)), _gone)
    with pytest.raises(ModelError, match="not well: 4 of 17 holes"):
        world.erased()


@pytest.mark.parametrize("way", ["black-hole", "nan", "padded"])
def test_a_server_that_misbehaves_costs_what_it_was_asked(world: World, way: str) -> None:
    """Each picture that a server spoils is counted by its reason; what needed none is there; a good server does all."""
    with BadInpainter(way) as server:
        record = world.erased(backend="lama", server=server.url, sha256="0" * 64, timeout=0.5)
        assert record.counts.failed == {WAYS[way]: 3}
        assert world.shard(record, "images").ids == (world.of[PLAIN],)
        assert {one["id"] for one in world.refused(record)["failed"]} == {world.of[b] for b in (CORNER, DOUBT, THROUGH)}
        world.store.forget(record.key)
        server.way = "careless"
        record = world.erased(backend="lama", server=server.url, sha256="0" * 64)
    assert record.counts.accepted == 4
    sample = world.of[DOUBT]
    old, new = pixels(world.shard(world.images, "images"), sample), pixels(world.shard(record, "images"), sample)
    about = json.loads(world.shard(record, "images").read(sample, "json"))["erased"]
    assert about["backend"] == "lama"
    assert (old != new).any(axis=2).mean() <= about["share"] + 1e-5


def test_a_backend_that_is_gone_publishes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no picture can be filled any more the task fails, so that a later run does it; the backend is closed."""
    sick = Sick(1, _over)
    monkeypatch.setattr("replaygen.inpainters.base.open_inpainter", lambda spec, where: checked(sick))
    with pytest.raises(ModelError, match="does not start"):
        world.erased()
    assert sick.closed
    monkeypatch.undo()
    for stage in (EraseStage, HandStage):
        monkeypatch.setitem(STAGES, stage.name, stage)
    assert world.erased().counts.accepted == 4


def test_another_backend_than_planned_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels of one method are never stored under the key of another."""
    monkeypatch.setattr(
        "replaygen.inpainters.base.open_inpainter", lambda spec, where: open_inpainter({"method": "ns"}, {})
    )
    with pytest.raises(ModelError, match="not the one that the plan was made for"):
        world.erased()


def test_a_label_of_another_size_is_refused(tmp_path: Path, world: World) -> None:
    """Sizes that differ are an error that names the sample, not a shifted hole."""
    images, _ = by_hand(world, tmp_path / "large", picture(9, (40, 30)))
    _, labels = by_hand(world, tmp_path / "large", picture(9, (40, 30)), max_side=20)
    with pytest.raises(DataError, match="image and label differ in size"):
        world.made(erase_task(EraseSpec(), [("images", images.key), ("labels", labels.key)]))


# current images


@dataclass(frozen=True)
class Trained:
    """A recipe that was run, and the tasks of its background inpainting."""

    store: Store
    plan: Any
    relabels: tuple[Task, ...]

    def removal(self, task: Task, *, unsure: float = 0.0, **changes: Any) -> Record:
        """What `RemoveStage` makes of the slice that a relabel task has."""
        spec = EraseSpec.model_validate({"most": 0.6, **changes})
        told = {name: task.params[name] for name in ("dataset", "scenario", "step", "ids", "flip", "looks", "views")}
        params = {
            **told, "unsure": unsure, "erase": spec.identity(),
            "inpainter": identity_of(spec.identity()), "threads": 1,
        }  # fmt: skip
        where = {**task.where, **spec.where()}
        made = RemoveStage.task(params, inputs=task.inputs, slot="remove/recall/seed0/step1/0000", where=where)
        assert execute(str(self.store.root), made).state in ("made", "adopted")
        record = self.store.get(made.key)
        assert record is not None
        return record


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> Trained:
    """The tiny recipe, run once."""
    workspace = Workspace(tmp_path_factory.mktemp("trained") / "work", tiny_digits)
    recipe = Recipe.load(workspace.recipe(TRAINING))
    plan = run(recipe.plan(recipe.store())).plan
    slots = sorted(slot for slot in plan.slots if slot.startswith("relabel/recall/"))
    return Trained(plan.store, plan, tuple(plan.tasks[plan.slots[slot]] for slot in slots))


def _shards(trained: Trained, record: Record) -> tuple[Shard, Shard]:
    made = []
    for name in ("images", "labels"):
        tar, index = (record.output(f"{name}.{ending}").digest for ending in ("tar", "index.json"))
        made.append(Shard(trained.store.read(tar), trained.store.read(index)))
    return made[0], made[1]


def test_old_objects_leave_current_images(trained: Trained) -> None:
    """What the previous model sees in the background is filled; all other pixels stay; the label says what is there."""
    from replaygen.datasets import sample_id

    task = trained.relabels[0]
    record = trained.removal(task)
    images, labels = _shards(trained, record)
    assert set(images.ids) <= set(labels.ids)
    assert record.counts.requested == len(task.params["ids"])
    assert record.counts.accepted == len(labels)
    scenario, dataset = trained.plan.opened.scenario, trained.plan.opened.dataset
    step, table = scenario.steps[task.params["step"]], scenario.step_table(task.params["step"])
    inpainted = trained.store.get(task.key)
    assert inpainted is not None
    predicted = Shard(trained.store.read(inpainted.output("labels.tar").digest))
    erased = 0
    for image_id in task.params["ids"]:
        sample = sample_id(image_id)
        if sample not in labels:
            continue
        image, own = dataset.image(image_id), scenario.apply(table, dataset.mask(image_id))
        seen_old = np.isin(decode_mask(predicted.read(sample, "mask.png")), step.old) & (own == 0)
        mask, told = decode_mask(labels.read(sample, "mask.png")), json.loads(labels.read(sample, "label.json"))
        assert (told["visible"], told["labeler"], told["id"]) == (list(step.seen), task.inputs[0][1], image_id)
        assert not np.isin(mask, step.old).any()
        for channel in step.new:
            assert np.array_equal(mask == channel, own == channel)
        if sample not in images:
            assert "erased" not in told
            assert (mask[seen_old] == 255).all()
            continue
        about, new = json.loads(images.read(sample, "json")), pixels(images, sample)
        changed = (new != image).any(axis=2)
        assert about["erased"] == told["erased"]
        assert about["parent"] == {"shard": task.params["dataset"], "id": image_id}
        assert not changed[np.isin(own, step.new)].any()
        assert (mask[changed] == 0).all()
        assert (mask[seen_old] != step.old[0]).all()
        assert changed[seen_old & (mask == 0)].mean() > 0.5
        erased += 1
    assert erased > 0
    images_again, labels_again = _shards(trained, trained.removal(task))
    assert list(images_again) == list(images)
    assert list(labels_again) == list(labels)


def test_what_is_left_of_an_old_class_is_not_background(trained: Trained) -> None:
    """Old specks that are not erased, and pixels the model doubts, are 255: nobody is told that they are background."""
    task = trained.relabels[0]
    record = trained.removal(task, least=0.5, most=0.9)
    images, labels = _shards(trained, record)
    inpainted = trained.store.get(task.key)
    assert inpainted is not None
    predicted = Shard(trained.store.read(inpainted.output("labels.tar").digest))
    step = trained.plan.opened.scenario.steps[task.params["step"]]
    left = [sample for sample in labels.ids if sample not in images]
    assert left
    for sample in left:
        old = np.isin(decode_mask(predicted.read(sample, "mask.png")), step.old)
        mask = decode_mask(labels.read(sample, "mask.png"))
        assert (mask[old] == 255).all()
        assert not (mask[~old] == 255).any()


def test_what_the_model_doubts_is_neither_erased_nor_background(trained: Trained) -> None:
    """With `unsure` = 1 no old class is sure: every picture stays, and background is 255 wherever a label is needed."""
    task = trained.relabels[0]
    images, labels = _shards(trained, trained.removal(task, unsure=1.0))
    assert len(images) == 0
    assert len(labels) == len(task.params["ids"])
    doubted = [(decode_mask(labels.read(sample, "mask.png")) == 255).mean() for sample in labels.ids]
    assert min(doubted) > 0.2


def test_refused_current_images_are_counted(trained: Trained) -> None:
    """An image of which too much would go is in neither shard: its own pixels and labels are still there."""
    record = trained.removal(trained.relabels[0], most=0.02, least=0.0)
    images, labels = _shards(trained, record)
    assert record.counts.rejected["too-much-to-erase"] > 0
    assert record.counts.accepted == len(labels) >= len(images)
    assert record.counts.requested == len(trained.relabels[0].params["ids"])
