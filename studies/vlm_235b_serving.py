"""Qwen3-VL-235B-A22B on eight H200: which parallelism, precision and batch serve most tokens at which time per token.

A request is a page as an image with a short question. Whole requests are costed in closed form first (``policy``); the
most promising designs are served request by request (``serving``): continuous batching, chunks of prompts, room for
caches. Throughput and time per token pull against each other through the batch and the width of tensor parallelism;
fewer bits serve both at a loss of quality, which is a prior here (give ``quality=`` a profile of your own).

All requests are there from the start, which measures what the node can serve. ``requests_per_s`` and the limits
``ttft_slo_s``, ``tpot_slo_s`` in the scenario turn it into waiting and goodput at a load.
"""

from dse import Choice, Policy, Rung, Scenario, Space, Study

study = Study(
    "vlm-235b-serving",
    model="qwen3-vl-235b-a22b",
    scenario=Scenario(images=1, image_px=(1024, 1024), prompt_tokens=128, output_tokens=256, n_requests=512),
    hardware="h200-sxm-141gb",
    policy=Policy(),
    space=Space(
        n_devices=Choice(8),
        tensor_parallel=Choice(2, 4, 8),
        expert_parallel=Choice(1, 2, 4, 8),
        weight_bits=Choice(8, 16),
        act_bits=Choice(8, 16),
        kv_bits=Choice(8, 16),
        batch=Choice(16, 32, 64, 128, 256, 512),
        prefill_chunk=Choice(2048, 8192),
    ),
    objectives="max throughput_tokens_per_s, min tpot_s, min quality_loss",
    constraints="tpot_s <= 0.1",
    ladder=Rung(["serving", "prior"], designs=24),
    trials=300,
)

if __name__ == "__main__":
    study.run()
    print(study.front())
