"""Spaces to search in: frozen snapshots, and generated ones to tune on. Nothing here depends on a cost model.

A space of the benchmark is a table of levels and a rule from codes to objectives; :mod:`tests.benchmarks.search.freeze`
says how the snapshots were drawn. Code rows are the designs, so a space needs no problem and no schema, and a later
change of either cannot thaw it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from dse.objectives import Goal
from dse.params import Value
from dse.space import BoundSpace, Parameter

FOLDER = Path(__file__).parent / "frozen"
FORMAT = 1


@dataclass(frozen=True)
class Rows:
    """Designs that are nothing but their codes."""

    hashes: list[bytes]


class CodeSpace(BoundSpace):
    """A bound space without a problem behind it.

    Args:
        levels: the levels of each parameter.
        labels: its name; "p0", "p1", ... by default.
        paths: the declaration each comes from; its label by default.
        conditions: as :class:`~dse.space.BoundSpace` keeps them: (columns, [(other column, codes that activate)]).
    """

    def __init__(
        self,
        levels: Sequence[Sequence[Value]],
        labels: Sequence[str] = (),
        paths: Sequence[str] = (),
        conditions: Sequence[tuple[np.ndarray, list[tuple[int, np.ndarray]]]] = (),
    ) -> None:
        labels = labels or [f"p{j}" for j in range(len(levels))]
        paths = paths or labels
        none = (np.array([], dtype=np.intp),)
        self.parameters = tuple(
            Parameter(label, path, (path.rpartition("/")[2],), tuple(values), none, label.partition("[")[2][:-1])
            for label, path, values in zip(labels, paths, levels, strict=True)
        )
        self._conditions = list(conditions)

    def decode(self, codes: np.ndarray) -> Rows:  # type: ignore[override]
        """Return the rows; their codes are their content."""
        rows = np.ascontiguousarray(self.repair(codes))
        return Rows([blake2b(row.tobytes(), digest_size=16).digest() for row in rows])


@dataclass(frozen=True)
class Frozen:
    """A snapshot.

    Attributes:
        name: its name.
        space: what is searched.
        goal: what for.
        metrics: columns it has.
        columns_of: parameter columns of the knobs that act everywhere, then of each group.
        tables: metric -> (base (h,), left (h, rank), right (rank, values of all groups)).
        drawn_from: the models behind it.
    """

    name: str
    space: CodeSpace
    goal: Goal
    metrics: tuple[str, ...]
    columns_of: tuple[np.ndarray, ...]
    tables: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    drawn_from: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _full(self) -> dict[str, np.ndarray]:
        """Differences for every combination and group value, (h, values), where that is small enough to keep."""
        return {m: left @ right for m, (_, left, right) in self.tables.items() if left.shape[0] * right.shape[1] < 4e6}

    def columns(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of rows of codes, each of shape (n,)."""
        n_levels = self.space.n_levels
        everywhere, *groups = self.columns_of
        h = np.ravel_multi_index(tuple(codes[:, everywhere].T.astype(np.int64)), tuple(n_levels[everywhere]))
        start, values = 0, []
        for columns in groups:
            sizes = tuple(n_levels[columns])
            values.append(start + np.ravel_multi_index(tuple(codes[:, columns].T.astype(np.int64)), sizes))
            start += int(np.prod(sizes))
        found = {}
        for m, (base, left, right) in self.tables.items():
            total = base[h].astype(np.float64)
            if m in self._full:
                for value in values:
                    total += self._full[m][h, value]
            else:
                total += np.einsum("nr,rn->n", left[h], sum(right[:, value] for value in values))
            found[m] = np.maximum(total, 0.0)
        return found

    def evaluate(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return objectives to be minimised, (n, m), and violation, (n,)."""
        columns = self.columns(codes)
        n = len(codes)
        return self.goal.to_minimise(columns, n), self.goal.violation(columns, np.zeros(n))


def load(name: str) -> Frozen:
    """Return a snapshot.

    Raises:
        ValueError: it is of a format that this module does not read.
    """
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    document = json.loads(arrays.pop("document").tobytes())
    if document["format"] != FORMAT:
        raise ValueError(f"{name}: format {document['format']}, expected {FORMAT}")
    return Frozen(
        name=name,
        space=CodeSpace(document["levels"], document["labels"], document["paths"]),
        goal=Goal.parse(document["objectives"], document["constraints"]),
        metrics=tuple(document["metrics"]),
        columns_of=tuple(np.array(c, dtype=np.intp) for c in document["columns"]),
        tables={m: tuple(arrays[f"{m}.{part}"] for part in ("base", "left", "right")) for m in document["metrics"]},
        drawn_from=document["drawn_from"],
    )
