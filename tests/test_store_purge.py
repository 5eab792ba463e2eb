"""Row 16: purge takes a photo and all that was made from it, whatever kills it, and the photo never comes back."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from test_store_support import index_eagerly, skip_syncs, tree

from replaygen.store import Counts, OutputObject, Record, Shard, Store, fsops, task_key, write_shard
from replaygen.store.fsops import Op

SIZE = 8


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    fsops.trace = skip_syncs
    yield
    fsops.trace = None


def marker(photo: str) -> str:
    """Bytes that are in a photo, in what is told of it, and in all that was made from it, and nowhere else."""
    return f"marker-{hashlib.sha256(photo.encode()).hexdigest()[:24]}"


def raw(photo: str) -> str:
    """The sha256 of a photo's bytes as they came."""
    return hashlib.sha256(f"raw {photo}".encode()).hexdigest()


def traces(root: Path) -> set[str]:
    """The markers that are anywhere below a folder."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {found.decode() for path in files for found in re.findall(rb"marker-[0-9a-f]{24}", path.read_bytes())}


def plain(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass
class World:
    """A store as crawls and runs leave it; `made_of` says which photos' markers are in a record's own bytes."""

    store: Store
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    records: dict[str, Record] = field(default_factory=dict)
    made_of: dict[str, frozenset[str]] = field(default_factory=dict)

    def add(
        self, stage: str, params: dict[str, Any], files: dict[str, tuple[bytes, int]], photos: Iterable[str],
        inputs: Iterable[tuple[str, str]] = (), counts: Counts | None = None, provenance: dict[str, Any] | None = None,
    ) -> str:  # fmt: skip
        inputs = tuple(inputs)
        outputs = tuple(
            OutputObject(name, ref.digest, ref.size, samples)
            for name, (data, samples) in files.items() for ref in [self.store.put(data)]
        )  # fmt: skip
        record = Record(
            key=task_key(stage, 1, params, None, inputs), stage=stage, version=1, params=params, seed=None,
            inputs=inputs, slot=f"{stage}/{len(self.records)}", outputs=outputs, counts=counts or Counts(1, 1),
            read={key: self.records[key].outputs_digest for _, key in inputs}, provenance=provenance or {},
            environment={"python": "3"}, started="2026-01-01T00:00:00+00:00", seconds=1.5,
        )  # fmt: skip
        self.records[record.key] = self.store.publish(record)
        self.made_of[record.key] = frozenset(photos)
        return record.key

    def search(self, stage: str, photos: list[str], rejected: Iterable[str] = ()) -> str:
        told = {
            "candidates": [
                {"photo": one, "url": f"https://x.test/{marker(one)}.jpg", "owner": marker(one), "title": "T"}
                for one in photos
            ],
            "rejected": [{"id": one, "reason": "licence-not-allowed"} for one in rejected],
            "asked": {"total": len(photos)},
        }  # fmt: skip
        params = {"class_name": "cow", "wanted": len(photos), "about": len(self.records)}
        return self.add(stage, params, {"candidates.json": (plain(told), 0)}, photos)

    def fetch(self, name: str, search: str, photos: list[str], number: int) -> str:
        """The slice `number` of the photos of a search; of each, the fourth photo is rejected, and the sixth fails."""
        part = photos[number * SIZE : (number + 1) * SIZE]
        fates = {one: {3: "gone", 5: "timeout"}.get(i, "accepted") for i, one in enumerate(part)}
        items = [(f"{name}-{one}", self._members(name, one)) for one, fate in fates.items() if fate == "accepted"]
        tar, index = write_shard(items)
        files = {"images.tar": (tar, len(items)), "images.index.json": (index, 0)}
        refused = {
            kind: [{"id": one, "reason": reason} for one, fate in fates.items() if fate == reason]
            for kind, reason in (("rejected", "gone"), ("failed", "timeout"))
        }  # fmt: skip
        if refused["rejected"] or refused["failed"]:
            files["refused.json"] = (plain(refused), 0)
        rejected, failed = ({one["reason"]: len(refused[kind]) for one in refused[kind]} for kind in refused)
        at = "2026-01-01T00:00:00Z"
        proof = {one: {"fetched_at": at, "final_url": marker(one), "sha256": raw(one)} for one in part}
        params = {"class_name": name, "slice": number, "size": SIZE, "keep": "resized", "without": []}
        return self.add(
            "fetch", params, files, part, [("search", search)], Counts(len(part), len(items), rejected, failed),
            {"photos": proof},
        )  # fmt: skip

    def folder(self, name: str, files: list[str]) -> str:
        """A slice of a folder's photos; their ids are those of `folder_id`."""
        pairs = [[one, hashlib.sha256(one.encode()).hexdigest()] for one in files]
        tar, index = write_shard((folder_id(name, one), self._members(name, one, file=one)) for one in files)
        made = {"images.tar": (tar, len(files)), "images.index.json": (index, 0)}
        ids = [folder_id(name, one) for one in files]
        params = {"class_name": name, "files": pairs, "max_side": None}
        return self.add("photos", params, made, ids, counts=Counts(len(files), len(files)))

    def make(self, stage: str, inputs: Iterable[tuple[str, str]]) -> str:
        """A result of other records, with a marker of each photo that they are made of."""
        inputs = list(inputs)
        photos = {one for _, key in inputs if self.records[key].stage not in SEARCHES for one in self.made_of[key]}
        data = plain([sorted(marker(one) for one in photos), self.rng.random()])
        name = "model.safetensors" if stage == "train" else "out.json"
        files = {name: (data, 1), "same.bin": (b"the same bytes in every record", 0)}
        return self.add(stage, {"number": len(self.records)}, files, photos, inputs)

    def _members(self, name: str, photo: str, file: str | None = None) -> dict[str, bytes]:
        about = {"class": name, "photo": None if file else photo, "file": file, "owner": marker(photo), "parent": None}
        if file:
            marked = folder_id(name, file)
            about["owner"] = marker(marked)
            return {"png": self.rng.randbytes(20) + marker(marked).encode(), "json": plain(about)}
        return {"jpg": self.rng.randbytes(20) + marker(photo).encode(), "json": plain(about)}

    def below(self, keys: Iterable[str]) -> set[str]:
        """Some records and all that was made from them."""
        found = set(keys)
        for key, record in self.records.items():  # in the order they were made
            if any(source in found for _, source in record.inputs):
                found.add(key)
        return found

    def holders(self, photos: set[str]) -> list[str]:
        return [key for key, one in self.records.items() if one.stage in SLICED and photos & self.made_of[key]]

    def raws(self, photos: set[str]) -> set[str]:
        """The sha256 of the raw bytes of photos, as the records that hold them tell it."""
        held = [self.records[key] for key in self.holders(photos)]
        files = [sha256 for one in held for _, sha256 in one.params.get("files", ())]
        told = {sha256 for sha256 in files if any(photo.endswith(f"-{sha256[:16]}") for photo in photos)}
        return told | {raw(photo) for one in held for photo in photos & one.provenance.get("photos", {}).keys()}

    def derived(self, key: str, photos: set[str]) -> str:
        """The key that a plan gives to a slice once photos are buried."""
        one, params = self.records[key], dict(self.records[key].params)
        if one.stage == "fetch":
            params["without"] = sorted(photos & self.made_of[key])
        else:
            params["files"] = [
                file for file in params["files"] if folder_id(params["class_name"], file[0]) not in photos
            ]
        return task_key(one.stage, 1, params, None, one.inputs)


