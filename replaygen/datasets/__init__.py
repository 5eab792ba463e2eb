"""Data sets: segmentation sets that scenarios are cut from, and folders of unlabelled photos."""

from __future__ import annotations

from replaygen.datasets.base import Layout, SegmentationDataset, sample_id
from replaygen.datasets.manifest import Entry, Manifest, build_manifest
from replaygen.datasets.opening import KINDS, open_dataset
from replaygen.datasets.photos import PHOTO_ENDINGS, FolderPhotos

__all__ = [
    "KINDS",
    "PHOTO_ENDINGS",
    "Entry",
    "FolderPhotos",
    "Layout",
    "Manifest",
    "SegmentationDataset",
    "build_manifest",
    "open_dataset",
    "sample_id",
]
