"""What the stages of a cascade answer, query by query: from a log, or made from a parametric profile.

Logs are read by :mod:`dse.cascadelog`. Scores are confidences from 0 to 1; every query has every stage.

A profile says instead of each stage how often it is right (``accuracy``), how well its confidence ranks right above
wrong answers (``auroc``), and how often a self-test passes a right and a wrong answer. It becomes a table of 2,048
queries by a Latin hypercube with a fixed seed: stage k is right where z_k < Phi^-1(accuracy), z_k normal with
correlation ``correlation`` between stages (hard queries are hard for all); a latent score is normal around mu for
right and around 0 for wrong answers with mu = sqrt(2) Phi^-1(auroc) (binormal: Hanley and McNeil, Radiology 143,
1982); the score is the chance of being right that follows from it by Bayes' rule, so that a threshold reads as a
demanded probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np

from dse.canonical import content_hash
from dse.errors import UserError

N_QUERIES: Final = 2048
_quantile: Final = NormalDist().inv_cdf


@dataclass(frozen=True, eq=False)
class CascadeTable:
    """Answers of q queries by k stages.

    Attributes:
        stages: roles, in the order in which they are asked.
        score: confidence, shape (q, k), 0..1.
        correct: 1 where the answer is right (or a share of credit), shape (q, k).
        tokens: output tokens, shape (q, k); None where every answer has the scenario's length.
        tests: outcomes of self-tests, shape (q, k, m).
        source: where it comes from.
        further: second, third, ... answers of the same stages to the same queries.
        reruns: what a stage answers once it is compressed, by what that costs it.

    Raises:
        UserError: shapes that do not fit, a score or a credit outside 0..1, no query, a loss that is none.
    """

    stages: tuple[str, ...]
    score: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray | None = None
    tests: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))
    source: str = ""
    further: tuple[CascadeTable, ...] = ()
    reruns: tuple[Rerun, ...] = ()

    def __post_init__(self) -> None:
        shape = np.shape(self.score)
        if len(shape) != 2 or shape[1] != len(self.stages) or np.shape(self.correct) != shape or not shape[0]:
            raise UserError(
                f"cascade: scores {shape} and credits {np.shape(self.correct)} of {len(self.stages)} stages"
            )
        if len(set(self.stages)) < len(self.stages):
            raise UserError(f"cascade: {self.stages} names a stage twice")
        tests = self.tests if self.tests.size else np.zeros((*shape, 0))
        object.__setattr__(self, "tests", tests)
        if tests.shape[:2] != shape or (self.tokens is not None and self.tokens.shape != shape):
            raise UserError(f"cascade: tests {tests.shape} and tokens do not fit scores {shape}")
        for name, values in (("score", self.score), ("correct", self.correct), ("test", tests)):
            if not (np.isfinite(values).all() and (values >= 0).all() and (values <= 1).all()):
                raise UserError(f"cascade: a {name} is missing, not finite or outside 0..1")
        if self.tokens is not None and not (np.isfinite(self.tokens).all() and (self.tokens >= 1).all()):
            raise UserError("cascade: an answer of less than one token, or of no number of them")
        for one in self.further:
            if one.stages != self.stages or one.score.shape != shape or one.tests.shape != tests.shape:
                raise UserError("cascade: further solutions of other stages, queries or self-tests than the first")
        for rerun in self.reruns:
            role, n = rerun.answers.stages[0], 1 + len(rerun.answers.further)
            if rerun.answers.stages != (role,) or role not in self.stages or len(rerun.answers.score) != shape[0]:
                raise UserError(f"cascade: a compressed run of {rerun.answers.stages} on other stages or queries")
            if rerun.answers.n_tests != self.n_tests or n != self.n_solutions:
                raise UserError(
                    f"cascade: {role} at {rerun.loss_nats:g} nats has {rerun.answers.n_tests} self-tests and {n} "
                    f"solutions, uncompressed {self.n_tests} and {self.n_solutions}"
                )

    @property
    def n_tests(self) -> int:
        """Self-tests that every answer has outcomes of."""
        return int(self.tests.shape[2])

    @property
    def n_solutions(self) -> int:
        """Answers of each stage to each query."""
        return 1 + len(self.further)

    @property
    def solutions(self) -> tuple[CascadeTable, ...]:
        """The first, second, ... answers."""
        return (self, *self.further)

    def runs(self, stage: int) -> tuple[np.ndarray, list[CascadeTable]]:
        """Return the losses at which a stage was asked, ascending from 0, and what it answered, tables of one stage."""
        role = self.stages[stage]
        own = sorted((r for r in self.reruns if r.answers.stages == (role,)), key=lambda r: r.loss_nats)
        return np.array([0.0, *(r.loss_nats for r in own)]), [self.of([role]), *(r.answers for r in own)]

    def scores(self, stage: int, n_tests: int) -> np.ndarray:
        """Return what a stage is routed by, shape (q,): confidence, or the share of its first self-tests that pass."""
        return self.tests[:, stage, :n_tests].mean(axis=1) if n_tests else self.score[:, stage]

    def of(self, stages: Sequence[str]) -> CascadeTable:
        """Return the columns of some stages, in their order."""
        at = [self.stages.index(s) for s in stages]
        tokens = None if self.tokens is None else self.tokens[:, at]
        return CascadeTable(
            tuple(stages), self.score[:, at], self.correct[:, at], tokens, self.tests[:, at], self.source,
            tuple(one.of(stages) for one in self.further),
            tuple(r for r in self.reruns if r.answers.stages[0] in stages),
        )  # fmt: skip

    def rows(self, which: np.ndarray) -> CascadeTable:
        """Return some queries."""
        tokens = None if self.tokens is None else self.tokens[which]
        return CascadeTable(
            self.stages, self.score[which], self.correct[which], tokens, self.tests[which], self.source,
            tuple(one.rows(which) for one in self.further),
            tuple(Rerun(r.loss_nats, r.answers.rows(which)) for r in self.reruns),
        )  # fmt: skip

    @classmethod
    def of_log(cls, path: str | Path) -> CascadeTable:
        """Return the table of a .csv or .jsonl log.

        Raises:
            TableError: a file that cannot be read, a row without a needed column, a score that is missing, not finite
                or outside 0..1, a query that lacks a stage or has one twice.
        """
        from dse.cascadelog import read_log

        return read_log(path)

    def table(self) -> CascadeTable:
        """Return itself."""
        return self

    @cached_property
    def content_hash(self) -> str:
        """Hash of its content."""
        return content_hash(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "stages": list(self.stages), "score": self.score.tolist(), "correct": self.correct.tolist(),
            "tokens": None if self.tokens is None else self.tokens.tolist(), "tests": self.tests.tolist(),
            "source": self.source,
            **({"further": [one.to_json() for one in self.further]} if self.further else {}),
            **({"reruns": [[r.loss_nats, r.answers.to_json()] for r in self.reruns]} if self.reruns else {}),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Rerun:
    """What one compressed stage answers.

    Attributes:
        loss_nats: what compression costs it, KL to the uncompressed stage's output per token, above 0.
        answers: a table of that stage alone, the queries in the order of the uncompressed ones.
    """

    loss_nats: float
    answers: CascadeTable

    def __post_init__(self) -> None:
        if not 0 < self.loss_nats < math.inf:
            raise UserError(f"cascade: a compressed run at a loss of {self.loss_nats} nats", "a number above 0")


@dataclass(frozen=True)
class StageProfile:
    """How good one stage is.

    Attributes:
        accuracy: share of right answers of the uncompressed model, between 0 and 1.
        auroc: chance that a right answer scores above a wrong one, from 0.5 up to below 1.
        test_right, test_wrong: chance that a self-test passes a right, and a wrong answer.
        tokens: output tokens of an answer; 0 for the scenario's.
    """

    accuracy: float
    auroc: float = 0.5
    test_right: float = 0.5
    test_wrong: float = 0.5
    tokens: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.accuracy < 1 and 0.5 <= self.auroc < 1 and self.tokens >= 0):
            raise UserError(
                f"stage profile: accuracy={self.accuracy}, auroc={self.auroc} cannot be",
                "0 < accuracy < 1 and 0.5 <= auroc < 1",
            )
        if not (0 <= self.test_right <= 1 and 0 <= self.test_wrong <= 1):
            raise UserError(f"stage profile: tests pass at rates {self.test_right} and {self.test_wrong}")


@dataclass(frozen=True)
class CascadeProfile:
    """A cascade by the figures of its stages.

    Attributes:
        stages: role -> profile, in the order in which they are asked.
        correlation: of the difficulty of a query for different stages, from 0 to below 1.
        n_tests: self-tests to draw outcomes of.
        n_solutions: answers of each stage to draw.
        solution_correlation: of the difficulty of a query for different answers of one stage, likewise.
    """

    stages: Mapping[str, StageProfile]
    correlation: float = 0.5
    n_tests: int = 8
    n_solutions: int = 1
    solution_correlation: float = 0.7

    def __post_init__(self) -> None:
        if not self.stages or not 0 <= self.correlation < 1 or not 0 <= self.n_tests <= 64:
            raise UserError(f"cascade profile: {len(self.stages)} stages, correlation={self.correlation} cannot be")
        if not 1 <= self.n_solutions <= 16 or not 0 <= self.solution_correlation < 1:
            raise UserError(
                f"cascade profile: n_solutions={self.n_solutions}, "
                f"solution_correlation={self.solution_correlation} cannot be",
                "1 to 16 solutions, a correlation from 0 to below 1",
            )

    def table(self) -> CascadeTable:
        """Return the queries that the profile stands for."""
        k, rng = len(self.stages), np.random.default_rng(0)
        every = np.ones(N_QUERIES, dtype=bool)
        common = _normal(_levels(rng, every, 1))
        own = _normal(_levels(rng, every, k))
        hard = math.sqrt(self.correlation) * common + math.sqrt(1 - self.correlation) * own
        if self.n_solutions == 1:
            return self._answers(rng, hard)
        shared, rest = math.sqrt(self.solution_correlation), math.sqrt(1 - self.solution_correlation)
        found = [
            self._answers(rng, shared * hard + rest * _normal(_levels(rng, every, k))) for _ in range(self.n_solutions)
        ]
        return replace(found[0], further=tuple(found[1:]))

    def _answers(self, rng: np.random.Generator, hard: np.ndarray) -> CascadeTable:
        """Return one answer of each stage to each query, from how hard the query is, normal, shape (q, k)."""
        k, m, profiles = len(self.stages), self.n_tests, list(self.stages.values())
        accuracy = np.array([p.accuracy for p in profiles])
        correct = hard < [_quantile(a) for a in accuracy]
        # Levels among right and among wrong answers apart: shares of either are then exact, and so is the ranking.
        noise, tests = np.empty((N_QUERIES, k)), np.empty((N_QUERIES, k, m))
        for stage, profile in enumerate(profiles):
            for group, passes in ((correct[:, stage], profile.test_right), (~correct[:, stage], profile.test_wrong)):
                noise[group, stage] = _normal(_levels(rng, group, 1))[:, 0]
                tests[group, stage] = _levels(rng, group, m) < passes
        mu = math.sqrt(2) * np.array([_quantile(p.auroc) for p in profiles])
        latent = np.where(correct, mu, 0.0) + noise
        odds = np.log(accuracy / (1 - accuracy)) + mu * latent - mu * mu / 2
        lengths = np.array([p.tokens for p in profiles])
        tokens = np.broadcast_to(lengths, correct.shape).copy() if (lengths > 0).all() else None
        score = 1 / (1 + np.exp(-odds))
        return CascadeTable(tuple(self.stages), score, correct.astype(np.float64), tokens, tests, "profile")

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        stages = {role: asdict(p) for role, p in self.stages.items()}
        several = {"n_solutions": self.n_solutions, "solution_correlation": self.solution_correlation}
        alone = self.n_solutions == 1
        return {
            "profile": stages, "correlation": self.correlation, "n_tests": self.n_tests, **({} if alone else several)
        }  # fmt: skip


def cascade_from_json(document: Mapping[str, Any]) -> CascadeTable | CascadeProfile:
    """Return the table or profile that ``to_json`` described."""
    if "profile" in document:
        stages = {role: StageProfile(**p) for role, p in document["profile"].items()}
        several = {name: document[name] for name in ("n_solutions", "solution_correlation") if name in document}
        return CascadeProfile(stages, document["correlation"], document["n_tests"], **several)
    tokens = document["tokens"]
    score = np.array(document["score"], dtype=np.float64)
    tests = np.array(document["tests"], dtype=np.float64).reshape(*score.shape, -1)
    further = [cascade_from_json(one) for one in document.get("further", ())]
    reruns = [(loss, cascade_from_json(one)) for loss, one in document.get("reruns", ())]
    return CascadeTable(
        tuple(document["stages"]), score, np.array(document["correct"], dtype=np.float64),
        None if tokens is None else np.array(tokens, dtype=np.float64), tests, document["source"],
        tuple(one for one in further if isinstance(one, CascadeTable)),
        tuple(Rerun(loss, one) for loss, one in reruns if isinstance(one, CascadeTable)),
    )  # fmt: skip


def _levels(rng: np.random.Generator, group: np.ndarray, columns: int) -> np.ndarray:
    """Return numbers in (0, 1) for the members of a group, each of as many levels once per column, in random order."""
    n = int(group.sum())
    return rng.permuted(np.tile((np.arange(n) + 0.5) / max(n, 1), (columns, 1)), axis=1).T


def _normal(levels: np.ndarray) -> np.ndarray:
    """Return the normal quantiles of levels."""
    values, which = np.unique(levels, return_inverse=True)
    return np.array([_quantile(v) for v in values.tolist()])[which].reshape(levels.shape)
