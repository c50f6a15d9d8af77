"""A model on a device with datasheet numbers: latency, memory, energy bound and cost, per design, in closed form.

Each matrix product is one kernel, attention (scores, softmax, values) one fused kernel per block, and

    time = max(operations / (peak e_c), bytes / (bandwidth e_b)) + launch

with one fixed efficiency for all devices: products 0.75 of peak, 0.80 of bandwidth, 6 us; attention 0.55, 0.75, 8 us.
On 3,814 kernels measured on A100, H200, B200 and L40S this form misses by 10-31 % on 16-bit products, 15-36 % on
weight-only and 8-bit ones, and 16-62 % on attention (mean absolute errors by device). Vector work is charged its bytes
at 0.80 of bandwidth and no launch: frameworks fuse it into neighbours.

Operands meet at the width of the wider one: 16-bit activations compute at the 16-bit peak whatever the weights, 8-bit
ones at the int8 or fp8 peak, 4-bit ones at the int4 or fp4 peak. A device whose datasheet has no such peak cannot run
the design; nothing is emulated.

The interval of the latency runs from the roofline at full efficiency without launches (nothing is faster) to 1.62 times
the value (the worst mean error above). Energy is bounded, not modelled: board power over the whole latency at most; its
value and lower end are a half and a quarter of that, recalled orders of magnitude, not a source.

Left out: host and network, several devices, caches on chip, prefill in chunks, experts' load imbalance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from costmodels.accelerator import CHUNK_ROWS, memory_limit
from costmodels.breakdown import Ledger
from costmodels.products import A_BITS, B_BITS, B_BYTES, COUNT, PLAIN_BITS, WIDE, K, M, N
from costmodels.tables import Gemms, class_of
from costmodels.vector_costs import VectorCoefficients
from costmodels.workload import PhaseSizes, Sizes, Workload
from dse.canonical import content_hash
from dse.designs import DesignBatch
from dse.errors import HardwareError
from dse.hardware import Device
from dse.metrics import Limit, MetricBatch
from dse.model import OpKind
from dse.problem import Problem
from dse.protocols import Breakdown


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the datasheet's peak and bandwidth that a kind of kernel reaches, and its launch."""

    compute_ratio: float
    bandwidth_ratio: float
    launch_s: float


PRODUCT: Final = Efficiency(0.75, 0.80, 6e-6)
ATTENTION: Final = Efficiency(0.55, 0.75, 8e-6)
SLOWEST: Final = 1.62
ENERGY_RATIOS: Final = (0.5, 0.25, 1.0)  # value, low, high of board power

_PLAIN_BYTES: Final = PLAIN_BITS / 8

