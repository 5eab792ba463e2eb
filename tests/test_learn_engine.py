"""The training engine: precision, accumulation, batches made ahead, compilation, early diagnosis, TensorBoard."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import learn_fit_child as child
import numpy as np
import pytest
import torch
from conftest import TRAINING, Workspace

from replaygen.errors import DataError, ModelError, RecipeError
from replaygen.learn import (
    Batch,
    FitOptions,
    MixedBatches,
    NetworkSpec,
    Prediction,
    Samples,
    ViewSpec,
    build_network,
    cross_entropy,
    feature_item,
    fit,
    image_item,
)
from replaygen.learn import board as boards
from replaygen.learn.ahead import in_order, loaders_for
from replaygen.learn.board import Board, coloured
from replaygen.learn.events import Event
from replaygen.learn.fitting import FitResult
from replaygen.learn.optimise import Stepper
from replaygen.learn.precision import Precision, compiled
from replaygen.learn.specs import HOW
from replaygen.plan import Recipe
from replaygen.plan import board as recipe_boards
from replaygen.runs.execute import execute

CPU = torch.device("cpu")
SHORT = child.OPTIONS.model_copy(update={"iterations": 6, "checkpoint_every": 0})


def weights(result: FitResult) -> torch.Tensor:
    """All of them in one row."""
    return torch.cat([tensor.double().flatten() for tensor in result.net.state_dict().values()])


def warnings_of(events: list[Event]) -> list[str]:
    """What was warned about."""
    return [event["message"] for event in events if event["event"] == "warning"]


def tiny(label: int = 1, size: int = 16) -> MixedBatches:
    """Five batches of one image, a square of class 1 on `label` pixels (0 or 255 leave nothing else)."""
    image, mask = np.full((size, size, 3), 80, np.uint8), np.full((size, size), 255 if label == 255 else 0, np.uint8)
    mask[4:9, 4:9], image[4:9, 4:9] = label, 200
    item = image_item("a", (1,), False, lambda: (image, mask), ViewSpec(size=size))
    return MixedBatches(Samples([item]), None, batch=1, seed=0, iterations=5, channels=2)


def fitted(loss: Callable[[Prediction, Batch], torch.Tensor], batches: MixedBatches, **how: Any) -> list[Event]:
    """The events of a fit of a very small network."""
    events: list[Event] = []
    net = build_network(NetworkSpec(widths=(4, 4)), 2, 0)
    fit(net, batches, loss, FitOptions(batch=1, **how), 0, log=events.append, device="cpu")
    return events


def plain(said: Prediction, batch: Batch) -> torch.Tensor:
    """Cross-entropy."""
    return cross_entropy(said.logits, batch.masks)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_cpu_always_takes_float32(precision: str) -> None:
    """Mixed precision is for CUDA: on the CPU the bytes are those of float32."""
    mixed, _ = child.run(None, SHORT.model_copy(update={"precision": precision}))
    assert torch.equal(weights(mixed), weights(child.run(None, SHORT)[0]))


@pytest.mark.parametrize(("precision", "dtype", "scales"), [("float32", None, False), ("bf16", torch.bfloat16, False),
                                                            ("fp16", torch.float16, True)])  # fmt: skip
def test_precision_on_cuda(
    monkeypatch: pytest.MonkeyPatch, precision: Any, dtype: torch.dtype | None, scales: bool
) -> None:
    """bf16 and fp16 are autocast types there, and only fp16 scales the loss."""
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled=True: enabled)
    found = Precision.of(FitOptions(precision=precision), torch.device("cuda"))
    assert (found.dtype, found.scaler) == (dtype, scales)


def test_autocast_runs_the_forward_pass_in_the_type_that_is_asked_for() -> None:
    """Inside, a convolution gives bfloat16; without a type, float32."""
    layer, x = torch.nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 4, 4)
    for dtype in (torch.bfloat16, None):
        with Precision(CPU, dtype).autocast():
            assert layer(x).dtype == (dtype or torch.float32)


def test_a_step_whose_gradients_overflow_is_left_out() -> None:
    """With a loss scale, infinite gradients change no weight and halve the scale."""
    net = build_network(NetworkSpec(widths=(4, 4)), 2, 0)
    stepper = Stepper(net, FitOptions(lr=0.1), Precision(CPU, scale=True))
    before = [parameter.clone() for parameter in net.parameters()]
    stepper.begin(0, 1)
    stepper.backward(sum(parameter.sum() for parameter in net.parameters()) * 1e38)  # type: ignore[arg-type]
    scale = stepper.precision.state()["scale"]
    stepper.end()
    assert all(torch.equal(now, then) for now, then in zip(net.parameters(), before, strict=True))
    assert stepper.precision.state()["scale"] == scale / 2


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_gradients_are_measured_and_clipped_without_their_scale(clip: float) -> None:
    """The norm and the weights after a step are the same with and without a loss scale."""
    found = []
    for scale in (False, True):
        net = build_network(NetworkSpec(widths=(4, 4)), 2, 0)
        stepper = Stepper(net, FitOptions(lr=0.1, clip=clip), Precision(CPU, scale=scale))
        stepper.begin(0, 1)
        stepper.backward(sum(parameter.square().sum() for parameter in net.parameters()))  # type: ignore[arg-type]
        norm = stepper.end(measure=True)
        assert norm is not None
        found.append(torch.cat([norm.detach().view(1), *(p.detach().flatten() for p in net.parameters())]))
    assert torch.equal(found[0], found[1])
    assert found[0][0] > 0.5


def test_the_mean_of_parts_is_the_gradient_of_the_whole() -> None:
    """Without batch statistics, a batch in two parts trains as the whole batch does, to rounding."""
    spec = NetworkSpec(widths=(6, 8), freeze_bn="always")
    options = FitOptions(iterations=5, batch=4, lr=0.05, shift=3)
    found = []
    for parts in (1, 2, 4):
        batches = MixedBatches(child.samples(), None, batch=4, seed=1, iterations=5, channels=3)
        net = build_network(spec, 3, 0)
        made = fit(net, batches, plain, options.model_copy(update={"accumulate": parts}), 5, device="cpu")
        found.append((weights(made), made.losses))
    for row, losses in found[1:]:
        assert torch.allclose(row, found[0][0], rtol=0, atol=1e-5)
        assert losses == pytest.approx(found[0][1], abs=1e-5)
    assert not torch.equal(found[0][0], found[1][0])


def test_every_part_of_a_batch_is_mixed_as_the_whole() -> None:
    """Parts take turns, so each has current and replay samples; together they are the batch."""
    replayed = Samples([replace(item, id=f"r-{item.id}", replay=True) for item in child.samples().items])
    batch = MixedBatches(child.samples(), replayed, batch=4, seed=0, iterations=1, channels=3)[0]
    parts = [batch.part(i, 2) for i in range(2)]
    assert [part.replay.tolist() for part in parts] == [[False, True]] * 2
    assert sorted(name for part in parts for name in part.ids) == sorted(batch.ids)
    assert parts[1].images is not None
    assert batch.images is not None
    assert torch.equal(parts[1].images[0], batch.images[1])


def many(views: ViewSpec) -> MixedBatches:
    """Six mixed batches."""
    items = [replace(item, views=views) for item in child.samples().items]
    replayed = [replace(item, id=f"r-{item.id}", replay=True) for item in items]
    return MixedBatches(Samples(items), Samples(replayed), batch=4, seed=0, iterations=6, channels=3)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("loaders", [1, 3])
@pytest.mark.parametrize("first", [0, 4, 6])
def test_batches_made_ahead_are_the_same(first: int, loaders: int, fresh: bool) -> None:
    """Threads that make batches ahead change neither their order nor their content, and go away."""
    views = ViewSpec(size=16, count=1 if fresh else 3, fresh=fresh)
    before = threading.active_count()
    expected = list(in_order(many(views), first, ahead=0))
    found = list(in_order(many(views), first, ahead=2, loaders=loaders))
    assert [t for t, _ in found] == [t for t, _ in expected] == list(range(first, 6))
    for (_, one), (_, two) in zip(expected, found, strict=True):
        assert one.ids == two.ids
        assert one.images is not None
        assert two.images is not None
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.masks, two.masks)
    assert threading.active_count() == before


def test_a_fit_is_the_same_with_loaders() -> None:
    """How many threads load is no part of what a fit is."""
    threaded = SHORT.model_copy(update={"loaders": 3})
    assert threaded.identity() == SHORT.identity()
    assert torch.equal(weights(child.run(None, threaded)[0]), weights(child.run(None, SHORT)[0]))


def test_how_many_threads_load() -> None:
    """As the options say, else one on the CPU and several on CUDA."""
    assert [loaders_for(wanted, CPU) for wanted in (None, 0, 2)] == [1, 0, 2]
    assert loaders_for(None, torch.device("cuda")) > 1


@pytest.mark.parametrize("loaders", [0, 1, 3])
def test_a_sample_that_cannot_be_read_ends_the_fit(loaders: int) -> None:
    """Its error comes out of the fit, whichever thread met it."""

    def unreadable(view: int) -> Any:
        raise DataError("cannot read", where="s3")

    items = [replace(item, load=unreadable) if item.id == "s3" else item for item in child.samples().items]
    batches = MixedBatches(Samples(items), None, batch=3, seed=0, iterations=6, channels=3)
    net = build_network(NetworkSpec(widths=(4, 4)), 3, 0)
    with pytest.raises(DataError, match="cannot read"):
        fit(net, batches, plain, FitOptions(batch=3, loaders=loaders), 0, device="cpu")


def test_a_loop_that_ends_early_leaves_its_samples_usable() -> None:
    """What was asked for ahead and never made is loaded when it is wanted."""
    batches = many(ViewSpec(size=16, count=3))
    started = in_order(batches, 0, ahead=2, loaders=2)
    next(started)
    started.close()
    with ThreadPoolExecutor(1) as pool:
        held = threading.Event()
        pool.submit(held.wait)
        for samples, index, view in batches.drawn(5):
            samples.prefetch(index, view, pool)
        pool.shutdown(wait=False, cancel_futures=True)
        held.set()
    expected = many(ViewSpec(size=16, count=3))
    assert all(torch.equal(batches[t].masks, expected[t].masks) for t in range(6))


def test_a_mask_is_read_once_for_all_its_views() -> None:
    """Features differ from view to view, but their masks are cut from one file."""
    reads = []
    mask = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.uint8)

    def read() -> Any:
        reads.append(1)
        return mask

    views = ViewSpec(size=16, count=4, label_size=8)
    item = feature_item("a", (1, 2), True, lambda v: (torch.full((2, 4, 4), v, dtype=torch.float16),), read, views)
    samples = Samples([item.renamed("b")])
    for view in (*range(4), *range(4)):
        _, features, cut = samples.get(0, view)
        assert features is not None
        assert features[0].unique().tolist() == [view]
        assert np.array_equal(cut, item.load(view)[2])
    assert len(reads) == 1 + 8


def test_a_fit_says_how_it_went() -> None:
    """The last event tells images/s and the wait share; the result has the seconds they come from."""
    result, events = child.run(None, SHORT)
    last = events[-1]
    assert last["event"] == "finished"
    assert last["wait_share"] == pytest.approx(result.wait_seconds / result.seconds)
    assert last["images_per_second"] == pytest.approx(6 * 3 / result.seconds)
    assert 0 < result.wait_seconds < result.seconds
    assert [event["seconds_left"] for event in events if event["event"] == "progress"][-1] == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(40.0, ", about 40 s left"), (125.0, ", about 2 min left"), (7500.0, ", about 2 h 5 min left"), (0.0, "")],
)
def test_progress_says_what_is_left(seconds: float, words: str) -> None:
    """A progress line ends with a rough time, and without one when nothing is left."""
    event = Event(event="progress", iteration=50, of=200, loss=0.5, lr=0.01, seconds_left=seconds)
    assert str(event) == f"iteration 50 of 200: loss 0.5000, lr 1.00e-02{words}"


def test_a_loss_that_never_changes_is_told_early() -> None:
    """Equal losses through the first epoch mean that nothing learns."""
    found = warnings_of(fitted(plain, tiny(), head_lr=0, lr=1e-30, schedule="constant"))
    assert len(found) == 1
    assert "in every iteration of the first epoch: nothing learns" in found[0]


def test_a_gradient_of_zero_is_told_early() -> None:
    """A loss that reads nothing of the network."""
    found = warnings_of(fitted(lambda z, b: z.logits.sum() * 0 + torch.rand(()), tiny()))
    assert found == ["the gradient is 0 in the first 3 iterations: the loss reads nothing that learns, or all pixels "
                     "are ignored"]  # fmt: skip


def test_a_steep_gradient_is_told_early() -> None:
    """A norm above 1e4 in the first iterations, with a way out."""
    found = warnings_of(fitted(lambda z, b: plain(z, b) * 1e7, tiny(), lr=1e-12))
    assert len(found) == 1
    assert "the gradient's norm is" in found[0]
    assert "clip = 1.0" in found[0]


def test_an_epoch_without_a_labelled_pixel_is_told_early() -> None:
    """Masks that are ignored throughout: said once, instead of class by class."""
    found = warnings_of(fitted(plain, tiny(label=255)))
    assert "every pixel of the first epoch is ignored (255): there is nothing to learn from" in found
    assert not any("class 1" in sentence for sentence in found)


def test_a_sound_fit_warns_of_nothing() -> None:
    """None of the diagnoses speaks where all is well."""
    assert warnings_of(child.run(None)[1]) == []


def test_compiled_parts_are_those_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoder and head run through torch.compile during the fit, and are as they were afterwards."""
    calls = []

    def fake(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            calls.append(function.__name__)
            return function(*given)

        return call

    monkeypatch.setattr(torch, "compile", fake)
    options = SHORT.model_copy(update={"compile": True})
    result, _ = child.run(None, options)
    assert sorted(set(calls)) == ["classified", "forward", "maps"]
    assert len(calls) == 3 * 6
    assert not {"forward", "maps", "classified"} & (result.net.encoder.__dict__.keys() | result.net.head.__dict__)
    assert torch.equal(weights(result), weights(child.run(None, SHORT)[0]))
    assert options.identity() != SHORT.identity()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules
def test_a_network_that_cannot_be_compiled_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the way out; the network is as it was."""
    from torch._dynamo.exc import TorchDynamoException

    net = build_network(NetworkSpec(widths=(4, 4)), 2, 0)
    with pytest.raises(ModelError, match="cannot be compiled here: no compiler") as caught, compiled(net, wanted=True):
        raise TorchDynamoException("no compiler\nand a long trace")
    assert "compile = false" in caught.value.hint
    assert "forward" not in net.encoder.__dict__


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_fit_learns_the_same() -> None:
    """torch.compile itself: losses agree with the uncompiled fit to rounding."""
    compiled_fit, _ = child.run(None, SHORT.model_copy(update={"compile": True}))
    assert compiled_fit.losses == pytest.approx(child.run(None, SHORT)[0].losses, rel=1e-3)


def read_board(folder: Path) -> Any:
    """TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_gets_curves_and_pictures(tmp_path: Path) -> None:
    """Scalars at every progress, predictions of the first batch; the fit's weights are those without it."""
    options = SHORT.model_copy(update={"log_every": 2})
    events: list[Event] = []
    net = build_network(NetworkSpec(widths=(6, 8)), 3, seed=0)
    batches = MixedBatches(child.samples(), None, batch=3, seed=1, iterations=6, channels=3)
    watched = fit(net, batches, plain, options, 5, log=Board(tmp_path / "a", events.append), device="cpu")
    alone = fit(build_network(NetworkSpec(widths=(6, 8)), 3, seed=0), batches, plain, options, 5, device="cpu")
    assert torch.equal(weights(watched), weights(alone))
    found = read_board(tmp_path / "a")
    assert set(found.Tags()["scalars"]) == {"loss", "lr", "images_per_second"}
    told = [event["loss"] for event in events if event["event"] == "progress"]
    assert [entry.value for entry in found.Scalars("loss")] == pytest.approx(told)
    assert [entry.step for entry in found.Scalars("loss")] == [2, 4, 6]
    picture = found.Images("predictions")[0]
    assert (picture.height, picture.width) == (3 * 16, 3 * 16)


def test_a_resumed_fit_goes_on_in_tensorboard(tmp_path: Path) -> None:
    """Curves have every iteration once, though the killed fit had written beyond its last checkpoint."""
    options = child.OPTIONS.model_copy(update={"log_every": 1, "checkpoint_every": 4, "iterations": 8})
    for stop_at in (6, 0):

        def stop(event: Event, stop_at: int = stop_at) -> None:
            if event["event"] == "progress" and event["iteration"] == stop_at:
                raise KeyboardInterrupt

        net = build_network(NetworkSpec(widths=(6, 8)), 3, seed=0)
        batches = MixedBatches(child.samples(), None, batch=3, seed=1, iterations=8, channels=3)
        try:
            fit(net, batches, plain, options, 5, tmp_path / "fit", Board(tmp_path / "board", stop), "cpu")
        except KeyboardInterrupt:
            assert stop_at == 6
    assert [entry.step for entry in read_board(tmp_path / "board").Scalars("loss")] == list(range(1, 9))


def test_tensorboard_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> None:
    """Before anything runs, with the command that installs it."""
    for module in (boards, recipe_boards):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="not installed") as caught:
        Board(Path("anywhere"), print)
    assert "pip install 'replaygen[tensorboard]'" in caught.value.hint
    with pytest.raises(RecipeError, match="not installed"):
        Recipe.load(workspace.recipe(TRAINING), {"run.tensorboard": "board"})


