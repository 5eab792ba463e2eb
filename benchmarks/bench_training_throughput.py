"""What the fit loop costs beside forward, backward and step.

The bare loop runs the same network, loss and optimizer over eight batches that lie ready on the device, float32, and
does nothing else. The whole loop is `fit`: it reads features, masks and images as a training does (files, decoding,
views, the cache in RAM, which is cold at first), shifts, seeds, schedules, counts, logs, and writes checkpoints. The
two take turns every ten iterations, so that what else the machine does slows both; a share is that of a whole fit, and
the figure the median over fits.

Settings:
    cached_features: the head of `pipelines/voc-animals-web.toml` on random features of its shapes; 400 samples of 4
        views in 100 iterations, so that two in three (sample, view) pairs are read anew, as in that recipe's steps.
    small_images: the network of `pipelines/digits.toml` on 64 x 64 pictures from PNG files.
    large_images_bf16 (CUDA only): a network of widths 64 to 512 on 256 x 256 pictures, mixed precision.

Figures:
    share_of_bare_step: the lowest of the settings' shares: images/s of the whole loop over those of the bare loop.
    loader_wait_share: the highest of their wait shares: time in which the loop waited for a batch, of all its time.
    settings: for each the same two, images/s, every fit's share, the share by processor time (of all threads), and
        seconds of one checkpoint; with CUDA also `share_of_peak`: floating-point operations a second of the whole loop
        over those of a large bfloat16 product.
    cached_features_no_loader: the first setting without the thread that makes batches ahead.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import QUICK, fresh_folder, write
from torch import nn

from replaygen.learn import (
    FeatureFile,
    FitOptions,
    MixedBatches,
    NetworkSpec,
    Samples,
    SegNet,
    ViewSpec,
    build_network,
    cross_entropy,
    feature_item,
    features_to_bytes,
    fit,
    image_item,
)
from replaygen.learn.fitting import Event, pick_device
from replaygen.learn.heads import AsppHead
from replaygen.learn.optimise import make_optimizer
from replaygen.learn.partial import FitState, PartialFolder, pack
from replaygen.learn.precision import Precision
from replaygen.runs.execute import _keep_memory
from replaygen.sample import decode_image, decode_mask, encode_png

ROUNDS = 1 if QUICK else 3
TURN = 4 if QUICK else 10
TAPS = ((32, 24, 24), (96, 12, 12), (256, 12, 12))
FILES = 8 if QUICK else 100


@dataclass(frozen=True)
class Setting:
    """A fit to be timed; `batches` makes its batches with nothing in RAM yet."""

    net: SegNet
    batches: Callable[[], MixedBatches]
    options: FitOptions


def cached_features(folder: Path, **how: Any) -> Setting:
    """A frozen encoder: the head learns from features in one file, masks are PNG bytes."""
    iterations = 4 if QUICK else 100
    dice = np.random.default_rng(0)
    path = folder / "features.safetensors"
    if not path.exists():
        path.write_bytes(features_to_bytes({
            f"s{i}": tuple(torch.from_numpy(dice.standard_normal((4, *tap)).astype(np.float16)) for tap in TAPS)
            for i in range(FILES)
        }))  # fmt: skip
    file = FeatureFile(path)
    masks = [encode_png(blocks(dice, 256, 192, 6)) for _ in range(FILES)]
    views = ViewSpec(size=192, count=4, crop=(0.5, 1.0), jitter=0.25, label_size=48)
    items = [
        feature_item(
            f"{kind}{part}-{i}", (1, 2, 3, 4, 5), kind == "replay", lambda v, i=i: file.read(f"s{i}", v),
            lambda i=i: decode_mask(masks[i]), views, 1 + i % 5,
        )
        for kind, parts in (("current", 1), ("replay", 3)) for part in range(parts) for i in range(FILES)
    ]  # fmt: skip
    torch.manual_seed(0)
    head = AsppHead(tuple(tap[0] for tap in TAPS), 6, width=128, rates=(1, 3), dropout=0.3)
    options = FitOptions(
        iterations=iterations, batch=16, optimizer="adamw", lr=0.003, weight_decay=0.01, schedule="cosine", warmup=20,
        log_every=TURN, **how,
    )  # fmt: skip
    current, replay = items[:FILES], items[FILES:]
    return Setting(
        SegNet(nn.Identity(), head, 6, freeze="always"),
        lambda: MixedBatches(
            Samples(current), Samples(replay), batch=16, seed=1, iterations=iterations, channels=6, r_old=3.0
        ),
        options,
    )


def images(side: int, widths: tuple[int, ...], iterations: int, batch: int, **how: Any) -> Setting:
    """Everything learns, from pictures and masks that are PNG bytes."""
    count = 4 * batch if QUICK else 30 * batch
    dice = np.random.default_rng(1)
    masks = [blocks(dice, side, side, 11) for _ in range(count)]
    pictures = [encode_png(np.repeat(mask[:, :, None] * 20, 3, axis=2)) for mask in masks]
    labels = [encode_png(mask) for mask in masks]
    items = [
        image_item(
            f"s{i}", tuple(range(1, 11)), i >= count // 2,
            lambda i=i: (decode_image(pictures[i]), decode_mask(labels[i])), ViewSpec(size=side), 1 + i % 10,
        )
        for i in range(count)
    ]  # fmt: skip
    options = FitOptions(
        iterations=iterations, batch=batch, optimizer="adamw", lr=0.003, weight_decay=0.01, schedule="cosine",
        warmup=20, shift=4, log_every=TURN, **how,
    )  # fmt: skip
    return Setting(
        build_network(NetworkSpec(widths=widths), 11, 0),
        lambda: MixedBatches(
            Samples(items[: count // 2]), Samples(items[count // 2 :]), batch=batch, seed=1, iterations=iterations,
            channels=11,
        ),
        options,
    )  # fmt: skip


def blocks(dice: np.random.Generator, height: int, width: int, channels: int) -> Any:
    """A mask of a few rectangles: uint8 [height, width]."""
    mask = np.zeros((height, width), np.uint8)
    for _ in range(4):
        top, left = dice.integers(0, height // 2), dice.integers(0, width // 2)
        mask[top : top + height // 3, left : left + width // 3] = dice.integers(1, channels)
    return mask


def loss(said: Any, batch: Any) -> torch.Tensor:
    """Plain cross-entropy."""
    return cross_entropy(said.logits, batch.masks)


def bare(setting: Setting, device: torch.device) -> Callable[[int], None]:
    """The bare loop, ready to be run for some iterations."""
    net = copy.deepcopy(setting.net).to(device, memory_format=torch.channels_last).train()
    optimizer, precision = make_optimizer(net, setting.options), Precision.of(setting.options, device)
    batches = setting.batches()
    resident = [batches[t].to(device) for t in range(min(8, len(batches)))]
    inputs = [
        tuple(feature.float() for feature in batch.features)
        if batch.features is not None
        else batch.images.contiguous(memory_format=torch.channels_last)
        for batch in resident
    ]

    def run(iterations: int) -> None:
        for t in range(iterations):
            batch, held = resident[t % len(resident)], inputs[t % len(resident)]
            optimizer.zero_grad(set_to_none=True)
            with precision.autocast():
                features = held if batch.features is not None else net.encode(held)
                said = net.predicted(features, tuple(batch.masks.shape[1:]))
            precision.scaled(loss(said, batch)).backward()
            precision.step(optimizer)

    return run


@dataclass
class Turns:
    """A log of a fit that runs the bare loop whenever progress is told: its clock and processor seconds."""

    loop: Callable[[int], None]
    device: torch.device
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __call__(self, event: Event) -> None:
        if event["event"] != "progress":
            return
        wait_for(self.device)
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)
        began, cpu_began = time.perf_counter(), time.process_time()
        self.loop(TURN)
        wait_for(self.device)
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - cpu_began
        torch.use_deterministic_algorithms(before)


def compared(setting: Setting, device: torch.device, folder: Path) -> dict[str, Any]:
    """Fits whose iterations take turns with the bare loop, and the medians over them."""
    loop = bare(setting, device)
    loop(3)
    shares, cpu_shares, waits, rates = [], [], [], []
    for number in range(ROUNDS):
        turns = Turns(loop, device)
        net, batches = copy.deepcopy(setting.net), setting.batches()
        cpu_began = time.process_time()
        result = fit(net, batches, loss, setting.options, 0, folder / str(number), turns, device)
        seconds = result.seconds - turns.seconds
        rates.append(len(result.losses) * setting.options.batch / seconds)
        shares.append(turns.seconds / seconds)
        cpu_shares.append(turns.cpu_seconds / (time.process_time() - cpu_began - turns.cpu_seconds))
        waits.append(result.wait_seconds / seconds)
    return {
        "share_of_bare_step": round(statistics.median(shares), 4),
        "share_by_processor_time": round(statistics.median(cpu_shares), 4),
        "loader_wait_share": round(statistics.median(waits), 4),
        "images_per_second": round(statistics.median(rates), 1),
        "rounds": [round(share, 3) for share in shares],
        "checkpoint_seconds": round(checkpoint_seconds(setting, folder / "checkpoint"), 4),
    }


def checkpoint_seconds(setting: Setting, folder: Path) -> float:
    """Median time of writing one durable checkpoint with the optimizer's state."""
    net = copy.deepcopy(setting.net)
    optimizer = make_optimizer(net, setting.options)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    place = PartialFolder(folder, "bench", print)
    taken = []
    for iteration in range(3):
        began = time.perf_counter()
        place.save(FitState(iteration, pack(net.saved_tensors(), optimizer, {}), {}))
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def on_cuda(device: torch.device, folder: Path) -> dict[str, Any]:
    """Mixed precision on a network large enough to fill a GPU, and how much of its peak that is."""
    from torch.utils.flop_counter import FlopCounterMode

    side, widths, batch = (32, (8, 16), 4) if QUICK else (256, (64, 128, 256, 512), 32)
    setting = images(side, widths, 8 if QUICK else 200, batch, precision="bf16")
    told = compared(setting, device, folder)
    net = copy.deepcopy(setting.net).to(device).train()
    held = setting.batches()[0].to(device)
    with FlopCounterMode(display=False) as counter:
        loss(net.predicted(net.encode(held.images), (side, side)), held).backward()
    rate = counter.get_total_flops() / batch * told["images_per_second"]
    return {**told, "share_of_peak": round(rate / peak(device), 4)}


