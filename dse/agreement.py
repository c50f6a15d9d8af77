"""How far the fidelities of a study agree, on the designs that have both.

Per metric that the lower and the upper combination both give: the rank correlation (Spearman, Am. J. Psychol. 15, 1904;
the linear correlation of ranks, ties at their mean), the median of the ratios upper / lower with the 5 % and 95 %
quantiles between which nine in ten lie, and the number of pairs. Pairs are the designs that were promoted: promising
ones, so the rank correlation over all designs is higher as a rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dse.metrics import MetricBatch
from dse.results import Results


@dataclass(frozen=True)
class MetricAgreement:
    """One metric on two rungs.

    Attributes:
        metric: its name.
        n_pairs: designs that have it on both.
        rank_correlation: -1 to 1, NaN where either is constant or there are fewer than three pairs.
        ratio: median of upper / lower, NaN where no lower value is positive.
        low_ratio, high_ratio: 5 % and 95 % quantiles of the ratios.
        inside_ratio: share of the pairs whose upper value lies in the interval of the lower one, NaN where the lower
            cost model gives none.
    """

    metric: str
    n_pairs: int
    rank_correlation: float
    ratio: float
    low_ratio: float
    high_ratio: float
    inside_ratio: float


@dataclass(frozen=True)
class Agreement:
    """A rung of a study and the one below.

    Attributes:
        fidelity: label of its combination.
        below: label of the one below.
        n_below, n_designs: designs evaluated below and here.
        n_infeasible, n_failed: of those here.
        n_within_reach: designs below that might have been on this rung's front when the last round was chosen, those
            of that round included; 0 before the first.
        n_front: members of this rung's front.
        n_stayed: of these, how many are on the front below too.
        metrics: those of the goal first.
    """

    fidelity: str
    below: str
    n_below: int
    n_designs: int
    n_infeasible: int
    n_failed: int
    n_within_reach: int
    n_front: int
    n_stayed: int
    metrics: tuple[MetricAgreement, ...]


def agreements(results: Results) -> list[Agreement]:
    """Return for each rung of a study how it agrees with the one below."""
    found = []
    for rung in range(1, len(results.fidelities)):
        low, high = results.at(rung - 1), results.at(rung)
        both = np.flatnonzero(low.evaluated & high.evaluated)
        failed = np.isin(both, list(high.metrics.errors))
        rounds = [p for p in results.stored.promotions if p.rung == rung]
        front, front_below = high.front(rung).numbers, low.front(rung - 1).numbers
        names = [*results.goal.metrics, *(n for n in high.metrics.values if n not in results.goal.metrics)]
        found.append(
            Agreement(
                fidelity=high.fidelity,
                below=low.fidelity,
                n_below=int(low.evaluated.sum()),
                n_designs=len(both),
                n_infeasible=int((high.violation[both] > 0).sum() - failed.sum()),
                n_failed=int(failed.sum()),
                n_within_reach=rounds[-1].n_within_reach if rounds else 0,
                n_front=len(front),
                n_stayed=len(np.intersect1d(front, front_below)),
                metrics=tuple(
                    _of_metric(name, low.metrics, high.metrics, both)
                    for name in names
                    if name in low.metrics.values and name in high.metrics.values
                ),
            )
        )
    return found


def pairs(results: Results, rung: int, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the designs that have a metric on a rung and on the one below, with both values, shape (n,) each.

    Args:
        results: the study.
        rung: the upper one, from 1.
        metric: its name; both rungs give it.
    """
    low, high = results.at(rung - 1), results.at(rung)
    rows = np.flatnonzero(low.evaluated & high.evaluated)
    a, b = low.metrics.values[metric][rows], high.metrics.values[metric][rows]
    known = np.isfinite(a) & np.isfinite(b)
    return rows[known], a[known], b[known]


def _of_metric(name: str, low: MetricBatch, high: MetricBatch, rows: np.ndarray) -> MetricAgreement:
    a, b = low.values[name][rows], high.values[name][rows]
    known = np.isfinite(a) & np.isfinite(b)
    inside = np.nan
    if name in low.intervals and known.any():
        bottom, top = (end[rows][known] for end in low.intervals[name])
        inside = float(((b[known] >= bottom) & (b[known] <= top)).mean())
    a, b = a[known], b[known]
    positive = a > 0
    ratios = b[positive] / a[positive]
    quantiles = np.quantile(ratios, [0.05, 0.5, 0.95]).tolist() if len(ratios) else [np.nan] * 3
    return MetricAgreement(name, len(a), rank_correlation(a, b), quantiles[1], quantiles[0], quantiles[2], inside)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's coefficient of two columns, NaN where one is constant or they are shorter than three."""
    if len(a) < 3:
        return float("nan")
    ranks = [_mean_ranks(column) for column in (a, b)]
    x, y = (rank - rank.mean() for rank in ranks)
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else float("nan")


def _mean_ranks(column: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[inverse])
