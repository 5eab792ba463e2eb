"""Networks, losses, views, batches, the fit loop and metrics.

Names are imported on first use: `NetworkSpec`, `ViewSpec` and `FitOptions` cost no torch, so a plan stays instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replaygen.learn.batches import MixedBatches as MixedBatches
    from replaygen.learn.batches import derive as derive
    from replaygen.learn.buffer import ReplayBuffer as ReplayBuffer
    from replaygen.learn.buffer import ReplayShard as ReplayShard
    from replaygen.learn.buffer import replay_items as replay_items
    from replaygen.learn.checkpoint import Checkpoint as Checkpoint
    from replaygen.learn.checkpoint import load_network as load_network
    from replaygen.learn.checkpoint import save_checkpoint as save_checkpoint
    from replaygen.learn.distillation import decoder_distillation as decoder_distillation
    from replaygen.learn.distillation import feature_distillation as feature_distillation
    from replaygen.learn.distillation import ilt_pixels as ilt_pixels
    from replaygen.learn.distillation import lwf_distillation as lwf_distillation
    from replaygen.learn.distillation import similarity_distillation as similarity_distillation
    from replaygen.learn.distillation import soft_cross_entropy as soft_cross_entropy
    from replaygen.learn.distillation import temperature_distillation as temperature_distillation
    from replaygen.learn.distillation import unbiased_distillation as unbiased_distillation
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
    from replaygen.learn.mixing import CutMixed as CutMixed
    from replaygen.learn.networks import Prediction as Prediction
    from replaygen.learn.networks import SegNet as SegNet
    from replaygen.learn.networks import build_network as build_network
    from replaygen.learn.oplist import OpListNet as OpListNet
    from replaygen.learn.oplist import read_oplist as read_oplist
    from replaygen.learn.pod import entropy_thresholds as entropy_thresholds
    from replaygen.learn.pod import local_pod as local_pod
    from replaygen.learn.pod import pod_distillation as pod_distillation
    from replaygen.learn.pod import pod_factor as pod_factor
    from replaygen.learn.pod import pod_logits as pod_logits
    from replaygen.learn.pod import pseudo_labels as pseudo_labels
    from replaygen.learn.predict import predict_mask as predict_mask
    from replaygen.learn.predict import predict_over_views as predict_over_views
    from replaygen.learn.predict import predict_probabilities as predict_probabilities
    from replaygen.learn.prototypes import Prototypes as Prototypes
    from replaygen.learn.prototypes import attraction as attraction
    from replaygen.learn.prototypes import completed_labels as completed_labels
    from replaygen.learn.prototypes import nearest_labels as nearest_labels
    from replaygen.learn.prototypes import prototype_matching as prototype_matching
    from replaygen.learn.prototypes import repulsion as repulsion
    from replaygen.learn.prototypes import sparsity as sparsity
    from replaygen.learn.samples import Batch as Batch
    from replaygen.learn.samples import Item as Item
    from replaygen.learn.samples import Samples as Samples
    from replaygen.learn.samples import feature_item as feature_item
    from replaygen.learn.samples import image_item as image_item
    from replaygen.learn.specs import FitOptions as FitOptions
    from replaygen.learn.specs import NetworkSpec as NetworkSpec
    from replaygen.learn.specs import ViewSpec as ViewSpec
    from replaygen.learn.teacher import Teacher as Teacher
    from replaygen.learn.teacher import fused as fused
    from replaygen.learn.views import apply_view as apply_view
    from replaygen.learn.views import apply_view_to_mask as apply_view_to_mask

_HOME = {
    "batches": ("MixedBatches", "derive"),
    "buffer": ("ReplayBuffer", "ReplayShard", "replay_items"),
    "checkpoint": ("Checkpoint", "load_network", "save_checkpoint"),
    "features": ("FeatureFile", "encode_views", "features_from_bytes", "features_to_bytes"),
    "fitting": ("FitResult", "fit"),
    "job": ("StepJob",),
    "losses": ("class_weights", "cross_entropy", "merged_cross_entropy"),
    "metrics": ("Confusion", "confusion_rate", "over_steps", "summarise"),
    "mixing": ("CutMixed",),
    "networks": ("Prediction", "SegNet", "build_network"),
    "oplist": ("OpListNet", "read_oplist"),
    "predict": ("predict_mask", "predict_over_views", "predict_probabilities"),
    "samples": ("Batch", "Item", "Samples", "feature_item", "image_item"),
    "teacher": (
        "Teacher",
        "fused",
    ),
    "distillation": (
        "decoder_distillation",
        "feature_distillation",
        "ilt_pixels",
        "lwf_distillation",
        "similarity_distillation",
        "soft_cross_entropy",
        "temperature_distillation",
        "unbiased_distillation",
    ),
    "prototypes": (
        "Prototypes",
        "attraction",
        "completed_labels",
        "nearest_labels",
        "prototype_matching",
        "repulsion",
        "sparsity",
    ),
    "pod": (
        "entropy_thresholds",
        "local_pod",
        "pod_distillation",
        "pod_factor",
        "pod_logits",
        "pseudo_labels",
    ),
    "specs": ("FitOptions", "NetworkSpec", "ViewSpec"),
    "views": ("apply_view", "apply_view_to_mask"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Batch",
    "Checkpoint",
    "Confusion",
    "CutMixed",
    "FeatureFile",
    "FitOptions",
    "FitResult",
    "Item",
    "MixedBatches",
    "NetworkSpec",
    "OpListNet",
    "Prediction",
    "Prototypes",
    "ReplayBuffer",
    "ReplayShard",
    "Samples",
    "SegNet",
    "StepJob",
    "Teacher",
    "ViewSpec",
    "apply_view",
    "apply_view_to_mask",
    "attraction",
    "build_network",
    "class_weights",
    "completed_labels",
    "confusion_rate",
    "cross_entropy",
    "decoder_distillation",
    "derive",
    "encode_views",
    "entropy_thresholds",
    "feature_distillation",
    "feature_item",
    "features_from_bytes",
    "features_to_bytes",
    "fit",
    "fused",
    "ilt_pixels",
    "image_item",
    "load_network",
    "local_pod",
    "lwf_distillation",
    "merged_cross_entropy",
    "nearest_labels",
    "over_steps",
    "pod_distillation",
    "pod_factor",
    "pod_logits",
    "predict_mask",
    "predict_over_views",
    "predict_probabilities",
    "prototype_matching",
    "pseudo_labels",
    "read_oplist",
    "replay_items",
    "repulsion",
    "save_checkpoint",
    "similarity_distillation",
    "soft_cross_entropy",
    "sparsity",
    "summarise",
    "temperature_distillation",
    "unbiased_distillation",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
