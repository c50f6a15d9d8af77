"""What the readers of multimodal models share: the result of reading, and the language model inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from dse.model.audio import AudioRule
from dse.model.families.decoders import STYLES, Paths, TextReader
from dse.model.families.deepseek import deepseek_v2, deepseek_v3
from dse.model.families.llama4 import llama4_text
from dse.model.families.mllama import mllama_text
from dse.model.fields import Fields
from dse.model.images import ImageRule
from dse.model.parts import ModuleKind
from dse.model.shapes import Decoder, Pipeline, Shape, Step, Vector

TEXT: Final[Mapping[str, TextReader]] = {
    **{name: style.read for name, style in STYLES.items()},
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "llama4_text": llama4_text,
    "mllama_text_model": mllama_text,
}


_TIED: Final = "tie_word_embeddings"
# Their own false is a default that released files carry although the language model is tied.
_TIED_FROM_INSIDE: Final = ("llava", "qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a config describes: the shape, and the rules for images and audio where it takes them."""

    shape: Shape
    image_rule: ImageRule | None = None
    audio_rule: AudioRule | None = None
    max_context: int | None = None


def language_model(f: Fields, at: Paths, top: Fields, inputs: tuple[str, ...] = ()) -> Decoder:
    """Return the decoder of a nested language config.

    Whether its head is tied may be stated at the top level and in the nested table. The top level decides, except in
    files that state it only inside, and for types in which a tied language model stays tied whatever the top says.

    Args:
        f: the nested table.
        at: where the decoder stands.
        top: the table around it.
        inputs: row symbols of encoder outputs among its inputs.
    """
    if f.model_type not in TEXT:
        raise f.unsupported(TEXT)
    decoder = TEXT[f.model_type](f, at)
    tied = f.note(_TIED, _tied(f, top, decoder.tied))
    return replace(decoder, tied=tied, inputs=inputs)


def _tied(f: Fields, top: Fields, inside: bool) -> bool:
    outside = top.flag(_TIED, absent=inside)
    if top.model_type in _TIED_FROM_INSIDE and inside:
        return True
    return outside if top.has(_TIED) or not f.has(_TIED) else inside


def context_length(f: Fields) -> int | None:
    """Return the longest context that a language config states."""
    return f.count_or_none("max_position_embeddings")


def mlp_projector(
    path: str, first: str, second: str, width: int, hidden: int, *, bias: bool, normed: str = ""
) -> Pipeline:
    """Return a projector of two linear steps with an activation between them.

    Args:
        path: that its leaves are relative to.
        first: leaf of the first linear step.
        second: leaf of the second.
        width: features it takes.
        hidden: features of the decoder.
        bias: whether they have biases.
        normed: leaf of a layer norm before them, "" without.
    """
    items: tuple[Step | Vector, ...] = (
        Step(first, ModuleKind.LINEAR, width, hidden, bias=bias),
        Vector("act", hidden),
        Step(second, ModuleKind.LINEAR, hidden, hidden, bias=bias),
    )
    if normed:
        items = (Step(normed, ModuleKind.NORM, 1, width, bias=True), *items)
    return Pipeline("projector", path, hidden, "merged", "", items)
