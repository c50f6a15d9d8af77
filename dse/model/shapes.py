"""Shapes: what a family's reader finds in a config, before it becomes modules and operators.

A block is a sequence of residual sub-layers (:class:`Residual`): attention, latent attention, MLP or mixture of
experts, each with its norms. Pre-norm, post-norm and sandwich-norm blocks, encoder-decoder blocks and gated
cross-attention blocks differ only in that sequence. An encoder is a chain of :class:`Step` and :class:`Stack` items,
a decoder one stack between an embedding and a head.

Names are the leaves of the Hugging Face module paths; what differs between two families of the same shape is names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dse.model.parts import Dim, ModuleKind


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation over the hidden features.

    Attributes:
        leaf: its path, relative to the block or stem.
        bias: whether it is a layer norm with a bias (an RMS norm has none).
    """

    leaf: str
    bias: bool = False


class HeadDims(NamedTuple):
    """The prunable sizes of an attention: features of queries and of keys (as of values), heads of both, units.

    With one key-value head per query head a unit is a head with its keys and values. With fewer, a unit is one query
    head of every key-value head, and keys and values keep their size.
    """

    q: Dim
    kv: Dim
    heads: Dim
    kv_heads: Dim
    units: int

    @classmethod
    def of(cls, heads: int, kv_heads: int, head_dim: int) -> HeadDims:
        """Return the sizes for ``heads`` query heads that share ``kv_heads`` key-value heads."""
        if heads == kv_heads:
            one = Dim(per_head=1)
            return cls(one.times(head_dim), one.times(head_dim), one, one, heads)
        per_unit, shared = Dim(per_head=kv_heads), Dim(fixed=kv_heads)
        return cls(per_unit.times(head_dim), shared.times(head_dim), per_unit, shared, heads // kv_heads)


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention with its projections.

    Attributes:
        heads, kv_heads, head_dim: query heads, key-value heads, elements per head.
        path: of the attention module inside the block.
        names: projections of queries, keys and values, or the one that holds all three.
        out: output projection.
        bias: biases of queries, keys, values and output (a fused projection takes that of the queries).
        qk_norm: "" for none, "head" for weights over one head, "full" over all heads, "bare" without weights.
        norm_names: the norms of queries and keys.
        rope_dim: rotated elements per head, 0 without rotary positions.
        window: positions looked at, at most; 0 for all.
        chunked: whether the window is a fixed chunk.
        causal: whether a row sees only positions up to its own.
        open_prompt: whether the prompt is nevertheless read in both directions (prefix language models).
        states: whether keys and values come from encoder states (cross-attention).
        sinks: leaf of a learned logit per head that joins the softmax, "" without.
    """

    heads: int
    kv_heads: int
    head_dim: int
    path: str = "self_attn"
    names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    out: str = "o_proj"
    bias: tuple[bool, bool, bool, bool] = (False, False, False, False)
    qk_norm: str = ""
    norm_names: tuple[str, str] = ("q_norm", "k_norm")
    rope_dim: int = 0
    window: int = 0
    chunked: bool = False
    causal: bool = False
    open_prompt: bool = False
    states: bool = False
    sinks: str = ""

    @property
    def dims(self) -> HeadDims:
        """Its prunable sizes."""
        return HeadDims.of(self.heads, self.kv_heads, self.head_dim)


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention: keys and values of all heads come from one compressed latent per position.

    Attributes:
        heads: query heads; each is a pruning unit.
        q_rank: rank of the compressed queries, 0 where queries are projected in one step.
        kv_rank: size of the latent.
        nope_dim, rope_dim: elements per head without and with rotary position; the latter are shared by all heads.
        v_dim: value elements per head.
        bias: whether the compressing projections and the output have biases.
        path: of the attention module inside the block.
    """

    heads: int
    q_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    bias: bool = False
    path: str = "self_attn"


@dataclass(frozen=True, slots=True)
class Mlp:
    """A feed-forward network.

    Attributes:
        ffn: channels.
        gated: whether one half of the first projections gates the other.
        names: projections in order; a gated one with two names keeps gate and up in one weight.
        bias: whether its projections have biases.
        path: of the module inside the block, "" where the projections lie in the block itself.
        multiple: channels per channel of the block's pruning unit (shared experts may be wider than routed ones);
            0 where they are no whole multiple: then this network is not pruned.
    """

    ffn: int
    gated: bool = True
    names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    bias: bool = False
    path: str = "mlp"
    multiple: int = 1

    @property
    def channels(self) -> Dim:
        """The prunable number of channels."""
        return Dim(per_ffn=self.multiple) if self.multiple else Dim(self.ffn)


@dataclass(frozen=True, slots=True)
class Moe:
    """A mixture of experts.

    Attributes:
        n_experts, n_active: routed experts, and how many of them a token passes through.
        ffn: channels of each.
        path: of the module inside the block.
        router: its leaf.
        experts: leaf of the routed experts, whose weights lie in two tensors.
        bias: whether router and experts have biases.
        correction: leaf of a bias per expert that corrects the choice, "" without.
        shared: network that every token passes through beside the routed experts.
        shared_gate: leaf of the linear gate of the shared network, "" without.
    """

    n_experts: int
    n_active: int
    ffn: int
    path: str = "mlp"
    router: str = "gate"
    experts: str = "experts"
    bias: bool = False
    correction: str = ""
    shared: Mlp | None = None
    shared_gate: str = ""


Core = Attention | LatentAttention | Mlp | Moe


@dataclass(frozen=True, slots=True)
class Residual:
    """``x + scale * after(core(before(x)))``.

    Attributes:
        core: what is computed.
        before, after: norms around it.
        scale: leaf of a learned factor, "" without.
        scalar: whether that factor is one number (a gate), not one per feature (layer scale).
    """

    core: Core
    before: Norm | None = None
    after: Norm | None = None
    scale: str = ""
    scalar: bool = False


BlockShape = tuple[Residual, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One parameterised step of an encoder outside its blocks, or of a projector.

    Attributes:
        leaf: its path, relative to the pipeline; "" only where there are no parameters.
        kind: LINEAR, NORM, POSITION (a table added to the features) or PARAMETER (the same, held as a tensor).
        k: input features; of tables, the number of rows.
        n: output features.
        bias: whether there is a bias.
        rows: row symbol from this step on, "" for that of the step before.
        used: False for parameters that a forward pass does not use.
        added: False for parameters that take no operator of their own (a class token).
        lookup: elements looked up per row of an embedding, where that is not ``n``.
    """

    leaf: str
    kind: ModuleKind
    k: int
    n: int
    bias: bool = False
    rows: str = ""
    used: bool = True
    added: bool = True
    lookup: int = 0


@dataclass(frozen=True, slots=True)
class Vector:
    """One step without parameters: an activation, or positions gathered into fewer (POOL).

    Attributes:
        name: leaf of the operator's name.
        pool: whether positions are gathered; otherwise it is an activation.
        n: elements written per row.
        rows: row symbol from this step on, "" for that of the step before.
        states: features of further layers that are read beside the input: 0 for that of the first block, i for the
            output of block i - 1.
    """

    name: str
    n: int
    pool: bool = False
    rows: str = ""
    states: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Regroup:
    """A change of rows that moves no data: neighbouring positions are read as one."""

    rows: str


@dataclass(frozen=True, slots=True)
class Stack:
    """Repeated blocks.

    Attributes:
        path: of the list of blocks, relative to the pipeline.
        blocks: their shapes.
        n_used: blocks that a forward pass runs; the others are parameters only.
        taps: (block, pipeline) pairs: pipelines that read the output of a block beside the next block.
    """

    path: str
    blocks: tuple[BlockShape, ...]
    n_used: int
    taps: tuple[tuple[int, Pipeline], ...] = ()


Item = Step | Vector | Regroup | Stack


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A chain of steps and stacks of one component of the encode phase.

    Attributes:
        component: "vision", "audio" or "projector".
        path: Hugging Face path that its leaves are relative to.
        hidden: features of its blocks.
        rows: row symbol at its start.
        span: what its attention looks at.
        items: the chain.
    """

    component: str
    path: str
    hidden: int
    rows: str
    span: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Decoder:
    """An autoregressive decoder.

    Attributes:
        path: Hugging Face path of its embedding and blocks.
        hidden: features.
        blocks: shapes of its blocks.
        vocab: rows of the head.
        embedding_rows: rows of the token table, more than ``vocab`` in some models.
        tied: whether the head shares the token table.
        norm: final norm.
        head: Hugging Face path of the head.
        head_bias: whether it has a bias.
        embed: leaf of the token table.
        layers: leaf of the list of blocks.
        positions: rows of a learned position table, 0 without.
        position_leaf: leaf of that table.
        inputs: row symbols of encoder outputs that take the place of token embeddings.
        n_injected: first blocks after which further visual features are added.
        shares: whether token table and head are those of another model (of the target of a draft head).
        joined: feature vectors per position that one linear step joins before the blocks, 0 without it.
        n_heads: heads of a residual linear step and an own projection onto the vocabulary each, 0 for the usual one.
    """

    path: str
    hidden: int
    blocks: tuple[BlockShape, ...]
    vocab: int
    tied: bool
    norm: Norm
    embedding_rows: int
    head: str = "lm_head"
    head_bias: bool = False
    embed: str = "embed_tokens"
    layers: str = "layers"
    positions: int = 0
    position_leaf: str = "embed_positions"
    inputs: tuple[str, ...] = ()
    n_injected: int = 0
    shares: bool = False
    joined: int = 0
    n_heads: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """A whole model: the pipelines of its encode phase in order, and its decoder."""

    pipelines: tuple[Pipeline, ...]
    decoder: Decoder
