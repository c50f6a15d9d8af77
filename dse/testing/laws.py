"""Laws of cost models. A model declares those that apply to it in ``laws``; each function here checks one.

A law gets the cost model, a bound space, and rows of codes, and raises AssertionError with the row and the values where
the law is broken. Laws about the hardware change the designs' hardware fields or, for a device, its description.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from dse.designs import DesignBatch
from dse.hardware import Accelerator, Device, read_hardware
from dse.knobs import KNOBS
from dse.metrics import MetricBatch, Status
from dse.problem import TARGET, Problem
from dse.protocols import CostModel, Roofed
from dse.schema import Schema
from dse.space import BoundSpace

Law = Callable[[CostModel, BoundSpace, np.ndarray], None]

# Sums over hundreds of operators may be taken in another order.
ROUNDING: Final = 1e-9


def row_equals_batch(model: CostModel, space: BoundSpace, codes: np.ndarray) -> None:
    """Row i of a batch equals the batch of row i, bit for bit, whatever its neighbours; a reversed batch is reversed.

    Executors cut batches into chunks of any size, and rows must not depend on that.
    """
    evaluator = model.prepare(space.schema.problem)
    batch = space.decode(codes)
    whole = evaluator.evaluate(batch)
    backwards = evaluator.evaluate(batch.take(np.arange(len(batch))[::-1]))
    for i in range(len(batch)):
        one = evaluator.evaluate(batch.take([i]))
        _same_row(model, whole, i, one, 0, "its batch of one")
        _same_row(model, whole, i, backwards, len(batch) - 1 - i, "the reversed batch")


def _same_row(model: CostModel, a: MetricBatch, i: int, b: MetricBatch, j: int, where: str) -> None:
    assert a.status[i] == b.status[j], f"{model.name}: row {i} is {a.status[i]}, in {where} {b.status[j]}"
    assert a.reason(i) == b.reason(j), f"{model.name}: row {i}: {a.reason(i)!r}, in {where} {b.reason(j)!r}"
    for name in a.values:
        x, y = a.values[name][i], b.values[name][j]
        same = x == y or (np.isnan(x) and np.isnan(y))
        assert same, f"{model.name}: row {i} has {name}={x!r}, in {where} {y!r}"


def more_bandwidth_never_costs_time(model: CostModel, space: BoundSpace, codes: np.ndarray) -> None:
    """Twice the memory bandwidth never lengthens a request."""
    _never_slower(model, space, codes, {"dram_bytes_per_s": 2.0}, {"memory_bytes_per_s": 2.0})


def more_sram_never_costs_time(model: CostModel, space: BoundSpace, codes: np.ndarray) -> None:
    """Twice the on-chip memory never lengthens a request, and never makes a design infeasible."""
    _never_slower(model, space, codes, {"sram_bytes": 2.0}, {"cache_bytes": 2.0})


def more_sram_never_moves_more(model: CostModel, space: BoundSpace, codes: np.ndarray) -> None:
    """Twice the on-chip memory never adds memory traffic."""
    batch = space.decode(codes)
    before = model.prepare(space.schema.problem).evaluate(batch)
    after = _with_hardware(model, space.schema.problem, batch, {"sram_bytes": 2.0}, {"cache_bytes": 2.0})
    fits = before.status == Status.OK
    more = after.values["dram_bytes"][fits] > before.values["dram_bytes"][fits] * (1 + ROUNDING)
    assert not more.any(), f"{model.name}: more memory raises dram_bytes in rows {np.flatnonzero(more)}"


def _never_slower(
    model: CostModel, space: BoundSpace, codes: np.ndarray, fields: Mapping[str, float], device: Mapping[str, float]
) -> None:
    batch = space.decode(codes)
    before = model.prepare(space.schema.problem).evaluate(batch)
    after = _with_hardware(model, space.schema.problem, batch, fields, device)
    fits = before.status == Status.OK
    assert (after.status[fits] == Status.OK).all(), f"{model.name}: more of {list(fields)} makes a design infeasible"
    for name in ("latency_s", "ttft_s", "tpot_s"):
        slower = after.values[name][fits] > before.values[name][fits] * (1 + ROUNDING)
        assert not slower.any(), f"{model.name}: more of {list(fields)} raises {name} in rows {np.flatnonzero(slower)}"


def time_scales_with_time(model: CostModel, space: BoundSpace, codes: np.ndarray) -> None:
    """When every clock, bandwidth and peak is a quarter and every launch four times as long, so is every time, exactly.

    This is dimensional analysis as a test: a forgotten unit or a hidden constant breaks it. The factor is a power of
    two, so floats stay exact.
    """
    batch = space.decode(codes)
    problem = space.schema.problem
    before = _time_parts(model, problem, batch)
    fields = {"dram_bytes_per_s": 0.25, "freq_hz": 0.25}
    slow = {"memory_bytes_per_s": 0.25, "peak_ops_per_s": 0.25, "link_bytes_per_s": 0.25, "launch_ratio": 4.0}
    slow_problem, slow_batch = _changed(problem, batch, fields, slow)
    after = _time_parts(model, slow_problem, slow_batch)
    assert before.keys() == after.keys(), f"{model.name}: slower hardware changes which parts there are"
    for label, part in before.items():
        exact = after[label] == 4.0 * part
        assert exact.all(), f"{model.name}: {label} is {part} s, on hardware of a quarter of the speed {after[label]} s"


def _time_parts(model: CostModel, problem: Problem, batch: DesignBatch) -> dict[tuple[str, str, str, str], np.ndarray]:
    found = {p.metric: p for p in model.prepare(problem).breakdown(batch)}["latency_s"]
    return {label: found.parts[:, i] for i, label in enumerate(found.labels)}


def fewer_bits_never_cost_bytes(model: CostModel, space: BoundSpace, codes: np.ndarray) -> None:
    """Narrower weights, activations, keys or values never raise any byte count.

    Traffic is left out where an array that regroups meets a mapper that chooses the inner tile: a fold of narrower
    operands holds more of them, so where on-chip memory is short it may leave room for fewer tiles.
    """
    batch = space.decode(codes)
    evaluator = model.prepare(space.schema.problem)
    before = evaluator.evaluate(batch)
    for knob in ("weight_bits", "act_bits", "k_bits", "v_bits"):
        if knob not in batch:
            continue
        after = evaluator.evaluate(_narrowed(batch, knob))
        for name in ("weight_bytes", "kv_bytes", "dram_bytes", "memory_bytes"):
            rows = (before.status == Status.OK) & (after.status == Status.OK)
            if name == "dram_bytes" and "mac_array" in batch:
                rows &= ~((batch["mac_array"] == "scalable") & (batch["tile_k"] == 0))
            more = after.values[name][rows] > before.values[name][rows] * (1 + ROUNDING)
            assert not more.any(), f"{model.name}: fewer {knob} raise {name} in rows {np.flatnonzero(more)}"


def fewer_bits_never_gain_quality(model: CostModel, space: BoundSpace, codes: np.ndarray) -> None:
    """Narrower weights, activations, keys or values never lower the expected loss."""
    batch = space.decode(codes)
    evaluator = model.prepare(space.schema.problem)
    before = evaluator.evaluate(batch).values["quality_loss"]
    for knob in ("weight_bits", "act_bits", "k_bits", "v_bits"):
        if knob in batch:
            after = evaluator.evaluate(_narrowed(batch, knob)).values["quality_loss"]
            better = after < before * (1 - ROUNDING)
            assert not better.any(), f"{model.name}: fewer {knob} lower the loss in rows {np.flatnonzero(better)}"


def _narrowed(batch: DesignBatch, knob: str) -> DesignBatch:
    """Return the designs with one knob at its next lower width everywhere."""
    legal = np.array(KNOBS[knob].allowed)
    below = np.maximum(np.searchsorted(legal, batch[knob]) - 1, 0)
    return _replaced(batch, {knob: legal[below]})


def roofs_hold(model: CostModel, space: BoundSpace, codes: np.ndarray) -> None:
    """In the roofline no operator outruns the peak of its unit or of the memory, and all together take the latency."""
    problem, batch = space.schema.problem, space.decode(codes)
    evaluator = model.prepare(problem)
    assert isinstance(evaluator, Roofed), f"{model.name} declares roofs and gives none"
    metrics, roof = evaluator.evaluate(batch), evaluator.roofline(batch)
    rows = metrics.status == Status.OK
    limit, latency = roof.seconds[rows] * (1 + ROUNDING), metrics.values["latency_s"][rows]
    for unit, at_peak in (("their unit", roof.compute_s[rows]), ("the memory", roof.traffic_s[rows])):
        over = [
            ", ".join(label) for label, fast in zip(roof.labels, (at_peak > limit).any(axis=0), strict=True) if fast
        ]
        assert not over, f"{model.name}: faster than the peak of {unit}: {over}"
    np.testing.assert_allclose(roof.seconds[rows].sum(axis=1), latency, rtol=1e-9)


def breakdown_adds_up(model: CostModel, space: BoundSpace, codes: np.ndarray) -> None:
    """The parts of every metric that is broken down add up to it, and none is negative."""
    batch = space.decode(codes)
    evaluator = model.prepare(space.schema.problem)
    metrics = evaluator.evaluate(batch)
    rows = metrics.status == Status.OK
    parts = evaluator.breakdown(batch)
    assert parts, f"{model.name} declares a breakdown and gives none"
    for part in parts:
        assert (part.parts[rows] >= 0).all(), f"{model.name}: a part of {part.metric} is negative"
        total, sums = metrics.values[part.metric][rows], part.parts[rows].sum(axis=1)
        wrong = np.abs(sums - total) > ROUNDING * np.abs(total) + 1e-300
        assert not wrong.any(), f"{model.name}: the parts of {part.metric} add up to {sums[wrong]}, not {total[wrong]}"


def traffic_at_least_compulsory(model: CostModel, space: BoundSpace, codes: np.ndarray) -> None:
    """A request moves at least what its dense linear modules must move, alone; experts not counted.

    Every pass reads every weight that it uses once, at its stored width without scales. In prefill a product of m x k
    by k x n moves its operands and its result once and, with S elements on chip, 2 m n k / sqrt(S) - 2 S elements (Hong
    and Kung 1981; the constant of Kwasniewski et al., SC 2019), each of the narrowest width. The text tokens alone are
    counted.
    """
    batch = space.decode(codes)
    problem = space.schema.problem
    metrics = model.prepare(problem).evaluate(batch)
    rows = np.flatnonzero(metrics.status == Status.OK)
    passes = {"prefill": 1, "decode": problem.scenario.output_tokens - 1}
    if problem.scenario.images or problem.scenario.audio_s:
        passes["encode"] = 1
    for row in rows:
        least = sum(n * _linear_bytes(problem, batch, int(row), phase) for phase, n in passes.items())
        found = metrics.values["dram_bytes"][row]
        assert found >= least * (1 - ROUNDING), f"{model.name}: row {row} moves {found} B, its products {least} B"


def _linear_bytes(problem: Problem, batch: DesignBatch, row: int, phase: str) -> float:
    """Return the least bytes of the dense linear products of one pass, module by module.

    The weights alone are counted; in prefill, on an accelerator, operands, results and the input-output bound too,
    unless the design keeps some of them on chip by fusing projections.
    """
    model = problem.models[TARGET]
    sram = float(batch["sram_bytes"][row]) if "sram_bytes" in batch else 0.0
    tokens = float(problem.scenario.prompt_tokens * batch["batch"][row])
    bits = {
        entry.path: float(batch["weight_bits"][row, i])
        for i, entry in enumerate(batch.schema.fields["weight_bits"].entries)
        if entry.role == TARGET
    }
    blocks = batch.schema.fields["block_keep"].entries
    kept = {
        (e.component, e.block): float(batch["block_keep"][row, i]) for i, e in enumerate(blocks) if e.role == TARGET
    }
    units = {(b.component, b.index): (b.head_units, b.ffn_units) for b in model.blocks}
    # What a request does not bring is not read: towers without their input, layers that look at missing states.
    absent = {"vision"} if not problem.scenario.images else set()
    absent |= {"audio"} if not problem.scenario.audio_s else set()
    total = 0.0
    for op in model.graph(phase).ops:
        if op.kind != "linear" or not op.module or model.module(op.module).n_copies > 1:
            continue
        if op.component in absent or op.rows == "state":
            continue
        heads, channels = _kept_units(batch, row, op.component, op.block, units)
        owner = model.module(op.module).tied_to or op.module
        width, n_weights = bits.get(owner, 16.0) / 8, op.n_weights(heads, channels)
        least = n_weights * width
        if phase == "prefill" and sram and op.rows == "token" and not _fuses(batch, row):
            outputs = op.n.size(heads, channels)
            n_products = n_weights / (outputs * op.k.size(heads, channels))
            narrowest = min(width, *(float(w) / 8 for w in KNOBS["act_bits"].allowed))
            least += tokens * (n_weights / outputs * narrowest + outputs * 2)
            words = sram / narrowest
            least = max(least, narrowest * (2 * tokens * n_weights / words**0.5 - 2 * words * n_products))
        total += kept.get((op.component, op.block), 1.0) * least
    return total


def _fuses(batch: DesignBatch, row: int) -> bool:
    """Whether a design fuses anything but attention."""
    return any(bool(np.any(batch[name][row])) for name in ("fuse_mlp", "fuse_norm", "fuse_groups") if name in batch)


def _kept_units(
    batch: DesignBatch, row: int, component: str, block: int, units: Mapping[tuple[str, int], tuple[int, int]]
) -> tuple[int, int]:
    out = []
    for name, whole in zip(("head_keep", "ffn_keep"), units.get((component, block), (0, 0)), strict=True):
        field = batch.schema.fields.get(name)
        ratios = [
            float(batch[name][row, i])
            for i, e in enumerate(field.entries if field else ())
            if (e.role, e.component, e.block) == (TARGET, component, block)
        ]
        out.append(int(np.ceil((ratios[0] if ratios else 1.0) * whole - 1e-9)))
    return out[0], out[1]


# ---------------------------------------------------------------------------------------------- changed hardware


def _with_hardware(
    model: CostModel, problem: Problem, batch: DesignBatch, fields: Mapping[str, float], device: Mapping[str, float]
) -> MetricBatch:
    changed_problem, changed_batch = _changed(problem, batch, fields, device)
    return model.prepare(changed_problem).evaluate(changed_batch)


def _changed(
    problem: Problem, batch: DesignBatch, fields: Mapping[str, float], device: Mapping[str, float]
) -> tuple[Problem, DesignBatch]:
    """Return problem and designs with hardware fields multiplied: of the designs, or of the device's description."""
    if isinstance(problem.hardware, Accelerator):
        return problem, _replaced(batch, {n: batch[n] * f for n, f in fields.items()})
    assert isinstance(problem.hardware, Device)
    document: dict[str, Any] = {"launch_ratio": 1.0} | dict(problem.hardware.to_json())
    document["source"] = {"launch_ratio": "1 by definition"} | document["source"]
    for name, factor in device.items():
        value = document.get(name)
        if isinstance(value, Mapping):
            document[name] = {k: v * factor for k, v in value.items()}
        elif value is not None:
            document[name] = value * factor
    changed = replace(problem, hardware=read_hardware(document))
    return changed, _replaced(batch, {}, Schema(changed, batch.schema.channel_groups))


def _replaced(batch: DesignBatch, arrays: Mapping[str, np.ndarray], schema: Schema | None = None) -> DesignBatch:
    return DesignBatch(schema or batch.schema, {n: arrays.get(n, batch[n]) for n in batch.schema.fields})


LAWS: Final[dict[str, Law]] = {
    law.__name__: law
    for law in (
        row_equals_batch,
        more_bandwidth_never_costs_time,
        more_sram_never_costs_time,
        more_sram_never_moves_more,
        time_scales_with_time,
        fewer_bits_never_cost_bytes,
        fewer_bits_never_gain_quality,
        breakdown_adds_up,
        roofs_hold,
        traffic_at_least_compulsory,
    )
}
"""All laws by name; :func:`row_equals_batch` holds for every cost model, the others for those that declare them."""
