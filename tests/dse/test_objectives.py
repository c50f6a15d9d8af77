from __future__ import annotations

import numpy as np
import pytest

from dse.errors import UserError
from dse.objectives import Goal


def test_parse():
    goal = Goal.parse(
        "min latency_s, max accuracy_ratio", "memory_bytes <= 4 GiB, latency_s < 200 ms, accuracy_ratio >= 95 %"
    )
    assert [str(o) for o in goal.objectives] == ["min latency_s", "max accuracy_ratio"]
    assert [(c.name, c.sign, c.bound) for c in goal.constraints] == [
        ("memory_bytes", 1, 4 * 2**30),
        ("latency_s", 1, 0.2),
        ("accuracy_ratio", -1, 0.95),
    ]
    assert Goal.from_json(goal.to_json()) == goal


@pytest.mark.parametrize(
    ("objectives", "constraints", "law", "remedy"),
    [
        ("min latency", "", "unknown metric 'latency'", "name its unit: latency_s"),
        ("min latancy_s", "", "unknown metric 'latancy_s'", "did you mean 'latency_s'"),
        ("latency_s", "", "is not 'min METRIC'", "e.g."),
        ("least latency_s", "", "is not 'min METRIC'", "e.g."),
        ("", "", "at least one objective", "min latency_s"),
        ("min latency_s, min latency_s", "", "appears twice", ""),
        ("min latency_s", "memory_bytes 4 GiB", "is not 'METRIC <= BOUND'", "e.g."),
        ("min latency_s", "memory_bytes == 4 GiB", "never exactly equal", "<="),
        ("min latency_s", "memory_bytes <= 4 s", "is not in B", "4 MiB"),
        ("min latency_s", "memory_bytes <= lots", "is not a quantity", ""),
        ("min latency_s", "memory <= 4 GiB", "unknown metric 'memory'", "memory_bytes"),
        ("min latency_s", "memory_bytes <= 4", "has no unit", "'4 GiB'"),
        ("min latency_s", "area_mm2 < = 40", "is not 'METRIC <= BOUND'", "e.g."),
        ("min latency_s", "area_mm2 <= 40, area_mm2 >= 50", "no design keeps both", ""),
    ],
)
def test_text_that_is_none(objectives, constraints, law, remedy):
    with pytest.raises(UserError) as error:
        Goal.parse(objectives, constraints)
    assert law in error.value.message
    assert remedy in error.value.hint


def test_a_metric_that_no_cost_model_gives_is_refused():
    with pytest.raises(UserError, match="unknown metric 'area_mm2'"):
        Goal.parse("min latency_s", "area_mm2 <= 40", known=["latency_s", "memory_bytes"])


def test_violation_is_relative_and_adds_up():
    goal = Goal.parse("min latency_s", "memory_bytes <= 100 B, accuracy_ratio >= 0.5")
    values = {
        "latency_s": np.ones(4),
        "memory_bytes": np.array([50.0, 150.0, 100.0, np.nan]),
        "accuracy_ratio": np.array([0.9, 0.25, 0.5, 0.9]),
    }
    # row 1: (150 - 100) / 100 + (0.5 - 0.25) / 0.5 = 1.0; row 3: not known, so not kept
    np.testing.assert_allclose(goal.violation(values, np.zeros(4)), [0.0, 1.0, 0.0, np.inf])
    # what breaks a hard limit has no metrics, and is as far as the limit says; what failed is infinitely far
    np.testing.assert_allclose(goal.violation(values, np.array([0.5, 0, np.inf, 0.25])), [0.5, 1.0, np.inf, 0.25])
    assert (
        goal.violation({"memory_bytes": np.ones(2), "accuracy_ratio": np.ones(2)}, np.zeros(2)).tolist() == [np.inf] * 2
    )
    assert goal.broken({n: v[1] for n, v in values.items()}) == [
        "memory_bytes <= 100 B is broken: 150 B",
        "accuracy_ratio >= 0.5 is broken: 0.25",
    ]


def test_objectives_are_minimised():
    goal = Goal.parse("min latency_s, max accuracy_ratio")
    values = {"latency_s": np.array([1.0, 2.0]), "accuracy_ratio": np.array([0.5, 0.75])}
    assert goal.to_minimise(values, 2).tolist() == [[1.0, -0.5], [2.0, -0.75]]
