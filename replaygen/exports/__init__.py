"""Replay sets for other programs: WebDataset, VOC, COCO, Hugging Face, plain folders."""
