"""Flickr's API behind one seam: what is asked, what is tried again, and what never shows.

flickrapi signs and sends a call and reads its JSON, through `flickr_wire`; it has no retries and no limit. So each call
waits for the hourly limit, runs in a thread of its own with a total deadline, and is tried again where that helps:

- the network, HTTP 408, 429 and 5xx, the API's codes 0, 105, 106 and 201, an answer that is no JSON: tried again;
- the API's code 100 (no valid key), HTTP 401 and 403, and all the rest: final.

HTTP 200 with `stat=fail` is a fault. No exception of a library gets out: what is raised is made here, of words that
are known beforehand, and holds neither key nor secret nor query, nor a link to the exception that was its cause.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaygen.crawl.licences import FLICKR_NUMBERS, read_licence
from replaygen.crawl.limits import ApiLimit
from replaygen.crawl.photos import plain_text
from replaygen.sources.flickr_wire import ApiFault as ApiFault
from replaygen.sources.flickr_wire import Client, Credentials, api_address, api_agent, quiet

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Info:
    """What Flickr says of one photo now.

    Attributes:
        number: the photo's id at Flickr.
        visible: True where everybody may see it; False where it is private or gone, and then the rest may be unknown;
            None where the answer does not tell.
        licence: id in `crawl.licences`, allowed or not; None only where it cannot be told: the answer lacks it, or its
            number is not in the table of licences. None is no reason to hold that a licence was taken back.
        owner, owner_page, title, page: as people see them, without control characters, at most 300 characters.
        media: "photo" or "video".
        safety: 0 safe, 1 moderate, 2 restricted.
        rotation: degrees by which the owner turned it.
    """

    number: str
    visible: bool | None
    licence: str | None = None
    owner: str | None = None
    owner_page: str | None = None
    title: str | None = None
    page: str | None = None
    media: str | None = None
    safety: int | None = None
    rotation: int | None = None


class FlickrApi:
    """Calls of Flickr's API, safe for many threads.

    The key and the secret come from FLICKR_API_KEY and FLICKR_API_SECRET, the address from REPLAYGEN_FLICKR_URL.

    Args:
        limit: waited for before each try.
        timeout: seconds for one try, all of it.
        tries: of one call.
        deadline: seconds for one call, all tries and pauses; waiting for `limit` is not counted. Default: all tries
            and two minutes.
        backoff: seconds before the second try; doubled for each further one.

    Raises:
        ApiFault: there is no key or secret, the address would send them in the clear, or a header cannot hold
            REPLAYGEN_CONTACT.
    """

    def __init__(
        self,
        *,
        limit: ApiLimit,
        timeout: float = 30.0,
        tries: int = 4,
        deadline: float | None = None,
        backoff: float = 1.0,
    ) -> None:
        if tries < 1:
            raise ValueError("a call needs at least one try")
        quiet()
        self._credentials = Credentials()
        self.address = api_address()
        self._agent = api_agent()
        self.calls = 0
        self._limit = limit
        self._timeout = timeout
        self._tries = tries
        self._deadline = timeout * tries + 120.0 if deadline is None else deadline
        self._backoff = backoff
        self._inside = threading.Lock()
        self._idle: list[Client] = []
        self._licences: dict[str, str] | None = None

    def __repr__(self) -> str:
        return f"FlickrApi({self.address}, {self.calls} calls)"

    def call(self, method: str, **parameters: str | int) -> dict[str, Any]:
        """The answer to one call, such as `call("flickr.photos.getInfo", photo_id="1")`.

        Raises:
            ApiFault: the API refused, or did not answer in all tries.
        """
        ends = time.monotonic() + self._deadline
        for attempt in range(1, self._tries + 1):
            before = time.monotonic()
            self._limit.wait()
            ends += time.monotonic() - before
            answer = self._once(method, parameters, min(self._timeout, ends - time.monotonic()))
            if not isinstance(answer, ApiFault):
                return answer
            fault = answer
            pause = max(fault.after, self._backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
            if not fault.transient or attempt == self._tries or time.monotonic() + pause >= ends:
                break
            _log.info("%s; trying again in %.1f s", fault.what, pause)
            time.sleep(pause)
        raise fault

    def licences(self) -> dict[str, str]:
        """Flickr's licence numbers and the ids of the licences they stand for, asked once.

        The live table counts. A number is left out where its address and name cannot be read, or contradict each other
        or what the number has always meant.
        Where Flickr cannot tell its table, the known one is used.

        Raises:
            ApiFault: the key is refused.
        """
        with self._inside:
            known = self._licences
        if known is None:
            known = self._ask_licences()
            with self._inside:
                self._licences = known
        return dict(known)

    def _ask_licences(self) -> dict[str, str]:
        try:
            rows = self.call("flickr.photos.licenses.getInfo").get("licenses")
        except ApiFault as fault:
            if not fault.transient and fault.code != 112:
                raise
            rows = None
        rows = rows.get("license") if isinstance(rows, dict) else None
        known = map(_licence_row, rows if isinstance(rows, list) else ())
        live = {number: licence for number, licence in known if licence}
        if live:
            return live
        _log.warning("Flickr did not tell its table of licences: the known one is used")
        return dict(FLICKR_NUMBERS)

    def info(self, number: str) -> Info:
        """What Flickr says of a photo now; a photo that is gone or private is not visible.

        Raises:
            ApiFault: the API refused for another reason, or its answer is about another photo.
        """
        try:
            photo = self.call("flickr.photos.getInfo", photo_id=number).get("photo")
        except ApiFault as fault:
            if fault.code in (1, 2):
                return Info(number, visible=False)
            raise
        if not isinstance(photo, dict) or str(photo.get("id")) != number:
            raise ApiFault("Flickr's answer is not about the photo that was asked for", where="flickr.photos.getInfo")
        return _info(number, photo, self.licences())

    def _once(self, method: str, parameters: dict[str, str | int], seconds: float) -> dict[str, Any] | ApiFault:
        """One try. The fault is given, not raised: so it has no link to what a library raised."""
        with self._inside:
            client = self._idle.pop() if self._idle else None
            self.calls += 1
        client = client or Client(self._credentials, self.address, self._agent, self._timeout)
        answers: queue.SimpleQueue[dict[str, Any] | ApiFault] = queue.SimpleQueue()
        threading.Thread(
            target=lambda: answers.put(client.attempt(method, parameters)), name="flickr call", daemon=True
        ).start()
        answer = _next(answers, max(seconds, 0.001))
        if answer is None:
            client.abort()
            return ApiFault(f"Flickr did not answer within {self._timeout:g} s", where=method, transient=True)
        with self._inside:
            self._idle.append(client)
        return answer


def flickr_limit(folder: Path, per_hour: int) -> ApiLimit:
    """The limit of the key in FLICKR_API_KEY: all runs of this machine that use `folder` share it."""
    return ApiLimit(folder, f"flickr {os.environ.get('FLICKR_API_KEY', '').strip()}", per_hour)


def _next(answers: queue.SimpleQueue[dict[str, Any] | ApiFault], seconds: float) -> dict[str, Any] | ApiFault | None:
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return None


def _licence_row(row: object) -> tuple[str, str | None]:
    if not isinstance(row, dict) or not re.fullmatch(r"[0-9]{1,6}", number := str(row.get("id"))):
        return "", None
    by_url, by_name = (read_licence(text) if isinstance(text := row.get(key), str) else None for key in ("url", "name"))
    told = {licence for licence in (by_url, by_name, FLICKR_NUMBERS.get(number)) if licence}
    return number, (by_url or by_name) if len(told) == 1 else None


def _info(number: str, photo: dict[str, Any], licences: dict[str, str]) -> Info:
    def inside(name: str) -> dict[str, Any]:
        found = photo.get(name)
        return found if isinstance(found, dict) else {}

    def count(value: object) -> int | None:
        return int(str(value)) if re.fullmatch(r"[0-9]{1,6}", str(value)) else None

    owner, public = inside("owner"), count(inside("visibility").get("ispublic"))
    name = owner.get("nsid")
    known = name if isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9@_.-]{1,60}", name) else None
    return Info(
        number,
        visible=None if public is None else public == 1,
        licence=licences.get(str(photo.get("license"))),
        owner=plain_text(owner.get("realname")) or plain_text(owner.get("username")) or known,
        owner_page=f"https://www.flickr.com/people/{known}" if known else None,
        title=plain_text(inside("title").get("_content")),
        page=f"https://www.flickr.com/photos/{known}/{number}" if known else None,
        media=plain_text(photo.get("media"), 20),
        safety=count(photo.get("safety_level")),
        rotation=count(photo.get("rotation")),
    )
