"""The best legal partition of a block's edges for one design: exact, by dynamic programming over what is done.

Every connected, convex set of operators whose edges are legal is a candidate group; its traffic, time and on-chip need
come from the loops that cost designs (:mod:`costmodels.groups`, :mod:`costmodels.attention`). A partition into groups
that can be put in an order is a path from "nothing done" to "all done" in which each step adds a group, or a single
operator, whose inputs are done already; so the cheapest path is the best partition, and those that wait for each other
in a circle are never on one. States are the down-closed sets of the block's graph: a few hundred.

A partition of operators settles that of edges: an edge between two operators of a group costs nothing to keep.

Blocks that are alike share the result, which is given as patterns that :class:`dse.problem.Problem` takes. Limits:
groups do not span blocks; a block of more than 100,000 candidates is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from costmodels.chip import Chip
from costmodels.fused_tables import listed_tables
from costmodels.fusion import GIVEN, Edge, Partitioner, leaf_of
from costmodels.groups import N_GROUP_PLANES, Ask
from costmodels.passes import N_PLANES, run_fused_pass
from costmodels.rowplan import make_room
from costmodels.totals import ACTIVATION_BYTES, KV_BYTES, SECONDS, WEIGHT_BYTES
from costmodels.vector_costs import VectorCoefficients
from costmodels.workload import PhaseSizes, Workload
from dse.capabilities import BestFusion
from dse.designs import DesignBatch
from dse.errors import UserError, unknown
from dse.model import Graph, OpKind

OBJECTIVES: Final = ("dram_bytes", "seconds")
_MOST: Final = 100_000


def candidates(parts: Partitioner, members: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the legal groups of two or more of the operators ``members``, in order.

    Raises:
        UserError: there are too many to look at.
    """
    inside = set(members)
    legal = {(p, c) for p, c in parts.edges() if p in inside and c in inside and not parts.why_not(p, c)}
    near: dict[int, set[int]] = {m: set() for m in members}
    for p, c in legal:
        near[p].add(c)
        near[c].add(p)
    seen = {frozenset(edge) for edge in legal}
    grown = list(seen)
    while grown:
        group = grown.pop()
        for op in set().union(*(near[m] for m in group)) - group:
            larger = group | {op}
            if larger not in seen:
                seen.add(larger)
                grown.append(larger)
        if len(seen) > _MOST:
            raise UserError(f"a block with more than {_MOST} connected groups", "fuse by the named forms")
    return sorted(tuple(sorted(group)) for group in seen if _is_legal(parts, group, legal))


def _is_legal(parts: Partitioner, group: frozenset[int], legal: set[Edge]) -> bool:
    edges = [(p, c) for p, c in legal if p in group and c in group]
    # Every edge inside a group is kept on chip: one that must not be fused bars the group.
    if len(edges) < sum(p in group for c in group for p in parts.producers[c]):
        return False
    try:
        parts.groups(edges)
    except UserError:
        return False
    return True


def cheapest(
    parts: Partitioner, members: Sequence[int], alone: Mapping[int, float], fused: Mapping[tuple[int, ...], float]
) -> tuple[float, list[tuple[int, ...]]]:
    """Return the least cost of a partition of ``members``, and its groups of two or more.

    Args:
        parts: the graph.
        members: the operators.
        alone: cost of each of them by itself.
        fused: cost of each group that may be used.
    """
    bit = {op: 1 << x for x, op in enumerate(members)}
    needs = {op: sum(bit[p] for p in parts.producers[op] if p in bit) for op in members}
    moves = [((op,), alone[op]) for op in members] + list(fused.items())
    masks = [
        (sum(bit[op] for op in group), _or(needs[op] for op in group) & ~sum(bit[op] for op in group), cost, group)
        for group, cost in moves
    ]
    best: dict[int, tuple[float, int, tuple[int, ...]]] = {0: (0.0, 0, ())}
    # A step only adds operators, so states in the order of their size are final when they are reached.
    layers: list[set[int]] = [set() for _ in range(len(members) + 1)]
    layers[0].add(0)
    for layer in layers:
        for done in layer:
            so_far = best[done][0]
            for mask, need, cost, group in masks:
                if mask & done or need & ~done:
                    continue
                after = done | mask
                if after not in best or so_far + cost < best[after][0]:
                    best[after] = (so_far + cost, done, group)
                    layers[after.bit_count()].add(after)
    at, groups = (1 << len(members)) - 1, []
    total = best[at][0]
    while at:
        _, at, group = best[at]
        if len(group) > 1:
            groups.append(group)
    return total, sorted(groups)


