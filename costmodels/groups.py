"""Fused row groups on an accelerator, compiled: their operators run together, one tile of rows after the other.

A row tile of R rows passes through all steps of its group before the next one starts (:mod:`costmodels.fused_tables`
has the steps). What crosses to DRAM, for M rows in T = ceil(M / R) tiles:

    operands from outside   read once per consumer, as they are unfused at best
    tensors inside          neither read nor, unless somebody outside reads them, written
    weights                 once per row tile, T times; once where all weights of the group stay on chip

and on chip the largest slot needs

    R (tensors alive at 16 bits + projections' results that are being summed at 32 + operands from outside, twice
    where T > 1 + chunks of streamed tensors) + two weight tiles of every projection of the slot (or all weights)

Operands from outside of elementwise steps pass in chunks too, as wide as the array, twice.

The row tile is ``tile_m``, or the largest of the mapper's candidates (:func:`costmodels.mapper.cuts`) that fits: all of
them take the same cycles, so more on-chip memory never means more traffic nor time. Weight tiles are ``tile_n`` by
``tile_k``, or the smallest that hide their own loading. The order of loops is rows outermost, whatever ``loop_order``.

    time = exposed / bandwidth + max(array cycles / frequency, vector operations / lanes / frequency,
                                     (traffic - exposed) / bandwidth)

as tiles are double-buffered: array, vector unit and DRAM port work on neighbouring tiles. Exposed are the first fold
of the operand that stays in the array, if the group starts with a projection, and the results of the last fold, if it
ends with one.

Of experts a tile is of one expert's rows, and groups are worked off expert by expert. A step in a block that is pruned
away does not run: its neighbours then read and write as if it were outside.

Limits: the unfused model does not count on-chip accesses of vector work; here its tensors inside the group count, 16
bits read and written. An operand from outside is read once per consumer even where one tile could serve several. All
tensors are held side by side, an elementwise step does not overwrite its operand.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from costmodels.fused_tables import RowGroups
from costmodels.mapper import MOST_CUTS, cuts
from costmodels.products import A_BITS, B_BITS, B_BYTES, COUNT, HELD, WIDE, Bound, K, M, N, Products
from costmodels.systolic import (
    ACCUMULATOR_BYTES,
    INPUT_STATIONARY,
    OUTPUT_STATIONARY,
    PLAIN_BYTES,
    WEIGHT_STATIONARY,
    Chips,
    Pace,
    Tiles,
    pace,
    run_product,
)

# What a group does, by operator that leads it: rows of the planes, shape (17, n, operators). The first ten are those of
# a product (see costmodels.passes), with the time of the slowest of array and vector unit, and of DRAM.
VECTOR_OPS, CYCLES, READ_BYTES, WRITTEN_BYTES, TILE_ROWS, TILE_SPAN, HELD_BYTES = range(10, 17)
N_GROUP_PLANES: Final = 17


class Ask(NamedTuple):
    """What designs fuse.

    Attributes:
        mask: forms of each component, shape (n, components).
        attention: attentions that are fused, shape (n, attentions).
        tile_q, tile_kv: tiles of attention, 0 where the model chooses, shape (n,).
        lanes: of the vector unit, shape (n,).
        skipped: products that run in groups, shape (n, j).
    """

    mask: np.ndarray
    attention: np.ndarray
    tile_q: np.ndarray
    tile_kv: np.ndarray
    lanes: np.ndarray
    skipped: np.ndarray


class GroupRan(NamedTuple):
    """What one group does; ``live_bytes`` are operands and results in DRAM, of its largest step."""

    seconds: float
    weights: float
    caches: float
    activations: float
    macs: float
    scaled: float
    sram_reads: float
    sram_writes: float
    live_bytes: float
    held_bytes: float
    array_s: float
    traffic_s: float
    vector_ops: float
    cycles: float
    read: float
    written: float
    tile_rows: float
    tile_span: float


NOTHING: Final = GroupRan(*([0.0] * 18))


class Room(NamedTuple):
    """Scratch of the loops, one element per step of the largest group (or per slot)."""

    runs: np.ndarray
    width: np.ndarray
    outside: np.ndarray
    must_write: np.ndarray
    held: np.ndarray
    chunk: np.ndarray
    chunked: np.ndarray
    fixed: np.ndarray
    doubled: np.ndarray
    tile_n: np.ndarray
    tile_k: np.ndarray
    cuts: np.ndarray


def make_room(groups: RowGroups) -> Room:
    """Return scratch for the groups."""
    most = max(1, int(np.diff(groups.steps).max(initial=1)))
    vectors = (np.zeros(most) for _ in Room._fields[:-1])
    return Room._make([*vectors, np.empty((3, 2, MOST_CUTS))])


@njit(cache=True)
def times(seconds: float, array_s: float, vector_s: float, traffic_s: float) -> tuple[float, float, float]:
    """Return time of a group, and its parts: the slower of array and vector unit, and DRAM; the loser is 0.

    Args:
        seconds: of the exposed traffic.
        array_s, vector_s, traffic_s: what overlaps.
    """
    compute = max(array_s, vector_s)
    if compute >= traffic_s:
        return seconds + compute, compute, seconds
    return seconds + traffic_s, 0.0, seconds + traffic_s


@njit(cache=True)
def loaded(stays: int, m: float, k: float, n: float, rows: float, cols: float, p: Pace, a: float, b: float) -> float:
    """Return the bytes of the first fold of the operand that stays in the array."""
    if stays == WEIGHT_STATIONARY:
        return min(n, cols) * min(k, p.unit_k) * b
    return min(m, cols) * min(k, p.unit_k) * a if stays == INPUT_STATIONARY else 0.0


@njit(cache=True)
def drained(stays: int, m: float, n: float, rows: float, cols: float) -> float:
    """Return the bytes of the last results that leave the array."""
    if stays == WEIGHT_STATIONARY:
        return min(n, cols) * PLAIN_BYTES
    if stays == OUTPUT_STATIONARY:
        return min(m, rows) * min(n, cols) * PLAIN_BYTES
    return min(m, cols) * PLAIN_BYTES


@njit(cache=True)
def _size(dims: np.ndarray, at: int, heads: float, channels: float) -> float:
    return float(dims[at, 0] + dims[at, 1] * heads + dims[at, 2] * channels)


@njit(cache=True)
def _smallest(size: float, unit: float, least: float, asked: float, out: np.ndarray) -> float:
    """Return the smallest tile of a side that costs no cycles, or the one that is asked for."""
    return float(out[0, cuts(size, unit, least, asked, out) - 1])


@njit(cache=True)
def run_group(
    x: int, i: int, g: RowGroups, sizes: np.ndarray, at: int, p: Products, b: Bound, c: Chips, lanes: float, r: Room
) -> GroupRan:
    """Return what group x does in design i, whose product sizes are ``sizes[:, at]``."""
    first, n_steps = g.steps[x], g.steps[x + 1] - g.steps[x]
    rows, cols, stays, scalable = c.rows[i], c.cols[i], c.stays[i], c.is_scalable[i]
    copies, m = 1.0, b.per_sequence[i, g.rows[x]] * b.sequences[i, g.rows[x]]
    if m <= 0.0:
        return NOTHING
    # Which steps run, what each writes per row, and what comes from outside.
    any_runs = False
    for s in range(n_steps):
        at_s = first + s
        block, j = g.block[at_s], g.product[at_s]
        r.runs[s] = b.block[i, block]
        r.must_write[s] = float(g.writes[at_s])
        r.held[s] = r.chunk[s] = r.chunked[s] = r.fixed[s] = r.doubled[s] = 0.0
        any_runs = any_runs or r.runs[s] > 0.0
        heads, channels = b.heads[i, block], b.channels[i, block]
        if j >= 0:
            if p.copies[j] > 1.0 and r.runs[s] > 0.0:
                copies, m = sizes[COUNT, at, j], sizes[M, at, j]
            per_copy = 1.0 if p.copies[j] > 1.0 else sizes[COUNT, at, j]
            r.width[s], r.outside[s] = per_copy * sizes[N, at, j], per_copy * sizes[K, at, j]
        else:
            r.width[s] = _size(g.size, at_s, heads, channels)
            r.outside[s] = g.reads[at_s] * r.width[s]
        for e in range(g.inputs[at_s], g.inputs[at_s + 1]):
            source = g.source[e]
            if r.runs[s] > 0.0 and r.runs[source] > 0.0:
                read = r.outside[s] if j >= 0 else _size(g.source_size, e, heads, channels)
                r.outside[s] = max(r.outside[s] - read, 0.0)
            elif r.runs[source] > 0.0:
                r.must_write[source] = 1.0
    if not any_runs:
        return NOTHING
    # Weight tiles, the pace of the array, and the chunks that they make.
    least, unit, weights_all, stored = 1.0, 1.0, 0.0, 0.0
    for s in range(n_steps):
        j, slot = g.product[first + s], g.slot[first + s]
        if j < 0 or r.runs[s] <= 0.0:
            continue
        meets = pace(rows, cols, stays, scalable, sizes[A_BITS, at, j], sizes[HELD, at, j], sizes[WIDE, at, j])
        k, n, steps = sizes[K, at, j], sizes[N, at, j], max(rows, meets.least / meets.slots)
        least, unit = max(least, steps), meets.unit_m
        r.tile_n[s] = _smallest(n, meets.unit_n, steps, c.tile_n[i], r.cuts[2])
        r.tile_k[s] = _smallest(k, meets.unit_k, steps, c.tile_k[i], r.cuts[0])
        b_element = sizes[B_BYTES, at, j] / (k * n)
        one = 1.0 if p.copies[j] > 1.0 else sizes[COUNT, at, j]
        is_single = r.tile_n[s] >= n and r.tile_k[s] >= k and one * copies == 1.0
        r.fixed[slot] += (1.0 if is_single else 2.0) * r.tile_n[s] * r.tile_k[s] * b_element
        weights_all += one * sizes[B_BYTES, at, j]
        stored += sizes[COUNT, at, j] * sizes[B_BYTES, at, j]
        if g.is_streamed[first + s]:
            r.chunk[slot] = max(r.chunk[slot], r.tile_n[s])
        if g.takes_streamed[first + s]:
            r.chunk[slot] = max(r.chunk[slot], r.tile_k[s])
    # Bytes per row of each slot.
    for s in range(n_steps):
        if r.runs[s] <= 0.0:
            continue
        at_s = first + s
        j, slot, streamed = g.product[at_s], g.slot[at_s], g.is_streamed[at_s]
        if j >= 0:
            r.doubled[slot] += r.outside[s] * sizes[A_BITS, at, j] / 8.0
        elif g.is_elementwise[at_s]:
            r.chunk[slot] = max(r.chunk[slot], cols)
            r.chunked[slot] += 2.0 * PLAIN_BYTES * (r.outside[s] / max(r.width[s], 1.0))
        else:
            r.doubled[slot] += PLAIN_BYTES * r.outside[s]
        if streamed:
            r.chunked[slot] += ACCUMULATOR_BYTES if j >= 0 else PLAIN_BYTES
            continue
        is_inside = g.last[at_s] > slot
        if j < 0:
            r.held[slot] += PLAIN_BYTES * r.width[s]
        elif is_inside or g.takes_streamed[at_s]:
            r.held[slot] += ACCUMULATOR_BYTES * r.width[s]
        else:
            r.held[slot] += ACCUMULATOR_BYTES * min(r.tile_n[s], r.width[s])
        for later in range(slot + 1, g.last[at_s] + 1):
            r.held[later] += PLAIN_BYTES * r.width[s]
    # The largest row tile that fits.
    found = cuts(m, unit, least if unit == 1.0 else 1.0, c.tile_m[i], r.cuts[1])
    chosen, fetched, least_held = -1, 1.0, np.inf
    for y in range(found):
        tile, trips = r.cuts[1, 0, y], r.cuts[1, 1, y]
        buffers = 2.0 if trips * copies > 1.0 else 1.0
        streams = keeps = 0.0
        for slot in range(n_steps):
            per_row = r.held[slot] + buffers * r.doubled[slot] + r.chunk[slot] * r.chunked[slot]
            streams = max(streams, tile * per_row + r.fixed[slot])
            keeps = max(keeps, tile * per_row + weights_all)
        if streams <= c.sram_bytes[i] and chosen < 0:
            chosen, fetched, least_held = y, trips, streams
        if chosen >= 0 and fetched == 1.0:
            break
        if keeps <= c.sram_bytes[i]:
            chosen, fetched, least_held = y, 1.0, keeps
            break
        if chosen < 0 and min(streams, keeps) < least_held:
            least_held = min(streams, keeps)
    y = chosen if chosen >= 0 else found - 1
    if chosen < 0:
        fetched = r.cuts[1, 1, y]
    return _run_tiles(x, i, g, sizes, at, c, lanes, r, copies, m, r.cuts[1, 0, y], fetched, stored, least_held)


@njit(cache=True)
def _run_tiles(
    x: int, i: int, g: RowGroups, sizes: np.ndarray, at: int, c: Chips, lanes: float, r: Room,
    copies: float, m: float, tile: float, fetched: float, stored: float, held: float,
) -> GroupRan:  # fmt: skip
    """Return what a group does whose row tile is chosen; its weights are fetched so many times."""
    first, n_steps = g.steps[x], g.steps[x + 1] - g.steps[x]
    rows, cols, cores, stays, scalable = c.rows[i], c.cols[i], c.cores[i], c.stays[i], c.is_scalable[i]
    cycles = ops = read = written = macs = scaled = reads = writes = live = load = drain = 0.0
    is_start = True
    for s in range(n_steps):
        if r.runs[s] <= 0.0:
            continue
        at_s = first + s
        j = g.product[at_s]
        out = copies * m * r.width[s] * PLAIN_BYTES * r.must_write[s]
        drain = 0.0
        if j < 0:
            elements = copies * m * r.width[s]
            came = copies * m * r.outside[s] * PLAIN_BYTES
            ops += elements * g.ops[at_s]
            inside = copies * m * (g.reads[at_s] * r.width[s] - r.outside[s]) * PLAIN_BYTES
            reads += 8.0 * inside
            if g.last[at_s] > g.slot[at_s] or g.is_streamed[at_s]:
                writes += 8.0 * elements * PLAIN_BYTES
        else:
            k, n, a_bits = sizes[K, at, j], sizes[N, at, j], sizes[A_BITS, at, j]
            count, b_bytes = sizes[COUNT, at, j], sizes[B_BYTES, at, j]
            meets = pace(rows, cols, stays, scalable, a_bits, sizes[HELD, at, j], sizes[WIDE, at, j])
            tiles = Tiles(min(tile, m), r.tile_n[s], r.tile_k[s], 0.0, 1.0, 2.0)
            ran = run_product(count, m, k, n, a_bits, b_bytes, rows, cols, cores, stays, meets, tiles, PLAIN_BYTES)
            came = copies * m * r.outside[s] * a_bits / 8.0
            work = count * m * k * n
            cycles += ran.cycles
            macs += work
            scaled += work * a_bits * sizes[B_BITS, at, j] / 64.0
            # On-chip accesses of the product itself; what it moves differs from what it would alone.
            moved = ran.a_moved + ran.b_moved + ran.o_moved
            reads += ran.sram_read_bits - 4.0 * ran.o_moved + 4.0 * out
            writes += ran.sram_write_bits - 8.0 * moved + 4.0 * ran.o_moved + 8.0 * (came + fetched * count * b_bytes)
            writes += 4.0 * out
            if is_start:
                load = loaded(stays, m, k, n, rows, cols, meets, a_bits / 8.0 if came > 0.0 else 0.0, b_bytes / (k * n))
            drain = drained(stays, m, n, rows, cols) if out > 0.0 else 0.0
        is_start = False
        read += came
        written += out
        live = max(live, came + out)
    weights = fetched * stored
    exposed = min(load + drain, weights + read + written)
    bandwidth, freq = c.dram_bytes_per_s[i], c.freq_hz[i]
    traffic_s = (weights + read + written - exposed) / bandwidth
    seconds, array_s, outer_s = times(exposed / bandwidth, cycles / freq, ops / (lanes * freq), traffic_s)
    return GroupRan(
        seconds, weights, 0.0, read + written, macs, scaled, reads, writes, live, held, array_s, outer_s, ops, cycles,
        read + weights, written, tile, 0.0,
    )  # fmt: skip
