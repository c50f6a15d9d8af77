"""From codes to metrics: decode, bind structural knobs, run each cost model, keep broken rows to themselves.

This is what runs inside a worker, in-process or remote. Nothing here knows where the codes come from or where the
metrics go.

Structural knobs change what an evaluator is prepared for, so they partition a batch: one prepared set of evaluators
per combination of their values, built when first needed and kept; row order is restored. Where a cost model raises,
its rows are halved until only the ones at fault fail. A column of wrong shape, a NaN or a negative value on a row that
claims to be OK makes that row failed: a number that is not right is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Final

import numpy as np

from dse import catalogue
from dse.canonical import content_hash
from dse.designs import DesignBatch
from dse.errors import UserError
from dse.knobs import KNOBS
from dse.metrics import MetricBatch, Status
from dse.params import Value
from dse.problem import Problem
from dse.protocols import Additive, Breakdown, CostModel, Evaluator, Roofed, Roofline
from dse.space import BoundSpace, Space

_MAX_COMBINATIONS: Final = 256
_MESSAGE_LENGTH: Final = 2000
_METRIC_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Evaluation:
    """The cost models of a study, prepared for its problem.

    Args:
        space: the bound search space; its schema's problem is what is evaluated.
        cost_models: catalogue names or cost models, one per metric group.

    Raises:
        UserError: two cost models of one group, a name that is unknown, or a problem that a model cannot cost.
    """

    def __init__(self, space: BoundSpace, cost_models: Sequence[str | CostModel]) -> None:
        self.space = space
        self.models = [catalogue.cost_model(m) if isinstance(m, str) else m for m in cost_models]
        groups = [m.group for m in self.models]
        for group in groups:
            if groups.count(group) > 1:
                both = " and ".join(m.name for m in self.models if m.group == group)
                raise UserError(f"cost models {both} both give the {group} metrics", "name one per group")
        self._structural = [n for n in space.schema.fields if KNOBS[n].structural]
        self._prepared: dict[tuple[Value, ...], list[Evaluator]] = {}
        self._evaluators(self._combinations()[0])  # a problem that cannot be costed is told now, not row by row

    @cached_property
    def metrics(self) -> list[str]:
        """Names of all metrics, over all cost models and structural knobs; some designs may lack some of them.

        Raises:
            UserError: a cost model gives a metric whose name is none.
        """
        found = {name: None for names in self.metrics_by_group.values() for name in names}
        check_metric_names(found)
        return list(found)

    @cached_property
    def metrics_by_group(self) -> dict[str, list[str]]:
        """Names of the metrics of each group, likewise."""
        found: list[dict[str, None]] = [{} for _ in self.models]
        for combination in self._combinations():
            with suppress(UserError):  # hardware that cannot be costed: its designs fail, with the reason
                for into, evaluator in zip(found, self._evaluators(combination), strict=True):
                    into |= dict.fromkeys(evaluator.metrics)
        return {model.group: list(names) for model, names in zip(self.models, found, strict=True)}

    def fingerprints(self) -> list[str]:
        """Return for each cost model a hash of all that its results depend on besides the designs."""
        found = [self._fingerprints_of(combination) for combination in self._combinations()]
        return [content_hash([one[i] for one in found]) for i in range(len(self.models))]

    def _fingerprints_of(self, combination: tuple[Value, ...]) -> list[str]:
        try:
            return [evaluator.fingerprint for evaluator in self._evaluators(combination)]
        except UserError as error:  # hardware that cannot be costed: its designs fail, with this reason
            return [str(error)] * len(self.models)

    def evaluate(self, codes: np.ndarray) -> list[MetricBatch]:
        """Return the metrics of each row of codes, one batch per cost model."""
        return self.evaluate_designs(self.space.decode(codes))

    def evaluate_designs(self, batch: DesignBatch) -> list[MetricBatch]:
        """Return the metrics of each design, one batch per cost model."""
        parts: list[list[tuple[np.ndarray, MetricBatch]]] = [[] for _ in self.models]
        for combination, rows in self._partition(batch):
            chosen = batch if len(rows) == len(batch) else batch.take(rows)
            try:
                prepared = self._evaluators(combination)
            except UserError as error:
                for into in parts:
                    into.append((rows, MetricBatch.failed(len(rows), str(error))))
                continue
            for into, evaluator in zip(parts, prepared, strict=True):
                into.append((rows, _guarded(evaluator, chosen)))
        return [MetricBatch.scatter(into, len(batch)).masked() for into in parts]

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return the additive parts of the metrics of designs that share their structural knobs."""
        return [part for e in self._evaluators(self._shared(batch)) for part in e.breakdown(batch)]

    def roofline(self, batch: DesignBatch) -> Roofline | None:
        """Return operators of designs that share their structural knobs against peaks; None without such a model."""
        found = [e.roofline(batch) for e in self._evaluators(self._shared(batch)) if isinstance(e, Roofed)]
        return found[0] if found else None

    def _shared(self, batch: DesignBatch) -> tuple[Value, ...]:
        """Return the structural knobs of all designs of a batch."""
        combinations = list(self._partition(batch))
        if len(combinations) != 1:
            raise UserError("a breakdown is of designs with the same structural knobs", "ask for one design at a time")
        return combinations[0][0]

    def explain(self, codes: np.ndarray) -> list[Breakdown]:
        """Return the additive parts of the metrics of rows of codes that share their structural knobs."""
        return self.breakdown(self.space.decode(codes))

    def summed_loss(self, codes: np.ndarray) -> np.ndarray | None:
        """Return the loss of each row as a sum over places, shape (n,); None where no cost model has such sums."""
        batch = self.space.decode(codes)
        found = np.zeros(len(batch))
        for combination, rows in self._partition(batch):
            additive = [e for e in self._evaluators(combination) if isinstance(e, Additive)]
            if not additive:
                return None
            found[rows] = additive[0].summed_loss(batch.take(rows))
        return found

    def _partition(self, batch: DesignBatch) -> Iterator[tuple[tuple[Value, ...], np.ndarray]]:
        rows = np.arange(len(batch))
        if not self._structural:
            yield (), rows
            return
        columns = [batch[name] for name in self._structural]
        keys = list(zip(*(c.tolist() for c in columns), strict=True))
        for key in dict.fromkeys(keys):
            yield key, rows[[k == key for k in keys]]

    def _combinations(self) -> list[tuple[Value, ...]]:
        """All combinations of structural values that the space can produce, the reference first."""
        combinations: list[tuple[Value, ...]] = [()]
        for name in self._structural:
            reference: Value = self.space.schema.fields[name].default[0].item()
            levels = [v for p in self.space.parameters if name in p.knobs for v in p.levels]
            values = list(dict.fromkeys(levels or [reference]))
            combinations = [(*c, v) for c in combinations for v in values]
        if len(combinations) > _MAX_COMBINATIONS:
            raise UserError(f"{len(combinations)} combinations of structural knobs, the limit is {_MAX_COMBINATIONS}")
        return combinations

    def _evaluators(self, combination: tuple[Value, ...]) -> list[Evaluator]:
        prepared = self._prepared.get(combination)
        if prepared is None:
            problem = self.problem_of(combination)
            prepared = self._prepared[combination] = [model.prepare(problem) for model in self.models]
        return prepared

    def problem_of(self, combination: tuple[Value, ...]) -> Problem:
        """Return the problem with the structural knobs at the given values."""
        return self.space.schema.problem.bind(dict(zip(self._structural, combination, strict=True)))


