"""Image rules: how many patches and visual tokens an image of a given size becomes.

Every family resizes and cuts images its own way, and the number of visual tokens follows from that, not from the
pixels. The rules here are those of the released processors: one square (:class:`FixedGrid`), the size kept as closely
as patches allow (:class:`SmartResize`); those that cut an image into tiles are in :mod:`dse.model.tiles`.

Left out: video (frames merged in time), and Gemma-3's pan-and-scan, which is off by default and adds square crops.

Heights and widths are in pixels, height first as in the processors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from dse.errors import UserError
from dse.model.parts import Grid, VisualLayout

# Far above any camera; keeps the arithmetic of the rules exact in floating point.
MAX_SIDE_PX = 1_000_000


class ImageRule(Protocol):
    """How one image becomes patches and tokens."""

    @property
    def resizes(self) -> bool:
        """Whether the size of the image changes the number of patches."""
        ...

    @property
    def has_tokens(self) -> bool:
        """Whether the image becomes tokens of the decoder (not only states for cross-attention)."""
        ...

    def layout(self, height_px: int, width_px: int) -> VisualLayout:
        """Return what an image of this size becomes."""
        ...


def check_size(height_px: int, width_px: int) -> None:
    """Raise a UserError unless both sides are whole numbers of pixels from 1."""
    for name, side in (("height_px", height_px), ("width_px", width_px)):
        if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= MAX_SIDE_PX:
            raise UserError(f"image {name}={side!r} is not a whole number from 1 to {MAX_SIDE_PX}")


def resized(height: int, width: int, side: float) -> tuple[int, int]:
    """Return (height, width) of an image scaled so that its longer side is ``side`` pixels; 0 leaves it alone."""
    if not side:
        return height, width
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True, slots=True)
class FixedGrid:
    """Every image is resized to one square: LLaVA-1.5, PaliGemma, Gemma-3.

    Attributes:
        side_px: side of that square.
        patch_px: side of a patch.
        pool: patches per side that are pooled into one token.
        class_token: whether the encoder adds a class token.
        keep_class: whether that token reaches the decoder.
        extra_tokens: delimiters.
    """

    side_px: int
    patch_px: int
    pool: int = 1
    class_token: bool = False
    keep_class: bool = False
    extra_tokens: int = 0

    @property
    def resizes(self) -> bool:
        """No: the square is fixed."""
        return False

    @property
    def has_tokens(self) -> bool:
        """Yes."""
        return True

    def layout(self, height_px: int, width_px: int) -> VisualLayout:
        """Return the same layout for every size."""
        check_size(height_px, width_px)
        cuts = self.side_px // self.patch_px
        side = cuts // self.pool
        grids = (Grid(1, side, side), *([Grid(1, 1, 1)] if self.keep_class else []))
        return VisualLayout(
            height_px=self.side_px,
            width_px=self.side_px,
            n_sequences=1,
            cuts=cuts * cuts,
            patches=cuts * cuts + self.class_token,
            merged=side * side + self.keep_class,
            grids=grids,
            extra_tokens=self.extra_tokens,
        )


@dataclass(frozen=True, slots=True)
class SmartResize:
    """The image keeps its shape; both sides become multiples of patch x merge: Qwen2-VL and its successors.

    The area is kept within limits. An image far longer than wide is refused, as the processors do.

    Attributes:
        patch_px: side of a patch.
        merge: patches per side that are merged into one token.
        min_pixels, max_pixels: limits of the area after resizing.
        extra_tokens: delimiters (vision start and end).
    """

    patch_px: int
    merge: int
    min_pixels: int
    max_pixels: int
    extra_tokens: int = 2

    MAX_ASPECT = 200

    @property
    def resizes(self) -> bool:
        """Yes."""
        return True

    @property
    def has_tokens(self) -> bool:
        """Yes."""
        return True

    def layout(self, height_px: int, width_px: int) -> VisualLayout:
        """Return the layout; a UserError for a longer side more than 200 times the shorter one."""
        check_size(height_px, width_px)
        if max(height_px, width_px) > self.MAX_ASPECT * min(height_px, width_px):
            raise UserError(
                f"image {width_px}x{height_px}: one side is more than {self.MAX_ASPECT} times the other",
                "the processors of this family refuse such an image; crop or tile it",
            )
        height, width = self._resized(height_px, width_px)
        rows, cols = height // self.patch_px, width // self.patch_px
        grid = Grid(1, rows // self.merge, cols // self.merge)
        return VisualLayout(
            height_px=height,
            width_px=width,
            n_sequences=1,
            cuts=rows * cols,
            patches=rows * cols,
            merged=grid.rows * grid.cols,
            grids=(grid,),
            extra_tokens=self.extra_tokens,
        )

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        factor = self.patch_px * self.merge
        # Python rounds halves to even, and so do the processors.
        resized = round(height / factor) * factor, round(width / factor) * factor
        if resized[0] * resized[1] > self.max_pixels:
            beta = math.sqrt(height * width / self.max_pixels)
            return (
                max(factor, math.floor(height / beta / factor) * factor),
                max(factor, math.floor(width / beta / factor) * factor),
            )
        if resized[0] * resized[1] < self.min_pixels:
            beta = math.sqrt(self.min_pixels / (height * width))
            return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
        return resized
