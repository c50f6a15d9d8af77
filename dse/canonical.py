"""One spelling of a JSON document, and its hash: what content hashes and change detection rest on."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(document: Any) -> str:
    """Return ``document`` as JSON with sorted keys, no spaces and no NaN: equal documents give equal text."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(document: Any) -> str:
    """Return a 32-digit hexadecimal BLAKE2b hash of :func:`canonical_json`."""
    return hashlib.blake2b(canonical_json(document).encode(), digest_size=16).hexdigest()
