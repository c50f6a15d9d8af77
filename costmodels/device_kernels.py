"""The kernels that one pass of a phase runs on a device: their work, and with which constants they are costed.

Counting follows :mod:`costmodels.measurements`, so that constants mean the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from costmodels import kernels
from costmodels.constants import Book
from costmodels.kernels import BUSY, FLOOR, HIGH, LOW, OVERHEAD, Work
from costmodels.measurements import (
    ATTENTION,
    DEFAULT_CORES,
    GEMM,
    append_bytes,
    computed_dim,
    misaligned,
    quantising_bytes,
    query_blocks,
    tiles,
)
from costmodels.products import A_BITS, B_BITS, B_BYTES, COUNT, PLAIN_BITS, WIDE, K, M, N
from costmodels.tables import Gemms, class_of
from costmodels.vector_costs import VectorCoefficients
from costmodels.workload import PhaseSizes
from dse.hardware import Device
from dse.model import OpKind

VECTOR_BANDWIDTH_RATIO: Final = 0.80
VECTOR_BAND: Final = (0.8, 2.0)
"""Vector work at full bandwidth, and at twice the value: recalled, not measured."""

DIVIDED: Final = (OpKind.ACTIVATION, OpKind.MULTIPLY, OpKind.ROPE, OpKind.SOFTMAX)
"""Vector work on heads and channels, which tensor parallelism divides; the rest works on whole rows."""

ATTENTION_OPS: Final = {"encode": "encoder_attention", "prefill": "context_attention", "decode": "generation_attention"}

_PLAIN_BYTES: Final = PLAIN_BITS / 8
_WIDTHS: Final = (4, 8, 16)
_CACHES: Final = ("bfloat16/kv:bfloat16", "bfloat16/kv:fp8")


@dataclass(frozen=True)
class Kernels:
    """Kernels of one pass, arrays (n, q).

    Attributes:
        labels: (component, class) of each.
        planes: see :func:`costmodels.kernels.kernel_planes`, shape (6, n, q).
        weight_bytes, kv_bytes, activation_bytes: memory traffic.
        compute_s: operations over the peak of their precision.
    """

    labels: Sequence[tuple[str, str]]
    planes: np.ndarray
    weight_bytes: np.ndarray
    kv_bytes: np.ndarray
    activation_bytes: np.ndarray
    compute_s: np.ndarray

    @property
    def moved_bytes(self) -> np.ndarray:
        """Bytes that each moves."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    def seconds(self) -> np.ndarray:
        """Return the time of all kernels, shape (n,)."""
        return (self.planes[BUSY] + self.planes[OVERHEAD]).sum(axis=1)


