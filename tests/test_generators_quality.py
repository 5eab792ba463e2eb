"""How good a generated set is: numbers with known answers, copies that are found, and what the report says of them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import TRAINING, Workspace
from PIL import Image

from replaygen.datasets.digits import build_digit_scenes
from replaygen.errors import DataError
from replaygen.generators.pictures import around
from replaygen.generators.quality import SIDE, copies, diversity, kid, kid_floor, manifolds, nearest, scale_of, small
from replaygen.learn import NetworkSpec, build_network
from replaygen.learn.checkpoint import save_checkpoint
from replaygen.plan import Plan, Recipe
from replaygen.report.page import environment
from replaygen.report.quality import Quality, qualities, quality_charts, quality_rows, quality_text
from replaygen.sample import encode_png
from replaygen.stages.base import Inputs, Out, Stage
from replaygen.stages.quality import QualityParams, QualityStage, pooled

U8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def _normal(n: int, seed: int, shift: float = 0.0, dimensions: int = 8) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, dimensions)) + shift


# features


def test_kid_is_the_formula() -> None:
    """Over whole sets it is the unbiased MMD^2, written out term by term."""
    real, fake = _normal(5, 0, dimensions=3), _normal(4, 1, 0.5, dimensions=3)

    def kernel(x: Floats, y: Floats) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within_real = sum(kernel(real[i], real[j]) for i in range(4) for j in range(4) if i != j) / 12
    within_fake = sum(kernel(fake[i], fake[j]) for i in range(4) for j in range(4) if i != j) / 12
    between = sum(kernel(x, y) for x in real[:4] for y in fake) / 16
    mean, deviation = kid(real[:4], fake, subsets=3, size=4)
    assert mean == pytest.approx(within_real + within_fake - 2 * between, rel=1e-12)
    assert deviation == pytest.approx(0, abs=1e-12)
    assert kid(real, fake, seed=3) == kid(real, fake, seed=3) != kid(real, fake, seed=4)


def test_a_perfect_generator_stays_below_the_floor_and_a_worse_one_does_not() -> None:
    """New draws of the same distribution score below it in most of 40 trials; moved ones never do."""
    below = 0
    for trial in range(40):
        real, same = _normal(60, trial), _normal(60, 1000 + trial)
        floor = kid_floor(real, 60, splits=40)
        below += kid(real, same, subsets=20)[0] < floor
        assert kid(real, _normal(60, 2000 + trial, shift=0.7), subsets=20)[0] > floor > 0
    assert below >= 34


def test_scaled_features_of_two_encoders_score_the_same() -> None:
    """An encoder whose numbers are a thousand times larger has the same KID once divided by its scale."""
    real, fake = _normal(20, 0), _normal(20, 1, 0.5)
    told = kid(real / scale_of(real), fake / scale_of(real))
    assert kid(1000 * real / scale_of(1000 * real), 1000 * fake / scale_of(1000 * real)) == pytest.approx(told)
    with pytest.raises(DataError, match="all zero"):
        scale_of(np.zeros((3, 2)))


def test_diversity_is_the_mean_distance_between_two_images() -> None:
    """Of 0, 3 and 6 on a line it is 4; of a collapsed set 0."""
    assert diversity(np.array([[0.0], [3.0], [6.0]])) == pytest.approx(4)
    assert diversity(np.ones((5, 2))) == 0


def test_manifolds_have_the_values_counted_by_hand() -> None:
    """Ten points a unit apart, balls of radius one: all of it covered, or a collapsed set that covers two of ten."""
    real = np.arange(10.0)[:, None]
    near = manifolds(real, real + 0.25, k=1)
    assert (near.precision, near.recall, near.coverage) == (1, 1, 1)
    collapsed = manifolds(real, np.zeros((10, 1)), k=1)
    assert (collapsed.precision, collapsed.recall) == (1, pytest.approx(0.1))
    assert (collapsed.density, collapsed.coverage) == (pytest.approx(2), pytest.approx(0.2))
    away = manifolds(real, real + 100, k=1)
    assert (away.precision, away.recall, away.density, away.coverage) == (0, 0, 0, 0)
    uneven = manifolds(real, np.concatenate([real + 0.25] * 3), k=1)
    assert uneven.precision == 1
    assert uneven.coverage > 0.5


def test_too_few_images_are_refused() -> None:
    """None of the numbers is made up for a set that is too small for it."""
    one, five = _normal(1, 0), _normal(5, 0)
    for asked in (
        lambda: kid(one, five), lambda: kid(five, five, size=6), lambda: kid_floor(_normal(3, 0), 5),
        lambda: diversity(one), lambda: manifolds(five, five, k=5),
        lambda: copies(np.zeros((3, SIDE, SIDE, 3), np.uint8), np.zeros((1, SIDE, SIDE, 3), np.uint8)),
    ):  # fmt: skip
        with pytest.raises(DataError):
            asked()


# copies


def _jpeg(image: U8, quality: int = 60) -> U8:
    written = io.BytesIO()
    Image.fromarray(image).save(written, "JPEG", quality=quality)
    return np.asarray(Image.open(written))


def _moved(image: U8, down: int, right: int) -> U8:
    height, width = image.shape[:2]
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="edge")
    return padded[4 - down : 4 - down + height, 4 - right : 4 - right + width]


def _lit(image: U8, factor: float, offset: float = 0) -> U8:
    return np.clip(image * factor + offset, 0, 255).astype(np.uint8)


def _shrunk(image: U8) -> U8:
    return np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BOX))


ALTERED: Mapping[str, Callable[[U8], U8]] = {
    "exact": lambda image: image,
    "JPEG": _jpeg,
    "brighter": lambda image: _lit(image, 1.2),
    "offset": lambda image: _lit(image, 1.0, 30),
    "darker": lambda image: _lit(image, 0.6),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "moved by 1": lambda image: _moved(image, 1, -1),
    "moved by 2": lambda image: _moved(image, -2, 2),
    "32 x 32": _shrunk,
    "32 x 32, moved by 2": lambda image: _moved(_shrunk(image), 2, 2),
    "all at once": lambda image: _jpeg(_moved(_lit(image[:, ::-1], 1.1), 1, -2)),
}


COPIED = 20
"""Images of the training set that are altered in each way."""


def _smalls(images: list[U8]) -> U8:
    return np.stack([small(image) for image in images])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[U8], list[U8]]:
    """Images of digit scenes: those trained on, and held out."""
    root = build_digit_scenes(tmp_path_factory.mktemp("digits") / "d", train=90, val=60, photos=1)
    train, held = ([np.asarray(Image.open(path)) for path in sorted((root / "images").glob(f"{split}-*"))]
                   for split in ("train", "val"))  # fmt: skip
    return train, held


def _check_copies(train: list[U8], held: list[U8]) -> None:
    every = [alter(image) for alter in ALTERED.values() for image in train[:COPIED]]
    found = copies(_smalls(every), _smalls(train))
    for i, name in enumerate(ALTERED):
        part = slice(COPIED * i, COPIED * i + COPIED)
        assert found.memorised[part].mean() >= 0.95, name
        assert (found.nearest[part] == np.arange(COPIED)).mean() >= 0.95, name
    assert found.ratio < 0.25
    new = copies(_smalls(held), _smalls(train))
    assert new.threshold == found.threshold
    assert new.share <= 0.02
    assert new.among_real <= 0.02
    assert 0.9 < new.ratio < 1.15


def test_copies_of_digit_scenes_are_found_and_new_scenes_are_not(digits: tuple[list[U8], list[U8]]) -> None:
    """Low in texture, dark behind bright strokes, and drawn over two photographs only."""
    _check_copies(*digits)


def test_copies_of_photographs_are_found_and_new_ones_are_not(data_root: Path) -> None:
    """Real photographs of animals, of other sizes and shapes than what is compared."""
    root = data_root / "voc_animals"
    train, held = (
        [np.asarray(Image.open(root / "images" / f"{name}.jpg").convert("RGB")) for name in names[:70]]
        for names in ((root / "splits" / f"{split}.txt").read_text().split() for split in ("train", "val"))
    )
    _check_copies(train, held)


def test_low_resolution_copies_are_found_at_their_resolution(digits: tuple[list[U8], list[U8]]) -> None:
    """Of 16 x 16 images what they cannot show is not held against them; held-out ones stay new."""
    train, held = digits[0][:50], digits[1]
    tiny = [np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX)) for image in [*train[:20], *held]]
    found = copies(_smalls(tiny), _smalls(train), resolution=16)
    assert found.memorised[:20].all()
    assert found.distance[:20].max() < copies(_smalls(tiny[:20]), _smalls(train)).distance.min()
    assert found.memorised[20:].mean() <= 0.02


def test_blends_and_flat_images_are_no_copies(digits: tuple[list[U8], list[U8]]) -> None:
    """Half of one image over half of another is new, and a flat image is like nothing, another flat one included."""
    train, _ = digits
    blends = [((a.astype(int) + b) // 2).astype(np.uint8) for a, b in zip(train[:30], train[30:60], strict=True)]
    flat = np.full((64, 64, 3), 90, np.uint8)
    found = copies(_smalls([*blends, flat]), _smalls([*train, flat]))
    assert found.memorised.mean() <= 0.02
    assert found.distance[-1] == pytest.approx(2**0.5)


def test_duplicates_in_the_data_do_not_hide_copies(digits: tuple[list[U8], list[U8]]) -> None:
    """With every third image there twice the threshold stays; how many are there twice is told."""
    train, held = digits[0][:60], digits[1][:50]
    doubled = [*train, *(_jpeg(image) for image in train[::3])]
    found = copies(_smalls([*map(_jpeg, train[:20]), *held]), _smalls(doubled))
    assert found.threshold == pytest.approx(copies(_smalls(held), _smalls(train)).threshold, rel=0.1)
    assert found.memorised[:20].all()
    assert found.memorised[20:].mean() <= 0.02
    assert found.among_real == pytest.approx(0.5, abs=0.02)


def test_crops_of_one_image_are_not_held_for_its_neighbours(digits: tuple[list[U8], list[U8]]) -> None:
    """A copy of a crop is found where the crop was trained on; its own image does not lower the threshold."""
    train = digits[0][:40]
    crops = [image[8:56, 8:56] for image in train]
    owners = [*range(len(train)), *range(len(train))]
    found = copies(_smalls(crops[:20]), _smalls([*train, *crops]), owners=owners)
    assert found.memorised.all()
    assert [owners[i] for i in found.nearest] == list(range(20))
    assert not copies(_smalls(crops[:20]), _smalls(train)).memorised.all()
    both = np.concatenate([_smalls(train[:2])] * 2)
    index, distance = nearest(both[:2], both, owners=([0, 1], [0, 1, 0, 1]))
    assert index.tolist() in ([1, 0], [3, 2], [1, 2], [3, 0])
    assert distance.min() > 0.3
    lonely, far = nearest(both[:1], both[:1], owners=([0], [0]))
    assert (lonely.tolist(), far.tolist()) == ([-1], [np.inf])


# the stage and the report

CLASS, CHANNEL, SIZE = "two", 3, 32


class _Made(Stage[Any]):
    """What other stages leave, put into the store by hand."""

    name = "made"
    version = 1

    def run(self, params: Any, inputs: Inputs, out: Out) -> None:
        raise NotImplementedError

    @classmethod
    def put(cls, plan: Plan, slot: str, shards: Mapping[str, Any], files: Mapping[str, Any], **params: Any) -> str:
        task = cls.task({"slot": slot, **params}, slot=slot)
        out = Out(plan.store, task)
        for name, items in shards.items():
            out.shard(name, items)
        for name, content in files.items():
            out.put(name, content)
        plan.store.publish(out.record(Inputs(plan.store, task), {}, "2026-03-01T10:00:00+00:00", 1.0))
        return task.key


def _sample(name: str, image: U8, **about: Any) -> tuple[str, dict[str, bytes]]:
    return name, {"png": encode_png(image), "json": json.dumps(about).encode()}


class World:
    """A real plan of digit scenes with a step-0 model, and what a generator of the class made."""

    def __init__(self, workspace: Workspace) -> None:
        recipe = Recipe.load(workspace.recipe(TRAINING))
        self.plan = recipe.plan(recipe.store())
        opened = self.plan.opened
        self.dataset, self.scenario = opened.dataset, opened.scenario
        assert self.scenario.names[CHANNEL] == CLASS
        raw, ids = self.scenario.raw[CHANNEL - 1], self.scenario.steps[0].ids
        self.ids = [key for key in ids if raw in self.dataset.present(ids)[key]]
        spec = NetworkSpec.model_validate(opened.where["network"])
        names = self.scenario.names[:9]
        told = {"names": list(names), "step": 0, "new": list(range(1, 9)), "old": [], "network": spec.identity()}
        self.net = build_network(spec, len(names), 0).eval()
        model = save_checkpoint(self.net, told)
        files = {"model.safetensors": model.tensors, "model.json": json.dumps(model.info).encode()}
        self.model = _Made.put(self.plan, "model", {}, files)
        folder = Path(opened.where["data"]["path"]) / "photos" / CLASS
        self.new = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())[:15]]

    def put_images(self, images: list[U8], name: str = "a") -> tuple[str, str]:
        """Shards of images and of labels, in which all but the first image were found to hold the class."""
        items = [_sample(f"{name}{i:03d}", image) for i, image in enumerate(images)]
        labels = [(sample, {"label.json": json.dumps({"scores": {"share": 0.1 + 0.1 * (i % 2)}}).encode()})
                  for i, (sample, _) in enumerate(items) if i]  # fmt: skip
        return (
            _Made.put(self.plan, f"images/{name}", {"images": items}, {}),
            _Made.put(self.plan, f"labels/{name}", {"labels": labels}, {}),
        )

    def put_fit(self, **fit: Any) -> str:
        """Snapshots: noise first, then images of the class."""
        noise = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
        early = [
            _sample(f"i{10:08d}-{n:04d}", image, iteration=10, **{"class": CLASS}) for n, image in enumerate(noise)
        ]
        late = [_sample(f"i{20:08d}-{n:04d}", image, iteration=20, **{"class": CLASS})
                for n, image in enumerate(self.new[:6])]  # fmt: skip
        few = [_sample(f"i{30:08d}-{n:04d}", image, iteration=30, **{"class": CLASS})
               for n, image in enumerate(self.new[:2])]  # fmt: skip
        other = [_sample("i00000040-0000", noise[0], iteration=40, **{"class": "one"})]
        return _Made.put(self.plan, "fit", {"snapshots": [*early, *late, *few, *other]}, {}, fit=fit)

    def measure(self, inputs: list[tuple[str, str]], ids: list[str], seed: int = 0, source: str = "fitted") -> Any:
        """Run the stage, publish its record, and read quality.json."""
        params = {
            "dataset": self.dataset.digest, "scenario": self.scenario.digest, "class_name": CLASS, "channel": CHANNEL,
            "step": 0, "ids": ids, "size": SIZE, "threads": 1,
        }  # fmt: skip
        slot = f"quality/{source}/seed{seed}/{CLASS}"
        task = QualityStage.task(
            params, inputs=[*inputs, ("model", self.model)], slot=slot, where=self.plan.opened.where
        )
        read, out = Inputs(self.plan.store, task), Out(self.plan.store, task)
        QualityStage().run(QualityParams(**{**params, "ids": tuple(ids)}), read, out)  # type: ignore[arg-type]
        record = out.record(read, {}, "2026-03-01T10:00:00+00:00", 1.0)
        self.plan.store.publish(record)
        self.plan.built.slots[slot] = task.key
        text = self.plan.store.read(record.output("quality.json").digest)
        assert record.counts.requested == record.counts.accepted
        return json.loads(text, parse_constant=pytest.fail)


@pytest.fixture
def world(workspace: Workspace) -> World:
    return World(workspace)


def test_a_row_of_features_does_not_depend_on_the_other_images(world: World) -> None:
    """However a set is cut, each image's features are the same to the last bit."""
    whole = pooled(world.net, world.new, SIZE)
    assert whole.shape == (15, 24)
    parts = [pooled(world.net, world.new[start:end], SIZE) for start, end in ((0, 1), (1, 9), (9, 15))]
    assert np.array_equal(np.concatenate(parts), whole)
    assert pooled(world.net, [], SIZE).shape[0] == 0


