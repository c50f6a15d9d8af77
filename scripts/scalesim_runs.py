"""Runs SCALE-Sim on drawn products and writes what it reports as a table: the oracle of the mode ``scalesim``.

Runs in an environment of the tool (``pip install scalesim==3.0.0 'numpy<2.4'``), not in ours:

    python scripts/scalesim_runs.py --seed 1 --rows 200 --out runs.csv
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import random
import tempfile
import time
from pathlib import Path

COLUMNS = ("M", "N", "K", "rows", "cols", "dataflow", "ifmap_sram_kB", "filter_sram_kB", "ofmap_sram_kB", "bw_mode",
           "total_cycles", "stall_cycles", "overall_util_pct", "mapping_eff_pct", "sram_ifmap_reads",
           "sram_filter_reads", "sram_ofmap_writes", "dram_ifmap_reads", "dram_filter_reads",
           "dram_ofmap_writes")  # fmt: skip

CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight = {rows}
ArrayWidth = {cols}
IfmapSramSzkB = {ifmap_sram_kB}
FilterSramSzkB = {filter_sram_kB}
OfmapSramSzkB = {ofmap_sram_kB}
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = {dataflow}
MemoryBanks = 1
ReadRequestBuffer = 32
WriteRequestBuffer = 32
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = False
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""

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


def expected_s(run: tuple) -> float:
    """Return about how long the tool takes: 5 us per operand request, 150 us per cycle."""
    m, n, k, rows, cols, dataflow, *_ = run
    sr, sc, t = {"os": (m, n, k), "ws": (k, n, m), "is": (k, m, n)}[dataflow]
    folds = -(-sr // rows) * -(-sc // cols)
    return folds * (150e-6 * (t + 2 * rows + cols) + 5e-6 * t * (rows + cols))


def simulate(run: tuple, folder: Path) -> list:
    """Return one row of the table."""
    from scalesim.scale_sim import scalesim

    values = dict(zip(COLUMNS, run, strict=False))
    files = {
        "run.cfg": CONFIG.format(**values),
        "gemm.csv": "Layer,M,N,K,\nproduct,{M},{N},{K},\n".format(**values),
        "layout.csv": "Layer" + 20 * ",v" + "\nproduct" + 20 * ",1" + "\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    with contextlib.redirect_stdout(io.StringIO()):
        tool = scalesim(save_disk_space=True, verbose=False, config=str(folder / "run.cfg"),
                        topology=str(folder / "gemm.csv"), layout=str(folder / "layout.csv"),
                        input_type_gemm=True)  # fmt: skip
        tool.run_scale(top_path=str(folder))
    layer = tool.runner.single_layer_sim_object_list[0]
    _, cycles, stalls, use, mapped, _ = layer.get_compute_report_items()
    d = layer.get_detail_report_items()
    counts = [int(d[i]) for i in (2, 5, 8, 11, 14, 17)]
    return [*run, "CALC", int(cycles), int(stalls), repr(float(use)), repr(float(mapped)), *counts]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--longest", type=float, default=4.0, metavar="S", help="draw again what would take longer")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    rng = random.Random(arguments.seed)
    runs = list(CORNERS) if arguments.seed == 0 else []
    while len(runs) < arguments.rows:
        run = draw(rng)
        if expected_s(run) <= arguments.longest:
            runs.append(run)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, arguments.out.open("w", newline="") as file:
        os.chdir(name)
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for run in runs:
            table.writerow(simulate(run, Path(name)))
            file.flush()
    print(f"{len(runs)} runs in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
