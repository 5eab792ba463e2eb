"""`[run]` of a recipe: what it refuses before any work, and the way out."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import BUILD_ONLY, Workspace

from replaygen.errors import RecipeError
from replaygen.plan import Recipe
from replaygen.runs.clusters import is_loopback


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scheduler": "tcp://127.0.0.1:1"}, r'cluster = "tcp://127\.0\.0\.1:1"'),
        ({"cluster": "slrum"}, "none of local, slurm"),
        ({"cluster": "http://127.0.0.1:1"}, "no tcp:// or tls:// address"),
        ({"cluster": "slurm"}, "needs workers = N, or adapt"),
        ({"adapt": [4, 2]}, "fewest and the most"),
        ({"adapt": [0, 0]}, "fewest and the most"),
        ({"adapt": [0, 2], "cluster": "tls://head:1"}, "workers that replaygen starts"),
        ({"memory": "4GB", "cluster": "tls://head:1"}, "workers that replaygen starts"),
        ({"memory": "much"}, "run.memory"),
        ({"job": {"walltime": "1:00"}}, "for a batch system"),
        ({"tls": {"ca": "x"}}, r"run\.tls\.cert"),
        ({"tls": {"ca": "x", "cert": "x", "key": "x", "kye": "x"}}, "kye"),
        ({"idle": -1}, "run.idle"),
    ],
)
def test_what_cannot_work_is_refused(workspace: Workspace, changes: dict[str, Any], says: str) -> None:
    """Each with words that help."""
    path = workspace.recipe(BUILD_ONLY)
    with pytest.raises(RecipeError, match=says):
        Recipe.load(path, {f"run.{name}": value for name, value in changes.items()})


def test_how_a_recipe_runs_is_in_no_key(workspace: Workspace) -> None:
    """Another cluster, other memory, other certificates: the same keys."""
    path = workspace.recipe(BUILD_ONLY)
    more = {"cluster": "slurm", "adapt": [0, 9], "memory": "2GiB", "job": {"queue": "x"}, "idle": 5, "insecure": True}
    here = Recipe.load(path)
    there = Recipe.load(path, {f"run.{name}": value for name, value in more.items()})
    assert list(here.plan(here.store()).tasks) == list(there.plan(there.store()).tasks)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://127.0.0.1:8786", True), ("tcp://127.9.9.9:1", True), ("tcp://[::1]:8786", True),
        ("tcp://localhost:8786", True), ("tcp://0.0.0.0:8786", False), ("tcp://192.0.2.1:8786", False),
        ("tcp://[2001:db8::1]:1", False), ("tcp://nobody.invalid:1", False), ("tcp://:8786", False),
        ("tcp://127.0.0.1.nip.invalid:1", False), ("tcp://127.0.0.1@192.0.2.1:1", False),
    ],
)  # fmt: skip
def test_what_is_loopback(address: str, expected: bool) -> None:
    """Only what stands for this machine itself."""
    assert is_loopback(address) is expected
