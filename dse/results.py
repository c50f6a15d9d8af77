"""What a study found, read back from the store: the front, single designs, frames and rows for other programs.

Everything is rebuilt from the stored definition, so it works without the study's script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dse import text, units
from dse.errors import StoreRefused, UserError, unknown
from dse.evaluation import Evaluation, check_metric_names
from dse.metrics import METRICS, MetricBatch, Status
from dse.objectives import Goal
from dse.params import Value
from dse.pareto import constrained_front
from dse.problem import Problem
from dse.protocols import Breakdown, Chosen, CostModelUsed
from dse.space import BoundSpace, Space
from dse.store import EvaluatorRow, Store, StoredStudy, StudyRow

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """A stored study with its space bound and its designs loaded.

    Attributes:
        row: the study as listed.
        space: its bound search space.
        goal: its objectives and constraints.
        stored: its designs, raw.
        evaluators: its cost models.
    """

    row: StudyRow
    space: BoundSpace
    goal: Goal
    stored: StoredStudy
    evaluators: Sequence[EvaluatorRow]

    @classmethod
    def load(cls, store: Store, name: str) -> Results:
        """Return the results of a study.

        Raises:
            NameUnknown: there is no such study.
            StoreRefused: its definition or its rows cannot be read, or do not belong together.
        """
        row = store.study(name)
        try:
            problem = Problem.from_json(row.spec["problem"])
            space = Space.from_json(row.spec["space"]).bind(problem)
            goal = Goal.from_json(row.spec["goal"])
            stored = store.load(row.id, code_dtype(space), space.n_parameters)
            check_metric_names(name for group in stored.metrics for name in group.values)
        except (KeyError, TypeError, ValueError, AttributeError, UserError) as error:
            raise StoreRefused(
                f"study {name!r} in {store.shown} is damaged: {type(error).__name__}: {error}",
                "restore it from a copy; nothing was changed",
            ) from error
        check_codes(name, space, stored)
        return cls(row, space, goal, stored, store.evaluators(row.id))

    def refreshed(self, store: Store) -> Results:
        """Return the study as it is stored now, reading only what came since; itself where nothing did.

        Raises:
            NameUnknown: the study was deleted.
        """
        row = store.study(self.row.name)
        if row.id != self.row.id or store.evaluators(row.id) != list(self.evaluators):
            return Results.load(store, row.name)
        if (row.updated_s, row.n_designs, row.state) == (self.row.updated_s, self.row.n_designs, self.row.state):
            return self
        first = self.stored.n_settled
        tail = store.load(row.id, code_dtype(self.space), self.space.n_parameters, first)
        return Results(row, self.space, self.goal, self.stored.continued(tail), self.evaluators)

    def __len__(self) -> int:
        return len(self.stored.codes)

    @cached_property
    def metrics(self) -> MetricBatch:
        """Metrics of all designs, all groups side by side; NaN where a design has not been evaluated."""
        if not self.stored.metrics:
            return MetricBatch({}, len(self))
        return MetricBatch.join(self.stored.metrics)

    @cached_property
    def violation(self) -> np.ndarray:
        """Summed relative excess over limits and constraints; 0 where feasible, inf where failed or not evaluated."""
        excess = self.metrics.excess_ratio.copy()
        excess[list(self.metrics.errors)] = np.inf
        excess[~self.stored.evaluated] = np.inf
        return self.goal.violation(self.metrics.values, excess)

    @cached_property
    def objectives(self) -> np.ndarray:
        """Objectives to be minimised, NaN where there are none, shape (n, m)."""
        return self.goal.to_minimise(self.metrics.values, len(self))

    def front(self) -> Front:
        """Return the feasible designs that no other one dominates, ordered by the first objective."""
        feasible = self.violation == 0
        numbers = constrained_front(self.objectives, self.violation) if feasible.any() else np.empty(0, np.intp)
        order = np.argsort(self.objectives[numbers, 0], kind="stable") if len(numbers) else np.empty(0, np.intp)
        return Front(self, numbers[order])

    @cached_property
    def reference(self) -> int | None:
        """Number of the reference design, None where it was not asked for."""
        batches = [b for b, source in self.stored.proposers.items() if source == "reference"]
        rows = np.flatnonzero(np.isin(self.stored.batches, batches))
        return int(rows[0]) if len(rows) else None

    def nearest(self) -> int:
        """Return the number of the design that is nearest to being feasible; 0 where none could be evaluated."""
        return int(self.violation.argmin()) if len(self) else 0

    def design(self, number: int) -> Chosen:
        """Return a design with its evidence.

        Raises:
            UserError: there is no design of that number.
        """
        if not 0 <= number < len(self):
            raise UserError(
                f"study {self.row.name!r} has no design {number}",
                f"it has designs 0 to {len(self) - 1}" if len(self) else "it has no design yet",
            )
        codes = self.stored.codes[number : number + 1]
        return Chosen(
            study=self.row.name,
            number=number,
            problem=self.space.schema.problem,
            design=self.space.decode(codes),
            values=self.space.values(codes)[0],
            metrics=self.metrics.take(slice(number, number + 1)),
            provenance={
                "study": self.row.name,
                "number": str(number),
                "proposer": self.stored.proposers.get(int(self.stored.batches[number]), ""),
                "seed": str(self.row.spec["seed"]),
                **{
                    f"cost_model.{e.group}": f"{e.cost_model} {e.version} ({e.fidelity}, {e.fingerprint[:12]})"
                    for e in self.evaluators
                },
            },
            cost_models=[
                CostModelUsed(e.cost_model, e.group, e.fidelity, e.version, e.fingerprint, list(batch.values))
                for e, batch in zip(self.evaluators, self.stored.metrics, strict=False)
            ],
        )

    def breakdown(self, number: int) -> list[Breakdown]:
        """Return the additive parts of a design's metrics, recomputed with the cost models of the study.

        Raises:
            UserError: a cost model is not installed here, or gives other results than when the study ran.
        """
        stored = {e.cost_model: e.fingerprint for e in self.evaluators}
        evaluation = Evaluation(self.space, list(stored))
        if evaluation.fingerprints() != list(stored.values()):
            raise UserError("the cost models have changed since this study ran, so its breakdown is not recomputed")
        return evaluation.breakdown(self.design(number).design)

    @property
    def waiting(self) -> str:
        """What designs without a result are: "leased" while the study runs, "stale" if it was killed, "proposed"."""
        return {"held": "leased", "lost": "stale"}.get(self.row.lease, "proposed")

    def records(self, numbers: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Return designs as JSON types: every knob and every metric with its unit; numbers that are none are null."""
        index = np.asarray(numbers, dtype=np.intp)
        names = {p.label: p for p in self.space.parameters}
        values = self.space.values(self.stored.codes[index])
        status = self.metrics.status
        return [
            {
                "number": int(number),
                "hash": self.stored.hashes[number].hex(),
                "proposer": self.stored.proposers.get(int(self.stored.batches[number]), ""),
                "status": Status(int(status[number])).name.lower() if self.stored.evaluated[number] else self.waiting,
                "attempts": int(self.stored.attempts[number]),
                "last_error": self.stored.last_errors.get(int(number), ""),
                "is_feasible": bool(self.violation[number] == 0),
                "reason": self.reason(int(number)),
                "knobs": {label: {"value": v, "unit": names[label].unit} for label, v in row.items()},
                "metrics": metric_records(self.metrics, int(number)),
            }
            for number, row in zip(index.tolist(), values, strict=True)
        ]

    def reason(self, number: int) -> str:
        """Return why a design is not feasible, "" if it is."""
        reason = self.metrics.reason(number)
        if reason or not self.stored.evaluated[number]:
            return reason
        known = {n: float(self.metrics.values[n][number]) for n in self.goal.metrics if n in self.metrics.values}
        return "; ".join(self.goal.broken(known))

    def frame(self, numbers: Sequence[int] | np.ndarray | None = None) -> pd.DataFrame:
        """Return designs as a data frame, one column per metric and parameter, indexed by design number.

        Metrics that are not known are NaN; parameters that do not matter in a design are missing values. Units stand in
        ``frame.attrs["units"]``, column -> unit.
        """
        import pandas as pd

        index = np.arange(len(self)) if numbers is None else np.asarray(numbers, dtype=np.intp)
        columns: dict[str, Any] = {name: v[index] for name, v in self.metrics.values.items()}
        for name, (low, high) in self.metrics.intervals.items():
            columns[f"{name}.low"], columns[f"{name}.high"] = low[index], high[index]
        columns["violation"] = self.violation[index]
        codes = self.space.repair(self.stored.codes[index])
        active = self.space.active(codes)
        for j, parameter in enumerate(self.space.parameters):
            columns[parameter.label] = _parameter_column(parameter.levels, codes[:, j], active[:, j])
        frame = pd.DataFrame(columns, index=pd.Index(index, name="number"))
        labels = {p.label: p.unit for p in self.space.parameters}
        frame.attrs["units"] = {
            c: labels.get(c, units.unit_of(c.removesuffix(".low").removesuffix(".high"))) for c in columns
        }
        return frame

    def table(self) -> pd.DataFrame:
        """Return all designs as :meth:`frame` does, with hash, proposer and state first, for files."""
        frame, status = self.frame(), self.metrics.status
        states = np.array([s.name.lower() for s in Status])[status]
        frame.insert(0, "hash", [h.hex() for h in self.stored.hashes])
        frame.insert(1, "proposer", [self.stored.proposers.get(b, "") for b in self.stored.batches.tolist()])
        frame.insert(2, "status", np.where(self.stored.evaluated, states, self.waiting))
        return frame


