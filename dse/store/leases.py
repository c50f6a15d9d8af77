"""Who writes a study, and what users ask of it while it runs.

The coordinator holds a lease, renewed with every commit and by a heartbeat. A lease that was not given back is lost:
the designs that were under way then are *stale* until somebody takes the study over.
"""

from __future__ import annotations

import time
from typing import Any, Final

from sqlalchemy import Connection, Engine, bindparam, delete, insert, select, update

from dse.errors import StoreRefused, UserError
from dse.store import tables
from dse.store.connection import Prepared
from dse.store.studies import GIVEN_BACK, Studies, is_held

LEASE_S: Final = 60.0
HEARTBEAT_S: Final = 15.0


class Leases(Studies):
    """Leases and requests."""

    def __init__(self, engine: Engine, shown: str) -> None:
        super().__init__(engine, shown)
        study = tables.study
        self._renewal = Prepared(
            engine,
            update(study)
            .where(study.c.id == bindparam("study"), study.c.lease_owner == bindparam("owner"))
            .values(lease_until_s=bindparam("until"), updated_s=bindparam("now")),
        )
        self._asked = Prepared(
            engine, select(tables.control.c.request).where(tables.control.c.study_id == bindparam("study"))
        )

    def acquire(self, study_id: int, name: str) -> bool:
        """Take the lease of a study: from now on this process is its one writer. Old requests to it are dropped.

        A lease that ran out, or whose owner ran on this machine and is gone, is taken over.

        Returns:
            Whether it was taken over from an owner that ended without giving it back.

        Raises:
            StoreRefused: another process holds it.
        """
        now = time.time()
        GIVEN_BACK.discard(self.owner)
        with self._writing() as connection:
            held = connection.execute(
                select(tables.study.c.lease_owner, tables.study.c.lease_until_s).where(tables.study.c.id == study_id)
            ).one()
            if held.lease_owner != self.owner and is_held(held.lease_owner, held.lease_until_s, now):
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
        return held.lease_owner not in (None, self.owner)

    def renew(self, study_id: int) -> None:
        """Prolong the lease.

        Raises:
            StoreRefused: another process has taken over.
        """
        with self._writing() as connection:
            self._renew(connection, study_id)

    def release(self, study_id: int) -> None:
        """Give the lease back, if it is ours; where that cannot be written, this process at least knows."""
        GIVEN_BACK.add(self.owner)
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
            asked: str | None = self._asked.one(connection, {"study": study_id}).scalar_one_or_none()
        if asked in ("stop", "resume"):
            with self._writing() as connection:
                connection.execute(delete(tables.control).where(tables.control.c.study_id == study_id))
        return asked or ""

    def _renew(self, connection: Connection, study_id: int) -> None:
        now = time.time()
        values: dict[str, Any] = {"study": study_id, "owner": self.owner, "until": now + LEASE_S, "now": now}
        if self._renewal.one(connection, values).rowcount != 1:
            raise StoreRefused(
                "another process has taken over this study; nothing of this batch was stored",
                "run one coordinator per study",
            )
