"""The local folder of a store in a bucket: an ordinary store, written through and read through.

The bucket is the truth. Files that may change (records, refs, tombstones) are compared with it by ETag on each
use, or all at once by a listing; objects never change, so a local copy that has the right bytes is as good as the
bucket's. Every name that comes from the bucket is checked before it becomes a path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from replaygen.errors import StoreError
from replaygen.store import fsops
from replaygen.store.limit import CacheLimit, limit_from_environment
from replaygen.store.marks import Marks
from replaygen.store.remote import WHOLE, Address, Blob, Entry, Remote

log = logging.getLogger("replaygen.store")

STORES = "REPLAYGEN_STORES"
"""The environment variable that says where the local folders of buckets lie."""

ABOUT = "bucket.json"
"""In such a folder: the bucket's address, and an id that no other folder has."""

FRESH_SECONDS = 2.0
"""How long a record that was compared with the bucket is taken as it is. What is not there is asked for each time."""

_TRUSTED_SECONDS = 60.0
_NAMES = {
    "records": re.compile(r"records/([0-9a-f]{2})/\1[0-9a-f]{62}\.json"),
    "objects": re.compile(r"objects/([0-9a-f]{2})/\1[0-9a-f]{62}"),
    "refs": re.compile(r"refs/[a-z0-9_-]{1,60}/[a-z0-9_-]{1,60}\.json"),
    "tombstones": re.compile(r"tombstones/[a-z0-9_-]{1,80}\.json"),
}


