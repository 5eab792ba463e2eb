"""Commands of the schedule: jobs that run by the clock, or when a new model stands."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replaygen.cli import completing
from replaygen.cli.options import Cache, Json, Root, Set, open_recipe, open_store

if TYPE_CHECKING:
    from datetime import datetime

    from replaygen.schedule.jobs import Job, Jobs
    from replaygen.store import Store

app = typer.Typer(
    no_args_is_help=True,
    help="Run recipes and care for the store by the clock: add, ls, rm, pause, resume, run-now, history, serve, unit.",
)

Name = Annotated[str, typer.Argument(help="the job's name", autocompletion=completing.jobs)]


def _jobs(root: str) -> tuple[Store, Jobs]:
    from replaygen.runs.ledger import Ledger
    from replaygen.schedule import Jobs

    store = open_store(root, reads=True)
    return store, Jobs(Ledger(store.root, readonly=store.readonly))


def _now() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)


@app.command()
def add(
    name: Name,
    recipe: Annotated[
        str | None,
        typer.Argument(help="a recipe's file or name; verify and gc take none", autocompletion=completing.recipes),
    ] = None,
    cron: Annotated[
        str | None, typer.Option("--cron", metavar="LINE", help='"minute hour day month weekday", or @daily')
    ] = None,
    zone: Annotated[str | None, typer.Option("--tz", metavar="ZONE", help="of --cron; default: this machine's")] = None,
    do: Annotated[
        str,
        typer.Option(
            "--do",
            help="run, verify, gc or revalidate",
            autocompletion=completing.words("run", "verify", "gc", "revalidate"),
        ),
    ] = "run",
    on: Annotated[str | None, typer.Option("--on", help="model: when a new trained model stands, not --cron")] = None,
    of: Annotated[
        str | None, typer.Option("--of", metavar="RECIPE", help="with --on model: whose; default: train.base_model")
    ] = None,
    changes: Set = None,
    cache_root: Cache = None,
    as_json: Json = False,
) -> None:
    """Add a job. In a VALUE of --set, {date} is the day when it fell due, as in 'replay.web.flickr.as_of="{date}"'."""
    from dataclasses import replace

    from replaygen.runs.ledger import Ledger
    from replaygen.schedule import Job, Jobs, ScheduleError
    from replaygen.schedule.jobs import Do, check, kept
    from replaygen.schedule.watch import state_of

    if on not in (None, "model"):
        raise ScheduleError(f"--on {on}: nothing to wait for", hint="--on model")
    if of is not None and on is None:
        raise ScheduleError("--of goes with --on model", hint="--on model --of RECIPE")
    today = _now().date().isoformat()
    tried = [change.replace("{date}", today) for change in changes or []]
    path, store = None, None
    if recipe is not None:
        found, store = open_recipe(recipe, tried, cache_root)
        path = kept(found.path)
    store = store or open_store(cache_root or "cache")
    watched = None if on is None else "" if of is None else open_recipe(of, None, store.address)[0].name
    chosen: Do = do  # type: ignore[assignment]  # checked next
    job = Job(
        name, chosen, path, cron, zone or _local_zone(), watched, tuple(changes or ()), store.address, str(Path.cwd())
    )
    check(job)
    if on is not None:
        job = replace(job, seen=state_of(job, store))
    job = Jobs(Ledger(store.root)).add(job, _now())
    if as_json:
        print(json.dumps(_plain(job), ensure_ascii=False))
        return
    print(f"{job.name}: {job.do}{f' {recipe}' if recipe else ''}, {_next_of(job) or job.when()}")
    where = "" if store.root == Path("cache").absolute() else f" --cache {store.address}"
    print(f"it runs while this does: replaygen schedule serve{where}")


def _local_zone() -> str:
    """The name of this machine's time zone; UTC where it has none."""
    try:
        from tzlocal import get_localzone_name

        return get_localzone_name() or "UTC"
    except Exception:  # no such package, or a time zone without a name
        return "UTC"