SEARCHES = {"flickr-search", "url-list"}
SLICED = {"fetch", "photos"}


def folder_id(name: str, file: str) -> str:
    return f"{name}-{hashlib.sha256(file.encode()).hexdigest()[:16]}"


def farm(root: Path) -> World:
    """A small world: two slices of a search, one of a folder, labels, a model, unfinished work, a report."""
    world = World(Store(root))
    photos = [f"flickr-{n}" for n in range(1, 13)]
    search = world.search("flickr-search", photos, rejected=["flickr-99"])
    fetches = [world.fetch("cow", search, photos, number) for number in range(2)]
    fetches.append(world.folder("cow", ["a.jpg", "b.jpg"]))
    labels = [world.make("label", [("images", key)]) for key in fetches]
    select = world.make("select", [("search", search), ("images", fetches[1])])
    first, second = (world.make("train", [("labels", key)]) for key in labels[:2])
    last = world.make("evaluate", [("previous", first), ("selection", select)])
    slots = {world.records[key].slot: key for key in world.records}
    world.store.write_ref("farm", "plan", {"slots": slots})
    world.store.partial(last, {"stage": "train", "slot": "", "inputs": [first]})
    for name, inputs in (("doomed", [labels[0]]), ("kept", [labels[1], second])):
        key = hashlib.sha256(name.encode()).hexdigest()
        folder = world.store.partial(key, {"stage": "train", "slot": name, "inputs": inputs})
        (folder / "half").write_text(marker("flickr-1") if name == "doomed" else "half a fit")
    for place in ("quarantine/object-1", "tmp/left", "partial/" + "0" * 64 + "/half"):
        (root / place).parent.mkdir(exist_ok=True)
        (root / place).write_text(marker("flickr-1"))
    world.store.note_checked({"flickr-1": {"at": "2026-01-01T00:00:00Z", "licence": "cc0-1.0", "visible": True}})
    return world


