"""Groups of fused operators as arrays, prepared once per phase, for the compiled loops of :mod:`costmodels.groups`.

A group is a run of *steps*, its operators in order. Which step reads which tensor from chip, what is written because
somebody outside reads it, and how long a tensor stays, follow from the graph:

- *slots*. Steps run one after the other, each in a slot of its own, but for *streamed* tensors: one that a projection
  (or an elementwise step on streamed tensors) makes and that elementwise steps and projections alone consume is worked
  off in chunks of columns. Its steps share a slot, and the projection that consumes it keeps its whole output at
  accumulator width while chunks arrive. This is how the hidden features of an MLP are never held at full width.
- *life*. Any other tensor inside is held at full width from its slot to that of its last consumer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from costmodels.fusion import FORM_NAMES, GIVEN, N_MASKS, Edge, Partitioner, form_edges, given_attention
from costmodels.tables import block_columns, class_of
from costmodels.vector_costs import VECTOR_COSTS
from dse.errors import UserError
from dse.model import Dim, Graph, Model, OpKind

_ELEMENTWISE: Final = frozenset({OpKind.ACTIVATION, OpKind.MULTIPLY, OpKind.ADD})


# Columns of the whole numbers of a step: its operator and its product (-1 for vector work), whether somebody outside
# reads what it writes, its block column, its slot, the last slot that needs its result, whether it needs no more than a
# chunk of its operands at a time, whether its result and its operand come in chunks, and its first entry.
(
    OPERATOR, PRODUCT, WRITES, BLOCK, SLOT, LAST, IS_ELEMENTWISE, IS_STREAMED, TAKES_STREAMED, ENTRIES,
) = range(10)  # fmt: skip
N_STEP_COLUMNS: Final = 10

# Columns of its costs, of vector work: operations and elements read per element, then elements per row of what it
# writes, as (fixed, per head, per channel).
OPS, READS, WRITTEN = range(3)


class RowGroups(NamedTuple):
    """Row groups of one phase under every mask of forms.

    Attributes:
        range_of: first and past the last group of a component under a mask, shape (components, masks, 2).
        steps: first step of each group, and the number of steps, shape (groups + 1,).
        rows: row column of each group, shape (groups,).
        label, leader: label of each group, and the operator that breakdowns name it by, shape (groups,).
        step: whole numbers of each step, shape (steps + 1, N_STEP_COLUMNS); of the last row only ENTRIES counts.
        cost: costs of each step, shape (steps, 5).
        source: step inside the group that each entry, a tensor that a step reads, comes from, shape (entries,).
        source_size: elements per row of each entry, shape (entries, 3).
    """

    range_of: np.ndarray
    steps: np.ndarray
    rows: np.ndarray
    label: np.ndarray
    leader: np.ndarray
    step: np.ndarray
    cost: np.ndarray
    source: np.ndarray
    source_size: np.ndarray


class Attentions(NamedTuple):
    """The attentions of one phase, shape (attentions,) each.

    Attributes:
        score, value: products.
        component: component column.
        is_given: whether a user's group fuses it.
        is_causal, is_chunked, is_windowed: its mask.
        is_latent: whether keys and values are one cached tensor, which is then read once.
        label, leader: as for row groups.
    """

    score: np.ndarray
    value: np.ndarray
    component: np.ndarray
    is_given: np.ndarray
    is_causal: np.ndarray
    is_chunked: np.ndarray
    is_windowed: np.ndarray
    is_latent: np.ndarray
    label: np.ndarray
    leader: np.ndarray


@dataclass(frozen=True)
class FusedTables:
    """All groups of one phase.

    Attributes:
        components: names, in the order of their columns.
        labels: names of groups in messages.
        op_labels: (component, class) of every operator, for breakdowns.
        rows: row groups.
        attentions: attentions.
        fused_products, fused_vectors: what is in a group under a mask, shapes (masks, products), (masks, vectors).
        of_product, of_vector: component column of each.
        attention_of_product, attention_of_vector: attention of each, -1 outside.
        members: operators of the row groups of a component under a mask.
        attention_members: operators of each attention.
        illegal: why a component cannot fuse the forms of a mask together; it then has no groups under it.
    """

    components: tuple[str, ...]
    labels: tuple[str, ...]
    op_labels: tuple[tuple[str, str], ...]
    rows: RowGroups
    attentions: Attentions
    fused_products: np.ndarray
    fused_vectors: np.ndarray
    of_product: np.ndarray
    of_vector: np.ndarray
    attention_of_product: np.ndarray
    attention_of_vector: np.ndarray
    members: Mapping[tuple[int, int], Sequence[tuple[int, ...]]]
    attention_members: Sequence[tuple[int, ...]]
    illegal: Mapping[tuple[int, int], str]

    def skipped(self, mask: np.ndarray, attention: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which products and which vector operators run inside groups, shapes (n, j) and (n, v).

        Args:
            mask: forms of each component, shape (n, components).
            attention: attentions that are fused, shape (n, attentions).
        """
        with_none = np.concatenate([attention, np.zeros((len(attention), 1), dtype=np.uint8)], axis=1)
        pairs = (
            (self.fused_products, self.of_product, self.attention_of_product),
            (self.fused_vectors, self.of_vector, self.attention_of_vector),
        )
        products, vectors = (
            table[mask[:, of], np.arange(len(of))] | with_none[:, inside] for table, of, inside in pairs
        )
        return products, vectors


