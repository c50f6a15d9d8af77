"""Output: one JSON document on stdout, or text for people; chatter goes to stderr."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import click

from dse.errors import UserError


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


def read_size(text: str) -> tuple[int, int]:
    """Return (width, height) of text such as "1920x1080".

    Raises:
        UserError: it is none.
    """
    size = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text)
    if size is None:
        raise UserError(f"--image-px {text!r} is not WIDTHxHEIGHT", "e.g. --image-px 1920x1080")
    return int(size[1]), int(size[2])


def clean(value: Any) -> Any:
    """Return JSON types without NaN and infinities."""
    if isinstance(value, dict):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
