"""What a proposer is shown: bounded views that keep the front, the latest, one's own last design, and what is known."""

from __future__ import annotations

import numpy as np
import pytest

from dse.objectives import Goal
from dse.params import Int
from dse.record import Record
from dse.space import Space, row_keys
from dse.testing.samples import small_problem

SPACE = Space(pe_rows=Int(1, 40), pe_cols=Int(1, 40)).bind(small_problem())
GOAL = Goal.parse("min latency_s, min energy_j", "area_mm2 <= 10, accuracy_ratio >= 0.5")


def _record(n=500, feasible=True):
    record = Record(SPACE, GOAL, 0)
    i = np.arange(n)
    codes = np.stack([i % 40, i // 40], axis=1).astype(np.uint16)
    # Designs 3 and 4 are the front; all later ones are worse.
    objectives = np.stack([10.0 + i, 10.0 + i], axis=1)
    objectives[3], objectives[4] = (0.0, 1.0), (1.0, 0.0)
    violation = np.zeros(n) if feasible else 1.0 + np.abs(i - 100.0)
    margins, failed = np.full((n, 2), np.nan), np.zeros(n, dtype=bool)
    record.append(codes[:5], objectives[:5], violation[:5], margins[:5], failed[:5], np.arange(5), [("first", 5)])
    record.append(
        codes[5:], objectives[5:], violation[5:], margins[5:], failed[5:], np.arange(5, n), [("second", n - 5)]
    )
    return record, codes


@pytest.mark.parametrize(
    "narrow", [lambda r, w: r.view("first", w, []), lambda r, w: r.view("first", 0, []).limited(w)]
)
def test_a_window_keeps_the_front_the_own_last_design_and_the_latest(narrow):
    record, codes = _record()
    view = narrow(record, 20)
    assert len(view) == 20
    assert {3, 4} <= set(view.numbers.tolist())
    assert view.numbers[-10:].tolist() == list(range(490, 500))
    assert view.next_mark() == 5
    np.testing.assert_array_equal(view.codes, codes[view.numbers])
    assert view.n_total == 500


def test_a_window_of_one_is_the_own_last_design():
    record, _ = _record()
    assert record.view("first", 1, []).numbers.tolist() == [4]


def test_with_nothing_feasible_a_window_keeps_the_least_violating():
    record, _ = _record(feasible=False)
    assert {98, 99, 100, 101, 102} <= set(record.view("third", 20, []).numbers.tolist())


@pytest.mark.parametrize("window", [0, 20])
def test_what_a_window_leaves_out_is_known_and_so_is_what_is_pending(window):
    record, codes = _record()
    pending = (np.array([[39, 39]], dtype=np.uint16), np.array([7]), "first")
    view = record.view("first", window, [pending])
    for history in (view, view.limited(10)):
        asked = np.array([codes[200], [39, 39], [39, 38], codes[0]])
        assert history.is_known(asked).tolist() == [True, True, False, True]


def test_rows_are_told_apart_by_all_their_bytes():
    keys = row_keys(np.array([[1, 256], [256, 1], [1, 256]]))
    assert keys[0] == keys[2] != keys[1]
    assert len(keys[0]) == 4


def test_margins_are_signed_and_relative_to_the_bound():
    values = {
        "latency_s": np.ones(3), "energy_j": np.ones(3), "area_mm2": np.array([5.0, 10.0, 25.0]),
        "accuracy_ratio": np.array([0.75, 0.25, np.nan]),
    }  # fmt: skip
    np.testing.assert_array_equal(GOAL.margins(values, 3), [[-0.5, -0.5], [0.0, 0.5], [1.5, np.nan]])
    assert GOAL.violation(values, np.zeros(3))[:2].tolist() == [0.0, 0.5]
    assert Goal.parse("min latency_s").margins(values, 3).shape == (3, 0)
