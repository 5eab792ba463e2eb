"""A step's model on its way to disk and back: safetensors bytes and a description, both checked on loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from replaygen.errors import ModelError
from replaygen.learn.networks import SegNet, build_network
from replaygen.learn.specs import NetworkSpec

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A trained step.

    Attributes:
        tensors: a safetensors file; an always-frozen encoder is left out.
        info: JSON-able: format, names (of the channels), channels, step, new, old (channels), network
            (`NetworkSpec.identity()`), and what a trainer adds.
        state: a safetensors file of what a method carries from step to step (prototypes, statistics), or None.
    """

    tensors: bytes
    info: dict[str, Any]
    state: bytes | None = None

    def carried(self) -> dict[str, Tensor]:
        """The tensors of `state`, by name; empty where there is none.

        Raises:
            ModelError: they are no safetensors, or hold NaN or infinity.
        """
        if self.state is None:
            return {}
        where = f"carried state of step {self.info.get('step', '?')}"
        found = _loaded(self.state, where)
        _refuse_not_finite(found, where)
        return found


def save_checkpoint(net: SegNet, info: Mapping[str, Any], state: Mapping[str, Tensor] | None = None) -> Checkpoint:
    """The network's tensors and `info` (names, step, network at least) as a checkpoint; equal networks, equal bytes.

    `state`: tensors that the method wants back at the next step.

    Raises:
        ModelError: a tensor holds NaN or infinity, or `info` lacks something.
    """
    from safetensors.torch import save

    for needed in ("names", "step", "network"):
        if needed not in info:
            raise ModelError(f"a checkpoint needs {needed!r}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.saved_tensors().items()}
    _refuse_not_finite(tensors, "the trained network")
    told = {**info, "format": FORMAT, "channels": net.channels}
    _check_names(told, "the trained network")
    carried = {name: tensor.detach().cpu().contiguous() for name, tensor in (state or {}).items()}
    _refuse_not_finite(carried, "the method's own state")
    return Checkpoint(save(tensors), told, save(carried) if carried else None)


def load_network(
    tensors: bytes,
    info: Mapping[str, Any],
    spec: NetworkSpec,
    *,
    names: Sequence[str] | None = None,
    step: int | None = None,
) -> SegNet:
    """The network of a checkpoint, in evaluation mode on the CPU.

    Args:
        tensors: safetensors bytes.
        info: the description saved with them.
        spec: the network they must belong to.
        names: the channels' names that are expected, where the caller knows them.
        step: the step that is expected, where the caller knows it.

    Raises:
        ModelError: another network, other classes, another step, missing or extra tensors, shapes, NaN or infinity.
    """
    where = f"checkpoint of step {info.get('step', '?')}"
    _check_names(info, where)
    if names is not None and list(info["names"]) != list(names):
        raise ModelError(
            f"the model knows other classes: {_difference(info['names'], names)}",
            where=where, hint="a model of another scenario or class order cannot be continued",
        )  # fmt: skip
    if step is not None and info.get("step") != step:
        raise ModelError(
            f"the model is of step {info.get('step')}, expected step {step}",
            where=where, hint="it is stale; run the recipe again",
        )  # fmt: skip
    identity = spec.identity()
    if info.get("network") != identity:
        told = info.get("network") or {}
        odd = sorted(key for key in {*told, *identity} if told.get(key) != identity.get(key))
        raise ModelError(
            f"the model was trained with another network; these differ: {', '.join(odd)}", where=where,
            hint="use the recipe's [network] that it was trained with",
        )  # fmt: skip
    loaded = _loaded(tensors, where)
    net = build_network(spec, int(info["channels"]), seed=0)
    _fill(net, loaded, where)
    net.at_step(int(info["step"]))
    return net.eval()


def _loaded(data: bytes, where: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"not a safetensors file ({error})", where=where, hint="the file is damaged") from None


def _fill(net: SegNet, loaded: dict[str, Tensor], where: str) -> None:
    wanted = net.saved_tensors()
    odd = sorted(set(wanted) ^ set(loaded))
    if odd:
        word = "missing" if odd[0] in wanted else "unknown"
        raise ModelError(f"{len(odd)} tensors do not fit; {odd[0]!r} is {word}", where=where)
    for name, tensor in loaded.items():
        if tensor.shape != wanted[name].shape or tensor.dtype != wanted[name].dtype:
            raise ModelError(
                f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}, expected {wanted[name].dtype} "
                f"{tuple(wanted[name].shape)}",
                where=where,
            )
    _refuse_not_finite(loaded, where)
    with torch.no_grad():
        for name, tensor in loaded.items():
            wanted[name].copy_(tensor)


def _refuse_not_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"tensor {name!r} holds NaN or infinity", where=where, hint="a lower learning rate?")


def _check_names(info: Mapping[str, Any], where: str) -> None:
    if info.get("format") != FORMAT:
        raise ModelError(f"unknown checkpoint format {info.get('format')!r}", where=where)
    names, channels = info.get("names"), info.get("channels")
    if not isinstance(names, (list, tuple)) or not isinstance(channels, int) or len(names) != channels:
        raise ModelError(f"{channels} channels and {len(names or ())} class names do not agree", where=where)
    if not isinstance(info.get("step"), int):
        raise ModelError("the checkpoint does not say its step", where=where)


def _difference(given: Sequence[str], expected: Sequence[str]) -> str:
    for index, (mine, wanted) in enumerate(zip(given, expected, strict=False)):
        if mine != wanted:
            return f"channel {index} is {mine!r}, expected {wanted!r}"
    return f"{len(given)} channels, expected {len(expected)}"
