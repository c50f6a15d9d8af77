"""The feed-forward networks of decoder blocks, dense or with experts, as the families lay them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dse.model.fields import Fields
from dse.model.shapes import Mlp, Moe

# Fields and index of a block -> its network.
FeedForward = Callable[[Fields, int], Mlp | Moe]


def dense(f: Fields, block: int) -> Mlp:
    """Return a gated network without biases."""
    del block
    return Mlp(f.count("intermediate_size"))


def llama_dense(f: Fields, block: int) -> Mlp:
    """Return a gated network that may have biases (Llama, Granite)."""
    del block
    return Mlp(f.count("intermediate_size"), bias=f.flag("mlp_bias"))


def fused_dense(f: Fields, block: int) -> Mlp:
    """Return a gated network whose gate and up projections are one weight (Phi-3)."""
    del block
    return Mlp(f.count("intermediate_size"), names=("gate_up_proj", "down_proj"))


def plain_dense(f: Fields, block: int) -> Mlp:
    """Return a network without gate (StarCoder2)."""
    del block
    return Mlp(f.count("intermediate_size"), gated=False, names=("c_fc", "c_proj"), bias=f.flag("use_bias"))


def internlm_dense(f: Fields, block: int) -> Mlp:
    """Return InternLM2's gated network, Llama's under other names."""
    del block
    return Mlp(f.count("intermediate_size"), names=("w1", "w3", "w2"), path="feed_forward")


def mixtral_experts(f: Fields, block: int) -> Moe:
    """Return experts in every block."""
    del block
    n_experts = f.count("num_local_experts", "num_experts")
    return Moe(n_experts, experts_per_token(f, n_experts), f.count("intermediate_size"))


def olmoe_experts(f: Fields, block: int) -> Moe:
    """Return experts in every block, under Qwen's names."""
    del block
    n_experts = f.count("num_experts", "num_local_experts")
    return Moe(n_experts, experts_per_token(f, n_experts), f.count("intermediate_size"))


def gpt_oss_experts(f: Fields, block: int) -> Moe:
    """Return experts in every block; router and experts have biases."""
    core = mixtral_experts(f, block)
    return replace(core, router="router", bias=True)


def qwen_experts(f: Fields, block: int) -> Mlp | Moe:
    """Return experts in every ``decoder_sparse_step``-th block that is not listed as dense."""
    dense_blocks = f.indices_or_none("mlp_only_layers", f.blocks("num_hidden_layers")) or ()
    if block in dense_blocks or (block + 1) % f.count("decoder_sparse_step"):
        return Mlp(f.count("intermediate_size"))
    n_experts, ffn = f.count("num_experts", "num_local_experts"), f.count("moe_intermediate_size")
    return Moe(n_experts, experts_per_token(f, n_experts), ffn)


def qwen2_experts(f: Fields, block: int) -> Mlp | Moe:
    """Return Qwen2-MoE's experts: as :func:`qwen_experts`, with a gated shared one."""
    core = qwen_experts(f, block)
    if isinstance(core, Mlp):
        return core
    shared = shared_experts(f.count("shared_expert_intermediate_size"), core.ffn, "mlp.shared_expert")
    return replace(core, shared=shared, shared_gate="shared_expert_gate")


def experts_per_token(f: Fields, n_experts: int) -> int:
    """Return the experts a token passes through, at most as many as there are."""
    active = f.count("num_experts_per_tok")
    f.require(active <= n_experts, f"num_experts_per_tok={active} exceeds the {n_experts} experts")
    return active


def shared_experts(ffn: int, routed_ffn: int, path: str) -> Mlp:
    """Return shared experts, pruned with the routed ones where their width is a whole multiple of theirs."""
    return Mlp(ffn, path=path, multiple=ffn // routed_ffn if ffn % routed_ffn == 0 else 0)
