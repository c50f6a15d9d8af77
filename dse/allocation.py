"""Optimal maps: which value each place takes so that the whole loses least within a budget.

The multiple-choice knapsack: place i takes exactly one choice c, with loss l_ic and cost w_ic; tied places take the
same.

    minimise  sum l_ic x_ic    so that  sum_c x_ic = 1,  sum w_ic x_ic <= budget,  x binary

:func:`solve` gives the exact optimum (SciPy's HiGHS, branch and cut) with the proof of its gap; :func:`hull` all
optima of the Lagrangian  min_c l_ic + lambda w_ic  at once: for every place only the lower convex hull of its choices
is ever taken, so the hull of the sums is the hull edges of all places merged by slope (Minkowski sum). A hull point is
exactly optimal for its own cost; between two of them the optimum loses at most what the next point above loses.

Both hold for losses that add up over places. Whether they do is a matter of the losses: a calibrated surrogate is a
monotone curve of sums, so the best sum is the best prediction, up to corrections of measured groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dse.errors import UserError


@dataclass(frozen=True)
class Choices:
    """What each place may take.

    Attributes:
        loss, cost: shape (places, choices); infinite loss where a place does not have that choice.
        tied: groups of places that take the same choice, by their numbers.
    """

    loss: np.ndarray
    cost: np.ndarray
    tied: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        if self.loss.shape != self.cost.shape or self.loss.ndim != 2 or not self.loss.size:
            raise UserError(f"losses of shape {self.loss.shape}, costs of {self.cost.shape}", "give (places, choices)")
        bad = np.isnan(self.loss) | ~np.isfinite(self.cost) | (self.loss == -np.inf)
        if bad.any():
            place, choice = (int(i[0]) for i in np.nonzero(bad))
            raise UserError(
                f"place {place}, choice {choice}: loss {self.loss[place, choice]}, cost {self.cost[place, choice]}",
                "losses and costs are numbers; an infinite loss means that there is no such choice",
            )
        if not np.isfinite(self.loss).any(axis=1).all():
            raise UserError(f"place {int((~np.isfinite(self.loss)).all(axis=1).argmax())} has no choice")

    def merged(self) -> tuple[Choices, np.ndarray]:
        """Return tied places as one, and the number of the merged place of each, shape (places,)."""
        label = np.arange(len(self.loss))
        for group in self.tied:
            roots = {int(label[i]) for i in group}
            label[np.isin(label, list(roots))] = min(roots)
        _, place = np.unique(label, return_inverse=True)
        loss, cost = (np.zeros((place.max() + 1, self.loss.shape[1])) for _ in range(2))
        np.add.at(loss, place, self.loss)
        np.add.at(cost, place, self.cost)
        return Choices(loss, cost), place


@dataclass(frozen=True)
class Allocation:
    """A map.

    Attributes:
        chosen: choice of each place, shape (places,).
        loss, cost: its sums.
    """

    chosen: np.ndarray
    loss: float
    cost: float


def solve(choices: Choices, budget: float) -> Allocation:
    """Return the map of the least loss within a budget, exactly.

    Args:
        choices: what each place may take.
        budget: most that the sum of costs may be.

    Raises:
        UserError: no map is within the budget; the message says what the cheapest one costs.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    merged, place = choices.merged()
    finite = np.isfinite(merged.loss)
    least = float(np.where(finite, merged.cost, np.inf).min(axis=1).sum())
    if not least <= budget * (1 + 1e-12) + 1e-300:
        raise UserError(f"a budget of {budget:.6g} is below {least:.6g}, which the cheapest map costs", "raise it")
    rows, columns = np.nonzero(finite)
    n = len(rows)
    one = csr_array((np.ones(n), (rows, np.arange(n))), shape=(len(merged.loss), n))
    # Scaled, so that the solver's absolute tolerances (1e-6) mean a billionth of the spread of losses.
    spread = float(np.ptp(merged.loss[finite])) / 1e3 or 1.0
    width = max(abs(budget), float(np.abs(merged.cost[finite]).max())) or 1.0
    found = milp(
        merged.loss[finite] / spread,
        integrality=np.ones(n),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one, 1, 1),
            LinearConstraint(csr_array(merged.cost[finite][None, :] / width), -np.inf, budget / width),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise UserError(f"no map costs {budget:.6g} or less: {found.message}", "raise the budget")
    chosen = np.zeros(len(merged.loss), dtype=np.int64)
    taken = np.round(found.x).astype(bool)
    chosen[rows[taken]] = columns[taken]
    best = _allocation(choices, chosen[place])
    # A tolerance of the solver must not sell a map beyond the budget, nor one that the hull beats.
    within = [a for a in hull(choices) if a.cost <= budget]
    if best.cost > budget * (1 + 1e-9) or (within and within[-1].loss < best.loss):
        return within[-1] if within else best
    return best


def hull(choices: Choices) -> list[Allocation]:
    """Return all maps on the lower convex hull of (cost, loss), cheapest first."""
    merged, place = choices.merged()
    edges: list[tuple[float, int, int, int]] = []
    chosen = np.zeros(len(merged.loss), dtype=np.int64)
    for i in range(len(merged.loss)):
        path = _lower_hull(merged.cost[i], merged.loss[i])
        chosen[i] = path[0]
        for step, (a, b) in enumerate(pairwise(path)):
            slope = (merged.loss[i, b] - merged.loss[i, a]) / (merged.cost[i, b] - merged.cost[i, a])
            edges.append((float(slope), step, i, b))
    found = [_allocation(choices, chosen[place])]
    last = -np.inf
    # Steepest first; equal slopes are one edge of the hull, whose inner points are left out.
    for slope, _, i, b in sorted(edges):
        chosen[i] = b
        allocation = _allocation(choices, chosen[place])
        if slope == last:
            found[-1] = allocation
        else:
            found.append(allocation)
        last = slope
    return found


def _lower_hull(cost: np.ndarray, loss: np.ndarray) -> list[int]:
    """Return a place's choices on the lower convex hull from the cheapest to the one that loses least."""
    order = [int(i) for i in np.lexsort((loss, cost)) if np.isfinite(loss[i])]
    path: list[int] = []
    for i in order:
        if path and loss[i] >= loss[path[-1]]:
            continue
        while len(path) > 1 and _is_above(path[-2], path[-1], i, cost, loss):
            path.pop()
        path.append(i)
    return path


def _is_above(a: int, b: int, c: int, cost: np.ndarray, loss: np.ndarray) -> bool:
    """Return whether choice b lies on or above the line from a to c."""
    return bool((loss[b] - loss[a]) * (cost[c] - cost[a]) >= (loss[c] - loss[a]) * (cost[b] - cost[a]))


def _allocation(choices: Choices, chosen: np.ndarray) -> Allocation:
    at = np.arange(len(chosen))
    return Allocation(chosen.copy(), float(choices.loss[at, chosen].sum()), float(choices.cost[at, chosen].sum()))
