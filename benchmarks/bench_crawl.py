"""The crawler against img2dataset: the same nginx, files, size and kind of output; and on a server that wants manners.

2,000 photographs of 500 x 375 pixels or the like (real ones, enlarged) are fetched, shrunk to a long side of 256,
encoded as JPEG of quality 95 and written as tar shards. Screens are off; what they cost is told apart.

Figures:
    cpu_ratio_vs_img2dataset, wall_ratio_vs_img2dataset: of img2dataset's CPU seconds (of all its processes) and wall
        seconds to ours, start included. Seconds and peak memory of both beside it.
    cpu_ms: CPU-ms an image: `img2dataset`, `crawl` and `verbatim` with start; `*_marginal`: between 500 and 2,000,
        so without it; `ceiling`: bare GET with the same client + scaled decode + area resize + encode + sha256, in two
        processes at once, for the crawl keeps both cores busy too, and a busy core makes the other dearer;
        `ceiling_alone`: in one process; `screens`: hashing and measuring one stored image; `decode_*`: decoding one.
    share_of_codec_ceiling: ceiling / crawl marginal; share_of_codec_ceiling_alone: ceiling_alone / crawl marginal.
    bytes_per_image: as stored, `resized` and `verbatim`.
    polite_success, polite_requests_per_image: on a server that allows 50 requests/s and answers 429 with Retry-After
        beyond; `img2dataset_polite_success` with 3 retries; `polite_requests` by status.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import QUICK, REPOSITORY, Measured, fresh_folder, measure, need_data, python, replaygen, rounded, write
from nginx import Nginx, nginx

IMG2DATASET = "img2dataset==1.47.0"
COUNT, FEW = (80, 40) if QUICK else (2000, 500)
POLITE = 60 if QUICK else 2000
SIDE = 256
RECIPE = """
name = "crawl"
shard = {shard}
[data]
kind = "folder"
path = "{data}"
[scenario]
task = "1"
[network]
kind = "small"
[replay.list]
source = "web"
path = "{lists}"
only = ["cow"]
count = {count}
max_side = {side}
[replay.list.web]
unknown_licence = "accept"
robots = false
[replay.list.crawl]
keep = "{keep}"
[replay.list.screen]
duplicates = -1
leaks = -1
grayscale = false
text = 1.0
flat = false
[run.crawl]
rate = {rate}
connections = {connections}
"""
BARE = """
import hashlib, json, sys, time
import cv2, simplejpeg, urllib3
urls = open(sys.argv[1]).read().split()
side = int(sys.argv[2])
cv2.setNumThreads(1)
pool = urllib3.PoolManager(maxsize=8)
def one(url):
    data = pool.request("GET", url, retries=False).data
    hashlib.sha256(data).hexdigest()
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    scale = side / max(height, width)
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = simplejpeg.decode_jpeg(data, min_height=small[1], min_width=small[0])
    image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    hashlib.sha256(simplejpeg.encode_jpeg(image, quality=95, colorsubsampling="420")).hexdigest()
for url in urls[:50]:
    one(url)
began = time.process_time()
for url in urls:
    one(url)
print(json.dumps({"cpu_ms": (time.process_time() - began) * 1000 / len(urls)}))
"""
LOOKS = """
import json, sys, tarfile, time
from replaygen.sample import decode_image
from replaygen.screens.looks import look
with tarfile.open(sys.argv[1]) as tar:
    images = [tar.extractfile(one).read() for one in tar if one.name.endswith(".jpg")]
look(decode_image(images[0]))
began = time.process_time()
for data in images:
    look(decode_image(data))
print(json.dumps({"cpu_ms": (time.process_time() - began) * 1000 / len(images)}))
"""


DECODE = """
import json, pathlib, sys, tarfile, time
from replaygen.sample import decode_image
images = []
for path in sorted(pathlib.Path(sys.argv[1], "objects").rglob("*")):
    if path.is_file() and len(images) < 500 and tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            images += [tar.extractfile(one).read() for one in tar if one.name.endswith(".jpg")]
decode_image(images[0])
began = time.process_time()
for data in images:
    decode_image(data)