def _parameter_column(levels: Sequence[Value], codes: np.ndarray, active: np.ndarray) -> Any:
    """Return a parameter's values as a column for pandas; where it does not matter it is a missing value."""
    import pandas as pd

    if all(isinstance(level, int) and not isinstance(level, bool) for level in levels):
        # Inactive parameters are missing values; they do not turn whole numbers into fractions.
        return pd.arrays.IntegerArray(np.array(levels, dtype=np.int64)[codes], ~active)
    column = np.array(levels, dtype=object)[codes] if not _are_floats(levels) else np.array(levels, float)[codes]
    return column if active.all() else np.where(active, column, None if column.dtype == object else np.nan)


def _are_floats(levels: Sequence[Value]) -> bool:
    return all(isinstance(level, int | float) and not isinstance(level, bool) for level in levels)


PRINTED_ROWS: Final = 24
CHECKED_ROWS: Final = 32


@dataclass(frozen=True)
class Front:
    """The Pareto front of a study.

    Attributes:
        results: the study it belongs to.
        numbers: its designs, ordered by the first objective.
    """

    results: Results
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def frame(self) -> pd.DataFrame:
        """Return the front as a data frame."""
        return self.results.frame(self.numbers)

    def records(self) -> list[dict[str, Any]]:
        """Return the front as JSON types; see :meth:`Results.records`."""
        return self.results.records(self.numbers)

    def columns(self) -> list[str]:
        """Names of the metrics worth showing: objectives first, then what is constrained."""
        return self.results.goal.metrics

    def table(self, limit: int | None = None) -> tuple[list[str], list[list[str]]]:
        """Return header and rows as text; a metric that rests on a prior says so, with its interval.

        Args:
            limit: at most so many rows, at equal steps along the first objective, both ends among them.
        """
        metrics, names = self.results.metrics, self.columns()
        header = ["design", *(f"{n} ({b})" if (b := metrics.basis.get(n)) == "prior" else n for n in names)]
        chosen = self.numbers
        if limit is not None and len(chosen) > limit:
            chosen = chosen[np.linspace(0, len(chosen) - 1, limit).round().astype(int)]
        rows = [[str(n), *(show(metrics, name, int(n)) for name in names)] for n in chosen]
        return header, rows

    def __str__(self) -> str:
        more = len(self) - PRINTED_ROWS
        ending = f"\n{more} more: dse front {self.results.row.name}" if more > 0 else ""
        return f"{self.text(PRINTED_ROWS)}{ending}"

    def text(self, limit: int | None = None) -> str:
        """Return the front as a table for people, with what it is the front of; ``limit`` as in :meth:`table`."""
        results = self.results
        goal = ", ".join(map(str, results.goal.objectives))
        where = f"study {results.row.name!r} ({goal})"
        if not len(self):
            return f"{where}: no feasible design among {len(results)}{self._nearest()}"
        return f"{len(self)} designs on the front of {where}\n{text.table(*self.table(limit))}{self._beside()}"

    def _beside(self) -> str:
        """Return a line on the reference design, where there is one."""
        results, number = self.results, self.results.reference
        if number is None:
            return ""
        where = "on the front" if number in self.numbers else results.reason(number) or "dominated"
        shown = ", ".join(
            f"{n} {show(results.metrics, n, number)}" for n in results.goal.metrics if n in results.metrics.values
        )
        return f"\nreference design {number} ({where}): {shown}"

    def _nearest(self) -> str:
        if not len(self.results):
            return ""
        number = self.results.nearest()
        return f"; the nearest is design {number}: {self.results.reason(number)}"

    def _repr_html_(self) -> str:
        frame = self.frame()
        return str(frame[[c for c in self.columns() if c in frame]].to_html(escape=True))


