"""The loop: ask, evaluate, tell. Pure logic over the four doors; no SQL, no Ray, no clock.

What a proposer sees is fixed by the study, not by who evaluates: batch b is proposed from the results of the batches
up to b - lag, in proposal order, with a random generator seeded by (seed, b). Every proposal is repaired and hashed; a
design that was proposed before is counted and never paid for again. A proposer that fails gives its turn to random
designs (asking.py). Batches are recorded before they are evaluated, so
a study that was killed goes on with the same designs it would have evaluated, in the same order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Protocol

import numpy as np

from dse.asking import Mishaps, ask
from dse.errors import UserError
from dse.evaluation import hard_violation
from dse.hypervolume import hypervolume
from dse.metrics import MetricBatch
from dse.objectives import Goal
from dse.protocols import Executor, Proposals, Proposer
from dse.record import Record
from dse.space import BoundSpace

_STALLS_BEFORE_RANDOM: Final = 3
_STALLS_BEFORE_END: Final = 6


@dataclass(frozen=True)
class Batch:
    """The new designs of one ask.

    Attributes:
        number: batch number.
        proposer: who proposed it.
        first: number of its first design; the others follow.
        codes: shape (n, p).
        hashes: content hashes.
        marks: the proposer's marks, shape (n,).
        parents: numbers of the designs each was derived from.
        n_asked, n_proposed: designs asked for, and proposed, duplicates included.
        n_evaluated: leading designs whose metrics are recorded already (after a resume).
    """

    number: int
    proposer: str
    first: int
    codes: np.ndarray
    hashes: Sequence[bytes]
    marks: np.ndarray
    parents: Sequence[tuple[int, ...]]
    n_asked: int
    n_proposed: int
    n_evaluated: int = 0


class Journal(Protocol):
    """Where the loop records what it does, before it goes on."""

    def proposed(self, batch: Batch) -> None:
        """Record a batch before it is evaluated."""
        ...

    def evaluated(self, batch: Batch, start: int, groups: Sequence[MetricBatch], *, is_last: bool) -> None:
        """Record the metrics of the batch's designs from row ``start`` on."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a study stands.

    Attributes:
        n_done: designs finished.
        n_target: designs wanted.
        n_duplicates: proposals answered from the table.
        n_infeasible: designs that cannot run or break a constraint.
        n_failed: designs on which a cost model broke.
        n_front: designs on the front.
        reference: the hypervolume's reference point, None before there is a feasible design.
        points: objectives of the front, to be minimised, shape (n_front, m).
        end: why the loop ended, "" while it goes on.
        mishaps: asks of this run that a proposer failed, answered by random designs.
        stage: the combination of fidelities that designs are being promoted to, "" on the lowest rung; counts and
            front are those of that rung.
    """

    n_done: int
    n_target: int
    n_duplicates: int
    n_infeasible: int
    n_failed: int
    n_front: int
    reference: np.ndarray | None
    points: np.ndarray
    end: str = ""
    mishaps: Mishaps = field(default_factory=Mishaps)
    stage: str = ""

    @cached_property
    def hypervolume(self) -> float:
        """Of the front, up to ``reference``; NaN before there is a feasible design. Computed when asked for."""
        return float("nan") if self.reference is None else hypervolume(self.points, self.reference)


class Loop:
    """Drives a study.

    Args:
        space: the bound search space.
        goal: objectives and constraints.
        proposers: who proposes; batch b is the turn of ``proposers[b % len(proposers)]``.
        executor: who evaluates.
        journal: who records.
        seed: seed of everything random.
        ask_size: designs asked for at a time.
        lag: batches that may be under way at once.
    """

    def __init__(
        self,
        space: BoundSpace,
        goal: Goal,
        proposers: Sequence[Proposer],
        executor: Executor,
        journal: Journal,
        *,
        seed: int,
        ask_size: int,
        lag: int,
    ) -> None:
        if ask_size < 1 or lag < 1:
            raise UserError(f"ask_size={ask_size} and lag={lag} must be 1 or more")
        self.space, self.goal, self.proposers = space, goal, proposers
        self.executor, self.journal = executor, journal
        self.seed, self.ask_size, self.lag = seed, ask_size, lag
        self.record = Record(space, goal, seed)
        self.reference: np.ndarray | None = None
        self.n_batches = 0
        self.n_proposed = 0
        self.n_designs = 0
        self._known: set[bytes] = set()
        self._open: deque[tuple[Batch, int]] = deque()
        self._partial: list[tuple[int, Sequence[MetricBatch]]] = []
        self._stalls = 0
        self.ask_limit_s: float | None = None
        self.mishaps = Mishaps()

    # ------------------------------------------------------------------ resuming

    def restore(
        self, batch: Batch, groups: Sequence[MetricBatch], proposers: Sequence[tuple[str, int]] | None = None
    ) -> None:
        """Take over a batch that was recorded earlier; call in batch order before :meth:`run`.

        Args:
            batch: the batch; ``n_evaluated`` says how many of its designs ``groups`` answers. Finished batches in a
                row, none of them empty, may come as one under the last one's number, where the reference is known.
            groups: metrics of its evaluated designs, one batch per cost model.
            proposers: of such a row, (name, how many designs are its).
        """
        self.n_batches = batch.number + 1
        self.n_designs += len(batch.codes)
        self.n_proposed += batch.n_proposed
        self._known.update(batch.hashes)
        self._stalls = 0 if len(batch.codes) else self._stalls + 1
        if not len(batch.codes):
            return
        if batch.n_evaluated == len(batch.codes):
            self._tell(batch, groups, proposers)
        else:
            rest = batch.codes[batch.n_evaluated :]
            self._open.append((batch, self.executor.submit(rest)))
            if batch.n_evaluated:
                self._partial.append((batch.number, groups))

    # ------------------------------------------------------------------ running

    def enqueue(self, source: str, codes: np.ndarray) -> None:
        """Have designs evaluated as a batch of their own, before anything more is proposed; known ones are left out.

        Args:
            source: who gives them, in the place of a proposer's name.
            codes: shape (n, p).
        """
        batch = self._fresh(source, len(codes), Proposals(codes))
        if len(batch.codes):
            self._begin(batch)

    def run(
        self,
        target: int,
        should_stop: Callable[[], bool] = lambda: False,
        rule: Callable[[Progress], str] = lambda _: "",
    ) -> Iterator[Progress]:
        """Go on until ``target`` designs are finished; yield after every chunk of results.

        Args:
            target: designs in total, those of earlier runs included.
            should_stop: asked before anything new is begun; what is recorded by then stays recorded.
            rule: asked after each finished batch why to end here, "" to go on.
        """
        was_asked = False

        def is_over() -> bool:  # a request is told once, and is asked for in the middle of batches too
            nonlocal was_asked
            was_asked = was_asked or should_stop()
            return was_asked

        while not is_over():
            end = self._fill(target)
            if not self._open:
                yield self._progress(target, end)
                return
            n_done = self.record.n
            yield from self._finish_oldest(target, is_over)
            if self.record.n > n_done and (reason := rule(self._progress(target))):
                yield self._progress(target, reason)
                return
        yield self._progress(target, "stopped")

    def _fill(self, target: int) -> str:
        """Propose until ``lag`` batches are under way; return why no more is proposed, "" if that is not the end."""
        while len(self._open) < self.lag:
            if self.n_designs >= target:
                return "target reached"
            if self.n_designs >= self.space.n_designs or self._stalls >= _STALLS_BEFORE_END:
                return "search space exhausted"
            batch = self._propose(min(self.ask_size, target - self.n_designs))
            self._begin(batch)
        return ""

    def _begin(self, batch: Batch) -> None:
        """Record a batch, and hand it to the executor."""
        self.n_batches += 1
        self.n_designs += len(batch.codes)
        self.n_proposed += batch.n_proposed
        self._known.update(batch.hashes)
        self._stalls = 0 if len(batch.codes) else self._stalls + 1
        self.journal.proposed(batch)
        if len(batch.codes):
            self._open.append((batch, self.executor.submit(batch.codes)))

    def _propose(self, k: int) -> Batch:
        number = self.n_batches
        proposer = self.proposers[number % len(self.proposers)]
        rng = np.random.default_rng([self.seed, number])
        name, proposals = proposer.name, None
        if self._stalls < _STALLS_BEFORE_RANDOM:
            pending = [(b.codes, b.marks, b.proposer) for b, _ in self._open]
            history = self.record.view(name, proposer.window, pending, number)
            proposals = ask(proposer, history, k, rng, self.ask_limit_s, self.mishaps)
        if proposals is None:
            rng = np.random.default_rng([self.seed, number])
            name, proposals = "random", Proposals(self.space.sample(k, rng))
        return self._fresh(name, k, proposals)

    def _fresh(self, name: str, k: int, proposals: Proposals) -> Batch:
        """Return the batch of those proposals that nobody proposed before."""
        codes = self.space.repair(np.asarray(proposals.codes).reshape(-1, self.space.n_parameters))[:k]
        hashes = self.space.decode(codes).hashes if len(codes) else []
        fresh = [i for i, h in enumerate(hashes) if h not in self._known and h not in hashes[:i]]
        marks = np.full(len(codes), -1, dtype=np.int64) if proposals.marks is None else np.asarray(proposals.marks)
        parents = list(proposals.parents) or [()] * len(codes)
        return Batch(
            number=self.n_batches,
            proposer=name,
            first=self.n_designs,
            codes=codes[fresh],
            hashes=[hashes[i] for i in fresh],
            marks=marks[fresh],
            parents=[tuple(parents[i]) for i in fresh],
            n_asked=k,
            n_proposed=len(codes),
        )

    def _finish_oldest(self, target: int, should_stop: Callable[[], bool]) -> Iterator[Progress]:
        batch, ticket = self._open[0]
        parts = [groups for number, groups in self._partial if number == batch.number]
        done = batch.n_evaluated
        for chunk in self.executor.collect(ticket):
            start = batch.n_evaluated + chunk.start
            done = start + len(chunk.groups[0])
            self.journal.evaluated(batch, start, chunk.groups, is_last=done == len(batch.codes))
            parts.append(chunk.groups)
            if done < len(batch.codes):
                yield self._progress(target)
                if should_stop():
                    return
        self._open.popleft()
        self._tell(batch, [_stack([part[i] for part in parts]) for i in range(len(parts[0]))])
        yield self._progress(target)

    def _tell(
        self, batch: Batch, groups: Sequence[MetricBatch], proposers: Sequence[tuple[str, int]] | None = None
    ) -> None:
        joined = MetricBatch.join(groups)
        n, excess = len(batch.codes), hard_violation(groups)
        self.record.append(
            batch.codes,
            self.goal.to_minimise(joined.values, n),
            self.goal.violation(joined.values, excess),
            self.goal.margins(joined.values, n),
            np.isinf(excess),
            batch.marks,
            proposers or [(batch.proposer, n)],
        )
        self.record.evidence.keep(joined)
        if self.reference is None and len(self.record.archive):
            self.reference = reference_point(self.record.objectives()[self.record.violation() == 0])

    def _progress(self, target: int, end: str = "") -> Progress:
        record = self.record
        return Progress(
            n_done=record.n,
            n_target=target,
            n_duplicates=self.n_proposed - self.n_designs,
            n_infeasible=record.n_infeasible,
            n_failed=record.n_failed,
            n_front=len(record.archive),
            reference=self.reference,
            points=record.archive.points,
            end=end,
            mishaps=self.mishaps,
        )


def reference_point(objectives: np.ndarray) -> np.ndarray:
    """Return a hypervolume reference: the worst of the given feasible designs, and a tenth of their range beyond.

    It is fixed once, by the first batch with a feasible design, so that hypervolumes of one study compare.

    Args:
        objectives: to be minimised, shape (n, m), n >= 1.
    """
    worst, best = objectives.max(axis=0), objectives.min(axis=0)
    spread = np.where(worst > best, worst - best, np.where(worst != 0, np.abs(worst), 1.0))
    return worst + 0.1 * spread


def _stack(parts: Sequence[MetricBatch]) -> MetricBatch:
    if len(parts) == 1:
        return parts[0]
    lengths = [len(p) for p in parts]
    starts = np.cumsum([0, *lengths])
    return MetricBatch.scatter(
        [(np.arange(a, b), p) for a, b, p in zip(starts, starts[1:], parts, strict=False)], int(starts[-1])
    )
