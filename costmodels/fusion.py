"""Fusion as a partition of an operator graph's edges: which edges may be fused, and which groups they make.

An edge carries a tensor from its producer to one consumer. A chosen edge keeps that tensor on chip; chosen edges that
meet form a *group*, and the other operators run alone, so a choice of edges is a partition. A group is legal when

    kind      every operator works row by row; gathering positions (POOL) does not. Score, softmax and value of an
              attention fuse with each other, all three, and with nothing else: their inner loop runs over heads and
              positions, their neighbours need all heads of a row.
    rows      all operators have the same row symbol, component, experts per row and experts: a row tile of one is then
              a row tile of all.
    convex    no path leaves the group and comes back: what is outside would need a result before the group ends.
    order     groups do not wait for each other in a circle.

Named forms pick edges of the blocks:

    fuse_attention   score -> softmax -> value
    fuse_mlp         projections -> activation [-> gate product] -> projection, of experts too
    fuse_norm        residual sum -> norm, and norm -> the projections that read it

and a user's own groups pick edges by patterns on operator names inside a block ("self_attn.q_proj").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from dse.errors import UserError
from dse.model import Graph, Model, Op, OpKind

Edge = tuple[int, int]

# Bits of the forms that make row groups; attention is a switch of its own.
MLP, NORM, GIVEN = 1, 2, 4
N_MASKS: Final = 8
FORM_NAMES: Final = {MLP: "mlp", NORM: "norm", GIVEN: "groups"}

ROW_KINDS: Final = frozenset(
    {
        OpKind.LINEAR, OpKind.NORM, OpKind.ROPE, OpKind.ACTIVATION, OpKind.MULTIPLY, OpKind.ADD, OpKind.ROUTE,
        OpKind.EMBED, OpKind.CACHE,
    }
)  # fmt: skip
_OF_EXPERTS: Final = frozenset({OpKind.LINEAR, OpKind.ACTIVATION, OpKind.MULTIPLY})
_PAIRS: Final = frozenset({(OpKind.SCORE, OpKind.SOFTMAX), (OpKind.SOFTMAX, OpKind.VALUE)})


def leaf_of(op: Op) -> str:
    """Return an operator's name inside its block or component ("self_attn.q_proj")."""
    prefix = f"{op.component}.{op.block}." if op.block >= 0 else f"{op.component}."
    return op.name.removeprefix(prefix)


