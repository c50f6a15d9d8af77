"""Pruned widths as model code reads them: transformers' ``per_layer_config``, Nemotron's ``block_configs``.

Both speak of decoders alone. Transformers (5.23) takes an ``intermediate_size`` per layer, not a number of query
heads; dropped blocks shorten ``num_hidden_layers``, and layers count those that are left. Its Llama reads such a
configuration and cannot build the model from it yet.

``block_configs`` (DeciLM, Nemotron-NAS; read by vLLM and llama.cpp) gives each block an ``ffn_mult`` x, from which
the width follows as 2/3 x hidden rounded down, then up to a multiple of 256, and ``no_op`` for what a block leaves
out, so blocks keep their numbers. Its ``n_heads_in_group`` changes key-value heads and keeps all query heads: pruning
of query heads is not what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dse.errors import UserError
from dse.export.differences import Differences, beyond
from dse.export.plain import STATEMENT, json_text, statement
from dse.export.weights.layers import Kept, kept, model_in
from dse.model import Block, Model
from dse.problem import TARGET
from dse.protocols import Chosen, Exported

_MULTIPLE: Final = 256


class _Structure:
    """What both have in common: the decoder's blocks, and what of the pruning they have no word for."""

    name: str
    covers = frozenset({"ffn_keep", "head_keep", "block_keep"})

    def __init__(self, role: str = TARGET) -> None:
        self.role = role

    def export(self, chosen: Chosen) -> Exported:
        """Return the fragment of config.json, and what it does not say."""
        model, left = model_in(chosen, self.role), kept(chosen, self.role)
        differences = Differences()
        blocks = []
        for block in model.blocks:
            if block.component == "decoder":
                blocks.append(block)
                if left.heads["decoder", block.index] != block.head_units and not _is_dropped(block, left):
                    _add(differences, "all query heads stay: the format has no word for fewer", block)
            elif _is_pruned(block, left):
                _add(differences, "blocks of encoders stay as they are: the format speaks of the decoder", block)
        config = self._config(model, blocks, left, differences)
        missing, notes = beyond(chosen, self.covers, self.role)
        missing = [*differences.sentences(), *missing]
        said = statement(chosen, self.name, missing, notes)
        return Exported({"config.json": json_text({**config, STATEMENT: said}).encode()}, missing, notes)

    def _config(self, model: Model, blocks: list[Block], left: Kept, differences: Differences) -> dict[str, Any]:
        raise NotImplementedError


def _is_dropped(block: Block, left: Kept) -> bool:
    return (block.component, block.index) in left.dropped


def _is_pruned(block: Block, left: Kept) -> bool:
    key = block.component, block.index
    return key in left.dropped or left.heads[key] != block.head_units or left.channels[key] != block.ffn_units


def _add(differences: Differences, reason: str, block: Block) -> None:
    differences.add(reason, f"{block.component}.{block.index}")


def _text_config(model: Model) -> tuple[str, Mapping[str, Any]]:
    """Return the name of the part of a config that describes the decoder ("" for the config as such), and that part."""
    for name in ("text_config", "llm_config"):
        part = model.config.get(name)
        if isinstance(part, Mapping):
            return name, part
    return "", model.config


class PerLayerConfig(_Structure):
    """Widths per layer for transformers."""

    name = "per-layer-config"
    help = "pruned widths per decoder layer for transformers 5: per_layer_config in config.json"

    def _config(self, model: Model, blocks: list[Block], left: Kept, differences: Differences) -> dict[str, Any]:  # noqa: ARG002
        stays = [block for block in blocks if not _is_dropped(block, left)]
        key = "moe_intermediate_size" if "moe_intermediate_size" in _text_config(model)[1] else "intermediate_size"
        widths = {
            str(i): {_width_key(model, block, key): left.channels["decoder", block.index]}
            for i, block in enumerate(stays)
            if left.channels["decoder", block.index] != block.ffn_units
        }
        part = {"num_hidden_layers": len(stays), "per_layer_config": widths}
        where, _ = _text_config(model)
        return {where: part} if where else part


def _width_key(model: Model, block: Block, key: str) -> str:
    """Return which field gives a block's width: dense blocks of a mixture of experts have the plain one."""
    plain = _text_config(model)[1].get("intermediate_size")
    return "intermediate_size" if block.ffn_units == plain else key


class BlockConfigs(_Structure):
    """Blocks as Nemotron-NAS describes them."""

    name = "block-configs"
    help = "pruned widths as Nemotron-NAS block_configs: vLLM, llama.cpp (DeciLM)"

    def _config(self, model: Model, blocks: list[Block], left: Kept, differences: Differences) -> dict[str, Any]:
        _, part = _text_config(model)
        hidden, heads = part.get("hidden_size"), part.get("num_attention_heads")
        if not isinstance(hidden, int) or not isinstance(heads, int):
            raise UserError(f"{model.name}: its config has no hidden_size or num_attention_heads, which blocks rest on")
        per_group = heads // int(part.get("num_key_value_heads") or heads)
        configs: list[dict[str, dict[str, Any]]] = []
        for block in blocks:
            if _is_dropped(block, left):
                nothing: dict[str, Any] = {"no_op": True, "replace_with_linear": False}
                configs.append({"attention": nothing | {"n_heads_in_group": None}, "ffn": nothing | {"ffn_mult": None}})
                continue
            width = left.channels["decoder", block.index]
            rounded = intermediate_size(ffn_mult(width, hidden), hidden)
            if rounded != width:
                _add(differences, f"widths are multiples of {_MULTIPLE}: {rounded} channels for {width}", block)
            configs.append(
                {
                    "attention": {"n_heads_in_group": per_group, "no_op": False, "replace_with_linear": False},
                    "ffn": {"ffn_mult": ffn_mult(width, hidden), "no_op": False, "replace_with_linear": False},
                }
            )
        return {"block_configs": configs}


def ffn_mult(width: int, hidden: int) -> float:
    """Return the multiplier whose width is ``width``, or the next multiple of 256 above it."""
    # Half a channel less than the width, so that rounding down cannot lose a whole one.
    return 1.5 * (width - 0.5) / hidden


def intermediate_size(mult: float, hidden: int) -> int:
    """Return the width that a multiplier stands for, by DeciLM's rule."""
    width = int(2 * mult * hidden / 3)
    return -(-width // _MULTIPLE) * _MULTIPLE
