"""The default: a Sobol sequence to see the whole space, then NSGA-II on everything seen so far.

Both are packaged methods in a fixed order; nothing is learned about which of them pays in the study at hand.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from agents.optuna_sampler import OptunaSampler
from agents.sampling import MAX_SOBOL_DIMENSIONS, Random, sobol_codes
from dse.protocols import History, Proposals

STARTUP_DESIGNS: Final = 128


class Auto:
    """Sobol for the first :data:`STARTUP_DESIGNS` designs, which are then the first generation of NSGA-II."""

    name = "auto"
    window = 0

    def __init__(self) -> None:
        self._genetic = OptunaSampler("nsga2")

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return k designs of the method whose turn it is."""
        seen = history.n_total + len(history.pending_codes)
        if seen >= STARTUP_DESIGNS:
            return self._genetic.propose(history, k, rng)
        if history.space.n_parameters > MAX_SOBOL_DIMENSIONS:
            return Random().propose(history, k, rng)
        return Proposals(sobol_codes(history.space, history.seed, seen, k), marks=np.zeros(k, dtype=np.int64))
