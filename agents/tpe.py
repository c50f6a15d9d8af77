"""``tpe``: tree-structured Parzen estimators over codes, one fit per batch, for several objectives and constraints.

The designs seen are split in a good part, which is the best by constrained rank and within the last rank by crowding
(Ozaki et al., JAIR 73, 2022, split alike by rank and hypervolume share), and the rest. Per knob a density of each part
is estimated over its levels: counts for words, counts smoothed by a discretised normal kernel for ordered levels, both
with a uniform prior. Candidates are drawn from the good density and the best ratio of the two densities wins (Bergstra
et al., NIPS 2011), all candidates of a batch in one array. Knobs count as independent, as in the original.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from agents.evolve import START_DESIGNS
from agents.sampling import stratified
from agents.standing import stand
from agents.variation import Layout, make_new, unknown_rows
from dse.protocols import History, Proposals

_GOOD_RATIO: Final = 0.12
_MOST_GOOD: Final = 48
_CANDIDATES: Final = 32  # per design asked for
_CELLS: Final = 32  # levels beyond this many share cells
_PRIOR: Final = 1.0


class Tpe:
    """See the module."""

    name = "tpe"
    window = 1000

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return k designs of high density among the good ones and low density among the others."""
        layout = Layout.of(history.space)
        if len(history) < START_DESIGNS:
            codes, fresh = make_new(history, layout, stratified(history.space, k, rng), rng)
            return Proposals(codes[fresh])
        order = stand(history.objectives, history.violation).order
        n_good = int(np.clip(np.ceil(_GOOD_RATIO * len(order)), 5, _MOST_GOOD))
        densities = Densities(layout, history.codes, order, n_good)
        candidates = history.space.repair(densities.draw(_CANDIDATES * k, rng))
        score = np.where(unknown_rows(history, candidates, set()), densities.log_ratio(candidates), -np.inf)
        # Each design has candidates of its own: the k best of all would be k times nearly the same.
        best = score.reshape(_CANDIDATES, k).argmax(axis=0) * k + np.arange(k)
        codes, fresh = make_new(history, layout, candidates[best], rng)
        return Proposals(codes[fresh])


class Densities:
    """Per-knob densities of good designs and of the others.

    Args:
        layout: of the space.
        codes: shape (n, p).
        order: rows from best to worst.
        n_good: how many of them are good.
    """

    def __init__(self, layout: Layout, codes: np.ndarray, order: np.ndarray, n_good: int) -> None:
        self._n_levels = layout.n_levels
        self._cells = np.minimum(layout.n_levels, _CELLS)
        self._ordered = layout.ordered
        width = int(self._cells.max())
        cells = self._cell(codes)
        self._good = self._estimate(cells[order[:n_good]], width)
        self._bad = self._estimate(cells[order[n_good:]], width)

    def _cell(self, codes: np.ndarray) -> np.ndarray:
        return codes.astype(np.int64) * self._cells // self._n_levels

    def _estimate(self, cells: np.ndarray, width: int) -> np.ndarray:
        """Return the probability of each cell of each knob, shape (p, width)."""
        n, p = cells.shape
        counts = (
            np.bincount((np.arange(p) * width + cells).ravel(), minlength=p * width).reshape(p, width).astype(float)
        )
        index = np.arange(width)
        for size in np.unique(self._cells[self._ordered]):
            rows = self._ordered & (self._cells == size)
            # The more designs, the narrower: Scott's rule on cells, at least a quarter of one.
            bandwidth = max(0.35, 0.3 * size * max(n, 1) ** -0.2 / 2)
            kernel = np.exp(-0.5 * ((index[:size, None] - index[None, :size]) / bandwidth) ** 2)
            kernel /= kernel.sum(axis=1, keepdims=True)
            counts[rows, :size] = counts[rows, :size] @ kernel
        inside = index < self._cells[:, None]
        weight = np.where(inside, counts + _PRIOR / self._cells[:, None], 0.0)
        return weight / weight.sum(axis=1, keepdims=True)

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return n rows of codes from the density of the good, shape (n, p)."""
        cumulative = np.cumsum(self._good, axis=1)
        cell = (rng.random((n, len(self._cells), 1)) > cumulative[None, :, :-1]).sum(axis=2)
        low = -(-cell * self._n_levels // self._cells)
        high = -(-(cell + 1) * self._n_levels // self._cells)
        return low + (rng.random(cell.shape) * (high - low)).astype(np.int64)

    def log_ratio(self, codes: np.ndarray) -> np.ndarray:
        """Return the logarithm of the ratio of the densities, shape (n,)."""
        table = np.log(np.maximum(self._good, 1e-300)) - np.log(np.maximum(self._bad, 1e-300))
        return table[np.arange(len(self._cells)), self._cell(codes)].sum(axis=1)
