"""Batch systems: the scripts that are submitted, and a run through a queue that runs its jobs at once."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from conftest import BUILD_ONLY, Workspace
from test_clusters import Told, _listening, _outputs

from replaygen.errors import ReplaygenError
from replaygen.plan.tables import QUEUES, RunTable
from replaygen.runs import run
from replaygen.runs.jobs import job_script
from replaygen.store import Store
from replaygen.testing import toys

JOB: dict[str, dict[str, Any]] = {
    "slurm": {"queue": "gpu", "walltime": "02:00:00", "job_extra_directives": ["--gres=gpu:1"]},
    "pbs": {"queue": "gpu", "walltime": "02:00:00"},
    "lsf": {"queue": "gpu", "walltime": "2:00", "lsf_units": "mb"},
    "sge": {"queue": "gpu", "walltime": "02:00:00", "resource_spec": "h_vmem=6G"},
    "oar": {"queue": "gpu", "walltime": "02:00:00", "memory_per_core_property_name": "memcore"},
    "moab": {"queue": "gpu", "walltime": "02:00:00"},
    "htcondor": {"disk": "1GB"},
}
ASKS = {
    "slurm": ["#SBATCH -p gpu", "#SBATCH --cpus-per-task=2", "#SBATCH --mem=6G", "#SBATCH -t 02:00:00", "--gres=gpu:1"],
    "pbs": ["#PBS -q gpu", "#PBS -l select=1:ncpus=2:mem=5723MB", "#PBS -l walltime=02:00:00"],
    "lsf": ["#BSUB -q gpu", "#BSUB -n 2", "#BSUB -M 6000", "#BSUB -W 2:00"],
    "sge": ["#$ -q gpu", "#$ -l h_vmem=6G", "#$ -l h_rt=02:00:00"],
    "oar": ["#OAR -q gpu", "#OAR -l /nodes=1/core=2,walltime=02:00:00", "#OAR -p memcore>=2862"],
    "moab": ["#PBS -q gpu", "select=1:ncpus=2:mem=5723MB", "walltime=02:00:00"],
    "htcondor": ["MY.DaskWorkerCores = 2", "MY.DaskWorkerMemory = 6000000000", "MY.DaskWorkerDisk = 1000000000"],
}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def _table(kind: str, **run: Any) -> RunTable:
    return RunTable(cluster=kind, workers=2, memory="3GB", **{"job": {"cores": 2, **JOB[kind]}, **run})


@pytest.mark.parametrize("kind", QUEUES)
def test_the_script_asks_for_what_the_recipe_says(kind: str, tmp_path: Path) -> None:
    """Queue, cores, memory and time; two processes of one thread; TLS, and nothing that listens in the clear."""
    script = job_script(_table(kind), tmp_path)
    for line in ASKS[kind]:
        assert line in script
    for argument in ("--nworkers 2", "--nthreads 1", "--memory-limit 2.79GiB", "--dashboard-address 127.0.0.1:0"):
        assert argument in script
    assert "tls://SCHEDULER:PORT" in script
    assert "--protocol tls://" in script
    assert "tcp://" not in script
    files = re.findall(r"--tls-(?:ca-file|cert|key) (\S+?)(?='|\s|$)", script)
    own = tmp_path / "home" / ".cache" / "replaygen" / "clusters"
    assert [Path(file).name for file in files] == ["ca.pem", "cert.pem", "key.pem"]
    assert all(own in Path(file).parents for file in files)
    assert not list(own.iterdir())


def test_given_certificates_are_named(tmp_path: Path) -> None:
    """[run.tls]: the script names these files, and no key is written anywhere."""
    from replaygen.runs.certificates import make_certificates

    make_certificates(tmp_path / "tls")
    tls = {name: f"tls/{name}.pem" for name in ("ca", "cert", "key")}
    script = job_script(_table("slurm", tls=tls), tmp_path)
    assert f"--tls-ca-file {tmp_path}/tls/ca.pem --tls-cert {tmp_path}/tls/cert.pem" in script
    assert f"--tls-key {tmp_path}/tls/key.pem" in script


@pytest.mark.parametrize(
    "job",
    [{"protocol": "tcp://"}, {"security": False}, {"scheduler_options": {"dashboard_address": ":8787"}},
     {"scheduler_options": {"dashboard_address": "0.0.0.0:8787"}},
     {"scheduler_options": {"protocol": "tcp://", "security": False}}],
)  # fmt: skip
def test_listening_in_the_clear_is_refused(job: dict[str, Any], tmp_path: Path) -> None:
    """Neither the workers' protocol nor the dashboard, unless the recipe says `insecure`."""
    with pytest.raises(ReplaygenError, match="in the clear"):
        job_script(_table("slurm", job=job), tmp_path)
    assert "dask_worker" in job_script(_table("slurm", job=job, insecure=True), tmp_path)


