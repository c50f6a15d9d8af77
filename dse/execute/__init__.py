"""Executors: where evaluation happens. Rows are the same wherever it is.

local.py      in this process
processes.py  in processes of this machine
on_ray.py     on the cores of this machine or of a cluster, through Ray (only this module and jobs.py import it)
pool.py       what the pools share: chunks, order, deadlines, blame
auto.py       starts local, and goes over to a pool when the work left is worth the start
jobs.py       hands a whole study to a cluster
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from dse.errors import UserError, unknown
from dse.evaluation import Evaluation
from dse.protocols import Executor

NAMES: Final = ("auto", "local", "process", "ray")
LEAST_TIMEOUT_S: Final = 0.01

Recipe = Callable[[], Evaluation]


@dataclass(frozen=True)
class Means:
    """Where a run evaluates, and what it allows. None of it changes a row that is not at fault.

    Attributes:
        executor: "auto", "local", "process" or "ray".
        workers: workers of a pool, 0 for one per core.
        timeout_s: what one design may take; None for no limit.
        worker_memory_bytes: what a worker may take before it is replaced; 0 for an equal share of the machine.
        ray_address: "auto" or "HOST:PORT" of a Ray cluster; None for a local one.
    """

    executor: str = "auto"
    workers: int = 0
    timeout_s: float | None = None
    worker_memory_bytes: int = 0
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.executor not in NAMES:
            raise unknown("executor", self.executor, NAMES)
        if self.timeout_s is not None and not (math.isfinite(self.timeout_s) and self.timeout_s >= LEAST_TIMEOUT_S):
            raise UserError(f"timeout_s={self.timeout_s!r} is not a time of {LEAST_TIMEOUT_S} s or more")
        for name, count in (("workers", self.workers), ("worker_memory_bytes", self.worker_memory_bytes)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise UserError(f"{name}={count!r} is not a whole number of 0 or more")
        if self.ray_address is not None and self.executor not in ("auto", "ray"):
            raise UserError(f"ray_address={self.ray_address!r} is of no use to the {self.executor} executor")
        if self.executor == "local" and (self.timeout_s is not None or self.worker_memory_bytes):
            raise UserError(
                "the local executor evaluates in this process and cannot end a design that hangs or leaks",
                "use the process or the ray executor, or auto",
            )


def make_executor(means: Means, recipe: Recipe, evaluation: Evaluation) -> Executor:
    """Return an executor.

    With a timeout or a limit of memory, "auto" is a pool of processes from the start; with the address of a cluster,
    it is Ray.

    Args:
        means: which, and its limits.
        recipe: builds the evaluation in a worker; pickled by Ray.
        evaluation: the same, built here.

    Raises:
        UserError: Ray is asked for and not installed, or there is no such cluster.
        ExecutorError: the pool that is asked for does not start.
    """
    name = means.executor
    if name == "auto" and means.ray_address is not None:
        name = "ray"
    if name == "auto" and (means.timeout_s is not None or means.worker_memory_bytes):
        name = "process"
    if name == "process":
        from dse.execute.processes import process_executor

        return process_executor(
            evaluation, workers=means.workers, timeout_s=means.timeout_s, memory_bytes=means.worker_memory_bytes
        )
    if name == "ray":
        return _ray(means, recipe, evaluation)
    from dse.execute.local import LocalExecutor

    local = LocalExecutor(evaluation)
    if name == "local":
        return local
    from dse.execute.auto import AutoExecutor
    from dse.execute.processes import process_executor

    pools: list[tuple[str, Callable[[], Executor]]] = []
    if find_spec("ray") is not None:  # it is an extra
        pools.append(("Ray workers", lambda: _ray(means, recipe, evaluation)))
    pools.append(("worker processes", lambda: process_executor(evaluation, workers=means.workers)))
    return AutoExecutor(local, pools)


def _ray(means: Means, recipe: Recipe, evaluation: Evaluation) -> Executor:
    if means.ray_address is not None and not _has_token():
        # Ray reads this when it is imported; a cluster without a token is its owner's decision.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    elif means.ray_address is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from dse.execute.on_ray import ray_executor

    return ray_executor(
        recipe,
        evaluation.fingerprints(),
        workers=means.workers,
        address=means.ray_address,
        timeout_s=means.timeout_s,
        memory_bytes=means.worker_memory_bytes,
    )


def _has_token() -> bool:
    known = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(known) or (Path.home() / ".ray" / "auth_token").is_file()
