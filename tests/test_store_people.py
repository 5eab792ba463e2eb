"""Several users and one store: a group that shares it, strangers who may only read, and one who keeps it private.

The users are real: children of this process with other user ids, so it needs root. They run what is imported already.
"""

from __future__ import annotations

import grp
import json
import os
import shutil
import signal
import stat
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import BUILD_ONLY, Workspace
from test_store_support import make_record, publish, skip_syncs
from typer.testing import CliRunner

from replaygen import modes
from replaygen.cli.app import app
from replaygen.errors import StoreError
from replaygen.plan import Recipe
from replaygen.runs import run
from replaygen.store import Store, fsops
from replaygen.store.sharing import keep_private, share, sharing_of

GROUP = 63990
KEY = make_record({"slice": 0}, {}).key

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to become other users"
)


@dataclass(frozen=True)
class Person:
    """A user of this machine; `umask` is the strictest that people have, so that nothing is shared by luck."""

    uid: int
    groups: tuple[int, ...] = (GROUP,)
    umask: int = 0o077


ANNE, BEN, STRANGER = Person(63991), Person(63992, umask=0o022), Person(63993, groups=())


class Child:
    """What a person does, in a process of its own."""

    def __init__(self, person: Person, act: Callable[[], Any]) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            return
        os.close(self._read)
        try:
            os.setgroups(person.groups)
            os.setgid(person.uid)
            os.setuid(person.uid)
            os.umask(person.umask)
            told = {"made": act()}
        except BaseException:
            told = {"raised": traceback.format_exc()}
        os.write(write, json.dumps(told).encode())
        os._exit(0)

    def kill(self) -> None:
        """As the kernel does it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._read)

    def result(self) -> Any:
        """What came of it; an error there is one here."""
        with open(self._read, "rb") as pipe:
            told = pipe.read()
        os.waitpid(self.pid, 0)
        assert told, "the child died"
        content = json.loads(told)
        assert "raised" not in content, content["raised"]
        return content["made"]


def does(person: Person, act: Callable[[], Any]) -> Any:
    """The result of what a person does."""
    return Child(person, act).result()


def refusal(act: Callable[[], Any]) -> str:
    """The StoreError of what must not be done, as text with its hint; a test fails where it is done."""
    try:
        act()
    except StoreError as error:
        return f"{error.what} {error.hint}"
    raise AssertionError("it was done")


@pytest.fixture(autouse=True)
def _without_syncs() -> Iterator[None]:
    fsops.trace = skip_syncs
    yield
    fsops.trace = None


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can pass, and Anne can write."""
    made = Path(tempfile.mkdtemp(prefix="replaygen-people-"))
    made.chmod(0o755)
    os.chown(made, ANNE.uid, ANNE.uid)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def shared(folder: Path) -> Path:
    """A store of Anne's that the group shares."""
    root = folder / "store"
    does(ANNE, lambda: share(Store(root).root, str(GROUP)).changed)
    return root


def odd_modes(root: Path, *, everyone: bool = False) -> list[str]:
    """What lies in a store and is not as the group needs it; what a process left unfinished begins with a dot."""
    found = []
    for path in [root, *(path for path in root.rglob("*") if not path.name.startswith("."))]:
        status = path.lstat()
        wanted = modes.folder_bits(everyone) if path.is_dir() else modes.file_bits(everyone)
        if stat.S_IMODE(status.st_mode) != wanted or status.st_gid != GROUP:
            found.append(f"{path.relative_to(root)} {stat.S_IMODE(status.st_mode):o} {status.st_gid}")
    return found


def work(root: Path, first: int, count: int) -> list[str]:
    """What a run does in a store: a lease, keys' locks, objects, records, unfinished work, a ref."""
    store, keys = Store(root), []
    with store.lease("work"):
        for number in range(first, first + count):
            key = make_record({"slice": number}, {}).key
            with store.lock(key, timeout=60):
                if store.status(key).state != "cached":
                    fsops.replace_file(store.partial(key) / "half", b"half")
                    publish(store, {"slice": number})
                    store.clear_partial(key)
            keys.append(key)
        store.write_ref("work", f"from {first}", {"slots": {str(i): key for i, key in enumerate(keys)}})
    return keys


