"""``dse submit``: Ray's own client against a job server that speaks its REST interface and runs what it is sent.

The interface is that of docs.ray.io, "Ray Jobs REST API"; a real job server comes with ray[default]. The server here
unpacks the folder and runs the command in it, with the local executor in place of the cluster's Ray.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shlex
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dse.errors import UserError
from dse.execute.jobs import submit_study
from dse.results import Results
from dse.store import open_store

client = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("ray", "aiohttp"))),
    reason="no job client of Ray: pip install 'mfm-dse[submit]'",
)

STUDY = """
from beside import TRIALS
from dse import Choice, Scenario, Space, Study
from dse.testing.samples import small_model

study = Study(
    "sent", model=small_model("text"), scenario=Scenario(prompt_tokens=7, output_tokens=5), hardware="npu-template",
    space=Space(weight_bits=Choice(3, 4, 8, per="block"), pe_rows=Choice(4, 8, 16, 32)),
    objectives="min latency_s, min quality_loss", trials=TRIALS, ask_size=8,
)
"""


class JobServer(ThreadingHTTPServer):
    """Holds packages and one job."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.packages, self.asked, self.ended, self.log = folder, {}, None, None, ""
        self.tokens = set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def execute(self):
        protocol_and_name = self.asked["runtime_env"]["working_dir"].partition("://")
        zipfile.ZipFile(io.BytesIO(self.packages[protocol_and_name[2]])).extractall(self.folder)
        words = shlex.split(self.asked["entrypoint"])
        at = words.index("--executor")
        assert words[at : at + 4] == ["--executor", "ray", "--ray-address", "auto"]
        words[at : at + 4] = ["--executor", "local"]
        words = [w for i, w in enumerate(words) if "--workers" not in words[max(0, i - 1) : i + 1]]
        done = subprocess.run(
            [sys.executable, *words[1:]], cwd=self.folder, capture_output=True, text=True, timeout=240, check=False
        )
        self.ended, self.log = done.returncode, done.stdout + done.stderr


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, document, status=200):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self):
        server = self.server
        server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/version":
            self.answer({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})
        elif self.path.startswith("/api/packages/"):
            self.answer({}, 200 if self.path.rpartition("/")[2] in server.packages else 404)
        elif self.path.endswith("/logs"):
            self.answer({"logs": server.log})
        else:
            status = "RUNNING" if server.ended is None else "FAILED" if server.ended else "SUCCEEDED"
            self.answer({"type": "SUBMISSION", "status": status, "entrypoint": server.asked["entrypoint"]})

    def do_PUT(self):
        self.server.packages[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_POST(self):
        self.server.asked = json.loads(self.body())
        threading.Thread(target=self.server.execute, daemon=True).start()
        self.answer({"job_id": "raysubmit_1", "submission_id": "raysubmit_1"})


@pytest.fixture
def server(tmp_path):
    (tmp_path / "there").mkdir()
    found = JobServer(tmp_path / "there")
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def folder(tmp_path):
    """A study file that needs the file beside it."""
    here = tmp_path / "here" / "studies"
    here.mkdir(parents=True)
    (here / "sent.py").write_text(STUDY)
    (here / "beside.py").write_text("TRIALS = 20\n")
    return here


def submit(*arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 64}
    command = [sys.executable, "-m", "dse", "submit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


@client
@pytest.mark.slow
def test_a_study_is_run_there_in_a_copy_of_its_folder(server, folder, tmp_path):
    db = tmp_path / "a.db"
    done = submit(
        folder / "sent.py", "--db", db, "--ray-address", server.url, "--workers", 3, "--wait", 200, "--json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + server.log
    assert json.loads(done.stdout) == {
        "job": "raysubmit_1", "status": "SUCCEEDED", "address": server.url, "db": str(db)
    }  # fmt: skip
    assert (
        server.asked["entrypoint"]
        == f"python -m dse run sent.py --db {db} --executor ray --ray-address auto --workers 3"
    )
    assert server.tokens == {"Bearer " + "t" * 64}
    store = open_store(db, read_only=True)
    assert len(Results.load(store, "sent")) == 20
    store.close()


@client
@pytest.mark.slow
def test_a_job_that_fails_gives_the_end_of_its_log(server, folder, tmp_path):
    (folder / "beside.py").write_text("TRIALS = 1 / 0\n")
    arguments = [folder / "sent.py", "--db", tmp_path / "a.db", "--ray-address", server.url]
    done = submit(*arguments, "--wait", 200, "--working-dir", folder.parent, "--trials", 5, "--timeout", 2.5)
    assert done.returncode == 1
    assert done.stdout.strip() == "job raysubmit_1: FAILED"
    assert "division by zero" in done.stderr
    assert "run studies/sent.py" in server.asked["entrypoint"]
    assert "--trials 5 --timeout 2.5" in server.asked["entrypoint"]


def test_what_cannot_be_submitted_is_told(folder, tmp_path):
    file = folder / "sent.py"
    for arguments, law in (
        ((folder / "none.py", "--db", "/a.db"), "there is no study file"),
        ((file, "--db", "a.db"), "would be in the job's folder, and lost with it"),
        ((file, "--db", "/a.db", "--working-dir", Path(__file__).parent), "is not in the working folder"),
    ):
        done = submit(*arguments)
        assert done.returncode == 2, done.stderr
        assert law in done.stderr
        assert "Traceback" not in done.stderr


@client
@pytest.mark.slow
def test_no_job_server_is_told(folder):
    done = submit(folder / "sent.py", "--db", "/a.db", "--ray-address", "http://127.0.0.1:1")
    assert done.returncode == 2
    assert "there is no job server at 'http://127.0.0.1:1'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_client_is_told(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(UserError, match=r"job client, which is not installed .*\n.*mfm-dse\[submit\]"):
        submit_study(folder / "sent.py", "http://127.0.0.1:1", "/a.db")
