"""Fronts: which designs are there by a prior alone, beside a loop over pairs and a case by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dse.front import Front
from dse.metrics import MetricBatch
from dse.objectives import Goal


def front(values, intervals, basis, objectives="min latency_s, max accuracy_ratio"):
    goal = Goal.parse(objectives, "")
    columns = {n: np.array(v, dtype=float) for n, v in values.items()}
    n = len(next(iter(columns.values())))
    ends = {name: (np.array(low, dtype=float), np.array(high, dtype=float)) for name, (low, high) in intervals.items()}
    metrics = MetricBatch(columns, n, intervals=ends, basis=basis)
    results = SimpleNamespace(metrics=metrics, goal=goal, objectives=goal.to_minimise(columns, n))
    return Front(results, np.arange(n))


def test_by_hand():
    """Design 1 is slower than 0 and may be less accurate, 0.6 against 0.75; design 2 is better than 0 for certain."""
    values = {"latency_s": [1, 2, 3], "accuracy_ratio": [0.7, 0.8, 0.9]}
    intervals = {"accuracy_ratio": ([0.5, 0.6, 0.85], [0.75, 0.82, 0.95])}
    found = front(values, intervals, {"accuracy_ratio": "prior"})
    assert found.by_prior.tolist() == [False, True, False]
    only = "on the front only by the prior of accuracy_ratio: within its interval another one is as good in everything"
    assert [found.doubt(n) for n in range(3)] == ["", only, ""]
    assert found.doubts() == f"1 of 3 are {only}"
    for basis in ({}, {"accuracy_ratio": "measured"}):
        assert not front(values, intervals, basis).by_prior.any()
    assert not front(values, {}, {"accuracy_ratio": "prior"}).by_prior.any()


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 4), max_size=12))
def test_pairs_one_by_one(rows):
    times, accuracies, below, above = ([r[i] for r in rows] for i in range(4))
    low, high = np.subtract(accuracies, below), np.add(accuracies, above)
    found = front(
        {"latency_s": times, "accuracy_ratio": accuracies},
        {"accuracy_ratio": (low, high)},
        {"accuracy_ratio": "prior"},
    )
    expected = [
        any(times[j] <= times[i] and high[j] >= low[i] for j in range(len(rows)) if j != i) for i in range(len(rows))
    ]
    assert found.by_prior.tolist() == expected
