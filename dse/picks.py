"""One design out of a front: where it bends most, nearest to the best of everything, or by weights.

Objectives are brought to a common scale first: 0 is the best of the front, 1 its worst. A metric whose values on the
front are all positive and span more than a factor 10 is scaled by its logarithm, for a trade is then felt in ratios.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dse.errors import UserError

_RATIO_SPAN = 10.0


def scaled(points: np.ndarray) -> np.ndarray:
    """Return objectives on the common scale, shape (n, m), 0 best and 1 worst of these points.

    Args:
        points: to be minimised, finite, shape (n, m). An objective that is the same everywhere becomes 0.
    """
    points = np.asarray(points, dtype=np.float64)
    low = points.min(axis=0)
    in_ratios = (low > 0) & (points.max(axis=0) > _RATIO_SPAN * np.where(low > 0, low, 1.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        points = np.where(in_ratios, np.log(points), points)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / np.where(high > low, high - low, 1.0)


def knee(points: np.ndarray) -> int:
    """Return the row that lies deepest below the plane through the extremes of the front.

    On the common scale the extremes are 1 in one objective each, and a point's depth below their plane is
    (1 - mean of its objectives) up to a factor that is the same for all (Das, Structural Optimization 18, 1999, for a
    plane through the individual minima): the knee has the least sum.

    Args:
        points: to be minimised, shape (n, m), n >= 1.
    """
    return int(scaled(points).sum(axis=1).argmin())


def balanced(points: np.ndarray) -> int:
    """Return the row whose worst objective, on the common scale, is the least: no objective is given up.

    Args:
        points: to be minimised, shape (n, m), n >= 1.
    """
    unit = scaled(points)
    return int(np.lexsort((unit.sum(axis=1), unit.max(axis=1)))[0])


def weighted(points: np.ndarray, weights: Sequence[float]) -> int:
    """Return the row that is least in the augmented weighted Chebyshev distance to the best of everything.

    Unlike a weighted sum it can reach every design of a front, also where the front is not convex (Steuer and Choo,
    Mathematical Programming 26, 1983).

    Args:
        points: to be minimised, shape (n, m), n >= 1.
        weights: one per objective, none negative, not all zero.

    Raises:
        UserError: weights that are none.
    """
    weight = np.asarray(weights, dtype=np.float64)
    if weight.shape != (points.shape[1],) or not np.isfinite(weight).all() or (weight < 0).any() or not weight.any():
        raise UserError(f"weights {list(weights)} are not {points.shape[1]} numbers of 0 or more", "one at least above")
    distance = scaled(points) * (weight / weight.sum())
    return int((distance.max(axis=1) + 1e-3 * distance.sum(axis=1)).argmin())
