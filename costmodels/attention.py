"""Tiled attention on an accelerator, compiled: scores never leave the chip.

The online softmax of Milakov and Gimelshein (arXiv 1805.02867) in the tiling of FlashAttention-2 (Dao, arXiv
2307.08691): a tile of tq positions of all G query heads that share a key-value head stays on chip with its sums, while
keys and values pass in tiles of tkv positions. Per tile pair the array takes scores (tq G x d_k x tkv) and values
(tq G x tkv x d_v), and the vector unit four operations per score (compare, subtract, exponential, sum), for every
further tile d_v + 4 per row to scale the sums by the new maximum, and d_v divisions per row at the end.

On chip: queries (twice where several tiles follow), sums at 32 bits with maximum and denominator, one tile of scores at
32 bits, and two tiles of keys and values at the cache's own width; of a latent cache, which is both, only one.

DRAM. Queries are read and results written once, 16 bits. Keys and values are read once per *block* of query tiles that
are on chip together, as far as the block looks: once in all where the whole of them stays on chip.

Masks. Pairs of tiles that are wholly masked are skipped, those that are partly masked computed as a whole. Query tile i
(its first row a = i tq, its last b) of a causal attention of L positions visits key tiles

    floor(max(0, a - w + 1) / tkv) ... floor(b / tkv)              w: sliding window, L without

Their number over all i is a sum of floors, taken exactly in a logarithm of steps (:func:`floor_sum`). Chunked windows
and the windows of encoders are attentions of their own, the last one with the positions that are left; a pass of fewer
rows than positions (decode) sees all its span. Materialised scores, by contrast, take the whole rectangle.

Tiles. ``attn_tile_q`` and ``attn_tile_kv`` are in positions. Left at 0, tiles are the smallest power of two that fills
the array's longer side (for queries, heads included), whatever the memory, so masked work does not depend on memory;
blocks of 1, 2, 4, ... such query tiles, or all, with keys and values streamed or kept, are tried, and the one with the
least traffic among those that fit is taken. So more on-chip memory never means more traffic nor time.

Limits: the sequences and heads of a design are alike; a window's keys are read by each block that looks at them. The
on-chip accesses of scores are counted, 32 bits written and read and 16 for the weights that the values take.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from costmodels.fused_tables import Attentions
from costmodels.groups import GroupRan, drained, enter, loaded, times
from costmodels.products import A_BITS, B_BYTES, COUNT, HELD, WIDE, Bound, K, M, N, Products, ceil, window_parts
from costmodels.systolic import (
    ACCUMULATOR_BYTES,
    OUTPUT_STATIONARY,
    PLAIN_BYTES,
    WEIGHT_STATIONARY,
    OneChip,
    Pace,
    element_cycles,
    floor,
    fold_cycles,
    pace,
)

RECTANGLE, CAUSAL, SLIDING = range(3)
SCORE_OPS: Final = 4.0
RESCALE_OPS: Final = 4.0  # and one per value element: compare, subtract, exponential, scale the denominator
STATISTICS_BYTES: Final = 2.0 * ACCUMULATOR_BYTES


class Visits(NamedTuple):
    """Pairs of tiles that are visited: whole or last query tile with whole or last key tile."""

    whole_whole: float
    whole_last: float
    last_whole: float
    last_last: float


class Work(NamedTuple):
    """One of the equal attentions that a sequence's attention is made of, and how many there are."""

    times: float
    n_q: float
    n_kv: float
    kind: int


class AttentionPlan(NamedTuple):
    """How an attention runs.

    Attributes:
        number: attentions that are alike.
        main, rest: what each is made of.
        heads, dk, dv: query heads that share keys, and features of queries and of values.
        window: positions that a row sees.
        tile_q, tile_kv, block: positions of a query tile, of a key tile, and of the query tiles that are held together.
        k_element, v_element: bytes of an element of keys and of values, 0 for values that are a part of the keys.
        cached, held: bytes of keys and values that are read, and on-chip memory.
        stays: whether all keys and values stay on chip while the blocks pass.
    """

    number: float
    main: Work
    rest: Work
    heads: float
    dk: float
    dv: float
    window: float
    tile_q: float
    tile_kv: float
    block: float
    k_element: float
    v_element: float
    cached: float
    held: float
    stays: bool


