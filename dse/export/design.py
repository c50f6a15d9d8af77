"""Our own document: everything about a design, self-contained, for archives and for tools that read JSON or TOML.

It holds the problem with model, request and hardware in full (a catalogue may change, a document does not), every
knob at its finest level, the metrics with intervals, basis and fidelity, and where all that comes from. Its layout is
the JSON Schema ``dse/export/schemas/design-1.json``. :mod:`dse.export.design_file` reads it back, and ``dse evaluate
FILE`` gives the same metrics again, bit for bit, as long as the cost models have not changed.

The hardware is that of the design: where a study chooses among devices, ``design_hash`` is the design's in its study,
and ``content_hash`` is the design's in the problem as it stands here.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from dse.designs import DesignBatch
from dse.entries import Entry
from dse.errors import unknown
from dse.export.plain import json_text, toml_text
from dse.knobs import Scope
from dse.protocols import Chosen, Exported
from dse.schema import Field, Schema, value_of
from dse.shown import metric_records

FORMAT: Final = "mfm-dse/design/1"
_KINDS: Final = ("json", "toml")


class DesignDocument:
    """One file: model, request, hardware, every knob at its finest level, metrics with intervals, provenance.

    Args:
        kind: "json" or "toml"; an option in the exporter's name ("design:toml").
    """

    name = "design"
    help = "self-contained document with every knob per module, metrics and provenance; design:toml for TOML"

    def __init__(self, kind: str = "json") -> None:
        if kind not in _KINDS:
            raise unknown("kind of design document", kind, _KINDS)
        self.kind = kind

    def export(self, chosen: Chosen) -> Exported:
        """Return the document; this format can express every design."""
        document = design_document(chosen)
        text = json_text(document) if self.kind == "json" else toml_text(_without_nulls(document))
        return Exported({f"{slug(chosen.study or 'what-if')}-{max(chosen.number, 0)}.{self.kind}": text.encode()})


def design_document(chosen: Chosen) -> dict[str, Any]:
    """Return the document as JSON types."""
    fields = chosen.design.schema.fields
    batch = on_its_hardware(chosen)
    here = batch.schema
    problem = here.problem
    fidelities = {name: used.fidelity for used in chosen.cost_models for name in used.metrics}
    records = metric_records(chosen.metrics, 0)
    return {
        "format": FORMAT,
        "software": {"name": "mfm-dse", "version": _version()},
        "study": chosen.study,
        "number": chosen.number,
        "design_hash": chosen.design.hashes[0].hex(),
        "content_hash": batch.hashes[0].hex(),
        "problem": problem.to_json(),
        "channel_groups": here.channel_groups,
        "knobs": {name: _values(chosen, field) for name, field in fields.items()},
        "search_values": dict(chosen.values),
        "metrics": {
            name: record | ({"fidelity": fidelities[name]} if name in fidelities else {})
            for name, record in records.items()
        },
        "infeasible_because": chosen.metrics.reason(0),
        "cost_models": [
            {
                "name": used.name, "group": used.group, "fidelity": used.fidelity, "version": used.version,
                "fingerprint": used.fingerprint, "metrics": list(used.metrics),
            }
            for used in chosen.cost_models
        ],
        "provenance": dict(chosen.provenance),
    }  # fmt: skip


def on_its_hardware(chosen: Chosen) -> DesignBatch:
    """Return the design, a batch of one row, in the problem on the hardware that it chooses."""
    structural = {
        name: value_of(chosen.design[name], 0)
        for name, field in chosen.design.schema.fields.items()
        if field.knob.structural and field.is_scalar
    }
    here = Schema(chosen.problem.bind(structural), chosen.design.schema.channel_groups)
    return DesignBatch(here, {name: chosen.design[name] for name in chosen.design.schema.fields})


def _version() -> str:
    try:
        return version("mfm-dse")
    except PackageNotFoundError:
        return "unknown"


def _without_nulls(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document for TOML, which has no null: ``null_at`` lists the places of those in tables."""
    places: list[list[str]] = []

    def clean(value: Any, path: list[str]) -> Any:
        if isinstance(value, dict):
            places.extend([*path, key] for key, inner in value.items() if inner is None)
            return {key: clean(inner, [*path, key]) for key, inner in value.items() if inner is not None}
        if isinstance(value, list | tuple):
            return [clean(inner, [*path, str(i)]) for i, inner in enumerate(value)]
        return value

    cleaned = clean(document, [])
    head = {"format": cleaned.pop("format"), "null_at": places}
    return head | cleaned


def _values(chosen: Chosen, field: Field) -> dict[str, Any]:
    array = chosen.design[field.name]
    if field.is_scalar:
        return {"unit": field.knob.unit, "value": value_of(array, 0)}
    values = {place(field, entry): value_of(array, (0, i)) for i, entry in enumerate(field.entries)}
    return {"unit": field.knob.unit, "per": field.knob.scope.value, "values": values}


def place(field: Field, entry: Entry) -> str:
    """Return what the document calls an entry of a field: "target:lm_head", "target:decoder.3", "target"."""
    if field.knob.scope in (Scope.WEIGHT, Scope.LINEAR):
        part = f"[{entry.channel + 1}/{entry.n_channels}]" if entry.n_channels > 1 else ""
        return f"{entry.role}:{entry.path}{part}"
    block = f"{entry.component}.{entry.block}" if entry.block >= 0 else entry.component
    return f"{entry.role}:{block}" if block else entry.role


def slug(name: str) -> str:
    """Return a file name for any text: letters, digits, dots, dashes and underscores, at most 80 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80].rstrip("-.") or "unnamed"
