"""Qwen vision-language models: Qwen2-VL, Qwen2.5-VL and Qwen3-VL, dense and with experts.

Their towers take an image at its own size and merge 2x2 patches into one token. Qwen2-VL attends over the whole image;
Qwen2.5-VL in windows, except in listed blocks; Qwen3-VL again over the whole image, and hands features of listed
blocks to the first blocks of the decoder beside its output. The mergers are the projectors of this family.

Files before transformers 4.52 keep the language fields at the top level.
"""

from __future__ import annotations

from dataclasses import replace

from dse.model.families.decoders import Paths
from dse.model.families.multimodal import Reading, context_length, language_model
from dse.model.families.vit import patch_features, vit_block
from dse.model.fields import Fields
from dse.model.images import SmartResize
from dse.model.parts import ModuleKind
from dse.model.shapes import Attention, BlockShape, Item, Mlp, Pipeline, Regroup, Shape, Stack, Step, Vector

_PATH = "model.visual"
_NORMS = ("norm1", "norm2")
_SEQUENTIAL = ("ln_q", "mlp.0", "mlp.1", "mlp.2")


def qwen2_vl(f: Fields, processor: Fields) -> Reading:
    """Return a Qwen2-VL."""
    vision = _vision(f)
    hidden, out = vision.count("embed_dim"), vision.count("hidden_size")
    mlp = Mlp(hidden * vision.count("mlp_ratio"), gated=False, names=("fc1", "fc2"), bias=True)
    blocks = (vit_block(_attention(vision, hidden), mlp, _NORMS),) * vision.blocks("depth")
    tower = _tower(vision, hidden, blocks)
    merger = _merger(vision, hidden, out, _SEQUENTIAL, layer_norm=True)
    return _reading(f, processor, vision, tower, merger, out)


def qwen2_5_vl(f: Fields, processor: Fields) -> Reading:
    """Return a Qwen2.5-VL."""
    vision = _vision(f)
    hidden, out = vision.count("hidden_size"), vision.count("out_hidden_size")
    tower = _tower(vision, hidden, _windowed_blocks(vision, hidden))
    merger = _merger(vision, hidden, out, _SEQUENTIAL, layer_norm=False)
    return _reading(f, processor, vision, tower, merger, out)


def qwen3_vl(f: Fields, processor: Fields) -> Reading:
    """Return a Qwen3-VL, dense or with experts."""
    vision = _vision(f)
    hidden, out = vision.count("hidden_size"), vision.count("out_hidden_size")
    mlp = Mlp(vision.count("intermediate_size"), gated=False, names=("linear_fc1", "linear_fc2"), bias=True)
    blocks = (vit_block(_attention(vision, hidden), mlp, _NORMS),) * vision.blocks("depth")
    tapped = vision.indices("deepstack_visual_indexes", len(blocks))
    taps = tuple((block, _deepstack(vision, hidden, out, i)) for i, block in enumerate(tapped))
    table = Step("pos_embed", ModuleKind.POSITION, vision.count("num_position_embeddings"), hidden)
    tower = _tower(vision, hidden, blocks, table=table, taps=taps, bias=True)
    merger = _merger(vision, hidden, out, ("norm", "linear_fc1", "act", "linear_fc2"), layer_norm=True)
    reading = _reading(f, processor, vision, tower, merger, out)
    decoder = replace(reading.shape.decoder, n_injected=len(tapped))
    return replace(reading, shape=replace(reading.shape, decoder=decoder))


def _vision(f: Fields) -> Fields:
    return f.child("vision_config", f"{f.model_type}_vision", fixed=True)


def _language(f: Fields) -> Fields:
    """Return the language fields: nested in newer files, at the top level in older ones."""
    text = f"{f.model_type}_text"
    if f.has("text_config"):
        return f.child("text_config", text, fixed=True)
    return replace(f, model_type=text, facts={})


def _reading(f: Fields, processor: Fields, vision: Fields, tower: Pipeline, merger: Pipeline, out: int) -> Reading:
    text = _language(f)
    decoder = language_model(text, Paths("model.language_model", "lm_head"), f, ("visual",))
    f.require(
        out == decoder.hidden,
        f"the vision tower hands on {out} features, the decoder takes {decoder.hidden}",
        "hidden_size (Qwen2-VL) or out_hidden_size of vision_config is that of the language model",
    )
    least, most = _pixel_limits(processor)
    rule = SmartResize(vision.square("patch_size"), vision.count("spatial_merge_size"), least, most)
    reading = Reading(Shape((tower, merger), decoder), rule, max_context=context_length(text))
    if text.facts is not f.facts:
        # One canonical config for both places.
        f.facts.update({f"text_config.{name}": value for name, value in text.facts.items()})
    return reading


