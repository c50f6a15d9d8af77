"""Vision towers shared by several families: CLIP and SigLIP, and the block that all vision transformers here vary.

A tower is described up to the features that the projector takes. Blocks after the chosen feature layer, final norms
behind it and pooling heads are in the checkpoint but not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dse.model.families.decoders import per_head
from dse.model.fields import Fields
from dse.model.parts import ModuleKind
from dse.model.shapes import Attention, BlockShape, Item, Mlp, Norm, Pipeline, Residual, Stack, Step, Vector

LAYER_NORMS: Final = ("layer_norm1", "layer_norm2")
SEPARATE: Final = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower and what a projector and an image rule need to know of it.

    Attributes:
        pipeline: its steps.
        hidden: features per position.
        image_px, patch_px: sides of its square input and of a patch.
        class_token: whether it adds a class token.
    """

    pipeline: Pipeline
    hidden: int
    image_px: int
    patch_px: int
    class_token: bool


def vit_block(
    attention: Attention, mlp: Mlp, norms: tuple[str, str], *, bias: bool = True, scales: tuple[str, str] = ("", "")
) -> BlockShape:
    """Return a pre-norm block; ``bias`` of its norms, ``scales`` of its halves (layer scale)."""
    return (
        Residual(attention, Norm(norms[0], bias), scale=scales[0]),
        Residual(mlp, Norm(norms[1], bias), scale=scales[1]),
    )


def patch_grid(f: Fields) -> tuple[int, int, int]:
    """Return the side of the square input, that of a patch, and how many whole patches fit in the square."""
    image, patch = f.square("image_size"), f.square("patch_size")
    f.require(patch <= image, f"patch_size={patch} exceeds image_size={image}")
    return image, patch, (image // patch) ** 2


def patch_features(f: Fields, patch_px: int, frames: int = 1, channels: str = "num_channels") -> int:
    """Return the numbers that make up one patch: channels x frames x patch area."""
    return f.count(channels) * frames * patch_px * patch_px


def pixel_shuffle(f: Fields, name: str) -> int:
    """Return how many positions per side a shuffle ratio folds into the features of one."""
    ratio = f.ratio(name)
    pool = round(1 / ratio)
    f.require(abs(pool * ratio - 1) < 1e-9, f"{name}={ratio:g} is not one over a whole number")
    return pool


def gather(rows: str, n: int, name: str = "select", states: tuple[int, ...] = ()) -> Vector:
    """Return the step that selects or rearranges positions, or joins the features of several layers."""
    return Vector(name, n, pool=True, rows=rows, states=states)


def clip_block(f: Fields) -> BlockShape:
    """Return the block of CLIP and SigLIP: separate projections and biases everywhere."""
    heads = f.count("num_attention_heads")
    attention = Attention(heads, heads, per_head(f, heads), names=SEPARATE, out="out_proj", bias=(True,) * 4)
    mlp = Mlp(f.count("intermediate_size"), gated=False, names=("fc1", "fc2"), bias=True)
    return vit_block(attention, mlp, LAYER_NORMS)


def clip(f: Fields, path: str, n_used: int) -> Tower:
    """Return a CLIP tower: class token, norm before the blocks; the norm behind them serves only its own pooling."""
    hidden = f.count("hidden_size")
    image, patch, cuts = patch_grid(f)
    items: tuple[Item, ...] = (
        Step("embeddings.patch_embedding", ModuleKind.LINEAR, patch_features(f, patch), hidden),
        Step("embeddings.class_embedding", ModuleKind.PARAMETER, 1, hidden, rows="patch", added=False),
        Step("embeddings.position_embedding", ModuleKind.POSITION, cuts + 1, hidden),
        Step("pre_layrnorm", ModuleKind.NORM, 1, hidden, bias=True),
        Stack("encoder.layers", (clip_block(f),) * f.blocks("num_hidden_layers"), n_used),
        Step("post_layernorm", ModuleKind.NORM, 1, hidden, bias=True, used=False),
    )
    return Tower(Pipeline("vision", path, hidden, "cut", "patch", items), hidden, image, patch, True)


def siglip(f: Fields, path: str, n_used: int, *, normed: bool = False) -> Tower:
    """Return a SigLIP tower; ``normed`` where its features are taken behind the final norm."""
    hidden = f.count("hidden_size")
    image, patch, cuts = patch_grid(f)
    items: tuple[Item, ...] = (
        Step("embeddings.patch_embedding", ModuleKind.LINEAR, patch_features(f, patch), hidden, bias=True),
        Step("embeddings.position_embedding", ModuleKind.POSITION, cuts, hidden, rows="patch"),
        Stack("encoder.layers", (clip_block(f),) * f.blocks("num_hidden_layers"), n_used),
        Step("post_layernorm", ModuleKind.NORM, 1, hidden, bias=True, used=normed),
        *(_siglip_head(hidden, f.count("intermediate_size")) if f.flag("vision_use_head") else ()),
    )
    return Tower(Pipeline("vision", path, hidden, "cut", "patch", items), hidden, image, patch, False)


def _siglip_head(hidden: int, ffn: int) -> tuple[Step, ...]:
    """Return SigLIP's own pooling head, which no language model uses."""
    linear = ModuleKind.LINEAR
    return (
        Step("head.probe", ModuleKind.PARAMETER, 1, hidden, used=False),
        Step("head.attention.in_proj_weight", linear, hidden, 3 * hidden, bias=True, used=False),
        Step("head.attention.out_proj", linear, hidden, hidden, bias=True, used=False),
        Step("head.layernorm", ModuleKind.NORM, 1, hidden, bias=True, used=False),
        Step("head.mlp.fc1", linear, hidden, ffn, bias=True, used=False),
        Step("head.mlp.fc2", linear, ffn, hidden, bias=True, used=False),
    )


TOWERS: Final[dict[str, Callable[[Fields, str, int], Tower]]] = {
    "clip_vision_model": clip,
    "siglip_vision_model": siglip,
}


def read_tower(f: Fields, path: str, n_used: int) -> Tower:
    """Return the vision tower of a nested config by its model type."""
    if f.model_type not in TOWERS:
        raise f.unsupported(TOWERS)
    return TOWERS[f.model_type](f, path, n_used)
