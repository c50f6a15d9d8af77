"""CPU time of a proposal in batches of 64, as the history grows: 59 knobs, three objectives, two constraints.

    python -m tests.benchmarks.search.cost [ARM ...]

The history is of random designs with made-up marks; the time includes the view that the record gives. The yardstick is
that of ``python -m tests.benchmarks``.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from dse import catalogue
from dse.record import Record
from tests.benchmarks.__main__ import yardstick
from tests.benchmarks.search.tuning import roofline

BATCH = 64
SIZES = (1_000, 10_000, 100_000)
REPEATS = 10


def ms_per_design(arm: str, n: int) -> float:
    """Return the median CPU time of a proposed design with n designs known."""
    target = roofline(3, 26)
    rng = np.random.default_rng(0)
    record = Record(target.space, target.goal, 0)
    codes = target.space.sample(n, rng)
    columns = target.columns(codes)
    objectives, violation = target.goal.to_minimise(columns, n), target.goal.violation(columns, np.zeros(n))
    margins, failed = target.goal.margins(columns, n), np.zeros(n, dtype=bool)
    record.append(codes, objectives, violation, margins, failed, rng.integers(0, 64, n), [(arm, n)])
    proposer, times = catalogue.proposer(arm), []
    for batch in range(REPEATS + 1):
        began = time.process_time()
        found = proposer.propose(record.view(arm, proposer.window, []), BATCH, np.random.default_rng([0, batch]))
        times.append(1000 * (time.process_time() - began) / len(found.codes))
    return float(np.median(times[1:]))  # the first one imports


def main() -> None:
    """Print a table."""
    print(f"yardstick: {yardstick():.3f} CPU s\n{'ms per design':16}" + "".join(f"{n:>12,}" for n in SIZES))
    for arm in sys.argv[1:] or ["random", "evolve", "tpe", "local", "auto"]:
        print(f"{arm:16}" + "".join(f"{ms_per_design(arm, n):>12.3f}" for n in SIZES), flush=True)


if __name__ == "__main__":
    main()
