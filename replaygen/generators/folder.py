"""Where a generator's weights lie, what they are, and whether they can be used. No torch here.

Weights are a folder: the user's own, or, under a published name, one in the cache. What a folder holds is named by the
sha256 of its files, so that equal weights give equal keys wherever they lie. Nothing here is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin, urlsplit

from replaygen.datasets.manifest import build_manifest
from replaygen.errors import DataError, ModelError
from replaygen.learn.specs import file_sha256

if TYPE_CHECKING:
    import requests

Kind = Literal["biggan", "diffusion"]

PUBLISHED = ("biggan-deep-128", "biggan-deep-256", "biggan-deep-512")
"""BigGAN weights that have a name."""

SAFE = "model.safetensors"
TORCH = "pytorch_model.bin"
LIMIT = 10**9
"""Bytes that a download of published weights may have."""
REDIRECTIONS = 5
"""Redirections that a download follows."""

_HUB = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_WANTED = ["model_index.json", "*/*.safetensors", "*/*.json", "*/*.txt", "*/*.model"]
_UNWANTED = ["*.fp16.safetensors", "*.non_ema.safetensors", "*flax*", "*onnx*", "*openvino*"]
_DECIDING = (".safetensors", ".json", ".txt", ".model")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_USERINFO = re.compile(r"//[^/@\s]*@")
_CHUNK = 1 << 20
_JSON_MB = 16
_HEADER_MB = 100


def weights_folder(name_or_path: str, *, workspace: Path, kind: Kind) -> Path:
    """The folder with a generator's weights, fetched first where a published name is given and they are not here.

    Args:
        name_or_path: a folder, absolute or relative to `workspace`; else, for "biggan", one of `PUBLISHED`; for
            "diffusion", a model of the Hugging Face hub, "org/name" or "org/name@revision", where the revision is a
            commit, branch or tag.
        workspace: what relative folders are relative to.
        kind: what it is the weights of.

    BigGAN weights are kept in `$REPLAYGEN_WEIGHTS`, by default `~/.cache/replaygen/weights`, as safetensors. With
    REPLAYGEN_OFFLINE=1 or HF_HUB_OFFLINE=1 nothing is fetched. REPLAYGEN_BIGGAN_URL is a mirror's address.

    Raises:
        ModelError: no such folder or name, weights that are missing or damaged, a download that fails.
    """
    given = Path(name_or_path).expanduser()
    folder = given if given.is_absolute() else workspace / given
    if name_or_path.strip() and folder.is_dir():
        check_weights(folder, kind)
        return folder
    if name_or_path.strip() and folder.exists():
        raise ModelError("weights must be a folder, and this is a file", where=str(folder), hint="name its folder")
    if kind == "biggan":
        if name_or_path not in PUBLISHED:
            raise ModelError(
                f"no weights {name_or_path!r}: no folder and no published name", where=str(folder),
                hint=f"give a folder, or one of {', '.join(PUBLISHED)}",
            )  # fmt: skip
        return _published(name_or_path)
    match = _HUB.fullmatch(name_or_path)
    if match is None or ".." in name_or_path:
        raise ModelError(
            f"no weights {name_or_path!r}: no folder, and no name of a model on the hub", where=str(folder),
            hint='a folder with model_index.json, or "org/name" or "org/name@revision"',
        )  # fmt: skip
    return _from_hub(match["name"], match["revision"], folder)


def weights_identity(folder: Path, kind: Kind, *, cache_dir: Path | None = None) -> dict[str, str]:
    """Relative file name -> sha256 (hexadecimal) of every file that decides what the generator draws.

    Args:
        folder: as of `weights_folder`.
        kind: what it is the weights of.
        cache_dir: where hashes are remembered, under path, size, times and inode of a file.

    Raises:
        ModelError: a file is missing, damaged or unreadable.
    """
    check_weights(folder, kind)
    if kind == "biggan":
        names = ["config.json", biggan_weights_file(folder).name]
    else:
        parts = [part for part in _components(folder) if (folder / part).is_dir()]
        names = ["model_index.json"] + [
            path.relative_to(folder).as_posix()
            for part in parts
            for path in sorted((folder / part).rglob("*"))
            if path.suffix in _DECIDING and path.is_file()
        ]
    try:
        if cache_dir is None:
            return {name: file_sha256(folder / name) for name in sorted(names)}
        place = hashlib.sha256(os.fspath(folder.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        manifest = build_manifest(folder, names, cache_dir / f"weights-{place}.jsonl")
    except DataError as error:
        raise ModelError(error.what, where=error.where, hint="put the weights' file back") from None
    except OSError as error:
        raise ModelError(f"weights cannot be read: {error.strerror}", where=str(error.filename or folder)) from None
    return {name: sha for name, _, sha in manifest.entries}


def check_weights(folder: Path, kind: Kind) -> None:
    """Refuse a folder whose weights cannot be used; only names, sizes and headers are looked at.

    Raises:
        ModelError: something is missing, empty or cut off, or there are only pickles where safetensors are needed.
    """
    if not folder.is_dir():
        raise ModelError("no folder with weights", where=str(folder), hint="give a folder that exists")
    if kind == "biggan":
        read_json(folder / "config.json")
        _check_file(biggan_weights_file(folder))
        return
    for part in _components(folder):
        inside = folder / part
        if not inside.is_dir():
            raise ModelError(f"model_index.json names {part!r}, and there is no such folder", where=str(folder))
        safe = sorted(inside.glob("*.safetensors"))
        pickles = sorted(path.name for path in inside.iterdir() if path.suffix in _PICKLES)
        if not safe and pickles:
            raise ModelError(
                f"only pickled weights: {pickles[0]}", where=str(inside),
                hint="pickles can run code; take the safetensors, or save the pipeline with safe_serialization=True",
            )  # fmt: skip
        if not safe and (inside / "config.json").exists():
            raise ModelError("no *.safetensors beside config.json", where=str(inside), hint="fetch it again")
        for path in [*safe, *(inside / shard for shard in _shards(inside))]:
            _check_file(path)


def biggan_weights_file(folder: Path) -> Path:
    """model.safetensors, or else pytorch_model.bin; ModelError where there is neither."""
    for name in (SAFE, TORCH):
        if (folder / name).is_file():
            return folder / name
    raise ModelError(f"no weights: neither {SAFE} nor {TORCH}", where=str(folder), hint="put one beside config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a weights folder, of at most 16 MB; ModelError where there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(_JSON_MB * 10**6 + 1)
        if len(data) > _JSON_MB * 10**6:
            raise ModelError(f"more than {_JSON_MB} MB of JSON", where=str(path), hint="fetch it again")
        told = json.loads(data.decode("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"no {path.name}", where=str(path.parent), hint="is this a folder with weights?") from None
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"is not JSON: {error}", where=str(path), hint="fetch it again") from None
    if not isinstance(told, dict):
        raise ModelError("is no JSON object", where=str(path), hint="fetch it again")
    return told


def _components(folder: Path) -> list[str]:
    """The parts of a pipeline that model_index.json says are there."""
    told = read_json(folder / "model_index.json")
    rows = {name: row for name, row in told.items() if isinstance(row, list) and len(row) == 2 and row[0] is not None}
    odd = [name for name in rows if not re.fullmatch(r"\w[\w.-]*", name)]
    if odd or not rows:
        raise ModelError(
            f"model_index.json names {odd[0]!r}" if odd else "model_index.json names no parts", where=str(folder),
            hint="a pipeline saved by diffusers names its folders there",
        )  # fmt: skip
    return sorted(rows)


def _shards(folder: Path) -> list[str]:
    names: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        shards = read_json(index).get("weight_map")
        found = list(shards.values()) if isinstance(shards, dict) else []
        if not found or not all(isinstance(name, str) and "/" not in name for name in found):
            raise ModelError("names no shards", where=str(index), hint="fetch it again")
        names.update(found)
    return sorted(names)


def _check_file(path: Path) -> None:
    """Compare a safetensors file's header with its length; of another file, only that it is not empty."""
    again = "the file is cut off or damaged; fetch it again"
    try:
        size = path.stat().st_size
        if size == 0:
            raise ModelError("an empty file", where=str(path), hint="fetch it again")
        if path.suffix != ".safetensors":
            return
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ModelError("no safetensors file", where=str(path), hint=again)
            if length > _HEADER_MB * 10**6:
                raise ModelError(f"a header of more than {_HEADER_MB} MB", where=str(path), hint=again)
            header = json.loads(file.read(length))
        ends = [row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except FileNotFoundError:
        raise ModelError("weights' file not found", where=str(path), hint="fetch it again") from None
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise ModelError("no safetensors file", where=str(path), hint=again) from None
    if expected != size:
        raise ModelError(f"the file has {size} bytes, its header says {expected}", where=str(path), hint=again)


def _offline() -> str | None:
    """The variable that forbids fetching, where one does."""
    for name in ("REPLAYGEN_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on"):
            return name
    return None


def _published(name: str) -> Path:
    """The folder of a published BigGAN: fetched and converted in a hidden folder beside it, which is then renamed."""
    root = Path(os.environ.get("REPLAYGEN_WEIGHTS") or "~/.cache/replaygen/weights").expanduser()
    final = root / name
    by_hand = f"put config.json and {TORCH} or {SAFE} into {final}"
    from replaygen.generators import biggan

    if (final / "config.json").is_file() and (final / SAFE).is_file():
        check_weights(final, "biggan")
        return final
    try:
        if (final / "config.json").is_file() and (final / TORCH).is_file():
            check_weights(final, "biggan")
            if os.access(final, os.W_OK):
                with contextlib.suppress(OSError):  # it can be drawn from as it is; converted it only opens faster
                    biggan.convert(final)
            return final
        if variable := _offline():
            raise ModelError(f"{name} is not here, and {variable} forbids fetching it", where=str(final), hint=by_hand)
        root.mkdir(parents=True, exist_ok=True)
        with _hidden(root, name) as making:
            left = LIMIT
            for file, url in zip(("config.json", TORCH), _urls(name), strict=True):
                left -= fetch(url, making / file, limit=left, hint=by_hand)
            check_weights(making, "biggan")
            biggan.convert(making)
            (making / TORCH).unlink()
            try:
                os.rename(making, final)
            except OSError:  # there is a folder already: another process was faster, or it was incomplete
                for file in (SAFE, "config.json"):
                    os.replace(making / file, final / file)
    except OSError as error:
        raise ModelError(f"weights cannot be kept: {error.strerror}", where=str(error.filename or root)) from None
    return final


@contextlib.contextmanager
def _hidden(root: Path, name: str) -> Iterator[Path]:
    making = root / f".{name}-{os.getpid()}-{os.urandom(4).hex()}"
    making.mkdir()
    try:
        yield making
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _urls(name: str) -> tuple[str, str]:
    """Addresses of config.json and the weights, as the package knows them or at REPLAYGEN_BIGGAN_URL."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_pretrained_biggan.model import PRETRAINED_CONFIG_ARCHIVE_MAP, PRETRAINED_MODEL_ARCHIVE_MAP

    urls = PRETRAINED_CONFIG_ARCHIVE_MAP[name], PRETRAINED_MODEL_ARCHIVE_MAP[name]
    mirror = os.environ.get("REPLAYGEN_BIGGAN_URL", "").rstrip("/")
    if mirror:
        urls = f"{mirror}/{urls[0].rpartition('/')[2]}", f"{mirror}/{urls[1].rpartition('/')[2]}"
    return urls


def fetch(url: str, target: Path, *, limit: int, hint: str) -> int:
    """Download a file of at most `limit` bytes; its size.

    At most `REDIRECTIONS` are followed: to https, and to http where `url` is of http. Errors show no userinfo or query.

    Raises:
        ModelError: no answer, an error's, too many redirections or a forbidden one, too much, or fewer bytes than
            announced.
    """
    import requests

    read, where, again = 0, _shown(url), f"try again, or {hint}"
    try:
        with _answer(url, hint) as answer, target.open("wb") as file:
            where = _shown(answer.url)
            if answer.status_code != 200:
                raise ModelError(f"the server answers {answer.status_code}", where=where, hint=hint)
            announced = answer.headers.get("Content-Length", "")
            for chunk in answer.iter_content(_CHUNK):
                read += len(chunk)
                if read > limit or (announced.isdecimal() and int(announced) > limit):
                    raise ModelError(f"more than the {limit} bytes that weights may have", where=where, hint=hint)
                file.write(chunk)
    except (requests.RequestException, ValueError) as error:  # ValueError: an address that cannot be read
        told = f"the download failed: {type(error).__name__}"
        raise ModelError(told, where=where, hint=again) from None
    if announced.isdecimal() and int(announced) != read:
        raise ModelError(f"the download ended at {read} of {announced} bytes", where=where, hint=again)
    return read


def _answer(url: str, hint: str) -> requests.Response:
    """The answer that is no redirection."""
    import requests

    allowed = ("http", "https") if urlsplit(url).scheme == "http" else ("https",)
    at = url
    for _ in range(REDIRECTIONS + 1):
        answer = requests.get(
            at, stream=True, timeout=(10, 60), headers={"Accept-Encoding": "identity"}, allow_redirects=False
        )
        if not answer.is_redirect:
            return answer
        answer.close()
        before, at = at, _next(at, answer.headers["Location"])
        if urlsplit(at).scheme not in allowed:
            raise ModelError(f"the server redirects to {_shown(at)}, no https", where=_shown(before), hint=hint)
    raise ModelError(f"the server redirects more than {REDIRECTIONS} times", where=_shown(url), hint=hint)


def _next(url: str, location: str) -> str:
    """Where a redirection leads; userinfo goes along on the same server only."""
    old, new = urlsplit(url), urlsplit(urljoin(url, location))
    same = (old.scheme, _host(old.netloc)) == (new.scheme, new.netloc)
    return new._replace(netloc=old.netloc).geturl() if same else new.geturl()


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2]


def _shown(url: str) -> str:
    """Scheme, host and path of an address: what may be told of it."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.netloc and parts.port != 0
    except ValueError:
        sound = False
    return f"{parts.scheme}://{_host(parts.netloc)}{parts.path}" if sound else "an address that is not of http or https"


def _from_hub(name: str, revision: str | None, folder: Path) -> Path:
    """A snapshot of a hub model: from the hub's own cache where it is whole there, else fetched."""
    from huggingface_hub import snapshot_download

    by_hand = f"save the pipeline into a folder (from where it can be fetched) and give that folder, say {folder}"
    options: dict[str, Any] = {"revision": revision, "allow_patterns": _WANTED, "ignore_patterns": _UNWANTED}
    try:
        found = Path(snapshot_download(name, local_files_only=True, **options))
        check_weights(found, "diffusion")
        return found
    except ModelError as error:
        wrong = f"what is here cannot be used: {error.what}"
    except Exception as error:  # the hub's own: not there, or not all of it
        wrong = f"it is not here, or not all of it ({type(error).__name__})"
    if variable := _offline():
        raise ModelError(f"{name}: {wrong}; and {variable} forbids fetching it", hint=by_hand)
    try:
        found = Path(snapshot_download(name, **options))
    except Exception as error:
        shown = _USERINFO.sub("//", (str(error).strip().splitlines() or [""])[0][:200])
        raise ModelError(
            f"{name} cannot be fetched: {type(error).__name__}: {shown}",
            where=f"revision {revision}" if revision else "", hint=by_hand,
        ) from None  # fmt: skip
    check_weights(found, "diffusion")
    return found
