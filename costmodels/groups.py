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
from costmodels.products import A_BITS, B_BYTES, COUNT, HELD, WIDE, Bound, K, M, N, Products
from costmodels.systolic import (
    ACCUMULATOR_BYTES,
    INPUT_STATIONARY,
    OUTPUT_STATIONARY,
    PLAIN_BYTES,
    WEIGHT_STATIONARY,
    Chips,
    Pace,
    Tiles,
    element_cycles,
    pace,
    run_product,
)
from costmodels.totals import (
    ACTIVATION_BYTES,
    ELEMENT_CYCLES,
    GROUP_VECTOR_OPS,
    KV_BYTES,
    LIVE_BYTES,
    MACS,
    SECONDS,
    SRAM_READ_BITS,
    SRAM_WRITE_BITS,
    WEIGHT_BYTES,
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
    busy: float
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
def loaded(stays: int, m: float, k: float, n: float, cols: float, p: Pace, a: float, b: float) -> float:
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
def _smallest(size: float, unit: float, least: float, out: np.ndarray) -> float:
    """Return the smallest tile of a side that costs no cycles."""
    return float(out[0, cuts(size, unit, least, 0.0, out) - 1])


@njit(cache=True)
def enter(
    ran: GroupRan, i: int, label: int, leader: int, totals: np.ndarray, held: np.ndarray, planes: np.ndarray
) -> None:
    """Add what a group does to the totals of its design, and its own planes."""
    totals[SECONDS, i] += ran.seconds
    totals[WEIGHT_BYTES, i] += ran.weights
    totals[KV_BYTES, i] += ran.caches
    totals[ACTIVATION_BYTES, i] += ran.activations
    totals[MACS, i] += ran.macs
    totals[ELEMENT_CYCLES, i] += ran.busy
    totals[SRAM_READ_BITS, i] += ran.sram_reads
    totals[SRAM_WRITE_BITS, i] += ran.sram_writes
    totals[LIVE_BYTES, i] = max(totals[LIVE_BYTES, i], ran.live_bytes)
    totals[GROUP_VECTOR_OPS, i] += ran.vector_ops
    held[label, i] = max(held[label, i], ran.held_bytes)
    if planes.shape[1] > 0:
        for x in range(len(ran)):
            if x < LIVE_BYTES:
                planes[x, i, leader] = ran[x]
            elif x >= 10:
                planes[x - 2, i, leader] = ran[x]
        planes[HELD_BYTES, i, leader] = ran.held_bytes


@njit(cache=True)
def run_groups(
    i: int, mask: np.ndarray, g: RowGroups, sizes: np.ndarray, at: int, p: Products, b: Bound, c: Chips, lanes: float,
    r: Room, totals: np.ndarray, held: np.ndarray, planes: np.ndarray,
) -> None:  # fmt: skip
    """Run the row groups of design i, whose product sizes are ``sizes[:, at]``, and enter them.

    Args:
        i: the design.
        mask: its forms, by component.
        g: the groups.
        sizes, at, p, b, c: its products and its chip.
        lanes: of its vector unit.
        r: to work in.
        totals, held, planes: as for :func:`costmodels.passes.run_fused_pass`.
    """
    # A field of a record counts references each time it is named: once per design, not per step.
    g_block = g.block
    g_inputs = g.inputs
    g_is_elementwise = g.is_elementwise
    g_is_streamed = g.is_streamed
    g_last = g.last
    g_product = g.product
    g_reads = g.reads
    g_rows = g.rows
    g_size = g.size
    g_slot = g.slot
    g_source = g.source
    g_source_size = g.source_size
    g_takes_streamed = g.takes_streamed
    g_writes = g.writes
    p_copies = p.copies
    b_block = b.block
    b_channels = b.channels
    b_heads = b.heads
    b_per_sequence = b.per_sequence
    b_sequences = b.sequences
    r_chunk = r.chunk
    r_chunked = r.chunked
    cuts_m, cuts_side = r.cuts[1], r.cuts[0]
    r_doubled = r.doubled
    r_fixed = r.fixed
    r_held = r.held
    r_must_write = r.must_write
    r_outside = r.outside
    r_runs = r.runs
    r_tile_k = r.tile_k
    r_tile_n = r.tile_n
    r_width = r.width
    rows, cols, cores, stays, scalable = c.rows[i], c.cols[i], c.cores[i], c.stays[i], c.is_scalable[i]
    asked_m, asked_n, asked_k = c.tile_m[i], c.tile_n[i], c.tile_k[i]
    freq, bandwidth, sram = c.freq_hz[i], c.dram_bytes_per_s[i], c.sram_bytes[i]
    ranges, labels, leaders, steps_of, g_ops = g.range_of, g.label, g.leader, g.steps, g.ops
    for component in range(len(mask)):
        for x in range(ranges[component, mask[component], 0], ranges[component, mask[component], 1]):
            label, leader = labels[x], leaders[x]
            first, n_steps = steps_of[x], steps_of[x + 1] - steps_of[x]
            copies, m = 1.0, b_per_sequence[i, g_rows[x]] * b_sequences[i, g_rows[x]]
            if m <= 0.0:
                continue
            # Which steps run, what each writes per row, and what comes from outside.
            any_runs = False
            for s in range(n_steps):
                at_s = first + s
                block, j = g_block[at_s], g_product[at_s]
                r_runs[s] = b_block[i, block]
                r_must_write[s] = float(g_writes[at_s])
                r_held[s] = r_chunk[s] = r_chunked[s] = r_fixed[s] = r_doubled[s] = 0.0
                any_runs = any_runs or r_runs[s] > 0.0
                heads, channels = b_heads[i, block], b_channels[i, block]
                if j >= 0:
                    if p_copies[j] > 1.0 and r_runs[s] > 0.0:
                        copies, m = sizes[COUNT, at, j], sizes[M, at, j]
                    per_copy = 1.0 if p_copies[j] > 1.0 else sizes[COUNT, at, j]
                    r_width[s], r_outside[s] = per_copy * sizes[N, at, j], per_copy * sizes[K, at, j]
                else:
                    r_width[s] = _size(g_size, at_s, heads, channels)
                    r_outside[s] = g_reads[at_s] * r_width[s]
                for e in range(g_inputs[at_s], g_inputs[at_s + 1]):
                    source = g_source[e]
                    if r_runs[s] > 0.0 and r_runs[source] > 0.0:
                        read = r_outside[s] if j >= 0 else _size(g_source_size, e, heads, channels)
                        r_outside[s] = max(r_outside[s] - read, 0.0)
                    elif r_runs[source] > 0.0:
                        r_must_write[source] = 1.0
            if not any_runs:
                continue
            # Weight tiles, the pace of the array, and the chunks that they make.
            least, unit, weights_all, stored = 1.0, 1.0, 0.0, 0.0
            for s in range(n_steps):
                j, slot = g_product[first + s], g_slot[first + s]
                if j < 0 or r_runs[s] <= 0.0:
                    continue
                meets = pace(rows, cols, stays, scalable, sizes[A_BITS, at, j], sizes[HELD, at, j], sizes[WIDE, at, j])
                k, n, steps = sizes[K, at, j], sizes[N, at, j], max(rows, meets.least / meets.slots)
                least, unit = max(least, steps), meets.unit_m
                r_tile_n[s] = min(asked_n, n) if asked_n > 0.0 else _smallest(n, meets.unit_n, steps, cuts_side)
                r_tile_k[s] = min(asked_k, k) if asked_k > 0.0 else _smallest(k, meets.unit_k, steps, cuts_side)
                b_element = sizes[B_BYTES, at, j] / (k * n)
                one = 1.0 if p_copies[j] > 1.0 else sizes[COUNT, at, j]
                is_single = r_tile_n[s] >= n and r_tile_k[s] >= k and one * copies == 1.0
                r_fixed[slot] += (1.0 if is_single else 2.0) * r_tile_n[s] * r_tile_k[s] * b_element
                weights_all += one * sizes[B_BYTES, at, j]
                stored += sizes[COUNT, at, j] * sizes[B_BYTES, at, j]
                if g_is_streamed[first + s]:
                    r_chunk[slot] = max(r_chunk[slot], r_tile_n[s])
                if g_takes_streamed[first + s]:
                    r_chunk[slot] = max(r_chunk[slot], r_tile_k[s])
            # Bytes per row of each slot.
            for s in range(n_steps):
                if r_runs[s] <= 0.0:
                    continue
                at_s = first + s
                j, slot, streamed = g_product[at_s], g_slot[at_s], g_is_streamed[at_s]
                if j >= 0:
                    r_doubled[slot] += r_outside[s] * sizes[A_BITS, at, j] / 8.0
                elif g_is_elementwise[at_s]:
                    r_chunk[slot] = max(r_chunk[slot], cols)
                    r_chunked[slot] += 2.0 * PLAIN_BYTES * (r_outside[s] / max(r_width[s], 1.0))
                else:
                    r_doubled[slot] += PLAIN_BYTES * r_outside[s]
                if streamed:
                    r_chunked[slot] += ACCUMULATOR_BYTES if j >= 0 else PLAIN_BYTES
                    continue
                is_inside = g_last[at_s] > slot
                if j < 0:
                    r_held[slot] += PLAIN_BYTES * r_width[s]
                elif is_inside or g_takes_streamed[at_s]:
                    r_held[slot] += ACCUMULATOR_BYTES * r_width[s]
                else:
                    r_held[slot] += ACCUMULATOR_BYTES * min(r_tile_n[s], r_width[s])
                for later in range(slot + 1, g_last[at_s] + 1):
                    r_held[later] += PLAIN_BYTES * r_width[s]
            # The largest row tile that fits.
            found = cuts(m, unit, least if unit == 1.0 else 1.0, asked_m, cuts_m)
            chosen, fetched, least_held = -1, 1.0, np.inf
            for y in range(found):
                tile, trips = cuts_m[0, y], cuts_m[1, y]
                buffers = 2.0 if trips * copies > 1.0 else 1.0
                streams = keeps = 0.0
                for slot in range(n_steps):
                    per_row = r_held[slot] + buffers * r_doubled[slot] + r_chunk[slot] * r_chunked[slot]
                    streams = max(streams, tile * per_row + r_fixed[slot])
                    keeps = max(keeps, tile * per_row + weights_all)
                if streams <= sram and chosen < 0:
                    chosen, fetched, least_held = y, trips, streams
                if chosen >= 0 and fetched == 1.0:
                    break
                if keeps <= sram:
                    chosen, fetched, least_held = y, 1.0, keeps
                    break
                if chosen < 0 and min(streams, keeps) < least_held:
                    least_held = min(streams, keeps)
            y = chosen if chosen >= 0 else found - 1
            if chosen < 0:
                fetched = cuts_m[1, y]
            _run_tiles(
                i, label, leader, first, n_steps, sizes, at, copies, m, cuts_m[0, y], fetched, stored, least_held,
                rows, cols, cores, stays, scalable, freq, bandwidth, lanes, g_product, g_ops, g_reads, g_slot, g_last,
                g_is_streamed, r_runs, r_width, r_outside, r_must_write, r_tile_n, r_tile_k, totals, held, planes,
            )  # fmt: skip


@njit(cache=True)
def _run_tiles(
    i: int, label: int, leader: int, first: int, n_steps: int, sizes: np.ndarray, at: int, copies: float, m: float,
    tile: float, fetched: float, stored: float, held: float,
    rows: float, cols: float, cores: float, stays: int, scalable: int, freq: float, bandwidth: float, lanes: float,
    g_product: np.ndarray, g_ops: np.ndarray, g_reads: np.ndarray, g_slot: np.ndarray, g_last: np.ndarray,
    g_is_streamed: np.ndarray, r_runs: np.ndarray, r_width: np.ndarray, r_outside: np.ndarray,
    r_must_write: np.ndarray, r_tile_n: np.ndarray, r_tile_k: np.ndarray,
    totals: np.ndarray, held_by_label: np.ndarray, planes: np.ndarray,
) -> None:  # fmt: skip
    """Enter what a group does whose row tile is chosen; its weights are fetched so many times."""
    cycles = ops = read = written = macs = busy = reads = writes = live = load = drain = 0.0
    is_start = True
    for s in range(n_steps):
        if r_runs[s] <= 0.0:
            continue
        at_s = first + s
        j = g_product[at_s]
        out = copies * m * r_width[s] * PLAIN_BYTES * r_must_write[s]
        drain = 0.0
        if j < 0:
            elements = copies * m * r_width[s]
            came = copies * m * r_outside[s] * PLAIN_BYTES
            ops += elements * g_ops[at_s]
            inside = copies * m * (g_reads[at_s] * r_width[s] - r_outside[s]) * PLAIN_BYTES
            reads += 8.0 * inside
            if g_last[at_s] > g_slot[at_s] or g_is_streamed[at_s]:
                writes += 8.0 * elements * PLAIN_BYTES
        else:
            k, n, a_bits = sizes[K, at, j], sizes[N, at, j], sizes[A_BITS, at, j]
            count, b_bytes = sizes[COUNT, at, j], sizes[B_BYTES, at, j]
            meets = pace(rows, cols, stays, scalable, a_bits, sizes[HELD, at, j], sizes[WIDE, at, j])
            tiles = Tiles(min(tile, m), r_tile_n[s], r_tile_k[s], 0.0, 1.0, 2.0)
            ran = run_product(count, m, k, n, a_bits, b_bytes, rows, cols, cores, stays, meets, tiles, PLAIN_BYTES)
            came = copies * m * r_outside[s] * a_bits / 8.0
            work = count * m * k * n
            cycles += ran.cycles
            macs += work
            busy += work * element_cycles(scalable, a_bits, sizes[HELD, at, j], sizes[WIDE, at, j])
            # On-chip accesses of the product itself; what it moves differs from what it would alone.
            moved = ran.a_moved + ran.b_moved + ran.o_moved
            reads += ran.sram_read_bits - 4.0 * ran.o_moved + 4.0 * out
            writes += ran.sram_write_bits - 8.0 * moved + 4.0 * ran.o_moved + 8.0 * (came + fetched * count * b_bytes)
            writes += 4.0 * out
            if is_start:
                load = loaded(stays, m, k, n, cols, meets, a_bits / 8.0 if came > 0.0 else 0.0, b_bytes / (k * n))
            drain = drained(stays, m, n, rows, cols) if out > 0.0 else 0.0
        is_start = False
        read += came
        written += out
        live = max(live, came + out)
    weights = fetched * stored
    exposed = min(load + drain, weights + read + written)
    traffic_s = (weights + read + written - exposed) / bandwidth
    seconds, array_s, outer_s = times(exposed / bandwidth, cycles / freq, ops / (lanes * freq), traffic_s)
    ran_group = GroupRan(
        seconds, weights, 0.0, read + written, macs, busy, reads, writes, live, held, array_s, outer_s, ops, cycles,
        read + weights, written, tile, 0.0,
    )  # fmt: skip
    enter(ran_group, i, label, leader, totals, held_by_label, planes)
