"""Log lines: for people, or one JSON object a line. Values of secrets in the environment never pass."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

from replaygen.errors import ReplaygenError

FORM, LEVEL = "REPLAYGEN_LOG", "REPLAYGEN_LOG_LEVEL"
"""Names of the environment: `text` or `json`; DEBUG, INFO, WARNING or ERROR."""

_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSPHRASE|CREDENTIAL|_KEY(_|$)", re.IGNORECASE)
_SHORTEST = 6
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

log = logging.getLogger("replaygen.command")


class LogError(ReplaygenError):
    """A form or level of logs that there is not."""


def redacted(text: str) -> str:
    """A text with `[NAME]` in place of the value of each secret of the environment, quoted or not."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET.search(name):
            for form in sorted(_forms(value), key=len, reverse=True):
                text = text.replace(form, f"[{name}]")
    return text


def _forms(value: str) -> set[str]:
    """How a value may stand in a text: as it is, as Python writes it, and both as JSON writes them."""
    plain = {value, repr(value)[1:-1]}
    return plain | {json.dumps(one, ensure_ascii=ascii)[1:-1] for one in plain for ascii in (True, False)}


class Redacting(logging.Formatter):
    """A formatter whose lines hold no secret."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return redacted(super().format(record))


TIMED = Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s")
"""For files: when, how grave, who, what."""


def of_interest(record: logging.LogRecord) -> bool:
    """Whether a line is for users: what Dask says of its own workings is not, unless everything is asked for."""
    return not record.name.startswith("distributed") or record.levelno >= logging.ERROR or logging.root.level <= 10


class _Console(logging.StreamHandler[TextIO]):
    """Writes to what is standard error at that moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.addFilter(of_interest)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def start(form: str | None = None, *, timed: bool = False) -> None:
    """Let this process log to standard error; what was said before is replaced, and told to child processes too.

    Args:
        form: text or json; default: REPLAYGEN_LOG, else text.
        timed: text with times, from INFO on: for a log file that standard error leads to.

    Raises:
        LogError: another form, or REPLAYGEN_LOG_LEVEL is no level.
    """
    form = form or os.environ.get(FORM) or "text"
    if form not in ("text", "json"):
        raise LogError(f"logs have no form {form!r}", where=f"--log or {FORM}", hint="text or json")
    told = os.environ.get(LEVEL)
    level = (told or ("INFO" if timed or form == "json" else "WARNING")).upper()
    if level not in _LEVELS:
        raise LogError(f"no level {told!r}", where=LEVEL, hint=f"one of {', '.join(_LEVELS)}")
    os.environ[FORM] = form
    console = _Console()
    console.setFormatter(_json_lines() if form == "json" else TIMED if timed else Redacting("%(message)s"))
    console.setLevel(level)
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _Console)]:
        root.removeHandler(handler)
    root.addHandler(console)
    root.setLevel("DEBUG" if level == "DEBUG" else "WARNING")
    logging.getLogger("replaygen").setLevel("DEBUG" if level == "DEBUG" else "INFO")
    logging.captureWarnings(form == "json")


def stop() -> None:
    """Undo `start`."""
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _Console)]:
        root.removeHandler(handler)
    root.setLevel("WARNING")
    logging.getLogger("replaygen").setLevel("NOTSET")
    logging.captureWarnings(False)
    os.environ.pop(FORM, None)


def in_json() -> bool:
    """Whether standard error is to hold JSON lines only."""
    return os.environ.get(FORM) == "json"


def say(message: str, *, grave: bool = False, **fields: Any) -> None:
    """Tell a person something on standard error, or a program, where logs are JSON; `fields` are for programs."""
    if in_json():
        log.log(logging.ERROR if grave else logging.INFO, "%s", message, extra=fields)
    else:
        print(redacted(message), file=sys.stderr, flush=True)


def _json_lines() -> logging.Formatter:
    import structlog

    def clean(_logger: Any, _method: str, told: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {name: redacted(value) if isinstance(value, str) else value for name, value in told.items()}

    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.stdlib.ExtraAdder(),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.format_exc_info,
            clean, structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        ],
    )  # fmt: skip
    return formatter
