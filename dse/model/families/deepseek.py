"""DeepSeek-V2 and -V3 decoders: latent attention, dense first blocks, then routed and shared experts.

Left out: the multi-token-prediction module that DeepSeek-V3 ships beside the model; restrictions of routing to groups
of experts, which change no size.
"""

from __future__ import annotations

from dataclasses import replace

from dse.model.families.decoders import PRE_NORM, Paths
from dse.model.families.feed_forward import experts_per_token, shared_experts
from dse.model.fields import Fields
from dse.model.shapes import BlockShape, Decoder, LatentAttention, Mlp, Moe, Norm, Residual


def deepseek_v2(f: Fields, at: Paths) -> Decoder:
    """Return a DeepSeek-V2 decoder."""
    return _decoder(f, at, correction="", mlp_bias=f.flag("mlp_bias"))


def deepseek_v3(f: Fields, at: Paths) -> Decoder:
    """Return a DeepSeek-V3 decoder: as V2, with a bias per expert that corrects the routing."""
    return _decoder(f, at, correction="gate.e_score_correction_bias", mlp_bias=False)


def _decoder(f: Fields, at: Paths, correction: str, mlp_bias: bool) -> Decoder:
    n_blocks, vocab = f.blocks("num_hidden_layers"), f.count("vocab_size")
    n_dense = f.index("first_k_dense_replace")
    period = f.count("moe_layer_freq", absent=1)
    f.require(period == 1, f"moe_layer_freq={period} is not 1", "only experts in every block after the dense ones")
    attention, experts = _attention(f), _experts(f, correction, mlp_bias)
    dense = Mlp(f.count("intermediate_size"), bias=mlp_bias)
    return Decoder(
        path=at.root,
        hidden=f.count("hidden_size"),
        blocks=tuple(_block(attention, dense if i < n_dense else experts) for i in range(n_blocks)),
        vocab=vocab,
        embedding_rows=vocab,
        tied=f.flag("tie_word_embeddings", absent=False),
        norm=Norm("norm"),
        head=at.head,
    )


def _block(attention: LatentAttention, core: Mlp | Moe) -> BlockShape:
    return Residual(attention, Norm(PRE_NORM[0])), Residual(core, Norm(PRE_NORM[2]))


def _attention(f: Fields) -> LatentAttention:
    return LatentAttention(
        heads=f.count("num_attention_heads"),
        q_rank=f.count_or_none("q_lora_rank") or 0,
        kv_rank=f.count("kv_lora_rank"),
        nope_dim=f.count("qk_nope_head_dim"),
        rope_dim=f.count("qk_rope_head_dim"),
        v_dim=f.count("v_head_dim"),
        bias=f.flag("attention_bias"),
    )


def _experts(f: Fields, correction: str, bias: bool) -> Moe:
    n_experts, ffn = f.count("n_routed_experts"), f.count("moe_intermediate_size")
    shared = shared_experts(ffn * f.count("n_shared_experts"), ffn, "mlp.shared_experts")
    return Moe(
        n_experts=n_experts,
        n_active=experts_per_token(f, n_experts),
        ffn=ffn,
        correction=correction,
        shared=replace(shared, bias=bias),
    )
