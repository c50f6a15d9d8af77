"""Small problems to test plug-ins on: two-block models that any cost model evaluates in microseconds."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from dse.acceptance import Acceptance
from dse.cascades import CascadeProfile, StageProfile
from dse.hardware import read_hardware
from dse.model import Model
from dse.params import Choice, Float
from dse.policy import Policy
from dse.problem import TARGET, Problem
from dse.profile import (
    Configuration,
    Figures,
    Measurement,
    ProfileHeader,
    QualityProfile,
    TaskMetric,
    profiled_modules,
)
from dse.scenario import Scenario
from dse.space import BoundSpace, Space

_DECODER: Final[dict[str, Any]] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}

_VISION_LANGUAGE: Final[dict[str, Any]] = {
    **_DECODER,
    "model_type": "qwen2_5_vl",
    "vision_config": {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    },
}


def small_model(kind: str = "vision-language") -> Model:
    """Return a model of three blocks: "vision-language" (Qwen2.5-VL with windows) or "text" (grouped queries)."""
    config = _VISION_LANGUAGE if kind == "vision-language" else _DECODER
    return Model.from_config(config, name=f"small-{kind}")


def small_problem(kind: str = "vision-language", hardware: str = "npu-template", **scenario: Any) -> Problem:
    """Return a problem with a small model.

    Args:
        kind: see :func:`small_model`.
        hardware: catalogue name.
        scenario: fields of the scenario that differ from one 140 x 84 image, 7 prompt and 5 output tokens.
    """
    images = {"images": 1, "image_px": (140, 84)} if kind == "vision-language" else {}
    request = Scenario(**{"prompt_tokens": 7, "output_tokens": 5, **images, **scenario})
    return Problem({TARGET: small_model(kind)}, request, read_hardware(hardware))


def small_policy_problem(hardware: str = "npu-template") -> Problem:
    """Return a problem with a stage before the target, a drafter for both, and a profile of their answers."""
    small = {**_DECODER, "num_hidden_layers": 1}
    models = {
        TARGET: small_model("text"),
        "stage1": Model.from_config({**_DECODER, "num_hidden_layers": 2}, name="small-stage"),
        "draft": Model.from_config(small, name="small-draft"),
    }
    profile = CascadeProfile({"stage1": StageProfile(0.6, 0.8, 0.9, 0.3), TARGET: StageProfile(0.8, 0.7)}, 0.5, 3, 2)
    policy = Policy({"draft": Acceptance.of_rate(0.7, 0.6, 0.8)}, profile, test_tokens=5)
    return Problem(models, Scenario(prompt_tokens=20, output_tokens=12), read_hardware(hardware), policy=policy)


def small_space(problem: Problem | None = None, **changed: Any) -> BoundSpace:
    """Return a bound space that varies every kind of knob that the problem has.

    Args:
        problem: the vision-language one on the accelerator template by default.
        changed: domains to put in place of the usual ones; None leaves a knob out.
    """
    problem = problem or small_problem()
    domains: dict[str, Any] = {
        "weight_bits": Choice(2, 3, 4, 6, 8, 16, per="block.module"),
        "act_bits": Choice(4, 8, 16, per="block_half.kind"),
        "k_bits": Choice(2, 4, 8, 16, per="block"),
        "v_bits": Choice(2, 4, 8, 16, per="block"),
        "head_keep": Float(0.25, 1.0, per="block"),
        "ffn_keep": Float(0.25, 1.0, step=0.125, per="block"),
        "block_keep": Choice(0.5, 1.0, per="component"),
        "image_px": Choice(56, 112, 140),
        "token_stride": Choice(1, 2),
        "visual_token_keep": Float(0.25, 1.0),
        "batch": Choice(1, 2, 5),
        "pe_rows": Choice(4, 7, 16, 64),
        "pe_cols": Choice(4, 9, 16, 64),
        "n_cores": Choice(1, 2, 3),
        "dataflow": Choice("ws", "os", "is"),
        "sram_bytes": Choice("16 KiB", "64 KiB", "1 MiB"),
        "dram_bytes_per_s": Choice("1 GB/s", "10 GB/s", "100 GB/s"),
        "freq_hz": Choice("500 MHz", "1 GHz"),
        "vector_lanes": Choice(1, 16, 128),
        "mac_array": Choice("fixed", "scalable"),
        "tile_m": Choice(0, 4, 16, 50, 128),
        "tile_n": Choice(0, 8, 32, 60),
        "tile_k": Choice(0, 8, 32, 60),
        "draft": Choice("none", "ngram", "draft"),
        "draft_tokens": Choice(0, 1, 4),
        "cascade": Choice("target", "stage1", "stage1+target"),
        "threshold": Float(0.0, 1.0, step=0.125),
        "self_tests": Choice(0, 1, 3),
        "solutions": Choice(1, 2),
        "prefill_chunk": Choice(0, 4, 7),
        "loop_order": Choice("auto", "mnk", "mkn", "nmk", "nkm", "kmn", "knm"),
    } | changed
    known = _fields(problem)
    return Space({n: d for n, d in domains.items() if d is not None and n in known}).bind(problem)


def _fields(problem: Problem) -> set[str]:
    from dse.schema import Schema

    return set(Schema(problem).fields)


def small_profile(model: Model, seed: int = 0, *, with_configurations: bool = True) -> QualityProfile:
    """Return a made-up quality profile of a model, for tests: losses that are sums of seeded sensitivities.

    Args:
        model: the model.
        seed: of the sensitivities.
        with_configurations: whether 20 real configurations are in it, 10 % off their sums.
    """
    rng = np.random.default_rng(seed)
    modules = profiled_modules(model)
    provenance = {"software": "made up", "data": "none", "quantiser": {"granularity": "group", "group_size": 128}}
    metric = TaskMetric("exact_match", 0.9, base_se=0.01, is_binary=True)
    header = ProfileHeader(
        model.name, "measured", modules, 1000, seed, provenance, metric, math.log(model.vocab_size)
    )  # fmt: skip
    owned = [m.path for m in modules if not m.tied_to]
    blocks = list(dict.fromkeys((m.component, m.block) for m in modules if m.block >= 0))
    at_2 = dict(zip(owned, rng.lognormal(-4.5, 1.0, len(owned)), strict=True))
    kept = {f"{c}/{b}": float(x) for (c, b), x in zip(blocks, rng.lognormal(-2.0, 0.7, len(blocks)), strict=True)}

    def loss(knob: str, group: str, value: float) -> float:
        return at_2[group] * 4.5 ** (2 - value) if knob == "weight_bits" else kept[group] * (1 - value) ** 1.7

    def figures(kl: float) -> Figures:
        right = 0.9 * math.exp(-0.5 * kl)
        return Figures(kl, 0.1 * kl, right, math.sqrt(right * (1 - right) / 1000), 1000)

    rows = [Measurement(g, "weight_bits", b, figures(loss("weight_bits", g, b))) for g in owned for b in (2, 3, 4, 8)]
    rows += [Measurement(g, "ffn_keep", k, figures(loss("ffn_keep", g, k))) for g in kept for k in (0.5, 0.75)]
    found = []
    for _ in range(20 if with_configurations else 0):
        bits = {g: int(rng.choice([2, 3, 4, 8, 16])) for g in owned}
        keep = {g: float(rng.choice([0.5, 0.75, 1.0])) for g in kept}
        total = sum(loss("weight_bits", g, b) for g, b in bits.items() if b < 16)
        total += sum(loss("ffn_keep", g, k) for g, k in keep.items())
        found.append(
            Configuration({"weight_bits": bits, "ffn_keep": keep}, figures(total * float(rng.lognormal(0, 0.1))))
        )
    return QualityProfile(header, tuple(rows), tuple(found), "made-up profile")
