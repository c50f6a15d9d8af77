"""Opening a database: URL or path, pragmas, and the refusal of anything that is not ours.

SQLite runs in WAL mode with ``synchronous=FULL``: a commit that returned is on disk. Readers open with ``mode=ro``, on
PostgreSQL with read-only transactions, and cannot hold up the writer. A database that has tables but not our ``meta``
row, or a newer schema version, is left exactly as it was.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event, insert, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from dse.errors import StoreRefused, UserError
from dse.store import tables
from dse.store.failures import BUSY_TIMEOUT_MS, translated
from dse.store.store import Store

DEFAULT_URL: Final = "sqlite:///mfm-dse.db"


def open_store(
    url: str | Path = DEFAULT_URL, *, read_only: bool = False, any_version: bool = False, must_exist: bool = False
) -> Store:
    """Open a store, creating it unless ``read_only``.

    Args:
        url: a database URL ("sqlite:///studies.db", "postgresql://user@host/name") or the path of an SQLite file.
        read_only: for readers; the database must exist.
        must_exist: do not create it; implied by ``read_only``.
        any_version: accept an older schema too, for upkeep; such a database can be upgraded, not used.

    Raises:
        UserError: a URL that is none, a folder that does not exist, a driver that is not installed.
        StoreRefused: not a database, another tool's, damaged, written by a newer version or (unless ``any_version``)
            by an older one; it is left untouched.
    """
    parsed = _parse(url)
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "sqlite":
        _check_file(parsed, shown, read_only or must_exist)
    engine = _engine(parsed, shown, read_only)
    try:
        with translated(shown):
            _check_ours(engine, shown, read_only or must_exist, any_version)
    except BaseException:
        engine.dispose()
        raise
    return Store(engine, shown)


def table_names(url: str) -> set[str] | None:
    """Return the tables of any database, ours or not, without writing to it; None where an SQLite file does not exist.

    Args:
        url: as SQLAlchemy takes it.

    Raises:
        Exception: whatever SQLAlchemy or its driver raises where it cannot be opened.
    """
    parsed = make_url(url)
    is_file = parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:")
    if is_file and not Path(str(parsed.database)).exists():
        return None
    engine = _engine(parsed, url, read_only=True) if is_file else create_engine(parsed)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def _parse(url: str | Path) -> URL:
    text = str(url)
    if "://" not in text:
        text = f"sqlite:///{text}"
    try:
        parsed = make_url(text)
    except ArgumentError:
        raise UserError(
            "the database URL cannot be read", "write 'sqlite:///FILE' or 'postgresql://USER@HOST/NAME'"
        ) from None
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise UserError(
            f"databases of type {parsed.get_backend_name()!r} are not supported", "use sqlite or postgresql"
        )
    return parsed


def _check_file(url: URL, shown: str, must_exist: bool) -> None:
    if not url.database or url.database == ":memory:":
        return
    path = Path(url.database)
    if not path.exists():
        if must_exist:
            raise UserError(f"there is no database {shown}", "run a study first, or name another with --db")
        if not path.parent.is_dir():
            raise UserError(f"the folder {str(path.parent)!r} of the database does not exist", "create it first")
        return
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder, not a database file")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    if head and head != b"SQLite format 3\x00":
        raise StoreRefused(
            f"{str(path)!r} is not an SQLite database; it was left untouched", "name another file with --db"
        )


def _engine(url: URL, shown: str, read_only: bool) -> Engine:
    options: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        if read_only and url.database and url.database != ":memory:":
            path = Path(url.database).resolve().as_posix()
            quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
            options["creator"] = lambda: sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, check_same_thread=False)
    else:
        options["pool_pre_ping"] = True
        if read_only:
            options["connect_args"] = {"options": "-c default_transaction_read_only=on"}
    try:
        engine = create_engine(url, **options)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise UserError(
            f"{shown} needs a driver that is not installed: {error}", "pip install 'mfm-dse[postgres]'"
        ) from None
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _read_pragmas if read_only else _write_pragmas)
    return engine


def _write_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _read_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA query_only=ON")
    cursor.close()


def _check_ours(engine: Engine, shown: str, must_exist: bool, any_version: bool) -> None:
    found = set(inspect(engine).get_table_names())
    if not found:
        if must_exist:
            raise UserError(f"{shown} is empty", "run a study first, or name another with --db")
        _create(engine)
        return
    rows: dict[str, str] = {}
    if "meta" in found and {c["name"] for c in inspect(engine).get_columns("meta")} == {"key", "value"}:
        with engine.connect() as connection:
            found_rows = connection.execute(select(tables.meta.c.key, tables.meta.c.value)).all()
            rows = {row.key: row.value for row in found_rows}
    if rows.get("application") != tables.APPLICATION:
        some = ", ".join(sorted(found)[:5])
        other = "an Optuna database" if {"trials", "studies"} <= found else "the database of another program"
        raise StoreRefused(f"{shown} is {other} (tables {some}); it was left untouched", "name another with --db")
    try:
        version = int(rows.get("schema_version", ""))
    except ValueError:
        raise StoreRefused(
            f"{shown} is damaged: its schema version is {rows.get('schema_version')!r}", "restore it from a copy"
        ) from None
    if version > tables.SCHEMA_VERSION:
        raise StoreRefused(
            f"{shown} was written by a newer mfm-dse (schema {version}, this one knows {tables.SCHEMA_VERSION})",
            "upgrade mfm-dse; the database was left untouched",
        )
    if version < tables.SCHEMA_VERSION and not any_version:
        raise StoreRefused(
            f"{shown} was written by an older mfm-dse (schema {version}, this one writes {tables.SCHEMA_VERSION}); "
            "it was left untouched",
            "'dse db upgrade' brings it up to date, and keeps a copy of an SQLite file",
        )


def _create(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    with engine.begin() as connection:
        tables.metadata.create_all(connection)
        connection.execute(
            insert(tables.meta),
            [
                {"key": "application", "value": tables.APPLICATION},
                {"key": "schema_version", "value": str(tables.SCHEMA_VERSION)},
            ],
        )
        connection.execute(insert(tables.alembic_version).values(version_num=tables.REVISION))
