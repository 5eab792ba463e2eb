"""Labels worth trusting: how right they are, what becomes of distractors, and what each part does to the final mIoU.

Needs REPLAYGEN_DATA with voc_animals/, web_animals/, camvid/ and weights/. Parts resume where they were interrupted.
`--only PART` runs one of them (voc, boxes, distractors, quality, camvid, person), `--seeds 0,1` says for which seeds;
the file holds what was run so far (`not_run` names the rest). Each part says its own seeds.

Figures:
    kept_iou_gain: points of IoU (pooled over pixels, all classes) of the best setting's kept labels above plain argmax,
        on labelled train images that no step saw; kept_iou_gain_same_images: both on the same kept images;
        keep_rate: of that setting. `quality` has every setting, one number a seed.
    boxes: of web photos that came with a box, the mean IoU of the label's box with it, of rows of `voc`.
    distractors_in_buffer: share of the trained-on photos of cow and sheep that are goats, llamas and pigs, of which
        30 % were planted; the worst of classes and seeds. `distractors` has rows on clean and on planted photos.
    share_of_joint: percent of the mIoU of joint training that the highest row of `voc` reaches, one a seed; the row is
        picked by this table itself, so it is an upper estimate.
    voc, person, camvid: rows x seeds: mIoU after the last step (all, old, new), mean and spread of all, the share of
        joint, and the difference to the row `reference`, seed by seed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import QUICK, REPOSITORY, fresh_folder, need_data, write
from label_boxes import boxes
from label_quality import quality, summary
from label_tables import distractors, table


def _asked(name: str, default: str) -> list[str]:
    """The values of an option, split at commas."""
    return (sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default).split(",")


SEEDS = tuple(map(int, _asked("--seeds", "0,1" if QUICK else "0,1,2")))
RECIPE = "voc-animals-labels"
TINY: dict[str, Any] = {
    "views.size": 64, "views.count": 1, "views.label_size": 16, "train.fit.iterations": 3, "train.base.iterations": 4,
    "train.fit.warmup": 1, "train.base.warmup": 1, "train.helper.iterations": 3, "method.joint.iterations": 6,
    "network.width": 16,
}  # fmt: skip
SOURCES = ("web", "helper", "trusted", "strict", "erased")
VOC = ("recall", "recall_helper", "recall_trusted", "recall_strict", "recall_knowledge", "recall_erased",
       "recall_entropy", "recall_no_inpaint", "joint")  # fmt: skip
PERSON = ("recall", "recall_trusted", "recall_knowledge", "recall_entropy", "recall_pixels", "recall_no_inpaint",
          "joint")  # fmt: skip
CAMVID = ("recall", "recall_merged", "recall_no_inpaint", "recall_entropy", "recall_knowledge", "recall_complete",
          "recall_both", "recall_all", "joint")  # fmt: skip


def main() -> None:
    """Every part in turn, or the one that was asked for."""
    data = need_data("voc_animals", "web_animals", "camvid", "weights")
    with ExitStack() as stack:
        folder = stack.enter_context(fresh_folder()) if QUICK else REPOSITORY / "data" / "bench-labels"
        folder.mkdir(parents=True, exist_ok=True)
        quick = {**TINY, **{f"replay.{name}.count": 6 for name in SOURCES}} if QUICK else {}
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "voc": lambda: table(RECIPE, folder, VOC, SEEDS, quick, "recall"),
            "boxes": lambda: boxes(RECIPE, data, folder / "cache", quick, SEEDS),
            "distractors": lambda: distractors(data, folder, RECIPE, quick, SEEDS),
            "quality": lambda: summary([quality(folder, seed, quick) for seed in SEEDS]),
            "camvid": lambda: table("camvid-6-1", folder, CAMVID, SEEDS, _small_camvid() if QUICK else {},
                                    "recall_merged"),
            "person": lambda: table("voc-animals-person-labels", folder, PERSON, SEEDS, quick, "recall"),
        }  # fmt: skip
        for name in _asked("--only", ",".join(parts)):
            told = parts[name]()
            (folder / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")
            print(json.dumps({name: told}), flush=True)
        _together(folder, list(parts))


def _small_camvid() -> dict[str, Any]:
    return {**{key: value for key, value in TINY.items() if key != "network.width"}, "train.helper.iterations": 3}


def _together(folder: Path, parts: list[str]) -> None:
    """Write what was run so far; `not_run` names the rest."""
    files = {name: folder / f"{name}.json" for name in parts}
    told = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.is_file()}
    quality, strangers, voc = (told.get(name, {}) for name in ("quality", "distractors", "voc"))
    write("labels", {
        "kept_iou_gain": quality.get("kept_iou_gain"),
        "kept_iou_gain_same_images": quality.get("kept_iou_gain_same_images"),
        "keep_rate": quality.get("keep_rate"), "distractors_in_buffer": strangers.get("worst_share"),
        "share_of_joint": voc["rows"][voc["highest"]]["share_of_joint"] if voc else None,
        **told, "not_run": [name for name in parts if name not in told],
    })  # fmt: skip


if __name__ == "__main__":
    main()
