"""AutoRound: ``quantization_config`` with one width for most modules and ``extra_config`` for the others.

The keys of ``extra_config`` are regular expressions over module names; 16 bits leave a module alone. Its packing has
2, 3, 4 and 8 bits.
"""

from __future__ import annotations

from typing import Any

from dse.export.plain import STATEMENT, json_text
from dse.export.weights.base import WeightFormat, Writing, commonest, storage
from dse.export.weights.layers import BARE, CONVOLUTIONS, ROUTERS, TABLES, Ability
from dse.export.weights.patterns import patterns


class AutoRound(WeightFormat):
    """The part of config.json that AutoRound checkpoints have."""

    name = "autoround"
    help = "quantization_config of an AutoRound checkpoint, with its extra_config per module"
    ability = Ability(
        widths=(2, 3, 4, 8),
        act_widths={},
        refuses=(TABLES, ROUTERS, CONVOLUTIONS, BARE),
        act_reason="this packing leaves activations alone",
    )

    def write(self, writing: Writing) -> dict[str, str]:
        """Return the fragment of config.json."""
        base = commonest(writing.plan, self.name)
        extra: dict[str, dict[str, Any]] = {}
        for pattern in patterns([x for x in writing.plan.plain if not x.is_bare], writing.universe):
            extra[f"^{pattern}$"] = {"bits": 16, "data_type": "float"}
        for scheme, layers in writing.plan.schemes().items():
            if scheme != base:
                said = {**storage(scheme), "data_type": "int"}
                extra |= {f"^{pattern}$": said for pattern in patterns(layers, writing.universe)}
        config = {
            "quant_method": "auto-round",
            "packing_format": "auto_round:auto_gptq",
            **storage(base),
            "data_type": "int",
            "extra_config": extra,
        }
        return {"config.json": json_text({"quantization_config": config, STATEMENT: writing.said})}
