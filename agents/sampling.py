"""Designs that do not depend on results: uniform random, a scrambled Sobol sequence, a Latin hypercube."""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np

from dse.protocols import History, Proposals
from dse.space import BoundSpace

MAX_SOBOL_DIMENSIONS: Final = 21_201


class Random:
    """Uniform over the levels of every parameter."""

    name = "random"
    window = 1

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return k random designs."""
        return Proposals(history.space.sample(k, rng))


class Sobol:
    """A scrambled Sobol sequence over levels of equal width (direction numbers of Joe and Kuo).

    The sequence runs through all batches of a study: a design's mark is its index, so the next batch goes on behind
    the largest one seen. The scrambling follows the study's seed.
    """

    name = "sobol"
    window = 1

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return the next k points of the sequence; random ones in spaces beyond the tabulated dimensions."""
        if history.space.n_parameters > MAX_SOBOL_DIMENSIONS:
            return Proposals(history.space.sample(k, rng))
        first = history.next_mark()
        return Proposals(sobol_codes(history.space, history.seed, first, k), marks=np.arange(first, first + k))


def sobol_codes(space: BoundSpace, seed: int, first: int, k: int) -> np.ndarray:
    """Return points ``first`` to ``first + k - 1`` of the scrambled sequence as codes, shape (k, p)."""
    from scipy.stats import qmc  # takes 2.5 s to import; a study that is past its start never needs it

    engine = qmc.Sobol(space.n_parameters, scramble=True, rng=np.random.default_rng([seed, 0x50B01]))
    if first:  # scipy refuses to go forward by nothing
        engine.fast_forward(first)
    with warnings.catch_warnings():
        # Balance holds for whole powers of two only, and that is fine: the sequence goes on in the next batch.
        warnings.simplefilter("ignore", UserWarning)
        return space.from_unit(engine.random(k))


def stratified(space: BoundSpace, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return k repaired designs, every level of every parameter as often as any other, give or take one, (k, p).

    A Latin hypercube (McKay, Beckman and Conover, Technometrics 21(2), 1979): the range of each parameter is cut into k
    slices, each is hit once, in an order of its own.
    """
    slices = rng.permuted(np.tile(np.arange(k), (space.n_parameters, 1)), axis=1).T
    return space.from_unit((slices + rng.random(slices.shape)) / k)
