"""Commands about photos of other people: fetch them, look whether they may be kept, say who made them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replaygen.cli.options import Cache, Json, RecipeName, Set, Workers, asked, open_recipe
from replaygen.cli.stopping import resumable

if TYPE_CHECKING:
    from replaygen.plan import Plan
    from replaygen.runs.crawl import Revalidation

_HINTS = {
    "private-address": "REPLAYGEN_ALLOW_HOSTS names hosts (host or host:port) of your own that may be asked",
    "bad-address": "REPLAYGEN_ALLOW_HOSTS allows other ports than 80, 443 and 8000 to 8999 (host:port)",
    "too-large": "run.crawl.most_mb is what one photo may have",
    "tls": "its certificate is not one that this machine trusts",
}
"""What can be done about refusals that hang on the environment or on `[run.crawl]`."""
_MOST_SHARE, _FEW = 0.2, 5
"""Photos that may go away at once without being asked: a fifth, or a few."""

app = typer.Typer(no_args_is_help=True, help="Photos of other people: fetch, revalidate, attribution, local-flickr.")


@app.command()
def fetch(
    recipe: RecipeName,
    only_failed: Annotated[bool, typer.Option("--only-failed", help="ask again for what failed")] = False,
    changes: Set = None,
    cache_root: Cache = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Search, fetch and screen the photos of a recipe, without labelling or training; goes on where it stopped."""
    from replaygen.runs import run
    from replaygen.runs.crawl import ask_again, crawl_part
    from replaygen.runs.progress import for_stream
    from replaygen.runs.recorder import recording

    how = {"run.workers": workers} if workers is not None else {}
    with resumable():
        found, store = open_recipe(recipe, changes, cache_root, how)
        with recording(store, asked(), shown=for_stream(sys.stderr, quiet=as_json)) as recorder:
            recorder.recipe(found)
            planned = crawl_part(found.plan(store))
            if only_failed:
                again = ask_again(planned)
                if not as_json:
                    print(f"{again} photos failed before and are asked for again")
                planned = crawl_part(found.plan(store))
            if not as_json:
                print(planned, flush=True)
            done = run(planned, progress=recorder, folder=recorder.folder)
            recorder.finished(done)
    if as_json:
        print(json.dumps({"tally": done.as_json(), "classes": _classes(planned)}, ensure_ascii=False))
        return
    for line in done.lines():
        print(line)
    print()
    rows = _classes(planned)
    for row in rows:
        refused = ", ".join(f"{reason} {count}" for reason, count in sorted(row["refused"].items()))
        short = f", {row['shortfall']} short of {row['wanted']}" if row["shortfall"] else ""
        gone = f", {row['purged']} purged" if row["purged"] else ""
        print(f"{row['source']}/{row['class']}: {row['candidates']} candidates, {row['fetched']} fetched, "
              f"{row['selected']} selected{short}{gone}" + (f" ({refused})" if refused else ""))  # fmt: skip
    for reason, hint in _HINTS.items():
        if any(reason in row["refused"] for row in rows):
            print(f"{reason}: {hint}; then: replaygen crawl fetch {recipe} --only-failed")


