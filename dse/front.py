"""The Pareto front of a study: as a table for people, as a frame, as rows for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dse import text
from dse.shown import show

if TYPE_CHECKING:
    import pandas as pd

    from dse.results import Results

PRINTED_ROWS: Final = 24


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

    @cached_property
    def priors(self) -> list[str]:
        """Names of the objectives that rest on a prior with an interval."""
        metrics, objectives = self.results.metrics, self.results.goal.objectives
        return [o.name for o in objectives if metrics.basis.get(o.name) == "prior" and o.name in metrics.intervals]

    @cached_property
    def by_prior(self) -> np.ndarray:
        """Which designs are on the front by a prior alone, boolean, shape (len(self),).

        With the objectives that rest on a prior at the worse end of their intervals for such a design, and at the
        better end for another one of the front, that one is as good in every objective. Intervals are taken as
        independent; where two designs err alike, which nobody knows beforehand, the order is safer than this says.
        """
        best = self.results.objectives[self.numbers].copy()
        worst = best.copy()
        for i, objective in enumerate(self.results.goal.objectives):
            if objective.name in self.priors:
                ends = [objective.sign * e[self.numbers] for e in self.results.metrics.intervals[objective.name]]
                best[:, i], worst[:, i] = np.fmin(*ends), np.fmax(*ends)
        if not self.priors:
            return np.zeros(len(self), dtype=bool)
        out = np.zeros(len(self), dtype=bool)
        block = max(1, 4_000_000 // len(self)) if len(self) else 1
        for start in range(0, len(self), block):
            as_good = np.ones((len(worst[start : start + block]), len(self)), dtype=bool)
            for good, bad in zip(best.T, worst[start : start + block].T, strict=True):
                as_good &= good <= bad[:, None]
            out[start : start + block] = as_good.sum(axis=1) > 1  # itself is one
        return out

    def table(self, limit: int | None = None) -> tuple[list[str], list[list[str]]]:
        """Return header and rows as text; a metric that rests on a prior says so, with its interval.

        A star marks the designs of :attr:`by_prior`.

        Args:
            limit: at most so many rows, at equal steps along the first objective, both ends among them.
        """
        metrics, names = self.results.metrics, self.columns()
        header = ["design", *(f"{n} ({b})" if (b := metrics.basis.get(n)) == "prior" else n for n in names)]
        chosen = self.numbers
        if limit is not None and len(chosen) > limit:
            chosen = chosen[np.linspace(0, len(chosen) - 1, limit).round().astype(int)]
        doubted = set(self.numbers[self.by_prior].tolist())
        rows = [[f"{n}{'*' * (n in doubted)}", *(show(metrics, name, int(n)) for name in names)] for n in chosen]
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
        if len(results.fidelities) > 1:
            where += f" at {results.fidelity} ({int(results.evaluated.sum()):,} of {len(results):,} designs)"
        if not len(self):
            return f"{where}: no feasible design among {len(results)}{self._nearest()}"
        stars = f"\n* {doubts}" if (doubts := self.doubts()) else ""
        return f"{len(self)} designs on the front of {where}\n{text.table(*self.table(limit))}{stars}{self._beside()}"

    def doubts(self) -> str:
        """Return a line on the designs of :attr:`by_prior`, "" where there are none."""
        n = int(self.by_prior.sum())
        return f"{n} of {len(self)} are on the front {self._only_by()}" if n else ""

    def doubt(self, number: int) -> str:
        """Return that a design is one of :attr:`by_prior`, "" where it is none."""
        return f"on the front {self._only_by()}" if number in self.numbers[self.by_prior] else ""

    def _only_by(self) -> str:
        which = " and ".join(self.priors)
        return f"only by the prior of {which}: within its interval another one is as good in everything"

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
