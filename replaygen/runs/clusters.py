"""The Dask cluster of a run: worker processes of this machine, one that runs already, or a batch system's jobs."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from replaygen.errors import ReplaygenError
from replaygen.holding import HELD
from replaygen.plan import Plan
from replaygen.plan.tables import QUEUES, RunTable
from replaygen.plan.workspace import expand_path
from replaygen.runs.execute import address_of
from replaygen.runs.executors import Executor, Inline, OnDask
from replaygen.runs.progress import Progress

if TYPE_CHECKING:
    from distributed import Client, Security

log = logging.getLogger("replaygen.run")

KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": 2**31 - 1, "MALLOC_MMAP_THRESHOLD_": 2**30}
"""glibc gives freed memory back to the system at once by Dask's default, and training, which frees and takes the same
buffers in every iteration, then spends half of its time in page faults."""

LEAVE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""What a worker does first: a terminal sends Ctrl-C to every process, and it is the run that stops its workers."""

LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def executor_for(
    plan: Plan, client: Client | None, progress: Progress, folder: Path | None = None
) -> Iterator[Executor]:
    """Where a plan's tasks are done: what its recipe's `[run]` says, or the workers of `client`.

    Args:
        folder: where a run on Dask leaves `performance.html`.

    Raises:
        ReplaygenError: the cluster cannot be reached or asked for, or would be talked to in the clear.
    """
    table, address = plan.recipe.table.run, address_of(plan.store)
    if client is None and table.cluster == "local" and not table.workers and table.adapt is None:
        HELD.idle = table.idle
        yield Inline(address)
        return
    ours = client is None and not table.by_address
    with contextlib.ExitStack() as held:
        if client is None:
            client = held.enter_context(cluster_client(table, plan.recipe.workspace, threads=plan.recipe.table.threads))
        _install(client, table.idle)
        if table.dashboard:
            _tell_dashboard(client, progress, ours)
            if folder is not None:
                held.enter_context(reported(client, folder / "performance.html", progress))
        patience = None if table.cluster in QUEUES else OnDask.PATIENCE
        yield OnDask(address, client, most=most_workers(client), patience=patience, note=progress.note)


@contextlib.contextmanager
def cluster_client(table: RunTable, workspace: Path, *, threads: int = 1) -> Iterator[Client]:
    """A client of the cluster that `[run]` asks for, for the length of a run.

    Args:
        workspace: relative paths of `[run.tls]` start here.
        threads: CPU threads of one task, as the recipe says.
    """
    with contextlib.ExitStack() as held:
        if table.by_address:
            client = remote_client(table.cluster, insecure=table.insecure, security=security_of(table, workspace))
        elif table.cluster == "local":
            client = local_client(
                table.workers, adapt=table.adapt, memory=table.memory, dashboard=table.dashboard,
                gpus=0 if table.device == "cpu" else gpus_here(),
            )  # fmt: skip
        else:
            from replaygen.runs.jobs import queue_client

            client = queue_client(table, workspace, threads=threads)
        yield held.enter_context(client)


def security_of(table: RunTable, workspace: Path) -> Security | None:
    """TLS as `[run.tls]` says, nothing in the clear; None where it says nothing.

    Raises:
        ReplaygenError: a file is missing.
    """
    if table.tls is None:
        return None
    files = [expand_path(getattr(table.tls, name), workspace=workspace, where=f"run.tls.{name}")
             for name in ("ca", "cert", "key")]  # fmt: skip
    for name, path in zip(("ca", "cert", "key"), files, strict=True):
        if not path.is_file():
            raise ReplaygenError(
                f"run.tls.{name} is no file", where=str(path), hint="`replaygen cluster certificates FOLDER` makes some"
            )
    return security_from(*files)


def security_from(ca: Path, cert: Path, key: Path) -> Security:
    """One certificate and key for every role, and nothing in the clear."""
    from distributed import Security

    own = {"cert": str(cert), "key": str(key)}
    everyone = {f"tls_{role}_{name}": path for role in ("client", "scheduler", "worker") for name, path in own.items()}
    return Security(require_encryption=True, tls_ca_file=str(ca), **everyone)


