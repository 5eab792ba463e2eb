"""Image inpainting: how fast holes are filled, how well against what was there, and that nothing else changes.

Photographs of web_animals with holes of the shapes of real objects (masks of voc_animals), longer side 256 pixels, one
thread, one picture at a time. LaMa runs through lama-cleaner's own server in its own environment, over HTTP; its
weights are random, tiny ones and ones of big-lama's shape, so what it fills is timed and not judged.

Figures:
    images_per_second: by backend, on the clock; images_per_cpu_second: by the time that this process and the server
        had, which other work on the machine hardly changes. Of lama with tiny weights: what server and wire cost.
    changed_outside: share of pixels outside the holes that differ from the photograph; what every backend must leave
        at 0. strayed_outside: the same of what the backends had answered, before it was put back.
    refused: pictures whose fill was refused, by reason.
    error_inside: mean absolute difference to the photograph inside the hole, of 255; `mean_colour`: of filling with the
        mean colour of the picture.
    text_error_inside, text_left: on generated scenes with text over them, the same, and the text's own difference.
    start_seconds: from asking a closed inpainter to its first filled picture. parameters: of the weights.
The sheet `inpainting.jpg` shows scenes made by this project alone: as they are, the holes, and filled.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import QUICK, RESULTS, fresh_folder, need_data, write
from PIL import Image, ImageDraw, ImageFont

from replaygen.inpainters.base import Checked, Failure, open_inpainter
from replaygen.inpainters.lama_env import HINT, environment

SIDE = 256
COUNT = {"opencv": 12 if QUICK else 200, "tiny": 6 if QUICK else 100, "big": 2 if QUICK else 12}
TINY = """
import sys, torch
class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Conv2d(4, 3, 5, padding=2)
    def forward(self, image, mask):
        return torch.sigmoid(self.mix(torch.cat([image, mask.to(image.dtype)], 1)))
torch.manual_seed(0)
net = Tiny()
torch.jit.script(net).save(sys.argv[1])
print(sum(one.numel() for one in net.parameters()))
"""


def main() -> None:
    """Measure, and write `inpainting.json` and `inpainting.jpg`."""
    data = need_data("web_animals", "voc_animals")
    pictures = list(_pictures(data, max(COUNT.values())))
    figures: dict[str, Any] = {"side": SIDE, "photos": COUNT}
    told = {f"opencv_{method}": _opencv(method, pictures[: COUNT["opencv"]]) for method in ("telea", "ns")}
    lama, about = _lama(pictures)
    told |= lama
    for name in ("images_per_second", "images_per_cpu_second", "changed_outside", "strayed_outside", "refused"):
        figures[name] = {backend: one[name] for backend, one in told.items()}
    figures["error_inside"] = {
        **{name: one["error_inside"] for name, one in told.items() if name.startswith("opencv")},
        "mean_colour": round(float(np.mean([_missed(_flat(*one), *one) for one in pictures[: COUNT["opencv"]]])), 2),
    }
    figures |= about | _scenes()
    write("inpainting", figures)


def _pictures(data: Path, count: int) -> Any:
    """Photographs, uint8 [H, W, 3], each with a hole, bool [H, W], in the shape of somebody else's object."""
    rng = np.random.default_rng(0)
    photos = sorted((data / "web_animals").rglob("*.jpg"))
    masks = sorted((data / "voc_animals" / "masks").rglob("*.png"))
    rng.shuffle(photos)
    made = 0
    for number in rng.permutation(len(masks)).tolist():
        shape = (lambda ids: (ids > 0) & (ids < 255))(np.asarray(Image.open(masks[number])))
        if made == count or not 0.01 < shape.mean() < 0.3:
            continue
        with Image.open(photos[made % len(photos)]) as opened:
            scale = SIDE / max(opened.size)
            size = (round(opened.width * scale), round(opened.height * scale))
            image = np.asarray(opened.convert("RGB").resize(size, Image.Resampling.LANCZOS))
        hole = np.asarray(Image.fromarray(shape).resize(size, Image.Resampling.NEAREST))
        made += 1
        yield image, hole


def _opencv(method: str, pictures: list[Any]) -> dict[str, Any]:
    with open_inpainter({"backend": "opencv", "method": method, "radius": 5}, {}) as inpainter:
        return _timed(inpainter, pictures)


