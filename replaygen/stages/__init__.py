"""The stages, by name."""

from __future__ import annotations

from typing import Any

from replaygen.stages.base import Inputs, Out, Stage, Task
from replaygen.stages.crawl import FetchStage, FlickrSearchStage, UrlListStage
from replaygen.stages.erase import EraseStage, RemoveStage
from replaygen.stages.evaluate import EvaluateStage
from replaygen.stages.features import CurrentFeatureStage, ReplayFeatureStage
from replaygen.stages.fit import FitGeneratorStage
from replaygen.stages.generate import BigGanStage, ClassMapStage, DiffusionStage, FittedStage
from replaygen.stages.given import GivenStage
from replaygen.stages.helper import HelperStage
from replaygen.stages.knowledge import KnowledgeStage
from replaygen.stages.label import LabelStage
from replaygen.stages.masks import GivenLabelStage
from replaygen.stages.quality import QualityStage
from replaygen.stages.relabel import RelabelStage, UncertaintyStage
from replaygen.stages.replay import ReplayStage
from replaygen.stages.screen import EvaluatedLookStage, LookStage, SelectStage
from replaygen.stages.source import ExemplarStage, PhotoStage
from replaygen.stages.train import TrainStage
from replaygen.stages.trust import StandardsStage, TrustStage

__all__ = ["STAGES", "Inputs", "Out", "Stage", "Task", "stage_of"]

STAGES: dict[str, type[Stage[Any]]] = {
    stage.name: stage
    for stage in (
        PhotoStage,
        FlickrSearchStage,
        UrlListStage,
        FetchStage,
        LookStage,
        EvaluatedLookStage,
        SelectStage,
        ExemplarStage,
        FitGeneratorStage,
        ClassMapStage,
        BigGanStage,
        DiffusionStage,
        FittedStage,
        QualityStage,
        HelperStage,
        LabelStage,
        GivenLabelStage,
        StandardsStage,
        TrustStage,
        EraseStage,
        KnowledgeStage,
        UncertaintyStage,
        RelabelStage,
        RemoveStage,
        CurrentFeatureStage,
        ReplayFeatureStage,
        ReplayStage,
        GivenStage,
        TrainStage,
        EvaluateStage,
    )
}


def stage_of(name: str) -> type[Stage[Any]]:
    """The stage called `name`."""
    return STAGES[name]
