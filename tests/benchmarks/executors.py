"""What a second worker brings: wall time of a study's batches with one worker and with two, best of some runs.

The cost model is bound to the CPU: a loop that takes 20 ms of an idle core for each design. The load of the machine is
told before and after: on cores that others use too, the second worker has no core of its own.

    python -m tests.benchmarks.executors [--executors process ray] [--designs 256] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import partial

import numpy as np

from dse import Choice
from dse.evaluation import Evaluation, build_evaluation
from dse.execute import Means, make_executor
from dse.metrics import MetricBatch
from dse.space import Space
from dse.testing.samples import small_problem

DESIGN_S = 0.02
BATCH = 64


class Busy:
    """Takes the same work for every design."""

    name, group, fidelity, version = "busy", "hardware", "analytical", "1"
    laws: frozenset[str] = frozenset()
    metrics = ("latency_s",)

    def __init__(self, loops):
        self.loops, self.fingerprint = loops, f"busy-{loops}"

    def prepare(self, problem):
        del problem
        return self

    def evaluate(self, batch):
        for _ in range(len(batch)):
            work(self.loops)
        return MetricBatch({"latency_s": batch["pe_rows"].astype(float)}, len(batch))

    def breakdown(self, batch):
        del batch
        return []


def work(loops):
    total = 0
    for i in range(loops):
        total += i * i % 7
    return total


def calibrated():
    """Return the loops that take DESIGN_S of CPU time."""
    loops, best = 200_000, np.inf
    for _ in range(5):
        began = time.process_time()
        work(loops)
        best = min(best, time.process_time() - began)
    return int(loops * DESIGN_S / best)


def wall_s(kind, workers, evaluation, recipe, codes, runs):
    """Return the least wall time of evaluating all codes, batch by batch, after one batch that warms up."""
    executor = make_executor(Means(kind, workers=workers), recipe, evaluation)
    try:
        list(executor.collect(executor.submit(codes[:BATCH])))
        times = []
        for _ in range(runs):
            began = time.perf_counter()
            for start in range(0, len(codes), BATCH):
                list(executor.collect(executor.submit(codes[start : start + BATCH])))
            times.append(time.perf_counter() - began)
        return min(times)
    finally:
        executor.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executors", nargs="+", default=["process", "ray"])
    parser.add_argument("--designs", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    Busy.__module__ = "__main__"  # travels to Ray's workers by value
    work.__module__ = "__main__"
    problem = small_problem()
    space = Space(pe_rows=Choice(*range(1, 65))).bind(problem)
    models = (Busy(calibrated()),)
    evaluation = Evaluation(space, models)
    recipe = partial(build_evaluation, problem.to_json(), space.space.to_json(), models)
    codes = (np.arange(arguments.designs) % 64)[:, None]
    for kind in arguments.executors:
        before = os.getloadavg()[0]
        one, two = (wall_s(kind, n, evaluation, recipe, codes, arguments.runs) for n in (1, 2))
        told = {
            "executor": kind,
            "designs": len(codes),
            "design_s": DESIGN_S,
            "one_s": round(one, 3),
            "two_s": round(two, 3),
            "speed_up": round(one / two, 3),
            "cores": os.cpu_count(),
            "load": [round(before, 1), round(os.getloadavg()[0], 1)],
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
