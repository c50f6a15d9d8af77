"""Architectures: one line per ``model_type``, in :data:`MULTIMODAL` here or among the decoders alone.

A family's module turns the fields of a config into a :class:`dse.model.shapes.Shape`; to add an architecture, write
that function (or a row of :data:`dse.model.families.decoders.STYLES`) and add its line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from dse.model.families.decoders import Paths
from dse.model.families.heads import HEADS, head
from dse.model.families.internvl import internvl, internvl_chat
from dse.model.families.multimodal import TEXT, Reading, context_length
from dse.model.families.qwen_vl import qwen2_5_vl, qwen2_vl, qwen3_vl
from dse.model.families.speech import qwen2_audio, whisper
from dse.model.families.vision_language import gemma3, idefics3, llama4, llava, llava_next, mllama, paligemma
from dse.model.fields import Fields
from dse.model.shapes import Shape

MULTIMODAL: Final[Mapping[str, Callable[[Fields, Fields], Reading]]] = {
    "gemma3": gemma3,
    "idefics3": idefics3,
    "internvl": internvl,
    "internvl_chat": internvl_chat,
    "llama4": llama4,
    "llava": llava,
    "llava_next": llava_next,
    "mllama": mllama,
    "paligemma": paligemma,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen2_audio": qwen2_audio,
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl,
    "smolvlm": idefics3,
    "whisper": whisper,
}

# Language models that exist only inside others, as "qwen2_vl_text" does, are not offered at the top level.
ARCHITECTURES: Final = tuple(
    sorted([*MULTIMODAL, *HEADS, *(n for n in TEXT if not n.endswith(("_vl_text", "_model", "_moe_text")))])
)


def read_config(f: Fields, processor: Fields) -> Reading:
    """Return what a config describes.

    Args:
        f: its top level.
        processor: what is known of the processor beside it (image sizes, tiles).
    """
    if f.model_type in MULTIMODAL:
        return MULTIMODAL[f.model_type](f, processor)
    if f.model_type in HEADS:
        return head(f, read_config)
    if f.model_type in ARCHITECTURES:
        return Reading(Shape((), TEXT[f.model_type](f, Paths())), max_context=context_length(f))
    raise f.unsupported(ARCHITECTURES)
