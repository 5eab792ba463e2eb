"""Runs: nothing is done twice, damage is rebuilt, errors say what to do, and everything is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import BUILD_ONLY, TRAINING, Workspace

from replaygen.errors import TaskError
from replaygen.plan import Plan, Recipe
from replaygen.runs import read_result, replay_sets, run, table


def _plan(workspace: Workspace, text: str, **changes: Any) -> Plan:
    recipe = Recipe.load(workspace.recipe(text), {key.replace("__", "."): value for key, value in changes.items()})
    return recipe.plan(recipe.store())


def _bytes(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    found = {}
    for slot, key in plan.slots.items():
        record = plan.store.get(key)
        assert record is not None, slot
        found[slot] = [(output.name, output.digest) for output in record.outputs]
    return found


def _object(plan: Plan, slot: str, name: str) -> Path:
    record = plan.store.get(plan.slots[slot])
    assert record is not None
    digest = record.output(name).digest
    return Path(plan.store.root) / "objects" / digest[:2] / digest


def test_a_finished_run_does_nothing_again(workspace: Workspace) -> None:
    """Re-running makes no task and reads the same result."""
    first = run(_plan(workspace, TRAINING))
    assert first.tally.made == len(first.plan.tasks)
    again = run(_plan(workspace, TRAINING))
    assert (again.tally.made, again.tally.adopted, again.tally.cached) == (0, 0, len(again.plan.tasks))
    assert again.result == first.result


def test_a_whole_run_has_every_number(workspace: Workspace) -> None:
    """Every row is evaluated after every step, over all seen classes, and the table shows each row."""
    done = run(_plan(workspace, TRAINING))
    result = done.result
    assert result.methods() == ("finetune", "recall", "web", "joint")
    assert [len(result.of(method, 0)) for method in result.methods()] == [3, 3, 3, 1]
    last = result.last("recall")[0]
    assert len(last.matrix) == len(last.names) == 11
    assert sum(map(sum, last.matrix)) == 12 * 64 * 64
    assert 0 <= last.metrics["all"] <= 100
    text = table(result)
    assert all(method in text for method in result.methods())
    json.dumps(result.as_json(), allow_nan=False)


def test_counts_always_add_up(workspace: Workspace) -> None:
    """requested = accepted + rejected + failed in every record, and a plan's request is what was counted."""
    plan = run(_plan(workspace, TRAINING)).plan
    for key, task in plan.tasks.items():
        record = plan.store.get(key)
        assert record is not None
        counts = record.counts
        assert counts.requested == counts.accepted + sum(counts.rejected.values()) + sum(counts.failed.values())
        if task.stage in ("photos", "exemplars", "relabel", "evaluate"):
            assert counts.requested == task.requested


def test_unreadable_and_missing_photos_are_counted_not_fatal(workspace: Workspace, tmp_path: Path) -> None:
    """A damaged photo is a counted rejection, and the run goes on."""
    import shutil

    own = tmp_path / "own"
    shutil.copytree(workspace.data, own)
    workspace.data = own
    sorted((own / "photos" / "two").glob("*.png"))[0].write_bytes(b"\x89PNG not at all")
    done = run(_plan(workspace, BUILD_ONLY))
    assert done.tally.stages["photos"].rejected == {"unreadable": 1}
    assert done.tally.stages["photos"].accepted == 239


