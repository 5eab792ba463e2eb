"""How one call goes to Flickr: signed by flickrapi, bounded, silent. `sources.flickr` is what others use.

flickrapi reads answers without a bound and writes parameters, keys and whole answers to its log, and what requests
raises holds the address. So a call is posted here, its answer is read here, and what went wrong is told as an
`ApiFault` of words that are known beforehand: given, not raised, so that it has no link to its cause.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import warnings
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from replaygen.errors import ReplaygenError

_log = logging.getLogger(__name__)
_MOST_BYTES: Final = 16_000_000
_TRANSIENT_CODES: Final = frozenset({0, 105, 106, 201})
_REFUSING_CODES: Final = frozenset(range(96, 101))
_CODES: Final = {
    95: "it wants an encrypted connection",
    96: "the signature is wrong: is FLICKR_API_SECRET the secret of this key?",
    97: "the signature is missing",
    98: "the login is not valid",
    99: "the key may not do this",
    100: "the API key is not valid",
    105: "the service is unavailable",
    106: "the operation failed",
    111: "it does not know the format",
    112: "it does not know the method",
    116: "it does not take an address among the parameters",
}
_KEY_HINT: Final = (
    "set FLICKR_API_KEY and FLICKR_API_SECRET; keys are made at https://www.flickr.com/services/apps/create"
)


class ApiFault(ReplaygenError):
    """The photo API did not do what was asked.

    Attributes:
        code: the API's own number of the fault, None where there is none.
        transient: asking again later may help.
        after: seconds that the server asks to wait before that.
        refuses_us: the key or the account is refused, so every other call would end alike; else the fault may be
            about this one photo or this one moment.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        hint: str = "",
        code: int | None = None,
        transient: bool = False,
        after: float = 0.0,
        refuses_us: bool = False,
    ) -> None:
        super().__init__(what, where=where, hint=hint)
        self.code = code
        self.transient = transient
        self.after = after
        self.refuses_us = refuses_us

    def __reduce__(self) -> tuple[object, tuple[object, ...], dict[str, object]]:
        make, arguments, state = super().__reduce__()
        return make, arguments, {**state, **vars(self)}


class Credentials:
    """The key and the secret. Nothing shows them."""

    __slots__ = ("key", "secret")
    key: str
    secret: str

    def __init__(self) -> None:
        for name, attribute in (("FLICKR_API_KEY", "key"), ("FLICKR_API_SECRET", "secret")):
            if not os.environ.get(name, "").strip():
                raise ApiFault(f"{name} is not set", hint=_KEY_HINT)
            if not re.fullmatch(r"[!-~]{1,200}", os.environ[name].strip()):
                raise ApiFault(f"{name} holds characters that no key has", hint=_KEY_HINT)
            setattr(self, attribute, os.environ[name].strip())

    def __repr__(self) -> str:
        return "(hidden)"

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Credentials, ()


class _Status(Exception):
    """An HTTP status other than 200."""

    def __init__(self, status: int, after: float) -> None:
        super().__init__(status)
        self.status = status
        self.after = after


class _TooLarge(Exception):
    """An answer beyond the bound."""


class Client:
    """One flickrapi object with a connection of its own; for one thread at a time."""

    def __init__(self, credentials: Credentials, address: str, agent: str, timeout: float) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from flickrapi import FlickrAPI

        self._wire = _Wire(address, agent)
        self._api = FlickrAPI(
            credentials.key, credentials.secret, format="parsed-json", store_token=False, cache=False, timeout=timeout
        )
        self._api.REST_URL = address
        self._api.flickr_oauth.session = self._wire

    def abort(self) -> None:
        """Cut the connection under a call that runs in another thread; the object is of no more use."""
        self._wire.abort()

    def attempt(self, method: str, parameters: dict[str, str | int]) -> dict[str, Any] | ApiFault:
        """The answer, or the fault that stands for it."""
        import requests
        from flickrapi.exceptions import FlickrError

        try:
            answer = self._api.do_flickr_call(method, **parameters)
        except FlickrError as error:
            return _code_fault(method, error.code)
        except _Status as error:
            return _status_fault(method, error.status, error.after)
        except _TooLarge:
            return ApiFault(f"Flickr's answer is larger than {_MOST_BYTES} bytes", where=method)
        except requests.exceptions.SSLError:
            what = "the connection to Flickr cannot be trusted, or broke off"
            return ApiFault(what, where=method, transient=True)
        except requests.exceptions.Timeout:
            return ApiFault("Flickr did not answer in time", where=method, transient=True)
        except requests.exceptions.RequestException as error:
            kind = type(error).__name__
            return ApiFault(f"Flickr cannot be reached, or broke off ({kind})", where=method, transient=True)
        except Exception as error:
            return ApiFault(f"Flickr's answer cannot be read ({type(error).__name__})", where=method, transient=True)
        if not isinstance(answer, dict) or answer.get("stat") != "ok":
            return ApiFault("Flickr's answer does not say whether it is one", where=method, transient=True)
        return answer


