"""Folder packs: what is read from them, and what is refused before any work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from replaygen.datasets import SegmentationDataset, open_dataset, sample_id
from replaygen.errors import DataError


def write_pack(root: Path, ids: tuple[str, ...] = ("a", "b"), **document: object) -> Path:
    """A pack of 8 x 6 images; mask of the n-th id holds class 1 and, from the second on, class 2."""
    for name in ("images", "masks", "splits"):
        (root / name).mkdir(parents=True)
    for number, key in enumerate(ids):
        Image.fromarray(np.full((6, 8, 3), 20 * number, np.uint8)).save(root / "images" / f"{key}.png")
        mask = np.zeros((6, 8), np.uint8)
        mask[0, :] = 1
        mask[1, 0] = 2 if number else 255
        Image.fromarray(mask).save(root / "masks" / f"{key}.png")
    (root / "splits" / "train.txt").write_text("\n".join(ids) + "\n")
    classes = [{"id": 0, "name": "background"}, {"id": 1, "name": "cow"}, {"id": 2, "name": "sheep"}]
    (root / "classes.json").write_text(
        json.dumps({"classes": classes, "background_id": 0, "ignore_id": 255} | document)
    )
    return root


def opened(root: Path) -> SegmentationDataset:
    return open_dataset("folder", root, cache_dir=root.parent / "cache")


def test_reads_image_and_mask(tmp_path: Path) -> None:
    """An image comes as uint8 [H, W, 3] and its mask as uint8 [H, W] with raw ids and 255."""
    data = opened(write_pack(tmp_path / "pack"))
    assert data.image("b").shape == (6, 8, 3)
    mask = data.mask("a")
    assert mask.dtype == np.uint8
    assert mask.shape == (6, 8)
    assert set(np.unique(mask)) == {0, 1, 255}


def test_present_counts_neither_background_nor_ignore(tmp_path: Path) -> None:
    """Present classes are those with a pixel; background and ignore are none."""
    data = opened(write_pack(tmp_path / "pack"))
    assert data.present(("a", "b")) == {"a": frozenset({1}), "b": frozenset({1, 2})}


def test_id_zero_counts_without_background(tmp_path: Path) -> None:
    """Where background_id is null, raw id 0 is a class like any other."""
    data = opened(write_pack(tmp_path / "pack", background_id=None))
    assert data.background is None
    assert data.present(("a",)) == {"a": frozenset({0, 1})}


def test_other_ignore_value_reads_as_255(tmp_path: Path) -> None:
    """An ignore_id other than 255 is read as 255, and is no class."""
    root = write_pack(
        tmp_path / "pack", classes=[{"id": 0, "name": "background"}, {"id": 1, "name": "cow"}], ignore_id=2
    )
    data = opened(root)
    assert set(np.unique(data.mask("b"))) == {0, 1, 255}
    assert data.present(("b",)) == {"b": frozenset({1})}


def test_splits_keep_their_order(tmp_path: Path) -> None:
    """A split lists its ids in the order of its file; blank lines and line ends of any kind do not count."""
    root = write_pack(tmp_path / "pack", ("a", "b", "c"))
    (root / "splits" / "train.txt").write_bytes(b"c\r\n\r\na\n")
    data = opened(root)
    assert data.split("train") == ("c", "a")


def test_digest_does_not_depend_on_the_place(tmp_path: Path) -> None:
    """Two copies of a pack have one digest."""
    assert opened(write_pack(tmp_path / "one")).digest == opened(write_pack(tmp_path / "two")).digest


@pytest.mark.parametrize("part", ["masks/a.png", "splits/train.txt", "classes.json", "images/a.png"])
def test_digest_follows_every_part(tmp_path: Path, part: str) -> None:
    """A change of a mask, an image, a split or a class name changes the digest."""
    root = write_pack(tmp_path / "pack")
    before = opened(root).digest
    path = root / part
    if path.suffix == ".png":
        Image.fromarray(np.asarray(Image.open(path)) // 2 + 1).save(path)
    else:
        text = path.read_text()
        path.write_text(text.replace("a\n", "") if part.endswith("txt") else text.replace("cow", "ox"))
    assert opened(root).digest != before


def test_stray_files_do_not_matter(tmp_path: Path) -> None:
    """Files that no split lists leave the digest as it is."""
    root = write_pack(tmp_path / "pack")
    before = opened(root).digest
    (root / "images" / "stray.png").write_bytes(b"no image")
    (root / "masks" / ".DS_Store").write_bytes(b"")
    assert opened(root).digest == before


def test_changed_file_is_refused_on_reading(tmp_path: Path) -> None:
    """An image that changes after opening is never read under the old digest."""
    root = write_pack(tmp_path / "pack")
    data = opened(root)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8) + 7).save(root / "images" / "a.png")
    with pytest.raises(DataError, match="changed after"):
        data.image("a")


def test_scan_is_remembered_and_survives_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged memory of the masks is noticed, said, and replaced by reading them again."""
    root = write_pack(tmp_path / "pack")
    data = opened(root)
    first = data.present(data.ids)
    (memory,) = (tmp_path / "cache").glob("scan-*.json")
    text = memory.read_text()
    memory.write_text(text.replace("[8,6,[0,1,2]]", "[8,6,[0,1]]"))
    assert memory.read_text() != text
    assert opened(root).present(data.ids) == first
    assert "damaged" in caplog.text
    assert memory.read_text() == text


