"""``gp``: Gaussian processes look ahead, a genetic search on them finds what adds most hypervolume.

For each batch, a process per objective and one for feasibility is conditioned on the best and the latest designs. Some
generations of crossover and mutation are run on the predictions, and the batch is drawn greedily by expected
hypervolume improvement times the probability of being feasible, each pick counting as evaluated for the next
(Emmerich, Giannakoglou and Naujoks, IEEE Trans. Evol. Comp. 10(4), 2006; expectation by quasi-Monte Carlo, volume along
directions, see :mod:`agents.standing`).

Hyperparameters are refitted when the study has grown by a fifth, from the designs up to then: they follow from the
history alone, and their cost is shared by the batches in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from agents.evolve import START_DESIGNS, tournament
from agents.sampling import stratified
from agents.standing import Frame, stand
from agents.surrogate import Features, Posterior, Process, Scale, fit
from agents.variation import CROSSOVERS, MUTATIONS, Layout, cross, make_new, mutate, unknown_rows
from dse import pareto
from dse.protocols import History, Proposals

TRAINING_ROWS: Final = 240
_FIT_ROWS: Final = 120
_FIT_STEPS: Final = 24
_GROWTH: Final = 1.2
_GENERATIONS: Final = 5
_CHILDREN: Final = 192
_FINALISTS: Final = 160
_SAMPLES: Final = 8
_FEASIBLE: Final = -0.7


@dataclass(frozen=True)
class _Outlook:
    """Predictions at some designs.

    Attributes:
        means, deviations: of the standardised objectives, shape (n, m).
        p_feasible: shape (n,).
    """

    means: np.ndarray
    deviations: np.ndarray
    p_feasible: np.ndarray


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
        candidates = self._search(history, layout, standing.order, model, k, rng)
        chosen = _pick(model, candidates, min(k, len(candidates)), rng)
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

    @staticmethod
    def _search(
        history: History, layout: Layout, order: np.ndarray, model: _Model, k: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Return new designs of high predicted gain, best first, shape (n, p)."""
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
            probability *= _normal_cdf((bound - mean) / deviation)
        return probability

    def quick(self, codes: np.ndarray) -> np.ndarray:
        """Return the gain at the predicted means, less half of how far dominated designs are from one, shape (n,)."""
        f = self.features(codes)
        if self.frame is None:
            return self._p_feasible(f)
        means = np.stack([p.mean(f) for p in self.posteriors], axis=1)
        reach = self.frame.reach(self.back(means))
        gain = np.maximum(reach - self.base, 0.0).mean(axis=1)
        # Ties at no gain: nearest to the front along its best direction.
        behind = (reach - self.base).max(axis=1)
        return self._p_feasible(f) * np.where(gain > 0, 1.0 + gain, 0.5 + 0.5 * np.tanh(np.minimum(behind, 0.0)))

    def look(self, codes: np.ndarray) -> _Outlook:
        """Return the predictions at rows of codes."""
        f = self.features(codes)
        both = [p.mean_and_deviation(f) for p in self.posteriors]
        means, deviations = (np.stack([b[i] for b in both], axis=1) for i in (0, 1))
        return _Outlook(means, deviations, self._p_feasible(f))


def _pick(model: _Model, codes: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return the rows of the batch: greedily the largest expected gain, each pick counting for the next."""
    if not len(codes):
        return np.empty(0, dtype=np.intp)
    outlook = model.look(codes)
    if model.frame is None:
        return np.argsort(-outlook.p_feasible, kind="stable")[:k]
    m = outlook.means.shape[1]
    noise = _normal_samples(m, rng)
    reach = np.stack([model.frame.reach(model.back(outlook.means + z * outlook.deviations)) for z in noise])
    reach = reach.astype(np.float32)  # (samples, n, directions)
    best = np.broadcast_to(model.base.astype(np.float32), (len(noise), reach.shape[2])).copy()
    chosen: list[int] = []
    left = np.ones(len(codes), dtype=bool)
    while len(chosen) < k:
        gain = np.maximum(reach - best[:, None, :], 0.0).mean(axis=(0, 2)) * outlook.p_feasible
        gain = np.where(left, gain, -1.0)
        pick = int(gain.argmax())
        if gain[pick] <= 0:  # nothing more is expected to gain: the rest in the order of the search
            rest = np.flatnonzero(left)[: k - len(chosen)]
            chosen += rest.tolist()
            break
        chosen.append(pick)
        left[pick] = False
        best = np.maximum(best, reach[:, pick, :])
    return np.array(chosen, dtype=np.intp)


def _normal_samples(m: int, rng: np.random.Generator) -> np.ndarray:
    """Return antithetic normal samples with one Latin hypercube behind them, shape (samples, m)."""
    half = _SAMPLES // 2
    unit = (rng.permuted(np.tile(np.arange(half), (m, 1)), axis=1).T + 0.5) / half
    inverse = NormalDist().inv_cdf
    z = np.array([[inverse(u) for u in row] for row in unit])
    return np.concatenate([z, -z])


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    """Return the normal distribution function, to 1e-4 (Hastings' rational approximation, by tanh)."""
    return 0.5 * (1.0 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))


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
