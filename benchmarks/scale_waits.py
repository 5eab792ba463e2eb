"""From 1 to 2 workers with stages that wait and stages that compute, and from 1 to 64 with stages that sleep."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scale_cluster import cluster

from replaygen.testing import toys

if TYPE_CHECKING:
    from distributed import Client

    from replaygen.plan import Plan, Task

HERE = Path(__file__).resolve().parent
LATENCY = 0.05
CRAWL = """
name = "waits"
shard = 32
[data]
kind = "digits"
path = "{data}"
options = {{ train = 60, val = 12, photos = 24 }}
[scenario]
task = "5-1"
[network]
kind = "small"
[replay.web]
source = "web"
path = "{lists}"
only = ["one"]
count = {count}
[replay.web.web]
unknown_licence = "accept"
robots = false
[replay.web.screen]
duplicates = -1
leaks = -1
grayscale = false
text = 1.0
flat = false
[run.crawl]
rate = 100000.0
connections = 4
"""
SERVER = """
import sys, time
from pathlib import Path
from replaygen.testing.web import Server
photos = [path.read_bytes() for path in sorted(Path(sys.argv[1]).glob("*.png"))]
def answer(path):
    time.sleep(float(sys.argv[2]))
    return 200, {"Content-Type": "image/png"}, photos[int(path.strip("/").split(".")[0]) % len(photos)]
