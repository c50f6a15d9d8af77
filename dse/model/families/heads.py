"""Draft heads: small networks on top of a target model's features that guess its next tokens.

    "eagle"   one linear step joins the target's features and the embedding of the token it chose (2 h -> h), one
    decoder
              block of the target's own shape follows; token table and head are the target's. Run once per guessed
              token. EAGLE and EAGLE-2 (Li et al., arXiv 2401.15077, 2406.16858; SafeAILab/EAGLE, model/cnets.py).
    "medusa"  n heads, x + silu(W x + b) and a projection onto the vocabulary of their own, all from the same features:
    one
              pass guesses n tokens. Cai et al., arXiv 2401.10774 (FasterDecoding/Medusa, model/medusa_model.py).

Config: ``base_config``, the target's config; of "medusa" also ``medusa_num_heads``. EAGLE-3, which joins three layers'
features and has a smaller vocabulary of its own, is not here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from dse.model.families.multimodal import Reading
from dse.model.fields import Fields
from dse.model.shapes import Decoder, Shape

EAGLE: Final = "eagle"
MEDUSA: Final = "medusa"
HEADS: Final = (EAGLE, MEDUSA)
_FEATURES: Final = 2


def head(f: Fields, read: Callable[[Fields, Fields], Reading]) -> Reading:
    """Return a draft head.

    Args:
        f: its config.
        read: what reads the config of its target.
    """
    base = f.child("base_config", "")
    f.require(base.model_type not in HEADS, "base_config is a draft head itself")
    reading = read(base, Fields({}, f"processor/{base.model_type}", f.file, "preprocessor", f.facts))
    target = reading.shape.decoder
    common = replace(target, path="", inputs=(), n_injected=0, positions=0, shares=True)
    decoder = _eagle(common) if f.model_type == EAGLE else _medusa(common, f.count("medusa_num_heads"))
    return Reading(Shape((), decoder), max_context=reading.max_context)


def _eagle(target: Decoder) -> Decoder:
    return replace(target, blocks=target.blocks[:1], joined=_FEATURES)


def _medusa(target: Decoder, n_heads: int) -> Decoder:
    return replace(target, blocks=(), n_heads=n_heads)
