"""What the machinery costs beside the work itself.

The recipe `digits` is run cold, one seed: inline, and on two Dask workers; its scenes are composed
before, since that is work. Then the finished recipe is run again, a very large plan is made, and starts are timed.

Figures:
    inline_overhead: 1 - seconds inside stages / wall seconds, from the reading of the recipe to the end of the run.
    dask_overhead: 1 - seconds inside stages / worker seconds on offer, between the first submit and the last outcome.
        At each moment min(workers, tasks that are ready or running) workers are on offer; a task is ready when all its
        inputs are done, so that what the plan itself cannot do side by side counts as nobody's overhead.
    dask_bare: the same for a bare Dask client whose tasks sleep as long as ours took, in the same graph (the bound).
    inline_ms_per_task: time outside stages, for each task. dask_start_seconds: start of the two workers.
    warm_seconds: `replaygen run` of the finished recipe, less a bare interpreter start (best of 5).
    plan_seconds_1m5, plan_gb_1m5: plan and statuses of 150 classes x 10,000 images, and that process's peak memory.
    import_seconds, help_seconds: of `import replaygen` and `replaygen --help`, less a bare start (best of 5).
    heavy_modules_imported: which heavy packages either of the two imports.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common import QUICK, REPOSITORY, Measured, best_seconds, fresh_folder, python, replaygen, settings, write

TINY: dict[str, Any] = {
    "data.options.train": 60, "data.options.val": 12, "data.options.photos": 24, "replay.photos.count": 8,
    "train.fit.iterations": 3, "train.fit.warmup": 1, "train.base.iterations": 6, "train.base.warmup": 2,
    "method.joint.iterations": 8, "method.joint.warmup": 2,
}  # fmt: skip
HEAVY = (
    "torch", "dask", "distributed", "transformers", "sklearn", "scipy", "matplotlib", "jinja2", "safetensors", "PIL",
    "numpy", "pandas",
)  # fmt: skip
IMPORT = "import replaygen"
HELP = """
import sys
sys.argv = ["replaygen", "--help"]
from replaygen.cli import main
try:
    main()
except SystemExit:
    pass
"""
LOADED = f"""
import json, sys
print()
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r}))))
"""
CALL = "import json, sys; sys.path.insert(0, sys.argv[1]); import overhead; print(json.dumps(overhead.{}))"


def call(expression: str) -> Measured:
    """A function of `overhead.py` in an interpreter of its own."""
    return python(CALL.format(expression), str(REPOSITORY / "benchmarks"))


def main() -> None:
    """Measure and write `overhead.json`."""
    recipe = str(REPOSITORY / "pipelines" / "digits.toml")
    with fresh_folder() as folder:
        changes: dict[str, Any] = {**(TINY if QUICK else {}), "data.path": str(folder / "scenes")}
        call(f"compose({recipe!r}, {changes!r}, {str(folder / 'none')!r})")
        inline = call(f"inline({recipe!r}, {changes!r}, {str(folder / 'inline')!r})").told
        dask = call(f"on_dask({recipe!r}, {changes!r}, {str(folder / 'dask')!r}, 2)").told
        bare_start = best_seconds([sys.executable, "-c", "pass"])
        warm = best_seconds(_finished(recipe, changes, folder))
        planned = call(f"plan_large({str(folder / 'large')!r}, {1000 if QUICK else 10_000})")
    write(
        "overhead",
        {
            "warm_seconds": round(warm - bare_start, 2),
            "inline_overhead": round(inline["overhead"], 4),
            "dask_overhead": round(dask["overhead"], 4),
            "dask_bare": round(dask["bare"], 4),
            "plan_seconds_1m5": round(planned.told["seconds"], 2),
            "plan_gb_1m5": round(planned.told["peak_gb"], 3),
            "plan_tasks_1m5": planned.told["tasks"],
            "import_seconds": round(best_seconds([sys.executable, "-c", IMPORT]) - bare_start, 3),
            "help_seconds": round(best_seconds([sys.executable, "-m", "replaygen", "--help"]) - bare_start, 3),
            "heavy_modules_imported": sorted({*python(IMPORT + LOADED).told, *python(HELP + LOADED).told}),
            "bare_start_seconds": round(bare_start, 3),
            "inline_ms_per_task": round(1000 * inline["outside_seconds"] / inline["tasks"], 2),
            "inline_stage_seconds": round(inline["stage_seconds"], 1),
            "inline_tasks": inline["tasks"],
            "dask_stage_seconds": round(dask["stage_seconds"], 1),
            "dask_tasks": dask["tasks"],
            "dask_start_seconds": round(dask["start_seconds"], 2),
        },
    )


def _finished(recipe: str, changes: dict[str, Any], folder: Path) -> list[str]:
    """The command that runs the finished recipe again; its first run writes the page, and must make nothing else."""
    store, report = str(folder / "inline"), str(folder / "report.html")
    how = ["run", recipe, "--cache", store, "--report", report, "--workers", "2", *settings(changes)]
    tally = replaygen(*how, "--json").told["tally"]
    if tally["made"] or tally["adopted"]:
        raise RuntimeError(f"a finished recipe was run again: {tally}")
    return [sys.executable, "-m", "replaygen", *how]


if __name__ == "__main__":
    main()
