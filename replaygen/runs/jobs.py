"""Dask workers as jobs of a batch system, SLURM and its kin, by dask-jobqueue; TLS between all of them."""

from __future__ import annotations

import contextlib
import inspect
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.errors import RecipeError, ReplaygenError
from replaygen.plan.tables import RunTable
from replaygen.runs.certificates import make_certificates
from replaygen.runs.clusters import LOOPBACK, is_loopback, scale_by_need, security_from, security_of

if TYPE_CHECKING:
    from distributed import Client, Security

_CLASSES = {
    "slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster", "oar": "OARCluster",
    "moab": "MoabCluster", "htcondor": "HTCondorCluster",
}  # fmt: skip
_OF_BOTH = ("config_name", "interface", "protocol", "security")
"""Arguments of dask-jobqueue's cluster that it hands on to each job."""


@contextlib.contextmanager
def queue_client(table: RunTable, workspace: Path, *, threads: int = 1) -> Iterator[Client]:
    """A scheduler in this process, listening with TLS, and workers that come as the batch system starts their jobs.

    Args:
        workspace: relative paths of `[run.tls]` start here.
        threads: CPU threads of one task.

    Raises:
        ReplaygenError: a job is refused, or `[run.job]` is wrong.
    """
    import dask
    from distributed import Client

    with contextlib.ExitStack() as held:
        options = held.enter_context(_options(table, workspace, threads))
        processes = _job(table, options).worker_processes
        with dask.config.set({"distributed.scheduler.allowed-failures": 3}):
            cluster = held.enter_context(_class_of(table)(**{"silence_logs": logging.CRITICAL, **options}))
        client = held.enter_context(Client(cluster))
        held.callback(_give_up_refused, cluster)
        try:
            _submit(cluster, -(-(table.workers if table.adapt is None else max(1, table.adapt[0])) // processes))
        except (OSError, RuntimeError, ValueError) as error:
            raise ReplaygenError(
                f"the batch system takes no job: {error}", where=table.cluster,
                hint="`replaygen cluster script RECIPE` prints what is submitted; is this a machine that may submit?",
            ) from None  # fmt: skip
        if table.adapt is not None:
            scale_by_need(cluster, table.adapt, interval="2s", idle_rounds=30)
        yield client


def job_script(table: RunTable, workspace: Path, *, threads: int = 1) -> str:
    """The script that would be submitted for each job; the scheduler's address is left open, and the names of
    certificates that are made for each run are examples."""
    with _options(table, workspace, threads) as options:
        return str(_job(table, options).job_script())


def _submit(cluster: Any, jobs: int) -> None:
    """Submit so many jobs; `scale` of the cluster would only log that one is refused."""
    while len(cluster.worker_spec) < jobs:
        cluster.worker_spec.update(cluster.new_worker_spec())
    cluster.sync(cluster._correct_state)


def _give_up_refused(cluster: Any) -> None:
    """Jobs that were refused are not waited for when the cluster is closed."""
    from distributed.core import Status

    for job in cluster._created:
        if job.status is Status.created:
            job.status = Status.failed


def _class_of(table: RunTable) -> Any:
    """dask-jobqueue's cluster class."""
    try:
        import dask_jobqueue
    except ImportError:
        raise ReplaygenError(
            f'cluster = "{table.cluster}" needs dask-jobqueue, which is not installed',
            hint="pip install 'replaygen[jobqueue]'",
        ) from None
    return getattr(dask_jobqueue, _CLASSES[table.cluster])


def _job(table: RunTable, options: dict[str, Any]) -> Any:
    """One job as the cluster would make it: what is wrong with the options shows before anything is started."""
    cluster = _class_of(table)
    from dask_jobqueue.core import JobQueueCluster

    of_cluster = inspect.signature(JobQueueCluster.__init__).parameters
    of_job = {name: value for name, value in options.items() if name not in of_cluster or name in _OF_BOTH}
    protocol = options["protocol"]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="OAR Job memory reserved", category=UserWarning)
            return cluster.job_cls(f"{protocol}SCHEDULER:PORT", name="EXAMPLE", **of_job)
    except (TypeError, ValueError, OSError) as error:
        raise RecipeError(
            f"dask-jobqueue refuses [run.job]: {error}", where=f"run.cluster = {table.cluster!r}",
            hint=f"its keys are the arguments of dask_jobqueue.{_CLASSES[table.cluster]}",
        ) from None  # fmt: skip


@contextlib.contextmanager
def _options(table: RunTable, workspace: Path, threads: int) -> Iterator[dict[str, Any]]:
    """Arguments of dask-jobqueue's class: those of `[run.job]`, else Dask's own configuration, else ours."""
    import dask

    _class_of(table)  # its import reads the configuration

    def given(name: str) -> Any:
        own = dask.config.get(f"jobqueue.{table.job.get('config_name', table.cluster)}.{name.replace('_', '-')}", None)
        return table.job.get(name, own)

    cores = int(given("cores") or threads)
    processes = int(given("processes") or max(1, cores // threads))
    memory = given("memory") or (_times(table.memory, processes) if table.memory else None)
    if memory is None:
        raise RecipeError(
            "a job needs to say how much memory it takes", where="run",
            hint='memory = "4GB" in [run], of one worker, or memory in [run.job], of a whole job',
        )  # fmt: skip
    extra = [*(given("worker_extra_args") or []), "--dashboard-address", f"{LOOPBACK}:0"]
    if cores // processes > 1:
        extra += ["--nthreads", "1"]  # a process does one task at a time, on as many cores as the recipe's `threads`
    scheduler = {
        "dashboard_address": f"{LOOPBACK}:0", "dashboard": table.dashboard, **(given("scheduler_options") or {}),
    }  # fmt: skip
    options = {
        **table.job, "cores": cores, "processes": processes, "memory": memory, "worker_extra_args": extra,
        "scheduler_options": scheduler,
    }  # fmt: skip
    if _in_the_clear(table, options):
        yield {**options, "protocol": "tcp://", "security": None}
        return
    with _certificates(table, workspace) as security:
        yield {**options, "protocol": "tls://", "security": security}


def _times(memory: str, processes: int) -> int:
    from dask.utils import parse_bytes

    return int(parse_bytes(memory)) * processes


def _in_the_clear(table: RunTable, options: dict[str, Any]) -> bool:
    """Whether Dask is to talk without TLS.

    Raises:
        RecipeError: it would, or would show its dashboard to others, and the recipe does not say `insecure`.
    """
    listening = {**options, **options["scheduler_options"]}  # dask-jobqueue lays these over the others
    dashboard = str(listening["dashboard_address"])
    clear = not str(listening.get("protocol") or "tls").startswith("tls") or not listening.get("security", True)
    if not table.insecure and (clear or not is_loopback(f"tcp://{dashboard}")):
        raise RecipeError(
            "[run.job] would have Dask listen in the clear",
            where=f"run.cluster = {table.cluster!r}",
            hint="leave out protocol, security and dashboard_address; look at the dashboard through `ssh -L`",
        )
    return clear


@contextlib.contextmanager
def _certificates(table: RunTable, workspace: Path) -> Iterator[Security]:
    """Those of `[run.tls]`, else some for this run alone, in a folder for this user alone that the jobs must see."""
    given = security_of(table, workspace)
    if given is not None:
        yield given
        return
    above = Path(table.job.get("shared_temp_directory") or Path.home() / ".cache" / "replaygen" / "clusters")
    above = above.expanduser()
    above.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=above) as folder:  # which is 0700
        ca, cert, key = make_certificates(Path(folder) / "tls", days=30)
        yield security_from(ca, cert, key)
