"""What a worker holds between tasks, when it lets go of it, and how many rows go through a model at once."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from replaygen import holding
from replaygen.holding import HELD, Holding
from replaygen.learn import NetworkSpec, ViewSpec, build_network, predict_probabilities, save_checkpoint
from replaygen.learn.features import encode_views
from replaygen.portions import Portions, memory_of, portions_of
from replaygen.stages import STAGES, Inputs, Out, Task, context
from replaygen.store import Store, task_key

LONG = 3600.0
"""Seconds that no test lasts: nothing is freed for idleness."""


class Model:
    """Something to hold."""


def until(true: Callable[[], bool]) -> bool:
    """Wait for something to become true; False where it does not within a minute."""
    end = time.monotonic() + 60
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# what a stage wants


def test_stages_say_what_their_worker_should_have() -> None:
    """A GPU where a model is held, I/O for those that wait for the network, and nothing for the rest."""
    wanted = {name: stage.resource for name, stage in STAGES.items()}
    assert {name for name, what in wanted.items() if what == "GPU"} == {n for n, stage in STAGES.items() if stage.heavy}
    assert {name for name, what in wanted.items() if what == "IO"} == {"flickr-search", "url-list", "fetch"}


# holding


def test_the_last_models_are_held_and_older_ones_go() -> None:
    held, made = Holding(LONG), list[str]()

    def ask(name: str) -> Any:
        return held.hold("network", name, lambda: made.append(name) or name, most=2)

    for name in ("a", "b", "a", "c", "a", "b"):
        assert ask(name) == name
    assert made == ["a", "b", "c", "b"]  # "b" was the oldest when "c" came
    held.hold("generator", "a", Model)
    assert len(held) == 3  # another kind takes no place


def test_models_are_freed_when_idle_and_never_inside_a_task() -> None:
    held = Holding(idle=0.05)
    with held.working():
        freed = weakref.ref(held.hold("network", "a", Model))
        with held.working():
            pass
        time.sleep(0.3)
        assert freed() is not None
    assert until(lambda: freed() is None)
    assert len(held) == 0


def test_a_task_that_comes_in_time_finds_the_model() -> None:
    held = Holding(idle=0.2)
    with held.working():
        model = held.hold("network", "a", Model)
    for _ in range(4):  # longer than `idle` in all
        time.sleep(0.08)
        with held.working():
            if held.hold("network", "a", Model) is not model:
                pytest.skip("this machine was too slow to come in time")
    assert until(lambda: not len(held))


def test_with_no_idle_time_models_go_after_each_task() -> None:
    held = Holding(idle=0)
    with held.working():
        held.hold("network", "a", Model)
        assert len(held) == 1
    assert len(held) == 0


def test_without_tasks_nothing_is_freed() -> None:
    """The library is used without the runner too: its models stay."""
    held = Holding(idle=0.01)
    held.hold("network", "a", Model)
    time.sleep(0.1)
    assert len(held) == 1


def test_a_full_gpu_lets_the_others_go_and_asks_once_more() -> None:
    held, freed = Holding(LONG), []
    held.also_free(lambda: freed.append(True))
    with held.working():
        held.hold("teacher", "before", Model)
    with held.working():
        mine = held.hold("network", "mine", Model)
        tries = iter([torch.cuda.OutOfMemoryError("full"), None])

        def make() -> Model:
            problem = next(tries)
            if problem is not None:
                raise problem
            return Model()

        held.hold("generator", "large", make)
        assert held.hold("network", "mine", Model) is mine
        assert sorted(kind for kind, _ in held._models) == ["generator", "network"]
    assert freed == [True]


def test_what_is_still_too_large_says_so() -> None:
    def make() -> Model:
        raise torch.cuda.OutOfMemoryError("full")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        Holding(LONG).hold("generator", "large", make)
    with pytest.raises(ValueError, match="damaged"):
        Holding(LONG).hold("generator", "damaged", lambda: (_ for _ in ()).throw(ValueError("damaged")))


def test_where_memory_is_short_only_the_tasks_own_models_are_held() -> None:
    held = Holding(LONG)
    for limit, left in ((holding.resident() * 100, 3), (holding.resident(), 2)):
        held.clear()
        held.memory_limit = limit
        with held.working():
            held.hold("teacher", "before", Model)
        with held.working():
            held.hold("network", "mine", Model)
            held.hold("generator", "mine", Model)
            assert len(held) == left


def test_a_forked_child_can_hold_though_its_parent_was_busy() -> None:
    busy, done = threading.Event(), threading.Event()

    def make() -> Model:
        busy.set()
        done.wait(60)
        return Model()

    thread = threading.Thread(target=HELD.hold, args=("test", "slow", make))
    thread.start()
    busy.wait(60)
    child = os.fork()
    if child == 0:
        with HELD.working():
            HELD.hold("test", "child", Model)
        os._exit(7)
    end = time.monotonic() + 60
    told = (0, 0)
    while told[0] == 0 and time.monotonic() < end:
        told = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if told[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    done.set()
    thread.join()
    HELD.clear()
    assert os.waitstatus_to_exitcode(told[1]) == 7


def test_an_inpainter_on_the_shelf_goes_too() -> None:
    from replaygen.inpainters.shelf import SHELF

    class Open:
        closed = False

        def close(self) -> None:
            self.closed = True

    one = Open()
    SHELF.put("one", one)  # type: ignore[arg-type]
    HELD.make_room()
    assert one.closed
    assert SHELF.take("one") is None


def test_a_dask_worker_frees_its_models_when_idle() -> None:
    """On a real worker process: told by the plugin, for workers that come later too."""
    from distributed import Client, LocalCluster

    from replaygen.runs.idle import IdleModels

    def hold() -> None:  # they travel by value: the worker imports neither this file nor torch
        from replaygen.holding import HELD

        with HELD.working():
            HELD.hold("test", "worker", dict)

    def told() -> tuple[int, float, int]:
        from replaygen.holding import HELD

        return len(HELD), HELD.idle, HELD.memory_limit

    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None,
        memory_limit="1GB", silence_logs=50,
    ) as cluster, Client(cluster) as client:  # fmt: skip
        client.register_plugin(IdleModels(0.2))
        client.submit(hold, pure=False).result()
        assert until(lambda: client.submit(told, pure=False).result() == (0, 0.2, 1_000_000_000))
        cluster.scale(2)
        client.wait_for_workers(2)
        assert set(client.run(told).values()) == {(0, 0.2, 1_000_000_000)}


# portions


class Device:
    """A GPU that has room for so many rows: it raises as torch does, and tells its memory."""

    def __init__(self, rows: int, a_row: int = 100) -> None:
        self.room, self.a_row = rows * a_row, a_row
        self.told = 0
        self.sizes = list[int]()

    def free(self) -> int:
        return int(self.room * 1.2)

    def start(self) -> int:
        self.told = 0
        return 0

    def peak(self) -> int:
        return self.told

    def forward(self, rows: Sequence[int]) -> list[int]:
        self.sizes.append(len(rows))
        self.told = len(rows) * self.a_row
        if self.told > self.room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return [row * row for row in rows]


def drawn(portions: Portions, rows: Sequence[int], device: Device) -> list[int]:
    """The results of `rows` that count, in order."""
    return [value for part, count in portions.over(rows, device.forward) for value in part[:count]]


def test_on_a_cpu_a_batch_is_what_was_asked_for() -> None:
    """Full batches, the last filled up, whatever happens; a full memory is an error."""
    assert memory_of("cpu") is None
    device = Device(rows=100)
    assert drawn(Portions(4, None), range(9), device) == [row * row for row in range(9)]
    assert device.sizes == [4, 4, 4]
    small = Device(rows=2)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        drawn(Portions(4, None), range(9), small)
    assert small.sizes == [4]


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("most", [1, 7, 8])
@pytest.mark.parametrize("room", [1, 2, 3, 64])
def test_every_row_comes_once_in_order_whatever_fits(
    most: int, room: int, pad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replaygen.portions.give_back", lambda: None)  # there is nothing, and looking takes its time
    for count in (0, 1, 2, 7, 8, 9, 30):
        device = Device(room)
        portions = Portions(most, device, pad=pad)
        assert drawn(portions, range(count), device) == [row * row for row in range(count)]
        assert max(device.sizes, default=0) <= most


def test_what_was_learned_is_remembered() -> None:
    device = Device(rows=3)
    portions = Portions(8, device)
    drawn(portions, range(4), device)
    assert device.sizes == [8, 4, 2, 2]  # halved until it fits
    device.sizes.clear()
    drawn(portions, range(4), device)
    assert device.sizes == [2, 2]


def test_batches_follow_the_free_memory() -> None:
    """Others on the GPU take memory and give it back: batches shrink before it is full, and grow again."""
    device = Device(rows=16)
    portions = Portions(8, device)
    drawn(portions, range(8), device)
    device.room = 400
    drawn(portions, range(8), device)
    device.room = 1600
    drawn(portions, range(8), device)
    assert device.sizes == [8, 4, 4, 8]


def test_a_row_that_does_not_fit_and_other_errors_are_raised() -> None:
    device = Device(rows=0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        drawn(Portions(8, device), range(8), device)
    assert device.sizes == [8, 4, 2, 1]

    def broken(rows: Sequence[int]) -> list[int]:
        raise RuntimeError("not memory")

    with pytest.raises(RuntimeError, match="not memory"):
        list(Portions(8, Device(8)).over([1, 2], broken))


class Full:
    """A GPU on which one row fits, and no more: for real networks, on the CPU."""

    def free(self) -> int:
        return 100

    def start(self) -> int:
        return 0

    def peak(self) -> int:
        return 100


@pytest.fixture
def net() -> Any:
    """A network whose encoder counts as frozen."""
    return build_network(NetworkSpec(widths=(8, 12, 16), freeze="after_base"), channels=3, seed=0).at_step(1).eval()


def _split(net: Any, most: int) -> None:
    portions = portions_of(net, most, "cpu")
    portions.memory, portions._a_row = Full(), 100.0


def test_predictions_and_features_are_the_same_in_parts(net: Any) -> None:
    """A network's results do not depend on how many views or mirror images went through it at once."""
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    views = ViewSpec(size=32, count=3, crop=(0.5, 1.0))
    whole = predict_probabilities(net, image, 32, flip=True)
    features = encode_views(net, [image], ["a"], views)
    _split(net, 2)
    _split(net, 3)
    calls = list[int]()
    net.encoder.register_forward_hook(lambda _m, given, _o: calls.append(len(given[0])))
    np.testing.assert_allclose(predict_probabilities(net, image, 32, flip=True), whole, atol=1e-6)
    assert calls == [1, 1]
    for tap, again in zip(features[0], encode_views(net, [image], ["a"], views)[0], strict=True):
        assert tap.shape == again.shape
        torch.testing.assert_close(tap, again, atol=1e-3, rtol=1e-3)
    assert calls == [1] * 5


