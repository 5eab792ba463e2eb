"""The command that takes photos out of the store, with all that was made from them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replaygen.cli.options import Json

if TYPE_CHECKING:
    from replaygen.store import PurgeReport


def purge(
    photo: Annotated[
        list[str] | None,
        typer.Option("--photo", help="a photo id (flickr-53412) or a sample id (cow-flickr-53412); repeatable"),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="kept with the photo's tombstone")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would go")] = False,
    root: Annotated[Path, typer.Option("--cache", help="the store")] = Path("cache"),
    as_json: Json = False,
) -> None:
    """Remove photos and all that was made from them, and see that they never come back.

    Without --photo it finishes a purge that was interrupted.
    """
    from replaygen.cli.cache import _open

    store = _open(root, readonly=dry_run)
    report = store.purge(photo or (), reason, dry_run=dry_run, pages=store.root.parent / "reports")
    if as_json:
        print(json.dumps(asdict(report)))
        return
    for line in _lines(report):
        print(line)


def _lines(report: PurgeReport) -> list[str]:
    from replaygen.plan.estimate import size

    if not report.photos:
        return ["no photo was named, and no purge is unfinished; name one with --photo"]
    verb = "would delete" if report.dry_run else "deleted"
    lines = [f"weights that were trained with them: {verb} {slot}" for slot in report.weights]
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
