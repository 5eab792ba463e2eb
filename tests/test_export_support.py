"""What the tests of exports and imports share: recipes, what is in a folder, a sample of one's own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from conftest import TRAINING, Workspace

from replaygen.exports.samples import Sample
from replaygen.plan import Plan, Recipe
from replaygen.sample import encode_png

ROWS = TRAINING.partition("[[method]]")[0] + "".join(
    f'[[method]]\nname = "{name}"\ntrainer = "{trainer}"\n{more}'
    for name, trainer, more in (
        ("finetune", "finetune", ""), ("web", "recall", 'replay = "photos"\n'),
        ("keeps", "recall", 'replay = "kept"\n'),
    )
)  # fmt: skip


def planned(workspace: Workspace, text: str, **changes: Any) -> Plan:
    recipe = Recipe.load(workspace.recipe(text), {key.replace("__", "."): value for key, value in changes.items()})
    return recipe.plan(recipe.store())


def contents(folder: Path) -> dict[str, str]:
    """Every file's sha256, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def sample_of(image: Any, mask: Any, **about: Any) -> Sample:
    told = dict.fromkeys(("licence_name", "licence_url", "url", "page", "source")) | about
    return Sample("cow-1", "cow", encode_png(image), "png", image.shape[1], image.shape[0], mask, told)