def is_loopback(address: str) -> bool:
    """Whether all that an address stands for is this machine itself."""
    host = urlsplit(address).hostname or ""
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(one).is_loopback for one in found)


@contextlib.contextmanager
def remote_client(address: str, *, insecure: bool = False, security: Security | None = None) -> Iterator[Client]:
    """A client of a running cluster.

    Dask's processes pickle to each other: who can talk to a scheduler can run code on all its workers. So it is TLS,
    in which both sides show a certificate, or loopback.

    Raises:
        ReplaygenError: nothing answers at the address, or it would be talked to in the clear.
    """
    import dask
    from distributed import Client, Security

    if address.startswith("tcp://") and not insecure and not is_loopback(address):
        raise ReplaygenError(
            "a Dask cluster on another machine is talked to with TLS only", where=address,
            hint="start it with certificates and give its tls:// address and [run.tls]; on a network that nobody else "
            "is on, insecure = true in [run]",
        )  # fmt: skip
    if address.startswith("tls://") and security is None:
        if dask.config.get("distributed.comm.tls.client.cert") is None:
            raise ReplaygenError(
                "a tls:// address needs certificates", where=address,
                hint="[run.tls] with ca, cert and key, or Dask's own distributed.comm.tls",
            )  # fmt: skip
        security = Security(require_encryption=True)
    try:
        client = Client(address, timeout=20, security=security)
    except (OSError, ValueError, RuntimeError) as error:
        raise ReplaygenError(
            f"no Dask scheduler answers: {_reason(error)}", where=address,
            hint="is it running, is the address right, and are the certificates of one authority?",
        ) from None  # fmt: skip
    with _unheard("distributed.client"), client:
        yield client


@contextlib.contextmanager
def _unheard(name: str) -> Iterator[None]:
    """Nothing from a logger: what it tells at length of a scheduler that went away, an error of ours says."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _reason(error: BaseException) -> str:
    """An error and what is behind it, such as a certificate that was refused."""
    told: list[str] = []
    behind: BaseException | None = error
    while behind is not None and len(told) < 4:
        if str(behind) and str(behind) not in told:
            told.append(str(behind))
        behind = behind.__cause__ or behind.__context__
    return "; ".join(told) or type(error).__name__


@contextlib.contextmanager
def local_client(
    workers: int, *, adapt: tuple[int, int] | None = None, memory: str | None = None, dashboard: bool = False,
    gpus: int = 0,
) -> Iterator[Client]:  # fmt: skip
    """A Dask cluster of one-thread processes on loopback, for the length of a run.

    Args:
        workers: how many; with `adapt` as many as there is work for, within its bounds.
        memory: of one worker: it pauses at 80 % of it and is started anew at 95 %. None: no limit.
        gpus: so many workers have a GPU to themselves, and do what needs one.
    """
    import dask
    from distributed import Client, LocalCluster

    first = dask.config.get("distributed.worker.preload")
    quiet = {
        "distributed.nanny.pre-spawn-environ": {
            "OMP_NUM_THREADS": 1, "MALLOC_ARENA_MAX": 1, **(KEEP_MEMORY if memory is None else {}),
        },
        "distributed.worker.memory.terminate": False if memory is None else 0.95,
        "distributed.worker.preload": [*([first] if isinstance(first, str) else first), LEAVE_CTRL_C],
        "distributed.scheduler.allowed-failures": 3,
        "distributed.deploy.lost-worker-timeout": "24h",  # else a worker that is slow to come back is given up
        "distributed.admin.large-graph-warning-threshold": "100MB",
    }  # fmt: skip
    made: Any = _with_gpus(gpus) if gpus else LocalCluster
    at_start = 0 if gpus or adapt is not None else workers
    with dask.config.set(quiet), made(
        n_workers=at_start, threads_per_worker=1, processes=True, host=LOOPBACK, dashboard_address=f"{LOOPBACK}:0",
        memory_limit=memory or 0, silence_logs=logging.CRITICAL, scheduler_kwargs={"dashboard": dashboard},
    ) as cluster, Client(cluster) as client:  # fmt: skip
        if adapt is not None:
            scale_by_need(cluster, adapt, interval="1s", idle_rounds=10)
        elif gpus:
            cluster.scale(workers)
            client.wait_for_workers(workers, timeout=120)
        yield client


def scale_by_need(cluster: Any, bounds: tuple[int, int], *, interval: str, idle_rounds: int) -> None:
    """Let a cluster grow while tasks wait, and shrink after so many rounds without work."""
    least, most = bounds
    cluster.adapt(minimum=least, maximum=most, interval=interval, target_duration="1s", wait_count=idle_rounds)


def most_workers(client: Client) -> int:
    """How many workers the client's cluster may grow to; 0 where it does not scale by itself, or without an end."""
    adaptive = getattr(client.cluster, "_adaptive", None)
    most = getattr(adaptive, "maximum", None)
    return int(most) if isinstance(most, int | float) and most < 10**6 else 0


