"""Who made the photos: ATTRIBUTION.md and .csv, and the numbers for the page's section on photos of other people.

Titles and owners are text from outside. In Markdown every sign that could become markup is escaped, in CSV nothing
begins a formula, and only http(s) addresses without a user name become links.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from urllib.parse import quote, urlsplit

from replaygen.errors import ReplaygenError
from replaygen.report.files import check_folder, write_text
from replaygen.report.text import cut, plain, plural, stripped
from replaygen.runs.proof import Proof, licence_told

FLICKR_NOTICE = "This product uses the Flickr API but is not endorsed or certified by SmugMug, Inc."
"""What the terms of the Flickr API ask to say wherever photos found through it are used."""

MOST_OWNERS = 200
"""Owners named on a page; the file names all."""

NOBODY = "owner not named"
NOT_NAMED = ("", "")
UNTITLED = "untitled"


def link(address: str) -> str:
    """An address that may stand in a link: http(s), with a host, without a user name; "" for any other.

    What could end an attribute or a Markdown destination is percent-encoded.
    """
    if not re.match(r"https?://", address, flags=re.IGNORECASE) or stripped(address) != address or len(address) > 2000:
        return ""
    try:
        parts = urlsplit(address)
        if not parts.hostname or "@" in parts.netloc:
            return ""
    except ValueError:
        return ""
    return parts.scheme + quote(address[len(parts.scheme) :], safe="%/:?#[]@!&*+,;=~-._")


# the files


def write_attribution(proofs: Iterable[Proof], out: Path, *, title: str, all_photos: bool | None = None) -> Path:
    """Write who made which photo; complete or not at all, and the same proofs give the same bytes.

    Args:
        out: a file, `.md` or `.csv`.
        title: what the photos are for, such as the recipe's title.
        all_photos: whether photos that are in no replay set are told too; by default in the `.csv` only.

    Raises:
        ReplaygenError: another ending, or the place cannot be written.
    """
    out = Path(out)
    check_folder(out)
    kind = out.suffix.lower()
    if kind not in (".md", ".csv"):
        raise ReplaygenError(f"attribution is written as .md or .csv, not {kind or 'without an ending'}",
                             where=str(out), hint="name it ATTRIBUTION.md or ATTRIBUTION.csv")  # fmt: skip
    everything = kind == ".csv" if all_photos is None else all_photos
    told = [proof for proof in proofs if everything or proof.decision == "accepted"]
    return write_text(out, as_csv(told) if kind == ".csv" else as_markdown(told, title=title))


def as_csv(proofs: Iterable[Proof]) -> str:
    """One row a photo, one column a field of `Proof`; no cell begins a formula or holds control characters."""
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(field.name for field in fields(Proof))
    for proof in proofs:
        rows.writerow(plain(value or "") for value in asdict(proof).values())
    return written.getvalue()


def as_markdown(proofs: Sequence[Proof], *, title: str) -> str:
    """One line a photo, by class: title, owner, licence, page, and what was done to the image."""
    lines = [f"# {escaped(title)}: photos of other people", "", *_preface(proofs)]
    for name in dict.fromkeys(proof.class_name for proof in proofs):
        of_class = [proof for proof in proofs if proof.class_name == name]
        lines += ["", f"## {escaped(name) or 'no class'}: {plural(len(of_class), 'photo')}", ""]
        lines += [f"- {_credit(proof)}" for proof in of_class]
    return "\n".join(lines) + "\n"


def _preface(proofs: Sequence[Proof]) -> list[str]:
    if not proofs:
        return ["No photo of other people is in it."]
    owners = len({_owner(proof) for proof in proofs} - {NOT_NAMED})
    told = ", ".join(f"{escaped(name)} ({count})" for name, _, count in licence_counts(proofs))
    lines = [
        f"{plural(len(proofs), 'photo')}, {plural(owners, 'owner')} named. Changes were made where it says so. "
        f"Licences: {told}. The owners endorse neither this work nor its use."
    ]
    ids = {one for proof in proofs if proof.decision == "accepted" for one in (proof.licence, proof.licence_now or "")}
    if any("-sa-" in licence for licence in ids):
        lines += ["", "What is made of share-alike photos, the changed images included, stays under their licence."]
    if any("-nc-" in licence for licence in ids):
        lines += ["", "Some of these licences allow no commercial use."]
    if any(proof.source == "flickr" for proof in proofs):
        lines += ["", FLICKR_NOTICE]
    return lines


def _credit(proof: Proof) -> str:
    """A photo in the form that Creative Commons recommends: title, author, source, licence, and what was changed."""
    photo = escaped(proof.photo)
    if proof.decision == "purged":
        return f"Photo {photo}: purged"
    title = escaped(cut(proof.title)) or UNTITLED
    page = link(proof.page) or link(proof.url)
    owner = escaped(cut(proof.owner)) or NOBODY
    parts = [
        f"“{title}” by {_linked(owner, proof.owner_page)}, {_licences(proof)}",
        _linked(photo, page),
    ]
    if proof.changes:
        parts.append("not changed" if proof.changes == "none" else proof.changes)
    if proof.decision != "accepted":
        parts.append(f"{proof.decision}: {escaped(proof.reason)}")
    elif proof.reason:
        parts.append(escaped(proof.reason))
    return "; ".join(parts)


def _licences(proof: Proof) -> str:
    """The licence that a photo was fetched under, and beside it the one that it has now, where that is another."""
    told = _linked(escaped(proof.licence_name) or "licence not known", proof.licence_url)
    if not proof.licence_now:
        return told
    name, address = licence_told(proof.licence_now)
    return f"fetched under {told}, now {_linked(escaped(name), address)}"


def _linked(text: str, address: str) -> str:
    # "&" is written as an entity: "&copy" in an address is none
    found = link(address).replace("&", "&amp;")
    return f"[{text}](<{found}>)" if found else text


_SIGNS = re.compile(r"[\\`*_{}\[\]#]")
_MARKUP = re.compile(r"[|~$^@]|(?<=www)\.|:(?=//)", flags=re.IGNORECASE)
"""Signs of dialects, in which a backslash may stay visible."""


def escaped(text: str) -> str:
    """Text for inside a line of Markdown: no element, link or emphasis comes of it, also where HTML is allowed."""
    text = " ".join(stripped(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(lambda sign: f"&#{ord(sign[0])};", _SIGNS.sub(r"\\\g<0>", text))


# the page


@dataclass(frozen=True)
class ClassLine:
    """The photos of one class from one source: how many have each decision, and why not, most frequent first."""

    name: str
    source: str
    offered: int
    decisions: dict[str, int]
    reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Owner:
    """Somebody who made photos that are in the replay: a name, a link or "", photos, licences."""

    name: str
    page: str
    photos: int
    licences: tuple[str, ...]


@dataclass(frozen=True)
class PhotoSummary:
    """The photos of other people that a plan was offered, in numbers.

    Attributes:
        licences: (name, link or "", accepted photos).
        owners: of accepted photos, most photos first, `MOST_OWNERS` at most; `more`: how many others there are.
        fetched, revalidated: the first and last day of what was accepted, "" where there is none.
        unchecked: accepted photos that were never asked for again.
        notice: what the source's terms ask to say, "" where nothing.
    """

    classes: tuple[ClassLine, ...]
    decisions: tuple[str, ...]
    accepted: int
    licences: tuple[tuple[str, str, int], ...]
    owners: tuple[Owner, ...]
    more: int
    fetched: tuple[str, str]
    revalidated: tuple[str, str]
    unchecked: int
    notice: str

    @property
    def makers(self) -> int:
        """Owners of accepted photos, those that are not named one by one included."""
        return len(self.owners) + self.more


def photo_summary(proofs: Sequence[Proof]) -> PhotoSummary | None:
    """What the page says of crawled photos; None where there are none."""
    if not proofs:
        return None
    accepted = [proof for proof in proofs if proof.decision == "accepted"]
    owners = _owners(accepted)
    decisions = [name for name in ("rejected", "failed", "not-fetched", "purged")
                 if any(proof.decision == name for proof in proofs)]  # fmt: skip
    flickr = any(proof.source == "flickr" for proof in proofs)
    return PhotoSummary(
        classes=tuple(_classes(proofs)), decisions=("accepted", *decisions), accepted=len(accepted),
        licences=licence_counts(accepted), owners=owners[:MOST_OWNERS], more=len(owners[MOST_OWNERS:]),
        fetched=_days(proof.fetched_at for proof in accepted),
        revalidated=_days(proof.revalidated_at for proof in accepted),
        unchecked=sum(not proof.revalidated_at for proof in accepted), notice=FLICKR_NOTICE if flickr else "",
    )  # fmt: skip


def licence_counts(proofs: Iterable[Proof]) -> tuple[tuple[str, str, int], ...]:
    """(name, link or "", photos) of each licence, most photos first; purged photos have none."""
    counted = Counter(
        (proof.licence_name or "licence not known", link(proof.licence_url))
        for proof in proofs if proof.decision != "purged"
    )  # fmt: skip
    return tuple((name, page, count) for (name, page), count in counted.most_common())


def _classes(proofs: Sequence[Proof]) -> Iterable[ClassLine]:
    groups: dict[tuple[str, str], list[Proof]] = {}
    for proof in proofs:
        groups.setdefault((proof.class_name, proof.source), []).append(proof)
    for (name, source), group in groups.items():
        reasons = Counter(proof.reason for proof in group if proof.reason and proof.decision != "accepted")
        yield ClassLine(name, source, len(group), dict(Counter(proof.decision for proof in group)),
                        tuple(reasons.most_common()))  # fmt: skip


def _owner(proof: Proof) -> tuple[str, str]:
    """Who made a photo: the page tells owners of one name apart."""
    page = link(proof.owner_page)
    return (page, "") if page else ("", proof.owner)


def _owners(accepted: Sequence[Proof]) -> tuple[Owner, ...]:
    groups: dict[tuple[str, str], list[Proof]] = {}
    for proof in accepted:
        groups.setdefault(_owner(proof), []).append(proof)
    found = [
        Owner(cut(next((proof.owner for proof in group if proof.owner), "")) or NOBODY, page, len(group),
              tuple(name for name, _, _ in licence_counts(group)))
        for (page, _), group in groups.items()
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda owner: (-owner.photos, owner.name.casefold(), owner.page)))


def _days(times: Iterable[str]) -> tuple[str, str]:
    days = [time[:10] for time in times if time]
    return (min(days, default=""), max(days, default=""))
