"""A model on an accelerator that is being designed: latency, energy, memory, area, per design, in closed form.

Operators run one after the other. A matrix product takes the longer of its array cycles (:mod:`costmodels.systolic`)
and its DRAM traffic; vector work takes the longer of its elementary operations over the lanes
(:mod:`costmodels.vector_costs`) and its DRAM traffic. Between operators every intermediate result goes through DRAM at
16 bits, attention scores included: nothing is fused.

Energy is events times constants (:mod:`costmodels.chip`): multiply-accumulates by operand widths, vector operations,
on-chip reads and writes by memory size, DRAM bits; and the leakage of the whole area over the whole latency.

The breakdown charges each operator's time to what bounds it: array or lanes ("compute"), or its traffic, in proportion
to its bytes of weights, cache and activations.

Left out: host, network and DMA set-up, bank conflicts, refresh, on-chip reuse between operators, mixed-precision speed
below 8 bits (narrow operands save traffic and energy, not cycles).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from costmodels.breakdown import Ledger
from costmodels.chip import ENDS, Chip, Events
from costmodels.systolic import (
    A_MOVED,
    B_MOVED,
    CYCLES,
    LIVE_BYTES,
    MACS,
    O_MOVED,
    SCALED_MACS,
    SRAM_READ_BITS,
    SRAM_WRITE_BITS,
    TILE_BYTES,
    run_products,
)
from costmodels.tables import class_of
from costmodels.vector_costs import VectorCoefficients
from costmodels.workload import PhaseSizes, Sizes, Workload
from dse.canonical import content_hash
from dse.designs import DesignBatch
from dse.hardware import Accelerator
from dse.metrics import Limit, MetricBatch
from dse.problem import Problem
from dse.protocols import Breakdown

# Rows worked on at a time: temporaries of (rows, 300 operators) then stay in a core's second-level cache.
CHUNK_ROWS: Final = 64

METRICS: Final = (
    "latency_s", "ttft_s", "tpot_s", "encode_s", "prefill_s", "decode_s", "throughput_tokens_per_s", "energy_j",
    "power_w", "memory_bytes", "weight_bytes", "kv_bytes", "activation_bytes", "dram_bytes", "area_mm2",
)  # fmt: skip


@dataclass(frozen=True)
class _Work:
    """One pass of a phase on a chip. Matrix products (n, j), vector groups (n, g).

    Attributes:
        gemm_compute_s, vector_compute_s: time in array and lanes.
        weight_bytes, kv_bytes, activation_bytes: DRAM traffic of the products.
        vector_bytes: DRAM traffic of the vector groups.
        cache_bytes: appended to the cache, (n or 1, 1).
        gemm_events, vector_events: counts.
        live_bytes: operands and results of a product that are in memory at once.
        tile_bytes: on-chip memory that its tiles take.
    """

    gemm_compute_s: np.ndarray
    vector_compute_s: np.ndarray
    weight_bytes: np.ndarray
    kv_bytes: np.ndarray
    activation_bytes: np.ndarray
    vector_bytes: np.ndarray
    cache_bytes: np.ndarray
    gemm_events: Events
    vector_events: Events
    live_bytes: np.ndarray
    tile_bytes: np.ndarray

    def gemm_s(self, chip: Chip) -> np.ndarray:
        """Return the time of each product, shape (n, j)."""
        moved = self.weight_bytes + self.kv_bytes + self.activation_bytes
        return np.maximum(self.gemm_compute_s, moved / chip.dram_bytes_per_s)

    def vector_s(self, chip: Chip) -> np.ndarray:
        """Return the time of each vector group, shape (n, g)."""
        return np.maximum(self.vector_compute_s, self.vector_bytes / chip.dram_bytes_per_s)

    def cache_s(self, chip: Chip) -> np.ndarray:
        """Return the time of appending to the cache, shape (n, 1)."""
        return self.cache_bytes / chip.dram_bytes_per_s

    def seconds(self, chip: Chip) -> np.ndarray:
        """Return the time of the pass, shape (n,)."""
        return self.gemm_s(chip).sum(axis=1) + self.vector_s(chip).sum(axis=1) + self.cache_s(chip)[:, 0]

    def events(self) -> Events:
        """Return all counts of the pass, shape (n,)."""
        gemm = Events(*(_row_sums(a) for a in vars(self.gemm_events).values()))
        vector = Events(*(_row_sums(a) for a in vars(self.vector_events).values()))
        total = gemm.plus(vector, 1.0)
        return replace(total, dram_bits=total.dram_bits + 8 * self.cache_bytes[:, 0])


def _row_sums(array: np.ndarray) -> np.ndarray:
    return array.sum(axis=1)


class AcceleratorEvaluator:
    """The analytical model for one problem on an accelerator template.

    Args:
        problem: its hardware is an :class:`~dse.hardware.Accelerator`.
        hardware: that accelerator.
        version: version of the cost model, part of the fingerprint.
    """

    metrics: Sequence[str] = METRICS

    def __init__(self, problem: Problem, hardware: Accelerator, version: str) -> None:
        self.problem, self.hardware = problem, hardware
        self.workload = Workload(problem)
        self.fingerprint = content_hash(
            {"model": version, "problem": problem.content_hash, "scenario": problem.scenario.to_json()}
        )

    def evaluate(self, batch: DesignBatch) -> MetricBatch:
        """Return the metrics of each design, row by row."""
        if len(batch) <= CHUNK_ROWS:
            return self._evaluate(batch, None)
        parts = []
        for start in range(0, len(batch), CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, len(batch))
            parts.append((np.arange(start, stop), self._evaluate(batch.take(slice(start, stop)), None)))
        return MetricBatch.scatter(parts, len(batch))

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return latency, energy, memory and area in additive parts."""
        ledger = Ledger(len(batch))
        self._evaluate(batch, ledger)
        return ledger.breakdowns()

    def _evaluate(self, batch: DesignBatch, ledger: Ledger | None) -> MetricBatch:
        n = len(batch)
        chip, sizes = Chip(self.hardware, batch), self.workload.size(batch)
        seconds = {"encode": np.zeros(n), "prefill": np.zeros(n), "decode": np.zeros(n)}
        events, live, tiles = Events.none(n), np.zeros(n), np.zeros(n)
        for phase in sizes.phases:
            tables = self.workload.tables(batch.schema)
            coefficients = VectorCoefficients.of(tables.vectors[phase.name].labels)
            work = _work(phase, self.run_products(phase.gemms.planes, chip), coefficients, chip)
            seconds[phase.name] = work.seconds(chip)
            events = events.plus(work.events(), self._passes(phase.name))
            live = np.maximum(live, work.live_bytes.max(axis=1))
            tiles = np.maximum(tiles, work.tile_bytes.max(axis=1))
            if ledger is not None:
                labels = tables.gemms[phase.name].labels
                vector_labels = [(c, class_of(kind)) for c, kind in tables.vectors[phase.name].labels]
                requests = np.broadcast_to(sizes.requests, (n, 1))
                _record(ledger, phase.name, labels, vector_labels, work, chip, self._passes(phase.name), requests)
        latency = seconds["encode"] + seconds["prefill"] + self._passes("decode") * seconds["decode"]
        if ledger is not None:
            _record_totals(ledger, chip, sizes, live, latency)
        return self._metrics(chip, sizes, seconds, latency, events, live, tiles)

    def run_products(self, sizes: np.ndarray, chip: Chip) -> np.ndarray:
        """Return what products do on their chips: the planes of :func:`costmodels.systolic.run_products`."""
        return run_products(sizes, chip.arrays)

    def _passes(self, phase: str) -> float:
        """Return how often a phase runs in a request: prefill gives the first output token, decode the others."""
        return float(self.problem.scenario.output_tokens - 1) if phase == "decode" else 1.0

    def _metrics(
        self,
        chip: Chip,
        sizes: Sizes,
        seconds: Mapping[str, np.ndarray],
        latency: np.ndarray,
        events: Events,
        live: np.ndarray,
        tiles: np.ndarray,
    ) -> MetricBatch:
        n = len(latency)
        requests = np.broadcast_to(sizes.requests[:, 0], n)
        energy = {end: (chip.energy(events, end) + chip.leakage_w(end) * latency) / requests for end in ENDS}
        area = {end: chip.area(end) for end in ENDS}
        memory = sizes.weight_bytes + sizes.kv_bytes + live
        values = {
            "latency_s": latency,
            "ttft_s": seconds["encode"] + seconds["prefill"],
            "tpot_s": seconds["decode"],
            "encode_s": seconds["encode"],
            "prefill_s": seconds["prefill"],
            "decode_s": self._passes("decode") * seconds["decode"],
            "throughput_tokens_per_s": requests * self.problem.scenario.output_tokens / latency,
            "energy_j": energy["value"],
            "power_w": energy["value"] * requests / latency,
            "memory_bytes": memory,
            "weight_bytes": sizes.weight_bytes,
            "kv_bytes": sizes.kv_bytes,
            "activation_bytes": live,
            "dram_bytes": events.dram_bits / 8,
            "area_mm2": area["value"],
        }
        intervals = {
            "energy_j": (energy["low"], energy["high"]),
            "power_w": (energy["low"] * requests / latency, energy["high"] * requests / latency),
            "area_mm2": (area["low"], area["high"]),
        }
        limits = [
            Limit("sram_bytes", tiles, chip.sram_bytes, "the tiles need {needed} of on-chip memory of {available}"),
            memory_limit(memory, self.hardware.memory_bytes, self.hardware.name),
            *sizes.limits,
        ]
        broken = [limit for limit in limits if (limit.excess_ratio > 0).any()]
        return MetricBatch(values, n, intervals, dict.fromkeys(values, "analytical"), broken).masked()


