"""What a local stand-in for Flickr has to offer: photos, what it tells of them, and how it lies about them.

Everything about a photo (id, owner, title, licence, date) is made up from the digest of its file's name, so it is the
same each time.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

FREE: Final = (4, 7, 8, 9, 10, 11)
MIXED: Final = (4, 4, 4, 9, 10, 11, 8, 0, 0, 2, 5, 6, 13)
_CC: Final = ("BY-NC-SA", "BY-NC", "BY-NC-ND", "BY", "BY-SA", "BY-ND")
_FOUR: Final = ("BY", "BY-SA", "BY-ND", "BY-NC", "BY-NC-SA", "BY-NC-ND")
_OTHERS: Final = (
    (0, "All Rights Reserved", "https://www.flickrhelp.com/hc/en-us/articles/10710266545556"),
    (7, "No known copyright restrictions", "https://www.flickr.com/commons/usage/"),
    (8, "United States Government Work", "http://www.usa.gov/copyright.shtml"),
    (9, "Public Domain Dedication (CC0)", "https://creativecommons.org/publicdomain/zero/1.0/"),
    (10, "Public Domain Mark", "https://creativecommons.org/publicdomain/mark/1.0/"),
)


def licence_table() -> list[dict[str, Any]]:
    """Flickr's seventeen licences, as flickr.photos.licenses.getInfo tells them."""
    rows = list(_OTHERS)
    for names, first, version in ((_CC, 1, "2.0"), (_FOUR, 11, "4.0")):
        for number, name in enumerate(names, first):
            rows.append(
                (number, f"CC {name} {version}", f"https://creativecommons.org/licenses/{name.lower()}/{version}/")
            )
    return [{"id": number, "name": name, "url": url} for number, name, url in sorted(rows)]


@dataclass(frozen=True)
class LocalPhoto:
    """One photo on offer. `words` is its class, then what else it answers to; `path` its file, where it has one."""

    id: str
    words: tuple[str, ...]
    title: str
    licence: int
    uploaded: int
    path: Path | None = None
    width: int = 1024
    height: int = 683
    owner: str = "12345678@N00"
    ownername: str = "someone"
    media: str = "photo"
    public: bool = True
    safety: int = 0
    secret: str = "0123456789"
    suffix: str = ".jpg"
    sizes: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    """Offered sizes instead of the file's own: suffix -> (address, width, height)."""

    @property
    def name(self) -> str:
        """Path of its file on the server."""
        return f"/65535/{self.id}_{self.secret}_m{self.suffix}"


