"""A model on a device that exists: latency, memory, energy and cost, per design, in closed form.

Each matrix product is one kernel, attention (scores, softmax, values) one fused kernel per block, the products of a
block's experts one kernel; their latency is the closed form of :mod:`costmodels.kernels` with the constants of
:mod:`costmodels.constants`: fitted on measured kernels of this device, or borrowed from its relatives. The kind of
kernel follows from the widths of the operands:

    activations 16, weights 16 | 5-8 | 2-4      bfloat16 | int8_wo | int4_wo (weights widened on the way in)
    activations 5-8, weights 2-8                fp8, or int8 ("sq") where the device has no fp8 or a faster int8;
                                                of experts fp8 with a scale per block, as checkpoints store them (with
                                                one per tensor, vLLM's measured kernel takes seven times as long)
    activations 4, weights 2-4                  nvfp4, or int4 with the constants of 8 bits
    keys and values 16 | narrower               context and decode attention on a 16-bit | 8-bit cache

Operands meet at the width of the wider one; a device whose datasheet has no peak for it cannot run the design; nothing
is emulated. Vector work is charged its bytes at 0.80 of the bandwidth and no launch: frameworks fuse it into
neighbours; appending to the cache is part of the context attention kernel.

The working set that decides whether weights and cached keys stay in the last-level cache is all weights and keys of a
pass, not those of one kernel: the next pass finds them there only if all fit.

The interval of a latency is the sum of the kernels' bands (90 % of held-out rows; see :mod:`costmodels.constants`),
as if the errors of all kernels went the same way, and never below the roofline at full efficiency. Energy and power:
:mod:`costmodels.device_energy`.

Several devices: what one of them holds and computes is in :mod:`costmodels.sharding`, what they send each other in
:mod:`costmodels.exchange`. Times are those of the whole batch; ``memory_bytes``, ``weight_bytes``, ``kv_bytes`` and
``activation_bytes`` are of the fullest device, ``dram_bytes``, energy and cost of all together.

Left out: host and network, prefill in chunks, experts' load imbalance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from costmodels import kernels
from costmodels.accelerator import CHUNK_ROWS, memory_limit
from costmodels.breakdown import Itemised, Ledger
from costmodels.constants import CALIBRATED, TRANSFERRED, book_for, book_hash
from costmodels.device_energy import energy_j
from costmodels.device_kernels import DeviceKernels, Kernels, activation_bytes, width
from costmodels.exchange import Exchange
from costmodels.latency import request_times
from costmodels.plan import Plan, ShardedPlan
from costmodels.products import COUNT, PLAIN_BITS
from costmodels.sharding import Layout, Sharding
from costmodels.steps import Step
from costmodels.workload import Pass, Sizes, Workload
from dse.canonical import content_hash
from dse.designs import DesignBatch
from dse.errors import HardwareError
from dse.hardware import Device
from dse.metrics import Limit, MetricBatch
from dse.problem import TARGET, Problem

METRICS: Final = (
    "latency_s", "ttft_s", "tpot_s", "encode_s", "prefill_s", "decode_s", "throughput_tokens_per_s",
    "memory_bytes", "weight_bytes", "kv_bytes", "activation_bytes", "dram_bytes",
)  # fmt: skip


@dataclass(frozen=True)
class _Load:
    """What designs put on devices, arrays (n,): requests, devices in use, bytes of the fullest one, traffic of all."""

    requests: np.ndarray
    devices: np.ndarray
    weight_bytes: np.ndarray
    kv_bytes: np.ndarray
    live_bytes: np.ndarray
    moved_bytes: np.ndarray
    computed_s: np.ndarray
    narrowest: np.ndarray


@dataclass(frozen=True)
class _Ran:
    """What designs' phases take and do: seconds and ends as :class:`_Times` has them, the rest arrays (n,)."""

    seconds: dict[str, np.ndarray]
    ends: dict[str, np.ndarray]
    moved: np.ndarray
    computed: np.ndarray
    live: np.ndarray
    narrowest: np.ndarray


@dataclass(frozen=True)
class _Times:
    """Seconds of a pass of each phase, shape (n,), and their ends (floor, low, high), shape (3, n)."""

    phases: Mapping[str, np.ndarray]
    ends: Mapping[str, np.ndarray]

    def low(self) -> dict[str, np.ndarray]:
        """Return the low ends: of the band, but no less than peaks allow."""
        return {p: np.minimum(np.maximum(self.ends[p][0], self.ends[p][1]), s) for p, s in self.phases.items()}

    def high(self) -> dict[str, np.ndarray]:
        """Return the high ends of the band."""
        return {p: np.maximum(self.ends[p][2], s) for p, s in self.phases.items()}


