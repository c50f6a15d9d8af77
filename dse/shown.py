"""Metrics and knobs of single designs, in words and as JSON types."""

from __future__ import annotations

import math
from typing import Any

from dse import units
from dse.errors import unknown
from dse.metrics import METRICS, MetricBatch
from dse.params import Value


def metric_records(metrics: MetricBatch, row: int) -> dict[str, dict[str, Any]]:
    """Return the metrics of one row as JSON types, each with unit, basis and, where it has one, its interval."""
    out: dict[str, dict[str, Any]] = {}
    for name, column in metrics.values.items():
        entry: dict[str, Any] = {
            "value": _number(column[row]),
            "unit": METRICS[name].unit if name in METRICS else units.unit_of(name),
        }
        if name in metrics.intervals:
            low, high = metrics.intervals[name]
            entry |= {"low": _number(low[row]), "high": _number(high[row])}
        if name in metrics.basis:
            entry["basis"] = metrics.basis[name]
        out[name] = entry
    return out


def show(metrics: MetricBatch, name: str, row: int) -> str:
    """Return one metric of one row for people, with its interval if it has one."""
    if name not in metrics.values:
        raise unknown("metric", name, metrics.values)
    value = units.format_quantity(float(metrics.values[name][row]), name)
    if name not in metrics.intervals:
        return value
    low, high = (float(end[row]) for end in metrics.intervals[name])
    return f"{value} [{units.format_interval(low, high, name)}]"


def show_knob(label: str, value: Value) -> str:
    """Return a parameter's value for people, with its unit ("sram_bytes" 1048576 becomes "1 MiB")."""
    name = label.partition("[")[0]
    has_unit = units.unit_of(name) and not isinstance(value, str)
    return units.format_quantity(float(value), name, 6) if has_unit else str(value)


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
