"""The closed forms of the systolic array against a walk over every tile and fold."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.systolic import WEIGHT_STATIONARY, Tiles, pace, run_product

ORDERS = ["".join(p) for p in itertools.permutations("mnk")]


def run(m, k, n, *, tiles, order, rows, cols, stays, cores=1, count=1, a_bits=8.0, b_bits=8.0, scalable=0, o_bytes=2.0):
    held = {2: 2, 3: 4, 4: 4, 6: 8, 8: 8, 16: 16}[int(b_bits)]
    meets = pace(float(rows), float(cols), stays, scalable, float(a_bits), float(held), float(b_bits > 8))
    cut = [float(min(tile, size)) for tile, size in zip(tiles, (m, n, k), strict=True)]
    sizes = (float(x) for x in (count, m, k, n, a_bits, k * n * b_bits / 8, rows, cols, cores))
    at = (float(order.index(axis)) for axis in "mnk")
    return run_product(*sizes, stays, meets, Tiles(*cut, *at), o_bytes)


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


@pytest.mark.validates(
    "analytical", "cycles and traffic of a product", "a walk over every tile and fold, in plain Python", "equal"
)
@given(
    m=st.integers(1, 20), k=st.integers(1, 20), n=st.integers(1, 20),
    tiles=st.tuples(*[st.integers(1, 24)] * 3), order=st.sampled_from(ORDERS),
    rows=st.integers(1, 9), cols=st.integers(1, 9), stays=st.integers(0, 2),
)  # fmt: skip
def test_closed_forms_equal_the_walk(m, k, n, tiles, order, rows, cols, stays):
    options = {"tiles": tiles, "order": order, "rows": rows, "cols": cols, "stays": stays}
    found = run(m, k, n, **options)
    cycles, moved = walk(m, k, n, **options)
    assert found.cycles == cycles + rows + cols - 2
    assert found.a_moved == moved["a"]
    assert found.b_moved == moved["b"]
    assert found.o_moved == moved["o"]


@given(
    m=st.integers(1, 300), k=st.integers(1, 300), n=st.integers(1, 300),
    tiles=st.tuples(*[st.integers(1, 300)] * 3), order=st.sampled_from(ORDERS), stays=st.integers(0, 2),
    a_bits=st.sampled_from([4, 8, 16]), b_bits=st.sampled_from([2, 3, 4, 8, 16]),
)  # fmt: skip
def test_traffic_is_never_below_the_lower_bounds(m, k, n, tiles, order, stays, a_bits, b_bits):
    """Compulsory traffic, and the input-output bound 2 mnk / sqrt(S) - 2 S for S elements on chip (Hong and Kung)."""
    options = {"tiles": tiles, "order": order, "rows": 8, "cols": 8, "stays": stays}
    found = run(m, k, n, a_bits=float(a_bits), b_bits=float(b_bits), **options)
    total = found.a_moved + found.b_moved + found.o_moved
    assert total >= m * k * a_bits / 8 + k * n * b_bits / 8 + 2 * m * n
    # Elements held on chip, double buffers included; narrow elements make the words smaller, not fewer.
    words = sum(x * y for x, y in itertools.combinations([min(t, s) for t, s in zip(tiles, (m, n, k), strict=True)], 2))
    smallest = min(a_bits, b_bits, 16) / 8
    assert total >= smallest * (2 * m * n * k / math.sqrt(2 * words) - 4 * words)


def test_by_hand():
    # 256 x 1024 x 1024 (m, n, k), weights stationary on 128 x 128, whole operands on chip:
    # folds (1024 / 128) x (1024 / 128) = 64, each streams max(256, 128) = 256 steps: 16,384 cycles, and 254 to fill.
    whole = {"tiles": (256, 1024, 1024), "order": "mnk", "rows": 128, "cols": 128, "stays": WEIGHT_STATIONARY}
    found = run(256, 1024, 1024, **whole)
    assert found.cycles == 64 * 256 + 254
    assert found.a_moved == 256 * 1024
    assert found.b_moved == 1024 * 1024
    assert found.o_moved == 2 * 256 * 1024
    # on chip: 1024 x (256 + 1024) bytes, one tile of each, so one buffer; and 256 x 1024 sums of 4 bytes
    assert found.tile_bytes == 1024 * (256 + 1024) + 4 * 256 * 1024
    # of 4 tiles along n, B needs two buffers, A still one
    quarters = run(256, 1024, 1024, **(whole | {"tiles": (256, 256, 1024)}))
    assert quarters.tile_bytes == 1024 * (256 + 2 * 256) + 4 * 256 * 256
    # exposed: the first fold of weights, 128 x 128 bytes, and 128 results of the last step
    assert found.exposed == 128 * 128 + 128 * 2


def test_decode_is_bound_by_loading_the_array():
    # One row through 4096 x 4096 weights on 64 x 64: 64 x 64 folds, each at least 64 cycles to load.
    options = {"tiles": (1, 4096, 4096), "order": "mnk", "rows": 64, "cols": 64, "stays": WEIGHT_STATIONARY}
    assert run(1, 4096, 4096, **options).cycles == 64 * 64 * 64 + 126


@pytest.mark.parametrize(("a_bits", "b_bits", "factor"), [(8, 8, 1), (4, 3, 1), (16, 8, 2), (8, 16, 2), (16, 16, 4)])
def test_wide_operands_take_more_cycles(a_bits, b_bits, factor):
    options = {"tiles": (64, 64, 64), "order": "mnk", "rows": 8, "cols": 8, "stays": WEIGHT_STATIONARY}
    base = run(64, 64, 64, **options).cycles - 14
    wide = run(64, 64, 64, a_bits=float(a_bits), b_bits=float(b_bits), **options).cycles - 14
    assert wide == factor * base


@given(cores=st.integers(1, 9), count=st.integers(1, 9))
def test_cores_share_folds(cores, count):
    options = {"tiles": (16, 64, 64), "order": "mnk", "rows": 8, "cols": 8, "stays": WEIGHT_STATIONARY}
    found = run(16, 64, 64, cores=cores, count=count, **options).cycles
    assert found == math.ceil(count * 64 / cores) * 16 + 14


@pytest.mark.parametrize(
    ("a_bits", "b_bits", "at_once"),
    # One element per cycle: 16 products of 2 x 2 bits, 4 of 4 x 4 or 2 x 8, 1 of 8 x 8 (Bit Fusion); 3 and 6 bits are
    # held as 4 and 8; a side of 16 bits takes two passes.
    [
        *[(2, 2, 16), (4, 4, 4), (8, 2, 4), (8, 4, 2), (8, 8, 1), (4, 3, 4), (8, 6, 1)],
        *[(16, 8, 1 / 2), (16, 4, 1), (16, 16, 1 / 4)],
    ],
)
@pytest.mark.parametrize("stays", range(3))
def test_narrow_operands_share_a_scalable_element(a_bits, b_bits, at_once, stays):
    """A product that fills the array: m k n / (R C x products at once) cycles, and filling and draining."""
    m, k, n = 1024, 4096, 1024
    options = {"tiles": (m, n, k), "order": "mnk", "rows": 16, "cols": 16, "stays": stays}
    found = run(m, k, n, a_bits=a_bits, b_bits=b_bits, scalable=1, **options).cycles
    assert found == m * k * n / (256 * at_once) + 30


def test_scalable_folds_by_hand():
    # 10 x 100 x 20 (m, k, n), 4 x 4 bits, weights stationary on 8 x 8: an element holds 4 neighbours along k, a fold
    # is 32 x 8, 4 x 3 folds of max(10, 8) steps; 14 to fill and drain.
    options = {"tiles": (10, 20, 100), "order": "mnk", "rows": 8, "cols": 8, "stays": WEIGHT_STATIONARY}
    assert run(10, 100, 20, a_bits=4.0, b_bits=4.0, scalable=1, **options).cycles == 12 * 10 + 14


def test_results_of_another_width():
    options = {"tiles": (16, 64, 64), "order": "mnk", "rows": 8, "cols": 8, "stays": WEIGHT_STATIONARY}
    wide, narrow = (run(16, 64, 64, o_bytes=o, **options) for o in (2.0, 1.0))
    assert wide.o_moved - narrow.o_moved == 16 * 64
    assert wide.cycles == narrow.cycles
