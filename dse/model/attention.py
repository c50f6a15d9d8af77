"""Softmax attention as modules and operators.

It looks at the tokens so far (decoders), at one tile, image or window (encoders), or at encoder states
(cross-attention), with one, several or all query heads per key-value head, and separate or fused projections.

What runs once is left out of the decode graph: the keys and values that cross-attention computes from the encoder
states. Positions outside a window or behind a causal mask are no work, as fused kernels have it.
"""

from __future__ import annotations

from dse.model.assembly import Assembly, Site, Traits, join
from dse.model.parts import Cache, Dim, ModuleKind, OpKind
from dse.model.shapes import Attention


def attention(a: Assembly, site: Site, shape: Attention, x: str) -> str:
    """Write softmax attention over ``x`` and return its output projection's name."""
    site = site.of("attention")
    q, k, v = _projections(a, site, shape, x)
    q, k = _position(a, site, shape, *_query_key_norms(a, site, shape, q, k))
    if a.phase != "encode":
        k = v = _append(a, site, shape, k, v)
    out = _attend(a, site, shape, q, k, v)
    leaf = join(shape.path, shape.out)
    return a.linear(site, leaf, (out,), shape.dims.q, site.hidden, bias=shape.bias[3])


def _projections(a: Assembly, site: Site, shape: Attention, x: str) -> tuple[str, str, str]:
    """Write the projections; keys and values of encoder states run once, in prefill."""
    sizes = (shape.dims.q, shape.dims.kv, shape.dims.kv)
    if len(shape.names) == 1:
        total = sizes[0].plus(sizes[1]).plus(sizes[2])
        fused = a.linear(site, join(shape.path, shape.names[0]), (x,), site.hidden, total, bias=shape.bias[0])
        return fused, fused, fused
    leaves = [join(shape.path, name) for name in shape.names]
    q = a.linear(site, leaves[0], (x,), site.hidden, sizes[0], bias=shape.bias[0])
    if not shape.states:
        k, v = (a.linear(site, leaves[i], (x,), site.hidden, sizes[i], bias=shape.bias[i]) for i in (1, 2))
        return q, k, v
    if a.phase == "decode":
        return q, "", ""
    states = site.on("state")
    k, v = (a.linear(states, leaves[i], ("",), site.hidden, sizes[i], bias=shape.bias[i]) for i in (1, 2))
    return q, k, v


def _query_key_norms(a: Assembly, site: Site, shape: Attention, q: str, k: str) -> tuple[str, str]:
    """Write norms with weights. Norms without weights follow the rotation, see :func:`_position`."""
    if shape.qk_norm not in ("head", "full"):
        return q, k
    sides = [(shape.norm_names[0], q, shape.dims.q, site), (shape.norm_names[1], k, shape.dims.kv, site)]
    if shape.states:
        sides[1] = (*sides[1][:3], site.on("state"))
    out = []
    for name, x, size, where in sides:
        weights = Dim(shape.head_dim) if shape.qk_norm == "head" else size
        leaf = join(shape.path, name)
        path = a.module(where, leaf, ModuleKind.NORM, Dim(1), weights)
        # In decode the keys of the encoder states are normalised already: x is "" there.
        out.append(a.op(where, leaf, OpKind.NORM, (x,), size, module=path) if x else "")
    return out[0], out[1]


def _position(a: Assembly, site: Site, shape: Attention, q: str, k: str) -> tuple[str, str]:
    """Write the rotation of queries and keys, and their norm where it has no weights."""
    if shape.rope_dim:
        n = shape.dims.heads.plus(shape.dims.kv_heads).times(shape.rope_dim)
        q = k = a.op(site, join(shape.path, "rope"), OpKind.ROPE, (q, k), n)
    if shape.qk_norm == "bare":
        q = k = a.op(site, join(shape.path, "qk_norm"), OpKind.NORM, (q, k), shape.dims.q.plus(shape.dims.kv))
    return q, k


def _append(a: Assembly, site: Site, shape: Attention, k: str, v: str) -> str:
    """Write the append to the cache; in decode the states' keys and values are there already."""
    if shape.states and a.phase == "decode":
        return ""
    where = site.on("state") if shape.states else site
    return a.op(where, join(shape.path, "cache"), OpKind.CACHE, (k, v), shape.dims.kv.times(2))


def _attend(a: Assembly, site: Site, shape: Attention, q: str, k: str, v: str) -> str:
    common: Traits = {
        "heads": shape.dims.heads,
        "span": "state" if shape.states else site.span,
        "window": shape.window,
        "chunked": shape.chunked,
        "causal": shape.causal and not (shape.open_prompt and a.phase == "prefill"),
    }
    reads: Traits = {**common, "kv_heads": shape.dims.kv_heads, "cached": a.phase != "encode"}
    scored: Traits = {**reads, "k": Dim(shape.head_dim)}
    score = a.op(site, join(shape.path, "score"), OpKind.SCORE, (q, k), **scored)
    joined: Traits = {**common, "module": _sinks(a, site, shape)}
    soft = a.op(site, join(shape.path, "softmax"), OpKind.SOFTMAX, (score,), **joined)
    return a.op(site, join(shape.path, "value"), OpKind.VALUE, (soft, v), Dim(shape.head_dim), **reads)


def _sinks(a: Assembly, site: Site, shape: Attention) -> str:
    """Register the logits that join the softmax, one per head; return their path, "" without any."""
    if not shape.sinks:
        return ""
    return a.module(site, join(shape.path, shape.sinks), ModuleKind.PARAMETER, Dim(1), shape.dims.heads)


def attention_cache(shape: Attention) -> Cache:
    """Return what a decoder block with this attention caches per position."""
    rows = "state" if shape.states else "context"
    return Cache(k=shape.dims.kv, v=shape.dims.kv, window=shape.window, rows=rows)
