"""What is written and read: studies, leases, batches, metrics. Statements only; what they mean is decided elsewhere."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from dse.errors import StoreRefused, UserError, unknown
from dse.metrics import MetricBatch, Status, ToldLimit
from dse.store import tables
from dse.store.failures import translated

STATES: Final = ("new", "running", "paused", "interrupted", "stopped", "finished", "failed")
LEASE_S: Final = 60.0
HEARTBEAT_S: Final = 15.0
STALE_S: Final = 3600.0
_GIVEN_BACK: Final[set[str]] = set()


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A study as listings show it."""

    id: int
    name: str
    state: str
    stop_reason: str
    target: int
    n_designs: int
    created_s: float
    updated_s: float
    asked: int
    spec: Mapping[str, Any]
    reference: np.ndarray | None

    @property
    def objectives(self) -> list[str]:
        """What it optimises, as text; "damaged" where the definition cannot be read."""
        return self._goal("objectives") or ["damaged"]

    @property
    def constraints(self) -> list[str]:
        """What bounds it, as text."""
        return self._goal("constraints")

    def _goal(self, part: str) -> list[str]:
        goal = self.spec.get("goal") if isinstance(self.spec, Mapping) else None
        texts = goal.get(part) if isinstance(goal, Mapping) else None
        return [str(text) for text in texts] if isinstance(texts, list) else []


@dataclass(frozen=True, slots=True)
class EvaluatorRow:
    """A cost model of a study, and the columns of its packed metrics."""

    id: int
    group: str
    fidelity: str
    cost_model: str
    version: str
    fingerprint: str


@dataclass
class StoredStudy:
    """All designs of a study, as arrays in proposal order.

    Attributes:
        codes: shape (n, p).
        hashes: content hashes.
        batches: batch number of each design, shape (n,).
        marks: proposer's mark or -1, shape (n,).
        parents: numbers of the designs each was derived from.
        proposers: batch number -> proposer.
        n_batches: batches proposed so far.
        n_proposed_by_batch: designs proposed in each batch, duplicates included.
        metrics: one batch per evaluator, NaN where a design has no evaluation yet.
        evaluated: whether all evaluators have answered, shape (n,).
    """

    codes: np.ndarray
    hashes: list[bytes]
    batches: np.ndarray
    marks: np.ndarray
    parents: list[tuple[int, ...]]
    proposers: dict[int, str]
    n_batches: int
    n_proposed_by_batch: list[int]
    metrics: list[MetricBatch]
    evaluated: np.ndarray


