"""Decoders that differ from Llama's in details: one :class:`Style` says which, one table row per architecture.

Left out: rotary frequencies and their scaling, activation functions, scalar multipliers and soft-caps: none changes a
size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from dse.model.families.feed_forward import (
    FeedForward,
    dense,
    fused_dense,
    gpt_oss_experts,
    internlm_dense,
    llama_dense,
    mixtral_experts,
    olmoe_experts,
    plain_dense,
    qwen2_experts,
    qwen_experts,
)
from dse.model.families.windows import (
    Windows,
    alternating_windows,
    early_windows,
    later_windows,
    listed_or_same_window,
    mostly_windows,
    no_windows,
    same_window,
    switched_window,
)
from dse.model.fields import Fields
from dse.model.shapes import Attention, BlockShape, Decoder, Norm, Residual


class Paths(NamedTuple):
    """Where a decoder stands in a model: path of its embedding and blocks, path of its head."""

    root: str = "model"
    head: str = "lm_head"


TextReader = Callable[[Fields, Paths], Decoder]


PRE_NORM: Final = ("input_layernorm", "", "post_attention_layernorm", "")
POST_NORM: Final = ("", "post_attention_layernorm", "", "post_feedforward_layernorm")
SANDWICH: Final = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
GLM_NORMS: Final = (
    "input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Style:
    """How a decoder differs from Llama's.

    Attributes:
        qkv_bias, out_bias: a constant, or the field that says so.
        qk_norm: see :attr:`dse.model.shapes.Attention.qk_norm`.
        norms: leaves of the norms before and after attention, before and after the feed-forward network.
        layer_norm: whether norms are layer norms with biases.
        windows: window of each block.
        feed_forward: feed-forward network of a block.
        path, names, out: leaves of the attention.
        embed, norm: leaves of token table and final norm.
        rotary: fraction of each head that is rotated, unless the config says so.
        sinks: see :attr:`dse.model.shapes.Attention.sinks`.
    """

    qkv_bias: bool | str = False
    out_bias: bool | str = False
    qk_norm: str = ""
    norms: tuple[str, str, str, str] = PRE_NORM
    layer_norm: bool = False
    windows: Windows = no_windows
    feed_forward: FeedForward = dense
    path: str = "self_attn"
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    out: str = "o_proj"
    embed: str = "embed_tokens"
    norm: str = "norm"
    rotary: float = 1.0
    sinks: str = ""

    def read(self, f: Fields, at: Paths) -> Decoder:
        """Return the decoder that a config describes."""
        n_blocks = f.blocks("num_hidden_layers")
        attend = self._attention(f)
        windows = self.windows(f, n_blocks)
        blocks = tuple(self._block(f, i, attend(window)) for i, window in enumerate(windows))
        vocab = f.count("vocab_size")
        return Decoder(
            path=at.root,
            hidden=f.count("hidden_size"),
            blocks=blocks,
            vocab=vocab,
            embedding_rows=vocab,
            tied=f.flag("tie_word_embeddings", absent=False),
            norm=Norm(self.norm, self.layer_norm),
            head=at.head,
            embed=self.embed,
        )

    def _block(self, f: Fields, block: int, attention: Attention) -> BlockShape:
        before, after, before_mlp, after_mlp = (Norm(leaf, self.layer_norm) if leaf else None for leaf in self.norms)
        return (
            Residual(attention, before, after),
            Residual(self.feed_forward(f, block), before_mlp, after_mlp),
        )

    def _attention(self, f: Fields) -> Callable[[int], Attention]:
        heads, kv_heads, head_dim = head_sizes(f)
        rope_dim = int(head_dim * rotary_ratio(f, self.rotary))
        qkv, out = (bias if isinstance(bias, bool) else f.flag(bias) for bias in (self.qkv_bias, self.out_bias))

        def with_window(window: int) -> Attention:
            return Attention(
                heads, kv_heads, head_dim, self.path, self.names, self.out, (qkv, qkv, qkv, out), self.qk_norm,
                rope_dim=rope_dim, window=window, causal=True, sinks=self.sinks,
            )  # fmt: skip

        return with_window


def head_sizes(f: Fields) -> tuple[int, int, int]:
    """Return query heads, key-value heads and elements per head, which must fit each other."""
    heads = f.count("num_attention_heads")
    kv_heads = f.count_or_none("num_key_value_heads") or heads
    f.require(
        heads % kv_heads == 0,
        f"num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}",
        "query heads share key-value heads in equal groups",
    )
    head_dim = f.count_or_none("head_dim") or per_head(f, heads)
    return heads, f.note("num_key_value_heads", kv_heads), f.note("head_dim", head_dim)


def per_head(f: Fields, heads: int) -> int:
    """Return the elements per head where the heads share the hidden features evenly."""
    hidden = f.count("hidden_size")
    f.require(
        hidden % heads == 0,
        f"num_attention_heads={heads} does not divide hidden_size={hidden}",
        "give head_dim where the heads do not share the hidden features",
    )
    return hidden // heads


def rotary_ratio(f: Fields, absent: float) -> float:
    """Return the fraction of each head's elements that is rotated, ``absent`` where the config does not say."""
    for table in (f, *(f.child_or_empty(name, "") for name in ("rope_parameters", "rope_scaling"))):
        if table.has("partial_rotary_factor"):
            return table.ratio("partial_rotary_factor")
    return absent


