"""InternVL: InternViT over tiles, pixel shuffle, a two-layer projector, a language model of another family.

Two formats exist. ``internvl`` is the one that transformers reads; its tower has separate projections.
``internvl_chat`` is that of the original repository, whose configs nest the language model under ``llm_config``; its
tower has fused projections and its modules other names. Parameters are the same.
"""

from __future__ import annotations

from dse.model.families.decoders import Paths, per_head
from dse.model.families.multimodal import Reading, context_length, language_model, mlp_projector
from dse.model.families.vit import SEPARATE, Tower, gather, patch_features, patch_grid, pixel_shuffle, vit_block
from dse.model.fields import Fields
from dse.model.parts import ModuleKind
from dse.model.shapes import Attention, BlockShape, Decoder, Item, Mlp, Pipeline, Shape, Stack, Step
from dse.model.tiles import AspectTiles


def internvl(f: Fields, processor: Fields) -> Reading:
    """Return an InternVL as transformers keeps it."""
    vision, text = f.child("vision_config", "internvl_vision", fixed=True), f.child("text_config", "qwen2")
    n_used = max(f.layers("vision_feature_layer", vision.blocks("num_hidden_layers")))
    pool = pixel_shuffle(f, "downsample_ratio")
    tower = _tower(vision, n_used, pool)
    decoder = language_model(text, Paths("model.language_model", "lm_head"), f, ("visual",))
    projector = _projector("model.multi_modal_projector", ("layer_norm", "linear_1", "linear_2"), tower, decoder, pool)
    # The processor cuts into tiles whatever the image processor's own crop_to_patches says.
    limits = processor.count("min_patches"), processor.count("max_patches")
    rule = _tiles(f, tower, pool, limits, thumbnail=True)
    return Reading(Shape((tower.pipeline, projector), decoder), rule, max_context=context_length(text))


def internvl_chat(f: Fields, processor: Fields) -> Reading:
    """Return an InternVL of the original repository."""
    del processor  # tiling is part of the config here
    vision, text = f.child("vision_config", "intern_vit_6b", fixed=True), f.child("llm_config", "llama")
    n_blocks = vision.blocks("num_hidden_layers")
    pool = pixel_shuffle(f, "downsample_ratio")
    tower = _original_tower(vision, max(f.layers("select_layer", n_blocks)), pool)
    head = "output" if text.model_type == "internlm2" else "lm_head"
    decoder = language_model(text, Paths("language_model.model", f"language_model.{head}"), text, ("visual",))
    projector = _projector("mlp1", ("0", "1", "3"), tower, decoder, pool)
    limits = f.count("min_dynamic_patch"), f.count("max_dynamic_patch")
    rule = _tiles(f, tower, pool, limits if f.flag("dynamic_image_size") else (1, 1), thumbnail=f.flag("use_thumbnail"))
    return Reading(Shape((tower.pipeline, projector), decoder), rule, max_context=context_length(text))


def _projector(path: str, names: tuple[str, str, str], tower: Tower, decoder: Decoder, pool: int) -> Pipeline:
    width = tower.hidden * pool * pool
    return mlp_projector(path, names[1], names[2], width, decoder.hidden, bias=True, normed=names[0])


def _tiles(f: Fields, tower: Tower, pool: int, limits: tuple[int, int], *, thumbnail: bool) -> AspectTiles:
    # A tile may be larger than the tower's position table was made for; the table is interpolated then.
    tile = f.count_or_none("force_image_size") or tower.image_px
    cuts = tile // tower.patch_px
    f.require(cuts % pool == 0, f"the {cuts}x{cuts} patches of a tile do not shuffle into {pool}x{pool}")
    least, most = limits
    f.require(least <= most, f"at least {least} tiles and at most {most} tiles cannot be")
    return AspectTiles(tile, tower.patch_px, pool, least, most, thumbnail)


def _tower(f: Fields, n_used: int, pool: int) -> Tower:
    hidden, n_blocks = f.count("hidden_size"), f.blocks("num_hidden_layers")
    image, patch, cuts = patch_grid(f)
    parameter = ModuleKind.PARAMETER
    table = f.flag("use_absolute_position_embeddings")
    items: tuple[Item, ...] = (
        Step("embeddings.patch_embeddings.projection", ModuleKind.LINEAR, patch_features(f, patch), hidden, bias=True),
        Step("embeddings.cls_token", parameter, 1, hidden, rows="patch", added=False),
        *([Step("embeddings.mask_token", parameter, 1, hidden, used=False)] if f.flag("use_mask_token") else []),
        *([Step("embeddings.position_embeddings", parameter, cuts + 1, hidden)] if table else []),
        Stack("encoder.layer", (_block(f),) * n_blocks, n_used),
        *([] if f.flag("use_mean_pooling") else [Step("layernorm", ModuleKind.NORM, 1, hidden, bias=True)]),
        gather("merged", hidden * pool * pool, "pixel_shuffle"),
    )
    return Tower(Pipeline("vision", "model.vision_tower", hidden, "cut", "patch", items), hidden, image, patch, True)


def _block(f: Fields) -> BlockShape:
    heads, bias = f.count("num_attention_heads"), f.flag("attention_bias")
    attention = Attention(
        heads, heads, per_head(f, heads), path="attention", names=SEPARATE, out="projection_layer",
        bias=(bias, bias, bias, True), qk_norm="full" if f.flag("use_qk_norm") else "",
    )  # fmt: skip
    mlp = Mlp(f.count("intermediate_size"), gated=False, names=("fc1", "fc2"), bias=True)
    norms, scales = ("layernorm_before", "layernorm_after"), ("lambda_1", "lambda_2")
    return vit_block(attention, mlp, norms, bias=_layer_norm(f), scales=scales)


def _original_tower(f: Fields, n_used: int, pool: int) -> Tower:
    hidden, n_blocks = f.count("hidden_size"), f.blocks("num_hidden_layers")
    image, patch, cuts = patch_grid(f)
    items: tuple[Item, ...] = (
        Step("embeddings.patch_embedding", ModuleKind.LINEAR, patch_features(f, patch), hidden, bias=True),
        Step("embeddings.class_embedding", ModuleKind.PARAMETER, 1, hidden, rows="patch", added=False),
        Step("embeddings.position_embedding", ModuleKind.PARAMETER, cuts + 1, hidden),
        Stack("encoder.layers", (_original_block(f),) * n_blocks, n_used),
        gather("merged", hidden * pool * pool, "pixel_shuffle"),
    )
    return Tower(Pipeline("vision", "vision_model", hidden, "cut", "patch", items), hidden, image, patch, True)


def _original_block(f: Fields) -> BlockShape:
    heads, bias = f.count("num_attention_heads"), f.flag("qkv_bias")
    attention = Attention(
        heads, heads, per_head(f, heads), path="attn", names=("qkv",), out="proj", bias=(bias, bias, bias, True),
        qk_norm="full" if f.flag("qk_normalization") else "",
    )  # fmt: skip
    mlp = Mlp(f.count("intermediate_size"), gated=False, names=("fc1", "fc2"), bias=True)
    return vit_block(attention, mlp, ("norm1", "norm2"), bias=_layer_norm(f), scales=("ls1", "ls2"))


def _layer_norm(f: Fields) -> bool:
    kind = f.text("norm_type")
    f.require(kind in ("layer_norm", "rms_norm"), f"norm_type={kind!r} is neither layer_norm nor rms_norm")
    return kind == "layer_norm"
