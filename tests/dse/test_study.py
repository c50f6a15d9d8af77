from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

from dse import Choice, Scenario, Space, Study
from dse.canonical import compare
from dse.errors import Interrupted, NameUnknown, StoreRefused, StudyChanged, UserError
from dse.metrics import MetricBatch
from dse.results import Results
from dse.store import open_store
from dse.testing.samples import small_model

DOMAINS = {
    "weight_bits": Choice(3, 4, 8, 16, per="component"),
    "pe_rows": Choice(4, 8, 16, 32, 64),
    "pe_cols": Choice(4, 8, 16, 32, 64),
    "dram_bytes_per_s": Choice("1 GB/s", "4 GB/s", "16 GB/s"),
    "tile_m": Choice(16, 64, 128),
}


def make(name="small", **changes):
    options = {
        "model": small_model(),
        "scenario": Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
        "hardware": "npu-template",
        "space": Space(DOMAINS),
        "objectives": "min latency_s, min energy_j, min quality_loss",
        "constraints": "area_mm2 <= 14",
        "proposers": "auto",
        "ask_size": 16,
        "trials": 48,
    } | changes
    return Study(name, **options)


def quiet(progress):
    del progress


def rows(path):
    connection = sqlite3.connect(path)
    tables = {
        "design": "SELECT number, hash, codes, mark, parents FROM design ORDER BY number",
        "evaluation": "SELECT number, evaluator_id, status, excess_ratio, metrics, reason FROM evaluation "
        "ORDER BY number, evaluator_id",
        "batch": "SELECT number, proposer, n_asked, n_proposed, first, n_designs, is_done FROM batch ORDER BY number",
        "study": "SELECT name, spec, state, stop_reason, target, asked, reference FROM study",
    }
    found = {name: connection.execute(sql).fetchall() for name, sql in tables.items()}
    connection.close()
    return found


def test_a_study_is_stored_with_its_front(tmp_path):
    db = tmp_path / "a.db"
    results = make().run(db=db, report=quiet)
    assert len(results) == 48
    front = results.front()
    assert len(front) > 3
    assert (results.violation[front.numbers] == 0).all()
    assert results.metrics.basis["quality_loss"] == "prior"
    assert "quality_loss (prior)" in str(front)
    record = front.records()[0]
    assert record["metrics"]["latency_s"]["unit"] == "s"
    assert record["metrics"]["quality_loss"]["basis"] == "prior"
    assert record["knobs"]["weight_bits[decoder]"]["unit"] == "bit"
    json.dumps(record, allow_nan=False)
    frame = front.frame()
    assert frame["latency_s"].is_monotonic_increasing
    assert front._repr_html_().startswith("<table")
    assert front.results._repr_html_() == front._repr_html_()


def test_a_notebook_shows_what_a_study_is_and_its_front(tmp_path):
    study = make()
    study.name = "<b>bold"
    before = study._repr_html_()
    assert "&lt;b&gt;bold" in before
    assert "<b>" not in before
    assert before.count("<table") == 1
    results = study.run(db=tmp_path / "a.db", report=quiet)
    assert study._repr_html_() == before + results.front()._repr_html_()


def test_running_again_continues(tmp_path):
    db = tmp_path / "a.db"
    assert len(make().run(db=db, report=quiet)) == 48
    assert len(make().run(db=db, report=quiet)) == 96
    once = make().run(96, db=tmp_path / "b.db", report=quiet)
    # 48 is three whole batches of 16, so stopping there leaves no trace.
    assert rows(db)["design"] == rows(tmp_path / "b.db")["design"]
    assert len(once) == 96


def test_an_interrupted_run_is_finished_first(tmp_path):
    db = tmp_path / "a.db"
    make().run(db=tmp_path / "whole.db", report=quiet)
    study = make()
    count = []

    def stop_early(progress):
        count.append(progress)
        if len(count) == 2:
            store = open_store(db)
            store.request("small", "stop")
            store.close()

    study.run(db=db, report=stop_early)
    stored = open_store(db)
    assert stored.study("small").state == "stopped"
    assert stored.study("small").n_designs < 48
    stored.close()
    assert len(make().run(db=db, report=quiet)) == 48
    assert rows(db) == rows(tmp_path / "whole.db")