def test_present_needs_no_masks_the_second_time(tmp_path: Path) -> None:
    """What the masks hold comes from the memory once they were read: they can be gone."""
    root = write_pack(tmp_path / "pack")
    data = opened(root)
    first = data.present(data.ids)
    again = opened(root)
    (root / "masks" / "a.png").unlink()
    assert again.present(again.ids) == first


def test_unwritable_cache_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing can be remembered, the data set opens all the same and says so."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    data = opened(write_pack(tmp_path / "pack"))
    assert data.present(("a",)) == {"a": frozenset({1})}
    assert "cannot remember" in caplog.text


def test_validation_accepts_a_turned_image(tmp_path: Path) -> None:
    """EXIF orientation counts: a 6 x 8 picture that is stored on its side fits an 8 x 6 mask."""
    root = write_pack(tmp_path / "pack")
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "images" / "a.png").unlink()
    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(root / "images" / "a.jpg", exif=exif)
    data = opened(root)
    data.validate()
    assert data.image("a").shape[:2] == data.mask("a").shape


def test_validation_is_remembered(tmp_path: Path) -> None:
    """A data set that was found valid is not read through again while its digest stands."""
    root = write_pack(tmp_path / "pack")
    opened(root).validate()
    again = opened(root)
    for file in (*root.glob("images/*"), *root.glob("masks/*")):
        os.unlink(file)
    again.validate()


def test_size_mismatch_is_named(tmp_path: Path) -> None:
    """An image and a mask of different size are refused by name and size."""
    root = write_pack(tmp_path / "pack")
    Image.fromarray(np.zeros((5, 8), np.uint8)).save(root / "masks" / "b.png")
    with pytest.raises(DataError, match=r"images/b.png is 8 x 6 pixels .* masks/b.png 8 x 5"):
        opened(root).validate()


def test_unknown_mask_value_is_named(tmp_path: Path) -> None:
    """A mask value that is no class is refused by file and value, before any training."""
    root = write_pack(tmp_path / "pack")
    Image.fromarray(np.full((6, 8), 77, np.uint8)).save(root / "masks" / "b.png")
    with pytest.raises(DataError, match=r"masks/b.png holds 77"):
        opened(root).present(("a", "b"))


def test_many_problems_are_counted(tmp_path: Path) -> None:
    """Of many damaged masks the first five are named and the rest counted."""
    ids = tuple(f"x{n}" for n in range(8))
    root = write_pack(tmp_path / "pack", ids)
    for key in ids:
        (root / "masks" / f"{key}.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(DataError, match=r"x4\.png.*; and 3 more"):
        opened(root).validate()


def test_colour_mask_is_refused(tmp_path: Path) -> None:
    """A mask of three channels is refused with the way out."""
    root = write_pack(tmp_path / "pack")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / "masks" / "b.png")
    with pytest.raises(DataError, match="mode RGB"):
        opened(root).validate()


