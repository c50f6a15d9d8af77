"""The parts a model is made of: modules (what has parameters) and operators (what is computed).

A model is read once into two tables that everything else works on:

- the **module table**, one :class:`Module` per parameterised module of the checkpoint, under its Hugging Face path;
  parameters, weight bytes and the groups of the bit maps follow from it;
- an **operator graph** per phase, one :class:`Op` per kernel-sized step with its producers; FLOPs, traffic and
  latency follow from it, and a fusion choice is a partition of its edges.

Dimensions that structural pruning shrinks are linear in the units that are kept (:class:`Dim`), so a cost model gets
the pruned size of every operand of every design by three multiply-adds on arrays.

Phases. ``encode`` runs the encoders and projectors, ``prefill`` the decoder over the prompt, ``decode`` the decoder
over new tokens. A verification step of speculative decoding is ``decode`` with more rows.

Row symbols. How often an operator runs in a pass is a symbol, bound to a number by the workload
(:meth:`VisualLayout.rows` and :meth:`AudioLayout.rows` bind those of one image and one clip, ``spans`` their spans):

    "cut"       patches cut from the pixels (over all tiles of all images)
    "patch"     positions inside the vision encoder: the cuts, class tokens and the encoder's own padding
    "merged"    positions after the encoder's own merging or pooling, before any ``token_stride``
    "visual"    visual tokens handed to the decoder (after ``token_stride`` and ``visual_token_keep``)
    "mel"       input frames of the audio encoder (before its strided convolution)
    "frame"     positions inside the audio encoder
    "pooled"    positions after the audio encoder's own pooling, padding of a short clip included
    "audio"     audio tokens handed to the decoder
    "token"     decoder positions of this pass: prompt, visual and audio tokens in prefill, 1 per sequence in decode
    "last"      positions whose logits are wanted: 1 per sequence, in verification ``draft_tokens + 1``
    "state"     encoder states that cross-attention layers look at

Spans. An attention operator looks at ``span`` positions per query row:

    "patch"     the patches of one tile or image            "frame"    the frames of one audio window
    "context"   all positions so far, this pass included    "state"    the encoder states
    and at most ``window`` of them where that is not 0.

Left out: scalar factors (embedding, residual and logit multipliers, soft-caps, attention scales), which kernels fold
into their neighbours; dropout; and the copies that views and transposes may cost.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NamedTuple

PHASES: Final = ("encode", "prefill", "decode")
ROWS: Final = ("cut", "patch", "merged", "visual", "mel", "frame", "pooled", "audio", "token", "last", "state")
SPANS: Final = ("patch", "frame", "context", "state")
COMPONENTS: Final = ("vision", "audio", "projector", "decoder")


class Dim(NamedTuple):
    """A size that pruning may shrink: ``fixed + per_head * heads_kept + per_ffn * channels_kept`` elements.

    ``heads_kept`` counts the attention units of the block the dimension belongs to (:attr:`Block.head_units`), and
    ``channels_kept`` its MLP channels (:attr:`Block.ffn_units`).
    """

    fixed: int = 0
    per_head: int = 0
    per_ffn: int = 0

    def size(self, heads_kept: int = 0, channels_kept: int = 0) -> int:
        """Return the number of elements."""
        return self.fixed + self.per_head * heads_kept + self.per_ffn * channels_kept

    def plus(self, other: Dim) -> Dim:
        """Return the size of two operands laid side by side."""
        return Dim(self.fixed + other.fixed, self.per_head + other.per_head, self.per_ffn + other.per_ffn)

    def times(self, n: int) -> Dim:
        """Return the size of ``n`` such operands."""
        return Dim(self.fixed * n, self.per_head * n, self.per_ffn * n)


NO_DIM: Final = Dim()


class Section(enum.StrEnum):
    """Where in its component a module sits: before, inside or after the repeated blocks."""

    STEM = "stem"
    BLOCK = "block"
    HEAD = "head"


class ModuleKind(enum.StrEnum):
    """What a module's parameters do."""

    LINEAR = "linear"  # a matrix product; strided convolutions over patches and frames are one, too
    EMBEDDING = "embedding"  # the table of tokens, looked up
    POSITION = "position"  # a table of positions, looked up or added; small, and never quantised
    NORM = "norm"
    PARAMETER = "parameter"  # class tokens, position tables, gates, router biases


