"""Checks of whole plug-ins: run them in your own tests on your own cost model, proposer, executor or exporter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dse.errors import DseError
from dse.metrics import METRICS, Status
from dse.objectives import Goal
from dse.protocols import Chosen, CostModel, Executor, Exporter, History, Proposer
from dse.space import CODE_DTYPE, BoundSpace
from dse.testing.laws import LAWS, row_equals_batch
from dse.units import carries_unit


def check_cost_model(model: CostModel, space: BoundSpace, n_rows: int = 6, seed: int = 0) -> None:
    """Check a cost model on random designs: its description, its columns, and every law it declares.

    Args:
        model: the cost model.
        space: a bound search space of a problem that it can cost.
        n_rows: designs to try.
        seed: of the designs.
    """
    for attribute in ("name", "group", "fidelity", "version"):
        assert isinstance(getattr(model, attribute), str), f"{attribute} must be text"
        assert getattr(model, attribute), f"{attribute} must not be empty"
    unknown = set(model.laws) - set(LAWS)
    assert not unknown, f"{model.name} declares laws that do not exist: {sorted(unknown)}"
    evaluator = model.prepare(space.schema.problem)
    assert evaluator.fingerprint == model.prepare(space.schema.problem).fingerprint, "fingerprints must be repeatable"
    for name in evaluator.metrics:
        assert name in METRICS or carries_unit(name), f"metric {name!r} carries no unit"
    codes = space.sample(n_rows, np.random.default_rng(seed))
    result = evaluator.evaluate(space.decode(codes))
    assert len(result) == n_rows, f"{n_rows} designs went in, {len(result)} rows came out"
    assert (result.status == Status.OK).any(), "no design of the sample runs, so nothing is shown: use another space"
    for name in evaluator.metrics:
        column = result.values[name]
        assert column.shape == (n_rows,), f"{name} has shape {column.shape}"
        ok = column[result.status == Status.OK]
        assert np.isfinite(ok).all(), f"{name} is not finite on rows that are OK"
        assert (ok >= 0).all(), f"{name} is negative on rows that are OK"
    for name, (low, high) in result.intervals.items():
        value, ok = result.values[name], result.status == Status.OK
        assert (low[ok] <= value[ok]).all(), f"{name} is below its interval"
        assert (value[ok] <= high[ok]).all(), f"{name} is above its interval"
    row_equals_batch(model, space, codes)
    for law in sorted(model.laws):
        LAWS[law](model, space, codes)


def check_proposer(proposer: Proposer, space: BoundSpace, n_batches: int = 4, k: int = 8, seed: int = 0) -> None:
    """Check a proposer over some batches with made-up results: shapes, ranges, and that it repeats itself.

    Two instances that see the same history must answer alike, also when one of them sees it for the first time: that
    is what lets a study resume.
    """
    assert proposer.name, "a proposer has a name"
    assert proposer.window >= 0, "window counts rows"
    other = _twin(proposer)
    for history, batch in _histories(proposer, space, n_batches, k, seed):
        fresh = _twin(proposer).propose(history, k, np.random.default_rng([seed, batch]))
        again = other.propose(history, k, np.random.default_rng([seed, batch]))
        assert fresh.codes.shape[1:] == (space.n_parameters,), f"{proposer.name}: codes have shape {fresh.codes.shape}"
        assert len(fresh.codes) <= k, f"{proposer.name}: {len(fresh.codes)} rows for k={k}"
        assert fresh.marks is None or len(fresh.marks) == len(fresh.codes), f"{proposer.name}: a mark per row"
        assert not fresh.parents or len(fresh.parents) == len(fresh.codes), f"{proposer.name}: parents per row"
        in_range = (fresh.codes >= 0) & (fresh.codes < space.n_levels)
        assert in_range.all(), f"{proposer.name}: codes out of range"
        same = np.array_equal(space.repair(fresh.codes), space.repair(again.codes))
        assert same, f"{proposer.name}: batch {batch} differs between a fresh instance and one that saw every batch"


def _twin(proposer: Proposer) -> Proposer:
    from dse import catalogue

    head = proposer.name.partition(":")[0]
    if head in catalogue.listing("proposer"):
        return catalogue.proposer(proposer.name)
    return type(proposer)()


def _histories(
    proposer: Proposer, space: BoundSpace, n_batches: int, k: int, seed: int
) -> Iterator[tuple[History, int]]:
    goal = Goal.parse("min latency_s, min energy_j", "area_mm2 <= 1")
    codes = np.empty((0, space.n_parameters), CODE_DTYPE)
    marks = np.empty(0, np.int64)
    for batch in range(n_batches):
        scaled = codes / np.maximum(space.n_levels - 1, 1)
        objectives = np.stack([scaled.mean(axis=1), 1 - scaled[:, ::2].mean(axis=1)], axis=1)
        violation = np.where(np.arange(len(codes)) % 5 == 4, 0.5, 0.0)
        violation[np.arange(len(codes)) % 11 == 10] = np.inf
        objectives[np.isinf(violation)] = np.nan
        numbers = np.arange(len(codes))
        none = (np.empty((0, space.n_parameters), CODE_DTYPE), np.empty(0, np.int64))
        history = History(space, goal, seed, codes, objectives, violation, numbers, marks, len(codes), *none)
        yield history, batch
        proposals = _twin(proposer).propose(history, k, np.random.default_rng([seed, batch]))
        new = space.repair(proposals.codes)
        codes = np.concatenate([codes, new])
        marks = np.concatenate([marks, np.full(len(new), -1) if proposals.marks is None else proposals.marks])


def check_executor(executor: Executor, reference: Executor, space: BoundSpace, n_rows: int = 50, seed: int = 0) -> None:
    """Check that an executor returns the same rows as another one, in order, each once, for two batches at a time."""
    rng = np.random.default_rng(seed)
    batches = [space.sample(n_rows, rng), space.sample(n_rows // 2, rng)]
    tickets = [executor.submit(codes) for codes in batches]
    for codes, ticket in zip(batches, tickets, strict=True):
        expected = list(reference.collect(reference.submit(codes)))
        found = list(executor.collect(ticket))
        assert [c.start for c in found] == np.cumsum([0, *(len(c.groups[0]) for c in found)])[:-1].tolist(), "row order"
        assert sum(len(c.groups[0]) for c in found) == len(codes), "each row once"
        for group in range(len(expected[0].groups)):
            for name in expected[0].groups[group].values:
                a = np.concatenate([c.groups[group].values[name] for c in expected])
                b = np.concatenate([c.groups[group].values[name] for c in found])
                assert np.array_equal(a, b, equal_nan=True), f"{executor.name}: {name} differs from {reference.name}"
    executor.close()
    executor.close()


def check_exporter(exporter: Exporter, chosen: Chosen) -> None:
    """Check an exporter on one design: it answers with files of relative names, and answers alike twice."""
    assert exporter.name, "an exporter has a name"
    assert exporter.help, "an exporter says what opens its files"
    try:
        exported = exporter.export(chosen)
    except DseError:
        return  # a design that the format cannot hold at all is refused in words
    assert exported.files, f"{exporter.name}: no file"
    for name, content in exported.files.items():
        assert not name.startswith("/"), f"{exporter.name}: {name!r} is absolute"
        assert ".." not in name.split("/"), f"{exporter.name}: {name!r} leaves its folder"
        assert isinstance(content, bytes), f"{exporter.name}: {name!r} is not bytes"
    assert exporter.export(chosen) == exported, f"{exporter.name}: two exports of one design differ"
