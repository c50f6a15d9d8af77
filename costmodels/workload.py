"""What a request amounts to: tokens, contexts and memory of a batch of designs, phase by phase.

Binds the symbols of the operator graphs to numbers. A request has three phases: *encode* (vision and audio towers and
their projectors), *prefill* (the decoder over prompt, visual and audio tokens, up to the first output token) and
*decode* (one pass per further output token). Decode is costed as its mean pass: every span is the exact mean over the
passes, at P + 1 ... P + T - 1 positions with P prompt positions and T output tokens, windows included.

Counted at 16 bits: norms, biases, position tables, and activations between operators. Weights and caches below 16 bits
carry the scales and zero points of their groups.

Left out: paging and fragmentation of the cache, padding, the host's own preprocessing of images and sound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from costmodels.fused_designs import AskedPhase, asked_phase, n_forms
from costmodels.fused_tables import FusedTables, fused_tables
from costmodels.products import Widths
from costmodels.sums import Matrices, sum_stored_bytes
from costmodels.tables import (
    Binding,
    Dims,
    Gemms,
    GemmTable,
    Kept,
    Rows,
    VectorTable,
    bind_widths,
    block_columns,
    cache_columns,
    chunk_pairs,
    dim_table,
    group_bits,
    unique_rows,
    weight_columns,
)
from dse.designs import DesignBatch
from dse.metrics import Limit
from dse.model import AudioLayout, Cache, Dim, Model, Module, ModuleKind, VisualLayout
from dse.model.images import resized
from dse.problem import TARGET, Problem, WeightFormat
from dse.schema import Schema

PHASES: Final = ("encode", "prefill", "decode")

_ONE: Final = np.ones((1, 1))


@dataclass(frozen=True)
class Pass:
    """One pass that is asked for by its lengths, where those are not the request's own; arrays (n,), float64.

    Attributes:
        phase: the graph that runs: "encode" (which has no lengths of its own), "prefill", or "decode", which a
            verification step is with more rows.
        rows: decoder positions per sequence that it computes.
        context: positions of a sequence at its end, those rows included.
        logits: rows of a sequence that go through the head.
    """

    phase: str
    rows: np.ndarray
    context: np.ndarray
    logits: np.ndarray

    def take(self, rows: slice) -> Pass:
        """Return the given rows."""
        return Pass(self.phase, self.rows[rows], self.context[rows], self.logits[rows])


@dataclass(frozen=True)
class PhaseSizes:
    """One pass of a phase.

    Attributes:
        name: "encode", "prefill" or "decode".
        passes: how often it runs per request.
        gemms: its matrix products.
        elements: elements that each vector group writes, shape (n or 1, g).
        cache_bytes: bytes it appends to the key-value cache, shape (n or 1, 1).
        fused: what it runs in fused groups, None for nothing.
    """

    name: str
    passes: float
    gemms: Gemms
    elements: np.ndarray
    cache_bytes: np.ndarray
    fused: AskedPhase | None = None


@dataclass(frozen=True)
class Sizes:
    """A batch of designs in numbers.

    Attributes:
        phases: one pass of each phase that has work.
        requests: requests that run together, shape (n or 1, 1).
        weight_bytes, kv_bytes: what stays in memory, shape (n,).
        limits: laws of context length.
        kept: what pruning leaves.
        widths: bits of operands and caches.
        cache_bytes: of each cache at the end of the requests, shape (n or 1, caches).
    """

    phases: list[PhaseSizes]
    requests: np.ndarray
    weight_bytes: np.ndarray
    kv_bytes: np.ndarray
    limits: list[Limit]
    kept: Kept
    widths: Widths
    cache_bytes: np.ndarray


@dataclass(frozen=True)
class VisualTokens:
    """What designs leave of the visual tokens, shape (n or 1,).

    Attributes:
        share: visual tokens relative to the original image without stride and dropping.
        is_only_dropped: whether tokens are only dropped, not pooled, and the image keeps its size.
    """

    share: np.ndarray
    is_only_dropped: np.ndarray


class Workload:
    """A problem's request, prepared for sizing designs.

    Args:
        problem: the problem.
        role: the model it is about.
    """

    def __init__(self, problem: Problem, role: str = TARGET) -> None:
        self.problem, self.role = problem, role
        self.model: Model = problem.models[role]
        self._prepared: dict[int, _Tables] = {}

    def tables(self, schema: Schema) -> _Tables:
        """Return the arrays over operators and modules for a schema (they differ by its channel groups alone)."""
        tables = self._prepared.get(schema.channel_groups)
        if tables is None:
            tables = self._prepared[schema.channel_groups] = _Tables(self.model, schema, self.role, self.problem.fusion)
        return tables

    def size(
        self,
        batch: DesignBatch,
        requests: np.ndarray | None = None,
        *,
        with_fusion: bool = False,
        asked: Pass | None = None,
    ) -> Sizes:
        """Return the sizes of a batch of designs.

        Args:
            batch: the designs.
            requests: requests that run together where those are not the design's batch, shape (n,).
            with_fusion: whether operators that designs fuse are set apart; otherwise all run alone.
            asked: the one pass to size in place of the request's phases.
        """
        tables = self.tables(batch.schema)
        kept = tables.kept(batch).full(len(batch))
        tokens = _Tokens(self, batch)
        if requests is not None:
            tokens.requests = requests[:, None]
        running = tables.running(kept, tokens.states)
        form = self.problem.weight_format
        widths = bind_widths(batch, form)
        cached = tables.positions.per_position(widths, kept, form)
        phases = []
        fuses = with_fusion and bool(n_forms(batch).any())
        for name, gemms in tables.gemms.items():
            passes = self.passes(name)
            if not passes or (asked is not None and name != asked.phase):
                continue
            bound = _Bound(tokens, name, self.problem.scenario.output_tokens, asked)
            fused = asked_phase(batch, self.role, tables.fused(name)) if fuses else None
            elements = tables.vectors[name].elements(running, bound, fused.skipped_vectors if fused else None)
            appended = self._appended(name, bound, tables.positions.by_rows(cached))
            phases.append(PhaseSizes(name, passes, gemms.size(running, bound, widths), elements, appended, fused))
        n = len(batch)
        caches = self._cache_bytes(tables, cached, tokens)
        return Sizes(
            phases=phases,
            requests=tokens.requests,
            weight_bytes=tables.weight_bytes(widths, kept),
            kv_bytes=np.broadcast_to(caches.sum(axis=1) * tokens.requests[:, 0], n),
            limits=self._limits(tokens, n),
            kept=kept,
            widths=widths,
            cache_bytes=caches * tokens.requests,
        )

    def prompt_tokens(self, batch: DesignBatch) -> np.ndarray:
        """Return the decoder positions of prefill, shape (n,)."""
        return np.array(np.broadcast_to(_Tokens(self, batch).prompt[:, 0], len(batch)), dtype=np.float64)

    def visual_tokens(self, batch: DesignBatch) -> VisualTokens | None:
        """Return what designs leave of the visual tokens; None for a request or a model without them."""
        rule = self.model.image_rule
        if rule is None or not self.problem.scenario.images or not rule.has_tokens:
            return None
        tokens = _Tokens(self, batch)
        width, height = self.problem.scenario.image_px
        whole = rule.layout(height, width).n_tokens
        alone = (tokens.stride == 1) & ((tokens.image_px == 0) | (tokens.image_px == max(width, height)))
        return VisualTokens(tokens.visual[:, 0] / (tokens.images * whole), alone[:, 0])

    def passes(self, phase: str) -> float:
        """Return how often a phase runs per request; 0 if the request has nothing for it.

        Decode counts at least one pass, so that the time per output token is defined for a request of one token; its
        share in the request's latency is ``output_tokens - 1`` passes.
        """
        scenario = self.problem.scenario
        if phase == "encode":
            looks, hears = self.model.image_rule is not None, self.model.audio_rule is not None
            return 1.0 if (scenario.images and looks) or (scenario.audio_s and hears) else 0.0
        return 1.0

    def _appended(self, phase: str, bound: _Bound, per_position: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the bytes that a pass appends to the cache, shape (n or 1, 1)."""
        if phase == "encode":
            return 0.0 * _ONE
        written = {"context": "token"} | ({"state": "state"} if phase == "prefill" else {})
        total = 0.0 * _ONE
        for rows, symbol in written.items():
            if rows in per_position:
                r = bound.rows(symbol)
                total = total + r.per_sequence * r.sequences * per_position[rows]
        return total

    def _cache_bytes(self, tables: _Tables, per_position: np.ndarray, tokens: _Tokens) -> np.ndarray:
        """Return the bytes of each cache of one request at its end, shape (n or 1, caches)."""
        return per_position * tables.positions.positions(tokens.reserved, tokens.states)

    def _limits(self, tokens: _Tokens, n: int) -> list[Limit]:
        limits = []
        needed = np.broadcast_to(tokens.final[:, 0], n)
        reserve = np.broadcast_to(tokens.max_context[:, 0], n)
        if (reserve > 0).any():
            text = "the request needs {needed} of context, max_context is {available}"
            limits.append(Limit("context_tokens", needed, np.where(reserve > 0, reserve, np.inf), text))
        if self.model.max_context:
            longest = np.broadcast_to(np.maximum(tokens.final, tokens.reserved)[:, 0], n)
            text = f"{self.model.name} takes {{available}} of context, the design needs {{needed}}"
            limits.append(Limit("context_tokens", longest, np.full(n, float(self.model.max_context)), text))
        return limits