def peak(device: torch.device) -> float:
    """Floating-point operations a second of a large bfloat16 matrix product."""
    side = 256 if QUICK else 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        wait_for(device)
        began = time.perf_counter()
        for _ in range(10):
            torch.mm(a, b)
        wait_for(device)
        best = max(best, 10 * 2 * side**3 / (time.perf_counter() - began))
    return best


def wait_for(device: torch.device) -> None:
    """Let a GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure and write `training-throughput.json`."""
    _keep_memory()  # as every training stage does
    torch.set_num_threads(1)
    device = pick_device("auto")
    with fresh_folder() as folder:
        settings = {
            "cached_features": compared(cached_features(folder), device, folder / "features"),
            "small_images": compared(images(64, (24, 48, 64), 8 if QUICK else 150, 16), device, folder / "images"),
        }
        alone = compared(cached_features(folder, loaders=0), device, folder / "alone")
        if device.type == "cuda":
            settings["large_images_bf16"] = on_cuda(device, folder / "large")
        else:
            print("no CUDA device: mixed precision and the share of its peak are not measured")
    write(
        "training-throughput",
        {
            "share_of_bare_step": min(told["share_of_bare_step"] for told in settings.values()),
            "loader_wait_share": max(told["loader_wait_share"] for told in settings.values()),
            "settings": settings,
            "cached_features_no_loader": alone,
        },
    )


if __name__ == "__main__":
    main()
