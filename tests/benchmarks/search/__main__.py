"""Compares proposers on the frozen spaces: ``make bench-search``.

    python -m tests.benchmarks.search [--space NAME ...] [--arm NAME ...] [--processes N] [--only-table]

Every run is kept in ``results.json`` beside this file as soon as it ends; a run that is there already is not repeated
(delete the file to start anew), and the tables of docs/search.md are written from it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks.search.play import play
from tests.benchmarks.search.spaces import load
from tests.benchmarks.search.table import write_tables
from tests.benchmarks.search.truth import yard

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).parents[3] / "docs" / "search.md"
CHECKPOINTS = (20, 50, 200, 300, 1000)
N_START = 16
SPACES = ("edge-vlm", "gpu-serving", "npu-mapping", "large-vlm")
# Ask size: TPE learns from every result before it asks again, as its users have it; a population fills in batches.
ARMS = {
    "random": 8, "sobol": 8, "optuna:tpe": 1, "optuna:nsga2:population_size=20": 8,
    "optuna:nsga2:population_size=50": 8, "evolve": 8, "tpe": 8, "auto": 8,
}  # fmt: skip
# At 1,000 designs TPE takes a quarter of a second for the next one, most of them known already.
SHORT_ARMS = {"optuna:tpe": 300}
N_SEEDS = 10
N_SEEDS_LARGE = 20  # to 300 designs beyond the first ten


@dataclass(frozen=True)
class Job:
    """One run."""

    space: str
    arm: str
    seed: int
    budget: int

    @property
    def key(self) -> str:
        return f"{self.space}|{self.arm}|{self.seed}"


def jobs(spaces: list[str], arms: list[str]) -> list[Job]:
    """Return all runs, seed by seed, so that an unfinished benchmark has whole seeds."""
    found = []
    for seed in range(N_SEEDS_LARGE):
        for space in spaces:
            if seed >= N_SEEDS and space != "large-vlm":
                continue
            for arm in arms:
                budget = min(SHORT_ARMS.get(arm, 1000), 1000 if seed < N_SEEDS else 300)
                found.append(Job(space, arm, seed, budget))
    return found


def run(job: Job) -> dict[str, object]:
    """Return what is kept of a run: hypervolume ratios at the checkpoints, and costs."""
    frozen, measure = load(job.space), yard(job.space)
    began = time.process_time()
    found = play(frozen, job.arm, job.seed, job.budget, ARMS[job.arm], N_START)
    n = len(found.violation)
    ratios = [measure.ratio(found.objectives[:c], found.violation[:c]) for c in CHECKPOINTS if c <= n]
    return {
        "ratios": [round(r, 5) for r in ratios],
        "duplicates": found.n_duplicates,
        "ms_per_design": round(found.ms_per_design, 3),
        "cpu_s": round(time.process_time() - began, 2),
        "feasible": round(float(np.mean(found.violation == 0)), 3),
    }


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--space", action="append", choices=SPACES)
    parser.add_argument("--arm", action="append", choices=tuple(ARMS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only-table", action="store_true")
    arguments = parser.parse_args()
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    todo = jobs(arguments.space or list(SPACES), arguments.arm or list(ARMS))
    todo = [] if arguments.only_table else [j for j in todo if j.key not in document["runs"]]
    with ProcessPoolExecutor(arguments.processes) as pool:
        waiting = {pool.submit(run, job): job for job in todo}
        for done, future in enumerate(as_completed(waiting), start=1):
            job, found = waiting[future], future.result()
            document["runs"][job.key] = found
            document["date"] = time.strftime("%Y-%m-%d")
            document["python"], document["numpy"] = platform.python_version(), np.__version__
            RESULTS.write_text(json.dumps(document, indent=0, sort_keys=True) + "\n")
            print(f"{done}/{len(todo)} {job.key}: {found['ratios']} in {found['cpu_s']} s", flush=True)
    write_tables(PAGE, document, SPACES, tuple(ARMS), CHECKPOINTS)
    print(f"tables written to {PAGE}")


if __name__ == "__main__":
    main()
