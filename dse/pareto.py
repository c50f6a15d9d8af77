"""Pareto fronts: dominance, the first front of many points, and an archive that grows one batch at a time.

All objectives are minimised. Point a dominates b when it is nowhere worse and somewhere better. Of points with equal
objectives the first one stands for all, so a front has as many members as distinct trade-offs.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

import numpy as np

from dse.hypervolume import hypervolume

_BLOCK: Final = 512


def is_dominated(points: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return which points are dominated by, or equal to, any of another set.

    Args:
        points: shape (n, m).
        by: shape (k, m).

    Returns:
        Boolean, shape (n,).
    """
    out = np.zeros(len(points), dtype=bool)
    if len(by) < len(points) and len(by) <= 64:  # the long axis is the one to run along
        across = np.ascontiguousarray(points.T)
        for one in by:
            covered = one[0] <= across[0]
            for value, column in zip(one[1:], across[1:], strict=True):
                covered &= value <= column
            out |= covered
        return out
    # Blocks of rows, not one broadcast: (n, k) exceeds a gigabyte at n = k = 40,000.
    block = max(1, 2_000_000 // max(1, len(by)))
    columns = np.ascontiguousarray(by.T)
    for start in range(0, len(points), block):
        part = points[start : start + block]
        no_worse = np.ones((len(part), len(by)), dtype=bool)
        for j, column in enumerate(columns):
            no_worse &= column <= part[:, j : j + 1]
        out[start : start + block] = no_worse.any(axis=1)
    return out


def first_front(points: np.ndarray) -> np.ndarray:
    """Return the indices of the non-dominated points, ascending; equal points once; rows with NaN never.

    Args:
        points: shape (n, m), to be minimised.
    """
    points = np.asarray(points, dtype=np.float64)
    alive = np.flatnonzero(~np.isnan(points).any(axis=1))
    # In lexicographic order no point is dominated by a later one, so whatever is left at the head is on the front.
    alive = alive[np.lexsort((alive, *points[alive].T[::-1]))]
    values = points[alive]
    if points.shape[1] == 2:
        best = np.minimum.accumulate(values[:, 1]) if len(values) else values[:, 1]
        keep = np.ones(len(values), dtype=bool)
        keep[1:] = values[1:, 1] < best[:-1]
        return np.sort(alive[keep])
    if points.shape[1] == 3:
        return np.sort(alive[_undominated_3d(values)])
    found = np.empty((0, points.shape[1]))
    front: list[np.ndarray] = []
    for start in range(0, len(alive), _BLOCK):
        block, ids = values[start : start + _BLOCK], alive[start : start + _BLOCK]
        fresh = ~is_dominated(block, found)
        block, ids = block[fresh], ids[fresh]
        earlier = np.triu(np.ones((len(block), len(block)), dtype=bool), k=1)
        for column in block.T:
            earlier &= column[:, None] <= column
        kept = ~earlier.any(axis=0)
        found = np.concatenate([found, block[kept]])
        front.append(ids[kept])
    return np.sort(np.concatenate(front)) if front else alive


def _undominated_3d(values: np.ndarray) -> np.ndarray:
    """Return which of lexicographically ordered points no earlier one covers, boolean, shape (n,).

    Among the earlier ones, which are no worse in the first objective, those that count are a staircase of the other
    two: the second ascending, the third descending (Kung, Luccio and Preparata, J. ACM 22(4), 1975).
    """
    kept = np.zeros(len(values), dtype=bool)
    xs: list[float] = []
    ys: list[float] = []
    for i, (x, y) in enumerate(values[:, 1:].tolist()):
        at = bisect_right(xs, x)
        if at and ys[at - 1] <= y:
            continue
        kept[i] = True
        first = at - 1 if at and xs[at - 1] == x else at
        last = at
        while last < len(ys) and ys[last] >= y:
            last += 1
        xs[first:last] = [x]
        ys[first:last] = [y]
    return kept


def ranks(points: np.ndarray) -> np.ndarray:
    """Return the non-domination rank of each point, shape (n,): 0 on the front, 1 on the front without those, ...

    Equal points share a rank; rows with NaN come last, all in one rank. The dominance of all pairs is held at once,
    n^2 bytes, so this is for some thousands of points (fast non-dominated sorting; Deb et al., IEEE Trans. Evol.
    Comp. 6(2), 2002).

    Args:
        points: shape (n, m), to be minimised.
    """
    known = np.flatnonzero(~np.isnan(points).any(axis=1))
    # Order is all that counts: places among the distinct values are narrow integers, which compare faster than floats.
    places = [np.unique(column, return_inverse=True)[1] for column in points[known].T]
    narrow = np.uint16 if len(known) <= 1 << 16 else np.uint32
    no_worse = np.ones((len(known), len(known)), dtype=bool)
    no_better = no_worse.copy()
    for place in places:
        column: np.ndarray = place.astype(narrow)
        no_worse &= column[:, None] <= column
        no_better &= column[:, None] >= column
    dominates = (no_worse & ~no_better).view(np.uint8)
    n_above = dominates.sum(axis=0, dtype=narrow).astype(np.int64)
    out = np.zeros(len(points), dtype=np.int64)
    left = np.ones(len(known), dtype=bool)
    rank = 0
    while left.any():
        now = np.flatnonzero(left & (n_above == 0))
        out[known[now]] = rank
        left[now] = False
        n_above -= dominates[now].sum(axis=0, dtype=narrow)
        rank += 1
    out[np.isnan(points).any(axis=1)] = rank
    return out


def constrained_front(points: np.ndarray, violation: np.ndarray) -> np.ndarray:
    """Return the front of the points without violation, or the least violating point where there is none.

    Args:
        points: shape (n, m), to be minimised.
        violation: summed relative excess, 0 where feasible, NaN or inf where unknown, shape (n,).
    """
    feasible = np.flatnonzero(violation == 0)
    if len(feasible):
        return feasible[first_front(points[feasible])]
    known = np.flatnonzero(np.isfinite(violation))
    return known[[int(violation[known].argmin())]] if len(known) else known


class ParetoArchive:
    """The front of all feasible points seen, kept up to date batch by batch.

    An insert costs O(front size), whatever the number of points seen.

    Args:
        n_objectives: m.
    """

    def __init__(self, n_objectives: int) -> None:
        self.points = np.empty((0, n_objectives))
        self.ids = np.empty(0, dtype=np.int64)
        self.n_seen = 0
        self.n_feasible = 0

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: np.ndarray, points: np.ndarray, violation: np.ndarray) -> np.ndarray:
        """Add a batch.

        Args:
            ids: number of each point, ascending over all calls, shape (n,).
            points: objectives to be minimised, NaN where unknown, shape (n, m).
            violation: summed relative excess, 0 where feasible, shape (n,).

        Returns:
            Which points of the batch are on the front now, boolean, shape (n,).
        """
        self.n_seen += len(ids)
        usable = np.flatnonzero((violation == 0) & np.isfinite(points).all(axis=1))
        self.n_feasible += len(usable)
        fresh = usable[~is_dominated(points[usable], self.points)]
        fresh = fresh[first_front(points[fresh])] if len(fresh) else fresh
        if len(fresh):
            kept = ~is_dominated(self.points, points[fresh])
            self.points = np.concatenate([self.points[kept], points[fresh]])
            self.ids = np.concatenate([self.ids[kept], np.asarray(ids)[fresh]])
        on_front = np.zeros(len(ids), dtype=bool)
        on_front[fresh] = True
        return on_front

    def hypervolume(self, reference: np.ndarray) -> float:
        """Return the volume that the front dominates below the reference point."""
        return hypervolume(self.points, reference)
