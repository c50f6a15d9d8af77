"""Studies as rows: created, listed, updated; one whose definition cannot be read does not hide the others."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from sqlalchemy import func, insert, select, update

from dse.errors import unknown
from dse.store import tables
from dse.store.connection import Connected
from dse.store.rows import StudyRow

STATES: Final = ("new", "running", "paused", "interrupted", "stopped", "finished", "failed")
STALE_S: Final = 3600.0
GIVEN_BACK: Final[set[str]] = set()  # leases of this process that it has done with, written or not


class Studies(Connected):
    """Studies as rows."""

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


def _with_counts() -> Any:
    counts = (
        select(tables.batch.c.study_id, func.sum(tables.batch.c.n_designs).label("n_designs"))
        .group_by(tables.batch.c.study_id)
        .subquery()
    )
    return select(tables.study, func.coalesce(counts.c.n_designs, 0).label("n_designs")).outerjoin(
        counts, counts.c.study_id == tables.study.c.id
    )


def _study_row(row: Any) -> StudyRow:
    state = row.state if row.state in STATES else "damaged"
    held = is_held(row.lease_owner, row.lease_until_s, time.time())
    if state in ("running", "paused") and not held:
        state = "interrupted"  # its process was killed before it could say so
    return StudyRow(
        id=row.id,
        name=row.name,
        state=state,
        stop_reason=row.stop_reason,
        target=row.target,
        lease="held" if held else "lost" if row.lease_owner else "",
        n_designs=int(row.n_designs),
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


def is_held(owner: str | None, until_s: float | None, now_s: float) -> bool:
    """Return whether a lease has a living owner.

    Of an owner on this machine its process decides, whatever the clock says, for an hour past the lease's end (by then
    the number may be another process's); of one elsewhere the lease's end decides.
    """
    if not owner or until_s is None or owner in GIVEN_BACK:
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
