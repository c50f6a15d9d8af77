"""Studies with a ladder: who goes up, what is stored, what is shown; equal to the row wherever and however it ran."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import numpy as np
import optuna
import pandas as pd
import pytest
from sqlalchemy import delete, update

from dse import Choice, Float, Rung, Scenario, Space, Study
from dse.agreement import agreements, rank_correlation
from dse.cli.main import run as command
from dse.errors import NameUnknown, StudyChanged, UserError
from dse.metrics import Limit, MetricBatch
from dse.store import open_store, tables
from dse.store.upkeep import check
from dse.testing.samples import small_model

RUNGS = ["hardware=analytical, quality=prior", "hardware=simulated, quality=prior"]


class Cut(Exception):
    """The power goes."""


class Cheap:
    """Three columns in closed form, as a base; the dear one below shifts them."""

    laws = frozenset()
    metrics = ("latency_s", "energy_j", "area_mm2")

    def __init__(self, fidelity="analytical", shift=0.0, *, group="hardware", broken=(), spoilt=()):
        self.fidelity, self.shift, self.group = fidelity, shift, group
        self.broken, self.spoilt = broken, spoilt
        self.name = f"toy-{fidelity}"
        self.version = "1"

    @property
    def fingerprint(self):
        return f"{self.name}-{self.shift}-{self.broken}"

    def prepare(self, problem):
        del problem
        return self

    def evaluate(self, batch):
        size, bits = batch["pe_rows"].astype(float), batch["weight_bits"].mean(axis=1)
        keep = batch["ffn_keep"].mean(axis=1)
        bad = np.isin(batch["pe_rows"], self.broken)
        values = {
            "latency_s": bits * keep / size * np.exp(self.shift * np.sin(size)),
            "energy_j": bits * keep * (1 + 0.01 * size) * np.exp(self.shift * np.cos(3 * bits)),
            "area_mm2": size * (1 + 0.2 * self.shift),
        }
        limits = [
            Limit("sram_bytes", np.where(bad, 2048.0, 0.0), np.full(len(batch), 1024.0), "{needed} of {available}")
        ]
        errors = dict.fromkeys(np.flatnonzero(np.isin(batch["pe_rows"], self.spoilt)).tolist(), "broke")
        return MetricBatch(values, len(batch), limits=limits, errors=errors)

    def breakdown(self, batch):
        del batch
        return []


def make(name="two", designs=60, dear=None, **options):
    return Study(
        name,
        model=small_model("text"),
        scenario=Scenario(prompt_tokens=7, output_tokens=5),
        hardware="npu-template",
        space=Space(
            weight_bits=Choice(3, 4, 6, 8, per="block"),
            ffn_keep=Float(0.5, 1.0, step=0.125, per="block"),
            pe_rows=Choice(*range(8, 72, 4)),
        ),
        objectives="min latency_s, min energy_j, min quality_loss",
        constraints="area_mm2 <= 60",
        proposers="evolve",
        **{
            "cost_models": [Cheap(), "prior"],
            "ladder": Rung(dear or Cheap("simulated", 0.4), designs=designs),
            "ask_size": 16,
            "trials": 160,
        }
        | options,
    )


def quiet(progress):
    del progress


def run(path, study, **options):
    return study.run(db=path, **{"report": quiet, "executor": "local"} | options)


def told(study, path):
    """All that a study with a ladder stores."""
    stored = study.results(path).stored
    answers = [
        ({name: v.tobytes() for name, v in one.metrics.values.items()}, one.there.tolist())
        for one in stored.answers.values()
    ]
    rounds = [(p.number, p.rung, p.n_below, p.n_within_reach, p.designs.tolist(), p.is_done) for p in stored.promotions]
    return stored.hashes, answers, rounds, study.results(path).row.stop_reason


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a.db"
    run(path, make())
    return path


def test_promising_designs_go_up_and_the_front_is_drawn_within_one_combination(whole):
    results = make().results(whole)
    assert results.fidelities == RUNGS
    assert results.evaluated.sum() == 160
    top = results.at("simulated")
    assert top.evaluated.sum() == 60
    rounds = results.stored.promotions
    assert [len(p.designs) for p in rounds] == [16, 4, 16, 16, 8]
    assert all(p.is_done and p.rung == 1 and p.n_below == 160 for p in rounds)
    assert sorted(np.concatenate([p.designs for p in rounds]).tolist()) == np.flatnonzero(top.evaluated).tolist()
    low, high = results.front(fidelity="analytical"), results.front()
    assert low.results.fidelity == RUNGS[0]
    assert high.results.fidelity == RUNGS[1]
    assert set(high.numbers.tolist()) <= set(np.flatnonzero(top.evaluated).tolist())
    # Dominance written out: the front are those promoted points that no other one beats.
    points = top.objectives[top.evaluated & (top.violation == 0)]
    beaten = [((points <= one).all(axis=1) & (points < one).any(axis=1)).any() for one in points]
    assert {*map(tuple, points[~np.array(beaten)])} == {*map(tuple, top.objectives[high.numbers])}
    assert "at hardware=simulated, quality=prior (60 of 160 designs)" in str(high)
    assert "60 designs promoted to hardware=simulated, quality=prior, its budget" in results.row.stop_reason


def test_groups_that_a_rung_leaves_alone_keep_their_values(whole):
    results = make().results(whole)
    top = results.at(1)
    there = top.evaluated
    assert (top.metrics.values["quality_loss"][there] == results.metrics.values["quality_loss"][there]).all()
    size = results.space.decode(results.stored.codes)["pe_rows"].astype(float)
    ratio = top.metrics.values["latency_s"][there] / results.metrics.values["latency_s"][there]
    np.testing.assert_allclose(ratio, np.exp(0.4 * np.sin(size[there])), rtol=1e-12)


@pytest.mark.parametrize("cut", [3, 120, 161, 170, 177, 190, 215])
def test_a_run_cut_below_or_above_equals_the_uninterrupted_one(tmp_path, whole, cut):
    seen = 0

    def report(progress):
        nonlocal seen
        seen = progress.n_done + (160 if progress.stage else 0)
        if seen >= cut:
            raise Cut

    with pytest.raises(Cut):
        run(tmp_path / "cut.db", make(), report=report)
    assert len(told(make(), tmp_path / "cut.db")[1]) == 3
    run(tmp_path / "cut.db", make())
    assert told(make(), tmp_path / "cut.db") == told(make(), whole)
    store = open_store(tmp_path / "cut.db")
    assert list(check(store)) == []
    store.close()


@pytest.mark.parametrize("executor", ["process", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def test_rows_are_the_same_in_every_executor(tmp_path, whole, executor):
    if executor == "ray" and find_spec("ray") is None:  # importing it here would be before the executor sets it up
        pytest.skip("Ray is not installed")
    run(tmp_path / "a.db", make(), executor=executor, workers=2)
    assert told(make(), tmp_path / "a.db") == told(make(), whole)


def test_a_larger_budget_promotes_more_of_the_same_designs_and_then_as_many_as_it_would_have(tmp_path, whole):
    run(tmp_path / "a.db", make(designs=36))
    first = told(make(), tmp_path / "a.db")
    run(tmp_path / "a.db", make())
    assert told(make(), tmp_path / "a.db")[0] == first[0]
    assert told(make(), tmp_path / "a.db")[:3] == told(make(), whole)[:3]
    run(tmp_path / "a.db", make())  # nothing is left to finish: as many designs again
    assert len(make().results(tmp_path / "a.db")) == 320


def test_a_share_grows_with_the_study(tmp_path):
    results = run(tmp_path / "a.db", make(designs=0.1))
    assert results.at(1).evaluated.sum() == 16
    results = run(tmp_path / "a.db", make(designs=0.1))
    assert len(results) == 320
    assert results.at(1).evaluated.sum() == 32


def test_rungs_that_agree_promote_the_front_and_little_else(tmp_path):
    results = run(tmp_path / "a.db", make(designs=160, dear=Cheap("simulated", 0.0)))
    low, high = results.front(fidelity=0), results.front()
    assert low.results.objectives[low.numbers].tolist() == high.results.objectives[high.numbers].tolist()
    n = int(results.at(1).evaluated.sum())
    assert len(low) <= n <= len(low) + 20
    assert "no other is within reach of its front" in results.row.stop_reason


def test_designs_that_cannot_run_above_use_budget_and_are_on_no_front(tmp_path):
    sizes = tuple(range(8, 40, 4))
    results = run(tmp_path / "a.db", make(dear=Cheap("simulated", 0.1, broken=sizes)))
    top = results.at(1)
    assert top.evaluated.sum() == 60
    size = results.space.decode(results.stored.codes)["pe_rows"]
    stuck = top.evaluated & np.isin(size, sizes)
    assert 0 < stuck.sum() < 60
    assert (top.violation[stuck] > 0).all()
    assert not np.isin(size[results.front().numbers], sizes).any()
    assert "2 KiB of 1 KiB" in top.reason(int(np.flatnonzero(stuck)[0]))


def test_a_rung_on_which_all_fail_stops_with_the_reason_and_goes_on_when_it_is_cured(tmp_path):
    everything = tuple(range(8, 72, 4))
    with pytest.raises(UserError, match=r"all 16 designs promoted to hardware=simulated, quality=prior .* broke"):
        run(tmp_path / "a.db", make(dear=Cheap("simulated", 0.4, spoilt=everything)))
    assert make().results(tmp_path / "a.db").row.state == "failed"
    run(tmp_path / "a.db", make())
    assert make().results(tmp_path / "a.db").at(1).evaluated.sum() == 60


def test_nothing_goes_up_where_hardly_any_design_can_run(tmp_path):
    everything = tuple(range(8, 72, 4))
    results = run(tmp_path / "a.db", make(designs=160, dear=Cheap("simulated", 0.1, broken=everything)))
    assert 19 <= results.at(1).evaluated.sum() <= 36
    assert "no other is within reach" in results.row.stop_reason
    assert len(results.front()) == 0
    assert "no feasible design" in str(results.front())
    assert len(results.front(fidelity="analytical"))


def test_three_rungs(tmp_path):
    class Loss:
        name, group, fidelity, version = "toy-loss", "quality", "measured", "1"
        laws, metrics, fingerprint = frozenset(), ("quality_loss",), "toy-loss-1"

        def prepare(self, problem):
            del problem
            return self

        def evaluate(self, batch):
            return MetricBatch({"quality_loss": 9.0 - batch["weight_bits"].mean(axis=1)}, len(batch))

        def breakdown(self, batch):
            del batch
            return []

    ladder = [Rung(Cheap("simulated", 0.4), 60), Rung([Loss()], designs=0.5)]
    results = run(tmp_path / "a.db", make(ladder=ladder))
    assert results.fidelities[2] == "hardware=simulated, quality=measured"
    assert [int(results.at(k).evaluated.sum()) for k in range(3)] == [160, 60, 30]
    assert results.front().results.rung == 2
    assert results.at("measured").rung == 2
    third = results.at(2)
    assert (
        third.metrics.values["latency_s"][third.evaluated] == results.at(1).metrics.values["latency_s"][third.evaluated]
    ).all()


def test_a_wall_clock_ends_promotion_and_the_same_command_goes_on(tmp_path, whole, monkeypatch):
    from dse import stopping

    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])

    def report(progress):
        now[0] += 1.0 if progress.stage else 0.0

    run(tmp_path / "a.db", make(), report=report, wall_clock=2)
    row = make().results(tmp_path / "a.db").row
    assert row.stop_reason == "2 s of wall clock are over"
    assert 0 < make().results(tmp_path / "a.db").at(1).evaluated.sum() < 60
    run(tmp_path / "a.db", make())
    assert told(make(), tmp_path / "a.db") == told(make(), whole)


@pytest.mark.parametrize(
    ("harm", "finding"),
    [
        (
            lambda t: delete(t.promotion).where(t.promotion.c.number == 4),
            "8 evaluations on rung 1 belong to no promotion",
        ),
        (lambda t: delete(t.promotion).where(t.promotion.c.number == 2), "promotion 3 is not what follows"),
        (lambda t: delete(t.evaluation).where(t.evaluation.c.evaluator_id == 3), "promotion 0 is marked as done, 16"),
    ],
)
def test_a_check_finds_broken_promotions(tmp_path, whole, harm, finding):
    shutil.copy(whole, tmp_path / "a.db")
    store = open_store(tmp_path / "a.db")
    assert list(check(store)) == []
    with store.engine.begin() as connection:
        connection.execute(harm(tables))
    assert any(finding in text for text in check(store)), list(check(store))
    store.close()


def test_a_round_whose_coordinator_vanished_counts_its_attempts(tmp_path, whole):
    shutil.copy(whole, tmp_path / "a.db")
    store = open_store(tmp_path / "a.db")
    with store.engine.begin() as connection:
        last = make().results(whole).stored.promotions[4].designs.tolist()
        gone = delete(tables.evaluation).where(tables.evaluation.c.evaluator_id == 3)
        connection.execute(gone.where(tables.evaluation.c.number.in_(last[5:])))
        connection.execute(update(tables.promotion).where(tables.promotion.c.number == 4).values(is_done=False))
        connection.execute(update(tables.study).values(state="running", lease_owner="elsewhere:1:a", lease_until_s=1.0))
    store.close()
    assert make().results(tmp_path / "a.db").at(1).records(last[5:6])[0]["status"] == "stale"
    run(tmp_path / "a.db", make())
    assert told(make(), tmp_path / "a.db") == told(make(), whole)
    attempts = make().results(tmp_path / "a.db").stored.attempts
    assert sorted(np.flatnonzero(attempts).tolist()) == sorted(last[5:])


# ------------------------------------------------------------------ definitions


@pytest.mark.parametrize(
    ("rung", "message"),
    [
        (lambda: Rung("simulated", designs=0), "neither a whole number"),
        (lambda: Rung("simulated", designs=1.5), "neither a whole number"),
        (lambda: Rung([]), "at least one cost model"),
        (lambda: make(ladder=Rung(Cheap())), "gives the hardware metrics below it too"),
        (lambda: make(ladder=Rung("simulatid")), "simulated"),
        (lambda: make(dear=Cheap("simulated", 0.4, group="serving")), "gives latency_s, .* as the hardware metrics do"),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(rung, message):
    with pytest.raises(UserError, match=message):
        rung()


def test_a_rung_that_does_not_give_what_the_goal_needs_is_refused():
    short = Cheap("simulated", 0.4)
    short.metrics = ("latency_s", "energy_j")
    with pytest.raises(UserError, match="nobody gives area_mm2"):
        make(dear=short)


def test_another_rung_is_another_definition_and_another_budget_is_not(tmp_path):
    run(tmp_path / "a.db", make(designs=8))
    with pytest.raises(StudyChanged, match="ladder"):
        run(tmp_path / "a.db", make(dear=Cheap("simulated", 0.5)))
    run(tmp_path / "a.db", make(designs=9))


def test_a_study_without_a_ladder_is_defined_as_it_was():
    assert "ladder" not in make(ladder=()).spec()


# ------------------------------------------------------------------ looking


def test_names_of_combinations(whole):
    results = make().results(whole)
    for wanted, rung in (("simulated", 1), ("toy-simulated", 1), (RUNGS[1], 1), ("1", 1), (1, 1), ("prior", 0), (0, 0)):
        assert results.at(wanted).rung == rung
    for wrong in ("measured", "7", -1):
        with pytest.raises(NameUnknown, match="unknown fidelity"):
            results.at(wrong)


def test_records_say_which_fidelity_they_are_of(whole):
    results = make().results(whole)
    waiting = int(np.flatnonzero(~results.at(1).evaluated)[0])
    assert {r["fidelity"] for r in results.front().records()} == {RUNGS[1]}
    assert results.at(1).records([waiting])[0]["status"] == "not promoted"
    assert results.records([waiting])[0]["status"] == "ok"
    assert list(results.at(1).frame().loc[[waiting], "latency_s"].isna()) == [True]


def test_the_command_line_names_the_combination(whole, capsys):
    def told_by(*arguments):
        assert command([*arguments, "--db", str(whole)]) == 0
        return capsys.readouterr().out

    front = json.loads(told_by("front", "two", "--json"))
    assert front["fidelity"] == RUNGS[1]
    assert front["fidelities"] == RUNGS
    low = json.loads(told_by("front", "two", "--fidelity", "analytical", "--json"))
    assert low["fidelity"] == RUNGS[0]
    number = front["front"][0]["number"]
    shown = told_by("show", "two", str(number))
    assert all(label in shown for label in RUNGS)
    both = json.loads(told_by("show", "two", str(number), "--json"))["fidelities"]
    assert [one["fidelity"] for one in both] == RUNGS
    assert both[0]["metrics"]["latency_s"] != both[1]["metrics"]["latency_s"]
    assert command(["front", "two", "--fidelity", "measured", "--db", str(whole)]) == 2


def test_what_is_exported_is_of_the_highest_fidelity_that_there_is(whole, tmp_path):
    def exported(*arguments):
        assert command(["export", "two", *arguments, "--db", str(whole), "--overwrite"]) == 0

    results = make().results(whole)
    front, waiting = results.front(), int(np.flatnonzero(~results.at(1).evaluated & (results.violation == 0))[0])
    for number, view in ((int(front.numbers[0]), results.at(1)), (waiting, results)):
        exported(str(number), "--to", "design", "--out", str(tmp_path))
        document = json.loads((tmp_path / f"two-{number}.json").read_text())
        assert document["metrics"]["latency_s"]["value"] == view.metrics.values["latency_s"][number]
        fidelity = "simulated" if view.rung else "analytical"
        assert document["metrics"]["latency_s"]["fidelity"] == fidelity
        assert document["metrics"]["quality_loss"]["fidelity"] == "prior"
        assert [one["name"] for one in document["cost_models"]] == [f"toy-{fidelity}", "prior"]
    exported(str(tmp_path / "front.csv"), "--to", "csv", "--front")
    rows = pd.read_csv(tmp_path / "front.csv", index_col="number")
    assert rows.index.tolist() == front.numbers.tolist()
    np.testing.assert_array_equal(rows["latency_s"], results.at(1).metrics.values["latency_s"][front.numbers])
    exported(str(tmp_path / "front.md"), "--to", "markdown")
    assert "hardware=simulated, quality=prior, 60 designs" in (tmp_path / "front.md").read_text()
    exported(f"sqlite:///{tmp_path}/optuna.db", "--to", "optuna")
    trials = optuna.load_study(study_name="two", storage=f"sqlite:///{tmp_path}/optuna.db").trials
    assert trials[front.numbers[0]].values[0] == results.metrics.values["latency_s"][front.numbers[0]]


def test_agreement_of_pairs_in_closed_form(whole, capsys):
    results = make().results(whole)
    one = agreements(results)[0]
    by_name = {m.metric: m for m in one.metrics}
    assert (one.n_below, one.n_designs, one.n_front) == (160, 60, len(results.front()))
    assert by_name["quality_loss"].rank_correlation == pytest.approx(1.0)
    assert (by_name["quality_loss"].ratio, by_name["area_mm2"].n_pairs) == (1.0, 60)
    assert by_name["area_mm2"].ratio == pytest.approx(1.08)  # 1 + 0.2 * 0.4
    rows = np.flatnonzero(results.at(1).evaluated)
    size = results.space.decode(results.stored.codes[rows])["pe_rows"].astype(float)
    assert by_name["latency_s"].ratio == pytest.approx(np.median(np.exp(0.4 * np.sin(size))))
    assert command(["fidelity", "two", "--db", str(whole)]) == 0
    shown = capsys.readouterr().out
    assert "60 of 160 designs" in shown
    assert "1.08" in shown
    assert command(["fidelity", "two", "--db", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rungs"][0]["n_designs"] == 60


def test_rank_correlation_against_the_textbook():
    # Without ties 1 - 6 sum d^2 / (n (n^2 - 1)) (Kendall and Gibbons, Rank Correlation Methods); sum d^2 = 8, n = 5.
    assert rank_correlation(np.array([1.0, 2, 3, 4, 5]), np.array([3.0, 2, 1, 4, 5])) == pytest.approx(1 - 48 / 120)
    assert rank_correlation(np.arange(4.0), -np.exp(np.arange(4.0))) == pytest.approx(-1.0)
    # Ties at their mean rank: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert rank_correlation(np.array([1.0, 2, 2, 3]), np.arange(4.0)) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
