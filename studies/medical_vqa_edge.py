"""Medical visual question answering with a 3B model on an edge NPU that is being designed for it.

A radiograph of 1024 x 1024 pixels, a question, a short answer. Searched together: bit maps along the hierarchy, cache
bits, pruning, image size and token stride of the model; array, memory, bandwidth and tiles of the chip.
"""

from dse import Choice, Float, Scenario, Space, Study

study = Study(
    "medical-vqa-edge",
    model="qwen2.5-vl-3b",
    scenario=Scenario(images=1, image_px=(1024, 1024), prompt_tokens=96, output_tokens=48),
    hardware="npu-template",
    space=Space(
        {"lm_head/act_bits": Choice(8, 16)},
        weight_bits=Choice(3, 4, 6, 8, per="block_third.kind"),
        act_bits=Choice(8, 16, per="component"),
        kv_bits=Choice(4, 8, 16, per="component"),
        head_keep=Float(0.75, 1.0, step=0.125, per="block_third"),
        ffn_keep=Float(0.5, 1.0, step=0.125, per="block_third"),
        image_px=Choice(448, 672, 896, 1024),
        token_stride=Choice(1, 2),
        pe_rows=Choice(16, 32, 64, 128),
        pe_cols=Choice(16, 32, 64, 128),
        dataflow=Choice("ws", "os", "is"),
        sram_bytes=Choice("512 KiB", "1 MiB", "2 MiB", "4 MiB", "8 MiB"),
        dram_bytes_per_s=Choice("34 GB/s", "51 GB/s", "68 GB/s", "102 GB/s"),
        vector_lanes=Choice(32, 64, 128, 256),
        tile_m=Choice(32, 64, 128, 256),
        tile_n=Choice(64, 128, 256, 512),
        tile_k=Choice(64, 128, 256, 512),
        loop_order=Choice("mnk", "nmk", "mkn", "nkm"),
    ),
    objectives="min latency_s, min energy_j, min quality_loss",
    constraints="area_mm2 <= 40, memory_bytes <= 4 GiB, quality_loss <= 1",
    trials=2_000,
)

if __name__ == "__main__":
    study.run()
    print(study.front())
