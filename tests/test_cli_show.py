"""`replaygen show`: counts of the replay sets, what was rejected and why, contact sheets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TRAINING, Workspace
from test_report import EVIL, Maker, small_world
from test_report_labels import Walk, judged, whole

from replaygen.cli.showing import MOST_ROWS, _as_json, _judged, _lines, _write
from replaygen.report.sheets import MOST_FLICKR, PAGE_SAMPLES, SHEET_SAMPLES, fair
from replaygen.runs import replay_sets

ORDER = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECIPE = TRAINING.partition("[[method]]")[0] + '[[method]]\nname = "web"\ntrainer = "recall"\nreplay = "photos"\n'


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory, tiny_digits: Path) -> tuple[Path, str]:
    """A workspace in which a recipe was run whose labels are asked to cover much of the picture."""
    workspace = Workspace(tmp_path_factory.mktemp("show") / "work", tiny_digits)
    changed = RECIPE.replace("count = 8", "count = 8\nmin_share = 0.08").replace("iterations = 80", "iterations = 40")
    recipe = str(workspace.recipe(changed))
    done = replaygen("run", recipe, "--json", cwd=workspace.root)
    assert done.returncode == 0, done.stderr
    return workspace.root, recipe


def replaygen(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "replaygen", *arguments], cwd=cwd, capture_output=True, text=True)


def test_show_without_rejected_is_as_it_was(where: tuple[Path, str]) -> None:
    """One line a set; JSON with the same numbers and nothing else."""
    root, recipe = where
    lines = replaygen("show", recipe, cwd=root).stdout.splitlines()
    told = json.loads(replaygen("show", recipe, "--json", cwd=root).stdout)
    assert list(told) == ["replay"]
    assert len(lines) == len(told["replay"]) == 9
    assert re.fullmatch(r" +\d of 8      replay/photos/base/seed0/zero", lines[0])


def test_rejected_are_counted_in_the_terminal_and_in_json(where: tuple[Path, str]) -> None:
    """Each sample of a class is kept or in the table, whose counts are those of the JSON."""
    root, recipe = where
    told = json.loads(replaygen("show", recipe, "--rejected", "--json", cwd=root).stdout)
    assert len(told["judged"]) == 9
    for one in told["judged"]:
        refused = sum(reason["samples"] for reason in one["reasons"])
        assert len(one["kept"]) + refused == one["looked_at"]
        assert len(one["rejected"]) == refused
        assert {sample["reason"] for sample in one["rejected"]} <= {"area-too-small", "class-absent"}
    small = [(one, sample) for one in told["judged"] for sample in one["rejected"]
             if sample["reason"] == "area-too-small"]  # fmt: skip
    assert small
    assert all(sample["limit"] == 0.08 and sample["value"] < 0.08 for _, sample in small)
    one, sample = small[0]
    shown = replaygen("show", recipe, one["class"], "--rejected", cwd=root).stdout
    assert re.search(rf"^{sample['id']} +area-too-small +label +\S+ +0\.0\d +0\.08$", shown, re.MULTILINE)
    count = sum(reason["samples"] for reason in one["reasons"] if reason["reason"] == "area-too-small")
    assert re.search(rf"^ *{count}  area-too-small +\(label\)$", shown, re.MULTILINE)


def test_the_page_of_rejected_is_written(where: tuple[Path, str]) -> None:
    """With `--out` the contact sheet holds them, with their reasons in words; without `--rejected` it does not."""
    root, recipe = where
    told = json.loads(replaygen("show", recipe, "--rejected", "--json", cwd=root).stdout)
    name = next(one["class"] for one in told["judged"] if one["rejected"])
    done = replaygen("show", recipe, name, "--rejected", "--out", "refused.html", cwd=root)
    assert done.returncode == 0
    assert "wrote refused.html" in done.stderr
    text = (root / "refused.html").read_text(encoding="utf-8")
    assert "Rejected: " in text
    assert "the recipe asks for at least 8 %" in text or "the class was not found" in text
    replaygen("show", recipe, name, "--out", "kept.html", cwd=root)
    assert "Rejected: " not in (root / "kept.html").read_text(encoding="utf-8")


def test_a_page_holds_a_sheet_of_every_class(where: tuple[Path, str]) -> None:
    """Without a class, in the order of learning."""
    root, recipe = where
    slots = [row["slot"] for row in json.loads(replaygen("show", recipe, "--json", cwd=root).stdout)["replay"]]
    assert replaygen("show", recipe, "--out", "sheets.html", cwd=root).returncode == 0
    heads = re.findall(r"<h2>(\w+)</h2>", (root / "sheets.html").read_text(encoding="utf-8"))
    assert len(heads) == 9
    assert heads == [name for name in ORDER if any(slot.endswith(f"/{name}") for slot in slots)]


@pytest.mark.parametrize("rejected", [False, True])
def test_a_page_holds_every_source_and_thirty_photos_of_flickr(tmp_path: Path, rejected: bool) -> None:
    """Of one class sets of three sources, two of them Flickr's: each has its sheet, and all together keep the terms."""
    maker = Maker(tmp_path / "store", small_world())
    for source, photos in (("web", "flickr"), ("more", "flickr"), ("own", "folder")):
        whole(maker, 40, source=source, photos=photos)
    sets = replay_sets(maker.plan())
    assert len(sets) == 3
    _write(tmp_path / "cat.html", sets, _judged(sets) if rejected else {}, None)
    text = (tmp_path / "cat.html").read_text(encoding="utf-8")
    assert re.findall(r" · source (\w+)", text) == ["web", "more", "own"]
    assert "<h1>cat: replay from web, more, own</h1>" in text
    assert ("Rejected: unsure" in text) == rejected
    shown = [set(re.findall(r'data-sample="([^"]+)"', one)) for one in text.split("<section")[1:]]
    assert [len(ids) > 10 for ids in shown] == [True, True, True]
    assert 20 <= sum(one.startswith("cat-flickr-") for ids in shown for one in ids) <= MOST_FLICKR