@app.command()
def ls(root: Root = "cache", as_json: Json = False) -> None:
    """The jobs: what, when, when next, and what became of the last time."""
    from replaygen.report.text import plain
    from replaygen.schedule import Ticks

    _, jobs = _jobs(root)
    ticks = Ticks(jobs.ledger)
    rows = [(job, next(iter(ticks.history(job.name, 1)), None)) for job in jobs.all()]
    if as_json:
        told = [{**_plain(job), "last": asdict(last) if last else None} for job, last in rows]
        print(json.dumps({"jobs": told}, ensure_ascii=False))
        return
    for job, last in rows:
        next_one = "paused" if job.paused else _next_of(job) or job.when()
        recipe = Path(job.recipe).stem if job.recipe else "-"
        print(plain(f"{job.name:<20} {job.do:<11}{recipe:<20} {next_one}" + (f"; last: {last.state}" if last else "")))


@app.command()
def rm(name: Name, root: Root = "cache", as_json: Json = False) -> None:
    """Remove a job; its history stays."""
    _, jobs = _jobs(root)
    jobs.remove(name)
    print(json.dumps({"removed": name}) if as_json else f"{name} is removed")


@app.command()
def pause(name: Name, root: Root = "cache", as_json: Json = False) -> None:
    """Let a job rest."""
    _, jobs = _jobs(root)
    job = jobs.pause(name)
    print(json.dumps(_plain(job), ensure_ascii=False) if as_json else f"{name} rests until it is resumed")


@app.command()
def resume(name: Name, root: Root = "cache", as_json: Json = False) -> None:
    """Let a job that rests go on, from now; what fell due meanwhile is not made up for."""
    from replaygen.schedule.watch import state_of

    store, jobs = _jobs(root)
    job = jobs.named(name)
    seen = (state_of(job, store) or job.seen) if job.cron is None else None
    job = jobs.resume(name, _now(), seen)
    print(json.dumps(_plain(job), ensure_ascii=False) if as_json else f"{name}: {_next_of(job) or job.when()}")


@app.command("run-now")
def run_now(name: Name, root: Root = "cache", as_json: Json = False) -> None:
    """Run a job at once, here, and wait for it. Exit code 1 where it fails."""
    from replaygen.cli.stopping import resumable
    from replaygen.runs.alive import is_held
    from replaygen.schedule import ScheduleError, Ticks
    from replaygen.schedule.daemon import started, stop_all
    from replaygen.schedule.perform import BUSY
    from replaygen.schedule.ticks import lock_of

    store, jobs = _jobs(root)
    job, ticks = jobs.named(name), Ticks(jobs.ledger)
    if is_held(lock_of(store.root, job.id)):
        raise ScheduleError(f"{name} is running now", hint="replaygen runs logs --follow")
    tick = ticks.extra(job, _now())
    with resumable():
        try:
            child = started(tick, job)
        except ScheduleError as error:
            ticks.end(tick.id, "failed", error.what)
            raise
        try:
            code = child.wait()
        except BaseException:
            stop_all([child])
            ticks.end(tick.id, "dropped", "stopped by hand")
            raise
    ended = ticks.get(tick.id) or tick
    if as_json:
        print(json.dumps(asdict(ended), ensure_ascii=False))
    elif code == BUSY:
        print(f"{name}: the daemon took it over: replaygen runs logs --follow")
    else:
        print(f"{name}: {ended.state}" + (f" ({ended.error})" if ended.error else ""))
        print(f"what it said: replaygen runs logs {ended.run}")
    if code not in (0, BUSY):
        if ended.state in ("due", "running"):
            ticks.end(tick.id, "failed", f"its process ended with exit code {code}")
        sys.exit(1)


