"""A store in a bucket, on moto's S3 server on loopback: cold, warm, two runs at once, a kill in between.

Every run is a process of its own, on a "machine" of its own where that is asked for: with another local folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.testing import toys

if TYPE_CHECKING:
    from replaygen.plan import Plan, Task
    from replaygen.runs.execute import Outcome

BUCKET = "bucket"


def s3(folder: str, shards: int) -> dict[str, Any]:
    """All of it, for `shards` shards and as many that are made of them."""
    here, tasks = Path(folder), 2 * shards
    truth = _run(_begin(str(here / "local"), shards, here / "none"))
    with _server() as environment:
        os.environ.update(environment)
        address = f"s3://{BUCKET}"
        cold = _run(_begin(f"{address}/one", shards, here / "a"))
        warm = _run(_begin(f"{address}/one", shards, here / "a"))
        elsewhere = _run(_begin(f"{address}/one", shards, here / "b"))
        both = [_begin(f"{address}/two", shards, here / name) for name in ("c", "d")]
        pair = [_run(process) for process in both]
        killed = _begin(f"{address}/three", shards, here / "e")
        standing = _kill_after(killed, tasks // 2)
        resumed = _run(_begin(f"{address}/three", shards, here / "f"))
    same = all(one["bytes"] == truth["bytes"] for one in (cold, warm, elsewhere, *pair, resumed))
    return {
        "shards": tasks, "same_bytes_as_a_folder": same,
        "seconds": {"folder": truth["seconds"], "cold": cold["seconds"], "warm": warm["seconds"],
                    "warm_elsewhere": elsewhere["seconds"]},
        "warm_recomputed": warm["made"] + elsewhere["made"],
        "two_at_once": {"made": sum(one["made"] for one in pair), "adopted": sum(one["adopted"] for one in pair),
                        "cached": sum(one["cached"] for one in pair)},
        "killed": {"told": standing, "cached": resumed["cached"], "made_again": resumed["made"],
                   "of": tasks},
        "requests_per_shard": {
            name: {kind: round(count / tasks, 3) for kind, count in one["requests"].items()} | {
                "all": round(sum(one["requests"].values()) / tasks, 2)}
            for name, one in (("cold", cold), ("warm", warm), ("warm_elsewhere", elsewhere))
        },
    }  # fmt: skip


@contextmanager
def _server() -> Iterator[dict[str, str]]:
    """moto in a process of its own, with one bucket: the environment that leads to it."""
    process = subprocess.Popen(
        [sys.executable, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.communicate(timeout=60)


def serve() -> None:
    """Be the server, until standard input ends."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test-id",
        "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }  # fmt: skip
    os.environ.update(environment)
    import fsspec

    fsspec.filesystem("s3").call_s3("create_bucket", Bucket=BUCKET)
    print(json.dumps(environment), flush=True)
    sys.stdin.read()
    server.stop()


def _begin(address: str, shards: int, machine: Path) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "run", address, str(shards)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "REPLAYGEN_STORES": str(machine)}
    )


def _run(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=1800)
    if process.returncode != 0:
        raise RuntimeError(f"a run ended with {process.returncode}")
    told: dict[str, Any] = json.loads(output.splitlines()[-1])
    return told


def _kill_after(process: subprocess.Popen[str], count: int) -> int:
    """SIGKILL once so many tasks are done; how many were told."""
    assert process.stdout is not None
    told = 0
    for line in process.stdout:
        told += line == "done\n"
        if told == count:
            process.send_signal(signal.SIGKILL)
    process.wait()
    return told


class _Told:
    """A line for each task that is done."""

    def start(self, plan: Plan) -> None:
        """Nothing."""

    def done(self, task: Task, outcome: Outcome) -> None:
        """Say so."""
        print("done", flush=True)

    def failed(self, task: Task, error: BaseException, again: bool) -> None:
        """Nothing fails here."""
        raise error

    def note(self, message: str, **fields: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def one_run(address: str, shards: int) -> dict[str, Any]:
    """Run the toys into a store: what was made, seconds, requests, and a digest of all that stands."""
    from replaygen.runs import run
    from replaygen.store import Store

    toys.register()
    first = [toys.toy(toys.ShardStage, number, bytes=200) for number in range(shards)]
    second = [toys.toy(toys.ShardStage, number, [task], bytes=200, name="of-") for number, task in enumerate(first)]
    began = time.perf_counter()
    store = Store(address)
    done = run(toys.toy_plan(store, [*first, *second]), progress=_Told())
    seconds, requests = time.perf_counter() - began, dict(store.requests)
    digest = hashlib.sha256()
    for task in (*first, *second):
        record = store.get(task.key)
        assert record is not None
        digest.update(record.outputs_digest.encode())
    return {
        "made": done.tally.made, "adopted": done.tally.adopted, "cached": done.tally.cached,
        "seconds": round(seconds, 2), "requests": requests, "bytes": digest.hexdigest(),
    }  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        print(json.dumps(one_run(sys.argv[2], int(sys.argv[3]))))
