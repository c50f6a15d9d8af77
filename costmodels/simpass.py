"""All operators of a pass in graph order on the simulated machine, for a batch of designs; compiled.

Operators start when the one before has written its results, since what they read comes from DRAM. Only what does not
depend on that one is loaded ahead: the first tile of a product's weights, and of both operands where the graph has no
edge between the two, in time that DRAM had to spare behind the last read of the operator before, into memory that its
last tiles left free.

An operator's run depends on its size, widths, mapping and what was loaded ahead alone, so within a design each is run
once: identical blocks cost one. A fractional number of products (the expected number of experts, kept blocks) is
interpolated between the whole numbers beside it.

What a design fuses runs as a group, at the place of the operator that leads it (:mod:`costmodels.simgroups`,
:mod:`costmodels.simattention`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from costmodels.attention import plan_attention
from costmodels.fused_tables import Attentions, RowGroups
from costmodels.groups import Ask
from costmodels.machine import N_SUMS, N_TIMES, PORT, SPARE_S, UNIT, WRITE, WRITE_WAIT_S, Log, move, restart
from costmodels.mapper import known_tiles, no_known
from costmodels.products import A_BITS, B_BYTES, COUNT, HELD, WIDE, Bound, K, M, N, Products, ceil
from costmodels.rowplan import Room, lay_out
from costmodels.simattention import write_pairs
from costmodels.simgroups import N_ITEM, most_items, run_items, write_items
from costmodels.streams import run_chunks
from costmodels.systolic import ACCUMULATOR_BYTES, Chips, OneChip, Pace, Tiles, one_chip, pace
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


class Fused(NamedTuple):
    """What designs fuse in a pass.

    Attributes:
        groups, attentions, ask, room: as for :func:`costmodels.passes.run_fused_pass`.
        products, bound: the products of the pass.
        softmax: operator of each attention between its scores and values, and the values, shape (attentions, 2).
    """

    groups: RowGroups
    attentions: Attentions
    ask: Ask
    room: Room
    products: Products
    bound: Bound
    softmax: np.ndarray


class _Known(NamedTuple):
    """Runs of one design's products, by what they depend on."""

    keys: np.ndarray
    values: np.ndarray


@njit(cache=True)
def simulate_pass(sizes: np.ndarray, order: Order, loads: Loads, c: Chips, fused: Fused) -> np.ndarray:
    """Return what each operator does, shape (n, operators, N_RESULTS): seconds and the sums of the machine.

    Args:
        sizes: as :func:`costmodels.products.size_products` returns them, shape (9, n, j).
        order: the operators.
        loads: those that are no products.
        c: chips of the designs.
        fused: what they fuse.
    """
    out = np.zeros((sizes.shape[1], len(order.kind), N_RESULTS))
    log = Log(np.empty((0, 5)), np.zeros(1, np.int64), np.empty((2, 0)), np.ones(1))
    for i in range(sizes.shape[1]):
        simulate_design(i, sizes, order, loads, c, fused, log, out[i])
    return out


