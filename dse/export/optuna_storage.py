"""Studies to and from Optuna's storage, in bulk: one transaction, some thousands of trials per second.

Design i becomes trial i. Parameters carry their values: evenly spaced numbers as integer or float distributions with a
step, long grids of other numbers as continuous ones, the rest as categories; a parameter that does not matter in a
design is left out of its trial. A design that could be evaluated is complete, with the relative excess over each bound
as Optuna's constraints; one that could not run, that failed or that waits is a failed trial, with the reason.

Optuna's genetic samplers look for a generation in each trial and ignore those without. The front and the latest
designs, 2,000 at most, are marked as generation 0, so that a sampler goes on from the best.
"""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import TrialState

from dse.errors import DseError, UserError
from dse.params import Value
from dse.results import Results
from dse.space import BoundSpace, Parameter
from dse.store import table_names

_CHUNK: Final = 2_000
_GENERATION_ROWS: Final = 2_000
_ALL_METRICS_ROWS: Final = 10_000
_GENERATION_KEYS: Final = ("NSGAIISampler:generation", "NSGAIIISampler:generation")
_THEIR_TABLES: Final = {"studies", "trials", "version_info"}
_LONG: Final = 32  # levels beyond which uneven numbers are a continuous range


def export_study(results: Results, url: str) -> int:
    """Write a study into an Optuna storage under its own name and return the number of trials.

    Args:
        results: of the study.
        url: "sqlite:///optuna.db" or another database that Optuna takes; created where it does not exist.

    Raises:
        UserError: a URL that Optuna cannot open, a database that is not Optuna's, a study of that name that is there.
    """
    name = results.row.name
    with _quiet():
        storage = _open(url)
        try:
            senses = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)
            directions = [senses[o.sign < 0] for o in results.goal.objectives]
            theirs = optuna.create_study(storage=storage, study_name=name, directions=directions)
        except optuna.exceptions.DuplicatedStudyError:
            raise UserError(f"{shown(url)} has a study {name!r} already", "name another database") from None
        try:
            theirs.set_metric_names([o.name for o in results.goal.objectives])
            theirs.set_user_attr("objectives", [str(o) for o in results.goal.objectives])
            theirs.set_user_attr("constraints", [str(c) for c in results.goal.constraints])
            with storage.engine.begin() as connection:
                for start in range(0, len(results), _CHUNK):
                    _write(connection, theirs._study_id, results, range(start, min(start + _CHUNK, len(results))))
        except BaseException:
            optuna.delete_study(study_name=name, storage=storage)
            raise
        finally:
            storage.engine.dispose()
    return len(results)


def _write(connection: Any, study_id: int, results: Results, rows: range) -> None:
    index = np.arange(rows.start, rows.stop)
    complete = np.isfinite(results.violation[index]) & np.isfinite(results.objectives[index]).all(axis=1)
    at = datetime.fromtimestamp(results.row.updated_s, UTC).replace(tzinfo=None)
    table = models.TrialModel.__table__
    states = [TrialState.COMPLETE if ok else TrialState.FAIL for ok in complete.tolist()]
    connection.execute(
        table.insert(),
        [
            {"number": n, "study_id": study_id, "state": state, "datetime_start": at, "datetime_complete": at}
            for n, state in zip(rows, states, strict=True)
        ],
    )
    found = connection.execute(
        table.select().where(table.c.study_id == study_id, table.c.number >= rows.start).order_by(table.c.number)
    ).all()
    ids = [row.trial_id for row in found]
    for model, records in (
        (models.TrialParamModel, _params(results, index, ids)),
        (models.TrialValueModel, _values(results, index, ids, complete)),
        (models.TrialSystemAttributeModel, _system(results, index, ids, complete)),
        (models.TrialUserAttributeModel, _user(results, index, ids, complete)),
    ):
        if records:
            connection.execute(model.__table__.insert(), records)


def _params(results: Results, index: np.ndarray, ids: Sequence[int]) -> list[dict[str, Any]]:
    codes = results.space.repair(results.stored.codes[index])
    active = results.space.active(codes)
    out: list[dict[str, Any]] = []
    for j, parameter in enumerate(results.space.parameters):
        kind = distribution(parameter)
        text = distribution_to_json(kind)
        inner = [kind.to_internal_repr(level) for level in parameter.levels]
        out += [
            {"trial_id": i, "param_name": parameter.label, "param_value": inner[code], "distribution_json": text}
            for i, code, on in zip(ids, codes[:, j].tolist(), active[:, j].tolist(), strict=True)
            if on
        ]
    return out


def _values(results: Results, index: np.ndarray, ids: Sequence[int], complete: np.ndarray) -> list[dict[str, Any]]:
    kind = models.TrialValueModel.TrialValueType.FINITE
    signs = [o.sign for o in results.goal.objectives]
    return [
        {"trial_id": i, "objective": j, "value": sign * value, "value_type": kind}
        for i, row, ok in zip(ids, results.objectives[index].tolist(), complete.tolist(), strict=True)
        if ok
        for j, (sign, value) in enumerate(zip(signs, row, strict=True))
    ]


def _system(results: Results, index: np.ndarray, ids: Sequence[int], complete: np.ndarray) -> list[dict[str, Any]]:
    margins = results.goal.margins(results.metrics.values, len(results))[index].tolist()
    bred = set(_bred(results).tolist())
    out = []
    for i, number, ok, row in zip(ids, index.tolist(), complete.tolist(), margins, strict=True):
        entries: dict[str, Any] = {}
        if ok:
            bounds = zip(results.goal.constraints, row, strict=True)
            entries = {f"constraints:{c}": margin for c, margin in bounds}
        else:
            reason = results.reason(number) if results.stored.evaluated[number] else results.waiting
            entries = {"fail_reason": reason}
        if ok and number in bred:
            entries |= dict.fromkeys(_GENERATION_KEYS, 0)
        out += [{"trial_id": i, "key": key, "value_json": json.dumps(value)} for key, value in entries.items()]
    return out


