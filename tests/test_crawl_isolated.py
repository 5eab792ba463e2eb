"""The decoder in a child process: what it refuses, what it survives, what it leaves behind."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from replaygen.crawl.ingest import Ingested, Unfit, ingest
from replaygen.crawl.isolated import Decoder, Decoders
from replaygen.errors import ReplaygenError


def file(colour: tuple[int, int, int], size: tuple[int, int] = (64, 48), form: str = "JPEG") -> bytes:
    """The bytes of a picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


SMALL = file((200, 40, 40))
LARGE = file((40, 200, 40), (5000, 4000), "PNG")  # a small file that takes a good part of a second


def take(decoder: Decoder | Decoders, data: bytes = SMALL) -> Ingested:
    """`ingest` in the child, with less to say."""
    return decoder.ingest(data, max_side=None, min_side=1, keep="resized")


def refusal(work: Callable[[], object]) -> str:
    """The reason for which an image is refused."""
    with pytest.raises(Unfit) as caught:
        work()
    return caught.value.reason


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that must come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that nobody reaped has)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    """A decoder whose child has served an image."""
    with Decoder() as made:
        take(made)
        yield made


@pytest.fixture
def stopped(decoder: Decoder) -> Iterator[tuple[Decoder, int, Future[Ingested]]]:
    """A decoder, its child, which was stopped, and the image that waits for it."""
    assert decoder.pid is not None
    pid = decoder.pid
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take, decoder)
        time.sleep(0.05)
        yield decoder, pid, waiting


def test_the_child_answers_what_ingest_answers(decoder: Decoder) -> None:
    """The same bytes, sizes and words, for JPEG, PNG and a kept original."""
    for data in (SMALL, file((1, 2, 3), form="PNG"), file((1, 2, 3), (300, 200), "WEBP")):
        for keep in ("resized", "verbatim"):
            options: Any = {"max_side": 50, "min_side": 8, "keep": keep}
            assert decoder.ingest(data, **options) == ingest(data, **options)


def test_refusals_travel(decoder: Decoder) -> None:
    """Reason and detail arrive, and the child goes on."""
    pid = decoder.pid
    with pytest.raises(Unfit, match="too-small: 64 x 48 pixels, the shorter side must have 49"):
        decoder.ingest(SMALL, max_side=None, min_side=49, keep="resized")
    for data, reason in ((b"", "not-an-image"), (b"MM\0*", "format"), (SMALL[:-9], "damaged")):
        assert refusal(partial(take, decoder, data)) == reason
    assert decoder.pid == pid


def test_a_child_that_was_killed_while_idle_is_replaced(decoder: Decoder) -> None:
    """The image that finds it dead is decoded all the same."""
    pid = decoder.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert take(decoder) == ingest(SMALL, max_side=None, min_side=1, keep="resized")
    assert decoder.pid not in (None, pid)


def test_an_image_is_not_blamed_for_an_old_child(stopped: tuple[Decoder, int, Future[Ingested]]) -> None:
    """A child that had served others dies over an image: a fresh one decides."""
    _, pid, waiting = stopped
    os.kill(pid, signal.SIGKILL)
    assert waiting.result(30).width == 64


def test_an_image_that_ends_every_child_is_refused(decoder: Decoder) -> None:
    """Two children dead over one image: it is refused by name, and the next image finds a new child."""
    seen: set[int | None] = {None}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take, decoder, LARGE)
        while not waiting.done():
            if decoder.pid not in seen:
                seen.add(decoder.pid)
                os.kill(decoder.pid or 0, signal.SIGKILL)
            time.sleep(0.002)
        assert refusal(waiting.result) == "decoder-crashed"
    assert len(seen) == 3
    assert take(decoder).width == 64


def test_an_image_that_takes_too_long_is_refused() -> None:
    """On the clock: a child that does not answer is killed, and the next image finds a new one."""
    with Decoder(seconds=0.5) as decoder:
        take(decoder)
        pid = decoder.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert refusal(lambda: take(decoder)) == "decoder-timeout"
        assert gone(pid)
        assert take(decoder).width == 64


def test_cpu_time_that_runs_out_is_a_timeout(stopped: tuple[Decoder, int, Future[Ingested]]) -> None:
    """The kernel's signal for too much CPU time is told as what it is."""
    _, pid, waiting = stopped
    os.kill(pid, signal.SIGXCPU)
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(Unfit, match="decoder-timeout: the picture takes more CPU time"):
        waiting.result(30)


def test_a_picture_that_needs_too_much_memory_is_refused() -> None:
    """20 million pixels do not fit into 64 MB; the next image finds a child that is whole."""
    with Decoder(memory_mb=64) as decoder:
        take(decoder)
        assert refusal(lambda: take(decoder, LARGE)) == "decoder-memory"
        assert refusal(lambda: take(decoder, bytes(40 << 20))) == "decoder-memory"
        assert take(decoder).width == 64


def test_the_child_is_limited(decoder: Decoder) -> None:
    """No files written, no core dumps, an address space and CPU time that end; the time is granted image by image."""
    assert decoder.pid is not None
    limits = {
        name: resource.prlimit(decoder.pid, getattr(resource, f"RLIMIT_{name}")) for name in ("FSIZE", "CORE", "AS")
    }
    assert (limits["FSIZE"], limits["CORE"]) == ((0, 0), (0, 0))
    assert limits["AS"][0] == limits["AS"][1] < 2 << 30
    used = sum(psutil.Process(decoder.pid).cpu_times()[:2])
    assert 20 <= resource.prlimit(decoder.pid, resource.RLIMIT_CPU)[0] <= used + 22


