"""Checkpoints of a running fit: hashed, written atomically, the last two kept, damaged ones passed over."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from replaygen import modes
from replaygen.errors import StoreError

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"fit-(\d{8})\.json")


@dataclass(frozen=True)
class FitState:
    """Where a fit stands: `iteration` batches were used; `tensors` by name, `told` JSON-able."""

    iteration: int
    tensors: dict[str, Tensor]
    told: dict[str, Any]


class PartialFolder:
    """The folder in which one fit keeps its checkpoints.

    Args:
        path: the folder; made if it is not there.
        fit_id: what the fit is; checkpoints of another fit are not continued.
        warn: gets a sentence about every checkpoint that is passed over.

    Raises:
        StoreError: the folder cannot be made or written.
    """

    def __init__(self, path: Path, fit_id: str, warn: Callable[[str], None]) -> None:
        self.path = path
        self.fit_id = fit_id
        self.warn = warn
        with self._writing():
            path.mkdir(parents=True, exist_ok=True)
            for left in path.glob("*.tmp"):  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)
            self._write("probe", b"")
            (path / "probe").unlink()

    def save(self, state: FitState) -> None:
        """Make `state` durable, then drop all but the newest two.

        Raises:
            StoreError: it could not be written; a failed save is never silent.
        """
        from safetensors.torch import save

        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()})
        stem = f"fit-{state.iteration:08d}"
        payload = {
            "format": FORMAT, "fit": self.fit_id, "iteration": state.iteration, "told": state.told,
            "tensors_sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
        }  # fmt: skip
        text = json.dumps({"payload": payload, "sha256": _digest(payload)}, sort_keys=True).encode()
        with self._writing():
            self._write(f"{stem}.safetensors", data)
            self._write(f"{stem}.json", text)  # the JSON is last: without it the tensors do not count
            for old in self._iterations()[:-KEPT]:
                (self.path / f"fit-{old:08d}.json").unlink(missing_ok=True)
                (self.path / f"fit-{old:08d}.safetensors").unlink(missing_ok=True)

    def newest(self) -> FitState | None:
        """The newest checkpoint of this fit whose bytes are what was written; None where there is none."""
        for iteration in reversed(self._iterations()):
            try:
                return self._read(iteration)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                self.warn(f"checkpoint at iteration {iteration} is not used: {error}; taking the one before")
        return None

    def clear(self) -> None:
        """Remove the checkpoints, once what they led to is safe elsewhere."""
        for iteration in self._iterations():
            (self.path / f"fit-{iteration:08d}.json").unlink(missing_ok=True)
            (self.path / f"fit-{iteration:08d}.safetensors").unlink(missing_ok=True)

    def _read(self, iteration: int) -> FitState:
        from safetensors import SafetensorError
        from safetensors.torch import load

        stem = f"fit-{iteration:08d}"
        held = json.loads((self.path / f"{stem}.json").read_bytes())
        payload = held["payload"]
        if held["sha256"] != _digest(payload) or payload["iteration"] != iteration:
            raise ValueError("its description is damaged")
        if payload["format"] != FORMAT or payload["fit"] != self.fit_id:
            raise ValueError("it belongs to another fit")
        data = (self.path / f"{stem}.safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != payload["tensors_sha256"]:
            raise ValueError("its tensors are damaged")
        try:
            return FitState(iteration, load(data), payload["told"])
        except SafetensorError as error:
            raise ValueError(f"its tensors cannot be read: {error}") from None

    def _iterations(self) -> list[int]:
        matches = (_NAME.fullmatch(path.name) for path in self.path.iterdir())
        return sorted(int(match[1]) for match in matches if match is not None)

    def _write(self, name: str, data: bytes) -> None:
        temporary = self.path / f"{name}.{os.getpid()}.tmp"
        with temporary.open("wb") as file:
            modes.like_folder(file.fileno(), self.path)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, self.path / name)
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _writing(self) -> Any:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot write training checkpoints: {error.strerror or error}",
                where=str(self.path), hint="free space, or make the folder writable; the fit resumes where it stopped",
            ) from None  # fmt: skip


def pack(
    model: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, average: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Model, optimizer and averaged weights as named tensors."""
    tensors = {f"model/{name}": tensor for name, tensor in model.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value)
    return tensors


def unpack(
    tensors: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> None:
    """The inverse of `pack`, into an equal model, optimizer and average.

    Raises:
        ValueError: names or shapes differ.
    """
    for prefix, into in (("model/", model), ("average/", average)):
        named = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if set(named) != set(into) or any(named[name].shape != into[name].shape for name in named):
            raise ValueError("it belongs to another network")
        with torch.no_grad():
            for name, tensor in named.items():
                into[name].copy_(tensor)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, held in optimizer.state.items():
        for key, value in held.items():
            if value.shape == parameter.shape:  # a fused step reads memory in the parameter's own order
                held[key] = torch.empty_like(parameter).copy_(value)


def _digest(payload: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True, allow_nan=False).encode()).hexdigest()
