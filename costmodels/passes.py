"""One pass of a phase: all its matrix products for a batch of designs, sized, mapped and run in one compiled loop.

The loop works on scalars, product by product: :func:`costmodels.products.size_design` says how large it is,
:func:`costmodels.mapper.best_tiles` chooses what the design leaves free, :func:`costmodels.systolic.run_product` says
what it does, and its time is

    exposed / bandwidth + max(cycles / frequency, (traffic - exposed) / bandwidth)

Sums run in the order of the products, design by design, so a row's result does not depend on its neighbours, bit for
bit. A mapping depends on the product's size and widths alone, so products that are alike within a design are mapped
once.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from costmodels.attention import run_attentions
from costmodels.fused_tables import Attentions, RowGroups
from costmodels.groups import Ask, run_groups
from costmodels.mapper import Known, known_tiles, no_known
from costmodels.products import (
    A_BITS,
    B_BYTES,
    COUNT,
    HELD,
    N_SIZES,
    WIDE,
    Bound,
    K,
    M,
    N,
    Products,
    Widths,
    size_design,
)
from costmodels.rowplan import Room
from costmodels.systolic import PLAIN_BYTES, Chips, Tiles, element_cycles, one_chip, pace, run_product
from costmodels.totals import (
    ACTIVATION_BYTES,
    ELEMENT_CYCLES,
    KV_BYTES,
    LIVE_BYTES,
    MACS,
    N_TOTALS,
    SECONDS,
    SRAM_READ_BITS,
    SRAM_WRITE_BITS,
    TILE_BYTES,
    WEIGHT_BYTES,
)

# Planes of the products of a pass, shape (21, n, j): the first eight as above, time in and beside the array; then how
# it ran: cycles, tiles and order, bytes of A, of B and of O that crossed to DRAM, on-chip bytes of the tiles.
ARRAY_S, TRAFFIC_S, CYCLES, TILE_M, TILE_N, TILE_K, AT_M, AT_N, AT_K, A_MOVED, B_MOVED = range(8, 19)
O_MOVED, HELD_BYTES = 19, 20
N_PLANES: Final = 21


@njit(cache=True)
def run_pass(
    p: Products, b: Bound, w: Widths, c: Chips, is_weight: np.ndarray, is_cached: np.ndarray, planes: np.ndarray
) -> np.ndarray:
    """Return the totals of a pass: sums over its products, of live and tile bytes the largest, shape (11, n).

    Args:
        p, b, w: its products, symbols and widths.
        c: chips of the designs.
        is_weight, is_cached: whether B is a weight, or comes from the key-value cache; else activations, shape (j,).
        planes: filled with what each product adds, shape (21, n, j); of shape (21, 0, 0), not.
    """
    n_designs = len(b.block)
    totals = np.zeros((N_TOTALS, n_designs))
    known = no_known()
    sizes = np.empty((N_SIZES, 1, len(p.kind)))
    skipped = np.zeros((1, len(p.kind)), dtype=np.uint8)
    for i in range(n_designs):
        size_design(p, b, w, i, sizes, 0)
        _run_design(i, sizes, 0, c, is_weight, is_cached, planes, totals, known, skipped[0])
    return totals


@njit(cache=True)
def run_fused_pass(
    p: Products, b: Bound, w: Widths, c: Chips, is_weight: np.ndarray, is_cached: np.ndarray, planes: np.ndarray,
    g: RowGroups, t: Attentions, ask: Ask, scratch: Room, held: np.ndarray, group_planes: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Return the totals of a pass in which designs fuse operators, shape (11, n); see :func:`run_pass`.

    Args:
        p, b, w, c, is_weight, is_cached, planes: as for :func:`run_pass`.
        g, t: the groups that there are.
        ask: which of them each design fuses.
        scratch: to work in.
        held: filled with the on-chip memory that the largest group of each label needs, shape (labels, n).
        group_planes: filled with what each group does, at the operator that leads it, shape (17, n, operators); of
            shape (17, 0, 0), not.
    """
    n_designs = len(b.block)
    totals = np.zeros((N_TOTALS, n_designs))
    known = no_known()
    sizes = np.empty((N_SIZES, 1, len(p.kind)))
    for i in range(n_designs):
        size_design(p, b, w, i, sizes, 0)
        _run_design(i, sizes, 0, c, is_weight, is_cached, planes, totals, known, ask.skipped[i])
        chip = one_chip(c, i, ask.lanes[i])
        run_groups(i, ask.mask[i], g, sizes, 0, p, b, chip, scratch, totals, held, group_planes)
        q, kv, runs = ask.tile_q[i], ask.tile_kv[i], ask.attention[i]
        run_attentions(i, runs, t, sizes, 0, p, b, chip, q, kv, is_cached, totals, held, group_planes)
    return totals


@njit(cache=True)
def run_sizes(
    sizes: np.ndarray, c: Chips, is_weight: np.ndarray, is_cached: np.ndarray, planes: np.ndarray
) -> np.ndarray:
    """Return the totals of products that are sized already, shape (11, n); see :func:`run_pass`.

    Args:
        sizes: as :func:`costmodels.products.size_products` returns them, shape (9, n, j).
        c, is_weight, is_cached, planes: as for :func:`run_pass`.
    """
    n_designs = sizes.shape[1]
    totals = np.zeros((N_TOTALS, n_designs))
    known = no_known()
    skipped = np.zeros(sizes.shape[2], dtype=np.uint8)
    for i in range(n_designs):
        _run_design(i, sizes, i, c, is_weight, is_cached, planes, totals, known, skipped)
    return totals