def memory_limit(needed: np.ndarray, available: float, name: str) -> Limit:
    """Return the law that a model fits its memory, for needs of shape (n,)."""
    text = f"the model needs {{needed}} of memory, {name} has {{available}}"
    return Limit("memory_bytes", needed, np.full(len(needed), float(available)), text)


def _work(phase: PhaseSizes, ran: np.ndarray, vector: VectorCoefficients, chip: Chip) -> _Work:
    g = phase.gemms
    a_moved, b_moved, o_moved = ran[A_MOVED], ran[B_MOVED], ran[O_MOVED]
    cached = ~g.is_weight & g.is_cached
    vector_ops, vector_bytes = phase.elements * vector.ops, phase.elements * vector.moved_bytes
    nothing = np.zeros((1, 1))
    return _Work(
        gemm_compute_s=ran[CYCLES] / chip.freq_hz,
        vector_compute_s=vector_ops / (chip.lanes * chip.freq_hz),
        weight_bytes=b_moved * g.is_weight,
        kv_bytes=b_moved * cached,
        activation_bytes=a_moved + o_moved + b_moved * ~(g.is_weight | cached),
        vector_bytes=vector_bytes,
        cache_bytes=phase.cache_bytes,
        gemm_events=Events(
            macs=ran[MACS],
            scaled_macs=ran[SCALED_MACS],
            vector_ops=nothing,
            sram_read_bits=ran[SRAM_READ_BITS],
            sram_write_bits=ran[SRAM_WRITE_BITS],
            dram_bits=8 * (a_moved + b_moved + o_moved),
        ),
        vector_events=Events(
            macs=nothing,
            scaled_macs=nothing,
            vector_ops=vector_ops,
            sram_read_bits=nothing,
            sram_write_bits=nothing,
            dram_bits=8 * vector_bytes,
        ),
        live_bytes=ran[LIVE_BYTES],
        tile_bytes=ran[TILE_BYTES],
    )


