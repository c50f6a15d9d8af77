"""The widths of the key-value cache, for formats that know one width for all of it."""

from __future__ import annotations

from collections.abc import Collection

from dse.protocols import Chosen


def cache_widths(chosen: Chosen, role: str) -> set[int]:
    """Return the widths that keys and values of the caches in a role are stored with."""
    fields = chosen.design.schema.fields
    return {
        int(value)
        for name in ("k_bits", "v_bits")
        if name in fields
        for entry, value in zip(fields[name].entries, chosen.design[name][0].tolist(), strict=True)
        if entry.role == role
    }


def one_width(chosen: Chosen, role: str, known: Collection[int], format_name: str) -> tuple[int, list[str]]:
    """Return the width of the whole cache, and what of the design that is not.

    Args:
        chosen: the design.
        role: the model.
        known: widths below 16 that the format has.
        format_name: for the sentence.

    Returns:
        A width that all of the cache gets: the widest of the design, or the next that the format has; and sentences.
    """
    widths = cache_widths(chosen, role)
    most = max(widths, default=16)
    given = next((w for w in sorted(known) if w >= most), 16)
    if widths <= {given}:
        return given, []
    listed = ", ".join(map(str, sorted(widths)))
    return given, [
        f"{format_name} has one width for the whole cache: {given} bits for keys and values of {listed} bits"
    ]
