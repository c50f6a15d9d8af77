from __future__ import annotations

import os
import sqlite3
import time

import numpy as np
import pytest
from sqlalchemy import select, update

from dse.errors import NameUnknown, StoreError, StoreRefused, UserError
from dse.metrics import Limit, MetricBatch, Status
from dse.store import open_store, tables

SPEC = {"goal": {"objectives": ["min latency_s"], "constraints": []}, "seed": 0}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "postgresql":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path}/a.db"


@pytest.fixture
def store(url):
    opened = open_store(url)
    yield opened
    opened.close()


@pytest.fixture
def file_store(tmp_path):
    """A store in an SQLite file, for what is special about files."""
    opened = open_store(tmp_path / "a.db")
    yield opened
    opened.close()


def fill(store, n=5):
    """A study of two batches, the second one without metrics."""
    row = store.create_study("s", SPEC)
    store.acquire(row.id, "s")
    evaluator = store.add_evaluator(row.id, "hardware", "analytical", "toy", "1", "f" * 32)
    codes = np.arange(n * 3, dtype="u1").reshape(n, 3)
    hashes = [bytes([i]) * 16 for i in range(2 * n)]
    marks, parents = np.arange(n), [(i, i + 1) if i % 2 else () for i in range(n)]
    store.add_batch(row.id, 0, "random", n, n + 2, 0, codes, hashes[:n], marks, parents)
    limit = Limit("sram_bytes", np.array([0.0, 2048, 0, 0, 0]), np.full(n, 1024.0), "{needed} of {available}")
    values = {"latency_s": np.arange(n) + 0.25, "energy_j": np.full(n, 2.0)}
    band = {"latency_s": (values["latency_s"] / 2, values["latency_s"] * 2)}
    metrics = MetricBatch(values, n, band, {"latency_s": "analytical"}, [limit], {3: "broke"}).masked()
    store.add_metrics(row.id, 0, 0, [(evaluator.id, metrics)], is_last=True)
    store.add_batch(row.id, 1, "sobol", n, n, n, codes + 100, hashes[n:], np.full(n, -1), [()] * n)
    return row, metrics


def test_what_is_written_is_read_back(store):
    row, metrics = fill(store)
    stored = store.load(row.id, np.dtype("u1"), 3)
    assert stored.codes.tolist() == [
        *np.arange(15).reshape(5, 3).tolist(),
        *(np.arange(15) + 100).reshape(5, 3).tolist(),
    ]
    assert stored.batches.tolist() == [0] * 5 + [1] * 5
    assert stored.marks.tolist() == [0, 1, 2, 3, 4, -1, -1, -1, -1, -1]
    assert stored.parents[:3] == [(), (1, 2), ()]
    assert stored.proposers == {0: "random", 1: "sobol"}
    assert stored.n_proposed_by_batch == [7, 5]
    assert stored.evaluated.tolist() == [True] * 5 + [False] * 5
    read = stored.metrics[0].take(np.arange(5))
    np.testing.assert_equal(read.values, dict(metrics.values))
    np.testing.assert_equal(read.intervals["latency_s"], metrics.intervals["latency_s"])
    assert read.status.tolist() == [Status.OK, Status.INFEASIBLE, Status.OK, Status.FAILED, Status.OK]
    assert [read.reason(i) for i in range(5)] == ["", "2 KiB of 1 KiB (over by 1 KiB)", "", "broke", ""]
    assert read.excess_ratio.tolist() == metrics.excess_ratio.tolist()
    assert read.basis == {"latency_s": "analytical"}


def test_columns_may_be_added_later(store):
    row, _ = fill(store)
    late = MetricBatch({"latency_s": np.ones(5), "area_mm2": np.full(5, 3.0)}, 5)
    store.add_metrics(row.id, 1, 5, [(store.evaluators(row.id)[0].id, late)], is_last=True)
    values = store.load(row.id, np.dtype("u1"), 3).metrics[0].values
    np.testing.assert_equal(values["area_mm2"], [np.nan] * 5 + [3.0] * 5)
    np.testing.assert_equal(values["energy_j"][5:], [np.nan] * 5)


