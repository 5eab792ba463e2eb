"""What a recipe says of erasing: which pixels have to go, and what fills them. No heavy import: a plan reads these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_HOW = frozenset({"weights", "server", "timeout"})
_OPENCV_ONLY = frozenset({"method", "radius"})


class EraseSpec(BaseModel):
    """`[replay.NAME.erase]`: what has to go from a picture, and what fills the hole.

    Shares are of the picture's pixels. What decides pixels is in `identity()`, and so in the key; where weights or a
    server are found, and how long is waited for an answer, is in `where()`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Literal["opencv", "lama"] = Field(default="opencv", description="what fills a hole")
    method: Literal["telea", "ns"] = Field(default="telea", description="opencv: Telea's, or Navier-Stokes")
    radius: int = Field(default=5, ge=1, le=64, description="opencv: pixels around a hole's rim that fill it")
    weights: str | None = Field(default=None, description="lama: a TorchScript file")
    sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="lama: of the weights that you accept, as they are code, or that the server runs",
    )
    server: str | None = Field(default=None, pattern=r"^https?://", description="lama: a server that runs elsewhere")
    timeout: float = Field(default=60.0, gt=0.0, le=3600.0, description="seconds for one picture")
    others: bool = Field(default=True, description="erase where the labeler sees another known class")
    unsure: bool = Field(default=False, description="erase where the labeler is not sure")
    text: bool = Field(default=False, description="erase text and watermarks, where detected")
    dilate: float = Field(default=3.0, ge=0.0, le=64.0, description="pixels to grow, per 256 of the longer side")
    most: float = Field(default=0.35, gt=0.0, le=1.0, description="refuse a picture of which more would have to go")
    least: float = Field(default=0.001, ge=0.0, lt=1.0, description="leave regions that cover less of the picture")

    @model_validator(mode="after")
    def _fits_together(self) -> EraseSpec:
        if self.backend == "lama" and self.server is None and (self.weights is None or self.sha256 is None):
            raise ValueError(
                'backend = "lama" needs `weights` and their `sha256`, which says that you accept them, or a `server`'
            )
        if self.server is not None and self.sha256 is None:
            raise ValueError(
                "a `server` needs the `sha256` of the weights that it runs: two servers with different ones would "
                "pass for one"
            )
        if self.backend == "opencv" and (self.weights or self.sha256 or self.server):
            raise ValueError('`weights`, `sha256` and `server` are of backend = "lama"')
        if self.server is not None and self.weights is not None:
            raise ValueError("give `weights` or a `server`, not both; `sha256` says what a server runs")
        if not (self.others or self.unsure or self.text):
            raise ValueError("nothing would be erased: set others, unsure or text, or leave the table out")
        if self.least >= self.most:
            raise ValueError(f"least = {self.least} is not below most = {self.most}")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides pixels, as plain data for a key: weights by their sha256, no path, no address."""
        told = self.model_dump(mode="json", exclude=set(_HOW))
        if self.backend == "opencv":
            del told["sha256"]
        else:
            told = {name: value for name, value in told.items() if name not in _OPENCV_ONLY}
        return told

    def where(self) -> dict[str, Any]:
        """What only says how, for a task's `where`: the path of weights, a server's address, seconds to wait."""
        return {"weights": self.weights, "server": self.server, "timeout": self.timeout}