def test_what_anybody_of_the_group_makes_is_the_groups(shared: Path) -> None:
    """Whatever the umask: each adopts, replaces and removes what the other made."""
    keys = does(ANNE, lambda: work(shared, 0, 8))
    assert does(BEN, lambda: work(shared, 4, 8)) != keys
    assert odd_modes(shared) == []

    def both() -> list[str]:
        store = Store(shared)
        record = store.get(keys[0])
        assert record is not None
        digest = record.output("images").digest
        store.put(store.read(digest))  # adopted: it counts as new, though it is another's
        path = store.open_object(digest)
        assert time.time() - path.stat().st_mtime < 600
        path.write_bytes(b"damaged")
        return [damage.name for damage in store.verify().damaged]

    old = time.time() - 3600
    for path in (shared / "objects").rglob("*"):
        os.utime(path, (old, old))
    assert len(does(BEN, both)) == 1
    assert does(ANNE, lambda: (work(shared, 0, 8), Store(shared).verify().ok)[1])
    store = Store(shared)
    assert {status.state for status in store.statuses(keys).values()} == {"cached"}
    does(BEN, lambda: Store(shared).write_ref("work", "from 0", {"slots": {}}))
    gone = does(BEN, lambda: list(Store(shared).gc().records))
    assert sorted(gone) == sorted(keys[:4])
    assert odd_modes(shared) == []


def test_one_of_the_group_is_killed_and_the_other_goes_on(shared: Path) -> None:
    """At 12 moments: the lock is free at once, what is left over is taken up, and gc removes it."""
    for moment in range(12):
        first = 100 * moment
        one = Child(ANNE if moment % 2 else BEN, lambda first=first: work(shared, first, 100))
        time.sleep(0.01 * (moment + 1))
        one.kill()
        other = BEN if moment % 2 else ANNE
        assert len(does(other, lambda first=first: work(shared, first, 10))) == 10
    does(BEN, lambda: Store(shared).gc().bytes)
    assert odd_modes(shared) == []
    assert does(ANNE, lambda: Store(shared).verify().ok)
    assert list((shared / "tmp").iterdir()) == []


def test_both_at_once_meet_no_closed_door(shared: Path) -> None:
    """New folders and lock files have their mode from the first moment: four processes race for each of them."""

    def race() -> int:
        store = Store(shared)
        for number in range(150):
            with store.lock(make_record({"slice": number}, {}).key, timeout=60):
                fsops.make_folder(shared / "partial" / f"{number:064x}")
                fsops.replace_file(shared / "partial" / f"{number:064x}" / "half", b"x")
            store.put(f"object {number}".encode())
            fsops.append_line(shared / f"lines-{number}", b"line\n")
        return os.getuid()

    children = [Child(person, race) for person in (ANNE, BEN, ANNE, BEN)]
    assert [child.result() for child in children] == [ANNE.uid, BEN.uid, ANNE.uid, BEN.uid]
    assert odd_modes(shared) == []
    assert all((shared / f"lines-{number}").read_bytes() == b"line\n" * 4 for number in range(150))


def test_a_stranger_is_kept_out_or_may_read(shared: Path) -> None:
    keys = does(ANNE, lambda: work(shared, 0, 3))
    assert "ermission" in does(STRANGER, lambda: refusal(lambda: Store(shared, readonly=True)))
    does(ANNE, lambda: share(shared, str(GROUP), everyone=True).changed)
    does(BEN, lambda: work(shared, 3, 3))
    assert odd_modes(shared, everyone=True) == []
    before = {path: path.lstat().st_mtime_ns for path in shared.rglob("*")}

    def reads() -> dict[str, Any]:
        store = Store(shared, readonly=True)
        record = store.get(keys[0])
        assert record is not None
        return {
            "states": [status.state for status in store.statuses(keys).values()],
            "read": len(store.read(record.output("images").digest)),
            "refs": len(list(store.refs())),
            "du": store.du().total > 0,
            "verify": store.verify().ok,
            "gc": len(store.gc(dry_run=True).records),
            "why": store.why(keys[0][:10]).key == keys[0],
            "tombstones": len(store.tombstones()),
        }

    assert does(STRANGER, reads) == {
        "states": ["cached"] * 3, "read": 12, "refs": 2, "du": True, "verify": True, "gc": 0, "why": True,
        "tombstones": 0,
    }  # fmt: skip
    for write in (
        lambda: Store(shared).put(b"new"), lambda: Store(shared).write_ref("a", "b", {}),
        lambda: Store(shared).lock(KEY).__enter__(), lambda: Store(shared).gc(),
        lambda: Store(shared, readonly=True).put(b"new"), lambda: share(shared, str(GROUP)),
    ):  # fmt: skip
        told = does(STRANGER, lambda write=write: refusal(write))
        assert "readonly=True" in told
    assert {path: path.lstat().st_mtime_ns for path in shared.rglob("*")} == before


def test_a_private_store_lets_nobody_in_until_it_is_shared_again(shared: Path) -> None:
    does(ANNE, lambda: work(shared, 0, 2))
    assert does(ANNE, lambda: keep_private(shared).kind) == "private"
    assert "ermission" in does(BEN, lambda: refusal(lambda: Store(shared)))
    does(ANNE, lambda: work(shared, 2, 2))
    assert does(ANNE, lambda: share(shared, str(GROUP)).kind) == "group"
    assert len(does(BEN, lambda: work(shared, 0, 6))) == 6
    assert odd_modes(shared) == []


