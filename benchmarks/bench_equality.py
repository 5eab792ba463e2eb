"""Equal bytes: a whole training in this process, on Dask, on a cluster given by address, and after being killed.

Every run starts from an empty store. Compared are the digests of every output of every record: images, labels, replay
sets, weights, metrics. A killed run gets SIGKILL, its whole process group at once, a random moment after a random
number of results stood, a few times over, and is then run to its end; half of the killed runs work on two Dask workers.

Figures:
    inline_dask: Dask (two workers, and a cluster by address) gave the bytes of the inline run.
    workers: 1, 2 and 4 workers gave the same bytes. killed: every killed run did.
    kills, kills_midway: kills, and those after which some results stood and some were missing.
    redone_beyond_in_flight: results that stood after a kill and were made again nevertheless; 0 is right.
    records, weights, replay_labels: what was compared: records, trained networks among them, labelled photos accepted.
    seconds: wall seconds of the inline run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import QUICK, fresh_folder, replaygen, write

from replaygen.testing.by_hand import cluster_by_hand

RECIPE = """
name = "equality"
shard = 32
[data]
kind = "digits"
path = "data"
options = {{ train = {train}, val = 40, photos = 32 }}
[scenario]
task = "8-1"
[network]
kind = "small"
widths = [16, 32]
[views]
size = 32
[replay.photos]
source = "folder"
path = "{{data}}/photos"
count = 32
[replay.kept]
source = "exemplar"
count = 16
[train.fit]
iterations = {iterations}
batch = 8
optimizer = "adamw"
lr = 0.01
background_weight = 0.1
checkpoint_every = 10
[train.base]
iterations = {base}
background_weight = 0.02
[[method]]
name = "finetune"
trainer = "finetune"
[[method]]
name = "recall"
trainer = "recall"
replay = "photos"
init = "balanced"
[[method]]
name = "exemplar"
trainer = "recall"
replay = "kept"
[[method]]
name = "joint"
trainer = "joint"
"""
SIZES = {"train": 80, "iterations": 6, "base": 30} if QUICK else {"train": 400, "iterations": 40, "base": 160}
STORES_KILLED = 2 if QUICK else 6
KILLS_EACH = 2 if QUICK else 3

Outputs = dict[str, tuple[tuple[str, str], ...]]
Times = dict[str, tuple[str, float]]


class Bench:
    """One workspace, one recipe, a store for each way of running it."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.path = workspace / "pipelines" / "equality.toml"
        self.path.parent.mkdir(parents=True)
        self.path.write_text(RECIPE.format(**SIZES), encoding="utf-8")
        self.kills = self.midway = self.redone = 0

    def arguments(self, store: str, *how: str) -> list[str]:
        report = self.workspace / f"{store}.html"
        return ["run", str(self.path), "--cache", str(self.workspace / store), "--report", str(report), "--json", *how]

    def outputs(self, store: str, *how: str) -> Outputs:
        """What a run from an empty store makes: key -> (name, digest) of each output."""
        replaygen(*self.arguments(store, *how), cwd=self.workspace)
        return self.read(store)[0]

    def read(self, store: str) -> tuple[Outputs, Times]:
        """What stands in a store, and when each of it was made, by key."""
        from replaygen.plan import Recipe
        from replaygen.store import Store

        opened = Store(self.workspace / store, readonly=True)
        outputs: Outputs = {}
        times: Times = {}
        for key in Recipe.load(self.path).plan(opened).tasks:
            record = opened.get(key)
            if record is not None:
                outputs[key] = tuple((output.name, output.digest) for output in record.outputs)
                times[key] = (record.started, record.seconds)
        return outputs, times

    def killed(self, number: int, total: int, chance: random.Random) -> Outputs:
        """What a run of `total` tasks makes that is killed a few times and then run to its end."""
        store = f"killed-{number}"
        how = ("--workers", "2") if number % 2 else ("--workers", "0")
        standing: list[Times] = [{}]
        for _ in range(KILLS_EACH):
            if len(standing[-1]) == total:
                break
            if self._kill(store, how, chance.randint(len(standing[-1]), total - 1), chance.uniform(0.0, 0.5)):
                standing.append(self.read(store)[1] if (self.workspace / store / "format").is_file() else {})
        tally = replaygen(*self.arguments(store, *how), cwd=self.workspace).told["tally"]
        outputs, times = self.read(store)
        self.midway += sum(0 < len(found) < total for found in standing[1:])
        again = {key for found in standing for key, made in found.items() if times.get(key) != made}
        self.redone += max(len(again), tally["made"] + len(standing[-1]) - total)
        return outputs

    def _kill(self, store: str, how: tuple[str, ...], count: int, later: float) -> bool:
        """Start a run and kill it `later` seconds after `count` records stood; False where it ended before."""
        records = self.workspace / store / "records"
        process = subprocess.Popen(
            [sys.executable, "-m", "replaygen", *self.arguments(store, *how)], cwd=self.workspace,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while process.poll() is None and sum(1 for _ in records.glob("*/*.json")) < count:
            time.sleep(0.02)
        time.sleep(later)
        running = process.poll() is None
        if running:
            os.killpg(process.pid, signal.SIGKILL)
            self.kills += 1
        process.wait()
        return running


def main() -> None:
    """Measure and write `equality.json`."""
    with fresh_folder() as workspace:
        bench = Bench(workspace)
        inline = bench.outputs("inline", "--workers", "0")
        began = time.perf_counter()
        timed = bench.outputs("timed", "--workers", "0")
        whole = time.perf_counter() - began
        dask = {count: bench.outputs(f"dask-{count}", "--workers", str(count)) for count in (1, 2, 4)}
        with cluster_by_hand(workspace / "cluster") as by_hand:
            by_address = bench.outputs("address", "--cluster", by_hand.address)
        chance = random.Random(0)
        killed = [bench.killed(number, len(inline), chance) for number in range(STORES_KILLED)]
        trained, accepted = _trained_and_labelled(workspace / "inline", bench.path)
    write(
        "equality",
        {
            "inline_dask": inline == dask[2] == by_address,
            "killed": all(outputs == inline for outputs in killed),
            "workers": all(outputs == inline for outputs in dask.values()),
            "inline_twice": timed == inline,
            "kills": bench.kills,
            "kills_midway": bench.midway,
            "redone_beyond_in_flight": bench.redone,
            "records": len(inline),
            "weights": trained,
            "replay_labels": accepted,
            "seconds": round(whole, 1),
        },
    )


def _trained_and_labelled(store: Path, recipe: Path) -> tuple[int, int]:
    """Networks trained, and replay photos labelled and accepted: the comparison is not of empty sets."""
    from replaygen.plan import Recipe
    from replaygen.store import Store

    opened = Store(store, readonly=True)
    tasks = Recipe.load(recipe).plan(opened).tasks
    records = [opened.get(key) for key, task in tasks.items() if task.stage == "label"]
    accepted = sum(record.counts.accepted for record in records if record is not None)
    return sum(task.stage == "train" for task in tasks.values()), accepted


if __name__ == "__main__":
    main()
