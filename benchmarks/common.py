"""Shared by the benchmarks: run a command and measure it, and write figures where the README finds them.

With `--quick` every benchmark runs tiny settings, to see that it works; its file goes to the system's folder for
temporary files, never to `benchmarks/results/`.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
QUICK = "--quick" in sys.argv[1:]
PACKAGES = ("replaygen", "torch", "numpy", "dask", "transformers")


@dataclass(frozen=True)
class Measured:
    """A command that ran to its end.

    Attributes:
        seconds: wall time; cpu_seconds: of the process and all it started.
        peak_gb: the largest sum of resident memory over its processes (pages they share count in each), 10^9 bytes.
        told: the JSON it printed last, None where it printed none.
    """

    seconds: float
    cpu_seconds: float
    peak_gb: float
    told: Any


def write(name: str, figures: Mapping[str, Any]) -> None:
    """Print the figures and write `benchmarks/results/NAME.json`."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    told = {"command": f"make bench-{name}", "versions": versions, "device": device(), "figures": figures}
    text = json.dumps(told, indent=2, ensure_ascii=False)
    path = (Path(tempfile.gettempdir()) if QUICK else RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"{text}\nwrote {path}")


def device() -> str:
    """The GPU's name where there is one, else the CPU's, and the number of cores."""
    cores = f"{os.cpu_count()} cores"
    try:
        import torch

        if torch.cuda.is_available():
            return f"{torch.cuda.get_device_name()}, {cores}"
    except ModuleNotFoundError:
        pass
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {cores}"


def need_data(*folders: str) -> Path:
    """The folder of real photographs; ends the benchmark with a sentence and exit code 0 where parts are absent."""
    given = os.environ.get("REPLAYGEN_DATA")
    lost = [folder for folder in folders if not given or not (Path(given) / folder).is_dir()]
    if given and not lost:
        return Path(given)
    print(
        f"not run: it needs {', '.join(lost)} in the folder that REPLAYGEN_DATA names; docs/data.md says how to get "
        "them. Then: export REPLAYGEN_DATA=/folder/with/the/data"
    )
    sys.exit(0)


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """An empty folder, removed with all that was made in it."""
    folder = Path(tempfile.mkdtemp(prefix="replaygen-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settings(changes: Mapping[str, Any]) -> list[str]:
    """`--set` arguments of the command, for values whose JSON is TOML: numbers, text, lists."""
    return [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def measure(command: Sequence[str], *, cwd: Path = REPOSITORY) -> Measured:
    """Run a command to its end; what it says on stderr is shown.

    Raises:
        CalledProcessError: it failed.
    """
    before = _children_cpu()
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    watch = _MemoryWatch(process.pid)
    output, _ = process.communicate()
    seconds = time.perf_counter() - began
    peak = watch.stop()
    if process.returncode != 0:
        print(output, file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, command)
    return Measured(seconds, _children_cpu() - before, peak, _last_json(output))


def replaygen(*arguments: str, cwd: Path = REPOSITORY) -> Measured:
    """Run the `replaygen` command as this interpreter's."""
    return measure([sys.executable, "-m", "replaygen", *arguments], cwd=cwd)


def python(code: str, *arguments: str, cwd: Path = REPOSITORY) -> Measured:
    """Run Python code in a new interpreter; it prints JSON in its last line."""
    return measure([sys.executable, "-c", code, *arguments], cwd=cwd)


def best_seconds(command: Sequence[str], times: int = 5, *, cwd: Path = REPOSITORY) -> float:
    """The shortest wall time of a command that is run a few times, its output thrown away."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(command, cwd=cwd, check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    return min(taken)


def rounded(values: Sequence[float], digits: int = 2) -> list[float]:
    """Numbers as they are written down."""
    return [round(float(value), digits) for value in values]


class _MemoryWatch:
    """Samples the resident memory of a process and its descendants."""

    def __init__(self, pid: int, every: float = 0.2) -> None:
        self._pid, self._every = pid, every
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        import psutil  # type: ignore[import-untyped]

        while not self._ended.wait(self._every):
            total = 0
            try:
                root = psutil.Process(self._pid)
                for process in (root, *root.children(recursive=True)):
                    try:
                        total += process.memory_info().rss
                    except psutil.Error:
                        continue
            except psutil.Error:
                continue
            self._peak = max(self._peak, total)

    def stop(self) -> float:
        self._ended.set()
        self._thread.join()
        return self._peak / 1e9


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _last_json(output: str) -> Any:
    lines = output.strip().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
