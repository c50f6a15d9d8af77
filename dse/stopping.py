"""When a run ends before it has evaluated all it was asked for: a clock, a plateau, a target.

A plateau and a target are functions of the stored results alone: they say the same in a run that was interrupted and
taken up again as in one that was not. A clock counts the time of one run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dse import units
from dse.errors import UserError
from dse.hypervolume import hypervolume
from dse.loop import Progress
from dse.objectives import Constraint, Goal
from dse.pareto import constrained_front
from dse.record import Record

_CLOCK_S: Final = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Plateau:
    """The front has stopped growing.

    With V(n) the hypervolume of the first n designs up to the study's reference point, the run ends at n designs where

        V(n) - V(n - designs) <= gain_ratio V(n),

    looked at after the first batch behind every ``designs / 8`` designs, and not before n - ``designs`` of them have
    given a feasible one.

    Attributes:
        designs: how far to look back.
        gain_ratio: the least gain over them that is worth going on for.
    """

    designs: int = 1000
    gain_ratio: float = 0.001

    def __post_init__(self) -> None:
        if self.designs < 1 or not 0 <= self.gain_ratio < 1:
            raise UserError(
                f"plateau: designs={self.designs}, gain_ratio={self.gain_ratio}",
                "1 or more designs, and a ratio from 0 to below 1",
            )


@dataclass(frozen=True)
class Rules:
    """What ends a run.

    Attributes:
        wall_clock_s: seconds, inf for none.
        plateau: None for none.
        bounds: to be kept by one feasible design, all of them; empty for none.
        volume: the hypervolume to be reached, inf for none.
    """

    goal: Goal
    wall_clock_s: float = math.inf
    plateau: Plateau | None = None
    bounds: tuple[Constraint, ...] = ()
    volume: float = math.inf

    @classmethod
    def read(
        cls,
        goal: Goal,
        metrics: Sequence[str],
        wall_clock: float | str | None,
        plateau: Plateau | None,
        target: float | str | None,
    ) -> Rules:
        """Return the rules that people wrote.

        Raises:
            UserError: a time that is none, or a target on something that is no objective.
        """
        seconds = math.inf if wall_clock is None else _seconds(wall_clock)
        if target is None or isinstance(target, int | float):
            volume = math.inf if target is None else units.parse(target, "hypervolume")
            return cls(goal, seconds, plateau, (), volume)
        bounds = Goal.parse([f"min {goal.objectives[0].name}"], target, metrics).constraints
        names = [o.name for o in goal.objectives]
        for bound in bounds:
            if bound.name not in names:
                raise UserError(f"target {bound}: {bound.name} is no objective", f"one of {', '.join(names)}")
        return cls(goal, seconds, plateau, bounds)

    def clock(self) -> Callable[[], str]:
        """Start the clock and return what says that it has run out, "" while it has not."""
        end_s = time.monotonic() + self.wall_clock_s
        return lambda: f"{self.wall_clock_s:g} s of wall clock are over" if time.monotonic() >= end_s else ""

    def watch(self, record: Record, clock: Callable[[], str]) -> Callable[[Progress], str]:
        """Return what a loop asks after each batch: the reason to end here, "" to go on."""
        looked_at = [record.n]

        def rule(progress: Progress) -> str:
            if is_over := clock():
                return is_over
            if self.bounds and self._is_kept(progress.points):
                return f"target reached: {', '.join(map(str, self.bounds))}"
            if self.volume < math.inf and progress.hypervolume >= self.volume:
                return f"target reached: hypervolume {progress.hypervolume:.6g}"
            if self.plateau is None or progress.reference is None:
                return ""
            before, looked_at[0] = looked_at[0], record.n
            step = max(1, self.plateau.designs // 8)
            if record.n // step == before // step:
                return ""
            return self._flat(self.plateau, record, progress)

        return rule

    def _is_kept(self, points: np.ndarray) -> bool:
        kept = np.ones(len(points), dtype=bool)
        for bound in self.bounds:
            column, objective = next((j, o) for j, o in enumerate(self.goal.objectives) if o.name == bound.name)
            kept &= bound.margin_ratio(objective.sign * points[:, column]) <= 0
        return bool(kept.any())

    @staticmethod
    def _flat(plateau: Plateau, record: Record, progress: Progress) -> str:
        n, reference = record.n - plateau.designs, progress.reference
        violation, objectives = record.violation()[: max(n, 0)], record.objectives()[: max(n, 0)]
        if reference is None or n < 1 or not (violation == 0).any():
            return ""
        before = hypervolume(objectives[constrained_front(objectives, violation)], reference)
        if progress.hypervolume - before > plateau.gain_ratio * progress.hypervolume:
            return ""
        return f"plateau: {plateau.designs:,} designs added no more than {plateau.gain_ratio:.3g} of the hypervolume"


def _seconds(text: float | str) -> float:
    number, unit = text, "s"
    if isinstance(text, str):
        head = text.strip()
        tail = head.lstrip("0123456789.")
        number, unit = head[: len(head) - len(tail)], tail.strip() or "s"
    try:
        seconds = float(number) * _CLOCK_S[unit]
    except (KeyError, ValueError):
        raise UserError(f"wall_clock={text!r} is no time", "write seconds, '90 min' or '2 h'") from None
    if not 0 < seconds < math.inf:
        raise UserError(f"wall_clock={text!r} is not more than nothing")
    return seconds
