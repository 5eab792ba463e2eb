"""Recipes: what is misspelt is refused, with file, line and the nearest valid key."""

from __future__ import annotations

import random
import re
import tomllib
from pathlib import Path

import pytest
from conftest import BUILD_ONLY, TRAINING, Workspace

from replaygen.errors import RecipeError, ReplaygenError
from replaygen.plan import Recipe

KEY = re.compile(r"^(?P<key>[a-z_0-9]+)\s*=", re.MULTILINE)
TABLE = re.compile(r"^\[+(?P<key>[a-z_.0-9]+)\]+", re.MULTILINE)


def _mutations(word: str, random_: random.Random) -> list[str]:
    at = random_.randrange(len(word))
    other = random_.choice("abcdefghijklmnopqrstuvwxyz")
    wrong = [word[:at] + word[at + 1 :], word[:at] + other + word[at:], word[:at] + other + word[at + 1 :], word + "s"]
    if len(word) > 1:
        swap = min(at, len(word) - 2)
        wrong.append(word[:swap] + word[swap + 1] + word[swap] + word[swap + 2 :])
    return [each for each in wrong if each and each != word]


def test_every_misspelt_key_is_refused_with_the_right_suggestion(workspace: Workspace, repository: Path) -> None:
    """Row 20: each key and table of every shipped recipe, misspelt in two of five ways; 90 % get the right hint."""
    random_ = random.Random(20)
    texts = [path.read_text() for path in sorted((repository / "pipelines").glob("*.toml"))]
    texts += [BUILD_ONLY.format(data=workspace.data), TRAINING.format(data=workspace.data)]
    tried = suggested = 0
    accepted = []
    for text in texts:
        for found in [*KEY.finditer(text), *TABLE.finditer(text)]:
            word = found["key"].rsplit(".", 1)[-1]
            start = found.end("key") - len(word)
            if found.re is TABLE and found["key"].startswith("replay."):
                continue  # a free name
            if found["key"] in ("animal", "indoor", "vehicle") or found["key"].startswith("coarse."):
                continue  # names of coarse classes are free too
            for wrong in random_.sample(_mutations(word, random_), 2):
                changed = text[:start] + wrong + text[start + len(word) :]
                path = workspace.root / "pipelines" / "wrong.toml"
                path.write_text(changed)
                tried += 1
                try:
                    Recipe.load(path)
                except RecipeError as error:
                    suggested += repr(word) in str(error) or f"add {word} " in str(error) or word in error.hint
                else:
                    accepted.append(f"{word} -> {wrong}")
    assert tried > 200
    assert accepted == []
    assert suggested / tried >= 0.9


def test_an_unknown_key_names_file_and_line(workspace: Workspace) -> None:
    """The error of a misspelt key points at its line."""
    path = workspace.recipe(TRAINING.replace("iterations = 6", "iteratoins = 6"))
    with pytest.raises(RecipeError) as caught:
        Recipe.load(path)
    line = path.read_text().splitlines().index("iteratoins = 6") + 1
    assert caught.value.where == f"{path}:{line}"
    assert "'iterations'" in caught.value.hint


def test_a_missing_variable_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that needs an environment variable says which, before anything is opened."""
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    text = TRAINING.replace('path = "{data}"', 'path = "${{NO_SUCH_PLACE}}/x"')
    recipe = Recipe.load(workspace.recipe(text))
    with pytest.raises(RecipeError, match="NO_SUCH_PLACE"):
        recipe.plan(recipe.store())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scenario.task": "8-3"}, "8-3"),
        ({"scenario.classes": ["zero", "one", "sevn"]}, "seven"),
        ({"replay.photos.path": "nowhere"}, "nowhere"),
        ({"data.train": "trian"}, "train"),
        ({"replay.kept.only": ["zero"], "replay.photos.folders": {"zero": "zro"}}, "zro"),
    ],
)
def test_an_impossible_recipe_is_refused_before_any_work(
    workspace: Workspace, change: dict[str, object], said: str
) -> None:
    """An impossible task, an unknown class, a missing folder or split: refused by the plan, nothing in the store."""
    recipe = Recipe.load(workspace.recipe(TRAINING), change)
    store = recipe.store()
    with pytest.raises(ReplaygenError) as caught:
        recipe.plan(store)
    assert said in str(caught.value)
    assert not list((Path(store.root) / "records").rglob("*.json"))


def test_a_replay_method_without_replay_is_refused(workspace: Workspace) -> None:
    """RECALL without a replay source is a mistake, not a fine-tuning under another name."""
    text = TRAINING.replace('replay = "kept"\n', "")
    with pytest.raises(RecipeError, match="trains on replay but names none"):
        Recipe.load(workspace.recipe(text))


def test_a_method_file_may_not_import_its_neighbours(workspace: Workspace, repository: Path) -> None:
    """A method's key is the digest of its one file, so a helper module beside it would go stale silently."""
    (workspace.root / "trainers").mkdir()
    source = (repository / "trainers" / "finetune.py").read_text()
    (workspace.root / "trainers" / "mine.py").write_text(source + "\nimport my_helpers\n")
    text = TRAINING.replace('trainer = "joint"', 'trainer = "mine"')
    with pytest.raises(RecipeError, match="my_helpers"):
        Recipe.load(workspace.recipe(text))


def test_reading_a_method_does_not_execute_it(workspace: Workspace, repository: Path, tmp_path: Path) -> None:
    """A plan reads a method's syntax tree; code in it runs only when it is trained."""
    marker = tmp_path / "executed"
    (workspace.root / "trainers").mkdir()
    source = (repository / "trainers" / "joint.py").read_text()
    (workspace.root / "trainers" / "mine.py").write_text(
        source + f"\nfrom pathlib import Path\nPath({str(marker)!r}).touch()\n"
    )
    recipe = Recipe.load(workspace.recipe(TRAINING.replace('trainer = "joint"', 'trainer = "mine"')))
    recipe.plan(recipe.store())
    assert not marker.exists()


def test_shipped_recipes_are_valid(repository: Path) -> None:
    """Every recipe in pipelines/ loads."""
    for path in sorted((repository / "pipelines").glob("*.toml")):
        assert Recipe.load(path).name == tomllib.loads(path.read_text())["name"] == path.stem


def test_an_option_with_choices_takes_no_other(workspace: Workspace) -> None:
    """`init = "balnced"` is refused with the right word, not trained as something else."""
    text = TRAINING.replace('trainer = "finetune"', 'trainer = "finetune"\ninit = "balnced"')
    with pytest.raises(RecipeError) as caught:
        Recipe.load(workspace.recipe(text))
    assert "'balanced'" in caught.value.hint
