"""Paired comparison of search methods over seeds."""

from __future__ import annotations

import numpy as np


def a12(a: np.ndarray, b: np.ndarray) -> float:
    """Return the chance that a draw of ``a`` exceeds one of ``b``, ties half (Vargha and Delaney, 2000)."""
    return float((a[:, None] > b[None, :]).mean() + 0.5 * (a[:, None] == b[None, :]).mean())


def wilcoxon_p(a: np.ndarray, b: np.ndarray) -> float:
    """Return the two-sided p value of the signed-rank test on pairs; 1 where all pairs tie."""
    from scipy.stats import wilcoxon

    difference = a - b
    return float(wilcoxon(difference).pvalue) if (difference != 0).any() else 1.0


def holm(p: np.ndarray) -> np.ndarray:
    """Return p values adjusted for testing all of them (Holm, Scand. J. Statist. 6, 1979), shape as given."""
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty(len(p))
    out[order] = np.minimum(raised, 1.0)
    return out


def median_interval(values: np.ndarray, n_draws: int = 10_000) -> tuple[float, float, float]:
    """Return the median with its 95 % interval by percentile bootstrap over seeds (fixed generator)."""
    rng = np.random.default_rng(0)
    medians = np.median(values[rng.integers(0, len(values), (n_draws, len(values)))], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)
