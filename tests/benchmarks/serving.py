"""The serving simulator: CPU time for 10,000 requests on models of 7B parameters, compiled code ready.

python -m tests.benchmarks.serving
"""

from __future__ import annotations

import time

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


if __name__ == "__main__":
    print(report())
