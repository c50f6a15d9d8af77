"""Objectives and constraints, parsed from the text people write.

    objectives   = "min latency_s, max accuracy_ratio"
    constraints  = "area_mm2 <= 40, memory_bytes <= 4 GiB, latency_s < 0.2 s"

A number without a unit is in the unit that the metric's name carries; bytes and hertz need their unit, because "4" of
them is never meant. Inside, all objectives are minimised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dse import units
from dse.errors import UserError
from dse.metrics import metric

_OBJECTIVE = re.compile(r"\s*(\S+)\s+(\S+)\s*")
_CONSTRAINT = re.compile(r"\s*([^\s<>=!]+)\s*(<=|>=|<|>|==|=|!=)\s*(.+?)\s*")
# A bare number is in the unit of the metric's name; of these nobody means the bare unit.
_PREFIXED = ("_bytes", "_bytes_per_s", "_hz")


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
        for most in self.constraints:
            for least in self.constraints:
                if most.name == least.name and most.sign > least.sign and most.bound < least.bound:
                    raise UserError(f"constraints: no design keeps both {most} and {least}")

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

    def to_minimise(self, values: Mapping[str, np.ndarray], n: int) -> np.ndarray:
        """Return the objectives as columns to be minimised, NaN where unknown, shape (n, m), C order."""
        unknown = np.full(n, np.nan)
        return np.stack([o.sign * values.get(o.name, unknown) for o in self.objectives], axis=1)

    def margins(self, values: Mapping[str, np.ndarray], n: int) -> np.ndarray:
        """Return how far each constraint is exceeded, relative to its bound, negative where it holds, shape (n, c).

        NaN where the metric is not known.
        """
        found = np.full((n, len(self.constraints)), np.nan)
        for i, constraint in enumerate(self.constraints):
            if constraint.name in values:
                found[:, i] = constraint.margin_ratio(values[constraint.name])
        return found

    def violation(self, values: Mapping[str, np.ndarray], excess_ratio: np.ndarray) -> np.ndarray:
        """Return how far designs are from being feasible, shape (n,).

        Constraints add their relative excess to that over hard limits. A design that runs, but of which a metric that
        the goal names is not known, is infinitely far: what is not known keeps no bound and has no place on a front.

        Args:
            values: metric columns; a metric that is missing is known of no design.
            excess_ratio: summed excess over hard limits, inf where a cost model failed, shape (n,).
        """
        n = len(excess_ratio)
        unknown = np.full(n, np.nan)
        total = excess_ratio.copy()
        for constraint in self.constraints:
            excess = constraint.excess_ratio(values.get(constraint.name, unknown))
            total = total + np.where(np.isnan(excess) & (excess_ratio > 0), 0.0, excess)
        missing = np.isnan([values.get(o.name, unknown) for o in self.objectives]).any(axis=0)
        return np.where(np.isnan(total) | (missing & (excess_ratio == 0)), np.inf, total)

    def broken(self, values: Mapping[str, float]) -> list[str]:
        """Return each constraint that one design breaks, with its value, and each metric that is not known of it."""
        unknown = [n for n in self.metrics if math.isnan(values.get(n, math.nan))]
        out = [f"{name} is not known of this design" for name in unknown]
        for c in self.constraints:
            if c.name not in unknown and c.excess_ratio(np.array([values[c.name]]))[0] > 0:
                out.append(f"{c} is broken: {units.format_quantity(values[c.name], c.name)}")
        return out

    def to_json(self) -> dict[str, list[str]]:
        """Return texts as :meth:`parse` reads them, bounds at full precision in the unit of the name."""
        return {
            "objectives": [str(o) for o in self.objectives],
            "constraints": [f"{c.name} {'<=' if c.sign > 0 else '>='} {c.bound!r}" for c in self.constraints],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Sequence[str]]) -> Goal:
        """Return the goal that :meth:`to_json` described; metrics of plug-ins that are not installed here included."""
        objectives = [text.split() for text in document["objectives"]]
        constraints = [text.split() for text in document["constraints"]]
        return cls(
            tuple(Objective(name, 1 if word == "min" else -1) for word, name in objectives),
            tuple(Constraint(name, 1 if sign == "<=" else -1, float(bound)) for name, sign, bound in constraints),
        )


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
    if match is None or match[3][0] in "<>=!":
        raise UserError(f"constraint {text.strip()!r} is not 'METRIC <= BOUND'", "e.g. 'memory_bytes <= 4 GiB'")
    if match[2] in ("==", "=", "!="):
        raise UserError(f"constraint {text.strip()!r}: a measured quantity is never exactly equal", "use <= or >=")
    name = metric(match[1], known).name
    bound = units.parse(match[3], name)
    if match[3][-1].isdigit() and name.endswith(_PREFIXED):
        unit = units.unit_of(name)
        raise UserError(
            f"constraint {text.strip()!r} has no unit, and {name} spans many of them",
            f"write '{match[3]} Gi{unit}' or '{match[3]} {unit}'" if unit == "B" else f"write '{match[3]} G{unit}'",
        )
    return Constraint(name, 1 if match[2][0] == "<" else -1, bound)
