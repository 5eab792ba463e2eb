"""Commands about the store: what is in it, whether it is right, why a key is what it is, and what can go."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from typing import Annotated

import typer

from replaygen.cli.options import Cache, Json, RecipeName, Root, Set, open_recipe, open_store
from replaygen.cli.purge import purge, tombstones

app = typer.Typer(
    no_args_is_help=True,
    help="Look into the store, clean it: ls, du, why, verify, gc, share, bring, purge, tombstones.",
)


@app.command()
def ls(root: Root = "cache", as_json: Json = False) -> None:
    """Recipes that were run here, and how many of their results stand."""
    store = open_store(root, readonly=True)
    rows = []
    for recipe, name, data in store.refs():
        slots = data.get("slots", {})
        there = sum(status.state == "cached" for status in store.statuses(set(slots.values())).values())
        rows.append({"recipe": recipe, "ref": name, "tasks": len(set(slots.values())), "standing": there})
    if as_json:
        print(json.dumps({"refs": rows}))
        return
    for row in rows:
        print(f"{row['recipe']:<30} {row['standing']:>6} of {row['tasks']} results stand")


@app.command()
def du(root: Root = "cache", as_json: Json = False) -> None:
    """Bytes by stage and by recipe."""
    from replaygen.plan.estimate import size

    report = open_store(root, readonly=True).du()
    if as_json:
        print(json.dumps({**asdict(report), "total": report.total}))
        return
    for title, rows in (("stage", report.stages), ("recipe", report.refs)):
        for name, count in sorted(rows.items(), key=lambda row: -row[1]):
            print(f"{title:<8}{name:<40}{size(count):>12}")
    print(f"unreferenced {size(report.unreferenced)}, partial {size(report.partial)}, "
          f"quarantine {size(report.quarantine)}, total {size(report.total)}")  # fmt: skip


@app.command()
def why(
    key: Annotated[str, typer.Argument(help="a key, or its first 6 or more digits")],
    root: Root = "cache",
    as_json: Json = False,
) -> None:
    """A key's ingredients, where its outputs lie, and how it differs from its nearest neighbour."""
    store = open_store(root, readonly=True)
    report = store.why(key)
    record = store.get(report.key)
    outputs = [] if record is None else [
        {"name": one.name, "samples": one.samples, "path": str(store.open_object(one.digest))} for one in record.outputs
    ]  # fmt: skip
    if as_json:
        print(json.dumps({**asdict(report), "outputs": outputs}, ensure_ascii=False))
        return
    print(f"{report.key}\nstage   {report.stage} version {report.version}, seed {report.seed}\nslot    {report.slot}")
    for name, value in report.params.items():
        text = json.dumps(value, ensure_ascii=False)
        print(f"  {name} = {text if len(text) <= 100 else text[:97] + '...'}")
    for role, source in report.inputs[:20]:
        print(f"  input {role}: {source[:16]}")
    if len(report.inputs) > 20:
        print(f"  ... and {len(report.inputs) - 20} more inputs")
    for output in outputs:
        print(f"  output {output['name']}: {output['path']}")
    if report.nearest is None:
        print("no other record of this stage")
        return
    print(f"nearest {report.nearest[:16]} ({report.nearest_slot}) differs in:")
    for name, (mine, theirs) in report.differences.items():
        print(f"  {name}: {json.dumps(mine)[:60]} here, {json.dumps(theirs)[:60]} there")


@app.command()
def verify(root: Root = "cache", as_json: Json = False) -> None:
    """Hash every object, check every record and ref; what is damaged goes to quarantine. Exit code 1 where any is."""
    report = open_store(root, reads=True).verify()
    if as_json:
        print(json.dumps({**asdict(report), "ok": report.ok}))
    else:
        print(f"{report.objects} objects, {report.records} records, {report.refs} refs checked")
        for damage in report.damaged:
            print(f"damaged {damage.kind} {damage.name}: {damage.why}")
        for key, digest in report.missing:
            print(f"missing object {digest[:16]} of record {key[:16]}")
        print("all good" if report.ok else "run the recipes again: what is damaged or missing is rebuilt")
    if not report.ok:
        sys.exit(1)


