"""What a study can tell about its designs beyond objectives: metrics, reasons, additive parts, effects of single knobs.

Proposers import no cost model and answer from the history alone. :class:`Evidence` is the part of the history that is
worked out when somebody asks: every metric of finished designs, why a design is not feasible, and the additive parts of
a design's metrics as the study's own cost models give them. The coordinator answers from its own prepared evaluators,
design by design, so that an answer depends neither on who evaluates, nor on what else was asked, nor on when: a resumed
study is told the same.

    shares(evidence.breakdown(codes), "latency_s")   what a metric is made of, per design
    effects(history)                                 what one knob did, from pairs of finished designs that differ in it
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dse import units
from dse.accelerators import Accelerator
from dse.cascades import CascadeProfile
from dse.metrics import METRICS, MetricBatch
from dse.objectives import Goal
from dse.policy import Policy
from dse.problem import Problem
from dse.protocols import Breakdown, History
from dse.space import BoundSpace, row_keys

Label = tuple[str, str, str, str]
Explain = Callable[[np.ndarray], Sequence[Breakdown]]
_REMEMBERED: Final = 512
_RATES: Final = 6
_CODE_BITS: Final = np.uint64(0xFFFF)
# Metrics that are some phases of another one's parts.
_PHASES_OF: Final = {
    "ttft_s": ("encode", "prefill"), "encode_s": ("encode",), "prefill_s": ("prefill",), "decode_s": ("decode",),
    "tpot_s": ("decode",),
}  # fmt: skip


class Evidence:
    """What is known of finished designs, by their numbers, and of any design, by its codes.

    Args:
        space: the search space.
        goal: objectives and constraints.
        explain: gives the additive parts of rows of codes; None where nobody can.
        problem: what the study is about; None where that is not known.
    """

    def __init__(
        self, space: BoundSpace, goal: Goal, explain: Explain | None = None, problem: Problem | None = None
    ) -> None:
        self.space, self.goal, self.explain, self.problem = space, goal, explain, problem
        self._kept: list[MetricBatch] = []
        self._starts: list[int] = []
        self._n = 0
        self._explained: OrderedDict[bytes, Sequence[Breakdown]] = OrderedDict()

    def __len__(self) -> int:
        return self._n

    def keep(self, metrics: MetricBatch) -> None:
        """Take over the metrics of the next designs, in the order of their numbers."""
        self._starts.append(self._n)
        self._n += len(metrics)
        self._kept.append(MetricBatch(metrics.values, len(metrics), {}, {}, metrics.limits, metrics.errors))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics that any design has, in the order they came; :func:`dse.units.unit_of` tells units."""
        return tuple(dict.fromkeys(name for kept in self._kept for name in kept.values))

    def values(self, numbers: np.ndarray, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Return metrics of finished designs, NaN where a design has none, each of shape (n,).

        Args:
            numbers: design numbers.
            names: which metrics; all by default.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        found = {name: np.full(len(numbers), np.nan) for name in (self.metrics if names is None else names)}
        chunk = np.searchsorted(self._starts, numbers, side="right") - 1
        for c in np.unique(chunk).tolist():
            rows = np.flatnonzero(chunk == c)
            for name, column in found.items():
                if name in self._kept[c].values:
                    column[rows] = self._kept[c].values[name][numbers[rows] - self._starts[c]]
        return found

    def reason(self, number: int) -> str:
        """Return why a finished design is not feasible, with the amounts; "" if it is.

        The words of a cost model's failure are part of it: they are data, whoever reads them.
        """
        c = bisect_right(self._starts, number) - 1
        row = number - self._starts[c]
        told = self._kept[c].reason(row)
        values = {n: float(v[row]) for n, v in self._kept[c].values.items()}
        return told or "; ".join(self.goal.broken(values))

    def breakdown(self, codes: np.ndarray) -> list[Breakdown]:
        """Return the additive parts of the metrics of each design; an empty list where nobody can tell.

        Parts that a design does not have are 0 in its row; a metric that it has no parts of is NaN there, as of a
        design that a cost model breaks on. Of a design that cannot run they mean nothing: ask for others.

        Args:
            codes: shape (n, p).
        """
        codes = self.space.repair(np.asarray(codes))
        return merge([self._explain_one(key, row[None]) for key, row in zip(row_keys(codes), codes, strict=True)])

    def _explain_one(self, key: bytes, row: np.ndarray) -> Sequence[Breakdown]:
        found = self._explained.get(key)
        if found is None:
            try:
                found = [] if self.explain is None else list(self.explain(row))
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001  anybody's cost model; what it cannot explain has no parts
                found = []
            self._explained[key] = found
            if len(self._explained) > _REMEMBERED:
                self._explained.popitem(last=False)
        else:
            self._explained.move_to_end(key)
        return found


def merge(explained: Sequence[Sequence[Breakdown]]) -> list[Breakdown]:
    """Return the parts of several designs as one breakdown per metric, over all their labels.

    Args:
        explained: for each design, breakdowns of one row.
    """
    by_design = [{b.metric: b for b in one} for one in explained]
    merged = []
    for metric in dict.fromkeys(b.metric for one in explained for b in one):
        rows = [(i, one[metric]) for i, one in enumerate(by_design) if metric in one]
        labels = tuple(dict.fromkeys(label for _, b in rows for label in b.labels))
        column = {label: j for j, label in enumerate(labels)}
        parts = np.full((len(explained), len(labels)), np.nan)
        for i, b in rows:
            parts[i] = 0.0
            parts[i, [column[label] for label in b.labels]] = b.parts[0]
        merged.append(Breakdown(metric, labels, parts))
    return merged


# ---------------------------------------------------------------------------------------------- what metrics consist of


@dataclass(frozen=True)
class Shares:
    """What a metric of some designs consists of.

    Attributes:
        metric: its name.
        labels: (component, phase, operator class, cost kind) of each part, the largest mean share first.
        ratios: part of the whole, rows sum to 1; NaN for designs of which nobody can tell, shape (n, labels).
    """

    metric: str
    labels: tuple[Label, ...]
    ratios: np.ndarray

    def dominant(self, row: int) -> tuple[Label, float] | None:
        """Return the largest part of a design and its ratio; None where nobody can tell."""
        if not self.ratios.shape[1] or not np.isfinite(self.ratios[row]).all():
            return None
        j = int(self.ratios[row].argmax())
        return self.labels[j], float(self.ratios[row, j])


def shares(breakdowns: Sequence[Breakdown], metric: str) -> Shares | None:
    """Return what a metric consists of; None where no breakdown tells.

    The time of a phase is those parts of the latency that belong to it.

    Args:
        breakdowns: as :meth:`Evidence.breakdown` gives them.
        metric: a metric's name.
    """
    by_name = {b.metric: b for b in breakdowns}
    phases = _PHASES_OF.get(metric, ())
    whole = by_name.get(metric) or (by_name.get("latency_s") if phases else None)
    if whole is None:
        return None
    chosen = [j for j, label in enumerate(whole.labels) if whole.metric == metric or label[1] in phases]
    parts = whole.parts[:, chosen]
    total = parts.sum(axis=1, keepdims=True)
    ratios = np.divide(parts, total, out=np.full(parts.shape, np.nan), where=total > 0)
    # A total of zero has parts of nothing.
    ratios[(total == 0)[:, 0]] = 0.0
    known = np.isfinite(ratios).all(axis=1)
    mean = ratios[known].mean(axis=0) if known.any() else np.zeros(len(chosen))
    order = np.argsort(-mean, kind="stable")
    return Shares(metric, tuple(whole.labels[chosen[j]] for j in order), ratios[:, order])


# ---------------------------------------------------------------------------------------------- what single knobs do


@dataclass(frozen=True)
class Effects:
    """Pairs of finished designs that differ in one parameter alone.

    Attributes:
        parameter: column of the codes in which they differ, shape (e,).
        low, high: row of the history with the smaller code there, and with the larger one, shape (e,).
        low_code, high_code: those codes, shape (e,).
        change: objective of ``high`` less that of ``low``, relative to the larger magnitude of both, so between -2
            and 2, NaN where one is not known, shape (e, m). Objectives are to be minimised: below 0 is better.
        margin: likewise the change of each constraint's margin, in units of its bound, shape (e, c).
    """

    parameter: np.ndarray
    low: np.ndarray
    high: np.ndarray
    low_code: np.ndarray
    high_code: np.ndarray
    change: np.ndarray
    margin: np.ndarray

    def __len__(self) -> int:
        return len(self.parameter)


def pairs(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all (parameter, row, row) of neighbouring levels where rows differ in that parameter alone, (e,) each.

    Rows that agree elsewhere are a line; each gives its successive levels. In O(h p log h): a row's key without one
    parameter is the sum of random 64-bit words of the others.

    Args:
        codes: distinct rows, shape (h, p).
    """
    h, p = codes.shape
    if h < 2 or not p:
        none = np.empty(0, dtype=np.int64)
        return none, none, none
    words = np.random.default_rng(0).integers(0, 2**63, size=(p, int(codes.max()) + 1), dtype=np.uint64)
    hashed = words[np.arange(p), codes]
    others = hashed.sum(axis=1, dtype=np.uint64)[:, None] - hashed
    # One key sorts lines, and the codes of a line: 48 bits of the hash before 16 of the code.
    keys = np.ascontiguousarray(((others & ~_CODE_BITS) | codes.astype(np.uint64)).T)
    order = np.argsort(keys, axis=1)
    lines = np.take_along_axis(keys, order, axis=1) & ~_CODE_BITS
    place, parameter = np.nonzero((lines[:, 1:] == lines[:, :-1]).T)
    return parameter, order[parameter, place], order[parameter, place + 1]


def effects(history: History) -> Effects:
    """Return what single parameters changed, from finished designs that differ in one alone."""
    parameter, low, high = pairs(history.codes)
    y = history.objectives
    size = np.maximum(np.abs(y[low]), np.abs(y[high]))
    difference = y[high] - y[low]
    change = np.divide(difference, size, out=np.zeros_like(difference), where=size > 0)
    change[np.isnan(difference)] = np.nan
    margins = history.margins if history.margins is not None else np.empty((len(history), 0))
    return Effects(
        parameter, low, high, history.codes[low, parameter].astype(np.int64),
        history.codes[high, parameter].astype(np.int64), change, margins[high] - margins[low],
    )  # fmt: skip


@dataclass(frozen=True)
class Sensitivity:
    """What it did to go from one level of a parameter to the other: medians over pairs of designs.

    Attributes:
        parameter: column of the codes.
        low_code, high_code: from which level, to which.
        n_pairs: pairs of designs.
        change: relative change of each objective (to be minimised), shape (m,).
        margin: change of each constraint's margin, shape (c,).
    """

    parameter: int
    low_code: int
    high_code: int
    n_pairs: int
    change: np.ndarray
    margin: np.ndarray


def sensitivities(found: Effects) -> list[Sensitivity]:
    """Return the effects level by level, in the order of parameters and codes."""
    key = np.stack([found.parameter, found.low_code, found.high_code], axis=1)
    levels, member = np.unique(key, axis=0, return_inverse=True)
    out = []
    for i, (j, a, b) in enumerate(levels.tolist()):
        rows = np.flatnonzero(member.ravel() == i)
        change, margin = (_median(x[rows]) for x in (found.change, found.margin))
        out.append(Sensitivity(j, a, b, len(rows), change, margin))
    return out


def _median(rows: np.ndarray) -> np.ndarray:
    """Return the median of each column over what is known of it, NaN where nothing is."""
    return np.array([np.median(c[np.isfinite(c)]) if np.isfinite(c).any() else np.nan for c in rows.T])


# ---------------------------------------------------------------------------------------------- the problem in words


def describe(problem: Problem) -> list[str]:
    """Return a problem in words and units, without the names of models and chips: a line per model, request, hardware.

    Names are left out so that what is read from it follows from the numbers.
    """
    lines = []
    for role, model in problem.models.items():
        blocks: dict[str, int] = {}
        for block in model.blocks:
            blocks[block.component] = blocks.get(block.component, 0) + 1
        parts = ", ".join(f"{name} of {n} blocks" for name, n in blocks.items())
        lines.append(
            f"{role} model: {model.n_params / 1e9:.3g} billion parameters ({model.n_active_params / 1e9:.3g} at work "
            f"per token), {parts}; weights {units.format_quantity(model.weight_bytes(), 'weight_bytes')} and caches "
            f"{units.format_quantity(model.kv_bytes_per_token(), 'kv_bytes')} per token at 16 bits"
        )
    s = problem.scenario
    size = f" of {s.image_px[0]} x {s.image_px[1]} px" if s.images else ""
    lines.append(
        f"request: {s.images} images{size}, {s.audio_s:g} s of audio, {s.prompt_tokens} prompt tokens, "
        f"{s.output_tokens} output tokens, {s.batch} requests together"
    )
    lines.append(_hardware(problem))
    return lines + ([] if problem.policy is None else _policy(problem.policy))


def _policy(policy: Policy) -> list[str]:
    """Return what is known of drafters and stages, by their roles."""
    lines = []
    for drafter, known in policy.rates.items():
        rates = ", ".join(f"{rate:.2f}" for rate in known.rates[:_RATES])
        lines.append(f"guesses of {drafter}: kept at rates of {rates}{' each' if known.goes_on else ' and so on'}")
    answers = policy.answers
    if answers is not None:
        if isinstance(answers, CascadeProfile):
            right = {stage: profile.accuracy for stage, profile in answers.stages.items()}
        else:
            right = dict(zip(answers.stages, answers.correct.mean(axis=0).tolist(), strict=True))
        told = ", ".join(f"{stage} {ratio:.0%}" for stage, ratio in right.items())
        lines.append(f"answers that are right without compression: {told}")
        lines.append(f"a self-test of an answer takes {policy.test_tokens} tokens")
    return lines


def _hardware(problem: Problem) -> str:
    hardware = problem.hardware
    if isinstance(hardware, Accelerator):
        reference: Mapping[str, object] = hardware.reference
        shown = [
            f"{name} {units.format_quantity(value, name) if units.unit_of(name) else f'{value:g}'}"
            if isinstance(value, int | float) and not isinstance(value, bool)
            else f"{name} {value}"
            for name, value in reference.items()
        ]
        memory = units.format_quantity(hardware.memory_bytes, "memory_bytes")
        return f"accelerator in {hardware.node_nm:g} nm with {memory} of DRAM; reference design: {', '.join(shown)}"
    peaks = ", ".join(f"{name} {value / 1e12:.4g} Tera-ops/s" for name, value in hardware.peak_ops_per_s.items())
    return (
        f"device with {units.format_quantity(hardware.memory_bytes, 'memory_bytes')} at "
        f"{units.format_quantity(hardware.memory_bytes_per_s, 'memory_bytes_per_s')}; dense peaks: {peaks}"
    )


def metric_words(name: str) -> str:
    """Return a metric with its unit and what it is, as one line."""
    known, unit = METRICS.get(name), units.unit_of(name)
    return f"{name}{f' ({unit})' if unit else ''}{f': {known.help}' if known else ''}"
