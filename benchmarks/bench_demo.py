"""What `replaygen demo` shows: how much of the finetune-to-joint gap RECALL closes, and what that takes.

Seed 0 is run alone in an empty workspace, by the command `replaygen demo` itself: its wall time covers the start of the
interpreter, the composing of the digit scenes, planning, the start of the workers, all training and the page. The other
seeds follow in the same workspace.

Figures:
    gap_closed: (recall - finetune) / (joint - finetune) in all-class mIoU after the last step, percent, one a seed;
        null where joint is not above finetune.
    finetune, recall, joint: all-class mIoU after the last step, percent, one a seed.
    seconds, cpu_seconds: of seed 0 alone; max_rss_gb: the largest sum of its processes' resident memory.
    target: what the mean of gap_closed should reach, percent.
"""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

from common import QUICK, REPOSITORY, fresh_folder, replaygen, rounded, settings, write

ROWS = ("finetune", "recall", "joint")
SEEDS = (0, 1) if QUICK else (0, 1, 2)
WORKERS = "2"
TINY: dict[str, Any] = {
    "data.options.train": 60, "data.options.val": 12, "data.options.photos": 24, "train.fit.iterations": 3,
    "train.base.iterations": 6, "train.base.warmup": 2, "train.fit.warmup": 1, "method.joint.iterations": 8,
    "method.joint.warmup": 2, "replay.photos.count": 8,
}  # fmt: skip


def main() -> None:
    """Measure and write `demo.json`."""
    changes = settings(TINY) if QUICK else []
    with fresh_folder() as workspace:
        _copy_recipe(workspace)
        first = replaygen("demo", "--workers", WORKERS, "--json", *changes, cwd=workspace)
        seeds = settings({"train.seeds": list(SEEDS)})
        every = replaygen("run", "digits", "--workers", WORKERS, "--json", *changes, *seeds, cwd=workspace)
    final = {row: _final(every.told["result"]["results"], row) for row in ROWS}
    closed = [
        100.0 * (recall - finetune) / (joint - finetune) if joint > finetune else None
        for finetune, recall, joint in zip(*(final[row] for row in ROWS), strict=True)
    ]
    known = [value for value in closed if value is not None]
    write(
        "demo",
        {
            "gap_closed": [value if value is None else round(value, 2) for value in closed],
            "gap_closed_mean": round(statistics.fmean(known), 2) if known else None,
            "target": 75,
            **{row: rounded(values) for row, values in final.items()},
            "seeds": list(SEEDS),
            "seconds": round(first.seconds, 1),
            "cpu_seconds": round(first.cpu_seconds, 1),
            "max_rss_gb": round(first.peak_gb, 2),
            "workers": int(WORKERS),
        },
    )


def _copy_recipe(workspace: Path) -> None:
    """A workspace with nothing but the recipe: its store, scenes and page start empty."""
    (workspace / "pipelines").mkdir()
    shutil.copy(REPOSITORY / "pipelines" / "digits.toml", workspace / "pipelines")


def _final(results: list[dict[str, Any]], row: str) -> list[float]:
    """All-class mIoU of a row after its last step, percent, by seed."""
    last = max(result["step"] for result in results if result["method"] == row)
    mine = {
        result["seed"]: result["metrics"]["all"]
        for result in results
        if result["method"] == row and result["step"] == last
    }
    return [float(mine[seed]) for seed in SEEDS]


if __name__ == "__main__":
    main()
