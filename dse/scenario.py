"""What one request looks like: the modality mix, lengths, and how many run together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from dse.errors import UserError, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One kind of request.

    Attributes:
        prompt_tokens: text tokens of the prompt, without those that images or audio become.
        output_tokens: tokens generated, the first one (which prefill produces) included.
        images: images per request.
        image_px: (width, height) of each image as it arrives, in pixels.
        audio_s: seconds of audio per request.
        batch: requests that run together.

    Raises:
        UserError: a length that is negative or not a whole number, images without a size, nothing to generate.
    """

    prompt_tokens: int = 128
    output_tokens: int = 128
    images: int = 0
    image_px: tuple[int, int] = (0, 0)
    audio_s: float = 0.0
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "images", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"scenario: {name}={value!r} is not a whole number")
            if value < (0 if name in ("images", "prompt_tokens") else 1):
                raise UserError(f"scenario: {name}={value} is too small", f"use {name} >= {int(name != 'images')}")
        if isinstance(self.image_px, int):
            object.__setattr__(self, "image_px", (self.image_px, self.image_px))
        object.__setattr__(self, "image_px", tuple(self.image_px))
        if len(self.image_px) != 2 or any(
            isinstance(p, bool) or not isinstance(p, int) or p < 0 for p in self.image_px
        ):
            raise UserError(f"scenario: image_px={self.image_px!r} is not (width, height) in pixels")
        if self.images and min(self.image_px) < 1:
            raise UserError(f"scenario: {self.images} images of size {self.image_px}", "give image_px=(width, height)")
        if not math.isfinite(self.audio_s) or self.audio_s < 0:
            raise UserError(f"scenario: audio_s={self.audio_s} is not a length in seconds")

    def to_json(self) -> dict[str, Any]:
        """Return the scenario as JSON types."""
        return asdict(self) | {"image_px": list(self.image_px)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Scenario:
        """Return the scenario that :meth:`to_json` described; also reads hand-written mappings.

        Raises:
            UserError: an unknown key or a value that cannot be.
        """
        known = [f.name for f in fields(cls)]
        for key in document:
            if key not in known:
                raise unknown("scenario field", key, known)
        values = dict(document)
        if isinstance(values.get("image_px"), list):
            values["image_px"] = tuple(values["image_px"])
        return cls(**values)
