"""The parts of a recipe that say how a run trains, and the checks that all its tables share."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from replaygen.crawl.specs import CrawlHow
from replaygen.inpainters.specs import EraseSpec
from replaygen.learn.specs import FitOptions

InpaintMode = Literal["argmax", "confidence", "entropy", "pixels"]
"""Background inpainting: RECALL's, with a threshold, with PLOP's, or by erasing old objects from the image."""


class Table(BaseModel):
    """A table of a recipe: unknown keys are refused, values are checked, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class RelabelTable(Table):
    """Background inpainting of the current labels; a row's `inpaint` may name another mode than this one."""

    mode: InpaintMode = Field(
        default="argmax", description="RECALL's; the same without doubtful pixels; PLOP's; or erase objects from images"
    )
    unsure: float = Field(default=0.7, ge=0.0, lt=1.0, description="confidence: what is less probable is ignored")
    floor: float = Field(default=0.001, ge=0.0, lt=1.0, description="entropy: least limit, on PLOP's scale")
    erase: EraseSpec = Field(default_factory=EraseSpec, description="pixels: how old objects are erased")
    flip: bool = Field(default=False, description="predict with the mean of each view and its mirror image")
    looks: int = Field(default=1, ge=1, description="predict with the mean of the first n fixed views")

    @model_validator(mode="after")
    def _erases_objects(self) -> RelabelTable:
        for name in ("others", "unsure", "text"):
            if getattr(self.erase, name) != EraseSpec.model_fields[name].default:
                raise ValueError(
                    f"relabel.erase takes no `{name}`: it erases what the previous model sees of old classes"
                )
        return self


class KnowledgeTable(Table):
    """Knowledge inpainting of older replay labels, by the helper of the step that learns now."""

    unsure: float = Field(default=0.7, ge=0.0, lt=1.0, description="what is less probable is ignored, not filled")
    flip: bool = Field(default=False, description="predict with the mean of each view and its mirror image")
    looks: int = Field(default=1, ge=1, description="predict with the mean of the first n fixed views")


class MethodTable(BaseModel):
    """One row of the comparison: a trainer, its replay, and what it changes in `[train]` or in its own options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_.+-]{1,60}$", description="the row's name in tables")
    trainer: str = Field(description="a method of `trainers/` by name, or the path of a file")
    replay: str | None = Field(default=None, description="the [replay.NAME] whose samples are mixed into its batches")
    inpaint: bool | InpaintMode | None = Field(
        default=None, description="true: as [relabel] mode says; false; or a mode. Default: what the method asks for"
    )
    knowledge: bool | None = Field(
        default=None, description="older replay labels receive the classes being learnt; default: the method's"
    )
    ahead: bool = Field(default=False, description="replay of the classes being learnt too, labelled by a helper")


QUEUES = ("slurm", "pbs", "lsf", "sge", "oar", "moab", "htcondor")
"""Batch systems that Dask workers can be asked of, by dask-jobqueue's names."""


class TlsTable(Table):
    """Files of a cluster's TLS: who has a certificate of this authority may connect, nobody else."""

    ca: str = Field(description="certificates of the authority that signed everybody's of this cluster")
    cert: str = Field(description="the certificate that this side shows")
    key: str = Field(description="its private key; for your eyes only")


class RunTable(Table):
    """How, not what: in no key."""

    workers: int = Field(default=0, ge=0, description="0: in this process; n: n Dask worker processes")
    cluster: str = Field(
        default="local", description="local, a batch system, or the tcp:// or tls:// address of a running Dask cluster"
    )
    adapt: tuple[int, int] | None = Field(default=None, description="fewest and most workers, as there is work")
    memory: str | None = Field(
        default=None,
        pattern=r"^\d+(\.\d+)? ?([kKMGT]i?)?B$",
        description='of one worker, such as "4GB"; default: no limit',
    )
    tls: TlsTable | None = None
    job: dict[str, Any] = Field(default_factory=dict, description="handed to dask-jobqueue as it is")
    dashboard: bool = Field(default=True, description="Dask's dashboard, on this machine's loopback, and its report")
    insecure: bool = Field(default=False, description="allow Dask without TLS between machines")
    idle: float = Field(default=60.0, ge=0, description="seconds after which a worker without work frees its models")
    store: str | None = Field(default=None, description="the store: a folder or s3://bucket/prefix")
    retries: int = Field(default=2, ge=0, description="times that a failed task is tried again, where that can help")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: CUDA where there is one")
    tensorboard: str | None = Field(default=None, description="a folder for TensorBoard: curves, some predictions")
    crawl: CrawlHow = Field(default_factory=CrawlHow)

    @model_validator(mode="before")
    @classmethod
    def _old_name(cls, given: Any) -> Any:
        if isinstance(given, dict) and "scheduler" in given:
            raise ValueError(f"`scheduler` is called `cluster` now: cluster = {json.dumps(given['scheduler'])}")
        return given

    @model_validator(mode="after")
    def _fits_its_cluster(self) -> RunTable:
        if not (self.cluster in ("local", *QUEUES) or self.by_address):
            raise ValueError(
                f"cluster = {self.cluster!r} is none of local, {', '.join(QUEUES)}, and no tcp:// or tls:// address"
            )
        if self.adapt is not None and not 0 <= self.adapt[0] <= self.adapt[1] != 0:
            raise ValueError(f"adapt = {list(self.adapt)}: the fewest and the most workers, such as [0, 8]")
        for name in ("adapt", "memory"):
            if self.by_address and getattr(self, name) is not None:
                raise ValueError(f"`{name}` is for workers that replaygen starts; those at {self.cluster} are there")
        if self.job and self.cluster not in QUEUES:
            raise ValueError(f"`job` is for a batch system: cluster = {' or '.join(QUEUES[:2])}, ...")
        if self.cluster in QUEUES and not self.workers and self.adapt is None:
            raise ValueError(f'cluster = "{self.cluster}" needs workers = N, or adapt = [least, most]')
        return self

    @property
    def by_address(self) -> bool:
        """Whether the cluster is one that runs already."""
        return self.cluster.startswith(("tcp://", "tls://"))


class TrainTable(Table):
    """Training of every step; `base` changes it for step 0, `helper` for helper decoders."""

    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="each is a whole chain of its own")
    fit: FitOptions = Field(default_factory=FitOptions)
    base: dict[str, Any] = Field(default_factory=dict, description="changes to [train.fit] for step 0")
    helper: dict[str, Any] = Field(default_factory=dict, description="changes to [train.fit] for helper decoders")
    base_model: str | None = Field(
        default=None, description="a folder with your own step-0 model, instead of [train.base]"
    )


class CompareTable(Table):
    """Which published rows stand beside the run's own, those of the scenario's task and setting: in no key."""

    dataset: Literal["voc2012"] = Field(description="whose published rows")
