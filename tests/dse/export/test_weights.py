"""Formats of quantised weights: what a file says of each module, read as its tool would, is the design or is listed.

The readers here follow the tools' own rules of matching and know nothing of how the files were written. What they
find is compared with the arrays of the design.
"""

from __future__ import annotations

import json
import re
import shlex

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dse import catalogue
from dse.errors import NameUnknown, UserError
from dse.export.differences import drawn_together, spread
from dse.export.weights.gguf import tensors
from dse.export.weights.layers import layers
from dse.protocols import Exported

MODELS = ["llava-1.5-7b", "qwen2.5-vl-3b", "qwen2.5-coder-7b", "mixtral-8x7b", "deepseek-v2-lite"]
FORMATS = ["compressed-tensors", "llm-compressor", "gptqmodel", "autoround", "torchao", "llama.cpp", "modelopt"]


def only_file(exported: Exported) -> str:
    (content,) = exported.files.values()
    return content.decode()


# ------------------------------------------------------------------------------- readers: name -> (bits, activations)


def _group(group):
    acts = group.get("input_activations")
    return group["weights"]["num_bits"], acts["num_bits"] if acts else 16


def read_compressed_tensors(text):
    config = json.loads(text)["quantization_config"]
    return _by_groups(config["config_groups"], config["ignore"])


def read_recipe(text):
    modifier = yaml.safe_load(text)["default_stage"]["default_modifiers"]["GPTQModifier"]
    return _by_groups(modifier["config_groups"], modifier["ignore"])


def _by_groups(groups, ignore):
    def says(name):
        hits = [g for g in groups.values() if any(re.match(t.removeprefix("re:"), name) for t in g["targets"])]
        ignored = any(re.match(t.removeprefix("re:"), name) for t in ignore)
        assert len(hits) + ignored <= 1, f"{name} is said {len(hits)} times, and {ignored}"
        return _group(hits[0]) if hits else (16, 16)

    return says


def read_gptqmodel(text):
    config = json.loads(text)

    def says(name):
        for pattern, override in config["dynamic"].items():
            if re.match(pattern[2:], name):
                return (16, 16) if pattern.startswith("-:") else (override["bits"], 16)
        return config["bits"], 16

    return says


def read_autoround(text):
    config = json.loads(text)["quantization_config"]

    def says(name):
        found = [extra for pattern, extra in config["extra_config"].items() if re.search(pattern, name)]
        assert len(found) <= 1
        return (found[0]["bits"] if found else config["bits"]), 16

    return says


def read_torchao(text):
    entries = json.loads(text)["_data"]["fqn_to_config"]

    def says(name):
        for pattern, config in entries.items():
            if re.fullmatch(pattern.removeprefix("re:"), name):
                bits = int(config["_data"]["weight_dtype"]["_data"].removeprefix("int"))
                return bits, 8 if config["_type"] == "Int8DynamicActivationIntxWeightConfig" else 16
        return 16, 16

    return says


def read_modelopt(text):
    widths = {"W4A16_AWQ": (4, 16), "W4A8_AWQ": (4, 8), "NVFP4": (4, 4), "W8A16": (8, 16), "FP8": (8, 8)}
    quantization = json.loads(text)["quantization"]
    assert quantization["quant_algo"] == "MIXED_PRECISION"

    def says(name):
        for key in (name, re.sub(r"\.experts\..*", ".experts", name)):
            if key in quantization["quantized_layers"]:
                assert key not in quantization["exclude_modules"]
                return widths[quantization["quantized_layers"][key]["quant_algo"]]
        return 16, 16

    return says


READERS = {
    "compressed-tensors": read_compressed_tensors, "llm-compressor": read_recipe, "gptqmodel": read_gptqmodel,
    "autoround": read_autoround, "torchao": read_torchao, "modelopt": read_modelopt,
}  # fmt: skip
GGUF_BITS = {"Q2_K": 2, "Q3_K": 3, "Q4_K": 4, "Q4_1": 4, "Q6_K": 6, "Q8_0": 8, "F16": 16}


def llama_cpp_options(text):
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    assert words[0] == "llama-quantize"
    found = {}
    for option, value in zip(words[1:-3:2], words[2:-3:2], strict=True):
        found.setdefault(option, []).append(value)
    return found


# ------------------------------------------------------------------------------------------------ what a name may be


