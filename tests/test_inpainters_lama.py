"""lama-cleaner's real server in its own environment, on tiny TorchScript weights that misbehave on request.

These run where the environment is: `replaygen doctor --install lama` makes it, in a minute. Elsewhere they are left to
`make soak`, which makes one for itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replaygen.errors import ModelError, RecipeError
from replaygen.inpainters import lama_env, lama_server
from replaygen.inpainters.base import Checked, Failure, open_inpainter
from replaygen.inpainters.lama import OwnLama, check_weights
from replaygen.inpainters.lama_wire import Wire
from replaygen.inpainters.specs import EraseSpec

HOME = lama_env.environment()
real = pytest.mark.skipif(False, reason="") if HOME.ready else pytest.mark.soak

TINY_LAMA = """
import sys
import torch


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(4, 3, 33, padding=16, bias=False)
        torch.nn.init.uniform_(self.mix.weight, 0.0, 1.0)

    def forward(self, image, mask):
        assert image.dim() == 4 and image.shape[1] == 3 and image.shape[2] % 8 == 0 and image.shape[3] % 8 == 0
        assert mask.dtype == torch.int64 and mask.shape[1] == 1 and int(mask.max()) <= 1
        asked = int(image[0, :, 0, 0].sum() * 255 + 0.5)
        if asked == 765:
            return image * float("nan")
        if asked == 764:
            raise RuntimeError("as asked")
        while asked == 763:
            image = image * 1.0
        filled = self.mix(torch.cat([image * (1 - mask), mask.to(image.dtype)], 1))
        return filled / filled.amax()


torch.manual_seed(0)
torch.jit.script(Tiny()).save(sys.argv[1])
"""
NAN, RAISE, HANG = (255, 255, 255), (255, 255, 254), (255, 254, 254)


def scene(corner: tuple[int, int, int] = (9, 9, 9), height: int = 61, width: int = 83) -> tuple[Any, Any]:
    """A lively picture whose first pixel tells the weights what to do, and a hole."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[0, 0] = corner
    y, x = np.mgrid[:height, :width]
    return image, (y - 30) ** 2 + (x - 40) ** 2 < 400


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny TorchScript weights; scripting warns, and is done elsewhere."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    script = path.with_suffix(".py")  # TorchScript reads its source
    script.write_text(TINY_LAMA)
    subprocess.run([sys.executable, "-W", "ignore", str(script), str(path)], check=True)
    return path


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment: the one that is there, or one made now."""
    if HOME.ready:
        return HOME.path
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPLAYGEN_STATE", str(tmp_path_factory.mktemp("made")))
        return lama_env.install(say=lambda line: None).path


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv("REPLAYGEN_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / "state"


@pytest.fixture
def home(state: Path, installed: Path) -> Path:
    """The real environment, seen from the test's own state folder."""
    (state / "environments").mkdir(parents=True)
    (state / "environments" / "lama").symlink_to(installed)
    return state


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def own(weights: Path, timeout: float = 30.0, **where: Any) -> tuple[Checked, OwnLama]:
    """An inpainter with a server of its own, and what is behind it."""
    spec = {"backend": "lama", "sha256": sha256(weights)}
    opened = open_inpainter(spec, {"weights": str(weights), "timeout": timeout, **where})
    assert isinstance(opened, Checked)
    behind = opened._backend
    assert isinstance(behind, OwnLama)
    return opened, behind


def processes(watcher: int) -> list[int]:
    """The watching process and the server, those that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if (int(folder.name) == watcher or int(stat[1]) == watcher) and stat[0] != "Z":
            found.append(int(folder.name))
    return sorted(found)


def wait(until: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not until() and time.monotonic() < deadline:
        time.sleep(0.05)
    return until()


def test_lama_is_tested_where_it_is_installed() -> None:
    """Says how, where it is not."""
    if not HOME.ready:
        pytest.skip(f"lama-cleaner's environment is {HOME.why}; to test it: {lama_env.HINT}")


@real
def test_a_real_server_fills_fails_and_comes_back(home: Path, weights: Path) -> None:
    """A life of it: odd sides, NaN, an exception, a kill, a hang; then nothing is left."""
    image, hole = scene()
    inpainter, behind = own(weights)
    with inpainter:
        filled = inpainter.fill(image, hole)
        assert np.array_equal(filled[~hole], image[~hole])
        assert inpainter.stray.share == 0.0
        assert len(np.unique(filled[hole], axis=0)) > 50
        for corner, reason in ((NAN, "inpainter-black"), (RAISE, "inpainter-refused")):
            bad, good = inpainter.fill_many([scene(corner)[0], image], [hole, hole])
            assert isinstance(bad, Failure)
            assert bad.reason == reason
            assert np.array_equal(good, filled)
        assert behind.server is not None
        with pytest.raises(Failure, match="403"):  # another program of this machine has not the token
            Wire(behind.server.wire.place).inpaint(image, hole, 10.0)
        assert behind.starts == 1

        before = processes(behind.server.pid)
        assert len(before) == 2
        server = next(one for one in before if one != behind.server.pid)
        killer = threading.Timer(0.3, os.kill, (server, signal.SIGKILL))
        killer.start()
        answers = inpainter.fill_many([image] * 20, [hole] * 20)
        killer.join()
        inpainter.fill(image, hole)
        assert all(np.array_equal(answer, filled) for answer in answers)
        assert behind.starts == 2

        behind._timeout = 2.0
        hung = inpainter.fill_many([scene(HANG)[0]], [hole])[0]
        assert isinstance(hung, Failure)
        assert hung.reason == "inpainter-timeout"
        behind._timeout = 30.0
        assert np.array_equal(inpainter.fill(image, hole), filled)
        assert behind.starts == 3
        folder, last = behind._folder, behind.server.pid
        assert folder is not None
        assert inpainter.versions()["lama-cleaner"] == "1.2.5"
    assert not folder.path.exists()
    assert not processes(last)
    assert len(list((home / "logs").glob("lama-*.log"))) == 3
    with pytest.raises(ModelError, match="closed"):
        inpainter.fill(image, hole)


PARENT = """
import sys, time
import numpy as np
from replaygen.inpainters.base import open_inpainter

