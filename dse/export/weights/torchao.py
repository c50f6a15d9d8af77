"""Torchao: an ``FqnToConfig`` as ``config_to_dict`` of torchao 0.18 writes it.

Keys are regular expressions that must match the whole name ("re:"). Integer weights of 1 to 8 bits, alone or with 8-bit
activations quantised per token as they come. Its configurations act on modules, and experts are one bare tensor there.
"""

from __future__ import annotations

from typing import Any, Final

from dse.export.plain import STATEMENT, json_text
from dse.export.weights.base import WeightFormat, Writing
from dse.export.weights.layers import BARE, CONVOLUTIONS, PLAIN_BITS, ROUTERS, TABLES, Ability, Scheme
from dse.export.weights.patterns import patterns

_WIDTHS: Final = (2, 3, 4, 6, 8)


class TorchAo(WeightFormat):
    """The configuration that ``torchao.quantization.quantize_`` takes."""

    name = "torchao"
    help = "FqnToConfig of torchao as JSON: torchao.core.config.config_from_dict"
    ability = Ability(
        widths=_WIDTHS,
        act_widths=dict.fromkeys(_WIDTHS, (8,)),
        fuses=False,
        refuses=(
            TABLES,
            ROUTERS,
            CONVOLUTIONS,
            BARE,
            ("torchao quantises modules, and experts are one tensor without modules", lambda layer: layer.is_expert),
        ),
    )

    def write(self, writing: Writing) -> dict[str, str]:
        """Return the configuration."""
        found = {
            f"re:{pattern}": _config(scheme)
            for scheme, layers in writing.plan.schemes().items()
            for pattern in patterns(layers, writing.universe)
        }
        document = {"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": found}, STATEMENT: writing.said}
        return {"torchao.json": json_text(document)}


def _config(scheme: Scheme) -> dict[str, Any]:
    size = scheme.group_size
    granularity = _typed("PerGroup", {"group_size": size}, 1) if size else _typed("PerAxis", {"axis": 0}, 1)
    values = {
        "weight_dtype": _typed("torch.dtype", f"int{scheme.bits}"),
        "granularity": granularity,
        "mapping_type": _typed("MappingType", "ASYMMETRIC" if scheme.zero_points else "SYMMETRIC"),
    }
    if scheme.act_bits >= PLAIN_BITS:
        return _typed("IntxWeightOnlyConfig", values, 2)
    values = {
        "weight_dtype": values["weight_dtype"],
        "weight_granularity": values["granularity"],
        "weight_mapping_type": values["mapping_type"],
        "act_mapping_type": _typed("MappingType", "ASYMMETRIC"),
    }
    return _typed("Int8DynamicActivationIntxWeightConfig", values, 2)


def _typed(name: str, data: Any, version: int = 0) -> dict[str, Any]:
    return {"_type": name, "_version": version, "_data": data} if version else {"_type": name, "_data": data}