class DeviceKernels:
    """Turns sized phases into kernels of one device.

    Args:
        device: the device; it has at least one peak.
        book: kernel constants.
    """

    def __init__(self, device: Device, book: Book) -> None:
        self.device = device
        self.peaks = _peaks(device)
        self._cores = float(device.n_cores or DEFAULT_CORES)
        self._cache = float(device.cache_bytes or 0.0)
        names = [_precision(device, a, b) for a in _WIDTHS for b in _WIDTHS]
        self._quantised = np.array([GEMM[name].quantises for name in names])
        self._has_waves = np.array([GEMM[name].has_waves for name in names])
        asked = [("gemm", name, "") for name in names] + [
            ("moe", "fp8_block" if name == "fp8" else name, "") for name in names
        ]
        self._row = {"encode": len(asked)}
        asked.append(("encoder_attention", "bfloat16", ""))
        self._row["prefill"] = len(asked)
        asked += [("context_attention", name, "") for name in _CACHES]
        self._row["decode"] = len(asked)
        asked += [("generation_attention", name, variant) for name in _CACHES for variant in ("mha", "gqa")]
        found = [book.find(device, *one) for one in asked]
        self._constants = np.array([f.constants for f in found])
        self._constants[:, kernels.LAUNCH] *= device.launch_ratio
        self._bands = np.array([f.band for f in found])

    def products(self, g: Gemms, labels: Sequence[tuple[str, str]], fill: np.ndarray) -> Kernels:
        """Return the products with weights; ``fill`` is the pass's working set over the cache, shape (n, 1)."""
        chosen = np.flatnonzero(g.is_weight)
        p = np.take(g.planes, chosen, axis=2)
        expert = np.broadcast_to(g.is_expert[chosen], p[COUNT].shape)
        share = g.launch_share[chosen]
        rows = 3 * _level(p[A_BITS]) + _level(p[B_BITS])
        passed = np.where(self._quantised[rows], quantising_bytes(p[M] * p[K], p[A_BITS] / 8), 0.0)
        gathered = 4 * share * p[M] * np.maximum(p[K], p[N])  # experts: rows gathered before, summed after
        weights, activations = p[COUNT] * p[B_BYTES], activation_bytes(p)
        bandwidth = self.device.memory_bytes_per_s
        ones = np.ones_like(weights)
        waves = np.maximum(p[COUNT] * tiles(p[M], p[N]) / self._cores, 1e-9)
        work = Work(
            compute_s=2 * p[COUNT] * p[M] * p[K] * p[N] * self._s_per_operation(p),
            traffic_s=(weights + activations) / bandwidth,
            pass_s=p[COUNT] * np.where(expert, gathered, passed) / bandwidth,
            waves=ones,
            fill=fill * ones,
            rows=np.where(expert, np.maximum(p[M], 1e-3), np.where(self._has_waves[rows], waves, np.inf)),
            misaligned=np.zeros_like(ones),
        )
        planes = kernels.kernel_planes(work, rows + len(_WIDTHS) ** 2 * expert, share, self._constants, self._bands)
        nothing = np.zeros_like(weights)
        return Kernels([labels[int(i)] for i in chosen], planes, weights, nothing, activations, work.compute_s)

    def attention(self, g: Gemms, labels: Sequence[tuple[str, str]], phase: str, fill: np.ndarray) -> Kernels:
        """Return one kernel per pair of scores and values; its intermediate results stay on chip."""
        attends = np.flatnonzero(~g.is_weight)
        scores, values = attends[::2], attends[1::2]
        s, v = np.take(g.planes, scores, axis=2), np.take(g.planes, values, axis=2)
        pairs = s[COUNT] * s[M] * s[N] * np.take(g.visible_ratio, scores, axis=1)
        both = s[COUNT] * s[B_BYTES] + v[COUNT] * v[B_BYTES]
        moved = both + (s[COUNT] * s[M] * s[K] + v[COUNT] * v[M] * v[N]) * _PLAIN_BYTES
        bandwidth = self.device.memory_bytes_per_s
        narrow = (s[B_BITS] <= 8).astype(np.int64)
        rows, cut, passed = np.zeros_like(narrow), s[N], np.zeros_like(moved)
        blocks = s[COUNT] * query_blocks(s[M])
        if phase == "decode":
            rows, cut, blocks = 2 * narrow + (s[M] > 1), np.full_like(moved, np.inf), s[COUNT] * 1.0
        elif phase == "prefill":
            rows = narrow
            half = s[COUNT] * s[N] * (s[K] + v[N]) / 2 * g.is_cached[scores]  # elements of keys, and of values
            appended = [append_bytes(half, np.zeros_like(half), ATTENTION[name]) for name in _CACHES]
            passed = np.where(narrow > 0, appended[1], appended[0])
        if phase != "decode":
            fill = moved / self._cache if self._cache else np.full_like(moved, np.inf)
        work = Work(
            compute_s=2 * pairs * (computed_dim(s[K]) + computed_dim(v[N])) / self._peak(PLAIN_BITS),
            traffic_s=moved / bandwidth,
            pass_s=passed / bandwidth,
            waves=np.maximum(blocks, 1e-9) / self._cores,
            fill=fill * np.ones_like(moved),
            rows=cut,
            misaligned=misaligned(s[K]),
        )
        share = np.ones(len(scores))
        planes = kernels.kernel_planes(work, rows + self._row[phase], share, self._constants, self._bands)
        cached = g.is_cached[scores]
        labels = [labels[int(i)] for i in scores]
        return Kernels(labels, planes, np.zeros_like(both), both * cached, moved - both * cached, work.compute_s)

    def vectors(
        self, phase: PhaseSizes, labels: Sequence[tuple[str, OpKind]], n: int, tensor: np.ndarray, cached: np.ndarray
    ) -> Kernels:
        """Return vector work and the append to the cache, charged their bytes.

        Args:
            phase: the pass.
            labels: (component, kind) of its vector groups.
            n: designs.
            tensor: devices that share what works on heads and channels, shape (n, 1).
            cached: part of the appended keys and values that one device holds, shape (n, 1).
        """
        outside = np.array([kind is not OpKind.SOFTMAX for _, kind in labels])  # softmax is part of attention kernels
        moved = np.broadcast_to(phase.elements * VectorCoefficients.of(labels).moved_bytes * outside, (n, len(labels)))
        divided = np.array([kind in DIVIDED for _, kind in labels], dtype=bool)
        moved = moved / np.where(divided, tensor, 1.0)
        appended = np.broadcast_to(phase.cache_bytes, (n, 1)) * cached
        nothing = np.zeros((n, len(labels) + 1))
        kv = np.concatenate([np.zeros_like(moved), appended], axis=1)
        activations = np.concatenate([moved, np.zeros((n, 1))], axis=1)
        timed = activations if phase.name == "prefill" else activations + kv  # context attention appends by itself
        planes = np.zeros((6, n, len(labels) + 1))
        planes[FLOOR] = timed / self.device.memory_bytes_per_s
        planes[BUSY] = planes[FLOOR] / VECTOR_BANDWIDTH_RATIO
        planes[LOW], planes[HIGH] = (ratio * planes[BUSY] for ratio in VECTOR_BAND)
        names = [*((component, class_of(kind)) for component, kind in labels), ("decoder", "cache")]
        return Kernels(names, planes, nothing, kv, activations, nothing)

    def fill(self, g: Gemms, stages: np.ndarray | float = 1.0) -> np.ndarray:
        """Return the weights, keys and values that a pass touches over the last-level cache, shape (n, 1).

        Each of the stages, shape (n, 1), holds its part.
        """
        if not self._cache:
            return np.full((g.planes.shape[1], 1), np.inf)
        read = g.planes[COUNT] * g.planes[B_BYTES]
        return read.sum(axis=1, keepdims=True) / stages / self._cache

    def _s_per_operation(self, planes: np.ndarray) -> np.ndarray:
        """Return seconds per operation at peak; channels wider than 8 bits compute at 16."""
        wide = np.where(planes[A_BITS] > 8, 1.0, planes[WIDE])
        narrow = np.where(width(planes) <= 4, 1 / self._peak(4), 1 / self._peak(8))
        return wide / self._peak(PLAIN_BITS) + (1 - wide) * narrow

    def _peak(self, bits: int) -> float:
        """Return the peak at a width, or the next wider one; rows that need what is not there are infeasible anyway."""
        wider = [b for b in sorted(self.peaks) if b >= bits]
        return self.peaks[wider[0]] if wider else max(self.peaks.values())