class _Wire:
    """What flickrapi takes for a `requests.Session`: posts, bounded, without redirects, cookies or logging."""

    def __init__(self, address: str, agent: str) -> None:
        from http.cookiejar import DefaultCookiePolicy

        import requests

        self._session = requests.Session()
        self._session.headers["User-Agent"] = agent
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # a proxy of the environment is for the world outside, and could not reach a server on this machine
        self._session.trust_env = not _on_this_machine(urlsplit(address).hostname or "")
        self._answer: Any = None

    def post(self, url: str, *, data: Any, auth: Any, timeout: float) -> _Reply:
        """One POST; _Status or _TooLarge where there is nothing to read, and what requests raises."""
        from replaygen.crawl.replies import retry_after

        with self._session.post(
            url, data=data, auth=auth, timeout=timeout, stream=True, allow_redirects=False
        ) as answer:
            self._answer = answer
            if answer.status_code != 200:
                raise _Status(answer.status_code, retry_after(answer.headers) or 0.0)
            body = bytearray()
            for chunk in answer.iter_content(65536):
                body += chunk
                if len(body) > _MOST_BYTES:
                    raise _TooLarge
            self._answer = None
            return _Reply(bytes(body))

    def abort(self) -> None:
        """End the reading in another thread."""
        answer = self._answer
        if answer is not None:
            try:
                answer.raw.shutdown()
            except Exception:
                _log.debug("a connection could not be cut; it ends by its own timeout")


@dataclass(frozen=True, slots=True, repr=False)
class _Reply:
    """What flickrapi reads of an answer."""

    content: bytes
    status_code: int = 200


def quiet() -> None:
    """Silence the libraries of a call: what they write shows calls, keys and answers, and helps nobody."""
    for name in ("flickrapi", "oauthlib", "requests_oauthlib"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    for name in ("urllib3", "requests"):
        logging.getLogger(name).setLevel(logging.WARNING)


def api_is_elsewhere() -> bool:
    """Whether REPLAYGEN_FLICKR_URL names another server: what that says must never pass for Flickr's word."""
    told = os.environ.get("REPLAYGEN_FLICKR_URL", "").strip()
    return bool(told) and urlsplit(told).hostname not in ("api.flickr.com", "www.flickr.com")


def api_address() -> str:
    """Where the API is: REPLAYGEN_FLICKR_URL, or Flickr itself; ApiFault where the key would go in the clear."""
    told = os.environ.get("REPLAYGEN_FLICKR_URL", "").strip() or "https://api.flickr.com/services/rest/"
    try:
        parts = urlsplit(told)
        fits = parts.hostname is not None and not parts.username and not parts.password and parts.port != 0
    except ValueError:
        fits = False
    if not fits or parts.query or parts.fragment:
        raise ApiFault("REPLAYGEN_FLICKR_URL is no plain address", hint="such as http://127.0.0.1:8080/services/rest/")
    if parts.scheme != "https" and not (parts.scheme == "http" and _on_this_machine(parts.hostname or "")):
        raise ApiFault("REPLAYGEN_FLICKR_URL would send the key in the clear", hint="use https, or a loopback address")
    return told


def api_agent() -> str:
    """The User-Agent of all that the crawler asks; ApiFault where a header cannot hold it."""
    from replaygen.crawl.client import crawl_environment

    _, agent, _ = crawl_environment()
    if not (agent.isascii() and agent.isprintable()):
        raise ApiFault("the User-Agent holds what a header cannot", hint="REPLAYGEN_CONTACT: plain characters")
    return agent


def _on_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _status_fault(method: str, status: int, after: float) -> ApiFault:
    if status in (401, 403):
        what = f"Flickr refuses the API key or its signature (HTTP {status})"
        return ApiFault(what, where=method, hint=_KEY_HINT, refuses_us=True)
    transient = status in (408, 425, 429) or status >= 500
    return ApiFault(f"Flickr answered HTTP {status}", where=method, transient=transient, after=after)


def _code_fault(method: str, code: object) -> ApiFault:
    if not isinstance(code, int):
        return ApiFault("Flickr says that the call failed, without a code", where=method, transient=True)
    transient = code in _TRANSIENT_CODES or (code == 10 and method == "flickr.photos.search")
    meaning = f": {_CODES[code]}" if code in _CODES else ""
    hint = _KEY_HINT if code in (96, 98, 100) else ""
    return ApiFault(
        f"Flickr says no, with code {code}{meaning}", where=method, hint=hint, code=code, transient=transient,
        refuses_us=code in _REFUSING_CODES,
    )  # fmt: skip
