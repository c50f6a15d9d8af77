"""Studies as tables, and to and from Optuna: nothing lost, the same front, and Optuna's samplers go on from it."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sqlite3
import warnings
from wsgiref.util import setup_testing_defaults

import numpy as np
import optuna
import optuna_dashboard
import pandas as pd
import pytest

from dse import Choice, Float, Int, Scenario, Space, Study
from dse.cli.main import run
from dse.errors import UserError
from dse.export import tables
from dse.export.optuna_storage import distribution, export_study, read_designs, shown
from dse.metrics import Status
from dse.testing.samples import small_model, small_problem


def make(name="exchanged", **options):
    return Study(
        name,
        model=small_model("text"),
        scenario=Scenario(prompt_tokens=7, output_tokens=5),
        hardware="npu-template",
        space=Space(
            weight_bits=Choice(3, 4, 6, 8, per="block"),
            ffn_keep=Float(0.5, 1.0, step=0.125),
            pe_rows=Int(8, 64, step=8),
            dataflow=Choice("ws", "os"),
            tile_m=Choice(64, 128, 256, 4096, when={"dataflow": "ws"}),
            sram_bytes=Choice("2 KiB", "256 KiB"),
        ),
        objectives="min latency_s, max accuracy_ratio",
        constraints="area_mm2 <= 12",
        **{"proposers": "evolve", "trials": 160, "ask_size": 16} | options,
    )


def quiet(progress):
    del progress


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("exchange") / "a.db"
    make().run(db=path, report=quiet, executor="local")
    return path


@pytest.fixture(scope="module")
def results(stored):
    found = make().results(stored)
    # All kinds of designs are among them, so that what follows says something.
    assert {Status(s) for s in found.metrics.status} == {Status.OK, Status.INFEASIBLE}
    assert (found.violation[found.metrics.status == Status.OK] > 0).any()
    return found


@pytest.fixture
def load(results, tmp_path):
    url = f"sqlite:///{tmp_path}/o.db"
    assert export_study(results, url) == 160

    def again(**options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.load_study(study_name="exchanged", storage=url, **options)

    return again


def test_every_design_is_a_trial_with_its_values(results, load):
    trials = load().trials
    assert [t.number for t in trials] == list(range(160))
    complete = np.isfinite(results.objectives).all(axis=1)
    assert [t.state.name == "COMPLETE" for t in trials] == complete.tolist()
    values = results.space.values(results.stored.codes)
    for trial, expected in zip(trials, values, strict=True):
        assert trial.params == pytest.approx(expected)
        assert ("tile_m" in trial.params) == (trial.params["dataflow"] == "ws")
    for name, j in (("latency_s", 0), ("accuracy_ratio", 1)):
        column = results.metrics.values[name]
        assert [t.values[j] for t in trials if t.state.name == "COMPLETE"] == column[complete].tolist()
    failed = next(t for t in trials if t.state.name == "FAIL")
    assert failed.system_attrs["fail_reason"] == results.reason(failed.number)


def test_best_trials_are_our_front(results, load):
    front = results.front().numbers
    expected = {(results.metrics.values["latency_s"][n], results.metrics.values["accuracy_ratio"][n]) for n in front}
    assert {tuple(t.values) for t in load().best_trials} == expected
    for trial in load().trials:
        if trial.state.name == "COMPLETE":
            excess = (results.metrics.values["area_mm2"][trial.number] - 12) / 12
            assert list(trial.constraints.values()) == [pytest.approx(excess, abs=1e-12)]


@pytest.mark.parametrize("sampler", ["NSGAIISampler", "NSGAIIISampler"])
def test_a_genetic_sampler_goes_on_from_it(load, sampler):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = load(sampler=getattr(optuna.samplers, sampler)(population_size=20, seed=1))
        distributions = study.trials[0].distributions
        study.ask({k: d for k, d in distributions.items() if k != "tile_m"})
        # It takes its parents from what we wrote: the first generation is complete, so this is the next.
        assert study.trials[-1].system_attrs[f"{sampler}:generation"] == 1
        parents = study.sampler.get_parent_population(study, 1)
    assert len(parents) == 20
    assert sum(all(c <= 0 for c in p.constraints.values()) for p in parents) == 20


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.RandomSampler])
def test_other_samplers_go_on_from_it(load, sampler):
    study = load(sampler=sampler(seed=1))
    trial = study.ask()
    trial.suggest_categorical("dataflow", ("ws", "os"))
    trial.suggest_int("pe_rows", 8, 64, step=8)
    trial.suggest_float("ffn_keep", 0.5, 1.0, step=0.125)
    study.tell(trial, [1.0, 1.0])
    assert len(load().trials) == 161


def test_it_can_be_drawn(load):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = optuna.visualization.plot_pareto_front(load())
    assert sum(len(trace.x) for trace in figure.data) == sum(t.state.name == "COMPLETE" for t in load().trials)
    assert figure.layout.xaxis.title.text == "latency_s"


def ask(app, path):
    """Return what a WSGI application answers, read from JSON."""
    environ, said = {"PATH_INFO": path}, []
    setup_testing_defaults(environ)
    body = b"".join(app(environ, lambda status, *_: said.append(status)))
    assert said == ["200 OK"]
    return json.loads(body)


def test_the_dashboard_reads_it(results, tmp_path):
    """The list of studies, and all trials of one, as optuna-dashboard's own server sends them."""
    url = f"sqlite:///{tmp_path}/o.db"
    export_study(results, url)
    app = optuna_dashboard.wsgi(optuna.storages.RDBStorage(url))
    (summary,) = ask(app, "/api/studies")["study_summaries"]
    assert summary["study_name"] == "exchanged"
    study = ask(app, f"/api/studies/{summary['study_id']}")
    assert len(study["trials"]) == 160


