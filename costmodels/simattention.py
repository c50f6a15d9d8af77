"""Tiled attention as items for the simulated machine (:mod:`costmodels.simgroups` runs them); compiled.

Blocks, tiles, masks and bytes are the analytical ones (:mod:`costmodels.attention`). An attention is walked block of
query tiles by block, and within a block key tile by key tile: a *visit*, in which every query tile of the block that
sees the key tile takes its turn:

    array     scores (tq G x d_k x tkv), then values (tq G x tkv x d_v)
    lanes     exponentials of the scores; the sums scaled by the new maximum, before values are added to them; after a
              query tile's last key tile, its sums divided

Where memory has room for a second tile of scores, scores of the next pair run before the values of this one, so that
the array works while the lanes do; else one pair is through before the next begins.

DRAM: keys and values of a visit, and queries of a block with its first visit, are loaded in equal parts while the array
works on the visit before, into the place of the one before that; where keys and values stay on chip, once
in all. Results of a query tile are written once they are divided. Equal attentions follow each other.

Limits: cores share the folds of one product, as outside of groups, so where a pair of tiles has fewer folds than there
are cores some are idle; the closed form shares out all pairs. Beyond 8,192 pairs, neighbouring key tiles are one item.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from costmodels.attention import RECTANGLE, RESCALE_OPS, SCORE_OPS, SLIDING, AttentionPlan, Work, pair_folds
from costmodels.machine import ARRAY, VECTOR
from costmodels.products import ceil
from costmodels.simgroups import (
    FREED_ARRAY,
    FREED_LANES,
    ITEM_OP,
    ITEM_S,
    ITEM_UNIT,
    N_ITEM,
    NEEDS_ARRAY,
    NEEDS_LANES,
    RESULTS,
    STREAMED,
    chain,
)
from costmodels.systolic import ACCUMULATOR_BYTES, PLAIN_BYTES, OneChip, Pace, floor

MOST_PAIRS: Final = 8192.0

# What is known of a visit: which items of the array are its first scores and values, and bytes that come for it.
SCORES_AT, VALUES_AT, KEYS, VALUES = range(4)
# What is known of the pair whose values are still to come, and of the last values: their item and query tile.
LATE_ROWS, LATE_S, LATE_LANE, LATE_ENDS, LATE_TILE, LATE_VISIT, LAST_VALUE, LAST_TILE = range(8)


@njit(cache=True)
def _seen(one: Work, window: float, row: float, past: float, tile_kv: float) -> tuple[int, int]:
    """Return the first and the last key tile that rows ``row`` to ``past`` - 1 see."""
    last = int(ceil(one.n_kv / tile_kv)) - 1
    if one.kind == RECTANGLE:
        return 0, last
    seen = min(int(floor((past - 1.0) / tile_kv)), last) if past < one.n_q else last
    return (int(floor(max(0.0, row - window + 1.0) / tile_kv)) if one.kind == SLIDING else 0), seen


@njit(cache=True)
def _work(m: float, k: float, n: float, p: Pace, c: OneChip) -> float:
    found = pair_folds(m, k, n, c.stays, p)
    return ceil(found[0] / c.cores) * found[1] / c.freq_hz


@njit(cache=True)
def _put(out: np.ndarray, n: int, op: int, unit: int, seconds: float, needs_array: int, needs_lanes: int) -> int:
    item = out[n]
    item[:] = 0.0
    item[ITEM_OP], item[ITEM_UNIT], item[ITEM_S] = op, unit, seconds
    item[NEEDS_ARRAY], item[NEEDS_LANES] = needs_array, needs_lanes
    item[FREED_ARRAY] = item[FREED_LANES] = -1.0
    return n


@njit(cache=True)
def _put_values(
    out: np.ndarray, n: int, arrays: np.ndarray, late: np.ndarray, visits: np.ndarray, dv: float, value_op: int,
    softmax_op: int, lane_hz: float,
) -> int:  # fmt: skip
    """Write the values of the pair that waits, and the division after a query tile's last; return how many items."""
    at = _put(out, n, value_op, ARRAY, late[LATE_S], -1, int(late[LATE_LANE]))
    arrays[0] += 1
    arrays[arrays[0]] = at
    visit = int(late[LATE_VISIT])
    if visits[visit, VALUES_AT] < 0.0:
        visits[visit, VALUES_AT] = arrays[0]
    late[LAST_VALUE], late[LAST_TILE] = at, late[LATE_TILE]
    if late[LATE_ENDS] > 0.0:
        last = _put(out, at + 1, softmax_op, VECTOR, late[LATE_ROWS] * dv / lane_hz, at, -1)
        out[last, RESULTS] = late[LATE_ROWS] * dv * PLAIN_BYTES
    late[LATE_ROWS] = 0.0
    return at + (2 if late[LATE_ENDS] > 0.0 else 1)


@njit(cache=True)
def _spread(out: np.ndarray, arrays: np.ndarray, first: float, last: float, size: float) -> None:
    """Load ``size`` bytes in equal parts with the items of the array from ``first`` to ``last``."""
    begin = int(min(first, last))
    for i in range(begin, int(last) + 1):
        out[arrays[i], STREAMED] += size / (last + 1.0 - begin)


