"""Nothing from outside is raw in an export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import markdown_it
import pytest
from conftest import Workspace
from test_attribution import NASTY, Html
from test_export_peers import KEPT
from test_report import EVIL

from replaygen.exports import FORMATS, export
from replaygen.plan import Plan, Recipe
from replaygen.runs import run

TITLE = "".join(EVIL) + " \U0001f404 \ufffe\uffff"


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> Plan:
    """A data set whose class names, and a recipe whose title, are hostile."""
    root = tmp_path_factory.mktemp("evil")
    shutil.copytree(tiny_digits, root / "data")
    classes = json.loads((root / "data" / "classes.json").read_text())
    names = [*EVIL, NASTY[10], "../../x", "a|b\n# c"]
    for row, name in zip(classes["classes"][1:], names, strict=False):
        row["name"] = name
    (root / "data" / "classes.json").write_text(json.dumps(classes))
    workspace = Workspace(root / "work", root / "data")
    text = "\n".join(line for line in KEPT.splitlines() if not line.startswith(("title", "classes")))
    path = workspace.recipe(text)
    path.write_text(f"title = {json.dumps(TITLE, ensure_ascii=False)}\n" + path.read_text())
    plan = Recipe.load(path).plan(Recipe.load(path).store())
    return run(plan).plan


@pytest.mark.parametrize("layout", FORMATS)
def test_nothing_from_outside_is_raw(evil: Plan, tmp_path: Path, layout: str) -> None:
    """Class names and titles with markup, formulas and escapes: harmless in every file, and paths are ids."""
    done = export(evil, layout, tmp_path / "out")
    for path in done.out.rglob("*"):
        assert path.resolve().is_relative_to(done.out)
        assert path.name.isascii()
        if path.is_file() and path.suffix in (".md", ".csv", ".json", ".jsonl", ".txt"):
            text = path.read_text()
            assert "\x1b" not in text
            assert "\u202e" not in text
    card = (done.out / "README.md").read_text().rpartition("---\n\n# ")[2]
    seen = Html("# " + card if layout == "huggingface" else card)
    assert not {"script", "img", "b", "comment"} & set(seen.tags)
    assert all(address.startswith("https://") for address in seen.links)


def test_the_card_is_a_table_of_its_classes(evil: Plan, tmp_path: Path) -> None:
    """A name with "|" or line ends stays in its cell."""
    done = export(evil, "folders", tmp_path / "out")
    html = markdown_it.MarkdownIt("commonmark").enable("table").render((done.out / "README.md").read_text())
    classes = html.partition("images made for it")[2].partition("</table>")[0]
    assert classes.count("<tr>") == 11
    assert classes.count("<td>") == 33


def test_the_front_of_a_card_is_yaml_that_says_one_thing(evil: Plan, tmp_path: Path) -> None:
    """A title with quotes, colons, line ends and an emoji is one string of Unicode."""
    yaml = pytest.importorskip("yaml")
    done = export(evil, "huggingface", tmp_path / "out")
    told = yaml.safe_load((done.out / "README.md").read_text().split("---\n")[1])
    assert told["pretty_name"].encode().decode().rstrip().endswith("\U0001f404 : replay")
    assert told["license"] == "other"
    assert list(told["configs"][0]) == ["config_name", "data_files"]