def test_what_is_wrong_with_a_job_is_said(tmp_path: Path) -> None:
    """No memory told, a key that dask-jobqueue does not have."""
    with pytest.raises(ReplaygenError, match="how much memory"):
        job_script(RunTable(cluster="slurm", workers=1), tmp_path)
    with pytest.raises(ReplaygenError, match="walltme"):
        job_script(_table("slurm", job={"walltme": "01:00:00"}), tmp_path)


def test_the_command_prints_the_script(workspace: Workspace) -> None:
    """`replaygen cluster script`, and what it says where nothing is submitted."""
    recipe = workspace.recipe(BUILD_ONLY + '[run]\ncluster = "slurm"\nworkers = 3\nmemory = "2GB"\n')
    command = [sys.executable, "-m", "replaygen", "cluster", "script", str(recipe)]
    told = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)
    assert told["cluster"] == "slurm"
    assert told["script"].startswith("#!/usr/bin/env bash")
    assert "#SBATCH --mem=2G" in told["script"]
    local = subprocess.run([*command, "--cluster", "local"], capture_output=True, text=True)
    assert local.returncode == 1
    assert "submits no jobs" in local.stderr


SBATCH = """#!/bin/sh
# a queue of one machine: keeps the script, as the one who submits it removes it, and starts the job at once
cp "$1" "$QUEUE/$$.sh"
setsid sh "$QUEUE/$$.sh" > "$QUEUE/$$.log" 2>&1 &
echo $! > "$QUEUE/$$.pid"
echo "Submitted batch job $$"
"""
SCANCEL = """#!/bin/sh
kill -9 -$(cat "$QUEUE/$1.pid") && mv "$QUEUE/$1.pid" "$QUEUE/$1.cancelled"
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the jobs of a batch system with SLURM's commands, which are first in PATH."""
    folder = tmp_path / "queue"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("QUEUE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    yield folder
    for pid in folder.glob("*.pid"):
        subprocess.run(["kill", "-9", f"-{pid.read_text().strip()}"], check=False, capture_output=True)


def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout=3) as plain, context.wrap_socket(plain):
            return True
    except OSError:  # an error of TLS is one too; a server that waits for more speaks something else
        return False


def test_a_run_through_a_queue(tmp_path: Path, queue: Path) -> None:
    """Two jobs are submitted, their workers come over TLS, do the work, and are cancelled; temporary keys are gone."""
    tasks = [toys.toy(toys.ShardStage, number, samples=4, bytes=50) for number in range(6)]
    job = {
        "cores": 1, "worker_extra_args": ["--preload", f"'{toys.PRELOAD}'"], "local_directory": str(tmp_path),
    }  # fmt: skip
    clear, told = set[str](), Told()

    def listen(done: int) -> None:
        if done == 1:
            jobs = [int(file.read_text()) for file in queue.glob("*.pid")]
            clear.update(host for host, port in _listening([os.getpid(), *jobs]) if not _speaks_tls(host, port))
            (link,) = (note.split()[-1] for note in told.notes if "dashboard" in note)
            assert urlopen(link, timeout=30).status == 200

    told.after = listen
    with toys.registered():
        plan = toys.toy_plan(Store(tmp_path / "s"), tasks, cluster="slurm", workers=2, memory="2GB", job=job)
        run(plan, progress=told)
    assert len(_outputs(plan)) == 6
    scripts = [script.read_text() for script in queue.glob("*.sh")]
    assert len(scripts) == 2
    assert all(" tls://" in script and "tcp://" not in script for script in scripts)
    assert len(list(queue.glob("*.cancelled"))) == 2
    assert clear == {"127.0.0.1"}
    assert not list((tmp_path / "home" / ".cache" / "replaygen" / "clusters").iterdir())


def test_a_queue_that_takes_no_job_is_an_error(tmp_path: Path, queue: Path) -> None:
    """What the batch system says is told, not waited for."""
    (queue / "sbatch").write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    with toys.registered():
        plan = toys.toy_plan(
            Store(tmp_path / "s"), [toys.toy(toys.NothingStage, 1)], cluster="slurm", adapt=[0, 2], memory="2GB"
        )
        with pytest.raises(ReplaygenError, match=r"(?s)takes no job.*invalid partition"):
            run(plan)
