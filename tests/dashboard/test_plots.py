"""``dse plot``: figures as files that need nobody else."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest

from dse import Choice, Rung, Scenario, Space, Study
from dse.cli.main import run
from dse.errors import UserError
from dse.testing.samples import small_model

pytest.importorskip("plotly")
from dashboard import plots
from dashboard.plots import Plotter

HOSTILE = "<script>alert(1)</script>"
BROWSER = os.environ.get("CHROMIUM") or shutil.which("chromium-headless-shell") or shutil.which("chromium")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("db") / "a.db"
    for name, constraints in (("small", ()), (HOSTILE, ()), ("none", "area_mm2 <= 0.001")):
        Study(
            name,
            model=small_model(),
            scenario=Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
            hardware="npu-template",
            space=Space(weight_bits=Choice(3, 4, 8, per="component"), pe_rows=Choice(4, 8, 16, 32)),
            objectives="min latency_s, min energy_j, min quality_loss",
            constraints=constraints,
        ).run(32, db=path, report=lambda _: None, executor="local")
    return str(path)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--x", "memory_bytes", "--y", "area_mm2", "--colour", "knob: pe_rows"],
        ["--kind", "growth"],
        ["--kind", "importance"],
        ["--kind", "breakdown", "--design", "3", "--metric", "energy_j"],
    ],
)
def test_each_kind_is_one_file_that_asks_nobody(database, tmp_path, arguments):
    file = tmp_path / "figure.html"
    assert run(["plot", "small", *arguments, "--out", str(file), "--db", database]) == 0
    text = file.read_text()
    assert "Plotly.newPlot" in text
    body = re.sub(r"<script[^>]*>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)=", body)


def test_a_front_is_of_the_highest_fidelity_that_designs_have(tmp_path):
    results = Study(
        "two",
        model=small_model(),
        scenario=Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
        hardware="npu-template",
        space=Space(weight_bits=Choice(3, 4, 8, per="component"), pe_rows=Choice(4, 8, 16, 32)),
        objectives="min latency_s, min energy_j, min quality_loss",
        ladder=Rung("simulated", designs=9),
    ).run(24, db=tmp_path / "a.db", report=lambda _: None, executor="local")
    drawn = next(trace for trace in plots._front(results, {}).data if trace.name.startswith("front"))
    front = results.front()
    assert front.results.rung == 1
    assert drawn.customdata.tolist() == front.numbers.tolist()
    expected = front.results.metrics.values["latency_s"][front.numbers]
    assert drawn.x.tolist() == expected.astype(np.float32).tolist()


def test_a_name_is_only_text(database, tmp_path):
    file = tmp_path / "figure.html"
    assert run(["plot", HOSTILE, "--out", str(file), "--db", database]) == 0
    assert HOSTILE not in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", "--out", "x.html"], "unknown study"),
        (["small", "--out", "x.pdf"], "use .html or .png"),
        (["small", "--out", "x.html", "--kind", "fornt"], "did you mean 'front'"),
        (["small", "--out", "x.html", "--x", "latency"], "did you mean 'latency_s'"),
        (["small", "--out", "x.html", "--colour", "knob: pe_row"], "did you mean 'knob: pe_rows'"),
        (["small", "--out", "x.html", "--kind", "breakdown"], "--design NUMBER"),
        (["small", "--out", "x.html", "--kind", "breakdown", "--design", "999"], "has no design 999"),
        (["none", "--out", "x.html"], "no feasible design"),
        (["none", "--out", "x.html", "--kind", "growth"], "no feasible design"),
        (["small", "--out", "there.html"], "--overwrite"),
        (["small", "--out", "no/such/x.html"], ""),
    ],
)
def test_what_cannot_be_drawn_is_said(database, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    code = run(["plot", *arguments, "--db", database])
    assert words in capsys.readouterr().err
    assert (code == 0) == (not words)
    assert (tmp_path / "there.html").read_text() == "mine"


def test_no_browser_is_said(database, monkeypatch):
    from dse.results import Results
    from dse.store import open_store

    store = open_store(database, read_only=True)
    results = Results.load(store, "small")
    store.close()
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="needs a browser"):
        Plotter().draw(results, "front", {}, ".png")


@pytest.mark.browser
@pytest.mark.slow
def test_a_png_is_a_picture(database, tmp_path):
    if BROWSER is None:
        pytest.skip("no Chromium: apt install chromium-headless-shell")
    file = tmp_path / "front.png"
    assert run(["plot", "small", "--out", str(file), "--db", database]) == 0
    content = file.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) > 20_000
