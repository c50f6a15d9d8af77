"""Whole studies as jobs of a Ray cluster, through its job server: they go on when the submitter has gone.

The job is ``dse run FILE --executor ray --ray-address auto`` on the cluster, in a copy of the study's folder. A job
dies with its cluster and Ray does not repeat it; the study is in the database, so the same command submits its rest.
The database must therefore be one that outlives the job: a URL, or a file by its whole path on a disk that the cluster
has.

Job servers run whatever they are sent. Keep theirs on the loopback address (the default) or behind SSH, with a token.
"""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from dse.errors import UserError

_ENDED: Final = ("SUCCEEDED", "FAILED", "STOPPED")
_POLL_S: Final = 1.0
_LOG_LINES: Final = 20


@dataclass(frozen=True)
class Job:
    """A submitted job.

    Attributes:
        id: its id on the cluster.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED when last looked at.
        log_tail: its last lines where it has ended otherwise than well.
    """

    id: str
    status: str
    log_tail: str = ""


def submit_study(
    file: str | Path,
    address: str,
    db: str,
    *,
    working_dir: str | Path | None = None,
    trials: int | None = None,
    timeout_s: float | None = None,
    workers: int = 0,
    wait_s: float = 0.0,
) -> Job:
    """Submit a study and return its job, after ``wait_s`` at the latest.

    Args:
        file: the study file.
        address: of the cluster's job server, "http://HOST:8265".
        db: database URL, or whole path of an SQLite file there.
        working_dir: folder to send along, of which the file is part; the file's own by default.
        trials: designs to evaluate, the study's number by default.
        timeout_s: what one design may take.
        workers: actors, 0 for one per core of the cluster.
        wait_s: how long to wait for its end.

    Raises:
        UserError: no such file, no job server there, or a database that would be lost with the job.
    """
    path = Path(file).resolve()
    if not path.is_file():
        raise UserError(f"there is no study file {str(file)!r}", "name a Python file that has a Study at module level")
    folder = Path(working_dir).resolve() if working_dir else path.parent
    if not path.is_relative_to(folder):
        raise UserError(f"{str(path)!r} is not in the working folder {str(folder)!r}", "name a folder that has it")
    if "://" not in db and not Path(db).is_absolute():
        raise UserError(f"the database {db!r} would be in the job's folder, and lost with it", "give its whole path")
    program = ["python", "-m", "dse", "run", str(path.relative_to(folder)), "--db", db]
    entry = [*program, "--executor", "ray", "--ray-address", "auto"]
    for option, value in (("--trials", trials), ("--timeout", timeout_s), ("--workers", workers or None)):
        entry += [] if value is None else [option, str(value)]
    client = _client(address)
    job_id: str = client.submit_job(entrypoint=shlex.join(entry), runtime_env={"working_dir": str(folder)})
    deadline = time.monotonic() + wait_s
    while True:
        status = str(client.get_job_status(job_id).value)
        if status in _ENDED or time.monotonic() >= deadline:
            break
        time.sleep(_POLL_S)
    ended_badly = status in _ENDED and status != "SUCCEEDED"
    log = "\n".join(client.get_job_logs(job_id).splitlines()[-_LOG_LINES:]) if ended_badly else ""
    return Job(job_id, status, log)


def _client(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import_module("aiohttp")  # without it Ray's client is there and refuses to work
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise UserError(
            f"submitting needs Ray's job client, which is not installed ({error.name} is missing)",
            "pip install 'mfm-dse[submit]'",
        ) from None
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"there is no job server at {address!r} that lets us in: {str(error).strip().splitlines()[0]}",
            "the head needs pip install 'mfm-dse[submit]' too; see RAY_AUTH_MODE and RAY_AUTH_TOKEN",
        ) from error
