"""Vision-language models of common build: a tower, a projector, a decoder among whose tokens the image stands.

LLaVA-1.5 and -NeXT, PaliGemma, Gemma-3, Idefics3 and SmolVLM; Llama-4 and Llama-3.2 Vision with towers of their own.
"""

from __future__ import annotations

import math
from dataclasses import replace

from dse.model.families.decoders import Paths
from dse.model.families.llama4 import llama4_images, llama4_vision
from dse.model.families.mllama import mllama_images, mllama_vision
from dse.model.families.multimodal import Reading, context_length, language_model, mlp_projector
from dse.model.families.vit import Tower, clip_block, gather, patch_features, patch_grid, read_tower, siglip
from dse.model.fields import Fields
from dse.model.images import FixedGrid
from dse.model.parts import ModuleKind
from dse.model.shapes import Attention, Decoder, Item, Pipeline, Residual, Shape, Stack, Step
from dse.model.tiles import AnyResolution, SplitTiles

_NESTED = Paths("model.language_model", "lm_head")


def llava(f: Fields, processor: Fields) -> Reading:
    """Return a LLaVA-1.5."""
    del processor
    tower, shape, text = _llava(f)
    rule = FixedGrid(tower.image_px, tower.patch_px, class_token=tower.class_token, keep_class=_keeps_class(f, tower))
    return Reading(shape, rule, max_context=context_length(text))


def llava_next(f: Fields, processor: Fields) -> Reading:
    """Return a LLaVA-NeXT (LLaVA-1.6): LLaVA-1.5 with tiles and a learned newline."""
    del processor
    tower, shape, text = _llava(f)
    newline = Step("image_newline", ModuleKind.PARAMETER, 1, shape.decoder.hidden, added=False)
    projector = shape.pipelines[1]
    projector = replace(projector, path="model", items=(newline, *_prefixed(projector)))
    rule = AnyResolution(
        tower.image_px, tower.patch_px, f.sizes("image_grid_pinpoints"),
        class_token=tower.class_token, keep_class=_keeps_class(f, tower),
    )  # fmt: skip
    for height, width in rule.canvases:
        f.require(
            height % tower.image_px == 0 and width % tower.image_px == 0,
            f"image_grid_pinpoints has {height}x{width}, no multiple of the tile of {tower.image_px} pixels",
        )
    return Reading(Shape((shape.pipelines[0], projector), shape.decoder), rule, max_context=context_length(text))


def _prefixed(projector: Pipeline) -> tuple[Item, ...]:
    """Return the steps of a projector with its own name in front of their leaves."""
    name = projector.path.rpartition(".")[2]
    return tuple(replace(i, leaf=f"{name}.{i.leaf}") if isinstance(i, Step) else i for i in projector.items)


def _llava(f: Fields) -> tuple[Tower, Shape, Fields]:
    f.require(
        not f.has("mm_vision_tower"),
        "mm_vision_tower names a vision tower without its sizes",
        "this is the format of the original LLaVA repository; read the checkpoint's conversion for transformers (-hf)",
    )
    vision, text = f.child("vision_config", "clip_vision_model"), f.child("text_config", "llama")
    taken = f.layers("vision_feature_layer", vision.blocks("num_hidden_layers"))
    tower = read_tower(vision, "model.vision_tower", max(taken))
    decoder = language_model(text, _NESTED, f, ("visual",))
    width = tower.hidden * len(taken)
    projector = mlp_projector(
        "model.multi_modal_projector", "linear_1", "linear_2", width, decoder.hidden,
        bias=f.flag("multimodal_projector_bias"),
    )  # fmt: skip
    selected = replace(tower.pipeline, items=(*tower.pipeline.items, gather("merged", width, states=taken)))
    return tower, Shape((selected, projector), decoder), text


def _keeps_class(f: Fields, tower: Tower) -> bool:
    """Return whether the class token reaches the decoder ("full"), not only the patches ("default")."""
    strategy = f.text("vision_feature_select_strategy")
    f.require(strategy in ("default", "full"), f"vision_feature_select_strategy={strategy!r} is not default or full")
    f.require(
        tower.class_token or strategy == "full",
        "vision_feature_select_strategy='default' drops a class token, which this tower does not have",
        "use 'full'",
    )
    return tower.class_token and strategy == "full"


def paligemma(f: Fields, processor: Fields) -> Reading:
    """Return a PaliGemma: one linear projection; the prompt is read in both directions."""
    del processor
    text = f.child("text_config", "gemma")
    tower = _siglip_behind_norm(f)
    decoder = _open_prompt(language_model(text, _NESTED, f, ("visual",)))
    width = f.count("projection_dim")
    f.require(width == decoder.hidden, f"projection_dim={width} is not the {decoder.hidden} features of the decoder")
    linear = Step("linear", ModuleKind.LINEAR, tower.hidden, width, bias=True, rows="merged")
    projector = Pipeline("projector", "model.multi_modal_projector", decoder.hidden, "patch", "", (linear,))
    rule = FixedGrid(tower.image_px, tower.patch_px)
    return Reading(Shape((tower.pipeline, projector), decoder), rule, max_context=context_length(text))


