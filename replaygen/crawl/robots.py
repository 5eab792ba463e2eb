"""What a host's robots.txt lets us fetch (RFC 9309), read once per origin and remembered for a day in memory.

No robots.txt (4xx) allows everything; one that cannot be had (5xx, no connection, a refused redirect) allows nothing
for a minute, and then it is asked for again. Then a photo is refused for what is wrong with its host, or as
"robots-unreachable"; "robots" is said only where a rule forbids it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from replaygen.crawl.addresses import Address, Refused

if TYPE_CHECKING:
    from protego import Protego

MOST_BYTES = 500_000
"""Of a robots.txt; what follows is not read."""
SLOWEST_DELAY = 30.0
"""Seconds; a longer Crawl-delay is taken as this."""
_DAY, _MINUTE = 86_400.0, 60.0
_NONE_THERE = frozenset({"gone", "forbidden", "not-served", "empty", "too-many-redirects", "redirect-loop"})
_OF_HOST = frozenset(
    {"connection-failed", "timeout", "unknown-host", "private-address", "tls", "rate-limited", "retry-later", "closed"}
)
"""What is wrong with a host when its robots.txt is asked for; the photo would meet the same."""
_AGENT_LINES = ("user-agent", "useragent", "user agent")


class _Rules:
    """The rules of one origin.

    `protego` None: everything is allowed; `problem` (reason, detail, transient): nothing is.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.until = 0.0
        self.protego: Protego | None = None
        self.problem: tuple[str, str, bool] | None = None
        self.delay: float | None = None


class Robots:
    """The robots.txt of all hosts that one downloader meets.

    Args:
        fetch: gives the body of a URL, at most `MOST_BYTES` of it; raises Refused.
        agent: the User-Agent of the requests; rules are looked up for what stands before its first "/".
    """

    def __init__(self, fetch: Callable[[str], bytes], agent: str) -> None:
        self._fetch = fetch
        self._agent = agent.partition("/")[0].strip().lower()
        self._origins: dict[tuple[str, str, int], _Rules] = {}
        self._lock = threading.Lock()

    def check(self, address: Address) -> float | None:
        """Seconds that the host wants between requests, None where it does not say.

        Raises:
            Refused: "robots" where a rule forbids the address; where nobody can tell, what is wrong with the host
                (such as "connection-failed"), or "robots-unreachable" (transient).
        """
        key = (address.scheme, address.host, address.port)
        with self._lock:
            if len(self._origins) > 4096:
                self._origins.clear()
            rules = self._origins.setdefault(key, _Rules())
        if rules.until <= time.monotonic():
            with rules.lock:
                if rules.until <= time.monotonic():
                    self._read(rules, address)
        if rules.problem is not None:
            reason, detail, transient = rules.problem
            raise Refused(reason, detail, transient=transient)
        if rules.protego is not None and not rules.protego.can_fetch(address.url, self._agent):
            raise Refused("robots", f"the robots.txt of {address.host} forbids it")
        return rules.delay

    def _read(self, rules: _Rules, address: Address) -> None:
        from protego import Protego

        origin = address.url[: len(address.url) - len(address.target)]
        protego, problem, delay, lasts = None, None, None, _DAY
        try:
            text = self._fetch(f"{origin}/robots.txt")[:MOST_BYTES].decode("utf-8-sig", "replace")
        except Refused as refused:
            if refused.reason not in _NONE_THERE:
                detail = f"the robots.txt of {address.host} cannot be had: {refused.reason}"
                of_host = refused.reason in _OF_HOST
                problem = (
                    (refused.reason, detail, refused.transient) if of_host else ("robots-unreachable", detail, True)
                )
                lasts = _MINUTE
        else:
            protego = Protego.parse(_ours(text, self._agent))
            delay = protego.crawl_delay(self._agent)
        rules.protego, rules.problem = protego, problem
        rules.delay = min(delay, SLOWEST_DELAY) if delay else None
        rules.until = time.monotonic() + lasts


def _ours(text: str, agent: str) -> str:
    """A robots.txt in which all groups of other bots are one: many names times many rules cost minutes otherwise."""
    kept: list[str] = []
    for line in text.splitlines():
        words = line.partition("#")[0].strip().lower()
        head = next((name for name in _AGENT_LINES if words.startswith(name)), None)
        if head is not None:
            name = words[len(head) :].lstrip(" \t:").strip()
            if name != "*" and name.replace("*", "") not in agent:
                line = "User-agent: of-other-bots"
                if kept and kept[-1] == line:
                    continue
        kept.append(line)
    return "\n".join(kept)
