"""The closed forms of the systolic array against a walk over every tile and fold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels import systolic
from costmodels.products import A_BITS, B_BITS, B_BYTES, COUNT, WIDE, K, M, N

ORDERS = ["".join(p) for p in itertools.permutations("mnk")]


def run(m, k, n, *, tiles, order, rows, cols, stays, cores=1, count=1, a_bits=8.0, b_bits=8.0):
    sizes = np.zeros((8, 1, 1))
    for plane, value in ((COUNT, count), (M, m), (K, k), (N, n), (A_BITS, a_bits), (B_BITS, b_bits)):
        sizes[plane] = value
    sizes[B_BYTES], sizes[WIDE] = k * n * b_bits / 8, float(b_bits > 8)
    one = [np.array([float(v)]) for v in (rows, cols, cores)]
    at = [np.array([float(order.index(axis))]) for axis in "mnk"]
    chips = systolic.Chips(*one, np.array([stays]), *(np.array([float(t)]) for t in tiles), *at)
    return systolic.run_products(sizes, chips)[:, 0, 0]


def pieces(size, tile):
    return [min(tile, size - start) for start in range(0, size, tile)]


def walk(m, k, n, *, tiles, order, rows, cols, stays):
    """Visit every tile in loop order; each operand keeps one tile on chip. Return cycles and bytes moved."""
    sizes = dict(zip("mnk", (m, n, k), strict=True))
    cut = {axis: pieces(sizes[axis], tile) for axis, tile in zip("mnk", tiles, strict=True)}
    held = {"a": None, "b": None, "o": None}
    moved = {"a": 0.0, "b": 0.0, "o": 0.0}
    visits = {}
    cycles = 0.0
    for indices in itertools.product(*(range(len(cut[axis])) for axis in order)):
        index = dict(zip(order, indices, strict=True))
        size = {axis: cut[axis][index[axis]] for axis in "mnk"}
        for name, axes in (("a", "mk"), ("b", "kn")):
            tile = tuple(index[axis] for axis in axes)
            if held[name] != tile:
                held[name] = tile
                moved[name] += math.prod(size[axis] for axis in axes)
        tile = (index["m"], index["n"])
        if held["o"] != tile:
            held["o"] = tile
            visits[tile] = visits.get(tile, 0) + 1
        stationary = {0: "kn", 1: "mn", 2: "km"}[stays]
        streamed = ({*"mnk"} - {*stationary}).pop()
        folds = math.ceil(size[stationary[0]] / rows) * math.ceil(size[stationary[1]] / cols)
        cycles += folds * max(size[streamed], rows)
    for (im, jn), count in visits.items():
        elements = cut["m"][im] * cut["n"][jn]
        moved["o"] += elements * (2 + 8 * (count - 1))  # the result at 16 bits; each eviction 4 bytes out and back
    return cycles, moved


@given(
    m=st.integers(1, 20), k=st.integers(1, 20), n=st.integers(1, 20),
    tiles=st.tuples(*[st.integers(1, 24)] * 3), order=st.sampled_from(ORDERS),
    rows=st.integers(1, 9), cols=st.integers(1, 9), stays=st.integers(0, 2),
)  # fmt: skip
def test_closed_forms_equal_the_walk(m, k, n, tiles, order, rows, cols, stays):
    options = {"tiles": tiles, "order": order, "rows": rows, "cols": cols, "stays": stays}
    found = run(m, k, n, **options)
    cycles, moved = walk(m, k, n, **options)
    assert found[systolic.CYCLES] == cycles + rows + cols - 2
    assert found[systolic.A_MOVED] == moved["a"]
    assert found[systolic.B_MOVED] == moved["b"]
    assert found[systolic.O_MOVED] == moved["o"]


@given(
    m=st.integers(1, 300), k=st.integers(1, 300), n=st.integers(1, 300),
    tiles=st.tuples(*[st.integers(1, 300)] * 3), order=st.sampled_from(ORDERS), stays=st.integers(0, 2),
    a_bits=st.sampled_from([4, 8, 16]), b_bits=st.sampled_from([2, 3, 4, 8, 16]),
)  # fmt: skip
def test_traffic_is_never_below_the_lower_bounds(m, k, n, tiles, order, stays, a_bits, b_bits):
    """Compulsory traffic, and the input-output bound 2 mnk / sqrt(S) - 2 S for S elements on chip (Hong and Kung)."""
    options = {"tiles": tiles, "order": order, "rows": 8, "cols": 8, "stays": stays}
    found = run(m, k, n, a_bits=float(a_bits), b_bits=float(b_bits), **options)
    total = found[systolic.A_MOVED] + found[systolic.B_MOVED] + found[systolic.O_MOVED]
    assert total >= m * k * a_bits / 8 + k * n * b_bits / 8 + 2 * m * n
    # Elements held on chip, double buffers included; narrow elements make the words smaller, not fewer.
    words = sum(x * y for x, y in itertools.combinations([min(t, s) for t, s in zip(tiles, (m, n, k), strict=True)], 2))
    smallest = min(a_bits, b_bits, 16) / 8
    assert total >= smallest * (2 * m * n * k / math.sqrt(2 * words) - 4 * words)


def test_by_hand():
    # 256 x 1024 x 1024 (m, n, k), weights stationary on 128 x 128, whole operands on chip:
    # folds (1024 / 128) x (1024 / 128) = 64, each streams max(256, 128) = 256 steps: 16,384 cycles, and 254 to fill.
    whole = {"tiles": (256, 1024, 1024), "order": "mnk", "rows": 128, "cols": 128, "stays": systolic.WEIGHT_STATIONARY}
    found = run(256, 1024, 1024, **whole)
    assert found[systolic.CYCLES] == 64 * 256 + 254
    assert found[systolic.MACS] == 256 * 1024 * 1024
    assert found[systolic.A_MOVED] == 256 * 1024
    assert found[systolic.B_MOVED] == 1024 * 1024
    assert found[systolic.O_MOVED] == 2 * 256 * 1024
    # on chip: 2 x 1024 x (256 + 1024) bytes double-buffered, and 256 x 1024 sums of 4 bytes
    assert found[systolic.TILE_BYTES] == 2 * 1024 * (256 + 1024) + 4 * 256 * 1024


def test_decode_is_bound_by_loading_the_array():
    # One row through 4096 x 4096 weights on 64 x 64: 64 x 64 folds, each at least 64 cycles to load.
    options = {"tiles": (1, 4096, 4096), "order": "mnk", "rows": 64, "cols": 64, "stays": systolic.WEIGHT_STATIONARY}
    assert run(1, 4096, 4096, **options)[systolic.CYCLES] == 64 * 64 * 64 + 126


@pytest.mark.parametrize(("a_bits", "b_bits", "factor"), [(8, 8, 1), (4, 3, 1), (16, 8, 2), (8, 16, 2), (16, 16, 4)])
def test_wide_operands_take_more_cycles(a_bits, b_bits, factor):
    options = {"tiles": (64, 64, 64), "order": "mnk", "rows": 8, "cols": 8, "stays": systolic.WEIGHT_STATIONARY}
    base = run(64, 64, 64, **options)[systolic.CYCLES] - 14
    wide = run(64, 64, 64, a_bits=float(a_bits), b_bits=float(b_bits), **options)[systolic.CYCLES] - 14
    assert wide == factor * base


@given(cores=st.integers(1, 9), count=st.integers(1, 9))
def test_cores_share_folds(cores, count):
    options = {"tiles": (16, 64, 64), "order": "mnk", "rows": 8, "cols": 8, "stays": systolic.WEIGHT_STATIONARY}
    found = run(16, 64, 64, cores=cores, count=count, **options)[systolic.CYCLES]
    assert found == math.ceil(count * 64 / cores) * 16 + 14


def test_no_product_costs_nothing():
    options = {"tiles": (16, 64, 64), "order": "mnk", "rows": 8, "cols": 8, "stays": systolic.WEIGHT_STATIONARY}
    assert not run(16, 64, 64, count=0, **options).any()
