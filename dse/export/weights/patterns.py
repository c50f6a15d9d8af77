r"""Regular expressions that match exactly the modules they stand for, under every name that tools give them.

A checkpoint, transformers and vLLM name one module in different ways: ``model.layers.3`` of an older checkpoint of a
vision-language model is ``model.language_model.layers.3`` to transformers and ``language_model.model.layers.3`` to
vLLM. A pattern therefore leaves open which wrappers stand in front, and is strict about the rest. Experts are one
tensor to transformers and a module each to checkpoints, in some families under names of their own.

Modules that differ only in block and leaf go into one pattern where that stays exact; ``\d+`` stands for the blocks
only if all blocks that have the leaf are meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from dse.export.weights.layers import Layer

_WRAPPERS: Final = ("model", "language_model", "text_model")
_ANY_WRAPPERS: Final = rf"(?:(?:{'|'.join(_WRAPPERS)})\.)*"

# Names of the projections of one expert, by the name of the tensor that holds those of all.
_EXPERT_LEAVES: Final = {"gate_up_proj": ("gate_proj", "up_proj", "w1", "w3"), "down_proj": ("down_proj", "w2")}


def patterns(layers: Sequence[Layer], universe: Sequence[Layer], *, aliases: bool = False) -> list[str]:
    """Return regular expressions that together match the names of some layers, and of no others of the model.

    Args:
        layers: those to match; from their first character to their last (``fullmatch``).
        universe: all layers of the model.
        aliases: match the names of modules that engines fuse, too, where all their parts are among ``layers``.
    """
    every: dict[tuple[str, str], set[int]] = {}
    for layer in universe:
        stem, number, leaf = split(layer)
        every.setdefault((stem, leaf), set()).add(number)
    chosen: dict[tuple[str, str], set[int]] = {}
    for layer in layers:
        stem, number, leaf = split(layer)
        chosen.setdefault((stem, leaf), set()).add(number)
    experts = {(split(layer)[0], split(layer)[2]) for layer in universe if layer.is_expert}
    together: dict[tuple[str, str], list[str]] = {}
    for (stem, leaf), numbers in chosen.items():
        blocks = _blocks(numbers, every[stem, leaf])
        together.setdefault((stem, blocks), []).append(_leaf(leaf, (stem, leaf) in experts))
    if aliases:
        for (stem, _), leaves in together.items():
            leaves += _fused_leaves(leaves) if stem else []
    return [_pattern(stem, blocks, leaves) for (stem, blocks), leaves in together.items()]


def split(layer: Layer) -> tuple[str, int, str]:
    """Return the path before the block number, the number as the checkpoint has it, and the path behind it.

    Outside blocks the path is all leaf, and the number is -1.
    """
    module = layer.module
    if module.block < 0:
        return "", -1, layer.path
    stem, _, number = layer.path.removesuffix("." + module.leaf).rpartition(".")
    return stem, int(number), module.leaf


def _blocks(numbers: set[int], every: set[int]) -> str:
    if numbers == {-1}:
        return ""
    if numbers == every and len(every) > 1:
        return r"\d+"
    return _either([str(n) for n in sorted(numbers)])


def _leaf(leaf: str, is_expert: bool) -> str:
    if not is_expert:
        return _escaped(leaf)
    above, _, last = leaf.rpartition(".")
    inside = _either([*_EXPERT_LEAVES[last]])
    # Mixtral's checkpoints say block_sparse_moe where transformers says mlp.
    outside = _escaped(above).replace(r"mlp\.experts", r"(?:mlp|block_sparse_moe)\.experts")
    return rf"{outside}\.(?:{last}|\d+\.{inside})"


def _fused_leaves(leaves: Sequence[str]) -> list[str]:
    found = []
    for parts, name in ((("q_proj", "k_proj", "v_proj"), "qkv_proj"), (("gate_proj", "up_proj"), "gate_up_proj")):
        for leaf in leaves:
            above = leaf.removesuffix(parts[0])
            if above != leaf and all(above + part in leaves for part in parts):
                found.append(above + name)
    both = [x.rpartition(r"\.(?:")[0] for x in leaves if r"(?:gate_up_proj|" in x]
    return found + [x for x in both if any(y.startswith(x + r"\.(?:down_proj|") for y in leaves)]


def _pattern(stem: str, blocks: str, leaves: Sequence[str]) -> str:
    if not stem:
        return _either([_open_front(leaf) for leaf in leaves])
    return rf"{_open_front(stem)}\.{blocks}\.{_either(leaves)}"


def _open_front(path: str) -> str:
    parts = path.replace("\\.", ".").split(".")
    while parts[0] in _WRAPPERS and len(parts) > 1:
        parts.pop(0)
    body = _escaped(".".join(parts))
    # The CLIP and SigLIP towers of checkpoints and of vLLM have one more level.
    return _ANY_WRAPPERS + body.replace(r"vision_tower\.", r"vision_tower\.(?:vision_model\.)?")


def _escaped(path: str) -> str:
    return path.replace(".", r"\.")


def _either(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else f"(?:{'|'.join(options)})"


def matched(patterns: Sequence[str], name: str) -> bool:
    """Whether one of some patterns matches a whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)
