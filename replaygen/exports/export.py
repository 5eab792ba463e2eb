"""Export the replay sets of a finished run: chosen, looked at for who may leave, written at once or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from replaygen.classes import nearest_hint
from replaygen.errors import DataError
from replaygen.exports import card
from replaygen.exports.choose import Chosen, choose
from replaygen.exports.coco import CocoLayout
from replaygen.exports.folders import FoldersLayout
from replaygen.exports.huggingface import HuggingFaceLayout
from replaygen.exports.ids import Ids, Kind
from replaygen.exports.layout import Layout, as_line
from replaygen.exports.place import measure, new_folder, seal, write
from replaygen.exports.samples import NEVER, Door, Sample, samples
from replaygen.exports.voc import VocLayout
from replaygen.exports.webdataset import WebDatasetLayout
from replaygen.plan import Plan
from replaygen.report.attribution import as_csv, as_markdown
from replaygen.report.text import cut
from replaygen.runs.proof import Proof, proofs

FORMATS: Final[dict[str, type[Layout]]] = {
    "webdataset": WebDatasetLayout,
    "voc": VocLayout,
    "coco": CocoLayout,
    "huggingface": HuggingFaceLayout,
    "folders": FoldersLayout,
}
SHARD: Final = 1000
"""Samples of a tar or parquet file, where nothing else is said."""


@dataclass
class Exported:
    """What was written.

    Attributes:
        samples: by class, in the order of channels.
        sources: (source, licence's name, licence's page) -> samples.
        left_out: samples that were kept back, by reason.
        let_through: samples among those written that only `allow_restricted` let out, by reason.
        photos: photos of other people that are in it.
    """

    out: Path
    format: str
    ids: Kind
    samples: dict[str, int] = field(default_factory=dict)
    sources: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    left_out: dict[str, int] = field(default_factory=dict)
    let_through: dict[str, int] = field(default_factory=dict)
    photos: int = 0
    files: int = 0
    size: int = 0
    sets: tuple[dict[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain data with stable keys; `bytes` is the size of all files."""
        return {
            "out": str(self.out), "format": self.format, "ids": self.ids, "samples": sum(self.samples.values()),
            "classes": self.samples, "left_out": self.left_out, "photos": self.photos, "files": self.files,
            "bytes": self.size, "sets": list(self.sets),
        }  # fmt: skip


def export(
    plan: Plan, layout: str, out: Path, *, classes: Sequence[str] = (), method: str | None = None,
    seed: int | None = None, ids: Kind = "dataset", shard: int = SHARD, allow_restricted: str = "",
) -> Exported:  # fmt: skip
    """Write the replay sets that a row was trained on to a new folder; the same sets give the same bytes.

    Args:
        layout: one of `FORMATS`.
        out: a folder that is not there yet; it appears when it is complete.
        classes: only these; all by default.
        method: a row of the recipe; by default the first one with replay. `seed`: by default the recipe's first.
        ids: what masks hold: the data set's own class ids, or the scenario's channels.
        shard: samples of a tar or parquet file.
        allow_restricted: why photos go too whose licence forbids to hand on changed copies, or is not known; it is
            written into the export. Without it they are left out and counted. Photos that were purged, or are no longer
            visible at their source, never go.

    Raises:
        DataError: unknown layout, class or row; sets that are not made; nothing that may go out.
        ReplaygenError: the place is taken or cannot be written.
        StoreError: an object is missing or damaged.
    """
    if layout not in FORMATS:
        raise DataError(f"no layout called {layout!r}", hint=nearest_hint(layout, FORMATS))
    if shard < 1:
        raise DataError(f"shard is {shard}", hint="samples of a file, at least 1")
    chosen = choose(plan, classes=classes, method=method, seed=seed)
    door, numbers = Door(plan.store, allow_restricted), Ids.of(plan, ids)
    done = Exported(out, layout, ids, sets=tuple(_sets(chosen)))
    with new_folder(out) as folder:
        writer = FORMATS[layout](folder, numbers, shard=shard)
        try:
            credits = _write(writer, chosen, numbers, door, done)
        finally:
            writer.release()
        if not done.samples:
            raise _nothing_left(done)
        _about(folder, plan, numbers, chosen, done, credits, allow_restricted)
        seal(folder)
        done.files, done.size = measure(folder)
        if not door.still_open():
            raise DataError("photos were purged or withdrawn while they were exported", where=str(out),
                            hint="export again")  # fmt: skip
    return done


def _nothing_left(done: Exported) -> DataError:
    told = ", ".join(f"{reason} {count}" for reason, count in done.left_out.items())
    hint = "these may never leave" if told else "did the run end well?"
    if done.left_out.keys() - NEVER:
        hint = "--allow-restricted WHY, if you may"
    return DataError("nothing is left to export", where=f"kept back: {told}" if told else "the sets are empty",
                     hint=hint)  # fmt: skip


def _write(layout: Layout, chosen: Chosen, ids: Ids, door: Door, done: Exported) -> dict[str, Proof]:
    """Write every sample; who made the photos among them, by sample id."""
    credits: dict[str, Proof] = {}
    for sample in samples(chosen, ids, door):
        layout.add(sample)
        about = sample.about
        done.samples[sample.class_name] = done.samples.get(sample.class_name, 0) + 1
        done.sources[about["source"] or "not recorded", about["licence_name"] or "", about["licence_url"] or ""] += 1
        if about["photo"]:
            credits[sample.id] = _credit(sample)
    layout.close()
    done.left_out, done.let_through = (dict(told.most_common()) for told in (door.left_out, door.let_through))
    done.photos = len(credits)
    return credits


def _credit(sample: Sample) -> Proof:
    told = {name: sample.about[name] or "" for name in (
        "owner", "owner_page", "title", "page", "url", "licence", "licence_name", "licence_url", "photo", "source",
    )}  # fmt: skip
    changes = "resized and re-encoded" + (", parts erased" if sample.about["erased"] else "")
    return Proof(**told, class_name=sample.class_name, sample=sample.id, decision="accepted", changes=changes)


def _about(
    folder: Path, plan: Plan, ids: Ids, chosen: Chosen, done: Exported, credits: dict[str, Proof], why: str
) -> None:
    """classes.json, ATTRIBUTION, README.md and export.json; the credits of all photos are in memory."""
    if credits:  # what the records know beyond the side-cars: when it was fetched, what was changed
        known = {one.sample: one for one in proofs(plan) if one.sample in credits and one.decision == "accepted"}
        credits = {sample: known.get(sample, one) for sample, one in credits.items()}
    title = plan.recipe.table.title or plan.recipe.name
    write(folder / "classes.json", ids.file())
    write(folder / "ATTRIBUTION.md", as_markdown(list(credits.values()), title=title).encode())
    write(folder / "ATTRIBUTION.csv", as_csv(credits.values()).encode())
    write(folder / "README.md", card.text(plan, ids, chosen, done, why=cut(why, 1000)).encode())
    told = {name: value for name, value in done.as_json().items() if name not in ("out", "files", "bytes")}
    recipe = {"recipe": plan.recipe.name, "method": chosen.method, "seed": chosen.seed,
              "scenario": plan.opened.scenario.digest, "dataset": plan.opened.dataset.digest}  # fmt: skip
    allowed = {"allowed_restricted": why or None, "let_through": done.let_through}
    write(folder / "export.json", as_line({**told, **recipe, **allowed}))


def _sets(chosen: Chosen) -> list[dict[str, Any]]:
    return [{"slot": slot, "class": str(one.manifest["class"]), "samples": len(one), "key": one.record.key}
            for slot, one in chosen.sets]  # fmt: skip
