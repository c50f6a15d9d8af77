"""Costs as sums of parts: what designs will cost by the additive breakdowns of those that are paid.

Metric ``y`` of design ``x`` is the sum over its parts (component, phase, operator class, cost kind)

    y(x) = sum_l exp( b_l + h_l(x) + r_l(x) ),

with ``h`` the field's first-order laws (:mod:`agents.influence`) and ``r`` what they get wrong: a Gaussian process of
one kernel for all parts (:mod:`agents.surrogate`), conditioned on the logarithms of the parts of all paid designs. One
paid design so tells about every part at once, and the laws say at the second design what a model of whole objectives
finds out after some dozens. ``b`` is the mean over designs. A part below 0.3 % of its metric counts as that much: a
product that turns from compute to traffic leaves no part behind, not an infinitely small one.

Leakage is area times time. Energy or cost of which nobody gives parts is taken to follow the latency, over the batch
and times the device's power. A metric without either is one part that no law speaks of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from agents.influence import Influence, device_shape
from agents.lookahead import Predicted, normal_cdf, worth
from agents.standing import Frame
from agents.surrogate import Features, Posterior, Process
from dse import pareto
from dse.evidence import Evidence, Label, shares
from dse.model import Model
from dse.model.counting import n_params
from dse.protocols import Breakdown, History
from dse.space import BoundSpace

_FLOOR_RATIO: Final = 0.003
_KEPT_RATIO: Final = 0.01
_PRIOR_DEVIATION: Final = 0.25
_PRIOR_ROWS: Final = 3.0
_REST: Final[Label] = ("all", "all", "all", "rest")
_LATENCY, _AREA = "latency_s", "area_mm2"
_FOLLOWS_TIME: Final = ("energy_j", "cost_usd")


class Parts:
    """The parts of the metrics of some paid designs, as logarithms.

    Args:
        history: what is known.
        rows: rows of it, designs that ran.
    """

    def __init__(self, history: History, rows: np.ndarray) -> None:
        self.metrics = tuple(dict.fromkeys([*history.goal.metrics, _LATENCY, _AREA]))
        evidence = history.evidence
        self.values = _values(history, rows, self.metrics)
        self.metrics = tuple(self.values)
        found = evidence.breakdown(history.codes[rows]) if evidence is not None else []
        self.parts: list[tuple[str, Label]] = []
        self.follows: list[tuple[str, ...]] = []  # metrics whose product a part follows, beside the laws
        columns = []
        for metric, total in self.values.items():
            labels, parts = _of_metric(found, metric)
            if not labels:
                follows: tuple[str, ...] = (_LATENCY,) if metric in _FOLLOWS_TIME else ()
                labels, parts, given = (_REST,), total[:, None], [follows]
            else:
                parts = parts * (total / parts.sum(axis=1))[:, None]
                leaks: tuple[str, ...] = (_LATENCY, _AREA)
                given = [leaks if label[3] == "leakage" else () for label in labels]
            floor = np.maximum(_FLOOR_RATIO * np.abs(total), 1e-6 * np.abs(total).max(initial=0.0) + 1e-12)
            columns.append(np.log(np.maximum(parts, floor[:, None])))
            self.parts += [(metric, label) for label in labels]
            self.follows += [f if all(m in self.values for m in f) else () for f in given]
        self.logs = np.concatenate(columns, axis=1)
        self.owner = np.array([self.metrics.index(metric) for metric, _ in self.parts])


def _values(history: History, rows: np.ndarray, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the metrics that are known of all rows; those of the goal always."""
    values = {o.name: o.sign * history.objectives[rows, i] for i, o in enumerate(history.goal.objectives)}
    if history.margins is not None:
        for i, c in enumerate(history.goal.constraints):
            values.setdefault(c.name, c.bound + c.sign * history.margins[rows, i] * (abs(c.bound) or 1.0))
    if history.evidence is not None and len(history.evidence):
        others = [m for m in metrics if m not in values]
        values |= history.evidence.values(history.numbers[rows], others)
    return {m: values[m] for m in metrics if m in values and np.isfinite(values[m]).all()}


