"""Cascades in closed form: who answers, how well, after how long, query by query and then over all queries.

Stage k keeps its answer to a query where its score reaches its threshold, the last one always. With a_k the chance of
that

    reach_1 = 1,  reach_{k+1} = reach_k (1 - a_k),  stop_k = reach_k a_k                       (the stop_k add up to 1)
    E[cost] = sum_k E[reach_k cost_k],   accuracy = sum_k E[reach_k P(stage k stops and is right)]

a recursion over stages, query by query, so that hard queries stay hard in every stage; the mean over queries comes
last. A self-test is paid wherever its stage is reached. Percentiles are those of the mixture: a query that stops at k
took the sum of the times of stages 1 ... k, with weight stop_k; means of stages have none.

Several solutions. A stage that writes s answers runs the same checks on each and goes on with the best score, the
first of equal ones; that score meets the threshold.

Compression. A table tells what the uncompressed stages answer, and maybe what a stage answers once it is compressed
(:class:`~dse.cascades.Rerun`). Where a stage was asked again at losses d_1 < d_2 < ..., what it answers at a loss d
between two of them is a mixture of both runs, by weights linear in sqrt(d): an answer or a score changes where the
perturbation of the log-odds, whose standard deviation goes with sqrt(2 d) (:mod:`costmodels.speculation`), exceeds its
margin. Query by query, so that what fails together in the log fails together here.

Where it was not, or beyond the last run: of a stage whose accuracy falls to a share r (``accuracy_ratio`` of its own
quality, over that of the last run), an answer that was right stays so with probability r, and keeps its score;
otherwise it becomes a wrong one and scores as the stage's wrong answers do (F: the share of them at or above the
threshold). So, for one solution,

    P(keep) = 1[s >= t] for answers that were wrong,  r 1[s >= t] + (1 - r) F for those that were right
    P(keep and right) = r 1[s >= t]

and for several, whose flips are independent given the query,

    P(keep) = 1 - prod_j (1 - P(keep_j)),   P(keep and right) = sum_j r 1[s_j >= t] prod_{i != j} P(i scores below j)

Flips of different stages are taken to be independent given the query. The stage's escalation, accuracy and cost are
thus functions of its bits and pruning; with r = 1 nothing changes. A loss has an interval, and so has r: their ends
give the ends of all that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dse.cascades import CascadeTable
from dse.errors import UserError


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


def route(
    table: CascadeTable,
    threshold: np.ndarray,
    n_tests: np.ndarray,
    kept_ratio: np.ndarray,
    n_solutions: np.ndarray | None = None,
    loss_nats: np.ndarray | None = None,
) -> Routes:
    """Return where the queries of a table go.

    Args:
        table: its stages in the order in which they are asked; the last one answers whatever reaches it.
        threshold: of the stages before the last, shape (n, k - 1).
        n_tests: from 0 to those of the table, shape (n, k), or (n, k - 1) where the last one runs none.
        kept_ratio: share of right answers that compression leaves, shape (n, k).
        n_solutions: from 1 to those of the table, shape (n, k); 1 by default.
        loss_nats: what compression costs each stage, shape (n, k); without it, compressed runs are not looked at.

    Raises:
        UserError: thresholds, tests or ratios for another number of stages or designs, or a threshold that is none.
    """
    n, (q, k) = len(kept_ratio), table.score.shape
    _check_shapes(table, n, threshold, n_tests, kept_ratio, n_solutions, loss_nats)
    reach, stop, right = (np.empty((n, q, k)) for _ in range(3))
    left = np.ones((n, q))
    tests = np.zeros((n, k), dtype=np.int64)
    tests[:, : n_tests.shape[1]] = n_tests
    several = np.ones((n, k), dtype=np.int64) if n_solutions is None else n_solutions.astype(np.int64)
    for stage in range(k):
        asked = np.column_stack([tests[:, stage], several[:, stage]])
        least = np.full(n, -np.inf) if stage == k - 1 else threshold[:, stage]
        loss = None if loss_nats is None else loss_nats[:, stage]
        keeps, credit = answers(table, stage, asked, least, np.minimum(kept_ratio[:, stage], 1.0), loss)
        reach[:, :, stage], stop[:, :, stage], right[:, :, stage] = left, left * keeps, left * credit
        left = left * (1.0 - keeps)
    return Routes(reach, stop, right)


def _check_shapes(table: CascadeTable, n: int, threshold: np.ndarray, n_tests: np.ndarray, *whole: Any) -> None:
    k = len(table.stages)
    if threshold.shape != (n, k - 1) or np.isnan(threshold).any():
        raise UserError(
            f"cascade: thresholds {threshold.shape} of {n} design(s) with the stages {', '.join(table.stages)}",
            f"a number for each stage before the last, shape ({n}, {k - 1})",
        )
    shapes = [one.shape for one in whole if one is not None]
    if n_tests.shape not in ((n, k), (n, k - 1)) or any(shape != (n, k) for shape in shapes):
        raise UserError(f"cascade: tests {n_tests.shape}, ratios and losses {shapes} of {n} design(s), {k} stage(s)")


def answers(
    table: CascadeTable,
    stage: int,
    asked: np.ndarray,
    threshold: np.ndarray,
    kept_ratio: np.ndarray,
    loss_nats: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a compressed stage does with each query that it is asked.

    Args:
        table: what is known of it.
        stage: its column.
        asked: self-tests and solutions, shape (n, 2).
        threshold: score from which an answer is kept, shape (n,).
        kept_ratio: share of right answers that compression leaves, shape (n,).
        loss_nats: what compression costs it, shape (n,); without it compressed runs are not looked at.

    Returns:
        Chances that it keeps its answer, and that it does and is right, shape (n, q) each.
    """
    n, q = len(threshold), len(table.score)
    losses, runs = table.runs(stage)
    if loss_nats is None or len(runs) == 1:
        weights = np.zeros((n, len(runs)))
        weights[:, 0] = 1.0
        left = kept_ratio
    else:
        at = np.sqrt(np.clip(loss_nats, 0.0, losses[-1]))
        knots = np.sqrt(losses)
        weights = np.stack([np.interp(at, knots, one) for one in np.eye(len(runs))], axis=1)
        whole = runs[0].correct.mean()
        last = runs[-1].correct.mean() / whole if whole > 0 else 1.0
        left = np.where(loss_nats > losses[-1], np.minimum(kept_ratio / max(last, 1e-12), 1.0), 1.0)
    keeps, right = np.zeros((n, q)), np.zeros((n, q))
    for number, run in enumerate(runs):
        for tests, several in dict.fromkeys(map(tuple, asked.tolist())):
            rows = np.flatnonzero((asked == (tests, several)).all(axis=1) & (weights[:, number] > 0))
            if len(rows):
                found = _best_of(run, tests, several, threshold[rows], left[rows])
                for into, part in zip((keeps, right), found, strict=True):
                    into[rows] += weights[rows, number, None] * part
    return keeps, right


