"""Runs lama-cleaner's own server inside its environment, and sees to it that it dies with whoever started it.

A script for the environment's interpreter, of the standard library alone: two processes. The first watches a pipe that
its parent holds; when that closes, however the parent ended, it kills the second and removes the folder. The second is
the server, on a socket that was bound for it, and dies with the first. Requests need the token.

    lama_child.py PARENT PIPE SOCKET FOLDER DEVICE THREADS
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import sys
from typing import Any


def _watch(server: int, parent: int, pipe: int, folder: str) -> None:
    while True:
        gone, _, _ = select.select([pipe], [], [], 0.5)
        if gone or os.getppid() != parent:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)
            shutil.rmtree(folder, ignore_errors=True)
            return
        ended, status = os.waitpid(server, os.WNOHANG)
        if ended:
            sys.exit(os.waitstatus_to_exitcode(status) & 255)


def _serve(watcher: int, listening: int, folder: str, device: str, threads: int) -> None:
    _die_with(watcher)
    port = socket.socket(fileno=os.dup(listening)).getsockname()[1]
    os.environ["WERKZEUG_RUN_MAIN"], os.environ["WERKZEUG_SERVER_FD"] = "true", str(listening)
    token = os.environ.pop("REPLAYGEN_INPAINT_TOKEN")
    sys.argv = [
        "lama-cleaner", "--model", "lama", "--device", device, "--host", "127.0.0.1", "--port", str(port),
        "--model-dir", folder, "--disable-model-switch",
    ]  # fmt: skip

    import logging

    import cv2
    import lama_cleaner.server as app  # type: ignore[import-not-found,unused-ignore]
    import torch
    from flask import abort, request  # type: ignore[import-not-found,unused-ignore]

    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)

    def ask_for_token() -> Any:
        """Any web page of this machine's user could ask a server on loopback."""
        if request.headers.get("X-Replaygen-Token") != token:
            abort(403)

    app.app.before_request(ask_for_token)
    import lama_cleaner

    lama_cleaner.entry_point()


def _die_with(watcher: int) -> None:
    if sys.platform.startswith("linux"):
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != watcher:
        os._exit(0)


def _main(told: list[str]) -> None:
    parent, pipe, listening = (int(one) for one in told[:3])
    folder, device, threads = told[3], told[4], int(told[5])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    watcher = os.getpid()
    server = os.fork()
    if server == 0:
        os.close(pipe)
        _serve(watcher, listening, folder, device, threads)
        return
    os.close(listening)
    _watch(server, parent, pipe, folder)


if __name__ == "__main__":
    _main(sys.argv[1:])
