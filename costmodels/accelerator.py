"""A model on an accelerator that is being designed: latency, energy, memory, area, per design, in closed form.

Operators run one after the other. A matrix product takes the longer of its array cycles and its DRAM traffic, beside
the traffic that nothing overlaps with (:mod:`costmodels.systolic`, :mod:`costmodels.passes`); tiles and loop order are
the design's, or the mapper's where it leaves them free (:mod:`costmodels.mapper`). Vector work takes the longer of its
elementary operations over the lanes (:mod:`costmodels.vector_costs`) and its DRAM traffic. Between operators every
intermediate result goes through DRAM at 16 bits, attention scores included, but inside the groups that a design fuses
(:mod:`costmodels.fusion` says which there are, :mod:`costmodels.groups` and :mod:`costmodels.attention` what they do).
The reference design fuses nothing: every fusion is a choice whose price, on-chip memory, is part of the search.

Energy is events times constants (:mod:`costmodels.chip`): multiply-accumulates by operand widths, vector operations,
on-chip reads and writes by memory size, DRAM bits; and the leakage of the whole area over the whole latency.

The breakdown charges a product bound by the array its cycles ("compute") and its exposed traffic, one bound by DRAM its
traffic alone; traffic is split in proportion to the bytes of weights, cache and activations.

Left out: host, network and DMA set-up, bank conflicts, refresh, on-chip reuse between operators of no common group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from costmodels.breakdown import Itemised, Ledger
from costmodels.chip import ENDS, Chip, Events
from costmodels.fused_designs import AskedPhase, n_forms
from costmodels.fusion import Partitioner, check_given, form_edges
from costmodels.groups import N_GROUP_PLANES, VECTOR_OPS, Ask
from costmodels.latency import BAND, request_times
from costmodels.passes import ARRAY_S, N_PLANES, TRAFFIC_S, run_fused_pass, run_pass
from costmodels.rowplan import make_room
from costmodels.schedule import Schedule
from costmodels.steps import Step
from costmodels.tables import Gemms, class_of
from costmodels.totals import (
    ACTIVATION_BYTES,
    ELEMENT_CYCLES,
    GROUP_VECTOR_OPS,
    KV_BYTES,
    LIVE_BYTES,
    MACS,
    SECONDS,
    SRAM_READ_BITS,
    SRAM_WRITE_BITS,
    TILE_BYTES,
    WEIGHT_BYTES,
)
from costmodels.vector_costs import VectorCoefficients
from costmodels.workload import PHASES, Pass, PhaseSizes, Sizes, Workload
from dse.canonical import content_hash
from dse.capabilities import BestFusion
from dse.designs import DesignBatch
from dse.hardware import Accelerator
from dse.metrics import Limit, MetricBatch
from dse.problem import TARGET, Problem

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
        gemms: totals of the products and groups (see :mod:`costmodels.passes`), (11, n).
        planes: each product's part in them, (21, n, j), or (21, 0, 0) where nobody asks.
        groups: what fused groups do.
        vector_compute_s: time in the lanes.
        vector_ops, vector_bytes: elementary operations and DRAM traffic of the vector groups.
        cache_bytes: appended to the cache, (n or 1, 1).
    """

    gemms: np.ndarray
    planes: np.ndarray
    groups: FusedWork | None
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
        return replace(
            found,
            vector_ops=self.vector_ops.sum(axis=1) + self.gemms[GROUP_VECTOR_OPS],
            dram_bits=found.dram_bits + 8 * beside,
        )


def product_events(sums: np.ndarray) -> Events:
    """Return the events of matrix products, from totals (11, n) or planes (21, n, j), without vector work."""
    return Events(
        macs=sums[MACS],
        element_cycles=sums[ELEMENT_CYCLES],
        vector_ops=np.zeros_like(sums[MACS]),
        sram_read_bits=sums[SRAM_READ_BITS],
        sram_write_bits=sums[SRAM_WRITE_BITS],
        dram_bits=8 * (sums[WEIGHT_BYTES] + sums[KV_BYTES] + sums[ACTIVATION_BYTES]),
    )


