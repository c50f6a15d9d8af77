"""How a batch of designs runs on one device or on many: the factors that a device evaluator applies.

On one device every factor is exactly 1, so both plans give the same bits for such a design.
"""

from __future__ import annotations

import numpy as np

from costmodels.exchange import Exchange, Exchanged
from costmodels.sharding import Layout, Sharding
from costmodels.tables import Gemms
from costmodels.workload import Sizes
from dse.devices import Device
from dse.metrics import Limit


class Plan:
    """Designs on one device.

    Attributes:
        requests: requests of a pass where they are not the batch, shape (n,).
        tensor: devices that share heads and channels, shape (n, 1).
        stages: pipeline stages, shape (n, 1).
        cached: part of the appended keys and values that a device holds, shape (n, 1).
        devices_per_pass: passes of all devices together per pass of a micro-batch over all stages, shape (n,).
        busy: devices in use, shape (n,).
    """

    def __init__(self, n: int) -> None:
        self.requests: np.ndarray | None = None
        self.tensor = self.stages = self.cached = np.ones((n, 1))
        self.devices_per_pass = self.busy = np.ones(n)

    def prepare(self, sizes: Sizes) -> None:
        """Take note of the sizes of a micro-batch."""

    def shard(self, phase: str, gemms: Gemms) -> Gemms:
        """Return the products of one device."""
        del phase
        return gemms

    def stretch(self, phase: str) -> np.ndarray:
        """Return the time of a phase over that of one micro-batch through all stages, shape (n,)."""
        del phase
        return self.busy

    def exchange(self, links: Exchange, sizes: Sizes, phase: str) -> Exchanged | None:
        """Return the collectives of a pass."""
        del links, sizes, phase
        return None

    def held(self, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
        """Return the bytes of weights and caches on the fullest device."""
        return sizes.weight_bytes, sizes.kv_bytes

    def limits(self, device: Device) -> list[Limit]:
        """Return the laws of the plan."""
        del device
        return []


class ShardedPlan(Plan):
    """Designs of which some run on several devices."""

    def __init__(self, n: int, sharding: Sharding, layout: Layout) -> None:
        super().__init__(n)
        self._sharding, self._layout = sharding, layout
        self._share, self._sizes = np.ones(n), None
        self.requests = layout.micro_requests
        self.tensor, self.stages = layout.tensor[:, None], layout.pipeline[:, None]
        self.devices_per_pass = layout.micro_batches * layout.tensor * layout.data
        self.busy = layout.devices

    _sizes: Sizes | None

    def prepare(self, sizes: Sizes) -> None:
        """Take note of the sizes of a micro-batch."""
        self._sizes = sizes
        self._share = self._sharding.share(self._layout, sizes.kept)
        total = np.broadcast_to(sizes.cache_bytes, (len(self.busy), sizes.cache_bytes.shape[1]))
        own = (total / self._sharding.cache_parts(self._layout)).sum(axis=1, keepdims=True)
        whole = total.sum(axis=1, keepdims=True)
        self.cached = np.where(whole > 0, own / np.where(whole > 0, whole, 1.0), 1.0)

    def shard(self, phase: str, gemms: Gemms) -> Gemms:
        """Return the products of one device."""
        return self._sharding.phases[phase].shard(gemms, self._layout)

    def stretch(self, phase: str) -> np.ndarray:
        """Return the time of a phase over that of one micro-batch through all stages, shape (n,)."""
        m = self._layout.micro_batches
        if phase == "encode":
            return m
        if phase == "prefill":
            return 1.0 + (m - 1.0) * self._share
        return np.maximum(1.0, m * self._share)

    def exchange(self, links: Exchange, sizes: Sizes, phase: str) -> Exchanged | None:
        """Return the collectives of a pass."""
        return links.exchange(self._sharding, self._layout, sizes, phase)

    def held(self, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
        """Return the bytes of weights and caches on the fullest device."""
        return self._sharding.fullest(self._layout, sizes)

    def limits(self, device: Device) -> list[Limit]:
        """Return the laws of the plan."""
        assert self._sizes is not None, "prepared before"
        return self._sharding.limits(self._layout, self._sizes.kept, device)
