"""Row 19: overlap, missed ticks, daylight saving, a clock that is moved, kills: no tick is done twice, none is lost."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import BUILD_ONLY, Workspace
from test_store_support import publish, skip_syncs

from replaygen.errors import ReplaygenError
from replaygen.plan.workspace import shipped
from replaygen.runs import ledger
from replaygen.runs.alive import held, is_held
from replaygen.runs.ledger import Ledger
from replaygen.schedule import Job, Jobs, ScheduleError, Tick, Ticks
from replaygen.schedule.daemon import MOST_KILLED, MOST_STARTS, Daemon, started
from replaygen.schedule.jobs import kept
from replaygen.schedule.perform import BUSY, perform
from replaygen.schedule.rehearsal import rehearse
from replaygen.schedule.ticks import lock_of
from replaygen.schedule.times import MOST_COUNTED
from replaygen.schedule.unit import unit
from replaygen.schedule.watch import NOTHING, Watch, state_of, trained
from replaygen.store import Store, fsops

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


class Desk:
    """A store with a schedule, a clock that is set by hand, and processes that only note what they were asked."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.ledger = Ledger(self.store.root)
        self.jobs, self.ticks = Jobs(self.ledger), Ticks(self.ledger)
        self.now = NOON

    def add(self, name: str, cron: str | None, **settings: object) -> Job:
        job = Job(name, "gc", cron=cron, address=self.store.address, folder=str(self.store.root.parent))
        return self.jobs.add(replace(job, **settings), self.now)  # type: ignore[arg-type]

    def due(self, name: str, **later: float) -> Tick | None:
        """Time passes; the tick that falls due then."""
        self.now += timedelta(**later)
        return self.ticks.fall_due(self.jobs.named(name), self.now)

    def do(self, tick: Tick, code: int = 0) -> int:
        return perform(self.store, tick.id, lambda arguments: code, redirect=False)


