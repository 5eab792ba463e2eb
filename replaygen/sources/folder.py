"""Source `folder`: class-named folders of unlabelled photos."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

from replaygen.classes import slug
from replaygen.sample import decode_image, encode_jpeg, encode_png


def candidates(
    entries: Sequence[tuple[str, int, str]], *, count: int, oversample: float, seed: int
) -> list[tuple[str, str]]:
    """The fixed list of photos that a class's shards are cut from.

    Args:
        entries: (relative name, bytes, sha256) of every photo of the class.
        count: samples wanted.
        oversample: candidates = ceil(count x oversample); nothing is back-filled later.
        seed: fixes the order, which depends on each photo's bytes alone, so adding a photo moves no other.

    Returns:
        (relative name, sha256), at most `ceil(count x oversample)`, identical files once.
    """
    unique = {sha: name for name, _, sha in sorted(entries, reverse=True)}
    order = sorted(unique, key=lambda sha: hashlib.sha256(f"{seed}:{sha}".encode()).digest())
    return [(unique[sha], sha) for sha in order[: math.ceil(count * oversample)]]


def photo_id(class_name: str, sha256: str) -> str:
    """The id of a photo: its class and its bytes."""
    return f"{slug(class_name)}-{sha256[:16]}"


def photo_sample(data: bytes, *, class_name: str, name: str, sha256: str, max_side: int | None) -> dict[str, bytes]:
    """Decode a photo once and encode it as it will be stored: PNG stays lossless, all else JPEG quality 95.

    Returns:
        the shard members {extension: bytes}.

    Raises:
        DataError: the bytes are no readable image.
    """
    image = decode_image(data, where=name, max_side=max_side)
    lossless = data.startswith(b"\x89PNG")
    about = {
        "class": class_name, "source": "folder", "file": name, "sha256": sha256, "licence": None, "parent": None,
        "height": int(image.shape[0]), "width": int(image.shape[1]),
    }  # fmt: skip
    encoded = {"png": encode_png(image)} if lossless else {"jpg": encode_jpeg(image)}
    return {**encoded, "json": json.dumps(about, sort_keys=True).encode()}
