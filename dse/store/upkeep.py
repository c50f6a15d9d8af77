"""Keeping a database in order: upgrading it, checking it, giving free space back."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, func, inspect, or_, select

from dse.errors import StoreRefused, UserError
from dse.store import tables
from dse.store.database import open_store
from dse.store.failures import translated
from dse.store.store import Store
from dse.store.studies import is_held


@dataclass(frozen=True)
class Upgraded:
    """What an upgrade did.

    Attributes:
        before, after: schema versions; equal where there was nothing to do.
        backup: copy of the SQLite file as it was, None where none was made.
    """

    before: int
    after: int
    backup: Path | None


def upgrade(url: str | Path) -> Upgraded:
    """Bring a database up to this version's schema, in one transaction: all of it or nothing.

    An SQLite file is copied first, to "NAME.schema1" beside it (its old version for 1). A database that no program of
    ours wrote, or a newer one, is refused.

    Raises:
        StoreRefused: not ours, newer, or a study of it is being run.
        UserError: there is no such database, or its copy cannot be written.
    """
    store = open_store(url, any_version=True, must_exist=True)
    try:
        with translated(store.shown), store.engine.connect() as connection:
            before = _version(connection)
            if before == tables.SCHEMA_VERSION:
                return Upgraded(before, before, None)
            _check_idle(connection, store.shown)
        backup = _copied(store, before)
        with translated(store.shown), store.engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN EXCLUSIVE")
            _migrate(connection)
        return Upgraded(before, tables.SCHEMA_VERSION, backup)
    finally:
        store.close()


def _version(connection: Connection) -> int:
    meta = tables.meta
    return int(connection.execute(select(meta.c.value).where(meta.c.key == "schema_version")).scalar_one())


def _check_idle(connection: Connection, shown: str) -> None:
    study = tables.study
    for row in connection.execute(select(study.c.name, study.c.lease_owner, study.c.lease_until_s)):
        if is_held(row.lease_owner, row.lease_until_s, time.time()):
            raise StoreRefused(f"study {row.name!r} in {shown} is being run", "stop it first ('dse stop NAME')")


def _copied(store: Store, version: int) -> Path | None:
    name = store.engine.url.database
    if store.engine.dialect.name != "sqlite" or not name:
        return None
    path = Path(name)
    target = path.with_name(f"{path.name}.schema{version}")
    if target.exists():
        raise UserError(f"{str(target)!r} is where the copy goes, and it exists", "move it away first")
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    except sqlite3.Error as error:
        target.unlink(missing_ok=True)
        raise UserError(f"no copy could be written to {str(target)!r}: {error}", "nothing was changed") from None
    return target


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "dse.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    if not inspect(connection).has_table(tables.alembic_version.name):
        command.stamp(config, f"{_version(connection):04d}")  # before there was Alembic, there was a number
    command.upgrade(config, "head")


def check(store: Store) -> Iterator[str]:
    """Yield what is wrong with a database, one sentence each; nothing where all is well.

    The database's own integrity checks, then what our rows promise each other. What stored codes stand for is checked
    by :func:`dse.results.check_codes`, which knows the spaces.
    """
    with translated(store.shown), store.engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            for (text,) in connection.exec_driver_sql("PRAGMA integrity_check").all():
                if text != "ok":
                    yield f"SQLite: {text}"
            for row in connection.exec_driver_sql("PRAGMA foreign_key_check").all():
                yield f"a row of {row[0]} belongs to no row of {row[2]}"
        for study in connection.execute(select(tables.study.c.id, tables.study.c.name)).all():
            for text in _of_study(connection, study.id):
                yield f"study {study.name!r}: {text}"


def _of_study(connection: Connection, study_id: int) -> Iterator[str]:
    batch, design, evaluation, evaluator = tables.batch, tables.design, tables.evaluation, tables.evaluator
    expected = 0
    batches = connection.execute(select(batch).where(batch.c.study_id == study_id).order_by(batch.c.number)).all()
    n_evaluators = connection.execute(
        select(func.count()).select_from(evaluator).where(evaluator.c.study_id == study_id, evaluator.c.rung == 0)
    ).scalar_one()
    answers = connection.execute(
        select(evaluation.c.number, func.count())
        .join(evaluator, evaluator.c.id == evaluation.c.evaluator_id)
        .where(evaluation.c.study_id == study_id, evaluator.c.rung == 0)
        .group_by(evaluation.c.number)
    ).all()
    n_answers: dict[int, int] = {number: count for number, count in answers}  # noqa: C416  rows are no pairs to mypy
    for number, row in enumerate(batches):
        if row.number != number or row.first != expected:
            yield f"batch {row.number} begins at design {row.first}, expected batch {number} at {expected}"
            return
        expected += row.n_designs
        missing = sum(n_answers.get(i, 0) < n_evaluators for i in range(row.first, row.first + row.n_designs))
        if row.is_done and missing:
            yield f"batch {number} is marked as done, {missing} of its designs lack an evaluation"
    span = connection.execute(
        select(func.count(), func.min(design.c.number), func.max(design.c.number)).where(design.c.study_id == study_id)
    ).one()
    if tuple(span) not in ((expected, 0, expected - 1), (0, None, None)) or span[0] != expected:
        yield f"{span[0]} designs are stored, its batches have {expected}"
    strays = connection.execute(
        select(func.count())
        .select_from(evaluation)
        .where(
            evaluation.c.study_id == study_id,
            or_(evaluation.c.number >= expected, evaluation.c.number < 0),
        )
    ).scalar_one()
    if strays:
        yield f"{strays} evaluations belong to no design"
    yield from _of_promotions(connection, study_id, expected)


def _of_promotions(connection: Connection, study_id: int, n_designs: int) -> Iterator[str]:
    promotion, evaluation, evaluator = tables.promotion, tables.evaluation, tables.evaluator
    rows = connection.execute(
        select(evaluator.c.rung, evaluator.c.id, evaluation.c.number)
        .outerjoin(evaluation, evaluation.c.evaluator_id == evaluator.c.id)
        .where(evaluator.c.study_id == study_id, evaluator.c.rung > 0)
    ).all()
    answered: dict[int, dict[int, set[int]]] = {}
    for row in rows:
        of_rung = answered.setdefault(row.rung, {}).setdefault(row.id, set())
        of_rung |= set() if row.number is None else {row.number}
    chosen: dict[int, set[int]] = {}
    query = select(promotion).where(promotion.c.study_id == study_id).order_by(promotion.c.number)
    for number, row in enumerate(connection.execute(query).all()):
        designs = np.frombuffer(row.designs, dtype="<i8").tolist()
        before = chosen.setdefault(row.rung, set())
        if row.number != number or before & set(designs) or not all(0 <= d < n_designs for d in designs):
            yield f"promotion {row.number} is not what follows on those before it"
            return
        before |= set(designs)
        missing = sum(len(set(designs) - there) for there in answered.get(row.rung, {}).values())
        if row.is_done and missing:
            yield f"promotion {number} is marked as done, {missing} evaluations are missing"
    for rung, by_evaluator in answered.items():
        strays = sum(len(there - chosen.get(rung, set())) for there in by_evaluator.values())
        if strays:
            yield f"{strays} evaluations on rung {rung} belong to no promotion"


def vacuum(store: Store) -> tuple[int, int]:
    """Give free space back to the disk; return the bytes before and after.

    Raises:
        StoreError: somebody else holds the database.
    """
    with translated(store.shown), store.engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        before = _bytes(connection)
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.exec_driver_sql("VACUUM")
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            for table in tables.metadata.sorted_tables:
                connection.exec_driver_sql(f'VACUUM FULL "{table.name}"')
        return before, _bytes(connection)


def _bytes(connection: Connection) -> int:
    if connection.dialect.name == "sqlite":
        pages, size = (connection.exec_driver_sql(f"PRAGMA {p}").scalar_one() for p in ("page_count", "page_size"))
        return int(pages) * int(size)
    return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
