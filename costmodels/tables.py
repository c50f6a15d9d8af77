"""Operator graphs and module tables as arrays, prepared once per model so that batches are sized without Python loops.

Matrix products become the arrays that :func:`costmodels.products.size_products` works on. Vector work becomes groups of
like operators (same component, kind, rows and span) whose elements add up, because the time and energy of an element
depend on its kind alone.

Shapes: n designs, j products, g vector groups, b blocks, c channel groups. An array that is the same for all designs
has a leading axis of 1 and broadcasts. Numbers are float64, exact to 2^53.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Protocol, TypeVar

import numpy as np

from costmodels.products import LINEAR, PLAIN_BITS, SCORE, VALUE, Bound, Products, Widths, size_products
from costmodels.sums import sum_elements
from dse.designs import DesignBatch
from dse.model import Dim, Graph, Model, Module, Op, OpKind
from dse.problem import WeightFormat
from dse.schema import Schema

_T = TypeVar("_T")
_ONE: Final = np.ones((1, 1))

CLASSES: Final = ("linear", "attention", "norm", "elementwise", "cache")
_CLASS_OF: Final = {
    OpKind.LINEAR: "linear",
    OpKind.SCORE: "attention",
    OpKind.VALUE: "attention",
    OpKind.SOFTMAX: "attention",
    OpKind.NORM: "norm",
    OpKind.CACHE: "cache",
}
_PRODUCT_OF: Final = {OpKind.LINEAR: LINEAR, OpKind.SCORE: SCORE, OpKind.VALUE: VALUE}


def class_of(kind: OpKind) -> str:
    """Return the operator class that breakdowns use."""
    return _CLASS_OF.get(kind, "elementwise")


@dataclass(frozen=True)
class Rows:
    """A row symbol bound to numbers: ``per_sequence`` rows in each of ``sequences``, shapes (n or 1, 1)."""

    per_sequence: np.ndarray
    sequences: np.ndarray


class Binding(Protocol):
    """What a workload binds symbols to, for one phase and one batch of designs."""

    def rows(self, symbol: str) -> Rows:
        """Return the rows of a symbol."""
        ...

    def span(self, symbol: str, window: int, chunked: bool) -> np.ndarray:
        """Return the positions that a row looks at, shape (n or 1, 1)."""
        ...

    @property
    def behind(self) -> np.ndarray | None:
        """Positions before the first row of a pass that is asked for by its lengths, shape (n, 1)."""
        ...


@dataclass(frozen=True)
class Kept:
    """What pruning leaves of each block, with one more column for operators outside blocks, shape (n or 1, b + 1)."""

    heads: np.ndarray
    channels: np.ndarray
    block: np.ndarray

    def full(self, n: int) -> Kept:
        """Return the same with a row for each of n designs, as compiled loops want it."""
        return Kept(full(self.heads, n), full(self.channels, n), full(self.block, n))


@dataclass(frozen=True)
class Gemms:
    """The matrix products of one phase for a batch of designs, to be sized inside a compiled loop or all at once.

    Attributes:
        table: the products.
        bound: their symbols and pruning in numbers.
        widths: their widths.
        binding: what the symbols were bound by.
    """

    table: GemmTable
    bound: Bound
    widths: Widths
    binding: Binding

    @property
    def products(self) -> Products:
        """The products as arrays."""
        return self.table.products

    @property
    def is_weight(self) -> np.ndarray:
        """Whether B is a weight (else keys or values), shape (j,)."""
        return self.table.is_weight

    @property
    def is_cached(self) -> np.ndarray:
        """Whether B comes from the key-value cache, shape (j,)."""
        return self.table.is_cached

    @property
    def is_expert(self) -> np.ndarray:
        """Whether B is a weight of experts, shape (j,)."""
        return self.table.is_expert

    @property
    def launch_share(self) -> np.ndarray:
        """Part of a kernel launch that a product pays, shape (j,); a block's experts run as one kernel."""
        return self.table.launch_share

    @cached_property
    def planes(self) -> np.ndarray:
        """Result of :func:`costmodels.products.size_products`, shape (9, n, j)."""
        return size_products(self.products, self.bound, self.widths)

    def with_planes(self, planes: np.ndarray) -> Gemms:
        """Return the same products with other sizes (those of one of many devices, say)."""
        other = replace(self)
        vars(other)["planes"] = planes
        return other

    @cached_property
    def visible_ratio(self) -> np.ndarray:
        """Part of rows x span that a causal mask leaves, shape (n or 1, j)."""
        return self.table.visible(self.binding)


