"""Every error that replaygen raises on purpose.

ReplaygenError
  RecipeError      a recipe is wrong (file, line, nearest valid key)
  DataError        a data set, image, mask or split is missing, unreadable or inconsistent
  ScenarioError    a task or setting that the data set cannot be cut into
  ModelError       weights that do not fit the network, the classes or the step
  StoreError       the store cannot be used
    ObjectDamaged  bytes differ from their name; they were moved to quarantine
    ObjectMissing  no bytes under that name
    LockTimeout    another process holds the lock
  TaskError        a stage failed; names the task and how to look at it
  ScheduleError    a job of the schedule that cannot be, or is not there (replaygen.schedule)
  LogError         a log level or form that there is not (replaygen.logs)
"""

from __future__ import annotations


class ReplaygenError(Exception):
    """An error that says what is wrong, where, and the way out."""

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint
        self.errno: int | None = None
        """The operating system's number of what went wrong, where it was the operating system."""

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  hint:  {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, tuple[object, ...], dict[str, object]]:
        return _rebuild, (type(self), self.what, self.where, self.hint), {"errno": self.errno}


def _rebuild(kind: type[ReplaygenError], what: str, where: str, hint: str) -> ReplaygenError:
    return kind(what, where=where, hint=hint)


class RecipeError(ReplaygenError):
    """A recipe is wrong: unknown key, wrong type, impossible combination."""


class DataError(ReplaygenError):
    """A data set, image, mask or split is missing, unreadable or inconsistent."""


class ScenarioError(ReplaygenError):
    """A task or setting that the data set cannot be cut into."""


class ModelError(ReplaygenError):
    """Weights that do not fit the network, the classes or the step."""


class StoreError(ReplaygenError):
    """The store cannot be used as asked."""


class ObjectDamaged(StoreError):
    """An object's bytes differ from its name; they were moved to quarantine."""


class ObjectMissing(StoreError):
    """No object under that name."""


class LockTimeout(StoreError):
    """Another process holds the lock for longer than allowed."""


class TaskError(ReplaygenError):
    """A stage failed for good; names the task and how to look at it."""
