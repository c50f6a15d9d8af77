"""Each page with no database, no feasible design, failed designs, odd addresses: words, no exception."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

import dashboard
from agents.auto import Auto
from agents.llm.arm import LlmArm
from agents.llm.provider import SCRIPTS, Scripted
from agents.standing import gains_in_order
from dashboard.colouring import coloured
from dse import Choice, Float, Rung, Scenario, Space, Study
from dse.calls import designs_of
from dse.errors import NameUnknown, UserError
from dse.metrics import MetricBatch
from dse.store import open_store, tables
from dse.testing.samples import small_model

pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

APP = str(Path(dashboard.__file__).parent / "app.py")
HOSTILE = "<img src=x onerror=alert(1)> ![x](https://example.org/x.png)"
PAGES = ("studies", "front", "design", "compare", "search", "calls", "fidelity")

MANY = {
    "weight_bits": Choice(3, 4, 6, 8, per="block.module"),
    "ffn_keep": Float(0.5, 1.0, step=0.125),
    "pe_rows": Choice(4, 8, 16, 32),
}

pytestmark = pytest.mark.filterwarnings("ignore")


def study(name="small", **changes):
    options = {
        "model": small_model(),
        "scenario": Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
        "hardware": "npu-template",
        "space": Space(weight_bits=Choice(3, 4, 8, per="component"), pe_rows=Choice(4, 8, 16, 32)),
        "objectives": "min latency_s, min energy_j, min quality_loss",
        "ask_size": 8,
    } | changes
    return Study(name, **options)


def run(one, trials, url):
    return one.run(trials, db=url, report=lambda _: None, executor="local")


@pytest.fixture
def database(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/a.db"
    monkeypatch.setenv("DSE_DB", url)
    monkeypatch.chdir(tmp_path)
    return url


def texts(app):
    kinds = ("header", "subheader", "info", "warning", "success", "error", "caption", "text", "code")
    return [element.value for kind in kinds for element in getattr(app, kind)]


def said(app, words):
    return any(words in text for text in texts(app))


def start(page, **parameters):
    """Run one page as an app of its own."""
    app = AppTest.from_string(f"from dashboard.views import {page}\n{page}.page()\n", default_timeout=120)
    for key, value in parameters.items():
        app.query_params[key] = value
    return checked(app.run())


def checked(app):
    assert not app.exception, [e.value for e in app.exception]
    return app


def table(app, column):
    """The first table that has a column of that name."""
    return next(t.value for t in app.dataframe if column in t.value.columns)


def test_the_app_starts_on_the_studies(database):
    results = run(study(), 16, database)
    app = checked(AppTest.from_file(APP, default_timeout=120).run())
    assert "Studies" in texts(app)
    row = table(app, "study").iloc[0]
    assert (row["study"], row["state"], row["designs"], row["left"]) == ("small", "finished", 16, 0)
    assert row["front"] == len(results.front())
    assert row["hypervolume"][-1] > 0


@pytest.mark.parametrize("page", PAGES)
def test_without_a_database_or_a_study(database, tmp_path, page):
    assert said(start(page), "there is no database")
    open_store(database).close()
    assert said(start(page), "No study is stored yet")
    (tmp_path / "a.db").write_text("a letter, not a database at all")
    assert said(start(page), "not an SQLite database")


@pytest.mark.parametrize("page", PAGES)
def test_a_newer_a_foreign_and_a_locked_database(database, tmp_path, page):
    import sqlite3

    store = open_store(database)
    with store._writing() as connection:
        connection.execute(tables.meta.update().where(tables.meta.c.key == "schema_version").values(value="99"))
    store.close()
    assert said(start(page), "newer")
    (tmp_path / "a.db").unlink()
    with sqlite3.connect(tmp_path / "a.db") as other:
        other.execute("create table trials (id int)")
    assert said(start(page), "left untouched")


def test_a_study_with_a_front(database):
    results = run(study(), 24, database)
    front = results.front().numbers.tolist()
    app = start("front")
    assert {m.label: m.value for m in app.metric}["designs"] == "24"
    tables_shown = [t.value["design"].tolist() for t in app.dataframe if "design" in t.value.columns]
    assert front in tables_shown
    assert set(table(app, "pick")["design"]) <= set(front)
    assert said(app, "prior from published tables")
    app = start("design", study="small", design=str(front[0]))
    assert said(app, "feasible, on the front")
    assert table(app, "basis")["metric"].tolist()[0] == "latency_s"
    knobs = table(app, "here")
    assert (knobs["here"] != knobs["reference"]).tolist() == sorted(knobs["here"] != knobs["reference"], reverse=True)
    assert sorted(table(app, "distance")["distance"]) == table(app, "distance")["distance"].tolist()


@pytest.mark.parametrize(
    "choices",
    [
        {"x": "memory_bytes", "y": "area_mm2", "scale": "log"},
        {"z": "quality_loss", "colour": "proposer"},
        {"colour": "knob: pe_rows", "show": "intervals"},
        {"colour": "metric: memory_bytes", "show": "infeasible"},
    ],
)
def test_what_the_address_says_of_the_front_is_shown(database, choices):
    run(study(constraints="area_mm2 <= 13"), 24, database)
    app = start("front", study="small", **choices)
    for key, value in choices.items():
        assert value in np.ravel(app.session_state[key])


def test_sliders_leave_out_what_is_beyond_them(database):
    results = run(study(), 24, database)
    app = start("front")
    slider = next(s for s in app.select_slider if s.label == "quality_loss")
    losses = results.metrics.values["quality_loss"][results.front().numbers]
    checked(slider.set_range(slider.options[0], slider.options[24]).run())  # the first decade
    shown = [t.value for t in app.dataframe if list(t.value.columns[:2]) == ["design", "latency_s"]]
    assert shown[-1]["quality_loss"].max() <= losses.min() * 10
    assert 0 < len(shown[-1]) < len(losses)


def test_another_study_beside_it(database):
    run(study(), 16, database)
    run(study("second", seed=1), 16, database)
    app = start("front", study="small", **{"with": "second"})
    assert app.session_state["with"] == "second"


def test_fidelities(database):
    results = run(study(ladder=Rung("simulated", designs=9)), 24, database)
    labels, top = results.fidelities, results.at(1)
    up, waiting = np.flatnonzero(top.evaluated).tolist(), np.flatnonzero(~top.evaluated).tolist()
    high, low = results.front().numbers.tolist(), results.front(0).numbers.tolist()
    assert high != low
    for chosen, front, n in (({}, high, "9"), ({"fidelity": labels[0]}, low, "24")):
        app = start("front", study="small", **chosen)
        assert app.metric[0].value == n
        shown = [t.value for t in app.dataframe if list(t.value.columns[:2]) == ["design", "latency_s"]][-1]
        assert shown["design"].tolist() == front
        expected = (results if chosen else top).metrics.values["latency_s"][front]
        assert shown["latency_s"].tolist() == expected.tolist()
    assert said(start("design", study="small", design=str(up[0])), f"metrics at {labels[1]}")
    assert said(start("design", study="small", design=str(up[0]), fidelity=labels[0]), f"metrics at {labels[0]}")
    assert said(start("design", study="small", design=str(waiting[0])), f"metrics at {labels[0]}")
    compared = table(start("compare", study="small", designs=f"{up[0]},{waiting[0]}"), "name").set_index("name")
    assert compared.loc["why not feasible", f"design {waiting[0]}"] == "not promoted"
    assert start("search", study="small").metric[0].value == "24"  # what proposers saw
    run(study("second", seed=1), 16, database)  # it has no other fidelity: its front says which one it is
    start("front", study="small", **{"with": "second"})


def test_a_selection_is_listed_and_can_be_set_aside(database):
    run(study(), 16, database)
    app = AppTest.from_string("from dashboard.views import front\nfront.page()\n", default_timeout=120)
    app.session_state["picture-latency_s-energy_j"] = {
        "selection": {
            "points": [{"customdata": 3}, {"customdata": [5]}, {"customdata": -1}, {}],
            "box": [],
            "lasso": [],
        }
    }
    checked(app.run())
    assert said(app, "2 designs selected")
    checked(next(b for b in app.button if b.key == "aside-selected").click().run())
    assert app.session_state["baskets"] == {"small": [3]}


def test_one_design(database):
    run(study(), 1, database)
    assert start("front").metric[2].value == "1"
    for page in PAGES:
        start(page)


def test_how_times_spread_over_requests(database):
    served = study(
        model="qwen2.5-coder-0.5b",
        scenario=Scenario(prompt_tokens=64, output_tokens=16, n_requests=40, requests_per_s=20.0),
        hardware="l40s",
        space=Space(weight_bits=Choice(8, 16), batch=Choice(1, 4)),
        objectives="min ttft_p95_s, min tpot_s",
        cost_models=["serving"],
    )
    results = run(served, 4, database)
    values = results.metrics.values
    number = int(results.front().numbers[0])
    app = start("design", design=str(number))
    shown = table(app, "95 %").set_index("metric")
    assert list(shown.columns) == ["mean", "50 %", "95 %", "99 %"]
    assert set(shown.index) == {"ttft_s", "tpot_s", "latency_s"}
    for name in shown.index:
        expected = [values[n][number] for n in (name, *(f"{name[:-2]}_p{p}_s" for p in (50, 95, 99)))]
        assert shown.loc[name].tolist() == expected


def test_no_feasible_design(database):
    run(study(constraints="area_mm2 <= 0.001"), 8, database)
    app = start("front")
    assert said(app, "No feasible design yet.")
    assert said(app, "8 designs are not feasible")
    assert "area_mm2 <= 0.001" in table(app, "reason")["reason"].iloc[0]
    app = start("design")
    assert said(app, "not feasible")
    assert said(app, "is broken")
    for page in ("studies", "compare"):
        start(page)
    laws = table(start("search"), "law")
    assert laws["law"].tolist() == ["area_mm2 <= 0.001 mm2 is broken"]
    assert laws["designs"].tolist() == [8]


class Broken:
    name, group, fidelity, version = "broken", "hardware", "analytical", "1"
    laws: frozenset[str] = frozenset()
    metrics = ("latency_s", "energy_j")
    fingerprint = "broken-1"

    def prepare(self, problem):
        del problem
        return self

    def evaluate(self, batch):
        if len(batch) and (batch["pe_rows"] == 8).any():
            raise RuntimeError(HOSTILE)
        return MetricBatch({n: np.ones(len(batch)) for n in self.metrics}, len(batch))

    def breakdown(self, batch):
        del batch
        return []


def test_failed_designs_and_hostile_text(database):
    results = run(study(HOSTILE, cost_models=(Broken(),), objectives="min latency_s, min energy_j"), 24, database)
    failed = next(iter(results.metrics.errors))
    app = start("design", study=HOSTILE, design=str(failed))
    assert any(HOSTILE in element.value for element in app.text)
    for page in PAGES:
        app = start(page, study=HOSTILE)
        for kind in ("markdown", "caption", "info", "warning", "success", "error", "header", "subheader", "title"):
            assert not any(HOSTILE in element.value for element in getattr(app, kind))


@pytest.mark.parametrize(
    "parameters",
    [
        {"study": "deleted"},
        {"design": "-1"},
        {"design": "9" * 30},
        {"design": "x", "study": ""},
        {"x": "nothing", "colour": "knob: none", "scale": "cubic", "only-latency_s": "1,2,3", "zoom": "a:b,c:1:nan"},
        {"zoom": "latency_s:1e300:1e301"},
        {"call": "x"},
        {"designs": "a,-3,99999,0,1,2,3,4,5,6,7", "metric": "none", "knob": "", "second": "pe_rows"},
    ],
)
def test_addresses_that_lead_nowhere(database, parameters):
    run(study(), 8, database)
    for page in PAGES:
        app = start(page, **parameters)
        if parameters.get("study") == "deleted" and page != "studies":
            assert said(app, "names a study that is not stored")


def test_compare_shows_only_what_differs(database):
    results = run(study(), 16, database)
    app = start("compare", designs="0,3,99")
    assert said(app, "left out: 99")
    knobs = [t.value for t in app.dataframe if "name" in t.value.columns][1]
    values = results.space.values(results.space.repair(results.stored.codes[[0, 3]]))
    assert set(knobs["name"]) == {label for label in values[0] if values[0][label] != values[1][label]}
    checked(next(t for t in app.toggle if t.key == "only").set_value(False).run())
    assert len([t.value for t in app.dataframe if "name" in t.value.columns][1]) == results.space.n_parameters


def test_the_search_page_counts_what_was_proposed(database):
    results = run(study(proposers=["random", "evolve"]), 32, database)
    app = start("search")
    rows = table(app, "proposer")
    assert rows["designs"].sum() == 32
    assert rows["on the front"].sum() == len(results.front())
    proposed = sum(results.stored.n_proposed_by_batch)
    assert {m.label: m.value for m in app.metric}["duplicates avoided"] == str(proposed - 32)
    checked(next(s for s in app.selectbox if s.key == "second").set_value("pe_rows").run())


def test_the_arms_of_a_portfolio_are_told_apart(database):
    results = run(study(proposers="auto", space=Space(**MANY)), 64, database)
    rows = table(start("search"), "proposer").set_index("proposer")
    marks = results.stored.marks
    for i, arm in enumerate(("gp", "tpe", "evolve", "local", "bottleneck")):
        n = int(((marks >= 0) & (marks % 16 == i)).sum())
        assert (rows.loc[f"auto > {arm}", "designs"] if n else 0) == n
    assert rows["designs"].sum() == 64
    assert rows["on the front"].sum() == len(results.front())
    added = gains_in_order(results.objectives, results.violation, 0)
    added[0] = 0.0  # the first design adds all there is
    gp = (marks >= 0) & (marks % 16 == 0)
    assert rows["credit"].sum() == pytest.approx(1.0)
    assert rows["credit"].get("auto > gp", 0.0) == pytest.approx(added[gp].sum() / added.sum())


def test_the_fidelity_page(database):
    results = run(study(ladder=Rung("simulated", designs=9)), 24, database)
    app = start("fidelity", study="small")
    assert [m.value for m in app.metric][:2] == ["24", "9"]
    shown = table(app, "rank correlation").set_index("metric")
    low, high = (results.at(rung).metrics.values["latency_s"][results.at(1).evaluated] for rung in (0, 1))
    assert shown.loc["latency_s", "median ratio"] == pytest.approx(np.median(high / low))
    bottom, top = (end[results.at(1).evaluated] for end in results.at(0).metrics.intervals["latency_s"])
    assert shown.loc["latency_s", "inside the interval"] == ((high >= bottom) & (high <= top)).mean()
    front = results.at(0)._front().numbers
    rest = np.setdiff1d(np.arange(24), front)
    layers = coloured(results, "fidelity", rest, front, [results.at(0).metrics.values["latency_s"]])
    went_up = {n for layer in layers if "hardware=simulated" in layer.name for n in layer.numbers.tolist()}
    assert went_up == set(np.flatnonzero(results.at(1).evaluated).tolist())
    assert start("front", study="small", colour="fidelity").selectbox(key="colour").value == "fidelity"
    pairs = table(app, "higher")
    assert pairs["higher"].tolist() == high.tolist()
    run(study("flat", seed=1), 8, database)
    assert said(start("fidelity", study="flat"), "one fidelity")


def test_the_language_model_page(database):
    def hostile(request):
        answer = json.loads(SCRIPTS["random"](request))
        for proposal in answer["proposals"]:
            proposal["reason"] = HOSTILE
        return json.dumps(answer)

    arm = LlmArm("wait_s=30,repair=off", Scripted(hostile, model=HOSTILE))
    results = run(study("asked", proposers=[Auto(), arm], space=Space(**MANY)), 64, database)
    app = start("calls", study="asked")
    store = open_store(database, read_only=True)
    log = store.call_log(store.study("asked").id)
    calls, edits = log.calls(), log.edits()
    store.close()
    assert app.metric[0].value == str(len(calls))
    assert app.metric[3].value == f"{sum(e.verdict == 'accepted' for e in edits)} of {len(edits)}"
    assert table(app, "outcome")["call"].tolist() == [c.number for c in reversed(calls)]
    first = start("calls", study="asked", call="0")
    assert first.text[-1].value == calls[0].answer
    assert {t.value for t in first.text} >= {text for _, text in calls[0].messages}
    assert table(first, "reason")["reason"].tolist() == [HOSTILE] * sum(e.call == 0 for e in edits)
    assert said(start("calls", study="asked", call="99999"), "names no call")
    became = designs_of(edits, results.stored.hashes)
    place, number = next(iter(became.items()))
    design = start("design", study="asked", design=str(number))
    told = table(design, "reason")
    assert place[0] in told["call"].tolist()
    assert set(told["reason"]) == {HOSTILE}
    for page in (first, design):
        for kind in ("markdown", "caption", "info", "warning", "success", "error", "header", "subheader", "title"):
            assert not any(HOSTILE in element.value for element in getattr(page, kind))


def test_controls_reach_a_running_study(database):
    row = None
    seen = []

    def report(progress):
        nonlocal row
        if row is None:
            app = start("studies")
            checked(app.run())
            store = open_store(database)
            row = store.study("small")
            store.request("small", "stop")
            store.close()
        seen.append(progress.n_done)

    study(trials=400).run(400, db=database, report=report, executor="local")
    assert seen[-1] < 400
    app = start("studies")
    assert table(app, "state")["state"].tolist() == ["stopped"]


def test_a_study_is_started_in_a_process_of_its_own(database, tmp_path):
    from dashboard import launching

    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "tiny.py").write_text(
        "from dse import Choice, Scenario, Space, Study\n"
        "study = Study('tiny', model='qwen2.5-coder-0.5b', scenario=Scenario(prompt_tokens=8, output_tokens=4),\n"
        "    hardware='npu-template', space=Space(weight_bits=Choice(4, 8), pe_rows=Choice(16, 32)),\n"
        "    objectives='min latency_s', proposers='enumerate')\n"
    )
    app = start("studies")
    assert any("tiny.py" in option for s in app.selectbox for option in s.options)
    with pytest.raises(NameUnknown, match="study file"):
        launching.start("../../etc/passwd", database, 1)
    log = launching.start("studies/tiny.py", database, 4)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if "Next: dse show tiny" in log.read_text():
            break
        time.sleep(0.2)
    assert "designs on the front of study 'tiny'" in log.read_text()
    store = open_store(database, read_only=True)
    assert store.study("tiny").n_designs == 4
    store.close()
    assert any("dse show tiny" in c.value for c in start("studies").code)
    with pytest.raises(UserError, match="seed"):
        launching.start("studies/tiny.py", database, 4, seed=5)