class Partitioner:
    """Legal groups of one phase's graph.

    Args:
        graph: the operators.
        model: the model that they belong to.
    """

    def __init__(self, graph: Graph, model: Model) -> None:
        self.ops: Sequence[Op] = graph.ops
        self.model = model
        at = {op.name: i for i, op in enumerate(graph.ops)}
        self.producers: list[list[int]] = [[at[name] for name in op.inputs] for op in graph.ops]
        self.consumers: list[list[int]] = [[] for _ in graph.ops]
        for i, inputs in enumerate(self.producers):
            for producer in inputs:
                self.consumers[producer].append(i)
        self.experts = [self._n_experts(op) for op in graph.ops]

    def _n_experts(self, op: Op) -> int:
        return self.model.module(op.module).n_copies if op.kind is OpKind.LINEAR and op.module else 1

    def edges(self) -> list[Edge]:
        """Return all edges as (producer, consumer)."""
        return [(p, c) for c, inputs in enumerate(self.producers) for p in inputs]

    # ------------------------------------------------------------------------------------------------ forms

    def attention_edges(self) -> set[Edge]:
        """Return the edges score -> softmax -> value."""
        return {(p, c) for p, c in self.edges() if (self.ops[p].kind, self.ops[c].kind) in _PAIRS}

    def mlp_edges(self) -> set[Edge]:
        """Return the edges of the form fuse_mlp: those around an activation whose result reaches a projection."""
        found: set[Edge] = set()
        for at, op in enumerate(self.ops):
            if op.kind is not OpKind.ACTIVATION or op.block < 0:
                continue
            for sink in self.consumers[at]:
                middle = [sink] if self.ops[sink].kind is OpKind.MULTIPLY else []
                ends = [c for m in middle for c in self.consumers[m]] if middle else [sink]
                linears = [c for c in ends if self.ops[c].kind is OpKind.LINEAR]
                if not linears:
                    continue
                inner = {at, *middle}
                found |= {(p, c) for c in inner for p in self.producers[c]}
                found |= {(p, c) for p in inner for c in linears if p in self.producers[c]}
        return {edge for edge in found if not self.why_not(*edge)}

    def norm_edges(self) -> set[Edge]:
        """Return the edges of the form fuse_norm."""
        pairs = ((OpKind.ADD, OpKind.NORM), (OpKind.NORM, OpKind.LINEAR))
        inside = [(p, c) for p, c in self.edges() if self.ops[p].block >= 0 and self.ops[c].block >= 0]
        found = {(p, c) for p, c in inside if (self.ops[p].kind, self.ops[c].kind) in pairs}
        return {edge for edge in found if not self.why_not(*edge)}

    def given_edges(self, patterns: Iterable[tuple[str, str]]) -> set[Edge]:
        """Return the edges whose ends match a (producer, consumer) pattern on names inside a block."""
        leaves = [leaf_of(op) for op in self.ops]
        known = list(patterns)
        return {
            (p, c)
            for p, c in self.edges()
            if any(fnmatchcase(leaves[p], a) and fnmatchcase(leaves[c], b) for a, b in known)
        }

    # ---------------------------------------------------------------------------------------------- legality

    def why_not(self, producer: int, consumer: int) -> str:
        """Return the law that forbids an edge, in words; "" where it may be fused."""
        p, c = self.ops[producer], self.ops[consumer]
        if (p.kind, c.kind) in _PAIRS:
            return ""
        for op in (p, c):
            if op.kind.is_attention:
                return f"{op.kind.value} fuses inside its attention alone, whose inner loop runs over heads"
            if op.kind not in ROW_KINDS:
                return f"{op.name} gathers positions and does not work row by row"
        if p.component != c.component:
            return f"components differ: {p.component} and {c.component}"
        if p.rows != c.rows:
            return f"rows differ: {p.rows} and {c.rows}"
        if p.n_active != c.n_active:
            return f"each row passes {p.n_active} and {c.n_active} times"
        experts = max(self.experts[producer], self.experts[consumer])
        if experts > 1 or self._is_routed(producer) or self._is_routed(consumer):
            linears = [self.experts[i] for i in (producer, consumer) if self.ops[i].kind is OpKind.LINEAR]
            if not {p.kind, c.kind} <= _OF_EXPERTS or any(n == 1 for n in linears):
                return "rows are gathered per expert on one side of it"
        return ""

    def _is_routed(self, at: int) -> bool:
        """Whether an activation or product works on rows that are gathered per expert."""
        if self.ops[at].kind not in (OpKind.ACTIVATION, OpKind.MULTIPLY):
            return self.experts[at] > 1
        return any(self._is_routed(p) for p in self.producers[at] if self.ops[p].kind in _OF_EXPERTS)

    def groups(self, edges: Iterable[Edge], where: str = "fusion") -> list[tuple[int, ...]]:
        """Return the groups that edges make, each a tuple of operators in order, in the order of their first.

        Args:
            edges: (producer, consumer) pairs of this graph.
            where: the place, for messages.

        Raises:
            UserError: an edge or a group breaks a law, with the law, the place and the remedy.
        """
        chosen = sorted(set(edges))
        for p, c in chosen:
            law = self.why_not(p, c)
            if law:
                raise UserError(
                    f"{where}: the edge {self.ops[p].name} -> {self.ops[c].name} cannot be fused: {law}",
                    "leave this edge out",
                )
        root = list(range(len(self.ops)))

        def find(i: int) -> int:
            while root[i] != i:
                root[i] = root[root[i]]
                i = root[i]
            return i

        for p, c in chosen:
            a, b = sorted((find(p), find(c)))
            root[b] = a
        members: dict[int, list[int]] = {}
        for i in sorted({end for edge in chosen for end in edge}):
            members.setdefault(find(i), []).append(i)
        found = [tuple(group) for group in members.values()]
        for group in found:
            self._check_kinds(group, where)
            self._check_convex(group, where)
        self._check_order(found, where)
        return found

    def _check_kinds(self, group: tuple[int, ...], where: str) -> None:
        kinds = [self.ops[i].kind for i in group]
        if any(k.is_attention for k in kinds) and kinds != [OpKind.SCORE, OpKind.SOFTMAX, OpKind.VALUE]:
            names = " -> ".join(self.ops[i].name for i in group)
            raise UserError(
                f"{where}: {names}: score, softmax and value fuse all three or not at all",
                "name both edges score -> softmax and softmax -> value, and no other edge of them",
            )

    def _check_convex(self, group: tuple[int, ...], where: str) -> None:
        inside, last = set(group), group[-1]
        reached = {c: i for i in group for c in self.consumers[i] if c not in inside}
        while reached:
            at, origin = reached.popitem()
            for c in self.consumers[at]:
                if c in inside:
                    raise UserError(
                        f"{where}: a path leaves the group after {self.ops[origin].name}, through {self.ops[at].name}, "
                        f"and comes back to {self.ops[c].name}: a group must be convex",
                        f"leave out an edge into {self.ops[c].name}, or fuse {self.ops[at].name} as well",
                    )
                if c <= last:
                    reached.setdefault(c, origin)

    def _check_order(self, groups: Sequence[tuple[int, ...]], where: str) -> None:
        """Check that the graph of groups and single operators has no circle."""
        unit = list(range(len(self.ops)))
        for group in groups:
            for i in group:
                unit[i] = group[0]
        waits: dict[int, set[int]] = {u: set() for u in unit}
        feeds: dict[int, set[int]] = {u: set() for u in unit}
        for p, c in self.edges():
            if unit[p] != unit[c]:
                waits[unit[c]].add(unit[p])
                feeds[unit[p]].add(unit[c])
        ready = [u for u, needs in waits.items() if not needs]
        done = 0
        while ready:
            u = ready.pop()
            done += 1
            for c in feeds[u]:
                waits[c].discard(u)
                if not waits[c]:
                    ready.append(c)
        if done < len(waits):
            stuck = next(self.ops[u].name for u, needs in sorted(waits.items()) if needs)
            raise UserError(
                f"{where}: the group of {stuck} waits for a group that waits for it: groups must have an order",
                "fuse both into one group, or leave out an edge of one",
            )


