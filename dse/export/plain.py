"""JSON types as text of three kinds: JSON, TOML and YAML; and the words that files of all kinds say about themselves.

TOML has no null: keys that hold one are left out, which readers of ours take for the same. YAML is written with all
text quoted as in JSON, so nothing in a name can be read as anything else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from dse.protocols import Chosen

STATEMENT: Final = "mfm_dse"
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_BARE_YAML_KEY: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_YAML_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
_LINE: Final = 200


def json_text(document: Any) -> str:
    """Return a document as JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def toml_text(document: Mapping[str, Any]) -> str:
    """Return a document as TOML: tables as sections, what is inside lists inline; keys that hold null are left out."""
    lines: list[str] = []
    _toml_table(document, (), lines)
    return "\n".join(lines) + "\n"


def _toml_table(table: Mapping[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    for key, value in table.items():
        if key not in inner and value is not None:
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    for key, value in inner.items():
        place = (*path, key)
        # Even a table that holds tables alone is written, so that an empty one is not lost.
        lines += ["", f"[{'.'.join(map(_toml_key, place))}]"]
        _toml_table(value, place, lines)


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _quoted(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items() if v is not None)
        return f"{{{inside}}}"
    return f"[{', '.join(_toml_value(v) for v in value)}]"


def yaml_text(document: Any, indent: int = 0) -> str:
    """Return a document as YAML, mappings and lists of mappings in blocks, lists of plain values in one line."""
    pad = " " * indent
    if isinstance(document, Mapping) and document:
        return "".join(f"{pad}{_yaml_key(str(key))}:{_yaml_inside(value, indent)}" for key, value in document.items())
    if _is_block_list(document):
        parts = [yaml_text(value, indent + 2) for value in document]
        return "".join(f"{pad}- {part[indent + 2 :]}" for part in parts)
    return f"{pad}{_yaml_value(document)}\n"


def _yaml_inside(value: Any, indent: int) -> str:
    if (isinstance(value, Mapping) and value) or _is_block_list(value):
        return "\n" + yaml_text(value, indent + 2)
    return f" {_yaml_value(value)}\n"


def _yaml_value(value: Any) -> str:
    """Return a value in one line. YAML 1.1 takes 8e-12 for text: its numbers have a point."""
    if isinstance(value, float) and math.isfinite(value):
        mantissa, e, exponent = repr(value).partition("e")
        return f"{mantissa if '.' in mantissa or not e else mantissa + '.0'}{e}{exponent}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml_value, value))}]"
    return _quoted(value)


def _is_block_list(value: Any) -> bool:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return is_list and any(isinstance(item, Mapping | list | tuple) for item in value)


def _yaml_key(key: str) -> str:
    return key if _BARE_YAML_KEY.fullmatch(key) and key.lower() not in _YAML_WORDS else _quoted(key)


def _quoted(value: Any) -> str:
    """Return a plain value, or an empty list or table, as both TOML and YAML read it."""
    if not isinstance(value, str):
        return json.dumps(value, allow_nan=False)
    # JSON's own escapes would write characters beyond 16 bits as two halves, which neither of the two takes.
    return f'"{"".join(map(_escaped, value))}"'


def _escaped(c: str) -> str:
    if c in '"\\':
        return f"\\{c}"
    if c.isprintable():
        return c
    return f"\\u{ord(c):04x}" if ord(c) <= 0xFFFF else f"\\U{ord(c):08x}"


def statement(chosen: Chosen, exporter: str, missing: Iterable[str], notes: Iterable[str]) -> dict[str, Any]:
    """Return what an exported file says about itself: which design it is, and what of it is not in the file."""
    return {
        "exporter": exporter,
        "study": chosen.study,
        "number": chosen.number,
        "design_hash": chosen.design.hashes[0].hex(),
        "model": {role: model.name for role, model in chosen.problem.models.items()},
        "quality": chosen.metrics.basis.get("quality_loss", "not evaluated"),
        "not_expressible": list(missing),
        "notes": list(notes),
    }


def comments(said: Mapping[str, Any], mark: str = "#") -> str:
    """Return a statement as comment lines: no control character, no line of more than 200 characters."""
    models = ", ".join(f"{name} as {role}" for role, name in said["model"].items())
    where = f"design {said['number']} of study {said['study']!r}" if said["study"] else "a design outside any study"
    lines = [f"{said['exporter']}, written by mfm-dse: {where}, {models}", f"content hash {said['design_hash']}"]
    lines += [f"not expressible: {sentence}" for sentence in said["not_expressible"]]
    lines += [f"note: {sentence}" for sentence in said["notes"]]
    return "".join(f"{mark} {part}\n" for line in lines for part in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return [text[i : i + _LINE] for i in range(0, len(text), _LINE)]