@pytest.fixture(autouse=True)
def _without_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only power cuts would tell the difference."""
    monkeypatch.setattr(ledger, "synchronous", "OFF")
    monkeypatch.setattr(fsops, "trace", skip_syncs)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "store")


# ticks


def test_what_was_missed_is_one_tick(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")
    assert desk.due("nightly", hours=1) is None
    tick = desk.due("nightly", days=5)
    assert tick is not None
    assert (tick.due, tick.missed) == ("2026-06-06T03:00:00.000000+00:00", 4)
    assert desk.due("nightly") is None


def test_a_tick_that_waits_is_replaced_by_a_later_one_and_counted(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")
    first = desk.due("nightly", days=2)
    second = desk.due("nightly", days=1)
    assert first is not None
    assert second is not None
    assert second.missed == 2
    assert [tick.state for tick in desk.ticks.history()] == ["due", "coalesced"]


def test_a_clock_moved_a_year_on_makes_one_tick_and_moved_back_none_twice(desk: Desk) -> None:
    desk.add("minutely", "* * * * *")
    begin = time.process_time()
    tick = desk.due("minutely", days=365)
    assert tick is not None
    assert tick.missed == MOST_COUNTED - 1
    assert time.process_time() - begin < 5  # not half a million looks
    desk.do(tick)
    assert desk.due("minutely", days=-365) is None
    assert desk.due("minutely", seconds=30) is None
    again = desk.due("minutely", minutes=1)
    assert again is not None  # the job goes on at once
    assert again.due == "2026-06-01T12:01:00.000000+00:00"
    desk.do(again)
    assert desk.due("minutely", minutes=-1, seconds=-10) is None
    assert desk.due("minutely", minutes=1) is None  # that minute has had its tick
    assert sum(tick.state == "done" for tick in desk.ticks.history()) == 2


def test_a_job_that_rests_makes_up_for_nothing(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")
    desk.jobs.pause("nightly")
    assert desk.due("nightly", days=3) is None
    desk.jobs.resume("nightly", desk.now)
    assert desk.due("nightly", hours=1) is None
    tick = desk.due("nightly", days=1)
    assert tick is not None
    assert tick.missed == 0


def test_two_lookers_make_one_tick(desk: Desk) -> None:
    job = desk.add("nightly", "0 3 * * *")
    desk.now += timedelta(days=1)
    assert desk.ticks.fall_due(job, desk.now) is not None
    assert desk.ticks.fall_due(job, desk.now) is None  # with the same, old, knowledge


def test_a_done_tick_is_not_done_again_and_a_failed_one_neither(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")
    tick = desk.due("nightly", days=1)
    assert tick is not None
    assert desk.do(tick) == 0
    assert desk.do(tick) == BUSY
    tick = desk.due("nightly", days=1)
    assert tick is not None
    with pytest.raises(SystemExit):
        desk.do(tick, code=3)
    assert desk.do(tick) == BUSY
    failed = desk.ticks.get(tick.id)
    assert failed is not None
    assert (failed.state, failed.error, failed.tries) == ("failed", "exit code 3", 1)
    assert desk.ledger.run(str(failed.run)).state == "failed"


def test_an_interrupted_tick_stays_open(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")
    tick = desk.due("nightly", days=1)
    assert tick is not None
    with pytest.raises(SystemExit):
        desk.do(tick, code=143)
    assert [one.state for one in desk.ticks.open()] == ["interrupted"]
    assert desk.do(tick) == 0
    assert [one.tries for one in desk.ticks.history()] == [2]


def test_no_job_runs_beside_itself(desk: Desk) -> None:
    job = desk.add("nightly", "0 3 * * *")
    tick = desk.due("nightly", days=1)
    assert tick is not None
    path = lock_of(desk.store.root, job.id)
    path.parent.mkdir()
    with held(path) as mine:
        assert mine
        assert desk.do(tick) == BUSY
        assert is_held(path)
    assert not is_held(path)
    assert desk.do(tick) == 0


def test_a_tick_killed_at_any_border_of_the_ledger_is_done_once(desk: Desk) -> None:
    """SIGKILL before and after each transaction of a tick's process; begun again, the work stands exactly once."""
    desk.add("nightly", "0 3 * * *")
    borders = 0
    while True:
        tick = desk.due("nightly", days=1)
        assert tick is not None
        status = _forked(desk, tick, borders)
        done_then = desk.ticks.get(tick.id)
        assert done_then is not None
        _forked(desk, tick, None)
        now = desk.ticks.get(tick.id)
        assert now is not None
        assert now.state == "done"
        if status == 0:
            break
        runs = [run for run in desk.ledger.runs() if run.tick == tick.id]
        assert [run.state for run in runs].count("done") == 1
        assert all(run.state in ("done", "died") for run in runs)
        borders += 1
    assert borders >= 8