class DeviceEvaluator(Itemised):
    """The analytical model for one problem on a datasheet device.

    Args:
        problem: its hardware is that device.
        device: the device.
        version: version of the cost model, part of the fingerprint.
        role: the model it is about.

    Raises:
        HardwareError: the datasheet has no compute peak.
    """

    pass_rows = CHUNK_ROWS

    def __init__(self, problem: Problem, device: Device, version: str, role: str = TARGET) -> None:
        if not device.peak_ops_per_s:
            raise HardwareError(
                f"{device.name} has no compute peak in its description, so no latency can be given",
                "add [peak_ops_per_s] with its source to a TOML file of your own and name that file",
            )
        self.problem, self.device = problem, device
        self.workload = Workload(problem, role)
        book = book_for(device)
        self.fingerprint = content_hash(
            {
                "model": version,
                "problem": problem.content_hash,
                "scenario": problem.scenario.to_json(),
                "constants": book_hash(book),
            }
        )
        self._kernels = DeviceKernels(device, book)
        self._exchange = Exchange(device, book)
        self._shardings: dict[int, Sharding] = {}
        self._basis = CALIBRATED if book.is_measured(device) else TRANSFERRED
        self.metrics: Sequence[str] = (
            *METRICS,
            *(("energy_j", "power_w") if device.power_w else ()),
            *(("cost_usd",) if device.price_usd_per_hour else ()),
        )

    def _evaluate(self, batch: DesignBatch, ledger: Ledger | None) -> MetricBatch:
        plan = self._plan(batch)
        sizes = self.workload.size(batch, plan.requests)
        plan.prepare(sizes)
        ran = self._run(batch, plan, sizes, ledger)
        held = plan.held(sizes)
        if ledger is not None:
            for kind, size in (("weights", held[0]), ("cache", held[1]), ("activations", ran.live)):
                ledger.add_one("memory_bytes", ("model", "all", "memory", kind), size)
        limits = [*plan.limits(self.device), *sizes.limits]
        requests = np.broadcast_to(batch["batch"], len(batch)).astype(np.float64)
        load = _Load(requests, plan.busy, *held, ran.live, ran.moved, ran.computed, ran.narrowest)
        return self._metrics(load, limits, _Times(ran.seconds, ran.ends))

    def step(self, batch: DesignBatch, asked: Pass) -> Step:
        """Return what one pass takes, arrays (n,); see :class:`~costmodels.steps.Step`."""
        parts = []
        for start in range(0, len(batch), CHUNK_ROWS):
            rows = slice(start, min(start + CHUNK_ROWS, len(batch)))
            parts.append(self._step(batch.take(rows), asked.take(rows)))
        return Step.concat(parts)

    def _step(self, batch: DesignBatch, asked: Pass) -> Step:
        n, plan, name = len(batch), self._plan(batch), asked.phase
        sizes = self.workload.size(batch, plan.requests, asked=asked)
        if not sizes.phases:
            return Step.none(n)
        plan.prepare(sizes)
        ran = self._run(batch, plan, sizes, None, is_request=False)
        times = _Times({name: ran.seconds[name]}, {name: ran.ends[name]})
        ends = (times.low()[name], times.phases[name], times.high()[name])
        joules = (np.zeros(n),) * 3
        if self.device.power_w:
            power, computed = self.device.power_w * plan.busy, ran.computed / plan.busy
            joules = energy_j(power, computed, ran.moved, ends)
        return Step(np.stack(ends), np.stack(joules), ran.moved, ran.live)

    def _run(
        self, batch: DesignBatch, plan: Plan, sizes: Sizes, ledger: Ledger | None, *, is_request: bool = True
    ) -> _Ran:
        """Run the phases that there are, as often as the request does, or once."""
        n, tables = len(batch), self.workload.tables(batch.schema)
        seconds = {name: np.zeros(n) for name in ("encode", "prefill", "decode")}
        ends = {name: np.zeros((3, n)) for name in seconds}
        moved, computed = np.zeros(n), np.zeros(n)
        live, narrowest = np.zeros(n), np.full(n, float(PLAIN_BITS))
        for phase in sizes.phases:
            gemms = plan.shard(phase.name, phase.gemms)
            stretch = plan.stretch(phase.name)
            passes = self._passes(phase.name) if is_request else 1.0
            times = passes * stretch
            labels = tables.gemms[phase.name].labels
            fill = self._kernels.fill(gemms, plan.stages)
            for part in (
                self._kernels.products(gemms, labels, fill),
                self._kernels.attention(gemms, labels, phase.name, fill),
                self._kernels.vectors(phase, tables.vectors[phase.name].labels, n, plan.tensor, plan.cached),
            ):
                seconds[phase.name] = seconds[phase.name] + stretch * part.seconds()
                for end, plane in enumerate((kernels.FLOOR, kernels.LOW, kernels.HIGH)):
                    ends[phase.name][end] += stretch * part.planes[plane].sum(axis=1)
                runs = passes * plan.devices_per_pass
                moved = moved + runs * part.moved_bytes.sum(axis=1)
                computed = computed + runs * part.compute_s.sum(axis=1)
                if ledger is not None:
                    _record(ledger, phase.name, part, times, self.device.memory_bytes_per_s)
            sent = plan.exchange(self._exchange, sizes, phase.name)
            if sent is not None:
                for component, time in sent.seconds.items():
                    seconds[phase.name] = seconds[phase.name] + stretch * time
                    if ledger is not None:
                        ledger.add_one(
                            "latency_s", (component, phase.name, "collective", "communication"), times * time
                        )
                        none, sent_s = np.zeros((n, 1)), (times * time)[:, None]
                        ledger.bound(phase.name, [(component, "collective")], none, none, sent_s)
                ends[phase.name] += stretch * np.stack([sent.floor, sent.low, sent.high])
            weights = gemms.is_weight & (gemms.planes[COUNT] > 0)
            live = np.maximum(live, np.where(weights, activation_bytes(gemms.planes), 0.0).max(axis=1))
            narrowest = np.minimum(narrowest, np.where(weights, width(gemms.planes), PLAIN_BITS).min(axis=1))
        return _Ran(seconds, ends, moved, computed, live, narrowest)

    def _plan(self, batch: DesignBatch) -> Plan:
        layout = Layout.of(batch)
        if layout is None:
            return Plan(len(batch))
        groups = batch.schema.channel_groups
        if groups not in self._shardings:
            self._shardings[groups] = Sharding(self.workload, batch.schema)
        return ShardedPlan(len(batch), self._shardings[groups], layout)

    def _passes(self, phase: str) -> float:
        return float(self.problem.scenario.output_tokens - 1) if phase == "decode" else 1.0

    def _metrics(self, load: _Load, laws: Sequence[Limit], times: _Times) -> MetricBatch:
        requests = load.requests
        seconds = [request_times(s, self._passes("decode")) for s in (times.low(), times.phases, times.high())]
        (low_s, latency, high_s), n = (s["latency_s"] for s in seconds), len(requests)
        memory = load.weight_bytes + load.kv_bytes + load.live_bytes
        values = {
            **seconds[1],
            "throughput_tokens_per_s": requests * self.problem.scenario.output_tokens / latency,
            "memory_bytes": memory,
            "weight_bytes": load.weight_bytes,
            "kv_bytes": load.kv_bytes,
            "activation_bytes": load.live_bytes,
            "dram_bytes": load.moved_bytes,
        }
        tokens = requests * self.problem.scenario.output_tokens
        intervals = {name: (seconds[0][name], seconds[2][name]) for name in seconds[1]}
        intervals["throughput_tokens_per_s"] = (tokens / high_s, tokens / low_s)
        device = self.device
        if device.power_w:
            power, ends = device.power_w * load.devices, (low_s, latency, high_s)
            low_j, joules, high_j = energy_j(power, load.computed_s / load.devices, load.moved_bytes, ends)
            values["energy_j"], values["power_w"] = joules / requests, joules / latency
            intervals["energy_j"] = (low_j / requests, high_j / requests)
            intervals["power_w"] = (low_j / high_s, np.minimum(high_j / low_s, power))
        if device.price_usd_per_hour:
            low, high = (price / 3600 * load.devices for price in device.price_usd_per_hour)
            values["cost_usd"] = low * latency / requests
            intervals["cost_usd"] = (low * low_s / requests, high * high_s / requests)
        lacks = f"{device.name} computes at {{needed}} or more, the design asks for {{available}}"
        limits = [
            Limit("operand_bits", np.full(n, float(min(self._kernels.peaks))), load.narrowest, lacks),
            memory_limit(memory, device.memory_bytes, device.name),
            *laws,
        ]
        broken = [limit for limit in limits if (limit.excess_ratio > 0).any()]
        basis = {name: "datasheet" if name.endswith("_bytes") else self._basis for name in values}
        return MetricBatch(values, n, intervals, basis, broken).masked()


def _record(ledger: Ledger, phase: str, part: Kernels, passes: np.ndarray, bytes_per_s: float) -> None:
    """Enter the time of kernels by what bounds them, and beside the device's peaks."""
    busy, bound, moved = part.planes[kernels.BUSY], part.planes[kernels.COMPUTE_BOUND] > 0, part.moved_bytes
    share = np.where(bound, 0.0, busy) / np.where(moved > 0, moved, 1.0)
    parts = {
        "compute": np.where(bound, busy, 0.0),
        "weight traffic": share * part.weight_bytes,
        "kv traffic": share * part.kv_bytes,
        "activation traffic": share * part.activation_bytes,
        "overhead": part.planes[kernels.OVERHEAD],
    }
    for kind, value in parts.items():
        ledger.add("latency_s", [(c, phase, cls, kind) for c, cls in part.labels], passes[:, None] * value)
    times = (part.compute_s, moved / bytes_per_s, busy + part.planes[kernels.OVERHEAD])
    ledger.bound(phase, part.labels, *(passes[:, None] * t for t in times))