def test_a_study_is_not_written_twice_and_a_failure_leaves_nothing(results, tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/o.db"
    monkeypatch.setattr("dse.export.optuna_storage._values", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_study(results, url)
    monkeypatch.undo()
    export_study(results, url)
    with pytest.raises(UserError, match="has a study 'exchanged' already"):
        export_study(results, url)


def test_passwords_are_not_shown():
    assert shown("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"
    with pytest.raises(UserError, match="cannot open") as error:
        export_study(None_results(), "nosuchdriver://me:secret@host/x")
    assert "secret" not in str(error.value)


def None_results():  # noqa: N802
    class Row:
        name = "x"

    class Empty:
        row = Row()

    return Empty()


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (Int(8, 64, step=8), optuna.distributions.IntDistribution(8, 64, step=8)),
        (Choice(1, 2, 4, 8), optuna.distributions.CategoricalDistribution((1, 2, 4, 8))),
        (Int(16, 4096, log=True), optuna.distributions.IntDistribution(16, 4096, log=True)),
        (Choice(4, 8), optuna.distributions.CategoricalDistribution((4, 8))),
    ],
)
def test_distributions_by_hand(domain, expected):
    space = Space(pe_rows=domain).bind(small_problem())
    assert distribution(space.parameters[0]) == expected


def test_designs_come_back_from_optuna(stored, tmp_path, capsys):
    path = tmp_path / "x.py"
    path.write_text(
        "from tests.dse.test_exchange import make\n"
        "study = make('taken', trials=8, proposers='random', reference=True)\n"
    )
    url = f"sqlite:///{tmp_path}/o.db"
    assert run(["export", "exchanged", url, "--to", "optuna", "--db", str(stored)]) == 0
    assert "160 designs of study 'exchanged'" in capsys.readouterr().out
    assert run(["import", str(path), "--optuna", url, "--db", str(tmp_path / "b.db"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    ours, theirs = make("taken").results(tmp_path / "b.db"), make().results(stored)
    assert set(theirs.stored.hashes) <= set(ours.stored.hashes)
    assert told["designs"] == len(ours) <= 161
    row = ours.stored.hashes.index(theirs.stored.hashes[5])
    assert ours.objectives[row].tolist() == pytest.approx(theirs.objectives[5].tolist(), nan_ok=True)
    assert run(["import", str(path), "--optuna", url, "--db", str(tmp_path / "b.db"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["designs"] == 0
    with pytest.raises(UserError, match="has no study 'nobody'"):
        read_designs(url, "nobody", make().bound_space)


@pytest.mark.parametrize("direction", ["import", "export"])
def test_a_database_that_is_not_optunas_is_left_untouched(results, stored, tmp_path, direction):
    """Optuna itself puts its tables into whatever it is given."""
    ours, other, text = tmp_path / "ours.db", tmp_path / "other.db", tmp_path / "letter.txt"
    shutil.copy(stored, ours)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE letters (a)")
    connection.close()
    text.write_text("a letter, not a database at all " * 4)
    for path, law in (
        (ours, "a database of mfm-dse"),
        (other, r"of another program, .* \(tables letters\)"),
        (text, "cannot open"),
    ):
        before = path.read_bytes()
        with pytest.raises(UserError, match=law):
            read_designs(f"sqlite:///{path}", None, make().bound_space) if direction == "import" else export_study(
                results, f"sqlite:///{path}"
            )
        assert path.read_bytes() == before


def test_an_optuna_storage_that_is_not_there_or_has_not_one_study_is_told(tmp_path):
    space, nowhere, url = make().bound_space, tmp_path / "none.db", f"sqlite:///{tmp_path}/o.db"
    with pytest.raises(UserError, match="there is no Optuna storage at"):
        read_designs(f"sqlite:///{nowhere}", None, space)
    assert not nowhere.exists()
    optuna.storages.RDBStorage(url).engine.dispose()
    with pytest.raises(UserError, match="has no study"):
        read_designs(url, None, space)
    for name in ("one", "two"):
        optuna.create_study(storage=url, study_name=name)
    with pytest.raises(UserError, match="has 2 studies\n  --from one of: one, two"):
        read_designs(url, None, space)


def test_a_study_of_anothers_own_gives_what_it_has_in_common(tmp_path):
    """Parameters go over by name; what is unknown here is told, what is no level is told and left."""
    url = f"sqlite:///{tmp_path}/o.db"
    theirs = optuna.create_study(storage=url, study_name="theirs")
    values = {"pe_rows": 16, "dataflow": "os", "learning_rate": 0.1}
    ranges = {
        "pe_rows": optuna.distributions.IntDistribution(1, 64),
        "dataflow": optuna.distributions.CategoricalDistribution(["os", "rs"]),
        "learning_rate": optuna.distributions.FloatDistribution(0.0, 1.0),
    }
    for row in (values, values | {"dataflow": "rs"}):
        theirs.add_trial(optuna.trial.create_trial(params=row, distributions=ranges, value=1.0))
    designs, notes = read_designs(url, None, make().bound_space)
    assert designs == [{"pe_rows": 16, "dataflow": "os"}, {"pe_rows": 16}]
    assert notes[0] == "learning_rate is no parameter here, left out"
    assert "left at the reference" in notes[1]


# ------------------------------------------------------------------ tables


def test_a_frame_has_every_design_with_units(results, stored):
    frame = make().dataframe(stored)
    assert len(frame) == 160
    values = results.space.values(results.stored.codes)
    for name in ("pe_rows", "ffn_keep", "dataflow", "sram_bytes", "tile_m"):
        column = frame[name]
        for row, value in zip(values, column, strict=True):
            assert pd.isna(value) if name not in row else value == row[name]
    assert str(frame["tile_m"].dtype) == "Int64"
    assert frame.attrs["units"]["sram_bytes"] == "B"
    assert frame.attrs["units"]["latency_s"] == "s"
    np.testing.assert_array_equal(frame["latency_s"], results.metrics.values["latency_s"])


def test_csv_and_parquet_hold_what_the_frame_holds(results, stored, tmp_path, capsys):
    for kind in ("csv", "parquet"):
        path = tmp_path / f"a.{kind}"
        assert run(["export", "exchanged", str(path), "--to", kind, "--db", str(stored)]) == 0
        read = (pd.read_csv if kind == "csv" else pd.read_parquet)(path)
        assert len(read) == 160
        np.testing.assert_array_equal(read["latency_s"], results.metrics.values["latency_s"])
        assert read["hash"].tolist() == [h.hex() for h in results.stored.hashes]
        assert set(read["status"]) == {"ok", "infeasible"}
        assert run(["export", "exchanged", str(path), "--to", kind, "--db", str(stored)]) == 2
        assert "--overwrite" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.parquet"]


def test_text_that_a_spreadsheet_would_run_is_quoted(results, tmp_path, monkeypatch):
    frame = pd.DataFrame({"=x": [-1.5, math.nan], "who": ["=cmd|' /C calc'!A0", "@sum"], "n": ["+1", "plain"]})
    monkeypatch.setattr(type(results), "table", lambda _: frame)
    tables.write_table(results, tmp_path / "a.csv", "csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["", "'=x", "who", "n"],
        ["0", "-1.5", "'=cmd|' /C calc'!A0", "'+1"],
        ["1", "", "'@sum", "plain"],
    ]
