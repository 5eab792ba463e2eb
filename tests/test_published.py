"""Published rows: transcribed without slips, shown beside the run's own, never part of what a task is."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from conftest import TRAINING, Workspace
from typer.testing import CliRunner

from replaygen.cli.app import app
from replaygen.errors import RecipeError
from replaygen.plan import Recipe
from replaygen.plan.recipe import RecipeTable
from replaygen.plan.tables import CompareTable
from replaygen.report.page import Report, page
from replaygen.report.published import COMPARABILITY, beside, every_row, published_datasets, published_rows
from replaygen.report.summary import Summary
from replaygen.report.tables import below, comparison_json
from replaygen.runs.results import RunResult, StepResult
from replaygen.scenario.tasks import parse_task

COMPARED = TRAINING + '[compare]\ndataset = "voc2012"\n[coarse]\neven = ["zero", "two", "four"]\n'
ONE_ROW = TRAINING[: TRAINING.index('[[method]]\nname = "recall"')]


def test_rows_by_hand() -> None:
    """A full row, one with the mean over all classes alone, and a task that a paper does not report."""
    rows = {row.method: row for row in published_rows("voc2012", "15-1", "overlapped")}
    assert (rows["MiB"].old, rows["MiB"].new, rows["MiB"].all) == (35.1, 13.5, 29.7)
    assert (rows["RECALL (GAN)"].all, rows["RECALL (GAN)"].network) == (62.7, "DeepLab-v2, ResNet-101")
    assert rows["PLOP"].trainer == "plop"
    assert rows["STAR"].trainer is None
    single = {row.method: row for row in published_rows("voc2012", "10-1", "overlapped")}["SSUL"]
    assert (single.old, single.new, single.all) == (None, None, 59.25)
    assert "SDR" not in {row.method for row in published_rows("voc2012", "19-1", "overlapped")}


def test_means_agree_with_their_parts() -> None:
    """`all` is the mean over old and new classes, with a background IoU between 0 and 100 or with none: no slip."""
    for row in every_row():
        if row.old is None or row.new is None:
            continue
        first = parse_task(row.task, 20)[0]
        parts = row.old * first + row.new * (20 - first)
        background = row.all * 21 - parts
        assert 0.0 <= background <= 100.0 or abs(parts / 20 - row.all) < 0.1, row


def test_only_what_was_read_is_published() -> None:
    """One data set and setting; of RECALL the three tasks of its own table; nothing of the disjoint setting."""
    assert {(row.dataset, row.setting) for row in every_row()} == {("voc2012", "overlapped")}
    assert {row.task for row in every_row() if "RECALL" in row.method} == {"15-5", "15-1", "10-1"}
    assert published_rows("voc2012", "15-1", "disjoint") == ()
    assert len(every_row()) == 41


def test_every_row_names_its_lineage() -> None:
    """What makes rows incomparable stands with each of them."""
    for row in every_row():
        recall = row.method.startswith("RECALL")
        assert row.note.startswith("RECALL: DeepLab-v2" if recall else "MiB lineage: DeepLab-v3")
        assert ("centre crops" in row.note) != recall


def test_recipes_compare_with_data_sets_that_have_rows() -> None:
    """What `[compare] dataset` takes is what the table has."""
    assert get_args(CompareTable.model_fields["dataset"].annotation) == published_datasets()


def test_an_unknown_data_set_is_refused(workspace: Workspace) -> None:
    """With the ones that are known."""
    path = workspace.recipe(COMPARED.replace('"voc2012"', '"voc2013"'))
    with pytest.raises(RecipeError, match=r"compare\.dataset") as caught:
        Recipe.load(path)
    assert "'voc2012'" in caught.value.hint


@pytest.mark.parametrize(
    ("groups", "said"), [('odd = ["two"]', "'two'"), ("odd = []", "no classes"), ('odd = "one"', "coarse")]
)
def test_coarse_classes_that_overlap_are_refused(workspace: Workspace, groups: str, said: str) -> None:
    """A class in two groups, an empty group, and what is no list."""
    with pytest.raises(RecipeError, match=said):
        Recipe.load(workspace.recipe(COMPARED + groups + "\n"))


def test_neither_enters_a_key(workspace: Workspace) -> None:
    """To compare, or to group classes, is to look at a run in another way: every task stays what it was."""
    plans = []
    for text in (TRAINING, COMPARED):
        recipe = Recipe.load(workspace.recipe(text))
        plans.append(recipe.plan(recipe.store()).slots)
    assert plans[0] == plans[1]


# beside a run's own rows

NAMES = ("background", *(f"c{i}" for i in range(1, 21)))


def _result() -> RunResult:
    steps = tuple((f"c{k}",) if k > 15 else tuple(f"c{i}" for i in range(1, 16)) for k in range(15, 21))

    def row(method: str, seed: int, value: float) -> StepResult:
        told = {"all": value, "old": value + 1, "new": value - 1, "background": 90.0, "background_counted": True,
                "per_class": dict.fromkeys(NAMES, value)}  # fmt: skip
        matrix = [[10 if i == j else 0 for j in range(21)] for i in range(21)]
        return StepResult(method, seed, 5, NAMES, (20,), tuple(range(1, 20)), told, matrix, 3, 1.0)

    rows = [row(method, seed, value + seed) for method, value in (("mine", 30.0), ("mib", 28.0)) for seed in (0, 1)]
    return RunResult("r", "VOC", "15-1", "overlapped", steps, tuple(rows))


def _table(repository: Path) -> RecipeTable:
    table = Recipe.load(repository / "pipelines" / "voc-15-1-mib.toml").table
    mib = next(row for row in table.method if row.name == "mib")
    rows = (mib.model_copy(update={"name": "mine", "trainer": "trainers/my_mib.py"}), mib)
    return table.model_copy(update={"method": rows, "coarse": {"first": ("c1", "c2")}})


def test_a_row_stands_beside_the_one_of_its_trainer(repository: Path) -> None:
    """By the trainer's name: a changed copy is not the published method, whatever its row is called."""
    (found,) = beside(_table(repository))
    assert (found.method, found.published.method) == ("mib", "MiB")