def names(path, model_type):
    """Return the names that transformers, older checkpoints and vLLM give a module; experts one by one."""
    found = {path}
    if path.startswith("model.language_model."):
        rest = path.removeprefix("model.language_model.")
        found |= (
            {f"language_model.model.{rest}", f"model.{rest}"}
            if "qwen" in model_type
            else {f"language_model.model.{rest}"}
        )
    if path.startswith("model.visual."):
        found.add(path.removeprefix("model."))
    if path.startswith("model.vision_tower."):
        found |= {path.replace("model.vision_tower.", "vision_tower.vision_model."), path.removeprefix("model.")}
    match = re.fullmatch(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)", path)
    if match:
        parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[match[2]]
        found |= {f"{match[1]}.{e}.{part}" for e in (0, 7) for part in parts}
        old = match[1].replace(".mlp.", ".block_sparse_moe.")
        found |= {f"{old}.{e}.{w}" for e in (0, 7) for w in (("w1", "w3") if len(parts) == 2 else ("w2",))}
    return found


def wanted(chosen):
    """Return path -> (bits, activations) of the modules that the design keeps, from its arrays."""
    schema, design = chosen.design.schema, chosen.design
    dropped = {
        (e.component, e.block)
        for e, v in zip(schema.fields["block_keep"].entries, design["block_keep"][0], strict=True)
        if not v
    }
    bits, acts = {}, {}
    for e, v in zip(schema.fields["weight_bits"].entries, design["weight_bits"][0].tolist(), strict=True):
        if (e.component, e.block) not in dropped:
            bits[e.path] = max(v, bits.get(e.path, 0))
    for e, v in zip(schema.fields["act_bits"].entries, design["act_bits"][0].tolist(), strict=True):
        acts[e.path] = v
    return {path: (b, acts.get(path, 16)) for path, b in bits.items()}


def listed(exported):
    """Return the modules that the sentences name; each sentence counts them, too."""
    found = set()
    for sentence in exported.not_expressible:
        match = re.search(r" \((\d+) modules?: (.*)\)$", sentence)
        if match:
            paths = spread(match[2])
            assert len(set(paths)) == int(match[1]), sentence
            found.update(paths)
    return found


# ------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", sorted(READERS))
@settings(max_examples=6)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_exported_is_the_design_or_is_listed(random_design, name, model, seed):
    chosen = random_design(model, seed)
    exported = catalogue.exporter(name).export(chosen)
    says, told = READERS[name](only_file(exported)), listed(exported)
    expected = wanted(chosen)
    assert told <= set(expected) | {m.path for m in chosen.problem.target.modules if m.tied_to}
    model_type = "" if name == "modelopt" else chosen.problem.target.model_type
    for path, (bits, acts) in expected.items():
        for variant in names(path, model_type) if name != "modelopt" else [path]:
            found = says(variant)
            assert found == (bits, acts) or path in told, f"{variant}: {found} for {(bits, acts)}"
            assert found[0] >= bits, f"{variant} gets fewer bits than the design asks for"
            if found[0] < 16:
                assert found[1] >= acts


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=6)
@given(seed=st.integers(0, 2**32 - 1))
def test_llama_cpp_types_are_the_design_or_are_listed(random_design, model, seed):
    chosen = random_design(model, seed)
    exported = catalogue.exporter("llama.cpp").export(chosen)
    options, told, expected = llama_cpp_options(only_file(exported)), listed(exported), wanted(chosen)
    types = [t.rpartition("=")[::2] for t in options["--tensor-type"]]
    kept = [x for x in layers(chosen, "target") if x.module.component == "decoder" and x.module.block >= 0]
    numbers = sorted({x.module.block for x in kept if not x.is_dropped})
    dropped = sorted({x.module.block for x in kept} - set(numbers))
    assert options.get("--prune-layers", [""]) == [",".join(map(str, dropped))]
    seen = 0
    for layer in kept:
        if layer.is_dropped:
            continue
        # Blocks are numbered anew after pruning.
        for tensor in tensors(layer):
            name = f"blk.{numbers.index(layer.module.block)}.{tensor}.weight"
            hits = {
                kind for kind, pattern in [(k, p) for p, k in [(a, b) for a, b in types]] if re.search(pattern, name)
            }
            assert len(hits) == 1, (name, hits)
            assert GGUF_BITS[hits.pop()] == expected[layer.path][0] or layer.path in told
            seen += 1
    assert seen > 6 * len(numbers)


@pytest.mark.parametrize("model", MODELS)
def test_no_pattern_catches_another_module(random_design, model):
    """Every name of every module of the model is said at most once, fused and vision twins included."""
    chosen = random_design(model, 5)
    groups = json.loads(only_file(catalogue.exporter("compressed-tensors").export(chosen)))["quantization_config"]
    targets = [t for g in groups["config_groups"].values() for t in g["targets"]] + groups["ignore"]
    every = [m.path for m in chosen.problem.target.modules]
    kinds = {m.path: m.kind.value for m in chosen.problem.target.modules}
    for path in every:
        hits = sum(re.match(t.removeprefix("re:"), path) is not None for t in targets)
        assert hits <= (kinds[path] in ("linear", "embedding")), path


