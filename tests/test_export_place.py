"""All or nothing: the folder of an export is new, complete, durable, and nobody else's."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Workspace
from test_export_peers import KEPT
from test_export_support import contents, planned

from replaygen.errors import ReplaygenError
from replaygen.exports import export
from replaygen.exports.choose import choose
from replaygen.exports.place import MARK, NEW, new_folder
from replaygen.plan import Plan
from replaygen.runs import run
from replaygen.store import fsops
from replaygen.store.fsops import Op

KILLED = """
import os, sys
from pathlib import Path
from replaygen.exports.place import new_folder, write
with new_folder(Path(sys.argv[1])) as folder:
    write(folder / "images" / "half.jpg", b"half")
    os._exit(9)
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> Plan:
    """Exemplars of a recipe that trains nothing."""
    return run(planned(Workspace(tmp_path_factory.mktemp("kept") / "work", tiny_digits), KEPT)).plan


def test_nothing_is_overwritten(kept: Plan, tmp_path: Path) -> None:
    """A file, a folder, a broken link: what is there stays as it is."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(ReplaygenError, match="something is there already"):
            export(kept, "voc", tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ReplaygenError, match="no such folder"):
        export(kept, "voc", tmp_path / "a" / "b")


def test_an_export_that_fails_leaves_nothing(kept: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged object in the middle: the folder is not there, and neither is a part of it."""
    chosen = choose(kept)
    victim = kept.store.open_object(chosen.sets[-1][1].manifest["shards"][0]["images"])
    good = victim.read_bytes()
    os.chmod(victim, 0o644)
    victim.write_bytes(good[:600] + bytes([good[600] ^ 1]) + good[601:])
    try:
        with pytest.raises(ReplaygenError):
            export(kept, "webdataset", tmp_path / "out")
    finally:
        kept.store.put(good)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_was_killed_is_begun_anew(kept: Plan, tmp_path: Path) -> None:
    """What a killed export left is removed; of two at once the second is refused and harms nothing."""
    child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], capture_output=True)
    assert child.returncode == 9, child.stderr
    assert sorted(contents(tmp_path / ".out.part")) == [MARK, f"{NEW}/images/half.jpg"]
    done = export(kept, "folders", tmp_path / "out")
    assert not (done.out / "images" / "half.jpg").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with new_folder(tmp_path / "other") as folder:
        (folder / "mine").touch()
        with (
            pytest.raises(ReplaygenError, match="another export to this place is running"),
            new_folder(tmp_path / "other"),
        ):
            pass
        assert (folder / "mine").exists()
    assert (tmp_path / "other" / "mine").exists()


def test_a_lock_is_let_go_when_its_holder_is_gone(tmp_path: Path) -> None:
    """The kernel frees it, so an export that died holds nobody up."""
    part = tmp_path / ".out.part"
    part.mkdir()
    held = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ReplaygenError), new_folder(tmp_path / "out"):
        pass
    os.close(held)
    with new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_dir()


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    """What has the name of an unfinished export but not its mark is not touched, whatever it is."""
    part = tmp_path / ".out.part"
    for make in (lambda: (part / NEW).mkdir(parents=True), lambda: part.write_text("mine"),
                 lambda: part.symlink_to(tmp_path / "theirs")):  # fmt: skip
        make()
        (tmp_path / "theirs").mkdir(exist_ok=True)
        with pytest.raises(ReplaygenError) as error, new_folder(tmp_path / "out"):
            pass
        assert error.value.hint == "move it away, or name another --out"
        assert os.path.lexists(part)
        part.rename(tmp_path / f"kept-{len(list(tmp_path.iterdir()))}")
    (part).mkdir()
    with new_folder(tmp_path / "out"):
        (part / "mine").write_text("mine")
    assert (part / "mine").read_text() == "mine"
    assert (tmp_path / "out").is_dir()


def test_it_has_its_name_when_all_of_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder is synced before the folder is renamed, and its parent after."""
    ops: list[Op] = []

    def seen(op: Op, act: Callable[[], None]) -> None:
        act()
        ops.append(op)

    with new_folder(tmp_path / "out") as folder:
        (folder / "a" / "b").mkdir(parents=True)
        for path in (folder / "one", folder / "a" / "two", folder / "a" / "b" / "three"):
            path.write_bytes(b"1")
        monkeypatch.setattr(fsops, "trace", seen)
    (at,) = [i for i, op in enumerate(ops) if op.kind == "rename"]
    assert ops[at].target == tmp_path / "out"
    before = {(op.kind, op.path.relative_to(folder).as_posix()) for op in ops[:at]}
    assert before == {("fsync", "one"), ("fsync", "a/two"), ("fsync", "a/b/three"), ("fsync_dir", "a/b"),
                      ("fsync_dir", "a"), ("fsync_dir", ".")}  # fmt: skip
    assert (ops[at + 1].kind, ops[at + 1].path) == ("fsync_dir", tmp_path)


def test_what_the_disk_refuses_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without locks is not "another export"; what cannot be removed is told with its place."""

    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", no_locks)
        with pytest.raises(ReplaygenError, match="cannot lock the place of the export: Operation not supported"):
            new_folder(tmp_path / "out").__enter__()
    assert list(tmp_path.iterdir()) == []
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], capture_output=True)

    def refuse(op: Op, act: Callable[[], None]) -> None:
        raise PermissionError(13, "Permission denied", str(op.path))

    with monkeypatch.context() as patched:
        patched.setattr(fsops, "trace", refuse)
        with pytest.raises(ReplaygenError, match="cannot write the export: Permission denied") as error:
            new_folder(tmp_path / "out").__enter__()
    assert error.value.where.endswith("half.jpg")
