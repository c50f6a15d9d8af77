"""Starts a study from the dashboard, as a process of its own that outlives the page and the server.

Study files are Python, and to run one is to run its author's code; so only those in the folder ``studies`` beside the
place where the dashboard was started are offered, by their names on disk, and the command is a list, never a shell's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from dse.errors import UserError, unknown

FOLDER: Final = Path("studies")
LOGS: Final = Path(".mfm-dse") / "logs"
_LOG_TAIL: Final = 2000
_SPOKEN_WITHIN_S: Final = 30.0
_REFUSALS: Final = ("dse: ", "Traceback")


def study_files() -> list[Path]:
    """Return the study files that can be started."""
    return sorted(p for p in FOLDER.glob("*.py") if not p.name.startswith("_") and p.is_file())


def start(file: str, url: str, trials: int, seed: int | None = None, fork: str = "") -> Path:
    """Start a study and return the path of its log.

    Waits for its first word, which is how far it is, or why it refuses.

    Args:
        file: one of :func:`study_files`.
        url: database it is stored in.
        trials: designs to evaluate.
        seed: seed of everything random, the study's own by default; a study that is stored with another one needs
            another name.
        fork: name to run it under, "" for its own.

    Raises:
        NameUnknown: the file is none of those offered.
        UserError: the log cannot be written, or the study refuses to run.
    """
    offered = {str(path): path for path in study_files()}
    if file not in offered:
        raise unknown("study file", file, offered)
    command = [sys.executable, "-m", "dse", "run", str(offered[file]), "--trials", str(trials)]
    command += ["--seed", str(seed)] if seed is not None else []
    command += ["--fork", fork] if fork else []
    try:
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / f"{offered[file].stem}-{len(list(LOGS.iterdir()))}.log"
        with log.open("xb") as out:
            process = subprocess.Popen(  # its own session: closing the server does not end it
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "DSE_DB": url, "NO_COLOR": "1"},
                start_new_session=True,
            )
    except OSError as error:
        raise UserError(f"the study cannot be started: {error}", "check that this folder can be written") from None
    refused = _refused(process, log)
    if refused:
        raise UserError(f"the study did not start; {log} ends:\n{_end(log)}")
    return log


def _refused(process: subprocess.Popen[bytes], log: Path) -> bool:
    until = time.monotonic() + _SPOKEN_WITHIN_S
    while process.poll() is None and time.monotonic() < until:
        said = _end(log)
        if "\n" in said and not said.startswith(_REFUSALS):
            break  # it counts its designs
        time.sleep(0.05)
    return bool(process.poll())


def latest_logs(most: int = 1) -> list[tuple[str, str]]:
    """Return the names and ends of the latest logs."""
    logs = sorted(LOGS.glob("*.log"), key=lambda p: p.stat().st_mtime, reverse=True)[:most] if LOGS.is_dir() else []
    return [(str(log), _end(log)) for log in logs]


def _end(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL))
        return file.read().decode(errors="replace")
