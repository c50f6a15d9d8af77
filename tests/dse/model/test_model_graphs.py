"""Laws that the tables of every model keep: the catalogue, configs of the hub, and small odd ones."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.model import NO_DIM, PHASES, ROWS, SPANS, Dim, Model, ModuleKind, OpKind, Section, model_names, read_model
from dse.model.counting import n_params
from dse.model.parts import COMPONENTS

SAMPLES = json.loads((Path(__file__).parent / "samples.json").read_text())["configs"]
HUB = json.loads((Path(__file__).parent / "hub.json").read_text())["configs"]
EVERY = [*model_names(), *HUB, *SAMPLES]

# Parameters that no forward pass of the language model uses, by the leaf of their module.
UNUSED = {
    "head.attention.in_proj_weight", "head.attention.out_proj", "head.mlp.fc1", "head.mlp.fc2",  # SigLIP's own pooling
}  # fmt: skip


def get(name):
    if name in SAMPLES:
        return Model.from_config(SAMPLES[name], name)
    return Model.from_config(HUB[name]["config"], name) if name in HUB else read_model(name)


@pytest.fixture(params=EVERY)
def model(request):
    return get(request.param)


def ops(model):
    return [op for phase in PHASES for op in model.graph(phase).ops]


def test_edges_point_backwards_and_names_are_unique(model):
    for phase in PHASES:
        seen = set()
        for op in model.graph(phase).ops:
            assert op.name not in seen
            assert seen.issuperset(op.inputs), op.name
            seen.add(op.name)


def test_every_operator_but_the_first_of_a_phase_reads_another(model):
    outside = {"token", "cut", "mel", "state", "visual", "audio"}
    for phase in PHASES:
        for op in model.graph(phase).ops:
            assert op.inputs or op.rows in outside or op.kind is OpKind.EMBED, op.name


def test_every_result_is_used(model):
    for phase in PHASES:
        graph = model.graph(phase)
        read = {producer for producer, _ in graph.edges()}
        loose = [op for op in graph.ops if op.name not in read]
        # What leaves a phase: logits, projected features, features handed to early blocks, cached keys and values.
        for op in loose:
            leaves = op.rows in ("last", "merged", "pooled", "state", "frame") or op.kind is OpKind.CACHE
            assert leaves, op.name


def test_symbols_are_known(model):
    for op in ops(model):
        assert op.rows in ROWS
        assert op.component in COMPONENTS
        assert (op.span in SPANS) if op.kind.is_attention else not op.span
    for module in model.modules:
        assert module.component in COMPONENTS
        assert module.part in ("attention", "mlp", "")
        assert (module.section is Section.BLOCK) == (module.block >= 0)


def test_operators_use_modules_that_exist_and_fit(model):
    for op in ops(model):
        if not op.module:
            assert op.kind is not OpKind.LINEAR
            continue
        module = model.module(op.module)
        assert module.component == op.component
        assert module.block == op.block
        if op.kind is OpKind.LINEAR and op.heads == NO_DIM:
            assert (op.k, op.n, op.n_active) == (module.in_dim, module.out_dim, module.n_active)


def test_parts_of_an_absorbed_weight_make_up_the_whole(model):
    for module in model.modules:
        sides = [op for op in model.graph("decode").ops if op.module == module.path and op.heads != NO_DIM]
        sides = [op for op in sides if op.kind is OpKind.LINEAR]
        if sides:
            kept = model.units[module.component, module.block]
            assert len(sides) == 2
            assert sum(op.n_weights(*kept) for op in sides) == module.n_weights(*kept)


def test_every_weight_has_work_or_a_reason(model):
    used = {op.module for op in ops(model)}
    idle_blocks = {(b.component, b.index) for b in model.blocks if not b.used}
    for module in model.modules:
        if module.kind not in (ModuleKind.LINEAR, ModuleKind.EMBEDDING, ModuleKind.POSITION):
            continue
        has_work = module.path in used
        idle = (module.component, module.block) in idle_blocks or module.leaf in UNUSED
        assert has_work != idle, module.path


def test_paths_are_unique_and_leaves_end_them(model):
    paths = [m.path for m in model.modules]
    assert len(set(paths)) == len(paths)
    assert all(m.path.endswith(m.leaf) for m in model.modules)


def test_blocks_of_a_component_are_numbered_from_zero(model):
    for component in {b.component for b in model.blocks}:
        assert [b.index for b in model.blocks if b.component == component] == list(
            range(sum(b.component == component for b in model.blocks))
        )


def test_caches_are_what_the_graph_appends(model):
    appended = {}
    for op in model.graph("prefill").ops:
        if op.kind is OpKind.CACHE:
            rows = "state" if op.rows == "state" else "context"
            appended.setdefault(op.block, []).append((rows, op.n))
    decoder = [b for b in model.blocks if b.component == "decoder"]
    assert {b.index: [(c.rows, c.k.plus(c.v)) for c in b.caches] for b in decoder} == appended
    assert not any(b.caches for b in model.blocks if b.component != "decoder")


def test_decode_is_prefill_without_what_runs_once(model):
    once = {"state", "visual", "audio"}
    prefill = {op.name for op in model.graph("prefill").ops if op.rows not in once}
    decode = {op.name for op in model.graph("decode").ops}
    latent = {name for name in prefill ^ decode if "kv_b_proj" in name}
    assert prefill - latent == decode - latent


def test_decode_reads_keys_and_values_from_the_cache(model):
    for op in model.graph("decode").ops:
        assert op.cached == (op.kind in (OpKind.SCORE, OpKind.VALUE))
    for op in model.graph("encode").ops:
        assert not op.cached


def test_tied_heads_add_nothing(model):
    for module in model.modules:
        if module.tied_to:
            table = model.module(module.tied_to)
            assert module.n_params() == 0
            assert table.n_weights() >= module.n_weights()


@given(st.sampled_from(sorted(SAMPLES)), st.integers(0, 1_000), st.integers(0, 1_000))
@settings(max_examples=60, deadline=None)
def test_pruning_shrinks_in_proportion(name, heads, channels):
    model = get(name)
    full = model.units
    kept = {key: (h * heads // 1_000, c * channels // 1_000) for key, (h, c) in full.items()}
    assert n_params(model.modules, kept) <= n_params(model.modules, full) == model.n_params
    for module in model.modules:
        key = module.component, module.block
        if key not in full:
            assert module.in_dim == Dim(module.in_dim.fixed)
            assert module.out_dim == Dim(module.out_dim.fixed)
        elif module.in_dim.fixed == 0 and module.in_dim.per_head and kept[key][0] == 0:
            assert module.n_weights(*kept[key]) == 0


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 50), st.integers(0, 50))
def test_dims_are_linear(fixed, per_head, per_ffn, heads, channels):
    dim = Dim(fixed, per_head, per_ffn)
    assert dim.size(heads, channels) == fixed + per_head * heads + per_ffn * channels
    assert dim.times(3).size(heads, channels) == 3 * dim.size(heads, channels)
    assert dim.plus(dim) == dim.times(2)


def test_shared_key_value_heads_keep_their_size():
    model = read_model("llama-3.1-8b")
    block = next(b for b in model.blocks if b.component == "decoder")
    assert block.head_units == 4  # 32 query heads on 8 key-value heads
    assert model.module("model.layers.0.self_attn.q_proj").out_dim == Dim(per_head=8 * 128)
    assert model.module("model.layers.0.self_attn.k_proj").out_dim == Dim(fixed=8 * 128)
    assert block.caches[0].k == Dim(fixed=8 * 128)


def test_own_key_value_heads_shrink_with_their_queries():
    model = read_model("llava-1.5-7b")
    block = next(b for b in model.blocks if b.component == "decoder")
    assert block.head_units == 32
    assert block.caches[0].k == Dim(per_head=128)
    fused = read_model("qwen2-vl-7b").module("model.visual.blocks.0.attn.qkv")
    assert fused.out_dim == Dim(per_head=3 * 80)


def test_shared_experts_shrink_with_routed_ones_where_their_widths_agree():
    model = read_model("deepseek-v2-lite")
    assert model.module("model.layers.1.mlp.shared_experts.up_proj").out_dim == Dim(per_ffn=2)
    odd = get("qwen2_moe, shared expert no multiple")
    assert odd.module("model.layers.1.mlp.shared_expert.up_proj").out_dim == Dim(fixed=100)


def test_encoder_blocks_behind_the_feature_layer_have_no_work():
    model = read_model("llava-1.5-7b")
    tower = [b for b in model.blocks if b.component == "vision"]
    assert [b.used for b in tower] == [True] * 23 + [False]
    assert "model.vision_tower.encoder.layers.23.mlp.fc1" in {m.path for m in model.modules}
    assert not any(op.block == 23 for op in model.graph("encode").ops if op.component == "vision")


def test_windows_reach_the_operators():
    spans = {op.block: op.window for op in read_model("gemma-3-4b").graph("decode").ops if op.kind is OpKind.SCORE}
    assert [spans[i] for i in range(6)] == [1024] * 5 + [0]
    tower = {op.block: op.window for op in read_model("qwen2.5-vl-3b").graph("encode").ops if op.kind is OpKind.SCORE}
    assert [i for i, window in tower.items() if window == 0] == [7, 15, 23, 31]
    assert tower[0] == 64  # (112 / 14)^2 patches
    chunks = [op for op in read_model("llama-4-scout-17b-16e").graph("prefill").ops if op.kind is OpKind.SCORE]
    assert [(op.window, op.chunked) for op in chunks[:4]] == [(8192, True)] * 3 + [(0, False)]


def test_a_prompt_with_prefix_attention_is_open_and_generation_is_not():
    model = read_model("paligemma-3b-224")
    assert not any(op.causal for op in model.graph("prefill").ops)
    assert all(op.causal for op in model.graph("decode").ops if op.kind.is_attention)


def test_visual_features_enter_the_first_blocks():
    model = read_model("qwen3-vl-8b")
    injected = [op for op in model.graph("prefill").ops if op.name.endswith("inject_visual")]
    assert [op.block for op in injected] == [0, 1, 2]
    tapped = [op.inputs for op in model.graph("encode").ops if "deepstack" in op.name and op.name.endswith("norm")]
    assert tapped == [(f"vision.{i}.mlp.residual",) for i in (8, 16, 24)]
