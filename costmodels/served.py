"""What users of a serving engine see: figures of runs, per request and over time.

Percentiles are the smallest value that so many requests stay within. A request's time per token is (end - first token)
/ (tokens - 1); one of a single token has none. Rates are over the time from the first arrival to the last token, start
and end of the run included, so that Little's law holds exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from costmodels.batching import Run
from dse.scenario import Scenario

LEVELS: Final = (0.5, 0.95, 0.99)


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
