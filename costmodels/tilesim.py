"""Matrix products, tile by tile, on the machine of :mod:`costmodels.machine`; compiled.

Product. A step is a visit to one tile of the mapping, in its loop order. Of the two operands, X is the one that is cut
by the columns of the array (B; in an input-stationary array A), Y the other. Tiles move and are worked off in equal
slices, folds in the order columns outside, rows inside, so slice j needs

    x        its share of X, loaded into the array (one cycle per row) before its first fold streams
    y        the share of Y that its first column of folds needs, all of it once one column is through
    sums     its share of partial sums that come back, where the output was evicted before

and takes ceil(folds / cores) fold cycles of the step over the number of slices; cores share the folds of a step, and no
two steps overlap in the array. Results leave R + C - 2 cycles after their last fold, column by column.

While a step is worked off, DRAM serves, in this order: what slice j of the next step needs, then results that slice
j - 1 has finished, then partial sums for the place that these leave. Buffers:

    operand of several tiles    two: what is loaded replaces the tile before the one in use
    operand of one tile         one, whose slices are replaced as they are used up; two, where memory has room
    output                      one at accumulator width, two where memory has room: a slice waits until the results in
                                its place are written; with two, sums come back beside operands

A tile that is used in L steps on end is loaded meanwhile, a part in each. Several products of one size follow each
other as steps do.

Steps that repeat are found by comparing all times with those one, one row, one plane, one product of tiles before: once
they are all later by the same amount, so is everything that follows, up to the edge tiles, which are walked again.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from costmodels.machine import (
    AHEAD_BYTES,
    ARRAY,
    AT_DONE,
    AT_END,
    AT_SUMS,
    AT_X,
    AT_Y,
    FREE_O,
    FREE_X,
    FREE_Y,
    LONG_AGO,
    MOST_SLICES,
    N_STEPS,
    N_TIMES,
    NEXT_X,
    NEXT_Y,
    PORT,
    READ,
    READ_BYTES,
    RELEASED,
    UNIT,
    WRITE,
    WRITE_WAIT_S,
    Log,
    is_periodic,
    move,
    restart,
    skip,
    spare,
    work,
)
from costmodels.products import ceil
from costmodels.systolic import (
    ACCUMULATOR_BYTES,
    INPUT_STATIONARY,
    OUTPUT_STATIONARY,
    PLAIN_BYTES,
    Pace,
    Tiles,
    floor,
    held_bytes,
)

# Slices of a product: as many as keep it below so many, but no fewer per tile than LEAST_SLICES.
SLICES_OF_A_PRODUCT: Final = 2048.0
LEAST_SLICES: Final = 4.0

N_LEVELS: Final = 4  # product, then the three tile loops from the outside
WORTH_SKIPPING: Final = 6


class Array(NamedTuple):
    """The array and memory that a product runs on, of one design."""

    rows: float
    cols: float
    cores: float
    stays: int
    freq_hz: float
    dram_bytes_per_s: float
    sram_bytes: float


class Product(NamedTuple):
    """``number`` products of one size, their mapping, and what is on chip when they start.

    Attributes:
        number, m, k, n: a whole number of products, and their size.
        a_bytes, b_bytes: of an element.
        pace: how they meet the array.
        tiles: no larger than the product.
        a_ahead, b_ahead: bytes of the first tiles that were loaded before.
    """

    number: int
    m: float
    k: float
    n: float
    a_bytes: float
    b_bytes: float
    pace: Pace
    tiles: Tiles
    a_ahead: float
    b_ahead: float


class Side(NamedTuple):
    """How one operand of a product is cut and buffered.

    Attributes:
        at_1, at_2: loops that index it.
        spread: steps over which its next tile is loaded; 1 for one step ahead.
        is_single: whether there is one buffer.
    """

    at_1: int
    at_2: int
    spread: float
    is_single: bool


@njit(cache=True)
def _slices(folds: float, cores: float, steps: float) -> int:
    wanted = min(max(floor(SLICES_OF_A_PRODUCT / steps), LEAST_SLICES), float(MOST_SLICES))
    return int(max(1.0, min(wanted, ceil(folds / cores))))


@njit(cache=True)
def _column_done(j: int, n_slices: int, columns: float) -> int:
    """Return the slice that finishes the column of folds which the j-th part of the results comes from."""
    column = floor(j * columns / n_slices)
    return min(n_slices - 1, max(j, int(ceil((column + 1.0) * n_slices / columns - 1e-9)) - 1))


@njit(cache=True)
def _share(j: int, n_slices: int, columns: float) -> float:
    """Return the part of Y that slice j is the first to need."""
    return min(1.0, (j + 1) * columns / n_slices) - min(1.0, j * columns / n_slices)


@njit(cache=True)
def _folds(m: float, n: float, k: float, p: Pace, stays: int) -> tuple[float, float, float]:
    """Return the folds of a tile along the array's rows and columns, and the cycles of one."""
    if stays == OUTPUT_STATIONARY:
        return ceil(m / p.unit_m), ceil(n / p.unit_n), max(k * p.slots, p.least)
    if stays == INPUT_STATIONARY:
        return ceil(k / p.unit_k), ceil(m / p.unit_m), max(n * p.slots, p.least)
    return ceil(k / p.unit_k), ceil(n / p.unit_n), max(m * p.slots, p.least)


