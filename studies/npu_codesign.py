"""An NPU sized for a workload within budgets of area and power, together with the compression of the model.

A page is read by a vision-language model of 2.2 billion parameters. From a reference design, the bottleneck agent, a
language model (where an endpoint is set up; see docs/llm.md) and samplers size array, cores, memory, bandwidth, mapping
and fusion of the chip, bits, pruning and image size of the model. The report tells how the superior designs were found.
"""

import os
import sys

from agents.auto import arm_of
from dse import Choice, Float, Scenario, Space, Study
from dse.lineage import lineage, superior, told

AREA, POWER = "area_mm2 <= 20", "power_w <= 6"

has_llm = bool(os.environ.get("DSE_LLM_MODEL"))
study = Study(
    "npu-codesign",
    model="smolvlm-2.2b",
    scenario=Scenario(images=1, image_px=(1280, 960), prompt_tokens=96, output_tokens=64),
    hardware="npu-template",
    space=Space(
        weight_bits=Choice(3, 4, 6, 8, 16, per="component"),
        act_bits=Choice(8, 16, per="component"),
        kv_bits=Choice(4, 8, 16),
        ffn_keep=Float(0.5, 1.0, step=0.125, per="block_half"),
        image_px=Choice(512, 768, 1280),
        pe_rows=Choice(16, 32, 64, 128),
        pe_cols=Choice(16, 32, 64, 128),
        n_cores=Choice(1, 2, 4),
        dataflow=Choice("ws", "os", "is"),
        sram_bytes=Choice("512 KiB", "1 MiB", "2 MiB", "4 MiB", "8 MiB"),
        dram_bytes_per_s=Choice("25 GB/s", "34 GB/s", "51 GB/s", "68 GB/s", "102 GB/s"),
        vector_lanes=Choice(32, 64, 128, 256),
        tile_m=Choice(0, 32, 64, 128),
        tile_n=Choice(0, 64, 128, 256),
        loop_order=Choice("auto", "mnk", "nmk"),
        fuse_attention=Choice(False, True),
        fuse_mlp=Choice(False, True),
    ),
    objectives="min latency_s, min energy_j, min quality_loss",
    constraints=f"{AREA}, {POWER}, quality_loss <= 1",
    proposers="auto:with=llm" if has_llm else "auto",
    trials=300,
    ask_size=16,
)
# A plain design to begin with and to beat: 8 bits, a small array, everything else as the template has it.
START = {"weight_bits": 8, "act_bits": 16, "kv_bits": 16, "ffn_keep": 0.75, "image_px": 768, "n_cores": 1}

if __name__ == "__main__":
    if not has_llm:
        print("no endpoint for a language model is set up (DSE_LLM_MODEL): the other arms go on", file=sys.stderr)
    study.enqueue(START)
    results = study.run()
    print(study.front())
    better = superior(results, 0)
    print(f"{len(better)} of {len(results)} designs beat design 0 in every objective; the first of them came so:")
    for number in better[:5].tolist():
        print()
        for step in lineage(results, number):
            print("  " + told(step, arm_of(step.proposer, step.mark)))