def forest(root: Path) -> World:
    """1,000 records: crawls of photos that share some, folders, and what was made from them, mostly class by class."""
    world, rng = World(Store(root)), random.Random(16)
    shared = [f"flickr-{n}" for n in range(9000, 9030)]
    groups: list[list[str]] = []
    for n in range(16):
        if n % 4 == 3:
            groups.append([world.folder(f"class{n}", [f"{n}-{m}-{i}.png" for i in range(6)]) for m in range(5)])
            continue
        stage, kind = ("url-list", "web") if n % 4 == 2 else ("flickr-search", "flickr")
        ids = [
            f"{n}{i:03d}" if kind == "flickr" else hashlib.sha256(f"{n} {i}".encode()).hexdigest()[:20]
            for i in range(72)
        ]
        photos = rng.sample([f"{kind}-{one}" for one in ids] + rng.sample(shared, 4), 76)
        search = world.search(stage, photos, rejected=[f"{kind}-{n}999"])
        groups.append([world.fetch(f"class{n}", search, photos, i) for i in range(-(-len(photos) // SIZE))])
        groups[-1].append(world.make("select", [("search", search), ("looks", groups[-1][0])]))
    while len(world.records) < 1000:
        home = rng.choice(groups)
        away = rng.choice(groups) if rng.random() < 0.01 else home
        count = rng.choice([1, 1, 1, 2])
        inputs = [(f"role{i}", rng.choice(home if i == 0 else away)) for i in range(count)]
        home.append(world.make(rng.choice(["label", "looks", "replay", "train", "features-replay"]), inputs))
    keys = list(world.records)
    for name in ("one", "two"):
        world.store.write_ref(name, "plan", {"slots": {f"slot{i}": key for i, key in enumerate(rng.sample(keys, 700))}})
    return world


def check(world: World, root: Path, photos: set[str]) -> list[str]:
    """What is wrong after a purge of these photos: nothing may be."""
    store, wrong = Store(root), []
    found = traces(root.parent) & {marker(photo) for photo in photos}
    wrong += [f"{len(found)} photos are still there"] if found else []
    holders = world.holders(photos)
    below = world.below(holders)
    derived = {key: world.derived(key, photos) for key in holders}
    for key, status in store.statuses({*world.records, *derived.values()} - below).items():
        wrong += [] if status.state == "cached" else [f"{key[:8]} is {status.state}: {status.detail}"]
    wrong += [f"{key[:8]} still stands" for key in below if store.get(key) is not None]
    for _, _, data in store.refs():
        wrong += [f"slot {slot} names what is gone" for slot, key in data["slots"].items() if key in below]
    wrong += [f"{one} is still looked after" for one in photos & store.checked().keys()]
    tombstones = store.tombstones()
    wrong += [
        f"{one} has no tombstone that is done" for one in photos if one not in tombstones or not tombstones[one].done
    ]
    wrong += (
        [f"the bytes of {len(lost)} photos are forgotten"]
        if (lost := world.raws(photos) - store.buried_bytes())
        else []
    )
    report = store.verify()
    return wrong + [str(report)] * (not report.ok or bool(report.orphans))


def test_50_photos_purged_from_1000_records_leave_no_byte(tmp_path: Path) -> None:
    """Row 16: nothing made from a purged photo is left, all else stays cached, and derived slices have planned keys."""
    world = forest(tmp_path / "cache")
    mentioned = sorted(
        {one for key, held in world.made_of.items() if world.records[key].stage in SLICED for one in held}
    )
    photos = set(random.Random(5).sample([one for one in mentioned if not one.startswith(("class11", "flickr-4"))], 50))
    assert {marker(photo) for photo in photos} <= traces(tmp_path)
    report = world.store.purge(photos, "asked by their owners")
    assert check(world, tmp_path / "cache", photos) == []
    below = world.below(world.holders(photos))
    assert 200 < len(below) < 900
    assert set(report.records) == below
    assert set(report.derived) == {world.derived(key, photos) for key in world.holders(photos)}
    assert set(report.weights) == {world.records[key].slot for key in below if world.records[key].stage == "train"}
    assert traces(tmp_path) == {marker(one) for one in {*mentioned} - photos}
    assert world.store.tombstones().keys() == photos


def crash_everywhere(folder: Path) -> dict[str, Any]:
    """Die at every operation of a purge, then finish it alone, or together with another photo."""
    index_eagerly()
    fsops.trace = skip_syncs
    world = farm(folder / "base" / "cache")
    (folder / "base" / "reports").mkdir()
    (folder / "base" / "reports" / "sheet.html").write_text(f"cow-flickr-1 by {marker('flickr-1')}")
    operations: list[Op] = []

    def note(op: Op, act: Callable[[], None]) -> None:
        operations.append(op)
        skip_syncs(op, act)

    shutil.copytree(folder / "base", folder / "whole")
    store = Store(folder / "whole" / "cache")
    fsops.trace = note
    store.purge(["flickr-1"], pages=folder / "whole" / "reports")
    fsops.trace = skip_syncs
    truth, failures = tree(folder / "whole" / "cache"), []
    points = [(number, "before", 0) for number in range(len(operations))]
    points += [(number, "torn", len(op.data) // 2) for number, op in enumerate(operations) if op.kind == "write"]
    for number, when, size in points:
        root = folder / f"{number}-{when}-{size}" / "cache"
        shutil.copytree(folder / "base", root.parent)
        _crash(root, number, size if when == "torn" else None)
        fsops.trace = skip_syncs
        more = ["flickr-2", "flickr-12"] if number % 3 == 2 else []
        names = more if "flickr-1" in Store(root).tombstones() else ["flickr-1", *more]
        Store(root).purge(names, pages=root.parent / "reports")
        wrong = check(world, root, {"flickr-1", *more})
        wrong += [] if more or tree(root) == truth else ["finishing gave other bytes"]
        wrong += [f"left {path}" for part in ("tmp", "quarantine") for path in (root / part).iterdir()]
        failures += [f"{number} {when} {operations[number].kind}: {line}" for line in wrong]
    return {"points": len(points), "kinds": sorted({op.kind for op in operations}), "failures": failures}


def _crash(root: Path, number: int, torn: int | None) -> None:
    if (pid := os.fork()) == 0:
        try:
            store, seen = Store(root), [0]

            def hook(op: Op, act: Callable[[], None]) -> None:
                if seen[0] == number:
                    if torn is not None:
                        with open(op.path, "ab") as file:
                            file.write(op.data[:torn])
                    os._exit(9)
                seen[0] += 1
                skip_syncs(op, act)

            fsops.trace = hook
            store.purge(["flickr-1"], pages=root.parent / "reports")
        finally:
            os._exit(3)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 9, f"the child did not die at {number}: {code}"


def test_a_purge_killed_at_any_operation_is_completed_by_the_next(tmp_path: Path) -> None:
    """Row 16: before each operation and within each write; another photo may join, and nothing is fetched again."""
    command = [sys.executable, "-W", "error", __file__, str(tmp_path)]
    result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300).stdout)
    assert result["failures"] == []
    assert result["points"] > 100
    assert {"write", "link", "rename", "unlink", "rmdir"} <= set(result["kinds"])


def test_the_rest_of_a_slice_is_what_a_fetch_without_the_photo_makes(tmp_path: Path) -> None:
    """Other photos keep their bytes, proofs and refusals; what is gone is not counted; the record says how it came."""
    world = farm(tmp_path)
    key = world.holders({"flickr-1"})[0]
    old = world.records[key]
    shard, refused = (world.store.read(old.output(name).digest) for name in ("images.tar", "refused.json"))
    gone = {"flickr-1", json.loads(refused)["failed"][0]["id"]}
    world.store.purge(gone)
    new = world.store.get(world.derived(key, gone))
    assert new is not None
    left = [(one, files) for one, files in Shard(shard) if one.removeprefix("cow-") not in gone]
    tar, index = write_shard(left)
    assert world.store.read(new.output("images.tar").digest) == tar
    assert world.store.read(new.output("images.index.json").digest) == index
    assert (new.counts.requested, new.counts.accepted) == (old.counts.requested - 2, len(left))
    assert new.output("images.tar").samples == len(left)
    assert sum(new.counts.failed.values()) == sum(old.counts.failed.values()) - 1
    assert new.provenance["photos"].keys() == old.provenance["photos"].keys() - gone
    assert new.provenance["derived_from_purge"] is True
    assert (new.slot, new.environment, new.started, new.seconds) == (
        old.slot,
        old.environment,
        old.started,
        old.seconds,
    )
    assert world.store.status(new.key).state == "cached"


if __name__ == "__main__":
    print(json.dumps(crash_everywhere(Path(sys.argv[1]))))
