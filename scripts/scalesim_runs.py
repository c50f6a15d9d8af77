"""Runs SCALE-Sim on drawn products and writes what it reports as a table: the oracle of the mode ``scalesim``.

The tool has an environment of its own, named by ``DSE_SCALESIM_PYTHON`` or ``--python`` (docs/crosscheck.md):

    python scripts/scalesim_runs.py --seed 1 --rows 160 --out runs.csv
"""

from __future__ import annotations

import argparse
import csv
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from costmodels.outside.process import find_python
from costmodels.outside.scalesim import NEEDS, run

COLUMNS = ("M", "N", "K", "rows", "cols", "dataflow", "ifmap_sram_kB", "filter_sram_kB", "ofmap_sram_kB", "bw_mode",
           "total_cycles", "stall_cycles", "overall_util_pct", "mapping_eff_pct", "sram_ifmap_reads",
           "sram_filter_reads", "sram_ofmap_writes", "dram_ifmap_reads", "dram_filter_reads",
           "dram_ofmap_writes")  # fmt: skip

# Corners that draws would hardly hit: operands of just the active size, lines of just the drained size.
CORNERS = (
    (10, 30, 50, 4, 8, "os", 1, 1, 1), (10, 30, 50, 4, 8, "ws", 1, 1, 1), (30, 10, 50, 4, 8, "is", 1, 1, 1),
    (9, 30, 50, 4, 8, "os", 1, 1, 1), (30, 8, 50, 4, 4, "os", 1, 1, 1), (30, 10, 50, 4, 10, "os", 1, 1, 1),
    (30, 40, 50, 4, 10, "os", 1, 1, 1), (30, 43, 50, 4, 10, "os", 1, 1, 1), (30, 43, 25, 4, 10, "os", 1, 1, 1),
    (3, 600, 4, 2, 512, "os", 1, 1, 1), (3, 600, 4, 2, 256, "os", 1, 1, 1), (27, 19, 3, 3, 16, "os", 1, 1, 1),
    (3, 171, 2, 4, 16, "ws", 1, 1, 1), (1, 513, 3, 2, 16, "ws", 1, 1, 1), (1, 514, 3, 2, 16, "ws", 1, 1, 1),
    (1, 512, 3, 2, 16, "ws", 1, 1, 1), (17, 19, 5, 1, 1, "os", 1, 1, 1), (40, 40, 5, 2, 1, "ws", 1, 1, 1),
)  # fmt: skip


def draw(rng: random.Random) -> tuple:
    """Return a product on an array: decode rows and single columns, edge folds, arrays larger than the product."""
    size = lambda: rng.choice((1, 2, rng.randint(3, 20), rng.randint(20, 90), rng.randint(90, 400)))  # noqa: E731
    side = lambda: rng.choice((2, 3, 4, 5, 7, 8, 12, 16, 24, 32, 40, 48, 64))  # noqa: E731
    memory = [rng.choice((1, 1, 1, 2, 3, 5, 8, 16)) for _ in range(3)]
    return (size(), size(), size(), side(), side(), rng.choice(("os", "ws", "is")), *memory)


def expected_s(drawn: tuple) -> float:
    """Return about how long the tool takes: 5 us per operand request, 150 us per cycle."""
    m, n, k, rows, cols, dataflow, *_ = drawn
    sr, sc, t = {"os": (m, n, k), "ws": (k, n, m), "is": (k, m, n)}[dataflow]
    folds = -(-sr // rows) * -(-sc // cols)
    return folds * (150e-6 * (t + 2 * rows + cols) + 5e-6 * t * (rows + cols))


def simulate(python: str, drawn: tuple) -> list:
    """Return one row of the table."""
    m, n, k, rows, cols, dataflow, *kilobytes = drawn
    found, error = run(python, (m, n, k), (rows, cols), dataflow, tuple(kilobytes), 600.0)
    if error:
        raise SystemExit(f"{drawn}: the tool {error}")
    return [*drawn, "CALC", *(found["cycles" if c == "total_cycles" else c] for c in COLUMNS[len(drawn) + 1 :])]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--longest", type=float, default=4.0, metavar="S", help="draw again what would take longer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--python", default="", help="interpreter that has the tool")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    runs = list(CORNERS) if arguments.seed == 0 else []
    while len(runs) < arguments.rows:
        drawn = draw(rng)
        if expected_s(drawn) <= arguments.longest:
            runs.append(drawn)
    python = find_python(NEEDS, arguments.python)
    with ThreadPoolExecutor(arguments.jobs) as pool, arguments.out.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for row in pool.map(lambda drawn: simulate(python, drawn), runs):
            table.writerow(row)


if __name__ == "__main__":
    main()
