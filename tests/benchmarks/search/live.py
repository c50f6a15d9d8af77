"""Spaces on the cost models of today, to tune agents on that read breakdowns; never the frozen ones.

Other models, other chips, other requests and other knobs than those of the frozen spaces (see freeze.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from dse import Choice, Float, Scenario, Space
from dse.evaluation import Evaluation
from dse.evidence import Explain
from dse.hardware import read_hardware
from dse.metrics import MetricBatch
from dse.model import read_model
from dse.objectives import Goal
from dse.problem import Problem
from dse.space import BoundSpace


@dataclass(frozen=True)
class Live:
    """A space of a real problem; see :class:`tests.benchmarks.search.spaces.Frozen`."""

    name: str
    space: BoundSpace
    goal: Goal
    evaluation: Evaluation

    def columns(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of rows of codes."""
        parts = [self.evaluation.evaluate(codes[i : i + 4096]) for i in range(0, len(codes), 4096)]
        joined = [MetricBatch.join(p).values for p in parts]
        return {name: np.concatenate([p[name] for p in joined]) for name in joined[0]}

    @property
    def told(self) -> tuple[Explain | None, Problem | None]:
        """What an agent may ask."""
        return self.evaluation.explain, self.space.schema.problem


def _of(name: str, model: str, hardware: str, scenario: Scenario, space: Space, goal: Goal) -> Live:
    bound = space.bind(Problem({"target": read_model(model)}, scenario, read_hardware(hardware)))
    return Live(name, bound, goal, Evaluation(bound, ("analytical", "prior")))


@cache
def live(name: str) -> Live:
    """Return a space by name, one of :data:`LIVE`."""
    page = Scenario(images=1, image_px=(1280, 960), prompt_tokens=200, output_tokens=120)
    if name == "live-page":
        return _of(
            name, "smolvlm-2.2b", "npu-template", page,
            Space(
                weight_bits=Choice(4, 6, 8, per="component"), kv_bits=Choice(4, 8, 16, per="component"),
                head_keep=Float(0.6, 1.0, step=0.1, per="component"), image_px=Choice(512, 768, 1280),
                n_cores=Choice(1, 2, 4), pe_rows=Choice(16, 32, 64), freq_hz=Choice("500 MHz", "800 MHz", "1 GHz"),
                sram_bytes=Choice("512 KiB", "2 MiB", "8 MiB"),
                dram_bytes_per_s=Choice("25 GB/s", "51 GB/s", "102 GB/s"), dataflow=Choice("ws", "os"),
            ),
            Goal.parse("min latency_s, min energy_j, min quality_loss", "area_mm2 <= 20, memory_bytes <= 2.2 GiB"),
        )  # fmt: skip
    if name == "live-fleet":
        return _of(
            name, "llava-1.5-7b", "l40s", Scenario(images=1, image_px=(640, 480), prompt_tokens=300, output_tokens=200),
            Space(
                device=Choice("l4", "l40s", "a100-80gb-sxm", "rtx-4090"), batch=Choice(1, 2, 4, 8, 32),
                weight_bits=Choice(4, 8, 16, per="block_half"), kv_bits=Choice(4, 8, 16),
                ffn_keep=Float(0.5, 1.0, step=0.125, per="block_half"), head_keep=Float(0.5, 1.0, step=0.25),
                visual_token_keep=Float(0.25, 1.0, step=0.25),
            ),
            Goal.parse("min latency_s, min energy_j, min quality_loss", "memory_bytes <= 12 GiB"),
        )  # fmt: skip
    if name == "live-text":
        return _of(
            name, "qwen2.5-0.5b", "npu-template", Scenario(prompt_tokens=128, output_tokens=256),
            Space(
                weight_bits=Choice(3, 4, 6, 8, per="block_third"), kv_bits=Choice(4, 8, 16, per="block_half"),
                ffn_keep=Float(0.5, 1.0, step=0.125, per="block_half"), pe_rows=Choice(8, 16, 32, 64),
                pe_cols=Choice(8, 16, 32, 64), vector_lanes=Choice(16, 64, 256),
                sram_bytes=Choice("256 KiB", "1 MiB", "4 MiB"),
                dram_bytes_per_s=Choice("12 GB/s", "25 GB/s", "51 GB/s"), loop_order=Choice("auto", "mnk", "nmk"),
            ),
            Goal.parse("min latency_s, min energy_j, min area_mm2", "quality_loss <= 0.4"),
        )  # fmt: skip
    assert name == "live-large"
    return _of(
        name, "paligemma-3b-224", "npu-template",
        Scenario(images=1, image_px=(640, 640), prompt_tokens=40, output_tokens=90),
        Space(
            weight_bits=Choice(3, 4, 6, 8, per="block_third.kind"),
            kv_bits=Choice(4, 8, 16, per="block_third"), ffn_keep=Float(0.5, 1.0, step=0.125, per="block_third"),
            n_cores=Choice(1, 2, 4), pe_rows=Choice(16, 32, 64), pe_cols=Choice(16, 32, 64),
            sram_bytes=Choice("1 MiB", "2 MiB", "4 MiB"), dram_bytes_per_s=Choice("34 GB/s", "68 GB/s", "136 GB/s"),
            freq_hz=Choice("600 MHz", "1 GHz"),
        ),
        Goal.parse("min latency_s, min energy_j, min quality_loss", "area_mm2 <= 22, memory_bytes <= 2.5 GiB"),
    )  # fmt: skip


LIVE = ("live-page", "live-fleet", "live-text", "live-large")
