"""Which parameters move a metric, among the designs of a study.

The share of a metric's variance that the levels of one parameter explain (the correlation ratio), in the unbiased form
omega squared (Hays, Statistics for Psychologists, 1963), so that a parameter with many levels and no effect gets 0 and
not its share of the noise. Metrics that are positive everywhere enter by their logarithm: effects are ratios.

It is the main effect in the designs that were evaluated, which a search has drawn towards good ones: two parameters
that were moved together share the credit, and an effect that only shows in combination is not seen. Shares need not
add up to 1.
"""

from __future__ import annotations

from typing import Final

import numpy as np

MOST_LEVELS: Final = 16
LEAST_DESIGNS: Final = 8


def importance(codes: np.ndarray, n_levels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the share of a metric's variance that each parameter explains, shape (p,), NaN where unknown.

    Args:
        codes: shape (n, p).
        n_levels: levels of each parameter, shape (p,); more than 16 are taken together in 16 equal parts.
        values: the metric, shape (n,); NaN where it is not known.
    """
    known = np.isfinite(values)
    y = values[known]
    shares = np.full(codes.shape[1], np.nan)
    if len(y) < LEAST_DESIGNS:
        return shares
    if (y > 0).all():
        y = np.log(y)
    y = y - y.mean()
    total = float(y @ y)
    if total <= 1e-24 * len(y):
        return shares
    for j, levels in enumerate(n_levels.tolist()):
        column = codes[known, j].astype(np.int64)
        if levels > MOST_LEVELS:
            column = column * MOST_LEVELS // levels
        counts = np.bincount(column)
        used = counts > 0
        groups = int(used.sum())
        if groups < 2 or len(y) <= groups:
            continue
        sums = np.bincount(column, y)
        between = float((sums[used] ** 2 / counts[used]).sum())
        within = max(total - between, 0.0) / (len(y) - groups)
        shares[j] = max(0.0, (between - (groups - 1) * within) / (total + within))
    return shares
