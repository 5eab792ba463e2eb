"""The commands that take photos out of the store, with all that was made from them, and tell which were taken."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replaygen.cli.options import Json, Root, open_store

if TYPE_CHECKING:
    from replaygen.store import PurgeReport, Store


def purge(
    photo: Annotated[
        list[str] | None,
        typer.Option("--photo", help="a photo id (flickr-53412) or a sample id (cow-flickr-53412); repeatable"),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="kept with the photo's tombstone")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would go")] = False,
    reports: Annotated[
        Path | None,
        typer.Option("--reports", help="a folder of pages, looked through beside ./reports and the store's own"),
    ] = None,
    lift: Annotated[
        str | None, typer.Option("--lift", metavar="PHOTO", help="only remove the tombstone of a photo that is purged")
    ] = None,
    unseen: Annotated[bool, typer.Option("--unseen", help="bury also what nothing in the store holds")] = False,
    root: Root = "cache",
    as_json: Json = False,
) -> None:
    """Remove photos and all that was made from them, and see that they never come back.

    Photos with the very same bytes go too. An id that nothing in the store holds is refused without --unseen.

    Without --photo it finishes a purge that was interrupted.
    """
    from replaygen.errors import StoreError

    store = open_store(root, readonly=dry_run)
    if lift is not None:
        if photo or reason or dry_run or reports:
            raise typer.BadParameter("it stands alone, with --cache and --json only", param_hint="--lift")
        _lift(store, lift, as_json)
        return
    folders = _page_folders(store, reports)
    if photo and not unseen and (unknown := store.purge(photo, reason, dry_run=True, pages=folders).unknown):
        raise StoreError(
            f"nothing in the store holds {', '.join(unknown)}; nothing was changed", where=str(store.root),
            hint="`replaygen crawl attribution` tells the ids; --unseen buries it all the same, so that it never comes",
        )  # fmt: skip
    report = store.purge(photo or (), reason, dry_run=dry_run, pages=folders)
    if as_json:
        print(json.dumps(asdict(report)))
        return
    for line in _lines(report):
        print(line)


def tombstones(root: Root = "cache", as_json: Json = False) -> None:
    """The photos that were purged and may never come back: when, and why."""
    from replaygen.report.text import plain

    found = open_store(root, readonly=True).tombstones()
    if as_json:
        print(json.dumps({"tombstones": [asdict(one) for one in found.values()]}, ensure_ascii=False))
        return
    for one in found.values():
        state = "" if one.done else " (not purged yet: run `replaygen cache purge`)"
        print(f"{one.photo:<40} {plain(one.at) or 'not known':<22}{plain(one.reason)}{state}".rstrip())


def _page_folders(store: Store, named: Path | None) -> list[Path]:
    """Where pages may lie: beside the store, in the current folder, and where it was said."""
    from replaygen.errors import StoreError

    if named is not None and not named.is_dir():
        raise StoreError("no folder of reports here", where=str(named), hint="give --reports the folder of the pages")
    own = [store.root.parent / "reports", Path("reports").absolute()]
    return [*own, named.absolute()] if named is not None else own


def _lift(store: Store, photo: str, as_json: bool) -> None:
    lifted = store.lift(photo)
    if as_json:
        print(json.dumps({"lifted": lifted.photo}))
        return
    print(f"{lifted.photo} may be fetched again from now on")
    print(
        "its slice is made again, the other photos too; a search that was cut down offers it only once it is made anew"
    )


def _lines(report: PurgeReport) -> list[str]:
    from replaygen.plan.estimate import size

    if not report.photos:
        return ["no photo was named, and no purge is unfinished; name one with --photo"]
    verb = "would delete" if report.dry_run else "deleted"
    held, buried = ("holds", "would be") if report.dry_run else ("held", "is")
    lines = [
        f"nothing in the store {held} {photo}; it {buried} buried all the same, so that it is never taken"
        for photo in report.unknown
    ]
    lines += [f"weights that were trained with them: {verb} {slot}" for slot in report.weights]
    lines += [f"pages that show them, or may: {verb} {page}" for page in report.pages]
    lines.append(
        f"{verb} {len(report.records)} records, {len(report.objects)} objects, unfinished work of "
        f"{len(report.partial)} tasks, {size(report.bytes)} in all"
    )
    if report.derived or report.searches:
        kept = "would be kept" if report.dry_run else "are kept"
        lines.append(
            f"the other photos of {len(report.derived)} slices {kept}; {len(report.searches)} searches "
            "keep nothing of them but their ids"
        )
    if report.quarantine:
        lines.append(f"{verb} all {len(report.quarantine)} quarantined files, which may hold them")
    if report.dry_run:
        lines.append(f"nothing was changed; {len(report.photos)} photos would never come back")
    else:
        lines.append(
            f"{len(report.photos)} photos will never come back; run your recipes to rebuild what was made with them"
        )
        lines.append(
            "files outside the store and its reports are yours to delete: photos in folders, ATTRIBUTION.md, pictures"
        )
    return lines
