"""``evolve``: a steady-state genetic algorithm over the archive, for mixed knobs, several objectives and constraints.

There are no generations: parents of each batch are drawn from the best of everything seen, feasible designs first and
then by violation (Deb et al., 2002). Which crossover, and how far mutation goes, follows what paid: each design carries
its operator as its mark, and an operator is drawn in proportion to the share of its recent designs that are among the
parents today (probability matching; Thierens, GECCO 2005, with a floor for every operator). A child that was proposed
before is mutated until it is new.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from agents.sampling import stratified
from agents.standing import stand
from agents.variation import CROSSOVERS, MUTATIONS, N_OPERATORS, Layout, cross, make_new, mutate
from dse.protocols import History, Proposals

START_DESIGNS: Final = 16
_POOL: Final = (8, 100)  # fewest and most parents
_POOL_RATIO: Final = 0.1
_FLOOR: Final = 0.02
_MEMORY: Final = 400.0  # designs after which a success counts a third


class Evolve:
    """See the module."""

    name = "evolve"
    window = 600

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return k children of the best designs; a stratified sample while there are too few of them."""
        n_start = min(k, max(0, START_DESIGNS - len(history) - len(history.pending_codes)))
        layout = Layout.of(history.space)
        if n_start or not len(history):
            codes = history.space.repair(stratified(history.space, k, rng))
            codes, fresh = make_new(history, layout, codes, rng)
            return Proposals(codes[fresh])
        standing = stand(history.objectives, history.violation)
        pool = standing.order[: int(np.clip(_POOL_RATIO * len(history), *_POOL))]
        a, b = tournament(pool, k, rng), tournament(pool, k, rng)
        operator = rng.choice(N_OPERATORS, size=k, p=operator_shares(history, pool))
        children = cross(layout, history.codes[a], history.codes[b], operator // len(MUTATIONS), rng)
        # A child of crossover that differs from both parents need not be mutated too.
        mixed = (children != history.codes[a]).any(axis=1) & (children != history.codes[b]).any(axis=1)
        mutated = mutate(layout, children, operator % len(MUTATIONS), rng)
        children = np.where((mixed & (rng.random(k) < 0.3))[:, None], children, mutated)
        codes, fresh = make_new(history, layout, children, rng)
        parents = [
            (int(x),) if kind == 0 else (int(x), int(y))
            for x, y, kind in zip(history.numbers[a], history.numbers[b], operator // len(MUTATIONS), strict=True)
        ]
        return Proposals(codes[fresh], [parents[i] for i in np.flatnonzero(fresh)], operator[fresh])


def tournament(pool: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return k members of the pool, of which the better of two draws wins; the pool is best first."""
    return pool[rng.integers(0, len(pool), size=(2, k)).min(axis=0)]


def operator_shares(history: History, pool: np.ndarray) -> np.ndarray:
    """Return with which probability each operator is drawn, shape (operators,), from who is in the pool today."""
    marked = np.flatnonzero((history.marks >= 0) & (history.marks < N_OPERATORS))
    prior = np.outer((0.15, 0.5, 0.35), (0.4, 0.3, 0.2, 0.1)).ravel()
    assert len(prior) == len(CROSSOVERS) * len(MUTATIONS)
    if not len(marked):
        return prior
    member = np.zeros(len(history))
    member[pool] = 1.0
    weight = np.exp((history.numbers[marked] - history.numbers[-1]) / _MEMORY)
    tried = np.bincount(history.marks[marked], weight, N_OPERATORS)
    won = np.bincount(history.marks[marked], weight * member[marked], N_OPERATORS)
    mean = won.sum() / tried.sum() + 1e-3
    rate = (won + 10 * mean * prior * N_OPERATORS) / (tried + 10)
    shares = _FLOOR + rate / rate.sum()
    return shares / shares.sum()
