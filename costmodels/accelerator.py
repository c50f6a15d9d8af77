"""A model on an accelerator that is being designed: latency, energy, memory, area, per design, in closed form.

Operators run one after the other. A matrix product takes the longer of its array cycles and its DRAM traffic, beside
the traffic that nothing overlaps with (:mod:`costmodels.systolic`, :mod:`costmodels.passes`); tiles and loop order are
the design's, or the mapper's where it leaves them free (:mod:`costmodels.mapper`). Vector work takes the longer of its
elementary operations over the lanes (:mod:`costmodels.vector_costs`) and its DRAM traffic. Between operators every
intermediate result goes through DRAM at 16 bits, attention scores included: nothing is fused.

Energy is events times constants (:mod:`costmodels.chip`): multiply-accumulates by operand widths, vector operations,
on-chip reads and writes by memory size, DRAM bits; and the leakage of the whole area over the whole latency.

The breakdown charges a product bound by the array its cycles ("compute") and its exposed traffic, one bound by DRAM its
traffic alone; traffic is split in proportion to the bytes of weights, cache and activations.

Left out: host, network and DMA set-up, bank conflicts, refresh, on-chip reuse between operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from costmodels.breakdown import Ledger
from costmodels.chip import ENDS, Chip, Events
from costmodels.passes import (
    ACTIVATION_BYTES,
    ARRAY_S,
    ELEMENT_CYCLES,
    KV_BYTES,
    LIVE_BYTES,
    MACS,
    N_PLANES,
    SECONDS,
    SRAM_READ_BITS,
    SRAM_WRITE_BITS,
    TILE_BYTES,
    TRAFFIC_S,
    WEIGHT_BYTES,
    run_pass,
)
from costmodels.tables import Gemms, class_of
from costmodels.vector_costs import VectorCoefficients
from costmodels.workload import PhaseSizes, Sizes, Workload
from dse.canonical import content_hash
from dse.designs import DesignBatch
from dse.hardware import Accelerator
from dse.metrics import Limit, MetricBatch
from dse.problem import Problem
from dse.protocols import Breakdown

# Rows worked on at a time. Temporaries of (rows, 300 operators), which device.py has, then stay in a core's
# second-level cache; compiled passes have none of them, and larger chunks spread the cost of a call.
CHUNK_ROWS: Final = 64
PASS_ROWS: Final = 256

METRICS: Final = (
    "latency_s", "ttft_s", "tpot_s", "encode_s", "prefill_s", "decode_s", "throughput_tokens_per_s", "energy_j",
    "power_w", "memory_bytes", "weight_bytes", "kv_bytes", "activation_bytes", "dram_bytes", "area_mm2",
)  # fmt: skip


@dataclass(frozen=True)
class _Work:
    """One pass of a phase on a chip: its matrix products, vector groups (n, g), and what it appends to the cache.

    Attributes:
        gemms: totals of the products (see :mod:`costmodels.passes`), (10, n).
        planes: each product's part in them, (10, n, j), or (10, 0, 0) where nobody asks.
        vector_compute_s: time in the lanes.
        vector_ops, vector_bytes: elementary operations and DRAM traffic of the vector groups.
        cache_bytes: appended to the cache, (n or 1, 1).
    """

    gemms: np.ndarray
    planes: np.ndarray
    vector_compute_s: np.ndarray
    vector_ops: np.ndarray
    vector_bytes: np.ndarray
    cache_bytes: np.ndarray

    def vector_s(self, chip: Chip) -> np.ndarray:
        """Return the time of each vector group, shape (n, g)."""
        return np.maximum(self.vector_compute_s, self.vector_bytes / chip.dram_bytes_per_s)

    def seconds(self, chip: Chip) -> np.ndarray:
        """Return the time of the pass, shape (n,)."""
        append_s = self.cache_bytes / chip.dram_bytes_per_s
        return self.gemms[SECONDS] + self.vector_s(chip).sum(axis=1) + append_s[:, 0]

    def events(self) -> Events:
        """Return all counts of the pass, shape (n,)."""
        found = product_events(self.gemms)
        beside = self.vector_bytes.sum(axis=1) + self.cache_bytes[:, 0]
        return replace(found, vector_ops=self.vector_ops.sum(axis=1), dram_bits=found.dram_bits + 8 * beside)


def product_events(sums: np.ndarray) -> Events:
    """Return the events of matrix products, from totals (10, n) or planes (10, n, j)."""
    return Events(
        macs=sums[MACS],
        element_cycles=sums[ELEMENT_CYCLES],
        vector_ops=np.zeros_like(sums[MACS]),
        sram_read_bits=sums[SRAM_READ_BITS],
        sram_write_bits=sums[SRAM_WRITE_BITS],
        dram_bits=8 * (sums[WEIGHT_BYTES] + sums[KV_BYTES] + sums[ACTIVATION_BYTES]),
    )


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
        if len(batch) <= PASS_ROWS:
            return self._evaluate(batch, None)
        parts = []
        for start in range(0, len(batch), PASS_ROWS):
            stop = min(start + PASS_ROWS, len(batch))
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
            work = self._work(phase, coefficients, chip, ledger is not None)
            seconds[phase.name] = work.seconds(chip)
            events = events.plus(work.events(), self._passes(phase.name))
            live = np.maximum(live, work.gemms[LIVE_BYTES])
            tiles = np.maximum(tiles, work.gemms[TILE_BYTES])
            if ledger is not None:
                labels = tables.gemms[phase.name].labels
                vector_labels = [(c, class_of(kind)) for c, kind in tables.vectors[phase.name].labels]
                requests = np.broadcast_to(sizes.requests, (n, 1))
                _record(ledger, phase.name, labels, vector_labels, work, chip, self._passes(phase.name), requests)
        latency = seconds["encode"] + seconds["prefill"] + self._passes("decode") * seconds["decode"]
        if ledger is not None:
            _record_totals(ledger, chip, sizes, live, latency)
        return self._metrics(chip, sizes, seconds, latency, events, live, tiles)

    def _work(self, phase: PhaseSizes, vector: VectorCoefficients, chip: Chip, with_planes: bool) -> _Work:
        gemms, planes = self.run_products(phase.gemms, chip, with_planes)
        vector_ops = phase.elements * vector.ops
        return _Work(
            gemms=gemms,
            planes=planes,
            vector_compute_s=vector_ops / (chip.lanes * chip.freq_hz),
            vector_ops=vector_ops,
            vector_bytes=phase.elements * vector.moved_bytes,
            cache_bytes=phase.cache_bytes,
        )

    def run_products(self, g: Gemms, chip: Chip, with_planes: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the totals of a pass's matrix products, (10, n), and each one's part, (10, n, j) or (10, 0, 0)."""
        planes = np.zeros((N_PLANES, len(g.bound.block), len(g.products.kind)) if with_planes else (N_PLANES, 0, 0))
        return run_pass(g.products, g.bound, g.widths, chip.arrays, g.is_weight, g.is_cached, planes), planes

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
    planes = work.planes
    traffic = {
        "weight traffic": planes[WEIGHT_BYTES],
        "kv traffic": planes[KV_BYTES],
        "activation traffic": planes[ACTIVATION_BYTES],
    }
    moved = sum(traffic.values())

    def enter(metric: str, labels: Sequence[tuple[str, str]], kind: str, parts: np.ndarray) -> None:
        full = np.broadcast_to(parts, (n, len(labels)))
        ledger.add(metric, [(c, phase, cls, kind) for c, cls in labels], passes * full)

    enter("latency_s", gemm_labels, "compute", planes[ARRAY_S])
    for kind, part in traffic.items():
        share = part / np.where(moved > 0, moved, 1.0)
        enter("latency_s", gemm_labels, kind, planes[TRAFFIC_S] * share)
        enter("energy_j", gemm_labels, kind, 8 * part * chip.constant("dram_j_per_bit", "value") / requests)
    gemm_energy = chip.energy_parts(product_events(planes), "value")
    enter("energy_j", gemm_labels, "compute", gemm_energy["compute"] / requests)
    enter("energy_j", gemm_labels, "on-chip memory", gemm_energy["on-chip memory"] / requests)
    vector_s = work.vector_s(chip)
    lanes = work.vector_compute_s >= work.vector_bytes / chip.dram_bytes_per_s
    enter("latency_s", vector_labels, "compute", np.where(lanes, vector_s, 0.0))
    enter("latency_s", vector_labels, "activation traffic", np.where(lanes, 0.0, vector_s))
    vector_j, dram_j = (chip.constant(name, "value") for name in ("vector_j_per_op", "dram_j_per_bit"))
    enter("energy_j", vector_labels, "compute", vector_j * work.vector_ops / requests)
    enter("energy_j", vector_labels, "activation traffic", dram_j * 8 * work.vector_bytes / requests)
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
