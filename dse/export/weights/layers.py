"""The one table that every format of quantised weights is written from: module -> bits, group size, zero points.

A row is a module with a weight that the design keeps, at the sizes that pruning leaves. What a format can hold is
stated by :class:`Ability`, and :func:`plan` lays the table over it: each row gets the :class:`Scheme` that the format
will say, and where that is not the design's, the reason goes into a sentence. A width that a format lacks becomes the
next wider one that it has: never fewer bits than the design asks for.

Serving engines load some projections as one (query, key and value; gate and up; the experts of a layer) and refuse
files in which they differ. A format for such engines gives each of them the widest width among its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from dse.errors import unknown
from dse.export.differences import Differences
from dse.model import Model, Module, ModuleKind, Section
from dse.protocols import Chosen

PLAIN_BITS: Final = 16

# Projections that engines load as one, by the last part of their path.
FUSED: Final = {
    "q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
    "q_a_proj": "fused_qkv_a_proj", "kv_a_proj_with_mqa": "fused_qkv_a_proj",
}  # fmt: skip
_ROUTERS: Final = ("gate", "router", "shared_expert_gate")


class Scheme(NamedTuple):
    """How one weight is stored, and the activations that meet it.

    Attributes:
        bits: of a weight; 16 for one that is not quantised.
        act_bits: of the activations that enter, 16 where they are not quantised.
        group_size: weights along the inputs that share a scale, 0 for one scale per output.
        zero_points: whether a group has a zero point.
    """

    bits: int
    act_bits: int
    group_size: int
    zero_points: bool

    @property
    def is_plain(self) -> bool:
        """Whether nothing is quantised."""
        return self.bits >= PLAIN_BITS


@dataclass(frozen=True)
class Layer:
    """One module of the design.

    Attributes:
        module: the module.
        bits: of its weight, in each of its channel groups.
        act_bits: of the activations that enter it, 16 for a token table.
        n_in, n_out: features that pruning leaves.
        is_dropped: whether its block is pruned away.
    """

    module: Module
    bits: tuple[int, ...]
    act_bits: int
    n_in: int
    n_out: int
    is_dropped: bool

    @property
    def path(self) -> str:
        """Hugging Face module path."""
        return self.module.path

    @property
    def width(self) -> int:
        """Bits of its widest channel group."""
        return max(self.bits)

    @property
    def last(self) -> str:
        """Last part of its path."""
        return self.path.rpartition(".")[2]

    @property
    def n_in_row(self) -> int:
        """Elements of a row of its stored weight: inputs, of a table the features of a token."""
        return self.n_out if self.module.kind is ModuleKind.EMBEDDING else self.n_in

    @property
    def is_table(self) -> bool:
        """Whether it is a table of tokens, or shares its weight with one."""
        return self.module.kind is ModuleKind.EMBEDDING or bool(self.module.tied_to)

    @property
    def is_expert(self) -> bool:
        """Whether it stands for one projection of all experts of a layer."""
        return self.module.n_copies > 1

    @property
    def is_router(self) -> bool:
        """Whether it scores experts."""
        return self.last in _ROUTERS

    @property
    def is_convolution(self) -> bool:
        """Whether the model runs it as a convolution over patches or frames."""
        in_encoder = self.module.component in ("vision", "audio") and self.module.section is Section.STEM
        return in_encoder and self.module.kind is ModuleKind.LINEAR and self.last != "linear"

    @property
    def is_bare(self) -> bool:
        """Whether the model holds it as a parameter without a module of its own."""
        return self.last.endswith("_weight")


@dataclass(frozen=True)
class Kept:
    """What pruning leaves of a model's blocks, by (component, index).

    Attributes:
        heads, channels: attention units and MLP channels kept, rounded up to whole ones.
        dropped: blocks that are pruned away.
    """

    heads: Mapping[tuple[str, int], int]
    channels: Mapping[tuple[str, int], int]
    dropped: frozenset[tuple[str, int]]


def kept(chosen: Chosen, role: str) -> Kept:
    """Return what pruning leaves of the model in a role."""
    model = chosen.problem.models[role]
    heads = {(b.component, b.index): b.head_units for b in model.blocks}
    channels = {(b.component, b.index): b.ffn_units for b in model.blocks}
    for name, units in (("head_keep", heads), ("ffn_keep", channels)):
        for place, value in _of_blocks(chosen, role, name).items():
            units[place] = int(np.ceil(value * units[place] - 1e-9))
    dropped = frozenset(place for place, value in _of_blocks(chosen, role, "block_keep").items() if not value)
    return Kept(heads, channels, dropped)


def _of_blocks(chosen: Chosen, role: str, name: str) -> dict[tuple[str, int], float]:
    field = chosen.design.schema.fields.get(name)
    if field is None:
        return {}
    values = chosen.design[name][0].tolist()
    return {(e.component, e.block): v for e, v in zip(field.entries, values, strict=True) if e.role == role}


def model_in(chosen: Chosen, role: str) -> Model:
    """Return the model in a role.

    Raises:
        NameUnknown: the problem has no such role.
    """
    if role not in chosen.problem.models:
        raise unknown("role", role, chosen.problem.models)
    return chosen.problem.models[role]


def layers(chosen: Chosen, role: str) -> list[Layer]:
    """Return the modules with a weight of the model in a role, in checkpoint order; tied ones follow their table."""
    model = model_in(chosen, role)
    bits = _by_path(chosen, role, "weight_bits")
    acts = _by_path(chosen, role, "act_bits")
    left = kept(chosen, role)
    found = []
    for module in model.modules:
        if module.kind not in (ModuleKind.LINEAR, ModuleKind.EMBEDDING):
            continue
        place = (module.component, module.block)
        units = left.heads.get(place, 0), left.channels.get(place, 0)
        found.append(
            Layer(
                module=module,
                bits=tuple(bits[module.tied_to or module.path]),
                act_bits=acts.get(module.path, [PLAIN_BITS])[0],
                n_in=module.in_dim.size(*units),
                n_out=module.out_dim.size(*units),
                is_dropped=place in left.dropped,
            )
        )
    return found


def _by_path(chosen: Chosen, role: str, name: str) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    field = chosen.design.schema.fields[name]
    for entry, value in zip(field.entries, chosen.design[name][0].tolist(), strict=True):
        if entry.role == role:
            found.setdefault(entry.path, []).append(value)
    return found


@dataclass(frozen=True)
class Ability:
    """What a format can say.

    Attributes:
        widths: weight widths below 16 that it has.
        act_widths: weight width -> widths of activations that go with it, 16 among them.
        zero_points: whether groups may have zero points.
        fuses: whether what engines load as one must agree.
        refuses: (reason, test) of layers that it holds at 16 bits only; the first that applies is given.
        any_group: whether a group size that does not divide the inputs is taken as it is.
        act_reason: why activations are not narrower.
    """

    widths: Sequence[int]
    act_widths: Mapping[int, Sequence[int]]
    zero_points: bool = True
    fuses: bool = True
    refuses: Sequence[tuple[str, Callable[[Layer], bool]]] = ()
    any_group: bool = False
    act_reason: str = "the format has no such width of activations"


TABLES: Final = ("token tables, and heads tied to them, stay at 16 bits", lambda layer: layer.is_table)
ROUTERS: Final = ("engines keep the scores of experts at 16 bits", lambda layer: layer.is_router)
CONVOLUTIONS: Final = ("convolutions stay at 16 bits", lambda layer: layer.is_convolution)
BARE: Final = ("a parameter without a module stays at 16 bits", lambda layer: layer.is_bare)


@dataclass
class Plan:
    """What a format will say of a design's weights.

    Attributes:
        rows: the layers that are not dropped, each with its scheme.
        differences: where a scheme is not the design's.
    """

    rows: list[tuple[Layer, Scheme]]
    differences: Differences = field(default_factory=Differences)

    def schemes(self) -> dict[Scheme, list[Layer]]:
        """Return the layers that are quantised, by scheme, widest use first."""
        found: dict[Scheme, list[Layer]] = {}
        for layer, scheme in self.rows:
            if not scheme.is_plain:
                found.setdefault(scheme, []).append(layer)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    @property
    def plain(self) -> list[Layer]:
        """The layers that stay at 16 bits."""
        return [layer for layer, scheme in self.rows if scheme.is_plain]


def plan(chosen: Chosen, role: str, ability: Ability) -> Plan:
    """Return what a format will say of the weights of the model in a role."""
    form = chosen.problem.weight_format
    differences = Differences()
    rows: list[tuple[Layer, Scheme]] = []
    for layer in layers(chosen, role):
        if layer.is_dropped:
            continue
        bits = _weight_bits(layer, ability, differences)
        acts = _act_bits(layer, bits, ability, differences)
        group_size = form.group_size
        if bits < PLAIN_BITS and layer.n_in_row % group_size and not ability.any_group:
            differences.add(f"groups of {group_size} do not divide the inputs: one scale per output", layer.path)
            group_size = 0
        zero_points = form.zero_points and ability.zero_points
        if bits < PLAIN_BITS and form.zero_points and not zero_points:
            differences.add("the format has no zero points: symmetric", layer.path)
        plain = bits >= PLAIN_BITS
        rows.append((layer, Scheme(bits, acts, 0 if plain else group_size, zero_points and not plain)))
    if ability.fuses:
        rows = _fused(rows, differences)
    return Plan(rows, differences)


def _weight_bits(layer: Layer, ability: Ability, differences: Differences) -> int:
    if layer.width >= PLAIN_BITS and min(layer.bits) >= PLAIN_BITS:
        return PLAIN_BITS
    for reason, test in ability.refuses:
        if test(layer):
            differences.add(f"{reason} (design: {_widths(layer.bits)})", layer.path)
            return PLAIN_BITS
    if len(set(layer.bits)) > 1:
        differences.add(f"one width per module: {layer.width} bits for {_widths(layer.bits)}", layer.path)
    bits = next((w for w in sorted(ability.widths) if w >= layer.width), PLAIN_BITS)
    if bits != layer.width:
        differences.add(f"the format has no {layer.width}-bit weights: {bits} bits", layer.path)
    return bits


def _widths(bits: Sequence[int]) -> str:
    return f"{' and '.join(map(str, sorted(set(bits))))} bits"


def _act_bits(layer: Layer, bits: int, ability: Ability, differences: Differences) -> int:
    if layer.act_bits >= PLAIN_BITS:
        return PLAIN_BITS
    if bits >= PLAIN_BITS:
        differences.add(f"{layer.act_bits}-bit activations need a quantised weight: 16 bits", layer.path)
        return PLAIN_BITS
    acts = next(a for a in sorted([*ability.act_widths.get(bits, ()), PLAIN_BITS]) if a >= layer.act_bits)
    if acts != layer.act_bits:
        differences.add(f"{ability.act_reason}: {acts} bits for {layer.act_bits}", layer.path)
    return acts


def fused_key(layer: Layer) -> str:
    """Return what engines load a layer as: the path of the fused module, or its own."""
    above, _, last = layer.path.rpartition(".")
    if layer.is_expert:
        return above
    return f"{above}.{FUSED[last]}" if last in FUSED else layer.path


def _fused(rows: Sequence[tuple[Layer, Scheme]], differences: Differences) -> list[tuple[Layer, Scheme]]:
    widest: dict[str, Scheme] = {}
    for layer, scheme in rows:
        key = fused_key(layer)
        widest[key] = _wider(widest[key], scheme) if key in widest else scheme
    found = []
    for layer, scheme in rows:
        together = widest[fused_key(layer)]
        if together != scheme:
            what = _change(scheme, together)
            differences.add(f"loaded as one with its neighbours, of which the widest counts: {what}", layer.path)
        found.append((layer, together))
    return found


def _wider(a: Scheme, b: Scheme) -> Scheme:
    bits = max(a.bits, b.bits)
    if bits >= PLAIN_BITS:
        return Scheme(PLAIN_BITS, PLAIN_BITS, 0, False)
    return Scheme(bits, max(a.act_bits, b.act_bits), min(a.group_size, b.group_size), a.zero_points or b.zero_points)


def _change(old: Scheme, new: Scheme) -> str:
    said = []
    if old.bits != new.bits:
        said.append(f"{new.bits} bits for {old.bits}")
    if old.act_bits != new.act_bits:
        said.append(f"{new.act_bits}-bit activations for {old.act_bits}")
    if old.group_size != new.group_size and new.bits < PLAIN_BITS:
        said.append("one scale per output" if not new.group_size else f"groups of {new.group_size}")
    return ", ".join(said) or "no scales"
