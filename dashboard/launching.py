"""Starts a study from the dashboard, as a process of its own that outlives the page and the server.

Study files are Python, and to run one is to run its author's code; so only those in the folder ``studies`` beside the
place where the dashboard was started are offered, by their names on disk, and the command is a list, never a shell's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from dse.errors import UserError, unknown

FOLDER: Final = Path("studies")
LOGS: Final = Path(".mfm-dse") / "logs"
_LOG_TAIL: Final = 2000


def study_files() -> list[Path]:
    """Return the study files that can be started."""
    return sorted(p for p in FOLDER.glob("*.py") if not p.name.startswith("_") and p.is_file())


def start(file: str, url: str, trials: int, seed: int, fork: str = "") -> Path:
    """Start a study and return the path of its log.

    Args:
        file: one of :func:`study_files`.
        url: database it is stored in.
        trials: designs to evaluate.
        seed: seed of everything random; another one than the study's own needs another name.
        fork: name to run it under, "" for its own.

    Raises:
        NameUnknown: the file is none of those offered.
        UserError: the log cannot be written.
    """
    offered = {str(path): path for path in study_files()}
    if file not in offered:
        raise unknown("study file", file, offered)
    command = [sys.executable, "-m", "dse", "run", str(offered[file]), "--trials", str(trials)]
    command += ["--seed", str(seed), "--fork", fork] if fork else []
    try:
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / f"{offered[file].stem}-{len(list(LOGS.iterdir()))}.log"
        with log.open("xb") as out:
            subprocess.Popen(  # its own session: closing the server does not end it
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "DSE_DB": url, "NO_COLOR": "1"},
                start_new_session=True,
            )
    except OSError as error:
        raise UserError(f"the study cannot be started: {error}", "check that this folder can be written") from None
    return log


def latest_logs(most: int = 1) -> list[tuple[str, str]]:
    """Return the names and ends of the latest logs."""
    logs = sorted(LOGS.glob("*.log"), key=lambda p: p.stat().st_mtime, reverse=True)[:most] if LOGS.is_dir() else []
    found = []
    for log in logs:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL))
            found.append((str(log), file.read().decode(errors="replace")))
    return found
