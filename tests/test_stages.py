"""A stage's version is raised when the code that decides its numbers changes."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
from pathlib import Path

import pytest

from replaygen.stages import STAGES

EVERYWHERE = ("replaygen.stages.context", "replaygen.sample")
TRACKED = Path(__file__).with_name("stage_versions.json")


def _meaning(source: str) -> str:
    """A digest of code that comments, docstrings and layout do not change."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            body[0].value.value = ""
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def digest_of_stage(name: str) -> str:
    """What decides a stage's numbers: its own file, the modules that it declares, and those that every stage uses."""
    stage = STAGES[name]
    parts = [_meaning(Path(inspect.getfile(stage)).read_text())]
    for module in (*stage.modules, *EVERYWHERE):
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"{name} declares {module}, which is not there"
        assert spec.origin is not None
        parts.append(_meaning(Path(spec.origin).read_text()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_changed_stage_has_a_new_version(name: str) -> None:
    """If this fails: does the change alter any number? Then raise `version`. Then run `python tests/test_stages.py`."""
    tracked = json.loads(TRACKED.read_text())[name]
    assert tracked == {"version": STAGES[name].version, "digest": digest_of_stage(name)}


if __name__ == "__main__":
    told = {name: {"version": STAGES[name].version, "digest": digest_of_stage(name)} for name in sorted(STAGES)}
    TRACKED.write_text(json.dumps(told, indent=2) + "\n")