@pytest.mark.parametrize("proposer", ["random", "sobol", "optuna:tpe", "optuna:nsga2", "optuna:nsga3"])
def test_every_proposer_resumes_as_if_never_stopped(tmp_path, proposer):
    whole, parts = tmp_path / "whole.db", tmp_path / "parts.db"
    make(proposers=proposer).run(64, db=whole, report=quiet)
    for _ in range(4):
        make(proposers=proposer).run(16, db=parts, report=quiet)
    assert rows(whole)["design"] == rows(parts)["design"]
    assert rows(whole)["evaluation"] == rows(parts)["evaluation"]


def test_several_proposers_take_turns(tmp_path):
    make(proposers=["random", "sobol"]).run(64, db=tmp_path / "a.db", report=quiet)
    turns = [b[1] for b in rows(tmp_path / "a.db")["batch"]]
    assert turns == [("random", "sobol")[i % 2] for i in range(len(turns))]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"space": Space(DOMAINS | {"tile_m": Choice(16, 64)})}, "space.tile_m.values: [16, 64, 128] -> [16, 64]"),
        ({"constraints": "area_mm2 <= 15"}, "goal.constraints"),
        ({"seed": 7}, "seed: 0 -> 7"),
        ({"model": small_model("text"), "scenario": Scenario()}, "problem.models.target"),
        ({"ask_size": 8}, "ask_size: 16 -> 8"),
        ({"proposers": "random"}, "proposers: ['auto'] -> ['random']"),
    ],
)
def test_a_changed_study_is_refused_with_the_difference(tmp_path, change, where):
    db = tmp_path / "a.db"
    make().run(16, db=db, report=quiet)
    before = rows(db)
    with pytest.raises(StudyChanged) as error:
        make(**change).run(16, db=db, report=quiet)
    assert where in error.value.message
    assert "--fork" in error.value.hint
    assert rows(db) == before


def test_forking_keeps_both(tmp_path):
    db = tmp_path / "a.db"
    make().run(16, db=db, report=quiet)
    make(seed=7).with_changes(name="fork").run(16, db=db, report=quiet)
    store = open_store(db, read_only=True)
    assert {r.name for r in store.studies()} == {"small", "fork"}
    store.close()


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"objectives": "min latncy_s"}, "unknown metric"),
        ({"objectives": "min cost_usd"}, "unknown metric 'cost_usd'"),
        ({"hardware": "npu-templat"}, "unknown hardware"),
        ({"model": "qwen2.5-vl-3"}, "unknown model"),
        ({"proposers": "evolv"}, "unknown proposer"),
        ({"proposers": []}, "at least one proposer"),
        ({"cost_models": ("analytcal",)}, "unknown cost model"),
        ({"ask_size": 0}, "ask_size=0"),
        ({"trials": 2.5}, "trials=2.5"),
        ({"seed": -1}, "seed=-1"),
        ({"name": "a\nb"}, "printable characters"),
        ({"name": ""}, "printable characters"),
        ({"scenario": Scenario(audio_s=3.0)}, "takes no audio"),
        ({"model": small_model("text")}, "takes no images"),
        ({"space": Space(image_px=Choice(56)), "model": small_model("text"), "scenario": Scenario()}, "no such choice"),
    ],
)
def test_a_definition_that_cannot_be_is_refused_at_once(change, law):
    with pytest.raises((UserError, NameUnknown), match=law):
        make(**change)


@pytest.mark.parametrize(
    ("fields", "law"),
    [
        ({"output_tokens": 0}, "output_tokens=0 is too small"),
        ({"prompt_tokens": 1.5}, "not a whole number"),
        ({"images": 1}, "give image_px"),
        ({"image_px": (1, 2, 3)}, "is not (width, height)"),
        ({"audio_s": -1.0}, "not a length"),
    ],
)
def test_scenarios_that_cannot_be(fields, law):
    with pytest.raises(UserError) as error:
        Scenario(**fields)
    assert law in str(error.value)


