"""Errors of the database driver, told in words with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from dse.errors import AlreadyStored, StoreError, StoreRefused, StoreUnreachable

BUSY_TIMEOUT_MS: Final = 30_000

# SQLSTATE classes: connection exceptions, and servers that shut down or start up. A driver that could not even
# connect has none.
_PASSING: Final = ("08", "57P")
_FULL: Final = ("disk is full", "No space left", "disk I/O error", "could not extend file")
_GO_ON: Final = "what was acknowledged is kept, run the study again to continue"


@contextmanager
def translated(shown: str) -> Iterator[None]:
    """Turn errors of the driver into ours, in words, with the remedy.

    Raises:
        StoreRefused: the file is damaged or encrypted.
        StoreUnreachable: the connection is lost; it may come back.
        AlreadyStored: rows with these keys are there.
        StoreError: locked or full, or anything else.
    """
    try:
        yield
    except DBAPIError as error:
        text = str(error.orig).strip().splitlines()[0] if str(error.orig or "").strip() else str(error)
        if "malformed" in text or "not a database" in text or "disk image" in text:
            raise StoreRefused(
                f"{shown} is damaged: {text}", "restore it from a backup, or name another with --db"
            ) from error
        if isinstance(error, IntegrityError):
            raise AlreadyStored(f"{shown}: {text}") from error
        if isinstance(error, OperationalError) and "locked" in text:
            raise StoreError(
                f"{shown} was locked by another process for {BUSY_TIMEOUT_MS // 1000} s; "
                f"end that one ('fuser FILE' names it); {_GO_ON}"
            ) from error
        if any(sign in text for sign in _FULL):
            raise StoreError(f"{shown}: {text}; free some space on its disk; {_GO_ON}") from error
        if _is_passing(error):
            raise StoreUnreachable(f"{shown}: {text}; {_GO_ON}") from error
        raise StoreError(f"{shown}: {text}; {_GO_ON}") from error


def _is_passing(error: DBAPIError) -> bool:
    if type(error.orig).__module__.startswith("sqlite3") or not isinstance(error, OperationalError | InterfaceError):
        return False
    state: str | None = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or state is None or state.startswith(_PASSING)
