"""A lama-cleaner server of our own: started in its environment, asked whether it is well, stopped with us.

The weights are code: they are copied into a private folder while their sha256 is taken, and the copy is what runs, if
it is what was accepted. (lama-cleaner deletes weights that it cannot load; it only ever sees the copy.)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from replaygen.errors import ModelError, RecipeError
from replaygen.inpainters.answers import Failure
from replaygen.inpainters.lama_env import Environment, needed, state_root
from replaygen.inpainters.lama_wire import Gone, Wire

START = 180.0  # seconds within which a server must answer; 8 to 15 where nobody else wants the machine
_ASK = 5.0  # seconds for one look whether it is well
_LOGS = 20  # files of earlier servers that are kept
_PREFIX = "replaygen-lama-"
_CHILD = Path(__file__).with_name("lama_child.py")
_PASSED_ON = (
    "PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
)  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """A TorchScript file by its name, and the sha256 under which it may run."""

    path: Path
    sha256: str


def accepted(path: Path, sha256: str | None) -> Weights:
    """The weights, if the user has accepted a sha256 and the file has it.

    Raises:
        RecipeError: no sha256 was accepted. ModelError: no such file, none that can be read, or it has another.
    """
    try:
        if not path.is_file():
            raise ModelError("no such weights of LaMa", where=str(path), hint="weights = a TorchScript file")
        with path.open("rb") as read:
            found = hashlib.file_digest(read, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"the weights of LaMa cannot be read: {error.strerror}", where=str(path), hint="may you read that file?"
        ) from None
    if not sha256:
        raise RecipeError(
            "these weights are a program that would run here, and no sha256 says that it may", where=str(path),
            hint=f'if you trust where the file is from, write sha256 = "{found}" in the recipe',
        )  # fmt: skip
    if found != sha256.lower():
        raise ModelError(
            f"the weights have sha256 {found}, and {sha256} was accepted", where=str(path),
            hint="give the file that was meant, or accept this one's sha256 if you trust where it is from",
        )  # fmt: skip
    return Weights(path, found)


class Folder:
    """A private folder for a server's copy of the weights; locked while anybody uses it, so that what a killed machine
    left behind is recognised and removed."""

    def __init__(self) -> None:
        _sweep()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.md5 = ""

    def take(self, weights: Weights) -> Path:
        """The copy of the weights, made anew where it is missing.

        Raises:
            ModelError: the file is not any more what was accepted.
        """
        copy = self.path / "weights.pt"
        if not copy.is_file() or not self.md5:
            sha256, self.md5 = _copy(weights.path, copy)
            if sha256 != weights.sha256:
                copy.unlink()
                raise ModelError("the weights changed while they were used", where=str(weights.path))
        return copy

    def remove(self) -> None:
        """With all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.lock >= 0:
            os.close(self.lock)
        self.lock = -1


class Server:
    """A running server, ready to be asked.

    Raises:
        ModelError: it did not start; the error names the file with its words.
    """

    def __init__(self, folder: Folder, weights: Weights, *, device: str, threads: int, start: float = START) -> None:
        home = needed()
        copy = folder.take(weights)
        token = secrets.token_urlsafe(24)
        self.log = _new_log()
        self._pipe = -1
        watched, self._pipe = os.pipe()
        try:
            with socket.create_server(("127.0.0.1", 0), backlog=128) as listening, self.log.open("wb") as words:
                self.wire = Wire(f"http://127.0.0.1:{listening.getsockname()[1]}", token)
                told = [os.getpid(), watched, listening.fileno(), folder.path, device.partition(":")[0], threads]
                self._process = subprocess.Popen(
                    [str(home.python), "-I", str(_CHILD), *map(str, told)],
                    stdin=subprocess.DEVNULL, stdout=words, stderr=words, cwd="/", start_new_session=True,
                    pass_fds=[watched, listening.fileno(), folder.lock],
                    env={**_environment(folder.path, copy, folder.md5, token, threads), **_one_gpu(device)},
                )  # fmt: skip
        except OSError as error:
            os.close(self._pipe)
            raise ModelError(f"lama-cleaner cannot be started: {error.strerror}", where=str(home.python)) from None
        finally:
            os.close(watched)
        try:
            self._wait(time.monotonic() + start, start)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Of the process that watches over the server; both are in its process group."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Kill it: it has nothing to tidy up."""
        if self._pipe < 0:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        os.close(self._pipe)
        self._pipe = -1

    def _wait(self, deadline: float, start: float) -> None:
        while True:
            if not self.alive():
                raise self._no_start(f"it ended with exit status {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._no_start(f"it does not answer after {start:g} s")
            try:
                if self.wire.model(_ASK) == "lama":
                    return
            except TimeoutError:
                continue
            except (Gone, Failure):
                time.sleep(0.1)

    def _no_start(self, why: str) -> ModelError:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        last = f" (last words: {lines[-1].strip()[:200]})" if lines else ""
        return ModelError(
            f"lama-cleaner's server does not start: {why}{last}", where=str(self.log),
            hint="read that file; are the weights a TorchScript model of LaMa, and is there memory for them?",
        )  # fmt: skip


def versions_of(home: Environment) -> dict[str, str]:
    """For a record: what fills the holes."""
    return {name: version for name, version in home.versions if name in {"lama-cleaner", "torch", "numpy"}}


def _environment(folder: Path, weights: Path, md5: str, token: str, threads: int) -> Mapping[str, str]:
    """What the server may know: no secret, no proxy and no home of this process. Its libraries are told to stay offline
    (HF_HUB_OFFLINE), but nothing keeps the weights, which are a program, from the network or from the user's files:
    that is why only an accepted sha256 runs."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        **passed, "HOME": str(folder), "XDG_CACHE_HOME": str(folder), "TORCH_HOME": str(folder), "HF_HOME": str(folder),
        "HF_HUB_OFFLINE": "1", "LAMA_MODEL_URL": str(weights), "LAMA_MODEL_MD5": md5, "LOGURU_LEVEL": "WARNING",
        "REPLAYGEN_INPAINT_TOKEN": token, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
        "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


def _one_gpu(device: str) -> dict[str, str]:
    """lama-cleaner knows "cuda" alone: of several GPUs it is shown the one that was asked for."""
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number.isdecimal():
        return {}
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {"CUDA_VISIBLE_DEVICES": seen[int(number)] if int(number) < len(seen) else number}


def _copy(source: Path, target: Path) -> tuple[str, str]:
    """Copy a file; sha256 and md5 of what was read."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with source.open("rb") as read, target.open("wb") as written:
        while part := read.read(1 << 20):
            sha256.update(part)
            md5.update(part)
            written.write(part)
    return sha256.hexdigest(), md5.hexdigest()


def _new_log() -> Path:
    folder = state_root() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("lama-*.log"), key=lambda path: path.name)[:-_LOGS]:
        old.unlink(missing_ok=True)
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return folder / f"lama-{moment}-{os.getpid()}-{secrets.token_hex(2)}.log"


def _sweep() -> None:
    """Remove folders that nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid() or time.time() - folder.stat().st_mtime < 60:
                continue  # somebody else's, or being made
            lock = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(lock)
