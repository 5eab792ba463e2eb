"""What a recipe says of the screens on labels. No heavy import: a plan reads these."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TrustSpec(BaseModel):
    """`[replay.NAME.trust]`: which labels are trusted. Each screen is off at 0.

    Limits are no numbers of the labeler's scale: they are quantiles of what the step's real images get from labelers
    that were not fitted on them, so they follow the class and the model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    area: float = Field(
        default=0.005, ge=0.0, lt=0.5, description="refuse where the class covers less, or more, than all but this "
        "share of the real images at either end (RECALL+'s adaptive threshold)",
    )  # fmt: skip
    confidence: float = Field(
        default=0.05, ge=0.0, lt=1.0, description="refuse below this quantile of the real images' mean confidence"
    )
    agreement: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="refuse below this quantile of their agreement between two looks"
    )
    typical: float = Field(
        default=0.05,
        ge=0.0,
        lt=1.0,
        description="refuse what is less like the real class than all but this share of it",
    )
    split: bool = Field(
        default=True, description="where the candidates clearly fall into two groups, refuse the lower one"
    )
    adversarial: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="refuse what a discriminator of real and replay takes for real less "
        "than all but this share of the real images (RECALL+)",
    )  # fmt: skip
    duplicates: float = Field(
        default=0.0, ge=0.0, le=1.0, description="refuse the worse of two whose features have a cosine above this"
    )
    best: bool = Field(
        default=False, description="where more are trusted than are wanted, take the best of them; else any, which "
        "keeps the hard ones among the easy",
    )  # fmt: skip
    keep: float = Field(
        default=0.5, ge=0.0, le=1.0, description="`split` never refuses more than the rest of those it judges"
    )
