"""GPTQModel: ``quantize_config.json`` with one width for most modules and ``dynamic`` for the others.

The keys of ``dynamic`` are regular expressions: "-:" in front leaves modules alone, "+:" changes what the base says.
vLLM matches them against the names of fused modules too, so these are in the patterns. GPTQModel quantises the blocks
of the decoder, and the head where ``lm_head`` is set; kernels exist for 2, 3, 4 and 8 bits.
"""

from __future__ import annotations

from typing import Any

from dse.export.plain import STATEMENT, json_text
from dse.export.weights.base import WeightFormat, Writing, commonest, storage
from dse.export.weights.layers import ROUTERS, TABLES, Ability
from dse.export.weights.patterns import patterns


class GptqModel(WeightFormat):
    """The configuration that GPTQModel quantises with, and that vLLM and transformers load."""

    name = "gptqmodel"
    help = "quantize_config.json for GPTQModel, with its dynamic overrides per module"
    ability = Ability(
        widths=(2, 3, 4, 8),
        act_widths={},
        refuses=(
            TABLES,
            ("GPTQModel quantises the decoder alone", lambda layer: layer.module.component != "decoder"),
            ROUTERS,
        ),
        act_reason="GPTQ leaves activations alone",
    )

    def write(self, writing: Writing) -> dict[str, str]:
        """Return the configuration."""
        base = commonest(writing.plan, self.name)
        dynamic: dict[str, dict[str, Any]] = {
            f"-:{pattern}$": {} for pattern in patterns(writing.plan.plain, writing.universe, aliases=True)
        }
        quantised = [layer for layers in writing.plan.schemes().values() for layer in layers]
        for scheme, layers in writing.plan.schemes().items():
            if scheme != base:
                found = patterns(layers, writing.universe, aliases=True)
                dynamic |= {f"+:{pattern}$": storage(scheme) for pattern in found}
        config = {
            **storage(base),
            "desc_act": False,
            "lm_head": any(layer.path.endswith("lm_head") for layer in quantised),
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            "dynamic": dynamic,
            "meta": {STATEMENT: writing.said},
        }
        return {"quantize_config.json": json_text(config)}
