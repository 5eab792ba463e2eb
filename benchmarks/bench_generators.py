"""Generated replay: what it is worth on digit scenes, how fast it is drawn, whether it is copied, that it is the same.

The store stands in `data/bench-generators/`, which git ignores, so that an interrupted benchmark goes on where it
stopped. Every seed has its own training, its own draws, and its own generators fitted on its steps' images.

Figures:
    biggan_gap_closed, fitted_gap_closed: (row - finetune) / (joint - finetune) in all-class mIoU after the last step,
        percent, one a seed; replay from the tracked generator alone, and from generators fitted within the run alone.
    finetune, recall_gan, recall_fitted, joint: all-class mIoU after the last step, percent, one a seed.
    memorised_share: by source, share of generated images that are near copies of a training image, over classes, seeds.
    found_share: by source, share of generated images in which the labelling model found the class.
    fit_seconds: of all fits of a seed, inside the stages. target: what both gaps should reach, percent.
    throughput_ratio: by device and size: images per second over the package's README loop (evaluation mode, no
        gradients) on the same random weights of the published shape, in one process with one thread; with memory.
    full_size: published architectures with random weights from a local folder: loaded, and one image drawn.
    same_bytes: draws of one seed compared: batch sizes, order, this process against Dask.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from common import QUICK, REPOSITORY, fresh_folder, measure, replaygen, rounded, settings, write

SEEDS = (0, 1) if QUICK else (0, 1, 2)
ROWS = ("finetune", "recall_gan", "recall_fitted", "joint")
SOURCES = ("gan", "fitted")
SIZES = (128,) if QUICK else (128, 256, 512)
TINY: dict[str, Any] = {
    "data.options.train": 60, "data.options.val": 12, "data.options.photos": 4, "train.fit.iterations": 6,
    "train.base.iterations": 80, "train.base.warmup": 2, "train.fit.warmup": 1, "method.joint.iterations": 8,
    "method.joint.warmup": 2, "replay.gan.count": 12, "replay.fitted.count": 12, "replay.fitted.fit.iterations": 20,
    "replay.fitted.fit.warm_iterations": 4, "data.path": "data/digits-quick",
}  # fmt: skip


def main() -> None:
    """Measure and write `generators.json`."""
    if QUICK:
        with fresh_folder() as folder:
            write("generators", figures(folder))
    else:
        write("generators", figures(REPOSITORY / "data" / "bench-generators"))


def figures(folder: Path) -> dict[str, Any]:
    """All of them."""
    folder.mkdir(parents=True, exist_ok=True)
    told = [_seed(seed, folder) for seed in SEEDS]
    final = {row: [one["final"][row] for one in told] for row in ROWS}
    return {
        **{f"{name}_gap_closed": rounded(_gap(final, row)) for name, row in
           (("biggan", "recall_gan"), ("fitted", "recall_fitted"))},
        "target": 60,
        **{row: rounded(values) for row, values in final.items()},
        "memorised_share": {source: _mean(told, source, "memorised") for source in SOURCES},
        "found_share": {source: _mean(told, source, "found") for source in SOURCES},
        "fit_seconds": rounded([one["fit_seconds"] for one in told], 0),
        "seeds": list(SEEDS),
        "throughput_ratio": {"cpu": {str(size): _throughput(size, folder, "cpu") for size in SIZES},
                             "cuda": _cuda(folder)},
        "full_size": {name: _full_size(name, folder) for name in ("dit", "stable_diffusion")},
        "same_bytes": _same_bytes(folder),
    }  # fmt: skip


def _gap(final: dict[str, list[float]], row: str) -> list[float]:
    return [
        100.0 * (mine - low) / (high - low)
        for low, mine, high in zip(final["finetune"], final[row], final["joint"], strict=True)
    ]


def _seed(seed: int, folder: Path) -> dict[str, Any]:
    """Run a seed with draws and fits of its own; what stands already is not done again."""
    changes = {
        **(TINY if QUICK else {}), "train.seeds": [seed], "replay.gan.seed": seed, "replay.fitted.seed": seed,
    }  # fmt: skip
    if QUICK:
        changes["data.path"] = str(folder / "digits")
    store = ("--cache", str(folder / "cache"))
    done = replaygen(
        "run", "digits-generators", "--json", *store, "--report", str(folder / f"seed{seed}.html"), *settings(changes)
    )
    results = done.told["result"]["results"]
    last = max(result["step"] for result in results)
    quality = replaygen("generator", "quality", "digits-generators", "--json", *store, *settings(changes)).told
    return {
        "final": {row: next(float(one["metrics"]["all"]) for one in results
                            if one["method"] == row and one["step"] == last) for row in ROWS},
        "quality": quality,
        "fit_seconds": _fit_seconds(folder, changes),
    }  # fmt: skip


def _fit_seconds(folder: Path, changes: dict[str, Any]) -> float:
    from replaygen.plan import Recipe
    from replaygen.store import Store

    plan = Recipe.load(REPOSITORY / "pipelines" / "digits-generators.toml", changes).plan(Store(folder / "cache"))
    records = [plan.store.get(key) for key, task in plan.tasks.items() if task.stage == "fit-generator"]
    return sum(record.seconds for record in records if record is not None)


def _mean(told: list[dict[str, Any]], source: str, name: str) -> float | None:
    """A share over all classes and seeds, of classes where it could be said."""
    values = [one[name] for seed in told for one in seed["quality"] if one["source"] == source]
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known) / 100, 4) if known else None


def _child(code: str, *arguments: str) -> Any:
    """Run code beside the benchmarks' own modules in a process of its own, so that memory is its own."""
    return measure([sys.executable, "-c", code, *arguments], cwd=REPOSITORY / "benchmarks").told


