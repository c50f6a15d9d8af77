"""Blocks as modules and operators: residual sub-layers, feed-forward networks, mixtures of experts.

Routing is counted as it is in the ideal case: every token passes through its ``n_active`` experts, and no token is
dropped or padded. How many experts a batch touches (and so loads) is the cost model's question.
"""

from __future__ import annotations

from dse.model.assembly import Assembly, Site, join
from dse.model.attention import attention, attention_cache
from dse.model.latent import latent_attention, latent_cache
from dse.model.parts import Block, Cache, Dim, ModuleKind, OpKind
from dse.model.shapes import Attention, BlockShape, Core, LatentAttention, Mlp, Moe, Residual


def block(a: Assembly, site: Site, shape: BlockShape, x: str) -> str:
    """Write one block over ``x`` and return the name of its last operator."""
    for residual in shape:
        x = _residual(a, site, residual, x)
    return x


def block_row(component: str, index: int, shape: BlockShape, *, cached: bool, used: bool = True) -> Block:
    """Return what can be pruned in a block and what it caches."""
    cores = [residual.core for residual in shape]
    attentions = [core for core in cores if isinstance(core, Attention | LatentAttention)]
    return Block(
        component=component,
        index=index,
        head_units=max((_head_units(core) for core in attentions), default=0),
        ffn_units=max((core.ffn for core in cores if isinstance(core, Mlp | Moe)), default=0),
        caches=tuple(_cache(core) for core in attentions) if cached else (),
        used=used,
    )


def _head_units(core: Attention | LatentAttention) -> int:
    return core.dims.units if isinstance(core, Attention) else core.heads


def _cache(core: Attention | LatentAttention) -> Cache:
    return attention_cache(core) if isinstance(core, Attention) else latent_cache(core)


def _residual(a: Assembly, site: Site, shape: Residual, x: str) -> str:
    half = "attention" if isinstance(shape.core, Attention | LatentAttention) else "mlp"
    y = a.norm(site, shape.before, x, site.hidden)
    y = _core(a, site, shape.core, y)
    y = a.norm(site, shape.after, y, site.hidden)
    if shape.scale:
        size = Dim(1) if shape.scalar else site.hidden
        path = a.module(site, shape.scale, ModuleKind.PARAMETER, Dim(1), size)
        y = a.op(site, shape.scale, OpKind.MULTIPLY, (y,), site.hidden, module=path)
    prefix = shape.core.path or half
    return a.op(site, join(prefix, "residual"), OpKind.ADD, (y, x), site.hidden)


def _core(a: Assembly, site: Site, core: Core, x: str) -> str:
    if isinstance(core, Attention):
        return attention(a, site, core, x)
    if isinstance(core, LatentAttention):
        return latent_attention(a, site, core, x)
    if isinstance(core, Moe):
        return _moe(a, site.of("mlp"), core, x)
    return _mlp(a, site.of("mlp"), core, x)


def _mlp(a: Assembly, site: Site, shape: Mlp, x: str) -> str:
    leaves = [join(shape.path, name) for name in shape.names]
    wide, channels = site.hidden, shape.channels
    if not shape.gated:
        up = a.linear(site, leaves[0], (x,), wide, channels, bias=shape.bias)
        active = a.op(site, join(shape.path, "act"), OpKind.ACTIVATION, (up,), channels)
    else:
        if len(leaves) == 2:
            gate = up = a.linear(site, leaves[0], (x,), wide, channels.times(2), bias=shape.bias)
        else:
            gate, up = (a.linear(site, leaf, (x,), wide, channels, bias=shape.bias) for leaf in leaves[:2])
        gate = a.op(site, join(shape.path, "act"), OpKind.ACTIVATION, (gate,), channels)
        active = a.op(site, join(shape.path, "multiply"), OpKind.MULTIPLY, (gate, up), channels)
    return a.linear(site, leaves[-1], (active,), channels, wide, bias=shape.bias)


def _moe(a: Assembly, site: Site, shape: Moe, x: str) -> str:
    route = _route(a, site, shape, x)
    out = _experts(a, site, shape, x, route)
    if shape.shared is None:
        return out
    shared = _mlp(a, site, shape.shared, x)
    if shape.shared_gate:
        leaf = join(shape.path, shape.shared_gate)
        gate = a.linear(site, leaf, (x,), site.hidden, Dim(1))
        gate = a.op(site, join(leaf, "act"), OpKind.ACTIVATION, (gate,), Dim(1))
        shared = a.op(site, join(leaf, "multiply"), OpKind.MULTIPLY, (shared, gate), site.hidden)
    return a.op(site, join(shape.path, "add_shared"), OpKind.ADD, (out, shared), site.hidden)


def _route(a: Assembly, site: Site, shape: Moe, x: str) -> str:
    leaf, experts = join(shape.path, shape.router), Dim(shape.n_experts)
    scores = a.linear(site, leaf, (x,), site.hidden, experts, bias=shape.bias)
    path = ""
    if shape.correction:
        path = a.module(site, join(shape.path, shape.correction), ModuleKind.PARAMETER, Dim(1), experts)
    return a.op(site, join(leaf, "route"), OpKind.ROUTE, (scores,), experts, module=path)


def _experts(a: Assembly, site: Site, shape: Moe, x: str, route: str) -> str:
    prefix, channels, wide = join(shape.path, shape.experts), Dim(per_ffn=1), site.hidden
    copies, active = shape.n_experts, shape.n_active
    both = a.linear(
        site, join(prefix, "gate_up_proj"), (x, route), wide, channels.times(2), bias=shape.bias,
        n_copies=copies, n_active=active,
    )  # fmt: skip
    gate = a.op(site, join(prefix, "act"), OpKind.ACTIVATION, (both,), channels, n_active=active)
    middle = a.op(site, join(prefix, "multiply"), OpKind.MULTIPLY, (gate, both), channels, n_active=active)
    out = a.linear(
        site, join(prefix, "down_proj"), (middle,), channels, wide, bias=shape.bias, n_copies=copies, n_active=active
    )
    # Each token's results are weighted by its scores and summed.
    return a.op(site, join(prefix, "combine"), OpKind.ADD, (out, route), wide, n_active=active)