@njit(cache=True)
def _tile(p: Product, side: Side, index: np.ndarray, at_m: int, at_n: int, at_k: int) -> float:
    """Return the elements of an operand's tile."""
    elements = 1.0
    for size, tile, at in ((p.m, p.tiles.m, at_m), (p.n, p.tiles.n, at_n), (p.k, p.tiles.k, at_k)):
        if at == side.at_1 or at == side.at_2:
            elements *= min(tile, size - index[at] * tile)
    return elements


@njit(cache=True)
def _coming(
    p: Product, side: Side, index: np.ndarray, trips: np.ndarray, product: int, at_m: int, at_n: int, at_k: int
) -> float:
    """Return the elements of the tile that follows the one in use, 0 after the last."""
    beside = 3 - side.at_1 - side.at_2
    after = index.copy()
    for loop in range(2, -1, -1):
        if loop == beside:
            continue
        after[loop] += 1
        if after[loop] < trips[loop]:
            return _tile(p, side, after, at_m, at_n, at_k)
        after[loop] = 0
    return _tile(p, side, after, at_m, at_n, at_k) if product + 1 < p.number else 0.0


@njit(cache=True)
def _spread(trips: np.ndarray, beside: int) -> float:
    """Return the steps on end that a tile is used in, whose operand the loop ``beside`` does not index."""
    for loop in range(2, -1, -1):
        if trips[loop] > 1:
            return float(trips[loop]) if loop == beside else 1.0
    return 1.0


