"""``gp``: Gaussian processes look ahead, a genetic search on them finds what adds most hypervolume.

For each batch, a process per objective and one for feasibility is conditioned on the best and the latest designs. Some
generations of crossover and mutation are run on the predictions, and the batch is drawn greedily by expected
hypervolume improvement (:mod:`agents.lookahead`).

Hyperparameters are refitted when the study has grown by a fifth, from the designs up to then: they follow from the
history alone, and their cost is shared by the batches in between.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from agents.evolve import START_DESIGNS
from agents.lookahead import Predicted, normal_cdf, pick, search, worth
from agents.sampling import stratified
from agents.standing import Frame, stand
from agents.surrogate import Features, Posterior, Process, Scale, fit
from agents.variation import Layout, make_new
from dse import pareto
from dse.protocols import History, Proposals

TRAINING_ROWS: Final = 240
_FIT_ROWS: Final = 120
_FIT_STEPS: Final = 24
_GROWTH: Final = 1.2
_FEASIBLE: Final = -0.7


class Gp:
    """See the module."""

    name = "gp"
    window = 1200

    def __init__(self) -> None:
        self._fitted: tuple[object, list[Process | None]] = ((), [])

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return k designs of the largest expected gain; a stratified sample while there are too few to learn from."""
        known = np.isfinite(history.objectives).all(axis=1)
        layout = Layout.of(history.space)
        if known.sum() < START_DESIGNS // 2:
            codes, fresh = make_new(history, layout, stratified(history.space, k, rng), rng)
            return Proposals(codes[fresh])
        standing = stand(history.objectives, history.violation)
        model = _Model(history, standing.order, self._processes(history))
        candidates = search(history, layout, standing.order, model, k, rng)
        chosen = pick(model, candidates, min(k, len(candidates)), rng)
        return Proposals(candidates[chosen])

    def _processes(self, history: History) -> list[Process | None]:
        """Return hyperparameters fitted to the designs up to the last checkpoint."""
        checkpoint = START_DESIGNS // 2
        while checkpoint * _GROWTH + 1 <= history.n_total:
            checkpoint = int(checkpoint * _GROWTH + 1)
        rows = np.flatnonzero(history.numbers < checkpoint)
        known = np.isfinite(history.objectives[rows]).all(axis=1)
        if known.sum() < START_DESIGNS // 2:
            rows = np.arange(len(history))
        key = (history.space, history.codes[rows].tobytes(), history.objectives[rows].tobytes())
        if key != self._fitted[0]:
            order = stand(history.objectives[rows], history.violation[rows]).order
            chosen = rows[_spread(order, _FIT_ROWS)]
            features = Features(history.space)
            self._fitted = (key, _fit_all(history, chosen, features))
        return self._fitted[1]


