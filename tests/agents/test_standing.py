"""Ranks, crowding and directional hypervolume against definitions and the exact sweep."""

from __future__ import annotations

import numpy as np
import pytest

from agents import standing
from agents.standing import Frame, gains_in_order, stand
from dse.hypervolume import hypervolume
from dse.pareto import first_front, ranks


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_ranks_are_fronts_peeled_one_by_one(m):
    rng = np.random.default_rng(m)
    points = rng.integers(0, 6, (120, m)).astype(float)
    points[7] = np.nan
    found = ranks(points)
    # By definition: a point is in the first rank at which nobody left dominates it.
    left, rank = set(range(120)) - {7}, 0
    while left:
        now = {
            i for i in left
            if not any((points[j] <= points[i]).all() and (points[j] < points[i]).any() for j in left)
        }  # fmt: skip
        assert set(np.flatnonzero(found == rank).tolist()) - {7} == now
        left, rank = left - now, rank + 1
    assert found[7] == rank


def test_feasible_designs_stand_before_others_and_those_by_violation():
    objectives = np.array([[5.0, 5.0], [1.0, 1.0], [0.0, 0.0], [4.0, 6.0], [np.nan, np.nan]])
    violation = np.array([0.0, 0.2, 0.9, 0.0, np.inf])
    found = stand(objectives, violation)
    assert found.rank.tolist() == [0, 1, 2, 0, 3]
    assert found.order.tolist()[2:] == [1, 2, 4]


def test_crowding_of_three_on_a_line_by_hand():
    # Sorted by the first objective 0, 1, 4 (range 4) and by the second 8, 2, 0 (range 8): the middle one has 1 + 1.
    found = stand(np.array([[0.0, 8.0], [1.0, 2.0], [4.0, 0.0]]), np.zeros(3))
    assert found.crowding.tolist() == [np.inf, 2.0, np.inf]


@pytest.mark.parametrize("m", [2, 3, 4])
def test_mean_reach_is_the_hypervolume(m):
    rng = np.random.default_rng(m)
    points = np.abs(rng.normal(size=(30, m)))
    points = 1 - points / np.linalg.norm(points, axis=1, keepdims=True)
    frame = Frame(np.zeros(m), np.ones(m))
    exact = hypervolume(points, np.full(m, 1 + standing._MARGIN_RATIO))
    estimate = frame.reach(points).max(axis=0).mean()
    assert estimate == pytest.approx(exact, rel=0.05)


def test_gains_add_up_to_what_the_set_covers_and_repeat_nothing():
    rng = np.random.default_rng(0)
    points = rng.random((40, 2))
    points[20] = points[3]
    violation = np.zeros(40)
    violation[5] = 1.0
    gains = gains_in_order(points, violation, 0)
    feasible = np.delete(points, 5, axis=0)
    frame = Frame.around(feasible[first_front(feasible)], feasible)
    assert gains.sum() == pytest.approx(frame.reach(feasible).max(axis=0).mean())
    assert gains[20] == 0
    assert gains[5] == 0
    np.testing.assert_allclose(gains_in_order(points, violation, 10), gains[10:])


def test_before_anything_is_feasible_the_violation_that_falls_is_the_gain():
    violation = np.array([4.0, 2.0, 3.0, 1.0, np.inf])
    assert gains_in_order(np.ones((5, 2)), violation, 0).tolist() == [0.0, 0.5, 0.0, 0.5, 0.0]
