"""What the stages of designs answer, and what they write for it: quality of every role, then where queries go.

How good a role is: by its quality profile where the problem has one (:mod:`costmodels.surrogate`: KL in nats per token
and share of the score that is left, measured), by published tables where it has none (:mod:`costmodels.prior`), with
the interval of either. Both give a loss d and an accuracy ratio r; :mod:`costmodels.cascade` takes d to what a stage
answered when it was asked again compressed, or r where that was not logged; :mod:`costmodels.speculation` takes d to
the acceptance of guesses.

A stage with several solutions writes them one after another behind one prompt, and its self-tests once. The last stage
keeps whatever it has: it writes self-tests only to choose among several solutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.cascade import Routes, alone, route
from costmodels.prior import PriorEvaluator
from costmodels.surrogate import SurrogateEvaluator
from dse.canonical import content_hash
from dse.cascades import CascadeTable
from dse.designs import DesignBatch
from dse.metrics import Limit, MetricBatch
from dse.policy import Policy
from dse.problem import TARGET, Problem


@dataclass(frozen=True)
class Answered:
    """Where the queries of n designs of one cascade of k stages go, and what is written for them.

    Attributes:
        quality: of every role.
        tests, solutions: that each stage writes, shape (n, k).
        limits: laws of the log.
        lengths: output tokens of all solutions of a stage, shape (n or 1, q or 1, k).
        lengths_of_one: of the first solution, shape (1, q or 1, k).
        routes: for the low end, the value and the high end of what compression leaves of each stage.
    """

    quality: Mapping[str, MetricBatch]
    tests: np.ndarray
    solutions: np.ndarray
    limits: Sequence[Limit]
    lengths: np.ndarray
    lengths_of_one: np.ndarray
    routes: Sequence[Routes]


def judge_of(problem: Problem, role: str) -> PriorEvaluator | SurrogateEvaluator:
    """Return who says how good a role is: its quality profile, or the prior where it has none."""
    return SurrogateEvaluator(problem, role) if role in problem.quality else PriorEvaluator(problem, role)


class Answering:
    """Answers of a problem's roles.

    Args:
        problem: the problem.
        roles: those that are used.
    """

    def __init__(self, problem: Problem, roles: Sequence[str]) -> None:
        self._problem = problem
        self._quality = {role: judge_of(problem, role) for role in roles}
        answers = (problem.policy or Policy()).answers
        self.table: CascadeTable | None = None if answers is None else answers.table()

    @property
    def fingerprint(self) -> str:
        """Hash of all that quality depends on."""
        own = self._quality[TARGET].fingerprint
        if not any(isinstance(one, SurrogateEvaluator) for one in self._quality.values()):
            return own
        return content_hash({role: one.fingerprint for role, one in self._quality.items()})

    def basis(self, roles: Sequence[str]) -> str:
        """Return what the quality of some roles rests on together: what that of the least known one does."""
        kinds = {one.kind if isinstance(one := self._quality[r], SurrogateEvaluator) else "prior" for r in roles}
        return next(kind for kind in ("heuristic", "prior", "surrogate") if kind in kinds)

    def answer(self, batch: DesignBatch, roles: Sequence[str]) -> Answered:
        """Return what stages answer; all designs have the cascade ``roles``."""
        n, k = len(batch), len(roles)
        quality = {role: one.evaluate(batch) for role, one in self._quality.items()}
        table = None if self.table is None else self.table.of(roles)
        tests, solutions, threshold, limits = self._asked(batch, roles)
        routes = []
        for end in range(3):
            kept = np.stack([_end(quality[r], "accuracy_ratio", end) for r in roles], axis=1)
            loss = np.stack([_end(quality[r], "quality_loss", 2 - end) for r in roles], axis=1)
            routes.append(
                alone(n, kept[:, 0]) if table is None else route(table, threshold, tests, kept, solutions, loss)
            )
        one = self._lengths(table, k)
        return Answered(quality, tests, solutions, limits, _all_lengths(table, one, solutions), one, routes)

    def _lengths(self, table: CascadeTable | None, k: int) -> np.ndarray:
        if table is None or table.tokens is None:
            return np.full((1, 1, k), float(self._problem.scenario.output_tokens))
        return table.tokens[None]

    def _asked(
        self, batch: DesignBatch, roles: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Limit]]:
        """Return self-tests and solutions (n, k), thresholds (n, k - 1), and the laws that they are under."""
        n, k = len(batch), len(roles)
        if "self_tests" not in batch:
            return np.zeros((n, k)), np.ones((n, k)), np.zeros((n, 0)), []
        tests, solutions = (
            np.stack([batch.of_role(name, r) for r in roles], axis=1).astype(np.float64)
            for name in ("self_tests", "solutions")
        )
        tests[:, -1] = np.where(solutions[:, -1] > 1, tests[:, -1], 0.0)
        threshold = np.zeros((n, 0))
        if k > 1:
            threshold = np.stack([batch.of_role("threshold", r) for r in roles[:-1]], axis=1)
        table = self.table
        most_tests, most_solutions = (0, 1) if table is None else (table.n_tests, table.n_solutions)
        whose = "nothing logged: policy.cascade" if table is None else "the cascade's table"
        limits = [
            Limit("n_self_tests", tests.max(axis=1), np.full(n, float(most_tests)),
                  f"{whose} has outcomes of {{available}} self-test(s), the design runs {{needed}}"),
            Limit("n_solutions", solutions.max(axis=1), np.full(n, float(most_solutions)),
                  f"{whose} has {{available}} solution(s) of each stage, the design writes {{needed}}"),
        ]  # fmt: skip
        return np.minimum(tests, most_tests), np.minimum(solutions, most_solutions), threshold, limits


def _end(quality: MetricBatch, name: str, end: int) -> np.ndarray:
    """Return the low end (0), the value (1) or the high end (2)."""
    return quality.values[name] if end == 1 else quality.intervals[name][end // 2]


def _all_lengths(table: CascadeTable | None, one: np.ndarray, solutions: np.ndarray) -> np.ndarray:
    """Return the tokens of all solutions of each stage, shape (n or 1, q or 1, k)."""
    if (solutions == 1).all():
        return one
    if table is None or table.tokens is None:
        return one * solutions[:, None, :]
    each = [one[0] if t.tokens is None else t.tokens for t in table.solutions]
    summed = np.cumsum(np.stack(each), axis=0)
    return np.stack([summed[solutions[:, s].astype(int) - 1, :, s] for s in range(solutions.shape[1])], axis=2)