def test_the_stage_measures_a_class(world: World) -> None:
    """Five copies among twenty images are found, by name; every number is there, finite, and the same again."""
    copied = [_jpeg(world.dataset.image(key)) for key in world.ids[:5]]
    first, second = world.put_images([*world.new[:8], *copied]), world.put_images(world.new[8:], "b")
    inputs = [("images", first[0]), ("images", second[0]), ("labels", first[1]), ("labels", second[1])]
    told = world.measure([*inputs, ("fit", world.put_fit(focus=0.0, context=2.0))], world.ids[5:])
    assert (told["class"], told["generated"], told["accepted"]) == (CLASS, 20, 18)
    assert told["real"] == len(world.ids) - 5
    assert told["found_share"] == 0.9
    assert told["area"] == pytest.approx((6 * 0.1 + 6 * 0.2 + 3 * 0.1 + 3 * 0.2) / 18, abs=0.01)
    assert 0.01 < told["real_area"] < 0.2
    assert told["memorised_share"] == 0.25
    assert {(pair["generated"], pair["real"]) for pair in told["pairs"] if pair["memorised"]} == {
        (f"a{8 + i:03d}", key) for i, key in enumerate(world.ids[:5])
    }
    assert 0.5 < told["diversity"] / told["real_diversity"] < 1.5
    assert told["kid"] < told["curve"][0]["kid"]
    assert [point["iteration"] for point in told["curve"]] == [10, 20]
    assert told["curve"][0]["kid"] > told["curve"][1]["kid"]
    assert all(told[name] is not None for name in told)
    again = world.measure([*inputs, ("fit", world.put_fit(focus=0.0, context=2.0))], world.ids[5:])
    assert again == told