def _classes(planned: Plan) -> list[dict[str, Any]]:
    """Per source and class: candidates, fetched, selected, and what was refused by reason."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for slot, key in planned.slots.items():
        stage, record = planned.tasks[key].stage, planned.store.get(key)
        if record is None or stage not in ("flickr-search", "url-list", "fetch", "select"):
            continue
        _, source, name = slot.split("/")[:3]
        row = rows.setdefault(
            (source, name),
            {"source": source, "class": name, "wanted": planned.recipe.table.replay[source].count, "candidates": 0,
             "fetched": 0, "selected": None, "purged": 0, "refused": {}},
        )  # fmt: skip
        field = {"fetch": "fetched", "select": "selected"}.get(stage, "candidates")
        row[field] = (row[field] or 0) + record.counts.accepted
        row["purged"] += len(record.params.get("without", ()))
        for reasons in (record.counts.rejected, record.counts.failed):
            for reason, count in reasons.items():
                row["refused"][reason] = row["refused"].get(reason, 0) + count
    for row in rows.values():
        row["selected"] = row["fetched"] if row["selected"] is None else row["selected"]
        row["shortfall"] = max(0, row["wanted"] - row["selected"])
    return list(rows.values())


@app.command()
def revalidate(
    recipe: RecipeName,
    older_than: Annotated[float, typer.Option(help="leave photos alone that were looked at in the last DAYS")] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="look, but remove and write nothing")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="remove also where it is more than a fifth of the photos")] = False,
    changes: Set = None,
    cache_root: Cache = None,
    as_json: Json = False,
) -> None:
    """Ask again for every photo's licence and visibility; remove what went away, with all that was made from it."""
    from datetime import timedelta

    from replaygen.errors import DataError
    from replaygen.logs import say
    from replaygen.runs.crawl import crawl_part, expire, revalidate
    from replaygen.stages.crawling import downloader_of, flickr_api

    found, store = open_recipe(recipe, changes, cache_root)
    planned = crawl_part(found.plan(store))
    where = {"crawl": found.table.run.crawl.model_dump(mode="json")}

    def told(so_far: Revalidation) -> None:
        say(f"{so_far.checked} photos looked at, {len(so_far.expired)} went away", checked=so_far.checked)

    result = revalidate(
        planned, api=lambda: flickr_api(where), downloader=lambda opt_out: downloader_of(where, opt_out=opt_out),
        older_than=timedelta(days=older_than), note=not dry_run, told=told,
    )  # fmt: skip
    many = len(result.expired) > max(_FEW, _MOST_SHARE * result.checked) and not (yes or dry_run)
    purged = not (dry_run or many)
    reports = [] if many else expire(store, result, dry_run=dry_run, pages=found.workspace / "reports")
    if as_json:
        answer = {**asdict(result), "removed": purged, "purged": [asdict(one) for one in reports]}
        print(json.dumps(answer, ensure_ascii=False, default=str))
    else:
        verb = "removed" if purged else "would be removed"
        print(f"{result.checked} photos looked at, {result.skipped} looked at before, {len(result.expired)} {verb}, "
              f"{len(result.unknown)} could not be looked at")  # fmt: skip
        for photo, reason in sorted(result.expired.items()):
            print(f"  {photo}: {reason}")
        for photo, reason in sorted(result.unknown.items()):
            print(f"  {photo}: not known ({reason}), kept")
    if result.stopped:
        raise DataError(
            f"stopped early: {result.stopped}", where=str(found.path), hint="is the network there? run it again later"
        )
    if many:
        raise DataError(
            f"{len(result.expired)} of {result.checked} photos went away at once, so nothing was removed",
            where=str(found.path), hint="see whether that can be; then run it again with --yes",
        )  # fmt: skip


@app.command()
def attribution(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option("--out", help="ATTRIBUTION.md or a .csv")] = Path("ATTRIBUTION.md"),
    all_photos: Annotated[bool, typer.Option("--all", help="also photos that were refused, with the reason")] = False,
    changes: Set = None,
    cache_root: Cache = None,
    as_json: Json = False,
) -> None:
    """Write who made every photo, under which licence, and what was done with it."""
    from replaygen.report.attribution import write_attribution
    from replaygen.runs.crawl import crawl_part
    from replaygen.runs.proof import proofs

    found, store = open_recipe(recipe, changes, cache_root, reads=True)
    planned = found.plan(store)
    crawl_part(planned)
    told = proofs(planned)
    title = found.table.title or found.name
    written = write_attribution(told, out, title=title, all_photos=all_photos or None)
    accepted = sum(one.decision == "accepted" for one in told)
    if as_json:
        print(json.dumps({"out": str(written), "photos": len(told), "accepted": accepted}))
    else:
        print(f"wrote {written}: {accepted} photos in use, {len(told)} known")


@app.command("local-flickr")
def local_flickr(
    folder: Annotated[Path, typer.Argument(help="a folder with one sub-folder of photos per class")],
    port: Annotated[int, typer.Option(help="0: any free one")] = 0,
    as_json: Json = False,
) -> None:
    """Serve a folder of photos on this machine by Flickr's protocol, to try a recipe without Flickr."""
    from replaygen.errors import DataError
    from replaygen.testing.local_flickr import serve

    if not folder.is_dir() or not any(path.is_dir() and any(path.glob("*.[jJpP]*")) for path in folder.iterdir()):
        raise DataError(
            "no folder with photos by class", where=str(folder), hint="give a folder that holds one folder a class"
        )
    try:
        if as_json:
            _serve_as_json(folder, port)
        else:
            serve(folder, port)
    except OSError as error:
        raise DataError(f"cannot serve: {error.strerror}", where=f"port {port}", hint="give another --port") from None


def _serve_as_json(folder: Path, port: int) -> None:
    """The same with one object, in place of lines to export, as soon as it can be asked."""
    import contextlib
    import threading
    from collections import Counter

    from replaygen.testing.local_flickr import LocalFlickr

    with contextlib.suppress(KeyboardInterrupt), LocalFlickr(folder, port=port) as flickr:
        photos = Counter(photo.words[0] for photo in flickr.photos.values())
        told = {"environment": flickr.environment(), "photos": dict(sorted(photos.items()))}
        print(json.dumps(told, ensure_ascii=False), flush=True)
        threading.Event().wait()