def made_photo(
    name: str, words: Sequence[str], licences: Sequence[int] = MIXED, path: Path | None = None
) -> LocalPhoto:
    """A photo, all of it derived from the digest of a name."""
    draw = random.Random(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
    owner = draw.randrange(10**7, 10**8)
    photo = LocalPhoto(
        id=str(draw.randrange(10**9, 5 * 10**10)),
        words=tuple(words),
        title=f"{draw.choice(['A', 'My', 'Another', 'The'])} {words[0]} {draw.choice(['at home', 'in May', 'again'])}",
        licence=draw.choice(list(licences)),
        uploaded=draw.randrange(1_104_537_600, 1_735_689_600),
        path=path,
        owner=f"{owner}@N0{draw.randrange(10)}",
        ownername=f"owner {owner}",
        secret=f"{draw.randrange(16**10):010x}",
    )
    if path is None:
        return photo
    from PIL import Image

    with Image.open(path) as image:
        return replace(photo, suffix=path.suffix.lower(), width=image.width, height=image.height)


def folder_photos(
    root: Path,
    *,
    licences: Sequence[int] = MIXED,
    plant: Mapping[str, Sequence[str]] | None = None,
    also: Mapping[str, Sequence[str]] | None = None,
    per_class: int | None = None,
) -> list[LocalPhoto]:
    """The photos of a folder with one sub-folder a class.

    Args:
        root: the folder. A sub-folder `_distractor_goat` answers to "goat" only.
        licences: Flickr's numbers to choose from; a number named twice comes twice as often.
        plant: class -> other sub-folders whose photos answer to that class too.
        also: class -> other words that its photos answer to.
        per_class: only so many of each sub-folder.
    """
    photos = []
    for folder in sorted(path for path in Path(root).iterdir() if path.is_dir()):
        word = re.sub(r"^_(distractor_)?", "", folder.name)
        words = [word, *(also or {}).get(word, ())]
        words += [name for name, others in (plant or {}).items() if folder.name in others]
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        for path in files[:per_class]:
            photos.append(made_photo(f"{folder.name}/{path.name}", words, licences, path))
    return photos


def fits(photo: LocalPhoto, asked: Mapping[str, str], lies: Collection[str]) -> bool:
    """Whether a photo answers to a search, as far as no lie says otherwise."""
    text = re.findall(r'-?"[^"]*"|\S+', asked.get("text", "").lower())
    known = f" {photo.title} {' '.join(photo.words)} ".lower()
    words = set(re.findall(r"\w+", known))
    for term in text:
        bare = term.lstrip("-").strip('"')
        has = bare in words or (" " in bare and f" {bare} " in known)
        if has == term.startswith("-"):
            return False
    tags = [tag.strip().lower() for tag in asked.get("tags", "").split(",") if tag.strip()]
    has_tags = [tag in {word.lower().replace(" ", "") for word in photo.words} for tag in tags]
    if tags and not (any(has_tags) if asked.get("tag_mode", "any") == "any" else all(has_tags)):
        return False
    licences = [one for one in asked.get("license", "").split(",") if one]
    if licences and "licence-filter" not in lies and str(photo.licence) not in licences:
        return False
    if "media-filter" not in lies and asked.get("media") == "photos" and photo.media != "photo":
        return False
    if "date-filter" not in lies:
        first = number(asked.get("min_upload_date"), 0)
        if not first <= photo.uploaded <= number(asked.get("max_upload_date"), 2**40):
            return False
    return photo.public and not (asked.get("safe_search", "1") == "1" and photo.safety > 0)


def entry(photo: LocalPhoto, extras: Collection[str], sizes: Mapping[str, tuple[str, int, int]]) -> dict[str, Any]:
    """A photo as a page of a search tells it."""
    told: dict[str, Any] = {
        "id": photo.id,
        "owner": photo.owner,
        "secret": photo.secret,
        "server": "65535",
        "farm": 66,
        "title": photo.title,
        "ispublic": int(photo.public),
        "isfriend": 0,
        "isfamily": 0,
    }
    more: dict[str, dict[str, Any]] = {
        "license": {"license": str(photo.licence)},
        "owner_name": {"ownername": photo.ownername},
        "media": {"media": photo.media, "media_status": "ready"},
        "tags": {"tags": " ".join(word.lower().replace(" ", "") for word in photo.words)},
        "date_upload": {"dateupload": str(photo.uploaded)},
        "o_dims": {"o_width": photo.width, "o_height": photo.height},
        "path_alias": {"pathalias": None},
    }
    for size, (url, wide, high) in sizes.items():
        more[f"url_{size}"] = {f"url_{size}": url, f"width_{size}": wide, f"height_{size}": high}
    for extra in sorted(extras):
        told.update(more.get(extra, {}))
    return told


def info(photo: LocalPhoto) -> dict[str, Any]:
    """A photo as flickr.photos.getInfo tells it."""
    page = f"https://www.flickr.com/photos/{photo.owner}/{photo.id}/"
    return {
        "id": photo.id,
        "secret": photo.secret,
        "server": "65535",
        "license": str(photo.licence),
        "safety_level": str(photo.safety),
        "rotation": 0,
        "owner": {"nsid": photo.owner, "username": photo.ownername, "realname": "", "path_alias": None},
        "title": {"_content": photo.title},
        "description": {"_content": ""},
        "visibility": {"ispublic": int(photo.public), "isfriend": 0, "isfamily": 0},
        "dates": {"posted": str(photo.uploaded)},
        "urls": {"url": [{"type": "photopage", "_content": page}]},
        "media": photo.media,
    }


def lied(told: list[Any], lies: Collection[str], draw: random.Random) -> list[Any]:
    """A page's photos with the lies about single photos in them."""
    if "empty-pages" in lies and draw.random() < 0.3:
        return []
    for place, entry in enumerate(told):
        if "unknown-licence" in lies and draw.random() < 0.2:
            entry["license"] = draw.choice(["77", 77, "17", "-1", "4 ", "04", "٤"])
        if "malformed" in lies and draw.random() < 0.3:
            name = draw.choice(sorted(entry))
            entry[name] = draw.choice(
                [None, [], {}, -1, 1.5, True, "", "\x00\ud800", "../../x", [[]], 10**30, "http://["]
            )
            told[place] = draw.choice([entry, entry, entry, None, "photo", 3, [entry]])
    return told


def number(told: str | None, otherwise: int) -> int:
    """A number in a call; `otherwise` where it is none."""
    return int(told) if told and re.fullmatch(r"[0-9]{1,12}", told) else otherwise