def test_a_recipe_s_tensorboard_is_in_no_key(workspace: Workspace) -> None:
    """[run] tensorboard: equal keys, a folder of the workspace; a training writes there under its slot."""
    short = {"train.base": {"iterations": 2, "batch": 4}}
    path = workspace.recipe(TRAINING)
    without = Recipe.load(path, short)
    recipe = Recipe.load(path, {**short, "run.tensorboard": "board"})
    store = recipe.store()
    plan = recipe.plan(store)
    assert plan.slots == without.plan(store).slots
    task = plan.tasks[plan.slots["train/base/seed0/step0"]]
    assert task.where["fit"]["tensorboard"] == str(workspace.root / "board")
    for method in plan.opened.rows.methods().values():
        store.put(method.source)
    assert execute(str(store.root), task).state == "made"
    assert [entry.step for entry in read_board(workspace.root / "board" / "base/seed0/step0").Scalars("loss")] == [2]


def test_masks_are_coloured_by_class() -> None:
    """Background black, ignored white, every class another colour."""
    found = coloured(torch.tensor([[[0, 1, 2, 255]]]), 3)[0, :, 0].T
    assert found[0].tolist() == [0, 0, 0]
    assert found[3].tolist() == [1, 1, 1]
    assert len({tuple(row.tolist()) for row in found}) == 4


def test_fields_that_change_no_number_are_in_no_key() -> None:
    """Loaders and TensorBoard are a how; precision, accumulation and compilation are a what."""
    told = FitOptions().identity()
    assert not set(HOW) & told.keys()
    assert {"precision", "accumulate", "compile"} <= told.keys()


def test_a_weight_of_new_classes_is_in_the_key_where_it_is_given() -> None:
    """Without one the keys are those of before it was there."""
    assert "new_weight" not in FitOptions().identity()
    assert FitOptions(new_weight=4.0).identity()["new_weight"] == 4.0
