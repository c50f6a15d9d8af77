"""Executors: where evaluation happens. Rows are the same wherever it is.

local.py   in this process
on_ray.py  on the cores of this machine or of a cluster, through Ray (only this module imports it)
auto.py    starts local, and goes over to Ray when the work left is worth the start
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dse.errors import unknown
from dse.evaluation import Evaluation
from dse.protocols import Executor

NAMES: Final = ("auto", "local", "ray")

Recipe = Callable[[], Evaluation]


def make_executor(name: str, recipe: Recipe, evaluation: Evaluation, *, workers: int = 0) -> Executor:
    """Return an executor.

    Args:
        name: "auto", "local" or "ray".
        recipe: builds the evaluation in a worker; pickled by Ray.
        evaluation: the same, built here.
        workers: Ray workers, 0 for one per core.

    Raises:
        NameUnknown: no such executor.
        UserError: Ray is asked for and not installed.
    """
    from dse.execute.local import LocalExecutor

    if name == "local":
        return LocalExecutor(evaluation)
    if name == "ray":
        from dse.execute.on_ray import RayExecutor

        return RayExecutor(recipe, len(evaluation.models), workers=workers)
    if name == "auto":
        from dse.execute.auto import AutoExecutor

        return AutoExecutor(
            LocalExecutor(evaluation), lambda: make_executor("ray", recipe, evaluation, workers=workers)
        )
    raise unknown("executor", name, NAMES)
