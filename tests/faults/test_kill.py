"""kill -9 at random moments: nothing acknowledged is lost, nothing is there twice, the result is the same."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

STUDY = """
from dse import Choice, Float, Scenario, Space, Study
from dse.testing.samples import small_model

study = Study(
    "killed",
    model=small_model(),
    scenario=Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
    hardware="npu-template",
    space=Space(
        weight_bits=Choice(3, 4, 8, per="block.module"),
        ffn_keep=Float(0.5, 1.0, per="block"),
        pe_rows=Choice(4, 8, 16, 32, 64),
        tile_m=Choice(16, 64, 128),
    ),
    objectives="min latency_s, min energy_j, min quality_loss",
    ask_size=16,
    trials=640,
)
"""

KILLS = 6

TABLES = {
    "design": "SELECT number, hash, codes, mark, parents FROM design ORDER BY number",
    "evaluation": "SELECT number, status, excess_ratio, metrics, reason FROM evaluation ORDER BY number, evaluator_id",
    "batch": "SELECT number, proposer, n_asked, n_proposed, first, n_designs, is_done FROM batch ORDER BY number",
    "study": "SELECT state, stop_reason, target, reference FROM study",
}


def rows(path):
    connection = sqlite3.connect(path)
    try:
        return {name: connection.execute(sql).fetchall() for name, sql in TABLES.items()}
    except sqlite3.OperationalError:
        return {name: [] for name in TABLES}
    finally:
        connection.close()


def start(folder, database):
    command = [sys.executable, "-m", "dse", "run", "killed.py", "--db", str(database), "--executor", "local"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path):
    (tmp_path / "killed.py").write_text(STUDY)
    whole, killed = tmp_path / "whole.db", tmp_path / "killed.db"
    undisturbed = start(tmp_path, whole)
    _, err = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, err

    rng = random.Random(20)
    acknowledged = []
    for _ in range(KILLS):
        process = start(tmp_path, killed)
        deadline = time.monotonic() + 60
        while process.poll() is None and len(rows(killed)["evaluation"]) <= len(acknowledged):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.15))
        before = rows(killed)["evaluation"]
        assert process.poll() is None, "the study ended before it could be killed: give it more designs"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        acknowledged = rows(killed)["evaluation"]
        assert acknowledged[: len(before)] == before

    last = start(tmp_path, killed)
    _, err = last.communicate(timeout=120)
    assert last.returncode == 0, err
    assert rows(killed) == rows(whole)