@njit(cache=True)
def simulate_design(
    i: int, sizes: np.ndarray, order: Order, loads: Loads, c: Chips, fused: Fused, log: Log, out: np.ndarray
) -> None:  # fmt: skip
    """Simulate one design's pass into ``out``; where the log has room, every operator runs at its own time."""
    a = Array(
        c.rows[i], c.cols[i], c.cores[i], c.stays[i], c.freq_hz[i], c.dram_bytes_per_s[i], c.sram_bytes[i]
    )  # fmt: skip
    asked = Tiles(c.tile_m[i], c.tile_n[i], c.tile_k[i], c.at_m[i], c.at_n[i], c.at_k[i])
    is_mapped = min(asked.m, asked.n, asked.k) <= 0.0 or asked.at_m < 0.0
    chip = one_chip(c, i, loads.lanes[i])
    t, kept, known = np.empty(N_TIMES), np.empty((N_LEVELS, N_TIMES + N_SUMS)), no_known()
    group_at, attention_at = _leaders(i, fused, len(order.kind))
    runs = _Known(np.full((_REMEMBERED, _N_KEY), -1.0), np.empty((_REMEMBERED, N_RESULTS)))
    is_logged = log.moved_bytes.shape[1] > 0
    now, spare_bytes, before = 0.0, 0.0, -1
    key, found = np.zeros(_N_KEY), np.zeros(N_RESULTS)
    for o in range(len(order.kind)):
        kind, col = order.kind[o], order.column[o]
        free_bytes = 0.0
        if group_at[o] >= 0 or attention_at[o] >= 0:
            if group_at[o] >= 0:
                held = _run_group(i, group_at[o], sizes, fused, chip, log, now, t, kept, found)
            else:
                held = _run_attention(i, attention_at[o], sizes, fused, chip, log, o, now, t, kept, found)
            if held < 0.0:
                continue
            free_bytes = a.sram_bytes - held
        elif kind == PRODUCT:
            if fused.ask.skipped[i, col]:
                continue
            count, m, k, n = sizes[COUNT, i, col], sizes[M, i, col], sizes[K, i, col], sizes[N, i, col]
            if count <= 0.0:
                continue
            a_bits, b_bytes = sizes[A_BITS, i, col], sizes[B_BYTES, i, col]
            wide, width = sizes[WIDE, i, col], sizes[HELD, i, col]
            meets = pace(a.rows, a.cols, a.stays, c.is_scalable[i], a_bits, width, wide)
            key[0], key[1], key[2], key[3], key[4], key[5], key[6] = m, k, n, a_bits, b_bytes, wide, width
            if is_mapped:
                tiles = known_tiles(known, i, m, k, n, a_bits, b_bytes, wide, width, meets, a.rows, a.sram_bytes, asked)
            else:
                tiles = Tiles(min(asked.m, m), min(asked.n, n), min(asked.k, k), asked.at_m, asked.at_n, asked.at_k)
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
    below, part = _parts(count)
    found[:] = 0.0
    if below > 0.0:
        whole = _times(p, int(below))
        found[SECONDS] = run_tiles(whole, a, log, op, at, t, kept, found[1:])
    if part > 0.0:
        above = np.zeros(N_RESULTS)
        events = log.n_events[0]
        above[SECONDS] = run_tiles(_times(p, int(below) + 1), a, _silent(log), op, at, t, kept, above[1:])
        log.n_events[0] = events
        _between(found, above, below, part)


@njit(cache=True)
def _times(p: Product, count: int) -> Product:
    return Product(count, p.m, p.k, p.n, p.a_bytes, p.b_bytes, p.pace, p.tiles, p.a_ahead, p.b_ahead)


@njit(cache=True)
def _silent(log: Log) -> Log:
    return Log(log.events[:0], log.n_events, log.moved_bytes[:, :0], log.interval_s)


