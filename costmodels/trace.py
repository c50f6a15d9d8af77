"""A simulated pass as a timeline in the Trace Event Format of Chrome, which Perfetto and chrome://tracing open.

One thread per resource: DRAM reads and writes (two channels of one port), array, vector unit; one event per slice,
named by its operator; counters for the bandwidth of reads and writes. Times are in microseconds. Every operator runs at
its own time, nothing is skipped or remembered; where a number of products is not whole, its whole part is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from costmodels.chip import Chip
from costmodels.machine import AHEAD_BYTES, AMOUNT, BEGIN, END, N_COLUMNS, OP, READ, RESOURCE, SPARE, Log
from costmodels.simpass import N_RESULTS, SECONDS, simulate_design
from costmodels.simulator import SimulatedEvaluator
from dse.designs import DesignBatch
from dse.errors import UserError, unknown
from dse.metrics import Status

N_INTERVALS: Final = 400
_THREADS: Final = ("DRAM read", "DRAM write", "array", "vector unit")
_TO_US: Final = 1e6


def trace(evaluator: SimulatedEvaluator, design: DesignBatch, phase: str, max_events: int) -> Mapping[str, Any]:
    """Return the document of one pass of a phase.

    Args:
        evaluator: of the design's problem.
        design: a batch of one row.
        phase: "encode", "prefill" or "decode".
        max_events: events drawn at most, the first ones; ``otherData`` tells how many there are.

    Raises:
        NameUnknown: no phase of that name.
        UserError: the design cannot run, or its request has no such phase.
    """
    metrics = evaluator.evaluate(design)
    if metrics.status[0] != Status.OK:
        raise UserError(f"the design cannot run: {metrics.reason(0)}", "trace one that can")
    runs = {run.name: run for run in evaluator.run(design)}
    if phase not in runs:
        raise unknown("phase of this request", phase, runs)
    total_s = float(runs[phase].total(SECONDS)[0])
    log = Log(
        np.empty((max_events, N_COLUMNS)), np.zeros(1, np.int64), np.zeros((2, N_INTERVALS)),
        np.full(1, total_s / N_INTERVALS),
    )  # fmt: skip
    chip = Chip(evaluator.hardware, design)
    sizes = next(p for p in evaluator.workload.size(design, with_fusion=True).phases if p.name == phase)
    ops = evaluator.phase_ops(phase)
    results = np.zeros((len(ops.names), N_RESULTS))
    fused = evaluator.fused(design, sizes, chip)
    simulate_design(0, sizes.gemms.planes, ops.order, ops.loads(sizes, chip), chip.arrays, fused, log, results)
    kept = log.events[: min(int(log.n_events[0]), max_events)]
    loaded = _loaded_ahead(kept, results, float(chip.dram_bytes_per_s[0, 0]))
    for begin, end, _, size in loaded:
        first, last = (min(int(at / log.interval_s[0]), N_INTERVALS - 1) for at in (begin, end))
        log.moved_bytes[READ, first : last + 1] += size / (last + 1 - first)
    drawn = kept[kept[:, RESOURCE] != SPARE]
    is_whole = int(log.n_events[0]) <= max_events
    events = [_meta("process_name", 0, phase), *(_meta("thread_name", i, name) for i, name in enumerate(_THREADS))]
    events += [_event(ops.names[int(e[OP])], int(e[RESOURCE]), e[BEGIN], e[END], e[AMOUNT]) for e in drawn]
    events += [_event(f"{ops.names[op]} (ahead)", READ, begin, end, size) for begin, end, op, size in loaded]
    interval_s = float(log.interval_s[0])
    for i in range(N_INTERVALS):
        rates = {n: float(log.moved_bytes[c, i]) / interval_s / 1e9 for c, n in enumerate(("read", "write"))}
        events.append({"ph": "C", "name": "DRAM GB/s", "pid": 0, "ts": i * interval_s * _TO_US, "args": rates})
    said = (
        ""
        if is_whole
        else f"cut: the first {len(kept)} of {int(log.n_events[0])} events; counters are of the whole pass"
    )
    other = {
        "phase": phase, "seconds": total_s, "is_whole": is_whole, "note": said,
        "n_events": len(drawn) + len(loaded), "fingerprint": evaluator.fingerprint,
    }  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": other}


def _loaded_ahead(events: np.ndarray, results: np.ndarray, bandwidth: float) -> list[tuple[float, float, int, float]]:
    """Return (begin, end, operator, bytes) of what was loaded ahead, in time that the operator before had to spare."""
    gaps: dict[int, list[np.ndarray]] = {}
    for event in events[events[:, RESOURCE] == SPARE]:
        gaps.setdefault(int(event[OP]), []).append(event)
    out, before = [], -1
    for op in np.flatnonzero(results[:, SECONDS] > 0.0).tolist():
        left = float(results[op, 1 + AHEAD_BYTES])
        for gap in gaps.get(before, []):
            size = min(left, (gap[END] - gap[BEGIN]) * bandwidth)
            if size > 0.0:
                out.append((float(gap[BEGIN]), float(gap[BEGIN] + size / bandwidth), op, float(size)))
                left -= size
        before = op
    return out


def _meta(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": 0, "tid": thread, "args": {"name": name}}


def _event(name: str, resource: int, begin: float, end: float, amount: float) -> dict[str, Any]:
    args = {"bytes": float(amount)} if resource <= 1 else {}
    return {
        "ph": "X", "name": name, "pid": 0, "tid": resource, "ts": float(begin) * _TO_US,
        "dur": float(end - begin) * _TO_US, "args": args,
    }  # fmt: skip
