"""An inpainter that goes from task to task: one server of our own serves many shards, and nothing is left of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import test_inpainters_lama as lama_itself
from test_stages_erase import CORNER, PLAIN, THROUGH, HandStage, World

from replaygen.inpainters.base import open_inpainter
from replaygen.inpainters.shelf import SHELF, Shelf
from replaygen.stages import STAGES

real, processes, wait = lama_itself.real, lama_itself.processes, lama_itself.wait
home, installed, state, weights = lama_itself.home, lama_itself.installed, lama_itself.state, lama_itself.weights


class Noted:
    """An inpainter that says when it was closed."""

    def __init__(self) -> None:
        self.opened = open_inpainter({}, {})
        self.closed = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.opened, name)

    def close(self) -> None:
        """Note it."""
        self.closed.set()


def test_a_shelf_holds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken is the taker's; what is replaced, cleared or left too long is closed; another name gets nothing."""
    shelf, one, other, last = Shelf(), Noted(), Noted(), Noted()
    assert shelf.take("a") is None
    shelf.put("a", one)
    assert shelf.take("b") is None
    assert shelf.take("a") is one
    assert shelf.take("a") is None
    shelf.put("a", one)
    shelf.put("b", other)
    assert (one.closed.is_set(), other.closed.is_set()) == (True, False)
    assert shelf.take("a") is None
    shelf.clear()
    shelf.clear()
    assert other.closed.is_set()
    monkeypatch.setattr("replaygen.inpainters.shelf.IDLE", 0.05)
    shelf.put("c", last)
    assert last.closed.wait(10)
    assert shelf.take("c") is None


def test_nobody_closes_what_was_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of what lies on the shelf stops while it is in use."""
    monkeypatch.setattr("replaygen.inpainters.shelf.IDLE", 0.2)
    shelf, one = Shelf(), Noted()
    shelf.put("a", one)
    assert shelf.take("a") is one
    assert not one.closed.wait(0.5)


def test_a_fork_leaves_the_parents_inpainter_alone() -> None:
    """The server is the parent's: a child neither takes nor closes it."""
    shelf, one = Shelf(), Noted()
    shelf.put("a", one)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of forks beside threads
        child = os.fork()
    if child == 0:
        taken = shelf.take("a")
        shelf.clear()
        os._exit(0 if taken is None and not one.closed.is_set() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shelf.take("a") is one


CHILD = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import test_inpainters_shelf as here

here.STAGES[here.HandStage.name] = here.HandStage
made = here.World(Path(sys.argv[2]), (here.CORNER,)).erased(**here.lama(Path(sys.argv[3])))
assert made.counts.accepted == 1, made.counts
print(here.behind().server.pid, flush=True)
"""


def lama(weights: Path) -> dict[str, Any]:
    """The changes of a spec whose server is our own."""
    return {"backend": "lama", "weights": str(weights), "sha256": lama_itself.sha256(weights)}


def behind() -> Any:
    """The backend that waits for the next task."""
    assert SHELF._kept is not None
    return SHELF._kept[2]._backend  # type: ignore[attr-defined]


@real
def test_one_server_serves_many_tasks(
    home: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second shard finds the server of the first, and has the bytes that it has with a server of its own; another
    spec's replaces it; when the process ends nothing is left."""
    monkeypatch.setitem(STAGES, HandStage.name, HandStage)
    worlds = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        worlds.append(World(tmp_path / name, (PLAIN, CORNER) if name == "a" else (PLAIN, THROUGH)))
    worlds[0].erased(**lama(weights))
    first = behind().server.pid
    record = worlds[1].erased(**lama(weights))
    digests = [(output.name, output.digest) for output in record.outputs]
    assert behind().server.pid == first
    assert behind().starts == 1
    assert record.provenance["inpainter"]["lama-cleaner"]
    SHELF.clear()
    assert wait(lambda: not processes(first))
    worlds[1].store.forget(record.key)
    alone = worlds[1].erased(**lama(weights))
    assert [(output.name, output.digest) for output in alone.outputs] == digests
    second = behind().server.pid
    assert second != first
    worlds[0].erased(**lama(weights), most=0.9)
    assert behind().server.pid != second
    assert wait(lambda: not processes(second))
    SHELF.clear()
    (tmp_path / "c").mkdir()
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path / "c"), str(weights)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert wait(lambda: not processes(int(done.stdout)))
