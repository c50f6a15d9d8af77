"""Each page with no database, no feasible design, failed designs, odd addresses: words, no exception."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dashboard
from dse import Choice, Scenario, Space, Study
from dse.store import open_store
from dse.testing.samples import small_model

pytest.importorskip("streamlit")
from streamlit.testing.v1 import AppTest

APP = str(Path(dashboard.__file__).parent / "app.py")
HOSTILE = "<img src=x onerror=alert(1)> ![x](https://example.org/x.png)"

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


@pytest.fixture
def database(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/a.db"
    monkeypatch.setenv("DSE_DB", url)
    return url


def texts(app):
    kinds = ("header", "subheader", "info", "warning", "success", "error", "caption", "text", "code")
    return [element.value for kind in kinds for element in getattr(app, kind)]


def call(function, **parameters):
    """Run one page function as an app of its own."""
    script = f"import streamlit as st\nfrom dashboard import pages\npages.{function}()\n"
    app = AppTest.from_string(script, default_timeout=60)
    for key, value in parameters.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def test_the_app_starts_on_the_studies(database):
    study().run(16, db=database, report=lambda _: None)
    app = AppTest.from_file(APP, default_timeout=60).run()
    assert not app.exception
    assert "Studies" in texts(app)
    assert app.dataframe[0].value["study"].tolist() == ["small"]


@pytest.mark.parametrize("function", ["studies_page", "front_page", "design_page"])
def test_without_a_database_or_a_study(database, tmp_path, function):
    assert any("there is no database" in t for t in texts(call(function)))
    open_store(database).close()
    found = texts(call(function))
    assert any("No study is stored yet" in t for t in found)
    (tmp_path / "a.db").write_text("a letter, not a database at all")
    assert any("not an SQLite database" in t for t in texts(call(function)))


def test_a_study_with_a_front(database):
    results = study().run(24, db=database, report=lambda _: None)
    app = call("front_page")
    assert {m.label: m.value for m in app.metric}["designs"] == "24"
    assert app.dataframe[0].value["design"].tolist() == results.front().numbers.tolist()
    assert any("prior from published tables" in t for t in texts(app))
    number = int(results.front().numbers[0])
    app = call("design_page", study="small", design=str(number))
    assert any("feasible, on the front" in t for t in texts(app))
    assert app.dataframe[0].value["metric"].tolist()[0] == "latency_s"


def test_one_design(database):
    study().run(1, db=database, report=lambda _: None)
    assert call("front_page").metric[1].value == "1"
    call("design_page")


def test_no_feasible_design(database):
    study(constraints="area_mm2 <= 0.001").run(8, db=database, report=lambda _: None)
    assert any("No feasible design yet." in t for t in texts(call("front_page")))
    found = texts(call("design_page"))
    assert "not feasible" in found
    assert any("is broken" in t for t in found)


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
        from dse.metrics import MetricBatch

        return MetricBatch({n: np.ones(len(batch)) for n in self.metrics}, len(batch))

    def breakdown(self, batch):
        del batch
        return []


def test_failed_designs_and_hostile_text(database):
    run = study(HOSTILE, cost_models=(Broken(),), objectives="min latency_s, min energy_j")
    results = run.run(24, db=database, report=lambda _: None)
    failed = next(iter(results.metrics.errors))
    app = call("design_page", study=HOSTILE, design=str(failed))
    assert any(HOSTILE in element.value for element in app.text)
    assert not any(HOSTILE in element.value for element in app.markdown)
    call("front_page", study=HOSTILE)


@pytest.mark.parametrize(
    "parameters", [{"study": "deleted"}, {"design": "-1"}, {"design": "9" * 30}, {"design": "x", "study": ""}]
)
def test_addresses_that_lead_nowhere(database, parameters):
    study().run(8, db=database, report=lambda _: None)
    for function in ("front_page", "design_page"):
        call(function, **parameters)