def _precision(device: Device, act_bits: int, weight_bits: int) -> str:
    """Return the kind of product for operands of 4, 8 or 16 bits (the table is in :mod:`costmodels.device`)."""
    peaks = device.peak_ops_per_s
    if act_bits == 16 or weight_bits == 16:
        return {4: "int4_wo", 8: "int8_wo", 16: "bfloat16"}[weight_bits]
    if act_bits == weight_bits == 4 and "fp4" in peaks:
        return "nvfp4"
    if max(peaks.get("fp8", 0.0), peaks.get("int8", 0.0)) <= 0:
        return "bfloat16"
    return "sq" if peaks.get("int8", 0.0) > peaks.get("fp8", 0.0) else "fp8"


def _peaks(device: Device) -> dict[int, float]:
    """Return the best peak by operand width."""
    bits = {"fp16": 16, "fp8": 8, "int8": 8, "fp4": 4, "int4": 4}
    peaks: dict[int, float] = {}
    for precision, value in device.peak_ops_per_s.items():
        peaks[bits[precision]] = max(value, peaks.get(bits[precision], 0.0))
    return peaks


def _level(bits: np.ndarray) -> np.ndarray:
    """Return 0, 1, 2 for widths up to 4, up to 8, and above."""
    return (bits > 4).astype(np.int64) + (bits > 8)


def width(planes: np.ndarray) -> np.ndarray:
    """Return the width that operands meet at: 4, 8 or 16 bits."""
    widest = np.maximum(planes[A_BITS], np.where(planes[WIDE] > 0, 16.0, planes[B_BITS]))
    return np.where(widest <= 4, 4.0, np.where(widest <= 8, 8.0, 16.0))


def activation_bytes(planes: np.ndarray) -> np.ndarray:
    """Return the activations that products read and write; results leave at 16 bits."""
    return planes[COUNT] * (planes[M] * planes[K] * planes[A_BITS] / 8 + planes[M] * planes[N] * _PLAIN_BYTES)
