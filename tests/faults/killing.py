"""A study that is killed again and again, and the one that was left alone: their tables must be the same.

    python -m tests.faults.killing --kills 250 [--folder DIR]        (make bench-faults)

Each round starts the study where it is, waits until it has acknowledged something new, and after a random moment sends
SIGKILL: to the coordinator, or to one of its workers, or to the process they are forked from. What had been
acknowledged before must be there after, unchanged. In DIR a run that was broken off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from dse.execute.pool import MAX_BLAMES

STUDY = """
import time

from dse import Choice, Float, Scenario, Space, Study
from dse.metrics import MetricBatch
from dse.testing.samples import small_model


class Slow:
    name, group, fidelity, version = "slow", "rental", "analytical", "1"
    laws, metrics, fingerprint = frozenset(), ("cost_usd",), "slow-1"

    def prepare(self, problem):
        return self

    def evaluate(self, batch):
        time.sleep({row_s} * len(batch))
        return MetricBatch({{"cost_usd": batch["pe_rows"] / 64}}, len(batch))

    def breakdown(self, batch):
        return []


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
    cost_models=["analytical", "prior", Slow()],
    proposers=["evolve", "random"],
    ask_size=16,
    lag={lag},
    trials={trials},
)
"""

TABLES = {
    "design": "SELECT number, hash, codes, mark, parents FROM design ORDER BY number",
    "evaluation": "SELECT number, evaluator_id, status, excess_ratio, metrics, reason FROM evaluation "
    "ORDER BY number, evaluator_id",
    "batch": "SELECT number, proposer, n_asked, n_proposed, first, n_designs, is_done FROM batch ORDER BY number",
    "study": "SELECT state, stop_reason, target, reference FROM study",
}


def rows(path):
    """Return what is stored, table by table; nothing where there is no database yet."""
    if not Path(path).exists():
        return {name: [] for name in TABLES}
    connection = sqlite3.connect(path)
    try:
        return {name: connection.execute(sql).fetchall() for name, sql in TABLES.items()}
    except sqlite3.OperationalError:
        return {name: [] for name in TABLES}
    finally:
        connection.close()


def write_study(folder, trials, row_s=0.002, lag=1):
    (Path(folder) / "killed.py").write_text(STUDY.format(trials=trials, row_s=row_s, lag=lag))


def start(folder, database, executor="local"):
    command = [sys.executable, "-m", "dse", "run", "killed.py", "--db", str(database), "--executor", executor]
    command += ["--workers", "2"] if executor != "local" else []
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def undisturbed(folder, database):
    """Run the study to its end and return its tables."""
    process = start(folder, database)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return rows(database)


def descendants(pid):
    """Return the processes below one, with their command lines."""
    try:
        children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [p for child in children for p in (child, *descendants(child))]


def kill_once(folder, database, executor, rng, victim):
    """Start the study, kill once it has acknowledged something new, and check that this is kept.

    Returns:
        The process, dead if it was the victim, and whether anything was killed.
    """
    known = len(rows(database)["evaluation"])
    process = start(folder, database, executor)
    deadline = time.monotonic() + 120
    while process.poll() is None and len(rows(database)["evaluation"]) <= known:
        assert time.monotonic() < deadline, "nothing new was acknowledged for two minutes"
        time.sleep(0.005)
    return strike(process, database, rng, victim)


def strike(process, database, rng, victim):
    time.sleep(rng.uniform(0, 0.1))
    before = rows(database)
    if process.poll() is not None:
        return process, False
    targets = [process.pid] if victim == "coordinator" else descendants(process.pid)
    if not targets:
        return process, False
    try:
        os.kill(rng.choice(targets), signal.SIGKILL)
    except ProcessLookupError:
        return process, False
    if victim == "coordinator":
        process.communicate()
    check_kept(before, rows(database))
    return process, True


def check_kept(before, after):
    """Check that what was acknowledged is there, unchanged, and nothing is there twice."""
    for name in ("design", "evaluation"):
        assert after[name][: len(before[name])] == before[name], f"acknowledged rows of {name} were lost or changed"
    numbers = [row[:2] for row in after["evaluation"]]
    assert len(set(numbers)) == len(numbers), "an evaluation is there twice"
    hashes = [row[1] for row in after["design"]]
    assert len(set(hashes)) == len(hashes), "a design is there twice"


def siege(folder, kills, executor, seed, report=lambda _: None):
    """Kill a study so often, let it end, and return how often whom, with both tables.

    Of three kills with a pool, two meet what it is made of: the coordinator lives on and is struck again. No more than
    two in one life of it: a design whose worker is killed three times is failed by rule, whoever killed it.
    """
    database = Path(folder) / f"killed-{executor}.db"
    rng, counts = random.Random(seed), Counter()
    while counts.total() < kills:
        victim = "coordinator" if executor == "local" or rng.random() < 1 / 3 else "worker"
        process, struck = kill_once(folder, database, executor, rng, victim)
        counts[victim] += struck
        n_workers = int(victim == "worker" and struck)
        while victim == "worker" and process.poll() is None and counts.total() < kills:
            time.sleep(rng.uniform(0.05, 0.2))
            victim = "coordinator" if n_workers == MAX_BLAMES - 1 or rng.random() < 1 / 3 else "worker"
            _, struck = strike(process, database, rng, victim)
            counts[victim] += struck
            n_workers += struck
        if process.poll() is None:
            process.kill()
            process.communicate()
        finished = rows(database)["study"]
        assert not finished or finished[0][0] != "finished", "the study ended before its kills: give it more designs"
        report(counts)
    last = start(folder, database, executor)
    _, err = last.communicate(timeout=600)
    assert last.returncode == 0, err
    return counts, rows(database)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=250)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--folder", help="where the databases are, to go on later")
    parser.add_argument("--executors", nargs="+", default=["local", "process"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or temporary
        # Forty designs a kill: some of them are lost each time and evaluated again.
        write_study(folder, trials=40 * arguments.kills // len(arguments.executors) + 200)
        began, whole = time.monotonic(), undisturbed(folder, Path(folder) / "whole.db")
        alone_s = time.monotonic() - began
        for executor in arguments.executors:
            began = time.monotonic()
            kills = arguments.kills // len(arguments.executors)
            counts, found = siege(folder, kills, executor, arguments.seed)
            for name in TABLES:
                assert found[name] == whole[name], f"{executor}: table {name} differs from that of the undisturbed run"
            told = {
                "executor": executor,
                "kills": dict(counts),
                "designs": len(found["design"]),
                "tables equal": True,
                "wall_s": round(time.monotonic() - began, 1),
                "undisturbed_wall_s": round(alone_s, 1),
                "load": os.getloadavg()[0],
            }
            print(json.dumps(told), flush=True)  # noqa: T201  a program of its own


if __name__ == "__main__":
    main()
