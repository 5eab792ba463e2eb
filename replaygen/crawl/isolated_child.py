"""The child of `crawl.isolated`: answers requests for `ingest` on a socket, under limits, until its parent hangs up."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import struct
import sys
import time
from typing import Any

from replaygen.crawl.ingest import Keep, Unfit, ingest

REQUEST = struct.Struct("<QiiBB")  # bytes of the image, max_side (-1: none), min_side, verbatim, more requests follow
REPLY = struct.Struct("<BII")  # kind, bytes of its JSON, bytes of the image
READY, BROKEN, TAKEN, UNFIT, NO_MEMORY = range(5)


def take(link: socket.socket, size: int, deadline: float | None = None) -> bytearray | None:
    """`size` bytes, or None where the other side has hung up; OSError as recv, TimeoutError behind the deadline."""
    frame = bytearray(size)
    view, at = memoryview(frame), 0
    while at < size:
        if deadline is not None:
            link.settimeout(max(0.001, deadline - time.monotonic()))
        if not (got := link.recv_into(view[at:])):
            return None
        at += got
    return frame


def _serve(told: list[str]) -> None:
    """Answer requests until the parent hangs up."""
    link = socket.socket(fileno=int(told[0]))
    try:
        _die_with_parent()
        _import_all()
        _limit(int(told[1]))
    except Exception as error:
        link.sendall(_frame(BROKEN, f"{type(error).__name__}: {error}"[:300]))
        return
    link.sendall(_frame(READY, None))
    try:
        answers: list[bytes] = []
        while (head := take(link, REQUEST.size)) is not None:
            size, max_side, min_side, verbatim, more = REQUEST.unpack(head)
            if (data := take(link, size)) is None:
                return
            _grant(float(told[2]))
            keep: Keep = "verbatim" if verbatim else "resized"
            answers.append(_answer(bytes(data), None if max_side < 0 else max_side, min_side, keep))
            if not more:
                link.sendall(b"".join(answers))
                answers.clear()
    except MemoryError:
        link.sendall(_frame(NO_MEMORY, None))  # and end: what is left behind would be missing for the next image
    except OSError:
        pass  # the parent is gone


def _answer(data: bytes, max_side: int | None, min_side: int, keep: Keep) -> bytes:
    try:
        photo = ingest(data, max_side=max_side, min_side=min_side, keep=keep)
    except Unfit as unfit:
        return _frame(UNFIT, [unfit.reason, unfit.detail[:300]])
    except MemoryError:
        raise
    except Exception as error:  # a fault of ours, not the photo's: say so, and go on
        return _frame(UNFIT, ["decoder-crashed", f"{type(error).__name__}: {error}"[:300]])
    sizes = [photo.width, photo.height, photo.from_width, photo.from_height]
    return _frame(TAKEN, [photo.kind, *sizes, photo.format, photo.encoded], photo.data)


def _frame(kind: int, told: Any, data: bytes = b"") -> bytes:
    text = json.dumps(told).encode()
    return REPLY.pack(kind, len(text), len(data)) + text + data


def _die_with_parent() -> None:
    """End when the parent does, also where a process forked from it keeps the socket open."""
    parent = os.getppid()

    def parent_may_be_dead(*_: object) -> None:  # Linux tells of the end of the thread that started us, too
        if os.getppid() != parent:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, parent_may_be_dead)
    if sys.platform.startswith("linux"):
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGHUP), 0, 0, 0)


def _import_all() -> None:
    """Load every library before memory is limited: an import that fails half-way would be blamed on a photo."""
    import cv2
    import simplejpeg
    from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    del simplejpeg, BmpImagePlugin, GifImagePlugin, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
    Image.preinit()
    cv2.setNumThreads(1)


def _limit(memory_mb: int) -> None:
    """No core dumps, no written files, and so much more address space than there is now."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return  # not Linux: other systems do not hold to RLIMIT_AS either
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = used + (memory_mb << 20)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _grant(seconds: float) -> None:
    """CPU time for one more image; the kernel ends the process that takes more."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = math.ceil(time.process_time() + seconds)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


if __name__ == "__main__":
    _serve(sys.argv[1:])
