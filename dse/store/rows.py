"""What listings and loops get back: a study, its evaluators, all its designs as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dse.metrics import MetricBatch


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A study as listings show it.

    ``lease`` is "held" by a living coordinator, "lost" where one ended without giving it back, else "".
    """

    id: int
    name: str
    state: str
    lease: str
    stop_reason: str
    target: int
    n_designs: int
    created_s: float
    updated_s: float
    asked: int
    spec: Mapping[str, Any]
    reference: np.ndarray | None

    @property
    def objectives(self) -> list[str]:
        """What it optimises, as text; "damaged" where the definition cannot be read."""
        return self._goal("objectives") or ["damaged"]

    @property
    def constraints(self) -> list[str]:
        """What bounds it, as text."""
        return self._goal("constraints")

    def _goal(self, part: str) -> list[str]:
        goal = self.spec.get("goal") if isinstance(self.spec, Mapping) else None
        texts = goal.get(part) if isinstance(goal, Mapping) else None
        return [str(text) for text in texts] if isinstance(texts, list) else []


@dataclass(frozen=True, slots=True)
class EvaluatorRow:
    """A cost model of a study, and the rung that it stands on."""

    id: int
    group: str
    fidelity: str
    cost_model: str
    version: str
    fingerprint: str
    rung: int = 0


@dataclass(frozen=True, slots=True)
class Promotion:
    """Designs chosen for a rung in one round.

    Attributes:
        number: of the round, over all rungs.
        rung: where they go.
        n_below: designs that were finished on the rung below.
        n_within_reach: designs there that might still have been on the front, these included.
        designs: their numbers, in the order of the choice.
        is_done: whether all of them are evaluated.
    """

    number: int
    rung: int
    n_below: int
    n_within_reach: int
    designs: np.ndarray
    is_done: bool


@dataclass(frozen=True, slots=True)
class Answers:
    """What one evaluator has answered.

    Attributes:
        metrics: of all designs, NaN where it has not.
        there: where it has, boolean, shape (n,).
    """

    metrics: MetricBatch
    there: np.ndarray


@dataclass
class StoredStudy:
    """All designs of a study, as arrays in proposal order.

    Attributes:
        codes: shape (n, p).
        hashes: content hashes.
        batches: batch number of each design, shape (n,).
        marks: proposer's mark or -1, shape (n,).
        parents_text: numbers of the designs each was derived from, "3,17", None where there are none.
        attempts: evaluations of each design that began and were lost with their process, shape (n,).
        last_errors: design -> what the last lost attempt said.
        proposers: batch number -> proposer.
        n_batches: batches proposed so far.
        n_proposed_by_batch: designs proposed in each batch, duplicates included.
        created_s: when each batch was proposed, seconds since 1970, shape (n_batches,).
        base: evaluator id -> its answers, of those that every design is evaluated with.
        upper: evaluator id -> its answers, of those on the rungs above; always of all designs from number 0 on.
        promotions: rounds of promotion, in order.
    """

    codes: np.ndarray
    hashes: list[bytes]
    batches: np.ndarray
    marks: np.ndarray
    parents_text: list[str | None]
    attempts: np.ndarray
    last_errors: dict[int, str]
    proposers: dict[int, str]
    n_batches: int
    n_proposed_by_batch: list[int]
    created_s: np.ndarray
    base: dict[int, Answers]
    upper: dict[int, Answers]
    promotions: list[Promotion]

    @cached_property
    def parents(self) -> list[tuple[int, ...]]:
        """Numbers of the designs that each was derived from."""
        return [tuple(map(int, text.split(","))) if text else () for text in self.parents_text]

    @cached_property
    def answers(self) -> dict[int, Answers]:
        """Evaluator id -> its answers, on all rungs."""
        return self.base | self.upper

    @property
    def metrics(self) -> list[MetricBatch]:
        """One batch per evaluator that every design is evaluated with, NaN where a design has no evaluation yet."""
        return [answers.metrics for answers in self.base.values()]

    @cached_property
    def evaluated(self) -> np.ndarray:
        """Whether all of these have answered, shape (n,)."""
        there = [answers.there for answers in self.base.values()]
        return np.logical_and.reduce(there) if there else np.ones(len(self.codes), dtype=bool)

    @property
    def n_settled(self) -> int:
        """How many designs from the first on stand in batches that are evaluated whole.

        What ``base`` says of them changes no more; they may still go up a rung.
        """
        waiting = np.flatnonzero(~self.evaluated)
        if not len(waiting):
            return len(self.codes)
        return int(np.searchsorted(self.batches, self.batches[waiting[0]]))

    def continued(self, tail: StoredStudy) -> StoredStudy:
        """Return this study with everything after its settled designs replaced by what was loaded from there on."""
        first = self.n_settled
        kept = int(self.batches[first - 1]) + 1 if first else 0  # empty batches behind it come with the tail
        n = first + len(tail.codes)
        rows = np.arange(n)

        def joined(old: Answers, new: Answers) -> Answers:
            kept_rows = old.metrics.take(slice(first))
            metrics = MetricBatch.scatter([(rows[:first], kept_rows), (rows[first:], new.metrics)], n)
            return Answers(metrics, np.concatenate([old.there[:first], new.there]))

        return StoredStudy(
            codes=np.concatenate([self.codes[:first], tail.codes]),
            hashes=self.hashes[:first] + tail.hashes,
            batches=np.concatenate([self.batches[:first], tail.batches]),
            marks=np.concatenate([self.marks[:first], tail.marks]),
            parents_text=self.parents_text[:first] + tail.parents_text,
            attempts=np.concatenate([self.attempts[:first], tail.attempts]),
            last_errors={k: v for k, v in self.last_errors.items() if k < first}
            | {first + k: v for k, v in tail.last_errors.items()},
            proposers={b: p for b, p in self.proposers.items() if b < kept} | tail.proposers,
            n_batches=kept + tail.n_batches,
            n_proposed_by_batch=self.n_proposed_by_batch[:kept] + tail.n_proposed_by_batch,
            created_s=np.concatenate([self.created_s[:kept], tail.created_s]),
            base={e: joined(self.base[e], new) for e, new in tail.base.items()},
            upper=tail.upper,
            promotions=tail.promotions,
        )