class _Model:
    """Predictions for one batch, and what a design would be worth by them."""

    def __init__(self, history: History, order: np.ndarray, processes: list[Process | None]) -> None:
        self.features = Features(history.space)
        objectives = history.objectives
        m, known = objectives.shape[1], np.isfinite(objectives).all(axis=1)
        rows = _spread(order[known[order]], TRAINING_ROWS)
        knob, f = self.features.knob, self.features(history.codes[rows])
        self.scales = [Scale.of(column) for column in objectives[rows].T]
        self.posteriors = [
            Posterior(process or Process.start(history.space.n_parameters), f, knob, scale.forward(column))
            for process, scale, column in zip(processes, self.scales, objectives[rows].T, strict=False)
        ]
        self.limits: list[tuple[Posterior, float]] = []
        for (where, column, bound), process in zip(_limits(history), processes[m:], strict=True):
            if process is not None:
                rows = _spread(order[where[order]], TRAINING_ROWS)
                scale = Scale.of(column[rows])
                f = self.features(history.codes[rows])
                posterior = Posterior(process, f, knob, scale.forward(column[rows]))
                self.limits.append((posterior, float(scale.forward(np.array([bound]))[0])))
        feasible = objectives[known & (history.violation == 0)]
        self.frame: Frame | None = None
        self.base = np.empty(0)
        if len(feasible):
            front = feasible[pareto.first_front(feasible)]
            self.frame = Frame.around(front, feasible)
            self.base = self.frame.reach(front).max(axis=0)
            if len(history.pending_codes):
                means = np.stack([p.mean(self.features(history.pending_codes)) for p in self.posteriors], axis=1)
                self.base = np.maximum(self.base, self.frame.reach(self.back(means)).max(axis=0))

    def back(self, values: np.ndarray) -> np.ndarray:
        """Return objectives of standardised ones, shape (..., m)."""
        return np.stack([scale.back(values[..., i]) for i, scale in enumerate(self.scales)], axis=-1)

    def _p_feasible(self, f: np.ndarray) -> np.ndarray:
        probability = np.ones(len(f))
        for posterior, bound in self.limits:
            mean, deviation = posterior.mean_and_deviation(f)
            probability *= normal_cdf((bound - mean) / deviation)
        return probability

    def quick(self, codes: np.ndarray) -> np.ndarray:
        """Return what the predicted means are worth, shape (n,)."""
        f = self.features(codes)
        if self.frame is None:
            return self._p_feasible(f)
        means = np.stack([p.mean(f) for p in self.posteriors], axis=1)
        return worth(self.frame, self.base, self.back(means), self._p_feasible(f))

    def look(self, codes: np.ndarray) -> Predicted:
        """Return the predictions at rows of codes."""
        f = self.features(codes)
        both = [p.mean_and_deviation(f) for p in self.posteriors]
        means, deviations = (np.stack([b[i] for b in both], axis=1) for i in (0, 1))
        return Predicted(means, deviations, self._p_feasible(f))


def _limits(history: History) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Return what must stay below a bound: for each, (rows that know it (n,), column (n,), bound).

    Each constraint is a column of its own, as value over bound. What else makes a design infeasible has only its summed
    violation, which says nothing about how far from it the feasible ones are; they all count alike.
    """
    margins, violation = history.margins, history.violation
    if margins is None:
        margins = np.empty((len(violation), 0))
    found = [(np.isfinite(column), 1.0 + column, 1.0) for column in margins.T]
    explained = np.maximum(margins, 0.0).sum(axis=1)
    other = np.where(np.isfinite(explained), np.maximum(violation - explained, 0.0), violation)
    other[other < 1e-9 * violation] = 0.0
    broken = other[(other > 0) & np.isfinite(other)]
    unit = float(np.median(broken)) if len(broken) else 1.0
    size = np.where(np.isfinite(other), other, 10 * unit)
    labels = np.where(other > 0, 0.1 + np.log1p(size / unit), _FEASIBLE)
    return [*found, (np.ones(len(labels), dtype=bool), labels, 0.0)]


def _fit_all(history: History, rows: np.ndarray, features: Features) -> list[Process | None]:
    """Return hyperparameters of each objective and each limit; None for a limit that no design broke."""
    start = Process.start(history.space.n_parameters)
    known = rows[np.isfinite(history.objectives[rows]).all(axis=1)]
    f = features(history.codes[known])
    processes: list[Process | None] = []
    for column in history.objectives[known].T:
        processes.append(fit(f, features.knob, Scale.of(column).forward(column), start, _FIT_STEPS))
    for where, column, bound in _limits(history):
        chosen = rows[where[rows]]
        if not len(chosen) or (column[chosen] <= bound).all():
            processes.append(None)
            continue
        values = Scale.of(column[chosen]).forward(column[chosen])
        processes.append(fit(features(history.codes[chosen]), features.knob, values, start, _FIT_STEPS))
    return processes


def _spread(order: np.ndarray, n: int) -> np.ndarray:
    """Return at most n of the rows: the better half from the front of the order, the rest evenly from behind."""
    if len(order) <= n:
        return order
    head, tail = order[: n // 2], order[n // 2 :]
    return np.concatenate([head, tail[np.linspace(0, len(tail) - 1, n - n // 2).astype(np.int64)]])
