"""ModelOpt: ``hf_quant_config.json`` with an algorithm per layer, as TensorRT-LLM and vLLM read it.

Algorithms by (weight bits, activation bits): W4A16_AWQ (4, 16), W4A8_AWQ (4, 8), NVFP4 (4, 4, in groups of 16), W8A16
(8, 16) and FP8 (8, 8). All are symmetric. Layers stand under their transformers names, experts under the module that
holds them; layers that are not quantised stand in ``exclude_modules``. The readers want the producer's name,
"modelopt".
"""

from __future__ import annotations

from typing import Any, Final

from dse.export.kv import one_width
from dse.export.plain import STATEMENT, json_text
from dse.export.weights.base import WeightFormat, Writing
from dse.export.weights.layers import BARE, CONVOLUTIONS, PLAIN_BITS, ROUTERS, TABLES, Ability, Plan, Scheme, fused_key
from dse.protocols import Chosen

_ALGORITHMS: Final = {
    (4, 16): "W4A16_AWQ", (4, 8): "W4A8_AWQ", (4, 4): "NVFP4", (8, 16): "W8A16", (8, 8): "FP8",
}  # fmt: skip
_NVFP4_GROUP: Final = 16


class ModelOpt(WeightFormat):
    """The file that ModelOpt checkpoints have beside config.json."""

    name = "modelopt"
    help = "hf_quant_config.json of a ModelOpt checkpoint: TensorRT-LLM, vLLM"
    ability = Ability(
        widths=(4, 8),
        act_widths={4: (4, 8), 8: (8,)},
        zero_points=False,
        refuses=(TABLES, ROUTERS, CONVOLUTIONS, BARE),
    )
    covers = WeightFormat.covers | {"k_bits", "v_bits"}

    def plan(self, chosen: Chosen) -> Plan:
        """Return the plan, with the group sizes that the algorithms have."""
        planned = super().plan(chosen)
        rows = []
        for layer, scheme in planned.rows:
            size = _group_size(scheme)
            if size != scheme.group_size:
                what = f"groups of {size}" if size else "one scale per output"
                planned.differences.add(f"{_ALGORITHMS[scheme.bits, scheme.act_bits]} has {what}", layer.path)
            rows.append((layer, scheme._replace(group_size=size)))
        return Plan(rows, planned.differences)

    def remarks(self, chosen: Chosen, planned: Plan) -> tuple[list[str], list[str]]:
        """Return what it cannot say of the cache, and which algorithms are of floating-point numbers."""
        _, missing = one_width(chosen, self.role, (8,), "this file")
        floats = {_ALGORITHMS[s.bits, s.act_bits] for s in planned.schemes()} & {"FP8", "NVFP4"}
        notes = [f"{', '.join(sorted(floats))}: floating-point numbers of the design's width"] if floats else []
        return missing, notes

    def write(self, writing: Writing) -> dict[str, str]:
        """Return the file."""
        width, _ = one_width(writing.chosen, self.role, (8,), "")
        quantised: dict[str, dict[str, Any]] = {}
        excluded: dict[str, None] = {}
        for layer, scheme in writing.plan.rows:
            path = fused_key(layer) if layer.is_expert else layer.path
            if scheme.is_plain:
                excluded[path] = None
                continue
            quantised[path] = {"quant_algo": _ALGORITHMS[scheme.bits, scheme.act_bits]}
            if scheme.group_size:
                quantised[path]["group_size"] = scheme.group_size
        quantization = {
            "quant_algo": "MIXED_PRECISION",
            "kv_cache_quant_algo": "FP8" if width < PLAIN_BITS else None,
            "exclude_modules": list(excluded),
            "quantized_layers": quantised,
        }
        document = {
            "producer": {"name": "modelopt", "version": "planned by mfm-dse"},
            "quantization": quantization,
            STATEMENT: writing.said,
        }
        return {"hf_quant_config.json": json_text(document)}


def _group_size(scheme: Scheme) -> int:
    if scheme.is_plain or (scheme.bits == 8 and scheme.act_bits == 8):
        return 0
    return _NVFP4_GROUP if scheme.act_bits == 4 else scheme.group_size
