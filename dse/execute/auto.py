"""Local until the work is worth a pool's start, then Ray, or processes without it. Rows do not show when that was.

A pool that cannot be started is said in one line, and the next one takes its place: a study that can go on does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from dse.errors import ExecutorError, UserError
from dse.execute.local import LocalExecutor
from dse.protocols import Chunk, Executor

# A local Ray takes 2.4 s to start on an idle machine and 20 s on a loaded one. How long a study will go on is not
# known: as with rented skis, to buy when the rent paid equals the price costs at most twice what foresight would.
START_COST_S: Final = 5.0
# Shipping a batch and waiting for its last chunk costs some milliseconds: below this figure nothing is gained.
WORTH_BATCH_S: Final = 0.05


class AutoExecutor:
    """Evaluates in this process until batches worth shipping have taken :data:`START_COST_S`, or one would.

    Args:
        local: the in-process executor.
        others: what each pool is called and what makes it, the best first.
    """

    name = "auto"

    def __init__(self, local: LocalExecutor, others: Sequence[tuple[str, Callable[[], Executor]]]) -> None:
        self._local = local
        self._others = list(others)
        self._remote: Executor | None = None
        self._owner: dict[int, tuple[Executor, int]] = {}
        self._tickets = 0
        self._spent_s = 0.0

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
        batch_s = 0.0 if row_s is None else row_s * n
        if batch_s < WORTH_BATCH_S or (os.cpu_count() or 1) < 2:
            return self._local
        self._spent_s += batch_s
        if self._spent_s < START_COST_S:
            return self._local
        while self._others and self._remote is None:
            name, start = self._others.pop(0)
            try:
                self._remote = start()
            except (UserError, ExecutorError) as error:
                after = f"{self._others[0][0]} instead" if self._others else "going on in this process"
                line = f"no {name}: {str(error).splitlines()[0]}; {after}"
                print(line, file=sys.stderr, flush=True)  # noqa: T201
        return self._remote or self._local
