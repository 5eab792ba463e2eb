"""The stage that takes a user's own step-0 model in, checked as strictly as one that was trained here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaygen.errors import ModelError
from replaygen.stages.base import Inputs, Out, Stage
from replaygen.stages.context import network_spec

TENSORS, INFO = "model.safetensors", "model.json"


@dataclass(frozen=True)
class GivenParams:
    """tensors, info: sha256 of the two files; names: the channels it must know."""

    tensors: str
    info: str
    names: tuple[str, ...]
    network: dict[str, Any]


class GivenStage(Stage[GivenParams]):
    """A folder with model.safetensors and model.json -> the same, as the model of step 0."""

    name = "given-base"
    version = 1
    modules = ("replaygen.learn.checkpoint",)
    seconds_per_sample = 1.0
    bytes_per_sample = 10_000_000
    heavy = True
    Params = GivenParams

    def run(self, params: GivenParams, inputs: Inputs, out: Out) -> None:
        """Load it strictly (names, step, network, shapes, NaN), then store it."""
        from replaygen.learn import load_network

        folder = Path(inputs.where["folder"])
        tensors, info = (folder / TENSORS).read_bytes(), (folder / INFO).read_bytes()
        if (digest(tensors), digest(info)) != (params.tensors, params.info):
            raise ModelError(
                "the model changed after the plan was made", where=str(folder), hint="run the recipe again"
            )
        told = json.loads(info)
        load_network(tensors, told, network_spec(inputs.where), names=params.names, step=0)
        out.put(TENSORS, tensors)
        out.put_json(INFO, told)
        out.accept()


def read_given(folder: Path, names: Sequence[str], network: dict[str, Any]) -> GivenParams:
    """Look at a user's step-0 model without loading it.

    Args:
        folder: holds model.safetensors and model.json, as `replaygen train --save` writes them.
        names: the channels that the scenario's step 0 has.
        network: the recipe's network identity.

    Raises:
        ModelError: missing, of another step, of other classes, or of another network; names the file and the way out.
    """
    try:
        tensors, info = (folder / TENSORS).read_bytes(), (folder / INFO).read_bytes()
        told = json.loads(info)
        step, known, trained_as = told["step"], list(told["names"]), told["network"]
        _ = told["new"], told["format"], told["channels"]
    except OSError as error:
        raise ModelError(
            f"cannot read the step-0 model: {error.strerror}", where=str(error.filename),
            hint=f"a folder with {TENSORS} and {INFO}, as `replaygen train --save` writes it",
        ) from None  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"not the description of a model ({error})",
            where=str(folder / INFO),
            hint="it needs step, names, new, network, channels and format",
        ) from None
    if step != 0:
        raise ModelError(
            f"the model is of step {step}", where=str(folder / INFO), hint="train.base_model takes a model of step 0"
        )
    if known != list(names):
        raise ModelError(
            f"the model knows {', '.join(known)}; step 0 of this scenario has {', '.join(names)}",
            where=str(folder / INFO), hint="give scenario.task and scenario.classes in the model's own order",
        )  # fmt: skip
    if trained_as != network:
        odd = sorted(key for key in {*trained_as, *network} if trained_as.get(key) != network.get(key))
        raise ModelError(
            f"the model has another network: {', '.join(odd)}", where=str(folder / INFO),
            hint="use the [network] it was trained with",
        )  # fmt: skip
    return GivenParams(digest(tensors), digest(info), tuple(names), network)


def digest(data: bytes) -> str:
    """sha256 of some bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
