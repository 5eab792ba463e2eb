"""BigGAN weights and what is drawn from them: small true networks, and local servers for the published ones."""

from __future__ import annotations

import http.server
import json
import math
import os
import shutil
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from replaygen.errors import ModelError
from replaygen.generators.biggan import class_count, class_names, open_biggan, truncation_row
from replaygen.generators.draws import Draw, truncated_normals
from replaygen.generators.folder import PUBLISHED, _next, fetch, weights_folder, weights_identity
from replaygen.generators.specs import BigGanSpec
from replaygen.portions import Portions, memory_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorch_pretrained_biggan import BigGAN, BigGANConfig

NAMES = ["cat", "cow", "dog", "horse", "sheep"]
CONFIG: dict[str, Any] = {
    "output_dim": 32,
    "z_dim": 12,
    "class_embed_dim": 12,
    "channel_width": 16,
    "num_classes": 5,
    "layers": [[False, 16, 8], [True, 8, 4], [True, 4, 4], [False, 4, 2], [True, 2, 1]],
    "attention_layer_position": 3,
    "eps": 1e-4,
    "n_stats": 51,
}
DRAWS = [Draw(seed=seed, label=seed % 5) for seed in range(7)]


@pytest.fixture(scope="module")
def model() -> Any:
    """The package's network with random weights and batch-norm statistics that differ from row to row."""
    generator = torch.Generator().manual_seed(1)
    net = BigGAN(BigGANConfig(**CONFIG))
    state = net.state_dict()
    for name, tensor in state.items():
        values = torch.randn(tensor.shape, generator=generator)
        if name.endswith(("weight_u", "weight_v")):
            values /= values.norm()
        elif name.endswith("running_vars"):
            values = 0.5 + values.abs()
        elif name.endswith(("running_means", "bias")):
            values *= 0.2
        tensor.copy_(values)
    net.train()  # the power iteration of a few passes makes u and v what training would make them
    with torch.no_grad():
        for _ in range(20):
            net(torch.zeros(1, 12), torch.eye(5)[:1], 1.0)
    return net.eval()


def save(model: Any, folder: Path, change: Callable[[dict[str, torch.Tensor]], Any] = lambda state: None) -> Path:
    """A weights folder of the network; `change` edits its tensors first."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "classes": NAMES}))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    change(state)
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    """Its weights folder."""
    return save(model, tmp_path / "weights")


def reference(model: Any, draws: list[Draw], truncation: float, statistics: float | None = None) -> Any:
    """What the package draws, as float32 [n, H, W, 3] in 0..1."""
    z = torch.from_numpy(np.stack([truncated_normals(draw.seed, 12) for draw in draws])) * truncation
    with torch.inference_mode():
        images = model(z, torch.eye(5)[[draw.label for draw in draws]], statistics or truncation)
    return ((images + 1) / 2).permute(0, 2, 3, 1).numpy()


def psnr(one: Any, other: Any) -> float:
    """In dB, of images in 0..1."""
    return -10 * math.log10(float(np.mean((one - other) ** 2)))


@pytest.mark.parametrize("truncation", [0.02, 0.4, 0.5, 0.98, 1.0])
def test_images_are_the_package_s(model: Any, folder: Path, truncation: float) -> None:
    """All that is folded away leaves the images of the package's own forward pass, at any truncation."""
    images = open_biggan(folder, BigGanSpec(truncation=truncation, batch=3), "cpu").draw(DRAWS)
    assert images.shape == (7, 32, 32, 3)
    assert images.dtype == np.float32
    assert images.std() > 0.05
    np.testing.assert_allclose(images, reference(model, DRAWS, truncation), rtol=0, atol=1e-5)


def test_statistics_are_the_truncation_s_own_row(model: Any, tmp_path: Path) -> None:
    """At 0.14, where the package takes another row by a rounding error, the row is the seventh."""

    def seventh_last(state: dict[str, torch.Tensor]) -> None:
        for name, tensor in state.items():
            if "running" in name:
                tensor[7] = tensor[50]

    images = open_biggan(save(model, tmp_path / "weights", seventh_last), BigGanSpec(truncation=0.14), "cpu").draw(
        DRAWS
    )
    np.testing.assert_allclose(images, reference(model, DRAWS, 0.14, statistics=1.0), rtol=0, atol=1e-5)


