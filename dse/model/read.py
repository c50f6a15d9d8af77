"""Finds and reads model descriptions: the catalogue, config.json files of checkpoints, catalogue-format files.

A catalogue file is TOML: ``[config]`` holds the fields of config.json and ``[preprocessor]`` those of
preprocessor_config.json, so that one reader serves all. TOML has no null; fields that are null in the original are
listed in ``null_fields``. ``[source]`` says where the facts come from, ``[published]`` what others counted.

Adding a model is adding such a file: nothing lists them but the folder.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from dse.errors import ModelError, unknown
from dse.model.model import Model

# Configs of published models are a few kB; this keeps a weight file given by mistake from being parsed.
MAX_FILE_BYTES: Final = 4 * 1024 * 1024

_KEYS: Final = frozenset({"aliases", "null_fields", "source", "published", "config", "preprocessor"})


def model_names() -> list[str]:
    """Return the names of the catalogue, sorted. Reads no file."""
    return sorted(_catalogue())


def read_model(source: str | Path) -> Model:
    """Return a model.

    Args:
        source: a catalogue name or alias, in any case; a config.json, or a folder with one, as Hugging Face
            checkpoints have it (a preprocessor_config.json beside it is read as well); or a TOML file in the format
            of the catalogue.

    Raises:
        NameUnknown: neither a name nor a path.
        ModelError: a file that cannot be read, or a description that cannot be; field and file are named.
    """
    name = str(source)
    found = None if isinstance(source, Path) else _find(name)
    if found is not None:
        return _read_catalogue(found)
    path = Path(source)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".toml":
        return _from_toml(_text(path), path.stem, str(path))
    if path.suffix == ".json" or path.is_file():
        return _read_json(path)
    listing = "'dse models' lists all; the path of a config.json works too"
    raise unknown("model", name, [*_catalogue(), *_aliases()], listing)


@cache
def _catalogue() -> dict[str, Traversable]:
    folder = resources.files("dse") / "catalog" / "models"
    return {f.name.removesuffix(".toml"): f for f in folder.iterdir() if f.name.endswith(".toml")}


def _find(name: str) -> str | None:
    """Return the catalogue name for a name or alias in any case, None if there is none."""
    folded = name.lower()
    if folded in _catalogue():
        return folded
    return {alias.lower(): own for alias, own in _aliases().items()}.get(folded)


@cache
def _aliases() -> dict[str, str]:
    """Return the catalogue name of each alias. Reads all files, so it is asked last."""
    aliases = {}
    for name, file in _catalogue().items():
        for alias in tomllib.loads(file.read_text(encoding="utf-8")).get("aliases", []):
            aliases[alias] = name
    return aliases


@cache
def _read_catalogue(name: str) -> Model:
    return _from_toml(_catalogue()[name].read_text(encoding="utf-8"), name, f"catalogue model {name}")


def published(name: str) -> Mapping[str, int]:
    """Return the counts that others published for a catalogue model, as its file quotes them."""
    table: Mapping[str, int] = tomllib.loads(_catalogue()[name].read_text(encoding="utf-8")).get("published", {})
    return table


def _from_toml(text: str, name: str, file: str) -> Model:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ModelError(f"{file} is not TOML: {error}") from None
    for key in document:
        if key not in _KEYS:
            raise unknown(f"table in {file}", key, _KEYS)
    config = _table(document, "config", file)
    for path in document.get("null_fields", []):
        _set_null(config, path, file)
    return Model.from_config(
        config, name, file=file, processor=document.get("preprocessor", {}), sources=_table(document, "source", file)
    )


def _table(document: Mapping[str, Any], key: str, file: str) -> dict[str, Any]:
    table = document.get(key)
    if not isinstance(table, dict):
        raise ModelError(f"{file}: [{key}] is missing")
    return table


def _set_null(config: dict[str, Any], path: str, file: str) -> None:
    *above, leaf = str(path).split(".")
    table = config
    for key in above:
        table = _table(table, key, f"{file}: null_fields")
    table[leaf] = None


def _read_folder(path: Path) -> Model:
    file = path / "config.json"
    if not file.is_file():
        raise ModelError(f"{str(path)!r} has no config.json", "give the folder of a Hugging Face checkpoint")
    return _read_json(file)


def _read_json(path: Path) -> Model:
    config = _json(path)
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    processor, sources = _beside(path), {"config": str(path)}
    return Model.from_config(config, name or path.stem, file=str(path), processor=processor, sources=sources)


def _beside(path: Path) -> Mapping[str, Any]:
    """Return the image processor's fields from the files that checkpoints keep beside config.json."""
    if path.name != "config.json":
        return {}
    old, new = path.with_name("preprocessor_config.json"), path.with_name("processor_config.json")
    if old.is_file():
        return _json(old)
    inner = _json(new).get("image_processor") if new.is_file() else None
    return inner if isinstance(inner, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ModelError(f"{str(path)!r} is not JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{str(path)!r} cannot be parsed: {error}") from None
    if not isinstance(document, dict):
        raise ModelError(f"{str(path)!r} holds a {type(document).__name__}, not an object with fields")
    return document


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelError(f"{str(path)!r} has {size} bytes, more than a config's {MAX_FILE_BYTES}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{str(path)!r} cannot be read: {error}") from None
