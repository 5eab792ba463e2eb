"""Requests to a bucket: each method is one request, or one a thousand names; S3 through s3fs, with its credentials.

What a bucket lacks is a rename; what it has is the conditional request: PUT only where nothing stands (`create`), or
only in place of the very bytes that were seen (`match`, their ETag). Network faults are tried again a few times with
growing pauses by botocore, then they are a StoreError; credentials come from the environment or AWS's own files only,
and stand in no message and no log.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from replaygen.errors import StoreError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(/?)(.*)", re.DOTALL)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"(?!\.{1,2}(?:/|$))[A-Za-z0-9_=+.-]{1,200}")

WHOLE = 64_000_000
"""Bytes that are sent in one PUT; larger objects go in parts."""

_CHUNK = 1 << 20
_BATCH = 48
_READS = 3
_CONFIG = {"connect_timeout": 10, "read_timeout": 60, "retries": {"mode": "standard", "max_attempts": 4}}
_TALKATIVE = ("botocore", "aiobotocore", "s3fs", "aiohttp")
_SILENT = {304, 404, 409, 412}
_DOCS = "see docs/storage.md"


_REQUESTS: dict[str, Counter[str]] = {}


@dataclass(frozen=True)
class Address:
    """A bucket and the prefix of the store in it, "" for the whole bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, name: str) -> str:
        """The bucket's name of a file of the store."""
        return f"{self.prefix}/{name}" if self.prefix else name


def parse_address(text: str) -> Address | None:
    """The bucket that an address names; None where it is the path of a folder.

    Raises:
        StoreError: another kind of storage, or an address that carries more than a bucket and a prefix. The address
            itself is not in the message where it may hold a secret.
    """
    found = _SCHEME.fullmatch(text)
    if found is None:
        return None
    scheme, slash, rest = found[1].lower(), found[2], found[3]
    if scheme != "s3":
        raise StoreError(
            f"stores on {scheme}:// are untested, so they are refused", hint="give a folder, or s3://bucket/prefix"
        )
    if any(sign in rest for sign in "@?#:%"):
        raise StoreError(
            "an address of a bucket is s3://bucket/prefix and nothing else", where="s3://***",
            hint="credentials come from the environment or AWS's own files, the endpoint from AWS_ENDPOINT_URL",
        )  # fmt: skip
    bucket, _, prefix = rest.strip("/").partition("/")
    good = slash and _BUCKET.fullmatch(bucket) and all(map(_PREFIX.fullmatch, prefix.split("/") if prefix else ()))
    if not good:
        raise StoreError(f"{text[:120]!r} is no address of a bucket", hint="such as s3://bucket/prefix")
    return Address(bucket, prefix)


@dataclass(frozen=True)
class Blob:
    """What stands under a name: its ETag, and its bytes; None where they are the ones that were known."""

    etag: str
    data: bytes | None


@dataclass(frozen=True)
class Entry:
    """A line of a listing: bytes, ETag, and how many seconds ago it was written, by the server's clock."""

    size: int
    etag: str
    age: float


