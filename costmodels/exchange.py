"""What the devices of a sharded model send each other in one pass: collectives within a node or between nodes.

Per pass and tensor-parallel group: an all-reduce of rows x width at 16 bits where partial sums are reduced
(:func:`costmodels.splits.reductions`), an all-gather of the logits, and one transfer of the residual stream
per stage boundary. Where experts are spread over several replicas, the routed tokens of each (rows x experts per
token / t) go out and come back in two all-to-alls, followed by an all-gather within the replica; experts that stay
inside a replica use the all-reduce alone. Nothing overlaps with kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from costmodels import collectives
from costmodels.constants import OTHER_KIND, Book
from costmodels.sharding import Layout, Sharding
from costmodels.splits import Point
from costmodels.workload import Sizes
from dse.devices import Device

_BYTES: Final = 2.0
LAUNCHES: Final = (collectives.FIELDS.index("direct_launch_s"), collectives.FIELDS.index("ring_launch_s"))


@dataclass(frozen=True)
class Exchanged:
    """Time of a pass in collectives, by component, arrays (n,).

    Attributes:
        seconds: by component.
        low, high: ends of the band of all of them.
        floor: their bytes at full bandwidth.
    """

    seconds: Mapping[str, np.ndarray]
    low: np.ndarray
    high: np.ndarray
    floor: np.ndarray


class Exchange:
    """The links of one device.

    Args:
        device: the device; without links every collective takes no time (such designs are refused).
        book: kernel constants.
    """

    def __init__(self, device: Device, book: Book) -> None:
        found = book.find(device, "allreduce", "bfloat16")
        self._constants = np.array(found.constants)
        self._constants[list(LAUNCHES)] *= device.launch_ratio
        self._band = found.band
        self._node = float(device.n_per_node or np.inf)
        self._link = float(device.link_bytes_per_s or np.inf)
        self._between = float(device.node_link_bytes_per_s or self._link)

    def exchange(self, sharding: Sharding, layout: Layout, sizes: Sizes, phase: str) -> Exchanged:
        """Return the collectives of one pass of a micro-batch."""
        n = len(layout.tensor)
        found = _Sum(n, self._band)
        t, joined = layout.tensor, np.minimum(layout.joined, layout.data)
        gemms = next(p for p in sizes.phases if p.name == phase).gemms

        def rows_of(symbol: str) -> np.ndarray:
            rows = gemms.binding.rows(symbol)
            return np.broadcast_to((rows.per_sequence * rows.sequences)[:, 0], n)

        for point in sharding.phases[phase].points:
            count = np.broadcast_to(sizes.kept.block[:, point.blocks].sum(axis=1), n)
            message = rows_of(point.rows) * point.width * _BYTES
            count = np.where(message > 0, count, 0.0)
            away = joined > 1 if point.has_experts else np.zeros(n, dtype=bool)
            reduces = np.where(away & (not point.has_dense), 0.0, 1.0)
            self._add(found, point, count * reduces, message, t, t, 2.0)
            if away.any():
                routed = message * point.n_active / t
                group = np.where(away, joined * t, 1.0)
                self._add(found, point, 2 * count * away, routed, group, group, 1.0)
                self._add(found, point, count * away, message, t, t, 1.0)
        if phase != "encode":
            vocabulary = float(sharding.vocabulary)
            self._add(found, None, np.ones(n), rows_of("last") * vocabulary * _BYTES, t, t, 1.0)
            boundary = np.where(layout.pipeline > 1, 2.0, 1.0)
            span = t * layout.pipeline * joined
            stream = 2 * rows_of("token") * sharding.hidden * _BYTES  # half of it crosses a ring of two
            self._add(found, None, layout.pipeline - 1, stream, boundary, span, 1.0)
        return found.result()

    def _add(
        self, found: _Sum, point: Point | None, count: np.ndarray, message: np.ndarray, ranks: np.ndarray,
        span: np.ndarray, rounds: float,
    ) -> None:  # fmt: skip
        between = span > self._node
        link = np.where(between, self._between, self._link)
        form = collectives.all_reduce_s if rounds == 2.0 else collectives.all_gather_s
        seconds = count * form(message, ranks, link, self._constants)
        wire = count * rounds * (ranks - 1) / ranks * message / link
        found.add(point.component if point else "decoder", seconds, wire, between)


class _Sum:
    def __init__(self, n: int, band: tuple[float, float]) -> None:
        self._band = band
        self._seconds: dict[str, np.ndarray] = {}
        self._low, self._high, self._floor = np.zeros(n), np.zeros(n), np.zeros(n)

    def add(self, component: str, seconds: np.ndarray, floor: np.ndarray, is_stretched: np.ndarray) -> None:
        self._seconds[component] = self._seconds.get(component, 0.0) + seconds
        wider = np.where(is_stretched, OTHER_KIND, 1.0)
        self._low = self._low + seconds * self._band[0] / wider
        self._high = self._high + seconds * self._band[1] * wider
        self._floor = self._floor + floor

    def result(self) -> Exchanged:
        return Exchanged(self._seconds, self._low, self._high, self._floor)
