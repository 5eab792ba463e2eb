"""What evaluation keeps to look at: the images behind the largest confusions after the last step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from conftest import TRAINING, Workspace

from replaygen.plan import Plan, Recipe
from replaygen.report.examples import place_of, read_examples
from replaygen.runs import run
from replaygen.runs.behind import read_json
from replaygen.sample import decode_image, decode_mask
from replaygen.stages.evaluate import CELL_IMAGES, CELLS, SMALL_SIDE, Behind, small
from replaygen.store import Record, Store

U8 = npt.NDArray[np.uint8]
ONE_ROW = TRAINING[: TRAINING.index('[[method]]\nname = "recall"')]
KEPT = {"confused.json", "confused.tar", "confused.index.json"}


def image_of(confused: int, *, ignored: int = 0) -> tuple[U8, U8]:
    """(prediction, truth): 100 pixels of class 1, some of them predicted as 2, some of those ignored."""
    truth, predicted = np.ones((10, 10), np.uint8), np.ones((10, 10), np.uint8)
    predicted.flat[:confused] = 2
    truth.flat[:ignored] = 255
    return predicted, truth


def behind(*confused: int) -> tuple[Behind, npt.NDArray[np.int64]]:
    """Images "0", "1", .. with so many confused pixels each, and the matrix of all."""
    found, matrix = Behind(3), np.zeros((3, 3), np.int64)
    for i, pixels in enumerate(confused):
        predicted, truth = image_of(pixels)
        found.take(str(i), predicted, truth)
        np.add.at(matrix, (truth, predicted), 1)
    return found, matrix


def test_images_with_most_pixels_come_first() -> None:
    """Of six images with a confusion the four with most of it are kept, and all six are counted."""
    found, matrix = behind(3, 9, 0, 1, 7, 5, 2)
    (cell,), chosen = found.choose(matrix)
    assert (cell.true, cell.predicted, cell.pixels, cell.images) == (1, 2, 27, 6)
    assert cell.shown == (("1", 9), ("4", 7), ("5", 5), ("0", 3))
    assert chosen == {"0", "1", "4", "5"}


def test_ties_do_not_depend_on_the_order_of_images() -> None:
    """Equal images are chosen by a hash of their names, whatever order they come in."""
    forward, backward = Behind(3), Behind(3)
    for i in range(9):
        forward.take(str(i), *image_of(4))
        backward.take(str(8 - i), *image_of(4))
    matrix = np.array([[0, 0, 0], [0, 864, 36], [0, 0, 0]])
    assert forward.choose(matrix) == backward.choose(matrix)
    assert len(forward.choose(matrix)[1]) == CELL_IMAGES


def test_small_confusions_and_ignored_pixels_are_left_out() -> None:
    """Less than half a percent of the true class is no confusion to look at; ignored pixels are none at all."""
    found, matrix = behind(*[0] * 9, 4)
    assert found.choose(matrix) == ([], set())
    found = Behind(3)
    found.take("a", *image_of(5, ignored=5))
    assert found.choose(np.array([[0, 0, 0], [0, 95, 0], [0, 0, 0]])) == ([], set())


def test_confusions_are_bounded_however_many_classes() -> None:
    """Of 100 classes that are all confused, the 24 largest shares are kept."""
    found, matrix = Behind(101), np.zeros((101, 101), np.int64)
    for channel in range(1, 101):
        truth = np.full((20, 20), channel, np.uint8)
        predicted = truth.copy()
        predicted.flat[: 2 * channel] = 0
        found.take(f"image {channel}", predicted, truth)
        np.add.at(matrix, (truth, predicted), 1)
    cells, chosen = found.choose(matrix)
    assert [cell.true for cell in cells] == list(range(100, 100 - CELLS, -1))
    assert len(chosen) == CELLS


def test_kept_images_are_small_and_their_masks_hold_no_new_class() -> None:
    """Sides of 320 pixels at most; masks are not blended."""
    image = np.random.default_rng(0).integers(0, 255, (500, 700, 3)).astype(np.uint8)
    truth = np.where(np.arange(700) < 333, 3, 200).astype(np.uint8) * np.ones((500, 1), np.uint8)
    members = small(image, truth, truth)
    assert decode_image(members["jpg"]).shape[1] == SMALL_SIDE
    assert set(np.unique(decode_mask(members["true.png"])).tolist()) == {3, 200}


def test_a_run_keeps_them_after_the_last_step(workspace: Workspace) -> None:
    """Only there; cells agree with the matrix, and the pixels of each image with its kept truth and prediction."""
    plan = Recipe.load(workspace.recipe(ONE_ROW)).plan(Store(workspace.root / "cache"))
    run(plan)
    last = len(plan.opened.scenario.steps) - 1
    seen = 0
    for slot, record in evaluations(plan).items():
        place = place_of(slot)
        assert place is not None
        names = {output.name for output in record.outputs}
        if place[2] < last:
            assert not KEPT & names
            continue
        assert names >= KEPT
        matrix = read_json(plan.store, record, "result.json")["matrix"]
        kept = read_examples(plan.store, record, *place, tar="confused.tar", index="confused.index.json")
        by_id = {one.id: one for one in kept}
        for cell in read_json(plan.store, record, "confused.json")["cells"]:
            true, predicted = cell["true"], cell["predicted"]
            assert cell["pixels"] == matrix[true][predicted]
            for shown in cell["shown"]:
                one = by_id[shown["id"]]
                assert int(((one.true == true) & (one.pred == predicted)).sum()) == shown["pixels"]
                seen += 1
    assert seen


def evaluations(plan: Plan) -> dict[str, Record]:
    """Slot -> record of every evaluation of a run."""
    found = {slot: plan.store.get(key) for slot, key in plan.slots.items() if slot.startswith("evaluate/")}
    assert found
    return {slot: record for slot, record in found.items() if record is not None}
