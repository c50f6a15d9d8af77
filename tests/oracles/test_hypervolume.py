"""Hypervolume and fronts against closed forms and against moocore, an independent implementation in C."""

from __future__ import annotations

import itertools

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dse.hypervolume import hypervolume
from dse.pareto import ParetoArchive, constrained_front, first_front


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_one_point_is_its_box(m):
    assert hypervolume(np.full((1, m), 0.25), np.ones(m)) == pytest.approx(0.75**m)


def test_integer_staircase():
    # (0,3) (1,2) (2,1) (3,0) below (4,4): columns of height 1, 2, 3, 4 = 10
    points = np.array([[0, 3], [1, 2], [2, 1], [3, 0]], dtype=float)
    assert hypervolume(points, np.array([4.0, 4.0])) == 10.0


def test_three_unit_steps():
    # Boxes [0,1]x[0,2]x[0,2], [0,2]x[0,1]x[0,2], [0,2]x[0,2]x[0,1] as gains over (2,2,2): by inclusion and exclusion
    # 4 + 4 + 4 - (2 + 2 + 2) + 1 = 7
    points = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float)
    assert hypervolume(points, np.full(3, 2.0)) == 7.0


def test_points_beyond_the_reference_add_nothing():
    inside = np.array([[0.5, 0.5]])
    beyond = np.array([[0.5, 0.5], [0.1, 1.0], [2.0, 0.0], [np.nan, 0.1]])
    assert hypervolume(beyond, np.ones(2)) == hypervolume(inside, np.ones(2)) == 0.25
    assert hypervolume(np.empty((0, 3)), np.ones(3)) == 0.0


@pytest.mark.parametrize(
    ("points", "reference"), [(np.ones((2, 3)), np.ones(2)), (np.ones((1, 2)), np.array([1, np.inf]))]
)
def test_shapes_and_references_that_do_not_fit(points, reference):
    with pytest.raises(ValueError, match="reference"):
        hypervolume(points, reference)


@pytest.mark.parametrize(("m", "n"), list(itertools.product([2, 3, 4, 5], [1, 7, 60])))
@pytest.mark.parametrize("kind", ["cube", "grid", "sphere"])
def test_agrees_with_moocore(m, n, kind):
    rng = np.random.default_rng([m, n, len(kind)])
    if kind == "cube":
        points = rng.random((n, m))
    elif kind == "grid":  # many ties
        points = rng.integers(0, 4, (n, m)) / 4
    else:
        directions = np.abs(rng.normal(size=(n, m)))
        points = 1 - directions / np.linalg.norm(directions, axis=1, keepdims=True)
    reference = np.full(m, 1.01)
    assert hypervolume(points, reference) == pytest.approx(moocore.hypervolume(points, ref=reference), rel=1e-11)
    expected = np.flatnonzero(moocore.is_nondominated(points, keep_weakly=False))
    assert first_front(points).tolist() == expected.tolist()


_SETS = hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.integers(2, 4)), elements=st.integers(0, 5).map(float))


@given(_SETS, st.randoms())
def test_hypervolume_does_not_depend_on_order_or_dominated_points(points, random):
    reference = np.full(points.shape[1], 6.0)
    order = list(range(len(points)))
    random.shuffle(order)
    assert hypervolume(points[order], reference) == pytest.approx(hypervolume(points, reference), rel=1e-12)
    assert hypervolume(points[first_front(points)], reference) == pytest.approx(
        hypervolume(points, reference), rel=1e-12
    )


@given(_SETS, st.integers(1, 5))
def test_the_archive_equals_the_front_of_everything(points, size):
    archive = ParetoArchive(points.shape[1])
    violation = (points.sum(axis=1) % 3 == 0) * 1.0
    for start in range(0, len(points), size):
        rows = np.arange(start, min(start + size, len(points)))
        archive.add(rows, points[rows], violation[rows])
    feasible = np.flatnonzero(violation == 0)
    expected = feasible[first_front(points[feasible])]
    assert sorted(archive.ids.tolist()) == expected.tolist()
    assert archive.n_feasible == len(feasible)


def test_infeasible_points_never_hide_feasible_ones():
    points = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
    assert constrained_front(points, np.array([0.5, 0.0, 0.0])).tolist() == [1, 2]
    assert constrained_front(points, np.array([0.5, 0.2, np.inf])).tolist() == [1]
    assert constrained_front(points, np.full(3, np.inf)).tolist() == []
