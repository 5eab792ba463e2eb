"""From a laptop to a cluster: equal bytes, scaling, a million samples, a bucket, and workers that are killed.

Each part runs in an interpreter of its own; `python benchmarks/bench_scale.py PART ...` prints some parts only.
The scheduler is a process of its own that counts its bytes; its workers are forked from one process (scale_cluster.py).

Figures:
    efficiency_2_workers: seconds of two bare processes / seconds of a run on 2 Dask workers, the same tasks, workers
        standing, the shortest of some rounds: `crawl` (photos of a server that answers after 50 ms) and `compute`
        (sha256); with the speedup from 1 to 2 of both.
    efficiency_64_workers: sleeping seconds / (workers x wall seconds) on 64 workers of this one machine, whose tasks
        sleep 4 s; `bare` of `client.map` there; CPU-ms a task of the scheduler and of the process that runs the plan.
    bytes_per_shard_through_scheduler: all that came to and left the scheduler / tasks, in the million part: each task
        carries the names and digests of 64 photos.
    tasks_per_second: 1,000,000 samples, 15,625 shards planned from a recipe and run with a stage that does nothing,
        on 2 workers, every record durable on disk; `in_memory` the same with the store in memory (fewer tasks); `bare`
        of `client.map` of a no-op on the same cluster. Resident MB of the scheduler and of the process that runs the
        plan, at every twentieth of the way. plan_seconds: planning and the status of each task.
    s3_warm_recomputed: shards made again by runs of a finished recipe on a bucket (moto on loopback), on the same
        machine and on another; `two_at_once`, `killed` half-way, requests a shard by kind.
    kills_survived: SIGKILLs of workers, 20 in each of 5 stages, after which the run finished with the bytes of a run
        in one process; `done_twice`: tasks begun again that were not killed. poison_named: the error names the task
        that kills its workers, after `poison_deaths`; `poison_lost`: what was not made, itself only.
    equality: tasks whose bytes differ from inline, on 2 local workers and on 2 by hand over TLS.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from common import QUICK, REPOSITORY, fresh_folder, python, write

CALL = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
found = getattr(importlib.import_module(sys.argv[2]), sys.argv[3])
print(json.dumps(found(*json.loads(sys.argv[4]))))
"""
EACH = 1 if QUICK else 20
MEMORY = "/dev/shm"


def call(module: str, name: str, *arguments: Any) -> Any:
    """A function of a helper, given a fresh folder first, in an interpreter of its own."""
    with fresh_folder() as folder:
        return python(CALL, str(REPOSITORY / "benchmarks"), module, name, json.dumps([str(folder), *arguments])).told


def equality() -> dict[str, Any]:
    """Inline, local, TLS."""
    return {"equality": call("scale_equality", "equality")}


def two() -> dict[str, Any]:
    """1 to 2 workers."""
    crawl = call("scale_waits", "two", "crawl", *((64, 1) if QUICK else (1920, 3)))
    compute = call("scale_waits", "two", "compute", *((4, 1) if QUICK else (24, 3)))
    return {"efficiency_2_workers": {"crawl": crawl, "compute": compute}}


def many() -> dict[str, Any]:
    """1 to 64 workers."""
    sizes = ((1, 2, 0.5), (8, 2, 0.5)) if QUICK else ((1, 8, 4.0), (8, 8, 4.0), (64, 8, 4.0))
    told = {str(workers): call("scale_waits", "many", workers, each, seconds) for workers, each, seconds in sizes}
    last = told[str(sizes[-1][0])]
    return {"efficiency_64_workers": {"efficiency": last["efficiency"], "bare": last["bare"], "by_workers": told}}


def million() -> dict[str, Any]:
    """15,625 shards."""
    told = call("scale_million", "million", *((64, 2) if QUICK else (8000, 2)))
    bare = told.pop("bare")
    figures = {
        "bytes_per_shard_through_scheduler": round(told.pop("bytes_per_shard")),
        "tasks_per_second": {"ours": told.pop("tasks_per_second"), "bare": bare["tasks_per_second"], **told},
    }
    figures["tasks_per_second"]["bare_details"] = bare
    if os.access(MEMORY, os.W_OK):
        small = call("scale_million", "in_memory", MEMORY, *((64, 2) if QUICK else (2048, 2)))
        figures["tasks_per_second"]["in_memory"] = small["tasks_per_second"]
    return figures


def s3() -> dict[str, Any]:
    """A bucket."""
    told = call("scale_s3", "s3", 6 if QUICK else 200)
    return {"s3_warm_recomputed": told.pop("warm_recomputed"), "s3": told}


def kills() -> dict[str, Any]:
    """Row 8."""
    told = call("scale_kills", "kills", EACH, 2)
    survived = 0 if told["runs_with_other_bytes"] else sum(told["kills"].values())
    return {"kills_survived": survived, "kills": told}


PARTS = {"equality": equality, "two": two, "many": many, "million": million, "s3": s3, "kills": kills}


def main() -> None:
    """Measure and write `scale.json`, or print the parts that were asked for."""
    asked = [part for part in sys.argv[1:] if not part.startswith("-")]
    figures: dict[str, Any] = {}
    for name in asked or PARTS:
        figures |= _rounded(PARTS[name]())
    if asked:
        print(json.dumps(figures, indent=2))
        return
    first = ("efficiency_2_workers", "efficiency_64_workers", "bytes_per_shard_through_scheduler", "tasks_per_second",
             "s3_warm_recomputed", "kills_survived")  # fmt: skip
    write("scale", {name: figures.pop(name) for name in first} | {"details": figures})


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
