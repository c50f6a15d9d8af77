"""Fused row groups on the machine of :mod:`costmodels.machine`, tile of rows by tile of rows; compiled.

The layout is the analytical one (:mod:`costmodels.rowplan`): same row tile, weight tiles, tensors on chip and bytes.
What a tile does is written down first, as a list of items, and then run for each tile (:func:`run_items`):

    item      a slice of a step, on the array or on the vector unit, both of which take their items in order
    loads     weights, and operands of elementwise steps, as each slice needs them: one slice ahead on each unit (two
              buffers). Other operands from outside are loaded for the next tile while one is worked on, in equal parts;
              of the first tile as slices need them
    needs     items of other steps that must be done: a projection takes whole tensors, vector work that follows vector
              work its slice of rows; results leave the array R + C - 2 cycles late
    frees     items that must have read what is replaced

Steps that a streamed tensor joins go chunk by chunk: projections of chunk u, the projection that takes chunk u - 1,
then the vector work on chunk u. Thus the array works on the next chunk while the vector unit works on this one.

One tile of rows is on chip at a time, two where memory holds two; then the vector unit may work for the next tile while
the array is busy with this one. The closed form takes such overlap for granted, and the simulator shows where memory or
an only tile does not allow it. DRAM serves loads of the next slice before results of the slice before.

Limits: nothing is loaded ahead into a group; a fractional number of experts is interpolated.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from costmodels.fused_tables import (
    ENTRIES,
    IS_ELEMENTWISE,
    IS_STREAMED,
    OPERATOR,
    OPS,
    PRODUCT,
    SLOT,
    TAKES_STREAMED,
    RowGroups,
)
from costmodels.machine import (
    ARRAY,
    AT_DONE,
    FREE_O,
    FREE_X,
    FREE_Y,
    FRONT,
    LANES,
    LONG_AGO,
    N_STEPS,
    N_TIMES,
    NEXT_X,
    NEXT_Y,
    OPERANDS,
    PORT,
    READ,
    RELEASED,
    VECTOR,
    WRITE,
    WRITE_WAIT_S,
    Log,
    is_shifted,
    move,
    restart,
    skip,
    spare,
    work_beside,
)
from costmodels.products import A_BITS, B_BYTES, COUNT, HELD, WIDE, K, N, ceil
from costmodels.rowplan import MUST_WRITE, OUTSIDE, RUNS, TILE_K, TILE_N, WIDTH, RowPlan
from costmodels.systolic import OUTPUT_STATIONARY, PLAIN_BYTES, OneChip, Tiles, floor, pace, run_product
from costmodels.tilesim import WORTH_SKIPPING

# Slices of a group: as many as keep it below so many, within these bounds per step; of vector work, so many.
SLICES_OF_A_GROUP: Final = 4096.0
LEAST_SLICES: Final = 4.0
MOST_SLICES: Final = 64.0
VECTOR_SLICES: Final = 8.0

# Columns of an item: operator, unit, time; bytes of weights, of operands as they are needed, and of operands that the
# first tile loads here; bytes of results; items of the array and of the vector unit that it needs, and that free its
# place (-1 for none); the next item on its unit (-1 for none).
(
    ITEM_OP, ITEM_UNIT, ITEM_S, WEIGHTS, STREAMED, FIRST, RESULTS, NEEDS_ARRAY, NEEDS_LANES, FREED_ARRAY, FREED_LANES,
    NEXT,
) = range(12)  # fmt: skip
N_ITEM: Final = 12


@njit(cache=True)
def most_items(n_steps: int) -> int:
    """Return the room that the items of a group need."""
    return int(n_steps * (MOST_SLICES + 1.0)) + 1


@njit(cache=True)
def write_items(
    g: RowGroups, x: int, sizes: np.ndarray, at: int, copies_of: np.ndarray, plan: RowPlan, rows: float, c: OneChip,
    r: np.ndarray, out: np.ndarray,
) -> int:  # fmt: skip
    """Write the items of a tile of ``rows`` rows to ``out``, shape (items, N_ITEM); return how many there are.

    Args:
        g, x, sizes, at, copies_of, c: as for :func:`costmodels.rowplan.lay_out`.
        plan, r: what it returned, and its scratch.
    """
    step, first = g.step, g.steps[x]
    n_steps = g.steps[x + 1] - first
    latest = np.full(n_steps, -1)
    limit = min(max(floor(SLICES_OF_A_GROUP / (ceil(plan.m / plan.tile) * n_steps)), LEAST_SLICES), MOST_SLICES)
    n = 0
    for slot in range(n_steps):
        columns, is_chunked, lags = 0.0, False, False
        for s in range(n_steps):
            if step[first + s, SLOT] == slot and r[RUNS, s] > 0.0 and step[first + s, IS_STREAMED]:
                columns, is_chunked = max(columns, r[WIDTH, s]), True
                lags = lags or step[first + s, PRODUCT] < 0
        if not is_chunked:
            for s in range(n_steps):
                if step[first + s, SLOT] == slot and r[RUNS, s] > 0.0:
                    slices = VECTOR_SLICES
                    if step[first + s, PRODUCT] >= 0:
                        slices = min(limit, max(1.0, ceil(_folds(sizes, at, step[first + s, PRODUCT], c) / c.cores)))
                    for j in range(int(slices)):
                        n = _write(g, x, s, j, slices, sizes, at, copies_of, rows, c, r, latest, out, n)
            continue
        chunks = min(limit, max(1.0, ceil(columns / c.cols)))
        for turn in range(int(chunks) + (1 if lags else 0)):
            for part in range(3):
                # Projections; what takes the chunk before, or this one where no vector work lies between; vector work.
                u = turn - 1 if part == 1 and lags else turn
                if u < 0 or u >= chunks:
                    continue
                for s in range(n_steps):
                    one = step[first + s]
                    which = 2 if one[PRODUCT] < 0 else 1 if one[TAKES_STREAMED] else 0
                    if one[SLOT] == slot and r[RUNS, s] > 0.0 and which == part:
                        n = _write(g, x, s, u, chunks, sizes, at, copies_of, rows, c, r, latest, out, n)
    chain(out, n)
    return n


@njit(cache=True)
def chain(items: np.ndarray, n: int) -> None:
    """Note which item follows each of the first ``n`` on its unit."""
    following = np.full(2, -1)
    for q in range(n - 1, -1, -1):
        unit = int(items[q, ITEM_UNIT]) - ARRAY
        items[q, NEXT] = following[unit]
        following[unit] = q


@njit(cache=True)
def _folds(sizes: np.ndarray, at: int, j: int, c: OneChip) -> float:
    """Return the folds of the stationary operand of a projection."""
    p = pace(c.rows, c.cols, c.stays, c.is_scalable, sizes[A_BITS, at, j], sizes[HELD, at, j], sizes[WIDE, at, j])
    return ceil(sizes[N, at, j] / p.unit_n) * ceil(sizes[K, at, j] / p.unit_k)


@njit(cache=True)
def _write(
    g: RowGroups, x: int, s: int, j: int, slices: float, sizes: np.ndarray, at: int, copies_of: np.ndarray,
    rows: float, c: OneChip, r: np.ndarray, latest: np.ndarray, out: np.ndarray, n: int,
) -> int:  # fmt: skip
    """Write slice j of step s as item n, and return n + 1."""
    step, first = g.step, g.steps[x]
    at_s = first + s
    product, item = step[at_s, PRODUCT], out[n]
    item[ITEM_OP] = step[at_s, OPERATOR]
    item[WEIGHTS] = item[STREAMED] = item[FIRST] = 0.0
    item[NEEDS_ARRAY] = item[NEEDS_LANES] = item[FREED_ARRAY] = item[FREED_LANES] = -1.0
    written = rows * r[WIDTH, s] * PLAIN_BYTES * r[MUST_WRITE, s]
    if product < 0:
        item[ITEM_UNIT] = VECTOR
        item[ITEM_S] = rows * r[WIDTH, s] * g.cost[at_s, OPS] / (c.lanes * c.freq_hz * slices)
        came = rows * r[OUTSIDE, s] * PLAIN_BYTES / slices
        item[STREAMED if step[at_s, IS_ELEMENTWISE] else FIRST] = came
        item[RESULTS] = written / slices
    else:
        k, width, a_bits = sizes[K, at, product], sizes[N, at, product], sizes[A_BITS, at, product]
        b_bytes, one = sizes[B_BYTES, at, product], 1.0 if copies_of[product] > 1.0 else sizes[COUNT, at, product]
        p = pace(c.rows, c.cols, c.stays, c.is_scalable, a_bits, sizes[HELD, at, product], sizes[WIDE, at, product])
        tiles = Tiles(rows, r[TILE_N, s], r[TILE_K, s], 0.0, 1.0, 2.0)
        ran = run_product(one, rows, k, width, a_bits, b_bytes, c.rows, c.cols, c.cores, c.stays, p, tiles, PLAIN_BYTES)
        item[ITEM_UNIT] = ARRAY
        item[ITEM_S] = (ran.cycles - (c.rows + c.cols - 2.0)) / (c.freq_hz * slices)
        item[WEIGHTS] = one * b_bytes / slices
        # The first column of weights needs all of the operand, and results are there column by column; what is summed
        # over chunks is there at the end.
        columns = one * ceil(width / p.unit_n)
        share = min(1.0, (j + 1.0) * columns / slices) - min(1.0, j * columns / slices)
        item[FIRST] = rows * r[OUTSIDE, s] * a_bits / 8.0 * share
        done = (floor((j + 1.0) * columns / slices + 1e-9) - floor(j * columns / slices + 1e-9)) / columns
        if step[at_s, TAKES_STREAMED]:
            done = 1.0 if j + 1.0 >= slices else 0.0
        item[RESULTS] = written * done
    is_vector, slot = product < 0, step[at_s, SLOT]
    for e in range(step[at_s, ENTRIES], step[at_s + 1, ENTRIES]):
        source = g.source[e]
        if r[RUNS, source] <= 0.0:
            continue
        needed = latest[source]
        if step[first + source, PRODUCT] >= 0:
            item[NEEDS_ARRAY] = max(item[NEEDS_ARRAY], needed)
        else:
            if is_vector and step[first + source, SLOT] != slot and slices == VECTOR_SLICES:
                needed -= int(VECTOR_SLICES) - 1 - j
            item[NEEDS_LANES] = max(item[NEEDS_LANES], needed)
    if step[at_s, IS_STREAMED]:  # its place is free once the chunk before is consumed
        for s2 in range(len(latest)):
            if step[first + s2, SLOT] == slot and latest[s2] >= 0 and _reads(g, first + s2, s):
                freed = FREED_LANES if step[first + s2, PRODUCT] < 0 else FREED_ARRAY
                if not (product >= 0 and freed == FREED_ARRAY):  # the array takes its items in order
                    item[freed] = max(item[freed], latest[s2])
    latest[s] = n
    return n + 1


@njit(cache=True)
def _reads(g: RowGroups, at_s: int, source: int) -> bool:
    for e in range(g.step[at_s, ENTRIES], g.step[at_s + 1, ENTRIES]):  # noqa: SIM110  not compiled as any()
        if g.source[e] == source:
            return True
    return False


@njit(cache=True)
def run_items(
    whole: np.ndarray, edge: np.ndarray, copies: int, trips: int, keeps: bool, has_two: bool, c: OneChip,
    log: Log, at: float, t: np.ndarray, kept: np.ndarray, sums: np.ndarray,
) -> float:  # fmt: skip
    """Run the tiles of a group on an idle machine and return the seconds until the last result is written.

    Args:
        whole, edge: items of a tile, and of the last one of each copy, shape (items, N_ITEM).
        copies, trips: experts, and tiles of each.
        keeps: whether weights are loaded once per copy, else once per tile.
        has_two: whether memory holds two tiles at a time.
        c: the chip.
        log, at, t, kept, sums: as for :func:`costmodels.tilesim.run_tiles`.
    """
    bandwidth, skew = c.dram_bytes_per_s, (c.rows + c.cols - 2.0) / c.freq_hz
    preload = 0.0 if c.stays == OUTPUT_STATIONARY else c.rows / c.freq_hz
    ends = np.empty(max(len(whole), len(edge)))
    restart(t, at)
    t[LANES] = t[FRONT] = t[RELEASED] = t[FREE_O] = at
    items = edge if trips == 1 else whole
    seen = np.zeros(2, np.bool_)
    for q in range(len(items)):
        unit = int(items[q, ITEM_UNIT]) - ARRAY
        if not seen[unit]:
            seen[unit] = True
            _load(items, q, True, True, LONG_AGO, preload, bandwidth, log, t, sums)
    pending_bytes, pending_op = 0.0, 0
    can_skip, copy, tile = log.moved_bytes.shape[1] == 0, 0, 0
    while copy < copies:
        items = edge if tile + 1 == trips else whole
        is_last = copy + 1 == copies and tile + 1 == trips
        is_first = copy == 0 and tile == 0
        coming = edge if (tile + 2 == trips if tile + 1 < trips else trips == 1) else whole
        loads, loads_after = not keeps or tile == 0, not keeps or tile + 1 == trips
        piece = 0.0 if is_last else coming[:, FIRST].sum() / len(items)
        begins_by, came_by = t[RELEASED], t[OPERANDS]
        for q in range(len(items)):
            item = items[q]
            unit = int(item[ITEM_UNIT])
            x, free = (NEXT_X, FREE_X) if unit == ARRAY else (NEXT_Y, FREE_Y)
            operands, op = max(t[x], came_by), int(item[ITEM_OP])
            if item[NEXT] >= 0.0:
                _load(items, int(item[NEXT]), loads, is_first, t[free], preload, bandwidth, log, t, sums)
            elif not is_last:
                for y in range(len(coming)):
                    if coming[y, ITEM_UNIT] == item[ITEM_UNIT]:
                        _load(coming, y, loads_after, False, t[free], preload, bandwidth, log, t, sums)
                        break
            if piece > 0.0:
                t[OPERANDS] = move(t, sums, log, op, READ, LONG_AGO, piece, bandwidth)
            if item[NEEDS_ARRAY] >= 0.0:
                operands = max(operands, ends[int(item[NEEDS_ARRAY])] + skew)
            if item[NEEDS_LANES] >= 0.0:
                operands = max(operands, ends[int(item[NEEDS_LANES])])
            room = begins_by
            if item[FREED_ARRAY] >= 0.0:
                room = max(room, ends[int(item[FREED_ARRAY])])
            if item[FREED_LANES] >= 0.0:
                room = max(room, ends[int(item[FREED_LANES])])
            ends[q] = t[free] = work_beside(t, sums, log, op, unit, operands, room, item[ITEM_S])
            if pending_bytes > 0.0:
                move(t, sums, log, pending_op, WRITE, t[AT_DONE], pending_bytes, bandwidth)
            pending_bytes, pending_op = item[RESULTS], op
            t[AT_DONE] = ends[q] + (skew if unit == ARRAY else 0.0)
        sums[N_STEPS] += 1.0
        # The next tile begins when this one is done, or the one before it where memory holds two.
        t[RELEASED] = t[FREE_O] if has_two else t[FRONT]
        t[FREE_O] = t[FRONT]
        is_copy, now, length = tile + 1 == trips, tile, trips
        if is_copy:
            now, length = copy, copies
        if can_skip and length >= WORTH_SKIPPING:
            before = kept[1 if is_copy else 0]
            if 2 <= now < length - 3 and is_shifted(t, before):
                skip(t, sums, before[:N_TIMES], before[N_TIMES:], float(length - 3 - now))
                if is_copy:
                    copy = copies - 3
                else:
                    tile = trips - 3
            elif now >= 1:
                before[:N_TIMES] = t
                before[N_TIMES:] = sums
        tile += 1
        if is_copy:
            copy, tile = copy + 1, 0
    if pending_bytes > 0.0:
        spare(t, sums, log, pending_op, t[AT_DONE])
        move(t, sums, log, pending_op, WRITE, t[AT_DONE], pending_bytes, bandwidth)
    ended = max(t[PORT], t[FRONT])
    sums[WRITE_WAIT_S] += ended - t[FRONT]
    return ended - at


@njit(cache=True)
def _load(
    items: np.ndarray, q: int, with_weights: bool, is_first: bool, ready: float, preload: float, bandwidth: float,
    log: Log, t: np.ndarray, sums: np.ndarray,
) -> None:  # fmt: skip
    """Load what item q needs; it may begin when that has arrived."""
    item = items[q]
    size = item[STREAMED] + (item[WEIGHTS] if with_weights else 0.0) + (item[FIRST] if is_first else 0.0)
    at = NEXT_X if int(item[ITEM_UNIT]) == ARRAY else NEXT_Y
    t[at] = LONG_AGO
    if size > 0.0:
        arrived = move(t, sums, log, int(item[ITEM_OP]), READ, ready, size, bandwidth)
        t[at] = arrived + (preload if at == NEXT_X else 0.0)
