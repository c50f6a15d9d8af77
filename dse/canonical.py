"""One spelling of a JSON document, its hash, and where two differ: what content hashes and change detection rest on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical_json(document: Any) -> str:
    """Return ``document`` as JSON with sorted keys, no spaces and no NaN: equal documents give equal text."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(document: Any) -> str:
    """Return a 32-digit hexadecimal BLAKE2b hash of :func:`canonical_json`."""
    return hashlib.blake2b(canonical_json(document).encode(), digest_size=16).hexdigest()


def compare(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Return where two JSON documents differ, one line each: "space.weight_bits.values: [4, 8] -> [4, 16]"."""
    lines: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        at = f"{path}.{key}" if path else str(key)
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += compare(a, b, at)
        elif a != b:
            lines.append(f"{at}: {_short(a)} -> {_short(b)}")
    return lines


def _short(value: Any) -> str:
    shown = "(absent)" if value is None else str(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
