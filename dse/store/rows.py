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
        metrics: one batch per evaluator of rung 0, NaN where a design has no evaluation yet.
        evaluated: whether all of these have answered, shape (n,).
        answers: evaluator id -> its answers, on all rungs.
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
    metrics: list[MetricBatch]
    evaluated: np.ndarray
    answers: dict[int, Answers]
    promotions: list[Promotion]

    @cached_property
    def parents(self) -> list[tuple[int, ...]]:
        """Numbers of the designs that each was derived from."""
        return [tuple(map(int, text.split(","))) if text else () for text in self.parents_text]
