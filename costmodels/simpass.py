"""All operators of a pass in graph order on the simulated machine, for a batch of designs; compiled.

Operators start when the one before has written its results, since what they read comes from DRAM. Only what does not
depend on that one is loaded ahead: the first tile of a product's weights, and of both operands where the graph has no
edge between the two, in time that DRAM had to spare behind the last read of the operator before, into memory that its
last tiles left free.

An operator's run depends on its size, widths, mapping and what was loaded ahead alone, so within a design each is run
once: identical blocks cost one. A fractional number of products (the expected number of experts, kept blocks) is
interpolated between the whole numbers beside it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from costmodels.machine import N_SUMS, N_TIMES, PORT, SPARE_S, UNIT, WRITE, WRITE_WAIT_S, Log, move, restart
from costmodels.mapper import MOST_CUTS, best_tiles
from costmodels.products import A_BITS, B_BYTES, COUNT, HELD, WIDE, K, M, N
from costmodels.streams import run_chunks
from costmodels.systolic import ACCUMULATOR_BYTES, PLAIN_BYTES, Chips, Pace, Tiles, pace
from costmodels.tilesim import N_LEVELS, Array, Product, run_tiles

PRODUCT, VECTOR_WORK, APPEND = range(3)

# Planes of the result: seconds, then the sums of the machine.
SECONDS: Final = 0
N_RESULTS: Final = 1 + N_SUMS

_REMEMBERED: Final = 1024
_N_KEY: Final = 10


class Order(NamedTuple):
    """The operators of a pass in the order in which they run, shape (o,) each.

    Attributes:
        kind: PRODUCT, VECTOR_WORK or APPEND.
        column: which product, vector operator or append it is.
        follows: whether it reads what the operator before it wrote.
        is_weight: whether B is a weight.
    """

    kind: np.ndarray
    column: np.ndarray
    follows: np.ndarray
    is_weight: np.ndarray


class Loads(NamedTuple):
    """Vector work and appends of a pass.

    Attributes:
        elements: elements that each vector operator writes, shape (n, v).
        ops, read_bytes, write_bytes: per element, shape (v,).
        lanes: of each design, shape (n,).
        append_bytes: of each append to the cache, shape (n, c).
    """

    elements: np.ndarray
    ops: np.ndarray
    read_bytes: np.ndarray
    write_bytes: np.ndarray
    lanes: np.ndarray
    append_bytes: np.ndarray


class _Known(NamedTuple):
    """What is known of one design's products: mappings and runs, by what they depend on."""

    keys: np.ndarray
    values: np.ndarray


@njit(cache=True)
def simulate_pass(sizes: np.ndarray, order: Order, loads: Loads, c: Chips) -> np.ndarray:
    """Return what each operator does, shape (n, operators, N_RESULTS): seconds and the sums of the machine.

    Args:
        sizes: as :func:`costmodels.products.size_products` returns them, shape (9, n, j).
        order: the operators.
        loads: those that are no products.
        c: chips of the designs.
    """
    out = np.zeros((sizes.shape[1], len(order.kind), N_RESULTS))
    log = Log(np.empty((0, 5)), np.zeros(1, np.int64), np.empty((2, 0)), np.ones(1))
    for i in range(sizes.shape[1]):
        simulate_design(i, sizes, order, loads, c, log, out[i])
    return out


