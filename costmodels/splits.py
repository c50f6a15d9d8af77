"""How the weights of an operator graph are divided, and where partial sums are reduced.

A product whose outputs are heads or channels is split by columns, one whose inputs are by rows, after Megatron-LM
(Shoeybi et al. 2019). Sums over row-split products are partial. Additions keep them partial; the value that something
else reads is reduced once: two all-reduces per block, one where attention and MLP are parallel, one after the token
table.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from costmodels.tables import block_columns
from dse.model import Graph, Model, Op, OpKind

_ADDITIVE: Final = (OpKind.ADD, OpKind.MULTIPLY)
_PASSING: Final = (OpKind.NORM, OpKind.ROPE)


class Split(enum.IntEnum):
    """How the devices of a tensor- or expert-parallel group share a weight."""

    COPIED = 0
    COLUMN = 1  # by outputs; those of fixed number are keys and values
    ROW = 2
    HEADS = 3  # one matrix per head
    EXPERT_COLUMN = 4
    EXPERT_ROW = 5
    VOCABULARY = 6


class Point(NamedTuple):
    """Where partial sums are reduced: messages of one size.

    Attributes:
        component: where.
        rows: symbol of its rows.
        width: elements per row.
        blocks: block column of each message.
        has_dense, has_experts: what was summed.
        n_active: experts per row.
    """

    component: str
    rows: str
    width: float
    blocks: np.ndarray
    has_dense: bool
    has_experts: bool
    n_active: float


def kv_heads_of(model: Model) -> dict[int, float]:
    """Return the fixed number of key-value heads by block column; latent caches have one."""
    ops = [op for op in model.graph("decode").ops if op.kind is OpKind.SCORE and op.kv_heads.fixed > 0]
    return {int(b): float(op.kv_heads.fixed) for b, op in zip(block_columns(ops, model), ops, strict=True)}


def split_of(graph: Graph, model: Model) -> dict[str, Split]:
    """Return how each weight of a phase is divided, by operator name; what is not named is copied."""
    readers = _readers(graph)
    table = model.graph("decode").ops[0].module
    head = model.graph("decode").ops[-1].module
    found: dict[str, Split] = {}
    for op in graph.ops:
        if op.kind is OpKind.EMBED and op.module == table and op.block < 0:
            found[op.name] = Split.VOCABULARY
        if op.kind is not OpKind.LINEAR:
            continue
        expert = model.module(op.module).n_copies > 1
        if op.heads.fixed or op.heads.per_head:
            found[op.name] = Split.HEADS
        elif op.k.per_head or op.k.per_ffn:
            found[op.name] = Split.EXPERT_ROW if expert else Split.ROW
        elif op.n.per_head or op.n.per_ffn:
            found[op.name] = Split.EXPERT_COLUMN if expert else Split.COLUMN
        elif op.module == head and op.block < 0:
            found[op.name] = Split.VOCABULARY
        elif op.block >= 0 and _reaches_attention(op, readers):
            found[op.name] = Split.COLUMN
    return found


def _readers(graph: Graph) -> dict[str, list[Op]]:
    readers: dict[str, list[Op]] = {op.name: [] for op in graph.ops}
    for op in graph.ops:
        for name in op.inputs:
            if name in readers:
                readers[name].append(op)
    return readers


def _reaches_attention(op: Op, readers: Mapping[str, Sequence[Op]]) -> bool:
    """Return whether an operator's result is a key or a value: cached, or read by attention, after norms at most."""
    for reader in readers[op.name]:
        if reader.kind in (OpKind.CACHE, OpKind.SCORE, OpKind.VALUE):
            return True
        if reader.kind in _PASSING and _reaches_attention(reader, readers):
            return True
    return False


def reductions(graph: Graph, model: Model, splits: Mapping[str, Split]) -> list[Point]:
    """Return where partial sums are reduced, like messages together."""
    readers = _readers(graph)
    partial: dict[str, tuple[bool, bool, int]] = {}  # dense, experts, experts per row
    grouped: dict[tuple[str, str, float, bool, bool, int], list[Op]] = {}
    reduced: set[str] = set()
    for op in graph.ops:
        split = splits.get(op.name)
        state = (False, False, 0)
        if split is Split.ROW or (split is Split.VOCABULARY and op.kind is OpKind.EMBED):
            state = (True, False, 0)
        elif split is Split.EXPERT_ROW:
            state = (False, True, op.n_active)
        elif op.kind in _ADDITIVE:
            before = [partial[name] for name in op.inputs if name in partial and name not in reduced]
            state = (any(b[0] for b in before), any(b[1] for b in before), max((b[2] for b in before), default=0))
        if not (state[0] or state[1]):
            continue
        partial[op.name] = state
        is_read = readers[op.name]
        if not is_read or any(r.kind not in _ADDITIVE for r in is_read):
            reduced.add(op.name)
            width = float(op.n.fixed)
            grouped.setdefault((op.component, op.rows, width, *state), []).append(op)
    return [
        Point(component, rows, width, block_columns(ops, model), dense, experts, float(active))
        for (component, rows, width, dense, experts, active), ops in grouped.items()
    ]
