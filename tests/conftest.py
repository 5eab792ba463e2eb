"""Shared by all tests: where the real photographs are, and a workspace that is nobody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
