"""Multi-head latent attention as modules and operators.

Keys and values of all heads come from one compressed latent per position, which is all that is cached, with a rotary
part that all heads share. It runs in two forms. In prefill the latents of this pass are expanded into keys and values
of all heads. In decode the expansion is absorbed: its key side is applied to the query and its value side to the
result, so that scores and values are taken against the cached latents, which act as one key-value head.

Left out: a prompt that continues a cached one, whose prefill would expand the cached latents again.

Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
"""

from __future__ import annotations

from typing import NamedTuple

from dse.model.assembly import Assembly, Site, Traits, join
from dse.model.parts import Cache, Dim, ModuleKind, OpKind
from dse.model.shapes import LatentAttention, Norm

_ONE_PER_HEAD = Dim(per_head=1)


class _Inputs(NamedTuple):
    """Operators that attention reads: queries, the latent of this pass, rotated parts, the append to the cache."""

    query: str
    latent: str
    rope: str
    cache: str


class _Reads(NamedTuple):
    """What scores and values are taken against: operators, elements per head of keys and values, key-value heads."""

    score: tuple[str, ...]
    value: tuple[str, ...]
    key_dim: int
    value_dim: int
    kv_heads: Dim
    cached: bool


def latent_attention(a: Assembly, site: Site, shape: LatentAttention, x: str) -> str:
    """Write latent attention over ``x`` and return its output projection's name."""
    site = site.of("attention")
    inputs = _latents(a, site, shape, x, _queries(a, site, shape, x))
    out = (_absorbed if a.phase == "decode" else _expanded)(a, site, shape, inputs)
    leaf = join(shape.path, "o_proj")
    return a.linear(site, leaf, (out,), Dim(per_head=shape.v_dim), site.hidden, bias=shape.bias)


def latent_cache(shape: LatentAttention) -> Cache:
    """Return what a decoder block with this attention caches per position."""
    return Cache(k=Dim(shape.kv_rank + shape.rope_dim), v=Dim())


def _queries(a: Assembly, site: Site, shape: LatentAttention, x: str) -> str:
    queries = Dim(per_head=shape.nope_dim + shape.rope_dim)
    if not shape.q_rank:
        return a.linear(site, join(shape.path, "q_proj"), (x,), site.hidden, queries)
    rank = Dim(shape.q_rank)
    down = a.linear(site, join(shape.path, "q_a_proj"), (x,), site.hidden, rank, bias=shape.bias)
    normed = a.norm(site, Norm(join(shape.path, "q_a_layernorm")), down, rank)
    return a.linear(site, join(shape.path, "q_b_proj"), (normed,), rank, queries)


def _latents(a: Assembly, site: Site, shape: LatentAttention, x: str, query: str) -> _Inputs:
    """Write the latent of each position with its rotary part, and their append to the cache."""
    kept = Dim(shape.kv_rank + shape.rope_dim)
    leaf = join(shape.path, "kv_a_proj_with_mqa")
    compressed = a.linear(site, leaf, (x,), site.hidden, kept, bias=shape.bias)
    latent = a.norm(site, Norm(join(shape.path, "kv_a_layernorm")), compressed, Dim(shape.kv_rank))
    rotated = Dim(fixed=shape.rope_dim, per_head=shape.rope_dim)
    rope = a.op(site, join(shape.path, "rope"), OpKind.ROPE, (query, compressed), rotated)
    cache = a.op(site, join(shape.path, "cache"), OpKind.CACHE, (latent, rope), kept)
    return _Inputs(query, latent, rope, cache)


def _expansion(a: Assembly, site: Site, shape: LatentAttention) -> tuple[str, Dim]:
    """Register the weight that turns a latent into the keys and values of all heads; return path and features."""
    both = Dim(per_head=shape.nope_dim + shape.v_dim)
    return a.module(site, join(shape.path, "kv_b_proj"), ModuleKind.LINEAR, Dim(shape.kv_rank), both), both


def _expanded(a: Assembly, site: Site, shape: LatentAttention, inputs: _Inputs) -> str:
    path, both = _expansion(a, site, shape)
    leaf = join(shape.path, "kv_b_proj")
    kv = a.op(site, leaf, OpKind.LINEAR, (inputs.latent,), both, k=Dim(shape.kv_rank), module=path)
    scored = (inputs.query, inputs.rope, kv)
    key_dim = shape.nope_dim + shape.rope_dim
    return _attend(a, site, shape, _Reads(scored, (kv,), key_dim, shape.v_dim, _ONE_PER_HEAD, cached=False))


def _absorbed(a: Assembly, site: Site, shape: LatentAttention, inputs: _Inputs) -> str:
    path, _ = _expansion(a, site, shape)
    leaf, rank = join(shape.path, "kv_b_proj"), Dim(shape.kv_rank)
    side: Traits = {"heads": _ONE_PER_HEAD, "module": path}
    key_side: Traits = {**side, "k": Dim(shape.nope_dim)}
    query = a.op(site, join(leaf, "key"), OpKind.LINEAR, (inputs.query,), rank, **key_side)
    scored = (query, inputs.rope, inputs.cache)
    reads = _Reads(scored, (inputs.cache,), shape.kv_rank + shape.rope_dim, shape.kv_rank, Dim(1), cached=True)
    mixed = _attend(a, site, shape, reads)
    value_side: Traits = {**side, "k": rank}
    return a.op(site, join(leaf, "value"), OpKind.LINEAR, (mixed,), Dim(shape.v_dim), **value_side)


def _attend(a: Assembly, site: Site, shape: LatentAttention, reads: _Reads) -> str:
    common: Traits = {"heads": _ONE_PER_HEAD, "span": site.span, "causal": True}
    read: Traits = {**common, "kv_heads": reads.kv_heads, "cached": reads.cached}
    scored: Traits = {**read, "k": Dim(reads.key_dim)}
    score = a.op(site, join(shape.path, "score"), OpKind.SCORE, reads.score, **scored)
    soft = a.op(site, join(shape.path, "softmax"), OpKind.SOFTMAX, (score,), **common)
    return a.op(site, join(shape.path, "value"), OpKind.VALUE, (soft, *reads.value), Dim(reads.value_dim), **read)
