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

from costmodels.fused_tables import IS_STREAMED, LAST, OPS, PRODUCT, READS, SLOT, RowGroups
from costmodels.products import A_BITS, B_BYTES, COUNT, HELD, WIDE, Bound, K, N, Products
from costmodels.rowplan import MUST_WRITE, OUTSIDE, RUNS, TILE_K, TILE_N, WIDTH, Room, RowPlan, lay_out
from costmodels.systolic import (
    INPUT_STATIONARY,
    OUTPUT_STATIONARY,
    PLAIN_BYTES,
    WEIGHT_STATIONARY,
    OneChip,
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
    i: int, mask: np.ndarray, g: RowGroups, sizes: np.ndarray, at: int, p: Products, b: Bound, chip: OneChip,
    room: Room, totals: np.ndarray, held: np.ndarray, planes: np.ndarray,
) -> None:  # fmt: skip
    """Run the row groups of design i, whose product sizes are ``sizes[:, at]``, and enter them.

    Args:
        i: the design.
        mask: its forms, by component.
        g: the groups.
        sizes, at, p, b, chip: its products and its chip.
        room: to work in.
        totals, held, planes: as for :func:`costmodels.passes.run_fused_pass`.
    """
    heads, channels, runs, copies = b.heads[i], b.channels[i], b.block[i], p.copies
    lengths, numbers = b.per_sequence[i], b.sequences[i]
    ranges, labels, leaders, rows_of = g.range_of, g.label, g.leader, g.rows
    for component in range(len(mask)):
        for x in range(ranges[component, mask[component], 0], ranges[component, mask[component], 1]):
            rows = lengths[rows_of[x]] * numbers[rows_of[x]]
            if rows <= 0.0:
                continue
            plan = lay_out(g, x, rows, sizes, at, copies, heads, channels, runs, chip, room)
            if plan.copies <= 0.0:
                continue
            ran = _run_tiles(g, x, sizes, at, plan, chip, room.steps)
            enter(ran, i, labels[x], leaders[x], totals, held, planes)


@njit(cache=True)
def _run_tiles(
    g: RowGroups, x: int, sizes: np.ndarray, at: int, plan: RowPlan, chip: OneChip, r: np.ndarray
) -> GroupRan:  # fmt: skip
    """Return what group x does, whose steps are in the scratch."""
    step, cost, first = g.step, g.cost, g.steps[x]
    rows, cols, stays, scalable = chip.rows, chip.cols, chip.stays, chip.is_scalable
    all_rows, tile_m, fetched = plan.copies * plan.m, min(plan.tile, plan.m), plan.fetched
    cycles = ops = read = written = macs = busy = reads = writes = live = load = drain = 0.0
    is_start = True
    for s in range(g.steps[x + 1] - first):
        if r[RUNS, s] <= 0.0:
            continue
        at_s = first + s
        j = step[at_s, PRODUCT]
        out = all_rows * r[WIDTH, s] * PLAIN_BYTES * r[MUST_WRITE, s]
        drain = 0.0
        if j < 0:
            elements = all_rows * r[WIDTH, s]
            came = all_rows * r[OUTSIDE, s] * PLAIN_BYTES
            ops += elements * cost[at_s, OPS]
            reads += 8.0 * (all_rows * (cost[at_s, READS] * r[WIDTH, s] - r[OUTSIDE, s]) * PLAIN_BYTES)
            if step[at_s, LAST] > step[at_s, SLOT] or step[at_s, IS_STREAMED]:
                writes += 8.0 * elements * PLAIN_BYTES
        else:
            k, n, a_bits = sizes[K, at, j], sizes[N, at, j], sizes[A_BITS, at, j]
            count, b_bytes, width, wide = (
                sizes[COUNT, at, j],
                sizes[B_BYTES, at, j],
                sizes[HELD, at, j],
                sizes[WIDE, at, j],
            )
            meets = pace(rows, cols, stays, scalable, a_bits, width, wide)
            tiles = Tiles(tile_m, r[TILE_N, s], r[TILE_K, s], 0.0, 1.0, 2.0)
            ran = run_product(
                count, plan.m, k, n, a_bits, b_bytes, rows, cols, chip.cores, stays, meets, tiles, PLAIN_BYTES
            )
            came = all_rows * r[OUTSIDE, s] * a_bits / 8.0
            work = count * plan.m * k * n
            cycles += ran.cycles
            macs += work
            busy += work * element_cycles(scalable, a_bits, width, wide)
            # On-chip accesses of the product itself; what it moves differs from what it would alone.
            moved = ran.a_moved + ran.b_moved + ran.o_moved
            reads += ran.sram_read_bits - 4.0 * ran.o_moved + 4.0 * out
            writes += ran.sram_write_bits - 8.0 * moved + 4.0 * ran.o_moved + 8.0 * (came + fetched * count * b_bytes)
            writes += 4.0 * out
            if is_start:
                a_element = a_bits / 8.0 if came > 0.0 else 0.0
                load = loaded(stays, plan.m, k, n, cols, meets, a_element, b_bytes / (k * n))
            drain = drained(stays, plan.m, n, rows, cols) if out > 0.0 else 0.0
        is_start = False
        read += came
        written += out
        live = max(live, came + out)
    weights = fetched * plan.stored
    exposed = min(load + drain, weights + read + written)
    bandwidth = chip.dram_bytes_per_s
    traffic_s = (weights + read + written - exposed) / bandwidth
    seconds, array_s, outer_s = times(
        exposed / bandwidth, cycles / chip.freq_hz, ops / (chip.lanes * chip.freq_hz), traffic_s
    )
    return GroupRan(
        seconds, weights, 0.0, read + written, macs, busy, reads, writes, live, plan.held, array_s, outer_s, ops,
        cycles, read + weights, written, plan.tile, 0.0,
    )  # fmt: skip
