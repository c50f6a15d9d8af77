"""Hardware descriptions: devices with datasheet numbers, and accelerators that are still being designed.

Both are TOML files (``dse/catalog/hardware``, or the user's own), and every number in them names its source:

- a :class:`Device` exists: peaks per precision, memory, power, price. What its datasheet does not say is ``None``,
  never guessed;
- an :class:`Accelerator` is a template: the *reference design* gives every field that a design may change (array,
  cores, on-chip memory, bandwidth, clock, tiles), and *constants* give energy and area per event or unit, each with
  technology node, source and a band. A constant whose source could not be read is marked ``recalled`` and its band
  spans at least a factor 2; the band shows in the results.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final

from dse import technology, units
from dse.canonical import content_hash
from dse.errors import HardwareError, UserError, unknown
from dse.knobs import KNOBS
from dse.params import Value

PRECISIONS: Final = ("fp16", "fp8", "int8", "fp4", "int4")

ACCELERATOR_FIELDS: Final = (
    "pe_rows", "pe_cols", "n_cores", "dataflow", "sram_bytes", "dram_bytes_per_s", "freq_hz", "vector_lanes",
    "mac_array", "tile_m", "tile_n", "tile_k", "loop_order",
)  # fmt: skip

# What templates may leave out: then the knob's own default holds.
OPTIONAL_FIELDS: Final = ("attn_tile_q", "attn_tile_kv")

# How a constant follows its template to another node: by the rule for logic, not at all because the rule does not cover
# it, or left alone because it belongs to no node (ratios, sizes) or to another chip (DRAM).
LOGIC_ENERGY: Final = ("mac_j_per_op", "vector_j_per_op")
LOGIC_AREA: Final = ("pe_mm2_per_unit", "vector_lane_mm2_per_unit")
AT_THEIR_NODE: Final = (
    "sram_read_j_per_bit", "sram_write_j_per_bit", "sram_mm2_per_byte", "leakage_w_per_mm2", "phy_mm2_per_unit",
)  # fmt: skip

CONSTANTS: Final = (
    "mac_j_per_op", "mac_scalable_energy_ratio", "vector_j_per_op", "sram_read_j_per_bit", "sram_write_j_per_bit",
    "sram_anchor_bytes", "sram_energy_exponent", "dram_j_per_bit", "leakage_w_per_mm2",
    "pe_mm2_per_unit", "pe_scalable_area_ratio", "vector_lane_mm2_per_unit", "sram_mm2_per_byte", "phy_mm2_per_unit",
)  # fmt: skip


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


@dataclass(frozen=True, slots=True)
class Constant:
    """One energy or area constant: value and band in SI units, at a technology node and supply voltage, its source.

    A constant of logic that was read at another node than its template's stands here as scaled to it.
    """

    value: float
    low: float
    high: float
    node_nm: float
    voltage_v: float
    source: str
    recalled: bool


@dataclass(frozen=True)
class Accelerator:
    """An accelerator template.

    Attributes:
        name: catalogue name.
        title: name as people write it.
        reference: value of every field that a design may change.
        constants: energy and area constants by name.
        memory_bytes: DRAM capacity.
        node_nm, voltage_v, process: technology that it is built in, "hp" or "lp".
        document: the TOML it was read from.
    """

    name: str
    title: str
    reference: Mapping[str, Value]
    constants: Mapping[str, Constant]
    memory_bytes: int
    node_nm: float
    voltage_v: float
    process: str
    document: Mapping[str, Any] = field(repr=False)

    @cached_property
    def content_hash(self) -> str:
        """Hash of everything the file says."""
        return content_hash(self.document)

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON types."""
        return dict(self.document)


Hardware = Device | Accelerator


def hardware_names() -> list[str]:
    """Return the names of the catalogue, sorted."""
    return sorted(_catalogue_files())


def read_hardware(source: str | Path | Mapping[str, Any]) -> Hardware:
    """Return a hardware description.

    Args:
        source: a catalogue name, the path of a TOML file, or the parsed document. A file may start from a catalogue
            entry (``like = "h200-sxm-141gb"``) and name the kernel constants of its own (``calibration = "my.toml"``).

    Raises:
        HardwareError: the file cannot be read, or a field is missing, unknown or malformed; named with its file.
        NameUnknown: no such name in the catalogue.
    """
    if isinstance(source, Mapping):
        return _read_document(source, str(source.get("name", "hardware document")))
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HardwareError(f"hardware file {str(path)!r} cannot be read: {error}") from None
        return _read_document(_with_files(_parse(text, str(path)), path), str(path))
    name = str(source).lower()
    files = _catalogue_files()
    if name not in files:
        raise unknown("hardware", str(source), files, "'dse hardware' lists all; a path to a TOML file works too")
    return _read_catalogue(name)


@cache
def _read_catalogue(name: str) -> Hardware:
    return _read_document(_parse(_catalogue_files()[name].read_text(encoding="utf-8"), name), name)


