"""Objectives and constraints, parsed from the text people write.

    objectives   = "min latency_s, max accuracy_ratio"
    constraints  = "area_mm2 <= 40, memory_bytes <= 4 GiB, latency_s < 0.2 s"

A number without a unit is in the unit that the metric's name carries. Inside, all objectives are minimised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dse import units
from dse.errors import UserError
from dse.metrics import metric

_OBJECTIVE = re.compile(r"\s*(\S+)\s+(\S+)\s*")
_CONSTRAINT = re.compile(r"\s*([^\s<>=!]+)\s*(<=|>=|<|>|==|=|!=)\s*(.+?)\s*")


@dataclass(frozen=True, slots=True)
class Objective:
    """A metric to be minimised (``sign`` 1) or maximised (``sign`` -1)."""

    name: str
    sign: int

    def __str__(self) -> str:
        return f"{'min' if self.sign > 0 else 'max'} {self.name}"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound on a metric: at most ``bound`` (``sign`` 1) or at least (``sign`` -1), itself included."""

    name: str
    sign: int
    bound: float

    def margin_ratio(self, values: np.ndarray) -> np.ndarray:
        """Return how far each value is beyond the bound, relative to it; below 0 where it is kept, shape (n,)."""
        return self.sign * (values - self.bound) / (abs(self.bound) if self.bound else 1.0)

    def excess_ratio(self, values: np.ndarray) -> np.ndarray:
        """Return how far each value is beyond the bound, relative to it, 0 where it is kept, shape (n,).

        NaN stays NaN: an unknown value neither keeps nor breaks a bound.
        """
        return np.where(np.isnan(values), np.nan, np.maximum(self.margin_ratio(values), 0.0))

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.sign > 0 else '>='} {units.format_quantity(self.bound, self.name, 6)}"


@dataclass(frozen=True)
class Goal:
    """What a study wants: objectives and constraints.

    Raises:
        UserError: no objective, or a metric as an objective twice.
    """

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        if not self.objectives:
            raise UserError("a study needs at least one objective", 'write objectives="min latency_s, min energy_j"')
        names = [o.name for o in self.objectives]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"objectives: {name!r} appears twice")

    @classmethod
    def parse(
        cls, objectives: str | Sequence[str], constraints: str | Sequence[str] = (), known: Iterable[str] | None = None
    ) -> Goal:
        """Return the goal that the texts describe.

        Args:
            objectives: "min|max METRIC", separated by commas or in a list.
            constraints: "METRIC <= BOUND" or ">=", likewise; a bound may carry a unit.
            known: names of the metrics that the study's cost models give; all by default.

        Raises:
            UserError: text that is none of these, with the place; an unknown metric, with the nearest.
        """
        names = None if known is None else list(known)
        return cls(
            tuple(_objective(text, names) for text in _items(objectives)),
            tuple(_constraint(text, names) for text in _items(constraints)),
        )

    @property
    def n_objectives(self) -> int:
        """Number of objectives."""
        return len(self.objectives)

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics it needs."""
        return list(dict.fromkeys([o.name for o in self.objectives] + [c.name for c in self.constraints]))

    def to_minimise(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the objectives as columns to be minimised, shape (n, m), C order."""
        return np.stack([o.sign * values[o.name] for o in self.objectives], axis=1)

    def margins(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return how far each constraint is exceeded, relative to its bound, negative where it holds, shape (n, c)."""
        n = len(values[self.objectives[0].name])
        found = np.empty((n, len(self.constraints)))
        for i, constraint in enumerate(self.constraints):
            found[:, i] = constraint.margin_ratio(values[constraint.name])
        return found

    def violation(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the summed relative excess over all constraints, 0 where all hold, shape (n,)."""
        n = len(values[self.objectives[0].name])
        total = np.zeros(n)
        for constraint in self.constraints:
            total = total + constraint.excess_ratio(values[constraint.name])
        return total

    def broken(self, values: Mapping[str, float]) -> list[str]:
        """Return each constraint that one design breaks, with its value."""
        out = []
        for c in self.constraints:
            value = values[c.name]
            if c.excess_ratio(np.array([value]))[0] > 0:
                out.append(f"{c} is broken: {units.format_quantity(value, c.name)}")
        return out

    def to_json(self) -> dict[str, list[str]]:
        """Return the texts that :meth:`parse` reads, bounds at full precision."""
        return {
            "objectives": [str(o) for o in self.objectives],
            "constraints": [f"{c.name} {'<=' if c.sign > 0 else '>='} {c.bound!r}" for c in self.constraints],
        }


def _items(text: str | Sequence[str]) -> list[str]:
    items = text.split(",") if isinstance(text, str) else list(text)
    return [item for item in items if item.strip()]


def _objective(text: str, known: Sequence[str] | None) -> Objective:
    match = _OBJECTIVE.fullmatch(text)
    words = {"min": 1, "minimise": 1, "minimize": 1, "max": -1, "maximise": -1, "maximize": -1}
    if match is None or match[1] not in words:
        raise UserError(f"objective {text.strip()!r} is not 'min METRIC' or 'max METRIC'", "e.g. 'min latency_s'")
    return Objective(metric(match[2], known).name, words[match[1]])


def _constraint(text: str, known: Sequence[str] | None) -> Constraint:
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise UserError(f"constraint {text.strip()!r} is not 'METRIC <= BOUND'", "e.g. 'memory_bytes <= 4 GiB'")
    if match[2] in ("==", "=", "!="):
        raise UserError(f"constraint {text.strip()!r}: a measured quantity is never exactly equal", "use <= or >=")
    name = metric(match[1], known).name
    return Constraint(name, 1 if match[2][0] == "<" else -1, units.parse(match[3], name))
