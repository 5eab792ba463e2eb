"""The plan as a picture: every stage once, nothing above what it is made from, right numbers, nothing from outside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import TRAINING, Workspace
from test_report import EVIL, build, small_world

from replaygen.errors import ReplaygenError
from replaygen.plan import Plan, Recipe
from replaygen.report.layers import laid_out, reduced
from replaygen.report.page import gather, page
from replaygen.report.planned import WALK, Box, boxes, plan_picture, walked, ways, write_picture
from replaygen.store import Store

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def plan(workspace: Workspace) -> Plan:
    """A recipe of four methods, of which nothing was run."""
    recipe = Recipe.load(workspace.recipe(TRAINING))
    return recipe.plan(recipe.store())


def texts(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_the_walk_names_every_stage() -> None:
    """A stage that the picture does not know would stand at its end, without words; none does."""
    from replaygen.stages import STAGES

    assert set(WALK) == set(STAGES)
    assert all(0 < len(words) <= 34 for words in WALK.values())


def test_every_stage_stands_once_with_its_tasks(plan: Plan) -> None:
    """The boxes count what the plan counts, and the picture shows these counts."""
    told = {box.stage: (box.tasks, box.cached) for box in boxes(plan)}
    assert told == {stage: (tasks, tasks - waiting) for stage, tasks, waiting, _ in plan.summary()}
    shown = texts(str(plan_picture(plan)))
    for stage, (tasks, _) in told.items():
        assert shown.count(stage) == 1
        assert f"0 of {tasks}" in shown
    assert shown[0].startswith(f"{len(plan.tasks)} tasks: 0 cached, {len(plan.tasks)} to run, about ")
    assert not texts(str(plan_picture(plan, timed=False)))[0].count("about")


def test_edges_are_those_of_the_tasks(plan: Plan) -> None:
    """Forward and back together are the pairs of stages that tasks read from; a model goes back to label."""
    forward, back = ways(plan)
    tasks = plan.tasks
    pairs = {(tasks[key].stage, task.stage) for task in tasks.values() for _, key in task.inputs}
    assert forward | back == {pair for pair in pairs if pair[0] != pair[1]}
    assert ("train", "label") in back
    assert ("replay", "train") in forward
    order = walked(box.stage for box in boxes(plan))
    assert all(order.index(start) < order.index(end) for start, end in forward)


def test_the_page_of_a_run_shows_what_stands_now(tmp_path: Path) -> None:
    """A plan that was looked at before its tasks were made: the page that the run writes has nothing to go."""
    done = build(tmp_path / "store", small_world())
    done.__dict__["status"] = replace(done, store=Store(tmp_path / "empty")).status
    assert done.to_run()
    text = page(gather(done))
    assert "to go" not in text
    assert f"{len(done.tasks)} tasks: {len(done.tasks)} cached" in text


def test_what_stands_is_told_with_its_seconds(tmp_path: Path) -> None:
    """A cached task counts its record's seconds, another what to expect; the bars' widths are the shares."""
    plan = build(tmp_path / "store", small_world())
    tested = {box.stage: box for box in boxes(plan)}["evaluate"]
    assert (tested.cached, tested.to_go) == (tested.tasks, 0.0)
    assert tested.took == pytest.approx(1.5 * tested.tasks)
    lost = next(key for key, task in plan.tasks.items() if task.stage == "evaluate")
    next((tmp_path / "store" / "records").rglob(f"*{lost[2:]}*")).unlink()
    again = {box.stage: box for box in boxes(replace(plan))}["evaluate"]
    assert (again.tasks, again.cached) == (tested.tasks, tested.tasks - 1)
    assert again.took == pytest.approx(1.5 * again.cached)
    assert again.to_go > 0
    picture = ElementTree.fromstring(str(plan_picture(replace(plan))))
    bars = [float(bar.get("width", "")) for bar in picture.iter(f"{SVG}rect") if bar.get("height") == "4"]
    assert any(width == pytest.approx(180 * again.cached / again.tasks, abs=0.06) for width in bars)


def test_a_box_says_what_it_took_and_what_is_left() -> None:
    assert Box("train", 4, 4, 60.0, 0.0).said == "1 min 00 s"
    assert Box("train", 4, 0, 0.0, 5.0).said == "about 5.0 s to go"
    assert Box("train", 4, 2, 60.0, 5.0).said == "1 min 00 s, about 5.0 s to go"


def test_layers_lead_downwards_and_implied_edges_are_left_out() -> None:
    nodes = ["a", "b", "c", "e", "d"]
    edges = [("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("a", "d"), ("e", "d")]
    assert reduced(nodes, edges) == [("a", "b"), ("b", "c"), ("c", "d"), ("e", "d")]
    layout = laid_out(nodes, edges)
    depth = {name: layer for layer, row in enumerate(layout.layers) for name in row if name}
    assert sorted(depth) == sorted(nodes)
    assert depth["e"] == depth["d"] - 1, "what is made from nothing stands above its first use"
    for path in layout.paths.values():
        assert [layer for layer, _ in path] == list(range(path[0][0], path[-1][0] + 1))


def test_a_long_edge_has_a_lane_of_its_own() -> None:
    """An edge over a layer passes through a place where no box stands."""
    layout = laid_out(["a", "b", "c", "d", "e"], [("a", "b"), ("b", "c"), ("c", "e"), ("a", "d"), ("d", "e")])
    passed = [place for path in layout.paths.values() for place in path[1:-1]]
    assert len(passed) == 1
    assert layout.layers[passed[0][0]][passed[0][1]] == ""


def test_nothing_from_outside_comes_through_raw(tmp_path: Path) -> None:
    """A recipe's title and class names are not in it; what is in it is escaped and stripped."""
    plan = build(tmp_path / "store", small_world(title="".join(EVIL), names=("background", EVIL[0], EVIL[3], EVIL[2])))
    table = plan.recipe.table.model_copy(update={"name": "".join(EVIL)})
    evil = replace(plan, recipe=replace(plan.recipe, table=table))
    for path in (write_picture(evil, tmp_path / "plan.svg"), write_picture(evil, tmp_path / "plan.html")):
        text = path.read_text(encoding="utf-8")
        assert "<script>alert" not in text
        assert "\x1b" not in text
        assert not re.search(r"""(?:href|src|url)\s*[=(]\s*["']?(?:https?:)?//""", text)


def test_the_file_is_one_picture_for_light_and_dark(plan: Plan, tmp_path: Path) -> None:
    path = write_picture(plan, tmp_path / "plan.svg")
    root = ElementTree.fromstring(path.read_text())
    assert root.tag == f"{SVG}svg"
    assert root.find(f"{SVG}title") is not None
    assert "train" in (root.findtext(f"{SVG}desc") or "")
    assert "prefers-color-scheme:dark" in path.read_text()
    assert not list(root.iter(f"{SVG}script"))
    with pytest.raises(ReplaygenError, match="SVG"):
        write_picture(plan, tmp_path / "plan.png")
    with pytest.raises(ReplaygenError, match="no such folder"):
        write_picture(plan, tmp_path / "nowhere" / "plan.svg")


def test_the_command_draws_it(workspace: Workspace, tmp_path: Path) -> None:
    """`plan --picture` writes it and runs nothing; `--json` names the file."""
    recipe = str(workspace.recipe(TRAINING))
    command = [sys.executable, "-m", "replaygen", "plan", recipe, "--picture", str(tmp_path / "plan.svg"), "--json"]
    done = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["picture"] == str(tmp_path / "plan.svg")
    assert "replay" in texts((tmp_path / "plan.svg").read_text())