@dataclass(frozen=True, slots=True)
class Module:
    """One parameterised module: a row of the layer table.

    Attributes:
        path: Hugging Face module path ("model.language_model.layers.0.self_attn.q_proj"); of experts that
            transformers keeps in one tensor, the path of that tensor.
        kind: what the parameters do.
        component: "vision", "audio", "projector" or "decoder".
        section: stem, block or head.
        block: index of the block inside the component, -1 outside blocks.
        leaf: path inside the block or section ("self_attn.q_proj"): equal for all like blocks of a component.
        part: "attention" or "mlp" for what belongs to these halves of a block, "" for other modules.
        in_dim: input features (of a convolution: kernel positions x channels); of an embedding or a parameter, the
            number of rows; of a norm, 1.
        out_dim: output features.
        bias: whether there is a bias of ``out_dim`` elements per copy.
        n_copies: copies of the weight (experts), each of the given size.
        n_active: copies one row passes through (experts per token).
        tied_to: path of the module whose weight this one shares; it then has no weight of its own.
    """

    path: str
    kind: ModuleKind
    component: str
    section: Section
    block: int
    leaf: str
    part: str
    in_dim: Dim
    out_dim: Dim
    bias: bool = False
    n_copies: int = 1
    n_active: int = 1
    tied_to: str = ""

    def n_weights(self, heads: int = 0, channels: int = 0) -> int:
        """Return the elements of the weight, all copies, without biases; tied or not."""
        return self.n_copies * self.in_dim.size(heads, channels) * self.out_dim.size(heads, channels)

    def n_biases(self, heads: int = 0, channels: int = 0) -> int:
        """Return the elements of the biases, all copies."""
        return self.n_copies * self.out_dim.size(heads, channels) if self.bias else 0

    def n_params(self, heads: int = 0, channels: int = 0) -> int:
        """Return the elements this module adds to the model: weights unless tied, and biases."""
        return (0 if self.tied_to else self.n_weights(heads, channels)) + self.n_biases(heads, channels)


@dataclass(frozen=True, slots=True)
class Cache:
    """What one block keeps per cached position.

    Attributes:
        k: key elements per position. With multi-head latent attention, the latent and its rotary part.
        v: value elements per position; nothing for latent attention, whose latent serves both.
        window: positions kept at most, 0 for all.
        rows: what a position is: "context" (grows with the tokens) or "state" (one per encoder state, fixed).
    """

    k: Dim
    v: Dim
    window: int = 0
    rows: str = "context"


@dataclass(frozen=True, slots=True)
class Block:
    """One repeated block of a component.

    Attributes:
        component: the component it belongs to.
        index: its index there.
        head_units: attention units that can be pruned: query heads with their keys and values where each query head
            has its own, otherwise query heads per key-value head (all key-value heads keep the same number). A block
            with self- and cross-attention prunes both alike.
        ffn_units: MLP channels that can be pruned; of a mixture of experts, channels of each expert.
        caches: what it caches (self-attention, cross-attention), empty in encoders.
        used: whether a forward pass runs it; the last blocks of some encoders are parameters without work.
    """

    component: str
    index: int
    head_units: int
    ffn_units: int
    caches: tuple[Cache, ...] = ()
    used: bool = True


class OpKind(enum.StrEnum):
    """What an operator computes. The first three are matrix products, the rest vector work or data movement."""

    LINEAR = "linear"  # rows x k x n, weight from ``module``
    SCORE = "score"  # rows x head_dim x span per head, second operand: keys
    VALUE = "value"  # rows x span x head_dim per head, second operand: values
    SOFTMAX = "softmax"  # rows x heads x span elements
    NORM = "norm"  # rows x n elements
    ROPE = "rope"
    ACTIVATION = "activation"
    MULTIPLY = "multiply"
    ADD = "add"
    EMBED = "embed"  # rows x n elements looked up
    ROUTE = "route"  # scores and top-k over n experts
    POOL = "pool"  # averages or gathers positions
    CACHE = "cache"  # rows x n elements appended to the key-value cache

    @property
    def is_matmul(self) -> bool:
        """Whether the operator runs on the matrix unit."""
        return self in (OpKind.LINEAR, OpKind.SCORE, OpKind.VALUE)

    @property
    def is_attention(self) -> bool:
        """Whether the operator's size depends on the attention span."""
        return self in (OpKind.SCORE, OpKind.VALUE, OpKind.SOFTMAX)


