"""What the coordinator writes: batches when they are proposed, their metrics when they are there.

Two commits per batch, each of three statements or fewer, compiled once; a commit that returned is acknowledged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, bindparam, insert, select, update

from dse.metrics import MetricBatch, Status
from dse.store import tables
from dse.store.connection import Prepared
from dse.store.leases import Leases
from dse.store.rows import EvaluatorRow, Promotion


class Writing(Leases):
    """Evaluators, batches and metrics."""

    def __init__(self, engine: Engine, shown: str) -> None:
        super().__init__(engine, shown)
        batch = tables.batch
        self._layouts: dict[int, dict[str, Any]] = {}
        self._new_batch = Prepared(engine, insert(batch).inline(), batch.c.keys())
        self._new_designs = Prepared(
            engine,
            insert(tables.design).inline(),
            ("study_id", "number", "hash", "codes", "mark", "parents"),
        )
        self._new_evaluations = Prepared(engine, insert(tables.evaluation).inline(), tables.evaluation.c.keys())
        self._batch_done = Prepared(
            engine,
            update(batch)
            .where(batch.c.study_id == bindparam("study"), batch.c.number == bindparam("batch_number"))
            .values(is_done=bindparam("done")),
        )

    def evaluators(self, study_id: int) -> list[EvaluatorRow]:
        """Return the evaluators of a study, in the order they were added."""
        with self._reading() as connection:
            rows = connection.execute(
                select(tables.evaluator).where(tables.evaluator.c.study_id == study_id).order_by(tables.evaluator.c.id)
            ).all()
        return [
            EvaluatorRow(r.id, r.metric_group, r.fidelity, r.cost_model, r.version, r.fingerprint, r.rung) for r in rows
        ]

    def add_evaluator(
        self, study_id: int, group: str, fidelity: str, cost_model: str, version: str, fingerprint: str, rung: int = 0
    ) -> EvaluatorRow:
        """Store an evaluator, or return the one that is there already."""
        for row in self.evaluators(study_id):
            if (row.group, row.fidelity, row.fingerprint) == (group, fidelity, fingerprint):
                return row
        with self._writing() as connection:
            connection.execute(
                insert(tables.evaluator).values(
                    study_id=study_id,
                    metric_group=group,
                    fidelity=fidelity,
                    cost_model=cost_model,
                    version=version,
                    fingerprint=fingerprint,
                    layout=json.dumps({"columns": [], "basis": {}}),
                    rung=rung,
                )
            )
        return self.evaluators(study_id)[-1]

    # ------------------------------------------------------------------ batches

    def add_batch(
        self,
        study_id: int,
        number: int,
        proposer: str,
        n_asked: int,
        n_proposed: int,
        first: int,
        codes: np.ndarray,
        hashes: Sequence[bytes],
        marks: np.ndarray,
        parents: Sequence[tuple[int, ...]],
    ) -> None:
        """Commit the new designs of one ask, numbered from ``first``; from here on they are paid for once."""
        n = len(codes)
        with self._writing() as connection:
            self._new_batch.one(
                connection,
                {
                    "study_id": study_id,
                    "number": number,
                    "proposer": proposer,
                    "n_asked": n_asked,
                    "n_proposed": n_proposed,
                    "first": first,
                    "n_designs": n,
                    "is_done": not n,
                    "created_s": time.time(),
                },
            )
            if n:
                self._new_designs.many(
                    connection,
                    {
                        "study_id": [study_id] * n,
                        "number": range(first, first + n),
                        "hash": hashes,
                        "codes": _row_bytes(codes),
                        "mark": [None if mark < 0 else mark for mark in marks.tolist()],
                        "parents": [",".join(map(str, one)) or None for one in parents],
                    },
                )
            self._renew(connection, study_id)

    def add_metrics(
        self, study_id: int, batch: int, first: int, results: Sequence[tuple[int, MetricBatch]], *, is_last: bool
    ) -> None:
        """Commit the metrics of designs ``first``, ``first + 1``, ...

        Args:
            study_id: the study.
            batch: number of their batch.
            first: number of the first design.
            results: (evaluator id, its metrics of these designs).
            is_last: whether this finishes the batch.
        """
        with self._entering(study_id, range(first, first + len(results[0][1])), results) as connection:
            if is_last:
                self._batch_done.one(connection, {"study": study_id, "batch_number": batch, "done": True})

    def add_promotion(self, study_id: int, promotion: Promotion) -> None:
        """Commit who goes up a rung, before they are evaluated there."""
        with self._writing() as connection:
            connection.execute(
                insert(tables.promotion).values(
                    study_id=study_id,
                    number=promotion.number,
                    rung=promotion.rung,
                    n_below=promotion.n_below,
                    n_within_reach=promotion.n_within_reach,
                    designs=promotion.designs.astype("<i8").tobytes(),
                    is_done=False,
                    created_s=time.time(),
                )
            )
            self._renew(connection, study_id)

    def add_promoted(
        self,
        study_id: int,
        number: int,
        designs: Sequence[int],
        results: Sequence[tuple[int, MetricBatch]],
        *,
        is_last: bool,
    ) -> None:
        """Commit the metrics of promoted designs.

        Args:
            study_id: the study.
            number: of the round of promotion.
            designs: their numbers.
            results: (evaluator id, its metrics of these designs).
            is_last: whether this finishes the round.
        """
        with self._entering(study_id, designs, results) as connection:
            if is_last:
                promotion = tables.promotion
                connection.execute(
                    update(promotion)
                    .where(promotion.c.study_id == study_id, promotion.c.number == number)
                    .values(is_done=True)
                )

    @contextmanager
    def _entering(
        self, study_id: int, designs: Sequence[int], results: Sequence[tuple[int, MetricBatch]]
    ) -> Iterator[Connection]:
        """Enter metrics of designs in one transaction, to which the caller may add."""
        layouts: dict[int, dict[str, Any]] = {}
        with self._writing() as connection:
            for evaluator_id, metrics in results:
                layouts[evaluator_id] = self._layout(connection, evaluator_id, metrics)
                packed = _row_bytes(_pack(metrics, layouts[evaluator_id]["columns"]))
                n, status = len(metrics), metrics.status
                reasons: list[str | None] = [None] * n
                for row in np.flatnonzero(status != Status.OK).tolist():
                    packed[row], reasons[row] = b"", metrics.reason(row) or None
                self._new_evaluations.many(
                    connection,
                    {
                        "study_id": [study_id] * n,
                        "number": designs,
                        "evaluator_id": [evaluator_id] * n,
                        "status": status.tolist(),
                        "excess_ratio": metrics.excess_ratio.tolist(),
                        "metrics": packed,
                        "reason": reasons,
                    },
                )
            yield connection
            self._renew(connection, study_id)
        self._layouts |= layouts

    def count_attempt(self, study_id: int, numbers: Sequence[int], error: str) -> None:
        """Record that an evaluation of these designs began and was lost, with the reason."""
        design = tables.design
        with self._writing() as connection:
            for start in range(0, len(numbers), 500):
                connection.execute(
                    update(design)
                    .where(design.c.study_id == study_id, design.c.number.in_(list(numbers[start : start + 500])))
                    .values(attempts=design.c.attempts + 1, last_error=error)
                )
            self._renew(connection, study_id)

    def _layout(self, connection: Connection, evaluator_id: int, metrics: MetricBatch) -> dict[str, Any]:
        """Return the layout of an evaluator's packed columns, grown by those that are new."""
        layout = self._layouts.get(evaluator_id)
        if layout is None:
            evaluator = tables.evaluator
            text = connection.execute(select(evaluator.c.layout).where(evaluator.c.id == evaluator_id)).scalar_one()
            layout = json.loads(text)
        fresh = [name for name in _columns(metrics) if name not in layout["columns"]]
        basis = layout["basis"] | dict(metrics.basis)
        if fresh or basis != layout["basis"]:
            layout = {"columns": layout["columns"] + fresh, "basis": basis}
            connection.execute(
                update(tables.evaluator).where(tables.evaluator.c.id == evaluator_id).values(layout=json.dumps(layout))
            )
        return layout


def _row_bytes(table: np.ndarray) -> list[bytes]:
    """Return each row as bytes."""
    raw, width = table.tobytes(), table[:1].nbytes
    return [raw[i : i + width] for i in range(0, len(raw), width)] if width else [b""] * len(table)


def _pack(metrics: MetricBatch, names: Sequence[str]) -> np.ndarray:
    columns, blank = _columns(metrics), np.full(len(metrics), np.nan)
    return np.stack([columns.get(name, blank) for name in names] or [blank], axis=1).astype("<f8")


def _columns(metrics: MetricBatch) -> dict[str, np.ndarray]:
    """Return the packed columns by name: values, then lower and upper ends of intervals as "name<" and "name>"."""
    columns = dict(metrics.values)
    for name, (low, high) in metrics.intervals.items():
        columns[name + "<"], columns[name + ">"] = low, high
    return columns