rng = np.random.default_rng(0)
image, hole = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8), np.zeros((40, 40), dtype=bool)
hole[10:30, 10:30] = True
inpainter = open_inpainter({"backend": "lama", "sha256": sys.argv[2]}, {"weights": sys.argv[1]})
inpainter.fill(image, hole)
print(inpainter._backend.server.pid, inpainter._backend._folder.path, flush=True)
time.sleep(600)
"""


@real
def test_a_server_dies_with_a_parent_that_is_killed(home: Path, weights: Path) -> None:
    """SIGKILL leaves no time to tidy up: no process and no copy of the weights stay behind."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(weights), sha256(weights)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent.stdout:
        pid, folder = parent.stdout.readline().split()
        assert len(processes(int(pid))) == 2
        parent.kill()
        parent.wait()
    assert wait(lambda: not processes(int(pid)))
    assert wait(lambda: not Path(folder).exists())


@real
def test_weights_that_cannot_be_loaded_are_not_deleted(home: Path, tmp_path: Path) -> None:
    """lama-cleaner deletes what it cannot load; it had a copy. The error shows its last words and where the rest is."""
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no TorchScript" * 100)
    image, hole = scene()
    inpainter, _ = own(broken)
    with inpainter, pytest.raises(ModelError, match="does not start") as error:
        inpainter.fill_many([image], [hole])
    assert broken.is_file()
    assert Path(error.value.where).is_file()


@real
def test_a_server_that_does_not_come_up_in_time_is_given_up(home: Path, weights: Path) -> None:
    """And is gone."""
    image, hole = scene()
    inpainter, _ = own(weights, start_timeout=0.5)
    with inpainter, pytest.raises(ModelError, match=r"does not answer after 0.5 s"):
        inpainter.fill(image, hole)


def test_without_the_environment_the_error_says_how_to_get_it(state: Path, weights: Path) -> None:
    """Before anything is copied or started."""
    with pytest.raises(ModelError, match="not installed") as missing:
        own(weights)
    assert missing.value.hint == "replaygen doctor --install lama"
    (state / "environments" / "lama" / "bin").mkdir(parents=True)
    with pytest.raises(ModelError, match="half-made"):
        own(weights)


def test_only_weights_that_the_user_accepted_run(weights: Path, tmp_path: Path) -> None:
    """A TorchScript file is a program."""
    with pytest.raises(RecipeError, match="program") as unknown:
        lama_server.accepted(weights, None)
    assert sha256(weights) in unknown.value.hint
    with pytest.raises(ModelError, match="was accepted"):
        lama_server.accepted(weights, "0" * 64)
    with pytest.raises(ModelError, match="no such weights"):
        lama_server.accepted(tmp_path / "none.pt", "0" * 64)
    assert lama_server.accepted(weights, sha256(weights).upper()).sha256 == sha256(weights)


def test_weights_are_looked_at_before_any_work(weights: Path, tmp_path: Path) -> None:
    """From the recipe's table, whether or not the environment is there; nothing is asked of other backends."""
    told = {"backend": "lama", "sha256": sha256(weights)}
    check_weights(EraseSpec(**told, weights=str(weights)))
    check_weights(EraseSpec(**told, server="http://127.0.0.1:9"))
    check_weights(EraseSpec())
    with pytest.raises(ModelError, match="no such weights"):
        check_weights(EraseSpec(**told, weights=str(tmp_path / "none.pt")))
    with pytest.raises(ModelError, match="was accepted"):
        check_weights(EraseSpec(backend="lama", sha256="0" * 64, weights=str(weights)))
    if os.geteuid() != 0:
        (tmp_path / "mine.pt").touch(mode=0)
        with pytest.raises(ModelError, match="cannot be read"):
            check_weights(EraseSpec(**told, weights=str(tmp_path / "mine.pt")))


