"""What users of a serving engine see: figures of runs, per request and over time.

Percentiles are the smallest value that so many requests stay within. A request's time per token is (end - first token)
/ (tokens - 1); one of a single token has none. Rates are over the time from the first arrival to the last token, start
and end of the run included, so that Little's law holds exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from costmodels.batching import Run
from costmodels.capacity import BLOCK_TOKENS
from costmodels.device_energy import IDLE_RATIO
from costmodels.engines import CHUNK_ROWS, EngineBatch, Engines
from dse.designs import DesignBatch
from dse.hardware import Accelerator, Device
from dse.metrics import Limit, MetricBatch, ToldLimit
from dse.protocols import Breakdown
from dse.scenario import Scenario

LEVELS: Final = (0.5, 0.95, 0.99)
PREEMPTION: Final = "preemption_ratio"
_VALUE: Final = 1
_METRICS: Final = (
    "ttft_s", "ttft_p50_s", "ttft_p95_s", "ttft_p99_s", "tpot_s", "tpot_p50_s", "tpot_p95_s", "tpot_p99_s",
    "latency_s", "latency_p50_s", "latency_p95_s", "latency_p99_s", "queue_s", "throughput_tokens_per_s",
    "throughput_requests_per_s", "goodput_requests_per_s", "capacity_requests_per_s", "load_ratio", "n_running",
    "n_waiting", "kv_occupancy_ratio", "kv_peak_ratio", "kv_capacity_tokens", "memory_bytes",
    "weight_bytes", "kv_bytes",
)  # fmt: skip
_EXACT: Final = ("memory_bytes", "weight_bytes", "kv_bytes", "kv_capacity_tokens")


@dataclass(frozen=True)
class Timeline:
    """What one replica does over time, a row per step, arrays (steps,).

    Attributes:
        end_s: end of the step.
        n_running, n_waiting: requests that run in it, and that wait for it.
        kv_occupancy_ratio: blocks in use over all.
        n_decoding: requests that write tokens.
        prompt_tokens: positions of prompts that it computes.
    """

    end_s: np.ndarray
    n_running: np.ndarray
    n_waiting: np.ndarray
    kv_occupancy_ratio: np.ndarray
    n_decoding: np.ndarray
    prompt_tokens: np.ndarray


def timeline(run: Run, n_blocks: int) -> Timeline:
    """Return a run over time."""
    end_s, running, waiting, used, decoding, prompt = run.timeline.T
    return Timeline(end_s, running, waiting, used / n_blocks, decoding, prompt)


def quantiles(values: np.ndarray) -> np.ndarray:
    """Return the percentiles of :data:`LEVELS`, each the smallest value that so many stay within, shape (3,)."""
    return np.asarray(np.quantile(values, LEVELS, method="inverted_cdf"))


def figures(runs: Sequence[Run], n_blocks: int, token_s: float, scenario: Scenario) -> dict[str, float]:
    """Return the figures of all replicas together.

    Args:
        runs: one per replica.
        n_blocks: of a replica's cache.
        token_s: time per token where no request has a second one.
        scenario: with the limits that requests should keep to.
    """
    arrival, start, first, end, output = (
        np.concatenate([getattr(run, name) for run in runs])
        for name in ("arrival_s", "start_s", "first_s", "end_s", "output")
    )
    ttft, latency = first - arrival, end - arrival
    more = output > 1
    tpot = (end - first)[more] / (output[more] - 1) if more.any() else np.full(1, token_s)
    per_token = np.where(more, (end - first) / np.maximum(output - 1, 1), 0.0)
    good = np.ones(len(arrival), dtype=bool)
    for limit, value in (
        (scenario.ttft_slo_s, ttft), (scenario.tpot_slo_s, per_token), (scenario.latency_slo_s, latency)
    ):  # fmt: skip
        if limit:
            good &= value <= limit
    span = float(end.max() - arrival.min())
    n, spans = len(arrival), span * len(runs)
    sums = [run.sums for run in runs]
    found = {
        "ttft_s": ttft.mean(),
        "tpot_s": tpot.mean(),
        "latency_s": latency.mean(),
        "queue_s": (start - arrival).mean(),
        "throughput_tokens_per_s": output.sum() / span,
        "throughput_requests_per_s": n / span,
        "goodput_requests_per_s": good.sum() / span,
        "n_running": sum(s.running_s for s in sums) / spans,
        "n_waiting": sum(s.waiting_s for s in sums) / spans,
        "kv_occupancy_ratio": sum(s.blocks_s for s in sums) / spans / n_blocks,
        "kv_peak_ratio": max(s.peak_blocks for s in sums) / n_blocks,
        "preemption_ratio": sum(s.preemptions for s in sums) / n,
    }
    for name, values in (("ttft", ttft), ("tpot", tpot), ("latency", latency)):
        found |= dict(zip((f"{name}_p50_s", f"{name}_p95_s", f"{name}_p99_s"), quantiles(values), strict=True))
    return {name: float(value) for name, value in found.items()}


def span_s(runs: Sequence[Run]) -> float:
    """Return the time from the first arrival to the last token of any replica."""
    return float(max(run.end_s.max() for run in runs) - min(run.arrival_s.min() for run in runs))


def metrics_of(given: Collection[str]) -> tuple[str, ...]:
    """Return the metrics of a serving model on hardware whose cost model gives ``given``."""
    return (
        *_METRICS,
        *(("energy_j", "million_tokens_energy_j") if "energy_j" in given else ()),
        *(("cost_usd", "million_tokens_cost_usd") if "cost_usd" in given else ()),
    )


@dataclass(frozen=True)
class Spent:
    """What runs of n designs took, all replicas together, arrays (n,), NaN where nothing ran.

    Attributes:
        span_s: from the first arrival to the last token.
        busy_s: of all replicas, in steps.
        joules: of steps.
        requests, tokens: served, written.
    """

    span_s: np.ndarray
    busy_s: np.ndarray
    joules: np.ndarray
    requests: np.ndarray
    tokens: np.ndarray

    @classmethod
    def none(cls, n: int) -> Spent:
        """Return n designs that did nothing."""
        return cls(*(np.full(n, np.nan) for _ in range(5)))

    def add(self, row: int, runs: Sequence[Run]) -> None:
        """Write down the runs of a design."""
        self.span_s[row] = span_s(runs)
        self.busy_s[row], self.joules[row] = sum(r.sums.busy_s for r in runs), sum(r.sums.joules for r in runs)
        self.requests[row] = sum(len(run.output) for run in runs)
        self.tokens[row] = sum(int(run.output.sum()) for run in runs)

    def figures(
        self, engine: EngineBatch, hardware: Accelerator | Device, end: int, peak_ratio: np.ndarray,
        metrics: Collection[str],
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Return memory, and energy and cost where they are among ``metrics``.

        Args:
            engine: what ran.
            hardware: on what.
            end: 0, 1 or 2 for the low end, the value and the high end.
            peak_ratio: most blocks of the cache in use over all.
            metrics: names wanted.
        """
        room, replicas, known = engine.room, engine.extent.replicas, np.where(np.isnan(self.span_s), np.nan, 1.0)
        n_blocks = room.n_blocks * known
        kv_bytes = peak_ratio * n_blocks * room.block_bytes
        weights = room.weight_bytes * known
        found = {
            "kv_capacity_tokens": n_blocks * BLOCK_TOKENS,
            "weight_bytes": weights,
            "kv_bytes": kv_bytes,
            "memory_bytes": weights + room.activation_bytes + room.context_bytes + kv_bytes,
        }
        if "energy_j" in metrics:
            joules = self.joules
            if isinstance(hardware, Device) and hardware.power_w:
                idle_s = np.maximum(self.span_s * replicas - self.busy_s, 0.0)
                joules = joules + IDLE_RATIO[end] * hardware.power_w * engine.devices / replicas * idle_s
            found |= {"energy_j": joules / self.requests, "million_tokens_energy_j": 1e6 * joules / self.tokens}
        if "cost_usd" in metrics:
            assert isinstance(hardware, Device)
            assert hardware.price_usd_per_hour
            price = hardware.price_usd_per_hour[end // 2] * engine.devices * self.span_s / 3600
            found |= {"cost_usd": price / self.requests, "million_tokens_cost_usd": 1e6 * price / self.tokens}
        return found


def answer(
    ends: Sequence[Mapping[str, np.ndarray]], n: int, limits: Sequence[Limit | ToldLimit], basis: str
) -> MetricBatch:
    """Return the metrics of n designs from those at the low end, the value and the high end of all passes."""
    values = dict(ends[_VALUE])
    bands = {
        name: (np.min([e[name] for e in ends], axis=0), np.max([e[name] for e in ends], axis=0))
        for name in values
        if name not in _EXACT
    }
    broken = [limit for limit in limits if (limit.excess_ratio > 0).any()]
    return MetricBatch(values, n, bands, dict.fromkeys(values, basis), broken).masked()


def latency_parts(values: Mapping[str, np.ndarray]) -> list[Breakdown]:
    """Return the mean latency as waiting, reading the prompt, and writing."""
    first, labels = values["ttft_s"], [("queue", "wait"), ("prefill", "step"), ("decode", "step")]
    parts = np.stack([values["queue_s"], first - values["queue_s"], values["latency_s"] - first], axis=1)
    names = tuple(("engine", phase, kind, "time") for phase, kind in labels)
    return [Breakdown("latency_s", names, np.maximum(np.nan_to_num(parts), 0.0))]


class EngineEvaluator(ABC):
    """What evaluators have in common that cost designs engine by engine: some rows with one drafter at a time.

    Attributes:
        engines: of the problem.
    """

    engines: Engines

    @abstractmethod
    def _evaluate(self, engine: EngineBatch) -> MetricBatch:
        """Return the metrics of designs that have one drafter."""

    def evaluate(self, batch: DesignBatch) -> MetricBatch:
        """Return the metrics of each design, row by row."""
        parts = []
        for rows, drafter in self.engines.groups(batch):
            for start in range(0, len(rows), CHUNK_ROWS):
                some = rows[start : start + CHUNK_ROWS]
                parts.append((some, self._evaluate(self.engines.engine(batch.take(some), drafter))))
        return MetricBatch.scatter(parts, len(batch)).masked()

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return the mean latency as waiting, reading the prompt, and writing."""
        return latency_parts(self.evaluate(batch).values)
