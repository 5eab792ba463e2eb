"""LaMa (Suvorov et al., WACV 2022) through lama-cleaner's HTTP server: one of our own, or one that the user runs.

One of our own is started with the first picture, restarted after it ended or hung, and stopped with `close` or with
this process, however that ends. A picture that ends a server which had filled others is tried once more in a fresh one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.errors import ModelError, RecipeError
from replaygen.inpainters.answers import Failure
from replaygen.inpainters.base import identity_of
from replaygen.inpainters.lama_env import needed
from replaygen.inpainters.lama_server import START, Folder, Server, Weights, accepted, versions_of
from replaygen.inpainters.lama_wire import Gone, Wire

if TYPE_CHECKING:
    from replaygen.inpainters.answers import Mask
    from replaygen.inpainters.specs import EraseSpec
    from replaygen.sample import Image8

TIMEOUT = 60.0  # seconds a picture may take; big-lama takes 6 at 512 pixels, one thread
_BACK = 10.0  # seconds for a server of the user's to come back
_AT_ONCE = 4  # requests under way to a server of the user's


def open_lama(spec: Mapping[str, Any], where: Mapping[str, Any]) -> OwnLama | LamaByURL:
    """The backend of `open_inpainter` for lama; see there.

    Raises:
        RecipeError: neither weights nor a server, or both; weights without their sha256; a server's bad address.
        ModelError: the environment or the weights are missing or not as accepted; nobody answers at the address.
    """
    weights, server, sha256 = where.get("weights"), where.get("server"), spec.get("sha256")
    timeout = float(where.get("timeout") or spec.get("timeout") or TIMEOUT)
    if bool(weights) == bool(server):
        what = "LaMa needs its weights, or a server that has them" if not weights else "LaMa has weights and a server"
        raise RecipeError(what, hint="give one: weights = a TorchScript file, or server = an address")
    if server:
        return LamaByURL(str(server), sha256, timeout)
    needed()
    return OwnLama(
        accepted(Path(str(weights)), sha256), device=str(where.get("device") or "cpu"), timeout=timeout,
        threads=int(spec.get("threads") or 1), start=float(where.get("start_timeout") or START),
    )  # fmt: skip


def check_weights(spec: EraseSpec) -> None:
    """Look at the weights of a `[replay.X.erase]` table before any work; half a second for big-lama's 200 MB.

    Args:
        spec: its paths as this machine knows them. Of OpenCV and of a server there is nothing to look at.

    Raises:
        ModelError: no such file, none that can be read, or not the sha256 that was accepted.
    """
    if spec.backend == "lama" and spec.weights is not None:
        accepted(Path(spec.weights), spec.sha256)


class OwnLama:
    """A `Backend` on a server of our own; one picture at a time, which is all that its one thread can do.

    Attributes:
        starts: how many servers were started.
    """

    name = "lama"
    at_once = 1

    def __init__(self, weights: Weights, *, device: str, threads: int, timeout: float, start: float) -> None:
        self._weights, self._device, self._threads = weights, device, threads
        self._timeout, self._start = timeout, start
        self._turn = threading.Lock()
        self._folder: Folder | None = None
        self._server: Server | None = None
        self._served = 0
        self._closed = False
        self.starts = 0

    @property
    def server(self) -> Server | None:
        """The running one, None while there is none."""
        return self._server

    def paint(self, image: Image8, mask: Mask) -> Any:
        """As `Wire.inpaint`, with a second try where the server had filled others.

        Raises:
            Failure: this picture. ModelError: the server does not start, or this was closed.
        """
        with self._turn:
            while True:
                server = self._living()
                try:
                    answer = server.wire.inpaint(image, mask, self._timeout)
                    self._served += 1
                    return answer
                except Failure as failure:
                    if "CUDA" in failure.detail:  # what went wrong on a GPU once goes on to
                        self._drop()
                    raise
                except TimeoutError as late:
                    self._drop()
                    raise Failure("inpainter-timeout", str(late)) from None
                except Gone as gone:
                    served = self._served
                    self._drop()
                    if not served:
                        raise Failure("inpainter-crashed", f"the server ended: {gone}") from None
                except BaseException:  # interrupted: its answer may come to somebody else
                    self._drop()
                    raise

    def identity(self) -> dict[str, Any]:
        """As `Inpainter.identity`."""
        return identity_of({"backend": "lama", "sha256": self._weights.sha256})

    def versions(self) -> dict[str, str]:
        """As `Inpainter.versions`."""
        return versions_of(needed())

    def close(self) -> None:
        """Stop the server and remove the copy of the weights."""
        with self._turn:
            self._closed = True
            self._drop()
            if self._folder is not None:
                self._folder.remove()
                self._folder = None

    def _living(self) -> Server:
        if self._closed:
            raise ModelError("the inpainter is closed", hint="open a new one")
        if self._server is not None and not self._server.alive():
            self._drop()
        if self._server is None:
            if self._folder is None:
                self._folder = Folder()
            self._server = Server(
                self._folder, self._weights, device=self._device, threads=self._threads, start=self._start
            )
            self.starts += 1
        return self._server

    def _drop(self) -> None:
        server, self._server, self._served = self._server, None, 0
        if server is not None:
            server.stop()


class LamaByURL:
    """A `Backend` on a server that the user runs, several requests at once.

    Raises:
        RecipeError: an address that is neither loopback nor https. ModelError: nobody answers, or no LaMa does.
    """

    name = "lama"
    at_once = _AT_ONCE

    def __init__(self, url: str, sha256: str | None, timeout: float) -> None:
        self._wire = Wire(url)
        self._sha256, self._timeout = sha256, timeout
        self._closed = False
        self._wait(min(timeout, _BACK))

    def paint(self, image: Image8, mask: Mask) -> Any:
        """As `Wire.inpaint`; where the server hung up, once more when it is back.

        Raises:
            Failure: this picture. ModelError: nobody answers any more, or this was closed.
        """
        if self._closed:
            raise ModelError("the inpainter is closed", hint="open a new one")
        for last in (False, True):
            try:
                return self._wire.inpaint(image, mask, self._timeout)
            except TimeoutError as late:
                raise Failure("inpainter-timeout", str(late)) from None
            except Gone as gone:
                if self._closed:
                    raise ModelError("the inpainter was closed", hint="open a new one") from None
                self._wait(_BACK)
                if last:
                    raise Failure("inpainter-crashed", f"the server hung up: {gone}") from None
        raise AssertionError("unreachable")

    def identity(self) -> dict[str, Any]:
        """As `Inpainter.identity`; of the weights, what the user says that they are."""
        return identity_of({"backend": "lama", "sha256": self._sha256})

    def versions(self) -> dict[str, str]:
        """As `Inpainter.versions`: whoever runs the server knows."""
        return {}

    def close(self) -> None:
        """Hang up. The server is the user's, and goes on."""
        self._closed = True
        self._wire.close()

    def _wait(self, patience: float) -> None:
        """Return when the server says that it runs LaMa."""
        deadline = time.monotonic() + patience
        why = "no answer"
        while True:
            try:
                found = self._wire.model(max(0.1, deadline - time.monotonic()))
                if found == "lama":
                    return
                raise ModelError(
                    f"the inpainting server runs {found[:40]!r}, not LaMa", where=self._wire.place,
                    hint="start it with --model lama",
                )  # fmt: skip
            except Gone as gone:
                why = str(gone)
            except TimeoutError:
                pass
            except Failure as failure:
                why = failure.detail
            if time.monotonic() + 0.2 > deadline or "SSLCert" in why or self._closed:
                raise ModelError(
                    f"no inpainting server answers: {why}", where=self._wire.place,
                    hint="start it (`lama-cleaner --model lama --host 127.0.0.1 --port N`), or give weights instead",
                )  # fmt: skip
            time.sleep(0.2)