def test_patterns_draw_all_blocks_together(plain_design):
    chosen = plain_design("qwen2.5-coder-7b", {"weight_bits": 4})
    config = json.loads(only_file(catalogue.exporter("compressed-tensors").export(chosen)))["quantization_config"]
    targets = [t for g in config["config_groups"].values() for t in g["targets"]]
    assert len(targets) == 2  # all blocks, and the head
    assert any(r"layers\.\d+\." in t for t in targets)


def test_what_vllm_fuses_agrees(random_design):
    """Query, key and value of a block, gate and up, and the experts of a layer get one scheme."""
    for model in MODELS:
        chosen = random_design(model, 11)
        for name in ("compressed-tensors", "gptqmodel", "autoround"):
            says = READERS[name](only_file(catalogue.exporter(name).export(chosen)))
            found = {}
            for path in wanted(chosen):
                key = re.sub(r"(q|k|v)_proj$", "qkv", re.sub(r"(gate|up)_proj$", "gate_up", path))
                key = re.sub(r"\.experts\..*", ".experts", key)
                found.setdefault(key, set()).add(says(path))
            assert all(len(schemes) == 1 for schemes in found.values())


def test_gptq_patterns_match_fused_names(plain_design):
    chosen = plain_design("qwen2.5-coder-7b", {"weight_bits": 4, "mlp.gate_proj/weight_bits": 8})
    says = read_gptqmodel(only_file(catalogue.exporter("gptqmodel").export(chosen)))
    assert says("model.layers.3.mlp.gate_up_proj") == (8, 16)
    assert says("model.layers.3.self_attn.qkv_proj") == (4, 16)


def test_missing_widths_are_rounded_up_and_said(plain_design):
    chosen = plain_design("qwen2.5-coder-7b", {"weight_bits": 6})
    for name in ("gptqmodel", "autoround", "modelopt"):
        exported = catalogue.exporter(name).export(chosen)
        assert READERS[name](only_file(exported))("model.layers.0.mlp.up_proj")[0] == 8
        assert any("no 6-bit weights: 8 bits" in s for s in exported.not_expressible)


def test_channel_groups_become_their_widest(plain_design):
    from dse.params import Choice
    from dse.space import Space

    base = plain_design("qwen2.5-coder-7b", {"weight_bits": 4})
    space = Space(weight_bits=Choice(4, 8, per="component.module.channel_half")).bind(base.problem)
    codes = space.reference_codes()
    column = [p.label for p in space.parameters].index("weight_bits[decoder/mlp.up_proj/channels 2 of 2]")
    codes[:] = 0
    codes[:, column] = 1
    chosen = type(base)("s", 0, base.problem, space.decode(codes), {}, base.metrics)
    exported = catalogue.exporter("compressed-tensors").export(chosen)
    assert read_compressed_tensors(only_file(exported))("model.layers.0.mlp.up_proj") == (8, 16)
    assert any("one width per module: 8 bits for 4 and 8 bits" in s for s in exported.not_expressible)


def test_nothing_quantised_has_nothing_to_say(plain_design):
    chosen = plain_design("qwen2.5-coder-7b", {"weight_bits": 16})
    for name in ("gptqmodel", "autoround"):
        with pytest.raises(UserError, match="no weight of this design is quantised"):
            catalogue.exporter(name).export(chosen)
    config = json.loads(only_file(catalogue.exporter("compressed-tensors").export(chosen)))
    assert config["quantization_config"]["config_groups"] == {}


def test_the_cache_is_said_where_it_is_one_width(plain_design):
    chosen = plain_design("qwen2.5-coder-7b", {"weight_bits": 4, "kv_bits": 8})
    exported = catalogue.exporter("compressed-tensors").export(chosen)
    scheme = json.loads(only_file(exported))["quantization_config"]["kv_cache_scheme"]
    assert (scheme["num_bits"], scheme["type"]) == (8, "float")
    mixed = plain_design("qwen2.5-coder-7b", {"weight_bits": 4, "k_bits": 8, "v_bits": 4})
    exported = catalogue.exporter("compressed-tensors").export(mixed)
    assert any("one width for the whole cache: 8 bits" in s for s in exported.not_expressible)


def test_another_role_is_another_file(plain_design):
    chosen = plain_design("qwen2.5-coder-7b", {"weight_bits": 4})
    with pytest.raises(NameUnknown, match="drafft"):
        catalogue.exporter("compressed-tensors:drafft").export(chosen)


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["mlp.up", "mlp.experts.down", "attn"])), min_size=1,
                unique=True), st.booleans())  # fmt: skip
def test_paths_drawn_together_can_be_read_back(pairs, with_single):
    paths = [f"model.layers.{n}.{leaf}" for n, leaf in pairs] + ["lm_head", "visual.mlp.0"] * with_single
    assert sorted(spread(drawn_together(paths))) == sorted(paths)
