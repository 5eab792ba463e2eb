"""ILT: incremental learning techniques, four distillations and three ways of freezing, to combine.

    L = CE(z, y) + output L'_D + feature L''_D + decoder L_dec + similarity L_SP

    L'_D   soft labels of the previous model: "lwf" -(1/V) sum_{c<V} q'_c log softmax(z_{<V})_c (the port of later
           tables), "soft" -sum_{c<V} q'_c log softmax(z)_c (the original), "temperature" both sides at T
    L''_D  mean squared error of F and F', the encoder's output
    L_dec  the same of every map of the decoder, averaged
    L_SP   ||G - G'||_F^2 / B^2, G the row-normalised similarities of the batch's features

The defaults are the row "ILT" of later tables, CE + 100 KD + 100 MSE; the paper's own are output = 1 (kind "soft",
pixels "old_or_background") or feature = 50. Michieli & Zanuttigh, ICCVW 2019 and CVIU 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from replaygen.learn import (
    Batch,
    Checkpoint,
    Prediction,
    Samples,
    StepJob,
    cross_entropy,
    decoder_distillation,
    feature_distillation,
    ilt_pixels,
    lwf_distillation,
    similarity_distillation,
    soft_cross_entropy,
    temperature_distillation,
)

TRAITS = {"replay": "optional", "inpaint": False, "data": "step"}


@dataclass(frozen=True)
class Options:
    """What ILT can vary; a weight of 0 leaves a loss out.

    output: weight of L'_D; output_kind: its form; temperature: its T; pixels: where it is taken.
    feature: weight of L''_D. decoder: weight of L_dec. similarity: weight of L_SP.
    freeze: what stands still after step 0: "none", "encoder" (E_F) or "first", its first layers (E_LF).
    init: rows of new classes: "random", "copy" (the background's) or "balanced" (the background's, as in MiB).
    r_new, r_old: parts of a mini-batch that are current and replay, where there is replay.
    """

    output: float = 100.0
    output_kind: Literal["lwf", "soft", "temperature"] = "lwf"
    temperature: float = 2.0
    pixels: Literal["all", "old_or_background", "old"] = "all"
    feature: float = 100.0
    decoder: float = 0.0
    similarity: float = 0.0
    freeze: Literal["none", "first", "encoder"] = "none"
    init: Literal["random", "balanced", "copy"] = "random"
    r_new: float = 1.0
    r_old: float = 1.0


def step(k: int, current: Samples, buffer: Samples | None, previous: Checkpoint | None, job: StepJob) -> Checkpoint:
    """Train the previous network on the current samples, held to its old outputs and features."""
    options: Options = job.options or Options()
    net, teacher = job.network(previous, options.init), job.teacher(previous)
    if previous is not None:
        net.hold(options.freeze)

    def loss(said: Prediction, batch: Batch) -> Tensor:
        total = cross_entropy(said.logits, batch.masks, weight=job.class_weights(batch.progress))
        return total if teacher is None else total + distilled(said, teacher(batch), batch, job.new, options)

    return job.finish(net, job.train(net, job.batches(current, buffer, options.r_new, options.r_old), loss))


def distilled(said: Prediction, before: Prediction, batch: Batch, new: tuple[int, ...], options: Options) -> Tensor:
    """The weighted sum of the distillations that are asked for."""
    total = said.logits.new_zeros(())
    if options.output:
        pixels = ilt_pixels(batch.masks, before.logits, new, options.pixels)
        if options.output_kind == "lwf":
            output = lwf_distillation(said.logits, before.logits, pixels=pixels)
        elif options.output_kind == "soft":
            output = soft_cross_entropy(said.logits, before.logits, pixels=pixels)
        else:
            output = temperature_distillation(said.logits, before.logits, options.temperature, pixels=pixels)
        total = total + options.output * output
    if options.feature:
        total = total + options.feature * feature_distillation(said.features, before.features)
    if options.decoder:
        total = total + options.decoder * decoder_distillation(said.decoded, before.decoded)
    if options.similarity:
        total = total + options.similarity * similarity_distillation(said.features, before.features)
    return total
