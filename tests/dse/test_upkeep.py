"""Upgrades from the first schema with all data kept; checks that find what is broken; refusals that leave no trace."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, delete, text, update
from sqlalchemy.engine import make_url

from dse import Choice, Scenario, Space, Study
from dse.cli.main import run
from dse.errors import StoreRefused, UserError
from dse.store import open_store, tables
from dse.store.migrations import versions
from dse.store.upkeep import check, upgrade
from dse.testing.samples import small_model

# The statements that mfm-dse 0.1.0 created its first databases with, as its engine printed them. {blob} and the like
# are the two dialects' words.
FIRST_SCHEMA = """
CREATE TABLE meta (key VARCHAR(64) NOT NULL, value TEXT NOT NULL, PRIMARY KEY (key));
CREATE TABLE study (id {serial} NOT NULL, name VARCHAR(200) NOT NULL, spec TEXT NOT NULL, state VARCHAR(16) NOT NULL,
 stop_reason TEXT NOT NULL, target INTEGER NOT NULL, asked INTEGER NOT NULL, reference TEXT, created_s FLOAT NOT NULL,
 updated_s FLOAT NOT NULL, lease_owner VARCHAR(200), lease_until_s FLOAT, PRIMARY KEY (id), UNIQUE (name));
CREATE TABLE evaluator (id {serial} NOT NULL, study_id INTEGER NOT NULL, metric_group VARCHAR(32) NOT NULL,
 fidelity VARCHAR(32) NOT NULL, cost_model VARCHAR(200) NOT NULL, version VARCHAR(64) NOT NULL,
 fingerprint VARCHAR(32) NOT NULL, layout TEXT NOT NULL, PRIMARY KEY (id),
 UNIQUE (study_id, metric_group, fidelity, fingerprint),
 FOREIGN KEY(study_id) REFERENCES study (id) ON DELETE CASCADE);
CREATE TABLE batch (study_id INTEGER NOT NULL, number INTEGER NOT NULL, proposer VARCHAR(200) NOT NULL,
 n_asked INTEGER NOT NULL, n_proposed INTEGER NOT NULL, n_designs INTEGER NOT NULL, is_done BOOLEAN NOT NULL,
 created_s FLOAT NOT NULL, PRIMARY KEY (study_id, number),
 FOREIGN KEY(study_id) REFERENCES study (id) ON DELETE CASCADE){rowless};
CREATE TABLE design (study_id INTEGER NOT NULL, number INTEGER NOT NULL, batch INTEGER NOT NULL, hash {blob} NOT NULL,
 codes {blob} NOT NULL, mark INTEGER, parents TEXT, PRIMARY KEY (study_id, number), UNIQUE (study_id, hash),
 FOREIGN KEY(study_id) REFERENCES study (id) ON DELETE CASCADE){rowless};
CREATE TABLE evaluation (study_id INTEGER NOT NULL, number INTEGER NOT NULL, evaluator_id INTEGER NOT NULL,
 status SMALLINT NOT NULL, excess_ratio FLOAT NOT NULL, metrics {blob} NOT NULL, reason TEXT,
 PRIMARY KEY (study_id, number, evaluator_id), FOREIGN KEY(study_id) REFERENCES study (id) ON DELETE CASCADE,
 FOREIGN KEY(evaluator_id) REFERENCES evaluator (id) ON DELETE CASCADE){rowless};
CREATE TABLE control (study_id {serial} NOT NULL, request VARCHAR(16) NOT NULL, requested_s FLOAT NOT NULL,
 PRIMARY KEY (study_id), FOREIGN KEY(study_id) REFERENCES study (id) ON DELETE CASCADE);
