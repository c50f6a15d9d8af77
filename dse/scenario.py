"""What one request looks like: the modality mix, lengths, and how many run together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, TypeGuard

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
            value, least = getattr(self, name), 0 if name in ("images", "prompt_tokens") else 1
            if not _is_whole(value):
                raise UserError(f"scenario: {name}={value!r} is not a whole number")
            if value < least:
                raise UserError(f"scenario: {name}={value} is too small", f"use {name} >= {least}")
            object.__setattr__(self, name, int(value))
        sides = (self.image_px, self.image_px) if _is_whole(self.image_px) else self.image_px
        if not isinstance(sides, tuple | list) or len(sides) != 2 or not all(_is_whole(p) and p >= 0 for p in sides):
            raise UserError(f"scenario: image_px={self.image_px!r} is not (width, height) in pixels")
        object.__setattr__(self, "image_px", (int(sides[0]), int(sides[1])))
        if self.images and min(self.image_px) < 1:
            raise UserError(f"scenario: {self.images} images of size {self.image_px}", "give image_px=(width, height)")
        if isinstance(self.audio_s, bool) or not isinstance(self.audio_s, Real) or not 0 <= self.audio_s < math.inf:
            raise UserError(f"scenario: audio_s={self.audio_s!r} is not a length in seconds")
        object.__setattr__(self, "audio_s", float(self.audio_s))

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


def _is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, numpy's included; not True or False."""
    return isinstance(value, Integral) and not isinstance(value, bool)
