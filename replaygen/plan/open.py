"""Open what a recipe names: data set, scenario, photos, network, methods. Refuses what cannot work, before any work."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.classes import nearest_hint
from replaygen.errors import DataError, RecipeError, ScenarioError
from replaygen.inpainters.lama_env import needed
from replaygen.plan.build import Opened
from replaygen.plan.crawled import Purged, open_crawls
from replaygen.plan.generators import open_generators
from replaygen.plan.masks import open_masks
from replaygen.plan.recipe import RecipeTable, ReplayTable
from replaygen.plan.rows import Rows, resolve_rows
from replaygen.plan.workspace import expand_path
from replaygen.stages.given import read_given

if TYPE_CHECKING:
    from replaygen.datasets import FolderPhotos, SegmentationDataset
    from replaygen.inpainters.specs import EraseSpec
    from replaygen.labelers.specs import TeacherSpec
    from replaygen.learn.specs import NetworkSpec
    from replaygen.scenario import Scenario
    from replaygen.store import Store


def open_all(recipe: RecipeTable, *, path: Path, workspace: Path, store: Store) -> Opened:
    """Open everything a recipe names.

    Args:
        recipe: the checked recipe.
        path: its file, for messages.
        workspace: relative paths start here.
        store: its `data/` is where manifests and scans of data sets are remembered; it knows what was purged.

    Raises:
        RecipeError, DataError, ScenarioError, ModelError: what is wrong, where, and the way out.
    """
    from replaygen.datasets import FolderPhotos, open_dataset
    from replaygen.scenario import make_scenario

    cache_dir = Path(store.root) / "data"
    data = {
        "kind": recipe.data.kind,
        "path": str(expand_path(recipe.data.path, workspace=workspace, where=str(path))),
        "cache_dir": str(cache_dir),
        "options": recipe.data.options,
    }
    dataset = open_dataset(recipe.data.kind, str(data["path"]), cache_dir=cache_dir, **recipe.data.options)
    dataset.validate()
    if not recipe.scenario.holdout:
        dataset.split(recipe.data.val)
    cut = scenario_arguments(recipe)
    scenario = make_scenario(dataset, **cut)
    _check_classes(recipe, scenario, path)
    photos: dict[str, FolderPhotos] = {}
    lists: dict[str, Path] = {}
    for name, table in recipe.replay.items():
        if table.source not in ("folder", "web"):
            continue
        assert table.path is not None
        place = expand_path(table.path, workspace=workspace, where=str(path), data_root=dataset.root)
        if table.source == "folder":
            photos[name] = FolderPhotos(place, cache_dir, min_side=table.min_side or None)
        else:
            lists[name] = place
    rows = resolve_rows(recipe, workspace=workspace, where=str(path))
    _check_tools(recipe, rows, path)
    teachers = _teachers(recipe, scenario, path=path, workspace=workspace)
    places = {name: one.root for name, one in photos.items() if one.root is not None}
    masks = open_masks(recipe.replay, places, scenario, cache_dir)
    open_crawls(recipe.replay, lists, scenario.names[1:], where=str(path))
    spec = _network(recipe, path=path, workspace=workspace)
    _check_split(recipe, dataset)
    given = None
    if recipe.train.base_model is not None:
        folder = expand_path(recipe.train.base_model, workspace=workspace, where=str(path))
        names = scenario.names[: 1 + len(scenario.steps[0].new)]
        given = folder, read_given(folder, names, spec.identity())
    return Opened(
        given=given,
        dataset=dataset,
        scenario=scenario,
        photos=photos,
        lists=lists,
        teachers=teachers,
        masks=masks,
        erasers=_erasers(recipe, path=path, workspace=workspace),
        purged=Purged(store),
        generators=open_generators(recipe, scenario, path=path, workspace=workspace, cache_dir=cache_dir),
        network=spec.identity(),
        encoder=spec.encoder_identity() if spec.kind != "small" else {},
        rows=rows,
        where={
            "data": data,
            "scenario": cut,
            "network": spec.model_dump(mode="json", exclude_unset=True),
            "device": recipe.run.device,
        },
    )


def _teachers(recipe: RecipeTable, scenario: Scenario, *, path: Path, workspace: Path) -> dict[str, TeacherSpec]:
    """The models that label instead of the learner, their files pinned and their classes checked."""
    found = {}
    for name, table in recipe.replay.items():
        if table.teacher is None:
            continue
        spec = table.teacher
        if spec.revision is None:
            folder = expand_path(spec.model, workspace=workspace, where=str(path))
            spec = spec.model_copy(update={"model": str(folder)})
        spec.check(scenario.names[1:])
        found[name] = spec.pinned()
        labels = spec.labels()
        if labels is None:
            continue
        for step in scenario.steps[:-1]:  # of the last step nothing is replayed
            names = [scenario.names[channel] for channel in step.new]
            if table.only is None or not set(names).isdisjoint(table.only):
                spec.indices(names, labels)
    return found


def _erasers(recipe: RecipeTable, *, path: Path, workspace: Path) -> dict[str, EraseSpec]:
    """How pixels are erased, by the table that says it, with the paths that this machine knows."""
    asked = {f"replay.{name}": table.erase for name, table in recipe.replay.items() if table.erase is not None}
    found = {}
    for name, spec in {**asked, "relabel": recipe.relabel.erase}.items():
        weights = spec.weights
        if weights is not None:
            weights = str(expand_path(weights, workspace=workspace, where=str(path)))
        found[name] = spec.model_copy(update={"weights": weights})
        if weights is not None:
            from replaygen.inpainters.lama import check_weights

            check_weights(found[name])
    return found


def _check_tools(recipe: RecipeTable, rows: Rows, path: Path) -> None:
    """Look for what erasing and outlines need, before any work.

    Raises:
        DataError: OpenCV is missing. ModelError: LaMa's environment is.
    """
    erasing = {f"replay.{name}.erase": table.erase for name, table in recipe.replay.items() if table.erase is not None}
    if any(row.inpaint == "pixels" for row in rows.rows):
        erasing['inpaint = "pixels"'] = recipe.relabel.erase
    drawing = [
        f'replay.{name}.refine = "grabcut"' for name, table in recipe.replay.items() if table.refine == "grabcut"
    ]
    for what in (*erasing, *drawing):
        if find_spec("cv2") is None:
            raise DataError(f"{what} needs the package cv2", where=str(path), hint="pip install 'replaygen[inpaint]'")
    if any(spec.backend == "lama" and spec.server is None for spec in erasing.values()):
        needed()


def scenario_arguments(recipe: RecipeTable) -> dict[str, Any]:
    """The arguments of `make_scenario` that a recipe gives; a worker makes the same scenario from them."""
    table = recipe.scenario
    return {
        "task": table.task,
        "setting": table.setting,
        "classes": list(table.classes) if table.classes is not None else None,
        "split": recipe.data.train,
        "holdout": [table.holdout, 0] if table.holdout else None,
    }


def _network(recipe: RecipeTable, *, path: Path, workspace: Path) -> NetworkSpec:
    spec = recipe.network
    if spec.weights is not None:
        weights = expand_path(spec.weights, workspace=workspace, where=str(path))
        spec = spec.model_copy(update={"weights": str(weights)})
    return spec.pinned()


def _check_classes(recipe: RecipeTable, scenario: Scenario, path: Path) -> None:
    if len(scenario.steps) == 1 and any(row.trainer != "joint" for row in recipe.method):
        raise ScenarioError(
            f"task {recipe.scenario.task!r} has one step, so there is nothing to learn later", where=str(path),
            hint='give later classes, as in "5-1", or train "joint" alone',
        )  # fmt: skip
    for name, table in recipe.replay.items():
        for given in (*(table.only or ()), *table.folders, *table.classes, *_words(table), *_asked(table)):
            if given not in scenario.names[1:]:
                raise RecipeError(
                    f"replay.{name} names a class {given!r} that the scenario does not have", where=str(path),
                    hint=nearest_hint(given, scenario.names[1:]),
                )  # fmt: skip


def _words(table: ReplayTable) -> tuple[str, ...]:
    return tuple(table.diffusion.words) if table.diffusion is not None else ()


def _asked(table: ReplayTable) -> tuple[str, ...]:
    return tuple(table.flickr.query) if table.flickr is not None else ()


def _check_split(recipe: RecipeTable, dataset: SegmentationDataset) -> None:
    if recipe.scenario.holdout or recipe.data.val == recipe.data.train:
        return
    shared = set(dataset.split(recipe.data.val)) & set(dataset.split(recipe.data.train))
    if shared:
        raise DataError(
            f"{len(shared)} images are in both {recipe.data.train!r} and {recipe.data.val!r}, first {min(shared)}",
            where=str(dataset.root), hint="what is evaluated on must not be trained on",
        )  # fmt: skip