@njit(cache=True)
def write_pairs(plan: AttentionPlan, score: Pace, value: Pace, c: OneChip, ops: tuple[int, int, int]) -> np.ndarray:
    """Return the items of one attention, shape (items, N_ITEM).

    Args:
        plan: how it runs.
        score, value: how its products meet the array.
        c: the chip.
        ops: numbers of its operators: scores, softmax, values.
    """
    pairs = tiles = 0.0
    for one in (plan.main, plan.rest):
        rows = one.times * ceil(one.n_q / min(plan.tile_q, one.n_q))
        pairs += rows * ceil(one.n_kv / min(plan.tile_kv, one.n_kv))
        tiles += rows
    stride = int(max(1.0, ceil(pairs / MOST_PAIRS)))
    most = int(5.0 * (pairs / stride + 2.0 * tiles)) + 8
    out, visits, n_visits = np.empty((most, N_ITEM)), np.empty((most, 4)), 0
    arrays = np.zeros(most + 1, np.int64)  # how many items are on the array, then which
    late = np.full(8, -1.0)
    lane_hz, n = c.lanes * c.freq_hz, 0
    has_two = plan.held + plan.tile_q * plan.heads * plan.tile_kv * ACCUMULATOR_BYTES <= c.sram_bytes
    for which in range(2):
        one = plan.main if which == 0 else plan.rest
        size, tile_q, tile_kv = min(plan.block, one.n_q), min(plan.tile_q, one.n_q), min(plan.tile_kv, one.n_kv)
        for _ in range(int(one.times)):
            row, here = 0.0, -1  # the last key tile that is on chip to stay
            while row < one.n_q:
                past = min(row + size, one.n_q)
                first, last = _seen(one, plan.window, row, past, tile_kv)
                for x in range(first, last + 1, stride):
                    upto = min(x + stride - 1, last)
                    new = max(x, here + 1) if plan.stays else x
                    loads = max(0.0, min((upto + 1) * tile_kv, one.n_kv) - new * tile_kv)
                    here = max(here, upto)
                    queries = (past - row) * plan.heads * plan.dk * PLAIN_BYTES if x == first else 0.0
                    visit = visits[n_visits]
                    visit[SCORES_AT], visit[VALUES_AT] = arrays[0] + 1.0, -1.0
                    visit[KEYS] = loads * plan.dk * plan.k_element + queries
                    visit[VALUES] = loads * plan.dv * plan.v_element
                    a = row
                    while a < past:
                        b = min(a + tile_q, one.n_q)
                        low, high = _seen(one, plan.window, a, b, tile_kv)
                        begin, end = max(x, low), min(upto, high)
                        if begin <= end:
                            m = plan.heads * (b - a)
                            score_s = value_s = scores = 0.0
                            for y in range(begin, end + 1):
                                kv = min(tile_kv, one.n_kv - y * tile_kv)
                                score_s += _work(m, plan.dk, kv, score, c)
                                value_s += _work(m, kv, plan.dv, value, c)
                                scores += m * kv
                            at = _put(out, n, ops[0], ARRAY, score_s, -1, -1)
                            arrays[0] += 1
                            arrays[arrays[0]] = at
                            n = at + 1
                            if late[LATE_ROWS] > 0.0:
                                n = _put_values(out, n, arrays, late, visits, plan.dv, ops[2], ops[1], lane_hz)
                            n = _put(out, n, ops[1], VECTOR, SCORE_OPS * scores / lane_hz, at, -1) + 1
                            again = end - begin + (0.0 if begin == low else 1.0)  # tiles after the query tile's first
                            if again > 0.0:
                                after = int(late[LAST_VALUE]) if late[LAST_TILE] == a and begin > low else -1
                                seconds = again * m * (plan.dv + RESCALE_OPS) / lane_hz
                                n = _put(out, n, ops[1], VECTOR, seconds, after, -1) + 1
                            late[LATE_ROWS], late[LATE_S], late[LATE_LANE], late[LATE_TILE] = m, value_s, n - 1, a
                            late[LATE_ENDS], late[LATE_VISIT] = 1.0 if end == high else 0.0, n_visits
                            if not has_two:
                                n = _put_values(out, n, arrays, late, visits, plan.dv, ops[2], ops[1], lane_hz)
                        a = b
                    n_visits += 1
                row = past
    if late[LATE_ROWS] > 0.0:
        n = _put_values(out, n, arrays, late, visits, plan.dv, ops[2], ops[1], lane_hz)
    # A tile is replaced by the one after the next: keys once the visit before is done, values behind them.
    before = 0.0
    for v in range(n_visits):
        at = visits[v, SCORES_AT]
        _spread(out, arrays, before + 2.0 if v > 0 else at, at, visits[v, KEYS])
        _spread(out, arrays, before + 3.0 if v > 0 else visits[v, VALUES_AT], visits[v, VALUES_AT], visits[v, VALUES])
        before = at
    chain(out, n)
    return out[:n]