INSERT INTO meta (key, value) VALUES ('application', 'mfm-dse'), ('schema_version', '1')
"""

# As schema 2 was, by what it changed.
SECOND_SCHEMA = FIRST_SCHEMA
for _before, _after in (
    ("n_proposed INTEGER NOT NULL,", "n_proposed INTEGER NOT NULL, first INTEGER NOT NULL DEFAULT 0,"),
    (" batch INTEGER NOT NULL, hash", " hash"),
    (
        "mark INTEGER, parents TEXT,",
        "mark INTEGER, parents TEXT, attempts SMALLINT NOT NULL DEFAULT 0, last_error TEXT,",
    ),
    ("('schema_version', '1')", "('schema_version', '2')"),
):
    assert _before in SECOND_SCHEMA
    SECOND_SCHEMA = SECOND_SCHEMA.replace(_before, _after)
SECOND_SCHEMA += """;
CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, PRIMARY KEY (version_num));
INSERT INTO alembic_version (version_num) VALUES ('0002')
"""

WORDS = {
    "sqlite": {"serial": "INTEGER", "blob": "BLOB", "rowless": " WITHOUT ROWID"},
    "postgresql": {"serial": "SERIAL", "blob": "BYTEA", "rowless": ""},
}


def make(name="old"):
    return Study(
        name,
        model=small_model("text"),
        scenario=Scenario(prompt_tokens=7, output_tokens=5),
        hardware="npu-template",
        space=Space(weight_bits=Choice(3, 4, 6, 8, per="block.module"), pe_rows=Choice(*range(8, 72, 4))),
        objectives="min latency_s, min energy_j",
        proposers=["sobol", "evolve"],
        ask_size=16,
        trials=48,
    )


def quiet(progress):
    del progress


def numbers(url, study="old"):
    """All that a study holds, as it is read."""
    store = open_store(url, read_only=True)
    row = store.study(study)
    stored = store.load(row.id, np.dtype("u1"), make().bound_space.n_parameters)
    store.close()
    metrics = {name: column.tobytes() for name, column in stored.metrics[0].values.items()}
    return (
        stored.codes.tobytes(), stored.hashes, stored.batches.tolist(), stored.marks.tolist(), stored.parents,
        stored.proposers, stored.n_proposed_by_batch, stored.evaluated.tolist(), metrics,
        (row.state, row.target, row.asked, row.stop_reason, json.dumps(row.spec)),
    )  # fmt: skip


def first_schema(source, url, version=1):
    """Write what is in ``source`` (today's schema) into a database of the first schema, or of the second."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = create_engine(parsed)
    with engine.begin() as connection:
        for statement in {1: FIRST_SCHEMA, 2: SECOND_SCHEMA}[version].format(**WORDS[engine.dialect.name]).split(";"):
            connection.exec_driver_sql(statement)
    old = sqlite3.connect(source)
    old.row_factory = sqlite3.Row
    with engine.begin() as connection:
        for table in ("study", "evaluator", "batch", "design", "evaluation"):
            for row in map(dict, old.execute(f"SELECT * FROM {table}")):  # noqa: S608
                if table == "evaluator":
                    del row["rung"]
                if table == "batch":
                    row["is_done"] = bool(row["is_done"])
                if table == "batch" and version == 1:
                    del row["first"]
                if table == "design" and version == 1:
                    sql = "SELECT number FROM batch WHERE n_designs > 0 AND first <= ? ORDER BY number DESC"
                    row["batch"] = old.execute(sql, (row["number"],)).fetchone()[0]
                    del row["attempts"], row["last_error"]
                names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
                connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)  # noqa: S608
    old.close()
    engine.dispose()


@pytest.fixture
def today(tmp_path):
    path = tmp_path / "today.db"
    make().run(db=path, report=quiet, executor="local")
    return path