class Mirror:
    """The local side of one bucket.

    Args:
        remote: the bucket.
        root: the local folder.
        readonly: nothing is written to the bucket.
    """

    def __init__(self, remote: Remote, root: Path, *, readonly: bool) -> None:
        self.remote = remote
        self.root = root
        self.readonly = readonly
        self.id = _identity(root, remote.address)
        self.marks = Marks(remote, self.id)
        self.limit = CacheLimit(root, limit_from_environment())
        self._seen: dict[str, float] = {}
        self._stood: dict[str, float] = {}
        self._etags: dict[str, tuple[str, str]] = {}
        self._sizes: dict[str, int] = {}
        self._mutex = threading.Lock()

    def name(self, path: Path) -> str:
        """A local file's name in the bucket."""
        return path.relative_to(self.root).as_posix()

    # files that may change

    def pull(self, path: Path, *, fresh: float = 0.0) -> None:
        """Make the local copy of a file what the bucket has now, or remove it where the bucket has none.

        Args:
            fresh: seconds for which an earlier comparison holds.
        """
        name = self.name(path)
        if fresh and time.monotonic() - self._seen.get(name, -fresh) < fresh and path.exists():
            return
        known = self._etag(path)
        self._take(path, self.remote.get(name, known))

    def pull_some(self, folder: Path, paths: Iterable[Path], listed: dict[str, Entry] | None = None) -> None:
        """As `pull`, for many files of a folder: one listing, and a request for each that is new or changed."""
        listed = self.listed(folder.name) if listed is None else listed
        changed = {}
        for path in paths:
            name = self.name(path)
            known = self._etag(path)
            if name not in listed:
                if known:
                    fsops.remove(path)
            elif listed[name].etag == known:
                self._seen[name] = time.monotonic()
            else:
                changed[name] = known
        for name, blob in self.remote.get_many(changed):
            self._take(self.root / name, blob)

    def pull_folder(self, folder: Path, listed: dict[str, Entry] | None = None) -> None:
        """Make a whole folder what the bucket has, as just `listed`: records, refs or tombstones."""
        listed = self.listed(folder.name) if listed is None else listed
        local = [Path(above, name) for above, _, names in os.walk(folder) for name in names]
        self.pull_some(folder, {*local, *(self.root / name for name in listed)}, listed)

    def lacks(self, listed: Iterable[str]) -> bool:
        """Whether a name of the bucket is not here."""
        return any(not os.path.lexists(self.root / name) for name in listed)

    def listed(self, folder: str) -> dict[str, Entry]:
        """The names in one of the bucket's folders; odd ones are left out, with a warning."""
        pattern = _NAMES[folder]
        found = {}
        for name, entry in self.remote.listing(f"{folder}/").items():
            if pattern.fullmatch(name):
                found[name] = entry
            else:
                log.warning("%s/%s is no file of a store", self.remote.address, ascii(name)[:200])
        return found

    def create(self, path: Path, data: bytes) -> bool:
        """Publish a file where the bucket has none of that name, and keep a copy; False where it has one."""
        etag = self.remote.put(self.name(path), data, create=True)
        if etag is not None:
            self._keep(path, data, etag)
        return etag is not None

    def put(self, path: Path, data: bytes) -> None:
        """Publish a file in place of what the bucket has, and keep a copy."""
        etag = self.remote.put(self.name(path), data)
        assert etag is not None
        self._keep(path, data, etag)

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove names from the bucket; the local files stay."""
        names = [self.name(path) for path in paths]
        self.remote.delete(names)
        with self._mutex:
            for name in names:
                self._seen.pop(name, None)
                self._stood.pop(name.rpartition("/")[2], None)
                self._sizes.pop(name.rpartition("/")[2], None)

    def remove_damaged(self, path: Path) -> None:
        """Remove a file from the bucket if it holds the very bytes that the local copy has."""
        etag = self._etag(path)
        if etag and not self.readonly:
            self.remote.delete_if(self.name(path), etag)

    # objects

    def push(self, path: Path, digest: str) -> None:
        """Be sure that the bucket has an object whose local copy was just found right."""
        name, size = self.name(path), os.stat(path).st_size
        if size <= WHOLE:
            data = path.read_bytes()
            if self.remote.put(name, data, create=True, sha256=digest) is None:
                there = self.remote.head(name)
                if there is None or there.size != size:
                    self.remote.put(name, data, sha256=digest)
        else:
            there = self.remote.head(name)
            if there is None or there.size != size:
                self.remote.put_file(name, path)
        self._stood[digest] = time.monotonic()
        self.limit.grew(size, keep=path)

    def stands(self, path: Path, digest: str) -> int | None:
        """Bytes of the bucket's object of this name; None where it has none. Asked once a minute."""
        if time.monotonic() - self._stood.get(digest, -_TRUSTED_SECONDS) < _TRUSTED_SECONDS:
            try:
                return os.stat(path).st_size
            except FileNotFoundError:
                pass
        there = self.remote.head(self.name(path))
        return None if there is None else there.size

    def fetch(self, path: Path) -> tuple[Path, str, str] | None:
        """Copy an object into a temp: its path, the sha256 of its bytes, its ETag; None where the bucket has none."""
        for attempt in range(3):
            found = self.remote.stream(self.name(path))
            if found is None:
                return None
            hasher = hashlib.sha256()
            try:
                return fsops.write_temp(self.root / "tmp", _hashed(found[1], hasher)), hasher.hexdigest(), found[0]
            except StoreError:
                if attempt == 2:
                    raise
        return None

    def hashed(self, path: Path) -> str | None:
        """sha256 of the bucket's bytes of an object, of which nothing is kept; None where it has none."""
        found = self.remote.stream(self.name(path))
        if found is None:
            return None
        hasher = hashlib.sha256()
        for _ in _hashed(found[1], hasher):
            pass
        return hasher.hexdigest()

    def sizes(self) -> dict[str, int]:
        """digest -> bytes of every object of the bucket: a listing."""
        found = {name.rpartition("/")[2]: entry.size for name, entry in self.listed("objects").items()}
        with self._mutex:
            self._sizes = found
        return found

    def size(self, digest: str) -> int:
        """Bytes of an object by the last listing; 0 where it was not in it."""
        return self._sizes.get(digest, 0)

    def gone(self) -> Iterator[Path]:
        """Local objects and records that the bucket no longer has. Nobody may write meanwhile."""
        for folder in ("objects", "records"):
            local = [Path(above, name) for above, _, names in os.walk(self.root / folder) for name in names]
            listed = self.listed(folder) if local else {}
            yield from (path for path in local if self.name(path) not in listed)

    # how

    def _etag(self, path: Path) -> str:
        """The ETag that the bucket gives to the bytes of a local copy; "" where there is none."""
        try:
            digest = _md5(path.read_bytes())
        except OSError:
            return ""
        etag, of = self._etags.get(self.name(path), ("", ""))
        return etag if of == digest else f'"{digest}"'

    def _take(self, path: Path, blob: Blob | None) -> None:
        if blob is None:
            fsops.remove(path)
        elif blob.data is not None:
            self._keep(path, blob.data, blob.etag)
        else:
            self._seen[self.name(path)] = time.monotonic()

    def _keep(self, path: Path, data: bytes, etag: str) -> None:
        """Write the local copy; where ETags are no MD5 (buckets with their own keys), remember this one."""
        digest = _md5(data)
        fsops.make_folder(path.parent)
        fsops.replace_file(path, data, temps=self.root / "tmp")
        name = self.name(path)
        if etag.strip('"') != digest:
            self._etags[name] = (etag, digest)
        self._seen[name] = time.monotonic()


