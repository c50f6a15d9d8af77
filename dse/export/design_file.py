"""Reads a design document back, and says whether its metrics can be had again.

A document may be edited by hand: it is then another design, its recorded metrics belong to the one it was, and
:attr:`DesignFile.is_edited` says so.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from dse.designs import DesignBatch
from dse.errors import DseError, UserError, unknown
from dse.export.design import FORMAT, design_document, place
from dse.knobs import KNOBS
from dse.metrics import MetricBatch
from dse.problem import Problem
from dse.protocols import Chosen, CostModelUsed
from dse.schema import Field, Schema
from dse.whatif import evaluate_again

_MOST_BYTES: Final = 256 * 2**20
_MOST_CHANNEL_GROUPS: Final = 1024


@dataclass(frozen=True)
class DesignFile:
    """A design document as it was read.

    Attributes:
        path: the file.
        document: its content.
        chosen: the design, with the metrics that the document records.
        is_edited: whether problem or knobs are other ones than the recorded hash stands for.
    """

    path: Path
    document: Mapping[str, Any]
    chosen: Chosen
    is_edited: bool


def read_design(path: str | Path) -> DesignFile:
    """Return the design of a JSON or TOML document.

    Raises:
        UserError: no such file, not such a document, or a value in it that cannot be; the message names the place.
    """
    path = Path(path)
    document = _read(path)
    if document.get("format") != FORMAT:
        raise UserError(
            f"{path.name!r} is no design document: format={document.get('format')!r}, expected {FORMAT!r}",
            "dse export STUDY NUMBER --to design writes one",
        )
    try:
        problem = Problem.from_json(document["problem"])
        schema = Schema(problem, _channel_groups(document["channel_groups"]))
        arrays = {name: _array(schema, name, knob) for name, knob in document["knobs"].items()}
        design = DesignBatch(schema, arrays, 1)
        chosen = Chosen(
            study=str(document["study"]),
            number=int(document["number"]),
            problem=problem,
            design=design,
            values=dict(document["search_values"]),
            metrics=_metrics(document["metrics"], str(document["infeasible_because"])),
            provenance={str(k): str(v) for k, v in document["provenance"].items()},
            cost_models=[CostModelUsed(**used) for used in document["cost_models"]],
        )
    except DseError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path.name!r} is a damaged design document: {type(error).__name__}: {error}",
            "dse export --to design writes it anew; its layout is dse/export/schemas/design-1.json",
        ) from error
    return DesignFile(path, document, chosen, design.hashes[0].hex() != document["content_hash"])


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{str(path)!r} is larger than any design document: {path.stat().st_size} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    try:
        if path.suffix == ".toml":
            document = tomllib.loads(content.decode())
            for place_ in document.pop("null_at", []):
                _put_null(document, place_)
        else:
            document = json.loads(content)
    except (ValueError, RecursionError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}", "it must be JSON, or TOML if it ends so") from None
    if not isinstance(document, dict):
        raise UserError(f"{str(path)!r} holds no table, but {type(document).__name__}")
    return document


def _channel_groups(value: Any) -> int:
    # A schema has an entry for each: an absurd number would fill the memory before anything else is checked.
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_CHANNEL_GROUPS:
        raise UserError(f"channel_groups={value!r} is not a whole number from 1 to {_MOST_CHANNEL_GROUPS}")
    return value


def _put_null(document: Any, path: list[str]) -> None:
    *above, key = path
    for part in above:
        document = document[int(part)] if isinstance(document, list) else document[part]
    document[key] = None


def _array(schema: Schema, name: str, knob: Mapping[str, Any]) -> np.ndarray:
    field = schema.field(name, "in the design document")
    if field.is_scalar:
        return np.array([_value(field, knob["value"], name)], dtype=None if field.knob.kind is str else field.dtype)
    places = [place(field, entry) for entry in field.entries]
    given = knob["values"]
    for key in given:
        if key not in places:
            raise unknown(f"place of {name}", key, places)
    missing = [key for key in places if key not in given]
    if missing:
        raise UserError(f"knob {name!r}: {len(missing)} places have no value, the first is {missing[0]!r}")
    return np.array([[_value(field, given[key], f"{name} of {key}") for key in places]], dtype=field.dtype)


def _value(field: Field, value: Any, where: str) -> Any:
    knob = KNOBS[field.name]
    if knob.spread or knob.kind is bool:
        if value not in (0, 1):
            raise UserError(f"{where}={value!r} is neither 0 nor 1")
        return value
    return knob.read(value, where)


def _metrics(records: Mapping[str, Mapping[str, Any]], reason: str) -> MetricBatch:
    def column(value: Any) -> np.ndarray:
        return np.array([math.nan if value is None else float(value)])

    return MetricBatch(
        values={name: column(r["value"]) for name, r in records.items()},
        n=1,
        intervals={name: (column(r["low"]), column(r["high"])) for name, r in records.items() if "low" in r},
        basis={name: str(r["basis"]) for name, r in records.items() if "basis" in r},
        errors={0: reason} if reason else {},
    )


def evaluated(file: DesignFile) -> tuple[Chosen, list[Any], list[str]]:
    """Return the design of a document evaluated now, its breakdown, and how that differs from what is recorded.

    Metrics are compared bit for bit. A document that was edited records another design's metrics: the one line then
    says that.

    Raises:
        UserError: a cost model that it names is not installed.
    """
    chosen, parts = evaluate_again(file.chosen)
    if file.is_edited:
        return chosen, parts, ["the document was edited: the metrics in it are those of another design"]
    recorded, now = file.document["metrics"], design_document(chosen)["metrics"]
    lines = [
        f"cost model {old.name} was {old.version}, is {new.version}"
        for old, new in zip(file.chosen.cost_models, chosen.cost_models, strict=True)
        if old.version != new.version
    ]
    for name in dict.fromkeys([*recorded, *now]):
        old_record, new_record = recorded.get(name, {}), now.get(name, {})
        for key in ("value", "low", "high"):
            before, after = old_record.get(key), new_record.get(key)
            if before != after:
                lines.append(f"{name} {key}: {before!r} is recorded, {after!r} is found")
    return chosen, parts, lines