@dataclass(frozen=True)
class FusedWork:
    """What the fused groups of a pass do.

    Attributes:
        labels: names of groups in messages.
        held_bytes: on-chip memory of the largest group of each label, shape (labels, n).
        op_labels: (component, class) of every operator of the phase.
        planes: what each group does, at the operator that leads it (:mod:`costmodels.groups`), shape
            (17, n, operators); (17, 0, 0) where nobody asks.
    """

    labels: Sequence[str]
    held_bytes: np.ndarray
    op_labels: Sequence[tuple[str, str]]
    planes: np.ndarray


class AcceleratorEvaluator(Itemised):
    """The analytical model for one problem on an accelerator template.

    Args:
        problem: its hardware is an :class:`~dse.hardware.Accelerator`.
        hardware: that accelerator.
        version: version of the cost model, part of the fingerprint.
        role: the model it is about.
    """

    metrics: Sequence[str] = METRICS
    can_fuse = True
    band = BAND

    pass_rows = PASS_ROWS

    def __init__(self, problem: Problem, hardware: Accelerator, version: str, role: str = TARGET) -> None:
        self.problem, self.hardware = problem, hardware
        self.workload = Workload(problem, role)
        if problem.fusion:
            check_given(problem.target, problem.fusion, PHASES)
            for phase in PHASES:
                parts = Partitioner(problem.target.graph(phase), problem.target)
                form_edges(parts, phase, problem.fusion)
        self.fingerprint = content_hash(
            {"model": version, "problem": problem.content_hash, "scenario": problem.scenario.to_json()}
        )

    def schedule(self, batch: DesignBatch) -> list[Schedule]:
        """Return what each design executes in one pass of each phase that has work, as arrays."""
        chip, sizes = Chip(self.hardware, batch), self.workload.size(batch, with_fusion=self.can_fuse)
        found = []
        for phase in sizes.phases:
            vectors = self.workload.tables(batch.schema).vectors[phase.name]
            work = self._work(phase, VectorCoefficients.of(vectors.labels), chip, True)
            n_ops = len(self.problem.target.graph(phase.name).ops)
            elements = np.broadcast_to(phase.elements, (len(batch), phase.elements.shape[1]))
            if work.groups is None or phase.fused is None:
                groups = np.zeros((N_GROUP_PLANES, len(batch), n_ops))
                group_of = np.broadcast_to(np.arange(n_ops), (len(batch), n_ops))
            else:
                groups, group_of = work.groups.planes, phase.fused.group_of()
            found.append(Schedule(phase.name, work.planes, groups, group_of, elements))
        return found

    def best_fusion(
        self, batch: DesignBatch, phase: str, component: str = "decoder", block: int = 1, objective: str = "dram_bytes"
    ) -> BestFusion:
        """Return the best partition of a block's edges for a batch of one design; see :mod:`costmodels.best_fusion`.

        Args:
            batch: the design; its on-chip memory is the budget.
            phase, component, block: which block.
            objective: "dram_bytes" or "seconds".
        """
        from costmodels.best_fusion import best_fusion

        return best_fusion(self.workload, Chip(self.hardware, batch), batch, phase, component, block, objective)

    def step(self, batch: DesignBatch, asked: Pass) -> Step:
        """Return what one pass takes, arrays (n,); see :class:`~costmodels.steps.Step`."""
        chip, n = Chip(self.hardware, batch), len(batch)
        sizes = self.workload.size(batch, with_fusion=self.can_fuse, asked=asked)
        if not sizes.phases:
            return Step.none(n)
        (phase,) = sizes.phases
        vectors = self.workload.tables(batch.schema).vectors[phase.name]
        work = self._work(phase, VectorCoefficients.of(vectors.labels), chip, False)
        seconds, events = work.seconds(chip), work.events()
        slack = {"low": self.band[0], "value": 1.0, "high": self.band[1]}
        times = {end: ratio * seconds for end, ratio in slack.items()}
        joules = [chip.energy(events, end) + chip.leakage_w(end) * times[end] for end in slack]
        return Step(np.stack(list(times.values())), np.stack(joules), events.dram_bits / 8, work.gemms[LIVE_BYTES])

    def best_fusions(self, batch: DesignBatch, objective: str) -> list[BestFusion]:
        """Return the best partition of each kind of block, as :meth:`best_fusion` does."""
        from costmodels.best_fusion import best_fusions

        return best_fusions(self.workload, Chip(self.hardware, batch), batch, objective)

    def _evaluate(self, batch: DesignBatch, ledger: Ledger | None) -> MetricBatch:
        n = len(batch)
        chip, sizes = Chip(self.hardware, batch), self.workload.size(batch, with_fusion=self.can_fuse)
        seconds = {"encode": np.zeros(n), "prefill": np.zeros(n), "decode": np.zeros(n)}
        events, live, tiles = Events.none(n), np.zeros(n), np.zeros(n)
        limits = [] if self.can_fuse else self._no_fusion(batch)
        for phase in sizes.phases:
            tables = self.workload.tables(batch.schema)
            coefficients = VectorCoefficients.of(tables.vectors[phase.name].labels)
            work = self._work(phase, coefficients, chip, ledger is not None)
            seconds[phase.name] = work.seconds(chip)
            events = events.plus(work.events(), self._passes(phase.name))
            live = np.maximum(live, work.gemms[LIVE_BYTES])
            tiles = np.maximum(tiles, work.gemms[TILE_BYTES])
            limits += fusion_limits(phase, work, chip)
            if ledger is not None:
                labels = tables.gemms[phase.name].labels
                vector_labels = [(c, class_of(kind)) for c, kind in tables.vectors[phase.name].labels]
                requests = np.broadcast_to(sizes.requests, (n, 1))
                _record(ledger, phase.name, labels, vector_labels, work, chip, self._passes(phase.name), requests)
        latency = seconds["encode"] + seconds["prefill"] + self._passes("decode") * seconds["decode"]
        if ledger is not None:
            _record_totals(ledger, chip, sizes, live, latency)
        return self._metrics(chip, sizes, seconds, latency, events, live, tiles, limits)

    def _no_fusion(self, batch: DesignBatch) -> list[Limit]:
        text = "this mode runs operator by operator, the design fuses {needed} forms where {available} can be"
        return [Limit("n_fused_forms", n_forms(batch).astype(np.float64), np.zeros(len(batch)), text)]

    def _work(self, phase: PhaseSizes, vector: VectorCoefficients, chip: Chip, with_planes: bool) -> _Work:
        if phase.fused is None:
            groups = None
            gemms, planes = self.run_products(phase.gemms, chip, with_planes)
        else:
            gemms, planes, groups = _run_fused(phase.gemms, phase.fused, chip, with_planes)
        vector_ops = phase.elements * vector.ops
        return _Work(
            gemms=gemms,
            planes=planes,
            groups=groups,
            vector_compute_s=vector_ops / (chip.lanes * chip.freq_hz),
            vector_ops=vector_ops,
            vector_bytes=phase.elements * vector.moved_bytes,
            cache_bytes=phase.cache_bytes,
        )

    def run_products(self, g: Gemms, chip: Chip, with_planes: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the totals of a pass's matrix products, (11, n), and each one's part, (21, n, j) or (21, 0, 0)."""
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
        group_limits: Sequence[Limit],
    ) -> MetricBatch:
        n = len(latency)
        requests = np.broadcast_to(sizes.requests[:, 0], n)
        tokens, times = requests * self.problem.scenario.output_tokens, request_times(seconds, self._passes("decode"))
        slack = {"value": 1.0, "low": self.band[0], "high": self.band[1]}
        energy = {
            end: (chip.energy(events, end) + chip.leakage_w(end) * (slack[end] * latency)) / requests for end in ENDS
        }
        area = {end: chip.area(end) for end in ENDS}
        memory = sizes.weight_bytes + sizes.kv_bytes + live
        values = {
            **times,
            "throughput_tokens_per_s": tokens / latency,
            "energy_j": energy["value"],
            "power_w": energy["value"] * requests / latency,
            "memory_bytes": memory,
            "weight_bytes": sizes.weight_bytes,
            "kv_bytes": sizes.kv_bytes,
            "activation_bytes": live,
            "dram_bytes": events.dram_bits / 8,
            "area_mm2": area["value"],
        }
        low, high = self.band
        intervals = {
            **{name: (low * value, high * value) for name, value in times.items()},
            "throughput_tokens_per_s": (tokens / (high * latency), tokens / (low * latency)),
            "energy_j": (energy["low"], energy["high"]),
            "power_w": (energy["low"] * requests / (high * latency), energy["high"] * requests / (low * latency)),
            "area_mm2": (area["low"], area["high"]),
        }
        limits = [
            Limit("sram_bytes", tiles, chip.sram_bytes, "the tiles need {needed} of on-chip memory of {available}"),
            *group_limits,
            memory_limit(memory, self.hardware.memory_bytes, self.hardware.name),
            *sizes.limits,
        ]
        broken = [limit for limit in limits if (limit.excess_ratio > 0).any()]
        return MetricBatch(values, n, intervals, dict.fromkeys(values, "analytical"), broken).masked()


def ask_of(asked: AskedPhase, chip: Chip) -> Ask:
    """Return what designs fuse, for the compiled loops."""
    return Ask(
        asked.mask, asked.attention, chip.attn_tile_q, chip.attn_tile_kv, np.ascontiguousarray(chip.lanes[:, 0]),
        asked.skipped_products,
    )  # fmt: skip


def _run_fused(g: Gemms, asked: AskedPhase, chip: Chip, with_planes: bool) -> tuple[np.ndarray, np.ndarray, FusedWork]:
    """Return totals and planes of the products, and what the groups of a pass do."""
    n, tables = len(g.bound.block), asked.tables
    planes = np.zeros((N_PLANES, n, len(g.products.kind)) if with_planes else (N_PLANES, 0, 0))
    held = np.zeros((len(tables.labels), n))
    group_planes = np.zeros((N_GROUP_PLANES, n, len(tables.op_labels)) if with_planes else (N_GROUP_PLANES, 0, 0))
    totals = run_fused_pass(
        g.products, g.bound, g.widths, chip.arrays, g.is_weight, g.is_cached, planes, tables.rows, tables.attentions,
        ask_of(asked, chip), make_room(tables.rows), held, group_planes,
    )  # fmt: skip
    return totals, planes, FusedWork(tables.labels, held, tables.op_labels, group_planes)


def fusion_limits(phase: PhaseSizes, work: _Work, chip: Chip) -> list[Limit]:
    """Return the laws that each group's tiles fit on chip, and that forms which are legal apart are so together."""
    if phase.fused is None or work.groups is None:
        return []
    text = "the fused {label} needs {{needed}} of on-chip memory of {{available}}"
    pairs = zip(work.groups.labels, work.groups.held_bytes, strict=True)
    limits = [Limit("sram_bytes", held, chip.sram_bytes, text.format(label=label)) for label, held in pairs]
    mask = phase.fused.mask
    return limits + [
        Limit("n_illegal_groups", (mask[:, c] == bits).astype(np.float64), np.zeros(len(mask)), why)
        for (c, bits), why in phase.fused.tables.illegal.items()
    ]


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
    _record_products(ledger, phase, gemm_labels, work.planes, None, chip, passes, requests)
    if work.groups is not None:
        planes, labels = work.groups.planes, work.groups.op_labels
        _record_products(ledger, phase, labels, planes, planes[VECTOR_OPS], chip, passes, requests)

    def enter(metric: str, labels: Sequence[tuple[str, str]], kind: str, parts: np.ndarray) -> None:
        full = np.broadcast_to(parts, (n, len(labels)))
        ledger.add(metric, [(c, phase, cls, kind) for c, cls in labels], passes * full)

    vector_s = work.vector_s(chip)
    vector_dram_s = work.vector_bytes / chip.dram_bytes_per_s
    lanes = work.vector_compute_s >= vector_dram_s
    ledger.bound(phase, vector_labels, *(passes * t for t in (work.vector_compute_s, vector_dram_s, vector_s)))
    enter("latency_s", vector_labels, "compute", np.where(lanes, vector_s, 0.0))
    enter("latency_s", vector_labels, "activation traffic", np.where(lanes, 0.0, vector_s))
    vector_j, dram_j = (chip.constant(name, "value") for name in ("vector_j_per_op", "dram_j_per_bit"))
    enter("energy_j", vector_labels, "compute", vector_j * work.vector_ops / requests)
    enter("energy_j", vector_labels, "activation traffic", dram_j * 8 * work.vector_bytes / requests)
    appended = np.broadcast_to(work.cache_bytes, (n, 1))
    enter("latency_s", [("decoder", "cache")], "kv traffic", appended / chip.dram_bytes_per_s)
    append_s = passes * appended / chip.dram_bytes_per_s
    ledger.bound(phase, [("decoder", "cache")], np.zeros_like(append_s), append_s, append_s)
    enter(
        "energy_j",
        [("decoder", "cache")],
        "kv traffic",
        8 * appended * chip.constant("dram_j_per_bit", "value") / requests,
    )


def _record_products(
    ledger: Ledger,
    phase: str,
    gemm_labels: Sequence[tuple[str, str]],
    planes: np.ndarray,
    vector_ops: np.ndarray | None,
    chip: Chip,
    passes: float,
    requests: np.ndarray,
) -> None:
    """Enter products, or groups with their vector work: time by what bounds each of them, energy by event."""
    n = len(requests)
    traffic = {
        "weight traffic": planes[WEIGHT_BYTES],
        "kv traffic": planes[KV_BYTES],
        "activation traffic": planes[ACTIVATION_BYTES],
    }
    moved = planes[WEIGHT_BYTES] + planes[KV_BYTES] + planes[ACTIVATION_BYTES]
    array, arrays = planes[ELEMENT_CYCLES], chip.arrays
    elements_per_s = (arrays.rows * arrays.cols * arrays.cores * arrays.freq_hz)[:, None]
    times = (array / elements_per_s, moved / chip.dram_bytes_per_s, planes[ARRAY_S] + planes[TRAFFIC_S])
    ledger.bound(phase, gemm_labels, *(passes * t for t in times))

    def enter(metric: str, labels: Sequence[tuple[str, str]], kind: str, parts: np.ndarray) -> None:
        full = np.broadcast_to(parts, (n, len(labels)))
        ledger.add(metric, [(c, phase, cls, kind) for c, cls in labels], passes * full)

    enter("latency_s", gemm_labels, "compute", planes[ARRAY_S])
    for kind, part in traffic.items():
        share = part / np.where(moved > 0, moved, 1.0)
        enter("latency_s", gemm_labels, kind, planes[TRAFFIC_S] * share)
        enter("energy_j", gemm_labels, kind, 8 * part * chip.constant("dram_j_per_bit", "value") / requests)
    events = product_events(planes)
    if vector_ops is not None:
        events = replace(events, vector_ops=vector_ops)
    gemm_energy = chip.energy_parts(events, "value")
    enter("energy_j", gemm_labels, "compute", gemm_energy["compute"] / requests)
    enter("energy_j", gemm_labels, "on-chip memory", gemm_energy["on-chip memory"] / requests)


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