_BIASED: Final = Style(qkv_bias="attention_bias", out_bias="attention_bias")
_HEAD_NORMED: Final = replace(_BIASED, qk_norm="head")
_QWEN2: Final = Style(qkv_bias=True, windows=later_windows)

STYLES: Final[dict[str, Style]] = {
    "llama": replace(_BIASED, feed_forward=llama_dense),
    "mistral": Style(windows=same_window),
    "ministral": Style(windows=listed_or_same_window),
    "qwen2": _QWEN2,
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "qwen3": replace(_HEAD_NORMED, windows=later_windows),
    "qwen3_vl_text": _HEAD_NORMED,
    "gemma": _BIASED,
    "gemma2": replace(_BIASED, norms=SANDWICH, windows=alternating_windows),
    "gemma3_text": replace(_HEAD_NORMED, norms=SANDWICH, windows=mostly_windows),
    "phi3": Style(names=("qkv_proj",), windows=same_window, feed_forward=fused_dense),
    "glm4": Style(qkv_bias="attention_bias", norms=GLM_NORMS, feed_forward=fused_dense, rotary=0.5),
    "granite": replace(_BIASED, feed_forward=llama_dense),
    "olmo2": replace(_BIASED, qk_norm="full", norms=POST_NORM),
    "starcoder2": Style(
        qkv_bias="use_bias", out_bias="use_bias", layer_norm=True, windows=same_window, feed_forward=plain_dense
    ),
    "internlm2": Style(
        qkv_bias="bias", out_bias="bias", norms=("attention_norm", "", "ffn_norm", ""), feed_forward=internlm_dense,
        path="attention", names=("wqkv",), out="wo", embed="tok_embeddings",
    ),
    "mixtral": Style(windows=same_window, feed_forward=mixtral_experts),
    "olmoe": replace(_BIASED, qk_norm="full", feed_forward=olmoe_experts),
    "gpt_oss": replace(_BIASED, windows=alternating_windows, feed_forward=gpt_oss_experts, sinks="sinks"),
    "qwen2_moe": Style(qkv_bias="qkv_bias", windows=early_windows, feed_forward=qwen2_experts),
    "qwen3_moe": replace(_HEAD_NORMED, windows=switched_window, feed_forward=qwen_experts),
    "qwen3_vl_moe_text": replace(_HEAD_NORMED, feed_forward=qwen_experts),
}  # fmt: skip
