"""What a worker holds between tasks: opened data sets, cut scenarios, and one model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaygen.canonical import digest_of
from replaygen.errors import DataError, ModelError
from replaygen.holding import HELD
from replaygen.stages.base import Inputs, Out
from replaygen.store import Record, fsops

if TYPE_CHECKING:
    from torch import Tensor

    from replaygen.datasets import SegmentationDataset
    from replaygen.learn import FeatureFile, NetworkSpec, SegNet
    from replaygen.scenario import Scenario


@lru_cache(maxsize=4)
def _dataset(data: str, digest: str) -> SegmentationDataset:
    from replaygen.datasets import open_dataset

    about = json.loads(data)
    dataset = open_dataset(about["kind"], about["path"], cache_dir=about["cache_dir"], **about["options"])
    if dataset.digest != digest:
        raise DataError(
            "the data set changed after the plan was made", where=str(about["path"]), hint="run the recipe again"
        )
    return dataset


@lru_cache(maxsize=4)
def _scenario(data: str, digest: str, cut: str, scenario_digest: str) -> Scenario:
    from replaygen.scenario import make_scenario

    scenario = make_scenario(_dataset(data, digest), **json.loads(cut))
    if scenario.digest != scenario_digest:
        raise DataError("the scenario is not the one that was planned", hint="run the recipe again")
    return scenario


def open_dataset_of(where: Mapping[str, Any], digest: str) -> SegmentationDataset:
    """The data set that a task was planned with; refused where it is no longer the same."""
    return _dataset(json.dumps(where["data"], sort_keys=True), digest)


def open_current(
    where: Mapping[str, Any], dataset_digest: str, scenario_digest: str
) -> tuple[SegmentationDataset, Scenario]:
    """The data set and scenario that a task was planned with; refused where either is no longer the same."""
    data, cut = json.dumps(where["data"], sort_keys=True), json.dumps(where["scenario"], sort_keys=True)
    return _dataset(data, dataset_digest), _scenario(data, dataset_digest, cut, scenario_digest)


working = HELD.working
"""Around each task that a process does: what it holds is freed `HELD.idle` seconds after the last, never inside."""

_MODELS = 3
"""Models held at once, while the memory allows: a step's model, and the helper that labels beside it."""


def network_spec(where: Mapping[str, Any]) -> NetworkSpec:
    """The network's specification, with the paths that only this machine knows."""
    from replaygen.learn import NetworkSpec

    return NetworkSpec.model_validate(where["network"])


def device_of(where: Mapping[str, Any]) -> str:
    """The device a task runs on: "auto" is CUDA where there is one."""
    import torch

    device = str(where.get("device", "auto"))
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def encoder_of(where: Mapping[str, Any]) -> SegNet:
    """A network whose frozen encoder is the recipe's; its head is never asked."""
    device = device_of(where)

    def build() -> SegNet:
        from replaygen.learn import build_network

        return build_network(network_spec(where), channels=2, seed=0).to(device).eval()

    return HELD.hold("encoder", (json.dumps(where["network"], sort_keys=True), device), build)


def open_model(inputs: Inputs, record: Record) -> tuple[SegNet, dict[str, Any]]:
    """The model a train task made, and its information; the last few are held in the process.

    Returns:
        the network in evaluation mode on the task's device, and the JSON written beside its weights.
    """
    device = device_of(inputs.where)

    def load() -> tuple[SegNet, dict[str, Any]]:
        from replaygen.learn import load_network

        info = inputs.read_json(record, "model.json")
        net = load_network(inputs.read(record, "model.safetensors"), info, network_spec(inputs.where))
        return net.to(device).eval(), info

    name = (record.output("model.safetensors").digest, record.output("model.json").digest, device)
    return HELD.hold("network", name, load, most=_MODELS)


def open_helper(inputs: Inputs, record: Record) -> tuple[SegNet, dict[str, Any]]:
    """A helper decoder, as `open_model`; `info["channels_of"]` lists the scenario's channels of its outputs 1, 2, ...

    Raises:
        ModelError: it is no helper, or its outputs and channels do not agree.
    """
    net, info = open_model(inputs, record)
    if len(info.get("channels_of", ())) != net.channels - 1:
        raise ModelError("not a helper decoder: its channels are not told", where=f"record {record.key[:12]}")
    return net, info


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra of numpy on one thread: sums then come in one order, here and on a worker."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


@contextmanager
def on_this_machine() -> Iterator[None]:
    """What only the machine that runs a task can know, as errors with a way out: a missing package, a full GPU.

    Raises:
        ModelError: either.
    """
    import torch

    try:
        yield
    except ModuleNotFoundError as error:
        raise ModelError(
            f"the package {error.name} is not installed where this task runs",
            hint="pip install 'replaygen[biggan,diffusion]' there",
        ) from None
    except torch.cuda.OutOfMemoryError:
        raise ModelError("the GPU's memory is full", hint="lower the source's `batch`, or a fit's `batch`") from None


def fit_folder(inputs: Inputs, out: Out) -> Path:
    """Where checkpoints of a task's fit lie: a fit of other bytes, or of another torch, begins anew."""
    import torch

    folder = out.partial() / digest_of([sorted(inputs.read_digests.items()), str(torch.__version__)])[:16]
    fsops.make_folder(folder)
    return folder


class Features:
    """Cached features of some shards, read view by view from the objects themselves; false where there are none."""

    def __init__(self, inputs: Inputs, digests: Iterable[str]) -> None:
        from replaygen.learn import FeatureFile

        self._of: dict[str, FeatureFile] = {}
        for digest in digests:
            file = FeatureFile(inputs.open_object(digest))
            self._of.update(dict.fromkeys(file.ids, file))

    @classmethod
    def of(cls, inputs: Inputs) -> Features:
        """Those of a task's inputs that play the role "features"."""
        return cls(inputs, [record.output("features.safetensors").digest for record in inputs.records("features")])

    def __bool__(self) -> bool:
        return bool(self._of)

    def read(self, sample: str, view: int) -> tuple[Tensor, ...]:
        """float16 [D, h, w] for each tap of one view of a sample."""
        return self._of[sample].read(sample, view)
