"""Serving: CPU time of the simulator, and how far the closed form is off it.

python -m tests.benchmarks.serving             CPU time for 10,000 requests on 7B parameters, compiled code ready
python -m tests.benchmarks.serving queueing    errors of "queueing" against "serving" over drawn scenarios
"""

from __future__ import annotations

import sys
import time

import numpy as np

from costmodels.queueing import Queueing
from costmodels.serving import Serving
from dse.hardware import read_hardware
from dse.model import read_model
from dse.params import Choice
from dse.policy import Policy
from dse.problem import Problem
from dse.scenario import Scenario
from dse.space import Space

REQUESTS = 10_000
CASES = {
    "qwen2.5-vl-7b": {"images": 1, "image_px": (1024, 768), "prompt_tokens": 96, "output_tokens": 64},
    "qwen2.5-coder-7b": {"prompt_tokens": 512, "output_tokens": 256},
}


def cpu_s(model: str, n_requests: int = REQUESTS, load: float = 0.7) -> float:
    """Return the CPU seconds of one design: tables of steps, capacity, value and both ends of the interval."""
    given = CASES[model]
    target, hardware = read_model(model), read_hardware("h100-sxm-80gb")

    def work(n: int, rate: float) -> tuple[float, float]:
        problem = Problem(
            {"target": target},
            Scenario(**given, n_requests=n, requests_per_s=rate),  # type: ignore[arg-type]
            hardware,
            policy=Policy(),
        )
        space = Space(batch=Choice(64), prefill_chunk=Choice(2048)).bind(problem)
        evaluator = Serving().prepare(problem)
        design = space.decode(space.reference_codes())
        began = time.process_time()
        found = evaluator.evaluate(design)
        cpu = time.process_time() - began
        assert not found.reason(0), found.reason(0)
        return cpu, float(found.values["throughput_requests_per_s"][0])

    _, most = work(500, 0.0)
    return work(n_requests, load * most)[0]


def report() -> str:
    """Return a line per model."""
    lines = [f"serving, {REQUESTS:,} requests at 0.7 of capacity, batch 64, chunks of 2,048:"]
    return "\n".join([*lines, *(f"  {model}: {cpu_s(model):.2f} CPU s" for model in CASES)])


SHOWN = (
    "ttft_s", "ttft_p95_s", "tpot_s", "tpot_p95_s", "latency_s", "latency_p95_s", "latency_p99_s",
    "throughput_tokens_per_s", "capacity_requests_per_s", "n_running", "energy_j",
)  # fmt: skip
LOADS = {"all at once": 0.0, "0.2-0.5": 0.5, "0.5-0.7": 0.7, "0.7-0.9": 0.9}
MODELS = {
    "llama-3.1-8b": ("h100-sxm-80gb", {}),
    "qwen2.5-coder-7b": ("a100-80gb-sxm", {}),
    "qwen2.5-vl-7b": ("l40s", {"images": 1, "image_px": (640, 480)}),
    "mixtral-8x7b": ("h200-sxm-141gb", {}),
}


def errors(seed: int, n_draws: int = 12, n_requests: int = 4000) -> dict[str, np.ndarray]:
    """Return per band of load the relative errors of the closed form, (draws, metrics), over drawn scenarios."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[list[float]]] = {name: [] for name in LOADS}
    for i in range(n_draws):
        model = list(MODELS)[i % len(MODELS)]
        device, extra = MODELS[model]
        given = {"prompt_tokens": int(2 ** rng.uniform(5, 12)), "output_tokens": int(2 ** rng.uniform(4, 9)), **extra}
        knobs = {"batch": int(2 ** rng.uniform(0, 8)), "prefill_chunk": int(rng.choice([0, 512, 2048]))}
        space = Space({name: Choice(value) for name, value in knobs.items()})
        most = 0.0
        low = 0.2
        for band, load in LOADS.items():
            rate = most * rng.uniform(low, load) if load else 0.0
            low = load or low
            scenario = Scenario(**given, n_requests=n_requests if load else 512, requests_per_s=rate)  # type: ignore[arg-type]
            problem = Problem({"target": read_model(model)}, scenario, read_hardware(device), policy=Policy())
            bound = space.bind(problem)
            design = bound.decode(bound.reference_codes())
            solved, simulated = (m.prepare(problem).evaluate(design) for m in (Queueing(), Serving(str(seed))))
            if simulated.reason(0):
                break
            most = most or float(simulated.values["throughput_requests_per_s"][0])
            found[band].append([float(solved.values[m][0] / simulated.values[m][0] - 1.0) for m in SHOWN])
    return {band: np.array(rows) for band, rows in found.items()}


def table(seed: int = 20) -> str:
    """Return median (90 % quantile) of absolute errors in percent, a line per metric."""
    bands = errors(seed)
    counts = ", ".join(f"{len(rows)}" for rows in bands.values())
    lines = [f"{counts} runs", f"| metric | {' | '.join(bands)} |", "|---|" + "---|" * len(bands)]
    for k, name in enumerate(SHOWN):
        cells = []
        for rows in bands.values():
            middle, most = np.quantile(np.abs(rows[:, k]), (0.5, 0.9))
            cells.append(f"{100 * middle:.1f} % ({100 * most:.0f} %)")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table() if "queueing" in sys.argv else report())
