"""Pipelines by name from a hub: a local server that answers as the Hugging Face hub does, its client in a child."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from replaygen.generators.diffusion import open_diffusion
from replaygen.generators.draws import Draw
from replaygen.generators.folder import weights_identity
from replaygen.generators.specs import DiffusionSpec

REPOSITORY = Path(__file__).resolve().parent.parent
MAIN, OLDER = "a" * 40, "b" * 40
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FETCH = """
import sys
from pathlib import Path
from replaygen.errors import ModelError
from replaygen.generators.folder import weights_folder
try:
    print(weights_folder(sys.argv[1], workspace=Path(sys.argv[2]), kind="diffusion"))
except ModelError as error:
    print(error, file=sys.stderr)
    sys.exit(3)
"""


class Hub:
    """Repositories by name and commit, what was asked for, and which file breaks off after how many bytes."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Path]] = {}
        self.asked: list[str] = []
        self.cut: dict[str, int] = {}
        hub = self

        class Answers(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                return

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: Any) -> None:
        path = urlsplit(request.path).path
        self.asked.append(f"{request.command} {path}")
        match path.strip("/").split("/"):
            case ["api", "models", owner, name, "revision", revision]:
                self.repository(request, f"{owner}/{name}", revision)
            case ["api", "models", owner, name, "tree", commit]:
                self.tree(request, self.repositories[f"{owner}/{name}"][commit])
            case [owner, name, "resolve", commit, *file] if owner != "api":
                self.file(request, self.repositories[f"{owner}/{name}"][commit], "/".join(file), commit)
            case ["cdn", owner, name, commit, *file]:
                self.body(request, self.repositories[f"{owner}/{name}"][commit] / "/".join(file), {})
            case _:
                self.say(request, 404, b"", {})

    def repository(self, request: Any, name: str, revision: str) -> None:
        commits = self.repositories.get(name)
        if commits is None:
            self.say(request, 401, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return
        commit = {"main": MAIN, "v1": OLDER}.get(revision, revision)
        if commit not in commits:
            self.say(request, 404, b'{"error":"Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
            return
        files = [{"rfilename": one} for one in files_of(commits[commit])]
        told = {"_id": "0", "id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": files}
        self.say(request, 200, json.dumps(told).encode(), {"Content-Type": "application/json", "X-Repo-Commit": commit})

    def tree(self, request: Any, folder: Path) -> None:
        rows: list[dict[str, Any]] = []
        for name in files_of(folder):
            size, sha = (folder / name).stat().st_size, sha256(folder / name)
            row: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": sha[:40]}
            rows.append({**row, "lfs": {"oid": sha, "size": size, "pointerSize": 134}} if large(name) else row)
        self.say(request, 200, json.dumps(rows).encode(), {"Content-Type": "application/json"})

    def file(self, request: Any, folder: Path, name: str, commit: str) -> None:
        at = folder / name
        if not at.is_file():
            self.say(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        sha, size = sha256(at), at.stat().st_size
        if not large(name):
            self.body(request, at, {"X-Repo-Commit": commit, "ETag": f'"{sha[:40]}"'})
            return
        owner, repository = request.path.strip("/").split("/")[:2]
        where = f"http://localhost:{self.server.server_port}/cdn/{owner}/{repository}/{commit}/{name}"
        linked = {"X-Linked-ETag": f'"{sha}"', "X-Linked-Size": str(size), "X-Repo-Commit": commit}
        self.say(request, 302, b"", {"Location": where, **linked})

    def body(self, request: Any, at: Path, headers: dict[str, str]) -> None:
        data, first = at.read_bytes(), 0
        size = len(data)
        if asked := request.headers.get("Range"):
            first = int(asked.removeprefix("bytes=").split("-")[0])
            headers = {**headers, "Content-Range": f"bytes {first}-{size - 1}/{size}"}
        kept = next((count for name, count in self.cut.items() if str(at).endswith(name)), size)
        request.send_response(206 if asked else 200)
        for key, value in {"ETag": f'"{sha256(at)}"', **headers, "Content-Length": str(size - first)}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data[first : max(first, kept)])
        if kept < size:
            request.close_connection = True

    def say(self, request: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


def large(name: str) -> bool:
    return not name.endswith((".json", ".txt", ".md", ".py"))


def files_of(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DiT, saved."""
    import diffusers
    import torch

    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, out_channels=8, num_layers=1, sample_size=8, num_embeds_ada_norm=5
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), norm_num_groups=4, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("published") / "tiny"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers.DiTPipeline(network, vae, diffusers.DDIMScheduler()).save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def hub(pipeline: Path, tmp_path: Path) -> Iterator[Hub]:
    """org/tiny: the pipeline beside what people also publish; at v1 an older one. org/pickles: no safetensors."""
    served = Hub()
    main, older, pickles = (
        Path(shutil.copytree(pipeline, tmp_path / "hub" / name)) for name in ("main", "older", "pickles")
    )
    for name in ("vae/diffusion_pytorch_model.bin", "transformer/model.pt", "tiny.ckpt", "whole.safetensors", "run.py"):
        (main / name).write_bytes(b"not to be fetched")
    index = json.loads((older / "model_index.json").read_text())
    (older / "model_index.json").write_text(json.dumps({**index, "id2label": {str(n): f"old {n}" for n in range(5)}}))
    (pickles / WEIGHTS).rename(pickles / "transformer/diffusion_pytorch_model.bin")
    served.repositories = {"org/tiny": {MAIN: main, OLDER: older}, "org/pickles": {MAIN: pickles}}
    yield served
    served.server.shutdown()
    served.server.server_close()


def fetch(hub: Hub, home: Path, name: str = "org/tiny", **environment: str) -> Path | str:
    """`weights_folder` in a child process: the folder, or what the ModelError says. `hub.asked` is of this call."""
    hub.asked.clear()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "REPLAYGEN_OFF"))}
    kept |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "PYTHONPATH": str(REPOSITORY), **environment}
    command = [sys.executable, "-c", FETCH, name, str(home)]
    child = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=120, cwd=home)
    assert child.returncode in (0, 3), child.stderr
    return Path(child.stdout.strip()) if child.returncode == 0 else child.stderr


def bodies(hub: Hub) -> list[str]:
    """The files that were asked for, without those asked for again by redirection."""
    return sorted({line.split(f"{MAIN}/")[1] for line in hub.asked if "/resolve/" in line or "/cdn/" in line})


def test_a_pipeline_is_fetched_once_and_then_found_without_network(hub: Hub, pipeline: Path, tmp_path: Path) -> None:
    """What is fetched is what is needed, draws as the original does, and is there when the network is not."""
    folder = fetch(hub, tmp_path)
    assert isinstance(folder, Path), folder
    assert bodies(hub) == sorted(set(files_of(pipeline)))
    assert weights_identity(folder, "diffusion") == weights_identity(pipeline, "diffusion")
    spec, draws = DiffusionSpec(steps=1, guidance=1.0), [Draw(3, 2)]
    drawn = [open_diffusion(at, spec, "cpu").draw(draws) for at in (folder, pipeline)]
    assert np.array_equal(*drawn)
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"REPLAYGEN_OFFLINE": "1"}, {}):
        assert fetch(hub, tmp_path, **environment) == folder
        assert bodies(hub) == []
        assert not environment or hub.asked == []


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "REPLAYGEN_OFFLINE"])
def test_nothing_is_fetched_where_it_is_forbidden(hub: Hub, tmp_path: Path, variable: str) -> None:
    told = fetch(hub, tmp_path, **{variable: "1"})
    assert isinstance(told, str)
    assert told.startswith("org/tiny")
    assert f"{variable} forbids fetching it" in told
    assert "hint:" in told
    assert hub.asked == []


def test_pickles_are_never_fetched(hub: Hub, tmp_path: Path) -> None:
    """Neither beside safetensors (see above) nor where there is nothing else: then the pipeline is refused."""
    told = fetch(hub, tmp_path, "org/pickles")
    assert isinstance(told, str)
    assert "transformer" in told
    assert [one for one in bodies(hub) if one.endswith((".bin", ".pt", ".ckpt", ".py"))] == []


def test_a_download_that_breaks_off_leaves_nothing_usable(hub: Hub, pipeline: Path, tmp_path: Path) -> None:
    hub.cut[WEIGHTS] = (pipeline / WEIGHTS).stat().st_size // 2
    told = fetch(hub, tmp_path)
    assert isinstance(told, str)
    assert "org/tiny cannot be fetched" in told
    told = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert isinstance(told, str)
    assert "HF_HUB_OFFLINE forbids fetching it" in told
    hub.cut.clear()
    folder = fetch(hub, tmp_path)
    assert isinstance(folder, Path), folder
    assert weights_identity(folder, "diffusion") == weights_identity(pipeline, "diffusion")


def test_a_revision_is_what_was_asked_for(hub: Hub, tmp_path: Path) -> None:
    older = fetch(hub, tmp_path, "org/tiny@v1")
    assert isinstance(older, Path), older
    assert json.loads((older / "model_index.json").read_text())["id2label"]["4"] == "old 4"
    assert fetch(hub, tmp_path) != older
    for name, what in (("org/tiny@v9", "org/tiny cannot be fetched"), ("org/none", "org/none cannot be fetched")):
        told = fetch(hub, tmp_path, name)
        assert isinstance(told, str)
        assert what in told
        assert "hint:" in told
