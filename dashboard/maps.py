"""Designs as maps: the values of a knob over blocks and modules of each component, for heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from dashboard.figures.parts import Map
from dse.designs import DesignBatch
from dse.entries import Entry
from dse.schema import Field

# What belongs together on a page, by the knobs that say it.
KINDS: Final = {
    "Weights": ("weight_bits",),
    "Activations": ("act_bits",),
    "Cache": ("k_bits", "v_bits"),
    "Pruning": ("head_keep", "ffn_keep", "block_keep"),
}
_BY_MODULE: Final = ("weight_bits", "act_bits")
_ELSEWHERE: Final = ("stem", "head")


def maps(design: DesignBatch) -> Mapping[str, Sequence[Map]]:
    """Return the maps of a design that differ from the reference values, by kind; a map per component.

    Args:
        design: a batch of one row.
    """
    found = {}
    for kind, knobs in KINDS.items():
        fields = [design.schema.fields[name] for name in knobs if name in design]
        changed = [f for f in fields if (np.asarray(design[f.name][0], dtype=np.float64) != f.default).any()]
        if changed:
            found[kind] = [_map(design, fields, owner) for owner in _owners(fields)]
    return found


def _owners(fields: Sequence[Field]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((e.role, e.component) for f in fields for e in f.entries))


def _map(design: DesignBatch, fields: Sequence[Field], owner: tuple[str, str]) -> Map:
    """Return the values of some knobs over one component; knobs of blocks are columns of their own."""
    cells = [
        (_row(e), _column(f, e), float(v))
        for f in fields
        for e, v in zip(f.entries, design[f.name][0].tolist(), strict=True)
        if (e.role, e.component) == owner
    ]
    named = list(dict.fromkeys(row for row, _, _ in cells))
    rows = [r for r in named if r == "stem"] + sorted((r for r in named if r not in _ELSEWHERE), key=int)
    rows += [r for r in named if r == "head"]
    columns = list(dict.fromkeys(column for _, column, _ in cells))
    at_row, at_column = ({name: i for i, name in enumerate(names)} for names in (rows, columns))
    values = np.full((len(rows), len(columns)), np.nan)
    for row, column, value in cells:
        values[at_row[row], at_column[column]] = value
    knob = fields[0].knob
    levels = sorted(float(v) for v in knob.allowed if not isinstance(v, str))
    role, component = owner
    return Map(component if len(design.schema.problem.models) == 1 else f"{role}, {component}", rows, columns, values,
               knob.unit, levels)  # fmt: skip


def _row(e: Entry) -> str:
    return str(e.section) if e.section in _ELSEWHERE else str(e.block)


def _column(field: Field, e: Entry) -> str:
    if field.name not in _BY_MODULE:
        return field.name
    return f"{e.leaf} [{e.channel + 1}/{e.n_channels}]" if e.n_channels > 1 else e.leaf
