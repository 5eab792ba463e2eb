"""What the tests of stores in buckets share: moto's server, machines (each with a local folder of its own), children.

Run as a script it is a process of its own: `python test_store_s3_support.py <verb> <address> [...]`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_store_support import make_record

from replaygen.errors import ObjectDamaged, ObjectMissing
from replaygen.store import Store

BUCKET = "bucket"


@contextmanager
def bucket_server() -> Iterator[dict[str, str]]:
    """moto's S3 on loopback with one bucket: the environment that leads to it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test-id",
        "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }  # fmt: skip
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            bucket_files().call_s3("create_bucket", Bucket=BUCKET)
            yield environment
    finally:
        server.stop()


def bucket_files() -> Any:
    """s3fs's file system, for looking into the bucket behind the store's back."""
    import fsspec

    return fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)


def names(address: str) -> list[str]:
    """Every name of a store in the bucket."""
    above = address.removeprefix("s3://") + "/"
    return sorted(name.removeprefix(above) for name in bucket_files().find(address))


class Machines:
    """Machines that share one bucket: each has its own local folders, as far as the store can see."""

    def __init__(self, folder: Path, address: str, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.address = address
        self._patch = patch

    def use(self, name: str) -> None:
        """From now on this process, and the children it starts, are on machine `name`."""
        self._patch.setenv("REPLAYGEN_STORES", str(self.folder / name))

    def store(self, name: str, *, readonly: bool = False) -> Store:
        """The store as machine `name` opens it."""
        self.use(name)
        return Store(self.address, readonly=readonly)


def child(verb: str, address: str, *args: str) -> subprocess.Popen[str]:
    """A process that runs one of the functions below on this machine."""
    command = [sys.executable, "-W", "error", __file__, verb, address, *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Any:
    """What it printed last, as JSON, once it has ended well."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return json.loads(output.splitlines()[-1])


def hold(address: str, key: str) -> None:
    """Take a key's lock and a lease, and never let go."""
    store = Store(address)
    with store.lease("holder"), store.lock(key):
        print("held", flush=True)
        time.sleep(600)


def tasks(address: str, count: int, pause: float) -> dict[str, int]:
    """What a run does: lease, look, make what is missing, read it, ref."""
    store = Store(address)
    made = gone = 0
    keys = [make_record({"slice": number}, {}).key for number in range(count)]
    with store.lease("run", keys):
        standing = store.statuses(keys)
        for number, key in enumerate(keys):
            if standing[key].state == "cached":
                continue
            with store.lock(key):
                if store.status(key).state == "cached":
                    continue
                output = store.put(f"slice {number} ".encode() * 50)
                print("put", flush=True)
                time.sleep(pause)
                store.publish(make_record({"slice": number}, {"images": output}))
                made += 1
        for key in keys:
            record = store.get(key)
            try:
                store.read(record.output("images").digest if record else "0" * 64)
            except (ObjectMissing, ObjectDamaged):
                gone += 1
        store.write_ref("shared", "main", {"slots": {str(number): key for number, key in enumerate(keys)}})
    return {"made": made, "gone": gone}


def main() -> None:
    verb, address, *args = sys.argv[1:]
    if verb == "hold":
        hold(address, args[0])
    elif verb == "tasks":
        print(json.dumps(tasks(address, int(args[0]), float(args[1]))))


if __name__ == "__main__":
    main()