def test_image_is_a_function_of_its_draw(folder: Path) -> None:
    """The same bytes whatever is drawn beside it or before it, and by a generator opened anew."""
    generator = open_biggan(folder, BigGanSpec(batch=4), "cpu")
    images = generator.draw(DRAWS)
    assert generator.draw(DRAWS[::-1])[::-1].tobytes() == images.tobytes()
    assert b"".join(generator.draw([draw]).tobytes() for draw in DRAWS) == images.tobytes()
    assert open_biggan(folder, BigGanSpec(batch=4), "cpu").draw(DRAWS[2:5]).tobytes() == images[2:5].tobytes()
    assert generator.draw([]).shape == (0, 32, 32, 3)
    assert not np.array_equal(generator.draw([Draw(0, 1)]), generator.draw([Draw(0, 2)]))


def test_many_at_once_are_the_same_images(model: Any, folder: Path) -> None:
    """The batched pass that a GPU runs gives the images that one row at a time gives."""
    generator = open_biggan(folder, BigGanSpec(batch=3), "cpu")
    single = generator.draw(DRAWS)
    generator._portions = Portions(3, memory_of("cpu"))
    np.testing.assert_allclose(generator.draw(DRAWS), single, rtol=0, atol=1e-5)


def test_half_precision_is_close(model: Any, tmp_path: Path, folder: Path) -> None:
    """bfloat16 drawing and float16 weight files stay near float32's images."""

    def halve(state: dict[str, torch.Tensor]) -> None:
        state.update({name: tensor.half() for name, tensor in state.items()})

    full = open_biggan(folder, BigGanSpec(), "cpu").draw(DRAWS)
    assert 30 < psnr(open_biggan(folder, BigGanSpec(dtype="bfloat16"), "cpu").draw(DRAWS), full) < 80
    assert 45 < psnr(open_biggan(save(model, tmp_path / "half", halve), BigGanSpec(), "cpu").draw(DRAWS), full) < 120