class Store:
    """A database of studies.

    Args:
        engine: an engine whose database was checked.
        shown: its URL without the password.
    """

    def __init__(self, engine: Engine, shown: str) -> None:
        self.engine = engine
        self.shown = shown
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    # ------------------------------------------------------------------ studies

    def studies(self) -> list[StudyRow]:
        """Return all studies, newest first."""
        with self._reading() as connection:
            rows = connection.execute(_with_counts().order_by(tables.study.c.created_s.desc())).all()
        return [_study_row(row) for row in rows]

    def study(self, name: str) -> StudyRow:
        """Return a study by name.

        Raises:
            NameUnknown: there is none, with the nearest.
        """
        with self._reading() as connection:
            row = connection.execute(_with_counts().where(tables.study.c.name == name)).one_or_none()
            names = connection.execute(select(tables.study.c.name)).scalars().all()
        if row is None:
            raise unknown("study", name, names, f"'dse studies' lists those in {self.shown}")
        return _study_row(row)

    def has_study(self, name: str) -> bool:
        """Return whether there is a study of that name."""
        with self._reading() as connection:
            return connection.execute(select(tables.study.c.id).where(tables.study.c.name == name)).first() is not None

    def create_study(self, name: str, spec: Mapping[str, Any]) -> StudyRow:
        """Store a new study and return it."""
        now = time.time()
        with self._writing() as connection:
            connection.execute(
                insert(tables.study).values(name=name, spec=json.dumps(spec), state="new", created_s=now, updated_s=now)
            )
        return self.study(name)

    def update_study(self, study_id: int, **values: Any) -> None:
        """Set columns of a study (state, stop_reason, target, asked, reference)."""
        if "reference" in values and values["reference"] is not None:
            values["reference"] = json.dumps([float(v) for v in values["reference"]])
        with self._writing() as connection:
            connection.execute(
                update(tables.study).where(tables.study.c.id == study_id).values(updated_s=time.time(), **values)
            )

    # ------------------------------------------------------------------ lease and control

    def acquire(self, study_id: int, name: str) -> None:
        """Take the lease of a study: from now on this process is its one writer. Old requests to it are dropped.

        A lease that ran out, or whose owner ran on this machine and is gone, is taken over.

        Raises:
            StoreRefused: another process holds it.
        """
        now = time.time()
        _GIVEN_BACK.discard(self.owner)
        with self._writing() as connection:
            held = connection.execute(
                select(tables.study.c.lease_owner, tables.study.c.lease_until_s).where(tables.study.c.id == study_id)
            ).one()
            if held.lease_owner != self.owner and _is_held(held.lease_owner, held.lease_until_s, now):
                host, pid, _ = held.lease_owner.split(":")
                raise StoreRefused(
                    f"study {name!r} is being run by process {pid} on {host}",
                    "stop that one first ('dse stop NAME'), or wait until it has ended",
                )
            connection.execute(
                update(tables.study)
                .where(tables.study.c.id == study_id)
                .values(lease_owner=self.owner, lease_until_s=now + LEASE_S)
            )
            connection.execute(delete(tables.control).where(tables.control.c.study_id == study_id))

    def renew(self, study_id: int) -> None:
        """Prolong the lease.

        Raises:
            StoreRefused: another process has taken over.
        """
        with self._writing() as connection:
            self._renew(connection, study_id)

    def release(self, study_id: int) -> None:
        """Give the lease back, if it is ours; where that cannot be written, this process at least knows."""
        _GIVEN_BACK.add(self.owner)
        with self._writing() as connection:
            connection.execute(
                update(tables.study)
                .where(tables.study.c.id == study_id, tables.study.c.lease_owner == self.owner)
                .values(lease_owner=None, lease_until_s=None)
            )

    def request(self, name: str, request: str) -> None:
        """Ask the coordinator of a study to "pause", "resume" or "stop".

        Raises:
            NameUnknown: there is no such study.
            UserError: nobody runs it.
        """
        row = self.study(name)
        if row.state not in ("running", "paused"):
            raise UserError(f"study {name!r} is not running, so it cannot {request}", "'dse run FILE' continues it")
        with self._writing() as connection:
            connection.execute(delete(tables.control).where(tables.control.c.study_id == row.id))
            connection.execute(insert(tables.control).values(study_id=row.id, request=request, requested_s=time.time()))

    def take_request(self, study_id: int) -> str:
        """Return what was asked of this study since the last call, "" if nothing; a "pause" stays until "resume"."""
        with self._reading() as connection:
            asked = connection.execute(
                select(tables.control.c.request).where(tables.control.c.study_id == study_id)
            ).scalar_one_or_none()
        if asked in ("stop", "resume"):
            with self._writing() as connection:
                connection.execute(delete(tables.control).where(tables.control.c.study_id == study_id))
        return asked or ""

    # ------------------------------------------------------------------ evaluators

    def evaluators(self, study_id: int) -> list[EvaluatorRow]:
        """Return the evaluators of a study, in the order they were added."""
        with self._reading() as connection:
            rows = connection.execute(
                select(tables.evaluator).where(tables.evaluator.c.study_id == study_id).order_by(tables.evaluator.c.id)
            ).all()
        return [EvaluatorRow(r.id, r.metric_group, r.fidelity, r.cost_model, r.version, r.fingerprint) for r in rows]

    def add_evaluator(
        self, study_id: int, group: str, fidelity: str, cost_model: str, version: str, fingerprint: str
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
        rows = [
            {
                "study_id": study_id,
                "number": first + i,
                "batch": number,
                "hash": hashes[i],
                "codes": codes[i].tobytes(),
                "mark": None if marks[i] < 0 else int(marks[i]),
                "parents": ",".join(map(str, parents[i])) or None,
            }
            for i in range(len(codes))
        ]
        with self._writing() as connection:
            connection.execute(
                insert(tables.batch).values(
                    study_id=study_id,
                    number=number,
                    proposer=proposer,
                    n_asked=n_asked,
                    n_proposed=n_proposed,
                    n_designs=len(rows),
                    is_done=not rows,
                    created_s=time.time(),
                )
            )
            if rows:
                connection.execute(insert(tables.design), rows)
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
        with self._writing() as connection:
            rows: list[dict[str, Any]] = []
            for evaluator_id, metrics in results:
                packed = self._pack(connection, evaluator_id, metrics)
                status, excess = metrics.status, metrics.excess_ratio
                rows += [
                    {
                        "study_id": study_id,
                        "number": first + i,
                        "evaluator_id": evaluator_id,
                        "status": int(status[i]),
                        "excess_ratio": float(excess[i]),
                        "metrics": packed[i].tobytes() if status[i] == Status.OK else b"",
                        "reason": metrics.reason(i) or None if status[i] != Status.OK else None,
                    }
                    for i in range(len(metrics))
                ]
            connection.execute(insert(tables.evaluation), rows)
            if is_last:
                connection.execute(
                    update(tables.batch)
                    .where(tables.batch.c.study_id == study_id, tables.batch.c.number == batch)
                    .values(is_done=True)
                )
            self._renew(connection, study_id)

    def _pack(self, connection: Connection, evaluator_id: int, metrics: MetricBatch) -> np.ndarray:
        text = connection.execute(
            select(tables.evaluator.c.layout).where(tables.evaluator.c.id == evaluator_id)
        ).scalar_one()
        layout = json.loads(text)
        columns = _columns(metrics)
        fresh = [name for name in columns if name not in layout["columns"]]
        basis = layout["basis"] | dict(metrics.basis)
        if fresh or basis != layout["basis"]:
            layout = {"columns": layout["columns"] + fresh, "basis": basis}
            connection.execute(
                update(tables.evaluator).where(tables.evaluator.c.id == evaluator_id).values(layout=json.dumps(layout))
            )
        blank = np.full(len(metrics), np.nan)
        return np.stack([columns.get(name, blank) for name in layout["columns"]] or [blank], axis=1).astype("<f8")

    # ------------------------------------------------------------------ reading back

    def load(self, study_id: int, code_dtype: np.dtype, n_parameters: int) -> StoredStudy:
        """Return all designs of a study with all their metrics, as arrays."""
        with self._reading() as connection:
            designs = connection.execute(
                select(
                    tables.design.c.number,
                    tables.design.c.batch,
                    tables.design.c.hash,
                    tables.design.c.codes,
                    tables.design.c.mark,
                    tables.design.c.parents,
                )
                .where(tables.design.c.study_id == study_id)
                .order_by(tables.design.c.number)
            ).all()
            batches = connection.execute(
                select(tables.batch.c.number, tables.batch.c.proposer, tables.batch.c.n_proposed)
                .where(tables.batch.c.study_id == study_id)
                .order_by(tables.batch.c.number)
            ).all()
            evaluators = connection.execute(
                select(tables.evaluator.c.id, tables.evaluator.c.layout)
                .where(tables.evaluator.c.study_id == study_id)
                .order_by(tables.evaluator.c.id)
            ).all()
            answers = [
                self._answers(connection, study_id, e.id, json.loads(e.layout), len(designs)) for e in evaluators
            ]
        codes = np.frombuffer(b"".join(d.codes for d in designs), dtype=code_dtype).reshape(len(designs), n_parameters)
        evaluated = np.ones(len(designs), dtype=bool)
        for _, there in answers:
            evaluated &= there
        return StoredStudy(
            codes=codes,
            hashes=[d.hash for d in designs],
            batches=np.array([d.batch for d in designs], dtype=np.int64),
            marks=np.array([-1 if d.mark is None else d.mark for d in designs], dtype=np.int64),
            parents=[tuple(map(int, d.parents.split(","))) if d.parents else () for d in designs],
            proposers={b.number: b.proposer for b in batches},
            n_batches=len(batches),
            n_proposed_by_batch=[b.n_proposed for b in batches],
            metrics=[metrics for metrics, _ in answers],
            evaluated=evaluated,
        )

    @staticmethod
    def _answers(
        connection: Connection, study_id: int, evaluator_id: int, layout: Mapping[str, Any], n: int
    ) -> tuple[MetricBatch, np.ndarray]:
        rows = connection.execute(
            select(
                tables.evaluation.c.number,
                tables.evaluation.c.status,
                tables.evaluation.c.excess_ratio,
                tables.evaluation.c.metrics,
                tables.evaluation.c.reason,
            )
            .where(tables.evaluation.c.study_id == study_id, tables.evaluation.c.evaluator_id == evaluator_id)
            .order_by(tables.evaluation.c.number)
        ).all()
        return _unpack(rows, layout, n)

    # ------------------------------------------------------------------ connections

    def _renew(self, connection: Connection, study_id: int) -> None:
        now = time.time()
        changed = connection.execute(
            update(tables.study)
            .where(tables.study.c.id == study_id, tables.study.c.lease_owner == self.owner)
            .values(lease_until_s=now + LEASE_S, updated_s=now)
        )
        if changed.rowcount != 1:
            raise StoreRefused(
                "another process has taken over this study; nothing of this batch was stored",
                "run one coordinator per study",
            )

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with translated(self.shown), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with translated(self.shown), self.engine.begin() as connection:
            yield connection


def _with_counts() -> Any:
    counts = (
        select(tables.design.c.study_id, func.count().label("n_designs")).group_by(tables.design.c.study_id).subquery()
    )
    return select(tables.study, func.coalesce(counts.c.n_designs, 0).label("n_designs")).outerjoin(
        counts, counts.c.study_id == tables.study.c.id
    )


def _study_row(row: Any) -> StudyRow:
    state = row.state if row.state in STATES else "damaged"
    if state in ("running", "paused") and not _is_held(row.lease_owner, row.lease_until_s, time.time()):
        state = "interrupted"  # its process was killed before it could say so
    return StudyRow(
        id=row.id,
        name=row.name,
        state=state,
        stop_reason=row.stop_reason,
        target=row.target,
        n_designs=row.n_designs,
        created_s=row.created_s,
        updated_s=row.updated_s,
        asked=row.asked,
        spec=_read_spec(row.spec),
        reference=None if row.reference is None else np.array(json.loads(row.reference)),
    )


def _read_spec(text: str) -> Mapping[str, Any]:
    try:
        spec = json.loads(text)
    except ValueError:
        return {}
    return spec if isinstance(spec, dict) else {}


def _is_held(owner: str | None, until_s: float | None, now_s: float) -> bool:
    """Return whether a lease has a living owner.

    Of an owner on this machine its process decides, whatever the clock says, for an hour past the lease's end (by then
    the number may be another process's); of one elsewhere the lease's end decides.
    """
    if not owner or until_s is None or owner in _GIVEN_BACK:
        return False
    host, _, rest = owner.partition(":")
    if host != socket.gethostname():
        return until_s > now_s
    try:
        os.kill(int(rest.partition(":")[0]), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return until_s + STALE_S > now_s


def _columns(metrics: MetricBatch) -> dict[str, np.ndarray]:
    """Return the packed columns by name: values, then lower and upper ends of intervals as "name<" and "name>"."""
    columns = dict(metrics.values)
    for name, (low, high) in metrics.intervals.items():
        columns[name + "<"], columns[name + ">"] = low, high
    return columns


def _unpack(rows: Sequence[Any], layout: Mapping[str, Any], n: int) -> tuple[MetricBatch, np.ndarray]:
    names: list[str] = layout["columns"]
    table = np.full((n, len(names)), np.nan)
    there = np.zeros(n, dtype=bool)
    excess = np.zeros(n)
    reasons: dict[int, str] = {}
    errors: dict[int, str] = {}
    for row in rows:
        there[row.number] = True
        excess[row.number] = row.excess_ratio
        if row.metrics:
            packed = np.frombuffer(row.metrics, dtype="<f8")
            table[row.number, : len(packed)] = packed
        if row.reason and row.status == Status.FAILED:
            errors[row.number] = row.reason
        elif row.reason:
            reasons[row.number] = row.reason
    columns = {name: table[:, j] for j, name in enumerate(names)}
    values = {name: v for name, v in columns.items() if name[-1] not in "<>"}
    intervals = {name: (columns[name + "<"], columns[name + ">"]) for name in values if name + "<" in columns}
    return MetricBatch(values, n, intervals, layout["basis"], [ToldLimit(excess, reasons)], errors), there
