"""Commands about photos of other people: fetch them, look whether they may be kept, say who made them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replaygen.cli.options import Cache, Json, RecipeName, Set, Workers, open_recipe

if TYPE_CHECKING:
    from replaygen.plan import Plan
    from replaygen.runs.crawl import Revalidation

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
    from replaygen.runs.progress import Quiet, for_stream

    how = {"run.workers": workers} if workers is not None else {}
    found, store = open_recipe(recipe, changes, cache_root, how)
    planned = crawl_part(found.plan(store))
    if only_failed:
        again = ask_again(planned)
        if not as_json:
            print(f"{again} photos failed before and are asked for again")
        planned = crawl_part(found.plan(store))
    if not as_json:
        print(planned, flush=True)
    try:
        done = run(planned, progress=Quiet() if as_json else for_stream(sys.stderr))
    except KeyboardInterrupt:
        print("interrupted; what was fetched is kept, run the same command to go on", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps({"tally": done.as_json(), "classes": _classes(planned)}, ensure_ascii=False))
        return
    for line in done.lines():
        print(line)
    print()
    for row in _classes(planned):
        refused = ", ".join(f"{reason} {count}" for reason, count in sorted(row["refused"].items()))
        print(f"{row['source']}/{row['class']}: {row['candidates']} candidates, {row['fetched']} fetched, "
              f"{row['selected']} selected" + (f" ({refused})" if refused else ""))  # fmt: skip


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
            {"source": source, "class": name, "candidates": 0, "fetched": 0, "selected": None, "refused": {}},
        )
        field = {"fetch": "fetched", "select": "selected"}.get(stage, "candidates")
        row[field] = (row[field] or 0) + record.counts.accepted
        for reasons in (record.counts.rejected, record.counts.failed):
            for reason, count in reasons.items():
                row["refused"][reason] = row["refused"].get(reason, 0) + count
    for row in rows.values():
        row["selected"] = row["fetched"] if row["selected"] is None else row["selected"]
    return list(rows.values())


@app.command()
def revalidate(
    recipe: RecipeName,
    older_than: Annotated[float, typer.Option(help="leave photos alone that were looked at in the last DAYS")] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="look, but remove nothing")] = False,
    changes: Set = None,
    cache_root: Cache = None,
    as_json: Json = False,
) -> None:
    """Ask again for every photo's licence and visibility; remove what went away, with all that was made from it."""
    from datetime import timedelta

    from replaygen.runs.crawl import crawl_part, expire, revalidate
    from replaygen.stages.crawling import crawler, flickr_api

    found, store = open_recipe(recipe, changes, cache_root)
    planned = crawl_part(found.plan(store))
    where = {"crawl": found.table.run.crawl.model_dump(mode="json")}

    def told(so_far: Revalidation) -> None:
        print(f"{so_far.checked} photos looked at, {len(so_far.expired)} went away", file=sys.stderr, flush=True)

    with crawler(where, opt_out=True, robots=False) as (downloader, _, _):
        result = revalidate(
            planned, api=lambda: flickr_api(where), downloader=lambda: downloader,
            older_than=timedelta(days=older_than), told=told,
        )  # fmt: skip
    reports = expire(store, result, dry_run=dry_run, pages=found.workspace / "reports")
    if as_json:
        answer = {**asdict(result), "purged": [asdict(one) for one in reports]}
        print(json.dumps(answer, ensure_ascii=False, default=str))
        return
    verb = "would be removed" if dry_run else "removed"
    print(f"{result.checked} photos looked at, {result.skipped} looked at before, {len(result.expired)} {verb}, "
          f"{len(result.unknown)} could not be looked at")  # fmt: skip
    for photo, reason in sorted(result.expired.items()):
        print(f"  {photo}: {reason}")
    for photo, reason in sorted(result.unknown.items()):
        print(f"  {photo}: not known ({reason}), kept")


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

    found, store = open_recipe(recipe, changes, cache_root)
    planned = found.plan(store)
    crawl_part(planned)
    told = proofs(planned)
    title = found.table.title or found.name
    written = write_attribution(told, out, title=title, all_photos=all_photos or out.suffix == ".csv")
    accepted = sum(one.decision == "accepted" for one in told)
    if as_json:
        print(json.dumps({"out": str(written), "photos": len(told), "accepted": accepted}))
    else:
        print(f"wrote {written}: {accepted} photos in use, {len(told)} known")


@app.command("local-flickr")
def local_flickr(
    folder: Annotated[Path, typer.Argument(help="a folder with one sub-folder of photos per class")],
    port: Annotated[int, typer.Option(help="0: any free one")] = 0,
) -> None:
    """Serve a folder of photos on this machine by Flickr's protocol, to try a recipe without Flickr."""
    from replaygen.testing.local_flickr import serve

    serve(folder, port)