print(json.dumps({"cpu_ms": (time.process_time() - began) * 1000 / len(images)}))
"""


def main() -> None:
    """All of it."""
    data = need_data("voc_animals", "camvid", "web_animals")
    peer = _peer(REPOSITORY / "data" / "bench-crawl")
    with fresh_folder() as work:
        _photographs(data, work / "files")
        os.environ["REPLAYGEN_STATE"] = str(work / "state")
        with nginx(work / "files", work / "nginx") as server:
            os.environ["REPLAYGEN_ALLOW_HOSTS"] = f"127.0.0.1:{server.port}"
            write("crawl", {**_fast(work, server, peer), **_polite(work, server, peer)})


def _fast(work: Path, server: Nginx, peer: Path) -> dict[str, Any]:
    """Throughput: all in turn, a few times, the best run of each."""
    url = f"http://127.0.0.1:{server.port}/fast"
    lists = {n: _list(work / f"fast-{n}", url, n) for n in (FEW, COUNT)}
    runs: dict[str, list[Measured]] = {"img2dataset": [], "crawl": [], "few": [], "verbatim": [], "verbatim_few": []}
    stored: dict[str, float] = {}
    ceilings: list[float] = []
    alone: list[float] = []
    halves = [_part(work / f"half-{i}", lists[COUNT], i) for i in range(2)]
    for turn in range(1 if QUICK else 3):
        alone.append(python(BARE, str(lists[COUNT]), str(SIDE)).told["cpu_ms"])
        with ThreadPoolExecutor(2) as pool:
            both = pool.map(lambda half: python(BARE, str(half), str(SIDE)).told["cpu_ms"], halves)
            ceilings.append(sum(both) / 2)
        runs["img2dataset"].append(_img2dataset(peer, lists[COUNT], work / f"peer-{turn}", COUNT))
        for name, keep, n in (("crawl", "resized", COUNT), ("few", "resized", FEW),
                              ("verbatim", "verbatim", COUNT), ("verbatim_few", "verbatim", FEW)):  # fmt: skip
            done = _crawl(work / f"{name}-{turn}", lists[n], n, keep=keep)
            stored[keep] = done.told["tally"]["stages"]["fetch"]["bytes"] / n
            runs[name].append(done)
    best = {name: min(done, key=lambda one: one.cpu_seconds) for name, done in runs.items()}
    wall = {name: min(one.seconds for one in done) for name, done in runs.items()}
    marginal = {
        name: (best[name].cpu_seconds - best[few].cpu_seconds) * 1000 / (COUNT - FEW)
        for name, few in (("crawl", "few"), ("verbatim", "verbatim_few"))
    }
    ceiling = min(ceilings)
    shard = next((work / "peer-0").glob("*.tar"))
    return {
        "images": COUNT,
        "cpu_ratio_vs_img2dataset": round(best["img2dataset"].cpu_seconds / best["crawl"].cpu_seconds, 2),
        "wall_ratio_vs_img2dataset": round(wall["img2dataset"] / wall["crawl"], 2),
        "share_of_codec_ceiling": round(ceiling / marginal["crawl"], 3),
        "share_of_codec_ceiling_alone": round(min(alone) / marginal["crawl"], 3),
        "cpu_ms": {
            **{name: round(best[name].cpu_seconds * 1000 / COUNT, 2) for name in ("img2dataset", "crawl", "verbatim")},
            **{f"{name}_marginal": round(value, 2) for name, value in marginal.items()},
            "ceiling": round(ceiling, 2), "ceiling_runs": rounded(ceilings), "ceiling_alone": rounded(alone),
            "crawl_runs": rounded([one.cpu_seconds * 1000 / COUNT for one in runs["crawl"]]),
            **{f"decode_{keep}": round(python(DECODE, str(work / f"{name}-0" / "cache")).told["cpu_ms"], 2)
               for name, keep in (("crawl", "resized"), ("verbatim", "verbatim"))},
            "screens": round(python(LOOKS, str(shard)).told["cpu_ms"], 2),
        },
        "wall_seconds": {name: round(wall[name], 1) for name in ("img2dataset", "crawl", "verbatim")},
        "peak_gb": {name: round(max(one.peak_gb for one in runs[name]), 2) for name in ("img2dataset", "crawl")},
        "bytes_per_image": {name: round(value) for name, value in stored.items()},
    }  # fmt: skip


def _polite(work: Path, server: Nginx, peer: Path) -> dict[str, Any]:
    """A server of 50 requests a second: ours begins without knowing it, and must find out."""
    listed = _list(work / "polite", f"http://127.0.0.1:{server.port}/polite", POLITE)
    server.polite_answers()
    done = _crawl(work / "polite-crawl", listed, POLITE, rate=1000)
    answers = server.polite_answers()
    got = done.told["tally"]["stages"]["fetch"]["accepted"]
    _img2dataset(peer, listed, work / "polite-peer", None, "--retries", "3")
    theirs = server.polite_answers()
    return {
        "polite_success": round(got / POLITE, 4),
        "polite_requests_per_image": round(sum(answers.values()) / POLITE, 4),
        "polite_requests": {str(status): count for status, count in sorted(answers.items())},
        "polite_seconds": round(done.seconds, 1),
        "img2dataset_polite_success": round(_samples(work / "polite-peer") / POLITE, 4),
        "img2dataset_polite_requests": {str(status): count for status, count in sorted(theirs.items())},
    }


def _crawl(work: Path, listed: Path, count: int, *, keep: str = "resized", rate: float = 100_000) -> Measured:
    (work / "pipelines").mkdir(parents=True)
    recipe = work / "pipelines" / "crawl.toml"
    lists = work / "lists"
    lists.mkdir()
    _pack(work / "pack")
    (lists / "cow.txt").write_text(listed.read_text())
    recipe.write_text(
        RECIPE.format(data=work / "pack", lists=lists, count=count, side=SIDE, keep=keep, rate=float(rate),
                      connections=4, shard=250)
    )  # fmt: skip
    done = replaygen("crawl", "fetch", str(recipe), "--json", cwd=work)
    fetched = done.told["tally"]["stages"]["fetch"]
    if rate > 1000 and fetched["accepted"] != count:
        raise RuntimeError(f"{fetched['accepted']} of {count} photos: {fetched['rejected']}")
    return done


def _img2dataset(peer: Path, listed: Path, out: Path, expected: int | None, *more: str) -> Measured:
    done = measure(
        [str(peer), "--url_list", str(listed), "--output_folder", str(out), "--output_format", "webdataset",
         "--processes_count", "2", "--thread_count", "16", "--image_size", str(SIDE), "--resize_mode",
         "keep_ratio_largest", "--resize_only_if_bigger", "True", "--encode_quality", "95",
         "--number_sample_per_shard", "500", "--compute_hash", "sha256", *more],
        cwd=out.parent,
    )  # fmt: skip
    if expected is not None and _samples(out) != expected:
        raise RuntimeError(f"img2dataset made {_samples(out)} of {expected} images")
    return done


def _samples(folder: Path) -> int:
    count = 0
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            count += sum(name.endswith(".jpg") for name in tar.getnames())
    return count


def _list(path: Path, url: str, count: int) -> Path:
    path.with_suffix(".txt").write_text("".join(f"{url}/{i:05d}.jpg\n" for i in range(count)))
    return path.with_suffix(".txt")


def _pack(folder: Path) -> None:
    """The smallest data set that a recipe can name: what the crawl is for is no part of its cost."""
    from PIL import Image

    for name in ("images", "masks", "splits"):
        (folder / name).mkdir(parents=True)
    for split in ("train", "val"):
        Image.new("RGB", (32, 32), "green").save(folder / "images" / f"{split}.jpg")
        mask = Image.new("L", (32, 32), 0)
        mask.paste(1, (8, 8, 24, 24))
        mask.save(folder / "masks" / f"{split}.png")
        (folder / "splits" / f"{split}.txt").write_text(f"{split}\n")
    colors = {"background": [0, 0, 0], "cow": [64, 128, 0]}
    classes = [{"id": i, "name": name, "color": color} for i, (name, color) in enumerate(colors.items())]
    (folder / "classes.json").write_text(json.dumps({"ignore_id": 255, "background_id": 0, "classes": classes}))


def _part(path: Path, listed: Path, half: int) -> Path:
    path.write_text("\n".join(listed.read_text().split()[half::2]))
    return path


def _photographs(data: Path, out: Path) -> None:
    """Real photographs, enlarged to a long side of 500 pixels: what Flickr calls medium."""
    from PIL import Image

    out.mkdir(parents=True)
    folders = ("voc_animals/images", "camvid/images", "web_animals/dog")
    sources = [path for folder in folders for path in sorted((data / folder).iterdir())]
    for i, path in enumerate(sources[:COUNT]):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        scale = 500 / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image.resize(size, Image.Resampling.LANCZOS).save(out / f"{i:05d}.jpg", quality=87)


def _peer(folder: Path) -> Path:
    """The img2dataset command, in an environment of its own, installed on first use."""
    command = folder / "venv" / "bin" / "img2dataset"
    if not command.exists():
        print(f"installing {IMG2DATASET} in {folder}", file=sys.stderr)
        venv.create(folder / "venv", with_pip=True)
        subprocess.run([str(folder / "venv" / "bin" / "pip"), "install", "--quiet", IMG2DATASET], check=True)
    return command


if __name__ == "__main__":
    main()