def _bred(results: Results) -> np.ndarray:
    """Return the designs that a genetic sampler goes on from: the front, then the latest."""
    front = results.front(results.rung).numbers
    latest = np.flatnonzero(np.isfinite(results.violation))[-_GENERATION_ROWS:][::-1]
    return np.array(list(dict.fromkeys([*front.tolist(), *latest.tolist()]))[:_GENERATION_ROWS], dtype=np.intp)


def _user(results: Results, index: np.ndarray, ids: Sequence[int], complete: np.ndarray) -> list[dict[str, Any]]:
    """Return who proposed each design, and all its metrics: of a large study on the front only."""
    objectives = [o.name for o in results.goal.objectives]
    others = {name: v[index].tolist() for name, v in results.metrics.values.items() if name not in objectives}
    chosen = None if len(results) <= _ALL_METRICS_ROWS else set(results.front().numbers.tolist())
    out = []
    for k, (i, number) in enumerate(zip(ids, index.tolist(), strict=True)):
        entries: dict[str, Any] = {"proposer": results.stored.proposers.get(int(results.stored.batches[number]), "")}
        if complete[k] and (chosen is None or number in chosen):
            entries |= {name: v[k] for name, v in others.items() if math.isfinite(v[k])}
        out += [{"trial_id": i, "key": key, "value_json": json.dumps(value)} for key, value in entries.items()]
    return out


def distribution(parameter: Parameter) -> BaseDistribution:
    """Return the Optuna distribution whose values are a parameter's levels."""
    levels = parameter.levels
    numbers = [v for v in levels if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(levels) or len(levels) < 3 or not parameter.is_ordered:
        return CategoricalDistribution(levels)
    whole = all(isinstance(v, int) for v in numbers)
    steps = np.diff(numbers)
    is_even = bool(np.allclose(steps, steps[0], rtol=1e-9))
    if is_even and whole:
        return IntDistribution(int(numbers[0]), int(numbers[-1]), step=int(steps[0]))
    if is_even and len(levels) <= 1000:
        return FloatDistribution(float(numbers[0]), float(numbers[-1]), step=float(steps[0]))
    if len(levels) <= _LONG:
        return CategoricalDistribution(levels)
    log = numbers[0] > 0 and numbers[-1] / numbers[0] >= 100
    if whole:
        return IntDistribution(int(numbers[0]), int(numbers[-1]), log=log)
    return FloatDistribution(float(numbers[0]), float(numbers[-1]), log=log)


def read_designs(url: str, name: str | None, space: BoundSpace) -> tuple[list[dict[str, Value]], list[str]]:
    """Return the designs of an Optuna study that a space has, and notes on what it has not.

    Args:
        url: an Optuna storage.
        name: of its study; None where it has one only.
        space: parameters go over by name; a value that is no level is left at the reference, numbers are snapped later.

    Raises:
        UserError: no such storage or study; a database of another program is left untouched.
    """
    with _quiet():
        storage = _open(url, must_exist=True)
        try:
            names = optuna.get_all_study_names(storage)
            if name is None and len(names) == 1:
                name = names[0]
            if not names:
                raise UserError(f"the Optuna storage {shown(url)} has no study", "nothing can be read from it")
            if name is None:
                raise UserError(f"{shown(url)} has {len(names)} studies", f"--from one of: {', '.join(names)}")
            if name not in names:
                raise UserError(f"{shown(url)} has no study {name!r}", f"--from one of: {', '.join(names)}")
            trials = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
        finally:
            storage.engine.dispose()
    known = {*space.labels, *space.space.declarations}
    designs: list[dict[str, Value]] = []
    notes: dict[str, None] = {}
    for trial in trials:
        design: dict[str, Value] = {}
        for label, value in trial.params.items():
            if label not in known:
                notes[f"{label} is no parameter here, left out"] = None
                continue
            try:
                space.codes_of({label: value})
            except DseError as error:
                notes[f"{error}, left at the reference"] = None
                continue
            design[label] = value
        if design:
            designs.append(design)
    return designs, list(notes)


def _open(url: str, *, must_exist: bool = False) -> RDBStorage:
    """Open a storage; Optuna itself would put its tables into whatever database it is given."""
    try:
        found = table_names(url)
        if must_exist and not found:
            raise UserError(f"there is no Optuna storage at {shown(url)}", "see the URL that the study was made with")
        if found and not found >= _THEIR_TABLES:
            ours = "of mfm-dse" if "meta" in found and "evaluation" in found else "of another program"
            raise UserError(
                f"{shown(url)} is a database {ours}, not an Optuna storage "
                f"(tables {', '.join(sorted(found)[:5])}); it was left untouched",
                "name another database",
            )
        return RDBStorage(url)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  whatever its driver raises on a URL, a file or a server
        reason = str(error).splitlines()[0].replace(url, shown(url))
        raise UserError(f"Optuna cannot open {shown(url)!r}: {reason}") from None


def shown(url: str) -> str:
    """Return a URL without its password."""
    return re.sub(r"//([^:/@]*):[^@]*@", r"//\1:***@", url)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's notices off the terminal."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
