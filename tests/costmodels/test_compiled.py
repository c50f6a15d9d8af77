"""Compiled code is never older than what it calls."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import costmodels

FOLDER = Path(costmodels.__file__).parent


def test_the_order_is_that_of_the_calls():
    """A compiled module stands after those that it imports; one that shares no compiled code is not listed."""
    compiled = {p.stem for p in FOLDER.glob("*.py") if "@njit" in p.read_text(encoding="utf-8")}
    chained = set()
    for name in compiled:
        tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").removeprefix("costmodels.") in compiled:
                called = (node.module or "").removeprefix("costmodels.")
                chained |= {name, called}
                order = costmodels._COMPILED
                assert order.index(called) < order.index(name), f"{name} calls {called}"
    assert chained == set(costmodels._COMPILED)


def test_modules_that_compiled_code_takes_constants_from_are_listed():
    found = set()
    for name in costmodels._COMPILED:
        for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("costmodels."):
                found.add(module.removeprefix("costmodels."))
    assert found - set(costmodels._COMPILED) == set(costmodels._CONSTANTS)


@pytest.mark.parametrize("changed", ["systolic", "totals"])
def test_a_changed_module_renews_its_callers(tmp_path, changed):
    shutil.copytree(FOLDER, tmp_path / "costmodels", ignore=shutil.ignore_patterns("__pycache__"))
    files = [tmp_path / "costmodels" / f"{name}.py" for name in costmodels._COMPILED]
    for file in files:
        os.utime(file, (1e9, 1e9))
    for name in costmodels._CONSTANTS:
        os.utime(tmp_path / "costmodels" / f"{name}.py", (1e9, 1e9))
    os.utime(tmp_path / "costmodels" / f"{changed}.py", (1.5e9, 1.5e9))
    code = "import costmodels; print(costmodels.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).parent == tmp_path / "costmodels"
    times = [file.stat().st_mtime_ns for file in files]
    assert min(times) > 1.5e18
    assert times[-1] == max(times)
