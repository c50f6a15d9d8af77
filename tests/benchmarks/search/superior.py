"""Reference designs that few others beat, and how many an arm finds (LUMINA's sample efficiency).

A design is superior if it is feasible and better than the reference in every objective. The share of the space that is
superior is estimated on a sample of random designs, infeasible ones included; a reference is drawn at random among the
feasible designs with a share of 0.2 to 0.5 %, a different one for every seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.benchmarks.search.play import Searchable

SHARE = (0.002, 0.005)
SAMPLE = 60_000
_TRIED = 4000


@dataclass(frozen=True)
class Reference:
    """A design to beat.

    Attributes:
        codes: shape (1, p).
        objectives: shape (m,).
        share_ratio: of random designs that are superior to it.
    """

    codes: np.ndarray
    objectives: np.ndarray
    share_ratio: float

    def superior(self, objectives: np.ndarray, violation: np.ndarray) -> np.ndarray:
        """Return which designs are superior, boolean, shape (n,)."""
        with np.errstate(invalid="ignore"):
            return (objectives < self.objectives).all(axis=1) & (violation == 0)


def references(target: Searchable, n: int, sample: int = SAMPLE) -> list[Reference]:
    """Return n references, the same for the same space.

    Raises:
        ValueError: too few designs of such a share in the sample.
    """
    rng = np.random.default_rng([0x5EED, sample])
    codes = np.unique(target.space.sample(sample, rng), axis=0)
    codes = rng.permutation(codes)
    columns = target.columns(codes)
    objectives = target.goal.to_minimise(columns, len(codes))
    violation = target.goal.violation(columns, np.zeros(len(codes)))
    feasible = objectives[violation == 0]
    found = []
    for i in np.flatnonzero(violation == 0)[:_TRIED]:
        share = float((feasible < objectives[i]).all(axis=1).sum() / len(codes))
        if SHARE[0] <= share <= SHARE[1]:
            found.append(Reference(codes[i : i + 1], objectives[i], share))
            if len(found) == n:
                return found
    raise ValueError(f"{target.name}: {len(found)} references, {n} were asked for")
