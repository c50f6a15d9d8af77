"""Formats without a light library, against schemas of our own, and the schemas against files that others published.

A schema that took anything would show nothing: each refuses mistakes that its tool would pass over in silence, and
takes what tools and published checkpoints have.
"""

from __future__ import annotations

import copy
import json
import re
from importlib import resources

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dse import catalogue
from dse.errors import UserError
from dse.export.vllm import Vllm
from dse.metrics import MetricBatch
from dse.protocols import Chosen
from dse.testing.samples import small_policy_problem, small_problem, small_space
from dse.whatif import evaluate_design

MODELS = ["llava-1.5-7b", "qwen2.5-vl-3b", "qwen2.5-coder-7b", "mixtral-8x7b", "deepseek-v2-lite"]
FORMATS = ["gptqmodel", "autoround", "modelopt", "block-configs", "per-layer-config", "llm-compressor", "vllm"]
FOLDER = resources.files("dse.export") / "schemas"


def validator(name):
    schema = json.loads((FOLDER / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


SPACES: dict = {}
VALIDATORS = {name: validator(name) for name in FORMATS}


def read(exported):
    (name,) = [n for n in exported.files if not n.endswith(".sh")]
    text = exported.files[name].decode()
    return yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)


def patterns(name, document):
    """Every regular expression of a file."""
    if name == "gptqmodel":
        return [key[2:] for key in document["dynamic"]]
    if name == "autoround":
        return list(document["quantization_config"]["extra_config"])
    if name == "llm-compressor":
        modifier = document["default_stage"]["default_modifiers"]["GPTQModifier"]
        found = [t for group in modifier["config_groups"].values() for t in group["targets"]] + modifier["ignore"]
        return [t.removeprefix("re:") for t in found]
    return []


def check(name, exported):
    document = read(exported)
    VALIDATORS[name].validate(document)
    for pattern in patterns(name, document):
        re.compile(pattern)
    if name == "vllm":
        for key, schema in VALIDATORS["vllm"].schema["$defs"].items():
            if key in document:
                jsonschema.validate(json.loads(document[key]), schema)
    return document


def test_every_schema_is_used_and_named():
    assert {p.name.removesuffix(".json") for p in FOLDER.iterdir()} == {*FORMATS, "design-1", "cascade-router-1"}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_designs_of_real_models(random_design, name, model, seed):
    check(name, catalogue.exporter(name).export(random_design(model, seed)))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 100_000), st.sampled_from(["text", "vision-language"]), st.sampled_from(FORMATS))
def test_random_designs_of_small_models(seed, kind, name):
    space = SPACES.setdefault(kind, small_space(small_problem(kind, "h100-sxm-80gb")))
    codes = space.sample(1, np.random.default_rng(seed))
    chosen = Chosen(
        "s", seed, space.schema.problem, space.decode(codes), space.values(codes)[0], MetricBatch({}, 1)
    )  # fmt: skip
    try:
        exported = catalogue.exporter(name).export(chosen)
    except UserError as error:
        assert "nothing to write" in str(error)  # noqa: PT017
        return
    check(name, exported)


@pytest.mark.parametrize("role", ["target", "stage1"])
@pytest.mark.parametrize("drafter", ["none", "ngram", "draft"])
def test_vllm_with_a_policy(role, drafter):
    values = {"draft": drafter, "draft_tokens": 3, "cascade": "stage1+target", "prefill_chunk": 16}
    chosen, _ = evaluate_design(small_policy_problem("h100-sxm-80gb"), values, ("policy",))
    document = check("vllm", Vllm(role).export(chosen))
    assert ("speculative-config" in document) == (drafter != "none")


# ------------------------------------------------------------------------------------------- files that others wrote

PUBLISHED = {
    # huggingface.co/ModelCloud/TinyLlama-1.1B-Chat-v1.0-GPTQ-4bits-dynamic-cfg, quantize_config.json
    "gptqmodel": {
        "bits": 4, "group_size": 128, "desc_act": True, "sym": True, "lm_head": False, "quant_method": "gptq",
        "checkpoint_format": "gptq", "meta": {"quantizer": ["gptqmodel:1.5.1-dev"]},
        "dynamic": {"-:model\\.layers\\.([2-9]\\d*|[1-9]\\d+)\\..*": {},
                    ".*\\.1\\..*": {"bits": 8, "group_size": 32, "desc_act": False}},
    },
    # TensorRT-LLM, docs on quantised checkpoints: layers of a MIXED_PRECISION model
    "modelopt": {
        "producer": {"name": "modelopt", "version": "0.23.0"},
        "quantization": {
            "quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8",
            "quantized_layers": {
                "transformer.layers.0.attention.qkv": {"quant_algo": "FP8"},
                "transformer.layers.0.mlp.fc": {
                    "quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": False, "pre_quant_scale": True},
            },
        },
    },
    # llm-compressor's reference of GPTQModifier (0.9), the same fields
    "llm-compressor": {
        "test_stage": {"obcq_modifiers": {"GPTQModifier": {
            "block_size": 128, "dampening_frac": 0.001, "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128,
                "dynamic": False}}}}}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_files_are_taken(name):
    VALIDATORS[name].validate(PUBLISHED[name])


