"""Every cost model of the catalogue passes the kit, on small problems of every kind and on real models."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dse import catalogue
from dse.errors import HardwareError, UserError
from dse.hardware import Device, read_hardware
from dse.model import read_model
from dse.params import Choice, Float
from dse.problem import Problem
from dse.scenario import Scenario
from dse.space import Space
from dse.testing.conformance import check_cost_model
from dse.testing.samples import small_problem, small_profile, small_space

# "measured" runs a real model: tests/costmodels/measured runs the kit over it.
MODELS = sorted(set(catalogue.listing("cost model")) - {"measured"})


def check(name, space, n_rows):
    """Run the kit; the simulator refuses devices, which have no array, and the surrogate models without a profile."""
    if name == "surrogate":
        with pytest.raises(UserError, match="needs a quality profile"):
            catalogue.cost_model(name).prepare(space.schema.problem)
        problem = space.schema.problem
        space = space.space.bind(replace(problem, quality={"target": small_profile(problem.target)}))
    if name == "simulated" and isinstance(space.schema.problem.hardware, Device):
        with pytest.raises(HardwareError, match="is a device"):
            catalogue.cost_model(name).prepare(space.schema.problem)
        return
    few = min(n_rows, 12) if name in ("serving", "queueing") else n_rows  # tables of steps per row
    check_cost_model(catalogue.cost_model(name), space, n_rows=few)


SMALL = [
    ("vision-language", "npu-template", {}),
    ("vision-language", "b200-sxm-180gb", {}),
    ("vision-language", "npu-template", {"images": 0}),
    ("text", "npu-template", {"batch": 4}),
    ("text", "jetson-agx-orin-64gb", {"output_tokens": 1}),
]

# One model of each kind of block: windows, latent attention, experts, local layers, states, encoder-decoder.
REAL = [
    "qwen2.5-vl-3b", "llava-1.5-7b", "deepseek-v2-lite", "mixtral-8x7b", "gemma-3-4b", "llama-3.2-11b-vision",
    "whisper-large-v3", "qwen2-audio-7b", "llama-4-scout-17b-16e", "internvl3-78b",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("kind", "hardware", "scenario"), SMALL)
def test_on_small_problems(name, kind, hardware, scenario):
    check(name, small_space(small_problem(kind, hardware, **scenario)), n_rows=60)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("model", REAL)
@pytest.mark.parametrize("hardware", ["npu-template", "h200-sxm-141gb"])
def test_on_real_models(name, model, hardware):
    read = read_model(model)
    scenario = Scenario(
        prompt_tokens=33,
        output_tokens=9,
        images=int(read.image_rule is not None),
        image_px=(500, 400),
        audio_s=7.5 if read.audio_rule is not None else 0.0,
    )
    roomy = {**read_hardware(hardware).to_json(), "memory_bytes": "2 TiB"}  # whatever the model: what fits is tested
    problem = Problem({"target": read}, scenario, read_hardware(roomy))
    space = Space(
        weight_bits=Choice(2, 3, 4, 8, 16, per="block.module"),
        act_bits=Choice(8, 16, per="component"),
        kv_bits=Choice(4, 8, 16, per="block"),
        head_keep=Float(0.5, 1.0, per="block"),
        ffn_keep=Float(0.5, 1.0, per="block"),
        block_keep=Choice(0.75, 1.0, per="component"),
    ).bind(problem)
    check(name, space, n_rows=4)


@pytest.mark.parametrize("model", REAL)
def test_fused_designs_of_real_models(model):
    """Every named form on drawn accelerators: rows, laws and breakdown."""
    read = read_model(model)
    scenario = Scenario(
        prompt_tokens=33,
        output_tokens=9,
        images=int(read.image_rule is not None),
        image_px=(500, 400),
        audio_s=7.5 if read.audio_rule is not None else 0.0,
    )
    roomy = {**read_hardware("npu-template").to_json(), "memory_bytes": "2 TiB"}
    problem = Problem({"target": read}, scenario, read_hardware(roomy))
    space = Space(
        weight_bits=Choice(3, 8, per="component"),
        kv_bits=Choice(4, 16, per="block"),
        head_keep=Float(0.5, 1.0, per="block"),
        block_keep=Choice(0.75, 1.0, per="component"),
        fuse_attention=Choice(False, True, per="component"),
        fuse_mlp=Choice(False, True, per="component"),
        fuse_norm=Choice(False, True, per="component"),
        sram_bytes=Choice("16 MiB", "64 MiB"),
        dataflow=Choice("ws", "os", "is"),
    ).bind(problem)
    check_cost_model(catalogue.cost_model("analytical"), space, n_rows=4)