def _forked(desk: Desk, tick: Tick, border: int | None) -> int:
    pid = os.fork()
    if pid == 0:
        from replaygen.schedule.rehearsal import _kill_at

        if border is not None:
            _kill_at(border)
        os._exit(0 if desk.do(tick) in (0, BUSY) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# the daemon


class Ends:
    """A process that has ended already."""

    def __init__(self, code: int) -> None:
        self.pid, self.code = 2**22 + 5, code

    def poll(self) -> int:
        return self.code

    def terminate(self) -> None:
        raise AssertionError("it has ended")

    def wait(self, timeout: float | None = None) -> int:
        return self.code


def daemon_of(desk: Desk, act: Callable[[Tick], int]) -> Daemon:
    return Daemon(
        desk.store, lambda tick, job: Ends(act(tick)), clock=lambda: desk.now, tell=lambda message, **more: None
    )


def test_the_daemon_runs_what_falls_due(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")
    desk.add("weekly", "0 4 * * 0")
    daemon = daemon_of(desk, desk.do)
    for _ in range(14 * 24):
        desk.now += timedelta(hours=1)
        daemon.look()
    daemon.look()
    names = [tick.name for tick in desk.ticks.history() if tick.state == "done"]
    assert (names.count("nightly"), names.count("weekly")) == (14, 2)


@pytest.mark.parametrize("state", ["due", "running", "interrupted"])
def test_a_process_that_never_starts_is_a_failure_not_a_loop(desk: Desk, state: str) -> None:
    """Also of a tick that was begun before, by a daemon that is gone."""
    desk.add("nightly", "0 3 * * *")
    tick = desk.due("nightly", days=1)
    assert tick is not None
    if state != "due":
        desk.ticks.claim(tick.id)
    if state == "interrupted":
        desk.ticks.end(tick.id, state)
    asked: list[int] = []
    daemon = daemon_of(desk, lambda tick: asked.append(tick.id) or 1)
    for _ in range(3 * MOST_STARTS):
        daemon.look()
    assert len(asked) == MOST_STARTS
    assert [tick.state for tick in desk.ticks.history()] == ["failed"]


def test_a_tick_that_always_kills_its_process_is_named_in_the_end(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")

    def killed(tick: Tick) -> int:
        desk.ticks.claim(tick.id)
        return -9

    daemon = daemon_of(desk, killed)
    desk.now += timedelta(days=1)
    for _ in range(2 * MOST_KILLED):
        daemon.look()
    (tick,) = desk.ticks.history()
    assert (tick.state, tick.error) == ("failed", f"its process was killed {MOST_KILLED} times")


def test_a_tick_that_takes_the_daemon_with_it_is_named_in_the_end(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")
    desk.now += timedelta(days=1)
    for _ in range(2 * MOST_KILLED):
        daemon_of(desk, lambda tick: -9 if desk.ticks.claim(tick.id) else BUSY).look()
    (tick,) = desk.ticks.history()
    assert (tick.state, tick.tries) == ("failed", MOST_KILLED)


def test_stops_in_order_are_no_kills(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")

    def stopped(tick: Tick) -> int:
        with contextlib.suppress(SystemExit):
            desk.do(tick, code=143)
        return 143

    def killed(tick: Tick) -> int:
        desk.ticks.claim(tick.id)
        return -9

    acts = [*[stopped] * (MOST_KILLED + 1), killed, desk.do]
    daemon = daemon_of(desk, lambda tick: acts.pop(0)(tick))
    desk.now += timedelta(days=1)
    for _ in range(len(acts)):
        daemon.look()
    (tick,) = desk.ticks.history()
    assert (tick.state, tick.tries) == ("done", MOST_KILLED + 3)


class Stubborn(Ends):
    """A process that has to be killed to stop."""

    def poll(self) -> int:
        return None  # type: ignore[return-value]

    def terminate(self) -> None:
        pass


def test_a_run_that_had_to_be_killed_to_stop_was_stopped_in_order(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")
    desk.now += timedelta(days=1)

    def begun(tick: Tick, job: Job) -> Stubborn:
        desk.ticks.claim(tick.id)
        desk.ledger.begin("one", "x", who="me", tick=tick.id)
        desk.ticks.runs_as(tick.id, "one")
        return Stubborn(-9)

    daemon = Daemon(desk.store, begun, clock=lambda: desk.now, tell=lambda message, **more: None)
    daemon.look()
    assert desk.ledger.run("one").state == "died"
    daemon.stop()
    assert desk.ledger.run("one").state == "interrupted"
    assert [tick.state for tick in desk.ticks.open()] == ["interrupted"]


def test_a_job_whose_folder_is_gone_fails_and_the_daemon_goes_on(desk: Desk, tmp_path: Path) -> None:
    desk.add("bad", "0 2 * * *", folder=str(tmp_path / "gone"))
    told: list[str] = []
    daemon = Daemon(
        desk.store, started, clock=lambda: desk.now, tell=lambda message, **more: told.append(message)
    )  # fmt: skip
    desk.now += timedelta(days=1)
    daemon.look()
    daemon.look()
    (tick,) = desk.ticks.history()
    assert tick.state == "failed"
    assert str(tmp_path / "gone") in str(tick.error)
    assert [str(tmp_path / "gone") in message for message in told] == [False, True]  # it fell due; it failed


def test_a_model_that_cannot_be_read_is_no_matter_of_other_jobs(workspace: Workspace, desk: Desk) -> None:
    (workspace.root / "model.safetensors").symlink_to("gone")
    path = workspace.recipe(BUILD_ONLY + f'\n[train]\nbase_model = "{workspace.root}"\n')
    desk.add("bad", None, watched="", do="run", recipe=str(path))
    desk.add("good", "0 3 * * *")
    desk.now += timedelta(days=1)
    daemon_of(desk, desk.do).look()
    assert [(tick.name, tick.state) for tick in desk.ticks.history()] == [("good", "done")]


def test_a_job_that_is_wrong_does_not_keep_others_from_running(desk: Desk, tmp_path: Path) -> None:
    desk.add("bad", None, watched="", do="run", recipe=str(tmp_path / "gone.toml"))
    desk.add("good", "0 3 * * *")
    daemon = daemon_of(desk, desk.do)
    desk.now += timedelta(days=1)
    daemon.look()
    assert [(tick.name, tick.state) for tick in desk.ticks.history()] == [("good", "done")]


def test_what_a_removed_job_left_is_dropped(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")
    assert desk.due("nightly", days=1) is not None
    desk.jobs.remove("nightly")
    daemon_of(desk, desk.do).look()
    assert [tick.state for tick in desk.ticks.history()] == ["dropped"]


def test_days_with_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    """The daemon and its ticks are killed again and again; every due moment is accounted for, once."""
    told = rehearse(tmp_path, months=0.4, seed=3)
    assert (told.double, told.lost, told.overlaps) == (0, 0, 0)
    assert told.due == told.ticks + told.coalesced
    assert told.due >= 30
    assert sum(told.kills.values()) >= 2


@pytest.mark.soak
def test_ten_months_with_kills_lose_and_double_nothing(tmp_path: Path) -> None:
    told = rehearse(tmp_path, months=10, seed=1)
    assert (told.double, told.lost, told.overlaps) == (0, 0, 0)
    assert told.due == told.ticks + told.coalesced
    assert told.due >= 900
    assert min(told.kills.values()) >= 10


# models


def test_a_job_on_a_model_ticks_when_another_one_stands(desk: Desk) -> None:
    job = desk.add("rebuild", None, watched="base")
    assert trained(desk.store, "base") == NOTHING
    seen = []
    for seed in (1, 2):
        made = publish(desk.store, {"seed": seed}, b"weights %d" % seed)
        desk.store.write_ref("base", "plan", {"slots": {"train/base/seed0/step0": made.key}})
        seen.append(state_of(job, desk.store))
        tick = desk.ticks.changed(desk.jobs.named("rebuild"), seen[-1], desk.now + timedelta(hours=seed))
        assert tick is not None
        assert desk.ticks.changed(job, seen[-1], desk.now) is None  # told once
    assert NOTHING != seen[0] != seen[1]


def test_a_run_gives_one_tick_and_models_that_vanish_none(desk: Desk) -> None:
    """Not when a training begins, not between its seeds, not when gc takes a model, not when the same one is back."""
    watch, job = Watch(desk.store), desk.add("rebuild", None, watched="base")

    def looked(models: dict[str, bytes], made: set[str]) -> bool:
        nonlocal job
        keys = {slot: publish(desk.store, {"s": slot, "v": str(data)}, data).key for slot, data in models.items()}
        lacking = {slot: "0" * 64 for slot in models if slot not in made}
        desk.store.write_ref("base", "plan", {"slots": {**keys, **lacking}})
        seen = watch.look(job)
        job = replace(job, seen=seen)
        return seen != before[-1] and not before.append(seen)

    before = [NOTHING]
    first = {"train/base/seed0/step0": b"1", "train/base/seed1/step0": b"2"}
    second = {"train/base/seed0/step0": b"3", "train/base/seed1/step0": b"4"}
    assert not looked(first, set())
    assert not looked(first, {"train/base/seed0/step0"})
    assert looked(first, set(first))
    assert not looked({}, set())
    assert not looked(first, set())
    assert not looked(first, set(first))
    assert not looked(second, {"train/base/seed1/step0"})
    assert looked(second, set(second))


def test_a_base_model_is_looked_at_by_its_bytes(workspace: Workspace, desk: Desk) -> None:
    folder = workspace.root / "mine"
    folder.mkdir()
    path = workspace.recipe(BUILD_ONLY + f'\n[train]\nbase_model = "{folder}"\n')
    (folder / "model.safetensors").write_bytes(b"one")
    job = desk.add("rebuild", None, watched="", do="run", recipe=str(path))
    job = replace(job, seen=state_of(job, desk.store))
    watch = Watch(desk.store)
    assert [watch.look(job) for _ in range(2)] == [job.seen] * 2
    (folder / "model.safetensors").write_bytes(b"two!")
    assert watch.look(job) == job.seen  # it may still be written
    assert watch.look(job) not in (job.seen, NOTHING)
    (folder / "model.safetensors").unlink()
    assert [watch.look(job) for _ in range(2)] == [job.seen] * 2


def test_a_base_model_is_looked_for_with_the_changes_of_the_job(workspace: Workspace, desk: Desk) -> None:
    workspace.recipe(BUILD_ONLY + '\n[train]\nbase_model = "mine"\n', "build")
    for name in ("mine", "other"):
        (workspace.root / name).mkdir()
        (workspace.root / name / "model.safetensors").write_bytes(name.encode())
    job = desk.add("rebuild", None, watched="", do="run", recipe="build", folder=str(workspace.root))
    other = replace(job, changes=('train.base_model="other"',))
    assert NOTHING != state_of(job, desk.store) != state_of(other, desk.store)


# jobs


@pytest.mark.parametrize(
    "changes",
    [{"name": "../x"}, {"name": ""}, {"do": "purge"}, {"cron": None}, {"watched": "base"}, {"do": "run"},
     {"recipe": "x.toml"}, {"changes": ("a=1",)}, {"zone": "Mars"}, {"cron": None, "watched": ""}],
)  # fmt: skip
def test_a_job_that_cannot_be_is_refused(desk: Desk, changes: dict[str, object]) -> None:
    with pytest.raises(ReplaygenError):
        desk.add(str(changes.pop("name", "job")), changes.pop("cron", "0 3 * * *"), **changes)  # type: ignore[arg-type]
    assert desk.jobs.all() == []


def test_a_command_has_the_day_of_its_tick(desk: Desk) -> None:
    job = desk.add("weekly", "30 0 * * *", do="run", recipe="x.toml", zone="Europe/Rome", changes=('a.as_of="{date}"',))
    due = datetime(2026, 6, 1, 22, 30, tzinfo=UTC)  # 0:30 of the next day in Rome
    told = ["run", "x.toml", "--cache", desk.store.address, "--set", 'a.as_of="2026-06-02"']
    assert job.arguments(due) == told


def test_photos_are_looked_at_again_every_day(desk: Desk) -> None:
    """Yesterday's look is some seconds more or less than a day ago."""
    job = desk.add("photos", "@daily", do="revalidate", recipe="x.toml")
    told = job.arguments(NOON)
    assert told[:2] == ["crawl", "revalidate"]
    assert float(told[told.index("--older-than") + 1]) < 0.5


def test_installed_recipes_are_kept_by_name(tmp_path: Path) -> None:
    installed = sorted((shipped() / "pipelines").glob("*.toml"))[0]
    assert kept(installed) == installed.stem
    assert kept(tmp_path / "pipelines" / installed.name) == str(tmp_path / "pipelines" / installed.name)


def test_a_name_is_taken_once_and_unknown_names_have_a_hint(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")
    with pytest.raises(ScheduleError, match="already"):
        desk.add("nightly", "0 4 * * *")
    with pytest.raises(ScheduleError, match="nightly"):
        desk.jobs.remove("nihgtly")


def test_nothing_in_the_ledger_is_pickled(desk: Desk) -> None:
    desk.add("nightly", "0 3 * * *")
    columns = {type(value) for row in desk.ledger.ask("SELECT * FROM jobs") for value in tuple(row)}
    assert columns <= {str, int, type(None)}


def test_a_unit_quotes_what_systemd_would_read_otherwise() -> None:
    text = unit(["/usr/bin/python3", "-m", "replaygen", "--cache", '/a b/50%/$x"'], Path("/a b/50%"), Path("/e"))
    assert 'ExecStart=/usr/bin/python3 -m replaygen --cache "/a b/50%%/$$x\\""' in text
    assert "WorkingDirectory=/a b/50%%" in text
    assert "EnvironmentFile=/e" in text
    assert "OOMPolicy=continue" in text.splitlines()
    with pytest.raises(ScheduleError):
        unit(["x"], Path("/a\nExecStart=/bin/evil"))