def test_a_design_and_its_metrics_are_unique(store):
    row, metrics = fill(store)
    with pytest.raises(StoreError, match=r"(?i)unique"):
        store.add_batch(row.id, 2, "x", 1, 1, 10, np.zeros((1, 3), "u1"), [bytes([0]) * 16], np.array([0]), [()])
    with pytest.raises(StoreError, match=r"(?i)unique"):
        store.add_metrics(row.id, 0, 0, [(store.evaluators(row.id)[0].id, metrics)], is_last=True)
    assert len(store.load(row.id, np.dtype("u1"), 3).codes) == 10


def test_evaluators_are_added_once(store):
    row, _ = fill(store)
    again = store.add_evaluator(row.id, "hardware", "analytical", "toy", "1", "f" * 32)
    assert [e.id for e in store.evaluators(row.id)] == [again.id]


def test_listing(store):
    fill(store)
    store.create_study("other", SPEC)
    assert [(r.name, r.n_designs) for r in store.studies()] == [("other", 0), ("s", 10)]
    with pytest.raises(NameUnknown, match="unknown study 't'"):
        store.study("t")


def test_one_coordinator_at_a_time(store, url):
    row, _ = fill(store)
    second = open_store(url)
    with pytest.raises(StoreRefused, match=f"being run by process {os.getpid()}"):
        second.acquire(row.id, "s")
    store.release(row.id)
    second.acquire(row.id, "s")
    with pytest.raises(StoreRefused, match="taken over"):
        store.add_batch(row.id, 2, "x", 1, 1, 10, np.zeros((1, 3), "u1"), [b"n" * 16], np.array([0]), [()])
    second.close()
    assert len(store.load(row.id, np.dtype("u1"), 3).codes) == 10


def test_the_lease_of_a_dead_process_is_taken_over(store):
    row, _ = fill(store)
    import socket
    import subprocess
    import sys

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owner = f"{socket.gethostname()}:{gone.pid}:aaaa"
    with store.engine.begin() as connection:
        connection.execute(update(tables.study).values(lease_owner=owner, lease_until_s=9e15))
    store.acquire(row.id, "s")


def test_requests_are_taken_once_but_a_pause_stays(store):
    row, _ = fill(store)
    with pytest.raises(UserError, match="not running, so it cannot pause"):
        store.request("s", "pause")
    store.update_study(row.id, state="running")
    assert store.take_request(row.id) == ""
    store.request("s", "pause")
    assert [store.take_request(row.id) for _ in range(2)] == ["pause", "pause"]
    store.request("s", "resume")
    assert [store.take_request(row.id) for _ in range(2)] == ["resume", ""]


def test_a_new_coordinator_forgets_old_requests(store):
    row, _ = fill(store)
    store.update_study(row.id, state="running")
    store.request("s", "stop")
    store.acquire(row.id, "s")
    assert store.take_request(row.id) == ""


def test_a_living_process_holds_its_study_whatever_the_clock_says(store, url):
    row, _ = fill(store)
    with store.engine.begin() as connection:
        connection.execute(update(tables.study).values(lease_until_s=time.time() - 600))
    second = open_store(url)
    with pytest.raises(StoreRefused, match="being run by process"):
        second.acquire(row.id, "s")
    second.close()


def test_a_study_whose_process_was_killed_is_listed_as_interrupted(store):
    row, _ = fill(store)
    store.update_study(row.id, state="running")
    assert store.study("s").state == "running"
    with store.engine.begin() as connection:
        connection.execute(update(tables.study).values(lease_owner="elsewhere:1:a", lease_until_s=time.time() - 1))
    assert store.study("s").state == "interrupted"


def test_a_lease_can_be_renewed_without_results(store):
    row, _ = fill(store)
    with store.engine.begin() as connection:
        connection.execute(update(tables.study).values(lease_until_s=5.0))
    store.renew(row.id)
    with store.engine.connect() as connection:
        assert connection.execute(select(tables.study.c.lease_until_s)).scalar_one() > time.time()


@pytest.mark.parametrize("spec", ["{}", "no json", "[]", '{"goal": 3}'])
def test_a_damaged_definition_does_not_hide_the_other_studies(store, spec):
    fill(store)
    store.create_study("other", SPEC)
    with store.engine.begin() as connection:
        connection.execute(update(tables.study).where(tables.study.c.name == "s").values(spec=spec))
    assert [(r.name, r.objectives) for r in store.studies()] == [("other", ["min latency_s"]), ("s", ["damaged"])]


