"""The heaviest distinct matrix products of a design, and our figures for products on its accelerator.

Sizes that are means (the span of a mean decode pass, rows per expert) are rounded up, since the tools take whole
numbers; our figures are for the same whole numbers, and for one array, since the tools have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.chip import Chip, Events
from costmodels.passes import ARRAY_S, N_PLANES, run_sizes
from costmodels.products import A_BITS, B_BITS, B_BYTES, COUNT, WIDE, K, M, N
from costmodels.serial import serial_products
from costmodels.systolic import cycles_per_mac
from costmodels.totals import (
    ACTIVATION_BYTES,
    ELEMENT_CYCLES,
    KV_BYTES,
    MACS,
    SECONDS,
    SRAM_READ_BITS,
    SRAM_WRITE_BITS,
    WEIGHT_BYTES,
)
from costmodels.workload import PHASES, Workload
from dse.errors import UserError, unknown
from dse.hardware import Accelerator
from dse.protocols import Chosen


@dataclass(frozen=True)
class Layer:
    """A distinct product of a phase: like :class:`~dse.capabilities.CheckedProduct`, before anything was checked.

    Attributes:
        plane: a column of the sizes of :func:`costmodels.products.size_products`, shape (9,), of one product.
    """

    label: str
    count: float
    share_ratio: float
    size: tuple[int, int, int]
    bits: tuple[float, float]
    plane: np.ndarray

    def resized(self, size: tuple[int, int, int]) -> Layer:
        """Return the product with other m, n, k."""
        m, n, k = size
        plane = self.plane.copy()
        plane[M], plane[N], plane[K] = m, n, k
        plane[B_BYTES] = self.plane[B_BYTES] / (self.plane[K] * self.plane[N]) * k * n
        return Layer(self.label, self.count, self.share_ratio, size, self.bits, plane)


class Layers:
    """Products of a design on one array of its accelerator.

    Args:
        chosen: the design.

    Raises:
        UserError: its hardware is a device, which has no array.
    """

    def __init__(self, chosen: Chosen) -> None:
        hardware = chosen.problem.hardware
        if not isinstance(hardware, Accelerator):
            raise UserError(
                f"{hardware.name} is a device without an array that could be described",
                "choose a design on an accelerator template",
            )
        self.hardware, self._design = hardware, chosen.design
        self.chip = Chip(hardware, chosen.design)
        self.n_cores = int(self.chip.arrays.cores[0])
        self.chip.arrays = self.chip.arrays._replace(cores=np.ones(1))
        self._workload = Workload(chosen.problem)
        self.rows, self.cols = int(self.chip.arrays.rows[0]), int(self.chip.arrays.cols[0])
        self.dataflow = str(chosen.design["dataflow"][0])
        self.sram_bytes = float(self.chip.sram_bytes[0])
        self.freq_hz = float(self.chip.freq_hz[0, 0])
        self.dram_bytes_per_s = float(self.chip.dram_bytes_per_s[0, 0])

    def heaviest(self, phase: str, top: int) -> list[Layer]:
        """Return the distinct products of a phase that take longest in the physical mode.

        Raises:
            NameUnknown: no phase of that name.
            UserError: the request has no such phase.
        """
        if phase not in PHASES:
            raise unknown("phase", phase, PHASES)
        sizes = next((p for p in self._workload.size(self._design).phases if p.name == phase), None)
        if sizes is None or not (sizes.gemms.planes[COUNT] > 0).any():
            raise UserError(f"the request has no {phase}", "choose another --phase")
        labels = self._workload.tables(self._design.schema).gemms[phase].labels
        planes = sizes.gemms.planes[:, 0]
        seconds = self._figures(planes[:, None])["latency_cycles"]
        groups: dict[tuple[str, bytes], list[int]] = {}
        for j in np.flatnonzero(planes[COUNT] > 0).tolist():
            whole = planes[:, j].copy()
            whole[[M, N, K]] = np.ceil(whole[[M, N, K]] - 1e-9)
            whole[COUNT] = 1.0
            groups.setdefault((" ".join(labels[j]), whole.tobytes()), []).append(j)
        layers = [
            _layer(label, planes[:, members], float(seconds[members].sum() / seconds.sum()))
            for (label, _), members in groups.items()
        ]
        return sorted(layers, key=lambda layer: -layer.share_ratio)[:top]

    def ours(self, layer: Layer) -> dict[str, float]:
        """Return our figures for one product, by the names of :class:`~dse.capabilities.CheckedProduct`."""
        figures = {name: float(a[0]) for name, a in self._figures(layer.plane[:, None, None]).items()}
        serial = serial_products(layer.plane[:, None, None], self.chip)
        return figures | {"scalesim_cycles": float(serial.cycles[0, 0])}

    def mac_j(self, layer: Layer) -> float:
        """Return the energy of one multiply-accumulate at the product's widths."""
        one, nothing = np.ones(1), np.zeros(1)
        cycles = cycles_per_mac(layer.plane[:, None, None], self.chip.arrays.is_scalable)[0]
        events = Events(one, cycles, nothing, nothing, nothing, nothing)
        return float(self.chip.energy_parts(events, "value")["compute"][0])

    def constants(self) -> Mapping[str, float]:
        """Return energy per bit: sram_read_j, sram_write_j (at the design's size), dram_j."""
        scale = float(self.chip.sram_scale("value")[0])
        return {
            "sram_read_j": scale * self.chip.constant("sram_read_j_per_bit", "value"),
            "sram_write_j": scale * self.chip.constant("sram_write_j_per_bit", "value"),
            "dram_j": self.chip.constant("dram_j_per_bit", "value"),
        }

    def _figures(self, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return physical, memory and latency cycles and energy of products, sizes (9, 1, j); shape (j,) each."""
        ran, whole = self._run(sizes, self.dram_bytes_per_s), self._run(sizes, np.inf)
        moved = ran[WEIGHT_BYTES] + ran[KV_BYTES] + ran[ACTIVATION_BYTES]
        events = Events(
            macs=ran[MACS],
            element_cycles=ran[ELEMENT_CYCLES],
            vector_ops=np.zeros((1, 1)),
            sram_read_bits=ran[SRAM_READ_BITS],
            sram_write_bits=ran[SRAM_WRITE_BITS],
            dram_bits=8 * moved,
        )
        return {
            "physical_cycles": whole[ARRAY_S, 0] * self.freq_hz,
            "memory_cycles": moved[0] * (self.freq_hz / self.dram_bytes_per_s),
            "latency_cycles": ran[SECONDS, 0] * self.freq_hz,
            "energy_j": self.chip.energy(events, "value")[0],
        }

    def _run(self, sizes: np.ndarray, dram_bytes_per_s: float) -> np.ndarray:
        """Return the planes of products (see :mod:`costmodels.passes`) behind a DRAM of some bandwidth, (10, 1, j)."""
        arrays = self.chip.arrays._replace(dram_bytes_per_s=np.full(1, dram_bytes_per_s))
        planes = np.zeros((N_PLANES, 1, sizes.shape[2]))
        is_weight = np.ones(sizes.shape[2], dtype=bool)
        run_sizes(np.ascontiguousarray(sizes), arrays, is_weight, ~is_weight, planes)
        return planes


def _layer(label: str, members: np.ndarray, share_ratio: float) -> Layer:
    """Return the product that members, sizes (9, members), have in common once their sizes are rounded up."""
    plane = members[:, 0].copy()
    m, n, k = (int(np.ceil(plane[axis] - 1e-9)) for axis in (M, N, K))
    one = Layer(label, float(members[COUNT].sum()), share_ratio, (m, n, k), (plane[A_BITS], plane[B_BITS]), plane)
    plane[COUNT], plane[WIDE] = 1.0, members[WIDE, 0]
    return one.resized((m, n, k))