def _pixel_limits(processor: Fields) -> tuple[int, int]:
    """Return the area limits, which processors state as pixels or, against its name, as "edges" of ``size``."""
    # Facts of its own: which of the two spellings was used is no part of the content.
    size = replace(processor.child_or_empty("size", processor.model_type), facts={})
    least = processor.count("min_pixels", absent=size.count("shortest_edge"))
    most = processor.count("max_pixels", absent=size.count("longest_edge"))
    processor.require(least <= most, f"min_pixels={least} exceeds max_pixels={most}")
    return least, most


def _attention(f: Fields, hidden: int, window: int = 0) -> Attention:
    heads = f.count("num_heads")
    f.require(hidden % heads == 0, f"num_heads={heads} does not divide the {hidden} features")
    size = hidden // heads
    return Attention(
        heads, heads, size, path="attn", names=("qkv",), out="proj", bias=(True,) * 4, rope_dim=size, window=window
    )


def _windowed_blocks(f: Fields, hidden: int) -> tuple[BlockShape, ...]:
    """Return Qwen2.5-VL's blocks: windows of merged patches, except in the listed blocks."""
    n_blocks, merge = f.blocks("depth"), f.count("spatial_merge_size")
    side = f.count("window_size") // merge // f.square("patch_size")
    f.require(side > 0, f"window_size={f.count('window_size')} is smaller than one merged patch")
    full = f.indices("fullatt_block_indexes", n_blocks)
    mlp = Mlp(f.count("intermediate_size"), bias=True)
    blocks = []
    for i in range(n_blocks):
        window = 0 if i in full else (side * merge) ** 2
        blocks.append(vit_block(_attention(f, hidden, window), mlp, _NORMS, bias=False))
    return tuple(blocks)


def _tower(
    f: Fields,
    hidden: int,
    blocks: tuple[BlockShape, ...],
    *,
    table: Step | None = None,
    taps: tuple[tuple[int, Pipeline], ...] = (),
    bias: bool = False,
) -> Pipeline:
    features = patch_features(f, f.square("patch_size"), f.count("temporal_patch_size"), "in_channels")
    patches = Step("patch_embed.proj", ModuleKind.LINEAR, features, hidden, bias=bias)
    stack = Stack("blocks", blocks, len(blocks), taps)
    items: tuple[Item, ...] = (patches, Regroup("patch"), *([table] if table else []), stack)
    return Pipeline("vision", _PATH, hidden, "cut", "patch", items)


_Names = tuple[str, str, str, str]


def _merger(f: Fields, hidden: int, out: int, names: _Names, *, layer_norm: bool) -> Pipeline:
    """Return the merger behind the last block: it normalises patches, then merges them."""
    norm, *linear = (f"merger.{name}" for name in names)
    return Pipeline("projector", _PATH, out, "patch", "", (
        Step(norm, ModuleKind.NORM, 1, hidden, bias=layer_norm),
        Regroup("merged"),
        *_two_linear(f, hidden, out, linear),
    ))  # fmt: skip


def _deepstack(f: Fields, hidden: int, out: int, index: int) -> Pipeline:
    """Return the merger of a tapped block: it merges patches, then normalises."""
    path = f"deepstack_merger_list.{index}"
    wide = hidden * f.count("spatial_merge_size") ** 2
    return Pipeline("projector", _PATH, out, "merged", "", (
        Step(f"{path}.norm", ModuleKind.NORM, 1, wide, bias=True),
        *_two_linear(f, hidden, out, [f"{path}.{name}" for name in ("linear_fc1", "act", "linear_fc2")]),
    ))  # fmt: skip


def _two_linear(f: Fields, hidden: int, out: int, names: list[str]) -> tuple[Item, ...]:
    wide = hidden * f.count("spatial_merge_size") ** 2
    return (
        Step(names[0], ModuleKind.LINEAR, wide, wide, bias=True),
        Vector(names[1], wide),
        Step(names[2], ModuleKind.LINEAR, wide, out, bias=True),
    )
