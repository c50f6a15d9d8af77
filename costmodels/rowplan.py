"""How a fused row group lies on an accelerator, compiled: which of its steps run, and the tile of rows that fits.

Shared by the closed form (:mod:`costmodels.groups` has the laws) and the simulator (:mod:`costmodels.simgroups`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from costmodels.fused_tables import (
    BLOCK,
    ENTRIES,
    IS_ELEMENTWISE,
    IS_STREAMED,
    LAST,
    PRODUCT,
    READS,
    SLOT,
    TAKES_STREAMED,
    WRITES,
    WRITTEN,
    RowGroups,
)
from costmodels.mapper import MOST_CUTS, cuts
from costmodels.products import A_BITS, B_BYTES, COUNT, HELD, WIDE, K, M, N
from costmodels.systolic import ACCUMULATOR_BYTES, PLAIN_BYTES, OneChip, pace

# Rows of the scratch. By step: whether it runs, elements per row that it writes and that it reads from outside, whether
# it writes to DRAM, its weight tile. By slot: bytes per row of tensors and of operands that are buffered twice, width
# of a chunk and bytes per row and column of it, bytes of weight tiles.
RUNS, WIDTH, OUTSIDE, MUST_WRITE, TILE_N, TILE_K, KEPT, DOUBLED, CHUNK, CHUNKED, FIXED = range(11)
N_SCRATCH: Final = 11


class Room(NamedTuple):
    """Scratch of the loops: a column per step of the largest group (or per slot); candidates of tiles."""

    steps: np.ndarray
    cuts: np.ndarray


class RowPlan(NamedTuple):
    """How a group runs.

    Attributes:
        copies: experts that run it, one after the other; 0 where nothing runs.
        m: rows of each.
        tile: rows of a tile.
        fetched: how often its weights are fetched: once, or once per tile.
        stored: bytes of weights of all copies.
        held: on-chip memory that it takes.
    """

    copies: float
    m: float
    tile: float
    fetched: float
    stored: float
    held: float


def make_room(groups: RowGroups) -> Room:
    """Return scratch for the groups."""
    most = max(1, int(np.diff(groups.steps).max(initial=1)))
    return Room(np.zeros((N_SCRATCH, most)), np.empty((2, 2, MOST_CUTS)))


@njit(cache=True)
def _size(dims: np.ndarray, at: int, first: int, heads: float, channels: float) -> float:
    return float(dims[at, first] + dims[at, first + 1] * heads + dims[at, first + 2] * channels)


@njit(cache=True)
def _smallest(size: float, unit: float, least: float, out: np.ndarray) -> float:
    """Return the smallest tile of a side that costs no cycles."""
    return float(out[0, cuts(size, unit, least, 0.0, out) - 1])


@njit(cache=True)
def lay_out(
    g: RowGroups, x: int, rows: float, sizes: np.ndarray, at: int, copies_of: np.ndarray,
    heads_of: np.ndarray, channels_of: np.ndarray, runs_of: np.ndarray, chip: OneChip, room: Room,
) -> RowPlan:  # fmt: skip
    """Return how group x of a design runs, and what its steps do in the scratch.

    Args:
        g, x: the group.
        rows: rows that pass through it.
        sizes, at: sizes of the design's products are ``sizes[:, at]``.
        copies_of: experts of each product.
        heads_of, channels_of, runs_of: what pruning leaves of each block.
        chip: of the design.
        room: is filled.
    """
    step, cost, source_of, source_size = g.step, g.cost, g.source, g.source_size
    r, cuts_side, cuts_m = room.steps, room.cuts[0], room.cuts[1]
    first = g.steps[x]
    n_steps = g.steps[x + 1] - first
    copies, m, any_runs = 1.0, rows, False
    # Which steps run, what each writes per row, and what comes from outside.
    for s in range(n_steps):
        at_s = first + s
        block, j = step[at_s, BLOCK], step[at_s, PRODUCT]
        runs = runs_of[block]
        r[RUNS, s], r[MUST_WRITE, s] = runs, float(step[at_s, WRITES])
        r[KEPT, s] = r[CHUNK, s] = r[CHUNKED, s] = r[FIXED, s] = r[DOUBLED, s] = 0.0
        any_runs = any_runs or runs > 0.0
        heads, channels = heads_of[block], channels_of[block]
        if j >= 0:
            if copies_of[j] > 1.0 and runs > 0.0:
                copies, m = sizes[COUNT, at, j], sizes[M, at, j]
            per_copy = 1.0 if copies_of[j] > 1.0 else sizes[COUNT, at, j]
            r[WIDTH, s] = per_copy * sizes[N, at, j]
            outside = per_copy * sizes[K, at, j]
        else:
            r[WIDTH, s] = _size(cost, at_s, WRITTEN, heads, channels)
            outside = cost[at_s, READS] * r[WIDTH, s]
        for e in range(step[at_s, ENTRIES], step[at_s + 1, ENTRIES]):
            source = source_of[e]
            if runs > 0.0 and r[RUNS, source] > 0.0:
                read = outside if j >= 0 else _size(source_size, e, 0, heads, channels)
                outside = max(outside - read, 0.0)
            elif r[RUNS, source] > 0.0:
                r[MUST_WRITE, source] = 1.0
        r[OUTSIDE, s] = outside
    if not any_runs:
        return RowPlan(0.0, m, m, 1.0, 0.0, 0.0)
    # Weight tiles, the pace of the array, and the chunks that they make.
    least, unit, weights_all, stored = 1.0, 1.0, 0.0, 0.0
    for s in range(n_steps):
        at_s = first + s
        j, slot = step[at_s, PRODUCT], step[at_s, SLOT]
        if j < 0 or r[RUNS, s] <= 0.0:
            continue
        meets = pace(
            chip.rows, chip.cols, chip.stays, chip.is_scalable, sizes[A_BITS, at, j], sizes[HELD, at, j],
            sizes[WIDE, at, j],
        )  # fmt: skip
        count, k, n, b_bytes = sizes[COUNT, at, j], sizes[K, at, j], sizes[N, at, j], sizes[B_BYTES, at, j]
        steps = max(chip.rows, meets.least / meets.slots)
        least, unit = max(least, steps), meets.unit_m
        tile_n = min(chip.tile_n, n) if chip.tile_n > 0.0 else _smallest(n, meets.unit_n, steps, cuts_side)
        tile_k = min(chip.tile_k, k) if chip.tile_k > 0.0 else _smallest(k, meets.unit_k, steps, cuts_side)
        one = 1.0 if copies_of[j] > 1.0 else count
        is_single = tile_n >= n and tile_k >= k and one * copies == 1.0
        r[TILE_N, s], r[TILE_K, s] = tile_n, tile_k
        r[FIXED, slot] += (1.0 if is_single else 2.0) * tile_n * tile_k * (b_bytes / (k * n))
        weights_all += one * b_bytes
        stored += count * b_bytes
        if step[at_s, IS_STREAMED]:
            r[CHUNK, slot] = max(r[CHUNK, slot], tile_n)
        if step[at_s, TAKES_STREAMED]:
            r[CHUNK, slot] = max(r[CHUNK, slot], tile_k)
    # Bytes per row of each slot.
    for s in range(n_steps):
        if r[RUNS, s] <= 0.0:
            continue
        at_s = first + s
        j, slot, last, streamed = step[at_s, PRODUCT], step[at_s, SLOT], step[at_s, LAST], step[at_s, IS_STREAMED]
        width = r[WIDTH, s]
        if j >= 0:
            r[DOUBLED, slot] += r[OUTSIDE, s] * sizes[A_BITS, at, j] / 8.0
        elif step[at_s, IS_ELEMENTWISE]:
            r[CHUNK, slot] = max(r[CHUNK, slot], chip.cols)
            r[CHUNKED, slot] += 2.0 * PLAIN_BYTES * (r[OUTSIDE, s] / max(width, 1.0))
        else:
            r[DOUBLED, slot] += PLAIN_BYTES * r[OUTSIDE, s]
        if streamed:
            r[CHUNKED, slot] += ACCUMULATOR_BYTES if j >= 0 else PLAIN_BYTES
            continue
        if j < 0:
            r[KEPT, slot] += PLAIN_BYTES * width
        elif last > slot or step[at_s, TAKES_STREAMED]:
            r[KEPT, slot] += ACCUMULATOR_BYTES * width
        else:
            r[KEPT, slot] += ACCUMULATOR_BYTES * min(r[TILE_N, s], width)
        for later in range(slot + 1, last + 1):
            r[KEPT, later] += PLAIN_BYTES * width
    # The largest row tile that fits.
    found = cuts(m, unit, least if unit == 1.0 else 1.0, chip.tile_m, cuts_m)
    chosen, fetched, least_held = -1, 1.0, np.inf
    for y in range(found):
        tile, trips = cuts_m[0, y], cuts_m[1, y]
        buffers = 2.0 if trips * copies > 1.0 else 1.0
        streams = keeps = 0.0
        for slot in range(n_steps):
            per_row = r[KEPT, slot] + buffers * r[DOUBLED, slot] + r[CHUNK, slot] * r[CHUNKED, slot]
            streams = max(streams, tile * per_row + r[FIXED, slot])
            keeps = max(keeps, tile * per_row + weights_all)
        if streams <= chip.sram_bytes and chosen < 0:
            chosen, fetched, least_held = y, trips, streams
        if chosen >= 0 and fetched == 1.0:
            break
        if keeps <= chip.sram_bytes:
            chosen, fetched, least_held = y, 1.0, keeps
            break
        if chosen < 0 and min(streams, keeps) < least_held:
            least_held = min(streams, keeps)
    y = chosen if chosen >= 0 else found - 1
    if chosen < 0:
        fetched = cuts_m[1, y]
    return RowPlan(copies, m, cuts_m[0, y], fetched, stored, least_held)
