"""What stands of the models that a job waits for."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from replaygen.canonical import digest_of
from replaygen.schedule.times import ScheduleError

if TYPE_CHECKING:
    from replaygen.schedule.jobs import Job
    from replaygen.store import Store

NOTHING = ""
"""No model stands."""


class Watch:
    """Looks at the models that jobs wait for, and reads a base model again only where its files changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[int, tuple[object, str | None]] = {}

    def look(self, job: Job) -> str:
        """What stands now; where nothing does, or not all yet, what stood before.

        Raises:
            ReplaygenError: the recipe cannot be read, or it names no base model.
        """
        if job.watched:
            return trained(self._store, job.watched) or job.seen or NOTHING
        folder = _base_model(job)
        stats = [(path.name, path.stat()) for path in _files(folder)]
        stamp = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats]
        before, digest = self._known.get(job.id, (None, None))
        if stamp != before:
            self._known[job.id] = (stamp, None)
            return job.seen or NOTHING
        if digest is None:
            digest = _read(folder)
            self._known[job.id] = (stamp, digest)
        return digest or job.seen or NOTHING


def state_of(job: Job, store: Store) -> str:
    """A digest of the models that a job waits for; empty where none stands.

    Raises:
        ReplaygenError: the recipe cannot be read, or it names no base model.
    """
    return trained(store, job.watched) if job.watched else _read(_base_model(job))


def trained(store: Store, recipe: str) -> str:
    """The trained models of a recipe's last run, by what they hold; empty while one of them is not made, or gone."""
    slots = (store.read_ref(recipe, "plan") or {}).get("slots", {})
    found = {}
    for slot, key in slots.items():
        if not slot.startswith("train/"):
            continue
        record = store.get(key)
        if record is None:
            return NOTHING
        found[slot] = sorted(output.digest for output in record.outputs)
    return digest_of(found) if found else NOTHING


def _base_model(job: Job) -> Path:
    from replaygen.plan import Recipe
    from replaygen.plan.changes import changes_of
    from replaygen.plan.workspace import expand_path

    recipe = Recipe.load(_recipe(job), changes_of(job.changes_on(datetime.now(UTC))))
    told = recipe.table.train.base_model
    if told is None:
        raise ScheduleError(
            "the recipe has no train.base_model to wait for", where=str(recipe.path),
            hint="name the recipe that trains: --on model --of RECIPE",
        )  # fmt: skip
    workspace = Path(job.folder) if recipe.workspace == Path.cwd() else recipe.workspace
    return expand_path(told, workspace=workspace, where=str(recipe.path))


def _recipe(job: Job) -> Path:
    """The file that a job's command would find in the job's folder."""
    from replaygen.plan.workspace import shipped

    told = Path(job.recipe or "")
    folders = [] if told.suffix == ".toml" else [Path(job.folder) / "pipelines", shipped() / "pipelines"]
    return next((path for folder in folders if (path := folder / f"{told}.toml").is_file()), told)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model.*"))


def _read(folder: Path) -> str:
    found = {}
    for path in _files(folder):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digest_of(found) if found else NOTHING