def test_a_page_of_many_sets_shows_fewer_of_each() -> None:
    """A page has room for so many pictures; what is asked for by number is shown."""
    assert fair(PAGE_SAMPLES, 1, SHEET_SAMPLES) == SHEET_SAMPLES
    assert fair(PAGE_SAMPLES, 40, SHEET_SAMPLES) == 12
    assert fair(PAGE_SAMPLES, 10_000, SHEET_SAMPLES) == 6


def test_an_unknown_class_names_the_nearest(where: tuple[Path, str]) -> None:
    """A plain error, no traceback."""
    root, recipe = where
    done = replaygen("show", recipe, "zer", "--rejected", cwd=root)
    assert done.returncode == 1
    assert "'zero'" in done.stderr
    assert "Traceback" not in done.stderr


def test_terminal_table_is_sorted_by_score(tmp_path: Path) -> None:
    """Best score first, those without one last; then how many of each reason, with where."""
    maker = Maker(tmp_path, small_world())
    whole(maker)
    lines = _lines("replay/web/base/seed0/cat", judged(maker.plan()), MOST_ROWS)
    assert lines[0] == "replay/web/base/seed0/cat: 13 kept, 14 refused"
    assert lines[1].split() == ["id", "reason", "at", "score", "value", "limit"]
    rows = [line.split() for line in lines[2:13]]
    scores = [float(row[3]) for row in rows if row[3] != "–"]
    assert scores == sorted(scores, reverse=True)
    assert [row[3] for row in rows][len(scores) :] == ["–"] * (len(rows) - len(scores))
    unsure = next(line for line in lines if line.startswith("cat-web-008"))
    assert re.fullmatch(r"cat-web-008 +unsure +trust +0\.\d\d +0\.52 +0\.61", unsure)
    assert any(line.endswith("0.00  0.02 to 0.71") for line in lines)
    assert lines[13:][0] == "3  too-small          (source)"
    assert len(lines[13:]) == 11


def test_a_limit_shortens_the_table_and_says_so(tmp_path: Path) -> None:
    """The counts stay whole."""
    maker = Maker(tmp_path, small_world())
    whole(maker)
    told = judged(maker.plan())
    lines = _lines("slot", told, 2)
    assert lines[4] == "… and 9 more (--limit 11)"
    assert len(_as_json("slot", told, 2)["rejected"]) == 2
    assert len(_as_json("slot", told, None)["rejected"]) == 11


def test_json_tells_all_scores_and_what_was_erased(tmp_path: Path) -> None:
    """Plain JSON: no number that JSON has not, every score by name."""
    maker = Maker(tmp_path, small_world())
    whole(maker)
    text = json.dumps(_as_json("slot", judged(maker.plan()), None), allow_nan=False)
    kept = {one["id"]: one for one in json.loads(text)["kept"]}
    assert kept["cat-web-006"]["erased"]["backend"] == "opencv"
    assert set(kept["cat-web-006"]["scores"]) == {"trust", "share", "confidence", "agreement", "distance"}
    assert "erased" not in kept["cat-web-016"]


def test_hostile_names_reach_no_terminal(tmp_path: Path) -> None:
    """Reasons and slots are printed without control characters."""
    maker = Maker(tmp_path, small_world())
    walk = Walk(maker)
    walk.images(3)
    walk.label({"cat-web-001": {"reason": EVIL[1]}})
    walk.replay()
    text = "\n".join(_lines(f"replay/web/{EVIL[1]}", judged(maker.plan()), MOST_ROWS))
    assert "red" in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