def test_the_child_knows_no_secret_and_holds_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither environment nor arguments hold the API key; the only open file is the socket to its parent."""
    for name in ("FLICKR_API_KEY", "FLICKR_API_SECRET", "HF_TOKEN"):
        monkeypatch.setenv(name, "canary")
    with Decoder() as decoder:
        take(decoder)
        child = psutil.Process(decoder.pid)
        assert "canary" not in str(child.environ()) + str(child.cmdline())
        assert not [name for name in child.environ() if name.startswith(("FLICKR", "HF", "HOME", "REPLAYGEN"))]
        links = [os.readlink(link) for link in Path(f"/proc/{decoder.pid}/fd").iterdir()]
        assert sorted(link.split(":")[0] for link in links) == ["/dev/null", "/dev/null", "/dev/null", "socket"]
        assert child.cwd() == "/"


def test_ctrl_c_does_not_reach_the_child(decoder: Decoder) -> None:
    """It is in a session of its own, and ignores the signal besides."""
    assert decoder.pid is not None
    pid = decoder.pid
    assert os.getsid(pid) == pid
    os.kill(pid, signal.SIGINT)
    take(decoder)
    assert decoder.pid == pid


def test_an_interrupted_image_leaves_no_answer_for_the_next(decoder: Decoder) -> None:
    """An exception from a signal handler in the middle of an image: the next image gets its own answer."""

    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        assert decoder.pid is not None
        os.kill(decoder.pid, signal.SIGSTOP)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interrupt):
            take(decoder)
    finally:
        signal.signal(signal.SIGALRM, before)
    other = file((0, 0, 250), (32, 16))
    assert take(decoder, other).width == 32


def test_close_ends_the_child_and_whoever_waits_for_it(stopped: tuple[Decoder, int, Future[Ingested]]) -> None:
    """A thread in the middle of an image is told of the closing; its image is not refused."""
    decoder, pid, waiting = stopped
    decoder.close()
    with pytest.raises(ReplaygenError, match="closed"):
        waiting.result(30)
    assert gone(pid)
    with pytest.raises(ReplaygenError, match="closed"):
        take(decoder)


def test_a_child_outlives_the_thread_that_started_it() -> None:
    """Linux tells of the end of a thread as of a parent's: the child looks whether its parent is really dead."""
    with Decoder() as decoder:
        thread = threading.Thread(target=take, args=(decoder,))
        thread.start()
        thread.join()
        pid = decoder.pid
        time.sleep(0.2)
        take(decoder)
        assert decoder.pid == pid


@pytest.mark.parametrize("fork", [False, True])
def test_no_orphan_is_left_by_a_parent_that_was_killed(fork: bool) -> None:
    """SIGKILL of the parent ends the child, even where a process forked from the parent still holds its socket."""
    script = f"""
        import os, time
        from replaygen.crawl.isolated import Decoder
        decoder = Decoder()
        decoder.ingest({SMALL!r}, max_side=None, min_side=1, keep="resized")
        other = 0
        if {fork}:
            other = os.fork()
            if not other:
                time.sleep(60)
                os._exit(0)
        print(decoder.pid, other, flush=True)
        time.sleep(60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child, other = map(int, parent.stdout.readline().split())
        assert not gone(child)
        parent.kill()
        try:
            wait_until(lambda: gone(child))
        finally:
            if other:
                os.kill(other, signal.SIGKILL)


def test_a_pool_gives_each_thread_its_own_answer() -> None:
    """Six threads, two children: every answer belongs to its image, and no child is started without need."""
    files = [file((n, 2 * n, 255 - n), (20 + n, 10 + n)) for n in range(60)]
    others = {process.pid for process in psutil.Process().children()}
    with Decoders(2) as decoders, ThreadPoolExecutor(6) as pool:
        taken = list(pool.map(lambda data: take(decoders, data), files))
        pids = {process.pid for process in psutil.Process().children()} - others
    assert [(photo.width, photo.height) for photo in taken] == [(20 + n, 10 + n) for n in range(60)]
    assert 1 <= len(pids) <= 2
    assert all(gone(pid) for pid in pids)


def test_a_missing_library_is_an_error_and_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the child cannot import what it needs, no photo is blamed for it."""
    (tmp_path / "simplejpeg.py").write_text("raise ImportError('simplejpeg is broken here')")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        Decoder() as decoder,
        pytest.raises(ReplaygenError, match="cannot start: ImportError: simplejpeg is broken here"),
    ):
        take(decoder)


@pytest.mark.parametrize("answer", [
    "pack('<BII', 2, 4_000_000_000, 0)", "pack('<BII', 2, 2, 4_000_000_000)", "pack('<BII', 2, 2, 0) + b'[}'",
    "pack('<BII', 2, 2, 0) + b'[]'", "pack('<BII', 2, 4096, 0) + b'[' * 4096",
    "pack('<BII', 3, 13, 0) + b'[\"lie\", \"no\"]'", "pack('<BII', 9, 4, 0) + b'null'",
    "pack('<BII', 2, 33, 4) + b'[\"jpg\",1,1,1,1,\"jpeg\",true]      MZ\\x90\\0'", "b''",
])  # fmt: skip
def test_a_child_that_was_taken_over_is_not_believed(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absurd sizes, broken words and bytes that are no JPEG cost the image, and nothing else."""
    impostor = tmp_path / "python"
    impostor.write_text(
        textwrap.dedent(f"""\
        #!{sys.executable}
        import socket, sys
        from struct import pack
        link = socket.socket(fileno=int(sys.argv[4]))
        link.sendall(pack('<BII', 0, 4, 0) + b'null')
        link.recv(100)
        link.sendall({answer})
        """)
    )
    impostor.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(impostor))
    with Decoder() as decoder:
        assert refusal(lambda: take(decoder)) == "decoder-crashed"