def test_a_study_with_no_feasible_design_says_which_is_nearest(tmp_path):
    results = make(constraints="area_mm2 <= 1").run(32, db=tmp_path / "a.db", report=quiet)
    assert len(results.front()) == 0
    text = str(results.front())
    assert "no feasible design among 32" in text
    assert "area_mm2 <= 1 mm2 is broken" in text


def test_unknown_design_numbers(tmp_path):
    results = make().run(16, db=tmp_path / "a.db", report=quiet)
    with pytest.raises(UserError, match="no design 99") as error:
        results.design(99)
    assert "0 to 15" in error.value.hint


def test_results_need_nothing_but_the_database(tmp_path):
    db = tmp_path / "a.db"
    results = make().run(32, db=db, report=quiet)
    store = open_store(db, read_only=True)
    again = Results.load(store, "small")
    store.close()
    assert again.space.labels == results.space.labels
    np.testing.assert_array_equal(again.front().numbers, results.front().numbers)
    chosen = again.design(int(again.front().numbers[0]))
    assert chosen.design.hashes[0] == again.stored.hashes[chosen.number]
    assert chosen.provenance["cost_model.hardware"].startswith("analytical")


def test_a_database_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DSE_DB", f"sqlite:///{tmp_path}/env.db")
    study = make()
    study.run(16, report=quiet)
    assert (tmp_path / "env.db").exists()
    assert len(study.results()) == 16


