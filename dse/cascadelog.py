"""Logs of cascades: what stages answered, a row per query and stage.

A log has a row per query and stage: ``query, stage, score, correct`` and, where known, ``tokens`` (of the answer) and
``test_1, test_2, ...`` (outcomes 0 or 1 of checks that the stage wrote for its own answer: a self-test). Scores are
confidences from 0 to 1; every query has every stage. Two more columns say what a row is beside that:

    solution    1, 2, ...: several answers of a stage to one query, the same checks run on each (code: solutions and
                generated tests)
    loss        nats per token that the stage had lost to compression when it answered: the same queries, asked again
                of the compressed stage. Nothing, or 0, for the stage as it is. A stage may have several such runs.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from dse.acceptance import read_rows
from dse.cascades import CascadeTable, Rerun
from dse.errors import TableError

_NEEDED: Final = ("query", "stage", "score", "correct")
_Row = tuple[list[float], list[float]]


def read_log(path: str | Path) -> CascadeTable:
    """Return the table of a log; see :meth:`CascadeTable.of_log`."""
    runs: dict[tuple[float, int], dict[str, dict[str, _Row]]] = {}
    n_tests: int | None = None
    for where, row in read_rows(path, _NEEDED):
        names = sorted((n for n in row if str(n).startswith("test_")), key=lambda n: (len(n), n))
        tests = [_number(row[n], n, where, 1.0) for n in names if row[n] not in (None, "")]
        n_tests = len(tests) if n_tests is None else min(n_tests, len(tests))
        length, loss, solution = (
            default if row.get(name) in (None, "") else _number(row[name], name, where, math.inf)
            for name, default in (("tokens", math.nan), ("loss", 0.0), ("solution", 1.0))
        )
        if solution != int(solution) or solution < 1:
            raise TableError(f"{where}: solution={solution:g}", "count them from 1")
        main = [_number(row["score"], "score", where, 1.0), _number(row["correct"], "correct", where, 1.0), length]
        query, stage = str(row["query"]), str(row["stage"])
        by_query = runs.setdefault((loss, int(solution)), {}).setdefault(stage, {})
        if query in by_query:
            raise TableError(f"{where}: query {query!r} has stage {stage!r} twice{_at(loss, int(solution))}")
        by_query[query] = (main, tests)
    if (0.0, 1) not in runs:
        raise TableError(f"{path}: no row of an uncompressed stage", "rows without a loss, or with loss 0")
    stages = tuple(runs[0.0, 1])
    queries = list(dict.fromkeys(q for by_stage in runs.values() for own in by_stage.values() for q in own))
    columns: dict[tuple[float, int, str], CascadeTable] = {}
    for (loss, solution), by_stage in runs.items():
        for stage in stages if loss == 0 else by_stage:
            own = by_stage.get(stage, {})
            if missing := next((q for q in queries if q not in own), None):
                raise TableError(f"{path}: query {missing!r} has no row of {stage}{_at(loss, solution)}")
            columns[loss, solution, stage] = _column(path, stage, [own[q] for q in queries], n_tests or 0)
    n_solutions = max(solution for _, solution, _ in columns)

    def table(loss: float, named: tuple[str, ...]) -> CascadeTable:
        found = []
        for solution in range(1, n_solutions + 1):
            lacking = next((s for s in named if (loss, solution, s) not in columns), None)
            if lacking is not None:
                raise TableError(f"{path}: no row of {lacking}{_at(loss, solution)}, as there is for other answers")
            found.append(_beside([columns[loss, solution, s] for s in named]))
        return replace(found[0], further=tuple(found[1:]))

    whole = table(0.0, stages)
    if whole.tokens is None and any(c.tokens is not None for c in columns.values()):
        raise TableError(f"{path}: tokens are missing in some rows", "give them in all rows or in none")
    reruns = {(loss, stage): None for loss, _, stage in columns if loss > 0}
    return replace(whole, reruns=tuple(Rerun(loss, table(loss, (stage,))) for loss, stage in reruns))


def _at(loss: float, solution: int) -> str:
    return (f" at a loss of {loss:g}" if loss else "") + (f", solution {solution}" if solution > 1 else "")


def _column(path: str | Path, stage: str, rows: list[_Row], n_tests: int) -> CascadeTable:
    """Return the table of one stage's rows, in the order of the queries."""
    main = np.array([row[0] for row in rows])
    tests = np.array([row[1][:n_tests] for row in rows], dtype=np.float64).reshape(len(rows), 1, n_tests)
    lengths = main[:, 2:]
    if np.isnan(lengths).any() and not np.isnan(lengths).all():
        raise TableError(f"{path}: tokens are missing in some rows", "give them in all rows or in none")
    return CascadeTable(
        (stage,), main[:, :1], main[:, 1:2], None if np.isnan(lengths).any() else lengths, tests, str(path)
    )


def _beside(columns: list[CascadeTable]) -> CascadeTable:
    """Return the stages of several tables of the same queries as one."""
    lengths = [c.tokens for c in columns if c.tokens is not None]
    score, correct, tests = (
        np.concatenate([getattr(c, name) for c in columns], axis=1) for name in ("score", "correct", "tests")
    )
    tokens = np.concatenate(lengths, axis=1) if len(lengths) == len(columns) else None
    return CascadeTable(tuple(s for c in columns for s in c.stages), score, correct, tokens, tests, columns[0].source)


def _number(value: object, name: str, where: str, most: float) -> float:
    words = {"true": 1.0, "false": 0.0}
    try:
        number = words.get(str(value).lower(), math.nan)
        number = float(str(value)) if math.isnan(number) else number
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and 0 <= number <= most):
        hint = "map scores to 0..1 first, keeping their order" if name == "score" else ""
        raise TableError(f"{where}: {name}={value!r} is not a number from 0 to {most:g}", hint)
    return number
