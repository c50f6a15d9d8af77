"""Which tiles, and in which loop order: the mapping that moves the fewest bytes to and from DRAM, product by product.

Candidates cut each free side into 1, 2, 4, 8, ... tiles, and the most there can be: sides that are folded into whole
folds, the streamed side into equal tiles of so many steps that they hide the loading of the next fold. All of them take
the same cycles, so the one with the least traffic is also the fastest, and

    more on-chip memory never means more traffic nor more time    (every candidate that fitted still does)
    fewer bits never mean more traffic in a fixed array           (the same candidates, each moves less and still fits)

In a scalable array a fold of narrower operands is longer along k, so where memory holds only a few folds the second
does not follow: narrow operands then trade traffic for cycles.

Traffic of the six orders of the tile loops, outermost first, for T_m, T_n, T_k trips: how often A and B are fetched,
and how often an unfinished output is evicted.

    order   A                          B                          evictions
    mnk     T_n if T_k > 1             T_m if T_n T_k > 1         0
    nmk     T_n if T_m T_k > 1         T_m if T_k > 1             0
    mkn     1                          T_m if T_k T_n > 1         T_k - 1 if T_n > 1
    kmn     1                          T_m if T_n > 1             T_k - 1 if T_m T_n > 1
    nkm     T_n if T_k T_m > 1         1                          T_k - 1 if T_m > 1
    knm     T_n if T_m > 1             1                          T_k - 1 if T_m T_n > 1

Of mappings that move equally much the first found is taken, which has the larger tiles and so reads less on chip.

Limits: one level of tiles; trips are powers of two, which on small products that do not fit costs 2 % of traffic in the
median and 28 % at worst against every tile size there is (tests/oracles/test_mapper.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from costmodels.products import ceil
from costmodels.systolic import ACCUMULATOR_BYTES, PLAIN_BYTES, Pace, Tiles, fetches, floor, held_bytes

# Positions (m, n, k) of the loops in each order: mnk, nmk, mkn, kmn, nkm, knm.
ORDERS: Final = np.array([[0.0, 1, 2], [1, 0, 2], [0, 2, 1], [1, 2, 0], [2, 0, 1], [2, 1, 0]])

MOST_CUTS: Final = 48
_NO_TILES: Final = Tiles(0.0, 0.0, 0.0, 0.0, 1.0, 2.0)

# Mappings that are remembered; what falls on the same place is worked out again.
_REMEMBERED: Final = 1024


class Known(NamedTuple):
    """Mappings of a design, by size and widths of the product, and scratch of the mapper."""

    design: np.ndarray
    keys: np.ndarray
    tiles: np.ndarray
    room: np.ndarray


@njit(cache=True)
def tile_of(size: float, unit: float, least: float, trips: float) -> float:
    """Return the tile that cuts a side into ``trips`` tiles or fewer; 0 where there is none.

    A folded side (``unit`` > 1) is cut between folds. A streamed one (``unit`` 1) is cut evenly, into tiles of
    ``least`` or more.
    """
    if trips == 1.0:
        return size
    if unit > 1.0:
        return ceil(ceil(size / unit) / trips) * unit
    tile = ceil(size / trips)
    rest = size - (ceil(size / tile) - 1.0) * tile
    return tile if min(tile, rest) >= least else 0.0


@njit(cache=True)
def cuts(size: float, unit: float, least: float, asked: float, out: np.ndarray) -> int:
    """Write the candidate tiles of a side and their trips to ``out``, shape (2, cuts); return how many there are."""
    if asked > 0.0:
        out[0, 0] = min(asked, size)
        out[1, 0] = ceil(size / out[0, 0])
        return 1
    most = ceil(size / unit) if unit > 1.0 else floor(size / least)
    found, trips = 0, 1.0
    while trips == 1.0 or trips < most:
        tile = tile_of(size, unit, least, trips)
        if tile > 0.0:
            out[0, found], out[1, found] = min(tile, size), ceil(size / tile)
            found += 1
        trips *= 2.0
    while most > 1.0:  # and the smallest tile there is
        tile = tile_of(size, unit, least, most)
        if tile > 0.0:
            out[0, found], out[1, found] = min(tile, size), ceil(size / tile)
            return found + 1
        most -= 1.0
    return found


@njit(cache=True)
def best_tiles(
    m: float, k: float, n: float, a_bytes: float, b_bytes: float, o_bytes: float,
    p: Pace, least: float, sram_bytes: float, asked: Tiles, room: np.ndarray,
) -> Tiles:  # fmt: skip
    """Return the tiles and loop order that move the fewest bytes; where nothing fits, the smallest tiles.

    Args:
        m, k, n: the product.
        a_bytes, b_bytes, o_bytes: bytes of an element of A, of B and of a finished one of O.
        p: how it meets the array.
        least: size of a streamed tile that hides the loading of the next fold.
        sram_bytes: on-chip memory for the tiles.
        asked: what is given; sizes of 0 and positions of -1 are free.
        room: to work in, shape (3, 2, cuts).
    """
    best, least_moved = _NO_TILES, np.inf
    smallest, smallest_bytes = _NO_TILES, np.inf
    a, b, o = m * k * a_bytes, k * n * b_bytes, m * n * o_bytes
    spill = 2.0 * m * n * ACCUMULATOR_BYTES
    is_free = asked.at_m < 0.0
    at_m, at_n, at_k = (0.0, 1.0, 2.0) if is_free else (asked.at_m, asked.at_n, asked.at_k)
    cuts_k = cuts(k, p.unit_k, least, asked.k, room[0])
    cuts_m = cuts(m, p.unit_m, least, asked.m, room[1])
    cuts_n = cuts(n, p.unit_n, least, asked.n, room[2])
    for ik in range(cuts_k):
        tile_k, trips_k = room[0, 0, ik], room[0, 1, ik]
        for im in range(cuts_m):
            tile_m, trips_m = room[1, 0, im], room[1, 1, im]
            for i_n in range(cuts_n):
                tile_n, trips_n = room[2, 0, i_n], room[2, 1, i_n]
                held = held_bytes(tile_m, tile_n, tile_k, a_bytes, b_bytes, trips_m, trips_n, trips_k)
                if held > sram_bytes:
                    if held < smallest_bytes:
                        smallest, smallest_bytes = Tiles(tile_m, tile_n, tile_k, at_m, at_n, at_k), held
                    continue
                for order in range(6 if is_free else 1):
                    if is_free:
                        at_m, at_n, at_k = ORDERS[order, 0], ORDERS[order, 1], ORDERS[order, 2]
                    evictions = fetches(trips_k, at_k, trips_m, at_m, trips_n, at_n) - 1.0
                    moved = (
                        a * fetches(trips_n, at_n, trips_m, at_m, trips_k, at_k)
                        + b * fetches(trips_m, at_m, trips_k, at_k, trips_n, at_n)
                        + o
                        + spill * evictions
                    )
                    if moved < least_moved:
                        best, least_moved = Tiles(tile_m, tile_n, tile_k, at_m, at_n, at_k), moved
                if least_moved <= a + b + o:
                    return best
                break  # smaller tiles along n move no less
    return best if least_moved < np.inf else smallest


@njit(cache=True)
def no_known() -> Known:
    """Return no mappings."""
    tiles, room = np.empty((_REMEMBERED, 6)), np.empty((3, 2, MOST_CUTS))
    return Known(np.full(_REMEMBERED, -1), np.empty((_REMEMBERED, 7)), tiles, room)


@njit(cache=True)
def known_tiles(
    known: Known, i: int, m: float, k: float, n: float, a_bits: float, b_bytes: float, wide: float, held: float,
    meets: Pace, rows: float, sram_bytes: float, asked: Tiles,
) -> Tiles:  # fmt: skip
    """Return the mapper's tiles and loop order for a product of design i, worked out once for products that are alike.

    Args:
        known: is looked up and added to.
        i: the design.
        m, k, n, a_bits, b_bytes, wide, held: as :func:`costmodels.products.size_products` gives them.
        meets: how the product meets the array.
        rows: of the array.
        sram_bytes: on-chip memory for the tiles.
        asked: what the design gives.
    """
    at = _place(m, k, n, a_bits, b_bytes)
    key = known.keys[at]
    same_size = known.design[at] == i and key[0] == m and key[1] == k and key[2] == n
    if not (same_size and key[3] == a_bits and key[4] == b_bytes and key[5] == wide and key[6] == held):
        least, b_element = max(rows, meets.least / meets.slots), b_bytes / (k * n)
        found = best_tiles(m, k, n, a_bits / 8.0, b_element, PLAIN_BYTES, meets, least, sram_bytes, asked, known.room)
        known.design[at] = i
        key[0], key[1], key[2], key[3], key[4], key[5], key[6] = m, k, n, a_bits, b_bytes, wide, held
        for x in range(6):
            known.tiles[at, x] = found[x]
    t = known.tiles[at]
    return Tiles(t[0], t[1], t[2], t[3], t[4], t[5])


@njit(cache=True)
def _place(m: float, k: float, n: float, a_bits: float, b_bytes: float) -> int:
    """Return the place of a product among the known mappings."""
    mixed = int(m) * 73856093 ^ int(k) * 19349663 ^ int(n) * 83492791 ^ int(a_bits) * 2654435761 ^ int(b_bytes) * 40503
    return (mixed ^ (mixed >> 17)) & (_REMEMBERED - 1)