def _of_metric(found: Sequence[Breakdown], metric: str) -> tuple[tuple[Label, ...], np.ndarray]:
    """Return labels and parts of a metric, small parts as one; no label where parts are not known of every design."""
    made = shares(found, metric)
    if made is None or not made.ratios.size or not np.isfinite(made.ratios).all():
        return (), np.empty((0, 0))
    large = made.ratios.max(axis=0) > _KEPT_RATIO
    labels = tuple(label for label, keep in zip(made.labels, large, strict=True) if keep)
    rest = made.ratios[:, ~large].sum(axis=1)
    if not labels:
        return (), np.empty((0, 0))
    if rest.any():
        return (*labels, _REST), np.concatenate([made.ratios[:, large], rest[:, None]], axis=1)
    return labels, made.ratios[:, large]


class PartModel:
    """Predictions from parts, as :mod:`agents.lookahead` wants them; the model's own form of objectives is a logarithm.

    Args:
        history: what is known.
        rows: designs to learn from, which ran.
    """

    def __init__(self, history: History, rows: np.ndarray) -> None:
        space, goal = history.space, history.goal
        self.parts = Parts(history, rows)
        self._history, self._space = history, space
        self.influence = Influence(space, self.parts.parts, component_sizes(history.evidence))
        self._features = Features(space)
        self._beside = _beside(space)
        codes = history.codes[rows].astype(np.int64)
        known = {m: np.log(np.maximum(v, 1e-300)) for m, v in self.parts.values.items()}
        laws = self.influence(codes) + self._following(codes, known)
        residual = self.parts.logs - laws
        self._middle = residual.mean(axis=0)
        residual = residual - self._middle
        squares = (residual**2).sum(axis=0) + _PRIOR_ROWS * _PRIOR_DEVIATION**2
        self._width = np.sqrt(squares / (len(rows) + _PRIOR_ROWS))
        process = Process.start(space.n_parameters)
        features = self._features(codes)
        self._posterior = Posterior(process, features, self._features.knob, residual / self._width)
        self._runs = self._can_run(process)
        self._objective = [self.parts.metrics.index(o.name) for o in goal.objectives]
        self._signs = np.array([o.sign for o in goal.objectives])
        self.frame: Frame | None = None
        self.base = np.empty(0)
        feasible = np.isfinite(history.objectives).all(axis=1) & (history.violation == 0)
        points = history.objectives[feasible]
        if len(points):
            front = points[pareto.first_front(points)]
            self.frame = Frame.around(front, points)
            self.base = self.frame.reach(front).max(axis=0)
            if len(history.pending_codes):
                means, _ = self.predict(history.pending_codes)
                self.base = np.maximum(self.base, self.frame.reach(self.back(means[:, self._objective])).max(axis=0))

    def _can_run(self, process: Process) -> Posterior | None:
        """Return a model of which designs run at all, from those that a hard limit forbids; None where none did."""
        history = self._history
        stuck = ~np.isfinite(history.objectives).all(axis=1)
        if not stuck.any():
            return None
        rows = np.concatenate([np.flatnonzero(stuck)[-60:], np.flatnonzero(~stuck)[-120:]])
        features = self._features(history.codes[rows])
        return Posterior(process, features, self._features.knob, np.where(stuck[rows], -1.0, 1.0))

    def _following(self, codes: np.ndarray, logs: dict[str, np.ndarray]) -> np.ndarray:
        """Return what parts follow beside the laws, from the logarithms of those metrics, shape (n, parts)."""
        found = np.zeros((len(codes), len(self.parts.parts)))
        for i, metrics in enumerate(self.parts.follows):
            for metric in metrics:
                found[:, i] += logs[metric]
            if metrics == (_LATENCY,):
                for column, table in self._beside:
                    found[:, i] += table[codes[:, column]]
        return found

    def logs_at(self, codes: np.ndarray) -> np.ndarray:
        """Return the logarithms of all parts, those that follow a metric without it, shape (n, parts)."""
        codes = np.asarray(codes, dtype=np.int64)
        mean = self._posterior.mean(self._features(codes))
        logs: np.ndarray = self.influence(codes) + self._middle + self._width * mean
        return logs

    def predict(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logarithms of all metrics and their standard deviations, both (n, metrics)."""
        codes = np.asarray(codes, dtype=np.int64)
        mean, deviation = self._posterior.mean_and_deviation(self._features(codes))
        logs: np.ndarray = self.influence(codes) + self._middle + self._width * mean
        totals = np.zeros((len(codes), len(self.parts.metrics)))
        spread = np.zeros_like(totals)
        follow = np.array([bool(f) for f in self.parts.follows])
        for turn in (False, True):
            if turn and follow.any():
                known = {m: totals[:, i] for i, m in enumerate(self.parts.metrics)}
                logs = np.where(follow, logs + self._following(codes, known), logs)
            for m in range(totals.shape[1]):
                own = np.flatnonzero((self.parts.owner == m) & (turn | ~follow))
                if len(own):
                    part = np.exp(np.clip(logs[:, own], -300.0, 300.0))
                    total = part.sum(axis=1)
                    totals[:, m] = np.log(total)
                    spread[:, m] = (part * self._width[own]).sum(axis=1) / total
        return totals, spread * deviation[:, None]

    def back(self, values: np.ndarray) -> np.ndarray:
        """Return objectives to be minimised of their logarithms, shape (..., m)."""
        return self._signs * np.exp(np.clip(values, -300.0, 300.0))

    def p_feasible(self, codes: np.ndarray, totals: np.ndarray, deviations: np.ndarray) -> np.ndarray:
        """Return the probability that designs run and keep all constraints, shape (n,)."""
        probability = np.ones(len(codes))
        for c in self._history.goal.constraints:
            if c.name in self.parts.metrics and c.bound > 0:
                m = self.parts.metrics.index(c.name)
                distance = c.sign * (np.log(c.bound) - totals[:, m])
                probability *= normal_cdf(distance / np.maximum(deviations[:, m], 0.01))
        if self._runs is not None:
            probability *= np.clip(0.5 + 0.6 * self._runs.mean(self._features(codes)), 0.02, 1.0)
        return probability

    def quick(self, codes: np.ndarray) -> np.ndarray:
        """Return what the predicted means are worth, shape (n,)."""
        totals, deviations = self.predict(codes)
        p = self.p_feasible(codes, totals, deviations)
        return p if self.frame is None else worth(self.frame, self.base, self.back(totals[:, self._objective]), p)

    def look(self, codes: np.ndarray) -> Predicted:
        """Return the predictions at rows of codes."""
        totals, deviations = self.predict(codes)
        p = self.p_feasible(codes, totals, deviations)
        return Predicted(totals[:, self._objective], deviations[:, self._objective], p)


def _beside(space: BoundSpace) -> list[tuple[int, np.ndarray]]:
    """Return what a request's energy or cost follows beside the time: columns and the logarithm at each level."""
    found = []
    for j, parameter in enumerate(space.parameters):
        name = parameter.knobs[0]
        if name == "batch":
            found.append((j, np.array([-np.log(float(v)) for v in parameter.levels])))
        elif name == "device":
            power = device_shape("power")
            found.append((j, np.array([power(v) for v in parameter.levels])))
    return found


def component_sizes(evidence: Evidence | None) -> dict[str, float]:
    """Return the parameters of each component of the target model; empty where the problem is not known."""
    if evidence is None or evidence.problem is None:
        return {}
    model = evidence.problem.target
    sizes = {c: n_params([m for m in model.modules if m.component == c], model.units) for c in _components(model)}
    total = sum(sizes.values())
    return {c: n / total for c, n in sizes.items()} if total else {}


def _components(model: Model) -> list[str]:
    return list(dict.fromkeys(m.component for m in model.modules))