def gpus_here() -> int:
    """CUDA devices of this machine; torch is asked only where there is a driver."""
    if not Path("/dev/nvidiactl").exists():
        return 0
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


def _with_gpus(gpus: int) -> type[Any]:
    """A local cluster whose first workers have a GPU each and the resource "GPU", and whose others see none; a worker
    that went gives it back."""
    from distributed import LocalCluster

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = ([name.strip() for name in named if name.strip()] or [str(gpu) for gpu in range(gpus)])[:gpus]

    class WithGpus(LocalCluster):
        def new_worker_spec(self) -> dict[Any, Any]:
            ((name, spec),) = super().new_worker_spec().items()  # type: ignore[no-untyped-call]
            taken = {one["options"].get("env", {}).get("CUDA_VISIBLE_DEVICES") for one in self.worker_spec.values()}
            free = next((name for name in names if name not in taken), None)
            own = {"resources": {"GPU": 1}} if free else {}
            options = {**spec["options"], **own, "env": {"CUDA_VISIBLE_DEVICES": free or ""}}
            return {name: {**spec, "options": options}}

    return WithGpus


def _install(client: Client, idle: float) -> None:
    from replaygen.runs.idle import IdleModels

    client.register_plugin(IdleModels(idle))


def _tell_dashboard(client: Client, progress: Progress, ours: bool) -> None:
    """Say where the dashboard is; that of a cluster of ours listens on this machine's loopback only."""
    from importlib.util import find_spec

    port = client.scheduler_info().get("services", {}).get("dashboard")
    if find_spec("bokeh") is None or not port:
        return
    link = f"http://{LOOPBACK}:{port}/status" if ours else client.dashboard_link
    progress.note(f"Dask's dashboard: {link}", dashboard=link)


@contextlib.contextmanager
def reported(client: Client, page: Path, progress: Progress) -> Iterator[None]:
    """Leave Dask's performance report of what runs within, also where a task fails; needs bokeh, here and there."""
    from importlib.util import find_spec

    from distributed import performance_report

    if find_spec("bokeh") is None:
        yield
        return
    report = performance_report(filename=str(page), mode="inline")
    try:
        with client.as_current():
            report.__enter__()
    except Exception as error:
        progress.note(f"no performance report: {error}")
        yield
        return
    try:
        yield
    except Exception:
        _save(report, client, page, progress)
        raise
    _save(report, client, page, progress)


def _save(report: Any, client: Client, page: Path, progress: Progress) -> None:
    if client.status != "running":
        return
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with client.as_current():
            report.__exit__(None, None, None)
    except Exception as error:
        progress.note(f"no performance report: {error}")
        return
    progress.note(f"Dask's performance report: {page}", performance=str(page))
