"""Writes modules and operators: each step of a model enters the module table and the graph by the same call.

An :class:`Assembly` belongs to one walk over a shape, in one phase. Modules are registered whether or not the walk is
live; operators only while it is (the blocks that a forward pass skips have parameters and no work). A :class:`Site`
says where in the model the walk stands. Steps are chained by operator names; "" stands for an input from outside the
graph (pixels, token numbers, results of an earlier phase).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypedDict, Unpack

from dse.model.parts import NO_DIM, Dim, Module, ModuleKind, Op, OpKind, Section
from dse.model.shapes import Norm


def join(*parts: str) -> str:
    """Return the dotted path of the parts that are not empty."""
    return ".".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the model, and the rows that pass through it.

    Attributes:
        component: component it belongs to.
        section: stem, block or head.
        block: block index inside the component, -1 outside blocks.
        path: Hugging Face path that leaves are relative to.
        hidden: features per row between sub-layers.
        rows: row symbol.
        span: what attention looks at.
        part: "attention", "mlp" or "".
    """

    component: str
    section: Section
    path: str
    hidden: Dim
    rows: str
    span: str = ""
    block: int = -1
    part: str = ""

    def name(self, leaf: str) -> str:
        """Return the name of an operator of this place."""
        return join(self.component, str(self.block) if self.block >= 0 else "", leaf)

    def on(self, rows: str) -> Site:
        """Return the same place with other rows."""
        return replace(self, rows=rows)

    def of(self, part: str) -> Site:
        """Return the same place inside one half of a block."""
        return replace(self, part=part)


class Traits(TypedDict, total=False):
    """What only some operators have, by the names of :class:`dse.model.parts.Op`."""

    k: Dim
    module: str
    n_active: int
    heads: Dim
    kv_heads: Dim
    span: str
    window: int
    chunked: bool
    causal: bool
    cached: bool


@dataclass(slots=True)
class Assembly:
    """The modules and operators written so far.

    Attributes:
        phase: the phase whose operators are written.
        modules: by path; shared by the walks of all phases.
        ops: in order.
        live: whether operators are written.
    """

    phase: str
    modules: dict[str, Module]
    ops: list[Op] = field(default_factory=list)
    live: bool = True

    def module(
        self,
        site: Site,
        leaf: str,
        kind: ModuleKind,
        k: Dim,
        n: Dim,
        *,
        bias: bool = False,
        n_copies: int = 1,
        n_active: int = 1,
        tied_to: str = "",
    ) -> str:
        """Register a module, once, and return its path."""
        path = join(site.path, leaf)
        if path not in self.modules:
            self.modules[path] = Module(
                path=path,
                kind=kind,
                component=site.component,
                section=site.section,
                block=site.block,
                leaf=leaf,
                part=site.part,
                in_dim=k,
                out_dim=n,
                bias=bias,
                n_copies=n_copies,
                n_active=n_active,
                tied_to=tied_to,
            )
        return path

    def op(
        self, site: Site, leaf: str, kind: OpKind, inputs: Iterable[str], n: Dim = NO_DIM, **traits: Unpack[Traits]
    ) -> str:
        """Write an operator and return its name; outside inputs ("") are left out."""
        name = site.name(leaf)
        if self.live:
            known = tuple(dict.fromkeys(i for i in inputs if i))
            self.ops.append(Op(name, kind, site.component, site.block, site.rows, n=n, inputs=known, **traits))
        return name

    def linear(
        self,
        site: Site,
        leaf: str,
        inputs: Iterable[str],
        k: Dim,
        n: Dim,
        *,
        bias: bool = False,
        n_copies: int = 1,
        n_active: int = 1,
        tied_to: str = "",
    ) -> str:
        """Write a matrix product with a weight of its own (or tied to another's)."""
        path = self.module(
            site, leaf, ModuleKind.LINEAR, k, n, bias=bias, n_copies=n_copies, n_active=n_active, tied_to=tied_to
        )
        return self.op(site, leaf, OpKind.LINEAR, inputs, n, k=k, module=path, n_active=n_active)

    def norm(self, site: Site, norm: Norm | None, x: str, n: Dim) -> str:
        """Write a normalisation over ``n`` features; ``None`` passes ``x`` on."""
        if norm is None:
            return x
        path = self.module(site, norm.leaf, ModuleKind.NORM, Dim(1), n, bias=norm.bias)
        return self.op(site, norm.leaf, OpKind.NORM, (x,), n, module=path)