def test_differences_in_words():
    assert compare({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == ["a.c: 2 -> (absent)", "a.d: (absent) -> 3"]


def test_a_study_in_postgresql_has_the_same_rows(tmp_path, postgres_url):
    """Interrupted and finished there, and read by a read-only reader: the rows are those of SQLite."""
    make().run(32, db=postgres_url, report=quiet)
    make().run(16, db=postgres_url, report=quiet)
    make().run(48, db=tmp_path / "a.db", report=quiet)
    one, other = make().results(postgres_url), make().results(tmp_path / "a.db")
    assert one.stored.hashes == other.stored.hashes
    for name, column in one.metrics.values.items():
        np.testing.assert_array_equal(column, other.metrics.values[name])
    np.testing.assert_array_equal(one.front().numbers, other.front().numbers)


def test_the_order_of_declarations_means_nothing(tmp_path):
    """Codes stand in the order of the problem's fields: a study goes on, and is read, whatever the script's order."""
    backwards = Space(dict(reversed(DOMAINS.items())))
    db = tmp_path / "a.db"
    make().run(32, db=db, report=quiet)
    results = make(space=backwards).run(32, db=db, report=quiet)
    make().run(64, db=tmp_path / "b.db", report=quiet)
    assert rows(db)["design"] == rows(tmp_path / "b.db")["design"]
    assert rows(db)["evaluation"] == rows(tmp_path / "b.db")["evaluation"]
    assert results.space.labels == make().bound_space.labels


def damage(db, sql, *values):
    connection = sqlite3.connect(db)
    connection.execute(sql, values)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("sql", "law"),
    [
        ("UPDATE study SET spec = '{}'", "is damaged"),
        ("UPDATE design SET codes = x'00' WHERE number = 3", "is damaged"),
        ("UPDATE design SET codes = (SELECT codes FROM design WHERE number = 4) WHERE number = 0", "is not what was"),
    ],
)
def test_damaged_rows_are_told(tmp_path, sql, law):
    db = tmp_path / "a.db"
    make().run(32, db=db, report=quiet)
    damage(db, sql)
    with pytest.raises(StoreRefused, match=law):
        make().results(db)


def test_another_number_of_trials_counts_from_what_is_there(tmp_path):
    """Asked for the same number again, an interrupted run is finished; asked for another, it gets so many more."""
    db = tmp_path / "a.db"

    def stop_early(progress):
        if progress.n_done >= 16:
            store = open_store(db)
            store.request("small", "stop")
            store.close()

    make().run(96, db=db, report=stop_early)
    done = len(make().results(db))
    assert done < 96
    assert len(make().run(16, db=db, report=quiet)) == done + 16
    came = []

    def interrupt(progress):
        if not came:
            came.append(progress)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        make().run(1000, db=db, report=interrupt)
    finished = int(make().results(db).stored.evaluated.sum())
    assert len(make().run(40, db=db, report=quiet)) == finished + 40  # what was begun is among them


def test_a_paused_run_obeys_a_signal_and_keeps_its_lease(tmp_path):
    db = tmp_path / "a.db"
    seen = []

    def pause(progress):
        if not seen:
            store = open_store(db)
            store.request("small", "pause")
            store.close()
            threading.Timer(1.0, look).start()
        seen.append(progress)

    def look():
        store = open_store(db, read_only=True)
        seen.append(store.study("small").state)
        store.close()
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        make().run(480, db=db, report=pause)
    assert "paused" in seen
    assert make().results(db).row.state == "interrupted"


class Carbon:
    """A plug-in whose metric nobody else knows, known of some designs only."""

    name, group, fidelity, version = "carbon", "serving", "analytical", "1"
    laws = frozenset()
    metrics = ("carbon_kg",)
    fingerprint = "carbon"

    def prepare(self, problem):
        del problem
        return self

    def evaluate(self, batch):
        return MetricBatch({"carbon_kg": batch["pe_rows"] / 64.0}, len(batch))

    def breakdown(self, batch):
        del batch
        return []


def test_metrics_of_plug_ins_are_stored_and_read_back(tmp_path):
    study = make(
        cost_models=["analytical", "prior", Carbon()],
        objectives="min latency_s, min carbon_kg",
        constraints="carbon_kg <= 0.5",
    )
    results = study.run(32, db=tmp_path / "a.db", report=quiet, executor="local")
    front = results.front()
    assert len(front)
    assert (front.frame()["carbon_kg"] <= 0.5).all()
    assert "carbon_kg" in str(front)


def test_a_metric_that_is_not_known_keeps_no_bound(tmp_path):
    """The L4's price is not in the catalogue: its cost is not known, so no limit on cost lets it pass."""
    study = make(
        hardware="h100-sxm-80gb",
        space=Space(device=Choice("l4", "h100-sxm-80gb"), weight_bits=Choice(8, 16), act_bits=Choice(16)),
        objectives="min latency_s, min cost_usd",
        constraints="cost_usd <= 1",
    )
    results = study.run(4, db=tmp_path / "a.db", report=quiet, executor="local")
    devices = [results.space.values(results.stored.codes[[i]])[0]["device"] for i in range(len(results))]
    assert {devices[i] for i in results.front().numbers} == {"h100-sxm-80gb"}
    unknown = devices.index("l4")
    assert results.reason(unknown) == "cost_usd is not known of this design"
    assert not results.records([unknown])[0]["is_feasible"]


@pytest.mark.parametrize(
    ("change", "law"),
    [
        ({"scenario": {"images": 1}}, "scenario={'images': 1} is a dict"),
        ({"space": {"tile_m": 3}}, "space={'tile_m': 3} is a dict"),
        ({"scenario": Scenario(prompt_tokens=0)}, "the request is empty"),
        ({"constraints": "area_mm2 <= 40, area_mm2 >= 50"}, "no design keeps both"),
        ({"constraints": "memory_bytes <= 4"}, "has no unit"),
    ],
)
def test_definitions_that_cannot_be(change, law):
    with pytest.raises(UserError, match=law):
        make(**change)


SCRIPT = """
from dse import Choice, Scenario, Space, Study
from dse.testing.samples import small_model

study = Study("s", model=small_model("text"), scenario=Scenario(), hardware="npu-template",
              space=Space(tile_m=Choice(16, 32)), objectives="min {metric}")
study.run(2, executor="local")
{then}
"""


@pytest.mark.parametrize(
    ("metric", "then", "code", "said"),
    [
        ("latency", "", 2, "s.py:5: unknown metric 'latency'"),
        ("latency_s", "from dse.errors import Interrupted; raise Interrupted('enough')", 130, "s.py:8: enough"),
        ("latency_s", "1 / 0", 1, "Traceback"),
    ],
)
def test_a_script_ends_like_the_command_line(tmp_path, metric, then, code, said):
    (tmp_path / "s.py").write_text(SCRIPT.format(metric=metric, then=then))
    done = subprocess.run([sys.executable, "s.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == (said == "Traceback")
