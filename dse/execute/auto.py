"""Local until the work left is worth a cluster's start, then Ray. Rows do not depend on the moment of the change."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from dse.errors import UserError
from dse.execute.local import LocalExecutor
from dse.protocols import Chunk, Executor

# A local Ray takes 2.4 s to start on an idle machine and 20 s on a loaded one, and shipping a chunk costs about 1 ms:
# below these figures the driver is done before the workers have begun.
WORTH_BATCH_S: Final = 5.0


class AutoExecutor:
    """Evaluates in this process as long as a batch takes less than :data:`WORTH_BATCH_S`.

    Args:
        local: the in-process executor.
        start_remote: makes the other one.
    """

    name = "auto"

    def __init__(self, local: LocalExecutor, start_remote: Callable[[], Executor]) -> None:
        self._local = local
        self._start_remote = start_remote
        self._remote: Executor | None = None
        self._owner: dict[int, tuple[Executor, int]] = {}
        self._tickets = 0

    def submit(self, codes: np.ndarray) -> int:
        """Hand a batch to whichever executor suits its expected duration."""
        executor = self._choose(len(codes))
        self._tickets += 1
        self._owner[self._tickets] = (executor, executor.submit(codes))
        return self._tickets

    def collect(self, ticket: int) -> Iterator[Chunk]:
        """Yield the chunks of a batch in row order."""
        executor, inner = self._owner.pop(ticket)
        yield from executor.collect(inner)

    def close(self) -> None:
        """Stop the remote executor if it was started."""
        if self._remote is not None:
            self._remote.close()
            self._remote = None

    def _choose(self, n: int) -> Executor:
        if self._remote is not None:
            return self._remote
        row_s = self._local.row_s
        if row_s is None or row_s * n < WORTH_BATCH_S or (os.cpu_count() or 1) < 2:
            return self._local
        try:
            self._remote = self._start_remote()
        except UserError:  # Ray is an extra; without it everything runs here
            return self._local
        return self._remote