def test_small_sets_give_null(world: World) -> None:
    """Nine real images, or nine generated ones, say nothing; an empty set neither."""
    images, labels = world.put_images(world.new)
    fit = world.put_fit(focus=0.0, context=2.0)
    told = world.measure([("images", images), ("labels", labels), ("fit", fit)], world.ids[:9])
    assert (told["kid"], told["kid_floor"], told["diversity"], told["precision"], told["curve"]) == (*[None] * 4, [])
    assert told["memorised_share"] is not None
    images, labels = world.put_images(world.new[:9], "few")
    told = world.measure([("images", images), ("labels", labels)], world.ids)
    assert (told["kid"], told["memorised_share"], told["pairs"]) == (None, None, [])
    images = _Made.put(world.plan, "none", {"images": []}, {})
    told = world.measure([("images", images)], world.ids)
    assert (told["generated"], told["found_share"], told["area"], told["kid"]) == (0, None, None, None)


def test_copies_of_what_the_generator_saw_are_found(world: World) -> None:
    """Crops around objects count where the fit used them, and photos where it was fitted on those."""
    step = world.scenario.steps[0]
    raw = world.scenario.raw[CHANNEL - 1]
    crops = [around(world.dataset.image(key), world.dataset.mask(key) == raw, 1.5) for key in world.ids[:10]]
    assert set(world.ids) <= set(step.ids)
    images, _ = world.put_images(crops, "crop")
    shares = {}
    for focus in (0.0, 0.5):
        fit = world.put_fit(focus=focus, context=1.5)
        shares[focus] = world.measure([("images", images), ("fit", fit)], world.ids)["memorised_share"]
    assert shares[0.5] == 1
    assert shares[0.0] < 1
    images, _ = world.put_images([_jpeg(image) for image in world.new], "photo")
    photos, _ = world.put_images(world.new, "web")
    assert world.measure([("images", images)], world.ids)["memorised_share"] == 0
    told = world.measure([("images", images), ("photos", photos)], world.ids)
    assert told["memorised_share"] == 1
    assert {pair["real"] for pair in told["pairs"]} <= {f"web{i:03d}" for i in range(15)}


