"""Exports loaded by the libraries that they are for. Needs the ``torch`` extra.

compressed-tensors and torchao lay the file over the model that transformers builds from the same config (on no
memory), and each layer's width is read off the module. gguf's own table of names says whether our tensor names are
its. AutoRound's and transformers' configuration classes read theirs. GPTQModel, ModelOpt, llm-compressor and vLLM
have no light package: their files are read by rules in test_weights.py and checked against schemas in
test_schemas.py.
"""

from __future__ import annotations

import json
import re
import warnings

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
compressed_tensors = pytest.importorskip("compressed_tensors")
gguf = pytest.importorskip("gguf")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torchao = pytest.importorskip("torchao")
    from torchao.core.config import config_from_dict
    from torchao.quantization import FqnToConfig, fqn_matches_fqn_config

from compressed_tensors.compressors.format import infer_module_format  # noqa: E402
from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config  # noqa: E402

from dse import catalogue  # noqa: E402
from dse.export.differences import spread  # noqa: E402
from dse.export.structure import ffn_mult, intermediate_size  # noqa: E402
from dse.export.weights.gguf import BITS_PER_WEIGHT, tensors  # noqa: E402
from dse.export.weights.layers import kept, layers  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

MODELS = ["llava-1.5-7b", "qwen2.5-vl-3b", "qwen2.5-coder-7b", "mixtral-8x7b"]


def built(model):
    """Return the model that transformers builds from the config, without memory."""
    config = transformers.AutoConfig.for_model(**dict(model.config))
    mappings = (
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    )
    made = next(m[type(config)] for m in mappings if type(config) in m)
    with torch.device("meta"):
        return made(config)


def document(exported, name=None):
    return json.loads(exported.files[name or next(iter(exported.files))])


def told(exported):
    found = set()
    for sentence in exported.not_expressible:
        if " module" in sentence and sentence.endswith(")"):
            found.update(spread(sentence.rpartition(": ")[2].removesuffix(")")))
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seed", [1, 2])
def test_compressed_tensors_gives_each_layer_the_designs_width(random_design, model, seed):
    chosen = random_design(model, seed)
    exported = catalogue.exporter("compressed-tensors").export(chosen)
    config = QuantizationConfig.model_validate(document(exported)["quantization_config"])
    config.kv_cache_scheme = None  # would be put on attention modules, which have no weight
    # "compressed" would compress weights, of which there are none here.
    config.quantization_status = QuantizationStatus.INITIALIZED
    network = built(chosen.problem.target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apply_quantization_config(network, config)
    modules, listed, n = dict(network.named_modules()), told(exported), 0
    for layer in layers(chosen, "target"):
        if layer.is_dropped or layer.is_expert:
            continue
        scheme = getattr(modules[layer.path], "quantization_scheme", None) if layer.path in modules else None
        bits = scheme.weights.num_bits if scheme else 16
        acts = scheme.input_activations.num_bits if scheme and scheme.input_activations else 16
        assert (bits, acts) == (layer.width, layer.act_bits) or layer.path in listed
        if scheme:
            n += 1
            form = infer_module_format(torch.nn.Linear, scheme.model_copy(update={"format": None}))
            assert form.value == str(getattr(scheme.format, "value", scheme.format))
            assert scheme.weights.group_size in (None, chosen.problem.weight_format.group_size)
    assert n > 50


def test_compressed_tensors_matches_each_expert(random_design):
    """transformers keeps experts in one tensor; their names are matched by the library's own rule."""
    from compressed_tensors.utils.match import match_name

    chosen = random_design("mixtral-8x7b", 3)
    groups = document(catalogue.exporter("compressed-tensors").export(chosen))["quantization_config"]["config_groups"]
    experts = [x for x in layers(chosen, "target") if x.is_expert and not x.is_dropped]
    for layer in experts:
        above = layer.path.rpartition(".")[0]
        for name in (f"{above}.3.down_proj", f"{above}.7.up_proj", above.replace("mlp", "block_sparse_moe") + ".0.w1"):
            hits = [g for g in groups.values() if any(match_name(name, t) for t in g["targets"])]
            assert len(hits) == (1 if max(e.width for e in experts if e.module.block == layer.module.block) < 16 else 0)


@pytest.mark.parametrize("model", MODELS)
def test_torchao_reads_its_configuration(random_design, model):
    chosen = random_design(model, 4)
    exported = catalogue.exporter("torchao").export(chosen)
    config = config_from_dict(document(exported))
    assert isinstance(config, FqnToConfig)
    listed = told(exported)
    for layer in layers(chosen, "target"):
        if layer.is_dropped:
            continue
        hit = fqn_matches_fqn_config(layer.path, config)
        key = next((k for k in config.fqn_to_config if re.fullmatch(k.removeprefix("re:"), layer.path)), None)
        assert hit == (key is not None)
        bits, acts = 16, 16
        if key:
            one = config.fqn_to_config[key]
            bits = int(str(one.weight_dtype).rpartition("int")[2])
            acts = 8 if type(one).__name__ == "Int8DynamicActivationIntxWeightConfig" else 16
        assert (bits, acts) == (layer.width, layer.act_bits) or layer.path in listed


def test_torchao_quantises_a_small_model_so():
    """A real model of three blocks, quantised with the file: each weight has the design's integer type."""
    from dse.testing.samples import small_problem
    from dse.whatif import evaluate_design

    made, _ = evaluate_design(small_problem("text"), {"mlp.up_proj/weight_bits": 3, "self_attn.q_proj/weight_bits": 8})
    exported = catalogue.exporter("torchao").export(made)
    from torchao.quantization import quantize_

    config = transformers.AutoConfig.for_model(**dict(made.problem.target.config))
    network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_(network, config_from_dict(document(exported)), filter_fn=None)
    modules = dict(network.named_modules())
    for layer in layers(made, "target"):
        weight = modules[layer.path].weight
        found = int(str(weight.target_dtype).rpartition("int")[2]) if hasattr(weight, "target_dtype") else 16
        assert found == layer.width


@pytest.mark.parametrize(("model", "arch"), [
    ("llava-1.5-7b", "LLAMA"), ("qwen2.5-vl-3b", "QWEN2VL"), ("qwen2.5-coder-7b", "QWEN2"), ("mixtral-8x7b", "LLAMA"),
    ("deepseek-v2-lite", "DEEPSEEK2"), ("llama-4-scout-17b-16e", "LLAMA4"), ("starcoder2-15b", "STARCODER2"),
])  # fmt: skip
def test_gguf_has_our_tensor_names(plain_design, model, arch):
    chosen = plain_design(model, {"weight_bits": 4})
    known = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, arch), 200)
    n = 0
    for layer in layers(chosen, "target"):
        if layer.module.component != "decoder" or layer.module.block < 0 or layer.is_router:
            continue
        found = tensors(layer)
        assert found, layer.path
        path = layer.path.replace("model.language_model.", "model.").replace("language_model.model.", "model.")
        # The converter splits what transformers keeps in one tensor.
        paths = [path] if "gate_up_proj" not in path else [path.replace("gate_up", p) for p in ("gate", "up")]
        for name, ours in zip(paths, found, strict=True):
            assert known.get_name(name) == f"blk.{layer.module.block}.{ours}"
            n += 1
    assert n > 50


