"""Kernel constants as data: which a device has, which it borrows, how far they can be trusted.

The shipped file ``data/device_constants.toml``, and files that ``dse calibrate --out`` writes, hold for each (device,
framework, op, variant, precision) the constants of :mod:`costmodels.kernels` with the number of rows, the held-out
error and the band of measured / predicted on held-out rows; and for each op the band of constants that were borrowed.

A device asks in this order, and says which it got:

1. its own constants ("calibrated"); vLLM before TensorRT-LLM where both were measured;
2. those of its relatives ("transferred"): measured devices of the same vendor and architecture if there are any, else
   of the same vendor, else all. Their constants are averaged in logarithms, weighted by 1 / d^2, where d^2 = 0.1 +
   (years between their architectures / 6)^2, + 1 if one is a datacenter training part and the other not (their power
   and memory differ in kind). Peaks and bandwidths do not enter, so that a faster device never gets worse constants.
   The band is that of leaving each measured device out in turn; another vendor or class of device (edge, client)
   doubles it either way. A precision that is not measured on the device or its relatives is carried over as the
   lender's change from 16 bits, where both have been measured there, with the device's own launch (over 18 pairs of
   measured devices this is off by 26 % for products, against 32 % if launches are changed too);
3. where nobody has the precision, that of the next one in :data:`FALLBACKS`, by the same two steps.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Final, NamedTuple

import numpy as np

from costmodels import collectives, kernels
from costmodels.measurements import Key
from dse.canonical import content_hash
from dse.errors import HardwareError
from dse.hardware import Device, read_hardware

FRAMEWORKS: Final = ("", "vllm", "trtllm")  # in this order; others follow by name
FALLBACKS: Final[Mapping[str, tuple[str, ...]]] = {
    "int4_wo": ("int8_wo", "bfloat16"),
    "int8_wo": ("int4_wo", "bfloat16"),
    "sq": ("fp8", "bfloat16"),
    "fp8": ("sq", "bfloat16"),
    "fp8_block": ("fp8", "bfloat16"),
    "nvfp4": ("fp8", "sq", "bfloat16"),
    "bfloat16/kv:fp8": ("bfloat16/kv:bfloat16",),
    "fp8/kv:fp8": ("bfloat16/kv:fp8", "bfloat16/kv:bfloat16"),
}
OTHER_KIND: Final = 2.0  # factor on a transferred band for another vendor or class of device
"""Recalled, not read in a source: an order of magnitude, and the widest band that is given."""

ARCHITECTURE_YEARS: Final = {"Ampere": 2020, "Hopper": 2022, "Ada": 2022, "Blackwell": 2024}
"""Year in which the vendor announced it; recalled."""

CALIBRATED: Final = "calibrated"
TRANSFERRED: Final = "transferred"


@dataclass(frozen=True)
class Entry:
    """Constants of one key, as a file has them.

    Attributes:
        key: what they are of.
        constants: by the op's fields.
        n_rows: rows they were fitted on.
        held_out_ratio: mean absolute relative error on rows that were not fitted.
        band: (low, high) of measured over predicted on such rows.
    """

    key: Key
    constants: np.ndarray
    n_rows: int
    held_out_ratio: float
    band: tuple[float, float]


class Found(NamedTuple):
    """Constants for a use, with the band of the result, the kind of evidence, and the keys they come from."""

    constants: np.ndarray
    band: tuple[float, float]
    basis: str
    origin: tuple[Key, ...]


@dataclass(frozen=True)
class Book:
    """All constants of a file.

    Attributes:
        entries: by key.
        transfer: (op, precision), or (op, "") for any -> band of borrowed constants.
        source: where the measurements come from.
        devices: the devices that entries name, for the rules of kinship.
    """

    entries: Mapping[Key, Entry]
    transfer: Mapping[tuple[str, str], tuple[float, float]]
    source: Mapping[str, Any]
    devices: Mapping[str, Device] = field(repr=False)

    def find(self, device: Device, op: str, precision: str, variant: str = "") -> Found:
        """Return the constants that a device uses.

        Raises:
            HardwareError: the file has none for this kind of kernel.
        """
        for name in (precision, *FALLBACKS.get(precision, ())):
            own = self._of(device.name, op, variant, name)
            if own is not None:
                is_exact = (own.key.precision, own.key.variant) == (precision, variant)
                band = own.band if is_exact else self._wider(own.band, op, precision)
                return Found(own.constants, band, CALIBRATED if is_exact else TRANSFERRED, (own.key,))
            borrowed = self._borrow(device, op, variant, name)
            if borrowed is not None:
                return borrowed
        raise HardwareError(
            f"there are no kernel constants for {op} {precision}", "calibrate on a table that has this kind of kernel"
        )

    def is_measured(self, device: Device) -> bool:
        """Return whether a device has constants of its own."""
        return any(key.device == device.name for key in self.entries)

    def relatives(self, device: Device) -> tuple[list[str], bool]:
        """Return the measured devices whose constants a device borrows, and whether they are of its own kind."""
        names = sorted({key.device for key in self.entries} - {device.name})
        near = [n for n in names if self.devices[n].vendor == device.vendor]
        same = [n for n in near if self.devices[n].architecture == device.architecture]
        chosen = same or near or names
        return chosen, bool(near) and all(_is_server(self.devices[n]) == _is_server(device) for n in chosen)

    def _of(self, device: str, op: str, variant: str, precision: str) -> Entry | None:
        known = [e for k, e in self.entries.items() if (k.device, k.op, k.precision) == (device, op, precision)]
        exact = [e for e in known if e.key.variant == variant]
        return min(exact or known, key=lambda e: (_rank(e.key.framework), e.key), default=None)

    def _borrow(self, device: Device, op: str, variant: str, precision: str) -> Found | None:
        names, is_kin = self.relatives(device)
        found = [e for e in (self._of(n, op, variant, precision) for n in names) if e is not None]
        if not found:
            others = sorted({k.device for k in self.entries} - {device.name})
            found = [e for e in (self._of(n, op, variant, precision) for n in others) if e is not None]
            is_kin = is_kin and all(self.devices[e.key.device].vendor == device.vendor for e in found)
        if not found:
            return None
        plain = "bfloat16/kv:bfloat16" if "/" in precision else "bfloat16"
        own = self._plain(device, op, variant, plain) if precision != plain else None
        lent = [(self.devices[e.key.device], self._carried_over(e, own, plain)) for e in found]
        constants = average(device, lent)
        low, high = self._transfer_band(op, precision)
        if not is_kin:
            low, high = low / OTHER_KIND, high * OTHER_KIND
        return Found(constants, (low, high), TRANSFERRED, tuple(e.key for e in found))

    def _plain(self, device: Device, op: str, variant: str, plain: str) -> np.ndarray | None:
        """Return a measured device's constants at 16 bits, None for a device without."""
        entry = self._of(device.name, op, variant, plain)
        if entry is None:
            names, _ = self.relatives(device)
            entry = next(
                (e for e in (self._of(n, op, variant, plain) for n in names[:1]) if len(names) == 1 and e), None
            )
        return None if entry is None else entry.constants

    def _carried_over(self, lender: Entry, own: np.ndarray | None, plain: str) -> np.ndarray:
        """Return lent constants as a change from the lender's 16-bit ones, where both sides have those."""
        base = self.entries.get(lender.key._replace(precision=plain))
        if own is None or base is None:
            return lender.constants
        change = np.where(base.constants > 0, lender.constants / np.where(base.constants > 0, base.constants, 1.0), 0.0)
        changed = np.where((change > 0) & (own > 0), own * change, lender.constants)
        changed[kernels.LAUNCH] = own[kernels.LAUNCH]
        for at in (kernels.COMPUTE, kernels.BANDWIDTH):
            changed[at] = min(changed[at], 1.0)
        for at in (kernels.GAIN, kernels.MISALIGNED):
            changed[at] = max(changed[at], 1.0)
        return changed

    def _transfer_band(self, op: str, precision: str) -> tuple[float, float]:
        return self.transfer.get((op, precision), self.transfer.get((op, ""), (0.5, 2.0)))

    def _wider(self, band: tuple[float, float], op: str, precision: str) -> tuple[float, float]:
        low, high = self._transfer_band(op, precision)
        return min(low, band[0]), max(high, band[1])


