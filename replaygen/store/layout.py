"""Where things lie in a store's folder, and the number of its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replaygen.errors import StoreError
from replaygen.store import fsops

if TYPE_CHECKING:
    from replaygen.store.mirror import Mirror

FORMAT = "replaygen-store 1"

_FOLDERS = ("objects", "records", "refs", "partial", "locks", "leases", "quarantine")
_NO_STRANGERS = {"README.md", "bucket.json", "tmp", "lost+found"}
"""What a folder without a store may hold and still be made one, beside names that begin with a dot."""


@dataclass(frozen=True)
class Layout:
    """The paths below a store's root. Every name in them is a digest or has passed `slug`.

    `mirror` is there where the folder is the local side of a bucket.
    """

    root: Path
    mirror: Mirror | None = None

    @property
    def format(self) -> Path:
        return self.root / "format"

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def records(self) -> Path:
        return self.root / "records"

    @property
    def refs(self) -> Path:
        return self.root / "refs"

    @property
    def partial(self) -> Path:
        return self.root / "partial"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def tombstones(self) -> Path:
        """Made with the first tombstone."""
        return self.root / "tombstones"

    @property
    def checked(self) -> Path:
        return self.root / "checked.json"

    @property
    def verified(self) -> Path:
        return self.root / "verified.jsonl"


def open_layout(root: Path, *, readonly: bool) -> Layout:
    """Check the format of the store in `root`, and lay out a new one where there is none.

    Raises:
        StoreError: another format, a store without its format file, a folder that holds other files or cannot be made.
    """
    layout = Layout(root)
    try:
        found: str | None = layout.format.read_bytes()[:200].decode("utf-8", "replace").strip()
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise StoreError(f"cannot read the store's format: {error.strerror}", where=str(layout.format)) from error
    if found is not None and found != FORMAT:
        raise StoreError(
            f"the store has format {found!r}, this replaygen reads {FORMAT!r}",
            where=str(layout.format),
            hint="use the replaygen that wrote it, or give another cache folder",
        )
    if found is None:
        _refuse_unknown(layout, readonly=readonly)
    if not readonly:
        with fsops.explained("lay out a store", root):
            _lay_out(layout, new=found is None)
    return layout


def _foreign(root: Path) -> list[str]:
    """Names in a folder that belong neither to a workspace's `cache/` nor to a store that is being laid out."""
    try:
        names = [path.name for path in root.iterdir() if not path.name.startswith(".")]
        return sorted(name for name in names if name not in _NO_STRANGERS)
    except OSError:
        return []


def _refuse_unknown(layout: Layout, *, readonly: bool) -> None:
    filled = [folder for folder in (layout.objects, layout.records, layout.refs) if folder.exists()]
    if filled:
        raise StoreError(
            "the store has no format file, so its format is unknown",
            where=str(layout.root),
            hint=f"write the line '{FORMAT}' to {layout.format} if you know that it has this format",
        )
    others = _foreign(layout.root)
    if others:
        raise StoreError(
            f"this folder is no store and holds other files: {', '.join(others[:3])}",
            where=str(layout.root),
            hint="name a store, or a new or empty folder",
        )
    if readonly:
        raise StoreError(
            "there is no store here, and none is made in read-only mode",
            where=str(layout.root),
            hint="check the path, or open it without readonly=True",
        )


def _lay_out(layout: Layout, *, new: bool) -> None:
    """The format file first: a folder of the store never stands without it."""
    if new:
        fsops.make_folder(layout.tmp)
        fsops.replace_file(layout.format, f"{FORMAT}\n".encode(), temps=layout.tmp)
    for folder in (layout.tmp, *(layout.root / name for name in _FOLDERS)):
        if not folder.is_dir():
            fsops.make_folder(folder)