def _or(masks: Iterable[int]) -> int:
    total = 0
    for mask in masks:
        total |= mask
    return total


def patterns(parts: Partitioner, groups: Sequence[tuple[int, ...]], phase: str) -> dict[str, list[tuple[str, str]]]:
    """Return groups as a study takes them: names by phase, edges by names inside a block."""
    found = {}
    for group in groups:
        inside = set(group)
        edges = [(p, c) for c in group for p in parts.producers[c] if p in inside]
        pairs = [(leaf_of(parts.ops[p]), leaf_of(parts.ops[c])) for p, c in edges]
        found[f"{phase}/{leaf_of(parts.ops[group[0]])}"] = pairs
    return found


def best_fusion(
    workload: Workload, chip: Chip, batch: DesignBatch, phase: str, component: str, block: int, objective: str
) -> BestFusion:
    """Return the best partition of a block's edges for a batch of one design; see the module docstring.

    Args:
        workload: the problem's.
        chip: of the design; its on-chip memory is the budget.
        batch: one design.
        phase: "encode", "prefill" or "decode".
        component: the component whose block it is.
        block: index of the block.
        objective: "dram_bytes" or "seconds".

    Raises:
        NameUnknown: no such objective.
        UserError: the phase has no such block, or too many groups to look at.
    """
    if objective not in OBJECTIVES:
        raise unknown("objective of a partition", objective, OBJECTIVES)
    graph = workload.model.graph(phase)
    members = [i for i, op in enumerate(graph.ops) if (op.component, op.block) == (component, block)]
    sized = [one for one in workload.size(batch).phases if one.name == phase]
    if not members or not sized:
        raise UserError(f"{workload.model.name} runs no block {block} of {component!r} in {phase}")
    parts = Partitioner(graph, workload.model)
    found = candidates(parts, members)
    attention = {g: parts.ops[g[0]].kind is OpKind.SCORE for g in found}
    row_groups = [g for g in found if not attention[g]]
    seconds, moved, held, alone_s, alone_moved = _costs(workload, chip, batch, sized[0], row_groups)
    values = [i for i, op in enumerate(graph.ops) if op.kind is OpKind.VALUE]
    at = {group: x for x, group in enumerate(row_groups)}
    at |= {g: len(row_groups) + values.index(g[-1]) for g in found if attention[g]}
    cost, alone = (seconds, alone_s) if objective == "seconds" else (moved, alone_moved)
    fused = {g: float(cost[at[g]]) for g in found if held[at[g]] <= chip.sram_bytes[0]}
    _, groups = cheapest(parts, members, {op: float(alone[op]) for op in members}, fused)
    lone = [op for op in members if not any(op in g for g in groups)]
    return BestFusion(
        phase=phase,
        component=component,
        blocks=(block,),
        fusion=patterns(parts, groups, phase),
        dram_bytes=float(sum(moved[at[g]] for g in groups) + alone_moved[lone].sum()),
        seconds=float(sum(seconds[at[g]] for g in groups) + alone_s[lone].sum()),
        unfused_dram_bytes=float(alone_moved[members].sum()),
        unfused_seconds=float(alone_s[members].sum()),
        held_bytes=float(max((held[at[g]] for g in groups), default=0.0)),
    )


