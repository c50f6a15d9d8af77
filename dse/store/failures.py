"""Errors of the database driver, told in words with the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import DBAPIError, OperationalError

from dse.errors import StoreError, StoreRefused

BUSY_TIMEOUT_MS: Final = 30_000


@contextmanager
def translated(shown: str) -> Iterator[None]:
    """Turn errors of the driver into ours, in words, with the remedy.

    Raises:
        StoreRefused: the file is damaged or encrypted.
        StoreError: locked, full or unreachable.
    """
    try:
        yield
    except DBAPIError as error:
        text = str(error.orig).strip().splitlines()[0] if error.orig else str(error)
        if "malformed" in text or "not a database" in text or "disk image" in text:
            raise StoreRefused(
                f"{shown} is damaged: {text}", "restore it from a backup, or name another with --db"
            ) from error
        if isinstance(error, OperationalError) and "locked" in text:
            raise StoreError(
                f"{shown} was locked by another process for {BUSY_TIMEOUT_MS // 1000} s; "
                "what was acknowledged is kept, run the study again to continue"
            ) from error
        raise StoreError(f"{shown}: {text}; what was acknowledged is kept, run the study again to continue") from error