@njit(cache=True)
def run_tiles(
    p: Product, a: Array, log: Log, op: int, at: float, t: np.ndarray, kept: np.ndarray, sums: np.ndarray
) -> float:
    """Run products on an idle machine and return the seconds until the last result is written.

    Args:
        p, a: the products, and what they run on.
        log: where to write events down; with room for some, every step is walked.
        op: number that events carry.
        at: time at which it starts.
        t, kept: to work in, shapes (N_TIMES,) and (4, N_TIMES + N_SUMS).
        sums: is added to, shape (N_SUMS,).
    """
    tiles = p.tiles
    trips, index, nxt = np.empty(3, np.int64), np.zeros(3, np.int64), np.zeros(3, np.int64)
    at_m, at_n, at_k = int(tiles.at_m), int(tiles.at_n), int(tiles.at_k)
    trips[at_m], trips[at_n], trips[at_k] = int(ceil(p.m / tiles.m)), int(ceil(p.n / tiles.n)), int(ceil(p.k / tiles.k))
    is_is, is_os = a.stays == INPUT_STATIONARY, a.stays == OUTPUT_STATIONARY
    folded = _folds(tiles.m, tiles.n, tiles.k, p.pace, a.stays)
    n_slices = _slices(folded[0] * folded[1], a.cores, float(trips[0] * trips[1] * trips[2]))

    # Memory that the tiles leave gives second buffers.
    room = a.sram_bytes - held_bytes(
        tiles.m, tiles.n, tiles.k, p.a_bytes, p.b_bytes, float(trips[at_m]), float(trips[at_n]), float(trips[at_k])
    )
    a_single, b_single = trips[at_m] * trips[at_k] == 1, trips[at_n] * trips[at_k] == 1
    if p.number > 1 and b_single and tiles.n * tiles.k * p.b_bytes <= room:
        b_single, room = False, room - tiles.n * tiles.k * p.b_bytes
    if p.number > 1 and a_single and tiles.m * tiles.k * p.a_bytes <= room:
        a_single, room = False, room - tiles.m * tiles.k * p.a_bytes
    has_two_outputs = tiles.m * tiles.n * ACCUMULATOR_BYTES <= room
    side_a = Side(at_m, at_k, 1.0 if a_single else _spread(trips, at_n), a_single)
    side_b = Side(at_k, at_n, 1.0 if b_single else _spread(trips, at_m), b_single)
    x, y = (side_a, side_b) if is_is else (side_b, side_a)
    x_bytes, y_bytes = (p.a_bytes, p.b_bytes) if is_is else (p.b_bytes, p.a_bytes)
    x_ahead, y_ahead = (p.a_ahead, p.b_ahead) if is_is else (p.b_ahead, p.a_ahead)
    skew = (a.rows + a.cols - 2.0) / a.freq_hz
    preload = 0.0 if is_os else p.pace.least / a.freq_hz

    restart(t, at)
    sums[READ_BYTES] += p.a_ahead + p.b_ahead
    sums[AHEAD_BYTES] += p.a_ahead + p.b_ahead
    # The first tiles, less what is there.
    columns = folded[1]
    x_tile = _tile(p, x, index, at_m, at_n, at_k) * x_bytes
    y_tile = _tile(p, y, index, at_m, at_n, at_k) * y_bytes
    for j in range(n_slices):
        x_part, y_part = x_tile / n_slices, y_tile * _share(j, n_slices, columns)
        x_here, y_here = min(x_part, x_ahead), min(y_part, y_ahead)
        x_ahead, y_ahead = x_ahead - x_here, y_ahead - y_here
        arrived = at
        if x_part + y_part > x_here + y_here:
            arrived = move(t, sums, log, op, READ, at, x_part + y_part - x_here - y_here, a.dram_bytes_per_s)
        t[AT_X + j], t[AT_Y + j] = arrived + preload, arrived

    can_skip, product = log.moved_bytes.shape[1] == 0, 0
    while True:
        # What follows.
        loop = 2
        nxt[0], nxt[1], nxt[2] = index[0], index[1], index[2]
        while loop >= 0:
            nxt[loop] += 1
            if nxt[loop] < trips[loop]:
                break
            nxt[loop] = 0
            loop -= 1
        is_new_product = loop < 0
        is_last = is_new_product and product + 1 == p.number
        x_changes = is_new_product or nxt[x.at_1] != index[x.at_1] or nxt[x.at_2] != index[x.at_2]
        y_changes = is_new_product or nxt[y.at_1] != index[y.at_1] or nxt[y.at_2] != index[y.at_2]
        o_changes = is_new_product or nxt[at_m] != index[at_m] or nxt[at_n] != index[at_n]
        returns = (not is_new_product) and o_changes and nxt[at_k] > 0

        # Work.
        m, n, k = (
            min(tiles.m, p.m - index[at_m] * tiles.m),
            min(tiles.n, p.n - index[at_n] * tiles.n),
            min(tiles.k, p.k - index[at_k] * tiles.k),
        )
        folded = _folds(m, n, k, p.pace, a.stays)
        columns = folded[1]
        seconds = ceil(folded[0] * columns / a.cores) * folded[2] / (a.freq_hz * n_slices)
        for j in range(n_slices):
            operands = max(t[AT_X + j], t[AT_Y + j], t[AT_SUMS + j])
            t[AT_END + j] = work(t, sums, log, op, ARRAY, operands, t[AT_DONE + j], seconds)
            t[AT_X + j] = t[AT_Y + j] = t[AT_SUMS + j] = t[AT_DONE + j] = LONG_AGO
        sums[N_STEPS] += 1.0
        ended = t[AT_END + n_slices - 1]

        # DRAM.
        x_load = y_load = x_piece = y_piece = sums_back = 0.0
        next_columns = columns
        if not is_last:
            m1, n1, k1 = (
                min(tiles.m, p.m - nxt[at_m] * tiles.m),
                min(tiles.n, p.n - nxt[at_n] * tiles.n),
                min(tiles.k, p.k - nxt[at_k] * tiles.k),
            )
            next_columns = _folds(m1, n1, k1, p.pace, a.stays)[1]
            if x_changes and x.spread == 1.0:
                x_load = _tile(p, x, nxt, at_m, at_n, at_k) * x_bytes
            if y_changes and y.spread == 1.0:
                y_load = _tile(p, y, nxt, at_m, at_n, at_k) * y_bytes
            if returns:
                sums_back = m1 * n1 * ACCUMULATOR_BYTES
        if x.spread > 1.0:
            x_piece = _coming(p, x, index, trips, product, at_m, at_n, at_k) * x_bytes / (x.spread * n_slices)
        if y.spread > 1.0:
            y_piece = _coming(p, y, index, trips, product, at_m, at_n, at_k) * y_bytes / (y.spread * n_slices)
        written = 0.0
        if o_changes:
            written = m * n * (PLAIN_BYTES if index[at_k] + 1 == trips[at_k] else ACCUMULATOR_BYTES)
        writes_first = y_load > 0.0 and y.is_single
        done = 0
        for turn in range(n_slices + 1):
            for half in range(2):
                if (half == 0) == writes_first:
                    # Results of slices below ``turn``, or of all where nothing can be loaded before they are done.
                    upto = n_slices - 1 if writes_first else turn - 1
                    while done < n_slices and _column_done(done, n_slices, columns) <= upto:
                        if written > 0.0:
                            ready = t[AT_END + _column_done(done, n_slices, columns)] + skew
                            if is_last:
                                spare(t, sums, log, op, ready)
                            t[AT_DONE + done] = move(
                                t, sums, log, op, WRITE, ready, written / n_slices, a.dram_bytes_per_s
                            )
                        if sums_back > 0.0 and not has_two_outputs:
                            t[AT_SUMS + done] = move(
                                t, sums, log, op, READ, t[AT_DONE + done], sums_back / n_slices, a.dram_bytes_per_s
                            )
                        done += 1
                elif turn < n_slices:
                    size, ready = x_piece + y_piece, LONG_AGO
                    if x_piece > 0.0:
                        ready = max(ready, t[FREE_X])
                    if y_piece > 0.0:
                        ready = max(ready, t[FREE_Y])
                    if x_load > 0.0:
                        size += x_load / n_slices
                        ready = max(ready, t[AT_END + turn] if x.is_single else t[RELEASED])
                    part = y_load * _share(turn, n_slices, next_columns)
                    if part > 0.0:
                        size += part
                        ready = max(ready, ended if y.is_single else t[RELEASED])
                    if has_two_outputs:  # its place was written out in an earlier step, before this in the port's order
                        size += sums_back / n_slices
                    if size > 0.0:
                        arrived = move(t, sums, log, op, READ, ready, size, a.dram_bytes_per_s)
                        if has_two_outputs and sums_back > 0.0:
                            t[AT_SUMS + turn] = arrived
                        if x_load > 0.0:
                            t[AT_X + turn] = arrived + preload
                        if part > 0.0:
                            t[AT_Y + turn] = arrived
                        if x_piece > 0.0:
                            t[NEXT_X] = arrived
                        if y_piece > 0.0:
                            t[NEXT_Y] = arrived
        if is_last:
            break
        t[RELEASED] = ended
        if has_two_outputs and o_changes:
            written_at = t[AT_DONE + n_slices - 1]
            for j in range(n_slices):
                t[AT_DONE + j] = t[FREE_O]
            t[FREE_O] = written_at
        if x_changes and x.spread > 1.0:
            for j in range(n_slices):
                t[AT_X + j] = t[NEXT_X] + preload
            t[FREE_X], t[NEXT_X] = ended, LONG_AGO
        if y_changes and y.spread > 1.0:
            for j in range(n_slices):
                t[AT_Y + j] = t[NEXT_Y]
            t[FREE_Y], t[NEXT_Y] = ended, LONG_AGO

        # On, past what repeats; every loop inside ``loop`` has come to its end.
        if can_skip:
            length, now = (p.number, product) if loop < 0 else (trips[loop], index[loop])
            if length >= WORTH_SKIPPING:
                before = kept[loop + 1]
                if now >= 2 and now < length - 3 and is_periodic(t, before, n_slices):
                    times = length - 3 - now
                    skip(t, sums, before[:N_TIMES], before[N_TIMES:], float(times))
                    if loop < 0:
                        product += times
                    else:
                        nxt[loop] += times
                elif now >= 1:
                    before[:N_TIMES] = t
                    before[N_TIMES:] = sums
        if is_new_product:
            product += 1
        index[0], index[1], index[2] = nxt[0], nxt[1], nxt[2]
    sums[WRITE_WAIT_S] += t[PORT] - t[UNIT]
    return t[PORT] - at
