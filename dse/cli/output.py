"""Output: one JSON document on stdout, or text for people; chatter goes to stderr."""

from __future__ import annotations

import json
import math
from typing import Any

import click


def json_option(command: Any) -> Any:
    """Add ``--json`` to a command."""
    return click.option("as_json", "--json", is_flag=True, help="Print one JSON document instead of text.")(command)


def db_option(command: Any) -> Any:
    """Add ``--db`` to a command."""
    return click.option(
        "--db",
        metavar="URL",
        help="Database URL or SQLite file; DSE_DB, or mfm-dse.db in the current folder, by default.",
    )(command)


def emit(document: Any) -> None:
    """Print a JSON document; numbers that are none become null."""
    click.echo(json.dumps(clean(document), indent=2, ensure_ascii=False))


def clean(value: Any) -> Any:
    """Return JSON types without NaN and infinities."""
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