def test_a_damaged_schema_version_is_told(file_store, tmp_path):
    file_store.close()
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("UPDATE meta SET value = 'abc' WHERE key = 'schema_version'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreRefused, match="schema version is 'abc'"):
        open_store(tmp_path / "a.db")


# ------------------------------------------------------------------ what is not ours


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    path = tmp_path / "notes.db"
    path.write_text("my notes, more than sixteen bytes of them")
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="not an SQLite database"):
        open_store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("schema", "law"),
    [
        ("CREATE TABLE recipes (id INTEGER)", "the database of another program"),
        ("CREATE TABLE studies (id INTEGER); CREATE TABLE trials (id INTEGER)", "an Optuna database"),
        ("CREATE TABLE meta (a TEXT)", "the database of another program"),
    ],
)
def test_a_database_of_another_program_is_left_alone(tmp_path, schema, law):
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.executescript(schema)
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match=law):
        open_store(path)
    assert path.read_bytes() == before


def test_a_newer_database_is_left_alone(file_store, tmp_path):
    file_store.close()
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(tables.SCHEMA_VERSION + 1),))
    connection.commit()
    connection.close()
    with pytest.raises(StoreRefused, match="newer mfm-dse"):
        open_store(tmp_path / "a.db")


def test_a_damaged_database_is_told(file_store, tmp_path):
    fill(file_store, 5)
    file_store.close()
    path = tmp_path / "a.db"
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(bytes(data))

    def read():
        opened = open_store(path)
        opened.load(opened.study("s").id, np.dtype("u1"), 3)

    with pytest.raises(StoreRefused, match="is damaged"):
        read()


@pytest.mark.parametrize(
    ("url", "law"),
    [
        ("mysql://u:secret@h/x", "databases of type 'mysql'"),
        ("sqlite:////nowhere/at/all/x.db", "does not exist"),
        ("://", "cannot be read"),
    ],
)
def test_urls_that_cannot_be(url, law):
    with pytest.raises(UserError, match=law) as error:
        open_store(url)
    assert "secret" not in str(error.value)


def test_a_folder_is_no_database(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        open_store(tmp_path)


# ------------------------------------------------------------------ readers


def test_readers_cannot_write(store, url):
    row, _ = fill(store)
    reader = open_store(url, read_only=True)
    assert len(reader.load(row.id, np.dtype("u1"), 3).codes) == 10
    with pytest.raises(StoreError, match=r"readonly|read-only|query_only"):
        reader.update_study(row.id, state="hijacked")
    reader.close()


def test_readers_need_a_database(tmp_path, postgres_url):
    with pytest.raises(UserError, match="there is no database"):
        open_store(tmp_path / "none.db", read_only=True)
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(UserError, match="is empty"):
        open_store(postgres_url, read_only=True)
    with pytest.raises(StoreError, match="does not exist"):
        open_store(postgres_url.replace("@/test", "@/none"))


def test_a_reader_sees_what_was_committed_while_the_writer_goes_on(store, url):
    row, _ = fill(store)
    reader = open_store(url, read_only=True)
    store.add_batch(row.id, 2, "x", 1, 1, 10, np.zeros((1, 3), "u1"), [b"n" * 16], np.array([0]), [()])
    assert len(reader.load(row.id, np.dtype("u1"), 3).codes) == 11
    reader.close()


def test_a_locked_database_says_what_to_do(file_store, tmp_path, monkeypatch):
    row, _ = fill(file_store)
    file_store.close()
    monkeypatch.setattr("dse.store.database.BUSY_TIMEOUT_MS", 50)
    impatient = open_store(tmp_path / "a.db")
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="was locked by another process"):
        impatient.update_study(row.id, state="x")
    other.execute("ROLLBACK")
    other.close()
    impatient.update_study(row.id, state="x")
    impatient.close()


def test_a_full_disk_says_what_is_kept(file_store):
    row, _ = fill(file_store)
    with file_store.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        connection.commit()
    big = np.zeros((5000, 3), "u1")
    hashes = [i.to_bytes(16, "big") for i in range(1, 5001)]
    with pytest.raises(StoreError, match=r"full.*acknowledged is kept"):
        file_store.add_batch(row.id, 2, "x", 1, 1, 10, big, hashes, np.zeros(5000, int), [()] * 5000)
    assert len(file_store.load(row.id, np.dtype("u1"), 3).codes) == 10