class _Tables:
    """Arrays over operators, modules and blocks of one model under one schema."""

    def __init__(
        self, model: Model, schema: Schema, role: str, fusion: Mapping[str, Sequence[tuple[str, str]]]
    ) -> None:
        self._role, self._model, self._fusion = role, model, fusion
        self._fused: dict[str, FusedTables] = {}
        graphs = {phase: model.graph(phase) for phase in PHASES}
        self.gemms = {p: GemmTable(g, model, schema, role) for p, g in graphs.items() if g.ops}
        self.vectors = {p: VectorTable(g, model) for p, g in graphs.items() if g.ops}
        self.weight_bytes = _StoredWeights(model, schema, role)
        self.positions = _CachedPositions(model, schema, role)
        self._n_blocks = len(model.blocks)
        self._units = np.array([[b.head_units, b.ffn_units] for b in model.blocks], dtype=np.float64).reshape(-1, 2)
        crosses = [any(c.rows == "state" for c in b.caches) for b in model.blocks]
        self._crosses = np.array([*crosses, False], dtype=bool)
        self._columns = {
            name: _block_entries(schema, name, model, role) for name in ("head_keep", "ffn_keep", "block_keep")
        }

    def fused(self, phase: str) -> FusedTables:
        """Return the groups of a phase that designs may fuse, made when first asked for."""
        if phase not in self._fused:
            columns = {symbol: x for x, symbol in enumerate(self.gemms[phase].row_symbols)}
            self._fused[phase] = fused_tables(self._model.graph(phase), self._model, columns, self._fusion)
        return self._fused[phase]

    def kept(self, batch: DesignBatch) -> Kept:
        """Return the units that pruning leaves: the kept fraction, rounded up to whole units."""
        heads, channels = (
            np.ceil(self._fraction(batch, name) * self._units[:, i] - 1e-9)
            for i, name in enumerate(("head_keep", "ffn_keep"))
        )
        block = self._fraction(batch, "block_keep")
        return Kept(*(np.concatenate([a, np.ones((len(a), 1))], axis=1) for a in (heads, channels, block)))

    def running(self, kept: Kept, states: np.ndarray) -> Kept:
        """Return what a pass runs: layers that look at encoder states are skipped as a whole where there are none."""
        if not self._crosses.any() or (states > 0).all():
            return kept
        return Kept(kept.heads, kept.channels, np.where(self._crosses & (states == 0), 0.0, kept.block))

    def _fraction(self, batch: DesignBatch, name: str) -> np.ndarray:
        fractions = np.ones((1, self._n_blocks))
        blocks, entries = self._columns[name]
        if not len(blocks):
            return fractions
        values = unique_rows(batch[name]).astype(np.float64)
        fractions = np.ones((len(values), self._n_blocks))
        fractions[:, blocks] = values[:, entries]
        return fractions