def _record(
    ledger: Ledger,
    phase: str,
    gemm_labels: Sequence[tuple[str, str]],
    vector_labels: Sequence[tuple[str, str]],
    work: _Work,
    chip: Chip,
    passes: float,
    requests: np.ndarray,
) -> None:
    """Enter one phase: time by what bounds each operator, energy by event."""
    n = len(requests)
    traffic = {
        "weight traffic": work.weight_bytes,
        "kv traffic": work.kv_bytes,
        "activation traffic": work.activation_bytes,
    }
    moved = work.weight_bytes + work.kv_bytes + work.activation_bytes
    seconds = work.gemm_s(chip)
    bound = work.gemm_compute_s >= moved / chip.dram_bytes_per_s

    def enter(metric: str, labels: Sequence[tuple[str, str]], kind: str, parts: np.ndarray) -> None:
        full = np.broadcast_to(parts, (n, len(labels)))
        ledger.add(metric, [(c, phase, cls, kind) for c, cls in labels], passes * full)

    enter("latency_s", gemm_labels, "compute", np.where(bound, seconds, 0.0))
    for kind, part in traffic.items():
        share = part / np.where(moved > 0, moved, 1.0)
        enter("latency_s", gemm_labels, kind, np.where(bound, 0.0, seconds * share))
        enter("energy_j", gemm_labels, kind, 8 * part * chip.constant("dram_j_per_bit", "value") / requests)
    gemm_energy = chip.energy_parts(work.gemm_events, "value")
    enter("energy_j", gemm_labels, "compute", gemm_energy["compute"] / requests)
    enter("energy_j", gemm_labels, "on-chip memory", gemm_energy["on-chip memory"] / requests)
    vector_s = work.vector_s(chip)
    lanes = work.vector_compute_s >= work.vector_bytes / chip.dram_bytes_per_s
    enter("latency_s", vector_labels, "compute", np.where(lanes, vector_s, 0.0))
    enter("latency_s", vector_labels, "activation traffic", np.where(lanes, 0.0, vector_s))
    vector_energy = chip.energy_parts(work.vector_events, "value")
    enter("energy_j", vector_labels, "compute", vector_energy["compute"] / requests)
    enter("energy_j", vector_labels, "activation traffic", vector_energy["dram"] / requests)
    appended = np.broadcast_to(work.cache_bytes, (n, 1))
    enter("latency_s", [("decoder", "cache")], "kv traffic", appended / chip.dram_bytes_per_s)
    enter(
        "energy_j",
        [("decoder", "cache")],
        "kv traffic",
        8 * appended * chip.constant("dram_j_per_bit", "value") / requests,
    )


def _record_totals(ledger: Ledger, chip: Chip, sizes: Sizes, live: np.ndarray, latency: np.ndarray) -> None:
    """Enter what belongs to no phase: leakage, memory, area."""
    requests = np.broadcast_to(sizes.requests[:, 0], len(live))
    ledger.add_one(
        "energy_j", ("accelerator", "all", "leakage", "leakage"), chip.leakage_w("value") * latency / requests
    )
    for kind, part in (("weights", sizes.weight_bytes), ("cache", sizes.kv_bytes), ("activations", live)):
        ledger.add_one("memory_bytes", ("model", "all", "memory", kind), part)
    for kind, part in chip.area_parts("value").items():
        ledger.add_one("area_mm2", ("accelerator", "all", "area", kind), part)