@cache
def _catalogue_files() -> dict[str, Any]:
    folder = resources.files("dse") / "catalog" / "hardware"
    return {f.name.removesuffix(".toml"): f for f in folder.iterdir() if f.name.endswith(".toml")}


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise HardwareError(f"{where} is not TOML: {error}") from None


def _with_files(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a user's document with what it points to put in: a catalogue entry that it starts from, a calibration.

    A stored study must not change when such a file does.
    """
    like = document.pop("like", None)
    if like is not None:
        base = read_hardware(str(like)).to_json()
        for table in ("peak_ops_per_s", "source"):
            document[table] = {**base.get(table, {}), **document.get(table, {})}
        base.pop("aliases", None)
        document = base | document
    calibration = document.get("calibration")
    if isinstance(calibration, str):
        try:
            text = (path.parent / calibration).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise HardwareError(
                f"{path}: its calibration {calibration!r} cannot be read: {error}",
                "write it with 'dse calibrate TABLE.csv --out FILE'; paths are relative to the hardware file",
            ) from None
        document["calibration"] = _parse(text, calibration)
    return document


def _read_document(document: Mapping[str, Any], where: str) -> Hardware:
    kind = document.get("type")
    if kind == "device":
        return _read_device(document, where)
    if kind == "accelerator":
        return _read_accelerator(document, where)
    raise HardwareError(f"{where}: type={kind!r} is neither 'device' nor 'accelerator'")


_DEVICE_NUMBERS: Final = {  # field -> required
    "memory_bytes": True, "memory_bytes_per_s": True, "cache_bytes": False, "power_w": False,
    "link_bytes_per_s": False, "list_price_usd": False, "n_cores": False, "launch_ratio": False,
}  # fmt: skip


def _read_device(document: Mapping[str, Any], where: str) -> Device:
    _check_keys(document, {"type", "name", "title", "kind", "vendor", "architecture", "aliases", "note", "calibration",
                           "peak_ops_per_s", "price_usd_per_hour", "source"} | set(_DEVICE_NUMBERS), where)  # fmt: skip
    numbers = {name: _number(document, name, where, required) for name, required in _DEVICE_NUMBERS.items()}
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
        low, high = (_positive(end, "price_usd_per_hour", where) for end in price)
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
    sources = _sources(document, where)
    given = [n for n in _DEVICE_NUMBERS if n in document] + [f"peak_ops_per_s.{p}" for p in peaks]
    _check_sources(given + ["price_usd_per_hour"] * (price is not None), sources, where)
    return Device(
        name=_text(document, "name", where),
        title=_text(document, "title", where),
        kind=_text(document, "kind", where),
        vendor=str(document.get("vendor", "")),
        architecture=str(document.get("architecture", "")),
        aliases=tuple(aliases),
        n_cores=None if numbers["n_cores"] is None else int(numbers["n_cores"]),
        launch_ratio=1.0 if numbers["launch_ratio"] is None else numbers["launch_ratio"],
        peak_ops_per_s={p: _positive(peaks[p], f"peak_ops_per_s.{p}", where) for p in PRECISIONS if p in peaks},
        memory_bytes=int(numbers["memory_bytes"] or 0),
        memory_bytes_per_s=float(numbers["memory_bytes_per_s"] or 0),
        cache_bytes=None if numbers["cache_bytes"] is None else int(numbers["cache_bytes"]),
        power_w=numbers["power_w"],
        link_bytes_per_s=numbers["link_bytes_per_s"],
        price_usd_per_hour=None if price is None else (float(price[0]), float(price[1])),
        list_price_usd=numbers["list_price_usd"],
        calibration=calibration,
        sources=sources,
        document=document,
    )


def _read_accelerator(document: Mapping[str, Any], where: str) -> Accelerator:
    _check_keys(document, {"type", "name", "title", "note", "memory_bytes", "node_nm", "voltage_v", "process",
                           "reference", "constants", "source"}, where)  # fmt: skip
    reference = document.get("reference", {})
    _check_keys(reference, {*ACCELERATOR_FIELDS, *OPTIONAL_FIELDS}, f"{where} [reference]")
    missing = [f for f in ACCELERATOR_FIELDS if f not in reference]
    if missing:
        raise HardwareError(f"{where}: [reference] lacks {', '.join(missing)}")
    constants = document.get("constants", {})
    _check_keys(constants, set(CONSTANTS), f"{where} [constants]")
    missing = [c for c in CONSTANTS if c not in constants]
    if missing:
        raise HardwareError(f"{where}: [constants] lacks {', '.join(missing)}")
    _check_sources(["memory_bytes", "reference", "node_nm", "voltage_v"], _sources(document, where), where)
    node_nm, voltage_v = (_positive(document.get(key), key, where) for key in ("node_nm", "voltage_v"))
    process = _process(document, where)
    found = {}
    for name in CONSTANTS:
        place = f"{where} [constants.{name}]"
        read = _constant(constants[name], place)
        found[name] = _at_node(
            name, read, _process(constants[name], place, process), (node_nm, voltage_v, process), place
        )
    return Accelerator(
        name=_text(document, "name", where),
        title=_text(document, "title", where),
        reference={
            f: KNOBS[f].read(reference.get(f, KNOBS[f].default), f"{where}: {f}")
            for f in (*ACCELERATOR_FIELDS, *OPTIONAL_FIELDS)
        },
        constants=found,
        memory_bytes=int(_number(document, "memory_bytes", where, True) or 0),
        node_nm=node_nm,
        voltage_v=voltage_v,
        process=process,
        document=document,
    )


def _constant(table: Mapping[str, Any], where: str) -> Constant:
    _check_keys(table, {"value", "low", "high", "node_nm", "voltage_v", "process", "source", "recalled"}, where)
    value, low, high = (_positive(table.get(key), key, where) for key in ("value", "low", "high"))
    if not low <= value <= high:
        raise HardwareError(f"{where}: low <= value <= high does not hold for {low}, {value}, {high}")
    recalled = bool(table.get("recalled", False))
    if recalled and high < 2 * low:
        raise HardwareError(f"{where}: a recalled constant carries a band of a factor 2 or more, not {high / low:.3g}")
    return Constant(
        value=value,
        low=low,
        high=high,
        node_nm=_positive(table.get("node_nm"), "node_nm", where),
        voltage_v=_positive(table.get("voltage_v"), "voltage_v", where),
        source=_text(table, "source", where),
        recalled=recalled,
    )


def _process(table: Mapping[str, Any], where: str, default: str = "hp") -> str:
    process = table.get("process", default)
    if process not in technology.PROCESSES:
        raise HardwareError(f"{where}: process={process!r} is neither of {', '.join(technology.PROCESSES)}")
    return str(process)


def _at_node(name: str, read: Constant, process: str, built: tuple[float, float, str], where: str) -> Constant:
    """Return a constant as it is at the template's node, voltage and process; its band keeps its ratios."""
    node_nm, voltage_v, target = built
    is_same_node = (read.node_nm, process) == (node_nm, target)
    if name in LOGIC_ENERGY and not (is_same_node and read.voltage_v == voltage_v):
        factor = technology.energy_factor(node_nm, voltage_v, target, where)
        factor /= technology.energy_factor(read.node_nm, read.voltage_v, process, where)
    elif name in LOGIC_AREA and read.node_nm != node_nm:
        factor = technology.area_factor(node_nm, where) / technology.area_factor(read.node_nm, where)
    elif name in AT_THEIR_NODE and read.node_nm != node_nm:
        raise HardwareError(
            f"{where}: a constant of {read.node_nm:g} nm in a template of {node_nm:g} nm",
            f"the scaling rule covers logic only: give {name} at {node_nm:g} nm, with a band for what you assume",
        )
    else:
        return read
    given = f"{read.source}; scaled from {read.node_nm:g} nm and {read.voltage_v:g} V after Stillmaker and Baas (2017)"
    low, value, high = (factor * end for end in (read.low, read.value, read.high))
    return Constant(value, low, high, node_nm, voltage_v, given, read.recalled)


def _check_keys(table: Any, known: set[str], where: str) -> None:
    if not isinstance(table, Mapping):
        raise HardwareError(f"{where}: {table!r} is no table", "write its fields under a heading of their own")
    for key in table:
        if key not in known:
            raise unknown(f"field in {where}", key, sorted(known))


def _sources(document: Mapping[str, Any], where: str) -> dict[str, str]:
    sources = document.get("source", {})
    if not isinstance(sources, Mapping):
        raise HardwareError(f"{where}: source={sources!r} is no table", "write [source] and a line for each field")
    return dict(sources)


def _check_sources(given: list[str], sources: Mapping[str, str], where: str) -> None:
    for name in given:
        source = sources.get(name, sources.get("*"))
        if not isinstance(source, str) or not source:
            raise HardwareError(
                f"{where}: {name} has no source", f"add {name!r}, or '*' for all, to its [source] table"
            )


def _text(document: Mapping[str, Any], key: str, where: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or not value:
        raise HardwareError(f"{where}: {key} is missing or empty")
    return value


def _number(document: Mapping[str, Any], key: str, where: str, required: bool) -> float | None:
    if key not in document:
        if required:
            raise HardwareError(f"{where}: {key} is missing")
        return None
    value = document[key]
    if not isinstance(value, str):
        return _positive(value, key, where)
    try:
        return _positive(units.parse(value, key), key, where)
    except HardwareError:
        raise
    except UserError as error:
        raise HardwareError(f"{where}: {error.message}", error.hint) from None


def _positive(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise HardwareError(f"{where}: {key}={value!r} is not a positive number")
    return float(value)
