"""A compressed model against one that is really built that way."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from costmodels.measured.anatomy import named  # noqa: E402
from costmodels.measured.bench import Bench  # noqa: E402
from costmodels.measured.compress import Settings, resolve  # noqa: E402
from costmodels.measured.target import Source  # noqa: E402
from dse.errors import ModelError  # noqa: E402
from dse.model import read_model  # noqa: E402
from dse.profile import ProfileHeader, QualityProfile, read_group  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def bench(checkpoint, user_file):
    return Bench(Source(str(user_file), str(checkpoint)), read_model(checkpoint))


def logits(bench, settings):
    with torch.no_grad(), bench.compressed(settings):
        return bench.target.forward(bench.target.samples[0])[0]


def plain(checkpoint):
    return transformers.LlamaForCausalLM.from_pretrained(checkpoint).eval()


def run(net, bench):
    with torch.no_grad():
        return net(input_ids=bench.target.samples[0], use_cache=False).logits


def test_nothing_is_left_behind(bench, checkpoint):
    everything = Settings(
        weight_bits={m.path: (2,) for m in bench.anatomy.modules},
        act_bits=dict.fromkeys(bench.anatomy.linear, 4),
        blocks={
            k: {("decoder", 0): v, ("decoder", 1): v}
            for k, v in (("k_bits", 2), ("v_bits", 2), ("head_keep", 0.5), ("ffn_keep", 0.5), ("block_keep", 0.0))
        },
    )
    before = logits(bench, Settings())
    assert not torch.equal(logits(bench, everything), before)
    assert torch.equal(logits(bench, Settings()), before)
    assert torch.equal(before, run(plain(checkpoint), bench))


def test_pruned_channels_as_in_smaller_matrices(bench, checkpoint):
    """Half the channels of one block: the same logits as of a model whose matrices have only the others."""
    net = plain(checkpoint)
    score = bench.column_scores["model.layers.1.mlp.down_proj"]
    kept = sorted(sorted(range(48), key=lambda i: score[i])[24:])
    mlp = net.model.layers[1].mlp
    for name in ("gate_proj", "up_proj"):
        mlp.get_submodule(name).weight = torch.nn.Parameter(mlp.get_submodule(name).weight[kept])
    mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, kept])
    found = logits(bench, Settings(blocks={"ffn_keep": {("decoder", 1): 0.5}}))
    assert torch.allclose(found, run(net, bench), atol=1e-5)


def test_pruned_heads_as_in_smaller_matrices(bench, checkpoint):
    """One of the two query heads of each key-value head: a model with two query heads gives the same logits."""
    score = bench.column_scores["model.layers.0.self_attn.o_proj"].reshape(4, 8).sum(axis=1)
    kept = [0 if score[0] > score[1] else 1, 2 if score[2] > score[3] else 3]
    rows = [h * 8 + i for h in kept for i in range(8)]
    net = plain(checkpoint)
    attention = net.model.layers[0].self_attn
    attention.q_proj.weight = torch.nn.Parameter(attention.q_proj.weight[rows])
    attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight[:, rows])
    attention.num_key_value_groups = 1
    found = logits(bench, Settings(blocks={"head_keep": {("decoder", 0): 0.5}}))
    assert torch.allclose(found, run(net, bench), atol=1e-5)


def test_a_dropped_block_as_in_a_model_without_it(bench, checkpoint):
    net = plain(checkpoint)
    del net.model.layers[0]
    net.config.num_hidden_layers = 1
    found = logits(bench, Settings(blocks={"block_keep": {("decoder", 0): 0.0}}))
    assert torch.allclose(found, run(net, bench), atol=1e-5)


def test_rounded_weights_as_in_a_model_that_has_them(bench, checkpoint):
    net, path = plain(checkpoint), "model.layers.1.self_attn.v_proj"
    weight = net.get_submodule(path).weight
    with torch.no_grad():
        weight.copy_(bench.quantiser.weights(weight, 3))
    assert torch.equal(logits(bench, Settings(weight_bits={path: (3,)})), run(net, bench))


def test_channel_groups_have_widths_of_their_own(bench, checkpoint):
    net, path = plain(checkpoint), "model.layers.1.self_attn.q_proj"
    weight = net.get_submodule(path).weight
    with torch.no_grad():
        weight[16:] = bench.quantiser.weights(weight[16:], 2)
    assert torch.equal(logits(bench, Settings(weight_bits={path: (16, 2)})), run(net, bench))


def test_rounded_inputs_and_caches_as_in_a_model_that_rounds_them(bench, checkpoint):
    """Inputs per token, keys per feature over positions, values per token, as PyTorch's fake quantisation does it."""

    def rounded(x, bits, axis):
        low, high = x.amin(axis, keepdim=True).clamp_max(0), x.amax(axis, keepdim=True).clamp_min(0)
        scale = (high - low) / (2**bits - 1)
        return ((x / scale).round() + (-low / scale).round()).clamp(0, 2**bits - 1).sub((-low / scale).round()) * scale

    net = plain(checkpoint)
    net.model.layers[0].mlp.up_proj.register_forward_pre_hook(lambda _, args: (rounded(args[0], 4, -1),))
    net.model.layers[1].self_attn.k_proj.register_forward_hook(lambda _, __, out: rounded(out, 2, -2))
    net.model.layers[1].self_attn.v_proj.register_forward_hook(lambda _, __, out: rounded(out, 3, -1))
    settings = Settings(
        act_bits={"model.layers.0.mlp.up_proj": 4},
        blocks={"k_bits": {("decoder", 1): 2}, "v_bits": {("decoder", 1): 3}},
    )
    assert torch.allclose(logits(bench, settings), run(net, bench), atol=1e-5)