def _block_entries(schema: Schema, name: str, model: Model, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which blocks have an entry of a field, and which entry it is."""
    field = schema.fields.get(name)
    columns = {(b.component, b.index): i for i, b in enumerate(model.blocks)}
    entries = field.entries if field is not None else ()
    pairs = [(columns[e.component, e.block], i) for i, e in enumerate(entries) if e.role == role]
    table = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return table[:, 0], table[:, 1]


class _StoredWeights:
    """Bytes of all parameters of a model: matrices at their bits, all else at 16."""

    def __init__(self, model: Model, schema: Schema, role: str) -> None:
        quantised = (ModuleKind.LINEAR, ModuleKind.EMBEDDING)
        matrices = [m for m in model.modules if m.kind in quantised and not m.tied_to]
        plain = [m for m in model.modules if m.kind not in quantised]
        biased = [m for m in model.modules if m.bias]
        self.modules: list[Module] = [*matrices, *plain, *biased]
        modules = self.modules
        # Groups run along the features that a product sums over: inputs of a linear module, columns of a table.
        is_table = [m.kind is ModuleKind.EMBEDDING for m in matrices]
        grouped = [m.out_dim if t else m.in_dim for m, t in zip(matrices, is_table, strict=True)]
        channels = [m.in_dim if t else m.out_dim for m, t in zip(matrices, is_table, strict=True)]
        weight, share = weight_columns([*matrices, *(None for _ in [*plain, *biased])], schema, role)
        self.matrices = Matrices(
            block=block_columns(modules, model),
            grouped=dim_table([*grouped, *(m.in_dim for m in plain), *(Dim(1) for _ in biased)]),
            channels=dim_table([*channels, *(m.out_dim for m in plain), *(m.out_dim for m in biased)]),
            copies=np.array([m.n_copies for m in modules], dtype=np.float64),
            weight=weight,
            share=share,
        )

    def __call__(self, widths: Widths, kept: Kept) -> np.ndarray:
        """Return the bytes of each design's weights, shape (n,)."""
        return sum_stored_bytes(self.matrices, widths, kept.heads, kept.channels, kept.block)


class _CachedPositions:
    """Bytes per cached position, cache by cache."""

    def __init__(self, model: Model, schema: Schema, role: str) -> None:
        pairs = [(block, cache) for block in model.blocks for cache in block.caches]
        self._caches: list[Cache] = [cache for _, cache in pairs]
        columns = {(b.component, b.index): i for i, b in enumerate(model.blocks)}
        at = [(block.component, block.index) for block, _ in pairs]
        self.block = np.array([columns[c] for c in at], dtype=np.intp)
        self.has_fixed = np.array([c.k.fixed > 0 for c in self._caches], dtype=bool)
        self._k, self._v = Dims([c.k for c in self._caches]), Dims([c.v for c in self._caches])
        self._k_column, self._v_column = (cache_columns(at, name, schema, role) for name in ("k_bits", "v_bits"))

    def per_position(self, widths: Widths, kept: Kept, form: WeightFormat) -> np.ndarray:
        """Return the bytes of one position of each cache, shape (n, caches)."""

        def stored(size: np.ndarray, column: np.ndarray) -> np.ndarray:
            bits = widths.cache[:, column]
            return size * (bits + group_bits(bits, form) / form.group_size)

        k = stored(self._k.size(kept, self.block), self._k_column)
        v = stored(self._v.size(kept, self.block), self._v_column)
        return (k + v) / 8 * kept.block[:, self.block]

    def by_rows(self, per_position: np.ndarray) -> dict[str, np.ndarray]:
        """Return the bytes that one position adds over all caches, by kind of position, shape (n, 1)."""
        kinds = np.array([c.rows for c in self._caches])
        return {k: per_position[:, kinds == k].sum(axis=1, keepdims=True) for k in dict.fromkeys(kinds.tolist())}

    def positions(self, context: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Return the positions that each cache holds, shape (n or 1, caches)."""
        is_state = np.array([c.rows == "state" for c in self._caches], dtype=bool)
        window = np.array([c.window or np.inf for c in self._caches])
        return np.minimum(np.where(is_state, states, context), window)


class _Tokens:
    """Lengths of a request under each design, arrays of shape (n or 1, 1)."""

    def __init__(self, workload: Workload, batch: DesignBatch) -> None:
        self._workload, self._batch = workload, batch
        scenario = workload.problem.scenario
        self.requests = unique_rows(batch["batch"]).astype(np.float64)[:, None]
        # A drafter may read text alone beside a target that also sees and hears.
        self.images = float(scenario.images) if workload.model.image_rule is not None else 0.0
        self.audio: AudioLayout | None = None
        rule = workload.model.audio_rule
        if scenario.audio_s and rule is not None:
            self.audio = rule.layout(scenario.audio_s)

    def _role(self, name: str, default: float) -> np.ndarray:
        if name not in self._batch or not any(
            e.role == self._workload.role for e in self._batch.schema.fields[name].entries
        ):
            return np.full((1, 1), default)
        return unique_rows(self._batch.of_role(name, self._workload.role)).astype(np.float64)[:, None]

    @cached_property
    def max_context(self) -> np.ndarray:
        """What the cache is sized for; 0 for what the request needs."""
        return self._role("max_context", 0.0)

    @cached_property
    def image_px(self) -> np.ndarray:
        """Longer side of the image; 0 for the original."""
        return self._role("image_px", 0.0)

    @cached_property
    def stride(self) -> np.ndarray:
        """Stride of pooling over visual tokens."""
        return self._role("token_stride", 1.0)

    @cached_property
    def visual(self) -> np.ndarray:
        """Visual tokens of one request that reach the decoder."""
        keep = self._role("visual_token_keep", 1.0)
        return self.images * np.ceil(keep * self._strided() - 1e-9)

    @cached_property
    def prompt(self) -> np.ndarray:
        """Decoder positions of prefill: text, visual and audio tokens with their delimiters."""
        extra = self.images * self.per_image(lambda layout: layout.extra_tokens)
        sound = float(self.audio.n_tokens + self.audio.extra_tokens) if self.audio else 0.0
        return self._workload.problem.scenario.prompt_tokens + self.visual + extra + sound

    @cached_property
    def final(self) -> np.ndarray:
        """Positions at the end of the request."""
        return self.prompt + self._workload.problem.scenario.output_tokens

    @cached_property
    def reserved(self) -> np.ndarray:
        """Positions that the cache has room for."""
        return np.where(self.max_context > 0, self.max_context, self.final)

    @cached_property
    def states(self) -> np.ndarray:
        """Encoder states of one request."""
        sound = float(self.audio.n_states) if self.audio else 0.0
        return self.images * self.per_image(lambda layout: layout.n_states) + sound

    @cached_property
    def _layouts(self) -> tuple[list[VisualLayout], np.ndarray]:
        """The distinct layouts of an image, and which one each design has; worked out per size, not per design."""
        rule, (width, height) = self._workload.model.image_rule, self._workload.problem.scenario.image_px
        assert rule is not None
        sides, which = np.unique(self.image_px[:, 0], return_inverse=True)
        return [rule.layout(*resized(height, width, side)) for side in sides.tolist()], which

    def per_image(self, of: Callable[[VisualLayout], int]) -> np.ndarray:
        """Return a property of the image's layout for each design; 0 without images."""
        if not self.images:
            return 0.0 * _ONE
        layouts, which = self._layouts
        return np.array([float(of(layout)) for layout in layouts])[which][:, None]

    def _strided(self) -> np.ndarray:
        """Return the visual tokens of an image after pooling."""
        if not self.images:
            return 0.0 * _ONE
        layouts, which = self._layouts
        strides, column = np.unique(self.stride[:, 0], return_inverse=True)
        table = np.array([[float(layout.strided(int(s))) for s in strides] for layout in layouts])
        return table[np.broadcast_arrays(which, column)[0], column][:, None]


class _Bound(Binding):
    """The symbols of one phase."""

    def __init__(self, tokens: _Tokens, phase: str, output_tokens: int, asked: Pass | None) -> None:
        self._tokens, self._phase, self._output_tokens = tokens, phase, output_tokens
        self._asked = asked if asked is not None and phase != "encode" else None

    def rows(self, symbol: str) -> Rows:
        """Return the rows of a symbol, over all requests of the batch."""
        t, audio = self._tokens, self._tokens.audio
        requests = t.requests
        if self._asked is not None and symbol in ("token", "last"):
            rows = self._asked.rows if symbol == "token" else self._asked.logits
            return Rows(rows[:, None], requests)
        if symbol in ("token", "last"):
            per_sequence = t.prompt if (symbol == "token" and self._phase == "prefill") else _ONE
            return Rows(per_sequence, requests)
        if symbol == "visual":
            return Rows(t.visual * self._part, requests)
        if symbol == "state":
            # Their keys and values are computed with the first chunk of a prompt.
            return Rows(t.states * self._is_first, requests)
        if symbol in ("cut", "patch", "merged"):
            sequences = t.per_image(lambda layout: layout.n_sequences) * t.images * requests
            attribute = {"cut": "cuts", "patch": "patches", "merged": "merged"}[symbol]
            return Rows(t.per_image(lambda layout: getattr(layout, attribute)), sequences)
        if audio is None:
            return Rows(0.0 * _ONE, requests)
        if symbol == "audio":
            return Rows(audio.n_tokens * self._part, requests)
        attribute = {"mel": "mel", "frame": "frames", "pooled": "pooled"}[symbol]
        return Rows(np.full((1, 1), float(getattr(audio, attribute))), audio.n_windows * requests)

    @property
    def _is_first(self) -> np.ndarray:
        """Whether the pass starts at the first position, as a factor."""
        asked = self._asked
        return _ONE if asked is None else (asked.rows >= asked.context).astype(np.float64)[:, None]

    @property
    def _part(self) -> np.ndarray:
        """Part of the prompt that the pass runs: visual and audio tokens are taken to be spread over it evenly."""
        asked = self._asked
        return _ONE if asked is None else np.minimum(asked.rows[:, None] / self._tokens.prompt, 1.0)

    @property
    def behind(self) -> np.ndarray | None:
        """Positions before the first row of the pass that is asked for, shape (n, 1)."""
        asked = self._asked
        return None if asked is None else (asked.context - asked.rows)[:, None]

    def span(self, symbol: str, window: int, chunked: bool) -> np.ndarray:
        """Return the positions that a row looks at; in decode the mean over the passes."""
        t = self._tokens
        if symbol == "context":
            return self._context(window, chunked)
        if symbol == "patch":
            length = t.per_image(lambda layout: layout.patches)
        elif symbol == "frame":
            length = np.full((1, 1), float(t.audio.frames if t.audio else 0))
        else:
            # A pass over sound sees the states of one window at a time.
            length = np.full((1, 1), float(t.audio.frames)) if t.audio else t.states
        return np.minimum(length, window) if window else length

    def _context(self, window: int, chunked: bool) -> np.ndarray:
        if self._asked is not None:
            context = self._asked.context[:, None]
            if chunked:
                return np.minimum(np.maximum(np.mod(context - 1, window) + 1, self._asked.rows[:, None]), window)
            return np.minimum(context, window) if window else context
        if self._phase == "prefill":
            return np.minimum(self._tokens.prompt, window) if window else self._tokens.prompt
        first = self._tokens.prompt + 1
        steps = max(1, self._output_tokens - 1)
        if chunked:
            return mean_chunk(first, steps, window)
        return mean_span(first, steps, window)


def mean_span(first: np.ndarray, steps: int, window: int) -> np.ndarray:
    """Return the mean of min(first + t, window) over t = 0 ... steps - 1; no bound for window 0."""
    if not window:
        return first + (steps - 1) / 2
    growing = np.clip(window - first, 0, steps)  # passes that still see everything
    total = growing * first + growing * (growing - 1) / 2 + (steps - growing) * window
    return total / steps


def mean_chunk(first: np.ndarray, steps: int, chunk: int) -> np.ndarray:
    """Return the mean length of the current chunk over the passes: position p sees (p - 1) mod chunk + 1."""
    return (chunk_pairs(first + steps - 1, chunk) - chunk_pairs(first - 1, chunk)) / steps
