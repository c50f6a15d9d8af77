"""The doors: what a cost model, a proposer, an executor, an exporter promise. Read this page first.

A study goes round one loop (:mod:`dse.loop`):

    Proposer.propose(history, k) -> codes -> repair, dedupe -> Executor -> CostModel: DesignBatch -> MetricBatch
        -> store, history -> Proposer ...                      front -> dashboard | Exporter

Plug-ins are found by name through the catalogue (:mod:`dse.catalogue`), built-in ones too: a plug-in is a module plus
one line. What some of them can do beside that, each asked for by one command, is in :mod:`dse.capabilities`.
:mod:`dse.testing` holds a conformance kit for each door, which third parties can run on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from dse.designs import DesignBatch
from dse.metrics import MetricBatch
from dse.objectives import Goal
from dse.params import Value
from dse.pareto import constrained_front
from dse.problem import Problem
from dse.space import BoundSpace, row_keys

if TYPE_CHECKING:
    from dse.calls import CallLog
    from dse.evidence import Evidence

# ---------------------------------------------------------------------------------------------- cost models


@dataclass(frozen=True)
class Breakdown:
    """Additive parts of one metric.

    Attributes:
        metric: the metric that the parts add up to.
        labels: (component, phase, operator class, cost kind) of each part.
        parts: shape (n, len(labels)), in the metric's unit; rows sum to the metric's column.
    """

    metric: str
    labels: tuple[tuple[str, str, str, str], ...]
    parts: np.ndarray


@dataclass(frozen=True)
class Roofline:
    """Operators of designs against the peaks of the hardware that they run on.

    Times rather than operations, so that operators of different precisions share one plane: ``compute_s`` over
    ``traffic_s`` is an operator's intensity relative to the ridge point of its own precision, ``compute_s`` over
    ``seconds`` the share of that precision's peak which it reaches.

    Attributes:
        labels: (component, phase, operator class) of each group of operators.
        compute_s: what the group takes at the peak of the unit it runs on, at its precision, shape (n, len(labels)).
        traffic_s: what its memory traffic takes at the peak bandwidth, same shape.
        seconds: what the cost model says it takes, same shape.
    """

    labels: tuple[tuple[str, str, str], ...]
    compute_s: np.ndarray
    traffic_s: np.ndarray
    seconds: np.ndarray


class Evaluator(Protocol):
    """A cost model prepared for one problem.

    Laws (the conformance kit tests them): row i of a batch equals the batch of row i, bit for bit or within the
    model's stated tolerance; row order is kept; a row that cannot run is infeasible with reason and amount, a row that
    breaks is failed, and neither changes its neighbours; no clock, no network, no global randomness.
    """

    @property
    def metrics(self) -> Sequence[str]:
        """Names of the columns it gives."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the model's version and of everything its results depend on besides the designs."""
        ...

    def evaluate(self, batch: DesignBatch) -> MetricBatch:
        """Return the metrics of each design, row by row."""
        ...

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return the additive parts of its main metrics; an empty list if it has none."""
        ...


@runtime_checkable
class CostModel(Protocol):
    """What designs cost, or how good they are: one metric group at one fidelity.

    Attributes:
        name: its name in the catalogue.
        group: "hardware", "serving" or "quality".
        fidelity: "analytical", "simulated", "measured", "prior", "surrogate".
        version: changes whenever results change.
        laws: names of the laws of :mod:`dse.testing.laws` that it declares to obey beyond those of
            :class:`Evaluator` ("more_bandwidth_never_costs_time", ...).
    """

    name: str
    group: str
    fidelity: str
    version: str
    laws: frozenset[str]

    def prepare(self, problem: Problem) -> Evaluator:
        """Return an evaluator in which all that depends on the problem alone is computed.

        Raises:
            UserError: the problem is none that this model can cost; the message says why.
        """
        ...


@runtime_checkable
class Roofed(Protocol):
    """What an evaluator offers beyond :class:`Evaluator` whose operators have peaks to be held against."""

    def roofline(self, batch: DesignBatch) -> Roofline:
        """Return the operators of each design beside the peaks of its hardware."""
        ...


@runtime_checkable
class Additive(Protocol):
    """An evaluator whose losses are a monotone curve of a sum over places; a capability beside :class:`Evaluator`."""

    def summed_loss(self, batch: DesignBatch) -> np.ndarray:
        """Return the sum that stands under the curve, in nats, shape (n,): what allocation adds up."""
        ...


# ---------------------------------------------------------------------------------------------- proposers


@dataclass(frozen=True)
class History:
    """What a proposer may see: finished designs of earlier batches, in proposal order.

    Attributes:
        space: the search space.
        goal: objectives and constraints.
        seed: the study's seed, for sequences that run through all batches.
        codes: shape (h, p), unsigned 16-bit.
        objectives: to be minimised, NaN where the design could not run or failed, shape (h, m).
        violation: summed relative excess over hard limits and constraints, 0 where feasible, inf where failed, (h,).
        numbers: design numbers, ascending, shape (h,).
        marks: the small integer that the proposer attached to each design when it proposed it, -1 if another
            proposer did, shape (h,).
        n_total: designs finished in the study, of which these may be a selection.
        pending_codes: designs proposed but not finished yet (a study with lag has some), shape (q, p).
        pending_marks: their marks, -1 for those of other proposers, shape (q,).
        finished: tells which rows of codes are those of finished designs, also of designs that this selection leaves
            out; None where ``codes`` are all there are.
        margins: how far each constraint is exceeded, relative to its bound, negative where it holds, NaN where
            unknown, shape (h, c); None where nobody kept them.
        evidence: further metrics, reasons and additive parts of these designs, worked out when asked for; None where
            nobody keeps any. A proposer must answer without it too.
        batch: number of the batch that is asked for.
    """

    space: BoundSpace
    goal: Goal
    seed: int
    codes: np.ndarray
    objectives: np.ndarray
    violation: np.ndarray
    numbers: np.ndarray
    marks: np.ndarray
    n_total: int
    pending_codes: np.ndarray
    pending_marks: np.ndarray
    finished: Callable[[np.ndarray], np.ndarray] | None = None
    margins: np.ndarray | None = None
    evidence: Evidence | None = None
    batch: int = 0

    def __len__(self) -> int:
        return len(self.codes)

    def next_mark(self) -> int:
        """Return one more than the largest mark this proposer has given, 0 if it has given none."""
        return 1 + int(max(self.marks.max(initial=-1), self.pending_marks.max(initial=-1)))

    def limited(self, window: int) -> History:
        """Return the history with at most ``window`` rows: the front, and the latest; 0 keeps all."""
        if not window or len(self) <= window:
            return self
        front = constrained_front(self.objectives, self.violation)[-(window // 2) :]
        own = np.flatnonzero(self.marks >= 0)[-1:]
        latest = np.arange(len(self) - 1, -1, -1)[: window + len(front) + 1]
        rows = np.sort(np.array(list(dict.fromkeys([*own, *front, *latest]))[:window], dtype=np.int64))
        chosen = {name: getattr(self, name)[rows] for name in ("codes", "objectives", "violation", "numbers", "marks")}
        margins = None if self.margins is None else self.margins[rows]
        # What is left out must still be known.
        return replace(self, **chosen, margins=margins, finished=self.finished or self.is_known)

    def is_known(self, codes: np.ndarray) -> np.ndarray:
        """Return which rows of repaired codes were proposed before, finished or pending, boolean, shape (n,)."""
        rows = row_keys(codes)
        pending = set(row_keys(self.pending_codes))
        if self.finished is None:
            pending.update(row_keys(self.codes))
            return np.array([row in pending for row in rows], dtype=bool)
        return self.finished(codes) | np.array([row in pending for row in rows], dtype=bool)


@dataclass(frozen=True)
class Proposals:
    """Designs that a proposer asks to evaluate.

    Attributes:
        codes: shape (k', p), k' <= k; repaired by the loop.
        parents: for each, the numbers of the designs it was derived from.
        marks: a small integer for each that comes back in :attr:`History.marks` (a generation, say), shape (k',).
    """

    codes: np.ndarray
    parents: Sequence[tuple[int, ...]] = ()
    marks: np.ndarray | None = None


@runtime_checkable
class Proposer(Protocol):
    """Who suggests designs.

    Laws: the answer depends on ``history``, ``k`` and ``rng`` alone, so that a resumed study goes on as the
    uninterrupted one would have; whatever an instance keeps between calls is a cache. At most ``k`` rows; fewer, or
    none, is an honest answer of a method that has no more.

    Attributes:
        name: its name in the catalogue, with its options ("optuna:tpe").
        window: how many rows of history it wants at most; 0 for all of them. What is left out is neither on the
            front, nor among the latest, nor (for the marks' sake) among its own latest designs.
    """

    name: str
    window: int

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return up to ``k`` designs worth evaluating next."""
        ...


@runtime_checkable
class Corresponding(Protocol):
    """A proposer that writes to somebody outside, and keeps its letters; a capability beside :class:`Proposer`."""

    def open(self, log: CallLog, tell: Callable[[str], None]) -> None:
        """Begin a run of a study.

        Args:
            log: where its calls are kept.
            tell: says something to the user, once each.
        """
        ...

    def close(self) -> None:
        """End the run: what is under way is given up. Safe to call twice."""
        ...


@runtime_checkable
class Late(Corresponding, Protocol):
    """A proposer whose answers come when they come: an arm of a portfolio, which goes on without it in the meantime.

    Laws: what it has ready enters at a batch that its log keeps; :meth:`propose` gives at most that, never waits for
    more, and draws no random numbers. So a replay of the log proposes the same at the same batches.
    """

    def n_ready(self, history: History) -> int:
        """Return how many designs it could give for the batch that is asked for."""
        ...

    def consider(self, history: History) -> None:
        """Take note of how things stand, with the batch that was just put together pending; may ask for more."""
        ...


@runtime_checkable
class Portfolio(Protocol):
    """A proposer that deals its batches to several others; a capability beside :class:`Proposer`."""

    def with_arms(self, arms: Sequence[Proposer]) -> Proposer:
        """Return the same with further arms."""
        ...

    def arms_of(self, marks: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
        """Return the names of the arms, and for each mark of a design which arm proposed it, -1 for none of them."""
        ...


# ---------------------------------------------------------------------------------------------- executors


@dataclass(frozen=True)
class Chunk:
    """A shipping unit: evaluated rows ``start`` to ``start + n - 1`` of a batch.

    Attributes:
        start: first row.
        groups: one metric batch of n rows per cost model, in the study's order.
    """

    start: int
    groups: Sequence[MetricBatch]


class Executor(Protocol):
    """Where evaluation happens. The rows it returns do not depend on which executor it is, nor on chunk sizes.

    Attributes:
        name: "local" or "ray".
    """

    name: str

    def submit(self, codes: np.ndarray) -> int:
        """Take a batch of codes for evaluation and return its ticket; may start right away."""
        ...

    def collect(self, ticket: int) -> Iterator[Chunk]:
        """Yield the metrics of a submitted batch, chunk by chunk in row order, each row once."""
        ...

    def close(self) -> None:
        """Release processes and memory; safe to call twice."""
        ...


# ---------------------------------------------------------------------------------------------- exporters


@dataclass(frozen=True)
class CostModelUsed:
    """A cost model that gave some metrics of a design.

    Attributes:
        name: its name in the catalogue.
        group, fidelity, version: as :class:`CostModel` has them.
        fingerprint: of the evaluator that ran, see :class:`Evaluator`.
        metrics: names of the columns that it gave.
    """

    name: str
    group: str
    fidelity: str
    version: str
    fingerprint: str
    metrics: Sequence[str] = ()


@dataclass(frozen=True)
class Chosen:
    """A design picked for export, with the evidence for it.

    Attributes:
        study: name of the study, "" for a what-if design.
        number: its number there, -1 for a what-if design.
        problem: what it was evaluated for.
        design: a batch of one row.
        values: knob label -> value as the study's space names them.
        metrics: its metrics, a batch of one row.
        provenance: where it comes from (proposer, seed, cost models with versions and fingerprints, ...).
        cost_models: who gave the metrics.
    """

    study: str
    number: int
    problem: Problem
    design: DesignBatch
    values: Mapping[str, Value]
    metrics: MetricBatch
    provenance: Mapping[str, str] = field(default_factory=dict)
    cost_models: Sequence[CostModelUsed] = ()


@dataclass(frozen=True)
class Exported:
    """Files of an export.

    Attributes:
        files: relative file name -> content.
        not_expressible: what of the design the format cannot say, one sentence each; never dropped in silence.
        notes: what whoever uses the files should know besides, one sentence each.
    """

    files: Mapping[str, bytes]
    not_expressible: Sequence[str] = ()
    notes: Sequence[str] = ()


@runtime_checkable
class Exporter(Protocol):
    """Turns a chosen design into files that another tool opens.

    Attributes:
        name: its name in the catalogue.
        help: what opens the result.
    """

    name: str
    help: str

    def export(self, chosen: Chosen) -> Exported:
        """Return the files; touches no file system itself."""
        ...
