"""Where designs stand: constrained ranks, crowding, and the share of hypervolume that each one holds.

Feasible designs come before all others and are ordered by non-domination, then by crowding (Deb et al., IEEE Trans.
Evol. Comp. 6(2), 2002); the others follow by their total violation, failed ones last.

Hypervolume is estimated along directions. With ``d`` uniform on the positive part of the unit sphere and a point ``y``
below the reference ``r``, let ``t(y, d) = min_i (r_i - y_i) / d_i`` be how far the box of ``y`` reaches along ``d``.
In polar coordinates the volume that a set dominates is

    V = c_m E_d[ max_y t(y, d)^m ],   c_m = pi^(m/2) / (2^m Gamma(m/2 + 1))

(Deng and Zhang, IEEE Trans. Evol. Comp. 23(5), 2019), so what a new point would add is the mean over directions of how
much it raises the maximum: one array operation for any number of candidates and objectives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dse import pareto

N_DIRECTIONS = 128
_MARGIN_RATIO = 1.5
_BLOCK = 4_096


@dataclass(frozen=True)
class Standing:
    """Order of some designs, best first.

    Attributes:
        rank: 0 for the front (or the least violation where nothing is feasible), ascending, shape (n,).
        crowding: distance to the neighbours in the same rank, inf at its ends, shape (n,).
        order: rows from the best to the worst, shape (n,).
    """

    rank: np.ndarray
    crowding: np.ndarray
    order: np.ndarray


def stand(objectives: np.ndarray, violation: np.ndarray) -> Standing:
    """Return where designs stand.

    Args:
        objectives: to be minimised, NaN where unknown, shape (n, m).
        violation: 0 where feasible, inf where failed, shape (n,).
    """
    n = len(violation)
    rank = np.zeros(n, dtype=np.int64)
    feasible = np.flatnonzero((violation == 0) & np.isfinite(objectives).all(axis=1))
    rank[feasible] = pareto.ranks(objectives[feasible])
    rest = np.setdiff1d(np.arange(n), feasible, assume_unique=True)
    levels = np.unique(violation[rest])
    rank[rest] = rank[feasible].max(initial=-1) + 1 + np.searchsorted(levels, violation[rest])
    crowding = np.zeros(n)
    crowding[feasible] = _crowding(objectives[feasible], rank[feasible])
    return Standing(rank, crowding, np.lexsort((np.arange(n), -crowding, rank)))


def _crowding(points: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Return the summed gap between the neighbours within each rank, per objective and relative to its range."""
    total = np.zeros(len(points))
    if not len(points):
        return total
    spread = np.ptp(points, axis=0)
    for column, width in zip(points.T, np.where(spread > 0, spread, 1.0), strict=True):
        order = np.lexsort((column, rank))
        first = np.r_[True, np.diff(rank[order]) > 0]
        last = np.r_[first[1:], True]
        sorted_ = column[order]
        gap = np.full(len(points), np.inf)
        inner = np.flatnonzero(~first & ~last)
        gap[inner] = (sorted_[inner + 1] - sorted_[inner - 1]) / width
        total[order] += gap
    return total


@dataclass(frozen=True)
class Frame:
    """A box of objective space in which gains are counted.

    Attributes:
        low: best value of each objective on the front, shape (m,).
        width: from there to the worst one, positive, shape (m,).
    """

    low: np.ndarray
    width: np.ndarray

    @classmethod
    def around(cls, front: np.ndarray, everything: np.ndarray) -> Frame:
        """Return the box that a front spans; where it has no extent, that of ``everything``.

        Args:
            front, everything: shapes (f, m) and (n, m), f and n at least 1.
        """
        low = front.min(axis=0)
        width = front.max(axis=0) - low
        other = everything.max(axis=0) - low
        width = np.where(width > 1e-9 * np.abs(other), width, other)
        return cls(low, np.where(width > 0, width, np.maximum(np.abs(low), 1.0)))

    def reach(self, points: np.ndarray) -> np.ndarray:
        """Return how much volume each point's box fills along each direction, shape (..., directions).

        The mean over directions of the largest over points is the dominated volume, where the box of the front is 1.
        The reference lies far beyond the worst end of the front, so that its ends are worth extending.

        Args:
            points: shape (..., m).
        """
        m = points.shape[-1]
        gains = (1.0 + _MARGIN_RATIO) - (points - self.low) / self.width
        inverse, factor = _directions(m)
        shortest = gains[..., 0, None] * inverse[0]
        for i in range(1, m):
            np.minimum(shortest, gains[..., i, None] * inverse[i], out=shortest)
        return factor * np.maximum(shortest, 0.0) ** m


@lru_cache(maxsize=16)
def _directions(m: int) -> tuple[np.ndarray, float]:
    """Return 1 / d for well spread directions d, shape (m, directions), and the volume factor.

    Points of the additive recurrence of Roberts (generalised golden ratio), mapped through the normal distribution.
    """
    from statistics import NormalDist

    root = 2.0
    for _ in range(40):
        root = (1.0 + root) ** (1.0 / (m + 1))
    steps = root ** -np.arange(1, m + 1)
    unit = (0.5 + np.outer(np.arange(1, N_DIRECTIONS + 1), steps)) % 1.0
    normal = NormalDist()
    raw = np.array([[normal.inv_cdf(0.5 + u / 2 * (1 - 1e-9)) for u in row] for row in unit])
    d = np.maximum(raw, 1e-6)
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    factor = math.pi ** (m / 2) / (2**m * math.gamma(m / 2 + 1))
    return np.ascontiguousarray(1.0 / d.T), factor


def gains_in_order(objectives: np.ndarray, violation: np.ndarray, first: int) -> np.ndarray:
    """Return how much each design from row ``first`` on added to all before it, shape (n - first,).

    In units of the volume of the box that the front spans today; where nothing is feasible, the relative decrease of
    the least violation.

    Args:
        objectives: shape (n, m), NaN where unknown.
        violation: shape (n,).
        first: rows before it only make up what was there already.
    """
    feasible = (violation == 0) & np.isfinite(objectives).all(axis=1)
    if not feasible.any():
        finite = np.where(np.isfinite(violation), violation, np.finfo(float).max)
        best = np.minimum.accumulate(finite)
        before = np.r_[finite[:1], best[:-1]]
        return ((before - best) / np.maximum(before, np.finfo(float).tiny))[first:]
    points = objectives[feasible]
    frame = Frame.around(points[pareto.first_front(points)], points)
    best = np.zeros(N_DIRECTIONS)
    added = np.zeros(len(violation))
    for start in range(0, len(violation), _BLOCK):
        rows = np.flatnonzero(feasible[start : start + _BLOCK]) + start
        if len(rows):
            reached = np.maximum.accumulate(np.concatenate([best[None], frame.reach(objectives[rows])]), axis=0)
            added[rows] = np.diff(reached, axis=0).mean(axis=1)
            best = reached[-1]
    return added[first:]