class GemmTable:
    """The matrix products of one phase.

    Attributes:
        labels: (component, class) of each.
        products: all of them as arrays.
        is_weight: whether B is a weight (else keys or values), shape (j,).
        is_cached: whether B comes from the key-value cache, shape (j,).
        row_symbols: symbols of the columns of bound rows.
    """

    def __init__(self, graph: Graph, model: Model, schema: Schema, role: str) -> None:
        ops = [op for op in graph.ops if op.kind.is_matmul]
        modules = [model.module(op.module) if op.module else None for op in ops]
        self.labels = [(op.component, class_of(op.kind)) for op in ops]
        self.is_weight = np.array([op.kind is OpKind.LINEAR for op in ops], dtype=bool)
        self.is_cached = np.array([op.cached for op in ops], dtype=bool)
        # Those of vector work too: fused groups may have no product.
        self.row_symbols, rows = distinct([op.rows for op in (*ops, *graph.ops)])
        rows = np.ascontiguousarray(rows[: len(ops)])
        self._spans, span = distinct([(op.span, op.window, op.chunked) for op in ops])
        self._masks, self._mask = distinct([(op.rows, op.span, op.window, op.chunked, op.causal) for op in ops])
        weight, share = weight_columns(modules, schema, role)
        self.products = Products(
            kind=np.array([_PRODUCT_OF[op.kind] for op in ops], dtype=np.int64),
            block=block_columns(ops, model),
            k=dim_table([op.k for op in ops]),
            n=dim_table([op.n for op in ops]),
            heads=dim_table([op.heads if op.heads != Dim() else Dim(1) for op in ops]),
            kv_heads=dim_table([op.kv_heads if op.kv_heads != Dim() else Dim(1) for op in ops]),
            rows=rows,
            span=span,
            copies=np.array([m.n_copies if m else 1 for m in modules], dtype=np.float64),
            active=np.array([op.n_active for op in ops], dtype=np.float64),
            weight=weight,
            share=share,
            act=_act_columns(ops, schema, role),
            cache=_cache_columns(ops, schema, role),
            windowed=np.array([op.window > 0 for op in ops], dtype=bool),
        )
        self.is_expert = self.products.copies > 1
        of_block = np.bincount(self.products.block[self.is_expert], minlength=int(self.products.block.max()) + 1)
        self.launch_share = np.where(self.is_expert, 1.0 / np.maximum(of_block[self.products.block], 1), 1.0)

    def size(self, kept: Kept, bound: Binding, widths: Widths) -> Gemms:
        """Return the products for a batch of designs."""
        n = len(widths.weight)
        rows = [bound.rows(symbol) for symbol in self.row_symbols]
        numbers = Bound(
            heads=full(kept.heads, n),
            channels=full(kept.channels, n),
            block=full(kept.block, n),
            per_sequence=full(beside([r.per_sequence for r in rows]), n),
            sequences=full(beside([r.sequences for r in rows]), n),
            spans=full(beside([bound.span(*s) for s in self._spans]), n),
        )
        return Gemms(self, numbers, widths, bound)

    def visible(self, bound: Binding) -> np.ndarray:
        """Return the part of rows x span that causal masks leave, shape (n or 1, j)."""
        found = []
        for rows, span, window, chunked, causal in self._masks:
            length, looked = bound.rows(rows).per_sequence, bound.span(span, window, chunked)
            if not causal:
                found.append(_ONE)
            elif bound.behind is None or span != "context":
                found.append(_causal_ratio(length, looked, chunked))
            else:
                found.append(_causal_ratio_behind(length, looked, bound.behind, window if chunked else 0))
        return beside(found)[:, self._mask]


def _causal_ratio(rows: np.ndarray, span: np.ndarray, chunked: bool) -> np.ndarray:
    """Return the visible part of rows x span where row i sees the last min(i + 1, span) positions.

    In decode a row sees its whole span: there are fewer rows than positions, and the ratio is 1.
    """
    whole, rest = np.divmod(rows, np.maximum(span, 1.0))
    triangle = span * (span + 1) / 2
    pairs = whole * triangle + rest * (rest + 1) / 2 if chunked else triangle + (rows - span) * span
    return np.where(rows < span, 1.0, pairs / np.maximum(rows * span, 1.0))


def _causal_ratio_behind(rows: np.ndarray, span: np.ndarray, behind: np.ndarray, chunk: int) -> np.ndarray:
    """Return the visible part of rows x span where row i, from 1, is position ``behind`` + i of its sequence.

    It sees the last min(behind + i, span) positions; of fixed chunks, those since its chunk began.
    """
    if chunk:
        pairs = chunk_pairs(behind + rows, chunk) - chunk_pairs(behind, chunk)
    else:
        growing = np.clip(span - behind, 0.0, rows)
        pairs = growing * behind + growing * (growing + 1) / 2 + (rows - growing) * span
    return np.minimum(pairs / np.maximum(rows * span, 1.0), 1.0)


