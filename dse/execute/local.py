"""Evaluation in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

import numpy as np

from dse.evaluation import Evaluation
from dse.protocols import Chunk

CHUNK_S: Final = 1.0


class LocalExecutor:
    """Evaluates in the calling thread, when results are collected.

    Chunks are sized to about a second of work, so that a slow cost model loses little to an interruption; a fast one
    gets its whole batch at once.

    Args:
        evaluation: the prepared cost models.
    """

    name = "local"

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.row_s: float | None = None
        self._waiting: dict[int, np.ndarray] = {}
        self._tickets = 0

    def submit(self, codes: np.ndarray) -> int:
        """Keep a batch until it is collected."""
        self._tickets += 1
        self._waiting[self._tickets] = codes
        return self._tickets

    def collect(self, ticket: int) -> Iterator[Chunk]:
        """Evaluate a batch and yield its chunks in row order."""
        codes = self._waiting.pop(ticket)
        start = 0
        while start < len(codes):
            rows = 1 if self.row_s is None else int(np.clip(CHUNK_S / max(self.row_s, 1e-9), 1, len(codes)))
            began = time.perf_counter()
            groups = self.evaluation.evaluate(codes[start : start + rows])
            self.row_s = (time.perf_counter() - began) / len(groups[0])
            yield Chunk(start, groups)
            start += rows

    def close(self) -> None:
        """Nothing to release."""
