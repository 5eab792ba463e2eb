"""Networks, losses, views, batches, the fit loop and metrics.

Names are imported on first use: `NetworkSpec`, `ViewSpec` and `FitOptions` cost no torch, so a plan stays instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replaygen.learn.batches import MixedBatches as MixedBatches
    from replaygen.learn.buffer import ReplayBuffer as ReplayBuffer
    from replaygen.learn.buffer import ReplayShard as ReplayShard
    from replaygen.learn.buffer import replay_items as replay_items
    from replaygen.learn.checkpoint import Checkpoint as Checkpoint
    from replaygen.learn.checkpoint import load_network as load_network
    from replaygen.learn.checkpoint import save_checkpoint as save_checkpoint
    from replaygen.learn.features import FeatureFile as FeatureFile
    from replaygen.learn.features import encode_views as encode_views
    from replaygen.learn.features import features_from_bytes as features_from_bytes
    from replaygen.learn.features import features_to_bytes as features_to_bytes
    from replaygen.learn.fitting import FitResult as FitResult
    from replaygen.learn.fitting import fit as fit
    from replaygen.learn.job import StepJob as StepJob
    from replaygen.learn.losses import class_weights as class_weights
    from replaygen.learn.losses import cross_entropy as cross_entropy
    from replaygen.learn.losses import merged_cross_entropy as merged_cross_entropy
    from replaygen.learn.metrics import Confusion as Confusion
    from replaygen.learn.metrics import confusion_rate as confusion_rate
    from replaygen.learn.metrics import over_steps as over_steps
    from replaygen.learn.metrics import summarise as summarise
    from replaygen.learn.networks import SegNet as SegNet
    from replaygen.learn.networks import build_network as build_network
    from replaygen.learn.oplist import OpListNet as OpListNet
    from replaygen.learn.oplist import read_oplist as read_oplist
    from replaygen.learn.predict import predict_mask as predict_mask
    from replaygen.learn.predict import predict_over_views as predict_over_views
    from replaygen.learn.predict import predict_probabilities as predict_probabilities
    from replaygen.learn.samples import Batch as Batch
    from replaygen.learn.samples import Item as Item
    from replaygen.learn.samples import Samples as Samples
    from replaygen.learn.samples import feature_item as feature_item
    from replaygen.learn.samples import image_item as image_item
    from replaygen.learn.specs import FitOptions as FitOptions
    from replaygen.learn.specs import NetworkSpec as NetworkSpec
    from replaygen.learn.specs import ViewSpec as ViewSpec
    from replaygen.learn.views import apply_view as apply_view
    from replaygen.learn.views import apply_view_to_mask as apply_view_to_mask

_HOME = {
    "batches": ("MixedBatches",),
    "buffer": ("ReplayBuffer", "ReplayShard", "replay_items"),
    "checkpoint": ("Checkpoint", "load_network", "save_checkpoint"),
    "features": ("FeatureFile", "encode_views", "features_from_bytes", "features_to_bytes"),
    "fitting": ("FitResult", "fit"),
    "job": ("StepJob",),
    "losses": ("class_weights", "cross_entropy", "merged_cross_entropy"),
    "metrics": ("Confusion", "confusion_rate", "over_steps", "summarise"),
    "networks": ("SegNet", "build_network"),
    "oplist": ("OpListNet", "read_oplist"),
    "predict": ("predict_mask", "predict_over_views", "predict_probabilities"),
    "samples": ("Batch", "Item", "Samples", "feature_item", "image_item"),
    "specs": ("FitOptions", "NetworkSpec", "ViewSpec"),
    "views": ("apply_view", "apply_view_to_mask"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Batch",
    "Checkpoint",
    "Confusion",
    "FeatureFile",
    "FitOptions",
    "FitResult",
    "Item",
    "MixedBatches",
    "NetworkSpec",
    "OpListNet",
    "ReplayBuffer",
    "ReplayShard",
    "Samples",
    "SegNet",
    "StepJob",
    "ViewSpec",
    "apply_view",
    "apply_view_to_mask",
    "build_network",
    "class_weights",
    "confusion_rate",
    "cross_entropy",
    "encode_views",
    "feature_item",
    "features_from_bytes",
    "features_to_bytes",
    "fit",
    "image_item",
    "load_network",
    "merged_cross_entropy",
    "over_steps",
    "predict_mask",
    "predict_over_views",
    "predict_probabilities",
    "read_oplist",
    "replay_items",
    "save_checkpoint",
    "summarise",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
