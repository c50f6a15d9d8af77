"""What a logged cascade is good for: how well scores rank, which thresholds pay, and whether that holds on fresh ones.

Choices are every combination of a number of self-tests (none, or all that the log has) and of thresholds at 41
quantiles of each stage's score, keeping nothing included. Cost is that of answers and self-tests, in whatever unit the
costs are in. The held-out check splits the queries into random halves, chooses on one and reports both: for the least
cost at which the cascade is as accurate as the last stage alone, for the best accuracy at half of the last stage's
cost, and for an escalation nearest to 20 %.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from costmodels.cascade import mean_over_routes, ranking, route
from dse.capabilities import Judgement
from dse.cascades import CascadeTable

_LEVELS: Final = 41
_MOST_CHOICES: Final = 20_000
_ROWS: Final = 64


def judge(table: CascadeTable, costs: Mapping[str, float], test_cost_ratio: float, seed: int) -> Judgement:
    """Return what a logged cascade is good for; see :class:`dse.capabilities.CascadeJudge`."""
    cost = np.array([costs[s] for s in table.stages])
    choices = _choices(table)
    values = _values(table, choices, cost, test_cost_ratio)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(table.score))
    halves = [table.rows(np.sort(part)) for part in np.array_split(order, 2) if len(part)]
    alone = [
        {"stage": s, "accuracy": float(table.correct[:, k].mean()), "cost": float(cost[k])}
        for k, s in enumerate(table.stages)
    ]
    held_out = _held_out(halves, cost, test_cost_ratio) if len(halves) == 2 and len(table.stages) > 1 else []
    front = [_shown(table, choices, values, i) for i in _front(values)] if len(table.stages) > 1 else []
    return Judgement(_scores(table), alone, front, held_out)


def _scores(table: CascadeTable) -> list[dict[str, Any]]:
    found = []
    last = max(len(table.stages) - 1, 1)
    for k, stage in enumerate(table.stages[:last]):
        plain = ranking(table.score[:, k], table.correct[:, k])
        for n in range(table.n_tests + 1):
            one = ranking(table.scores(k, n), table.correct[:, k])
            name = "confidence" if not n else f"{n} self-test{'s' * (n > 1)}"
            found.append(
                {"stage": stage, "score": name, "auroc": one.auroc, "low": one.low, "high": one.high,
                 "worse": bool(n and one.auroc < plain.auroc)}
            )  # fmt: skip
    return found


def _choices(table: CascadeTable) -> tuple[np.ndarray, np.ndarray]:
    """Return thresholds and tests of all choices, (c, k - 1) each."""
    stages = len(table.stages) - 1
    per_stage = []
    for k in range(stages):
        options = []
        for n in dict.fromkeys((0, table.n_tests)):
            scores = table.scores(k, n)
            levels = np.unique(np.quantile(scores, np.linspace(0, 1, _LEVELS), method="inverted_cdf"))
            options += [(t, float(n)) for t in (*levels.tolist(), np.nextafter(scores.max(), 2.0))]
        per_stage.append(options)
    while np.prod([len(o) for o in per_stage], dtype=float) > _MOST_CHOICES:
        per_stage = [o[::2] + o[-1:] for o in per_stage]
    chosen = np.array(list(itertools.product(*per_stage)), dtype=np.float64).reshape(-1, stages, 2)
    return chosen[:, :, 0], chosen[:, :, 1]


def _values(
    table: CascadeTable, choices: tuple[np.ndarray, np.ndarray], cost: np.ndarray, test_cost_ratio: float
) -> np.ndarray:
    """Return cost, accuracy and escalation of choices, shape (3, c)."""
    threshold, tests = choices
    found = []
    for start in range(0, len(threshold), _ROWS):
        t, n = threshold[start : start + _ROWS], tests[start : start + _ROWS]
        routes = route(table, t, n, np.ones((len(t), len(cost))))
        each = np.broadcast_to(cost, (len(t), len(cost))).copy()
        each[:, :-1] *= 1 + n * test_cost_ratio
        found.append([mean_over_routes(routes, each[:, None, :]), routes.accuracy_ratio, routes.escalation_ratio])
    return np.concatenate([np.array(f) for f in found], axis=1)


def _front(values: np.ndarray) -> list[int]:
    """Return the choices that cost more only where they are more accurate, by cost."""
    best, found = -1.0, []
    for i in np.lexsort((-values[1], values[0])).tolist():
        if values[1, i] > best + 1e-12:
            best = values[1, i]
            found.append(i)
    return found


def _shown(table: CascadeTable, choices: tuple[np.ndarray, np.ndarray], values: np.ndarray, i: int) -> dict[str, Any]:
    names: Sequence[str] = table.stages[:-1]
    return {
        "thresholds": dict(zip(names, choices[0][i].tolist(), strict=True)),
        "tests": dict(zip(names, choices[1][i].astype(int).tolist(), strict=True)),
        **dict(zip(("cost", "accuracy", "escalation"), values[:, i].tolist(), strict=True)),
    }


def _held_out(halves: list[CascadeTable], cost: np.ndarray, test_cost_ratio: float) -> list[dict[str, Any]]:
    chosen_on, fresh = halves
    choices = _choices(chosen_on)
    values = _values(chosen_on, choices, cost, test_cost_ratio)
    last = float(chosen_on.correct[:, -1].mean())
    as_good = np.flatnonzero(values[1] >= last - 1e-12)
    cheap = np.flatnonzero(values[0] <= cost[-1] / 2)
    goals = {
        "as accurate as the last stage": as_good[np.argmin(values[0][as_good])] if len(as_good) else None,
        "half of the last stage's cost": cheap[np.argmax(values[1][cheap])] if len(cheap) else None,
        "escalation nearest to 20 %": np.argmin(np.abs(values[2] - 0.2)),
    }
    found = []
    for goal, i in goals.items():
        if i is None:
            continue
        one = (choices[0][i : i + 1], choices[1][i : i + 1])
        shown = _shown(chosen_on, choices, values, int(i))
        after = _values(fresh, one, cost, test_cost_ratio)[:, 0].tolist()
        shown |= dict(zip(("fresh_cost", "fresh_accuracy", "fresh_escalation"), after, strict=True))
        found.append({"goal": goal, **shown})
    return found