def test_what_others_own_is_told(folder: Path) -> None:
    """A store that was used by two before it was shared: each has to say so for what is theirs."""
    root = folder / "store"
    does(ANNE, lambda: work(root, 0, 2))
    root.chmod(0o755)
    (root / "objects").chmod(0o777)
    does(BEN, lambda: (root / "objects" / "bens").write_bytes(b"x"))
    told = does(ANNE, lambda: [share(root, str(GROUP)).left_count, list(share(root, str(GROUP)).left)])
    assert told == [1, [str(root / "objects" / "bens")]]
    assert odd_modes(root) == ["objects/bens 644 63992"]
    assert does(BEN, lambda: share(root, str(GROUP)).left_count) == 0  # Anne's folder has its mode already
    assert odd_modes(root) == []


def test_outside_of_a_shared_folder_the_umask_decides(folder: Path) -> None:
    for person, wanted in ((ANNE, 0o600), (Person(ANNE.uid, umask=0o022), 0o644)):
        root = folder / f"store-{wanted:o}"
        does(person, lambda root=root: work(root, 0, 1))
        files = [path for path in root.rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {wanted}
        assert sharing_of(root).kind == ("private" if wanted == 0o600 else "umask")


def test_a_recipe_is_built_by_two_and_read_by_a_third(
    folder: Path, tiny_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very commands: Ben finds all that Anne made, a stranger plans and looks, and is told why not to run."""
    data = folder / "data"
    shutil.copytree(tiny_digits, data)
    for path in [data, *data.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    workspace = Workspace(folder / "work", data)
    recipe = workspace.recipe(BUILD_ONLY, "build")
    warm, root, there = folder / "warm", folder / "store", CliRunner()
    monkeypatch.setenv("HOME", str(folder / "nowhere"))
    commands = [
        ["plan", str(recipe), "--json"], ["cache", "ls", "--json"], ["cache", "du", "--json"],
        ["cache", "verify", "--json"], ["cache", "gc", "--dry-run", "--json"], ["cache", "why", KEY, "--json"],
    ]  # fmt: skip

    def command(given: list[str], at: Path) -> tuple[int, str]:
        done = there.invoke(app, [*given, "--cache", str(at)])
        return done.exit_code, done.output

    run(Recipe.load(recipe).plan(Store(warm)))  # all is imported now: the children cannot reach what only root can
    for given in commands:
        command(given, warm)
    does(ANNE, lambda: share(Store(root).root, str(GROUP), everyone=True).kind)
    assert does(ANNE, lambda: run(Recipe.load(recipe).plan(Store(root))).tally.made) > 0
    assert does(BEN, lambda: run(Recipe.load(recipe).plan(Store(root))).tally.made) == 0
    assert odd_modes(root, everyone=True) == []
    for given in commands[:-1]:
        code, output = does(STRANGER, lambda given=given: command(given, root))
        assert code == 0, output
        assert json.loads(output)
    planned = json.loads(does(STRANGER, lambda: command(commands[0], root))[1])
    assert {task["state"] for task in planned["tasks"]} == {"cached"}
    told = does(STRANGER, lambda: refusal(lambda: run(Recipe.load(recipe).plan(Store(root)))))
    assert "readonly=True" in told

    # what the stranger may read can be copied into a store of their own
    own = folder / "own"
    own.mkdir()
    os.chown(own, STRANGER.uid, STRANGER.uid)
    brings = ["cache", "bring", str(recipe), "--json", "--from"]
    command([*brings, str(root)], warm)
    tasks = len(planned["tasks"])
    before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    told = does(STRANGER, lambda: command([*brings, str(root)], own))
    assert json.loads(told[1])["records"] == tasks, told
    assert does(STRANGER, lambda: run(Recipe.load(recipe).plan(Store(own))).tally.made) == 0
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == before


def test_the_command_says_who_may(folder: Path) -> None:
    root, runner = folder / "store", CliRunner()

    def told(*given: str) -> dict[str, Any]:
        done = runner.invoke(app, ["cache", "share", "--cache", str(root), "--json", *given])
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.output))

    name = grp.getgrgid(0).gr_name
    assert told("--group", name, "--everyone")["kind"] == "group"  # a new store, made for the group
    assert told() == {"kind": "group", "group": name, "everyone": True, "changed": 0, "left": [], "left_count": 0}
    assert told("--private")["kind"] == "private"
    assert told()["kind"] == "private"
    for wrong in (["--private", "--everyone"], ["--everyone"], ["--group", "no-such-group"]):
        assert runner.invoke(app, ["cache", "share", "--cache", str(root), *wrong]).exit_code != 0
    assert "owner" in runner.invoke(app, ["cache", "share", "--cache", str(root)]).output
