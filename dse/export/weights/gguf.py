r"""llama.cpp: the ``llama-quantize`` command that gives each tensor of a GGUF file its type.

Types by width: 2 bits Q2_K, 3 Q3_K, 4 Q4_K, 6 Q6_K, 8 Q8_0, 16 F16. K-types hold blocks of 256 inputs; where these do
not divide a row, the next type with blocks of 32 stands in (Q4_1, Q8_0), and F16 where those do not either. Scales
are the types' own: bits per weight, scales included, are those of the gguf package's table (Q4_K 4.5), not the
design's group size.

``--tensor-type`` takes a regular expression that is searched in a tensor's name. ``--prune-layers`` drops blocks
first and numbers the others anew, so the patterns count the blocks that are left. Encoders and projectors live in a
file of their own (mmproj), and the router is never quantised.
"""

from __future__ import annotations

import shlex
from typing import Final

from dse.export.plain import comments
from dse.export.weights.base import WeightFormat, Writing, hub_name
from dse.export.weights.layers import PLAIN_BITS, ROUTERS, Ability, Layer, Plan, Scheme, kept
from dse.export.weights.patterns import split
from dse.protocols import Chosen

# Width -> (type, inputs per block), best first; a type of a wider width may stand in.
_TYPES: Final[dict[int, tuple[tuple[str, int, int], ...]]] = {
    2: (("Q2_K", 256, 2), ("Q4_1", 32, 4), ("F16", 1, 16)),
    3: (("Q3_K", 256, 3), ("Q4_1", 32, 4), ("F16", 1, 16)),
    4: (("Q4_K", 256, 4), ("Q4_1", 32, 4), ("F16", 1, 16)),
    6: (("Q6_K", 256, 6), ("Q8_0", 32, 8), ("F16", 1, 16)),
    8: (("Q8_0", 32, 8), ("F16", 1, 16)),
    16: (("F16", 1, 16),),
}
BITS_PER_WEIGHT: Final = {
    "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q4_1": 5.0, "Q6_K": 6.5625, "Q8_0": 8.5, "F16": 16.0,
}  # fmt: skip

# Leaf of a decoder block -> tensors.
_TENSORS: Final = {
    "self_attn.q_proj": ("attn_q",), "self_attn.k_proj": ("attn_k",), "self_attn.v_proj": ("attn_v",),
    "self_attn.o_proj": ("attn_output",),
    "self_attn.q_a_proj": ("attn_q_a",), "self_attn.q_b_proj": ("attn_q_b",),
    "self_attn.kv_a_proj_with_mqa": ("attn_kv_a_mqa",), "self_attn.kv_b_proj": ("attn_kv_b",),
    "gate_proj": ("ffn_gate",), "up_proj": ("ffn_up",), "down_proj": ("ffn_down",),
    "c_fc": ("ffn_up",), "c_proj": ("ffn_down",),
    "experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "experts.down_proj": ("ffn_down_exps",),
}  # fmt: skip


def tensors(layer: Layer) -> tuple[str, ...]:
    """Return the names that a decoder layer's tensors have inside their block, () where llama.cpp has none."""
    _, number, leaf = split(layer)
    if number < 0 or layer.module.component != "decoder":
        return ()
    if leaf.startswith("self_attn."):
        return _TENSORS.get(leaf, ())
    above, _, last = leaf.rpartition(".")
    if above not in ("mlp", "feed_forward"):
        inside = above.rpartition(".")[2]
        if inside in ("shared_experts", "shared_expert"):
            return tuple(f"{name}_shexp" for name in _TENSORS.get(last, ()))
        return _TENSORS.get(f"{inside}.{last}", ()) if inside == "experts" else ()
    return _TENSORS.get(last, ())


def _has_tensor(layer: Layer) -> bool:
    return bool(tensors(layer)) or layer.is_table or layer.path.endswith("lm_head")