def fused_tables(
    graph: Graph, model: Model, rows: Mapping[str, int], given: Mapping[str, Sequence[tuple[str, str]]]
) -> FusedTables:
    """Return the groups of a phase.

    Args:
        graph: its operators.
        model: the model.
        rows: column of each row symbol.
        given: the user's groups.

    Raises:
        UserError: a group breaks a law.
    """
    return _Writer(graph, model, rows, given).tables()


def listed_tables(
    graph: Graph, model: Model, rows: Mapping[str, int], groups: Sequence[tuple[int, ...]]
) -> tuple[RowGroups, Attentions]:
    """Return groups side by side, to be costed one by one: group x has label and leader x, attentions follow.

    Args:
        graph, model, rows: as for :func:`fused_tables`.
        groups: row groups, which may overlap; all stand under the first component and the mask of given groups.
    """
    writer = _Writer(graph, model, rows, {})
    found = writer.row_groups({(0, GIVEN): groups}, {})
    attentions, _ = writer.attentions()
    numbers, after = np.arange(len(groups)), len(groups) + np.arange(len(attentions.score))
    return found._replace(label=numbers, leader=numbers), attentions._replace(label=after, leader=after)


class _Writer:
    def __init__(
        self, graph: Graph, model: Model, rows: Mapping[str, int], given: Mapping[str, Sequence[tuple[str, str]]]
    ) -> None:
        self.parts = Partitioner(graph, model)
        self.ops, self.model, self.row_column = graph.ops, model, rows
        self.given, self.phase = given, graph.phase
        self.components = tuple(dict.fromkeys(op.component for op in graph.ops))
        matmuls = [i for i, op in enumerate(graph.ops) if op.kind.is_matmul]
        vectors = [i for i, op in enumerate(graph.ops) if not op.kind.is_matmul and op.kind is not OpKind.CACHE]
        self.product = {op: j for j, op in enumerate(matmuls)}
        self.vector = {op: j for j, op in enumerate(vectors)}
        self.block = block_columns(graph.ops, model)
        self.labels: dict[str, int] = {}

    def tables(self) -> FusedTables:
        forms = form_edges(self.parts, self.phase, self.given)
        groups: dict[tuple[int, int], list[tuple[int, ...]]] = {}
        illegal: dict[tuple[int, int], str] = {}
        fused_p = np.zeros((N_MASKS, len(self.product)), dtype=np.uint8)
        fused_v = np.zeros((N_MASKS, len(self.vector)), dtype=np.uint8)
        for c, component in enumerate(self.components):
            for mask in range(N_MASKS):
                try:
                    groups[c, mask] = self._groups(component, mask, forms)
                except UserError as error:
                    if mask == GIVEN:  # checked when the problem is prepared
                        raise
                    groups[c, mask], illegal[c, mask] = [], error.message
                for group in groups[c, mask]:
                    fused_p[mask, [self.product[i] for i in group if i in self.product]] = 1
                    fused_v[mask, [self.vector[i] for i in group if i in self.vector]] = 1
        rows = self.row_groups(groups, forms)
        attentions, of_attention = self.attentions()
        column = {c: i for i, c in enumerate(self.components)}
        return FusedTables(
            components=self.components,
            labels=tuple(self.labels),
            op_labels=tuple((op.component, class_of(op.kind)) for op in self.ops),
            rows=rows,
            attentions=attentions,
            fused_products=fused_p,
            fused_vectors=fused_v,
            of_product=np.array([column[self.ops[i].component] for i in self.product], dtype=np.intp),
            of_vector=np.array([column[self.ops[i].component] for i in self.vector], dtype=np.intp),
            members=groups,
            illegal=illegal,
            attention_members=[
                tuple(op for op, of in of_attention.items() if of == x) for x in range(len(attentions.score))
            ],
            attention_of_product=np.array([of_attention.get(i, -1) for i in self.product], dtype=np.intp),
            attention_of_vector=np.array([of_attention.get(i, -1) for i in self.vector], dtype=np.intp),
        )

    def _groups(self, component: str, mask: int, forms: Mapping[int, set[Edge]]) -> list[tuple[int, ...]]:
        edges: set[Edge] = set().union(*(found for bit, found in forms.items() if mask & bit))
        names = " with ".join(name for bit, name in FORM_NAMES.items() if mask & bit)
        inside = {(p, c) for p, c in edges if self.ops[c].component == component}
        return self.parts.groups(inside, f"fusion of {names} in {self.phase}")

    def _label(self, component: str, name: str) -> int:
        return self.labels.setdefault(f"{component} {name} in {self.phase}", len(self.labels))

    def _name(self, group: Sequence[int], forms: Mapping[int, set[Edge]], mask: int) -> str:
        inside = set(group)
        found = [
            FORM_NAMES[bit]
            for bit, edges in forms.items()
            if mask & bit and any(p in inside and c in inside for p, c in edges)
        ]
        return "+".join(found)

    def row_groups(
        self, groups: Mapping[tuple[int, int], Sequence[tuple[int, ...]]], forms: Mapping[int, set[Edge]]
    ) -> RowGroups:
        """Return groups by component and mask as arrays."""
        range_of = np.zeros((len(self.components), N_MASKS, 2), dtype=np.int64)
        known: dict[tuple[tuple[int, ...], ...], tuple[int, int]] = {}
        steps: list[int] = [0]
        labels: list[int] = []
        leaders: list[int] = []
        rows: list[int] = []
        columns: list[_Step] = []
        for (c, mask), found in groups.items():
            key = tuple(found)
            if key not in known:
                first = len(labels)
                for group in found:
                    columns += self._steps(group)
                    steps.append(len(columns))
                    labels.append(self._label(self.components[c], self._name(group, forms, mask)))
                    leaders.append(group[0])
                    rows.append(self.row_column[self.ops[group[0]].rows])
                known[key] = (first, len(labels))
            range_of[c, mask] = known[key]
        entries = [entry for step in columns for entry in step.sources]

        def ints(values: Sequence[int]) -> np.ndarray:
            return np.array(values, dtype=np.int64)

        firsts = np.cumsum([0, *(len(s.sources) for s in columns)])
        whole = [(*step.whole, first) for step, first in zip(columns, firsts, strict=False)]
        return RowGroups(
            range_of=range_of,
            steps=ints(steps),
            rows=ints(rows),
            label=ints(labels),
            leader=ints(leaders),
            step=np.array([*whole, (0,) * (N_STEP_COLUMNS - 1) + (firsts[-1],)], dtype=np.int64),
            cost=np.array([(*s.cost, *s.size) for s in columns], dtype=np.float64).reshape(len(columns), 5),
            source=ints([source for source, _ in entries]),
            source_size=_triples([size for _, size in entries]),
        )

    def _steps(self, group: tuple[int, ...]) -> list[_Step]:
        inside = {op: x for x, op in enumerate(group)}
        streamed = self._streamed(group)
        slot_of = _slots(group, streamed, self.parts)
        taken = {c for p in streamed for c in self.parts.consumers[p] if c in inside}
        found = []
        for op in group:
            one = self.ops[op]
            consumers = self.parts.consumers[op]
            users = [slot_of[c] for c in consumers if c in inside]
            sources = [
                (inside[p], size)
                for p, size in self._read_sizes(op)
                if p in inside and (one.kind is not OpKind.LINEAR or p == self.parts.producers[op][0])
            ]
            cost = VECTOR_COSTS.get(one.kind)
            is_append = one.kind is OpKind.CACHE  # counted where the cache is
            found.append(
                _Step(
                    whole=(
                        op,
                        self.product.get(op, -1),
                        int(not is_append and (not consumers or any(c not in inside for c in consumers))),
                        int(self.block[op]),
                        slot_of[op],
                        max(users, default=slot_of[op]),
                        int(one.kind in _ELEMENTWISE),
                        int(op in streamed),
                        int(op in taken),
                    ),
                    cost=(cost.ops, cost.reads) if cost else (0.0, 0.0),
                    size=Dim() if is_append else one.n,
                    sources=sources,
                )
            )
        return found

    def _streamed(self, group: tuple[int, ...]) -> set[int]:
        """Return the operators of a group whose results pass in chunks, the largest set that keeps the rules."""
        inside = set(group)
        barred: set[int] = set()
        while True:
            streamed: set[int] = set()
            for op in group:
                sources = [p for p in self.parts.producers[op] if p in inside]
                kind = self.ops[op].kind
                is_whole = all(p in streamed for p in sources)
                is_source = kind is OpKind.LINEAR and not any(p in streamed for p in sources)
                if op not in barred and (is_source or (kind in _ELEMENTWISE and sources and is_whole)):
                    streamed.add(op)
            wrong = {op for op in streamed if not self._may_stream(op, inside, streamed)}
            if not wrong:
                return streamed
            barred |= wrong

    def _may_stream(self, op: int, inside: set[int], streamed: set[int]) -> bool:
        users = [c for c in self.parts.consumers[op] if c in inside]
        kinds = [(c, self.ops[c].kind) for c in users]
        return bool(users) and all(
            (k is OpKind.LINEAR and c not in streamed) or (k in _ELEMENTWISE and c in streamed) for c, k in kinds
        )

    def _read_sizes(self, op: int) -> list[tuple[int, Dim]]:
        """Return what an operator reads of each producer, in elements per row."""
        one, producers = self.ops[op], self.parts.producers[op]
        if one.kind is OpKind.LINEAR:
            return [(p, one.k) for p in producers[:1]]
        if one.kind is OpKind.CACHE:
            return [(p, Dim()) for p in producers]
        if VECTOR_COSTS[one.kind].reads >= len(producers):
            return [(p, one.n) for p in producers]
        return list(zip(producers, _shares(one.n, [self.ops[p].n for p in producers]), strict=True))

    def attentions(self) -> tuple[Attentions, dict[int, int]]:
        """Return the attentions, and which one an operator belongs to."""
        found = [i for i, op in enumerate(self.ops) if op.kind is OpKind.VALUE]
        given = given_attention(self.parts, self.phase, self.given)
        latent = {(b.component, b.index) for b in self.model.blocks for c in b.caches if c.v == Dim() and c.k != Dim()}
        belongs: dict[int, int] = {}
        rows = []
        for x, value in enumerate(found):
            soft = self.parts.producers[value][0]
            score = self.parts.producers[soft][0]
            belongs |= {score: x, soft: x, value: x}
            op = self.ops[value]
            is_latent = op.cached and (op.component, op.block) in latent
            rows.append(
                (
                    self.product[score], self.product[value], self.components.index(op.component), score in given,
                    op.causal, op.chunked, op.window > 0, is_latent, self._label(op.component, "attention"), score,
                )
            )  # fmt: skip
        table = np.array(rows, dtype=np.int64).reshape(len(rows), len(Attentions._fields))
        return Attentions(*(np.ascontiguousarray(column) for column in table.T)), belongs


