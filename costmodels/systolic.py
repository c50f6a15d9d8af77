"""Matrix products O[m, n] = A[m, k] B[k, n] on systolic arrays with tiled on-chip memory, in closed form, compiled.

Array. R x C elements, one multiply-accumulate each per cycle at 8 bits; a side wider than 8 bits takes two cycles. A
dataflow names the operand that stays: the stationary sides Sr x Sc are cut into folds of R x C, and a fold streams T
steps through the array (SCALE-Sim's names):

    os (outputs)   Sr = m, Sc = n, T = k
    ws (weights)   Sr = k, Sc = n, T = m
    is (inputs)    Sr = k, Sc = m, T = n

Overlap. Operands of the next fold are loaded, and results of the last one drained, while a fold runs, which needs at
least R cycles; so a fold takes max(T, R) cycles, and filling and draining the array, R + C - 2 cycles, is exposed once
per operator. (A serial array, as SCALE-Sim counts, takes T + R + C - 2 or T + 2R + C - 2 for every fold.)

Tiles. A product is cut into tiles tile_m x tile_n x tile_k, worked off fold by fold, edge tiles with their true size.
Tiles of A and B are double-buffered on chip; the output tile stays at accumulator width while k advances. Tile loops
run in one of six orders. An operand is fetched again for every trip of the loop that does not index it, if a loop that
does index it, with more than one trip, turns inside. An output that is evicted before its last k tile is written and
read back at accumulator width.

On chip, per element of the operand:

    reads of A      os, ws: folds along n          is: once per trip of n
    reads of B      os: folds along m              ws: once per trip of m         is: folds along m
    partial sums    os: 2 trips_k - 1              ws, is: 2 folds along k - 1

Limits: no bank conflicts, no reuse across products, tiles aligned with the first element, one tile size for all.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numba import njit

from costmodels.products import A_BITS, B_BITS, B_BYTES, COUNT, PLAIN_BITS, WIDE, K, M, N

ACCUMULATOR_BYTES: Final = 4.0
PLAIN_BYTES: Final = PLAIN_BITS / 8

WEIGHT_STATIONARY, OUTPUT_STATIONARY, INPUT_STATIONARY = range(3)

# Planes of the result of run_products.
CYCLES, A_MOVED, B_MOVED, O_MOVED, SRAM_READ_BITS, SRAM_WRITE_BITS, MACS, SCALED_MACS, TILE_BYTES, LIVE_BYTES = range(
    10
)


class Chips(NamedTuple):
    """Arrays and tiles of a batch of designs, shape (n,) each.

    Attributes:
        rows, cols: elements of one array.
        cores: arrays, which share the folds of a product.
        stays: WEIGHT_STATIONARY, OUTPUT_STATIONARY or INPUT_STATIONARY.
        tile_m, tile_n, tile_k: tile sizes.
        at_m, at_n, at_k: position of each tile loop, 0 outermost.
    """

    rows: np.ndarray
    cols: np.ndarray
    cores: np.ndarray
    stays: np.ndarray
    tile_m: np.ndarray
    tile_n: np.ndarray
    tile_k: np.ndarray
    at_m: np.ndarray
    at_n: np.ndarray
    at_k: np.ndarray


@njit(cache=True)
def folds(size: float, tile: float, unit: float) -> float:
    """Return the folds along one side, tile by tile, the last tile with what is left."""
    whole = math.floor(size / tile)
    return whole * math.ceil(tile / unit) + math.ceil((size - whole * tile) / unit)


@njit(cache=True)
def fold_cycles(size: float, tile: float, slots: float, least: float) -> float:
    """Return the cycles of one fold over all streamed tiles, each of them ``least`` or more."""
    whole = math.floor(size / tile)
    rest = size - whole * tile
    return whole * max(tile * slots, least) + (max(rest * slots, least) if rest > 0.0 else 0.0)


@njit(cache=True)
def fetches(trips: float, at: float, trips_1: float, at_1: float, trips_2: float, at_2: float) -> float:
    """Return how often an operand is fetched.

    Args:
        trips, at: of the loop that does not index the operand.
        trips_1, at_1, trips_2, at_2: of the loops that do.
    """
    return trips if (trips_1 > 1.0 and at_1 > at) or (trips_2 > 1.0 and at_2 > at) else 1.0


@njit(cache=True)
def run_products(sizes: np.ndarray, chips: Chips) -> np.ndarray:
    """Return what products do on their chips, all ``count`` of them together, shape (10, n designs, j products).

    Planes: cycles of the array; bytes of A, B and O that cross to DRAM; bits read and written on chip;
    multiply-accumulates; the same times a_bits x b_bits / 64; on-chip bytes that the tiles take; bytes of A and O.

    Args:
        sizes: result of :func:`costmodels.products.size_products`.
        chips: hardware of each design.
    """
    _, n_designs, n_products = sizes.shape
    out = np.zeros((10, n_designs, n_products))
    for i in range(n_designs):
        rows, cols, stays = chips.rows[i], chips.cols[i], chips.stays[i]
        at_m, at_n, at_k = chips.at_m[i], chips.at_n[i], chips.at_k[i]
        for j in range(n_products):
            count = sizes[COUNT, i, j]
            if count <= 0.0:
                continue
            m, k, n = sizes[M, i, j], sizes[K, i, j], sizes[N, i, j]
            a_bits, b_bytes = sizes[A_BITS, i, j], sizes[B_BYTES, i, j]
            tile_m, tile_k, tile_n = min(chips.tile_m[i], m), min(chips.tile_k[i], k), min(chips.tile_n[i], n)
            trips_m, trips_k, trips_n = math.ceil(m / tile_m), math.ceil(k / tile_k), math.ceil(n / tile_n)
            slots = (2.0 if a_bits > 8.0 else 1.0) * (1.0 + sizes[WIDE, i, j])

            if stays == OUTPUT_STATIONARY:
                folds_r, folds_c = folds(m, tile_m, rows), folds(n, tile_n, cols)
                one_fold = fold_cycles(k, tile_k, slots, rows)
                a_reads, b_reads, partial = folds_c, folds_r, 2.0 * trips_k - 1.0
            elif stays == WEIGHT_STATIONARY:
                folds_r, folds_c = folds(k, tile_k, rows), folds(n, tile_n, cols)
                one_fold = fold_cycles(m, tile_m, slots, rows)
                a_reads, b_reads, partial = folds_c, float(trips_m), 2.0 * folds_r - 1.0
            else:
                folds_r, folds_c = folds(k, tile_k, rows), folds(m, tile_m, cols)
                one_fold = fold_cycles(n, tile_n, slots, rows)
                a_reads, b_reads, partial = float(trips_n), folds_c, 2.0 * folds_r - 1.0
            # Folds of all products are shared out over the cores; the last round may leave some idle.
            out[CYCLES, i, j] = math.ceil(count * folds_r * folds_c / chips.cores[i]) * one_fold + rows + cols - 2.0

            a_bytes, b_stored, o_elements = count * m * k * a_bits / 8.0, count * b_bytes, count * m * n
            a_moved = a_bytes * fetches(trips_n, at_n, trips_m, at_m, trips_k, at_k)
            b_moved = b_stored * fetches(trips_m, at_m, trips_k, at_k, trips_n, at_n)
            spills = fetches(trips_k, at_k, trips_m, at_m, trips_n, at_n) - 1.0
            o_moved = o_elements * (PLAIN_BYTES + 2.0 * ACCUMULATOR_BYTES * spills)
            out[A_MOVED, i, j], out[B_MOVED, i, j], out[O_MOVED, i, j] = a_moved, b_moved, o_moved
            # What comes from DRAM is written on chip, what goes there is read; partial sums are half of each.
            sums = (o_elements * ACCUMULATOR_BYTES * partial + o_moved) / 2.0
            out[SRAM_READ_BITS, i, j] = 8.0 * (a_bytes * a_reads + b_stored * b_reads + sums)
            out[SRAM_WRITE_BITS, i, j] = 8.0 * (a_moved + b_moved + sums)
            macs = count * m * k * n
            out[MACS, i, j], out[SCALED_MACS, i, j] = macs, macs * a_bits * sizes[B_BITS, i, j] / 64.0
            tiles = tile_k * (tile_m * a_bits / 8.0 + tile_n * b_bytes / (k * n))
            out[TILE_BYTES, i, j] = 2.0 * tiles + tile_m * tile_n * ACCUMULATOR_BYTES
            out[LIVE_BYTES, i, j] = a_bytes + o_elements * PLAIN_BYTES
    return out
