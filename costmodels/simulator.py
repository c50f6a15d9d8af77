"""The hardware cost model "simulated": a model on an accelerator template, simulated tile by tile.

Same workload, mapping, widths, areas and energies per event as the analytical model (:mod:`costmodels.accelerator`);
the time of every operator is that of a discrete simulation (:mod:`costmodels.tilesim`, :mod:`costmodels.simpass`), and
so is its DRAM traffic, counted transfer by transfer. Multiply-accumulates and on-chip traffic are counts of the mapping
and equal those of the closed forms.

The time of a pass is never below

    max(array cycles / frequency, vector cycles / frequency, DRAM bytes / bandwidth), each summed over the operators

because one array, one vector unit and one DRAM port serve all of them. It may be below the analytical latency, which
exposes the first weights of every operator; the simulator loads them ahead where DRAM has time and memory has room.

The run is repeatable, so breakdowns and traces are worked out again on demand instead of being stored.

Left out, beside what the analytical model leaves out: set-up time of transfers, refresh and row misses of DRAM, folds
of two steps side by side on different cores, vector work beside the array outside of fused groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from costmodels.accelerator import METRICS, AcceleratorEvaluator, ask_of, fusion_limits
from costmodels.breakdown import Ledger
from costmodels.chip import Chip, Events
from costmodels.fused_designs import asked_phase
from costmodels.machine import ARRAY_S, BUSY, READ_BYTES, READ_WAIT_S, VECTOR_S, WRITE_BYTES, WRITE_WAIT_S
from costmodels.rowplan import make_room
from costmodels.simpass import APPEND, PRODUCT, SECONDS, VECTOR_WORK, Fused, Loads, Order, simulate_pass
from costmodels.sums import sum_elements
from costmodels.systolic import PLAIN_BYTES
from costmodels.tables import Gemms, block_columns, class_of, dim_table, full
from costmodels.totals import LIVE_BYTES, TILE_BYTES
from costmodels.vector_costs import VECTOR_COSTS, VectorCoefficients
from costmodels.workload import PHASES, PhaseSizes
from dse.designs import DesignBatch
from dse.errors import HardwareError
from dse.hardware import Accelerator
from dse.metrics import Limit, MetricBatch
from dse.model import Graph, Model, Op, OpKind
from dse.problem import Problem
from dse.protocols import Breakdown, Evaluator, Roofline

VERSION: Final = "2"

WAITS: Final = (
    "array_utilisation_ratio", "vector_utilisation_ratio", "dram_utilisation_ratio", "read_wait_s", "write_wait_s",
)  # fmt: skip


class PhaseOps:
    """The operators of one phase in graph order, as arrays.

    Args:
        graph, model: the phase.

    Attributes:
        names: of the operators.
        labels: (component, class) of each.
        order: which runs after which.
    """

    def __init__(self, graph: Graph, model: Model) -> None:
        ops = graph.ops
        self.names = [op.name for op in ops]
        self.labels = [(op.component, class_of(op.kind)) for op in ops]
        kind = [_kind(op) for op in ops]
        column = [kind[:i].count(k) for i, k in enumerate(kind)]
        follows = [i == 0 or ops[i - 1].name in op.inputs for i, op in enumerate(ops)]
        self.order = Order(
            kind=np.array(kind, dtype=np.int64),
            column=np.array(column, dtype=np.int64),
            follows=np.array(follows, dtype=bool),
            is_weight=np.array([op.kind is OpKind.LINEAR for op in ops], dtype=bool),
        )
        self._vectors = [op for op in ops if _kind(op) == VECTOR_WORK]
        self._appends = [op for op in ops if _kind(op) == APPEND]
        self._blocks = [block_columns(group, model) for group in (self._vectors, self._appends)]
        self._sizes = [
            dim_table([(op.heads if op.kind is OpKind.SOFTMAX else op.n).times(op.n_active) for op in group])
            for group in (self._vectors, self._appends)
        ]
        costs = [VECTOR_COSTS[op.kind] for op in self._vectors]
        self._ops = np.array([c.ops for c in costs], dtype=np.float64)
        self._reads = np.array([c.reads * PLAIN_BYTES for c in costs], dtype=np.float64)
        self._writes = np.array([c.writes * PLAIN_BYTES for c in costs], dtype=np.float64)

    def loads(self, phase: PhaseSizes, chip: Chip) -> Loads:
        """Return the vector work and the appends of designs.

        The bytes that a pass appends are those of the workload; an append has the part of them that its elements are.
        """
        n = len(phase.gemms.bound.block)
        appended = self._elements(1, self._appends, phase.gemms)
        total = appended.sum(axis=1, keepdims=True)
        append_bytes = appended / np.where(total > 0.0, total, 1.0) * phase.cache_bytes
        elements = full(self._elements(0, self._vectors, phase.gemms), n)
        if phase.fused is not None:
            elements = np.where(phase.fused.skipped_vectors, 0.0, elements)
        return Loads(
            elements=elements,
            ops=self._ops,
            read_bytes=self._reads,
            write_bytes=self._writes,
            lanes=full(chip.lanes, n)[:, 0].copy(),
            append_bytes=full(append_bytes, n),
        )

    def _elements(self, which: int, ops: Sequence[Op], gemms: Gemms) -> np.ndarray:
        """Return the elements that operators write, shape (n, operators)."""
        bound, binding = gemms.bound, gemms.binding
        if not ops:
            return np.zeros((len(bound.block), 0))
        block, each = self._blocks[which], np.arange(len(ops), dtype=np.int64)
        none = np.zeros((1, len(ops)), dtype=np.uint8)
        per_row = sum_elements(
            each, block, self._sizes[which], len(ops), bound.heads, bound.channels, bound.block, none
        )
        rows = [binding.rows(op.rows) for op in ops]
        total = np.concatenate([np.broadcast_to(r.per_sequence * r.sequences, (len(per_row), 1)) for r in rows], axis=1)
        spans = [binding.span(op.span, op.window, op.chunked) if op.span else np.ones((1, 1)) for op in ops]
        return per_row * total * np.concatenate([np.broadcast_to(s, (len(per_row), 1)) for s in spans], axis=1)


def _kind(op: Op) -> int:
    return PRODUCT if op.kind.is_matmul else APPEND if op.kind is OpKind.CACHE else VECTOR_WORK


@dataclass(frozen=True)
class PhaseRun:
    """One simulated pass of a phase.

    Attributes:
        name: "encode", "prefill" or "decode".
        passes: how often it runs in a request.
        ops: its operators.
        results: what each does, shape (n, operators, N_RESULTS); see :mod:`costmodels.simpass`.
    """

    name: str
    passes: float
    ops: PhaseOps
    results: np.ndarray

    def total(self, of: int) -> np.ndarray:
        """Return a sum over all operators, shape (n,)."""
        return np.ascontiguousarray(self.results[:, :, of]).sum(axis=1)


class SimulatedEvaluator(AcceleratorEvaluator):
    """The simulator for one problem on an accelerator template."""

    metrics: Sequence[str] = (*METRICS, *WAITS)

    def __init__(self, problem: Problem, hardware: Accelerator, version: str) -> None:
        super().__init__(problem, hardware, version)
        model = self.workload.model
        self._ops = {name: PhaseOps(model.graph(name), model) for name in PHASES}

    def run(self, batch: DesignBatch) -> list[PhaseRun]:
        """Return one simulated pass of each phase that has work."""
        chip = Chip(self.hardware, batch)
        runs = []
        for phase in self.workload.size(batch, with_fusion=True).phases:
            ops = self._ops[phase.name]
            fused = self.fused(batch, phase, chip)
            results = simulate_pass(phase.gemms.planes, ops.order, ops.loads(phase, chip), chip.arrays, fused)
            runs.append(PhaseRun(phase.name, self._passes(phase.name), ops, results))
        return runs

    def fused(self, batch: DesignBatch, phase: PhaseSizes, chip: Chip) -> Fused:
        """Return what designs fuse in a phase, sized for them."""
        asked = phase.fused
        if asked is None:
            asked = asked_phase(batch, self.workload.role, self.workload.tables(batch.schema).fused(phase.name))
        tables, g = asked.tables, phase.gemms
        softmax = np.array([members[1:3] for members in tables.attention_members], dtype=np.int64).reshape(-1, 2)
        return Fused(
            tables.rows, tables.attentions, ask_of(asked, chip), make_room(tables.rows), g.products, g.bound, softmax
        )

    def phase_ops(self, phase: str) -> PhaseOps:
        """Return the operators of a phase."""
        return self._ops[phase]

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return latency by what operators spend it on, and energy, memory and area in additive parts."""
        ledger = Ledger(len(batch))
        for run in self.run(batch):
            for kind, of in (
                ("compute", BUSY),
                ("waiting for reads", READ_WAIT_S),
                ("waiting for writes", WRITE_WAIT_S),
            ):
                labels = [(component, run.name, cls, kind) for component, cls in run.ops.labels]
                ledger.add("latency_s", labels, run.passes * run.results[:, :, 1 + of])
        (latency,) = ledger.breakdowns()
        return [latency, *(self._leaking(b, batch) for b in super().breakdown(batch) if b.metric != "latency_s")]

    def roofline(self, batch: DesignBatch) -> Roofline:
        """Return the operators against the peaks of array, lanes and DRAM, with the simulated time of each.

        What is fetched while another operator runs is not in an operator's time, so one may outrun the memory.
        """
        roof, latency = super().roofline(batch), self.breakdown(batch)[0]
        taken = {label: np.zeros(len(batch)) for label in roof.labels}
        for (component, phase, cls, _), part in zip(latency.labels, latency.parts.T, strict=True):
            label = (component, phase, cls)
            taken[label] = taken.get(label, 0.0) + part
        return replace(roof, seconds=np.stack([taken[label] for label in roof.labels], axis=1))

    def _leaking(self, parts: Breakdown, batch: DesignBatch) -> Breakdown:
        """Return parts of the analytical model with the leakage of the simulated time."""
        if parts.metric != "energy_j":
            return parts
        chip, requests = Chip(self.hardware, batch), self.workload.size(batch).requests[:, 0]
        seconds = sum(run.passes * run.total(SECONDS) for run in self.run(batch))
        leaked = chip.leakage_w("value") * seconds / requests
        columns = [leaked if kind == "leakage" else parts.parts[:, i] for i, (*_, kind) in enumerate(parts.labels)]
        return Breakdown(parts.metric, parts.labels, np.stack(columns, axis=1))

    def _evaluate(self, batch: DesignBatch, ledger: Ledger | None) -> MetricBatch:
        if ledger is not None:
            return super()._evaluate(batch, ledger)
        n = len(batch)
        chip, sizes = Chip(self.hardware, batch), self.workload.size(batch, with_fusion=True)
        limits: list[Limit] = []
        seconds = {"encode": np.zeros(n), "prefill": np.zeros(n), "decode": np.zeros(n)}
        live, tiles = np.zeros(n), np.zeros(n)
        events = Events.none(n)
        spent = {name: np.zeros(n) for name in ("array", "vector", "dram", "read", "write")}
        for phase, run in zip(sizes.phases, self.run(batch), strict=True):
            vector = VectorCoefficients.of(self.workload.tables(batch.schema).vectors[phase.name].labels)
            counted = self._work(phase, vector, chip, False)
            limits += fusion_limits(phase, counted, chip)
            live = np.maximum(live, counted.gemms[LIVE_BYTES])
            tiles = np.maximum(tiles, counted.gemms[TILE_BYTES])
            moved = run.total(1 + READ_BYTES) + run.total(1 + WRITE_BYTES)
            events = events.plus(replace(counted.events(), dram_bits=8 * moved), run.passes)
            seconds[phase.name] = run.total(SECONDS)
            spent["array"] += run.passes * run.total(1 + ARRAY_S)
            spent["vector"] += run.passes * run.total(1 + VECTOR_S)
            spent["dram"] += run.passes * moved / chip.dram_bytes_per_s[:, 0]
            spent["read"] += run.passes * run.total(1 + READ_WAIT_S)
            spent["write"] += run.passes * run.total(1 + WRITE_WAIT_S)
        latency = seconds["encode"] + seconds["prefill"] + self._passes("decode") * seconds["decode"]
        plain = self._metrics(chip, sizes, seconds, latency, events, live, tiles, limits)
        values = dict(plain.values)
        for name in ("array", "vector", "dram"):
            # Sums of one and the same durations in another order may differ in the last digit.
            values[f"{name}_utilisation_ratio"] = np.minimum(spent[name] / latency, 1.0)
        values["read_wait_s"], values["write_wait_s"] = spent["read"], spent["write"]
        return MetricBatch(values, n, plain.intervals, dict.fromkeys(values, "simulated"), plain.limits).masked()