class _Step(NamedTuple):
    whole: tuple[int, ...]
    cost: tuple[float, float]
    size: Dim
    sources: list[tuple[int, Dim]]


def _slots(group: tuple[int, ...], streamed: set[int], parts: Partitioner) -> dict[int, int]:
    """Return the slot of each operator: those that a streamed tensor joins share one."""
    root = {op: op for op in group}

    def find(op: int) -> int:
        while root[op] != op:
            op = root[op]
        return op

    for p in streamed:
        for c in parts.consumers[p]:
            if c in root:
                a, b = sorted((find(p), find(c)))
                root[b] = a
    units = {op: find(op) for op in group}
    # Units in an order that respects their edges: by the graph's own a sink would run before what its unit waits for.
    order: dict[int, int] = {}
    waiting = list(dict.fromkeys(units.values()))
    while waiting:
        unit = next(u for u in waiting if _needs(u, units, parts) <= set(order))
        order[unit] = len(order)
        waiting.remove(unit)
    return {op: order[units[op]] for op in group}


def _needs(unit: int, units: Mapping[int, int], parts: Partitioner) -> set[int]:
    members = [op for op, of in units.items() if of == unit]
    return {units[p] for op in members for p in parts.producers[op] if p in units} - {unit}


def _shares(whole: Dim, parts: Sequence[Dim]) -> list[Dim]:
    """Return what a read stream of ``whole`` elements takes of each tensor: each kind of size from those that have it.

    A rotation reads queries and keys: heads that are pruned from the one, heads that stay from the other.
    """
    out = []
    for part in parts:
        share = []
        for x in range(3):
            total = sum(p[x] for p in parts)
            share.append(whole[x] * part[x] // total if total else whole[x] // len(parts))
        out.append(Dim(*share))
    return out


def _triples(dims: Sequence[Dim]) -> np.ndarray:
    return np.array([tuple(d) for d in dims], dtype=np.float64).reshape(len(dims), 3)