@njit(cache=True)
def simulate_design(
    i: int, sizes: np.ndarray, order: Order, loads: Loads, c: Chips, log: Log, out: np.ndarray
) -> None:  # fmt: skip
    """Simulate one design's pass into ``out``; where the log has room, every operator runs at its own time."""
    a = Array(
        c.rows[i], c.cols[i], c.cores[i], c.stays[i], c.freq_hz[i], c.dram_bytes_per_s[i], c.sram_bytes[i]
    )  # fmt: skip
    asked = Tiles(c.tile_m[i], c.tile_n[i], c.tile_k[i], c.at_m[i], c.at_n[i], c.at_k[i])
    t, kept, work_room = np.empty(N_TIMES), np.empty((N_LEVELS, N_TIMES + N_SUMS)), np.empty((3, 2, MOST_CUTS))
    maps = _Known(np.full((_REMEMBERED, _N_KEY), -1.0), np.empty((_REMEMBERED, 6)))
    runs = _Known(np.full((_REMEMBERED, _N_KEY), -1.0), np.empty((_REMEMBERED, N_RESULTS)))
    is_logged = log.moved_bytes.shape[1] > 0
    now, spare_bytes, before = 0.0, 0.0, -1
    key, found = np.zeros(_N_KEY), np.zeros(N_RESULTS)
    for o in range(len(order.kind)):
        kind, col = order.kind[o], order.column[o]
        free_bytes = 0.0
        if kind == PRODUCT:
            count, m, k, n = sizes[COUNT, i, col], sizes[M, i, col], sizes[K, i, col], sizes[N, i, col]
            if count <= 0.0:
                continue
            a_bits, b_bytes = sizes[A_BITS, i, col], sizes[B_BYTES, i, col]
            wide, width = sizes[WIDE, i, col], sizes[HELD, i, col]
            meets = pace(a.rows, a.cols, a.stays, c.is_scalable[i], a_bits, width, wide)
            key[0], key[1], key[2], key[3], key[4], key[5], key[6] = m, k, n, a_bits, b_bytes, wide, width
            key[7] = key[8] = key[9] = 0.0
            tiles = _mapping(m, k, n, a_bits, b_bytes, a, meets, asked, maps, key, work_room)
            a_element, b_element = a_bits / 8.0, b_bytes / (k * n)
            a_tile, b_tile = tiles.m * tiles.k * a_element, tiles.k * tiles.n * b_element
            is_free = before == o - 1 and before >= 0 and not order.follows[o]
            b_ahead = min(spare_bytes, b_tile) if order.is_weight[o] or is_free else 0.0
            a_ahead = min(spare_bytes - b_ahead, a_tile) if is_free else 0.0
            key[7], key[8], key[9] = count, a_ahead, b_ahead
            slot = _slot(key)
            if not is_logged and _same(runs.keys[slot], key):
                found[:] = runs.values[slot]
            else:
                product = Product(1, m, k, n, a_element, b_element, meets, tiles, a_ahead, b_ahead)
                _run_count(count, product, a, log, o, now, t, kept, found)
                runs.keys[slot] = key
                runs.values[slot] = found
            # The last tiles need one buffer each.
            free_bytes = a.sram_bytes - a_tile - b_tile - tiles.m * tiles.n * ACCUMULATOR_BYTES
        elif kind == VECTOR_WORK:
            elements = loads.elements[i, col]
            if elements <= 0.0:
                continue
            found[:] = 0.0
            found[SECONDS] = run_chunks(
                elements * loads.ops[col] / (loads.lanes[i] * a.freq_hz), elements * loads.read_bytes[col],
                elements * loads.write_bytes[col], elements, loads.lanes[i], a, log, o, now, t, kept, found[1:],
            )  # fmt: skip
            free_bytes = a.sram_bytes / 2.0
        else:
            size = loads.append_bytes[i, col]
            if size <= 0.0:
                continue
            found[:] = 0.0
            restart(t, now)
            move(t, found[1:], log, o, WRITE, now, size, a.dram_bytes_per_s)
            found[SECONDS] = t[PORT] - now
            found[1 + WRITE_WAIT_S] = t[PORT] - t[UNIT]
        out[o] = found
        now += found[SECONDS] if is_logged else 0.0
        spare_bytes = max(0.0, min(found[1 + SPARE_S] * a.dram_bytes_per_s, free_bytes))
        before = o


@njit(cache=True)
def _run_count(
    count: float, p: Product, a: Array, log: Log, op: int, at: float, t: np.ndarray, kept: np.ndarray, found: np.ndarray
) -> None:
    """Run ``count`` products, a number that need not be whole, and write seconds and sums to ``found``."""
    below = np.floor(count + 1e-9)
    part = max(0.0, count - below)
    part = part if part > 1e-9 else 0.0
    found[:] = 0.0
    if below > 0.0:
        whole = _times(p, int(below))
        found[SECONDS] = run_tiles(whole, a, log, op, at, t, kept, found[1:])
    if part > 0.0:
        above = np.zeros(N_RESULTS)
        events = log.n_events[0]
        above[SECONDS] = run_tiles(_times(p, int(below) + 1), a, _silent(log), op, at, t, kept, above[1:])
        log.n_events[0] = events
        spare = above[1 + SPARE_S] if below == 0.0 else found[1 + SPARE_S]
        found[:] += part * (above - found)
        found[1 + SPARE_S] = min(spare, found[1 + SPARE_S])


@njit(cache=True)
def _times(p: Product, count: int) -> Product:
    return Product(count, p.m, p.k, p.n, p.a_bytes, p.b_bytes, p.pace, p.tiles, p.a_ahead, p.b_ahead)


@njit(cache=True)
def _silent(log: Log) -> Log:
    return Log(log.events[:0], log.n_events, log.moved_bytes[:, :0], log.interval_s)


@njit(cache=True)
def _mapping(
    m: float, k: float, n: float, a_bits: float, b_bytes: float, a: Array, meets: Pace, asked: Tiles,
    maps: _Known, key: np.ndarray, room: np.ndarray,
) -> Tiles:  # fmt: skip
    """Return the tiles and loop order of a product: the design's, or the mapper's where they are free."""
    if not (min(asked.m, asked.n, asked.k) <= 0.0 or asked.at_m < 0.0):
        return Tiles(min(asked.m, m), min(asked.n, n), min(asked.k, k), asked.at_m, asked.at_n, asked.at_k)
    slot = _slot(key)
    v = maps.values[slot]
    if not _same(maps.keys[slot], key):
        least = max(a.rows, meets.least / meets.slots)
        b_element = b_bytes / (k * n)
        best = best_tiles(m, k, n, a_bits / 8.0, b_element, PLAIN_BYTES, meets, least, a.sram_bytes, asked, room)
        maps.keys[slot] = key
        v[0], v[1], v[2], v[3], v[4], v[5] = best.m, best.n, best.k, best.at_m, best.at_n, best.at_k
    return Tiles(v[0], v[1], v[2], v[3], v[4], v[5])


@njit(cache=True)
def _same(a: np.ndarray, b: np.ndarray) -> bool:
    for i in range(_N_KEY):  # noqa: SIM110  all() over a generator is not compiled
        if a[i] != b[i]:
            return False
    return True


@njit(cache=True)
def _slot(key: np.ndarray) -> int:
    mixed = 0
    for i in range(_N_KEY):
        mixed = mixed * 1000003 ^ int(key[i])
    return (mixed ^ (mixed >> 17) ^ (mixed >> 31)) & (_REMEMBERED - 1)
