"""Speech models: Whisper (encoder and decoder with cross-attention) and Qwen2-Audio (audio tokens in a decoder).

Both encoders start with two convolutions over time, of three frames each, the second with stride 2; as matrix products
they have three times the input channels as inner features.
"""

from __future__ import annotations

from dse.model.audio import PooledWindows, StateWindows
from dse.model.families.decoders import Paths
from dse.model.families.multimodal import Reading, context_length, language_model
from dse.model.families.vit import gather
from dse.model.fields import Fields
from dse.model.parts import ModuleKind
from dse.model.shapes import Attention, BlockShape, Decoder, Mlp, Norm, Pipeline, Residual, Shape, Stack, Step, Vector

_KERNEL = 3


def whisper(f: Fields, processor: Fields) -> Reading:
    """Return a Whisper."""
    del processor
    hidden, positions = f.count("d_model"), f.count("max_source_positions")
    stem, stack = _encoder(f, hidden, positions)
    normed = Step("layer_norm", ModuleKind.NORM, 1, hidden, bias=True)
    encoder = Pipeline("audio", "model.encoder", hidden, "mel", "frame", (*stem, stack, normed))
    shape = Shape((encoder,), _whisper_decoder(f, hidden))
    return Reading(shape, audio_rule=StateWindows(positions), max_context=f.count("max_target_positions"))


def _whisper_decoder(f: Fields, hidden: int) -> Decoder:
    heads, vocab = f.count("decoder_attention_heads"), f.count("vocab_size")
    block = (
        Residual(_attention(f, heads, hidden, "self_attn", causal=True), Norm("self_attn_layer_norm", True)),
        Residual(_attention(f, heads, hidden, "encoder_attn", states=True), Norm("encoder_attn_layer_norm", True)),
        Residual(_mlp(f.count("decoder_ffn_dim")), Norm("final_layer_norm", True)),
    )
    return Decoder(
        path="model.decoder",
        hidden=hidden,
        blocks=(block,) * f.blocks("decoder_layers"),
        vocab=vocab,
        embedding_rows=vocab,
        tied=f.flag("tie_word_embeddings"),
        norm=Norm("layer_norm", True),
        head="proj_out",
        positions=f.count("max_target_positions"),
    )


def qwen2_audio(f: Fields, processor: Fields) -> Reading:
    """Return a Qwen2-Audio: Whisper's encoder, pooled by two, and one linear projection."""
    del processor
    audio, text = f.child("audio_config", "qwen2_audio_encoder", fixed=True), f.child("text_config", "qwen2")
    hidden, positions = audio.count("d_model"), audio.count("max_source_positions")
    stem, stack = _encoder(audio, hidden, positions)
    pooled = gather("pooled", hidden, "avg_pooler")
    normed = Step("layer_norm", ModuleKind.NORM, 1, hidden, bias=True)
    encoder = Pipeline("audio", "model.audio_tower", hidden, "mel", "frame", (*stem, stack, pooled, normed))
    decoder = language_model(text, Paths("model.language_model", "lm_head"), f, ("audio",))
    linear = Step("linear", ModuleKind.LINEAR, hidden, decoder.hidden, bias=True)
    projector = Pipeline("projector", "model.multi_modal_projector", decoder.hidden, "pooled", "", (linear,))
    rule = PooledWindows(positions)
    return Reading(Shape((encoder, projector), decoder), audio_rule=rule, max_context=context_length(text))


def _encoder(f: Fields, hidden: int, positions: int) -> tuple[tuple[Step | Vector, ...], Stack]:
    """Return the convolutions and positions, and the blocks, of a Whisper encoder."""
    stem = (
        Step("conv1", ModuleKind.LINEAR, _KERNEL * f.count("num_mel_bins"), hidden, bias=True),
        Vector("conv1.act", hidden),
        Step("conv2", ModuleKind.LINEAR, _KERNEL * hidden, hidden, bias=True, rows="frame"),
        Vector("conv2.act", hidden),
        Step("embed_positions", ModuleKind.POSITION, positions, hidden),
    )
    n_blocks = f.blocks("encoder_layers")
    block: BlockShape = (
        Residual(
            _attention(f, f.count("encoder_attention_heads"), hidden, "self_attn"), Norm("self_attn_layer_norm", True)
        ),
        Residual(_mlp(f.count("encoder_ffn_dim")), Norm("final_layer_norm", True)),
    )
    return stem, Stack("layers", (block,) * n_blocks, n_blocks)


def _attention(
    f: Fields, heads: int, hidden: int, path: str, *, causal: bool = False, states: bool = False
) -> Attention:
    f.require(hidden % heads == 0, f"{heads} attention heads do not divide d_model={hidden}")
    bias = (True, False, True, True)
    return Attention(heads, heads, hidden // heads, path, out="out_proj", bias=bias, causal=causal, states=states)


def _mlp(ffn: int) -> Mlp:
    return Mlp(ffn, gated=False, names=("fc1", "fc2"), bias=True, path="")
