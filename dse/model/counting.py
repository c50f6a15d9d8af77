"""Counts that follow from the tables: parameters, cache bytes, floating-point operations. Exact whole numbers.

A multiply and an add count as two operations. Counts are of the unpruned model; a cost model works on the same tables
with arrays of kept heads and channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dse.errors import UserError
from dse.model.parts import Block, Graph, Module, Op, OpKind

_Units = Mapping[tuple[str, int], tuple[int, int]]


def units(blocks: Iterable[Block]) -> dict[tuple[str, int], tuple[int, int]]:
    """Return the (heads, channels) of each block by (component, index); (0, 0) stands for what is outside blocks."""
    return {(b.component, b.index): (b.head_units, b.ffn_units) for b in blocks}


def n_params(modules: Iterable[Module], full: _Units) -> int:
    """Return the parameters of the modules, each shared weight once."""
    return sum(m.n_params(*full.get((m.component, m.block), (0, 0))) for m in modules)


def n_active_params(modules: Iterable[Module], full: _Units) -> int:
    """Return the parameters that one row touches: of experts only as many as it passes through."""
    total = 0
    for m in modules:
        size = m.n_params(*full.get((m.component, m.block), (0, 0)))
        total += size // m.n_copies * m.n_active
    return total


def cache_bits(blocks: Iterable[Block], rows: str, k_bits: int, v_bits: int) -> int:
    """Return the bits that one position adds to the caches of that kind ("context" or "state"), windows apart."""
    return sum(
        cache.k.size(b.head_units) * k_bits + cache.v.size(b.head_units) * v_bits
        for b in blocks
        for cache in b.caches
        if cache.rows == rows
    )


def kept_bits(blocks: Iterable[Block], positions: Mapping[str, int], k_bits: int, v_bits: int) -> int:
    """Return the bits of all caches of one sequence with so many "context" and "state" positions."""
    total = 0
    for b in blocks:
        for cache in b.caches:
            n = positions.get(cache.rows, 0)
            n = min(n, cache.window) if cache.window else n
            total += n * (cache.k.size(b.head_units) * k_bits + cache.v.size(b.head_units) * v_bits)
    return total


def whole_bytes(bits: int) -> int:
    """Return the bytes that hold so many bits."""
    return -(-bits // 8)


def attended(queries: int, span: int, *, window: int = 0, chunked: bool = False, causal: bool = False) -> int:
    """Return how many (query, key) pairs one sequence computes.

    Args:
        queries: rows; with a causal mask the last ones of the span.
        span: positions there are.
        window: positions a row looks at, at most; 0 for all.
        chunked: whether the window starts anew at its multiples.
        causal: whether a row sees only positions up to its own.
    """
    if not causal:
        return queries * (min(span, window) if window else span)
    if not window:
        return _triangle(span) - _triangle(span - queries)
    count = _chunked if chunked else _sliding
    return count(span, window) - count(span - queries, window)


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def _sliding(n: int, window: int) -> int:
    """Return the pairs of the first ``n`` positions with a sliding window."""
    return _triangle(n) if n <= window else _triangle(window) + (n - window) * window


def _chunked(n: int, window: int) -> int:
    """Return the pairs of the first ``n`` positions with a window that starts anew every ``window`` positions."""
    full, rest = divmod(n, window)
    return full * _triangle(window) + _triangle(rest)


def flops(graph: Graph, full: _Units, rows: Mapping[str, int], spans: Mapping[str, int], sequences: int = 1) -> int:
    """Return the operations of the matrix products of a graph.

    Args:
        graph: one phase.
        full: units of each block, see :func:`units`.
        rows: row symbol -> rows in the pass, over all sequences; absent ones count as none.
        spans: span symbol -> positions of one sequence.
        sequences: decoder sequences in the pass, over which its rows are spread evenly.

    Raises:
        UserError: rows that cannot be spread evenly, or more rows in a sequence than positions in its span.
    """
    return sum(_op_flops(op, full, rows, spans, sequences) for op in graph.ops if op.kind.is_matmul)


def _op_flops(op: Op, full: _Units, rows: Mapping[str, int], spans: Mapping[str, int], sequences: int) -> int:
    kept = full.get((op.component, op.block), (0, 0))
    n_rows = rows.get(op.rows, 0)
    if op.kind is OpKind.LINEAR:
        return 2 * n_rows * op.n_active * op.n_weights(*kept)
    per_pair = op.heads.size(*kept) * (op.k if op.kind is OpKind.SCORE else op.n).size(*kept)
    return 2 * per_pair * _pairs(op, n_rows, spans.get(op.span, 0), sequences)


def _pairs(op: Op, n_rows: int, span: int, sequences: int) -> int:
    if not op.causal:
        return attended(n_rows, span, window=op.window)
    queries, left = divmod(n_rows, sequences)
    if left or queries > span:
        raise UserError(
            f"{n_rows} rows in {sequences} sequences of {span} positions cannot be",
            "each sequence has equally many rows, and no more than positions",
        )
    return sequences * attended(queries, span, window=op.window, chunked=op.chunked, causal=True)