class _Refused(Exception):
    """The server's answer is a status that the caller knows what to do with."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


class Remote:
    """The bucket of a store. Safe for threads; a forked child opens a connection of its own.

    Attributes:
        address: the bucket and prefix.
        requests: how many requests this process sent to this address, whichever store asked, by S3's name of the
            operation; those that were tried again count again.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.requests = _REQUESTS.setdefault(str(address), Counter())
        self._mutex = threading.Lock()
        self._connected: tuple[int, Any] | None = None

    @property
    def endpoint(self) -> str:
        """The URL that requests go to."""
        return str(self._fs()._s3.meta.endpoint_url)

    def get(self, name: str, known: str = "") -> Blob | None:
        """What stands under a name; None where nothing does.

        Args:
            known: the ETag of bytes that are here already, which are not sent again.
        """
        found: Blob | None = self._sync(name, self._get, name, known)
        return found

    def get_many(self, known: Mapping[str, str]) -> Iterator[tuple[str, Blob | None]]:
        """`get` of each name, in order, some asked for at once.

        Args:
            known: name -> ETag, "" where nothing is known.
        """
        names = list(known)
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            yield from zip(batch, self._sync("", self._get_some, [(name, known[name]) for name in batch]), strict=True)

    def stream(self, name: str) -> tuple[str, Iterator[bytes]] | None:
        """ETag and bytes, read in pieces; None where nothing stands there."""
        try:
            reply = self._call(name, "get_object", Key=name)
        except _Refused:
            return None
        return str(reply["ETag"]), self._pieces(name, reply["Body"])

    def head(self, name: str) -> Entry | None:
        """Size, ETag and age; None where nothing stands there."""
        try:
            reply = self._call(name, "head_object", Key=name)
        except _Refused:
            return None
        return Entry(int(reply["ContentLength"]), str(reply["ETag"]), _age(reply, reply["LastModified"]))

    def put(
        self, name: str, data: bytes, *, create: bool = False, match: str = "", sha256: str = ""
    ) -> str | None:  # fmt: skip
        """Write bytes; the new ETag, or None where the condition does not hold.

        Args:
            create: only where nothing stands.
            match: only in place of what has this ETag.
            sha256: of the bytes, in hex, so that the server can check what it got.
        """
        more: dict[str, Any] = {"IfNoneMatch": "*"} if create else {"IfMatch": match} if match else {}
        if sha256:
            more["ChecksumSHA256"] = base64.b64encode(bytes.fromhex(sha256)).decode()
        for attempt in range(8):
            try:
                return str(self._call(name, "put_object", Key=name, Body=data, **more)["ETag"])
            except _Refused as refused:
                if refused.status != 409:  # 409: somebody writes it at this moment
                    return None
            time.sleep(0.05 * 2**attempt)
        return None

    def put_file(self, name: str, source: Path) -> None:
        """Write a large file, in parts."""
        target = f"{self.address.bucket}/{self.address.key(name)}"
        self._sync(name, self._fs()._put_file, str(source), target)

    def delete(self, names: Iterable[str]) -> None:
        """Remove names, a thousand a request; what is not there already is no error."""
        ahead = list(names)
        for start in range(0, len(ahead), 1000):
            wanted = [{"Key": self.address.key(name)} for name in ahead[start : start + 1000]]
            reply = self._call("", "delete_objects", Delete={"Objects": wanted, "Quiet": True})
            for error in reply.get("Errors", ()):
                raise self._error(ahead[start], f"{error.get('Code')} on deleting", "some may be deleted; try again")

    def delete_if(self, name: str, etag: str) -> bool:
        """Remove what has this ETag; False where something else, or nothing, stands there."""
        try:
            self._call(name, "delete_object", Key=name, IfMatch=etag)
        except _Refused:
            return False
        return True

    def listing(self, prefix: str) -> dict[str, Entry]:
        """Every name that begins with `prefix`, a thousand a request, in order."""
        found: dict[str, Entry] = {}
        more: dict[str, Any] = {}
        cut = len(self.address.key(""))
        while True:
            reply = self._call("", "list_objects_v2", Prefix=self.address.key(prefix), **more)
            for one in reply.get("Contents", ()):
                found[one["Key"][cut:]] = Entry(int(one["Size"]), str(one["ETag"]), _age(reply, one["LastModified"]))
            if not reply.get("IsTruncated"):
                return found
            more = {"ContinuationToken": reply["NextContinuationToken"]}

    def holds_any(self, prefix: str) -> bool:
        """Whether any name begins with `prefix`."""
        reply = self._call("", "list_objects_v2", Prefix=self.address.key(prefix), MaxKeys=1)
        return bool(reply.get("Contents"))

    # how

    async def _get(self, name: str, known: str) -> Blob | None:
        more = {"IfNoneMatch": known} if known else {}
        for attempt in range(_READS):
            try:
                async with self._answers(name):
                    reply = await self._fs()._call_s3(
                        "get_object", Bucket=self.address.bucket, Key=self.address.key(name), **more
                    )
            except _Refused as refused:
                return Blob(known, None) if refused.status == 304 else None
            try:
                return Blob(str(reply["ETag"]), await reply["Body"].read())
            except Exception as error:  # the body was cut
                if attempt + 1 == _READS:
                    raise self._explained(name, error) from None
            finally:
                reply["Body"].close()
        return None

    async def _get_some(self, wanted: list[tuple[str, str]]) -> list[Blob | None]:
        import asyncio

        return await asyncio.gather(*(self._get(name, etag) for name, etag in wanted))

    def _pieces(self, name: str, body: Any) -> Iterator[bytes]:
        try:
            while piece := self._sync(name, body.read, _CHUNK):
                yield piece
        finally:
            body.close()

    def _call(self, name: str, method: str, **arguments: Any) -> Any:
        if "Key" in arguments:
            arguments["Key"] = self.address.key(arguments["Key"])
        return self._sync(name, self._fs()._call_s3, method, Bucket=self.address.bucket, **arguments)

    def _sync(self, name: str, act: Any, *args: Any, **kwargs: Any) -> Any:
        """Do something on s3fs's thread, and wait for it."""
        from fsspec.asyn import sync

        async def asked() -> Any:
            async with self._answers(name):
                return await act(*args, **kwargs)

        return sync(self._fs().loop, asked)

    @asynccontextmanager
    async def _answers(self, name: str) -> AsyncIterator[None]:
        """Errors inside, as `_Refused` or StoreError."""
        try:
            yield
        except (StoreError, _Refused):
            raise
        except Exception as error:
            raise self._explained(name, error) from None

    def _fs(self) -> Any:
        """s3fs's file system, its own retries and caches switched off: botocore tries again, and we ask anew."""
        with self._mutex:
            if self._connected is None or self._connected[0] != os.getpid():
                self._connected = (os.getpid(), self._connect())
            found = self._connected[1]
        return found

    def _connect(self) -> Any:
        try:
            import fsspec
            import s3fs  # noqa: F401
        except ImportError:
            raise StoreError(
                "stores in buckets need s3fs", where=str(self.address), hint="pip install 'replaygen[s3]'"
            ) from None
        for talker in _TALKATIVE:  # at DEBUG they log signed headers, session tokens among them
            logger = logging.getLogger(talker)
            logger.setLevel(max(logger.level, logging.INFO))
        fs = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False, config_kwargs=_CONFIG)
        fs.retries = 1
        try:
            client = fs.connect()
        except Exception as error:
            raise self._explained("", error) from None
        client.meta.events.register("before-send.s3", self._count)
        return fs

    def _count(self, event_name: str, **_: Any) -> None:
        self.requests[event_name.rpartition(".")[2]] += 1

    def _explained(self, name: str, error: Exception) -> StoreError | _Refused:
        """An error of any of the libraries below as one that says what, where and the way out; nothing of its text."""
        response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
        told: dict[str, Any] = response if isinstance(response, dict) else {}
        code = str(told.get("Error", {}).get("Code", ""))
        status = int(told.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        kind = type(error).__name__
        if code == "NoSuchBucket":
            return self._error("", "there is no such bucket", "create it, or mend the address")
        if status in _SILENT:
            return _Refused(status)
        if kind in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError"):
            return self._error("", "no credentials for the bucket were found",
                               f"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; {_DOCS}")  # fmt: skip
        if status in (401, 403):
            return self._error(name, f"the bucket refuses the request ({code})",
                               f"these credentials may not do this, or are not right; {_DOCS}")  # fmt: skip
        return self._error(name, f"the bucket does not answer as it should ({code or kind})",
                           "check the network and AWS_ENDPOINT_URL; the same command can be run again")  # fmt: skip

    def _error(self, name: str, what: str, hint: str) -> StoreError:
        return StoreError(what, where=f"{self.address}/{name}".rstrip("/"), hint=hint)


def _age(reply: Any, written: datetime) -> float:
    """Seconds between a time of the server and its clock in this answer."""
    from email.utils import parsedate_to_datetime

    told = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        now = parsedate_to_datetime(told)
    except ValueError:
        now = datetime.now(UTC)
    return (now - written).total_seconds()
