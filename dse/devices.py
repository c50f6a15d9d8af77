"""Devices that exist: peaks per precision, memory, links, power and price, as their datasheets state them.

Every number names its source. What a datasheet does not say is ``None``, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from dse.canonical import content_hash
from dse.descriptions import check_keys, check_sources, positive, read_number, read_sources, read_text
from dse.errors import HardwareError, unknown

PRECISIONS: Final = ("fp16", "fp8", "int8", "fp4", "int4")


@dataclass(frozen=True, slots=True)
class Device:
    """A device that exists, by its datasheet.

    Attributes:
        name: catalogue name.
        title: name as people write it.
        kind: "datacenter", "edge", ...
        vendor, architecture: who makes it and its generation, "" if unknown; what decides which device is a relative.
        aliases: other names that tables of measurements use for it.
        n_cores: independent processors that blocks of a kernel are spread over (streaming multiprocessors), None if
            unknown.
        launch_ratio: duration of a kernel launch relative to the measured devices (a slower host), 1 if not given.
        peak_ops_per_s: dense peak by precision (multiply and add counted as two), those that are known.
        memory_bytes: capacity of its main memory that a model may use.
        memory_bytes_per_s: bandwidth of that memory.
        cache_bytes: last-level on-chip memory, None if unknown.
        power_w: board power limit, None if unknown.
        link_bytes_per_s: to its neighbours, per direction, None if unknown.
        n_per_node: devices that these links join, None if unknown.
        node_link_bytes_per_s: to devices of other nodes, per device and direction, None if unknown.
        price_usd_per_hour: (low, high) of rental offers, None if unknown.
        list_price_usd: None if unknown.
        calibration: kernel constants measured on this very device, as ``dse calibrate --out`` writes them; None for
            those that ship.
        sources: field -> where its value comes from, "*" for those not named; what starts with "recalled" was not
            read in any source.
        document: the TOML it was read from.
    """

    name: str
    title: str
    kind: str
    vendor: str
    architecture: str
    aliases: tuple[str, ...]
    n_cores: int | None
    launch_ratio: float
    peak_ops_per_s: Mapping[str, float]
    memory_bytes: int
    memory_bytes_per_s: float
    cache_bytes: int | None
    power_w: float | None
    link_bytes_per_s: float | None
    n_per_node: int | None
    node_link_bytes_per_s: float | None
    price_usd_per_hour: tuple[float, float] | None
    list_price_usd: float | None
    calibration: Mapping[str, Any] | None
    sources: Mapping[str, str]
    document: Mapping[str, Any] = field(repr=False)

    @property
    def content_hash(self) -> str:
        """Hash of everything the file says."""
        return content_hash(self.document)

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON types."""
        return dict(self.document)


_DEVICE_NUMBERS: Final = {  # field -> required
    "memory_bytes": True, "memory_bytes_per_s": True, "cache_bytes": False, "power_w": False,
    "link_bytes_per_s": False, "list_price_usd": False, "n_cores": False, "launch_ratio": False,
    "n_per_node": False, "node_link_bytes_per_s": False,
}  # fmt: skip


def read_device(document: Mapping[str, Any], where: str) -> Device:
    """Return the device that a document describes; ``where`` names it in messages.

    Raises:
        HardwareError: a field is missing, unknown, malformed or without a source.
    """
    check_keys(document, {"type", "name", "title", "kind", "vendor", "architecture", "aliases", "note", "calibration",
                           "peak_ops_per_s", "price_usd_per_hour", "source"} | set(_DEVICE_NUMBERS), where)  # fmt: skip
    numbers = {name: read_number(document, name, where, required) for name, required in _DEVICE_NUMBERS.items()}
    peaks = document.get("peak_ops_per_s", {})
    if not isinstance(peaks, Mapping):
        raise HardwareError(
            f"{where}: peak_ops_per_s={peaks!r} is no table", f"write [peak_ops_per_s] and {PRECISIONS[0]} = ..."
        )
    for precision in peaks:
        if precision not in PRECISIONS:
            raise unknown(f"precision in {where}", precision, PRECISIONS)
    price = document.get("price_usd_per_hour")
    if price is not None:
        if not isinstance(price, list) or len(price) != 2:
            raise HardwareError(f"{where}: price_usd_per_hour={price!r} is not [low, high]")
        low, high = (positive(end, "price_usd_per_hour", where) for end in price)
        if low > high:
            raise HardwareError(f"{where}: price_usd_per_hour={price!r} is not [low, high]")
    calibration = document.get("calibration")
    if calibration is not None and not isinstance(calibration, Mapping):
        raise HardwareError(
            f"{where}: calibration={calibration!r} cannot be read here",
            "a file names its calibration by path; a document without a file carries its content",
        )
    aliases = document.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(a, str) for a in aliases):
        raise HardwareError(f"{where}: aliases={aliases!r} is no list of names")
    sources = read_sources(document, where)
    given = [n for n in _DEVICE_NUMBERS if n in document] + [f"peak_ops_per_s.{p}" for p in peaks]
    check_sources(given + ["price_usd_per_hour"] * (price is not None), sources, where)
    return Device(
        name=read_text(document, "name", where),
        title=read_text(document, "title", where),
        kind=read_text(document, "kind", where),
        vendor=str(document.get("vendor", "")),
        architecture=str(document.get("architecture", "")),
        aliases=tuple(aliases),
        n_cores=None if numbers["n_cores"] is None else int(numbers["n_cores"]),
        launch_ratio=1.0 if numbers["launch_ratio"] is None else numbers["launch_ratio"],
        peak_ops_per_s={p: positive(peaks[p], f"peak_ops_per_s.{p}", where) for p in PRECISIONS if p in peaks},
        memory_bytes=int(numbers["memory_bytes"] or 0),
        memory_bytes_per_s=float(numbers["memory_bytes_per_s"] or 0),
        cache_bytes=None if numbers["cache_bytes"] is None else int(numbers["cache_bytes"]),
        power_w=numbers["power_w"],
        link_bytes_per_s=numbers["link_bytes_per_s"],
        n_per_node=None if numbers["n_per_node"] is None else int(numbers["n_per_node"]),
        node_link_bytes_per_s=numbers["node_link_bytes_per_s"],
        price_usd_per_hour=None if price is None else (float(price[0]), float(price[1])),
        list_price_usd=numbers["list_price_usd"],
        calibration=calibration,
        sources=sources,
        document=document,
    )
