"""From a shape to its tables: modules, blocks, and the operator graph of each phase."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from dse.model.assembly import Assembly, Site, join
from dse.model.blocks import block, block_row
from dse.model.parts import PHASES, Block, Dim, Graph, Module, ModuleKind, OpKind, Section
from dse.model.shapes import Decoder, Norm, Pipeline, Regroup, Shape, Stack, Step, Vector

# Owner of weights that lie in another model.
TARGET_OWNS = "(target)"


class Tables(NamedTuple):
    """What a model is made of: modules and blocks in checkpoint order, and a graph per phase."""

    modules: tuple[Module, ...]
    blocks: tuple[Block, ...]
    graphs: dict[str, Graph]


def build(shape: Shape) -> Tables:
    """Return the tables of a shape."""
    modules: dict[str, Module] = {}
    graphs = {}
    for phase in PHASES:
        a = Assembly(phase, modules)
        if phase == "encode":
            _encode(a, shape)
        else:
            _decode(a, shape.decoder)
        graphs[phase] = Graph(phase, tuple(a.ops))
    return Tables(tuple(modules.values()), _blocks(shape), graphs)


def _blocks(shape: Shape) -> tuple[Block, ...]:
    rows = []
    for pipeline in shape.pipelines:
        stacks = [item for item in pipeline.items if isinstance(item, Stack)]
        blocks = [(one, i < stack.n_used) for stack in stacks for i, one in enumerate(stack.blocks)]
        for i, (one, used) in enumerate(blocks):
            rows.append(block_row(pipeline.component, i, one, cached=False, used=used))
    rows += [block_row("decoder", i, one, cached=True) for i, one in enumerate(shape.decoder.blocks)]
    return tuple(rows)


def _encode(a: Assembly, shape: Shape) -> None:
    x = ""
    for pipeline in shape.pipelines:
        # An encoder starts from pixels or frames, a projector from the encoder before it.
        x = _pipeline(a, pipeline, x if pipeline.component == "projector" else "")


def _pipeline(a: Assembly, shape: Pipeline, x: str) -> str:
    site = Site(shape.component, Section.STEM, shape.path, Dim(shape.hidden), shape.rows, shape.span)
    states: list[str] = []  # the input of the first block, then the output of each
    for item in shape.items:
        if isinstance(item, Regroup):
            site = site.on(item.rows)
        elif isinstance(item, Stack):
            states = states or [x]
            x = _stack(a, site, item, x, states)
            site = replace(site, section=Section.HEAD)
        elif isinstance(item, Vector):
            site = site.on(item.rows or site.rows)
            kind = OpKind.POOL if item.pool else OpKind.ACTIVATION
            x = a.op(site, item.name, kind, (x, *(states[i] for i in item.states)), Dim(item.n))
        else:
            site = site.on(item.rows or site.rows)
            x = _step(a, site, item, x)
    return x


def _stack(a: Assembly, site: Site, shape: Stack, x: str, states: list[str]) -> str:
    """Write the blocks of a stack; those behind the last one used enter the module table only."""
    taps = dict(shape.taps)
    for i, one in enumerate(shape.blocks):
        a.live = i < shape.n_used
        path = join(site.path, shape.path, str(i))
        y = block(a, replace(site, section=Section.BLOCK, path=path, block=len(states) - 1), one, x)
        x = y if a.live else x
        states.append(x)
        if i in taps:
            _pipeline(a, taps[i], x)
    a.live = True
    return x


def _step(a: Assembly, site: Site, item: Step, x: str) -> str:
    """Write one step; parameters that are not used enter the module table only."""
    before, a.live = a.live, a.live and item.used
    if item.kind is ModuleKind.LINEAR:
        y = a.linear(site, item.leaf, (x,), Dim(item.k), Dim(item.n), bias=item.bias)
    elif item.kind is ModuleKind.NORM:
        y = a.norm(site, Norm(item.leaf, item.bias), x, Dim(item.n))
    else:
        y = _table(a, site, item, x)
    a.live = before
    return y if item.used else x


def _table(a: Assembly, site: Site, item: Step, x: str) -> str:
    """Write a table that is added to the features: looked up (POSITION) or held as it is added (PARAMETER)."""
    path = a.module(site, item.leaf, item.kind, Dim(item.k), Dim(item.n))
    if not item.added:
        return x
    features = Dim(item.lookup or item.n)
    if item.kind is ModuleKind.PARAMETER:
        return a.op(site, join(item.leaf, "add"), OpKind.ADD, (x,), features, module=path)
    found = a.op(site, item.leaf, OpKind.EMBED, (), features, module=path)
    return a.op(site, join(item.leaf, "add"), OpKind.ADD, (x, found), features)


def _decode(a: Assembly, shape: Decoder) -> None:
    wide = Dim(shape.hidden)
    site = Site("decoder", Section.STEM, shape.path, wide, "token", "context")
    owner = TARGET_OWNS if shape.shares else ""
    rows = Dim(shape.embedding_rows)
    table = a.module(site, shape.embed, ModuleKind.EMBEDDING, rows, wide, tied_to=owner)
    x = _decoder_inputs(a, site, shape, a.op(site, shape.embed, OpKind.EMBED, (), wide, module=table))
    if shape.joined:
        x = a.linear(site, "fc", (x,), wide.times(shape.joined), wide, bias=True)
    for i, one in enumerate(shape.blocks):
        path = join(shape.path, shape.layers, str(i))
        inside = replace(site, section=Section.BLOCK, path=path, block=i)
        x = block(a, inside, one, x)
        if a.phase == "prefill" and i < shape.n_injected:
            x = a.op(inside.on("visual"), "inject_visual", OpKind.ADD, (x,), wide)
    if shape.n_heads:
        _draft_heads(a, replace(site, section=Section.HEAD, rows="last"), shape, x)
        return
    if not shape.shares:
        x = a.norm(replace(site, section=Section.HEAD), shape.norm, x, wide)
    above, _, leaf = shape.head.rpartition(".")
    head = replace(site, section=Section.HEAD, path=above, rows="last")
    tied = owner or (table if shape.tied else "")
    a.linear(head, leaf, (x,), wide, Dim(shape.vocab), bias=shape.head_bias, tied_to=tied)


def _draft_heads(a: Assembly, site: Site, shape: Decoder, x: str) -> None:
    """Write heads that each guess one further token from the same features: x + silu(linear x), then the vocabulary."""
    wide = Dim(shape.hidden)
    for i in range(shape.n_heads):
        y = a.linear(site, f"{i}.0.linear", (x,), wide, wide, bias=True)
        y = a.op(site, f"{i}.0.act", OpKind.ACTIVATION, (y,), wide)
        y = a.op(site, f"{i}.0.add", OpKind.ADD, (x, y), wide)
        a.linear(site, f"{i}.1", (y,), wide, Dim(shape.vocab))


def _decoder_inputs(a: Assembly, site: Site, shape: Decoder, x: str) -> str:
    """Write learned positions and, in prefill, encoder outputs that take the place of token embeddings."""
    if shape.positions:
        x = _step(a, site, Step(shape.position_leaf, ModuleKind.POSITION, shape.positions, shape.hidden), x)
    for rows in shape.inputs if a.phase == "prefill" else ():
        x = a.op(site.on(rows), f"insert_{rows}", OpKind.POOL, (x,), site.hidden)
    return x
