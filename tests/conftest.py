"""Shared by all tests: where the real photographs are, and a workspace that is nobody else's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from replaygen.testing.local_flickr import LocalFlickr

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """One thread, as every stage sets it: results and timings are those of a task."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real photographs; tests that need it are skipped where it is absent."""
    given = os.environ.get("REPLAYGEN_DATA")
    root = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not (root / "voc_animals").is_dir():
        pytest.skip("needs the real photographs: set REPLAYGEN_DATA to the folder that holds voc_animals/")
    return root


@pytest.fixture
def repository() -> Path:
    """The project's root."""
    return REPOSITORY


TINY_DATA = """
[data]
kind = "digits"
path = "{data}"
options = {{ train = 60, val = 12, photos = 24 }}
"""

BUILD_ONLY = (
    """
name = "build"
shard = 8
"""
    + TINY_DATA
    + """
[scenario]
task = "5-1"
[network]
kind = "small"
[replay.photos]
source = "folder"
path = "{{data}}/photos"
count = 24
[replay.kept]
source = "exemplar"
count = 10
"""
)

TRAINING = (
    """
name = "tiny"
shard = 32
"""
    + TINY_DATA
    + """
[scenario]
task = "8-1"
[network]
kind = "small"
widths = [16, 24]
[views]
size = 32
[replay.photos]
source = "folder"
path = "{{data}}/photos"
count = 8
[replay.kept]
source = "exemplar"
count = 6
[train.fit]
iterations = 6
batch = 4
optimizer = "adamw"
background_weight = 0.05
[train.base]
iterations = 80
batch = 16
lr = 0.02
[[method]]
name = "finetune"
trainer = "finetune"
[[method]]
name = "recall"
trainer = "recall"
replay = "kept"
[[method]]
name = "web"
trainer = "recall"
replay = "photos"
[[method]]
name = "joint"
trainer = "joint"
"""
)


@pytest.fixture(scope="session")
def tiny_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small digit-scenes data set, composed once."""
    from replaygen.datasets.digits import build_digit_scenes

    return build_digit_scenes(tmp_path_factory.mktemp("data") / "digits", train=60, val=12, photos=24)


class Workspace:
    """A workspace of one test: recipes by name, one store."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root = root
        self.data = data
        (root / "pipelines").mkdir(parents=True)

    def recipe(self, text: str, name: str = "recipe") -> Path:
        """Write a recipe; `{data}` in it is the tiny data set's folder, `{{data}}` stays the recipe's own."""
        path = self.root / "pipelines" / f"{name}.toml"
        path.write_text(text.format(data=self.data))
        return path


@pytest.fixture
def workspace(tmp_path: Path, tiny_digits: Path) -> Workspace:
    """An empty workspace beside the tiny digit scenes."""
    return Workspace(tmp_path / "work", tiny_digits)


@pytest.fixture
def flickr(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalFlickr]:
    """A local Flickr that serves the tiny data set's photos, and an environment that leads to it."""
    from replaygen.testing.local_flickr import LocalFlickr

    monkeypatch.setenv("REPLAYGEN_STATE", str(tmp_path / "rates"))
    with LocalFlickr(workspace.data / "photos", licences=(4, 7, 9)) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