def test_portions_go_with_their_model(net: Any) -> None:
    assert portions_of(net, 2, "cpu") is portions_of(net, 2, "cpu")
    other = build_network(NetworkSpec(widths=(8, 12, 16)), channels=3, seed=0)
    assert portions_of(other, 2, "cpu") is not portions_of(net, 2, "cpu")
    gone = weakref.ref(portions_of(other, 2, "cpu"))
    del other
    assert until(lambda: gone() is None)


def test_models_of_real_records_are_held_and_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: Any) -> None:
    """`open_model` gives one network to both of two tasks; idle, it is gone from memory."""
    store = Store(tmp_path)
    spec = NetworkSpec(widths=(8, 12, 16), freeze="after_base")
    made = save_checkpoint(net, {"names": ["background", "a", "b"], "step": 0, "network": spec.identity()})
    task = Task(task_key("train", 1, {}, 0, ()), "train", 1, {}, 0, (), "train/base/seed0/step0")
    inputs, out = Inputs(store, task), Out(store, task)
    out.put("model.safetensors", made.tensors)
    out.put_json("model.json", made.info)
    record = store.publish(out.record(inputs, {}, "2026-01-01T00:00:00+00:00", 0.0))
    where = {"network": spec.model_dump(mode="json"), "device": "cpu"}
    user = Task("0" * 64, "label", 1, {}, 0, (("model", record.key),), "label", where)
    monkeypatch.setattr(HELD, "idle", 0.1)
    with context.working():
        model = context.open_model(Inputs(store, user), record)[0]
        assert context.open_model(Inputs(store, user), record)[0] is model
        gone = weakref.ref(model)
        del model
        time.sleep(0.3)
        assert gone() is not None
    assert until(lambda: gone() is None)