@dataclass(frozen=True, slots=True)
class Op:
    """One operator of a phase: a node of the graph.

    Attributes:
        name: unique in its graph ("decoder.3.self_attn.q_proj", "decoder.3.self_attn.score").
        kind: what it computes.
        component: component it belongs to.
        block: block inside the component, -1 outside blocks.
        rows: symbol of the number of rows (see the module docstring).
        k: inner features per row (linear: input features; score: elements per head).
        n: output features per row (value: elements per head; vector work: elements written per row).
        inputs: names of the operators whose outputs it reads; outputs of earlier phases and user inputs are absent.
        module: path of the module whose parameters it uses, "" without any.
        n_active: times each row passes through it (experts per token); its weight has ``Module.n_copies`` copies.
        heads: query heads (score, softmax, value). Of a linear operator with heads, the weight is block-diagonal:
            ``k`` and ``n`` are those of one head (latent attention in decode); without heads it is dense.
        kv_heads: key-value heads read (score, value).
        span: symbol of the attention span.
        window: positions looked at, at most; 0 for all.
        chunked: whether the window is a fixed chunk that starts anew at its multiples, not a sliding one.
        causal: whether a row sees only positions up to its own.
        cached: whether keys or values come from the key-value cache.
    """

    name: str
    kind: OpKind
    component: str
    block: int
    rows: str
    k: Dim = NO_DIM
    n: Dim = NO_DIM
    inputs: tuple[str, ...] = ()
    module: str = ""
    n_active: int = 1
    heads: Dim = NO_DIM
    kv_heads: Dim = NO_DIM
    span: str = ""
    window: int = 0
    chunked: bool = False
    causal: bool = False
    cached: bool = False

    def n_weights(self, heads: int = 0, channels: int = 0) -> int:
        """Return the elements of one copy of the weight that a linear operator reads, 0 for other kinds.

        Two operators may share a module (the two sides of absorbed latent attention): each reads its own part.
        """
        if self.kind is not OpKind.LINEAR:
            return 0
        blocks = self.heads.size(heads, channels) if self.heads != NO_DIM else 1
        return blocks * self.k.size(heads, channels) * self.n.size(heads, channels)


@dataclass(frozen=True, slots=True)
class Graph:
    """The operators of one phase in an order that respects their edges."""

    phase: str
    ops: tuple[Op, ...]

    def edges(self) -> list[tuple[str, str]]:
        """Return all (producer, consumer) pairs."""
        return [(producer, op.name) for op in self.ops for producer in op.inputs]


@dataclass(frozen=True, slots=True)
class Grid:
    """``n`` equal grids of visual tokens, ``rows`` x ``cols`` each (one image, or the tiles it is cut into)."""

    n: int
    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class VisualLayout:
    """What one image becomes.

    Attributes:
        height_px, width_px: size after the model's own resizing, of the whole image or of the canvas of its tiles
            (a thumbnail or global view not included).
        n_sequences: sequences that attend only to themselves in the encoder (tiles; 1 for a whole image).
        cuts: patches cut from one such sequence.
        patches: positions of one such sequence: cuts, class token and the encoder's own padding.
        merged: positions of one such sequence after the encoder's own merging, which the projector works on.
        grids: visual tokens that reach the decoder, as grids; without padding that the model drops.
        extra_tokens: tokens around them that the image adds to the prompt (delimiters, row separators).
        n_states: encoder states for cross-attention; then no visual token enters the decoder.
    """

    height_px: int
    width_px: int
    n_sequences: int
    cuts: int
    patches: int
    merged: int
    grids: tuple[Grid, ...]
    extra_tokens: int = 0
    n_states: int = 0

    @property
    def n_tokens(self) -> int:
        """Visual tokens handed to the decoder, delimiters not included."""
        return self.strided(1)

    @property
    def n_merged(self) -> int:
        """Positions after the encoder's own merging, over all sequences."""
        return self.n_sequences * self.merged

    def strided(self, stride: int) -> int:
        """Return the visual tokens left when each grid is pooled over ``stride`` x ``stride`` neighbours."""
        return sum(g.n * -(-g.rows // stride) * -(-g.cols // stride) for g in self.grids)

    def rows(self) -> dict[str, int]:
        """Return the row symbols of this image."""
        return {
            "cut": self.n_sequences * self.cuts,
            "patch": self.n_sequences * self.patches,
            "merged": self.n_merged,
            "visual": self.n_tokens,
            "state": self.n_states,
        }

    def spans(self) -> dict[str, int]:
        """Return the attention spans of this image."""
        return {"patch": self.patches, "state": self.n_states}


@dataclass(frozen=True, slots=True)
class AudioLayout:
    """What one audio clip becomes.

    Attributes:
        n_windows: windows the clip is cut into, each padded to the full length; they attend only to themselves.
        mel: input frames of one window.
        frames: encoder positions of one window.
        pooled: positions of one window after the encoder's own pooling, which the projector works on.
        n_tokens: audio tokens handed to the decoder, padding not included.
        extra_tokens: delimiters that the clip adds to the prompt.
        n_states: encoder states for cross-attention; then no audio token enters the decoder.
    """

    n_windows: int
    mel: int
    frames: int
    pooled: int
    n_tokens: int
    extra_tokens: int = 0
    n_states: int = 0

    def rows(self) -> dict[str, int]:
        """Return the row symbols of this clip."""
        return {
            "mel": self.n_windows * self.mel,
            "frame": self.n_windows * self.frames,
            "pooled": self.n_windows * self.pooled,
            "audio": self.n_tokens,
            "state": self.n_states,
        }

    def spans(self) -> dict[str, int]:
        """Return the attention spans of this clip; a decoder sees the states of one window at a time."""
        return {"frame": self.frames, "state": self.frames if self.n_states else 0}
