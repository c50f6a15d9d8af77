"""Checks of an installation: what ``dse doctor`` prints."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from dse.errors import DseError

OUR_PACKAGES: Final = ("dse", "costmodels", "agents", "dashboard")
REQUIRED: Final = ("numpy", "scipy", "numba", "click", "rich", "sqlalchemy", "optuna", "pandas")
OPTIONAL: Final = {
    "ray": "ray",
    "streamlit": "dashboard",
    "plotly": "dashboard",
    "openai": "llm",
    "psycopg": "postgres",
    "torch": "torch",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at, whether it is fine, what was found, what to do if not."""

    name: str
    is_ok: bool
    detail: str
    remedy: str = ""


def examine(database: str) -> list[Check]:
    """Return all checks, in the order they are worth reading."""
    return [_python(), _packages(), *_dependencies(), _catalogues(), _database(database)]


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} on {platform.system()}, {os.cpu_count()} cores"
    return Check("Python", ok, detail, "install Python 3.11 or newer")


def misplaced_packages() -> list[str]:
    """Return which of our packages do not resolve beside ``dse``, with the place they resolve to instead.

    ``agents`` and ``dashboard`` are import names that other distributions use too (openai-agents, for one); installed
    together, one overwrites the other without a word.
    """
    home = Path(__file__).resolve().parents[1]
    wrong = []
    for name in OUR_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            wrong.append(f"{name} is not installed")
        elif Path(spec.origin).resolve().parents[1] != home:
            wrong.append(f"{name} is {spec.origin}")
    return wrong


def _packages() -> Check:
    wrong = misplaced_packages()
    home = Path(__file__).resolve().parents[1]
    detail = "; ".join(wrong) or f"{', '.join(OUR_PACKAGES)} all in {home}"
    remedy = "another distribution (openai-agents?) has taken the name: uninstall it, then reinstall mfm-dse"
    return Check("our packages", not wrong, detail, remedy)


def _dependencies() -> list[Check]:
    found = []
    for name in REQUIRED:
        try:
            found.append(Check(name, True, version(name)))
        except PackageNotFoundError:
            found.append(Check(name, False, "not installed", "pip install mfm-dse"))
    for name, extra in OPTIONAL.items():
        try:
            found.append(Check(name, True, version(name)))
        except PackageNotFoundError:
            found.append(Check(name, True, f"not installed (optional: pip install 'mfm-dse[{extra}]')"))
    return found


def _catalogues() -> Check:
    from dse import catalogue

    try:
        names = {kind: list(catalogue.listing(kind)) for kind in catalogue.GROUPS}
        broken = [
            f"{kind} {entry.name}: {entry.target[1:]}"
            for kind in catalogue.GROUPS
            for entry in catalogue.listing(kind).values()
            if entry.target.startswith("!")
        ]
    except DseError as error:
        return Check("plug-ins", False, str(error), "")
    detail = "; ".join(broken) or "; ".join(f"{kind}s {', '.join(found)}" for kind, found in names.items())
    return Check("plug-ins", not broken, detail, "update or uninstall the distribution that announces it")


def _database(url: str) -> Check:
    from dse.store import open_store

    path = url.removeprefix("sqlite:///")
    if "://" not in path and not Path(path).exists():
        return Check("database", True, f"{url} does not exist yet; the first run creates it")
    try:
        store = open_store(url, read_only=True)
        studies = len(store.studies())
        store.close()
    except DseError as error:
        return Check("database", False, str(error).splitlines()[0], getattr(error, "hint", ""))
    return Check("database", True, f"{store.shown}, {studies} studies")
