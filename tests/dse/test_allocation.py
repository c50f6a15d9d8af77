"""Exact maps: against every map there is, against published ones, and against the law of the hull."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.allocation import Choices, hull, solve
from dse.errors import UserError

DATA = Path(__file__).parents[1] / "data"
TIED = {"resnet18": ((4, 6), (9, 11), (14, 16)), "resnet50": ((0, 3), (10, 13), (23, 26), (42, 45))}
# A choice's cost per layer: 4 bits, then 8.
COST = {
    "modelsize": lambda r: (float(r["params_M"]) / 2, float(r["params_M"])),
    "bops": lambda r: (float(r["bops_M"]) / 64, float(r["bops_M"]) / 16),
    "latency": lambda r: (float(r["latency_int4"]), float(r["latency_int8"])),
}


def read(name):
    with (DATA / name).open() as file:
        return list(csv.DictReader(file))


def hawq(net, constraint):
    layers = [r for r in read("hawqv3_ilp_layers.csv") if r["net"] == net]
    trace = np.array([float(r["hessian_trace_per_param"]) for r in layers])
    loss = np.array([(float(r["dw4_sq"]), float(r["dw8_sq"])) for r in layers]) * trace[:, None]
    return Choices(loss, np.array([COST[constraint](r) for r in layers]), TIED[net])


@pytest.mark.parametrize(
    "row", read("hawqv3_ilp_solutions.csv"), ids=lambda r: f"{r['net']}-{r['constraint']}-{r['ratio']}"
)
def test_hawq_v3_maps_are_never_worse_than_published(row):
    """Limit = all-4 cost + ratio * (all-8 cost - all-4 cost); the published map is feasible and obeys the ties."""
    choices = hawq(row["net"], row["constraint"])
    all_4, all_8 = choices.cost.sum(axis=0)
    budget = all_4 + float(row["ratio"]) * (all_8 - all_4)
    found = solve(choices, budget)
    published = np.array([int(b == "8") for b in row["published_bits"]])
    at = np.arange(len(published))
    assert found.cost <= budget
    assert choices.cost[at, published].sum() <= budget
    assert found.loss <= choices.loss[at, published].sum() + 1e-12
    assert all(len({found.chosen[i] for i in group}) == 1 for group in choices.tied)
    exact = np.array([int(b == "8") for b in row["milp_optimum_bits"]])
    assert found.loss == pytest.approx(choices.loss[at, exact].sum(), rel=1e-9)


def test_the_objective_over_that_of_the_published_maps(validated):
    over = []
    for row in read("hawqv3_ilp_solutions.csv"):
        choices = hawq(row["net"], row["constraint"])
        all_4, all_8 = choices.cost.sum(axis=0)
        found = solve(choices, all_4 + float(row["ratio"]) * (all_8 - all_4))
        published = np.array([int(b == "8") for b in row["published_bits"]])
        over.append(found.loss / choices.loss[np.arange(len(published)), published].sum())
    assert max(over) <= 1 + 1e-12
    validated(
        "allocation", "summed loss of the best map over that of the published one", "HAWQ-V3's integer programs",
        len(over), {"ratio: median {}": np.median(over), "largest {}": max(over), "least {}": min(over)}, "at most 1",
    )  # fmt: skip


@st.composite
def problems(draw):
    places, n = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    numbers = st.lists(st.integers(0, 30), min_size=places * n, max_size=places * n)
    loss, cost = (np.array(draw(numbers), dtype=float).reshape(places, n) for _ in range(2))
    tied = ((0, places - 1),) if places > 2 and draw(st.booleans()) else ()
    return Choices(loss, cost, tied), draw(st.floats(0, 1))


def every_map(choices):
    places, n = choices.loss.shape
    for chosen in itertools.product(range(n), repeat=places):
        if all(len({chosen[i] for i in g}) == 1 for g in choices.tied):
            at = np.arange(places)
            yield choices.cost[at, list(chosen)].sum(), choices.loss[at, list(chosen)].sum()


@pytest.mark.validates("allocation", "maps of drawn problems", "every map there is", "the best")
@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_map_is_the_best_of_all_maps(case):
    choices, share = case
    maps = list(every_map(choices))
    low, high = min(c for c, _ in maps), max(c for c, _ in maps)
    budget = low + share * (high - low)
    found = solve(choices, budget)
    assert found.cost <= budget + 1e-9
    assert found.loss == pytest.approx(min(loss for cost, loss in maps if cost <= budget))


@settings(max_examples=60, deadline=None)
@given(problems())
def test_no_map_is_below_the_hull(case):
    choices, _ = case
    points = hull(choices)
    cost, loss = np.array([p.cost for p in points]), np.array([p.loss for p in points])
    assert (np.diff(cost) > 0).all()
    assert (np.diff(loss) < 0).all()
    slopes = np.diff(loss) / np.diff(cost)
    assert (np.diff(slopes) > 0).all()
    for c, x in every_map(choices):
        assert c >= cost[0] - 1e-9
        assert x >= np.interp(c, cost, loss) - 1e-9


def test_a_budget_below_the_cheapest_map_is_refused():
    with pytest.raises(UserError, match="below 3, which the cheapest map costs"):
        solve(Choices(np.array([[1.0, 0.0]]), np.array([[3.0, 4.0]])), 2.0)


def test_choices_that_cannot_be():
    with pytest.raises(UserError, match="place 0, choice 1: loss nan"):
        Choices(np.array([[1.0, np.nan]]), np.ones((1, 2)))
    with pytest.raises(UserError, match="place 1 has no choice"):
        Choices(np.array([[1.0], [np.inf]]), np.ones((2, 1)))
    with pytest.raises(UserError, match="shape"):
        Choices(np.ones((2, 2)), np.ones((2, 3)))
