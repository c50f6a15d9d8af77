"""What the stages of a cascade answer, query by query: from a log, or made from a parametric profile.

A log has a row per query and stage: ``query, stage, score, correct`` and, where known, ``tokens`` (of the answer) and
``test_1, test_2, ...`` (outcomes 0 or 1 of checks that the stage wrote for its own answer: a self-test). Scores are
confidences from 0 to 1; every query has every stage.

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
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any, Final

import numpy as np

from dse.acceptance import read_rows
from dse.canonical import content_hash
from dse.errors import TableError, UserError

N_QUERIES: Final = 2048
_quantile: Final = NormalDist().inv_cdf
_NEEDED: Final = ("query", "stage", "score", "correct")


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

    Raises:
        UserError: shapes that do not fit, a score or a credit outside 0..1, no query.
    """

    stages: tuple[str, ...]
    score: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray | None = None
    tests: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))
    source: str = ""

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

    @property
    def n_tests(self) -> int:
        """Self-tests that every answer has outcomes of."""
        return int(self.tests.shape[2])

    def scores(self, stage: int, n_tests: int) -> np.ndarray:
        """Return what a stage is routed by, shape (q,): confidence, or the share of its first self-tests that pass."""
        return self.tests[:, stage, :n_tests].mean(axis=1) if n_tests else self.score[:, stage]

    def of(self, stages: Sequence[str]) -> CascadeTable:
        """Return the columns of some stages, in their order."""
        at = [self.stages.index(s) for s in stages]
        tokens = None if self.tokens is None else self.tokens[:, at]
        return CascadeTable(
            tuple(stages), self.score[:, at], self.correct[:, at], tokens, self.tests[:, at], self.source
        )

    def rows(self, which: np.ndarray) -> CascadeTable:
        """Return some queries."""
        tokens = None if self.tokens is None else self.tokens[which]
        return CascadeTable(self.stages, self.score[which], self.correct[which], tokens, self.tests[which], self.source)

    @classmethod
    def of_log(cls, path: str | Path) -> CascadeTable:
        """Return the table of a .csv or .jsonl log.

        Raises:
            TableError: a file that cannot be read, a row without a needed column, a score that is missing, not finite
                or outside 0..1, a query that lacks a stage or has one twice.
        """
        found: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
        n_tests: int | None = None
        for where, row in read_rows(path, _NEEDED):
            names = sorted((n for n in row if str(n).startswith("test_")), key=lambda n: (len(n), n))
            tests = [_number(row[n], n, where, 1.0) for n in names if row[n] not in (None, "")]
            n_tests = len(tests) if n_tests is None else min(n_tests, len(tests))
            tokens = row.get("tokens")
            length = math.nan if tokens in (None, "") else _number(tokens, "tokens", where, math.inf)
            main = [_number(row["score"], "score", where, 1.0), _number(row["correct"], "correct", where, 1.0), length]
            query, stage = str(row["query"]), str(row["stage"])
            if stage in found.setdefault(query, {}):
                raise TableError(f"{where}: query {query!r} has stage {stage!r} twice")
            found[query][stage] = (main, tests)
        stages = tuple(dict.fromkeys(stage for one in found.values() for stage in one))
        for query, one in found.items():
            if missing := [s for s in stages if s not in one]:
                raise TableError(f"{path}: query {query!r} has no row of {', '.join(missing)}")
        main_part = np.array([[one[s][0] for s in stages] for one in found.values()])
        tests_part = np.array([[one[s][1][: n_tests or 0] for s in stages] for one in found.values()], dtype=np.float64)
        lengths = main_part[:, :, 2]
        if np.isnan(lengths).any() and not np.isnan(lengths).all():
            raise TableError(f"{path}: tokens are missing in some rows", "give them in all rows or in none")
        tokens_part = None if np.isnan(lengths).any() else lengths
        shape = (len(found), len(stages), n_tests or 0)
        return cls(stages, main_part[:, :, 0], main_part[:, :, 1], tokens_part, tests_part.reshape(shape), str(path))

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
        }  # fmt: skip


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
    """

    stages: Mapping[str, StageProfile]
    correlation: float = 0.5
    n_tests: int = 8

    def __post_init__(self) -> None:
        if not self.stages or not 0 <= self.correlation < 1 or not 0 <= self.n_tests <= 64:
            raise UserError(f"cascade profile: {len(self.stages)} stages, correlation={self.correlation} cannot be")

    def table(self) -> CascadeTable:
        """Return the queries that the profile stands for."""
        k, m = len(self.stages), self.n_tests
        rng, profiles = np.random.default_rng(0), list(self.stages.values())
        accuracy = np.array([p.accuracy for p in profiles])
        every = np.ones(N_QUERIES, dtype=bool)
        common = _normal(_levels(rng, every, 1))
        own = _normal(_levels(rng, every, k))
        hard = math.sqrt(self.correlation) * common + math.sqrt(1 - self.correlation) * own
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
        return {"profile": stages, "correlation": self.correlation, "n_tests": self.n_tests}


def cascade_from_json(document: Mapping[str, Any]) -> CascadeTable | CascadeProfile:
    """Return the table or profile that ``to_json`` described."""
    if "profile" in document:
        stages = {role: StageProfile(**p) for role, p in document["profile"].items()}
        return CascadeProfile(stages, document["correlation"], document["n_tests"])
    tokens = document["tokens"]
    score = np.array(document["score"], dtype=np.float64)
    tests = np.array(document["tests"], dtype=np.float64).reshape(*score.shape, -1)
    return CascadeTable(
        tuple(document["stages"]), score, np.array(document["correct"], dtype=np.float64),
        None if tokens is None else np.array(tokens, dtype=np.float64), tests, document["source"],
    )  # fmt: skip


def _levels(rng: np.random.Generator, group: np.ndarray, columns: int) -> np.ndarray:
    """Return numbers in (0, 1) for the members of a group, each of as many levels once per column, in random order."""
    n = int(group.sum())
    return rng.permuted(np.tile((np.arange(n) + 0.5) / max(n, 1), (columns, 1)), axis=1).T


def _normal(levels: np.ndarray) -> np.ndarray:
    """Return the normal quantiles of levels."""
    values, which = np.unique(levels, return_inverse=True)
    return np.array([_quantile(v) for v in values.tolist()])[which].reshape(levels.shape)


def _number(value: object, name: str, where: str, most: float) -> float:
    words = {"true": 1.0, "false": 0.0}
    try:
        number = words.get(str(value).lower(), math.nan)
        number = float(str(value)) if math.isnan(number) else number
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and 0 <= number <= most):
        hint = "map scores to 0..1 first, keeping their order" if name == "score" else ""
        raise TableError(f"{where}: {name}={value!r} is not a number from 0 to {most:g}", hint)
    return number
