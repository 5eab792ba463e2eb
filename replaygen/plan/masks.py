"""Label tasks of images that came with masks: `labeler = "given"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from replaygen.plan.recipe import ReplayTable
from replaygen.sources.folder import photo_id
from replaygen.sources.masks import MaskPack
from replaygen.stages.masks import GIVEN, GivenLabelStage

if TYPE_CHECKING:
    from replaygen.plan.build import Builder
    from replaygen.scenario import Scenario, Step


def open_masks(
    replay: Mapping[str, ReplayTable], folders: Mapping[str, Path], scenario: Scenario, cache_dir: Path
) -> dict[str, MaskPack]:
    """The packs of the sources whose labels are given.

    Raises:
        DataError: no masks, or a class that they do not know.
    """
    found = {}
    for name, table in replay.items():
        if table.labeler == GIVEN:
            found[name] = MaskPack.open(folders[name], cache_dir)
            for step in scenario.steps[:-1]:  # of the last step nothing is replayed
                for queried in (scenario.names[channel] for channel in step.new):
                    if table.only is None or queried in table.only:
                        found[name].table(scenario.names, queried)
    return found


def given_labels(
    builder: Builder, source: str, step: Step, channel: int, by: str, images: Sequence[str],
    inputs: Sequence[tuple[str, str]], features: Sequence[tuple[str, str]], *, judged: bool,
) -> list[str]:  # fmt: skip
    """A label task for every image shard of a class; the masks of its images are in its key.

    Args:
        by: the chain in the tasks' slots.
        inputs: what every task reads; features: the i-th shard's, where they are cached.
        judged: also what the screens on labels and erasing need.
    """
    table, pack = builder.recipe.replay[source], builder.opened.masks[source]
    name = builder.scenario.names[channel]
    masks = pack.of(table.folders.get(name, name))
    seen = {"query": (channel,), "step": step.new, "seen": step.seen}[table.label]
    values = [list(row) for row in pack.table(builder.scenario.names, name)]
    params = {
        "class_name": name, "channel": channel, "table": values, "ignore": pack.ignore, "keep": list(seen),
        "min_share": table.min_share, "marks": judged, "vectors": judged, "views": builder.views if judged else {},
        "threads": builder.recipe.threads,
    }  # fmt: skip
    where = {"root": str(pack.root), **{name: builder.opened.where[name] for name in ("network", "device")}}
    keys = []
    for i, image in enumerate(images):
        of_slice = _masks(builder.built.tasks[image].params, masks)
        task = GivenLabelStage.task(
            {**params, "masks": of_slice}, inputs=[("images", image), *inputs, *features[i : i + 1]], where=where,
            slot=f"label/{source}/{by}/{name}/{i:04d}", requested=builder.built.tasks[image].requested,
        )  # fmt: skip
        keys.append(builder.built.add(task))
    return keys


def _masks(photos: Mapping[str, Any], masks: Mapping[str, tuple[str, str]]) -> list[list[str]]:
    """[sample, name, sha256] of the masks that the images of a slice have."""
    found = []
    for name, sha256 in photos["files"]:
        mask = masks.get(PurePosixPath(name).stem)
        if mask is not None:
            found.append([photo_id(photos["class_name"], sha256), *mask])
    return found
