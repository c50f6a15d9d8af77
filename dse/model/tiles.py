"""Image rules that cut an image into square tiles, each encoded on its own.

InternVL and Llama-4 choose a grid of tiles by shape and add the whole image once more, small; LLaVA-NeXT chooses among
listed canvases and drops the tokens of the padding; Idefics3 and SmolVLM resize to a fixed longest side; Llama-3.2
Vision turns its tiles into states for cross-attention and attends over all tiles of an image at once.

The choices repeat the arithmetic of the released processors step by step, floating-point rounding and tie-breaks
included: a different rounding moves an image to another number of tiles. Llama-4's processor compares scales in single
precision, and so does its rule here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

from dse.model.images import check_size
from dse.model.parts import Grid, VisualLayout


class _Tiled:
    """What all rules here share."""

    __slots__ = ()

    @property
    def resizes(self) -> bool:
        """Yes."""
        return True

    @property
    def has_tokens(self) -> bool:
        """Yes, except for cross-attention models."""
        return True


@dataclass(frozen=True, slots=True)
class AspectTiles(_Tiled):
    """The grid of tiles whose shape is nearest to the image's, plus a thumbnail: InternVL.

    Attributes:
        tile_px, patch_px: sides of a tile and of a patch.
        pool: patches per side that become one token (pixel shuffle).
        min_tiles, max_tiles: limits of the number of tiles.
        thumbnail: whether more than one tile is followed by the whole image as one more.
        extra_tokens: delimiters.
    """

    tile_px: int
    patch_px: int
    pool: int
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True
    extra_tokens: int = 2

    def layout(self, height_px: int, width_px: int) -> VisualLayout:
        """Return the layout."""
        check_size(height_px, width_px)
        cols, rows = self._grid(height_px, width_px)
        n_tiles = rows * cols + (self.thumbnail and rows * cols > 1)
        cuts = self.tile_px // self.patch_px
        side = cuts // self.pool
        return VisualLayout(
            height_px=rows * self.tile_px,
            width_px=cols * self.tile_px,
            n_sequences=n_tiles,
            cuts=cuts * cuts,
            patches=cuts * cuts + 1,
            merged=side * side,
            grids=(Grid(n_tiles, side, side),),
            extra_tokens=self.extra_tokens,
        )

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Return (columns, rows): nearest in aspect; of equals the larger one, while the image fills half of it."""
        best, best_gap = (1, 1), math.inf
        for cols, rows in _grids(self.min_tiles, self.max_tiles):
            gap = abs(width / height - cols / rows)
            filled = width * height > 0.5 * self.tile_px * self.tile_px * cols * rows
            if gap < best_gap or (gap == best_gap and filled):
                best, best_gap = (cols, rows), gap
        return best


def _grids(least: int, most: int) -> list[tuple[int, int]]:
    """Return all (columns, rows) with ``least`` to ``most`` tiles, by number of tiles, then by columns."""
    sides = range(1, most + 1)
    grids = [(cols, rows) for cols in sides for rows in sides if least <= cols * rows <= most]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])


@dataclass(frozen=True, slots=True)
class AnyResolution(_Tiled):
    """The listed canvas that wastes least, unpadded, with a newline after each row, plus a base view: LLaVA-NeXT.

    Attributes:
        tile_px, patch_px: sides of a tile and of a patch.
        canvases: (height, width) of the canvases to choose from.
        class_token: whether the encoder adds a class token.
        keep_class: whether that token reaches the decoder (of the base view only).
    """

    tile_px: int
    patch_px: int
    canvases: tuple[tuple[int, int], ...]
    class_token: bool = True
    keep_class: bool = False

    def layout(self, height_px: int, width_px: int) -> VisualLayout:
        """Return the layout; the row separators are ``extra_tokens``."""
        check_size(height_px, width_px)
        canvas = self._canvas(height_px, width_px)
        tiles = canvas[0] // self.tile_px, canvas[1] // self.tile_px
        side = self.tile_px // self.patch_px
        rows, cols = _unpadded(height_px, width_px, tiles[0] * side, tiles[1] * side)
        grids = [Grid(1, side, side), Grid(1, rows, cols), *([Grid(1, 1, 1)] if self.keep_class else [])]
        return VisualLayout(
            height_px=canvas[0],
            width_px=canvas[1],
            n_sequences=1 + tiles[0] * tiles[1],
            cuts=side * side,
            patches=side * side + self.class_token,
            merged=side * side + self.keep_class,
            grids=tuple(grids),
            extra_tokens=rows,
        )

    def _canvas(self, height: int, width: int) -> tuple[int, int]:
        best, most_used, least_wasted = self.canvases[0], 0, math.inf
        for canvas in self.canvases:
            scale = min(canvas[1] / width, canvas[0] / height)
            used = min(int(width * scale) * int(height * scale), width * height)
            wasted = canvas[0] * canvas[1] - used
            if used > most_used or (used == most_used and wasted < least_wasted):
                best, most_used, least_wasted = canvas, used, wasted
        return best


