"""Matrix products O[m, n] = A[m, k] B[k, n] on systolic arrays with tiled on-chip memory, in closed form, compiled.

Array. R x C elements, one multiply-accumulate each per cycle at 8 bits. A dataflow names the operand that stays: the
stationary sides Sr x Sc are cut into folds of R x C, and a fold streams T steps through the array (SCALE-Sim's names):

    os (outputs)   Sr = m, Sc = n, T = k
    ws (weights)   Sr = k, Sc = n, T = m
    is (inputs)    Sr = k, Sc = m, T = n

Widths. In a *fixed* array a side wider than 8 bits takes two cycles, and narrow operands gain nothing. In a *scalable*
one an element is made of sixteen 2-bit multipliers that regroup, as in Bit Fusion (Sharma et al., ISCA 2018; the
project's page act-lab.org/artifacts/bitfusion gives 16 products of 2 x 2 bits, 4 of 4 x 4 or 2 x 8 or 8 x 2, 1 of 8 x 8
per element and cycle): an element works on 64 / (a b) neighbours along k at once, widths rounded up to a power of two.

Overlap. Operands of the next fold are loaded, and results of the last one drained, while a fold runs, which needs at
least R cycles; so a fold takes max(T, R) cycles, and filling and draining the array, R + C - 2 cycles, is exposed once
per operator. (A serial array, as SCALE-Sim counts, takes T + R + C - 2 or T + 2R + C - 2 for every fold.) The array's
ports to on-chip memory are as wide as its edges, so they are never slower than that. DRAM traffic overlaps with the
array but for the stationary operand of the first fold and the results of the last one:

    time = exposed / bandwidth + max(cycles / frequency, (traffic - exposed) / bandwidth)

Ports. A step takes R operands along one edge of the array and C along the other, and gives C results (os: at the end
of a fold); loading a fold takes a row of C per cycle. On-chip memory has a read port per streamed edge, one for the
operand that stays, and one each to read and to write partial sums, as wide as the edge they serve. Each serves a row
or column per cycle, so it needs T cycles for the streamed operand and the sums, and R for the operand that stays:
max(T, R) is already the slowest of the array and its ports, and only DRAM can be slower. Wide operands take two cycles
per step, in which their ports move two halves.

Tiles. A product is cut into tiles tile_m x tile_n x tile_k, worked off fold by fold, edge tiles with their true size.
Tiles of A and B are double-buffered on chip, but for an operand of one tile, which is used while it fills; the output
tile stays at accumulator width while k advances. Tile loops
run in one of six orders. An operand is fetched again for every trip of the loop that does not index it, if a loop that
does index it, with more than one trip, turns inside. An output that is evicted before its last k tile is written and
read back at accumulator width.

On chip, per element of the operand:

    reads of A      os, ws: folds along n          is: once per trip of n
    reads of B      os: folds along m              ws: once per trip of m         is: folds along m
    partial sums    os: 2 trips_k - 1              ws, is: 2 folds along k - 1

Limits: no bank conflicts, no reuse across products, tiles aligned with the first element.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from costmodels.products import A_BITS, HELD, PLAIN_BITS, WIDE, ceil, held_bits

ACCUMULATOR_BYTES: Final = 4.0
PLAIN_BYTES: Final = PLAIN_BITS / 8

WEIGHT_STATIONARY, OUTPUT_STATIONARY, INPUT_STATIONARY = range(3)


class Chips(NamedTuple):
    """Arrays, tiles and ports of a batch of designs, shape (n,) each.

    Attributes:
        rows, cols: elements of one array.
        cores: arrays, which share the folds of a product.
        stays: WEIGHT_STATIONARY, OUTPUT_STATIONARY or INPUT_STATIONARY.
        is_scalable: whether narrow operands share an element.
        tile_m, tile_n, tile_k: tile sizes, 0 where the mapper chooses.
        at_m, at_n, at_k: position of each tile loop, 0 outermost; -1 where the mapper chooses.
        sram_bytes: on-chip memory that tiles share.
        freq_hz: clock.
        dram_bytes_per_s: bandwidth.
    """

    rows: np.ndarray
    cols: np.ndarray
    cores: np.ndarray
    stays: np.ndarray
    is_scalable: np.ndarray
    tile_m: np.ndarray
    tile_n: np.ndarray
    tile_k: np.ndarray
    at_m: np.ndarray
    at_n: np.ndarray
    at_k: np.ndarray
    sram_bytes: np.ndarray
    freq_hz: np.ndarray
    dram_bytes_per_s: np.ndarray


class OneChip(NamedTuple):
    """The chip of one design, see :class:`Chips`, with the lanes of its vector unit."""

    rows: float
    cols: float
    cores: float
    stays: int
    is_scalable: int
    tile_m: float
    tile_n: float
    tile_k: float
    sram_bytes: float
    freq_hz: float
    dram_bytes_per_s: float
    lanes: float


class Tiles(NamedTuple):
    """Tile sizes of a product and the position of each tile loop, 0 outermost."""

    m: float
    n: float
    k: float
    at_m: float
    at_n: float
    at_k: float


class Pace(NamedTuple):
    """How a product meets an array.

    Attributes:
        unit_m, unit_n, unit_k: size of a fold along each side; 1 along the streamed one.
        slots: cycles per step.
        least: cycles that a fold takes at least.
    """

    unit_m: float
    unit_n: float
    unit_k: float
    slots: float
    least: float


class Ran(NamedTuple):
    """What a product does on its chip, all ``count`` of them together.

    Attributes:
        cycles: of the array.
        a_moved, b_moved, o_moved: bytes that cross to DRAM.
        exposed: bytes among them that nothing overlaps with.
        sram_read_bits, sram_write_bits: on-chip traffic.
        tile_bytes: on-chip memory that the tiles take.
    """

    cycles: float
    a_moved: float
    b_moved: float
    o_moved: float
    exposed: float
    sram_read_bits: float
    sram_write_bits: float
    tile_bytes: float


@njit(cache=True)
def floor(x: float) -> float:
    """Return the floor as a float, one instruction instead of a detour by integers."""
    return float(np.floor(x))


@njit(cache=True)
def one_chip(c: Chips, i: int, lanes: float) -> OneChip:
    """Return the chip of design i, whose vector unit has so many lanes."""
    return OneChip(
        c.rows[i], c.cols[i], c.cores[i], c.stays[i], c.is_scalable[i], c.tile_m[i], c.tile_n[i], c.tile_k[i],
        c.sram_bytes[i], c.freq_hz[i], c.dram_bytes_per_s[i], lanes,
    )  # fmt: skip


@njit(cache=True)
def element_cycles(is_scalable: int, a_bits: float, held: float, wide: float) -> float:
    """Return the cycles of one element that a multiply-accumulate takes, a fraction where several share an element."""
    if is_scalable:
        return held_bits(a_bits) * held / 64.0
    return (2.0 if a_bits > 8.0 else 1.0) * (1.0 + wide)


@njit(cache=True)
def cycles_per_mac(sizes: np.ndarray, is_scalable: np.ndarray) -> np.ndarray:
    """Return :func:`element_cycles` of sized products, shape (n, j).

    Args:
        sizes: as :func:`costmodels.products.size_products` returns them, shape (9, n, j).
        is_scalable: of the array of each design, shape (n,).
    """
    found = np.empty((sizes.shape[1], sizes.shape[2]))
    for i in range(sizes.shape[1]):
        for j in range(sizes.shape[2]):
            found[i, j] = element_cycles(is_scalable[i], sizes[A_BITS, i, j], sizes[HELD, i, j], sizes[WIDE, i, j])
    return found


@njit(cache=True)
def pace(rows: float, cols: float, stays: int, is_scalable: int, a_bits: float, held: float, wide: float) -> Pace:
    """Return fold sizes and cycles for operand widths (``held`` and ``wide`` as size_products gives them)."""
    work = element_cycles(is_scalable, a_bits, held, wide)
    slots, packed = (work, 1.0) if work > 1.0 else (1.0, 1.0 / work)
    if stays == OUTPUT_STATIONARY:
        return Pace(rows, cols, 1.0, slots / packed, rows)
    # Loading the operand that stays takes a cycle per row at 8 bits.
    if stays == WEIGHT_STATIONARY:
        return Pace(1.0, cols, rows * packed, slots, rows * (1.0 + wide))
    return Pace(cols, 1.0, rows * packed, slots, rows * (2.0 if a_bits > 8.0 else 1.0))


@njit(cache=True)
def folds(size: float, tile: float, unit: float) -> float:
    """Return the folds along one side, tile by tile, the last tile with what is left."""
    if tile >= size:
        return ceil(size / unit)
    whole = floor(size / tile)
    return whole * ceil(tile / unit) + ceil((size - whole * tile) / unit)


@njit(cache=True)
def fold_cycles(size: float, tile: float, slots: float, least: float) -> float:
    """Return the cycles of one fold over all streamed tiles, each of them ``least`` or more."""
    if tile >= size:
        return max(size * slots, least)
    whole = floor(size / tile)
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
def held_bytes(
    tile_m: float, tile_n: float, tile_k: float, a_bytes: float, b_bytes: float,
    trips_m: float, trips_n: float, trips_k: float,
) -> float:  # fmt: skip
    """Return the on-chip memory of tiles, where an element of A and B takes so many bytes."""
    a_buffers = 2.0 if trips_m > 1.0 or trips_k > 1.0 else 1.0
    b_buffers = 2.0 if trips_n > 1.0 or trips_k > 1.0 else 1.0
    tiles = tile_k * (a_buffers * tile_m * a_bytes + b_buffers * tile_n * b_bytes)
    return tiles + tile_m * tile_n * ACCUMULATOR_BYTES


@njit(cache=True)
def run_product(
    count: float, m: float, k: float, n: float, a_bits: float, b_bytes: float,
    rows: float, cols: float, cores: float, stays: int, p: Pace, t: Tiles, o_bytes: float,
) -> Ran:  # fmt: skip
    """Return what ``count`` products of one size do, cut into tiles.

    Args:
        count, m, k, n, a_bits, b_bytes: as :func:`costmodels.products.size_products` gives them.
        rows, cols, cores, stays: the array.
        p: how they meet.
        t: tiles no larger than the product.
        o_bytes: bytes of a finished element of O in DRAM.
    """
    trips_m, trips_k, trips_n = ceil(m / t.m), ceil(k / t.k), ceil(n / t.n)
    a_element, b_element = a_bits / 8.0, b_bytes / (k * n)
    if stays == OUTPUT_STATIONARY:
        folds_r, folds_c = folds(m, t.m, p.unit_m), folds(n, t.n, p.unit_n)
        one_fold = fold_cycles(k, t.k, p.slots, p.least)
        a_reads, b_reads, partial = folds_c, folds_r, 2.0 * trips_k - 1.0
        exposed = min(m, rows) * min(n, cols) * o_bytes
    elif stays == WEIGHT_STATIONARY:
        folds_r, folds_c = folds(k, t.k, p.unit_k), folds(n, t.n, p.unit_n)
        one_fold = fold_cycles(m, t.m, p.slots, p.least)
        a_reads, b_reads, partial = folds_c, trips_m, 2.0 * folds_r - 1.0
        exposed = min(n, cols) * (min(k, p.unit_k) * b_element + o_bytes)
    else:
        folds_r, folds_c = folds(k, t.k, p.unit_k), folds(m, t.m, p.unit_m)
        one_fold = fold_cycles(n, t.n, p.slots, p.least)
        a_reads, b_reads, partial = trips_n, folds_c, 2.0 * folds_r - 1.0
        exposed = min(m, cols) * (min(k, p.unit_k) * a_element + o_bytes)
    # Folds of all products are shared out over the cores; the last round may leave some idle.
    cycles = ceil(count * folds_r * folds_c / cores) * one_fold + rows + cols - 2.0

    a_bytes, b_stored, o_elements = count * m * k * a_element, count * b_bytes, count * m * n
    a_moved = a_bytes * fetches(trips_n, t.at_n, trips_m, t.at_m, trips_k, t.at_k)
    b_moved = b_stored * fetches(trips_m, t.at_m, trips_k, t.at_k, trips_n, t.at_n)
    spills = fetches(trips_k, t.at_k, trips_m, t.at_m, trips_n, t.at_n) - 1.0
    o_moved = o_elements * (o_bytes + 2.0 * ACCUMULATOR_BYTES * spills)
    # What comes from DRAM is written on chip, what goes there is read; partial sums are half of each.
    sums = (o_elements * ACCUMULATOR_BYTES * partial + o_moved) / 2.0
    return Ran(
        cycles,
        a_moved,
        b_moved,
        o_moved,
        min(exposed, a_moved + b_moved + o_moved),
        8.0 * (a_bytes * a_reads + b_stored * b_reads + sums),
        8.0 * (a_moved + b_moved + sums),
        held_bytes(t.m, t.n, t.k, a_element, b_element, trips_m, trips_n, trips_k),
    )