@njit(cache=True)
def floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Return the sum of floor((a i + b) / m) over i = 0 ... n - 1, for a, b >= 0 and m > 0, by Euclid's descent."""
    total = 0
    while n > 0:
        total += (a // m) * (n * (n - 1) // 2) + (b // m) * n
        a %= m
        b %= m
        top = a * n + b
        if top < m:
            break
        n, b = top // m, top % m
        m, a = a, m
    return total


@njit(cache=True)
def visits(n_q: float, n_kv: float, kind: int, window: float, tile_q: float, tile_kv: float) -> Visits:
    """Return the visited pairs of tiles of one attention.

    Args:
        n_q, n_kv: query and key positions; equal where there is a mask.
        kind: RECTANGLE, CAUSAL or SLIDING.
        window: positions that a row sees, of a sliding one.
        tile_q, tile_kv: tiles no larger than that.
    """
    whole_q, whole_kv = floor(n_q / tile_q), floor(n_kv / tile_kv)
    has_q, has_kv = n_q > whole_q * tile_q, n_kv > whole_kv * tile_kv
    if kind == RECTANGLE:
        last_q, last_kv = 1.0 if has_q else 0.0, 1.0 if has_kv else 0.0
        return Visits(whole_q * whole_kv, whole_q * last_kv, last_q * whole_kv, last_q * last_kv)
    nq, tq, tkv, w = int(whole_q), int(tile_q), int(tile_kv), int(window)
    seen = floor_sum(nq, tkv, tq, tq - 1) + nq
    at_last = nq - min(nq, int(whole_kv) * tkv // tq) if has_kv else 0
    before_last = 0
    if kind == SLIDING:
        begins = (w - 1 + tq - 1) // tq  # first query tile that does not see position 0
        if begins < nq:
            seen -= floor_sum(nq - begins, tkv, tq, begins * tq - (w - 1))
        before_last = max(0, nq * tq - w + 1) // tkv
    rest = float(max(int(whole_kv) - before_last, 0)) if has_q else 0.0
    return Visits(float(seen - at_last), float(at_last), rest, 1.0 if has_q and has_kv else 0.0)


@njit(cache=True)
def positions_read(v: Visits, n_kv: float, tile_kv: float) -> float:
    """Return the key positions that all query tiles of an attention read together."""
    last = n_kv - floor(n_kv / tile_kv) * tile_kv
    return (v.whole_whole + v.last_whole) * tile_kv + (v.whole_last + v.last_last) * last


@njit(cache=True)
def split(n_q: float, span: float, is_causal: int, is_chunked: int, is_windowed: int) -> tuple[Work, Work]:
    """Return the attentions that one sequence's is made of: the equal ones, and what is left (0 times if nothing)."""
    nothing = Work(0.0, 1.0, 1.0, RECTANGLE)
    if n_q < span or not (is_causal or is_windowed):
        return Work(1.0, n_q, span, RECTANGLE), nothing
    if n_q == span:
        return Work(1.0, n_q, span, CAUSAL if is_causal else RECTANGLE), nothing
    if is_causal and not is_chunked:
        return Work(1.0, n_q, n_q, SLIDING), nothing
    kind, whole = CAUSAL if is_causal else RECTANGLE, floor(n_q / span)
    rest = n_q - whole * span
    return Work(whole, span, span, kind), Work(1.0 if rest > 0.0 else 0.0, max(rest, 1.0), max(rest, 1.0), kind)


@njit(cache=True)
def power_of_two(least: float) -> float:
    """Return the smallest power of two that is not below ``least``."""
    found = 1.0
    while found < least:
        found *= 2.0
    return found


@njit(cache=True)
def pair_folds(m: float, k: float, n: float, stays: int, p: Pace) -> tuple[float, float, float, float, float]:
    """Return folds of a product, cycles of one, reads of A and of B per element, and partial sums per result."""
    if stays == OUTPUT_STATIONARY:
        r, c = ceil(m / p.unit_m), ceil(n / p.unit_n)
        return r * c, fold_cycles(k, k, p.slots, p.least), c, r, 1.0
    r = ceil(k / p.unit_k)
    if stays == WEIGHT_STATIONARY:
        c = ceil(n / p.unit_n)
        return r * c, fold_cycles(m, m, p.slots, p.least), c, 1.0, 2.0 * r - 1.0
    c = ceil(m / p.unit_m)
    return r * c, fold_cycles(n, n, p.slots, p.least), 1.0, c, 2.0 * r - 1.0


@njit(cache=True)
def run_attentions(
    i: int, runs: np.ndarray, t: Attentions, sizes: np.ndarray, at: int, p: Products, b: Bound, chip: OneChip,
    asked_q: float, asked_kv: float, is_cached: np.ndarray,
    totals: np.ndarray, held: np.ndarray, planes: np.ndarray,
) -> None:  # fmt: skip
    """Run the attentions that design i fuses, whose product sizes are ``sizes[:, at]``, and enter them.

    Args:
        i: the design.
        runs: whether it fuses each, shape (attentions,).
        t: the attentions.
        sizes, at, p, b, chip: its products and its chip.
        asked_q, asked_kv: its tiles, 0 where the model chooses.
        is_cached: whether keys and values of a product count as cache; others count as activations.
        totals, held, planes: as for :func:`costmodels.passes.run_fused_pass`.
    """
    score, value, label, leader, rows_at = t.score, t.value, t.label, t.leader, p.rows
    lengths = b.per_sequence[i]
    for x in range(len(score)):
        js, jv = score[x], value[x]
        if not runs[x] or sizes[COUNT, at, js] <= 0.0 or sizes[COUNT, at, jv] <= 0.0:
            continue
        length = lengths[rows_at[js]]
        plan = plan_attention(x, t, sizes, at, chip, length, asked_q, asked_kv)
        enter(
            _run_pairs(js, jv, sizes, at, chip, plan, length, is_cached[js]),
            i,
            label[x],
            leader[x],
            totals,
            held,
            planes,
        )


@njit(cache=True)
def plan_attention(
    x: int, t: Attentions, sizes: np.ndarray, at: int, c: OneChip, length: float, asked_q: float, asked_kv: float
) -> AttentionPlan:
    """Return how attention x runs, its blocks of query tiles chosen.

    Args:
        x, t: the attention.
        sizes, at, c: its products and its chip.
        length: rows of a sequence.
        asked_q, asked_kv: tiles, 0 where the model chooses.
    """
    js, jv = t.score[x], t.value[x]
    is_latent = t.is_latent[x] == 1
    main, rest = split(length, sizes[N, at, js], t.is_causal[x], t.is_chunked[x], t.is_windowed[x])
    # Unfused, a window makes a product of its own; here a sequence is one attention.
    parts = window_parts(length, sizes[N, at, js]) if t.is_windowed[x] else 1.0
    count, m, dk, span, dv = (
        sizes[COUNT, at, js] / parts,
        sizes[M, at, js] * parts,
        sizes[K, at, js],
        sizes[N, at, js],
        sizes[N, at, jv],
    )
    heads = m / length
    k_element, v_element = sizes[B_BYTES, at, js] / (dk * span), sizes[B_BYTES, at, jv] / (dv * span)
    if is_latent:
        v_element = 0.0  # the values are a part of the keys
    per_position = dk * k_element + dv * v_element
    side = max(c.rows, c.cols)
    tile_q = min(asked_q if asked_q > 0.0 else power_of_two(side / heads), main.n_q)
    tile_kv = min(asked_kv if asked_kv > 0.0 else power_of_two(side), main.n_kv)
    everything = count * (main.times * main.n_kv + rest.times * rest.n_kv) * per_position
    # Blocks of query tiles, keys and values streamed or kept: the least traffic that fits.
    q_row, sum_row = heads * dk * PLAIN_BYTES, heads * (dv * ACCUMULATOR_BYTES + STATISTICS_BYTES)
    scores = tile_q * heads * tile_kv * ACCUMULATOR_BYTES
    cached, held, block, is_found, stays, blocks = np.inf, np.inf, tile_q, False, False, 1.0
    while True:
        size = min(tile_q * blocks, main.n_q)
        several = 2.0 if size < main.n_q or main.times * count > 1.0 else 1.0
        fixed = size * (several * q_row + sum_row) + scores
        for keeps in range(2):
            if keeps == 1 and asked_kv > 0.0 and asked_kv < main.n_kv:
                continue
            is_kept = keeps == 1 or tile_kv >= main.n_kv
            if is_kept:
                moved, needed = everything, fixed + main.n_kv * per_position
            else:
                moved, needed = 0.0, fixed + 2.0 * tile_kv * per_position
                for one in (main, rest):
                    if one.times > 0.0:
                        kv = min(tile_kv, one.n_kv)
                        seen = visits(one.n_q, one.n_kv, one.kind, span, min(size, one.n_q), kv)
                        moved += count * one.times * positions_read(seen, one.n_kv, kv) * per_position
            fits = needed <= c.sram_bytes
            if (fits and (not is_found or moved < cached)) or (not fits and not is_found and needed < held):
                cached, held, block, stays, is_found = moved, needed, size, is_kept, fits
        if asked_q > 0.0 or size >= main.n_q:
            break
        blocks *= 2.0
    return AttentionPlan(
        count, main, rest, heads, dk, dv, span, tile_q, tile_kv, block, k_element, v_element, cached, held, stays
    )


@njit(cache=True)
def _run_pairs(
    js: int, jv: int, sizes: np.ndarray, at: int, c: OneChip, plan: AttentionPlan, length: float, is_cached: bool
) -> GroupRan:
    """Return what a tiled attention does."""
    dk, dv, count, heads, cached = plan.dk, plan.dv, plan.number, plan.heads, plan.cached
    main, rest, tile_q, tile_kv = plan.main, plan.rest, plan.tile_q, plan.tile_kv
    rows, cols, cores, stays = c.rows, c.cols, c.cores, c.stays
    paces = (
        pace(rows, cols, stays, c.is_scalable, sizes[A_BITS, at, js], sizes[HELD, at, js], sizes[WIDE, at, js]),
        pace(rows, cols, stays, c.is_scalable, sizes[A_BITS, at, jv], sizes[HELD, at, jv], sizes[WIDE, at, jv]),
    )
    k_element = sizes[B_BYTES, at, js] / (dk * sizes[N, at, js])
    v_element = sizes[B_BYTES, at, jv] / (dv * sizes[K, at, jv])
    cycles = 2.0 * (rows + cols - 2.0)
    scores = row_visits = reads = writes = 0.0
    for one in (main, rest):
        if one.times <= 0.0:
            continue
        tq, tkv = min(tile_q, one.n_q), min(tile_kv, one.n_kv)
        seen = visits(one.n_q, one.n_kv, one.kind, plan.window, tq, tkv)
        last_q, last_kv = one.n_q - floor(one.n_q / tq) * tq, one.n_kv - floor(one.n_kv / tkv) * tkv
        for pair in range(4):
            number = count * one.times * seen[pair]
            if number <= 0.0:
                continue
            m, n = heads * (tq if pair < 2 else last_q), tkv if pair % 2 == 0 else last_kv
            scores += number * m * n
            row_visits += number * m
            for side in range(2):
                k_side, n_side = (dk, n) if side == 0 else (n, dv)
                element = k_element if side == 0 else v_element
                found = pair_folds(m, k_side, n_side, stays, paces[side])
                cycles += ceil(number * found[0] / cores) * found[1]
                sums = number * m * n_side * ACCUMULATOR_BYTES * found[4] / 2.0
                operands = m * k_side * PLAIN_BYTES * found[2] + k_side * n_side * element * found[3]
                reads += 8.0 * (number * operands + sums)
                writes += 8.0 * sums
    all_rows = count * heads * length
    again = row_visits - all_rows  # visits after a row's first
    ops = SCORE_OPS * scores + again * (dv + RESCALE_OPS) + all_rows * dv
    queries, results = all_rows * dk * PLAIN_BYTES, all_rows * dv * PLAIN_BYTES
    reads += 8.0 * (scores * ACCUMULATOR_BYTES + again * dv * ACCUMULATOR_BYTES + results)
    writes += 8.0 * (scores * PLAIN_BYTES + again * dv * ACCUMULATOR_BYTES + queries + cached)
    macs = scores * (dk + dv)
    busy = scores * (
        dk * element_cycles(c.is_scalable, sizes[A_BITS, at, js], sizes[HELD, at, js], sizes[WIDE, at, js])
        + dv * element_cycles(c.is_scalable, sizes[A_BITS, at, jv], sizes[HELD, at, jv], sizes[WIDE, at, jv])
    )
    m = heads * min(tile_q, length)
    exposed = loaded(stays, m, dk, tile_kv, cols, paces[0], PLAIN_BYTES, k_element)
    exposed = min(exposed + drained(stays, m, dv, rows, cols), queries + results + cached)
    bandwidth, freq, lanes = c.dram_bytes_per_s, c.freq_hz, c.lanes
    traffic_s = (queries + results + cached - exposed) / bandwidth
    seconds, array_s, outer_s = times(exposed / bandwidth, cycles / freq, ops / (lanes * freq), traffic_s)
    caches, others = (cached, 0.0) if is_cached else (0.0, cached)
    return GroupRan(
        seconds, 0.0, caches, queries + results + others, macs, busy, reads, writes,
        queries + results, plan.held, array_s, outer_s, ops, cycles, queries + cached, results, plan.block, tile_kv,
    )  # fmt: skip
