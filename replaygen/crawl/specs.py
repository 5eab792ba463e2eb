"""What a recipe says of a crawl. What is in `[run.crawl]` says how, and is in no key."""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from replaygen.crawl.licences import allowed_licences

_LICENCES = (
    "allowed: free (CC BY, CC0, public domain mark, US government, no known restrictions), share-alike, "
    "non-commercial, or single ids such as cc-by-4.0"
)


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FlickrQuery(_Spec):
    """What to ask Flickr for a class.

    `text` is searched in titles, descriptions and tags; each synonym is searched too, and results are taken in turn.
    Photos with an excluded word in title or tags are refused, whatever the API answers.
    """

    text: str | None = Field(default=None, description="default: the class's name")
    synonyms: tuple[str, ...] = Field(default=(), description="searched too, results taken in turn")
    tags: tuple[str, ...] = Field(default=(), description="tags that a photo must have, besides the text")
    any_tag: bool = Field(default=False, description="one of the tags is enough")
    exclude: tuple[str, ...] = Field(default=(), description="words that neither title nor tags may hold")


class FlickrSpec(_Spec):
    """A search of Flickr."""

    as_of: datetime.date = Field(description="photos uploaded up to this day, UTC; to crawl again, move it")
    since: datetime.date = Field(default=datetime.date(2004, 2, 1), description="photos uploaded from this day on, UTC")
    licences: tuple[str, ...] = Field(default=("free",), description=_LICENCES)
    sort: Literal["relevance", "interestingness-desc", "date-posted-desc", "date-posted-asc"] = Field(
        default="relevance", description="which photos come first"
    )
    safe: bool = Field(default=True, description="safe search on")
    confirm: bool = Field(default=False, description="ask for each photo's licence and visibility before it is fetched")
    query: dict[str, FlickrQuery] = Field(default_factory=dict, description="class name -> what to ask")

    @field_validator("licences")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        allowed_licences(value)
        return value

    @model_validator(mode="after")
    def _a_time_passes(self) -> FlickrSpec:
        if self.since > self.as_of:
            raise ValueError(f"since = {self.since} is behind as_of = {self.as_of}")
        return self


class WebSpec(_Spec):
    """Lists of addresses: which column says what, and what of it is allowed.

    `path` of the replay table is one list with a column `class`, or a folder with one list a class (`cow.csv`).
    """

    url: str = Field(default="url", description="column with the photo's address")
    class_column: str = Field(default="class", description="column with its class, where one list has all")
    licence: str = Field(default="licence", description="column (or `license`): an id, a name, or an address")
    owner: str = Field(default="owner", description="column with its maker")
    title: str = Field(default="title", description="column with its title")
    page: str = Field(default="page", description="column with the page that shows it")
    sha256: str = Field(default="sha256", description="column with the digest that its bytes must have")
    licences: tuple[str, ...] = Field(default=("free",), description=_LICENCES)
    unknown_licence: Literal["reject", "accept"] = Field(
        default="reject", description="what to do with a photo whose licence the list does not tell"
    )
    robots: bool = Field(default=True, description="honour robots.txt")

    @field_validator("licences")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        allowed_licences(value)
        return value


class CrawlSpec(_Spec):
    """How a fetched photo is taken in."""

    keep: Literal["resized", "verbatim"] = Field(
        default="resized", description="resized: shrunk to max_side and encoded anew; verbatim: as it came, cleaned"
    )
    opt_out: bool = Field(default=True, description="honour noai, noimageai and tdm-reservation")


class ScreenSpec(_Spec):
    """The screens at the door. Distances are bits of a 64-bit perceptual hash that differ."""

    duplicates: int = Field(
        default=6, ge=-1, le=32, description="nearer is a duplicate, of this class or an earlier; -1: off"
    )
    leaks: int = Field(default=8, ge=-1, le=32, description="nearer to an evaluation image is a leak; -1: off")
    grayscale: bool = Field(default=True, description="refuse pictures without colour")
    text: float = Field(default=0.3, ge=0.0, le=1.0, description="refuse where more of the picture is text; 1: off")
    flat: bool = Field(default=True, description="refuse placeholders and pictures with next to nothing in them")

    @property
    def looks(self) -> bool:
        """Whether any screen is on."""
        return self.duplicates >= 0 or self.leaks >= 0 or self.grayscale or self.text < 1.0 or self.flat


class CrawlHow(_Spec):
    """How to crawl: in no key."""

    connections: int = Field(default=8, ge=1, le=64, description="at once to one host")
    rate: float = Field(default=20.0, gt=0.0, description="requests a second to one host, over all processes")
    deadline: float = Field(default=60.0, gt=0.0, description="seconds for one photo, all tries together")
    tries: int = Field(default=4, ge=1, le=20, description="of one photo")
    most_wait: float = Field(default=120.0, ge=0.0, description="longest Retry-After that is waited for, in seconds")
    most_mb: float = Field(default=10.0, gt=0.0, description="10^6 bytes that one photo may have")
    calls_per_hour: int = Field(default=3000, ge=1, le=3600, description="API calls of one key, over all processes")
