"""The rows of a recipe's comparison, each with its method file, its fit options and its own options, all checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from replaygen.classes import nearest_hint
from replaygen.errors import RecipeError
from replaygen.learn.specs import HOW, FitOptions
from replaygen.plan.method import Method, read_method
from replaygen.plan.recipe import RecipeTable
from replaygen.plan.tables import InpaintMode, MethodTable
from replaygen.plan.workspace import find_trainer


@dataclass(frozen=True)
class Row:
    """One row. fit and own are plain values that enter the key; inpaint: how background of current data is filled.

    knowledge: replay's labels receive the classes being learnt; ahead: there is replay of those classes too.
    """

    name: str
    method: Method
    fit: dict[str, Any]
    own: dict[str, Any]
    replay: str | None
    inpaint: InpaintMode | None
    knowledge: bool = False
    ahead: bool = False


@dataclass(frozen=True)
class Rows:
    """All rows; the shared step 0, the method `finetune` fitted as `[train.base]` says; and how helpers are fitted."""

    rows: tuple[Row, ...]
    base: Row
    helper: dict[str, Any]

    def methods(self) -> dict[str, Method]:
        """Digest -> method file of every row and of step 0; none where nothing is trained."""
        return {row.method.digest: row.method for row in (*self.rows, self.base)} if self.rows else {}


def resolve_rows(recipe: RecipeTable, *, workspace: Path, where: str) -> Rows:
    """Find and check every row's method and options; nothing is executed.

    Raises:
        RecipeError: no such trainer, an unknown or wrong option, or a replay method without replay.
    """
    base_method = read_method(find_trainer("finetune", workspace))
    base_fit = _fit(recipe.train.fit, recipe.train.base, "[train.base]", where)
    base = Row("base", base_method, _no_old_classes(base_fit), dict(base_method.options), None, None)
    helper = _no_old_classes(_fit(recipe.train.fit, recipe.train.helper, "[train.helper]", where))
    return Rows(tuple(_row(recipe, row, workspace, where) for row in recipe.method), base, helper)


def check_field_rows(recipe: RecipeTable, *, workspace: Path, where: str) -> None:
    """Refuse what is wrong in `[methods.NAME]` when the recipe is read, long before `bench methods` asks for it.

    Raises:
        RecipeError: as `resolve_rows`.
    """
    for row in recipe.field_rows().values():
        _row(recipe, row, workspace, where)


def _row(recipe: RecipeTable, table: MethodTable, workspace: Path, where: str) -> Row:
    method = read_method(find_trainer(table.trainer, workspace))
    given = dict(table.model_extra or {})
    fit_fields = set(FitOptions.model_fields) - set(HOW)
    fit: dict[str, Any] = {}
    own = dict(method.options)
    for key, value in given.items():
        if key in method.options:
            own[key] = _option(table.name, key, value, method, where)
        elif key in fit_fields:
            fit[key] = value
        else:
            known = [*method.options, *sorted(fit_fields), "name", "trainer", "replay", "inpaint", "knowledge", "ahead"]
            raise RecipeError(f"method {table.name!r}: unknown key {key!r}", where=where, hint=nearest_hint(key, known))
    if method.replay is True and table.replay is None:
        raise RecipeError(
            f"method {table.name!r} trains on replay but names none", where=where,
            hint=f"add replay = one of {', '.join(recipe.replay) or '(declare a [replay.NAME] table first)'}",
        )  # fmt: skip
    if table.replay is not None and not method.replay:
        raise RecipeError(
            f"method {table.name!r} names replay, but {table.trainer!r} does not train on it", where=where,
            hint="leave `replay` out, or use a trainer that takes replay",
        )  # fmt: skip
    if table.inpaint and method.all_data:
        raise RecipeError(
            f"method {table.name!r} asks for inpainting, but it sees every label anyway", where=where,
            hint="leave `inpaint` out",
        )  # fmt: skip
    if table.knowledge and table.replay is None:
        raise RecipeError(
            f"method {table.name!r} asks for knowledge inpainting, which is for replay labels", where=where,
            hint="leave `knowledge` out, or use a trainer that takes replay and name one",
        )  # fmt: skip
    if table.ahead:
        _check_ahead(recipe, table, where)
    asked = method.inpaint if table.inpaint is None else table.inpaint
    inpaint = (recipe.relabel.mode if asked else None) if isinstance(asked, bool) else asked
    fitted = _fit(recipe.train.fit, fit, f"method {table.name!r}", where)
    if method.all_data:
        fitted = _no_old_classes(fitted)
    knows = table.replay is not None and (method.knowledge if table.knowledge is None else table.knowledge)
    return Row(table.name, method, fitted, own, table.replay, inpaint, knows, table.ahead)


def _no_old_classes(fit: dict[str, Any]) -> dict[str, Any]:
    """Fit options of a training in which every class is new: `new_weight` is not read, so it is in no key."""
    return {name: value for name, value in fit.items() if name != "new_weight"}


def _check_ahead(recipe: RecipeTable, table: MethodTable, where: str) -> None:
    """Replay of the classes being learnt is labelled before their step's model is there."""
    source = recipe.replay.get(table.replay or "")
    if source is None:
        raise RecipeError(
            f"method {table.name!r} asks for replay ahead and names none", where=where, hint="add replay = a source"
        )
    if source.source == "exemplar" or source.labeler not in ("helper", "teacher", "given"):
        raise RecipeError(
            f"method {table.name!r} asks for replay of the classes being learnt, and {table.replay!r} is labelled "
            "by their model, which comes after", where=where,
            hint=f'[replay.{table.replay}] labeler = "helper" (or "teacher", "given")',
        )  # fmt: skip


def _option(row: str, key: str, value: Any, method: Method, where: str) -> Any:
    default, choices = method.options[key], method.choices.get(key)
    if choices is not None and value not in choices:
        raise RecipeError(
            f"method {row!r}: {key} = {value!r}", where=where, hint=nearest_hint(str(value), map(str, choices))
        )
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if default is not None and (type(value) is not type(default)):
        raise RecipeError(f"method {row!r}: {key} takes a {type(default).__name__}, got {value!r}", where=where)
    return value


def _fit(base: FitOptions, changes: Mapping[str, Any], who: str, where: str) -> dict[str, Any]:
    try:
        return FitOptions.model_validate({**base.model_dump(mode="json"), **changes}).identity()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            hint = nearest_hint(key, FitOptions.model_fields)
            raise RecipeError(f"{who}: unknown key {key!r}", where=where, hint=hint) from None
        raise RecipeError(f"{who}: {key}: {first['msg'].removeprefix('Value error, ')}", where=where) from None
