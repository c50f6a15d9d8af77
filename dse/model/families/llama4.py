"""Llama-4: chunked attention on rotary blocks, routed experts beside a shared one, and its own vision tower."""

from __future__ import annotations

from dse.model.families.decoders import PRE_NORM, Paths, head_sizes, per_head
from dse.model.families.feed_forward import experts_per_token
from dse.model.families.vit import SEPARATE, gather, patch_features, patch_grid, pixel_shuffle, vit_block
from dse.model.families.windows import listed_windows
from dse.model.fields import Fields
from dse.model.parts import ModuleKind
from dse.model.shapes import Attention, BlockShape, Decoder, Mlp, Moe, Norm, Pipeline, Residual, Stack, Step, Vector
from dse.model.tiles import CanvasTiles

_ROTARY_INTERVAL = 4


def llama4_text(f: Fields, at: Paths) -> Decoder:
    """Return a Llama-4 decoder."""
    n_blocks, vocab = f.blocks("num_hidden_layers"), f.count("vocab_size")
    rotary = _rotary(f, n_blocks)
    windows = listed_windows(f, n_blocks, f.count_or_none("attention_chunk_size") or 0, rotary)
    routed = _routed(f, n_blocks)
    dense, experts = Mlp(f.count("intermediate_size_mlp"), path="feed_forward"), _experts(f)
    blocks = tuple(
        _block(_attention(f, rotary[i], windows[i]), experts if i in routed else dense) for i in range(n_blocks)
    )
    return Decoder(
        path=at.root,
        hidden=f.count("hidden_size"),
        blocks=blocks,
        vocab=vocab,
        embedding_rows=vocab,
        tied=f.flag("tie_word_embeddings", absent=False),
        norm=Norm("norm"),
        head=at.head,
    )


def _rotary(f: Fields, n_blocks: int) -> list[bool]:
    """Return which blocks rotate: as ``no_rope_layers`` lists (1 for rotary), else all but every fourth."""
    listed = f.indices_or_none("no_rope_layers", 2)
    if listed is None:
        interval = f.count("no_rope_layer_interval", absent=_ROTARY_INTERVAL)
        return f.note("no_rope_layers", [(i + 1) % interval != 0 for i in range(n_blocks)])
    f.require(len(listed) >= n_blocks, f"no_rope_layers lists {len(listed)} blocks, not {n_blocks}")
    return f.note("no_rope_layers", [bool(flag) for flag in listed[:n_blocks]])


def _routed(f: Fields, n_blocks: int) -> frozenset[int]:
    """Return the blocks with experts."""
    if f.has("moe_layers"):
        return frozenset(f.indices("moe_layers", n_blocks))
    step = f.count("interleave_moe_layer_step")
    return frozenset(f.note("moe_layers", tuple(range(step - 1, n_blocks, step))))


def _attention(f: Fields, rotary: bool, window: int) -> Attention:
    heads, kv_heads, head_dim = head_sizes(f)
    bias = f.flag("attention_bias")
    normed = f.flag("use_qk_norm") and rotary
    return Attention(
        heads, kv_heads, head_dim, bias=(bias,) * 4, qk_norm="bare" if normed else "",
        rope_dim=head_dim if rotary else 0, window=window, chunked=window > 0, causal=True,
    )  # fmt: skip


def _experts(f: Fields) -> Moe:
    n_experts, ffn = f.count("num_local_experts"), f.count("intermediate_size")
    shared = Mlp(ffn, path="feed_forward.shared_expert")
    active = experts_per_token(f, n_experts)
    return Moe(n_experts, active, ffn, path="feed_forward", router="router", shared=shared)


def _block(attention: Attention, core: Mlp | Moe) -> BlockShape:
    return Residual(attention, Norm(PRE_NORM[0])), Residual(core, Norm(PRE_NORM[2]))


def llama4_vision(f: Fields, text_hidden: int) -> tuple[Pipeline, Pipeline]:
    """Return the vision tower and the projector: pixel shuffle, an adapter and one linear step."""
    hidden, (_, patch, cuts) = f.count("hidden_size"), patch_grid(f)
    tower = Pipeline("vision", "vision_model", hidden, "cut", "patch", (
        Step("patch_embedding.linear", ModuleKind.LINEAR, patch_features(f, patch), hidden),
        Step("class_embedding", ModuleKind.PARAMETER, 1, hidden, rows="patch", added=False),
        Step("positional_embedding_vlm", ModuleKind.PARAMETER, cuts + 1, hidden),
        Step("layernorm_pre", ModuleKind.NORM, 1, hidden, bias=True),
        Stack("model.layers", (_vision_block(f),) * f.blocks("num_hidden_layers"), f.blocks("num_hidden_layers")),
        Step("layernorm_post", ModuleKind.NORM, 1, hidden, bias=True),
    ))  # fmt: skip
    return tower, _adapter(f, hidden, text_hidden)


def _vision_block(f: Fields) -> BlockShape:
    heads = f.count("num_attention_heads")
    size = per_head(f, heads)
    attention = Attention(heads, heads, size, names=SEPARATE, bias=(True,) * 4, rope_dim=size)
    mlp = Mlp(f.count("intermediate_size"), gated=False, names=("fc1", "fc2"), bias=True)
    return vit_block(attention, mlp, (PRE_NORM[0], PRE_NORM[2]))


def _adapter(f: Fields, hidden: int, text_hidden: int) -> Pipeline:
    pool = pixel_shuffle(f, "pixel_shuffle_ratio")
    wide, middle, out = f.count("intermediate_size"), f.count("projector_input_dim"), f.count("projector_output_dim")
    f.require(
        wide == hidden * pool * pool,
        f"intermediate_size={wide} is not hidden_size x {pool}^2 = {hidden * pool * pool}",
        "the adapter takes the shuffled features; the defaults of this model type do not fit, state the sizes",
    )
    f.require(middle == out, f"projector_input_dim={middle} is not projector_output_dim={out}")
    features = f.count("vision_output_dim")
    f.require(features == out, f"vision_output_dim={features} is not projector_output_dim={out}")
    adapter, linear = "vision_model.vision_adapter.mlp", ModuleKind.LINEAR
    return Pipeline("projector", "", text_hidden, "patch", "", (
        gather("merged", wide, "pixel_shuffle"),
        Step(f"{adapter}.fc1", linear, wide, middle),
        Vector(f"{adapter}.act1", middle),
        Step(f"{adapter}.fc2", linear, middle, out),
        Vector(f"{adapter}.act2", out),
        Step("multi_modal_projector.linear_1", linear, out, text_hidden),
    ))  # fmt: skip


def llama4_images(f: Fields, processor: Fields) -> CanvasTiles:
    """Return the image rule."""
    return CanvasTiles(
        tile_px=f.square("image_size"),
        patch_px=f.square("patch_size"),
        pool=pixel_shuffle(f, "pixel_shuffle_ratio"),
        max_tiles=processor.count("max_patches"),
    )
