"""Picks out of a front, and which parameters matter, against small cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.errors import UserError
from dse.importance import importance
from dse.picks import balanced, knee, scaled, weighted

# Two objectives on one scale: (0, 1) and (1, 0) are the extremes, (0.2, 0.2) bends most.
FRONT = np.array([[0.0, 1.0], [0.2, 0.2], [0.1, 0.7], [1.0, 0.0], [0.7, 0.15]])


def test_knee_and_balance():
    assert knee(FRONT) == 1
    assert balanced(FRONT) == 1
    # Shifted and stretched objectives pick the same design.
    assert knee(FRONT * [3.0, 500.0] + [1.0, 900.0]) == 1


def test_a_wide_positive_metric_counts_by_ratios():
    points = np.array([[1.0, 1.0], [10.0, 0.5], [100.0, 0.0]])
    np.testing.assert_allclose(scaled(points)[:, 0], [0, 0.5, 1])
    np.testing.assert_allclose(scaled(points)[:, 1], [1, 0.5, 0])


def test_weights_reach_a_design_that_no_weighted_sum_reaches():
    # (0.6, 0.6) lies above the line between the extremes: every weighted sum prefers an extreme.
    points = np.array([[0.0, 1.0], [0.6, 0.6], [1.0, 0.0]])
    assert weighted(points, [1, 1]) == 1
    assert weighted(points, [1, 0.01]) == 0
    assert weighted(points, [0, 1]) == 2


@pytest.mark.parametrize("weights", [[1], [0, 0], [-1, 2], [float("nan"), 1]])
def test_weights_that_are_none(weights):
    with pytest.raises(UserError, match="are not 2 numbers"):
        weighted(FRONT, weights)


@given(st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 3), min_size=1, max_size=20))
def test_a_pick_is_always_a_row_that_no_other_dominates_in_it(rows):
    points = np.array(rows)
    for row in (knee(points), weighted(points, [1, 1, 1])):
        unit = scaled(points)
        better = (unit <= unit[row]).all(axis=1) & (unit < unit[row] - 1e-9).any(axis=1)
        assert not better.any()


def test_importance_equals_a_hand_computation():
    # y = 1, 1, 3, 3 by the first parameter; the second one is balanced over it. Not all positive: no logarithm.
    codes = np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * 3)
    y = np.where(codes[:, 0] == 1, 3.0, 1.0) - 2 + np.tile([0.1, 0.1, 0.1, 0.1, -0.1, -0.1, -0.1, -0.1, 0, 0, 0, 0], 1)
    total = 12 * 1.0 + 8 * 0.01  # around the mean 0: 12 ones, and the small deviations
    within = 8 * 0.01 / 10
    shares = importance(codes, np.array([2, 2]), y)
    assert shares[0] == pytest.approx((12 - within) / (total + within))
    assert shares[1] == 0


def test_levels_without_effect_get_nothing_and_unknown_values_do_not_count():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 300, (2000, 2))
    y = np.exp(codes[:, 0] / 300)
    y[:50] = np.nan
    shares = importance(codes, np.array([300, 300]), y)
    assert shares[0] > 0.98
    assert shares[1] < 0.01
    assert np.isnan(importance(codes[:5], np.array([300, 300]), y[:5])).all()
    assert np.isnan(importance(codes, np.array([300, 300]), np.ones(2000))).all()
