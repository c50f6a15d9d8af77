"""Finds an interpreter that has a tool, and runs a script in it: own process, output to a file, a time limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dse.errors import UserError

DRIVER: Final = "driver.py"
RESULT: Final = "result.json"
_OUTPUT: Final = "output.txt"
_PROBE_LIMIT_S: Final = 60.0
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT", "TEMP")

# Prints the versions of the distributions named in its arguments, null where one is missing.
_PROBE: Final = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Needs:
    """What a tool needs of an interpreter.

    Attributes:
        tool: its distribution.
        version: the version whose input and figures we know.
        beside: distributions that it needs, whether it says so or not -> the first version that breaks it, () for none.
        variable: environment variable that names the interpreter.
        install: requirements, as given to pip.
    """

    tool: str
    version: str
    beside: Mapping[str, tuple[int, ...]]
    variable: str
    install: Sequence[str]

    @property
    def remedy(self) -> str:
        """How to make an environment for it."""
        wanted = " ".join(f"'{r}'" for r in self.install)
        return (
            f"make one: python3 -m venv ENV && ENV/bin/pip install {wanted}; "
            f"then --python ENV/bin/python, or set {self.variable}"
        )


def find_python(needs: Needs, given: str) -> str:
    """Return an interpreter that has the tool: the given one, else that of the environment variable, else this one.

    Raises:
        UserError: the one that is meant lacks something; says what, and how to make an environment.
    """
    named = given or os.environ.get(needs.variable, "")
    python = named or sys.executable
    lacking = _lacks(python, needs)
    if not lacking:
        return python
    origin = f"--python {given}" if given else f"{needs.variable}={named}" if named else "this interpreter"
    raise UserError(f"{origin} cannot run {needs.tool} {needs.version}: {lacking}", needs.remedy)


def _lacks(python: str, needs: Needs) -> str:
    try:
        done = subprocess.run(
            [python, "-I", "-c", _PROBE, needs.tool, *needs.beside],
            capture_output=True, text=True, timeout=_PROBE_LIMIT_S, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        found: Mapping[str, str | None] = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it does not start ({error})"
    except ValueError:
        return "it is no Python interpreter"
    if found[needs.tool] is None:
        return f"{needs.tool} is not installed there"
    if found[needs.tool] != needs.version:
        return f"it has {needs.tool} {found[needs.tool]}"
    for name, breaks in needs.beside.items():
        version = found[name]
        if version is None:
            return f"{name} is not installed there"
        if breaks and _numbers(version) >= breaks:
            return f"it has {name} {version}, and {'.'.join(map(str, breaks))} breaks it"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def run_driver(python: str, files: Mapping[str, str], limit_s: float) -> tuple[dict[str, Any], str]:
    """Run a script in a folder of its own.

    Args:
        python: the interpreter; isolated from our environment and the user's site packages.
        files: name -> text of the files in the folder, :data:`DRIVER` among them; it writes :data:`RESULT`, a JSON
            object.
        limit_s: after this time the process is killed.

    Returns:
        The object and "", or {} and why there is none.
    """
    with tempfile.TemporaryDirectory(prefix="dse-outside-") as name:
        folder = Path(name)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        with (folder / _OUTPUT).open("w", encoding="utf-8") as output:
            try:
                done = subprocess.run(
                    [python, "-I", DRIVER], cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    timeout=limit_s, env=_environment(), check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return {}, f"stopped after {limit_s:g} s"
            except OSError as error:
                return {}, f"did not start: {error}"
        try:
            result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}, f"ended with exit code {done.returncode} and no result: {_last_line(folder / _OUTPUT)}"
        return result, ""


def _environment() -> dict[str, str]:
    """Return what a tool gets of our environment: where to find and put things, no keys."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    said = [line for line in lines if line]
    return said[-1][:300] if said else "it said nothing"
