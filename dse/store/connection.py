"""A checked database, and statements that are written often, compiled once for its driver."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.sql import ClauseElement

from dse.store.failures import translated


class Connected:
    """A database that was checked.

    Args:
        engine: its engine.
        shown: its URL without the password.
    """

    def __init__(self, engine: Engine, shown: str) -> None:
        self.engine = engine
        self.shown = shown
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with translated(self.shown), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with translated(self.shown), self.engine.begin() as connection:
            yield connection


class Prepared:
    """A statement as text for the driver: what a batch executes costs no compiling and no look-up per value.

    Args:
        engine: of the database.
        statement: with bound parameters.
        columns: of an insert, those that are given.
    """

    def __init__(self, engine: Engine, statement: ClauseElement, columns: Sequence[str] | None = None) -> None:
        style = "qmark" if engine.dialect.name == "sqlite" else "format"
        dialect: Any = type(engine.dialect)
        keys = None if columns is None else list(columns)
        compiled = statement.compile(dialect=dialect(paramstyle=style), column_keys=keys)
        self._text = str(compiled)
        self._order: list[str] = list(getattr(compiled, "positiontup", None) or [])

    def one(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """Execute it once and return the cursor."""
        return connection.exec_driver_sql(self._text, tuple(values[name] for name in self._order))

    def many(self, connection: Connection, columns: Mapping[str, Sequence[Any]]) -> None:
        """Execute it for each row of columns of one length."""
        connection.exec_driver_sql(self._text, list(zip(*(columns[name] for name in self._order), strict=True)))