def test_pixel_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    """A mask that announces 60,000 x 60,000 pixels is refused before anything is decoded."""
    root = write_pack(tmp_path / "pack")
    path = root / "masks" / "b.png"
    data = bytearray(path.read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    path.write_bytes(data)
    with pytest.raises(DataError, match="60000 x 60000"):
        opened(root).validate()


def _drop(root: Path, part: str) -> None:
    (root / part).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: _drop(root, "masks/b.png"), "no mask for 'b'"),
        (lambda root: _drop(root, "images/b.png"), "no image for 'b'"),
        (lambda root: _drop(root, "classes.json"), "classes.json not found"),
        (lambda root: (root / "splits/val.txt").write_text("\n\n"), "split 'val' is empty"),
        (lambda root: (root / "splits/train.txt").write_text("a\nb\na\n"), "lists 'a' twice"),
        (lambda root: (root / "splits/train.txt").write_text("../../x\n"), "which is no id"),
        (lambda root: (root / "splits/train.txt").write_text("a" * 300), "which is no id"),
        (lambda root: (root / "splits/train.txt").write_bytes(b"a\0\n"), "which is no id"),
        (lambda root: (root / "splits/train.txt").write_bytes(b"\xff\xfe"), "UTF-8"),
        (lambda root: _drop(root, "splits/train.txt"), "has no split"),
        (lambda root: (root / "images/b.jpg").write_bytes(b""), "share the id 'b'"),
        (lambda root: (root / "classes.json").write_text("{"), "is not JSON"),
        (lambda root: (root / "classes.json").write_text("[]"), 'has no list "classes"'),
        (lambda root: (root / "classes.json").write_text('{"classes": [{"id": "1", "name": "x"}]}'), "number 0"),
        (lambda root: (root / "classes.json").write_text('{"classes": [{"id": 300, "name": "x"}]}'), "has id 300"),
        (
            lambda root: (root / "classes.json").write_text(
                '{"classes": [{"id": 1, "name": "x"}, {"id": 1, "name": "y"}]}'
            ),
            "given twice",
        ),
        (
            lambda root: (root / "classes.json").write_text(
                '{"classes": [{"id": 1, "name": "x"}], "background_id": 0}'
            ),
            "background 0 is no class",
        ),
        (
            lambda root: (root / "classes.json").write_text('{"classes": [{"id": 1, "name": "x"}], "ignore_id": 1}'),
            "ignore_id 1",
        ),
    ],
)
def test_inconsistent_pack_is_refused_on_opening(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    """A pack that does not fit together is refused on opening; the error names a place and a way out."""
    root = write_pack(tmp_path / "pack")
    spoil(root)
    with pytest.raises(DataError, match=message) as caught:
        opened(root)
    assert str(tmp_path) in caught.value.where
    assert caught.value.hint


def test_missing_folder_and_unknown_kind(tmp_path: Path) -> None:
    """A folder that is not there and a misspelt kind are refused, the latter with the nearest kind."""
    with pytest.raises(DataError, match="folder not found"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataError) as caught:
        open_dataset("foldr", tmp_path, cache_dir=tmp_path)
    assert caught.value.hint == "did you mean 'folder'?"


def test_unknown_option_is_refused(tmp_path: Path) -> None:
    """An option that the kind does not have is refused with the nearest one."""
    with pytest.raises(DataError) as caught:
        open_dataset("voc", tmp_path, cache_dir=tmp_path, trainaug="x")
    assert caught.value.hint == "did you mean 'train_aug'?"


def test_unknown_split_and_id(tmp_path: Path) -> None:
    """Asking for a split or an image that is not there is a DataError."""
    data = opened(write_pack(tmp_path / "pack"))
    with pytest.raises(DataError, match="no split called 'trian'"):
        data.split("trian")
    with pytest.raises(DataError, match="no image 'zebra'"):
        data.mask("zebra")


def test_sample_ids_are_safe_and_distinct() -> None:
    """Ids of any case become `[a-z0-9_-]+` names, and different ids different ones."""
    ids = ["2007_000504", "0001TP_006690", "0001tp_006690", "ADE_train_00000001"]
    names = [sample_id(key) for key in ids]
    assert names[0] == "2007_000504"
    assert len(set(names)) == 4
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for name in names)


def test_data_set_in_memory() -> None:
    """A data set made of entries has splits, classes and a digest, but no pixels."""
    data = SegmentationDataset.from_entries("toy", ["background", "cow"], {"train": ["x"]}, {"x": [0, 1, 255]})
    assert data.present(data.split("train")) == {"x": frozenset({1})}
    data.validate()
    with pytest.raises(DataError, match="without files"):
        data.mask("x")
    other = SegmentationDataset.from_entries("toy", ["background", "cow"], {"train": ["y"]}, {"y": [1]})
    assert data.digest != other.digest
