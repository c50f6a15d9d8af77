"""The engine end to end: propose with ``evolve``, evaluate a trivially cheap model, commit to SQLite.

Commits are with synchronous=FULL, as always. 60 knobs (37 widths, 8 whole numbers, 10 grids of floats, 5 words and
sizes), three objectives. Optuna's RDB storage keeps the same study, sampler NSGA-II, beside it. Databases lie in the
temporary folder: TMPDIR says on which disk.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna

from agents.optuna_sampler import distributions
from dse import Choice, Float, Int, Scenario, Space, Study
from dse.designs import DesignBatch
from dse.metrics import MetricBatch
from dse.problem import Problem
from dse.protocols import Breakdown

SIZES = (1_000, 10_000, 100_000)
N_OPTUNA = 60

SPACE = Space(
    {"decoder/weight_bits": Choice(2, 3, 4, 6, 8, 16, per="block_quarter.module")},
    kv_bits=Choice(4, 8, 16, per="block_quarter"),
    act_bits=Choice(4, 8, 16, per="block_quarter"),
    ffn_keep=Float(0.25, 1.0, step=1 / 128, per="block_quarter"),
    head_keep=Float(0.25, 1.0, step=1 / 128, per="block_quarter"),
    dram_bytes_per_s=Float(1e10, 1e12, log=True),
    freq_hz=Float(2e8, 2e9, log=True),
    pe_rows=Int(4, 128),
    pe_cols=Int(4, 128),
    n_cores=Int(1, 16),
    vector_lanes=Int(8, 256, step=8),
    tile_m=Int(16, 256, step=16),
    tile_n=Int(16, 256, step=16),
    tile_k=Int(16, 256, step=16),
    batch=Int(1, 16),
    sram_bytes=Choice("256 KiB", "1 MiB", "4 MiB"),
    dataflow=Choice("ws", "os", "is"),
    loop_order=Choice("mnk", "nkm", "kmn"),
    mac_array=Choice("fixed", "scalable"),
)


@dataclass
class Cheap:
    """Time falls with the array's size, energy with widths, loss with how much is left: a front of thousands."""

    name: str = "cheap"
    group: str = "hardware"
    fidelity: str = "analytical"
    version: str = "1"
    laws: frozenset[str] = frozenset()
    metrics: tuple[str, ...] = ("latency_s", "energy_j", "quality_loss")
    fingerprint: str = "cheap-1"

    def prepare(self, problem: Problem) -> Cheap:
        """Return itself: nothing depends on the problem."""
        del problem
        return self

    def evaluate(self, batch: DesignBatch) -> MetricBatch:
        """Return three columns from six knobs."""
        bits, keep = batch["weight_bits"].mean(axis=1), batch["ffn_keep"].mean(axis=1)
        size = batch["pe_rows"].astype(np.float64) * batch["pe_cols"] * batch["n_cores"]
        values = {
            "latency_s": 1e3 * bits * keep / size / batch["freq_hz"] * 1e9,
            "energy_j": bits * keep * (1 + 1e-5 * size),
            "quality_loss": 16 / bits + 1 - keep,
        }
        return MetricBatch(values, len(batch))

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return nothing."""
        del batch
        return []


def study(name: str = "engine") -> Study:
    """Return the study that is run."""
    return Study(
        name, model="llama-3.2-1b", scenario=Scenario(prompt_tokens=64, output_tokens=64), hardware="npu-template",
        space=SPACE, objectives="min latency_s, min energy_j, min quality_loss", proposers="evolve",
        cost_models=[Cheap()],
    )  # fmt: skip


def figures(sizes: Sequence[int] = SIZES) -> list[tuple[str, float, str]]:
    """Return (what, value, unit): rates from nothing and at each size, bytes per design, resume, Optuna's rate."""
    found: list[tuple[str, float, str]] = []
    made = study()
    with tempfile.TemporaryDirectory() as folder:
        made.run(256, db=Path(folder) / "warm.db", report=lambda _: None, executor="local")
        path = Path(folder) / "engine.db"
        marks: dict[int, float] = {}

        def note(progress: object) -> None:
            marks[progress.n_done] = time.process_time()  # type: ignore[attr-defined]

        began = time.process_time()
        made.run(max(sizes), db=path, report=note, executor="local")
        whole = time.process_time() - began
        n_done = np.array(list(marks))
        seconds = np.array(list(marks.values()))
        for size in sizes:
            # The rate around a size: the 20 % of designs up to it.
            i, j = np.searchsorted(n_done, [0.8 * size, size])
            j = min(j, len(n_done) - 1)
            rate = (n_done[j] - n_done[i]) / (seconds[j] - seconds[i])
            found.append(
                (f"{made.bound_space.n_parameters} knobs, evolve, to SQLite: at {size:,} designs", rate, "designs")
            )
        found.append(
            (f"the whole run of {max(sizes):,}, opening and reading back included", max(sizes) / whole, "designs")
        )
        small = Path(folder) / "small.db"
        began = time.process_time()
        made.run(min(sizes), db=small, report=lambda _: None, executor="local")
        found.append((f"a whole run of {min(sizes):,}", min(sizes) / (time.process_time() - began), "designs"))
        found.append(("bytes of the database per design", path.stat().st_size / max(sizes), "B"))
        found.append((f"resume of {max(sizes):,} designs up to the next proposal", resume_s(made, path), "s"))
    rate = optuna_rate(made)
    found.append((f"the same study by Optuna's RDB storage (SQLite), {N_OPTUNA} trials", rate, "designs"))
    found.append(("ours at the smallest size against Optuna's", found[0][1] / rate, "times"))
    return found


def resume_s(made: Study, path: Path) -> float:
    """Return the CPU seconds from run() to the first new proposal."""
    began = time.process_time()
    asked: list[float] = []
    proposer, genuine = made.proposers[0], made.proposers[0].propose

    def propose(*arguments: object) -> object:
        asked.append(time.process_time())
        return genuine(*arguments)  # type: ignore[arg-type]

    proposer.propose = propose  # type: ignore[method-assign,assignment]
    made.run(1, db=path, report=lambda _: None, executor="local")
    del proposer.propose
    return asked[0] - began


def optuna_rate(made: Study) -> float:
    """Return trials per CPU second of the same search through Optuna's storage, with the same values stored."""
    space, model = made.bound_space, Cheap()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    view = distributions(space)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.NSGAIISampler(seed=0)
        theirs = optuna.create_study(storage=f"sqlite:///{folder}/o.db", directions=["minimize"] * 3, sampler=sampler)
        began = time.process_time()
        for _ in range(N_OPTUNA):
            trial = theirs.ask(view)
            codes = np.array([[int(trial.params[label]) for label in space.labels]])
            metrics = model.evaluate(space.decode(codes))
            theirs.tell(trial, [float(metrics.values[name][0]) for name in model.metrics])
        return N_OPTUNA / (time.process_time() - began)


if __name__ == "__main__":
    for what, value, unit in figures():
        print(f"{what:75}{value:>14,.2f} {unit}")
