"""Writes the locks from pyproject.toml: versions and hashes for every platform and Python, no index address.

requirements/runtime.lock  what a user of the README's commands needs: core, ray, dashboard, llm
requirements/dev.lock      the same, postgres, and the tools that make check runs
requirements/docs.lock     the generator of pages, alone
requirements/uv.lock       uv itself, which installs the others
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ["setuptools>=77"]  # the project itself is built without isolation, so that its build is pinned too


def main() -> None:
    """Write all locks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    runtime = [*project["project"]["dependencies"], *extras["ray"], *extras["dashboard"], *extras["llm"], *BUILD]
    write("uv", ["uv==0.13.9"])
    write("runtime", runtime)
    write("dev", [*runtime, *extras["postgres"], *project["dependency-groups"]["dev"]])
    write("docs", project["dependency-groups"]["docs"])


def write(name: str, requirements: list[str]) -> None:
    """Resolve requirements into requirements/<name>.lock."""
    target = ROOT / "requirements" / f"{name}.lock"
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "-", "--universal", "--python-version", "3.11",
        "--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links",
        "--quiet", "-o", str(target),
    ]  # fmt: skip
    subprocess.run(command, input="\n".join(requirements), text=True, check=True, cwd=ROOT)
    print(f"{target.relative_to(ROOT)}: {sum('==' in line for line in target.read_text().splitlines())} packages")


if __name__ == "__main__":
    main()
