"""The storage fails under a running study: full, locked, restarted, with the clock set back, with two coordinators."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from dse import Choice, Float, Scenario, Space, Study
from dse.errors import DseError, StoreError, StoreRefused, UserError
from dse.metrics import MetricBatch
from dse.store import database as opening
from dse.store import open_store
from dse.testing.samples import small_model


class Checked:
    """A cost model that calls back on its nth call, in the middle of a study."""

    name, group, fidelity, version = "checked", "hardware", "analytical", "1"
    laws: frozenset[str] = frozenset()
    metrics = ("latency_s", "energy_j")
    fingerprint = "checked-1"

    def __init__(self, at=0, then=lambda: None):
        self.at, self.then, self.calls = at, then, 0

    def prepare(self, problem):
        del problem
        return self

    def evaluate(self, batch):
        self.calls += 1
        if self.calls == self.at:
            self.then()
        rows, cols = batch["pe_rows"].astype(float), batch["pe_cols"].astype(float)
        return MetricBatch({"latency_s": 1 / (rows * cols), "energy_j": rows + cols}, len(batch))

    def breakdown(self, batch):
        del batch
        return []


def make(model=None, **options):
    return Study(
        "faulty",
        model=small_model(),
        scenario=Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
        hardware="npu-template",
        space=Space(
            pe_rows=Choice(*range(1, 65)), pe_cols=Choice(*range(1, 65)), ffn_keep=Float(0.5, 1.0, per="block")
        ),
        objectives="min latency_s, min energy_j",
        cost_models=[model or Checked()],
        proposers="evolve",
        **({"trials": 480, "ask_size": 16} | options),
    )


def quiet(_):
    pass


def same(found, expected):
    """Whether two results hold the same designs, metrics and order."""
    return (
        found.stored.hashes == expected.stored.hashes
        and np.array_equal(found.stored.codes, expected.stored.codes)
        and found.stored.parents == expected.stored.parents
        and all(np.array_equal(v, expected.metrics.values[n]) for n, v in found.metrics.values.items())
        and found.front().numbers.tolist() == expected.front().numbers.tolist()
    )


@pytest.fixture
def undisturbed(tmp_path):
    return make().run(db=tmp_path / "whole.db", executor="local", report=quiet)


def test_a_full_database_stops_the_study_in_words_and_it_goes_on(tmp_path, undisturbed, monkeypatch):
    """SQLite itself is told that the file may not grow: it answers as on a full disk (SQLITE_FULL)."""
    path = tmp_path / "full.db"
    open_store(tmp_path / "empty.db").close()
    pages = (tmp_path / "empty.db").stat().st_size // 4096 + 8
    listening = opening._write_pragmas

    def narrow(connection, record):
        listening(connection, record)
        connection.execute(f"PRAGMA max_page_count={pages}")

    monkeypatch.setattr(opening, "_write_pragmas", narrow)
    with pytest.raises(StoreError, match="disk is full; free some space on its disk; what was acknowledged is kept"):
        make().run(db=path, executor="local", report=quiet)
    monkeypatch.setattr(opening, "_write_pragmas", listening)
    kept = make().results(path)
    assert 0 < kept.stored.evaluated.sum() < 480
    assert kept.stored.hashes == undisturbed.stored.hashes[: len(kept)]
    assert same(make().run(db=path, executor="local", report=quiet), undisturbed)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_stops_the_study_in_words_and_it_goes_on(tmp_path, undisturbed):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(StoreError, match="free some space"):
            make().run(db=disk / "full.db", executor="local", report=quiet)
        kept = tmp_path / "kept"
        shutil.copytree(disk, kept)
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        assert same(make().run(db=disk / "full.db", executor="local", report=quiet), undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    found = make().results(kept / "full.db")
    assert found.stored.evaluated.any()
    assert found.stored.hashes == undisturbed.stored.hashes[: len(found)]


def locked_for(path, seconds):
    """Lock the database from another connection for so long; return when it is locked."""
    locked = threading.Event()

    def hold():
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        locked.set()
        time.sleep(seconds)
        connection.execute("ROLLBACK")
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    return thread


def test_a_database_that_another_process_locks_for_a_while_is_waited_for(tmp_path, undisturbed):
    path, threads = tmp_path / "locked.db", []
    study = make(Checked(at=9, then=lambda: threads.append(locked_for(path, 1.0))))
    assert same(study.run(db=path, executor="local", report=quiet), undisturbed)
    threads[0].join()


def test_a_database_that_stays_locked_stops_the_study_in_words_and_it_goes_on(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(opening, "BUSY_TIMEOUT_MS", 100)
    path, threads = tmp_path / "locked.db", []
    study = make(Checked(at=9, then=lambda: threads.append(locked_for(path, 2.0))))
    with pytest.raises(StoreError, match=r"was locked by another process .*names it.*run the study again"):
        study.run(db=path, executor="local", report=quiet)
    threads[0].join()
    assert 0 < make().results(path).stored.evaluated.sum() < 480
    assert same(make().run(db=path, executor="local", report=quiet), undisturbed)


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_a_clock_that_is_set_changes_nothing(tmp_path, undisturbed, monkeypatch, jump_s):
    real = time.time
    study = make(Checked(at=9, then=lambda: monkeypatch.setattr(time, "time", lambda: real() + jump_s)))
    path = tmp_path / "clock.db"
    assert same(study.run(db=path, executor="local", report=quiet, trials=240), undisturbed) is False
    monkeypatch.setattr(time, "time", real)
    assert len(make().results(path)) == 240
    assert same(make().run(240, db=path, executor="local", report=quiet), undisturbed)


def test_a_lease_from_a_clock_that_was_ahead_is_lost_when_its_process_is_gone(tmp_path, undisturbed):
    """A coordinator killed while the clock was a day ahead does not lock its study for a day."""
    path = tmp_path / "clock.db"
    script = (
        "import time, os; real = time.time; time.time = lambda: real() + 86400\n"
        "from tests.faults.test_storage import make, quiet, Checked\n"
        f"make(Checked(at=9, then=lambda: os._exit(9))).run(db={str(path)!r}, executor='local', report=quiet)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=120, check=False).returncode == 9
    assert same(make().run(db=path, executor="local", report=quiet), undisturbed)


def test_a_second_coordinator_is_refused_or_waits_its_turn(tmp_path, undisturbed, capsys):
    path, told = tmp_path / "two.db", {}

    def second():
        began = time.monotonic()
        try:
            make().run(db=path, executor="local", report=quiet)
        except StoreRefused as error:
            told["refused"] = str(error)
        try:
            make().run(db=path, executor="local", report=quiet, wait_s=0.3)
        except StoreRefused:
            told["waited_s"] = time.monotonic() - began

    first = make(Checked(at=9, then=second))
    assert same(first.run(db=path, executor="local", report=quiet), undisturbed)
    assert "is being run by process" in told["refused"]
    assert told["waited_s"] >= 0.3
    assert "waiting for up to 0.3 s" in capsys.readouterr().err


def test_one_that_waits_goes_on_where_the_other_ended(tmp_path, undisturbed):
    path, errors = tmp_path / "two.db", []

    def second():
        try:
            make().run(240, db=path, executor="local", report=quiet, wait_s=60)
        except DseError as error:
            errors.append(error)
        else:
            errors.append(None)

    waiting = threading.Thread(target=second)
    make(Checked(at=5, then=waiting.start)).run(240, db=path, executor="local", report=quiet)
    waiting.join(100)
    assert errors == [None]
    assert same(make().results(path), undisturbed)


def test_postgresql_restarted_under_a_running_study(postgres_url, postgres_control, undisturbed):
    study = make(Checked(at=9, then=lambda: postgres_control("-m", "fast", "restart")))
    assert same(study.run(db=postgres_url, executor="local", report=quiet), undisturbed)


def test_postgresql_crashed_and_down_for_a_while(postgres_url, postgres_control, undisturbed):
    def crash():
        postgres_control("-m", "immediate", "stop")
        threading.Timer(2.0, postgres_control, ("start",)).start()

    study = make(Checked(at=9, then=crash))
    assert same(study.run(db=postgres_url, executor="local", report=quiet), undisturbed)


def test_a_commit_whose_answer_was_lost_is_not_stored_twice(postgres_url, postgres_control, undisturbed):
    """The server goes down after it has committed and before it can say so."""
    import psycopg

    commits = []

    original = opening._engine

    def listening(*arguments):
        engine = original(*arguments)
        do_commit = engine.dialect.do_commit

        def commit(dbapi_connection):
            do_commit(dbapi_connection)
            commits.append(1)
            if len(commits) == 30:
                dbapi_connection.dbapi_connection.close()
                raise psycopg.OperationalError("server closed the connection unexpectedly")

        engine.dialect.do_commit = commit
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "_engine", listening)
        found = make().run(db=postgres_url, executor="local", report=quiet)
    assert len(commits) > 30
    assert same(found, undisturbed)


def test_a_batch_that_fails_altogether_stops_a_study_that_has_worked(tmp_path):
    class Expired(Checked):
        def evaluate(self, batch):
            metrics = super().evaluate(batch)
            if self.calls > 9:
                raise RuntimeError(f"the licence has run out on call {self.calls}")
            return metrics

    with pytest.raises(UserError, match="have all failed; the first error: RuntimeError: the licence has run out"):
        make(Expired()).run(db=tmp_path / "a.db", executor="local", report=quiet)
    results = make().results(tmp_path / "a.db")
    assert results.row.state == "stopped"
    assert "the licence has run out" in results.row.stop_reason
    assert make().run(db=tmp_path / "a.db", executor="local", report=quiet).stored.evaluated.sum() == 480