METRICS: Final = (
    "latency_s", "ttft_s", "tpot_s", "encode_s", "prefill_s", "decode_s", "throughput_tokens_per_s",
    "memory_bytes", "weight_bytes", "kv_bytes", "activation_bytes", "dram_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class _Kernels:
    """Kernels of one pass, shape (n, q): what they compute and move, and what bounds them.

    Attributes:
        labels: (component, class) of each.
        compute_s: at full peak.
        weight_bytes, kv_bytes, activation_bytes: memory traffic.
        efficiency: one for all.
        runs: whether a kernel is launched.
    """

    labels: Sequence[tuple[str, str]]
    compute_s: np.ndarray
    weight_bytes: np.ndarray
    kv_bytes: np.ndarray
    activation_bytes: np.ndarray
    efficiency: Efficiency
    runs: np.ndarray

    @property
    def moved_bytes(self) -> np.ndarray:
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    def busy_s(self, device: Device) -> np.ndarray:
        """Return the time without launches, shape (n, q)."""
        moved = self.moved_bytes / (device.memory_bytes_per_s * self.efficiency.bandwidth_ratio)
        return np.maximum(self.compute_s / self.efficiency.compute_ratio, moved)

    def seconds(self, device: Device) -> np.ndarray:
        """Return the time of all kernels, shape (n,)."""
        return (self.busy_s(device) + self.runs * self.efficiency.launch_s).sum(axis=1)

    def roofline_s(self, device: Device) -> np.ndarray:
        """Return the time at full efficiency without launches, shape (n,)."""
        return np.maximum(self.compute_s, self.moved_bytes / device.memory_bytes_per_s).sum(axis=1)


class DeviceEvaluator:
    """The analytical model for one problem on a datasheet device.

    Args:
        problem: its hardware is that device.
        device: the device.
        version: version of the cost model, part of the fingerprint.

    Raises:
        HardwareError: the datasheet has no compute peak.
    """

    def __init__(self, problem: Problem, device: Device, version: str) -> None:
        if not device.peak_ops_per_s:
            raise HardwareError(
                f"{device.name} has no compute peak in its description, so no latency can be given",
                "add [peak_ops_per_s] with its source to a TOML file of your own and name that file",
            )
        self.problem, self.device = problem, device
        self.workload = Workload(problem)
        self.fingerprint = content_hash(
            {"model": version, "problem": problem.content_hash, "scenario": problem.scenario.to_json()}
        )
        self._peaks = _peaks(device)
        self.metrics: Sequence[str] = (
            *METRICS,
            *(("energy_j", "power_w") if device.power_w else ()),
            *(("cost_usd",) if device.price_usd_per_hour else ()),
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
        """Return latency and memory in additive parts."""
        ledger = Ledger(len(batch))
        self._evaluate(batch, ledger)
        return ledger.breakdowns()

    def _evaluate(self, batch: DesignBatch, ledger: Ledger | None) -> MetricBatch:
        n = len(batch)
        sizes = self.workload.size(batch)
        tables = self.workload.tables(batch.schema)
        seconds = {name: np.zeros(n) for name in ("encode", "prefill", "decode")}
        fastest, moved, live, narrowest = np.zeros(n), np.zeros(n), np.zeros(n), np.full(n, float(PLAIN_BITS))
        for phase in sizes.phases:
            passes = self._passes(phase.name)
            labels = tables.gemms[phase.name].labels
            vectors = _vectors(phase, tables.vectors[phase.name].labels, n)
            kernels = [self._products(phase.gemms, labels), self._attention(phase.gemms, labels), vectors]
            for kernel in kernels:
                seconds[phase.name] = seconds[phase.name] + kernel.seconds(self.device)
                fastest = fastest + passes * kernel.roofline_s(self.device)
                moved = moved + passes * kernel.moved_bytes.sum(axis=1)
                if ledger is not None:
                    _record(ledger, phase.name, kernel, self.device, passes)
            weights = phase.gemms.is_weight & (phase.gemms.planes[COUNT] > 0)
            live = np.maximum(live, np.where(weights, _activations(phase.gemms.planes), 0.0).max(axis=1))
            narrowest = np.minimum(narrowest, np.where(weights, _width(phase.gemms.planes), PLAIN_BITS).min(axis=1))
        latency = seconds["encode"] + seconds["prefill"] + self._passes("decode") * seconds["decode"]
        if ledger is not None:
            for kind, part in (("weights", sizes.weight_bytes), ("cache", sizes.kv_bytes), ("activations", live)):
                ledger.add_one("memory_bytes", ("model", "all", "memory", kind), part)
        return self._metrics(sizes, seconds, latency, fastest, moved, live, narrowest)

    def _passes(self, phase: str) -> float:
        return float(self.problem.scenario.output_tokens - 1) if phase == "decode" else 1.0

    def _metrics(
        self,
        sizes: Sizes,
        seconds: Mapping[str, np.ndarray],
        latency: np.ndarray,
        fastest: np.ndarray,
        moved: np.ndarray,
        live: np.ndarray,
        narrowest: np.ndarray,
    ) -> MetricBatch:
        n = len(latency)
        requests = np.broadcast_to(sizes.requests[:, 0], n)
        memory = sizes.weight_bytes + sizes.kv_bytes + live
        values = {
            "latency_s": latency,
            "ttft_s": seconds["encode"] + seconds["prefill"],
            "tpot_s": seconds["decode"],
            "encode_s": seconds["encode"],
            "prefill_s": seconds["prefill"],
            "decode_s": self._passes("decode") * seconds["decode"],
            "throughput_tokens_per_s": requests * self.problem.scenario.output_tokens / latency,
            "memory_bytes": memory,
            "weight_bytes": sizes.weight_bytes,
            "kv_bytes": sizes.kv_bytes,
            "activation_bytes": live,
            "dram_bytes": moved,
        }
        intervals = {"latency_s": (fastest, SLOWEST * latency)}
        device = self.device
        if device.power_w:
            power = [ratio * device.power_w for ratio in ENERGY_RATIOS]
            values["energy_j"], values["power_w"] = power[0] * latency / requests, np.full(n, power[0])
            intervals["energy_j"] = (power[1] * fastest / requests, power[2] * SLOWEST * latency / requests)
            intervals["power_w"] = (np.full(n, power[1]), np.full(n, power[2]))
        if device.price_usd_per_hour:
            low, high = (price / 3600 for price in device.price_usd_per_hour)
            values["cost_usd"] = low * latency / requests
            intervals["cost_usd"] = (low * fastest / requests, high * SLOWEST * latency / requests)
        lacks = f"{device.name} computes at {{needed}} or more, the design asks for {{available}}"
        limits = [
            Limit("operand_bits", np.full(n, float(min(self._peaks))), narrowest, lacks),
            memory_limit(memory, device.memory_bytes, device.name),
            *sizes.limits,
        ]
        broken = [limit for limit in limits if (limit.excess_ratio > 0).any()]
        return MetricBatch(values, n, intervals, dict.fromkeys(values, "datasheet"), broken).masked()

    # ------------------------------------------------------------------ kernels

    def _products(self, g: Gemms, labels: Sequence[tuple[str, str]]) -> _Kernels:
        chosen = np.flatnonzero(g.is_weight)
        p = np.take(g.planes, chosen, axis=2)
        operations = 2 * p[COUNT] * p[M] * p[K] * p[N]
        return _Kernels(
            labels=[labels[int(i)] for i in chosen],
            compute_s=operations * self._s_per_operation(p),
            weight_bytes=p[COUNT] * p[B_BYTES],
            kv_bytes=np.zeros_like(operations),
            activation_bytes=_activations(p),
            efficiency=PRODUCT,
            runs=p[COUNT] > 0,
        )

    def _attention(self, g: Gemms, labels: Sequence[tuple[str, str]]) -> _Kernels:
        """Return one kernel per pair of scores and values; its intermediate results stay on chip."""
        attends = np.flatnonzero(~g.is_weight)
        scores, values = attends[::2], attends[1::2]
        s, v = np.take(g.planes, scores, axis=2), np.take(g.planes, values, axis=2)
        work = 2 * (s[COUNT] * s[M] * s[K] * s[N] + v[COUNT] * v[M] * v[K] * v[N])
        both = s[COUNT] * s[B_BYTES] + v[COUNT] * v[B_BYTES]
        queries, results = s[COUNT] * s[M] * s[K] * _PLAIN_BYTES, v[COUNT] * v[M] * v[N] * _PLAIN_BYTES
        cached = g.is_cached[scores]
        return _Kernels(
            labels=[labels[int(i)] for i in scores],
            compute_s=work * np.take(g.visible_ratio, scores, axis=1) / self._peak(PLAIN_BITS),
            weight_bytes=np.zeros_like(work),
            kv_bytes=both * cached,
            activation_bytes=queries + results + both * ~cached,
            efficiency=ATTENTION,
            runs=s[COUNT] > 0,
        )

    def _s_per_operation(self, planes: np.ndarray) -> np.ndarray:
        """Return seconds per operation at peak; channels wider than 8 bits compute at 16."""
        wide = np.where(planes[A_BITS] > 8, 1.0, planes[WIDE])
        narrow = np.where(_width(planes) <= 4, 1 / self._peak(4), 1 / self._peak(8))
        return wide / self._peak(PLAIN_BITS) + (1 - wide) * narrow

    def _peak(self, bits: int) -> float:
        """Return the peak at a width, or the next wider one; rows that need what is not there are infeasible anyway."""
        wider = [b for b in sorted(self._peaks) if b >= bits]
        return self._peaks[wider[0]] if wider else max(self._peaks.values())


def _vectors(phase: PhaseSizes, labels: Sequence[tuple[str, OpKind]], n: int) -> _Kernels:
    """Return vector work and the append to the cache, charged their bytes."""
    outside = np.array([kind is not OpKind.SOFTMAX for _, kind in labels])  # softmax is part of the attention kernel
    moved = np.broadcast_to(phase.elements * VectorCoefficients.of(labels).moved_bytes * outside, (n, len(labels)))
    appended = np.broadcast_to(phase.cache_bytes, (n, 1))
    nothing = np.zeros((n, len(labels) + 1))
    return _Kernels(
        labels=[*((component, class_of(kind)) for component, kind in labels), ("decoder", "cache")],
        compute_s=nothing,
        weight_bytes=nothing,
        kv_bytes=np.concatenate([np.zeros_like(moved), appended], axis=1),
        activation_bytes=np.concatenate([moved, np.zeros((n, 1))], axis=1),
        efficiency=Efficiency(1.0, PRODUCT.bandwidth_ratio, 0.0),
        runs=np.zeros_like(nothing, dtype=bool),
    )


def _peaks(device: Device) -> dict[int, float]:
    """Return the best peak by operand width."""
    width = {"fp16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4}
    peaks: dict[int, float] = {}
    for precision, value in device.peak_ops_per_s.items():
        peaks[width[precision]] = max(value, peaks.get(width[precision], 0.0))
    return peaks


def _width(planes: np.ndarray) -> np.ndarray:
    """Return the width that operands meet at: 4, 8 or 16 bits."""
    widest = np.maximum(planes[A_BITS], np.where(planes[WIDE] > 0, 16.0, planes[B_BITS]))
    return np.where(widest <= 4, 4.0, np.where(widest <= 8, 8.0, 16.0))


def _activations(planes: np.ndarray) -> np.ndarray:
    return planes[COUNT] * (planes[M] * planes[K] * planes[A_BITS] / 8 + planes[M] * planes[N] * _PLAIN_BYTES)


def _record(ledger: Ledger, phase: str, kernel: _Kernels, device: Device, passes: float) -> None:
    """Enter the time of kernels by what bounds them."""
    busy = kernel.busy_s(device)
    moved = kernel.moved_bytes
    bound = kernel.compute_s / kernel.efficiency.compute_ratio >= moved / (
        device.memory_bytes_per_s * kernel.efficiency.bandwidth_ratio
    )
    share = np.where(bound, 0.0, busy) / np.where(moved > 0, moved, 1.0)
    parts = {
        "compute": np.where(bound, busy, 0.0),
        "weight traffic": share * kernel.weight_bytes,
        "kv traffic": share * kernel.kv_bytes,
        "activation traffic": share * kernel.activation_bytes,
        "overhead": kernel.runs * kernel.efficiency.launch_s,
    }
    for kind, part in parts.items():
        ledger.add("latency_s", [(c, phase, cls, kind) for c, cls in kernel.labels], passes * part)
