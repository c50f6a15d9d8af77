"""The doors: what a cost model, a proposer, an executor, an exporter, an outside tool promise. Read this page first.

A study goes round one loop (:mod:`dse.loop`):

    Proposer.propose(history, k) -> codes -> repair, dedupe -> Executor -> CostModel: DesignBatch -> MetricBatch
        -> store, history -> Proposer ...                      front -> dashboard | Exporter

Plug-ins are found by name through the catalogue (:mod:`dse.catalogue`), built-in ones too: a plug-in is a module plus
one line. :mod:`dse.testing` holds a conformance kit for each door, which third parties can run on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from dse.cascades import CascadeTable
from dse.designs import DesignBatch
from dse.hardware import Device
from dse.metrics import MetricBatch
from dse.model import Model
from dse.objectives import Goal
from dse.params import Value
from dse.pareto import constrained_front
from dse.problem import Problem
from dse.profile import Configuration, Measurement, ProfileHeader, QualityProfile
from dse.space import BoundSpace, row_keys

if TYPE_CHECKING:
    from dse.calls import Call, CallLog
    from dse.evaluation import Evaluation
    from dse.evidence import Evidence
    from dse.results import Results

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


@dataclass(frozen=True)
class Calibration:
    """Constants fitted to a table of measurements.

    Attributes:
        scores: per device, kind of kernel and precision, the errors on rows that were not fitted, as JSON types.
        constants: the constants as TOML, to be named by a device's ``calibration``.
    """

    scores: Sequence[Mapping[str, Any]]
    constants: str


@runtime_checkable
class Calibrator(Protocol):
    """A cost model that takes measurements of devices; a capability beside :class:`CostModel`."""

    def calibrate(self, table: Path, devices: Sequence[Device]) -> Calibration:
        """Return constants fitted to a CSV table.

        Args:
            table: columns hw, op, precision, shape, latency_ms; framework and framework_version optional.
            devices: those that are in no catalogue.

        Raises:
            TableError: a table that cannot be used; names line, column and remedy.
        """
        ...

    def calibration_of(self, device: Device) -> Mapping[str, Any]:
        """Return where a device's constants come from, as JSON types: basis, devices, source, kernels one by one."""
        ...


@runtime_checkable
class Tracer(Protocol):
    """A cost model that draws what a design does over time; a capability beside :class:`CostModel`."""

    def trace(self, problem: Problem, design: DesignBatch, phase: str, max_events: int) -> Mapping[str, Any]:
        """Return a document in Chrome's Trace Event Format; ``otherData`` has phase, seconds, n_events, note.

        Args:
            problem: what the design is for.
            design: a batch of one row.
            phase: "encode", "prefill" or "decode".
            max_events: events drawn at most.

        Raises:
            UserError: a design that cannot run or be drawn, or no such phase.
        """
        ...


@dataclass(frozen=True)
class Judgement:
    """What a logged cascade is good for.

    Attributes:
        scores: per stage before the last and score ("confidence", "1 self-test", ...): stage, score, auroc, low, high,
            worse (whether a self-test ranks worse than confidence).
        alone: per stage: stage, accuracy, cost.
        front: choices that no other beats in cost and accuracy, on all queries: thresholds, tests, cost, accuracy,
            escalation.
        held_out: choices made on one half of the queries, and how they do on the other: goal, thresholds, tests, and
            cost, accuracy, escalation of each half.
    """

    scores: Sequence[Mapping[str, Any]]
    alone: Sequence[Mapping[str, Any]]
    front: Sequence[Mapping[str, Any]]
    held_out: Sequence[Mapping[str, Any]]


@runtime_checkable
class CascadeJudge(Protocol):
    """A cost model that reads logs of cascades; a capability beside :class:`CostModel`."""

    def judge(self, table: CascadeTable, costs: Mapping[str, float], test_cost_ratio: float, seed: int) -> Judgement:
        """Return what a logged cascade is good for.

        Args:
            table: the log.
            costs: role -> cost of an answer.
            test_cost_ratio: cost of a self-test over that of the stage's answer.
            seed: of the split into halves.
        """
        ...


