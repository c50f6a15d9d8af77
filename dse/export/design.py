"""Our own document: everything about a design, self-contained, for archives and for tools that read JSON."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from dse.knobs import Scope
from dse.protocols import Chosen, Exported
from dse.schema import Entry, Field, value_of
from dse.shown import metric_records

FORMAT: Final = "mfm-dse/design/1"


class DesignDocument:
    """One JSON file: model, request, hardware, every knob at its finest level, metrics with intervals, provenance."""

    name = "design"
    help = "self-contained JSON document with every knob per module, metrics and provenance"

    def export(self, chosen: Chosen) -> Exported:
        """Return the document; this format can express every design."""
        document = design_document(chosen)
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return Exported({f"{slug(chosen.study or 'what-if')}-{max(chosen.number, 0)}.json": text.encode()})


def design_document(chosen: Chosen) -> dict[str, Any]:
    """Return the document as JSON types."""
    schema = chosen.design.schema
    return {
        "format": FORMAT,
        "design_hash": chosen.design.hashes[0].hex(),
        "problem": chosen.problem.to_json(),
        "knobs": {name: _values(chosen, field) for name, field in schema.fields.items()},
        "search_values": dict(chosen.values),
        "metrics": metric_records(chosen.metrics, 0),
        "infeasible_because": chosen.metrics.reason(0),
        "provenance": dict(chosen.provenance),
    }


def _values(chosen: Chosen, field: Field) -> dict[str, Any]:
    array = chosen.design[field.name]
    if field.is_scalar:
        return {"unit": field.knob.unit, "value": value_of(array, 0)}
    values = {_place(field, entry): value_of(array, (0, i)) for i, entry in enumerate(field.entries)}
    return {"unit": field.knob.unit, "per": field.knob.scope.value, "values": values}


def _place(field: Field, entry: Entry) -> str:
    if field.knob.scope in (Scope.WEIGHT, Scope.LINEAR):
        part = f"[{entry.channel + 1}/{entry.n_channels}]" if entry.n_channels > 1 else ""
        return f"{entry.role}:{entry.path}{part}"
    block = f"{entry.component}.{entry.block}" if entry.component else ""
    return f"{entry.role}:{block}" if block else entry.role


def slug(name: str) -> str:
    """Return a file name for any text: letters, digits, dots, dashes and underscores, at most 80 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "unnamed"
