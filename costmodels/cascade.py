"""Cascades in closed form: who answers, how well, after how long, query by query and then over all queries.

Stage k keeps its answer to a query where its score reaches its threshold, the last one always. With a_k the chance of
that

    reach_1 = 1,  reach_{k+1} = reach_k (1 - a_k),  stop_k = reach_k a_k                       (the stop_k add up to 1)
    E[cost] = sum_k E[reach_k cost_k],   accuracy = sum_k E[reach_k P(stage k stops and is right)]

a recursion over stages, query by query, so that hard queries stay hard in every stage; the mean over queries comes
last. A self-test is paid wherever its stage is reached. Percentiles are those of the mixture: a query that stops at k
took the sum of the times of stages 1 ... k, with weight stop_k; means of stages have none.

Compression. A table tells what the uncompressed stages answer. Of a stage whose accuracy falls to a share r
(``accuracy_ratio`` of its own quality), an answer that was right stays so with probability r, and keeps its score;
otherwise it becomes a wrong one and scores as the stage's wrong answers do (F: the share of them at or above the
threshold). So

    P(keep) = 1[s >= t] for answers that were wrong,  r 1[s >= t] + (1 - r) F for those that were right
    P(keep and right) = r 1[s >= t]

Flips of different stages are taken to be independent given the query. The stage's escalation, accuracy and cost are
thus functions of its bits and pruning; with r = 1 nothing changes. A prior: r has an interval, and the ends of r give
the ends of all that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dse.cascades import CascadeTable


@dataclass(frozen=True)
class Routes:
    """Where queries go, for n designs, q queries (1 where all are alike) and k stages.

    Attributes:
        reach: chance that a stage is asked, shape (n, q, k).
        stop: chance that it answers, shape (n, q, k).
        right: chance that it answers, and rightly, shape (n, q, k).
    """

    reach: np.ndarray
    stop: np.ndarray
    right: np.ndarray

    @property
    def accuracy_ratio(self) -> np.ndarray:
        """Share of right answers, shape (n,)."""
        return np.asarray(self.right.sum(axis=2).mean(axis=1))

    @property
    def escalation_ratio(self) -> np.ndarray:
        """Share of queries that the first stage passes on, shape (n,)."""
        return np.asarray(1.0 - self.stop[:, :, 0].mean(axis=1))


def route(table: CascadeTable, threshold: np.ndarray, n_tests: np.ndarray, kept_ratio: np.ndarray) -> Routes:
    """Return where the queries of a table go.

    Args:
        table: its stages in the order in which they are asked; the last one answers whatever reaches it.
        threshold, n_tests: of the stages before the last, shape (n, k - 1); tests from 0 to those of the table.
        kept_ratio: share of right answers that compression leaves, shape (n, k).
    """
    n, (q, k) = len(kept_ratio), table.score.shape
    reach, stop, right = (np.empty((n, q, k)) for _ in range(3))
    left = np.ones((n, q))
    for stage in range(k):
        credit, r = table.correct[:, stage], kept_ratio[:, stage, None]
        if stage == k - 1:
            passes = np.ones((n, q))
        else:
            tests = n_tests[:, stage].astype(np.int64)
            scores = np.stack([table.scores(stage, m) for m in range(int(tests.max()) + 1)])
            passes = (scores[tests] >= threshold[:, stage, None]).astype(np.float64)
        wrong = 1.0 - credit
        share = wrong.sum()
        as_wrong = passes @ wrong / share if share > 0 else passes.mean(axis=1)
        keeps = passes + credit * (1.0 - r) * (as_wrong[:, None] - passes)
        reach[:, :, stage], stop[:, :, stage], right[:, :, stage] = left, left * keeps, left * credit * r * passes
        left = left * (1.0 - keeps)
    return Routes(reach, stop, right)


def mean_over_routes(routes: Routes, cost: np.ndarray) -> np.ndarray:
    """Return the expected sum of the costs of the stages asked, shape (n,), from costs (n, q or 1, k)."""
    return np.asarray((routes.reach * cost).sum(axis=2).mean(axis=1))


def quantiles(routes: Routes, cost: np.ndarray, at: Sequence[float]) -> np.ndarray:
    """Return quantiles of the summed cost over queries and routes: the smallest that holds so many, (len(at), n)."""
    total = np.cumsum(cost, axis=2)
    n = len(routes.stop)
    if total.shape[1] == 1:
        values, weights = total[:, 0], routes.stop.mean(axis=1)
    else:
        values, weights = total.reshape(n, -1), routes.stop.reshape(n, -1) / routes.stop.shape[1]
    order = np.argsort(values, axis=1, kind="stable")
    values = np.take_along_axis(values, order, axis=1)
    filled = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    # A sum of weights may miss 1 by rounding; a quantile never lies where nothing is.
    found = [np.argmax(filled >= level * filled[:, -1:] * (1 - 1e-12), axis=1) for level in at]
    return np.stack([np.take_along_axis(values, f[:, None], axis=1)[:, 0] for f in found])


def alone(n: int, kept_ratio: np.ndarray) -> Routes:
    """Return the routes of n designs whose only stage answers, where there is no table: of one query."""
    one = np.ones((n, 1, 1))
    return Routes(one, one, one * kept_ratio[:, None, None])


@dataclass(frozen=True)
class Ranking:
    """How well a score tells right from wrong answers.

    Attributes:
        auroc: chance that a right answer scores above a wrong one, ties half; NaN where all are right, or none is.
        low, high: 95 % interval.
    """

    auroc: float
    low: float
    high: float


def ranking(score: np.ndarray, correct: np.ndarray) -> Ranking:
    """Return the AUROC of a score, by ranks (Mann and Whitney), with the interval of Hanley and McNeil (1982).

    Args:
        score: shape (q,).
        correct: credits from 0.5 count as right, shape (q,).
    """
    right = correct >= 0.5
    n_right, n_wrong = int(right.sum()), int((~right).sum())
    if not n_right or not n_wrong:
        return Ranking(np.nan, np.nan, np.nan)
    values, which, counts = np.unique(score, return_inverse=True, return_counts=True)
    del values
    rank = np.cumsum(counts) - (counts - 1) / 2
    a = (rank[which][right].sum() - n_right * (n_right + 1) / 2) / (n_right * n_wrong)
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    variance = (a * (1 - a) + (n_right - 1) * (q1 - a * a) + (n_wrong - 1) * (q2 - a * a)) / (n_right * n_wrong)
    half = 1.959963984540054 * np.sqrt(max(variance, 0.0))
    return Ranking(float(a), float(max(a - half, 0.0)), float(min(a + half, 1.0)))
