"""Exact hypervolume: the volume of objective space that a set dominates, up to a reference point.

All objectives are minimised; a point that is not strictly below the reference everywhere adds nothing. One and two
objectives are a sweep; three sweep along the last and keep the staircase of the other two, O(n log n) look-ups and
O(n) list moves; four and more use the WFG recursion (While, Bradstreet, Barone, IEEE Trans. Evol. Comp. 16(1), 2012):
each point adds its box less what the points after it, clipped to that box, dominate. The cost of the recursion grows
steeply with objectives: tens of milliseconds for 100 points at four objectives.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """Return the dominated volume.

    Args:
        points: shape (n, m), any order, dominated points allowed.
        reference: shape (m,), finite.

    Raises:
        ValueError: shapes that do not fit, or a reference that is not finite.
    """
    points = np.asarray(points, dtype=np.float64)
    reference = np.asarray(reference, dtype=np.float64)
    if points.ndim != 2 or reference.shape != (points.shape[1],):
        raise ValueError(f"expected points (n, m) and a reference (m,), got {points.shape} and {reference.shape}")
    if not np.isfinite(reference).all():
        raise ValueError(f"the reference point {reference} is not finite")
    inside = points[(points < reference).all(axis=1)]
    # A coordinate at minus infinity makes an infinite volume, and NaN compares false above.
    if np.isinf(inside).any():
        return float("inf")
    # Gains over the reference, so that every box starts at the origin and rounding does not depend on the offset.
    return _volume(reference - inside)


def _volume(gains: np.ndarray) -> float:
    if not len(gains):
        return 0.0
    m = gains.shape[1]
    if m == 1:
        return float(gains.max())
    if m == 2:
        return _area(gains)
    if m == 3:
        return _sweep_3d(gains)
    return _wfg(gains)


def _area(gains: np.ndarray) -> float:
    order = np.lexsort((-gains[:, 1], -gains[:, 0]))
    x, y = gains[order].T
    top = np.maximum.accumulate(y)
    below = np.concatenate(([0.0], top[:-1]))
    return float((x * (top - below)).sum())


def _sweep_3d(gains: np.ndarray) -> float:
    """Sweep from the largest third gain down; the staircase (x up, y down) of what has been passed bounds the area."""
    order = np.argsort(-gains[:, 2], kind="stable")
    rows = gains[order].tolist()
    stairs: list[tuple[float, float]] = []  # ascending x, so descending y
    area = volume = 0.0
    for i, (x, y, z) in enumerate(rows):
        area += _insert(stairs, x, y)
        below = rows[i + 1][2] if i + 1 < len(rows) else 0.0
        volume += area * (z - below)
    return volume


def _insert(stairs: list[tuple[float, float]], x: float, y: float) -> float:
    """Put (x, y) on the staircase and return the area that it adds."""
    at = bisect_left(stairs, (x, y))
    if at < len(stairs) and stairs[at][1] >= y:
        return 0.0
    if at < len(stairs) and stairs[at][0] == x:  # same x and lower y: covered by the new point
        at += 1
    floor = stairs[at][1] if at < len(stairs) else 0.0
    added, right, low = 0.0, x, floor
    first = at
    while first > 0 and stairs[first - 1][1] <= y:
        first -= 1
        step_x, step_y = stairs[first]
        added += (right - step_x) * (y - low)
        right, low = step_x, step_y
    left = stairs[first - 1][0] if first > 0 else 0.0
    added += (right - left) * (y - low)
    del stairs[first:at]
    insort(stairs, (x, y))
    return added


def _wfg(gains: np.ndarray) -> float:
    gains = _maximal(gains)
    # Points with a small last gain first: their clipped followers then agree in it, and many become dominated.
    gains = gains[np.argsort(gains[:, -1], kind="stable")]
    boxes = gains.prod(axis=1)
    total = 0.0
    for i in range(len(gains)):
        clipped = np.minimum(gains[i], gains[i + 1 :])
        total += float(boxes[i]) - (_clipped_volume(clipped) if len(clipped) else 0.0)
    return total


def _clipped_volume(clipped: np.ndarray) -> float:
    """Volume of points that share their last gain: a volume of one objective less."""
    return float(clipped[0, -1]) * _volume(_maximal(clipped[:, :-1]))


def _maximal(gains: np.ndarray) -> np.ndarray:
    """Return the points that no other one covers."""
    kept: list[np.ndarray] = []
    rest = gains[np.argsort(-gains.sum(axis=1), kind="stable")]
    while len(rest):
        head = rest[0]
        kept.append(head)
        rest = rest[1:][(rest[1:] > head).any(axis=1)]
    return np.array(kept)
