"""What plug-ins may do beside what :mod:`dse.protocols` asks: calibrate, trace, judge, fuse, profile, examine, draw.

Each is a protocol that one command or page asks for, with what it returns; a plug-in that has the methods has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dse.cascades import CascadeTable
from dse.designs import DesignBatch
from dse.hardware import Device
from dse.model import Model
from dse.objectives import Goal
from dse.params import Value
from dse.problem import Problem
from dse.profile import Configuration, Measurement, ProfileHeader, QualityProfile
from dse.protocols import Chosen

if TYPE_CHECKING:
    from dse.calls import Call
    from dse.evaluation import Evaluation
    from dse.results import Results

# ---------------------------------------------------------------------------------------------- cost models


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