def _siglip_behind_norm(f: Fields) -> Tower:
    """Return the SigLIP tower whose features are taken behind its final norm."""
    vision = f.child("vision_config", "siglip_vision_model")
    if vision.model_type != "siglip_vision_model":
        raise vision.unsupported(["siglip_vision_model"])
    return siglip(vision, "model.vision_tower", vision.blocks("num_hidden_layers"), normed=True)


def _open_prompt(decoder: Decoder) -> Decoder:
    """Return the decoder with a prompt that is read in both directions; generated tokens stay causal."""
    return replace(decoder, blocks=tuple(tuple(map(_opened, block)) for block in decoder.blocks))


def _opened(residual: Residual) -> Residual:
    core = residual.core
    return replace(residual, core=replace(core, open_prompt=True)) if isinstance(core, Attention) else residual


def gemma3(f: Fields, processor: Fields) -> Reading:
    """Return a Gemma-3: 4096 patches averaged down to 256 tokens.

    Image tokens also see the later tokens of their own image; the graph treats them as causal like the rest.
    """
    del processor
    text = f.child("text_config", "gemma3_text", fixed=True)
    tower = _siglip_behind_norm(f)
    decoder = language_model(text, _NESTED, f, ("visual",))
    cuts, n_tokens = tower.image_px // tower.patch_px, f.count("mm_tokens_per_image")
    side = math.isqrt(n_tokens)
    f.require(
        side * side == n_tokens and side <= cuts and cuts % side == 0,
        f"mm_tokens_per_image={n_tokens} is no square grid that divides the {cuts}x{cuts} patches",
    )
    projector = Pipeline("projector", "model.multi_modal_projector", decoder.hidden, "patch", "", (
        gather("merged", tower.hidden, "avg_pool"),
        Step("mm_soft_emb_norm", ModuleKind.NORM, 1, tower.hidden),
        Step("mm_input_projection_weight", ModuleKind.LINEAR, tower.hidden, decoder.hidden),
    ))  # fmt: skip
    # Start and end of image, and a blank line on either side.
    rule = FixedGrid(tower.image_px, tower.patch_px, pool=cuts // side, extra_tokens=4)
    return Reading(Shape((tower.pipeline, projector), decoder), rule, max_context=context_length(text))


def idefics3(f: Fields, processor: Fields) -> Reading:
    """Return an Idefics3 or SmolVLM: tiles, pixel shuffle and one linear projection."""
    vision, text = f.child("vision_config", f"{f.model_type}_vision", fixed=True), f.child("text_config", "llama")
    tower = _idefics3_tower(vision)
    decoder = language_model(text, Paths("model.text_model", "lm_head"), f, ("visual",))
    pool = f.count("scale_factor")
    cuts = tower.image_px // tower.patch_px
    f.require(cuts % pool == 0, f"scale_factor={pool} does not divide the {cuts}x{cuts} patches of a tile")
    width = tower.hidden * pool * pool
    projector = Pipeline("projector", "model.connector", decoder.hidden, "patch", "", (
        gather("merged", width, "pixel_shuffle"),
        Step("modality_projection.proj", ModuleKind.LINEAR, width, decoder.hidden),
    ))  # fmt: skip
    size = next((t for t in (processor, vision) if t.has("size")), processor).child_or_empty("size", "")
    longest = size.count("longest_edge", absent=4 * tower.image_px)
    rule = SplitTiles(tower.image_px, tower.patch_px, pool, longest)
    return Reading(Shape((tower.pipeline, projector), decoder), rule, max_context=context_length(text))


def _idefics3_tower(f: Fields) -> Tower:
    """Return SigLIP with table positions for tiles of any size, under Idefics3's names."""
    hidden = f.count("hidden_size")
    image, patch, cuts = patch_grid(f)
    n_blocks = f.blocks("num_hidden_layers")
    items = (
        Step("embeddings.patch_embedding", ModuleKind.LINEAR, patch_features(f, patch), hidden, bias=True),
        Step("embeddings.position_embedding", ModuleKind.POSITION, cuts, hidden, rows="patch"),
        Stack("encoder.layers", (clip_block(f),) * n_blocks, n_blocks),
        Step("post_layernorm", ModuleKind.NORM, 1, hidden, bias=True),
    )
    return Tower(Pipeline("vision", "model.vision_model", hidden, "cut", "patch", items), hidden, image, patch, False)


def llama4(f: Fields, processor: Fields) -> Reading:
    """Return a Llama-4 with its vision tower."""
    vision = f.child("vision_config", "llama4_vision_model", fixed=True)
    text = f.child("text_config", "llama4_text", fixed=True)
    decoder = language_model(text, Paths("language_model.model", "language_model.lm_head"), f, ("visual",))
    shape = Shape(llama4_vision(vision, decoder.hidden), decoder)
    return Reading(shape, llama4_images(vision, processor), max_context=context_length(text))


def mllama(f: Fields, processor: Fields) -> Reading:
    """Return a Llama-3.2 Vision."""
    del processor
    vision = f.child("vision_config", "mllama_vision_model", fixed=True)
    text = f.child("text_config", "mllama_text_model", fixed=True)
    decoder = language_model(text, _NESTED, f)
    shape = Shape(mllama_vision(vision, decoder.hidden), decoder)
    return Reading(shape, mllama_images(vision), max_context=context_length(text))
