"""Replay sets in the layouts that other software reads: WebDataset, VOC, COCO, Hugging Face, plain folders."""

from replaygen.exports.export import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
