"""True fronts of the frozen spaces, by enumeration; of the large one, the best front known.

    python -m tests.benchmarks.search.truth NAME

writes ``frozen/NAME.front.npz`` once. The front of the large space is that of all designs of three runs of 20,000
evaluations by a method that is in the benchmark (``evolve``) and of as many random designs: a yardstick that every arm
is measured by alike, and no bound; a run can exceed 1.
"""

from __future__ import annotations

import sys

import numpy as np

from dse.pareto import ParetoArchive
from tests.benchmarks.search.play import Yard, play
from tests.benchmarks.search.spaces import FOLDER, Frozen, load

EXHAUSTIVE_DESIGNS = 10_000_000
_CHUNK = 65_536


def exhaustive(frozen: Frozen) -> ParetoArchive:
    """Return the front of all designs of a space."""
    archive = ParetoArchive(frozen.goal.n_objectives)
    for first in range(0, frozen.space.n_designs, _CHUNK):
        index = np.arange(first, min(first + _CHUNK, frozen.space.n_designs))
        codes = np.stack(np.unravel_index(index, tuple(frozen.space.n_levels)), axis=1)
        archive.add(index, *frozen.evaluate(codes))
    return archive


def best_known(frozen: Frozen) -> ParetoArchive:
    """Return the front of long runs."""
    archive = ParetoArchive(frozen.goal.n_objectives)
    for seed in range(3):
        run = play(frozen, "evolve", 900_000 + seed, 20_000, 64, 64)
        archive.add(np.arange(len(run.violation)), run.objectives, run.violation)
        archive.add(np.arange(20_000), *frozen.evaluate(frozen.space.sample(20_000, np.random.default_rng(seed))))
    return archive


def yard(name: str) -> Yard:
    """Return the stored measure of a space."""
    with np.load(FOLDER / f"{name}.front.npz") as file:
        return Yard(file["ideal"], file["nadir"], float(file["volume"]))


def main(name: str) -> None:
    """Write the front of a space."""
    path = FOLDER / f"{name}.front.npz"
    if path.exists():
        raise SystemExit(f"{path} is frozen")
    frozen = load(name)
    whole = frozen.space.n_designs <= EXHAUSTIVE_DESIGNS
    archive = exhaustive(frozen) if whole else best_known(frozen)
    found = Yard.of(archive.points)
    np.savez_compressed(
        path, points=archive.points, ids=archive.ids if whole else np.empty(0), ideal=found.ideal, nadir=found.nadir,
        volume=found.volume, n_feasible=archive.n_feasible, n_designs=archive.n_seen,
    )  # fmt: skip
    print(f"{name}: {len(archive)} on the front, {archive.n_feasible:,} of {archive.n_seen:,} designs feasible")


if __name__ == "__main__":
    main(sys.argv[1])
