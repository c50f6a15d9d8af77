"""Looking ahead on a model: a genetic search on its predictions, and the batch that is expected to gain most.

What a model must offer is :class:`Outlook`; who models how is its own affair (:mod:`agents.gp` by Gaussian processes,
:mod:`agents.bottleneck` by the additive parts of costs). The batch is drawn greedily by expected hypervolume gain
times the probability of being feasible, each pick counting as evaluated for the next (Emmerich, Giannakoglou and
Naujoks, IEEE Trans. Evol. Comp. 10(4), 2006; expectation by quasi-Monte Carlo, volume along directions, see
:mod:`agents.standing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Protocol

import numpy as np

from agents.evolve import tournament
from agents.standing import Frame
from agents.variation import CROSSOVERS, MUTATIONS, Layout, cross, mutate, unknown_rows
from dse.protocols import History

_GENERATIONS: Final = 5
_CHILDREN: Final = 192
_FINALISTS: Final = 160
_SAMPLES: Final = 8


@dataclass(frozen=True)
class Predicted:
    """Predictions at some designs.

    Attributes:
        means, deviations: of the objectives in the model's own form, shape (n, m).
        p_feasible: shape (n,).
    """

    means: np.ndarray
    deviations: np.ndarray
    p_feasible: np.ndarray


class Outlook(Protocol):
    """A model of designs that nobody has paid for yet.

    Attributes:
        frame: box in which gains are counted; None while nothing is feasible.
        base: what the front reaches along each direction, shape (directions,).
    """

    frame: Frame | None
    base: np.ndarray

    def back(self, values: np.ndarray) -> np.ndarray:
        """Return objectives to be minimised of the model's own form, shape (..., m)."""
        ...

    def quick(self, codes: np.ndarray) -> np.ndarray:
        """Return a cheap score of rows of codes, larger is better, shape (n,)."""
        ...

    def look(self, codes: np.ndarray) -> Predicted:
        """Return the predictions at rows of codes."""
        ...


def worth(frame: Frame, base: np.ndarray, points: np.ndarray, p_feasible: np.ndarray) -> np.ndarray:
    """Return the gain of predicted points, less half of how far dominated designs are from one, shape (n,).

    Args:
        frame, base: see :class:`Outlook`.
        points: predicted objectives, shape (n, m).
        p_feasible: shape (n,).
    """
    reach = frame.reach(points)
    gain = np.maximum(reach - base, 0.0).mean(axis=1)
    # Ties at no gain: nearest to the front along its best direction.
    behind = (reach - base).max(axis=1)
    return p_feasible * np.where(gain > 0, 1.0 + gain, 0.5 + 0.5 * np.tanh(np.minimum(behind, 0.0)))


def search(
    history: History, layout: Layout, order: np.ndarray, model: Outlook, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Return new designs of high predicted gain, best first, shape (n, p).

    Args:
        history: what is known.
        layout: of its space.
        order: rows of the history, the best first; the better ones are parents.
        model: gives the scores.
        k: designs wanted.
        rng: random numbers.
    """
    pool = history.codes[order[: int(np.clip(len(order) // 4, 16, 80))]]
    found = np.empty((0, history.space.n_parameters), dtype=pool.dtype)
    scores = np.empty(0)
    for generation in range(_GENERATIONS):
        n = _CHILDREN
        index = np.arange(len(pool))
        a, b = tournament(index, n, rng), tournament(index, n, rng)
        children = cross(layout, pool[a], pool[b], rng.integers(0, len(CROSSOVERS), n), rng)
        children = mutate(layout, children, rng.integers(0, len(MUTATIONS), n), rng)
        if generation == 0:
            children[: n // 8] = history.space.sample(n // 8, rng)
        children = history.space.repair(children)
        children = children[unknown_rows(history, children, set())]
        found = np.concatenate([found, children])
        scores = np.concatenate([scores, model.quick(children)])
        _, first = np.unique(found, axis=0, return_index=True)
        first = first[np.argsort(-scores[first], kind="stable")]
        found, scores = found[first], scores[first]
        best = found[: max(32, k)]
        pool = np.concatenate([best, pool[:16]])
    return found[: max(_FINALISTS, 2 * k)]


def pick(model: Outlook, codes: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return the rows of the batch: greedily the largest expected gain, each pick counting for the next."""
    if not len(codes):
        return np.empty(0, dtype=np.intp)
    predicted = model.look(codes)
    if model.frame is None:
        return np.argsort(-predicted.p_feasible, kind="stable")[:k]
    m = predicted.means.shape[1]
    noise = _normal_samples(m, rng)
    reach = np.stack([model.frame.reach(model.back(predicted.means + z * predicted.deviations)) for z in noise])
    reach = reach.astype(np.float32)  # (samples, n, directions)
    best = np.broadcast_to(model.base.astype(np.float32), (len(noise), reach.shape[2])).copy()
    chosen: list[int] = []
    left = np.ones(len(codes), dtype=bool)
    while len(chosen) < k:
        gain = np.maximum(reach - best[:, None, :], 0.0).mean(axis=(0, 2)) * predicted.p_feasible
        gain = np.where(left, gain, -1.0)
        row = int(gain.argmax())
        if gain[row] <= 0:  # nothing more is expected to gain: the rest in the order of the search
            rest = np.flatnonzero(left)[: k - len(chosen)]
            chosen += rest.tolist()
            break
        chosen.append(row)
        left[row] = False
        best = np.maximum(best, reach[:, row, :])
    return np.array(chosen, dtype=np.intp)


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Return the normal distribution function, to 1e-4 (Hastings' rational approximation, by tanh)."""
    return 0.5 * (1.0 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def _normal_samples(m: int, rng: np.random.Generator) -> np.ndarray:
    """Return antithetic normal samples with one Latin hypercube behind them, shape (samples, m)."""
    half = _SAMPLES // 2
    unit = (rng.permuted(np.tile(np.arange(half), (m, 1)), axis=1).T + 0.5) / half
    inverse = NormalDist().inv_cdf
    z = np.array([[inverse(u) for u in row] for row in unit])
    return np.concatenate([z, -z])
