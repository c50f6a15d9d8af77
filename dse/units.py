"""Units at the edges: names inside carry SI base units, people type and read "4 GiB", "12 ms", "3.2 GHz".

A name ends in its unit (``latency_s``, ``dram_bytes_per_s``); :func:`unit_of` reads it off. Counts start with
``n_``, fractions end in ``_ratio`` or ``_keep``, powers in ``_exponent``. The few plain numbers that fit
neither are listed in :data:`DIMENSIONLESS`; a test walks all fields, metrics and catalogue keys and rejects a name that
fits nothing.

Prefixes: ``k M G T`` are powers of 1000, ``Ki Mi Gi Ti`` powers of 1024; both are accepted for bytes and bits, and
``KB`` is refused because it is read both ways.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Final

from dse.errors import UserError

# Decimals, so that "20 ms" is the float nearest to 0.02 and not 20 times the one nearest to 0.001.
SI: Final = {
    p: Decimal(f"1e{e}")
    for p, e in {"": 0, "p": -12, "n": -9, "u": -6, "µ": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12}.items()
}
BINARY: Final = {p: Decimal(2**e) for p, e in {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}.items()}

# Suffix of a name -> (unit as people write it, may take a binary prefix, may take an SI prefix). Longest first.
SUFFIXES: Final[dict[str, tuple[str, bool, bool]]] = {
    "_tokens_per_s": ("tokens/s", False, True),
    "_bytes_per_s": ("B/s", True, True),
    "_bits_per_s": ("bit/s", True, True),
    "_ops_per_s": ("op/s", False, True),
    "_flops_per_s": ("FLOP/s", False, True),
    "_usd_per_hour": ("USD/h", False, False),
    "_j_per_byte": ("J/B", False, True),
    "_j_per_bit": ("J/bit", False, True),
    "_j_per_op": ("J/op", False, True),
    "_j_per_element": ("J/element", False, True),
    "_w_per_mm2": ("W/mm2", False, True),
    "_mm2_per_byte": ("mm2/B", False, False),
    "_mm2_per_unit": ("mm2", False, False),
    "_per_s": ("1/s", False, False),
    "_bytes": ("B", True, True),
    "_bits": ("bit", True, True),
    "_cycles": ("cycles", False, False),
    "_mm2": ("mm2", False, False),
    "_ops": ("op", False, True),
    "_flops": ("FLOP", False, True),
    "_tokens": ("tokens", False, False),
    "_usd": ("USD", False, False),
    "_px": ("px", False, False),
    "_nm": ("nm", False, False),
    "_hz": ("Hz", False, True),
    "_s": ("s", False, True),
    "_j": ("J", False, True),
    "_w": ("W", False, True),
    "_v": ("V", False, True),
}

# Names without a unit that are neither a count (n_*) nor a fraction (*_ratio), each a plain number by its nature.
DIMENSIONLESS: Final = frozenset(
    {
        "batch",
        "tensor_parallel",
        "pipeline_parallel",
        "expert_parallel",
        "images",
        "max_context",
        "prefill_chunk",
        "token_stride",
        "self_tests",
        "solutions",
        "threshold",
        "pe_rows",
        "pe_cols",
        "vector_lanes",
        "tile_m",
        "tile_n",
        "tile_k",
        "attn_tile_q",
        "attn_tile_kv",
        "quality_loss",
    }
)

# A plain number whose meaning still has a name worth printing.
_NAMED: Final = {"quality_loss": "nats/token"}

_QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([^\s\d].*?)?\s*$")
_ALIASES: Final = {
    "byte": "B",
    "bytes": "B",
    "bits": "bit",
    "sec": "s",
    "mm^2": "mm2",
    "mm²": "mm2",
    "tok/s": "tokens/s",
}


def unit_of(name: str) -> str:
    """Return the unit that ``name`` carries as people write it ("s", "B", "mm2"), or "" for a plain number."""
    leaf = name.rsplit("/", 1)[-1]
    if leaf in _NAMED:
        return _NAMED[leaf]
    if leaf.endswith("_ratio") or leaf.startswith("n_"):
        return ""
    for suffix, (unit, _, _) in SUFFIXES.items():
        if leaf.endswith(suffix):
            return unit
    return ""


def carries_unit(name: str) -> bool:
    """Return whether ``name`` follows the naming law: a known suffix, a count, a fraction or a listed exception."""
    leaf = name.rsplit("/", 1)[-1]
    return (
        leaf.startswith("n_")
        or leaf.endswith(("_ratio", "_keep", "_exponent"))
        or leaf in DIMENSIONLESS
        or unit_of(leaf) != ""
    )


def parse(text: str | float, name: str) -> float:
    """Return a quantity in the unit that ``name`` carries.

    Args:
        text: a number (taken as it is) or text such as ``"4 GiB"``, ``"12ms"``, ``"40"``.
        name: the field it is for, which decides the accepted unit.

    Raises:
        UserError: not a finite number, or a unit of another dimension; the message names the accepted spelling.
    """
    if isinstance(text, bool):
        raise UserError(f"{name} takes a number, not {text}")
    if isinstance(text, int | float):
        if not math.isfinite(text):
            raise UserError(f"{name}={text} is not finite")
        return float(text)
    unit = unit_of(name)
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UserError(f"{name}={text!r} is not a quantity", f"write a number{_example(unit)}")
    given = (match[2] or "").strip()
    number = float(Decimal(match[1]) * (_factor(given, name, text) if given else 1))
    if not math.isfinite(number):
        raise UserError(f"{name}={text!r} is not finite")
    return number


def _factor(given: str, name: str, text: str) -> Decimal:
    unit = unit_of(name)
    if name.endswith("_ratio") and given == "%":
        return Decimal("0.01")
    head, slash, tail = given.partition("/")
    given = _ALIASES.get(given, _ALIASES.get(head, head) + slash + tail)
    if given == unit:
        return Decimal(1)
    for suffix, (spelled, binary, si) in SUFFIXES.items():
        if name.rsplit("/", 1)[-1].endswith(suffix):
            prefixes = (BINARY if binary else {}) | (SI if si else {})
            for prefix, factor in prefixes.items():
                if prefix and given == prefix + spelled:
                    return factor
            if binary and given == "K" + spelled:
                raise UserError(
                    f"{name}={text!r}: 'K{spelled}' is read as 1000 and as 1024",
                    f"write 'k{spelled}' for 1000 or 'Ki{spelled}' for 1024",
                )
            break
    raise UserError(f"{name}={text!r} is not in {unit or 'a plain number'}", f"write a number{_example(unit)}")


def _example(unit: str) -> str:
    if not unit:
        return " without a unit"
    prefixed = {"B": "4 MiB", "B/s": "100 GB/s", "s": "20 ms", "Hz": "1 GHz", "J": "3 mJ"}.get(unit, f"3 {unit}")
    return f", in {unit} when bare, or with its unit, such as '{prefixed}'"


def format_quantity(value: float, name: str, digits: int = 4) -> str:
    """Return ``value`` of the field ``name`` for people: prefix chosen, unit attached ("3.2 GHz", "256 KiB")."""
    unit = unit_of(name)
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    prefix, factor = _prefix(abs(value), unit, digits)
    return f"{_figure(value / factor, digits)} {prefix}{unit}".rstrip()


def format_interval(low: float, high: float, name: str, digits: int = 2) -> str:
    """Return the interval from ``low`` to ``high`` of the field ``name`` for people, in one unit ("4.1 .. 26 J")."""
    unit = unit_of(name)
    finite = [abs(end) for end in (low, high) if math.isfinite(end)]
    if not finite:
        return f"{format_quantity(low, name)} .. {format_quantity(high, name)}"
    prefix, factor = _prefix(max(finite), unit, digits)
    return f"{_figure(low / factor, digits)} .. {_figure(high / factor, digits)} {prefix}{unit}".rstrip()


def _figure(number: float, digits: int) -> str:
    """Return a number to ``digits`` significant digits, in full up to a million."""
    shown = f"{number:.{digits}g}"
    return f"{number:.0f}" if "e+" in shown and abs(number) < 1e6 else shown


def _prefix(magnitude: float, unit: str, digits: int) -> tuple[str, float]:
    """Return the largest prefix that leaves a number of 1 or more; bytes take binary ones."""
    takes_si = any(spelled == unit and si for spelled, _, si in SUFFIXES.values())
    known = {"": Decimal(1)} | (BINARY if unit == "B" else SI if takes_si and unit != "bit" else {})
    rounded = magnitude * (1 + 0.5 * 10.0**-digits)  # 0.99999 is shown as 1
    fits = [(float(factor), prefix) for prefix, factor in known.items() if rounded >= factor and prefix != "µ"]
    if not magnitude:
        return "", 1.0
    factor, prefix = max(fits, default=min((float(factor), prefix) for prefix, factor in known.items()))
    return prefix, factor
