from __future__ import annotations

import numpy as np
import pytest

from dse.errors import NameUnknown
from dse.metrics import METRICS, Limit, MetricBatch, Status, ToldLimit, metric
from dse.units import carries_unit


def batch() -> MetricBatch:
    limit = Limit("sram_bytes", np.array([512.0, 2048.0, np.nan]), np.full(3, 1024.0), "needs {needed} of {available}")
    return MetricBatch(
        {"latency_s": np.array([1.0, 2.0, 3.0])},
        3,
        {"latency_s": (np.array([0.5, 1.0, 1.5]), np.array([2.0, 4.0, 6.0]))},
        {"latency_s": "analytical"},
        [limit],
        {2: "ValueError: odd"},
    )


def test_each_row_has_its_own_state_and_reason():
    rows = batch()
    assert rows.status.tolist() == [Status.OK, Status.INFEASIBLE, Status.FAILED]
    assert [rows.reason(i) for i in range(3)] == ["", "needs 2 KiB of 1 KiB (over by 1 KiB)", "ValueError: odd"]
    assert rows.excess_ratio.tolist() == [0.0, 1.0, 0.0]
    masked = rows.masked()
    np.testing.assert_equal(masked.values["latency_s"], [1.0, np.nan, np.nan])
    np.testing.assert_equal(masked.intervals["latency_s"][1], [2.0, np.nan, np.nan])


def test_take_and_scatter_are_inverse():
    rows = batch()
    parts = [(np.array([2, 0]), rows.take(np.array([2, 0]))), (np.array([1]), rows.take(np.array([1])))]
    again = MetricBatch.scatter(parts, 3)
    assert again.status.tolist() == rows.status.tolist()
    assert [again.reason(i) for i in range(3)] == [rows.reason(i) for i in range(3)]
    np.testing.assert_equal(again.values, dict(rows.values))
    np.testing.assert_equal(again.intervals["latency_s"], rows.intervals["latency_s"])


def test_limits_read_from_a_store_scatter_too():
    told = MetricBatch({}, 2, limits=[ToldLimit(np.array([0.0, 0.5]), {1: "too large"})])
    fresh = MetricBatch({"latency_s": np.ones(1)}, 1)
    joined = MetricBatch.scatter([(np.array([0, 1]), told), (np.array([2]), fresh)], 3)
    assert joined.status.tolist() == [Status.OK, Status.INFEASIBLE, Status.OK]
    assert joined.reason(1) == "too large"


def test_a_group_that_cannot_run_blanks_the_others():
    quality = MetricBatch({"quality_loss": np.array([0.1, 0.2, 0.3])}, 3)
    joined = MetricBatch.join([batch(), quality])
    np.testing.assert_equal(joined.values["quality_loss"], [0.1, np.nan, np.nan])


def test_every_metric_follows_the_naming_law():
    assert all(carries_unit(name) for name in METRICS)
    assert all(m.sense in ("min", "max") and m.help for m in METRICS.values())


def test_a_metric_without_its_unit_is_told_its_unit():
    with pytest.raises(NameUnknown) as error:
        metric("energy")
    assert error.value.hint == "name its unit: energy_j"
