"""Tombstones of photos that were taken away for good, and when the others were last looked after.

A tombstone is `tombstones/<photo>.json`, one sealed file each. Its name alone says which photo is meant, so a damaged
one still counts. It keeps what the photo's bytes were, so that another address of the same file is known too.
`checked.json` is one sealed file, {photo: {at, licence, visible}}; losing it costs only asking again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from replaygen.errors import StoreError
from replaygen.store import fsops
from replaygen.store.keys import canonical, is_digest, sha256_hex
from replaygen.store.layout import Layout
from replaygen.store.locks import Locks
from replaygen.store.objects import log
from replaygen.store.records import read_all, seal, unseal

_PHOTO = re.compile(r"[a-z0-9_-]{1,80}")
_CRAWLED = re.compile(r"(?:[a-z0-9_-]+-)?(flickr-[0-9]{1,20}|web-[0-9a-f]{20})")
_IDS = "give a photo id such as flickr-53412, or a sample id such as cow-flickr-53412, as reports show it"
_WAIT_SECONDS = 60.0
_CHECKED_LOCK = sha256_hex(b"checked.json")


@dataclass(frozen=True)
class Tombstone:
    """A photo that may never come back.

    Attributes:
        photo: its id: "flickr-53412", "web-<20 hex>", or the sample id of a folder's photo.
        at: when it was buried, ISO 8601, UTC; "" where the file is damaged.
        reason: why, in the words of whoever buried it.
        done: whether all that held it is gone.
        sha256: of its raw bytes, each time they came; () where nobody knows them.
    """

    photo: str
    at: str
    reason: str
    done: bool = False
    sha256: tuple[str, ...] = ()


def photo_of(name: str) -> str:
    """The photo that a photo id or sample id names: a crawled one is the same photo in every class.

    Raises:
        StoreError: neither a photo id nor a sample id, so not safe as a file name.
    """
    if not isinstance(name, str) or not _PHOTO.fullmatch(name):
        raise StoreError(
            f"{str(name)[:80]!r} is no photo id",
            hint=_IDS,
        )
    if "-" not in name.strip("-"):
        source = "flickr" if name.isdecimal() else "web" if re.fullmatch(r"[0-9a-f]{20}", name) else ""
        meant = f"did you mean {source}-{name}?" if source else "it is no photo id"
        raise StoreError(f"nothing in the store holds {name}; {meant}", hint=_IDS)
    crawled = _CRAWLED.fullmatch(name)
    return crawled[1] if crawled else name


def photos_of(names: Iterable[str]) -> set[str]:
    """`photo_of` each name; one text is one name."""
    return {photo_of(name) for name in ([names] if isinstance(names, str) else names)}


class Tombstones:
    """The tombstones of one open store."""

    def __init__(self, layout: Layout, locks: Locks) -> None:
        self._layout = layout
        self._locks = locks

    def path(self, photo: str) -> Path:
        """Where a photo's tombstone lies, whether or not it is there."""
        return self._layout.tombstones / f"{_checked_photo(photo)}.json"

    def paths(self) -> list[Path]:
        """Every file below tombstones/, odd ones too."""
        self._bring()
        try:
            return sorted(self._layout.tombstones.iterdir())
        except FileNotFoundError:  # nothing was ever buried
            return []

    def look(self, path: Path) -> Tombstone:
        """The tombstone in a file; StoreError where it is damaged or not at its place."""
        try:
            content = json.loads(b"{%s}" % unseal("tombstone", read_all(str(path))))["tombstone"]
            found = Tombstone(**{**content, "sha256": tuple(content.get("sha256", ()))})
        except OSError as error:
            raise StoreError(f"tombstone is damaged: it cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise StoreError("tombstone is damaged: not a tombstone") from None
        if f"{found.photo}.json" != path.name or type(found.done) is not bool:
            raise StoreError("tombstone is damaged: it is another photo's, or not whole")
        if not isinstance(found.at, str) or not isinstance(found.reason, str):
            raise StoreError("tombstone is damaged: time and reason must be text")
        if not all(isinstance(one, str) and is_digest(one) for one in found.sha256):
            raise StoreError("tombstone is damaged: a digest of the photo is no sha256")
        return found

    def all(self) -> dict[str, Tombstone]:
        """Photo -> tombstone, by photo. A damaged one counts, with a warning, as one whose purge is not done."""
        found = {}
        for path in self.paths():
            photo = path.name.removesuffix(".json")
            if f"{photo}.json" != path.name or not _PHOTO.fullmatch(photo):
                log.warning("%s is no tombstone", path)
                continue
            try:
                found[photo] = self.look(path)
            except StoreError as error:
                log.warning("%s; the photo stays buried (%s)", error.what, path)
                found[photo] = Tombstone(photo, "", "")
        return found

    def bury(self, photos: Iterable[str], reason: str) -> None:
        """Give each photo a tombstone that asks for a purge; durable on return. The time of an earlier one stays."""
        self._bring()
        for photo in sorted(photos_of(photos)):
            before = self._good(photo)
            at = before.at if before is not None and before.at else _now()
            reason_now = reason or (before.reason if before is not None else "")
            self._write(Tombstone(photo, at, reason_now, sha256=before.sha256 if before is not None else ()))

    def note_bytes(self, digests: Mapping[str, Iterable[str]]) -> None:
        """Keep what the raw bytes of buried photos were, beside what is known; durable on return."""
        for photo, found in sorted(digests.items()):
            before = self._good(photo) or Tombstone(photo, _now(), "")
            after = tuple(sorted({*before.sha256, *found}))
            if after != before.sha256:
                self._write(replace(before, sha256=after))

    def lift(self, name: str) -> Tombstone:
        """Remove a photo's tombstone, durably, and tell what it said.

        Raises:
            StoreError: there is none, or the photo is not purged yet.
        """
        self._bring()
        photo = name if _PHOTO.fullmatch(name) and self.path(name).exists() else photo_of(name)
        path = self.path(photo)
        with self._locks.writing(), fsops.explained("lift a tombstone", path):
            if not path.exists():
                raise StoreError(f"{photo} has no tombstone", hint="`replaygen cache tombstones` lists them")
            found = self._good(photo)
            if found is None or not found.done:
                raise StoreError(f"{photo} is buried but not purged yet, so its tombstone stays", where=str(path),
                                 hint="finish with `replaygen cache purge`, then lift it")  # fmt: skip
            if self._layout.mirror is not None:
                self._layout.mirror.remove([path])
            fsops.remove(path)
            fsops.sync_folder(path.parent)
        return found

    def finish(self, photos: Iterable[str]) -> None:
        """Note that nothing holds these photos any more."""
        for photo in sorted(photos):
            before = self._good(photo) or Tombstone(photo, _now(), "")
            self._write(replace(before, done=True))

    def _bring(self) -> None:
        """Bring the tombstones of a bucket; what a purge elsewhere took leaves this folder.

        With it goes the unfinished work that no task is at: a purge refuses while a task runs anywhere, so what runs
        now has begun after it.
        """
        mirror, folder = self._layout.mirror, self._layout.tombstones
        if mirror is None:
            return
        listed = mirror.listed(folder.name)
        if mirror.lacks(listed):
            with self._locks.alone(_WAIT_SECONDS), fsops.explained("drop what was purged", self._layout.root):
                partial = [path for path in self._layout.partial.iterdir() if not self._locks.is_held(path.name)]
                for path in [*mirror.gone(), *partial, *self._layout.quarantine.iterdir()]:
                    fsops.remove_tree(path) if path.is_dir() else fsops.remove(path)
        mirror.pull_folder(folder, listed)

    def _good(self, photo: str) -> Tombstone | None:
        path = self.path(photo)
        try:
            return self.look(path) if path.exists() else None
        except StoreError:
            return None

    def _write(self, tombstone: Tombstone) -> None:
        path = self.path(tombstone.photo)
        data = seal(b'"tombstone":%s' % canonical(asdict(tombstone)))
        with self._locks.writing(), fsops.explained("write a tombstone", path):
            if self._layout.mirror is not None:
                self._layout.mirror.put(path, data)
                return
            fsops.make_folder(path.parent)
            fsops.replace_file(path, data, temps=self._layout.tmp)


class Checked:
    """When photos were last looked after, and what was found."""

    def __init__(self, layout: Layout, locks: Locks) -> None:
        self._layout = layout
        self._locks = locks

    def look(self) -> dict[str, dict[str, Any]]:
        """All rows; none where there is no file. StoreError where it is damaged."""
        if self._layout.mirror is not None:
            self._layout.mirror.pull(self._layout.checked)
        try:
            data = read_all(str(self._layout.checked))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StoreError(f"checked.json is damaged: it cannot be read: {error.strerror}") from None
        try:
            rows = json.loads(b"{%s}" % unseal("checked.json", data))["checked"]
            return {_checked_photo(photo): _row(photo, row) for photo, row in rows.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise StoreError("checked.json is damaged: not rows of photos") from None

    def all(self) -> dict[str, dict[str, Any]]:
        """All rows; none, with a warning, where the file is damaged."""
        try:
            return self.look()
        except StoreError as error:
            log.warning("%s; each photo counts as never looked after (%s)", error.what, self._layout.checked)
            return {}

    def note(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Lay rows over those that are there; durable on return. Buried photos are left out.

        Raises:
            StoreError: an odd photo id, or a row that is not {at: text, licence: text or None, visible: bool}.
        """
        checked = {_checked_photo(photo): _row(photo, row) for photo, row in rows.items()}
        if checked:
            with self._locks.writing(), self._locks.key(_CHECKED_LOCK, None):
                alive = {photo: row for photo, row in checked.items() if not self._is_buried(photo)}
                self._write({**self.all(), **alive})

    def drop(self, photos: Iterable[str]) -> None:
        """Forget photos; a damaged file, which may name them, is written anew."""
        gone = set(photos)
        with self._locks.writing(), self._locks.key(_CHECKED_LOCK, None):
            try:
                rows = self.look()
                changed = bool(gone & rows.keys())
            except StoreError:
                rows, changed = {}, True
            if changed:
                self._write({photo: row for photo, row in rows.items() if photo not in gone})

    def _is_buried(self, photo: str) -> bool:
        return os.path.lexists(self._layout.tombstones / f"{photo}.json")

    def _write(self, rows: dict[str, dict[str, Any]]) -> None:
        path = self._layout.checked
        data = seal(b'"checked":%s' % canonical(rows))
        with fsops.explained("note when photos were looked after", path):
            if self._layout.mirror is not None:
                self._layout.mirror.put(path, data)
                return
            fsops.replace_file(path, data, temps=self._layout.tmp)


def _checked_photo(photo: object) -> str:
    if not isinstance(photo, str) or not _PHOTO.fullmatch(photo):
        raise StoreError(f"{str(photo)[:80]!r} is no photo id", hint="ids are [a-z0-9_-]+, at most 80 characters")
    return photo


def _row(photo: str, row: Mapping[str, Any]) -> dict[str, Any]:
    told = dict(row) if isinstance(row, Mapping) else {}
    good = set(told) == {"at", "licence", "visible"} and isinstance(told["at"], str)
    if not good or not isinstance(told["licence"], str | None) or not isinstance(told["visible"], bool):
        raise StoreError(f"what was found of photo {photo} is not {{at, licence, visible}}: {str(row)[:120]}")
    return told


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
