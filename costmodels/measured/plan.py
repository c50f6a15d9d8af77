"""What is measured, in which order.

Ranks of layers transfer between widths (rank correlation 0.98 and more on published per-layer tables), so each group is
measured at one value of each knob first, the pivot. The other values follow by their predicted divergence, largest
first: the pivot's, times 4 per bit fewer (squared rounding errors fall by 4 per bit), or the pruned share to the power
1.71 (fit to published structured pruning). Whatever the budget cuts off is what matters least.

Random configurations are drawn with a severity of their own, from almost nothing to everything measured, separately for
widths, caches and activations, pruning and images, so that they spread over the range of losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from costmodels.measured.anatomy import Anatomy
from costmodels.measured.target import IMAGE_KNOBS
from dse.errors import UserError, unknown
from dse.knobs import KNOBS
from dse.params import Value
from dse.profile import PROFILED, Measurement

# The mildest value that is measured, and what is measured first, stand for what designs mostly use.
VALUES: Final[dict[str, tuple[Value, ...]]] = {
    "weight_bits": (8, 6, 4, 3, 2),
    "ffn_keep": (0.875, 0.75, 0.5),
    "head_keep": (0.75, 0.5),
    "block_keep": (0.0,),
    "visual_token_keep": (0.75, 0.5, 0.25),
    "token_stride": (2,),
    "act_bits": (8, 6, 4),
    "k_bits": (8, 4, 3, 2),
    "v_bits": (8, 4, 3, 2),
}
PIVOTS: Final[dict[str, Value]] = {
    "weight_bits": 3, "act_bits": 4, "k_bits": 3, "v_bits": 3, "ffn_keep": 0.5, "head_keep": 0.5, "block_keep": 0.0,
    "visual_token_keep": 0.5, "token_stride": 2,
}  # fmt: skip
_PER_BIT: Final = 4.0
_PER_SHARE: Final = 1.71
_FAMILIES: Final = (
    ("weight_bits",), ("act_bits", "k_bits", "v_bits"), ("head_keep", "ffn_keep"), ("block_keep",), IMAGE_KNOBS
)  # fmt: skip
_MOST_DROPPED: Final = 0.3
DEPTHS: Final = ("module", "block.kind", "block", "component")


@dataclass(frozen=True)
class Single:
    """One group at one value, to be measured."""

    group: str
    knob: str
    value: Value


def candidates(
    anatomy: Anatomy, image_knobs: Sequence[str], values: Mapping[str, Sequence[Value]], per: str
) -> dict[str, dict[str, list[Value]]]:
    """Return knob -> group -> values, mildest first.

    Args:
        anatomy: of the model.
        image_knobs: those that the user's forward takes.
        values: what to measure of each knob; :data:`VALUES` if empty.
        per: depth of the groups of widths: "module", "block.kind", "block" or "component".

    Raises:
        UserError: a knob that the model does not have, or a value that it cannot take.
    """
    if per not in DEPTHS:
        raise unknown("depth", per, DEPTHS)
    wanted = values or {knob: v for knob, v in VALUES.items() if knob not in IMAGE_KNOBS or knob in image_knobs}
    found: dict[str, dict[str, list[Value]]] = {}
    for knob, listed in wanted.items():
        if knob not in PROFILED:
            raise unknown("knob", knob, PROFILED)
        read = [_read(knob, v) for v in listed]
        mild_first = sorted(set(read), key=lambda v: -_mildness(knob, v))
        by_group = {g: v for g, v in _by_group(anatomy, knob, image_knobs, mild_first, per).items() if v}
        if by_group:
            found[knob] = by_group
        elif values:
            raise UserError(f"{knob} cannot be measured here: {_why(knob, anatomy)}", "leave it out")
    if not found:
        raise UserError("there is nothing to measure", "; ".join(anatomy.notes))
    return found


def _read(knob: str, value: Value) -> Value:
    known = KNOBS[knob]
    return known.read(value, knob)


def _mildness(knob: str, value: Value) -> float:
    return -float(value) if knob == "token_stride" else float(value)


def _why(knob: str, anatomy: Anatomy) -> str:
    if knob in IMAGE_KNOBS:
        return f"forward(model, batch) does not take {knob}= by keyword"
    return "; ".join(anatomy.notes) or "the model has no such place"


def _by_group(
    anatomy: Anatomy, knob: str, image_knobs: Sequence[str], values: Sequence[Value], per: str
) -> dict[str, list[Value]]:
    if knob in IMAGE_KNOBS:
        return {"": list(values)} if knob in image_knobs else {}
    if knob in ("weight_bits", "act_bits"):
        reach = anatomy.names if knob == "weight_bits" else anatomy.linear
        modules = [m for m in anatomy.modules if m.path in reach and not m.tied_to]
        return {_group(m.path, m.component, m.section, m.block, m.kind, m.leaf, per): list(values) for m in modules}
    found: dict[str, list[Value]] = {}
    for (component, index), parts in anatomy.blocks.items():
        kept: list[Value] = list(values)
        if knob in ("head_keep", "ffn_keep"):
            units = parts.heads if knob == "head_keep" else parts.channels
            n = units[0].columns.shape[1] if units else 0
            counts = {math.ceil(round(float(v) * n, 9)): v for v in values if v != 1.0}
            kept = [v for count, v in counts.items() if 0 < count < n]
        elif knob in ("k_bits", "v_bits"):
            kept = kept if parts.keys else []
        elif not parts.name:
            kept = []
        found[f"{component}/{index}"] = kept
    return found


def _group(path: str, component: str, section: str, block: int, kind: str, leaf: str, per: str) -> str:
    if per == "component":
        return component
    place = f"{component}/{block}" if block >= 0 else f"{component}/{section}"
    if per == "module":
        return path
    return f"{place}/{kind or leaf}" if per == "block.kind" and block >= 0 else place


def first(choices: Mapping[str, Mapping[str, Sequence[Value]]]) -> list[Single]:
    """Return one value of each group and knob: the pivot, or the value nearest to it."""
    found = []
    for knob, by_group in choices.items():
        for group, values in by_group.items():
            pivot = float(PIVOTS.get(knob, values[-1]))
            found.append(Single(group, knob, min(values, key=lambda v: abs(float(v) - pivot))))
    return found


def rest(choices: Mapping[str, Mapping[str, Sequence[Value]]], known: Sequence[Measurement]) -> list[Single]:
    """Return all values that :func:`first` leaves out, by predicted divergence, largest first."""
    done = set(first(choices))
    at = {(r.group, r.knob, r.value): r.figures.kl_nats for r in known}
    pivots = {(s.group, s.knob): (s.value, at.get((s.group, s.knob, s.value)) or 0.0) for s in done}
    left = [
        Single(group, knob, value)
        for knob, by_group in choices.items()
        for group, values in by_group.items()
        for value in values
    ]
    return sorted((s for s in left if s not in done), key=lambda s: -_predicted(s, *pivots[s.group, s.knob]))


def _predicted(single: Single, pivot: Value, kl: float) -> float:
    value, base = float(single.value), float(pivot)
    if single.knob.endswith("_bits"):
        return kl * _PER_BIT ** (base - value)
    if single.knob.endswith("_keep"):
        return float(kl * ((1 - value) / max(1 - base, 1e-9)) ** _PER_SHARE)
    return kl


def draw(choices: Mapping[str, Mapping[str, Sequence[Value]]], rng: np.random.Generator) -> dict[str, dict[str, Value]]:
    """Return a random configuration: knob -> group -> value, without what is left uncompressed."""
    found: dict[str, dict[str, Value]] = {}
    for family in _FAMILIES:
        severity = float(rng.random())
        for knob in family:
            for group, values in choices.get(knob, {}).items():
                if knob == "block_keep":
                    index = int(rng.random() < severity * _MOST_DROPPED)
                else:
                    index = int(rng.integers(1 + math.ceil(severity * len(values))))
                if index:
                    found.setdefault(knob, {})[group] = values[index - 1]
    return found
