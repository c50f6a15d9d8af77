"""The simulator against the analytical model on two models, and its speed against SCALE-Sim on the same products."""

from __future__ import annotations

import csv
import runpy
import time
from pathlib import Path

import numpy as np

from costmodels.accelerator import AcceleratorEvaluator
from costmodels.chip import Chip
from costmodels.machine import N_SUMS, N_TIMES, no_log
from costmodels.passes import SECONDS
from costmodels.scalesim import STAYS
from costmodels.simulator import Simulated
from costmodels.streams import run_serial
from dse import catalogue
from dse.designs import DesignBatch
from dse.space import BoundSpace

ROOT = Path(__file__).parents[2]
SECONDS_TABLE = ROOT / "tests" / "data" / "scalesim_seconds.csv"


def flagship_space() -> BoundSpace:
    """Qwen2.5-VL-3B in the space of the flagship study: tiles and loop order are knobs."""
    return runpy.run_path(str(ROOT / "studies" / "medical_vqa_edge.py"))["study"].bound_space


def bound_s(evaluator: AcceleratorEvaluator, batch: DesignBatch) -> np.ndarray:
    """Return the longest of array, vector unit and DRAM over a request, from the closed forms alone, shape (n,)."""
    chip = Chip(evaluator.hardware, batch)
    arrays = chip.arrays._replace(dram_bytes_per_s=np.full(len(batch), np.inf))
    endless = Chip(evaluator.hardware, batch)
    endless.arrays = arrays
    busy = np.zeros((3, len(batch)))
    for phase in evaluator.workload.size(batch).phases:
        passes = evaluator._passes(phase.name)
        kinds = evaluator.phase_ops(phase.name).loads(phase, chip)
        busy[0] += passes * evaluator.run_products(phase.gemms, endless, False)[0][SECONDS]
        busy[1] += passes * (kinds.elements * kinds.ops).sum(axis=1) / (chip.lanes * chip.freq_hz)[:, 0]
    closed = catalogue.cost_model("analytical").prepare(evaluator.problem).evaluate(batch)
    busy[2] = closed.values["dram_bytes"] / chip.dram_bytes_per_s[:, 0]
    return busy.max(axis=0)


def agreement(space: BoundSpace, n: int = 200, seed: int = 0) -> dict[str, float]:
    """Return how the latencies of n random designs compare, and what a design costs to simulate."""
    problem = space.schema.problem
    batch = space.decode(space.sample(n, np.random.default_rng(seed)))
    evaluator = Simulated().evaluator(problem)
    evaluator.evaluate(batch.take([0]))
    began = time.process_time()
    found = evaluator.evaluate(batch)
    cpu_s = time.process_time() - began
    closed = catalogue.cost_model("analytical").prepare(problem).evaluate(batch)
    ok = found.status == 0
    ours, theirs = found.values["latency_s"][ok], closed.values["latency_s"][ok]
    ranks = [np.argsort(np.argsort(column)) for column in (ours, theirs)]
    ratio = ours / theirs
    return {
        "designs that run": float(ok.sum()),
        "rank correlation of latency": float(np.corrcoef(*ranks)[0, 1]),
        "least simulated latency over lower bound": float((ours / bound_s(evaluator, batch)[ok]).min()),
        **{f"simulated over analytical, {p} %": float(np.percentile(ratio, p)) for p in (0, 10, 50, 90, 100)},
        "CPU ms per design": 1e3 * cpu_s / n,
    }


def speed() -> dict[str, float]:
    """Return the CPU seconds of the serial mode beside the tool's, for the tool's 442 reference runs."""
    rows = list(csv.DictReader(SECONDS_TABLE.open(encoding="utf-8")))
    t, sums, log = np.empty(N_TIMES), np.zeros(N_SUMS), no_log()
    sides = [tuple(float(r[c]) for c in ("M", "N", "K", "rows", "cols")) for r in rows]
    stays = [STAYS[r["dataflow"]] for r in rows]
    cycles = [run_serial(*s, d, t, sums, log) for s, d in zip(sides, stays, strict=True)]
    equal = sum(c == float(r["total_cycles"]) - float(r["stall_cycles"]) for c, r in zip(cycles, rows, strict=True))
    ours = []
    for s, d in zip(sides, stays, strict=True):
        began = time.process_time_ns()
        for _ in range(20):
            run_serial(*s, d, t, sums, log)
        ours.append((time.process_time_ns() - began) / 20e9)
    tool = np.array([float(r["wall_s"]) for r in rows])
    return {
        "runs": float(len(rows)),
        "with equal compute cycles": float(equal),
        "SCALE-Sim, median s": float(np.median(tool)),
        "simulator, median s": float(np.median(ours)),
        "ratio of the sums": float(tool.sum() / np.sum(ours)),
        "ratio, median": float(np.median(tool / np.maximum(ours, 1e-9))),
        "ratio, least": float(np.min(tool / np.maximum(ours, 1e-9))),
    }


def report(llava: BoundSpace) -> str:
    """Return all figures as text."""
    parts = {
        "LLaVA-1.5-7B, tiles fixed per design, 200 random designs": agreement(llava),
        "Qwen2.5-VL-3B, flagship space, 200 random designs": agreement(flagship_space()),
        "products as SCALE-Sim counts them (its seconds: tests/data/scalesim_seconds.csv)": speed(),
    }
    lines = []
    for title, figures in parts.items():
        lines += [title, *(f"    {name:54}{value:>16,.6g}" for name, value in figures.items())]
    return "\n".join(lines)
