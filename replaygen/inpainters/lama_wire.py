"""One request to a lama-cleaner server: its form, a deadline for the whole of it, and nothing it says taken on trust.

No redirects, no proxies, no cookies. An answer has as many bytes as a picture of this size may have, and is decoded
only if its header tells this size.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import secrets
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from replaygen.errors import RecipeError
from replaygen.inpainters.answers import Failure, Mask

if TYPE_CHECKING:
    from replaygen.sample import Image8

TOKEN = "X-Replaygen-Token"
FORM = {
    "ldmSteps": "20", "ldmSampler": "plms", "zitsWireframe": "true",
    "hdStrategy": "Original", "hdStrategyCropMargin": "128", "hdStrategyCropTrigerSize": "2048",
    "hdStrategyResizeLimit": "2048",
    "prompt": "", "negativePrompt": "",
    "useCroper": "false", "croperX": "0", "croperY": "0", "croperHeight": "512", "croperWidth": "512",
    "sdScale": "1.0", "sdMaskBlur": "0", "sdStrength": "0.75", "sdSteps": "20", "sdGuidanceScale": "7.5",
    "sdSampler": "uni_pc", "sdSeed": "42", "sdMatchHistograms": "false",
    "cv2Flag": "INPAINT_NS", "cv2Radius": "4",
    "paintByExampleSteps": "20", "paintByExampleGuidanceScale": "7.5", "paintByExampleMaskBlur": "0",
    "paintByExampleSeed": "42", "paintByExampleMatchHistograms": "false",
    "p2pSteps": "20", "p2pImageGuidanceScale": "1.5", "p2pGuidanceScale": "7.5",
    "controlnet_conditioning_scale": "0.4", "controlnet_method": "control_v11p_sd15_canny",
}  # fmt: skip
"""Every field that lama-cleaner 1.2.5 reads. "Original": the picture is filled at its own size, neither cropped nor
resized; the server pads its sides to multiples of 8 by mirroring, and cuts them off again."""


class Gone(Exception):
    """Nobody answers at that address, or who did hung up before the answer was whole."""


class Wire:
    """A lama-cleaner server at an address. Safe for several threads: a connection a request.

    Args:
        url: http on loopback, or https; no user, query or fragment.
        token: goes with every request, for a server that asks for it.

    Raises:
        RecipeError: an address that is neither.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self._secure, self._host, self._port, self._path = _address(url)
        self._token = token
        self._form = "bmp" if not self._secure else "png"  # both lossless; the server answers in the form it was sent
        self._tls = ssl.create_default_context() if self._secure else None
        self._turn = threading.Lock()
        self._links: set[socket.socket] | None = set()  # under way; None: closed

    def close(self) -> None:
        """Hang up: requests that are under way, in other threads, and later ones raise Gone."""
        with self._turn:
            links, self._links = self._links, None
        for link in links or ():
            _hang_up(link)

    @property
    def place(self) -> str:
        """Scheme, host and port, for messages."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._secure else 'http'}://{host}:{self._port}{self._path}"

    def model(self, timeout: float) -> str:
        """What the server says that it runs: "lama", "cv2", ...

        Raises:
            Gone: nobody answers; TimeoutError: not in time; Failure: an error instead of a name.
        """
        return self._ask("GET", "/model", b"", "", timeout, 200).decode("ascii", "replace")

    def inpaint(self, image: Image8, mask: Mask, timeout: float) -> Image8:
        """Fill the hole.

        Args:
            image: uint8 [H, W, 3], RGB; mask: bool [H, W]; timeout: seconds from connecting to the last byte.

        Returns:
            uint8 [H, W, 3], RGB, as the server told.

        Raises:
            Gone: nobody answers, or not to the end; TimeoutError: not in time.
            Failure: an error, no picture, or one of another size.
        """
        mark = secrets.token_hex(16)
        body = _body(image, mask, self._form, mark)
        most = image.nbytes * 2 + (1 << 16)
        answer = self._ask("POST", "/inpaint", body, f"multipart/form-data; boundary={mark}", timeout, most)
        return _picture(answer, image.shape)

    def _ask(self, method: str, path: str, body: bytes, kind: str, timeout: float, most: int) -> bytes:
        deadline = time.monotonic() + timeout
        connection = self._connection(timeout)
        late: threading.Timer | None = None
        link: socket.socket | None = None
        response: http.client.HTTPResponse | None = None
        try:
            connection.connect()
            link = self._noted(connection.sock)
            late = threading.Timer(max(0.0, deadline - time.monotonic()), _hang_up, (link,))
            late.daemon = True
            late.start()
            headers = {"Content-Type": kind} if kind else {}
            if self._token:
                headers[TOKEN] = self._token
            connection.request(method, self._path + path, body or None, headers)
            response = connection.getresponse()
            data = response.read(most + 1)
            whole = response.isclosed() or response.length is None or len(data) > most
        except TimeoutError:
            raise TimeoutError(f"no answer in {timeout:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no whole answer in {timeout:g} s") from None
            raise Gone(type(error).__name__) from None
        finally:
            if late is not None:
                late.cancel()
            if response is not None:
                response.close()
            connection.close()
            self._forget(link)
        if time.monotonic() >= deadline:
            raise TimeoutError(f"no whole answer in {timeout:g} s")
        if response.status != 200:
            raise Failure("inpainter-refused", f"HTTP {response.status} {_plain(data)}".strip())
        if len(data) > most:
            raise Failure("inpainter-wrong-size", f"more than {most:,} bytes")
        if not whole:
            raise Gone("hung up before the end")
        return data

    def _noted(self, link: socket.socket) -> socket.socket:
        with self._turn:
            if self._links is None:
                raise OSError("closed")
            self._links.add(link)
        return link

    def _forget(self, link: socket.socket | None) -> None:
        with self._turn:
            if self._links is not None and link is not None:
                self._links.discard(link)

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)


def _hang_up(link: socket.socket) -> None:
    try:
        socket.socket.shutdown(link, socket.SHUT_RDWR)  # below TLS too: whoever reads is woken
    except OSError:
        pass


def _address(url: str) -> tuple[bool, str, int, str]:
    """Secure, host, port and path of a server's URL."""
    hint = 'server = "http://127.0.0.1:8080" or "https://host"; for another machine make a tunnel, or use TLS'
    try:
        told = urlsplit(url)
        port, host = told.port, told.hostname or ""
    except ValueError:
        raise RecipeError("the inpainting server's address cannot be read", hint=hint) from None
    if told.username is not None or told.password is not None or told.query or told.fragment or not host:
        raise RecipeError("the inpainting server's address has a user, a query, a fragment or no host", hint=hint)
    if told.scheme == "https" or (told.scheme == "http" and _is_loopback(host)):
        return told.scheme == "https", host, port or (443 if told.scheme == "https" else 80), told.path.rstrip("/")
    raise RecipeError("an inpainting server is asked on this machine, or by https", where=host, hint=hint)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _body(image: Image8, mask: Mask, form: str, mark: str) -> bytes:
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in FORM.items()
    ]
    for name, values in (("image", image), ("mask", mask.astype(np.uint8) * 255)):
        head = f'Content-Disposition: form-data; name="{name}"; filename="{name}.{form}"\r\nContent-Type: image/{form}'
        parts.append(f"--{mark}\r\n{head}\r\n\r\n".encode() + _encoded(values, form) + b"\r\n")
    return b"".join([*parts, f"--{mark}--\r\n".encode()])


def _encoded(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], form: str) -> bytes:
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(values).save(written, form, **({"compress_level": 1} if form == "png" else {}))
    return written.getvalue()


def _picture(data: bytes, shape: tuple[int, ...]) -> Image8:
    """Decode an answer, if it says it has this shape."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "BMP", "JPEG")) as opened:
            size = opened.size
            if size == (shape[1], shape[0]):
                return np.asarray(opened.convert("RGB"), dtype=np.uint8)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Failure("inpainter-wrong-size", "far more pixels than were sent") from None
    except Exception as error:  # Pillow raises many kinds on damaged bytes; each means the same to us
        raise Failure("inpainter-not-an-image", type(error).__name__) from None
    raise Failure("inpainter-wrong-size", f"{size[0]} x {size[1]}, not {shape[1]} x {shape[0]}")


def _plain(data: bytes) -> str:
    text = data[:200].decode("ascii", "replace")
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()
