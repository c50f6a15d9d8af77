"""The finished designs of a study in memory: columns that grow, the front, and the views that proposers get."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np

from dse.evidence import Evidence
from dse.objectives import Goal
from dse.pareto import ParetoArchive
from dse.protocols import History
from dse.space import CODE_DTYPE, BoundSpace, row_keys

_FIRST_CAPACITY: Final = 1024


class Record:
    """All finished designs, in proposal order.

    Appending costs amortised O(1) per design plus O(front) for the archive, so a proposal costs the same at 100,000
    designs as at 1,000 for a proposer that bounds its window.

    Args:
        space: the search space.
        goal: objectives and constraints.
        seed: the study's seed.
    """

    def __init__(self, space: BoundSpace, goal: Goal, seed: int) -> None:
        self.space, self.goal, self.seed = space, goal, seed
        self.archive = ParetoArchive(goal.n_objectives)
        self.evidence = Evidence(space, goal)
        self.n = 0
        self.n_infeasible = 0
        self.n_failed = 0
        self._codes = np.empty((_FIRST_CAPACITY, space.n_parameters), dtype=CODE_DTYPE)
        self._objectives = np.empty((_FIRST_CAPACITY, goal.n_objectives))
        self._violation = np.empty(_FIRST_CAPACITY)
        self._margins = np.empty((_FIRST_CAPACITY, len(goal.constraints)))
        self._marks = np.empty(_FIRST_CAPACITY, dtype=np.int64)
        self._proposers = np.empty(_FIRST_CAPACITY, dtype=np.int64)
        self._names: dict[str, int] = {}
        self._last_own: dict[int, int] = {}
        self._rows_seen: dict[bytes, int] = {}  # row -> number of the first design that has it

    def append(
        self,
        codes: np.ndarray,
        objectives: np.ndarray,
        violation: np.ndarray,
        margins: np.ndarray,
        failed: np.ndarray,
        marks: np.ndarray,
        proposers: Sequence[tuple[str, int]],
    ) -> None:
        """Add the next designs.

        Args:
            codes: shape (n, p).
            objectives: to be minimised, NaN where there are none, shape (n, m).
            violation: 0 where feasible, inf where failed or unknown, shape (n,).
            margins: how far each constraint is exceeded, negative where it holds, NaN where unknown, shape (n, c).
            failed: where a cost model broke, shape (n,).
            marks: the proposer's marks, shape (n,).
            proposers: (name, how many designs in a row are its), adding up to n.
        """
        first, last = self.n, self.n + len(codes)
        self._grow(last)
        self._codes[first:last] = codes
        self._objectives[first:last] = objectives
        self._violation[first:last] = violation
        self._margins[first:last] = margins
        self._marks[first:last] = marks
        begin = first
        for name, count in proposers:
            own = self._names.setdefault(name, len(self._names))
            self._proposers[begin : begin + count] = own
            begin += count
            if count:
                self._last_own[own] = begin - 1
        for number, row in enumerate(row_keys(codes), first):
            self._rows_seen.setdefault(row, number)
        self.n = last
        self.n_failed += int(failed.sum())
        self.n_infeasible += int(((violation > 0) & ~failed).sum())
        self.archive.add(np.arange(first, last), objectives, violation)

    def _grow(self, needed: int) -> None:
        capacity = len(self._violation)
        if needed <= capacity:
            return
        grown = max(needed, 2 * capacity)
        for name in ("_codes", "_objectives", "_violation", "_margins", "_marks", "_proposers"):
            old = getattr(self, name)
            new = np.empty((grown, *old.shape[1:]), dtype=old.dtype)
            new[: self.n] = old[: self.n]
            setattr(self, name, new)

    def objectives(self) -> np.ndarray:
        """Return the objectives of all designs, to be minimised, shape (n, m)."""
        return self._objectives[: self.n]

    def violation(self) -> np.ndarray:
        """Return the violation of all designs, shape (n,)."""
        return self._violation[: self.n]

    def view(
        self, proposer: str, window: int, pending: list[tuple[np.ndarray, np.ndarray, str]], batch: int = 0
    ) -> History:
        """Return what a proposer may see.

        Args:
            proposer: its name, by which it gets back its own marks.
            window: rows at most, 0 for all.
            pending: (codes, marks, proposer) of the batches that are not finished.
            batch: number of the batch that is asked for.
        """
        rows = self._rows(proposer, window)
        own = self._names.get(proposer, -1)
        codes = [c for c, _, _ in pending] or [np.empty((0, self.space.n_parameters), CODE_DTYPE)]
        marks = [m if name == proposer else np.full_like(m, -1) for _, m, name in pending] or [np.empty(0, np.int64)]
        return History(
            space=self.space,
            goal=self.goal,
            seed=self.seed,
            codes=self._codes[rows],
            objectives=self._objectives[rows],
            violation=self._violation[rows],
            numbers=rows,
            marks=np.where(self._proposers[rows] == own, self._marks[rows], -1),
            n_total=self.n,
            pending_codes=np.concatenate(codes),
            pending_marks=np.concatenate(marks),
            finished=partial(self._is_finished, self.n),
            margins=self._margins[rows],
            evidence=self.evidence,
            batch=batch,
        )

    def _is_finished(self, n: int, codes: np.ndarray) -> np.ndarray:
        """Return which rows are among the first n designs: a view does not change while the study goes on."""
        return np.array([self._rows_seen.get(row, n) < n for row in row_keys(codes)], dtype=bool)

    def _rows(self, proposer: str, window: int) -> np.ndarray:
        if not window or self.n <= window:
            return np.arange(self.n)
        front = self.archive.ids[-(window // 2) :]
        if not len(front):  # nothing feasible yet: what is nearest to it
            front = np.argpartition(self.violation(), window // 2)[: window // 2]
        last_own = self._last_own.get(self._names.get(proposer, -1))
        own = [] if last_own is None else [last_own]
        latest = range(self.n - 1, max(-1, self.n - window - len(front) - 2), -1)
        rows = dict.fromkeys([*own, *front.tolist(), *latest])
        return np.sort(np.array(list(rows)[:window], dtype=np.int64))
