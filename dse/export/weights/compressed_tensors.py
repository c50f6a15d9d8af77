"""Compressed-tensors: the ``quantization_config`` of a checkpoint, and the llm-compressor recipe that makes one.

Checked with compressed-tensors 0.20. Both state the same groups, one per scheme, whose targets are regular expressions
("re:", matched from the start of a module's name). vLLM refuses a checkpoint in which what it loads as one differs, and
wants what is not quantised in ``ignore``. Activations are quantised per token as they come, symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from dse.export.kv import one_width
from dse.export.plain import STATEMENT, comments, json_text, yaml_text
from dse.export.weights.base import WeightFormat, Writing
from dse.export.weights.layers import BARE, CONVOLUTIONS, PLAIN_BITS, ROUTERS, TABLES, Ability, Layer, Plan, Scheme
from dse.export.weights.patterns import patterns
from dse.protocols import Chosen

_WIDTHS: Final = (2, 3, 4, 6, 8)
_ACTS: Final = (4, 6, 8)
# What vLLM has kernels for, among integer weights with scales in groups: (weight bits, activation bits).
_VLLM_KERNELS: Final = ((4, 16), (8, 16), (4, 8), (8, 8))


class _Groups(WeightFormat):
    """Both files: groups of modules per scheme."""

    ability = Ability(
        widths=_WIDTHS,
        act_widths=dict.fromkeys(_WIDTHS, _ACTS),
        refuses=(TABLES, ROUTERS, CONVOLUTIONS, BARE),
    )
    covers = WeightFormat.covers | {"k_bits", "v_bits"}

    def remarks(self, chosen: Chosen, planned: Plan) -> tuple[list[str], list[str]]:
        """Return what it cannot say of the cache, and which widths vLLM has no kernel for."""
        _, missing = one_width(chosen, self.role, (8,), "compressed-tensors")
        notes = []
        slow = sorted({(s.bits, s.act_bits) for s in planned.schemes()} - set(_VLLM_KERNELS))
        if slow:
            pairs = ", ".join(f"W{w}A{a}" for w, a in slow)
            notes.append(f"vLLM has no kernel for {pairs}; transformers runs it by dequantising")
        return missing, notes

    def _groups(self, writing: Writing) -> dict[str, Any]:
        return {
            f"group_{i}": _group(scheme, self._targets(layers, writing.universe))
            for i, (scheme, layers) in enumerate(writing.plan.schemes().items())
        }

    def _ignore(self, writing: Writing) -> list[str]:
        return self._targets([layer for layer in writing.plan.plain if not layer.is_bare], writing.universe)

    def _cache(self, writing: Writing) -> dict[str, Any] | None:
        width, _ = one_width(writing.chosen, self.role, (8,), "")
        if width >= PLAIN_BITS:
            return None
        # FP8 is the one cache format that engines read from such a file.
        return {"num_bits": width, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}

    @staticmethod
    def _targets(layers: Sequence[Layer], universe: Sequence[Layer]) -> list[str]:
        return [f"re:{pattern}$" for pattern in patterns(layers, universe)]


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    weights: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": not scheme.zero_points,
        "strategy": "group" if scheme.group_size else "channel",
        "dynamic": False,
    }
    if scheme.group_size:
        weights["group_size"] = scheme.group_size
    group: dict[str, Any] = {"targets": targets, "weights": weights, "format": _layout(scheme)}
    if scheme.act_bits < PLAIN_BITS:
        group["input_activations"] = {
            "num_bits": scheme.act_bits, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
        }  # fmt: skip
    return group


def _layout(scheme: Scheme) -> str:
    return "pack-quantized" if scheme.act_bits >= PLAIN_BITS else "int-quantized"


class CompressedTensors(_Groups):
    """The part of a checkpoint's config.json that says how it is quantised."""

    name = "compressed-tensors"
    help = "quantization_config of a Hugging Face checkpoint: transformers, vLLM"

    def write(self, writing: Writing) -> dict[str, str]:
        """Return the fragment of config.json."""
        layouts = {_layout(scheme) for scheme in writing.plan.schemes()} or {"dense"}
        config = {
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "format": layouts.pop() if len(layouts) == 1 else "mixed-precision",
            "config_groups": self._groups(writing),
            "ignore": self._ignore(writing),
            "kv_cache_scheme": self._cache(writing),
        }
        return {"config.json": json_text({"quantization_config": config, STATEMENT: writing.said})}


class LlmCompressor(_Groups):
    """The recipe that quantises a checkpoint so."""

    name = "llm-compressor"
    help = "recipe for llm-compressor, which quantises a checkpoint into compressed-tensors"

    def write(self, writing: Writing) -> dict[str, str]:
        """Return the recipe: GPTQ on every group."""
        groups = self._groups(writing)
        for group in groups.values():
            del group["format"]  # llm-compressor chooses it when it saves
        modifier = {"config_groups": groups, "ignore": self._ignore(writing)}
        cache = self._cache(writing)
        if cache:
            modifier["kv_cache_scheme"] = cache
        recipe = {"default_stage": {"default_modifiers": {"GPTQModifier": modifier}}}
        return {"recipe.yaml": comments(writing.said) + yaml_text(recipe)}