def build_evaluation(
    problem: Mapping[str, Any], space: Mapping[str, Any], models: Sequence[str | CostModel]
) -> Evaluation:
    """Return the evaluation of a study from its stored definition; what workers are built with."""
    return Evaluation(Space.from_json(space).bind(Problem.from_json(problem)), models)


def check_metric_names(names: Iterable[str]) -> None:
    """Check that metric names are plain words: they are shown on pages and written into files.

    Raises:
        UserError: one is not.
    """
    for name in names:
        if not _METRIC_NAME.fullmatch(name):
            raise UserError(f"{name!r} is no name for a metric", "use lower-case letters, digits and '_'")


def _guarded(evaluator: Evaluator, batch: DesignBatch) -> MetricBatch:
    try:
        return _checked(evaluator, evaluator.evaluate(batch), len(batch))
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001  anybody's code; its failure belongs to its rows
        if len(batch) == 1:
            return MetricBatch.failed(1, f"{type(error).__name__}: {error}"[:_MESSAGE_LENGTH])
    half = len(batch) // 2
    parts = [np.arange(half), np.arange(half, len(batch))]
    return MetricBatch.scatter([(rows, _guarded(evaluator, batch.take(rows))) for rows in parts], len(batch))


def _checked(evaluator: Evaluator, result: MetricBatch, n: int) -> MetricBatch:
    """Return the result with rows failed whose columns cannot be right.

    Raises:
        ValueError: a column is missing or has another length than the batch.
    """
    if len(result) != n:
        raise ValueError(f"{n} designs went in, {len(result)} rows came out")
    missing = [name for name in evaluator.metrics if name not in result.values]
    if missing and len(result.errors) < n:
        raise ValueError(f"columns {', '.join(missing)} are missing")
    errors = dict(result.errors)
    ok = result.status == Status.OK
    checks: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
        ("is not a finite number", lambda v: ~np.isfinite(v)),
        ("is negative", lambda v: v < 0),
    ]
    for name, column in result.values.items():
        if np.shape(column) != (n,):
            raise ValueError(f"column {name} has shape {np.shape(column)}, expected ({n},)")
        for law, broken in checks:
            for row in np.flatnonzero(ok & broken(column)):
                errors.setdefault(int(row), f"{name}={column[row]} {law}")
    if len(errors) == len(result.errors):
        return result
    return MetricBatch(result.values, n, result.intervals, result.basis, result.limits, errors)


def hard_violation(groups: Sequence[MetricBatch]) -> np.ndarray:
    """Return the summed excess over hard limits of all groups, inf on failed rows, shape (n,)."""
    total = np.zeros(len(groups[0]))
    for group in groups:
        total += group.excess_ratio
        total[list(group.errors)] = np.inf
    return total
