"""README.md of an export: what is in it, how it was made, under which licences, how to read it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from replaygen.exports.choose import Chosen
from replaygen.exports.ids import Ids
from replaygen.report.attribution import FLICKR_NOTICE, escaped, link
from replaygen.report.text import plural, stripped

if TYPE_CHECKING:
    from replaygen.exports.export import Exported
    from replaygen.plan import Plan

_NOT_IN_YAML: Final = {0xFFFE: None, 0xFFFF: None}
_READ: Final = {
    "webdataset": """\
```python
import glob, webdataset as wds
shards = sorted(glob.glob("replay-*.tar"))
data = wds.WebDataset(shards, shardshuffle=False).to_tuple("jpg;png", "mask.png", "json")  # bytes
```

`<id>.jpg` or `.png` is the image, `<id>.mask.png` the label, `<id>.json` what is known of both.""",
    "voc": """\
```python
from torchvision.datasets import VOCSegmentation
data = VOCSegmentation(".", year="2012", image_set="train")  # PIL image, PIL palette mask
```

The layout of the VOC devkit. Class names and colours are in `labelmap.txt`, not VOC's twenty. Images that were PNG are
JPEG of quality 95 here. What is known of each is in `samples.jsonl`.""",
    "coco": """\
```python
from pycocotools.coco import COCO
data = COCO("annotations/stuff_train.json")  # or panoptic_train.json with its folder of PNGs
```

One segment a class and picture, no instances. Category ids are the ids of the masks; in a panoptic PNG a pixel
(R + 256 G + 65536 B) is 1 + the id, 0 = ignore. What is known of an image is under `replay` in its row.""",
    "huggingface": """\
```python
from datasets import load_dataset
data = load_dataset("PATH_OF_THIS_FOLDER", split="train")  # image and mask are PIL images; the mask's value is the id
```""",
    "folders": """\
`images/<id>.jpg|png`, `masks/<id>.png` (grey, 8-bit: the value is the id), `splits/train.txt`, `classes.json`: a folder
pack, which replaygen reads with `[data] kind = "folder"`. What is known of each is in `samples.jsonl`.""",
}


def text(plan: Plan, ids: Ids, chosen: Chosen, done: Exported, *, why: str) -> str:
    """The whole file."""
    table, scenario = plan.recipe.table, plan.opened.scenario
    title = escaped(table.title or plan.recipe.name)
    total = sum(done.samples.values())
    trained = f", as trained on by the row {_code(chosen.method)}, seed {chosen.seed}" if chosen.method else ""
    parts = [
        f"# {title}: replay",
        f"{total} images of {len(done.samples)} classes with labels, made by replaygen for class-incremental semantic "
        f"segmentation: recipe {_code(plan.recipe.name)}, task {_code(scenario.task)}, {scenario.setting}{trained}.",
        "## Read it", _READ[done.format],
        "## Labels", _labels(ids), _classes(ids, done),
        "## Where the images are from", _sources(done), _terms(done, why),
        "## How it was made", _made(plan, chosen),
    ]  # fmt: skip
    return _front(plan, done) + "\n\n".join(part for part in parts if part) + "\n"


def _front(plan: Plan, done: Exported) -> str:
    """The metadata of a Hugging Face data set card, YAML in front of the text; "" for other layouts."""
    if done.format != "huggingface":
        return ""
    title = stripped(plan.recipe.table.title or plan.recipe.name).translate(_NOT_IN_YAML)
    name = json.dumps(f"{title}: replay", ensure_ascii=False)
    lines = ["---", f"pretty_name: {name}", "license: other", "license_name: see-attribution",
             "license_link: ATTRIBUTION.md", "task_categories:", "- image-segmentation", "tags:",
             "- continual-learning", "- semantic-segmentation", "- replaygen", "configs:",
             "- config_name: default", "  data_files:", "  - split: train", "    path: data/train-*.parquet",
             "---", ""]  # fmt: skip
    return "\n".join(lines) + "\n"


def _labels(ids: Ids) -> str:
    what = {"dataset": "the data set's own class ids", "channels": "channels of the scenario, in learning order"}
    ground = "" if ids.background is not None else " What is no class of the scenario is 255 too."
    return (
        f"Numbers in masks are {what[ids.kind]}; 255 = ignore.{ground} `labeler` says who made a label: keys of "
        "models, or words. It can be trusted for the classes in its `visible` alone: where it says background, any "
        "other class may hide."
    )


def _classes(ids: Ids, done: Exported) -> str:
    rows = [(str(one.id), escaped(one.name), str(done.samples.get(one.name, 0) or "")) for one in ids.classes]
    return _table(("id", "class", "images made for it"), rows)


def _sources(done: Exported) -> str:
    rows = []
    for (source, name, page), count in done.sources.most_common():
        licence = f"[{escaped(name)}](<{link(page)}>)" if name and link(page) else escaped(name) or "not recorded"
        rows.append((escaped(source), licence, str(count)))
    return _table(("source", "licence", "images"), rows)


def _terms(done: Exported, why: str) -> str:
    lines = ["Who made which photo is in `ATTRIBUTION.md` and `ATTRIBUTION.csv`; it has to travel with the images."]
    if any(not name for _, name, _ in done.sources):
        lines.append(
            "Where no licence is recorded (folders of one's own, generators, images of the data set) it is for whoever "
            "made this export to know whether it may be shared."
        )
    if allowed := sum(done.let_through.values()):
        lines.append(f"{plural(allowed, 'image')} whose licence forbids to hand on changed copies, or is not known, "
                     f"went in too, because: {escaped(why)}")  # fmt: skip
    if done.photos or done.left_out:
        lines.append("Photos that were purged, or are no longer visible at their source, are never in it.")
    if any(source == "flickr" for source, _, _ in done.sources):
        lines.append(FLICKR_NOTICE)
    if done.left_out:
        told = ", ".join(f"{escaped(reason)} {count}" for reason, count in done.left_out.items())
        lines.append(f"Left out: {told}.")
    return "\n\n".join(lines)


def _made(plan: Plan, chosen: Chosen) -> str:
    from importlib.metadata import version

    scenario, data = plan.opened.scenario.digest, plan.opened.dataset.digest
    rows = [(_code(slot), str(len(one)), _code(one.record.key)) for slot, one in chosen.sets]
    about = f"replaygen {version('replaygen')}; scenario {_code(scenario)}, data set {_code(data)}."
    return f"{about}\n\n" + _table(("replay set", "samples", "key of its task"), rows)


def _code(text: str) -> str:
    """Text in code signs, whatever it holds."""
    return "`" + stripped(text).replace("`", "'").replace("|", "/") + "`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell for cell in row) + " |" for row in lines)