@njit(cache=True)
def _leaders(i: int, f: Fused, n_ops: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the row group, and the attention, of design i that each operator leads, -1 for none."""
    group_at, attention_at = np.full(n_ops, -1), np.full(n_ops, -1)
    mask, ranges = f.ask.mask[i], f.groups.range_of
    for component in range(len(mask)):
        for x in range(ranges[component, mask[component], 0], ranges[component, mask[component], 1]):
            group_at[f.groups.leader[x]] = x
    for x in range(len(f.attentions.leader)):
        if f.ask.attention[i, x]:
            attention_at[f.attentions.leader[x]] = x
    return group_at, attention_at


@njit(cache=True)
def _run_group(
    i: int, x: int, sizes: np.ndarray, f: Fused, chip: OneChip, log: Log, at: float, t: np.ndarray, kept: np.ndarray,
    found: np.ndarray,
) -> float:  # fmt: skip
    """Run row group x of design i, write seconds and sums to ``found``, and return the memory it holds; -1 for none."""
    b, g, copies_of = f.bound, f.groups, f.products.copies
    rows = b.per_sequence[i, g.rows[x]] * b.sequences[i, g.rows[x]]
    if rows <= 0.0:
        return -1.0
    plan = lay_out(g, x, rows, sizes, i, copies_of, b.heads[i], b.channels[i], b.block[i], chip, f.room)
    if plan.copies <= 0.0:
        return -1.0
    trips = ceil(plan.m / plan.tile)
    edge_rows = plan.m - (trips - 1.0) * plan.tile
    most = most_items(g.steps[x + 1] - g.steps[x])
    edge = np.empty((most, N_ITEM))
    edge = edge[: write_items(g, x, sizes, i, copies_of, plan, edge_rows, chip, f.room.steps, edge)]
    whole = edge
    if trips > 1.0:
        whole = np.empty((most, N_ITEM))
        whole = whole[: write_items(g, x, sizes, i, copies_of, plan, plan.tile, chip, f.room.steps, whole)]
    keeps, has_two = plan.fetched == 1.0, 2.0 * plan.held <= chip.sram_bytes
    _run_copies(whole, edge, plan.copies, int(trips), keeps, has_two, chip, log, at, t, kept, found)
    return plan.held


@njit(cache=True)
def _run_attention(
    i: int, x: int, sizes: np.ndarray, f: Fused, chip: OneChip, log: Log, op: int, at: float, t: np.ndarray,
    kept: np.ndarray, found: np.ndarray,
) -> float:  # fmt: skip
    """Run attention x of design i as :func:`_run_group` does a row group."""
    score, value = f.attentions.score[x], f.attentions.value[x]
    if sizes[COUNT, i, score] <= 0.0 or sizes[COUNT, i, value] <= 0.0:
        return -1.0
    length = f.bound.per_sequence[i, f.products.rows[score]]
    plan = plan_attention(x, f.attentions, sizes, i, chip, length, f.ask.tile_q[i], f.ask.tile_kv[i])
    score_pace, value_pace = _pace(sizes, i, score, chip), _pace(sizes, i, value, chip)
    items = write_pairs(plan, score_pace, value_pace, chip, (op, f.softmax[x, 0], f.softmax[x, 1]))
    _run_copies(items, items, plan.number, 1, False, True, chip, log, at, t, kept, found)
    return plan.held


@njit(cache=True)
def _pace(sizes: np.ndarray, i: int, j: int, c: OneChip) -> Pace:
    return pace(c.rows, c.cols, c.stays, c.is_scalable, sizes[A_BITS, i, j], sizes[HELD, i, j], sizes[WIDE, i, j])


@njit(cache=True)
def _run_copies(
    whole: np.ndarray, edge: np.ndarray, copies: float, trips: int, keeps: bool, has_two: bool, chip: OneChip,
    log: Log, at: float, t: np.ndarray, kept: np.ndarray, found: np.ndarray,
) -> None:  # fmt: skip
    """Run a group ``copies`` times, a number that need not be whole, and write seconds and sums to ``found``."""
    below, part = _parts(copies)
    found[:] = 0.0
    if below > 0.0:
        found[SECONDS] = run_items(whole, edge, int(below), trips, keeps, has_two, chip, log, at, t, kept, found[1:])
    if part > 0.0:
        above, events = np.zeros(N_RESULTS), log.n_events[0]
        above[SECONDS] = run_items(
            whole, edge, int(below) + 1, trips, keeps, has_two, chip, _silent(log), at, t, kept, above[1:]
        )
        log.n_events[0] = events
        _between(found, above, below, part)


@njit(cache=True)
def _parts(count: float) -> tuple[float, float]:
    """Return the whole part of a number of products, and the rest."""
    below = np.floor(count + 1e-9)
    part = max(0.0, count - below)
    return below, part if part > 1e-9 else 0.0


@njit(cache=True)
def _between(found: np.ndarray, above: np.ndarray, below: float, part: float) -> None:
    """Move results of a whole number ``below`` towards those of the next one."""
    spare = above[1 + SPARE_S] if below == 0.0 else found[1 + SPARE_S]
    found[:] += part * (above - found)
    found[1 + SPARE_S] = min(spare, found[1 + SPARE_S])


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