def test_gguf_types_take_what_we_say():
    for kind, bits in BITS_PER_WEIGHT.items():
        block, size = gguf.GGML_QUANT_SIZES[getattr(gguf.GGMLQuantizationType, kind)]
        assert 8 * size / block == bits


def test_transformers_reads_autoround(random_design):
    chosen = random_design("qwen2.5-vl-3b", 6)
    quantization = document(catalogue.exporter("autoround").export(chosen))["quantization_config"]
    config = transformers.AutoRoundConfig.from_dict(dict(quantization))
    assert (config.bits, config.group_size, config.sym) == tuple(quantization[k] for k in ("bits", "group_size", "sym"))
    assert config.extra_config == quantization["extra_config"]
    assert all(e["bits"] in (2, 3, 4, 8, 16) for e in config.extra_config.values())


def test_transformers_reads_gptq(random_design):
    """Its class covers the base; ``dynamic`` belongs to GPTQModel."""
    chosen = random_design("qwen2.5-coder-7b", 6)
    file = document(catalogue.exporter("gptqmodel").export(chosen))
    fields = {k: file[k] for k in ("bits", "group_size", "sym", "desc_act")}
    config = transformers.GPTQConfig(**fields)
    assert all(getattr(config, k) == v for k, v in fields.items())


@pytest.mark.parametrize("model", ["qwen2.5-coder-7b", "llama-3.1-8b"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_transformers_reads_widths_per_layer(random_design, model, seed):
    chosen = random_design(model, seed)
    part = document(catalogue.exporter("per-layer-config").export(chosen))
    config = transformers.AutoConfig.for_model(
        **{k: v for k, v in chosen.problem.target.config.items() if k not in ("num_hidden_layers", "layer_types")},
        num_hidden_layers=part["num_hidden_layers"],
        per_layer_config=part["per_layer_config"],
    )
    left = kept(chosen, "target")
    stays = [b for b in chosen.problem.target.blocks if ("decoder", b.index) not in left.dropped]
    widths = [config.per_layer_config[i].intermediate_size for i in range(config.num_hidden_layers)]
    assert widths == [left.channels["decoder", b.index] for b in stays]


def test_decilm_rule_gives_the_width_back():
    """The rule of DeciLM's modelling code: 2/3 x ffn_mult x hidden, down to a whole number, up to a multiple of 256."""
    for hidden in (2048, 4096, 8192):
        for width in range(256, 20000, 256):
            assert intermediate_size(ffn_mult(width, hidden), hidden) == width