def check_codes(name: str, space: BoundSpace, stored: StoredStudy, most: int = CHECKED_ROWS) -> None:
    """Check that stored codes stand for the designs whose hashes are stored beside them, on a sample.

    Args:
        name: of the study.
        space: its space.
        stored: its designs.
        most: designs that are looked at, at equal steps.

    Raises:
        StoreRefused: they do not: rows are damaged, or this version reads the space in another way.
    """
    n = len(stored.codes)
    sample = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)) if n else np.empty(0, int)
    for start in range(0, len(sample), 1024):
        rows = sample[start : start + 1024]
        for row, found in zip(rows.tolist(), space.decode(stored.codes[rows]).hashes, strict=True):
            if found != stored.hashes[row]:
                raise StoreRefused(
                    f"design {row} of study {name!r} is not what was stored: its codes stand for another design",
                    "the row is damaged, or was written by another version of mfm-dse; use that one, or a copy",
                )


def code_dtype(space: BoundSpace) -> np.dtype:
    """Return the type that a study's codes are stored in: one byte where every parameter has at most 256 levels."""
    return np.dtype("u1" if int(space.n_levels.max()) <= 256 else "<u2")


def metric_records(metrics: MetricBatch, row: int) -> dict[str, dict[str, Any]]:
    """Return the metrics of one row as JSON types, each with unit, basis and, where it has one, its interval."""
    out: dict[str, dict[str, Any]] = {}
    for name, column in metrics.values.items():
        entry: dict[str, Any] = {
            "value": _number(column[row]),
            "unit": METRICS[name].unit if name in METRICS else units.unit_of(name),
        }
        if name in metrics.intervals:
            low, high = metrics.intervals[name]
            entry |= {"low": _number(low[row]), "high": _number(high[row])}
        if name in metrics.basis:
            entry["basis"] = metrics.basis[name]
        out[name] = entry
    return out


def show(metrics: MetricBatch, name: str, row: int) -> str:
    """Return one metric of one row for people, with its interval if it has one."""
    if name not in metrics.values:
        raise unknown("metric", name, metrics.values)
    value = units.format_quantity(float(metrics.values[name][row]), name)
    if name not in metrics.intervals:
        return value
    low, high = (float(end[row]) for end in metrics.intervals[name])
    return f"{value} [{units.format_interval(low, high, name)}]"


def show_knob(label: str, value: Value) -> str:
    """Return a parameter's value for people, with its unit ("sram_bytes" 1048576 becomes "1 MiB")."""
    name = label.partition("[")[0]
    has_unit = units.unit_of(name) and not isinstance(value, str)
    return units.format_quantity(float(value), name, 6) if has_unit else str(value)


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