def average(device: Device, known: Sequence[tuple[Device, np.ndarray]]) -> np.ndarray:
    """Return the constants that a device borrows from measured ones (the rule is in the module's docstring)."""
    weights = np.array([1.0 / _distance(device, other) for other, _ in known])
    logs = np.log(np.maximum([constants for _, constants in known], 1e-30))
    mean = np.exp((weights[:, None] * logs).sum(axis=0) / weights.sum())
    return np.where(mean <= 1e-15, 0.0, mean)


def _distance(a: Device, b: Device) -> float:
    years = [ARCHITECTURE_YEARS.get(d.architecture) for d in (a, b)]
    apart = 4.0 if None in years else abs(float(years[0] or 0) - float(years[1] or 0))
    return 0.1 + (apart / 6.0) ** 2 + (1.0 if (a.kind == "datacenter") != (b.kind == "datacenter") else 0.0)


def _is_server(device: Device) -> bool:
    return device.kind not in ("edge", "client SoC")


def _rank(framework: str) -> tuple[int, str]:
    known = {name: i for i, name in enumerate(FRAMEWORKS)}
    return known.get(framework, len(known)), framework


# ---------------------------------------------------------------------------------------------- files


def fields_of(op: str) -> tuple[str, ...]:
    """Return the names of an op's constants."""
    return collectives.FIELDS if op == "allreduce" else kernels.FIELDS