def empty_url(request, tmp_path):
    is_server = request.param == "postgresql"
    return request.getfixturevalue("postgres_url") if is_server else f"sqlite:///{tmp_path}/old.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def old_url(request, tmp_path, today):
    url = empty_url(request, tmp_path)
    first_schema(today, url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def second_url(request, tmp_path, today):
    url = empty_url(request, tmp_path)
    first_schema(today, url, version=2)
    return url


def test_an_upgrade_from_the_second_schema_keeps_everything(second_url, today):
    done = upgrade(second_url)
    assert (done.before, done.after) == (2, tables.SCHEMA_VERSION)
    assert numbers(second_url) == numbers(today)
    store = open_store(second_url)
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    assert list(check(store)) == []
    store.close()


def test_an_upgrade_keeps_everything_and_the_study_goes_on_as_it_would_have(old_url, today):
    done = upgrade(old_url)
    assert (done.before, done.after) == (1, tables.SCHEMA_VERSION)
    assert numbers(old_url) == numbers(today)
    make().run(db=old_url, report=quiet, executor="local")
    make().run(db=today, report=quiet, executor="local")
    assert len(numbers(today)[1]) == 96
    assert numbers(old_url) == numbers(today)
    again = upgrade(old_url)
    assert (again.before, again.after, again.backup) == (tables.SCHEMA_VERSION, tables.SCHEMA_VERSION, None)


def test_an_upgraded_database_has_the_tables_that_a_new_one_has(old_url):
    upgrade(old_url)
    store = open_store(old_url)
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
        assert connection.execute(tables.alembic_version.select()).scalar_one() == tables.REVISION
    store.close()


def test_an_old_database_is_refused_unharmed_with_the_remedy(tmp_path, today):
    path = tmp_path / "old.db"
    first_schema(today, f"sqlite:///{path}")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    for read_only in (False, True):
        with pytest.raises(StoreRefused, match=r"older mfm-dse \(schema 1") as error:
            open_store(path, read_only=read_only)
        assert "dse db upgrade" in str(error.value)
    with pytest.raises(StoreRefused, match="older"):
        make().run(db=path, report=quiet)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_the_file_as_it_was_is_kept_beside_it_and_never_overwritten(tmp_path, today):
    path = tmp_path / "old.db"
    first_schema(today, f"sqlite:///{path}")
    done = upgrade(path)
    assert done.backup == tmp_path / "old.db.schema1"
    connection = sqlite3.connect(done.backup)
    assert connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone() == ("1",)
    assert connection.execute("SELECT count(*), max(batch) FROM design").fetchone() == (48, 2)
    connection.close()
    path.unlink()
    first_schema(today, f"sqlite:///{path}")
    with pytest.raises(UserError, match="it exists"):
        upgrade(path)


def test_a_failed_upgrade_changes_nothing(old_url, monkeypatch):
    from alembic import op

    def broken(table, column):
        if column.name == "last_error":
            raise RuntimeError("power cut")
        genuine(table, column)

    genuine = op.add_column
    monkeypatch.setattr("alembic.op.add_column", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        upgrade(old_url)
    monkeypatch.undo()
    with pytest.raises(StoreRefused, match=r"schema 1"):
        open_store(old_url)
    if old_url.startswith("sqlite"):
        connection = sqlite3.connect(old_url.removeprefix("sqlite:///"))
        assert "batch" in [row[1] for row in connection.execute("PRAGMA table_info(design)")]
        assert "first" not in [row[1] for row in connection.execute("PRAGMA table_info(batch)")]
        connection.close()


def test_a_database_whose_study_runs_is_not_upgraded(old_url):
    store = open_store(old_url, any_version=True)
    with store.engine.begin() as connection:
        connection.execute(update(tables.study).values(lease_owner="elsewhere:1:a", lease_until_s=9e15))
    store.close()
    with pytest.raises(StoreRefused, match="is being run"):
        upgrade(old_url)


def test_an_upgrade_creates_nothing(tmp_path):
    with pytest.raises(UserError, match="there is no database"):
        upgrade(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("server", ["sqlite", "postgresql"])
def test_a_database_from_before_calls_gets_their_tables(request, tmp_path, server):
    (file,) = Path(versions.__file__).parent.glob("*_calls.py")
    last = int(file.name[1:5]) - 1
    url = request.getfixturevalue("postgres_url") if server == "postgresql" else f"sqlite:///{tmp_path}/second.db"
    make().run(db=url, report=quiet, executor="local")
    before = numbers(url)
    store = open_store(url)
    with store.engine.begin() as connection:
        for name in ("llm_edit", "llm_call", "llm_session"):
            connection.exec_driver_sql(f"DROP TABLE {name}")
        connection.execute(update(tables.meta).where(tables.meta.c.key == "schema_version").values(value=str(last)))
        connection.execute(update(tables.alembic_version).values(version_num=f"{last:04d}"))
    store.close()
    with pytest.raises(StoreRefused, match=f"schema {last}"):
        open_store(url)
    assert upgrade(url).before == last
    assert numbers(url) == before
    store = open_store(url)
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    assert store.call_log(store.study("old").id).calls() == []
    store.close()


# ------------------------------------------------------------------ checks


@pytest.mark.parametrize(
    ("harm", "finding"),
    [
        (lambda t: delete(t.design).where(t.design.c.number == 47), "47 designs are stored, its batches have 48"),
        (lambda t: delete(t.evaluation).where(t.evaluation.c.number == 20), "batch 1 is marked as done, 1 of its"),
        (lambda t: update(t.batch).where(t.batch.c.number == 2).values(first=31), "batch 2 begins at design 31"),
        (lambda t: update(t.evaluation).where(t.evaluation.c.number == 47).values(number=99), "2 evaluations belong"),
    ],
)
def test_a_check_finds_what_is_broken(today, harm, finding):
    store = open_store(today)
    assert list(check(store)) == []
    with store.engine.begin() as connection:
        connection.execute(harm(tables))
    assert any(finding in text for text in check(store)), list(check(store))
    store.close()


def test_the_command_line_upgrades_checks_and_compacts(tmp_path, today, capsys):
    path = tmp_path / "old.db"
    first_schema(today, f"sqlite:///{path}")
    assert run(["db", "upgrade", "--db", str(path)]) == 0
    assert f"upgraded from schema 1 to {tables.SCHEMA_VERSION}" in capsys.readouterr().out
    assert run(["db", "upgrade", "--db", str(path)]) == 0
    assert f"up to date (schema {tables.SCHEMA_VERSION})" in capsys.readouterr().out
    assert run(["db", "check", "--db", str(path)]) == 0
    assert "all is well: 1 studies, 48 designs" in capsys.readouterr().out
    assert run(["db", "vacuum", "--db", str(path), "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert 0 < sizes["after_bytes"] <= sizes["before_bytes"]
    connection = sqlite3.connect(path)
    connection.execute("UPDATE design SET codes = zeroblob(length(codes)) WHERE number = 13")
    connection.commit()
    connection.close()
    assert run(["db", "check", "--db", str(path), "--json"]) == 1
    assert "design 13" in json.loads(capsys.readouterr().out)["findings"][0]


def test_a_server_is_checked_and_compacted(postgres_url, capsys):
    make().run(db=postgres_url, report=quiet, executor="local")
    kept = numbers(postgres_url)
    assert run(["db", "check", "--db", postgres_url]) == 0
    assert "all is well: 1 studies, 48 designs" in capsys.readouterr().out
    store = open_store(postgres_url)
    ballast = text("UPDATE design SET last_error = (SELECT string_agg(md5((i * 49 + number)::text), '')"
                   " FROM generate_series(1, 4000) AS i)")  # fmt: skip
    with store.engine.begin() as connection:  # 48 times 128 kB that do not compress
        connection.execute(ballast)
    with store.engine.begin() as connection:
        connection.execute(update(tables.design).values(last_error=None))
    assert run(["db", "vacuum", "--db", postgres_url, "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert sizes["after_bytes"] < sizes["before_bytes"] - 48 * 100_000
    assert numbers(postgres_url) == kept
    with store.engine.begin() as connection:
        connection.execute(delete(tables.evaluation).where(tables.evaluation.c.number == 20))
        zeros = b"\0" * make().bound_space.n_parameters
        connection.execute(update(tables.design).where(tables.design.c.number == 13).values(codes=zeros))
    store.close()
    assert run(["db", "check", "--db", postgres_url, "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert "batch 1 is marked as done, 1 of its designs lack an evaluation" in findings[0]
    assert "design 13" in findings[1]


# ------------------------------------------------------------------ states and attempts


def test_a_design_whose_coordinator_vanished_is_stale_and_its_attempt_is_counted(today):
    store = open_store(today)
    row = store.study("old")
    with store.engine.begin() as connection:
        connection.execute(delete(tables.evaluation).where(tables.evaluation.c.number >= 40))
        connection.execute(update(tables.batch).where(tables.batch.c.number == 2).values(is_done=False))
    assert {r["status"] for r in make().results(today).records(range(40, 48))} == {"proposed"}
    with store.engine.begin() as connection:
        gone = {"state": "running", "lease_owner": "elsewhere:1:a"}
        connection.execute(update(tables.study).values(**gone, lease_until_s=9e15))
    assert {r["status"] for r in make().results(today).records(range(40, 48))} == {"leased"}
    with store.engine.begin() as connection:
        connection.execute(update(tables.study).values(lease_until_s=1.0))
    assert {r["status"] for r in make().results(today).records(range(40, 48))} == {"stale"}
    store.close()
    make().run(48, db=today, report=quiet, executor="local")
    records = make().results(today).records(range(48))
    assert [r["attempts"] for r in records] == [0] * 40 + [1] * 8
    assert records[47]["last_error"] == "its coordinator ended without a word"
    assert {r["status"] for r in records} == {"ok"}
    assert row.lease == ""