class LlamaCpp(WeightFormat):
    """A shell script with the llama-quantize command."""

    name = "llama.cpp"
    help = "llama-quantize command with a type per tensor"
    ability = Ability(
        widths=(2, 3, 4, 6, 8),
        act_widths={},
        fuses=False,
        any_group=True,
        refuses=(
            (
                "encoders and projectors are in the mmproj file, which llama-quantize leaves alone",
                lambda layer: layer.module.component != "decoder",
            ),
            ROUTERS,
            ("llama.cpp has no such tensor", lambda layer: not _has_tensor(layer)),
        ),
        act_reason="llama.cpp chooses activations itself",
    )
    covers = WeightFormat.covers | {"block_keep"}

    def plan(self, chosen: Chosen) -> Plan:
        """Return the plan, with the width of the type that a tensor's row allows."""
        planned = super().plan(chosen)
        rows = []
        for layer, scheme in planned.rows:
            kind, _, bits = _type_of(layer, scheme)
            if kind != _TYPES[scheme.bits][0][0]:
                wanted, block, _ = _TYPES[scheme.bits][0]
                reason = (
                    f"blocks of {block} do not divide the inputs: {kind} for {wanted}, {bits} bits for {scheme.bits}"
                )
                planned.differences.add(reason, layer.path)
            rows.append((layer, Scheme(bits, PLAIN_BITS, 0, bits < PLAIN_BITS)))
        return Plan(rows, planned.differences)

    def remarks(self, chosen: Chosen, planned: Plan) -> tuple[list[str], list[str]]:
        """Return which blocks cannot be dropped, and what the types take."""
        missing = []
        dropped = [x for x in _dropped(chosen, self.role) if x[0] != "decoder"]
        if dropped:
            missing.append(f"{len(dropped)} blocks of encoders are dropped: the mmproj file keeps all its blocks")
        kinds = sorted({_type_of(layer, scheme)[0] for layer, scheme in planned.rows if not scheme.is_plain})
        form = chosen.problem.weight_format
        taken = ", ".join(f"{kind} {BITS_PER_WEIGHT[kind]:g}" for kind in kinds)
        if kinds:
            missing.append(
                f"groups of {form.group_size} with {form.scale_bits}-bit scales: the types have their own, "
                f"bits per weight {taken}"
            )
        return missing, ["the source file is the checkpoint as convert_hf_to_gguf.py writes it, in F16 or BF16"]

    def write(self, writing: Writing) -> dict[str, str]:
        """Return the script."""
        command = ["llama-quantize"]
        dropped = sorted(index for component, index in _dropped(writing.chosen, self.role) if component == "decoder")
        if dropped:
            command += ["--prune-layers", ",".join(map(str, dropped))]
        for layer, scheme in writing.plan.rows:
            if not layer.is_table and not layer.path.endswith("lm_head"):
                continue
            if layer.module.tied_to or layer.module.component != "decoder":
                continue
            option = "--token-embedding-type" if layer.is_table else "--output-tensor-type"
            command += [option, _type_of(layer, scheme)[0]]
        for pattern, kind in tensor_types(writing):
            command += ["--tensor-type", f"{pattern}={kind}"]
        base = next(iter(writing.plan.schemes()), None)
        name = hub_name(writing.model)
        command += [f"{name}-f16.gguf", f"{name}-mixed.gguf", {2: "Q2_K", 3: "Q3_K_M", 4: "Q4_K_M", 6: "Q6_K",
                    8: "Q8_0"}[base.bits] if base else "F16"]  # fmt: skip
        lines = _lines(command)
        return {"llama-quantize.sh": "#!/bin/sh\n" + comments(writing.said) + " \\\n  ".join(lines) + "\n"}


def tensor_types(writing: Writing) -> list[tuple[str, str]]:
    """Return (regular expression, type) for the tensors inside blocks, blocks numbered as they are after pruning."""
    numbers = sorted({split(x)[1] for x in writing.universe if x.module.component == "decoder" and not x.is_dropped})
    after = {old: new for new, old in enumerate(n for n in numbers if n >= 0)}
    blocks: dict[tuple[str, str], list[int]] = {}
    for layer, scheme in writing.plan.rows:
        for tensor in tensors(layer):
            blocks.setdefault((tensor, _type_of(layer, scheme)[0]), []).append(after[split(layer)[1]])
    together: dict[tuple[tuple[int, ...], str], list[str]] = {}
    for (tensor, kind), places in blocks.items():
        together.setdefault((tuple(places), kind), []).append(tensor)
    return [
        (rf"blk\.({'|'.join(map(str, places))})\.({'|'.join(names)})\.weight", kind)
        for (places, kind), names in together.items()
    ]


def _type_of(layer: Layer, scheme: Scheme) -> tuple[str, int, int]:
    return next(option for option in _TYPES[scheme.bits] if layer.n_in_row % option[1] == 0)


def _dropped(chosen: Chosen, role: str) -> list[tuple[str, int]]:
    return sorted(kept(chosen, role).dropped)


def _lines(command: list[str]) -> list[str]:
    """Return a command in lines: each option with its value."""
    lines: list[str] = []
    for word in command:
        if lines and lines[-1].startswith("--") and " " not in lines[-1]:
            lines[-1] += f" {shlex.quote(word)}"
        else:
            lines.append(shlex.quote(word))
    return lines
