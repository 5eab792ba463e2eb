"""An inpainting server that is not ours: whatever it does, no bad picture comes in and no run ends for it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from replaygen.errors import ModelError, RecipeError
from replaygen.inpainters.base import Checked, Failure, checked, open_inpainter
from replaygen.inpainters.lama_wire import Wire
from replaygen.testing.bad_inpainter import WAYS, BadInpainter


def scene(seed: int = 0) -> tuple[Any, Any]:
    """A lively picture with sides that are no multiples of 8, and a hole over both its halves."""
    y, x = np.mgrid[:61, :83]
    rng = np.random.default_rng(seed)
    image = np.stack([60 + 2 * y, 40 + 2 * x, 128 + 60 * np.sin(x / 5)], axis=-1) + rng.normal(0, 4, (61, 83, 1))
    return np.clip(image, 0, 255).astype(np.uint8), (y - 30) ** 2 + (x - 40) ** 2 < 400


def ask(server: BadInpainter, timeout: float = 10.0) -> Any:
    """An inpainter that asks it."""
    return open_inpainter({"backend": "lama"}, {"server": server.url, "timeout": timeout})


@pytest.mark.parametrize("way", WAYS)
def test_no_bad_picture_is_admitted(way: str) -> None:
    """A good picture, the bad one, a good one again: the bad is a Failure by its name, the others are filled."""
    image, hole = scene()
    with BadInpainter() as server, ask(server, 1.0 if WAYS[way] == "inpainter-timeout" else 10.0) as inpainter:
        before = inpainter.fill(image, hole)
        server.way = way
        began = time.monotonic()
        (answer,) = inpainter.fill_many([image], [hole])
        assert time.monotonic() - began < 5.0
        server.way = "good"
        after = inpainter.fill(image, hole)
    if WAYS[way] is None:
        assert np.array_equal(answer[~hole], image[~hole])
    else:
        assert isinstance(answer, Failure)
        assert answer.reason == WAYS[way]
    assert np.array_equal(before, after)


def test_answers_stand_where_their_pictures_stood() -> None:
    """Several requests are under way at once; each picture gets its own fill."""
    scenes = [scene(seed) for seed in range(12)]
    with BadInpainter() as server, ask(server) as inpainter:
        together = inpainter.fill_many([image for image, _ in scenes], [hole for _, hole in scenes])
        alone = [inpainter.fill(image, hole) for image, hole in scenes]
    assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))


def test_a_lossless_server_strays_by_nothing() -> None:
    """What is sent is what is filled: no colours exchanged, no rows lost, no JPEG on the way."""
    image, hole = scene()
    with BadInpainter() as server, ask(server) as inpainter:
        assert isinstance(inpainter, Checked)
        inpainter.fill(image, hole)
        assert inpainter.stray.share == 0.0
        server.way = "careless"
        inpainter.fill(image, hole)
        assert inpainter.stray.share > 0.9


def test_a_server_that_hangs_up_once_is_asked_again() -> None:
    """The second answer counts."""
    image, hole = scene()
    with BadInpainter("crash-once") as server, ask(server) as inpainter:
        inpainter.fill(image, hole)
        assert server.asked == 2


def test_a_server_that_is_gone_ends_the_run_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting every picture left as failed would be worse: nothing is wrong with the pictures."""
    monkeypatch.setattr("replaygen.inpainters.lama._BACK", 0.5)
    image, hole = scene()
    with BadInpainter() as server, ask(server) as inpainter:
        inpainter.fill(image, hole)
        server.close()
        with pytest.raises(ModelError, match="no inpainting server answers") as gone:
            inpainter.fill_many([image, image], [hole, hole])
        assert "lama-cleaner --model lama" in gone.value.hint
        monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ModelError, match="no answer"):
            open_inpainter({"backend": "lama"}, {"server": url, "timeout": 0.5})


