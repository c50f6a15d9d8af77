"""Llama-3.2 Vision: the image is not made of tokens, cross-attention blocks look at its encoder states.

The tower concatenates the features of several of its blocks to those of the last. Its positions are gated sums of
tables over patches and over the arrangement of tiles.
"""

from __future__ import annotations

from dse.model.families.decoders import PRE_NORM, Paths, head_sizes, per_head
from dse.model.families.feed_forward import dense
from dse.model.families.vit import SEPARATE, gather, patch_features, patch_grid, vit_block
from dse.model.fields import Fields
from dse.model.parts import ModuleKind
from dse.model.shapes import Attention, BlockShape, Decoder, Mlp, Norm, Pipeline, Residual, Stack, Step
from dse.model.tiles import StateTiles

# Rows of the token table beyond the vocabulary: the image token and its reserve. The head does not predict them.
_EXTRA_ROWS = 8
_LISTED_RATIOS = 8


def mllama_text(f: Fields, at: Paths) -> Decoder:
    """Return the decoder: self-attention blocks with gated cross-attention blocks between them."""
    n_blocks, vocab = f.blocks("num_hidden_layers"), f.count("vocab_size")
    crossing = f.indices("cross_attention_layers", n_blocks)
    heads, kv_heads, _ = head_sizes(f)
    size = per_head(f, heads)
    plain = _self_block(f, Attention(heads, kv_heads, size, rope_dim=size, causal=True))
    crossed = _cross_block(f, Attention(heads, kv_heads, size, "cross_attn", qk_norm="head", states=True))
    return Decoder(
        path=at.root,
        hidden=f.count("hidden_size"),
        blocks=tuple(crossed if i in crossing else plain for i in range(n_blocks)),
        vocab=vocab,
        embedding_rows=vocab + _EXTRA_ROWS,
        tied=f.flag("tie_word_embeddings", absent=False),
        norm=Norm("norm"),
        head=at.head,
    )


def _self_block(f: Fields, attention: Attention) -> BlockShape:
    return Residual(attention, Norm(PRE_NORM[0])), Residual(dense(f, 0), Norm(PRE_NORM[2]))


def _cross_block(f: Fields, attention: Attention) -> BlockShape:
    return (
        Residual(attention, Norm(PRE_NORM[0]), scale="cross_attn_attn_gate", scalar=True),
        Residual(dense(f, 0), Norm(PRE_NORM[2]), scale="cross_attn_mlp_gate", scalar=True),
    )


def mllama_vision(f: Fields, text_hidden: int) -> tuple[Pipeline, Pipeline]:
    """Return the vision tower and the projector of its states."""
    hidden, features = f.count("hidden_size"), f.count("vision_output_dim")
    n_local, n_global = f.blocks("num_hidden_layers"), f.blocks("num_global_layers")
    taken = f.indices("intermediate_layers_indices", n_local + 1)
    f.require(
        features == hidden * (1 + len(taken)),
        f"vision_output_dim={features} is not hidden_size x (1 + {len(taken)} intermediate layers)",
    )
    tower = Pipeline("vision", "model.vision_model", hidden, "cut", "patch", (
        *_stem(f, hidden),
        Stack("transformer.layers", (_vision_block(f, gated=False),) * n_local, n_local),
        Step("layernorm_post", ModuleKind.NORM, 1, hidden, bias=True),
        *_tile_positions("post_tile_positional_embedding", f, hidden),
        Stack("global_transformer.layers", (_vision_block(f, gated=True),) * n_global, n_global),
        gather("state", features, "concatenate", taken),
    ))  # fmt: skip
    linear = Step("multi_modal_projector", ModuleKind.LINEAR, features, text_hidden, bias=True)
    return tower, Pipeline("projector", "model", text_hidden, "state", "", (linear,))


def _stem(f: Fields, hidden: int) -> tuple[Step, ...]:
    _, patch, cuts = patch_grid(f)
    positions = cuts + 1
    tile_table = f.count("max_num_tiles") * positions * hidden
    gated = "gated_positional_embedding"
    return (
        Step("patch_embedding", ModuleKind.LINEAR, patch_features(f, patch), hidden),
        *_tile_positions("pre_tile_positional_embedding", f, hidden),
        Step("class_embedding", ModuleKind.PARAMETER, 1, hidden, rows="patch", added=False),
        Step(f"{gated}.gate", ModuleKind.PARAMETER, 1, 1, added=False),
        Step(f"{gated}.embedding", ModuleKind.PARAMETER, positions, hidden),
        Step(f"{gated}.tile_embedding", ModuleKind.POSITION, _arrangements(f), tile_table, lookup=hidden),
        Step("layernorm_pre", ModuleKind.NORM, 1, hidden, bias=True),
    )


def _tile_positions(path: str, f: Fields, hidden: int) -> tuple[Step, Step]:
    table = f.count("max_num_tiles") * hidden
    return (
        Step(f"{path}.gate", ModuleKind.PARAMETER, 1, 1, added=False),
        Step(f"{path}.embedding", ModuleKind.POSITION, _arrangements(f), table, lookup=hidden),
    )


def _arrangements(f: Fields) -> int:
    """Return the rows of the tables over arrangements of tiles: those supported, and one for no image."""
    return 1 + (len(f.sizes("supported_aspect_ratios")) if f.has("supported_aspect_ratios") else _LISTED_RATIOS)


def _vision_block(f: Fields, *, gated: bool) -> BlockShape:
    heads = f.count("attention_heads", "num_attention_heads")
    attention = Attention(heads, heads, per_head(f, heads), names=SEPARATE)
    mlp = Mlp(f.count("intermediate_size"), gated=False, names=("fc1", "fc2"), bias=True)
    block = vit_block(attention, mlp, (PRE_NORM[0], PRE_NORM[2]))
    if not gated:
        return block
    first, second = block
    return (
        Residual(first.core, first.before, scale="gate_attn", scalar=True),
        Residual(second.core, second.before, scale="gate_ffn", scalar=True),
    )


def mllama_images(f: Fields) -> StateTiles:
    """Return the image rule."""
    return StateTiles(f.square("image_size"), f.square("patch_size"), f.count("max_num_tiles"))
