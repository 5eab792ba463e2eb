"""The one place that decides whether a failed task is tried again."""

from __future__ import annotations

import errno

from replaygen.errors import ReplaygenError

_HOPELESS = {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT}


def worth_retrying(error: BaseException) -> bool:
    """False where trying again cannot help: bad input, a full or read-only disk, a task that kills its workers."""
    if isinstance(error, ReplaygenError | MemoryError | AssertionError | TypeError | ValueError):
        return False
    if isinstance(error, OSError) and error.errno in _HOPELESS:
        return False
    return not ends_its_workers(error)


def ends_its_workers(error: BaseException) -> bool:
    """Whether Dask gave a task up because workers died that had it; it may only have waited beside the one at fault."""
    return type(error).__name__ == "KilledWorker"


def stops_the_run(error: BaseException) -> bool:
    """Whether no other task can succeed either."""
    return isinstance(error, OSError | ReplaygenError) and error.errno in _HOPELESS