@cache
def shipped() -> Book:
    """Return the constants that come with the package."""
    text = (resources.files("costmodels") / "data" / "device_constants.toml").read_text(encoding="utf-8")
    return read_book(tomllib.loads(text), "device_constants.toml")


def book_for(device: Device) -> Book:
    """Return the shipped constants, with those of the device's own calibration put first."""
    if device.calibration is None:
        return shipped()
    own = read_book(device.calibration, f"calibration of {device.name}", [device])
    kept = {key: entry for key, entry in shipped().entries.items() if key.device != device.name}
    return Book(kept | dict(own.entries), {**shipped().transfer}, own.source, {**shipped().devices, **own.devices})


def read_book(document: Mapping[str, Any], where: str, devices: Iterable[Device] = ()) -> Book:
    """Return the constants of a file.

    Args:
        document: the parsed TOML.
        where: its name, for messages.
        devices: those that are in no catalogue.

    Raises:
        HardwareError: not such a file; names the entry and the field.
    """
    entries: dict[Key, Entry] = {}
    known = {d.name: d for d in devices}
    for i, table in enumerate(document.get("kernel", ())):
        try:
            key = Key(*(str(table[name]) for name in Key._fields))
            constants = np.array([_number(table, name) for name in fields_of(key.op)])
            band = (_number(table, "low_ratio"), _number(table, "high_ratio"))
            entries[key] = Entry(key, constants, int(table["n_rows"]), _number(table, "held_out_ratio"), band)
        except (KeyError, TypeError, ValueError) as error:
            raise HardwareError(
                f"{where}: entry {i + 1} of [[kernel]]: {error} is missing or no number",
                "write the file anew with 'dse calibrate TABLE.csv --out FILE'",
            ) from None
        if key.device not in known:
            known[key.device] = _catalogue_device(key.device, where)
    if not entries:
        raise HardwareError(f"{where} has no [[kernel]]", "write it with 'dse calibrate TABLE.csv --out FILE'")
    transfer = {
        (str(t["op"]), str(t["precision"])): (_number(t, "low_ratio"), _number(t, "high_ratio"))
        for t in document.get("transfer", ())
    }
    return Book(entries, transfer, dict(document.get("source", {})), known)


def _catalogue_device(name: str, where: str) -> Device:
    found = read_hardware(name)
    if not isinstance(found, Device):
        raise HardwareError(f"{where}: {name} is no device")
    return found


def _number(table: Mapping[str, Any], name: str) -> float:
    value = table[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(name)
    return float(value)


def book_hash(book: Book) -> str:
    """Return a hash of all constants, part of an evaluator's fingerprint."""
    numbers = {"/".join(k): [*e.constants.tolist(), *e.band] for k, e in sorted(book.entries.items())}
    return content_hash(
        {"kernels": numbers, "transfer": {"/".join(k): list(v) for k, v in sorted(book.transfer.items())}}
    )


def as_toml(
    entries: Iterable[Entry], transfer: Mapping[tuple[str, str], tuple[float, float]], source: Mapping[str, Any]
) -> str:
    """Return a file of constants as text."""
    lines = ["# Kernel constants, as `dse calibrate` fits them; what they mean: docs/devices.md.", "", "[source]"]
    lines += [f"{name} = {_toml(value)}" for name, value in source.items()]
    for (op, precision), (low, high) in sorted(transfer.items()):
        lines += [
            "",
            "[[transfer]]",
            f'op = "{op}"',
            f'precision = "{precision}"',
            f"low_ratio = {low:.4g}",
            f"high_ratio = {high:.4g}",
        ]
    for entry in sorted(entries, key=lambda e: e.key):
        lines += ["", "[[kernel]]", *(f"{name} = {_toml(value)}" for name, value in entry.key._asdict().items())]
        numbers = {"held_out_ratio": entry.held_out_ratio, "low_ratio": entry.band[0], "high_ratio": entry.band[1]}
        numbers |= dict(zip(fields_of(entry.key.op), entry.constants.tolist(), strict=True))
        lines += [f"n_rows = {entry.n_rows}", *(f"{name} = {value:.4g}" for name, value in numbers.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in value) + '"'
    return str(value)