def open_mirror(address: Address, *, readonly: bool, format_line: str) -> Mirror:
    """The local side of a bucket that holds a store, or that a new one may be laid out in.

    Raises:
        StoreError: the bucket cannot be reached, holds a store of another format, or something else.
    """
    remote = Remote(address)
    found = remote.get("format")
    if found is None:
        _lay_out(remote, readonly=readonly, format_line=format_line)
    elif (found.data or b"")[:200].decode("utf-8", "replace").strip() != format_line:
        raise StoreError(
            f"the store has format {(found.data or b'')[:200].decode('utf-8', 'replace').strip()!r}, this replaygen "
            f"reads {format_line!r}", where=f"{address}/format",
            hint="use the replaygen that wrote it, or give another prefix",
        )  # fmt: skip
    folder = mirror_folder(address, remote.endpoint)
    with fsops.explained("make the local folder of a bucket", folder):
        if not folder.is_dir():  # whoever may read the bucket is no matter of this machine's other users
            fsops.make_folder(folder)
            fsops.allow(folder, 0o700, -1)
    return Mirror(remote, folder, readonly=readonly)


def mirror_folder(address: Address, endpoint: str) -> Path:
    """Where the local side of a bucket lies on this machine, for this user."""
    above = os.environ.get(STORES)
    stores = Path(above) if above else Path("~/.cache/replaygen/stores").expanduser()
    digest = hashlib.sha256(f"{address}\n{endpoint}".encode()).hexdigest()[:16]
    return stores.absolute() / f"{address.bucket}-{digest}"


def _lay_out(remote: Remote, *, readonly: bool, format_line: str) -> None:
    if any(remote.holds_any(f"{folder}/") for folder in ("objects", "records", "refs")):
        raise StoreError(
            "the store has no format file, so its format is unknown", where=str(remote.address),
            hint=f"write the line '{format_line}' to its `format` if you know that it has this format",
        )  # fmt: skip
    if readonly:
        raise StoreError(
            "there is no store here, and none is made in read-only mode", where=str(remote.address),
            hint="check the address, or open it without readonly=True",
        )  # fmt: skip
    remote.put("format", f"{format_line}\n".encode(), create=True)


def _identity(root: Path, address: Address) -> str:
    """The id of a local folder; made with it. Two processes that make it at once agree."""
    path = root / ABOUT
    with fsops.explained("make the local folder of a bucket", root):
        if not path.exists():
            fsops.make_folder(root / "tmp")
            about = {"address": str(address), "id": os.urandom(16).hex()}
            temp = fsops.write_temp(root / "tmp", [json.dumps(about).encode() + b"\n"])
            try:
                fsops.link(temp, path)
            except FileExistsError:
                pass
            finally:
                fsops.remove(temp)
    try:
        return str(json.loads(path.read_bytes())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(
            "the local folder of a bucket is damaged", where=str(path), hint="delete the folder: it is only a copy"
        ) from None


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _hashed(pieces: Iterator[bytes], hasher: hashlib._Hash) -> Iterator[bytes]:
    for piece in pieces:
        hasher.update(piece)
        yield piece