def best_fusions(workload: Workload, chip: Chip, batch: DesignBatch, objective: str) -> list[BestFusion]:
    """Return the best partition of each kind of block in each phase that has work; see :func:`best_fusion`.

    Blocks are of a kind if they have the same operators and edges of the same sizes and masks; one of them, of those
    that the design runs, stands for all.
    """
    found = []
    sizes = workload.size(batch)
    runs = dict(zip(((b.component, b.index) for b in workload.model.blocks), sizes.kept.block[0] > 0.0, strict=False))
    for phase in sizes.phases:
        graph = workload.model.graph(phase.name)
        kinds: dict[tuple[object, ...], list[int]] = {}
        for at in dict.fromkeys((op.component, op.block) for op in graph.ops):
            if runs.get(at, False):
                kinds.setdefault((at[0], _kind(graph, *at)), []).append(at[1])
        for (component, _), blocks in kinds.items():
            one = best_fusion(workload, chip, batch, phase.name, str(component), blocks[-1], objective)
            found.append(replace(one, blocks=tuple(blocks)))
    return found


def _kind(graph: Graph, component: str, block: int) -> tuple[object, ...]:
    """Return what makes two blocks alike."""
    return tuple(
        (leaf_of(op), replace(op, name="", module="", block=-1, inputs=()))
        for op in graph.ops
        if (op.component, op.block) == (component, block)
    )


def _costs(
    workload: Workload, chip: Chip, batch: DesignBatch, phase: PhaseSizes, groups: Sequence[tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return time, bytes and memory of groups and attentions; time and bytes of operators by themselves."""
    g, tables = phase.gemms, workload.tables(batch.schema)
    graph, columns = workload.model.graph(phase.name), {s: x for x, s in enumerate(g.table.row_symbols)}
    rows, attentions = listed_tables(graph, workload.model, columns, groups)
    n_listed, n_products = len(groups) + len(attentions.score), len(g.products.kind)
    mask = np.zeros((1, len(rows.range_of)), dtype=np.int64)
    mask[0, 0] = GIVEN
    ask = Ask(
        mask, np.ones((1, len(attentions.score)), dtype=np.uint8), chip.attn_tile_q, chip.attn_tile_kv,
        np.ascontiguousarray(chip.lanes[:, 0]), np.zeros((1, n_products), dtype=np.uint8),
    )  # fmt: skip
    planes, group_planes = np.zeros((N_PLANES, 1, n_products)), np.zeros((N_GROUP_PLANES, 1, n_listed))
    held = np.zeros((n_listed, 1))
    run_fused_pass(
        g.products, g.bound, g.widths, chip.arrays, g.is_weight, g.is_cached, planes, rows, attentions, ask,
        make_room(rows), held, group_planes,
    )  # fmt: skip
    alone_s, alone_moved = np.zeros(len(graph.ops)), np.zeros(len(graph.ops))
    matmuls = [i for i, op in enumerate(graph.ops) if op.kind.is_matmul]
    alone_s[matmuls], alone_moved[matmuls] = planes[SECONDS, 0], _moved(planes[:, 0])
    vectors = [i for i, op in enumerate(graph.ops) if not op.kind.is_matmul and op.kind is not OpKind.CACHE]
    elements = tables.vectors[phase.name].each(g.bound, g.binding)[0]
    cost = VectorCoefficients.of([("", graph.ops[i].kind) for i in vectors])
    alone_moved[vectors] = elements * cost.moved_bytes
    compute = elements * cost.ops / (chip.lanes[0, 0] * chip.freq_hz[0, 0])
    alone_s[vectors] = np.maximum(compute, alone_moved[vectors] / chip.dram_bytes_per_s[0, 0])
    return group_planes[SECONDS, 0], _moved(group_planes[:, 0]), held[:, 0], alone_s, alone_moved


def _moved(planes: np.ndarray) -> np.ndarray:
    return np.asarray(planes[WEIGHT_BYTES] + planes[KV_BYTES] + planes[ACTIVATION_BYTES])