server = Server(answer)
print(server.host, flush=True)
sys.stdin.read()
server.close()
"""
BARE = """
import sys
sys.path.insert(0, sys.argv[1])
import scale_waits
scale_waits.bare(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
"""


def two(folder: str, kind: str, size: int, rounds: int) -> dict[str, Any]:
    """Seconds of the same tasks on 1 and 2 workers, and in 1 and 2 bare processes; the shortest of some rounds.

    Args:
        kind: "crawl", photos of a server that answers after 50 ms; "compute", sha256 in Python.
        size: photos to fetch, or tasks to compute.
    """
    with_server = _Server(folder) if kind == "crawl" else None
    try:
        recipe = _recipe(Path(folder), kind, size, with_server)
        took: dict[str, list[float]] = {}
        for number in range(rounds):
            for workers in (1, 2):
                store = f"{folder}/{kind}-{number}-{workers}"
                took.setdefault(f"bare_{workers}", []).append(_bare(recipe, f"{store}-bare", kind, workers))
                took.setdefault(f"ours_{workers}", []).append(_ours(recipe, f"{store}-ours", kind, workers))
    finally:
        if with_server is not None:
            with_server.close()
    best = {name: min(seconds) for name, seconds in took.items()}
    return {
        "seconds": {name: round(value, 2) for name, value in best.items()},
        "of_two_bare_processes": best["bare_2"] / best["ours_2"],
        "speedup": best["ours_1"] / best["ours_2"], "bare_speedup": best["bare_1"] / best["bare_2"],
        "all_seconds": {name: [round(one, 2) for one in seconds] for name, seconds in took.items()},
    }  # fmt: skip


class _Server:
    """A process that serves photos after 50 ms each."""

    def __init__(self, folder: str) -> None:
        from replaygen.datasets.digits import build_digit_scenes

        self.data = build_digit_scenes(Path(folder) / "digits", train=60, val=12, photos=24)
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self.data / "photos" / "one"), str(LATENCY)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.host = self._process.stdout.readline().strip()
        os.environ["REPLAYGEN_ALLOW_HOSTS"] = self.host

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=30)


def _recipe(folder: Path, kind: str, size: int, server: _Server | None) -> str:
    """A recipe's file; for toys their number."""
    if server is None:
        return str(size)
    lists = folder / "lists"
    lists.mkdir()
    (lists / "one.txt").write_text("".join(f"http://{server.host}/{number}.png\n" for number in range(size)))
    path = folder / "pipelines" / "waits.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(CRAWL.format(data=server.data, lists=lists, count=size))
    return str(path)


def plan_of(recipe: str, store: str, kind: str) -> Plan:
    """The plan to run, of what waits or computes only; a crawl's list is read already."""
    from replaygen.plan import Plan, Recipe
    from replaygen.plan.build import Built
    from replaygen.runs import run
    from replaygen.store import Store

    if kind == "compute":
        toys.register()
        return toys.toy_plan(Store(store), [toys.toy(toys.SpinStage, i, seconds=1.0) for i in range(int(recipe))])
    found = Recipe.load(recipe)
    plan = found.plan(Store(store))

    def part(stages: Sequence[str]) -> Plan:
        tasks = {key: task for key, task in plan.tasks.items() if task.stage in stages}
        return Plan(plan.recipe, plan.store, plan.opened, Built(tasks, {task.slot: k for k, task in tasks.items()}))

    run(part(("url-list",)))
    return part(("url-list", "fetch"))


def _ours(recipe: str, store: str, kind: str, workers: int) -> float:
    """Wall seconds of `run` with so many workers, which stand already and have imported everything."""
    from replaygen.runs import run

    plan = plan_of(recipe, store, kind)
    with cluster(Path(store), workers, toys.PRELOAD) as found:
        _start_up(found.client, store)
        began = time.perf_counter()
        run(plan, found.client)
        return time.perf_counter() - began


def _bare(recipe: str, store: str, kind: str, processes: int) -> float:
    """Wall seconds of so many processes that each do their share of the tasks, one behind the other, and no more."""
    plan_of(recipe, store, kind)
    command = [sys.executable, "-c", BARE, str(HERE), recipe, store]
    environment = {**os.environ, "SCALE_KIND": kind}
    piped: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    started = [subprocess.Popen([*command, str(number), str(processes)], **piped) for number in range(processes)]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    began = time.perf_counter()
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    for process in started:
        if process.wait() != 0:
            raise RuntimeError("a bare process failed")
    return time.perf_counter() - began


def bare(recipe: str, store: str, number: int, processes: int) -> None:
    """Be one bare process."""
    from replaygen.runs.execute import execute

    plan = plan_of(recipe, store, os.environ["SCALE_KIND"])
    todo: list[Task] = [task for task in plan.tasks.values() if task.stage != "url-list"]
    _warm(store)
    print("ready", flush=True)
    sys.stdin.read()
    for task in todo[number::processes]:
        execute(store, task)


def _start_up(client: Client, store: str) -> None:
    """Every worker has done a task, and the scheduler has seen one: it imports what a task is made of, once."""
    from replaygen.runs.execute import execute

    client.run(_warm, store)
    client.submit(execute, store, toys.toy(toys.NothingStage, -1)).result()


def _warm(store: str = "") -> None:
    """Import what stages need, and do a task of nothing, so that no measured one pays for what comes first."""
    import replaygen.crawl.client
    import replaygen.crawl.isolated  # noqa: F401
    from replaygen.runs.execute import execute

    toys.register()
    if store:
        execute(store, toys.toy(toys.NothingStage, os.getpid()))


def many(folder: str, workers: int, each: int, seconds: float) -> dict[str, Any]:
    """`each` tasks a worker that sleep, on so many workers: efficiency, and what the scheduler spends on a task.

    efficiency is sleeping seconds / (workers x wall seconds); bare is that of `client.map` on the same cluster.
    """
    from replaygen.runs import run
    from replaygen.store import Store

    toys.register()
    count = workers * each
    tasks = [toys.toy(toys.SleepStage, number, seconds=seconds) for number in range(count)]
    plan = toys.toy_plan(Store(Path(folder) / f"many-{workers}"), tasks)
    with cluster(Path(folder), workers, toys.PRELOAD) as found:
        _start_up(found.client, str(plan.store.root))
        before, mine = found.seen(), time.process_time()
        began = time.perf_counter()
        done = run(plan, found.client)
        wall, after = time.perf_counter() - began, found.seen()
        assert done.tally.made == count
        told = {
            "efficiency": count * seconds / (workers * wall), "seconds": wall,
            "scheduler_cpu_ms": 1000 * (after.cpu - before.cpu) / count,
            "client_cpu_ms": 1000 * (time.process_time() - mine) / count,
            "bytes_per_shard": (after.bytes - before.bytes) / count, "scheduler_mb": after.resident / 1e6,
        }  # fmt: skip
        began = time.perf_counter()
        found.client.gather(found.client.map(_sleep, [seconds] * count, pure=False))
        told["bare"] = count * seconds / (workers * (time.perf_counter() - began))
    return told


def _sleep(seconds: float) -> None:
    time.sleep(seconds)