def test_opening_leaves_random_numbers_alone(folder: Path) -> None:
    """Building the network consumes no random numbers of the process."""
    before = torch.get_rng_state()
    open_biggan(folder, BigGanSpec(), "cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_overflow_is_nan(model: Any, tmp_path: Path) -> None:
    """Finite weights that overflow give NaN, not a plausible image."""
    weights = save(model, tmp_path / "w", lambda s: s["generator.bn.weight"].fill_(3e38))
    assert np.isnan(open_biggan(weights, BigGanSpec(), "cpu").draw(DRAWS[:2])).any()


def cut(path: Path) -> None:
    """Lose the last bytes."""
    path.write_bytes(path.read_bytes()[:-100])


def wide(path: Path) -> None:
    """Announce a header of 100 MB and one byte; the file has a hole of that size."""
    path.write_bytes((10**8 + 1).to_bytes(8, "little"))
    os.truncate(path, 10**8 + 100)


def deep(path: Path) -> None:
    """A header of lists in lists."""
    path.write_bytes((10**5).to_bytes(8, "little") + b"[" * 10**5)


def edit(path: Path, **values: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change(**tensors: Any) -> Callable[[Path], None]:
    """A change of the weights: name -> function of the tensor, None to drop it."""

    def changed(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        for name, act in tensors.items():
            state[name.replace("__", ".")] = act(state.get(name.replace("__", "."))) if act else None
        save_file({name: value for name, value in state.items() if value is not None}, folder / "model.safetensors")

    return changed


def forget_statistics(folder: Path) -> None:
    """Batch-norm statistics as a new network has them."""
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        if "running" in name:
            tensor.fill_(1 if name.endswith("vars") else 0)
    save_file(state, folder / "model.safetensors")


BROKEN: list[tuple[str, Callable[[Path], Any], str]] = [
    ("no config", lambda f: (f / "config.json").unlink(), "no config.json"),
    ("no weights", lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor pytorch_model.bin"),
    ("cut", lambda f: cut(f / "model.safetensors"), "its header says"),
    ("empty", lambda f: (f / "model.safetensors").write_bytes(b""), "empty file"),
    ("noise", lambda f: (f / "model.safetensors").write_bytes(bytes(range(256)) * 9), "no safetensors file"),
    ("config is no JSON", lambda f: (f / "config.json").write_text("{"), "not JSON"),
    ("config is deep", lambda f: (f / "config.json").write_text('{"a":' * 100_000), "not JSON: maximum recursion"),
    ("config is large", lambda f: (f / "config.json").write_bytes(b" " * 16_000_000 + b"{}"), "more than 16 MB"),
    ("header is large", lambda f: wide(f / "model.safetensors"), "a header of more than 100 MB"),
    ("header is deep", lambda f: deep(f / "model.safetensors"), "no safetensors file"),
    ("config lacks z_dim", lambda f: (f / "config.json").write_text('{"output_dim": 32}'), "does not say 'z_dim'"),
    ("layers do not chain", lambda f: edit(f / "config.json", layers=[[True, 16, 8], [True, 4, 1]]), "layer 1 goes"),
    ("layers end elsewhere", lambda f: edit(f / "config.json", output_dim=64), "expected 1 and 64"),
    ("classes", lambda f: edit(f / "config.json", classes=["cat"]), "num_classes is 5"),
    ("class count", lambda f: edit(f / "config.json", num_classes=6, classes=None), r"\[12, 5\], expected \[12, 6\]"),
    ("other width", lambda f: edit(f / "config.json", channel_width=32), "and [0-9]+ more"),
    ("lost", change(generator__bn__weight=None), "generator.bn.weight is missing"),
    ("extra", change(discriminator=lambda _: torch.ones(1)), "discriminator is unknown"),
    ("NaN", change(embeddings__weight=lambda t: t.fill_(math.nan)), "'embeddings.weight' holds NaN"),
    ("integers", change(embeddings__weight=lambda t: t.int()), "'embeddings.weight' is no tensor of floating"),
    ("unwarmed", forget_statistics, "statistics of generator.bn for truncation 1 were never computed"),
]


@pytest.mark.parametrize(("act", "told"), [pytest.param(act, told, id=name) for name, act, told in BROKEN])
def test_broken_weights_are_refused(folder: Path, act: Callable[[Path], Any], told: str) -> None:
    """Each refusal names what is wrong and where it lies."""
    act(folder)
    with pytest.raises(ModelError, match=told) as caught:
        open_biggan(folder, BigGanSpec(), "cpu")
    assert str(folder) in caught.value.where


class Marker:
    """What would make a folder if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickles_are_not_run(model: Any, folder: Path, tmp_path: Path) -> None:
    """pytorch_model.bin is read as tensors only: the published form works, code in it does not run."""
    wanted = open_biggan(folder, BigGanSpec(), "cpu").draw(DRAWS[:2])
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert open_biggan(folder, BigGanSpec(), "cpu").draw(DRAWS[:2]).tobytes() == wanted.tobytes()
    torch.save(model.state_dict() | {"x": Marker(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        open_biggan(folder, BigGanSpec(), "cpu")
    assert not (tmp_path / "ran").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists(), "the payload works where it is let"


def test_draws_that_cannot_be_made(folder: Path) -> None:
    """A class, a truncation and a precision that do not exist are refused with the nearest that do."""
    generator = open_biggan(folder, BigGanSpec(), "cpu")
    for label in (5, -1):
        with pytest.raises(ModelError, match=f"no class {label}"):
            generator.draw([DRAWS[0], Draw(1, label)])
    with pytest.raises(ModelError, match="4 is 'sheep'"):
        generator.draw([Draw(1, 9)])
    with pytest.raises(ModelError, match="no label"):
        generator.draw([Draw(1, prompt="a cow")])
    for truncation, near in ((0.41, "0.4 or 0.42"), (0.999, "0.98 or 1"), (0.001, "0.02 or 0.04")):
        with pytest.raises(ModelError, match=near):
            open_biggan(folder, BigGanSpec(truncation=truncation), "cpu")
    assert [truncation_row(number / 50, 51) for number in range(1, 51)] == list(range(1, 51))
    with pytest.raises(ModelError, match="bfloat16"):
        open_biggan(folder, BigGanSpec(dtype="float16"), "cpu")


def test_classes_without_torch(folder: Path) -> None:
    """Names and count of classes, and the identity of weights, cost no import of torch."""
    code = (
        "import sys; from pathlib import Path; from replaygen.generators.biggan import class_count, class_names;"
        "from replaygen.generators.folder import weights_folder, weights_identity; f = Path(sys.argv[1]);"
        "weights_identity(weights_folder('weights', workspace=f.parent, kind='biggan'), 'biggan');"
        "print(class_count(f), class_names(f)[4], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5", "sheep", "False"]


def test_identity_is_content(model: Any, folder: Path, tmp_path: Path) -> None:
    """Equal weights are equal wherever they lie; a changed byte shows, a note beside them does not."""
    memory = tmp_path / "memory"
    told = weights_identity(folder, "biggan", cache_dir=memory)
    assert set(told) == {"config.json", "model.safetensors"}
    (folder / "notes.txt").write_text("mine")
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    assert weights_identity(folder, "biggan", cache_dir=memory) == told == weights_identity(folder, "biggan")
    assert weights_identity(save(model, tmp_path / "copy"), "biggan") == told
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    again = weights_identity(folder, "biggan", cache_dir=memory)
    assert [name for name in told if told[name] != again[name]] == ["model.safetensors"]


@contextmanager
def serving(
    files: dict[str, bytes],
    lost: int = 0,
    moved: dict[str, str] | None = None,
    tls: tuple[Path, Path] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """A local server of files, and what was asked of it.

    Bodies of the larger ones end `lost` bytes too early; `moved` has paths that are elsewhere; `tls` a certificate
    and its key.
    """
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if moved and self.path in moved:
                self.send_response(302)
                self.send_header("Location", moved[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = files.get(self.path.partition("?")[0])
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            if body is not None:
                self.send_header("ETag", f'"{hash(body) & 0xFFFFFFFF:040x}"')
                self.send_header("X-Repo-Commit", COMMIT)
                if self.path.startswith("/api"):
                    self.send_header("Content-Type", "application/json")
            self.end_headers()
            if self.command == "GET" and body is not None:
                self.wfile.write(body[: len(body) - lost] if len(body) > 5000 else body)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def published(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The two files of biggan-deep-128 as they are published, and an empty cache."""
    torch.save(model.state_dict(), tmp_path / "published.bin", _use_new_zipfile_serialization=False)
    monkeypatch.setenv("REPLAYGEN_WEIGHTS", str(tmp_path / "kept"))
    for name in ("REPLAYGEN_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return {
        "/biggan-deep-128-config.json": json.dumps(CONFIG).encode(),
        "/biggan-deep-128-pytorch_model.bin": (tmp_path / "published.bin").read_bytes(),
    }


def find(workspace: Path, name: str = "biggan-deep-128") -> Path:
    """Its folder."""
    return weights_folder(name, workspace=workspace, kind="biggan")


def test_published_weights_are_fetched_once(
    model: Any, published: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published files become one safetensors folder, which is found again without a server."""
    with serving(published) as (url, asked):
        monkeypatch.setenv("REPLAYGEN_BIGGAN_URL", url + "/")
        weights = find(tmp_path)
        assert find(tmp_path) == weights
    assert sorted(asked) == sorted(published)
    assert find(tmp_path) == weights == tmp_path / "kept" / "biggan-deep-128"
    assert sorted(path.name for path in weights.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in weights.parent.iterdir()] == ["biggan-deep-128"]
    assert (class_count(weights), class_names(weights)) == (5, None)
    images = open_biggan(weights, BigGanSpec(), "cpu").draw(DRAWS)
    np.testing.assert_allclose(images, reference(model, DRAWS, 1.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fault", ["cut", "404", "not weights", "config only", "nobody", "offline"])
def test_failed_downloads_leave_nothing(
    published: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """A download that breaks off, or brings something else, is an error with the way out, and no file stays."""
    weights = "/biggan-deep-128-pytorch_model.bin"
    files = {
        "404": {},
        "config only": {key: value for key, value in published.items() if key != weights},
        "not weights": {**published, weights: b"<html>" * 5000},
    }.get(fault, published)
    with serving(files, lost=1000 if fault == "cut" else 0) as (url, asked):
        monkeypatch.setenv("REPLAYGEN_BIGGAN_URL", "http://127.0.0.1:9" if fault == "nobody" else url)
        if fault == "offline":
            monkeypatch.setenv("REPLAYGEN_OFFLINE", "1")
        with pytest.raises(ModelError) as caught:
            find(tmp_path)
    assert bool(asked) == (fault not in ("nobody", "offline"))
    told = {"404": "answers 404", "config only": "answers 404", "not weights": "cannot be read", "offline": "forbids"}
    assert told.get(fault, "the download failed") in caught.value.what
    assert fault == "not weights" or str(tmp_path / "kept" / "biggan-deep-128") in caught.value.hint
    assert not (tmp_path / "kept").exists() or not os.listdir(tmp_path / "kept")


def test_downloads_have_a_limit(tmp_path: Path) -> None:
    """A server that sends more than agreed is stopped."""
    with serving({"/big": bytes(10_000)}) as (url, _), pytest.raises(ModelError, match="more than the 9999 bytes"):
        fetch(f"{url}/big", tmp_path / "big", limit=9999, hint="")


def test_redirections(tmp_path: Path) -> None:
    """Five are followed; not a sixth, and none to what is neither https nor, from http, http."""
    moved = {f"/{i}": f"/{i + 1}" for i in range(6)} | {"/file": f"file://{tmp_path}/secret", "/bad": "http://[x"}
    with serving({"/6": b"found"}, moved=moved) as (url, asked):
        assert fetch(f"{url}/1", tmp_path / "here", limit=9, hint="") == 5
        assert (tmp_path / "here").read_bytes() == b"found"
        asked.clear()
        with pytest.raises(ModelError, match="redirects more than 5 times"):
            fetch(f"{url}/0", tmp_path / "here", limit=9, hint="")
        assert asked == [f"/{i}" for i in range(6)]
        with pytest.raises(ModelError, match="no https"):
            fetch(f"{url}/file", tmp_path / "here", limit=9, hint="")
        with pytest.raises(ModelError, match="the download failed"):
            fetch(f"{url}/bad", tmp_path / "here", limit=9, hint="")


def test_a_redirection_from_https_stays_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for by https is not taken from http."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, to make a certificate")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    named = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*made, *named, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with (
        serving({"/x": b"found"}) as (plain, asked),
        serving({"/y": b"found"}, moved={"/x": f"{plain}/x", "/same": "/y"}, tls=(certificate, key)) as (url, _),
    ):
        assert fetch(f"{url}/same", tmp_path / "here", limit=9, hint="") == 5
        with pytest.raises(ModelError, match="no https"):
            fetch(f"{url}/x", tmp_path / "here", limit=9, hint="")
    assert asked == []


def test_addresses_are_told_without_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scheme, host and path stand in an error; userinfo and query do not, also where the address is none."""
    with serving({"/cut": bytes(9000)}, lost=1, moved={"/on": "/cut?key=secret"}) as (url, _):
        known = url.replace("//", "//me:secret@")
        for path in ("/none?key=secret", "/cut?key=secret", "/on"):
            with pytest.raises(ModelError) as caught:
                fetch(known + path, tmp_path / "here", limit=10_000, hint="")
            assert caught.value.where == url + ("/cut" if path != "/none?key=secret" else "/none")
            assert "secret" not in str(caught.value)
    for odd in (
        "me:secret@host/x",
        "http://me:secret/@host/x",
        "http://[me:secret@host",
        "http://me:secret@127.0.0.1:9/",
    ):
        with pytest.raises(ModelError) as caught:
            fetch(odd, tmp_path / "here", limit=9, hint="")
        assert "secret" not in str(caught.value)
    assert _next("http://me:secret@host/a/b", "c") == "http://me:secret@host/a/c"
    assert _next("http://me:secret@host/a", "http://host/c") == "http://me:secret@host/c"
    assert _next("http://me:secret@host/a", "http://other/c") == "http://other/c"
    assert _next("https://me:secret@host/a", "http://host/c") == "http://host/c"


def test_files_put_there_by_hand(published: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, the two published files in the named folder are enough."""
    monkeypatch.setenv("REPLAYGEN_OFFLINE", "1")
    place = tmp_path / "kept" / "biggan-deep-256"
    place.mkdir(parents=True)
    for name, data in published.items():
        (place / name.removeprefix("/biggan-deep-128-")).write_bytes(data)
    (place / "model.safetensors" / "taken").mkdir(parents=True)
    assert find(tmp_path, "biggan-deep-256") == place, "used as it is where nothing can be written"
    images = open_biggan(place, BigGanSpec(), "cpu").draw(DRAWS[:1])
    shutil.rmtree(place / "model.safetensors")
    assert find(tmp_path, "biggan-deep-256") == place
    assert (place / "model.safetensors").is_file()
    assert open_biggan(place, BigGanSpec(), "cpu").draw(DRAWS[:1]).tobytes() == images.tobytes()


def test_unknown_names(folder: Path, tmp_path: Path) -> None:
    """A folder of the workspace is taken; a name that is neither folder nor published is refused."""
    assert find(tmp_path, "weights") == folder == find(Path("/nowhere"), str(folder))
    for name in ("biggan-deep-64", "weights/model.safetensors", ""):
        with pytest.raises(ModelError) as caught:
            find(tmp_path, name)
        assert "file" in caught.value.what or PUBLISHED[0] in caught.value.hint
    for name in ("not a model", "../elsewhere", "a/b/c"):
        with pytest.raises(ModelError, match="no name of a model on the hub"):
            weights_folder(name, workspace=tmp_path, kind="diffusion")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def pipeline_files() -> dict[str, bytes]:
    """A pipeline's files: two parts, with what else lies in such repositories."""
    from safetensors.torch import save as save_bytes

    weights = save_bytes({"w": torch.zeros(40)})
    return {
        "model_index.json": b'{"_class_name": "X", "unet": ["d", "U"], "scheduler": ["d", "S"], "none": [null, null]}',
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": weights,
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "scheduler/scheduler_config.json": b"{}",
        "v1-pruned.safetensors": weights,
        "README.md": b"hello",
    }


def write(files: dict[str, bytes], folder: Path) -> Path:
    """The files in a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_pipeline_folders(tmp_path: Path) -> None:
    """A pipeline's identity is its parts' files; a part without usable weights is refused."""
    folder = write(pipeline_files(), tmp_path / "pipeline")
    assert weights_folder("pipeline", workspace=tmp_path, kind="diffusion") == folder
    deciding = [
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert sorted(weights_identity(folder, "diffusion")) == deciding
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    cut(weights)
    with pytest.raises(ModelError, match="its header says"):
        weights_identity(folder, "diffusion")
    weights.unlink()
    with pytest.raises(ModelError, match=r"only pickled weights: diffusion_pytorch_model\.bin"):
        weights_identity(folder, "diffusion")
    (folder / "unet" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        weights_identity(folder, "diffusion")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    (folder / "scheduler").rmdir()
    with pytest.raises(ModelError, match="names 'scheduler'"):
        weights_identity(folder, "diffusion")


def test_hub(tmp_path: Path) -> None:
    """A hub model is fetched in the hub's protocol, only what is needed of it, and then found offline."""
    files = pipeline_files()
    tree = [
        {"type": "file", "path": name, "size": len(data), "oid": f"{len(data):040x}"} for name, data in files.items()
    ]
    served = {f"/org/tiny/resolve/{COMMIT}/{name}": data for name, data in files.items()}
    served["/api/models/org/tiny/revision/main"] = json.dumps({"id": "org/tiny", "sha": COMMIT}).encode()
    served[f"/api/models/org/tiny/tree/{COMMIT}"] = json.dumps(tree).encode()
    code = """if True:
        import sys
        from pathlib import Path
        from replaygen.errors import ModelError
        from replaygen.generators.folder import weights_folder
        for name in sys.argv[1:]:
            try:
                print(weights_folder(name, workspace=Path("."), kind="diffusion"))
            except ModelError as error:
                print(error.what)
    """

    def ask(url: str, *names: str, **more: str) -> list[str]:
        told = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "REPLAYGEN_"))}
        environment, command = {**clean, **told, **more}, [sys.executable, "-c", code, *names]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
        return done.stdout.splitlines()

    with serving(served) as (url, asked):
        assert ask(url, "org/tiny", REPLAYGEN_OFFLINE="1")[0].startswith("org/tiny: it is not here")
        assert not asked
        found, lost = ask(url, "org/tiny", "org/other")
    assert lost.startswith("org/other cannot be fetched")
    assert not [path for path in asked if path.endswith((".bin", ".md", "v1-pruned.safetensors"))]
    folder = Path(found)
    assert sorted(weights_identity(folder, "diffusion")) == sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    assert ask("http://127.0.0.1:9", "org/tiny", "org/tiny@main", HF_HUB_OFFLINE="1") == [found, found]