@njit(cache=True)
def _run_design(
    i: int, sizes: np.ndarray, at_size: int, c: Chips, is_weight: np.ndarray, is_cached: np.ndarray,
    planes: np.ndarray, totals: np.ndarray, known: Known, skipped: np.ndarray,
) -> None:  # fmt: skip
    """Run the products of design i, whose sizes are ``sizes[:, at_size]``, and enter them into totals and planes.

    Those that are ``skipped`` run in a group.
    """
    rows, cols, cores, stays = c.rows[i], c.cols[i], c.cores[i], c.stays[i]
    freq, bandwidth = c.freq_hz[i], c.dram_bytes_per_s[i]
    asked = Tiles(c.tile_m[i], c.tile_n[i], c.tile_k[i], c.at_m[i], c.at_n[i], c.at_k[i])
    is_free = min(asked.m, asked.n, asked.k) <= 0.0 or asked.at_m < 0.0
    seconds = weights = caches = activations = macs = elements = reads = writes = live = held = 0.0
    for j in range(sizes.shape[2]):
        count, m, k, n = sizes[COUNT, at_size, j], sizes[M, at_size, j], sizes[K, at_size, j], sizes[N, at_size, j]
        if count <= 0.0 or skipped[j]:
            continue
        a_bits, b_bytes = sizes[A_BITS, at_size, j], sizes[B_BYTES, at_size, j]
        wide, width = sizes[WIDE, at_size, j], sizes[HELD, at_size, j]
        meets = pace(rows, cols, stays, c.is_scalable[i], a_bits, width, wide)
        if is_free:
            tiles = known_tiles(known, i, m, k, n, a_bits, b_bytes, wide, width, meets, rows, c.sram_bytes[i], asked)
        else:
            tiles = Tiles(min(asked.m, m), min(asked.n, n), min(asked.k, k), asked.at_m, asked.at_n, asked.at_k)
        ran = run_product(count, m, k, n, a_bits, b_bytes, rows, cols, cores, stays, meets, tiles, PLAIN_BYTES)
        moved = ran.a_moved + ran.b_moved + ran.o_moved
        array_s, exposed_s = ran.cycles / freq, ran.exposed / bandwidth
        traffic_s = (moved - ran.exposed) / bandwidth
        weight = ran.b_moved if is_weight[j] else 0.0
        cache = ran.b_moved if is_cached[j] else 0.0
        activation = ran.a_moved + ran.o_moved + (0.0 if is_weight[j] or is_cached[j] else ran.b_moved)
        work = count * m * k * n
        busy = work * element_cycles(c.is_scalable[i], a_bits, width, wide)
        seconds += exposed_s + max(array_s, traffic_s)
        weights += weight
        caches += cache
        activations += activation
        macs += work
        elements += busy
        reads += ran.sram_read_bits
        writes += ran.sram_write_bits
        live = max(live, count * m * (k * a_bits / 8.0 + n * PLAIN_BYTES))
        held = max(held, ran.tile_bytes)
        if planes.shape[1] > 0:
            bound = array_s >= traffic_s
            planes[SECONDS, i, j] = exposed_s + max(array_s, traffic_s)
            planes[WEIGHT_BYTES, i, j], planes[KV_BYTES, i, j] = weight, cache
            planes[ACTIVATION_BYTES, i, j] = activation
            planes[MACS, i, j], planes[ELEMENT_CYCLES, i, j] = work, busy
            planes[SRAM_READ_BITS, i, j], planes[SRAM_WRITE_BITS, i, j] = ran.sram_read_bits, ran.sram_write_bits
            planes[ARRAY_S, i, j] = array_s if bound else 0.0
            planes[TRAFFIC_S, i, j] = exposed_s if bound else exposed_s + traffic_s
            planes[CYCLES, i, j], planes[HELD_BYTES, i, j] = ran.cycles, ran.tile_bytes
            planes[TILE_M, i, j], planes[TILE_N, i, j], planes[TILE_K, i, j] = tiles.m, tiles.n, tiles.k
            planes[AT_M, i, j], planes[AT_N, i, j], planes[AT_K, i, j] = tiles.at_m, tiles.at_n, tiles.at_k
            planes[A_MOVED, i, j], planes[B_MOVED, i, j], planes[O_MOVED, i, j] = ran.a_moved, ran.b_moved, ran.o_moved
    totals[SECONDS, i], totals[WEIGHT_BYTES, i], totals[KV_BYTES, i] = seconds, weights, caches
    totals[ACTIVATION_BYTES, i], totals[MACS, i], totals[ELEMENT_CYCLES, i] = activations, macs, elements
    totals[SRAM_READ_BITS, i], totals[SRAM_WRITE_BITS, i] = reads, writes
    totals[LIVE_BYTES, i], totals[TILE_BYTES, i] = live, held