def chunk_pairs(last: np.ndarray, chunk: int) -> np.ndarray:
    """Return the positions that positions 1 ... last see together, where p sees (p - 1) mod chunk + 1."""
    whole, rest = np.divmod(last, chunk)
    return np.asarray(whole * chunk * (chunk + 1) / 2 + rest * (rest + 1) / 2)


@dataclass(frozen=True)
class _VectorGroup:
    component: str
    kind: OpKind
    rows: str
    span: tuple[str, int, bool]


class VectorTable:
    """The vector work of one phase.

    Attributes:
        labels: (component, kind) of each group.
    """

    def __init__(self, graph: Graph, model: Model) -> None:
        ops = [op for op in graph.ops if not op.kind.is_matmul and op.kind is not OpKind.CACHE]
        keys = [_VectorGroup(op.component, op.kind, op.rows, _span_of(op)) for op in ops]
        self._groups, index = distinct(keys)
        self.labels = [(g.component, g.kind) for g in self._groups]
        sizes: dict[tuple[int, int], np.ndarray] = {}
        whole = [(op.heads if op.kind is OpKind.SOFTMAX else op.n).times(op.n_active) for op in ops]
        self._each = (index, block_columns(ops, model), dim_table(whole))
        for size, group, column in zip(whole, index, self._each[1], strict=True):
            at = (int(group), int(column))
            sizes[at] = sizes.get(at, np.zeros(3)) + np.array(tuple(size), dtype=np.float64)
        entries = np.array(list(sizes), dtype=np.int64).reshape(-1, 2)
        self._group, self._block = np.ascontiguousarray(entries[:, 0]), np.ascontiguousarray(entries[:, 1])
        self._size = np.array(list(sizes.values())).reshape(-1, 3)

    def elements(self, kept: Kept, bound: Binding, skipped: np.ndarray | None = None) -> np.ndarray:
        """Return the elements that each group writes, shape (n, g), where ``kept`` has n rows.

        Args:
            kept: what pruning leaves.
            bound: what symbols are bound to.
            skipped: operators that run in fused groups, shape (n, operators); None for none.
        """
        if not self._groups:
            return np.zeros((1, 0))
        entries = (self._group, self._block, self._size) if skipped is None else self._each
        skips = np.zeros((1, len(entries[0])), dtype=np.uint8) if skipped is None else skipped
        group, block, size = entries
        per_row = sum_elements(group, block, size, len(self._groups), kept.heads, kept.channels, kept.block, skips)
        return per_row * self._per_row(bound)

    def each(self, sizes: Bound, bound: Binding) -> np.ndarray:
        """Return the elements that each operator writes, in the order of the graph, shape (n, operators)."""
        group, block, size = self._each
        alone, none = np.arange(len(group)), np.zeros((1, len(group)), dtype=np.uint8)
        per_row = sum_elements(alone, block, size, len(group), sizes.heads, sizes.channels, sizes.block, none)
        return per_row * self._per_row(bound)[:, group]

    def _per_row(self, bound: Binding) -> np.ndarray:
        """Return rows x span of each group, shape (n or 1, g)."""
        rows = [bound.rows(g.rows) for g in self._groups]
        total = beside([r.per_sequence * r.sequences for r in rows])
        span = beside([bound.span(*g.span) if g.span[0] else _ONE for g in self._groups])
        return np.asarray(total * span)


def _span_of(op: Op) -> tuple[str, int, bool]:
    return (op.span, op.window, op.chunked) if op.span else ("", 0, False)


class Dims:
    """Dims of many modules as arrays."""

    def __init__(self, dims: Sequence[Dim]) -> None:
        self._fixed, self._per_head, self._per_channel = (np.ascontiguousarray(c) for c in dim_table(dims).T)
        self._is_fixed = not (self._per_head.any() or self._per_channel.any())

    def size(self, kept: Kept, block: np.ndarray) -> np.ndarray:
        """Return the sizes, shape (n or 1, j), where ``block`` (j,) is the block column of each."""
        if self._is_fixed:
            return self._fixed[None, :]
        return self._fixed + self._per_head * kept.heads[:, block] + self._per_channel * kept.channels[:, block]


def dim_table(dims: Sequence[Dim]) -> np.ndarray:
    """Return dims as rows (fixed, per head, per channel), shape (j, 3)."""
    return np.array([tuple(d) for d in dims], dtype=np.float64).reshape(len(dims), 3)


def block_columns(ops: Sequence[Op] | Sequence[Module], model: Model) -> np.ndarray:
    """Return the block column of each operator or module; one past the last for what is outside blocks, shape (j,)."""
    columns = {(b.component, b.index): i for i, b in enumerate(model.blocks)}
    return np.array([columns.get((op.component, op.block), len(model.blocks)) for op in ops], dtype=np.int64)