@app.command()
def gc(
    root: Root = "cache",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would go")] = False,
    as_json: Json = False,
) -> None:
    """Delete what no recipe's last run and no live run reaches."""
    from replaygen.plan.estimate import size

    report = open_store(root, readonly=dry_run).gc(dry_run=dry_run)
    if as_json:
        print(json.dumps(asdict(report)))
        return
    verb = "would delete" if dry_run else "deleted"
    print(f"{verb} {len(report.records)} records and {len(report.objects)} objects, {size(report.bytes)}; "
          f"kept {report.kept_records} records and {report.kept_objects} objects")  # fmt: skip


@app.command()
def share(
    root: Root = "cache",
    group: Annotated[str | None, typer.Option("--group", help="the group that reads and writes it")] = None,
    everyone: Annotated[bool, typer.Option("--everyone", help="with --group: all others may read it")] = False,
    private: Annotated[bool, typer.Option("--private", help="only its owner may use it")] = False,
    as_json: Json = False,
) -> None:
    """Who may use the store on this machine; with --group or --private: say who may from now on."""
    from replaygen.errors import StoreError
    from replaygen.store import Store
    from replaygen.store.sharing import keep_private, sharing_of
    from replaygen.store.sharing import share as share_with

    if "://" in root:
        raise StoreError("a bucket has no file modes", where=root, hint="its owner says who may use it: see its policy")
    if (private and (group is not None or everyone)) or (everyone and group is None):
        raise typer.BadParameter("--private stands alone, and --everyone needs --group")
    _refuse_other_files(root)
    folder = (Store(root) if group is not None or private else open_store(root, readonly=True)).root
    if group is not None:
        told = share_with(folder, group, everyone=everyone)
    else:
        told = keep_private(folder) if private else sharing_of(folder)
    if as_json:
        print(json.dumps(asdict(told)))
        return
    who = {
        "group": f"the group {told.group} reads and writes{', others may read' if told.everyone else ''}",
        "private": "only its owner may use it",
        "umask": "by each user's umask",
    }
    print(f"{folder}: {who[told.kind]}" + (f"; {told.changed} files and folders changed" if told.changed else ""))
    if told.left_count:
        print(f"{told.left_count} belong to other users, who have to give the same command: {', '.join(told.left[:3])}")


def _refuse_other_files(root: str) -> None:
    """A folder with files in it that is no store: whose they are is not for a store to decide."""
    from pathlib import Path

    from replaygen.errors import StoreError

    folder, of_a_workspace = Path(root), {"README.md", ".gitignore"}
    if (folder / "format").is_file() or not folder.is_dir():
        return
    if {path.name for path in folder.iterdir()} - of_a_workspace:
        raise StoreError(
            "this folder is no store and holds files; their modes are left as they are", where=str(folder),
            hint="name a store, or a new or empty folder",
        )  # fmt: skip


@app.command()
def bring(
    recipe: RecipeName,
    source: Annotated[str, typer.Option("--from", help="the store to copy from; it is only read")],
    changes: Set = None,
    cache_root: Cache = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would come")] = False,
    as_json: Json = False,
) -> None:
    """Copy what a recipe needs and somebody else's store has, instead of making it again."""
    from replaygen.plan.estimate import size
    from replaygen.store.also import bring as bring_from

    found, store = open_recipe(recipe, changes, cache_root, reads=dry_run)
    tasks = found.plan(store).tasks
    with nullcontext() if dry_run else store.lease(found.name, tasks):
        told = bring_from(store, open_store(source, readonly=True), tasks, dry_run=dry_run)
    if as_json:
        print(json.dumps(asdict(told)))
        return
    print(f"{'would bring' if dry_run else 'brought'} {told.records} results, {size(told.bytes)}; "
          f"{told.here} were here, {told.absent} are not to be had")  # fmt: skip


app.command()(purge)
app.command()(tombstones)
