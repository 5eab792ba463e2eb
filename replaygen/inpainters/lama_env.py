"""The environment that lama-cleaner lives in: a venv of its own, outside every store.

lama-cleaner 1.2.5 pins libraries of 2023 that cannot stand beside replaygen's, but works with newer ones; it is
installed without its dependencies, and then what it really imports is: wheels alone, so that nobody's setup.py runs,
and by a pip that sees none of this process's secrets. Unless `full`, the new environment sees this
one's packages behind its own (a .pth file), so torch and its like are not installed twice.

`replaygen.json` is written last: a folder without it is half-made, is not used, and is made anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from replaygen.errors import ModelError
from replaygen.inpainters.base import LAMA_CLEANER

_WHEEL = "sha256:d2ff2df4ae9661bffc13ee03d44a030d94f175628a2ef3e09530247a7cede703"
_NEEDS = (
    "loguru>=0.7,<1", "flask>=3.1,<4", "werkzeug>=3.1,<4", "flask-socketio>=5.5,<6", "flask-cors>=5,<7",
    "simple-websocket>=1.1,<2", "pydantic>=2.10,<3", "rich>=13.9,<16", "numpy>=2.1,<3", "pillow>=11,<14",
    "opencv-python-headless>=4.10,<6", "torch>=2.6,<3", "safetensors>=0.5,<1", "transformers>=5,<6",
    "diffusers>=0.36,<1", "accelerate>=1,<2", "standard-imghdr; python_version >= '3.13'",
)  # fmt: skip
_TOLD = ("lama-cleaner", "torch", "diffusers", "transformers", "numpy", "pillow", "opencv-python-headless", "flask",
         "werkzeug", "flask-socketio")  # fmt: skip
_MARK = "replaygen.json"
_BARE = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH")
_FETCHING = (
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
)  # fmt: skip
HINT = "replaygen doctor --install lama"


def state_root() -> Path:
    """Where replaygen keeps what belongs to this machine and to no store: REPLAYGEN_STATE, or ~/.cache/replaygen."""
    return Path(os.environ.get("REPLAYGEN_STATE") or "~/.cache/replaygen").expanduser().absolute()


@dataclass(frozen=True)
class Environment:
    """An environment that may be there.

    Attributes:
        path: its folder; ready: whether it can be used; why: if not, why.
        shared: folders of another environment whose packages it sees, none with `full`.
        versions: what lama-cleaner finds there now; changed: those that are not as they were when it was made.
    """

    path: Path
    ready: bool
    why: str = ""
    shared: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    changed: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"

    def as_json(self) -> dict[str, Any]:
        """For `replaygen doctor --json`."""
        return {
            "ready": self.ready, "path": str(self.path), "why": self.why, "shared": list(self.shared),
            "versions": dict(self.versions), "changed": list(self.changed),
        }  # fmt: skip


def environment() -> Environment:
    """What is there of the environment; nothing is started or changed."""
    path = state_root() / "environments" / "lama"
    if not path.is_dir():
        return Environment(path, False, "not installed")
    try:
        told = json.loads((path / _MARK).read_text(encoding="utf-8"))
        shared, had = tuple(map(str, told["shared"])), dict(told["versions"])
    except (OSError, ValueError, LookupError, TypeError):
        return Environment(path, False, "half-made")
    if not os.access(path / "bin" / "python", os.X_OK):
        return Environment(path, False, "its interpreter is gone", shared)
    versions = _versions([*_own(path), *shared])
    changed = tuple(name for name in sorted(versions.keys() | had.keys()) if versions.get(name) != had.get(name))
    if lost := [name for name in had if name not in versions]:
        return Environment(path, False, f"{', '.join(lost)} gone", shared, tuple(versions.items()), changed)
    return Environment(path, True, "", shared, tuple(versions.items()), changed)


def needed() -> Environment:
    """The environment, ready.

    Raises:
        ModelError: it is not.
    """
    found = environment()
    if not found.ready:
        raise ModelError(f"lama-cleaner's environment is {found.why}", where=str(found.path), hint=HINT)
    return found


def install(*, full: bool = False, say: Callable[[str], None] = print) -> Environment:
    """Make the environment, also where a half-made or another one is. One at a time; takes a minute, or many with
    `full`.

    Args:
        full: everything of its own, nothing seen of this environment; with a GPU build of torch 6 GB.
        say: told each step.

    Raises:
        ModelError: pip or the first import failed; its words are in a file named in the error.
    """
    path = state_root() / "environments" / "lama"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent / "lama.lock"):
        (path / _MARK).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        shared = [] if full else [entry for entry in sys.path if _is_packages(entry)]
        log = path.parent / "lama.log"
        log.unlink(missing_ok=True)
        say(f"making {path}" + ("" if full else ", which sees the packages of this environment behind its own"))
        _do([sys.executable, "-m", "venv", str(path)], log)
        if shared:
            (_own(path)[0] / "replaygen-shared.pth").write_text("".join(f"{entry}\n" for entry in shared))
        python = str(path / "bin" / "python")
        pip = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:"]
        only = path / "lama-cleaner.txt"
        only.write_text(f"lama-cleaner=={LAMA_CLEANER} --hash={_WHEEL}\n")
        say(f"installing lama-cleaner {LAMA_CLEANER}, without the versions that it pins")
        _do([*pip, "--no-deps", "--require-hashes", "-r", str(only)], log, fetching=True)
        say("installing what it imports" + (", torch included: this takes long" if full else " and is missing"))
        _do([*pip, *_NEEDS], log, fetching=True)
        say("importing its server")
        _do([python, "-I", "-c", "import lama_cleaner.server"], log)
        told = {"python": platform.python_version(), "shared": shared, "versions": _versions([*_own(path), *shared])}
        part = path / f"{_MARK}.part"
        part.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        os.replace(part, path / _MARK)
    return environment()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_packages(entry: str) -> bool:
    return Path(entry).name in {"site-packages", "dist-packages"} and Path(entry).is_dir()


def _own(path: Path) -> list[Path]:
    """The environment's own folders of packages."""
    return sorted(path.glob("lib*/python3*/site-packages"))


def _versions(folders: Iterable[str | Path]) -> dict[str, str]:
    """The libraries that matter, as the first of the folders that has them tells."""
    found: dict[str, str] = {}
    for folder in folders:
        for one in distributions(path=[str(folder)]):
            name = str(one.metadata["Name"] or "").lower().replace("_", "-")
            if name in _TOLD:
                found.setdefault(name, one.version)
    return dict(sorted(found.items()))


def _do(command: list[str], log: Path, *, fetching: bool = False) -> None:
    """Run to the end; what it says goes to the log. It learns little of this process's environment; where it fetches,
    also how to get out, and what the user tells pip."""
    known = (*_BARE, *_FETCHING) if fetching else _BARE
    calm = {
        name: value
        for name, value in os.environ.items()
        if name in known or (fetching and name.startswith(("PIP_", "SSL_")))
    }
    with log.open("a", encoding="utf-8") as told:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=told, stderr=told, env=calm, cwd="/")
    if done.returncode != 0:
        raise ModelError(
            f"lama-cleaner's environment cannot be made: {' '.join(command[1:4])} failed", where=str(log),
            hint=f"read that file, then again: {HINT}",
        )  # fmt: skip