def _throughput(size: int, folder: Path, device: str) -> dict[str, Any]:
    """Times the README loop's speed at a size; made once and remembered, for it is the same machine."""
    import shutil

    place = folder / f"biggan-deep-{size}"
    if not (place / "model.safetensors").is_file():
        _child(
            "import sys, json; from pathlib import Path; from throughput import make_biggan_folder\n"
            "make_biggan_folder(int(sys.argv[1]), Path(sys.argv[2]), 0); print(json.dumps(1))", str(size), str(place),
        )  # fmt: skip
    told = _child(
        "import sys, json; from pathlib import Path; from throughput import compare\n"
        "print(json.dumps(compare(Path(sys.argv[1]), count=int(sys.argv[2]), rounds=int(sys.argv[3]), "
        "device=sys.argv[4], literal=False)))",
        str(place), "2" if QUICK else "6" if device == "cpu" else "64", "1" if QUICK else "3", device,
    )  # fmt: skip
    shutil.rmtree(place)
    ours = {name: way for name, way in told["ways"].items() if name != "readme"}
    best = max(ours, key=lambda name: ours[name]["times_readme"])
    return {"best": ours[best]["times_readme"], "best_is": best, **told}


def _cuda(folder: Path) -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return {str(size): _throughput(size, folder, "cuda") for size in SIZES}


def _full_size(name: str, folder: Path) -> dict[str, Any]:
    """A published architecture with random weights, loaded from a folder by the real code, one image of two steps."""
    with fresh_folder() as place:
        scale = "0.1" if QUICK else "1.0"
        _child(
            "import sys, json, fullsize; from pathlib import Path\n"
            "getattr(fullsize, 'make_' + sys.argv[1])(Path(sys.argv[2]), 0, scale=float(sys.argv[3]))\n"
            "print(json.dumps(1))", name, str(place), scale,
        )  # fmt: skip
        size = sum(file.stat().st_size for file in place.rglob("*.safetensors"))
        told = _child(
            "import sys, json; from pathlib import Path; from fullsize import try_fullsize\n"
            "from replaygen.generators.specs import DiffusionSpec\n"
            "import torch; torch.set_num_threads(1)\n"
            "print(json.dumps(try_fullsize(Path(sys.argv[1]), DiffusionSpec(dtype='bfloat16'))))", str(place),
        )  # fmt: skip
    rounded_ = {key: round(value, 2) if isinstance(value, float) else value for key, value in told.items()}
    return {"weights_gb": round(size / 1e9, 2), **rounded_}


def _same_bytes(folder: Path) -> dict[str, Any]:
    """Image bytes of the tracked generator: alone, in batches, shuffled; and of a whole recipe inline and on Dask."""
    told: dict[str, Any] = _child(
        "import sys, json, random; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from replaygen.generators.biggan import open_biggan; from replaygen.generators.specs import BigGanSpec\n"
        "from replaygen.generators.draws import Draw, to_uint8\n"
        "draws = [Draw(seed, seed % 10) for seed in range(48)]\n"
        "def bytes_of(batch, order, parts):\n"
        "    made = open_biggan(Path(sys.argv[1]), BigGanSpec(batch=batch), 'cpu'); found = {}\n"
        "    for start in range(0, len(order), parts):\n"
        "        part = order[start:start + parts]\n"
        "        for draw, image in zip(part, made.draw(part)): found[draw.seed] = to_uint8(image).tobytes()\n"
        "    return found\n"
        "first = bytes_of(8, draws, 48); mixed = list(draws); random.Random(0).shuffle(mixed)\n"
        "print(json.dumps({'batch_sizes': all(bytes_of(b, draws, 48) == first for b in (1, 3, 16, 64)),"
        " 'order': bytes_of(8, mixed, 5) == first, 'images': len(first)}))",
        str(REPOSITORY / "pipelines" / "weights" / "digits-gan"),
    )
    with fresh_folder() as place:
        (place / "pipelines").mkdir()
        recipe = place / "pipelines" / "draw.toml"
        text = (REPOSITORY / "pipelines" / "digits-generators.toml").read_text(encoding="utf-8")
        recipe.write_text(text[: text.index("[train]")].replace("data/digits", str(place / "digits")), encoding="utf-8")
        quick = {key: value for key, value in TINY.items() if key.startswith(("data.options", "replay"))}
        outputs = []
        for workers in (0, 1, 2):
            store = place / f"store-{workers}"
            replaygen(
                "run", str(recipe), "--cache", str(store), "--workers", str(workers), "--json", *settings(quick),
                cwd=place,
            )  # fmt: skip
            outputs.append(_outputs(recipe, store, quick))
    told |= {"inline_dask": outputs[0] == outputs[1] == outputs[2], "records": len(outputs[0])}
    return told


def _outputs(recipe: Path, store: Path, changes: dict[str, Any]) -> dict[str, list[str]]:
    from replaygen.plan import Recipe
    from replaygen.store import Store

    opened = Store(store, readonly=True)
    records = {key: opened.get(key) for key in Recipe.load(recipe, changes).plan(opened).tasks}
    return {key: [output.digest for output in record.outputs] for key, record in records.items() if record is not None}


if __name__ == "__main__":
    main()