class Simulated:
    """Simulates a model on an accelerator template, tile by tile."""

    name = "simulated"
    group = "hardware"
    fidelity = "simulated"
    version = VERSION
    laws: frozenset[str] = frozenset(
        {
            "more_bandwidth_never_costs_time",
            "more_sram_never_moves_more",
            "fewer_bits_never_cost_bytes",
            "time_scales_with_time",
            "breakdown_adds_up",
            "traffic_at_least_compulsory",
        }
    )

    def prepare(self, problem: Problem) -> Evaluator:
        """Return the evaluator for a problem's accelerator.

        Raises:
            HardwareError: the hardware is a device.
        """
        return self.evaluator(problem)

    def evaluator(self, problem: Problem) -> SimulatedEvaluator:
        """Return the evaluator for a problem's accelerator; see :meth:`prepare`."""
        hardware = problem.hardware
        if not isinstance(hardware, Accelerator):
            raise HardwareError(
                f"the simulator needs an array and tiles, {hardware.name} is a device",
                "cost it with 'analytical', or name an accelerator template",
            )
        return SimulatedEvaluator(problem, hardware, f"simulated:{VERSION}")

    def trace(self, problem: Problem, design: DesignBatch, phase: str, max_events: int) -> Mapping[str, Any]:
        """Return one simulated pass as a timeline; see :func:`costmodels.trace.trace`."""
        from costmodels.trace import trace

        return trace(self.evaluator(problem), design, phase, max_events)
