"""The hardware catalogue: descriptions by name or from files.

Descriptions are TOML files (``dse/catalog/hardware``, or the user's own) of two types: a *device* that exists
(:mod:`dse.devices`) or a template of an *accelerator* that is still being designed (:mod:`dse.accelerators`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from dse.accelerators import ACCELERATOR_FIELDS, CONSTANTS, Accelerator, Constant, read_accelerator
from dse.devices import PRECISIONS, Device, read_device
from dse.errors import HardwareError, unknown

__all__ = [
    "ACCELERATOR_FIELDS", "CONSTANTS", "PRECISIONS", "Accelerator", "Constant", "Device", "Hardware",
    "hardware_names", "read_hardware",
]  # fmt: skip

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
        return read_device(document, where)
    if kind == "accelerator":
        return read_accelerator(document, where)
    raise HardwareError(f"{where}: type={kind!r} is neither 'device' nor 'accelerator'")