def _render(found: list[Quality], seed: int = 0) -> str:
    from markupsafe import Markup

    charts = [Markup(chart) for chart in quality_charts(found)]
    report = SimpleNamespace(seed=seed)
    return (
        environment()
        .get_template("quality.html")
        .render(qualities=found, quality_charts=charts, report=report, fits=())
    )


def test_the_report_shows_what_was_measured(world: World) -> None:
    """Table, curve and the closest generated images; nothing of other seeds, and nothing of real pixels."""
    assert qualities(world.plan, 0) == []
    assert _render([]).strip() == quality_text([]) == ""
    copied = [_jpeg(world.dataset.image(key)) for key in world.ids[:5]]
    images, labels = world.put_images([*world.new, *copied])
    fit = world.put_fit(focus=0.0, context=2.0)
    told = world.measure([("images", images), ("labels", labels), ("fit", fit)], world.ids)
    world.measure([("images", images), ("labels", labels)], world.ids, seed=1, source="hub")
    (found,) = qualities(world.plan, 0)
    assert (found.name, found.source, found.generated, found.accepted) == (CLASS, "fitted", 20, 19)
    assert found.found == pytest.approx(95)
    assert found.diversity == pytest.approx(100 * told["diversity"] / told["real_diversity"])
    assert found.kid == pytest.approx(1000 * told["kid"])
    assert found.memorised == 25
    assert len(found.closest) == 3
    assert all(close.memorised and close.real in world.ids[:5] for close in found.closest)
    (other,) = qualities(world.plan, 1)
    assert (other.source, found.seed, other.seed) == ("hub", 0, 1)
    html = _render([found])
    assert html.count('src="data:image/') == 3
    assert f"copy of {found.closest[0].real}" in re.sub(r"\s+", " ", html)
    assert html.count("<svg") == 1
    assert "currentColor" in html
    assert "#0102" not in html
    lines = quality_text([found]).splitlines()
    assert re.split(" {2,}", lines[0])[-3:] == ["KID x 1000", "floor", "memorised %"]
    assert lines[1].split()[:5] == [CLASS, "fitted", "20", "19", "95"]
    assert lines[1].split()[-1] == "25.0"
    assert [line.split()[2] for line in quality_text([found, other]).splitlines()] == ["seed", "0", "1"]
    (row, _) = json.loads(json.dumps(quality_rows([found, other])))
    assert (row["seed"], row["kid"]) == (0, found.kid)
    assert row["closest"][0].keys() == {"id", "real", "distance", "memorised"}


def test_the_report_escapes_names_and_has_a_chart_for_six_classes() -> None:
    """A class name from outside is text; seven classes of one source stand in two charts without sharing an id."""
    blank = dict.fromkeys(("found", "area", "real_area", "diversity", "precision", "coverage", "kid", "deviation"))
    named = [
        Quality(f"<b>{i}$x$</b>", "s", 0, 3, 0, 3, **blank, floor=None, memorised=None, real_memorised=12.0 * (i == 7),  # type: ignore[arg-type]
                curve=((10, 5.0), (20, -0.1)) if i else ())
        for i in range(8)
    ]  # fmt: skip
    html = _render(named)
    assert html.count("<svg") == 2
    assert "<b>" not in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert html.count("near copies of each other") == html.count("(s) 12 %.") == 1
    assert "–" in quality_text(named)
