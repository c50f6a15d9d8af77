"""A database that goes away for a while (a restart, a failover) does not end a study that writes to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from dse.errors import AlreadyStored, StoreError, StoreUnreachable

PATIENCE_S: Final = 120.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0

T = TypeVar("T")


def patiently(call: Callable[[], T]) -> T | None:
    """Repeat a call of one transaction while the database cannot be reached, for up to :data:`PATIENCE_S`.

    A commit may have been done although its acknowledgement was lost. Repeated, it then meets its own rows: a
    transaction is stored as a whole or not at all, and nobody else writes this study, so it is done.

    Returns:
        What the call returns; None where it was done before.

    Raises:
        StoreError: the database did not come back, or the call failed otherwise.
    """
    deadline = time.monotonic() + PATIENCE_S
    pause_s, was_lost = _FIRST_PAUSE_S, False
    while True:
        try:
            return call()
        except AlreadyStored:
            if was_lost:
                return None
            raise
        except StoreUnreachable as error:
            if time.monotonic() > deadline:
                raise StoreError(f"{error} (tried for {PATIENCE_S:.0f} s)") from error
        was_lost = True
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