def _lama(pictures: list[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sizes through the real server; nothing where its environment is not."""
    if not environment().ready:
        print(f"lama is left out: its environment is {environment().why}; {HINT}")
        return {}, {}
    told, parameters, start = {}, {}, {}
    with fresh_folder() as folder:
        script = folder / "tiny.py"
        script.write_text(TINY)
        for name, maker in (("tiny", script), ("big", Path(__file__).with_name("ffc.py"))):
            weights = folder / f"{name}.pt"
            command = [sys.executable, "-W", "ignore", str(maker), str(weights)]
            made = subprocess.run(command, check=True, capture_output=True, text=True)
            parameters[name] = int(made.stdout)
            spec = {"backend": "lama", "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
            with open_inpainter(spec, {"weights": str(weights)}) as inpainter:
                began = time.perf_counter()
                inpainter.fill_many(*([one] for one in pictures[0]))
                start[name] = round(time.perf_counter() - began, 1)
                told[f"lama_{name}"] = _timed(inpainter, pictures[: COUNT[name]])
    return told, {"parameters": parameters, "start_seconds": start, "lama": dict(environment().versions)}


def _timed(inpainter: Any, pictures: list[Any]) -> dict[str, Any]:
    assert isinstance(inpainter, Checked)
    inpainter.fill_many(*([one] for one in pictures[0]))
    began, had = time.perf_counter(), _cpu(inpainter)
    answers = inpainter.fill_many([image for image, _ in pictures], [hole for _, hole in pictures])
    seconds, spent = time.perf_counter() - began, _cpu(inpainter) - had
    changed, outside, missed = 0, 0, []
    for answer, (image, hole) in zip(answers, pictures, strict=True):
        if not isinstance(answer, Failure):
            changed += int((answer != image).any(axis=2)[~hole].sum())
            outside += int((~hole).sum())
            missed.append(_missed(answer, image, hole))
    return {
        "images_per_second": round(len(pictures) / seconds, 2),
        "images_per_cpu_second": round(len(pictures) / spent, 2),
        "changed_outside": changed / max(1, outside),
        "strayed_outside": inpainter.stray.share,
        "refused": dict(Counter(one.reason for one in answers if isinstance(one, Failure))),
        "error_inside": round(float(np.mean(missed)), 2) if missed else None,
    }


def _cpu(inpainter: Checked) -> float:
    """Seconds of this process and of the inpainter's server so far."""
    import psutil

    from replaygen.inpainters.lama import OwnLama

    spent = time.process_time()
    backend = inpainter._backend
    if isinstance(backend, OwnLama) and backend.server is not None:
        for process in psutil.Process(backend.server.pid).children():
            spent += sum(process.cpu_times()[:2])
    return spent


def _missed(answer: Any, image: Any, hole: Any) -> float:
    return float(np.abs(answer[hole].astype(np.int16) - image[hole]).mean())


def _flat(image: Any, hole: Any) -> Any:
    return np.broadcast_to(image[~hole].mean(axis=0), image.shape)


def _scenes() -> dict[str, Any]:
    """Digits and text erased from scenes that are drawn here, so that what was behind them is known; and the sheet."""
    from replaygen.datasets.digits import load_handwriting, plan_scenes, render_scene, split_handwriting

    size, count = 160, 6
    material = replace(load_handwriting(), photos=tuple(_landscape(seed) for seed in range(2)))
    plans = plan_scenes("val", count, split_handwriting(material.labels)["val"], size=size, photos=2)
    methods = {name: open_inpainter({"method": name, "radius": 5}, {}) for name in ("telea", "ns")}
    columns, errors, left = [], {name: [] for name in methods}, []
    for plan in plans:
        image, mask = render_scene(plan, material, size)
        clean, _ = render_scene(replace(plan, stamps=()), material, size)
        text = _text(size)
        image = np.where(text[..., None], np.uint8(235), image)
        hole = _grown((mask > 0) | text, 4)
        left.append(_missed(image, clean, hole))
        filled = {name: inpainter.fill(image, hole) for name, inpainter in methods.items()}
        for name, answer in filled.items():
            errors[name].append(_missed(answer, clean, hole))
        shown = np.where(hole[..., None], np.uint8([255, 0, 160]), image)
        columns.append(np.concatenate([image, shown, *filled.values(), clean]))
    if not QUICK:
        Image.fromarray(np.concatenate(columns, axis=1)).save(RESULTS / "inpainting.jpg", quality=88, optimize=True)
    means = {name: round(float(np.mean(values)), 2) for name, values in errors.items()}
    return {"text_error_inside": means, "text_left": round(float(np.mean(left)), 2)}


def _landscape(seed: int) -> Any:
    """uint8 [480, 640, 3]: slopes, hills, stripes and grain, drawn from formulas."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:480, :640].astype(np.float64)
    light = 110 + 60 * np.sin(x / 97 + seed) * np.cos(y / 71) + 40 * np.sin((x + 2 * y) / 17)
    hills = (y > 300 + 60 * np.sin(x / 60)) * 70
    tint = np.array([[1.2, 0.9, 0.6], [0.7, 1.0, 1.2]])[seed % 2]
    picture = (light + hills)[..., None] * tint + rng.normal(0, 6, (480, 640, 1)) + 60
    return np.clip(picture, 0, 255).astype(np.uint8)


def _text(size: int) -> Any:
    """bool [size, size]: words over the lower part."""
    drawn = Image.new("L", (size, size))
    ImageDraw.Draw(drawn).text((8, size - 34), "replaygen 2:14", fill=255, font=ImageFont.load_default(20))
    return np.asarray(drawn) > 127


def _grown(mask: Any, pixels: int) -> Any:
    import cv2

    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1,) * 2, np.uint8)) > 0


if __name__ == "__main__":
    main()
