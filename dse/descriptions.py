"""Reads the fields of a hardware description, and refuses what is missing, unknown, malformed or without a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dse import units
from dse.errors import HardwareError, UserError, unknown


def check_keys(table: Any, known: set[str], where: str) -> None:
    """Refuse what is no table, or has a field that nobody reads."""
    if not isinstance(table, Mapping):
        raise HardwareError(f"{where}: {table!r} is no table", "write its fields under a heading of their own")
    for key in table:
        if key not in known:
            raise unknown(f"field in {where}", key, sorted(known))


def read_sources(document: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return the sources of a description: field -> where its value comes from."""
    sources = document.get("source", {})
    if not isinstance(sources, Mapping):
        raise HardwareError(f"{where}: source={sources!r} is no table", "write [source] and a line for each field")
    return dict(sources)


def check_sources(given: list[str], sources: Mapping[str, str], where: str) -> None:
    """Refuse a value without a source."""
    for name in given:
        source = sources.get(name, sources.get("*"))
        if not isinstance(source, str) or not source:
            raise HardwareError(
                f"{where}: {name} has no source", f"add {name!r}, or '*' for all, to its [source] table"
            )


def read_text(document: Mapping[str, Any], key: str, where: str) -> str:
    """Return a text that must be there."""
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise HardwareError(f"{where}: {key} is missing or empty")
    return value


def read_number(document: Mapping[str, Any], key: str, where: str, required: bool) -> float | None:
    """Return a positive number, or text with a unit; None where it is not there and need not be."""
    if key not in document:
        if required:
            raise HardwareError(f"{where}: {key} is missing")
        return None
    value = document[key]
    if not isinstance(value, str):
        return positive(value, key, where)
    try:
        return positive(units.parse(value, key), key, where)
    except HardwareError:
        raise
    except UserError as error:
        raise HardwareError(f"{where}: {error.message}", error.hint) from None


def positive(value: Any, key: str, where: str) -> float:
    """Return a value that must be a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise HardwareError(f"{where}: {key}={value!r} is not a positive number")
    return float(value)