@pytest.mark.parametrize("name", ["images.tar", "images.index.json"])
def test_a_damaged_shard_is_rebuilt_and_nothing_else(workspace: Workspace, name: str) -> None:
    """A flipped byte is found, the one task is done again, the bytes are those of before."""
    plan = run(_plan(workspace, BUILD_ONLY)).plan
    before = _bytes(plan)
    path = _object(plan, "photos/photos/two/0001", name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    again = _plan(workspace, BUILD_ONLY)
    (waiting,) = again.to_run()
    assert waiting.slot == "photos/photos/two/0001"
    assert "damaged" in again.status[waiting.key].reason
    assert run(again).tally.made == 1
    assert _bytes(again) == before


def test_damage_that_is_found_while_running_is_rebuilt(workspace: Workspace) -> None:
    """An input that is damaged under a running plan is rebuilt first, then the run goes on."""
    run(_plan(workspace, BUILD_ONLY))
    plan = _plan(workspace, BUILD_ONLY)
    assert plan.to_run() == []
    _object(plan, "exemplars/kept/one/0000", "labels.tar").unlink()
    record = plan.store.get(plan.slots["replay/kept/one"])
    assert record is not None
    plan.store.quarantine_record(record.key, "for a test")
    done = run(plan)
    assert done.tally.made + done.tally.adopted == 2


def test_an_input_that_is_rebuilt_differently_makes_its_readers_run(workspace: Workspace) -> None:
    """If a rebuilt record holds other bytes, what was made from the old ones is not served."""
    from dataclasses import replace

    from replaygen.store import OutputObject

    plan = run(_plan(workspace, BUILD_ONLY)).plan
    key = plan.slots["exemplars/kept/one/0000"]
    record = plan.store.get(key)
    assert record is not None
    ref = plan.store.put(b"other bytes")
    other = replace(record, outputs=(*record.outputs, OutputObject("more", ref.digest, ref.size, 0)))
    plan.store.replace(other)
    again = _plan(workspace, BUILD_ONLY)
    (waiting,) = again.to_run()
    assert waiting.slot == "replay/kept/one"
    assert again.status[waiting.key].reason.startswith("input was rebuilt differently")
    assert run(again).tally.made == 1
    assert _plan(workspace, BUILD_ONLY).to_run() == []


def test_a_method_that_fails_says_so_and_keeps_the_rest(workspace: Workspace, repository: Path) -> None:
    """One broken method ends in a TaskError that names its task; what does not depend on it is made and kept."""
    (workspace.root / "trainers").mkdir()
    source = (repository / "trainers" / "joint.py").read_text()
    broken = source.replace("net = job.fresh_network()", 'raise ValueError("my own mistake")')
    (workspace.root / "trainers" / "mine.py").write_text(broken)
    plan = _plan(workspace, TRAINING.replace('trainer = "joint"', 'trainer = "mine"'))
    with pytest.raises(TaskError, match=r"train/joint/seed0/step2.*my own mistake"):
        run(plan)
    again = _plan(workspace, TRAINING.replace('trainer = "joint"', 'trainer = "mine"'))
    assert {task.slot for task in again.to_run()} == {"train/joint/seed0/step2", "evaluate/joint/seed0/step2"}


def test_data_that_change_under_a_plan_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    """A photo that is replaced between plan and run is not stored under the old photo's key."""
    import shutil

    own = tmp_path / "own"
    shutil.copytree(workspace.data, own)
    workspace.data = own
    plan = _plan(workspace, BUILD_ONLY)
    names = sorted((own / "photos" / "three").glob("*.png"))
    names[0].write_bytes(names[1].read_bytes())
    with pytest.raises(TaskError, match="changed after the plan was made"):
        run(plan)


def test_replay_labels_trust_the_queried_class_alone(workspace: Workspace) -> None:
    """A photo's label holds its class and background only, and says that it sees that class only."""
    plan = run(_plan(workspace, TRAINING)).plan
    for slot, found in replay_sets(plan).items():
        channel = found.manifest["channel"]
        for sample in found:
            if slot.startswith("replay/photos/"):
                assert sample.label["visible"] == [channel]
                assert set(sample.mask.ravel().tolist()) <= {0, channel, 255}
            assert sample.mask.shape == sample.image.shape[:2]


def test_the_models_of_a_seed_differ_from_those_of_another(workspace: Workspace) -> None:
    """A seed changes the weights; the same seed does not."""
    plan = run(_plan(workspace, TRAINING, train__seeds=[0, 1])).plan
    weights = _bytes(plan)
    assert weights["train/finetune/seed0/step2"] != weights["train/finetune/seed1/step2"]


def test_photos_are_stored_upright_and_without_metadata(workspace: Workspace, tmp_path: Path) -> None:
    """EXIF orientation is applied and dropped; a JPEG carries no segment but its picture."""
    import io
    import shutil
    import tarfile

    from PIL import Image

    own = tmp_path / "own"
    shutil.copytree(workspace.data, own)
    workspace.data = own
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), (200, 10, 10)).save(own / "photos" / "two" / "turned.jpg", exif=exif.tobytes())
    plan = run(_plan(workspace, BUILD_ONLY, replay__photos__count=25)).plan
    shapes = []
    for slot in plan.slots:
        if not slot.startswith("photos/photos/two/"):
            continue
        with tarfile.open(_object(plan, slot, "images.tar")) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file is not None
                    with Image.open(io.BytesIO(file.read())) as image:
                        shapes.append(image.size)
                        assert not image.getexif()
    assert shapes == [(20, 40)]


def test_a_photo_that_vanishes_is_an_error_and_not_a_smaller_set(workspace: Workspace, tmp_path: Path) -> None:
    """A folder that is not there when a task runs must not become an empty shard under the full shard's key."""
    import shutil

    own = tmp_path / "own"
    shutil.copytree(workspace.data, own)
    workspace.data = own
    plan = _plan(workspace, BUILD_ONLY)
    (own / "photos" / "two").rename(own / "photos" / "elsewhere")
    with pytest.raises(TaskError, match="gone since the plan was made"):
        run(plan)
    (own / "photos" / "elsewhere").rename(own / "photos" / "two")
    done = run(_plan(workspace, BUILD_ONLY))
    assert done.tally.stages["photos"].accepted == 24


def test_a_half_done_run_has_no_final_numbers(workspace: Workspace) -> None:
    """A row whose last step is missing has no final mIoU, and the table says so."""
    plan = run(_plan(workspace, TRAINING)).plan
    plan.store.quarantine_record(plan.slots["evaluate/recall/seed0/step2"], "for a test")
    result = read_result(_plan(workspace, TRAINING))
    assert result.last("recall") == ()
    assert len(result.of("recall", 0)) == 2
    (row,) = [line for line in table(result).splitlines() if line.startswith("recall")]
    assert row.split()[1:4] == ["-", "-", "-"]


def test_a_damaged_input_record_is_rebuilt(workspace: Workspace) -> None:
    """A record that is found damaged while its reader runs is made again, and the run goes on."""
    run(_plan(workspace, BUILD_ONLY))
    plan = _plan(workspace, BUILD_ONLY)
    reader, source = plan.slots["replay/kept/one"], plan.slots["exemplars/kept/one/0000"]
    plan.store.quarantine_record(reader, "for a test")
    path = Path(plan.store.root) / "records" / source[:2] / f"{source}.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"accepted":', b'"acceptxd":', 1))
    done = run(plan)
    assert done.tally.made + done.tally.adopted == 2
    assert _plan(workspace, BUILD_ONLY).to_run() == []


def test_threads_of_the_caller_are_left_as_they_were(workspace: Workspace) -> None:
    """A run in this process sets torch's threads for its tasks, and puts them back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(_plan(workspace, TRAINING))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_replay_of_one_source_at_a_time(workspace: Workspace) -> None:
    """`run.replay` holds the sets of the plan's first source only: never photos beside kept images."""
    found = run(_plan(workspace, TRAINING)).replay
    assert {one.source for one in found.values()} == {"kept"}