def quantization(document):
    return document["quantization"]["quantized_layers"]


MISTAKES = {
    "gptqmodel": [
        lambda d: d.update(bits=5),
        lambda d: d.update(group_size=0),
        lambda d: d["dynamic"].update({"-:x": {"bits": 4}}),  # says both: leave alone, and 4 bits
        lambda d: d["dynamic"].update({"+:x": {}}),  # overrides nothing
        lambda d: d["dynamic"].update({"+:x": {"bit": 4}}),
        lambda d: d["dynamic"].update({"+:x": {"bits": "4"}}),
        lambda d: d.pop("quant_method"),
    ],
    "autoround": [
        lambda d: d["quantization_config"].update(bits=6),
        lambda d: d["quantization_config"].update(quant_method="autoround"),
        lambda d: d["quantization_config"]["extra_config"].update(x={"bits": 4}),  # whose groups?
        lambda d: d["quantization_config"]["extra_config"].update(x={"bits": 16, "data_type": "int"}),
        lambda d: d["quantization_config"]["extra_config"].update(x={"bits": 0, "group_size": 1, "sym": True}),
    ],
    "modelopt": [
        lambda d: d["producer"].update(name="mfm-dse"),
        lambda d: d["quantization"].update(quant_algo="FP8"),
        lambda d: quantization(d).update(x={"quant_algo": "INT4"}),
        lambda d: quantization(d).update(x={"quant_algo": "NVFP4", "group_size": 128}),
        lambda d: quantization(d).update(x={"quant_algo": "FP8", "group_size": 128}),
        lambda d: quantization(d).update({"x y": {"quant_algo": "FP8"}}),
        lambda d: d["quantization"].update(kv_cache_quant_algo="INT8"),
    ],
    "block-configs": [
        lambda d: d.update(block_configs=[]),
        lambda d: d["block_configs"][0]["ffn"].update(ffn_mult=None),
        lambda d: d["block_configs"][0]["ffn"].update(no_op=True),  # left out, with a width
        lambda d: d["block_configs"][0]["attention"].update(n_heads_in_group=1.5),
        lambda d: d["block_configs"][0].pop("attention"),
    ],
    "per-layer-config": [
        lambda d: d["per_layer_config"].update({"-1": {"intermediate_size": 1}}),
        lambda d: d["per_layer_config"].update({"0": {"intermediate_size": 0}}),
        lambda d: d["per_layer_config"].update({"0": {"hidden_size": 8}}),
        lambda d: d.update(num_hidden_layers=0),
        lambda d: d.update(text_config={"num_hidden_layers": 1, "per_layer_config": {}}),
    ],
    "llm-compressor": [
        lambda d: d.update(default={}),
        lambda d: groups(d).clear(),
        lambda d: groups(d)["group_0"].update(targets=[]),
        lambda d: groups(d)["group_0"]["weights"].update(num_bits=0),  # compressed-tensors takes it
        lambda d: groups(d)["group_0"]["weights"].update(strategy="channel", group_size=64),
        lambda d: groups(d)["group_0"].update(weight={}),
    ],
    "vllm": [
        lambda d: d.update({"tensor_parallel_size": 2}),
        lambda d: d.update({"tensor-parallel-size": 0}),
        lambda d: d.update({"kv-cache-dtype": "int8"}),
        lambda d: d.update({"speculative-config": {"method": "ngram"}}),
        lambda d: d.pop("model"),
    ],
}


def groups(document):
    return document["default_stage"]["default_modifiers"]["GPTQModifier"]["config_groups"]


@pytest.mark.parametrize(("name", "number"), [(n, i) for n, found in MISTAKES.items() for i in range(len(found))])
def test_mistakes_are_refused(plain_design, name, number):
    values = {"weight_bits": 4} if name not in ("block-configs", "per-layer-config") else {"ffn_keep": 0.5}
    document = check(name, catalogue.exporter(name).export(plain_design("qwen2.5-coder-7b", values)))
    broken = copy.deepcopy(document)
    MISTAKES[name][number](broken)
    assert broken != document
    assert not VALIDATORS[name].is_valid(broken)


def test_speculative_configs_name_a_model_or_look_up():
    schema = VALIDATORS["vllm"].schema["$defs"]["speculative-config"]
    found = jsonschema.Draft202012Validator(schema)
    assert found.is_valid({"method": "ngram", "num_speculative_tokens": 3})
    assert not found.is_valid({"method": "draft_model", "num_speculative_tokens": 3})
    assert not found.is_valid({"method": "ngram", "model": "x"})
    assert not found.is_valid({"method": "guess", "model": "x"})