def form_edges(parts: Partitioner, phase: str, given: Mapping[str, Sequence[tuple[str, str]]]) -> dict[int, set[Edge]]:
    """Return the edges of each form of row groups, by its bit; attention's edges are not among them.

    Args:
        parts: the graph.
        phase: its phase: a given group "decode/name" holds in decode alone.
        given: the user's groups by name.

    Raises:
        UserError: a given group breaks a law.
    """
    own: set[Edge] = set()
    for name, patterns in given.items():
        only, slash, _ = name.rpartition("/")
        if slash and only != phase:
            continue
        edges = parts.given_edges(patterns)
        parts.groups(edges, f"fusion group {name!r} in {phase}")
        own |= edges
    return {MLP: parts.mlp_edges(), NORM: parts.norm_edges(), GIVEN: own - parts.attention_edges()}


def given_attention(parts: Partitioner, phase: str, given: Mapping[str, Sequence[tuple[str, str]]]) -> set[int]:
    """Return the score operators whose attention a user's group fuses."""
    found: set[Edge] = set()
    for name, patterns in given.items():
        only, slash, _ = name.rpartition("/")
        if not slash or only == phase:
            found |= parts.given_edges(patterns)
    return {p for p, _ in found & parts.attention_edges() if parts.ops[p].kind is OpKind.SCORE}


def check_given(model: Model, given: Mapping[str, Sequence[tuple[str, str]]], phases: Sequence[str]) -> None:
    """Check that every given group has an edge in some phase.

    Raises:
        UserError: one has none; the message lists the nearest names.
    """
    graphs = {phase: Partitioner(model.graph(phase), model) for phase in phases}
    for name, patterns in given.items():
        only, slash, _ = name.rpartition("/")
        if slash and only not in phases:
            raise UserError(f"fusion group {name!r}: {only!r} is no phase", f"use one of {', '.join(phases)}")
        for pattern in patterns:
            if not any(parts.given_edges([pattern]) for phase, parts in graphs.items() if not slash or phase == only):
                leaves = sorted({leaf_of(op) for parts in graphs.values() for op in parts.ops if op.block >= 0})
                raise UserError(
                    f"fusion group {name!r}: no edge goes from {pattern[0]!r} to {pattern[1]!r} in {model.name}",
                    f"operators of its blocks: {', '.join(leaves)}",
                )