@dataclass(frozen=True)
class BestFusion:
    """The best legal partition of the blocks of a component that are alike, and what it costs one of them.

    Attributes:
        phase, component: where the blocks run.
        blocks: their indices.
        fusion: groups of edges, as a study takes them.
        dram_bytes, seconds: of one pass of a block.
        unfused_dram_bytes, unfused_seconds: the same where every operator runs alone.
        held_bytes: on-chip memory that the largest group holds, 0 where nothing is fused.
    """

    phase: str
    component: str
    blocks: Sequence[int]
    fusion: Mapping[str, Sequence[tuple[str, str]]]
    dram_bytes: float
    seconds: float
    unfused_dram_bytes: float
    unfused_seconds: float
    held_bytes: float


@runtime_checkable
class Fuser(Protocol):
    """A cost model that finds which operators to fuse; a capability beside :class:`CostModel`."""

    def best_fusions(self, problem: Problem, design: DesignBatch, by: str) -> Sequence[BestFusion]:
        """Return the best fusion of each kind of block in each phase.

        Args:
            problem: what the design is for.
            design: a batch of one row; its on-chip memory is the budget.
            by: "bytes" or "time": what is to be least.

        Raises:
            UserError: hardware without operators to fuse.
        """
        ...


@dataclass(frozen=True)
class ProfileOrder:
    """What is to be profiled, and how.

    Attributes:
        file: the user's Python file, "" for none.
        weights: checkpoint, a Hugging Face folder or what the file makes of it; "" for none.
        text: plain text that a language model is measured on, "" for none.
        out: the profile's file, which its paths are relative to.
        model: the model's description, None to go by the names of its modules.
        quantiser: symmetric, granularity and group_size, those that differ from the default.
        values: knob -> values to measure, empty for all that can be.
        per: depth of the groups of widths: "module", "block.kind", "block" or "component".
        seed: of everything random.
        date: as the profile states it.
        estimate: "" to measure; "weights" or "fisher" to estimate from weights, or from gradients too.
    """

    file: str = ""
    weights: str = ""
    text: str = ""
    out: str = "profile.jsonl"
    model: Model | None = None
    quantiser: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Sequence[Value]] = field(default_factory=dict)
    per: str = "module"
    seed: int = 0
    date: str = ""
    estimate: str = ""


class Profiling(Protocol):
    """A profile under way; whoever asks for the next measurement keeps it, and decides when it is enough.

    Attributes:
        header: the profile's first line.
        n_singles: single choices that there are to measure.
        notes: what cannot be measured, one sentence each.
    """

    @property
    def header(self) -> ProfileHeader: ...  # noqa: D102
    @property
    def n_singles(self) -> int: ...  # noqa: D102
    @property
    def notes(self) -> Sequence[str]: ...  # noqa: D102

    def singles(self, known: Sequence[Measurement]) -> Iterator[Measurement]:
        """Yield measurements of single choices that are not known yet, the most telling first."""
        ...

    def configurations(self, known: QualityProfile, n: int, n_held_out: int) -> Iterator[Configuration]:
        """Yield random configurations that are not known yet, until there are n, and n_held_out held out."""
        ...

    def scores(self, profile: QualityProfile) -> Mapping[str, float]:
        """Return how well the surrogate predicts the held-out configurations, by name; empty where too few."""
        ...


@runtime_checkable
class Profiler(Protocol):
    """A cost model that measures quality profiles; a capability beside :class:`CostModel`."""

    def profiling(self, order: ProfileOrder) -> Profiling:
        """Return a profile to be measured.

        Raises:
            UserError: something is not installed, or a model, file or setting that cannot be.
        """
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


@dataclass(frozen=True)
class ExamScore:
    """How a model did in one skill of an exam.

    Attributes:
        skill: its name.
        n_questions, n_right, n_unanswered: of it.
        low_ratio, high_ratio: 95 % interval of the share of right answers (Wilson, JASA 22, 1927).
        chance_ratio: what guessing gives.
    """

    skill: str
    n_questions: int
    n_right: int
    n_unanswered: int
    low_ratio: float
    high_ratio: float
    chance_ratio: float