def _unpadded(height: int, width: int, rows: int, cols: int) -> tuple[int, int]:
    """Return the rows and columns of patches that show the image, not the padding around it."""
    if width / height > cols / rows:
        shown = int(round(height * (cols / width), 7))
        return rows - (rows - shown) // 2 * 2, cols
    shown = int(round(width * (rows / height), 7))
    return rows, cols - (cols - shown) // 2 * 2


@dataclass(frozen=True, slots=True)
class SplitTiles(_Tiled):
    """The longest side at a fixed length, cut into tiles, plus a global view: Idefics3, SmolVLM.

    Separators: two tokens before each tile, one after each row, three around the global view. A newline is counted as
    one token, and the two between the last row and the global view as one together, as their tokenizers have it.

    Attributes:
        tile_px, patch_px: sides of a tile and of a patch.
        pool: patches per side that become one token (pixel shuffle).
        longest_px: longest side after resizing.
        limit_px: longest side that the processor allows at all.
    """

    tile_px: int
    patch_px: int
    pool: int
    longest_px: int
    limit_px: int = 4096

    def layout(self, height_px: int, width_px: int) -> VisualLayout:
        """Return the layout."""
        check_size(height_px, width_px)
        height, width = self._resized(height_px, width_px)
        rows, cols = height // self.tile_px, width // self.tile_px
        split = rows * cols > 1
        n_tiles = rows * cols + 1 if split else 1
        cuts = self.tile_px // self.patch_px
        side = cuts // self.pool
        return VisualLayout(
            height_px=height,
            width_px=width,
            n_sequences=n_tiles,
            cuts=cuts * cuts,
            patches=cuts * cuts,
            merged=side * side,
            grids=(Grid(n_tiles, side, side),),
            extra_tokens=3 + (rows * (2 * cols + 1) if split else 0),
        )

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the size after the longest side is set, limited and rounded up to whole tiles."""
        height, width = _longest_even(height, width, self.longest_px)
        height, width = _at_most(height, width, self.limit_px)
        ratio, tile = width / height, self.tile_px
        if width >= height:
            width = math.ceil(width / tile) * tile
            return math.ceil(int(width / ratio) / tile) * tile, width
        height = math.ceil(height / tile) * tile
        return height, math.ceil(int(height * ratio) / tile) * tile


def _longest_even(height: int, width: int, longest: int) -> tuple[int, int]:
    ratio = width / height
    if width >= height:
        shorter = int(longest / ratio)
        return max(shorter + shorter % 2, 1), longest
    shorter = int(longest * ratio)
    return longest, max(shorter + shorter % 2, 1)


def _at_most(height: int, width: int, longest: int) -> tuple[int, int]:
    ratio = width / height
    if width >= height and width > longest:
        return max(int(longest / ratio), 1), longest
    if height > width and height > longest:
        return longest, max(int(longest * ratio), 1)
    return height, width


@dataclass(frozen=True, slots=True)
class StateTiles(_Tiled):
    """Tiles on the canvas that needs least scaling; states for cross-attention instead of tokens: Llama-3.2 Vision.

    The encoder pads the positions of a tile to a multiple of 8 and attends over all tiles of the image. Only tiles
    that show the image are counted; a batch padded to four tiles per image does more work without need.

    Attributes:
        tile_px, patch_px: sides of a tile and of a patch.
        max_tiles: tiles at most.
        extra_tokens: the token that stands for the image in the prompt.
    """

    tile_px: int
    patch_px: int
    max_tiles: int
    extra_tokens: int = 1

    PAD_TO = 8

    @property
    def has_tokens(self) -> bool:
        """No: states only."""
        return False

    def layout(self, height_px: int, width_px: int) -> VisualLayout:
        """Return the layout; one sequence holds all tiles."""
        check_size(height_px, width_px)
        sides = range(1, self.max_tiles + 1)
        canvases = [(rows, cols) for rows in sides for cols in sides if rows * cols <= self.max_tiles]
        rows, cols = _least_scaling(height_px, width_px, canvases, self.tile_px, float)
        cuts = (self.tile_px // self.patch_px) ** 2
        padded = -(-(cuts + 1) // self.PAD_TO) * self.PAD_TO
        return VisualLayout(
            height_px=rows * self.tile_px,
            width_px=cols * self.tile_px,
            n_sequences=1,
            cuts=rows * cols * cuts,
            patches=rows * cols * padded,
            merged=rows * cols * (cuts + 1),
            grids=(),
            extra_tokens=self.extra_tokens,
            n_states=rows * cols * (cuts + 1),
        )


@dataclass(frozen=True, slots=True)
class CanvasTiles(_Tiled):
    """Tiles on the canvas that needs least scaling, plus a global tile: Llama-4.

    Separators: one after each tile but the last of a row, one after each row, three around the global tile.

    Attributes:
        tile_px, patch_px: sides of a tile and of a patch.
        pool: patches per side that become one token (pixel shuffle).
        max_tiles: tiles at most, the global one not counted.
    """

    tile_px: int
    patch_px: int
    pool: int
    max_tiles: int = 16

    def layout(self, height_px: int, width_px: int) -> VisualLayout:
        """Return the layout."""
        check_size(height_px, width_px)
        rows, cols = _least_scaling(height_px, width_px, self._canvases(), self.tile_px, _single)
        split = rows * cols > 1
        n_tiles = rows * cols + 1 if split else 1
        cuts = self.tile_px // self.patch_px
        side = cuts // self.pool
        return VisualLayout(
            height_px=rows * self.tile_px,
            width_px=cols * self.tile_px,
            n_sequences=n_tiles,
            cuts=cuts * cuts,
            patches=cuts * cuts + 1,
            merged=side * side,
            grids=(Grid(n_tiles, side, side),),
            extra_tokens=3 + (rows * cols if split else 0),
        )

    def _canvases(self) -> list[tuple[int, int]]:
        """Return all (rows, columns), grouped by shape, the largest first: the order decides ties."""
        by_shape: dict[float, list[tuple[int, int]]] = {}
        for n in range(self.max_tiles, 0, -1):
            for rows in (d for d in range(1, n + 1) if n % d == 0):
                by_shape.setdefault(rows / (n // rows), []).append((rows, n // rows))
        return [canvas for group in by_shape.values() for canvas in group]


def _least_scaling(
    height: int, width: int, canvases: list[tuple[int, int]], tile_px: int, rounded: Callable[[float], float]
) -> tuple[int, int]:
    """Return (rows, columns) of the canvas that the image fits with least enlargement, else with least reduction.

    Of equals the smallest, then the first. ``rounded`` is applied to each scale before they are compared.
    """
    scales = [min(rounded(rows * tile_px / height), rounded(cols * tile_px / width)) for rows, cols in canvases]
    wanted = min((scale for scale in scales if scale >= 1), default=max(scales))
    fitting = [canvas for canvas, scale in zip(canvases, scales, strict=True) if scale == wanted]
    return min(fitting, key=lambda canvas: canvas[0] * canvas[1])


def _single(value: float) -> float:
    """Return ``value`` rounded to single precision."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
