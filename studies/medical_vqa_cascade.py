"""The medical edge study with a policy: a 256M model looks first, the 3B model on doubt, and guesses its tokens ahead.

Same request and same chip template as studies/medical_vqa_edge.py, fewer knobs of the chip. SmolVLM-256M and
Qwen2.5-VL-3B have different vocabularies, so neither can guess for the other; the drafter is an EAGLE head of the
larger one, or look-ups in the prompt. The profile of the stages stands for a log of your own data.
"""

from dse import CascadeProfile, Choice, Float, Policy, Scenario, Space, StageProfile, Study, read_model
from dse.model.drafters import eagle_head

large = read_model("qwen2.5-vl-3b")

study = Study(
    "medical-vqa-cascade",
    model={"target": large, "stage1": "smolvlm-256m", "draft": eagle_head(large)},
    scenario=Scenario(images=1, image_px=(1024, 1024), prompt_tokens=96, output_tokens=48),
    hardware="npu-template",
    policy=Policy(
        acceptance={"ngram": 0.2},
        cascade=CascadeProfile(
            {"stage1": StageProfile(accuracy=0.55, auroc=0.75), "target": StageProfile(accuracy=0.75, auroc=0.75)},
            correlation=0.6,
        ),
    ),
    space=Space(
        {
            "target/draft": Choice("none", "ngram", "draft"),
            "target/weight_bits": Choice(3, 4, 8, per="block_third"),
            "stage1/weight_bits": Choice(4, 8, 16),
            "target/image_px": Choice(448, 672, 1024),
        },
        cascade=Choice("target", "stage1", "stage1+target"),
        threshold=Float(0.0, 1.0, step=0.0625),
        pe_rows=Choice(32, 64, 128),
        pe_cols=Choice(32, 64, 128),
        sram_bytes=Choice("1 MiB", "4 MiB", "8 MiB"),
        dram_bytes_per_s=Choice("34 GB/s", "68 GB/s", "102 GB/s"),
    ),
    objectives="min latency_s, min energy_j, max accuracy_ratio",
    constraints="area_mm2 <= 40, memory_bytes <= 8 GiB",
    trials=500,
)

if __name__ == "__main__":
    study.run()
    print(study.front())
