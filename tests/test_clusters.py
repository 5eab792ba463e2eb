"""Clusters: TLS by hand, loopback only in the clear, resources, scaling by need, a scheduler that dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cluster_toys
import psutil
import pytest
from distributed import get_task_stream

from replaygen.errors import ReplaygenError
from replaygen.plan import Plan, Task
from replaygen.runs import clusters, run
from replaygen.runs.clusters import local_client, remote_client
from replaygen.runs.executors import OnDask
from replaygen.runs.progress import Quiet
from replaygen.store import Store
from replaygen.testing import toys
from replaygen.testing.by_hand import ByHand, cluster_by_hand


@pytest.fixture(autouse=True)
def _toys() -> Iterator[None]:
    with toys.registered({cluster_toys.HogStage.name: cluster_toys.HogStage}):
        yield


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, cert.pem and key.pem of an authority that is not ours."""
    import trustme

    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    own.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    own.private_key_pem.write_to_path(folder / "key.pem")
    return folder


def _tls(folder: Path) -> dict[str, str]:
    return {name: str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[ByHand]:
    """A cluster over TLS whose first worker has a GPU, and the second is for waiting."""
    workers = [("--resources", "GPU=1"), ("--resources", "IO=1")]
    folder = tmp_path_factory.mktemp("cluster")
    with cluster_by_hand(folder, workers, certificates=certificates, preload=toys.PRELOAD) as cluster:
        yield cluster


def _tasks(count: int = 6, seconds: float = 0.0) -> list[Task]:
    read = [toys.toy(toys.ReadStage, number, samples=4, bytes=50, seconds=seconds) for number in range(count)]
    made = [toys.toy(toys.ShardStage, one.params["number"], [one], samples=4, bytes=50) for one in read]
    drawn = [toys.toy(toys.DrawStage, one.params["number"], [one], samples=4, bytes=50) for one in made]
    return [*read, *made, *drawn]


def _outputs(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    records = {slot: plan.store.get(key) for slot, key in plan.slots.items()}
    return {
        slot: [(output.name, output.digest) for output in record.outputs] for slot, record in records.items() if record
    }


class Told(Quiet):
    """What a run tells; `after` is called with the number of tasks that are done."""

    def __init__(self, after: Callable[[int], None] = lambda done: None) -> None:
        self.notes: list[str] = []
        self.done_tasks = 0
        self.after = after

    def done(self, task: Task, outcome: Any) -> None:
        """Count."""
        self.done_tasks += 1
        self.after(self.done_tasks)

    def note(self, message: str, **fields: Any) -> None:
        """Remember."""
        self.notes.append(message)


@contextmanager
def _preloaded(*texts: str) -> Iterator[None]:
    import dask

    with dask.config.set({"distributed.worker.preload": list(texts)}):
        yield


def _listening(pids: list[int]) -> set[tuple[str, int]]:
    """The addresses and ports that processes and their children listen on."""
    found = set[tuple[str, int]]()
    for pid in pids:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            found |= {tuple(one.laddr[:2]) for one in process.net_connections() if one.status == psutil.CONN_LISTEN}
    return found


# TLS, by hand


def test_by_hand_over_tls_gives_the_bytes_of_inline(secured: ByHand, certificates: Path, tmp_path: Path) -> None:
    """Scheduler and workers started with Dask's commands and foreign certificates: the same bytes, and a report."""
    inline = run(toys.toy_plan(Store(tmp_path / "inline"), _tasks())).plan
    plan = toys.toy_plan(Store(tmp_path / "tls"), _tasks(), cluster=secured.address, tls=_tls(certificates))
    told = Told()
    run(plan, progress=told, folder=tmp_path / "run")
    assert secured.address.startswith("tls://")
    assert _outputs(plan) == _outputs(inline)
    assert len(_outputs(plan)) == len(plan.slots)
    assert "Task Stream" in (tmp_path / "run" / "performance.html").read_text()
    assert any("http://127.0.0.1:" in note for note in told.notes)


def test_another_authority_is_refused(secured: ByHand, tmp_path: Path) -> None:
    """A client with certificates of somebody else gets nothing, and nor does one that talks in the clear."""
    from replaygen.runs.certificates import make_certificates

    make_certificates(tmp_path / "other")
    store = Store(tmp_path / "store")
    for how in (
        {"cluster": secured.address, "tls": _tls(tmp_path / "other")},
        {"cluster": secured.address.replace("tls://", "tcp://")},
    ):
        with pytest.raises(ReplaygenError, match="no Dask scheduler answers"):
            run(toys.toy_plan(store, _tasks(1), **how))
    assert not _outputs(toys.toy_plan(store, _tasks(1)))


def test_a_scheduler_of_another_authority_is_refused(tmp_path: Path, certificates: Path) -> None:
    """Both sides look: a scheduler that somebody else certified is not talked to. Ours are good for a cluster."""
    from replaygen.runs.certificates import make_certificates

    make_certificates(tmp_path / "ours")
    assert (tmp_path / "ours" / "key.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ReplaygenError, match="there already"):
        make_certificates(tmp_path / "ours")
    with cluster_by_hand(tmp_path, [()], certificates=tmp_path / "ours", preload=toys.PRELOAD) as cluster:
        with pytest.raises(ReplaygenError, match="certificate"):
            run(toys.toy_plan(Store(tmp_path / "s"), _tasks(1), cluster=cluster.address, tls=_tls(certificates)))
        run(toys.toy_plan(Store(tmp_path / "s"), _tasks(1), cluster=cluster.address, tls=_tls(tmp_path / "ours")))


@pytest.mark.parametrize("address", ["tcp://192.0.2.7:8786", "tcp://[2001:db8::1]:8786", "tcp://0.0.0.0:8786"])
def test_another_machine_in_the_clear_is_refused(tmp_path: Path, address: str) -> None:
    """tcp:// goes to loopback only, unless the recipe says that it may be insecure."""
    with pytest.raises(ReplaygenError, match="with TLS only"):
        run(toys.toy_plan(Store(tmp_path / "store"), _tasks(1), cluster=address))


def test_tls_without_certificates_says_so(tmp_path: Path, certificates: Path) -> None:
    """A tls:// address with no certificates, or with a file that is not there, is refused before anything is asked."""
    store = Store(tmp_path / "store")
    with pytest.raises(ReplaygenError, match="needs certificates"):
        run(toys.toy_plan(store, _tasks(1), cluster="tls://127.0.0.1:9"))
    missing = {**_tls(certificates), "key": str(tmp_path / "none.pem")}
    with pytest.raises(ReplaygenError, match=r"run\.tls\.key is no file"):
        run(toys.toy_plan(store, _tasks(1), cluster="tls://127.0.0.1:9", tls=missing))


# resources


def test_kinds_of_tasks_go_to_workers_that_have_what_they_need(
    secured: ByHand, certificates: Path, tmp_path: Path
) -> None:
    """Draws go to the worker with a GPU, reads to the one for waiting; the others go to both or any."""
    table = toys.toy_plan(Store(tmp_path / "s"), [], cluster=secured.address, tls=_tls(certificates)).recipe.table.run
    security = clusters.security_of(table, tmp_path)
    with remote_client(secured.address, security=security) as client:
        client.wait_for_workers(2)
        of = {name: set(about["resources"]) for name, about in client.scheduler_info(n_workers=-1)["workers"].items()}
        with get_task_stream(client=client) as stream:
            run(toys.toy_plan(Store(tmp_path / "store"), _tasks(12)), client)
    done = {(entry["key"].rsplit("-", 3)[0], *of[entry["worker"]]) for entry in stream.data}
    assert {what for what in done if what[0] != "toy-shard"} == {("toy-draw", "GPU"), ("toy-read", "IO")}


def test_tasks_of_a_kind_of_worker_that_died_are_done_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only worker for waiting is killed, with tasks on it: any other does the rest."""
    monkeypatch.setattr(OnDask, "STRANDED", 1.0)
    with cluster_by_hand(tmp_path, [("--resources", "IO=1"), ()], preload=toys.PRELOAD) as cluster:

        def kill(done: int) -> None:
            if done == 1:
                os.killpg(cluster.processes[1].pid, signal.SIGKILL)

        with remote_client(cluster.address) as client:
            client.wait_for_workers(2)
            plan = toys.toy_plan(Store(tmp_path / "store"), _tasks(4, seconds=0.3))
            run(plan, client, progress=Told(kill))
    assert len(_outputs(plan)) == len(plan.slots)


def test_a_gpu_is_given_to_one_local_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one GPU may be used, one of two workers has it to itself, by its own name, and the tasks that want one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with _preloaded(toys.PRELOAD), local_client(2, gpus=1) as client:
        told = client.scheduler_info(n_workers=-1)["workers"]
        assert sorted(about["resources"].get("GPU", 0) for about in told.values()) == [0, 1]
        seen = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
        assert {name: value for name, value in seen.items() if value} == {
            name: "3" for name, about in told.items() if about["resources"]
        }
        with get_task_stream(client=client) as stream:
            run(toys.toy_plan(Store(tmp_path / "store"), _tasks(4)), client)
    drew = {entry["worker"] for entry in stream.data if entry["key"].startswith("toy-draw")}
    assert drew == {name for name, about in told.items() if about["resources"]}


# local clusters


def test_scaling_by_need_starts_from_nothing(tmp_path: Path) -> None:
    """adapt = [0, 2]: no worker at the start, two when there is work, and the bytes of inline."""
    inline = run(toys.toy_plan(Store(tmp_path / "inline"), _tasks(8))).plan
    most, tasks = [0], _tasks(8, seconds=0.0)
    with _preloaded(toys.PRELOAD), local_client(0, adapt=(0, 2)) as client:
        assert not client.nthreads()
        busy = toys.toy_plan(Store(tmp_path / "busy"), [toys.toy(toys.SleepStage, n, seconds=0.7) for n in range(12)])
        run(busy, client, progress=Told(lambda done: most.append(len(client.nthreads()))))
        plan = toys.toy_plan(Store(tmp_path / "scaled"), tasks)
        run(plan, client)
    assert max(most) == 2
    assert _outputs(plan) == _outputs(inline)


def test_a_local_cluster_listens_on_loopback_only(tmp_path: Path) -> None:
    """Scheduler, dashboard, nannies and workers; the dashboard's address is told and answers."""
    from urllib.request import urlopen

    tasks = [toys.toy(toys.ShardStage, number, samples=2, bytes=9) for number in range(4)]
    heard, answers = set[str](), list[int]()
    told = Told(lambda done: heard.update(host for host, _ in _listening([os.getpid()])))
    told.note = lambda message, **fields: (  # type: ignore[method-assign]
        answers.append(urlopen(fields["dashboard"], timeout=30).status) if "dashboard" in fields else None
    )
    with _preloaded(toys.PRELOAD):
        run(toys.toy_plan(Store(tmp_path / "store"), tasks, workers=2), progress=told, folder=tmp_path / "run")
    assert heard == {"127.0.0.1"}
    assert answers == [200]
    assert (tmp_path / "run" / "performance.html").is_file()


def test_without_a_dashboard_nothing_is_told_or_left(tmp_path: Path) -> None:
    """dashboard = false."""
    told = Told()
    tasks = [toys.toy(toys.ShardStage, 1, samples=2, bytes=9)]
    with _preloaded(toys.PRELOAD):
        run(toys.toy_plan(Store(tmp_path / "s"), tasks, workers=1, dashboard=False), progress=told, folder=tmp_path)
    assert not told.notes
    assert not (tmp_path / "performance.html").exists()


def test_a_worker_that_keeps_memory_does_not_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is paused for good, for what a task left in its memory, is started anew, and the run goes on."""
    monkeypatch.setattr(OnDask, "STUCK", 2.0)
    hog = toys.toy(cluster_toys.HogStage, 0, bytes=1_600_000_000)
    after = [toys.toy(toys.ShardStage, number, [], samples=2, bytes=9) for number in range(4)]
    told = Told()
    with _preloaded(cluster_toys.PRELOAD):
        plan = toys.toy_plan(Store(tmp_path / "s"), [hog, *after], workers=1, memory="2GB", dashboard=False)
        run(plan, progress=told)
    assert len(_outputs(plan)) == 5
    assert any("started anew" in note for note in told.notes)


# a scheduler that dies


def test_a_scheduler_that_dies_is_an_error_and_running_again_resumes(tmp_path: Path) -> None:
    """SIGKILL of the scheduler in mid-run: a clear error; on a new cluster only the rest is done, to the same bytes."""
    inline = run(toys.toy_plan(Store(tmp_path / "inline"), _tasks(seconds=0.1))).plan
    store = Store(tmp_path / "store")
    with cluster_by_hand(tmp_path, [()], preload=toys.PRELOAD) as cluster:
        told = Told(lambda done: cluster.scheduler.kill() if done == 4 else None)
        with pytest.raises(ReplaygenError, match=r"(?s)scheduler was lost.*run the recipe again"):
            run(toys.toy_plan(store, _tasks(seconds=0.1), cluster=cluster.address), progress=told)
    assert 4 <= told.done_tasks < len(inline.tasks)
    with cluster_by_hand(tmp_path, [()], preload=toys.PRELOAD) as cluster:
        again = run(toys.toy_plan(store, _tasks(seconds=0.1), cluster=cluster.address))
    assert again.tally.cached >= told.done_tasks
    assert again.tally.made + again.tally.adopted == len(inline.tasks) - again.tally.cached
    assert _outputs(again.plan) == _outputs(inline)
