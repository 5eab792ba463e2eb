"""Writing a report: complete, or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from replaygen.errors import ReplaygenError


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text beside its place, then rename; a reader never sees half of it.

    Raises:
        ReplaygenError: the folder is missing or cannot be written.
    """
    return write_bytes(path, text.encode("utf-8"))


def check_folder(path: Path) -> None:
    """Refuse a place in a folder that is not there, before the work is done; ReplaygenError."""
    if not path.parent.is_dir():
        raise ReplaygenError("no such folder to write the report to", where=str(path), hint="make the folder first")


def write_bytes(path: Path, data: bytes) -> Path:
    """As `write_text`, for bytes."""
    check_folder(path)
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise ReplaygenError(
            f"cannot write the report: {error.strerror}", where=str(path), hint="make the folder, or name another"
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ReplaygenError(
                f"cannot write the report: {error.strerror}", where=str(path), hint="is there room on the disk?"
            ) from None
        raise
    return path