def test_a_server_of_another_model_is_not_lama() -> None:
    """The recipe asks for LaMa; lama-cleaner runs others too."""
    with BadInpainter(model="cv2") as server, pytest.raises(ModelError, match="runs 'cv2', not LaMa"):
        ask(server)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org:8080", "http://192.168.0.7", "http://0.0.0.0:80", "ftp://127.0.0.1/", "127.0.0.1:8080",
        "https://user:secret@host/", "http://127.0.0.1:8080/?key=secret", "http://127.0.0.1:99999", "http://[::1",
        "http://localhost.example.org", "https://", "http://127.0.0.1#secret",
    ],
)  # fmt: skip
def test_only_loopback_or_https_is_asked(url: str) -> None:
    """Pictures travel in the clear nowhere but inside this machine; no error repeats what may be a secret."""
    with pytest.raises(RecipeError) as refused:
        Wire(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/", "http://localhost", "http://[::1]:81", "https://example.org/lama/", "HTTPS://h"]
)
def test_addresses_that_may_be_asked(url: str) -> None:
    """Loopback by any of its names, anything by TLS."""
    assert Wire(url).place.startswith(("http://127.0.0.1:8080", "http://localhost:80", "http://[::1]:81", "https://"))


def test_a_certificate_that_nobody_vouches_for_is_not_believed() -> None:
    """TLS is checked: a self-signed server is not asked."""
    from replaygen.testing.hostile import HostileServer

    with HostileServer() as server:
        host = server.url("bad-tls").split("/")[2]
        with pytest.raises(ModelError, match="SSLCertVerificationError"):
            open_inpainter({"backend": "lama"}, {"server": f"https://{host}", "timeout": 5.0})


def test_a_closed_inpainter_says_so() -> None:
    """And the server, which is the user's, goes on."""
    image, hole = scene()
    with BadInpainter() as server:
        inpainter = ask(server)
        inpainter.close()
        with pytest.raises(ModelError, match="closed"):
            inpainter.fill(image, hole)
        with ask(server) as another:
            another.fill(image, hole)


RUNS = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
import numpy as np
from replaygen.inpainters.base import open_inpainter

rng = np.random.default_rng(0)
image, hole = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8), np.zeros((40, 40), dtype=bool)
hole[10:30, 10:30] = True
count = int(sys.argv[2])
with open_inpainter({"backend": "lama"}, {"server": sys.argv[1], "timeout": 120}) as inpainter:
    inpainter.fill_many([image] * count, [hole] * count)
"""


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("way", ["hang", "body-drip"])
def test_ctrl_c_does_not_wait_for_a_server_that_hangs(way: str, count: int) -> None:
    """Row 23: with a minute and more to wait for each picture, the process ends within seconds."""
    with BadInpainter(way) as server:
        child = subprocess.Popen([sys.executable, "-c", RUNS, server.url, str(count)], stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 60
            while server.asked < min(count, 4):
                assert child.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(0.2)
            began = time.monotonic()
            child.send_signal(signal.SIGINT)
            _, words = child.communicate(timeout=30)
            assert time.monotonic() - began < 10
        finally:
            child.kill()
            child.communicate()
        assert child.returncode == -signal.SIGINT
        assert words.rstrip().endswith(b"KeyboardInterrupt")
        assert b"Exception" not in words
        assert server.asked == min(count, 4)


def test_closing_hangs_up() -> None:
    """Whoever waits for an answer in another thread is told at once, and no answer is asked for again."""
    image, hole = scene()
    with BadInpainter("hang") as server:
        inpainter = ask(server, 60.0)
        later = threading.Timer(0.5, inpainter.close)
        later.start()
        began = time.monotonic()
        with pytest.raises(ModelError, match="closed"):
            inpainter.fill_many([image, image], [hole, hole])
        assert time.monotonic() - began < 5
        later.join()
        assert server.asked == 2


def test_one_error_ends_all_at_once() -> None:
    """What a backend cannot go on from is raised; the pictures that wait are not tried, those under way not awaited."""

    class Ends:
        name, at_once = "ends", 2

        def __init__(self) -> None:
            self.calls, self.closed = 0, threading.Event()

        def paint(self, image: Any, mask: Any) -> Any:
            self.calls += 1
            if self.calls == 2:
                raise ModelError("gone for good")
            self.closed.wait(60)
            raise Failure("inpainter-crashed")

        def identity(self) -> dict[str, Any]:
            return {}

        def versions(self) -> dict[str, str]:
            return {}

        def close(self) -> None:
            self.closed.set()

    image, hole = scene()
    backend = Ends()
    began = time.monotonic()
    with pytest.raises(ModelError, match="for good"):
        checked(backend).fill_many([image] * 9, [hole] * 9)
    assert time.monotonic() - began < 5
    assert backend.closed.is_set()
    assert backend.calls == 2