def _best_of(
    run: CascadeTable, tests: int, several: int, threshold: np.ndarray, kept_ratio: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return :func:`answers` of one run of one stage for designs with as many tests and solutions, (n, q) each."""
    solutions = run.solutions[:several]
    scores = [one.scores(0, tests) for one in solutions]
    worth = [one.correct[:, 0] for one in solutions]
    below = _below(np.concatenate(scores), 1.0 - np.concatenate(worth))
    t, r = threshold[:, None], kept_ratio[:, None]
    passes = [(score >= t).astype(np.float64) for score in scores]
    flips = [credit * (1.0 - r) for credit in worth]
    as_wrong = 1.0 - below(threshold, "left")[:, None]
    fails = [1.0 - (p + flip * (as_wrong - p)) for p, flip in zip(passes, flips, strict=True)]
    right = np.zeros(passes[0].shape)
    for j, (score, credit) in enumerate(zip(scores, worth, strict=True)):
        part = credit * r * passes[j]
        for i, flip in enumerate(flips):
            if i != j:
                # Of equal scores the first solution is taken.
                loses = (scores[i] < score) | ((scores[i] == score) & (i > j))
                part = part * ((1.0 - flip) * loses + flip * below(score, "right" if i > j else "left"))
        right += part
    return 1.0 - np.prod(fails, axis=0), right


def _below(scores: np.ndarray, weights: np.ndarray) -> Callable[[np.ndarray, Literal["left", "right"]], np.ndarray]:
    """Return the share of wrong answers below a score ("left"), or up to it ("right"); of all, where none is wrong."""
    order = np.argsort(scores, kind="stable")
    weights = weights if weights.sum() > 0 else np.ones(len(weights))
    filled = np.concatenate([[0.0], np.cumsum(weights[order])])
    filled /= filled[-1]
    ordered = scores[order]
    return lambda at, side: filled[np.searchsorted(ordered, at, side)]


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
