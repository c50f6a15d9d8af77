"""The store: studies, leases, what the coordinator writes, and (here) what is read back of it."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from dse.metrics import MetricBatch, Status, ToldLimit
from dse.store import tables
from dse.store.calling import Calling
from dse.store.rows import Answers, Promotion, StoredStudy


class Store(Calling):
    """A database of studies.

    Args:
        engine: an engine whose database was checked.
        shown: its URL without the password.
    """

    def load(self, study_id: int, code_dtype: np.dtype, n_parameters: int, first: int = 0) -> StoredStudy:
        """Return the designs of a study with all their metrics, as arrays.

        Args:
            study_id: the study.
            code_dtype: how its codes are stored.
            n_parameters: how many a design has.
            first: leave out designs before this number, which begins a batch; see :meth:`StoredStudy.continued`.
        """
        design, batch, evaluator = tables.design, tables.batch, tables.evaluator
        with _no_collection(), self._reading() as connection:
            # What refers to designs first, batches before designs: a writer that commits between two of these
            # statements adds rows that are left out.
            promotions = connection.execute(
                select(tables.promotion)
                .where(tables.promotion.c.study_id == study_id)
                .order_by(tables.promotion.c.number)
            ).all()
            batches = connection.execute(
                select(batch.c.number, batch.c.proposer, batch.c.n_proposed, batch.c.n_designs, batch.c.created_s)
                .where(batch.c.study_id == study_id, batch.c.first >= first)
                .order_by(batch.c.number)
            ).all()
            last = first + sum(b.n_designs for b in batches)
            hashes, codes, marks, parents, attempts = _columns_of(
                connection.execute(
                    select(design.c.hash, design.c.codes, design.c.mark, design.c.parents, design.c.attempts)
                    .where(design.c.study_id == study_id, design.c.number >= first, design.c.number < last)
                    .order_by(design.c.number)
                ).all(),
                5,
            )
            errors = connection.execute(
                select(design.c.number, design.c.last_error).where(
                    design.c.study_id == study_id,
                    design.c.number >= first,
                    design.c.number < last,
                    design.c.last_error.is_not(None),
                )
            ).all()
            evaluators = connection.execute(
                select(evaluator.c.id, evaluator.c.layout, evaluator.c.rung)
                .where(evaluator.c.study_id == study_id)
                .order_by(evaluator.c.id)
            ).all()
            base, upper = {}, {}
            for e in evaluators:
                layout = json.loads(e.layout)
                if e.rung == 0:
                    base[e.id] = _answers(connection, study_id, e.id, layout, first, last)
                else:  # a design may go up long after its batch was evaluated
                    upper[e.id] = _answers(connection, study_id, e.id, layout, 0, last)
        n = last - first
        return StoredStudy(
            codes=np.frombuffer(b"".join(codes), dtype=code_dtype).reshape(n, n_parameters),
            hashes=list(hashes),
            batches=np.repeat([b.number for b in batches], [b.n_designs for b in batches]).astype(np.int64),
            marks=np.array([-1 if mark is None else mark for mark in marks], dtype=np.int64),
            parents_text=list(parents),
            attempts=np.array(attempts, dtype=np.int64),
            last_errors={e.number - first: e.last_error for e in errors},
            proposers={b.number: b.proposer for b in batches},
            n_batches=len(batches),
            n_proposed_by_batch=[b.n_proposed for b in batches],
            created_s=np.array([b.created_s for b in batches], dtype=np.float64),
            base=base,
            upper=upper,
            promotions=[
                Promotion(
                    p.number, p.rung, p.n_below, p.n_within_reach, np.frombuffer(p.designs, dtype="<i8"), p.is_done
                )
                for p in promotions
            ],
        )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Put off garbage collection: it would go through hundreds of thousands of fresh rows again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _columns_of(rows: Sequence[Any], width: int) -> list[Sequence[Any]]:
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _answers(
    connection: Connection, study_id: int, evaluator_id: int, layout: Mapping[str, Any], first: int, last: int
) -> Answers:
    """Return what one evaluator has answered of designs ``first`` to ``last - 1``."""
    t, n = tables.evaluation, last - first
    mine = (t.c.study_id == study_id, t.c.evaluator_id == evaluator_id, t.c.number >= first, t.c.number < last)
    numbers, status, excess, packed = _columns_of(
        connection.execute(
            select(t.c.number, t.c.status, t.c.excess_ratio, t.c.metrics).where(*mine).order_by(t.c.number)
        ).all(),
        4,
    )
    reasons = connection.execute(select(t.c.number, t.c.reason).where(*mine, t.c.reason.is_not(None))).all()
    rows, states = np.array(numbers, dtype=np.intp) - first, np.array(status, dtype=np.int64)
    names: list[str] = layout["columns"]
    table, there, excesses = np.full((n, len(names)), np.nan), np.zeros(n, dtype=bool), np.zeros(n)
    there[rows] = True
    excesses[rows] = excess
    lengths = np.array([len(blob) for blob in packed], dtype=np.int64)
    for length in np.unique(lengths[lengths > 0]).tolist():  # a layout grows at its end: early rows are shorter
        chosen = np.flatnonzero(lengths == length)
        values = np.frombuffer(b"".join([packed[i] for i in chosen.tolist()]), dtype="<f8").reshape(len(chosen), -1)
        table[rows[chosen], : values.shape[1]] = values
    failed = set(rows[states == Status.FAILED].tolist())
    texts = {r.number - first: r.reason for r in reasons}
    told = {row: text for row, text in texts.items() if row not in failed}
    broke = {row: text for row, text in texts.items() if row in failed}
    columns = {name: table[:, j] for j, name in enumerate(names)}
    values_of = {name: v for name, v in columns.items() if name[-1] not in "<>"}
    intervals = {name: (columns[name + "<"], columns[name + ">"]) for name in values_of if name + "<" in columns}
    metrics = MetricBatch(values_of, n, intervals, layout["basis"], [ToldLimit(excesses, told)], broke)
    return Answers(metrics, there)