def test_names_alone_find_what_the_description_says(bench, checkpoint):
    """The hierarchy read off the names is that of the config, on a model that both know."""
    found = named(plain(checkpoint), "llama", None)
    assert {(m.path, m.component, m.block, m.kind) for m in found.modules} == {
        (m.path, m.component, m.block, m.kind) for m in bench.anatomy.modules
    }
    for key, parts in bench.anatomy.blocks.items():
        other = found.blocks[key]
        assert (parts.name, parts.keys, parts.values) == (other.name, other.keys, other.values)
        assert [u.name for u in (*parts.heads, *parts.channels)] == [u.name for u in (*other.heads, *other.channels)]


def test_names_of_an_encoder_decoder():
    net = torch.nn.Transformer(16, 2, 1, 2, 32, batch_first=True)
    found = named(net, "transformer", None)
    assert {(m.component, m.block) for m in found.modules} == {
        ("encoder.layers", 0), ("decoder.layers", 0), ("decoder.layers", 1)
    }  # fmt: skip
    assert found.blocks["decoder.layers", 1].channels[0].name == "decoder.layers.1.linear2"
    assert not found.blocks["decoder.layers", 1].keys


def test_a_description_of_another_model(bench):
    with pytest.raises(ModelError, match=r"is not qwen2\.5-0\.5b|another size"):
        Bench(bench.target.source, read_model("qwen2.5-0.5b"))


def test_the_finer_group_holds(bench):
    modules = bench.anatomy.modules
    chosen = {"weight_bits": {"decoder": 8, "decoder/1/mlp": 4, "model.layers.1.mlp.up_proj": 2}}
    groups = {g: read_group(g, modules) for g in chosen["weight_bits"]}
    places = QualityProfile(ProfileHeader("", "measured", modules, 1, 0, {}))
    found = resolve(chosen, groups, {"weight_bits": places.entries("weight_bits")}).weight_bits
    assert found["model.layers.1.mlp.up_proj"] == (2,)
    assert found["model.layers.1.mlp.down_proj"] == (4,)
    assert found["model.layers.1.self_attn.q_proj"] == found["lm_head"] == (8,)
