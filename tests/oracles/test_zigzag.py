"""The physical mode against ZigZag 3.9.1 on its ``tpu_like`` accelerator (tests/data/zigzag_tpu_like.csv).

Nothing is fitted to these rows: sizes, widths and bandwidth are those of its description, unit energies its own (int8
multiply-accumulate 0.04 pJ, on-chip memory 416 read and 378 write pJ per 2048 bit, DRAM 700 and 750 pJ per 64 bit).
Results leave at 8 bits there, so they do here, by the parameter of :func:`costmodels.systolic.run_product`.

What differs: weights go to the array past its on-chip memory, here through it; its results leave through a DRAM port of
their own, here all traffic shares one; it loads all of I that fits before it starts, here while it runs.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from costmodels.latency import BAND
from costmodels.mapper import MOST_CUTS, best_tiles
from costmodels.systolic import WEIGHT_STATIONARY, Tiles, pace, run_product

FILE = Path(__file__).parents[1] / "data" / "zigzag_tpu_like.csv"
SIDE, SRAM_BYTES, BYTES_PER_CYCLE = 32, 2 * 2**20, 8.0
DECODE = 8  # rows or fewer


def rows():
    lines = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]


ROWS = rows()


def run(row):
    """Return cycles, energy in pJ and 64-bit DRAM words (I, W, O) of a product, mapped freely."""
    m, n, k = row["M"], row["N"], row["K"]
    meets = pace(float(SIDE), float(SIDE), WEIGHT_STATIONARY, 0, 8.0, 8.0, 0.0)
    free = Tiles(0.0, 0.0, 0.0, -1.0, -1.0, -1.0)
    room = np.empty((3, 2, MOST_CUTS))
    tiles = best_tiles(m, k, n, 1.0, 1.0, 1.0, meets, float(SIDE), float(SRAM_BYTES), free, room)
    r = run_product(1.0, m, k, n, 8.0, k * n, SIDE, SIDE, 1.0, WEIGHT_STATIONARY, meets, tiles, 1.0)
    moved = r.a_moved + r.b_moved + r.o_moved
    cycles = r.exposed / BYTES_PER_CYCLE + max(r.cycles, (moved - r.exposed) / BYTES_PER_CYCLE)
    on_chip = r.sram_read_bits * 416 / 2048 + r.sram_write_bits * 378 / 2048
    dram = (r.a_moved + r.b_moved) / 8 * 700 + r.o_moved / 8 * 750
    return cycles, 0.04 * m * n * k + on_chip + dram, [x / 8 for x in (r.a_moved, r.b_moved, r.o_moved)]


def errors(chosen):
    return [abs(run(row)[0] / row["latency_total2_cycles"] - 1) for row in ROWS if chosen(row)]


def summary():
    """Return the figures that docs and benchmarks quote."""
    ours = [run(row) for row in ROWS]
    prefill, decode = errors(lambda r: r["M"] > DECODE), errors(lambda r: r["M"] <= DECODE)
    ranks = [np.argsort(np.argsort(x)) for x in ([o[1] for o in ours], [r["energy_total_pJ"] for r in ROWS])]
    return {
        "prefill_median": float(np.median(prefill)),
        "prefill_worst": max(prefill),
        "decode_median": float(np.median(decode)),
        "decode_worst": max(decode),
        "energy_rank": float(np.corrcoef(*ranks)[0, 1]),
    }


def test_ideal_cycles_are_exact():
    for row in ROWS:
        folds = math.ceil(row["N"] / SIDE) * math.ceil(row["K"] / SIDE)
        assert row["ideal_temporal_cycle"] == row["M"] * folds


def test_latency_and_energy(validated):
    found = summary()
    tool = "ZigZag 3.9.1, its `tpu_like`, nothing fitted"
    for phase, n, target in (
        ("prefill", sum(row["M"] > DECODE for row in ROWS), "median 15 %"),
        ("decode", sum(row["M"] <= DECODE for row in ROWS), "median 2 %"),
    ):
        validated(
            "analytical", f"latency of products, {phase}", tool, n,
            {"error: median {} %": 100 * found[f"{phase}_median"], "worst {} %": 100 * found[f"{phase}_worst"]}, target,
            digits=2,
        )  # fmt: skip
    validated(
        "analytical", "energy of products, with its unit costs", tool, len(ROWS),
        {"rank correlation {}": found["energy_rank"]}, "0.9",
    )  # fmt: skip
    assert found["prefill_median"] <= 0.15
    assert found["decode_median"] <= 0.02
    assert found["energy_rank"] >= 0.9


def test_the_band_of_latency_and_its_coverage(validated):
    """Least and largest ratio on the even rows, rounded outwards; the odd rows say how many others fall inside."""
    ratios = [row["latency_total2_cycles"] / run(row)[0] for row in ROWS]
    assert (math.floor(100 * min(ratios[::2])) / 100, math.ceil(100 * max(ratios[::2])) / 100) == BAND
    inside = [BAND[0] <= ratio <= BAND[1] for ratio in ratios[1::2]]
    assert sum(inside) / len(inside) >= 12 / 14
    validated(
        "analytical", f"band of latency, {BAND[0]} to {BAND[1]}, from one half of these products",
        "the other half", len(inside), {"{} inside": sum(inside)}, "9 of 10",
    )  # fmt: skip


def test_dram_words_in_all(validated):
    fits = [row for row in ROWS if row["M"] * row["K"] <= SRAM_BYTES]
    pairs = [(run(row)[2], [row[f"{operand}_dram_words"] for operand in "iwo"]) for row in fits]
    off = [abs(sum(ours) / sum(theirs) - 1) for ours, theirs in pairs if ours != theirs]
    validated(
        "analytical", "DRAM words where the inputs fit on chip", "ZigZag 3.9.1, its `tpu_like`, nothing fitted",
        len(fits),
        {"{} equal": len(fits) - len(off), "worst of the others, where it rounds words up, {} %": 100 * max(off)},
        digits=1,
    )  # fmt: skip
    assert len(off) <= 1


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['M']:g}x{r['N']:g}x{r['K']:g}")
def test_dram_words(row):
    """Where the inputs fit its on-chip memory, ZigZag moves every word once, and so does the mapper.

    Where a side is no multiple of the 8 elements of a word, ZigZag rounds every transfer up, by less than 0.1 %. Where
    the inputs do not fit, it fetches them again; the mapper keeps the weights instead, which ZigZag's description does
    not allow, and moves less.
    """
    _, _, ours = run(row)
    theirs = [row[f"{operand}_dram_words"] for operand in "iwo"]
    if row["M"] * row["K"] > SRAM_BYTES:
        assert sum(ours) < sum(theirs)
    elif row["N"] % 8 or row["K"] % 8:
        assert ours == pytest.approx(theirs, rel=1e-3)
    else:
        assert ours == theirs
