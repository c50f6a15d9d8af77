"""Following a study while it grows: reading on from where one was gives what reading all of it gives."""

from __future__ import annotations

import numpy as np
import pytest

from dse import Choice, Rung, Scenario, Space, Study
from dse.errors import NameUnknown
from dse.results import Results
from dse.store import open_store, tables
from dse.testing.samples import small_model


def make(**options):
    return Study(
        "growing",
        model=small_model(),
        scenario=Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
        hardware="npu-template",
        space=Space(weight_bits=Choice(3, 4, 8, per="component"), pe_rows=Choice(4, 8, 16, 32, 4096)),
        objectives="min latency_s, min energy_j, min quality_loss",
        constraints="area_mm2 <= 15",
        ask_size=8,
        **options,
    )


def assert_equal(one, other):
    assert one.row.n_designs == other.row.n_designs
    assert one.stored.hashes == other.stored.hashes
    assert one.stored.proposers == other.stored.proposers
    assert one.stored.n_batches == other.stored.n_batches
    assert one.stored.n_proposed_by_batch == other.stored.n_proposed_by_batch
    assert one.stored.parents == other.stored.parents
    assert one.stored.last_errors == other.stored.last_errors
    for name in ("codes", "batches", "marks", "attempts", "created_s", "evaluated"):
        np.testing.assert_array_equal(getattr(one.stored, name), getattr(other.stored, name))
    np.testing.assert_array_equal(one.violation, other.violation)
    np.testing.assert_array_equal(one.objectives, other.objectives)
    assert [one.reason(i) for i in range(len(one))] == [other.reason(i) for i in range(len(other))]
    assert one.fidelities == other.fidelities
    for rung in range(1, len(other.fidelities)):
        above, expected = one.at(rung), other.at(rung)
        np.testing.assert_array_equal(above.evaluated, expected.evaluated)
        np.testing.assert_array_equal(above.violation, expected.violation)
        np.testing.assert_array_equal(above.objectives, expected.objectives)
    rounds = [[(p.rung, p.designs.tolist(), p.is_done) for p in r.stored.promotions] for r in (one, other)]
    assert rounds[0] == rounds[1]
    for name, ends in other.metrics.intervals.items():
        np.testing.assert_array_equal(one.metrics.intervals[name], ends)


@pytest.mark.parametrize("lag", [1, 3])
def test_reading_on_equals_reading_all(tmp_path, lag):
    path, seen, study = tmp_path / "a.db", [], make(lag=lag)
    followed = None

    def report(progress):
        nonlocal followed
        store = open_store(path, read_only=True)
        followed = Results.load(store, "growing") if followed is None else followed.refreshed(store)
        assert_equal(followed, Results.load(store, "growing"))
        seen.append(len(followed))
        store.close()
        del progress

    study.run(40, db=path, report=report, executor="local")
    study.run(32, db=path, report=report, executor="local")
    assert seen[-1] > 60
    assert len(set(seen)) >= 5


def test_reading_on_equals_reading_all_while_designs_go_up(tmp_path):
    path, seen = tmp_path / "a.db", []
    followed = None

    def report(progress):
        nonlocal followed
        store = open_store(path, read_only=True)
        followed = Results.load(store, "growing") if followed is None else followed.refreshed(store)
        assert_equal(followed, Results.load(store, "growing"))
        if progress.stage:
            seen.append(int(followed.at(1).evaluated.sum()))
        store.close()

    # More designs in the second run: of the first ones some go up when they have long been settled.
    for trials in (24, 16):
        make(ladder=Rung("simulated", designs=0.5), lag=2).run(trials, db=path, report=report, executor="local")
    assert seen == sorted(seen)
    assert seen[-1] == 20
    assert len(set(seen)) >= 3
    assert followed.at(1).refreshed(open_store(path, read_only=True)).rung == 1


def test_what_has_not_changed_is_the_same_object(tmp_path):
    results = make().run(16, db=tmp_path / "a.db", report=lambda _: None)
    store = open_store(tmp_path / "a.db", read_only=True)
    same = results.refreshed(store)
    assert same.refreshed(store) is same
    store.close()


def test_a_deleted_study_is_said_to_be_unknown(tmp_path):
    results = make().run(16, db=tmp_path / "a.db", report=lambda _: None)
    store = open_store(tmp_path / "a.db")
    with store._writing() as connection:
        connection.execute(tables.study.delete())
    with pytest.raises(NameUnknown, match="growing"):
        results.refreshed(store)
    store.close()