def test_weights_that_change_after_they_were_accepted_do_not_run(state: Path, tmp_path: Path, weights: Path) -> None:
    """The copy is hashed while it is made."""
    mine = tmp_path / "mine.pt"
    mine.write_bytes(weights.read_bytes())
    taken = lama_server.accepted(mine, sha256(mine))
    mine.write_bytes(b"another program")
    folder = lama_server.Folder()
    with pytest.raises(ModelError, match="changed"):
        folder.take(taken)
    assert not (folder.path / "weights.pt").exists()
    folder.remove()


def test_weights_or_a_server(weights: Path) -> None:
    """One of them."""
    for where in ({}, {"weights": str(weights), "server": "http://127.0.0.1:1"}):
        with pytest.raises(RecipeError, match="LaMa"):
            open_inpainter({"backend": "lama"}, where)


def test_folders_of_the_dead_are_removed(state: Path) -> None:
    """One that is held stays, and so does one that was made just now."""
    held, dead, new = lama_server.Folder(), lama_server.Folder(), lama_server.Folder()
    for folder in (dead, new):
        os.close(folder.lock)
        folder.lock = -1
    for folder in (held, dead):
        os.utime(folder.path, (0, 0))
    lama_server._sweep()
    assert [one.path.exists() for one in (held, dead, new)] == [True, False, True]
    held.remove()
    new.remove()


def test_doctor_tells_of_the_environment(state: Path, tmp_path: Path) -> None:
    """Absent, half-made, ready, changed since, and broken; nothing is imported from it."""
    assert lama_env.environment().why == "not installed"
    at = state / "environments" / "lama"
    packages = at / "lib" / "python3.11" / "site-packages"
    shared = tmp_path / "site-packages"
    for folder, name, version in ((packages, "lama_cleaner", "1.2.5"), (shared, "torch", "2.9.0")):
        (folder / f"{name}-{version}.dist-info").mkdir(parents=True)
        (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    (at / "bin").mkdir()
    (at / "bin" / "python").symlink_to(sys.executable)
    assert lama_env.environment().why == "half-made"
    had = {"lama-cleaner": "1.2.5", "torch": "2.8.0"}
    (at / "replaygen.json").write_text(json.dumps({"shared": [str(shared)], "versions": had}))
    told = subprocess.run(
        [sys.executable, "-m", "replaygen", "doctor", "--json"], capture_output=True, text=True, check=True
    )
    found = json.loads(told.stdout)["lama"]
    assert found["ready"]
    assert found["versions"] == {"lama-cleaner": "1.2.5", "torch": "2.9.0"}
    assert found["changed"] == ["torch"]
    (shared / "torch-2.9.0.dist-info" / "METADATA").unlink()
    (shared / "torch-2.9.0.dist-info").rmdir()
    assert lama_env.environment().why == "torch gone"
    (at / "bin" / "python").unlink()
    assert lama_env.environment().why == "its interpreter is gone"


def test_an_installation_that_fails_leaves_nothing_ready(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's words are in a file that the error names; the next attempt begins anew."""
    monkeypatch.setattr(lama_env, "_WHEEL", "sha256:" + "0" * 64)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    steps: list[str] = []
    with pytest.raises(ModelError, match="cannot be made") as failed:
        lama_env.install(say=steps.append)
    assert "ERROR" in Path(failed.value.where).read_text()
    assert lama_env.environment().why == "half-made"
    assert len(steps) == 2


def test_pip_sees_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed and imported sees neither keys nor tokens; where nothing is fetched, not even proxies."""
    monkeypatch.setenv("FLICKR_API_SECRET", "hush")
    monkeypatch.setenv("HF_TOKEN", "hush")
    monkeypatch.setenv("https_proxy", "http://proxy.example:1")
    monkeypatch.setenv("PIP_CERT", "of a company")
    for fetching in (True, False):
        log = tmp_path / f"{fetching}.log"
        lama_env._do([sys.executable, "-I", "-c", "import os; print(*os.environ.items())"], log, fetching=fetching)
        seen = log.read_text()
        assert "hush" not in seen
        assert "PATH" in seen
        assert ("proxy.example" in seen, "of a company" in seen) == (fetching, fetching)


def test_doctor_installs_lama_and_nothing_else() -> None:
    """An unknown name, or --full alone, is an error with the way out."""
    for arguments in (["--install", "photoshop"], ["--full"]):
        told = subprocess.run(
            [sys.executable, "-m", "replaygen", "doctor", *arguments], capture_output=True, text=True, check=False
        )
        assert told.returncode != 0
        assert "doctor --install lama" in told.stderr