@dataclass(frozen=True)
class ExamPaper:
    """An exam as it was sat.

    Attributes:
        model: whom it was given to.
        scores: a row per skill.
        questions: each question with options, key and answer, as JSON types.
        calls: what was asked.
        stop_reason: why it ended early, "" if it did not.
    """

    model: str
    scores: Sequence[ExamScore]
    questions: Sequence[Mapping[str, Any]]
    calls: Sequence[Call]
    stop_reason: str = ""


@runtime_checkable
class Examinable(Protocol):
    """A proposer that can be examined before a study is spent on it; a capability beside :class:`Proposer`."""

    def exam(
        self, evaluation: Evaluation | None, goal: Goal | None, n: int, seed: int, tell: Callable[[str], None]
    ) -> ExamPaper:
        """Return how it did.

        Args:
            evaluation, goal: what the questions are made from; a space of its own by default.
            n: questions per skill.
            seed: of the questions.
            tell: says what it may cost, and what is wrong.

        Raises:
            UserError: nobody answers, with what is missing; or no question can be made from the space.
        """
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


# ---------------------------------------------------------------------------------------------- figures


@runtime_checkable
class Plotter(Protocol):
    """Draws stored studies into files.

    Attributes:
        kinds: what it can draw.
    """

    kinds: tuple[str, ...]

    def draw(self, results: Results, kind: str, options: Mapping[str, str], suffix: str) -> bytes:
        """Return a figure as a file's content.

        Args:
            results: the study.
            kind: one of :attr:`kinds`.
            options: what to draw, by name; each kind has defaults.
            suffix: ending of the file, which says its format (".html").

        Raises:
            UserError: a kind, option or format that it has not, or nothing to draw.
        """
        ...


# ---------------------------------------------------------------------------------------------- outside tools


@dataclass(frozen=True)
class CheckedProduct:
    """One distinct matrix product O[m, n] = A[m, k] B[k, n] of a design, in our figures and in a tool's.

    Attributes:
        label: component and class of its operators.
        count: how many of them a pass of the phase has.
        share_ratio: part of the time of the phase's products, by our physical mode.
        size: (m, n, k) in the design, means rounded up.
        checked: (m, n, k) that both sides were asked about; smaller than ``size`` where the tool would take too long.
        bits: widths of A and B.
        ours: figure -> value for one product of size ``checked``: physical_cycles (array), memory_cycles (DRAM
            bytes over bandwidth), latency_cycles (the longer), scalesim_cycles, energy_j (leakage excluded).
        tool: figure -> value: cycles, and what else the tool says; empty if it failed.
        error: why it failed, "" if it did not.
    """

    label: str
    count: float
    share_ratio: float
    size: tuple[int, int, int]
    checked: tuple[int, int, int]
    bits: tuple[float, float]
    ours: Mapping[str, float]
    tool: Mapping[str, float]
    error: str


@dataclass(frozen=True)
class CrossCheck:
    """A design's heaviest products against a tool of the field.

    Attributes:
        tool: its name and version.
        phase: "encode", "prefill" or "decode".
        compared: which of ``ours`` stands against the tool's cycles.
        products: the heaviest first.
        not_expressible: what of the design the tool cannot say, one sentence each.
    """

    tool: str
    phase: str
    compared: str
    products: Sequence[CheckedProduct]
    not_expressible: Sequence[str] = ()


@runtime_checkable
class OutsideTool(Protocol):
    """A tool of the field that a design can be checked against, in its own environment and process.

    Attributes:
        name: its name in the catalogue.
        help: what it is, and what of it is compared.
    """

    name: str
    help: str

    def check(self, chosen: Chosen, phase: str, top: int, python: str, limit_s: float) -> CrossCheck:
        """Return the heaviest products of a design beside the tool's figures.

        Args:
            chosen: a design on an accelerator template.
            phase: "encode", "prefill" or "decode".
            top: how many distinct products, by time.
            python: interpreter that has the tool, "" to look for one.
            limit_s: time that one product may take.

        Raises:
            UserError: no interpreter with the tool, or a design that has no array.
        """
        ...
