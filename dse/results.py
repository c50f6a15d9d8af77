"""What a study found, read back from the store: the front, single designs, frames and rows for other programs.

Everything is rebuilt from the stored definition, so it works without the study's script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dse import units
from dse.errors import StoreRefused, UserError
from dse.evaluation import Evaluation, check_metric_names
from dse.front import Front
from dse.ladder import combinations, label, rung_of
from dse.metrics import MetricBatch, Status
from dse.objectives import Goal
from dse.params import Value
from dse.pareto import constrained_front
from dse.problem import Problem
from dse.protocols import Breakdown, Chosen, CostModelUsed, Roofline
from dse.shown import metric_records
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
        all_evaluators: its cost models, on all rungs.
        rung: whose metrics these are, 0 for those that every design has; see :meth:`at`.
    """

    row: StudyRow
    space: BoundSpace
    goal: Goal
    stored: StoredStudy
    all_evaluators: Sequence[EvaluatorRow]
    rung: int = 0

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
            check_metric_names(name for one in stored.answers.values() for name in one.metrics.values)
            if not all(label(combination) for combination in combinations(row.spec)):
                raise ValueError("a combination of cost models is empty")
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
        if row.id != self.row.id or store.evaluators(row.id) != list(self.all_evaluators):
            return Results.load(store, row.name)  # as at first, with the metrics that every design has
        if (row.updated_s, row.n_designs, row.state) == (self.row.updated_s, self.row.n_designs, self.row.state):
            return self
        first = self.stored.n_settled
        tail = store.load(row.id, code_dtype(self.space), self.space.n_parameters, first)
        return Results(row, self.space, self.goal, self.stored.continued(tail), self.all_evaluators, self.rung)

    def __len__(self) -> int:
        return len(self.stored.codes)

    def _repr_html_(self) -> str:
        """Return the front, for notebooks."""
        return self.front()._repr_html_()

    def at(self, fidelity: str | int) -> Results:
        """Return the same designs with the metrics of one combination of fidelities.

        Args:
            fidelity: its label ("hardware=simulated, quality=prior"), a fidelity or cost model that it is the first to
                have ("simulated"), or its number, 0 for the one that all designs are evaluated with.

        Raises:
            NameUnknown: the study has no such combination.
        """
        return self._at_rung(rung_of(self.row.spec, fidelity))

    def _at_rung(self, rung: int) -> Results:
        return self if rung == self.rung else replace(self, rung=rung)

    @cached_property
    def fidelities(self) -> list[str]:
        """Labels of the study's combinations, from the one that all designs are evaluated with upwards."""
        return [label(combination) for combination in combinations(self.row.spec)]

    @property
    def fidelity(self) -> str:
        """Label of the combination whose metrics these are."""
        return self.fidelities[self.rung]

    @property
    def top(self) -> Results:
        """The same designs with the metrics of the highest rung on which any of them has been evaluated."""
        rungs = {p.rung for p in self.stored.promotions}
        return self._at_rung(max((r for r in rungs if self._at_rung(r).evaluated.any()), default=0))

    def fidelities_of(self, number: int) -> list[Results]:
        """Return the results at each combination that has metrics of a design; at the lowest in any case, and first.

        Raises:
            UserError: there is no design of that number.
        """
        self._check_number(number)
        above = [self._at_rung(rung) for rung in range(1, len(self.fidelities))]
        return [self._at_rung(0), *(view for view in above if view.evaluated[number])]

    @cached_property
    def evaluators(self) -> list[EvaluatorRow]:
        """The cost models of this combination, one per metric group."""
        found = {e.group: e for e in sorted(self.all_evaluators, key=lambda e: e.rung) if e.rung <= self.rung}
        return list(found.values())

    @cached_property
    def evaluated(self) -> np.ndarray:
        """Which designs have metrics of this combination, boolean, shape (n,)."""
        there = [self.stored.answers[e.id].there for e in self.evaluators if e.id in self.stored.answers]
        return np.logical_and.reduce(there) if there else self.stored.evaluated

    @cached_property
    def metrics(self) -> MetricBatch:
        """Metrics of all designs, all groups side by side; NaN where a design has not been evaluated."""
        groups = [self.stored.answers[e.id].metrics for e in self.evaluators if e.id in self.stored.answers]
        return MetricBatch.join(groups) if groups else MetricBatch({}, len(self))

    @cached_property
    def violation(self) -> np.ndarray:
        """Summed relative excess over limits and constraints; 0 where feasible, inf where failed or not evaluated."""
        excess = self.metrics.excess_ratio.copy()
        excess[list(self.metrics.errors)] = np.inf
        excess[~self.evaluated] = np.inf
        return self.goal.violation(self.metrics.values, excess)

    @cached_property
    def objectives(self) -> np.ndarray:
        """Objectives to be minimised, NaN where there are none, shape (n, m)."""
        return self.goal.to_minimise(self.metrics.values, len(self))

    def front(self, fidelity: str | int | None = None) -> Front:
        """Return the feasible designs that no other one dominates, ordered by the first objective.

        Args:
            fidelity: the combination within which it is drawn, as :meth:`at` takes it; by default this one's, or where
                these are the metrics that every design has, those of the highest rung that designs have reached.
        """
        if fidelity is not None:
            return self.at(fidelity)._front()
        return (self if self.rung else self.top)._front()

    def _front(self) -> Front:
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

    @cached_property
    def margins(self) -> np.ndarray:
        """How far each constraint is exceeded, relative to its bound; NaN where unknown, shape (n, c)."""
        return self.goal.margins(self.metrics.values, len(self))

    def nearest(self) -> int:
        """Return the number of the design that is nearest to being feasible; 0 where none could be evaluated."""
        return int(self.violation.argmin()) if len(self) else 0

    def design(self, number: int) -> Chosen:
        """Return a design with its evidence.

        Raises:
            UserError: there is no design of that number.
        """
        self._check_number(number)
        codes, answers = self.stored.codes[number : number + 1], self.stored.answers
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
                CostModelUsed(
                    e.cost_model, e.group, e.fidelity, e.version, e.fingerprint, list(answers[e.id].metrics.values)
                )
                for e in self.evaluators
                if e.id in answers
            ],
        )

    def _check_number(self, number: int) -> None:
        if not 0 <= number < len(self):
            raise UserError(
                f"study {self.row.name!r} has no design {number}",
                f"it has designs 0 to {len(self) - 1}" if len(self) else "it has no design yet",
            )

    def breakdown(self, number: int) -> list[Breakdown]:
        """Return the additive parts of a design's metrics, recomputed with the cost models of this combination.

        Raises:
            UserError: a cost model is not installed here, or gives other results than when the study ran.
        """
        return self._evaluation().breakdown(self.design(number).design)

    def roofline(self, number: int) -> Roofline | None:
        """Return a design's operators against the peaks of its hardware; None where no cost model has any.

        Raises:
            UserError: as :meth:`breakdown`.
        """
        return self._evaluation().roofline(self.design(number).design)

    def _evaluation(self) -> Evaluation:
        """Return the cost models of the study, which are what they were when it ran."""
        stored = {e.cost_model: e.fingerprint for e in self.evaluators}
        evaluation = Evaluation(self.space, list(stored))
        if evaluation.fingerprints() != list(stored.values()):
            raise UserError("the cost models have changed since this study ran, so its breakdown is not recomputed")
        return evaluation

    @property
    def waiting(self) -> str:
        """What designs without a result are: "leased" while the study runs, "stale" if it was killed, "proposed"."""
        return {"held": "leased", "lost": "stale"}.get(self.row.lease, "proposed")

    def waiting_for(self, number: int) -> str:
        """What a design without metrics of this combination is: as :attr:`waiting`, or "not promoted"."""
        chosen = not self.rung or any(number in p.designs for p in self.stored.promotions if p.rung == self.rung)
        return self.waiting if chosen else "not promoted"

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
                "status": Status(int(status[number])).name.lower()
                if self.evaluated[number]
                else self.waiting_for(number),
                "attempts": int(self.stored.attempts[number]),
                "last_error": self.stored.last_errors.get(int(number), ""),
                "is_feasible": bool(self.violation[number] == 0),
                "reason": self.reason(int(number)),
                "fidelity": self.fidelity,
                "knobs": {label: {"value": v, "unit": names[label].unit} for label, v in row.items()},
                "metrics": metric_records(self.metrics, int(number)),
            }
            for number, row in zip(index.tolist(), values, strict=True)
        ]

    def reason(self, number: int) -> str:
        """Return why a design is not feasible, "" if it is."""
        reason = self.metrics.reason(number)
        if reason or not self.evaluated[number]:
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
        frame.insert(2, "status", np.where(self.evaluated, states, self.waiting))
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


CHECKED_ROWS: Final = 32


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
