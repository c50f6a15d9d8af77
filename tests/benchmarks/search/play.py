"""Runs one arm on one space through the study's own loop, in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dse import catalogue
from dse.evidence import Explain
from dse.hypervolume import hypervolume
from dse.loop import Batch, Loop
from dse.metrics import MetricBatch
from dse.objectives import Goal
from dse.pareto import first_front
from dse.problem import Problem
from dse.protocols import Chunk, History, Proposals, Proposer
from dse.space import BoundSpace

MARGIN_RATIO = 0.1
Told = tuple[Explain | None, Problem | None]


class Searchable(Protocol):
    """A space with a rule from codes to metrics."""

    name: str
    space: BoundSpace
    goal: Goal

    def columns(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of rows of codes."""
        ...


@dataclass
class InMemory:
    """An executor and a journal that keep nothing but what they were given."""

    target: Searchable
    name: str = "local"
    waiting: list[np.ndarray] = field(default_factory=list)

    def submit(self, codes: np.ndarray) -> int:
        self.waiting.append(codes)
        return len(self.waiting) - 1

    def collect(self, ticket: int) -> Iterator[Chunk]:
        codes = self.waiting[ticket]
        yield Chunk(0, [MetricBatch(self.target.columns(codes), len(codes))])

    def close(self) -> None:
        return None

    def proposed(self, batch: Batch) -> None:
        del batch

    def evaluated(self, batch: Batch, start: int, groups: Sequence[MetricBatch], *, is_last: bool) -> None:
        del batch, start, groups, is_last


@dataclass
class Started:
    """A proposer whose first designs are given, so that all arms start alike; counts the time it takes."""

    inner: Proposer
    start: np.ndarray
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def window(self) -> int:
        return self.inner.window

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        done = history.n_total + len(history.pending_codes)
        if done < len(self.start):
            return Proposals(self.start[done : done + k])
        began = time.process_time()
        proposals = self.inner.propose(history, k, rng)
        self.seconds += time.process_time() - began
        return proposals


@dataclass(frozen=True)
class Run:
    """What an arm found.

    Attributes:
        objectives: shape (n, m); violation: shape (n,), in the order they were paid for.
        n_duplicates: proposals that were known already (not paid for).
        ms_per_design: CPU time of the proposer.
    """

    objectives: np.ndarray
    violation: np.ndarray
    n_duplicates: int
    ms_per_design: float


def play(target: Searchable, arm: str, seed: int, budget: int, ask_size: int, n_start: int) -> Run:
    """Return what an arm finds with ``budget`` paid evaluations, ``n_start`` of which are the same for all arms."""
    start = target.space.sample(4 * n_start, np.random.default_rng([seed, 0x57A27]))
    start = start[np.sort(np.unique(start, axis=0, return_index=True)[1])][:n_start]
    return play_from(target, catalogue.proposer(arm), seed, budget, ask_size, start)


def play_from(
    target: Searchable,
    arm: Proposer,
    seed: int,
    budget: int,
    ask_size: int,
    start: np.ndarray,
    evidence: Told = (None, None),
) -> Run:
    """Return what an arm finds with ``budget`` paid evaluations, the first of which are given.

    Args:
        target: what is searched.
        arm: who proposes.
        seed: of everything random.
        budget: designs paid for, the start included.
        ask_size: designs asked for at a time.
        start: codes of the first designs.
        evidence: who explains designs, and the problem, where there are any.
    """
    proposer, n_start = Started(arm, start), len(start)
    memory = InMemory(target)
    loop = Loop(target.space, target.goal, [proposer], memory, memory, seed=seed, ask_size=ask_size, lag=1)
    loop.record.evidence.explain, loop.record.evidence.problem = evidence
    # The start in a run of its own, so that its last batch is not filled up beyond it.
    *_, progress = [*loop.run(n_start), *loop.run(budget)]
    n = loop.record.n
    milliseconds = 1000 * proposer.seconds / max(n - n_start, 1)
    return Run(loop.record.objectives().copy(), loop.record.violation().copy(), progress.n_duplicates, milliseconds)


@dataclass(frozen=True)
class Yard:
    """What found fronts are measured against: the true front, or the best one known.

    Attributes:
        ideal, nadir: best and worst value of each objective on it, shape (m,).
        volume: its hypervolume.
    """

    ideal: np.ndarray
    nadir: np.ndarray
    volume: float

    @classmethod
    def of(cls, points: np.ndarray) -> Yard:
        """Return the measure for the front of ``points``."""
        front = points[first_front(points)]
        ideal, nadir = front.min(axis=0), front.max(axis=0)
        yard = cls(ideal, nadir, 1.0)
        return cls(ideal, nadir, yard.ratio(front, np.zeros(len(front))))

    def ratio(self, objectives: np.ndarray, violation: np.ndarray) -> float:
        """Return the hypervolume of the feasible designs as a share of that of the front.

        Objectives are scaled to 0 at the ideal point and 1 at the nadir; the reference point is at 1.1.
        """
        points = objectives[violation == 0]
        points = (points - self.ideal) / np.where(self.nadir > self.ideal, self.nadir - self.ideal, 1.0)
        points = points[(points < 1 + MARGIN_RATIO).all(axis=1)]
        if not len(points):
            return 0.0
        return hypervolume(points[first_front(points)], np.full(points.shape[1], 1 + MARGIN_RATIO)) / self.volume