def weight_columns(modules: Sequence[Module | None], schema: Schema, role: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the first weight-bits entry of each module, shape (j,), and the parts of its channel groups, (j, c).

    What has no entry points one past the last, where 16 bits stand. A tied module has the entry of its owner.
    """
    field, groups = schema.fields["weight_bits"], schema.channel_groups
    start = {e.path: i for i, e in enumerate(field.entries) if e.channel == 0 and e.role == role}
    first = [start.get((m.tied_to or m.path) if m else "", len(field.entries)) for m in modules]
    sizes = np.array([_channel_parts(m, groups) for m in modules], dtype=np.float64).reshape(len(modules), groups)
    return np.array(first, dtype=np.int64), sizes / sizes.sum(axis=1, keepdims=True)


def _channel_parts(module: Module | None, groups: int) -> list[int]:
    """Output channels of each of a module's channel groups, as even as can be; equal parts where there is none."""
    size = max(groups, sum(module.out_dim)) if module else groups
    return [size * (c + 1) // groups - size * c // groups for c in range(groups)]


def _act_columns(ops: Sequence[Op], schema: Schema, role: str) -> np.ndarray:
    field = schema.fields["act_bits"]
    index = {e.path: i for i, e in enumerate(field.entries) if e.role == role}
    none = len(field.entries)
    return np.array([index.get(op.module, none) if op.kind is OpKind.LINEAR else none for op in ops], dtype=np.int64)


def cache_columns(coordinates: Sequence[tuple[str, int]], name: str, schema: Schema, role: str) -> np.ndarray:
    """Return the column of the cache widths for the keys or values of blocks, shape (j,).

    Args:
        coordinates: (component, block index) of each.
        name: "k_bits" or "v_bits". A latent cache has no values of its own: both are read from the latents.
    """
    index: dict[tuple[str, str, int], int] = {}
    column = 0
    for field in ("k_bits", "v_bits"):
        for entry in schema.fields[field].entries if field in schema.fields else ():
            if entry.role == role:
                index[field, entry.component, entry.block] = column
            column += 1
    found = [index.get((name, *at), index.get(("k_bits", *at), column)) for at in coordinates]
    return np.array(found, dtype=np.int64)


def _cache_columns(ops: Sequence[Op], schema: Schema, role: str) -> np.ndarray:
    at = [(op.component, op.block if op.cached else -1) for op in ops]
    keys, values = (cache_columns(at, name, schema, role) for name in ("k_bits", "v_bits"))
    return np.where([op.kind is OpKind.VALUE for op in ops], values, keys)


def bind_widths(batch: DesignBatch, form: WeightFormat) -> Widths:
    """Return the widths of a batch of designs."""
    n = len(batch)
    plain = np.full((n, 1), float(PLAIN_BITS))

    def table(*names: str) -> np.ndarray:
        found = [np.asarray(batch[name], dtype=np.float64) for name in names if name in batch]
        return np.concatenate([*found, plain], axis=1)

    return Widths(
        weight=table("weight_bits"),
        act=table("act_bits"),
        cache=table("k_bits", "v_bits"),
        group_size=float(form.group_size),
        scale_bits=float(form.scale_bits),
        zero_points=float(form.zero_points),
    )


def group_bits(bits: np.ndarray, form: WeightFormat) -> np.ndarray:
    """Return what a group of elements stores beside them, in bits; nothing at 16 bits."""
    return np.where(bits < PLAIN_BITS, form.scale_bits + form.zero_points * bits, 0.0)


def unique_rows(array: np.ndarray) -> np.ndarray:
    """Return the array with one row if it is a broadcast of one row (a knob that nobody varies)."""
    return array[:1] if len(array) > 1 and array.strides[0] == 0 else array


def full(array: np.ndarray, n: int) -> np.ndarray:
    """Return a contiguous float64 array of n rows, as compiled loops want it."""
    if len(array) == n and array.dtype == np.float64 and array.flags.c_contiguous:
        return array
    return np.ascontiguousarray(np.broadcast_to(array, (n, array.shape[1])), dtype=np.float64)


def beside(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return columns (n or 1, 1) side by side, shape (n or 1, len(columns))."""
    return np.concatenate(np.broadcast_arrays(*columns), axis=1) if columns else np.zeros((1, 0))


def distinct(items: Sequence[_T]) -> tuple[list[_T], np.ndarray]:
    """Return the distinct items in order, and the index of each item among them."""
    order = {item: i for i, item in enumerate(dict.fromkeys(items))}
    return list(order), np.array([order[item] for item in items], dtype=np.int64)
