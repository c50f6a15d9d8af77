"""Rounding of tensors to few bits and back: what a stored width does to the numbers, without any kernel for it.

Rounding to the nearest of 2^b evenly spaced levels. Asymmetric: from the least to the largest number, zero always among
them, with an integer zero point, q = round(w / s) + z, s = (max - min) / (2^b - 1). Symmetric: s = max |w| /
(2^(b-1) - 1), from -2^(b-1) to 2^(b-1) - 1 steps. Numbers that share s and z are a whole tensor, an output channel, or
a group of neighbours along the input features (of a channel that is no longer than a group: the channel). Scales are
kept at full precision; widths of 16 bits and more change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from dse.errors import UserError

PLAIN_BITS: Final = 16
GRANULARITIES: Final = ("tensor", "channel", "group")
_TINY: Final = 1e-12


@dataclass(frozen=True)
class Quantiser:
    """How weights are rounded.

    Attributes:
        granularity: what shares a scale: "tensor", "channel" or "group".
        symmetric: without zero points.
        group_size: weights per group.
    """

    granularity: str = "group"
    symmetric: bool = False
    group_size: int = 128

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise UserError(f"granularity={self.granularity!r}", f"one of {', '.join(GRANULARITIES)}")
        if self.group_size < 1:
            raise UserError(f"group_size={self.group_size} is not 1 or more")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a profile's provenance has them."""
        return {"symmetric": self.symmetric, "granularity": self.granularity, "group_size": self.group_size}

    def weights(self, w: torch.Tensor, bits: int) -> torch.Tensor:
        """Return a weight matrix (outputs, inputs) rounded to ``bits``."""
        if bits >= PLAIN_BITS:
            return w
        if self.granularity == "tensor":
            return _rounded(w.reshape(1, -1), bits, self.symmetric).reshape(w.shape)
        if self.granularity == "channel":
            return _rounded(w, bits, self.symmetric)
        return in_groups(w, bits, self.group_size, self.symmetric)


def in_groups(x: torch.Tensor, bits: int, size: int, symmetric: bool = False) -> torch.Tensor:
    """Return ``x`` rounded in groups of ``size`` neighbours of its last axis."""
    width = x.shape[-1]
    if bits >= PLAIN_BITS:
        return x
    if width <= size:
        return _rounded(x, bits, symmetric)
    # Zeros at the end leave the range of the last group as it is: zero is always in it.
    padded = torch.nn.functional.pad(x, (0, -width % size))
    return _rounded(padded.unflatten(-1, (-1, size)), bits, symmetric).flatten(-2)[..., :width]


def over_positions(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return features (..., positions, features) rounded per feature over the positions: keys."""
    if bits >= PLAIN_BITS:
        return x
    return _rounded(x.transpose(-1, -2), bits, symmetric=False).transpose(-1, -2)


def _rounded(x: torch.Tensor, bits: int, symmetric: bool) -> torch.Tensor:
    """Return ``x`` rounded; numbers along the last axis share a scale."""
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = (x.abs().amax(-1, keepdim=True) / max(top, 1)).clamp_min(_TINY)
        return (x / scale).round().clamp(-top - 1, top) * scale
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    top = 2**bits - 1
    scale = ((high - low) / top).clamp_min(_TINY)
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, top).sub(zero) * scale