def test_the_terminal_shows_both_and_says_what_differs(repository: Path) -> None:
    """Own and published numbers on one line, the notes below, and the best row's test at the end."""
    lines = below(_table(repository), _result())
    assert lines[0] == "mIoU over coarse classes (first): mine 100.0 ± 0.0, mib 100.0 ± 0.0"
    told = "mib 29.5 ± 0.7 27.5 ± 0.7 28.5 ± 0.7 MiB 35.1 13.5 29.7 MiB lineage: DeepLab-v3, evaluates on centre crops"
    assert " ".join(lines[2].split()) == told
    assert lines[3] == COMPARABILITY
    assert lines[4] == "mine against the best other row, mib: +2.0 [2.0, 2.0] p<0.001 (2 seeds)"


def test_nothing_is_added_where_there_is_nothing_to_compare(workspace: Workspace) -> None:
    """No groups, no papers, one row: the table stands alone."""
    result = _result()
    alone = RunResult("r", "VOC", "15-1", "overlapped", result.step_names, result.steps[:2])
    assert below(Recipe.load(workspace.recipe(ONE_ROW)).table, alone) == []


def test_plain_data_of_the_comparison(repository: Path) -> None:
    """The same as JSON, every row's test among it."""
    told = comparison_json(_table(repository), _result())
    assert told["published"]["mib"]["all"] == 29.7
    assert told["coarse"]["mine"]["1"]["all"] == 100.0
    assert (told["against_best"]["mib"]["other"], told["against_best"]["mib"]["sign"]) == ("mine", -1)


def test_the_page_shows_both(repository: Path) -> None:
    """The paper's row follows the run's own in the main table, with one sentence of what differs under it."""
    table = _table(repository)
    nothing = Summary((), (), "", "", "replaygen run r", "{}")
    text = page(Report(_result(), NAMES, 0, (), (), nothing, published=beside(table), coarse=table.coarse))
    main = text[text.index("<table") : text.index("</table>")]
    assert main.index("mib</th>") < main.index("MiB, published")
    assert "<td>35.1</td><td>13.5</td><td>29.7</td>" in main
    assert COMPARABILITY in text
    assert "coarse classes" in main
    assert "mine against the best other row, mib: +2.0 [2.0, 2.0] p&lt;0.001 (2 seeds)" in text


def test_looking_in_another_way_writes_the_page_anew(workspace: Workspace) -> None:
    """Nothing is trained again, but the page of a cached run shows the groups; a misspelt class is refused."""
    command = ["run", str(workspace.recipe(ONE_ROW)), "--cache", str(workspace.root / "cache")]
    groups = ["--set", 'coarse.even=["zero", "two"]']
    where = workspace.root / "reports" / "tiny.html"
    refused = CliRunner().invoke(app, [*command, "--set", 'coarse.even=["zro"]'])
    assert isinstance(refused.exception, RecipeError)
    assert "zero" in refused.exception.hint
    assert not list((workspace.root / "cache" / "records").rglob("*.json"))
    assert CliRunner().invoke(app, command).exit_code == 0
    assert "even (zero, two)" not in where.read_text()
    again = CliRunner().invoke(app, [*command, *groups])
    assert "0 tasks done" in again.stdout
    assert "mIoU over coarse classes (even): finetune" in again.stdout
    assert "even (zero, two)" in where.read_text()