@app.command()
def history(
    name: Annotated[str | None, typer.Argument(help="of this job alone", autocompletion=completing.jobs)] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="only the newest")] = 20,
    root: Root = "cache",
    as_json: Json = False,
) -> None:
    """What fell due, and what became of it; the newest first."""
    from replaygen.report.text import plain
    from replaygen.schedule import Ticks

    _, jobs = _jobs(root)
    rows = Ticks(jobs.ledger).history(name, limit)
    if as_json:
        print(json.dumps({"ticks": [asdict(row) for row in rows]}, ensure_ascii=False))
        return
    for row in rows:
        missed = f", {row.missed} before it" if row.missed else ""
        again = f", begun {row.tries} times" if row.tries > 1 else ""
        error = f": {row.error.splitlines()[0]}" if row.error else ""
        print(plain(f"{row.due[:19]}Z  {row.name:<20} {row.state}{missed}{again}  {row.run or ''}{error}"))


@app.command()
def serve(
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="jobs that may run at the same time")] = 1,
    root: Root = "cache",
    as_json: Json = False,
) -> None:
    """Run what falls due, until Ctrl-C or SIGTERM; what is stopped then goes on when this is started again."""
    from replaygen.cli.stopping import stopping
    from replaygen.logs import say
    from replaygen.schedule.daemon import Daemon, started

    store = open_store(root)
    daemon = Daemon(store, started, at_once=at_once)
    if as_json:
        print(json.dumps({"store": store.address, "jobs": [job.name for job in daemon.jobs.all()]}), flush=True)
    try:
        with stopping():
            say(f"serving {len(daemon.jobs.all())} jobs of {store.address}", jobs=len(daemon.jobs.all()))
            daemon.serve()
    except KeyboardInterrupt:
        say("stopped; what was interrupted goes on when this is started again")


@app.command()
def unit(
    environment: Annotated[
        Path | None, typer.Option(help="a file of NAME=VALUE lines with the secrets, readable for you alone")
    ] = None,
    root: Root = "cache",
    as_json: Json = False,
) -> None:
    """Print a systemd unit that serves the schedule; where to put it is its first line."""
    from replaygen.schedule.unit import unit as made

    store = open_store(root, reads=True)
    command = [sys.executable, "-m", "replaygen", "schedule", "serve", "--cache", store.address]
    text, where = made(command, Path.cwd(), environment), "~/.config/systemd/user/replaygen.service"
    if as_json:
        print(json.dumps({"file": where, "unit": text}, ensure_ascii=False))
        return
    print(f"# {where}, then: systemctl --user enable --now replaygen")
    print(text, end="")


@app.command(hidden=True)
def tick(number: Annotated[int, typer.Argument()], root: Root = "cache") -> None:
    """Do one tick; the daemon starts this."""
    from replaygen.cli.stopping import resumable
    from replaygen.logs import start
    from replaygen.schedule.perform import perform

    def command(arguments: list[str]) -> int:
        from replaygen.cli.app import app as whole

        start(timed=True)
        sys.argv = ["replaygen", *arguments]
        code = typer.main.get_command(whole).main(arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0

    with resumable():
        code = perform(open_store(root), number, command)
    if code:
        raise typer.Exit(code)


def _plain(job: Job) -> dict[str, Any]:
    told = {**asdict(job), "horizon": job.horizon.isoformat(), "changes": list(job.changes)}
    next_one = None if job.cron is None or job.paused else _due(job)
    return {**told, "next": next_one.isoformat() if next_one else None}


def _due(job: Job) -> datetime | None:
    from replaygen.schedule.times import Cron

    return Cron(job.cron or "", job.zone).next(_now())


def _next_of(job: Job) -> str:
    """When a job falls due next, by its own wall clock; empty where no clock says so."""
    from zoneinfo import ZoneInfo

    due = _due(job) if job.cron is not None else None
    return f"next on {due.astimezone(ZoneInfo(job.zone)):%a %Y-%m-%d %H:%M} ({job.zone})" if due is not None else ""
