"""A study that is interrupted, at any batch and with any proposer, goes on as the uninterrupted one would have."""

from __future__ import annotations

import random

import pytest

from dse import Choice, Float, Scenario, Space, Study
from dse.errors import UserError
from dse.stopping import Plateau
from dse.testing.samples import small_model

PROPOSERS = [
    "auto", "auto:arms=evolve+random+optuna:nsga2", "evolve", "tpe", "gp", "local", "bottleneck", "enumerate",
    "random", "sobol", "allocate", "llm:provider=prose,wait_s=30",
    "optuna:tpe", "optuna:nsga2:population_size=10", "optuna:nsga3:population_size=10", "optuna:random",
]  # fmt: skip


class Cut(Exception):
    """The power goes."""


def make(proposers="evolve", **options):
    return Study(
        "resumed",
        model=small_model("text"),
        scenario=Scenario(prompt_tokens=7, output_tokens=5),
        hardware="npu-template",
        space=Space(
            weight_bits=Choice(3, 4, 6, 8, per="block"),
            ffn_keep=Float(0.5, 1.0, step=0.125),
            pe_rows=Choice(*range(8, 72, 4)),
            dataflow=Choice("ws", "os"),
        ),
        objectives="min latency_s, min energy_j, min quality_loss",
        constraints="area_mm2 <= 15",
        proposers=proposers,
        **{"ask_size": 8, "trials": 96} | options,
    )


def quiet(progress):
    del progress


def run(path, study, **options):
    study.run(db=path, report=options.pop("report", quiet), executor="local", **options)
    return told(study, path)


def told(study, path):
    stored = study.results(path).stored
    batches = [stored.proposers[b] for b in stored.batches.tolist()]
    columns = [{name: v.tobytes() for name, v in metrics.values.items()} for metrics in stored.metrics]
    return stored.hashes, stored.codes.tolist(), stored.marks.tolist(), stored.parents, batches, columns


def test_every_packaged_proposer_is_tried_here():
    from dse import catalogue

    assert {name.partition(":")[0] for name in PROPOSERS} == set(catalogue.listing("proposer"))


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("name", PROPOSERS)
def test_a_run_cut_at_random_batches_equals_the_uninterrupted_one(tmp_path, name, lag):
    whole = run(tmp_path / "whole.db", make(name, lag=lag))
    rng = random.Random(f"{name} {lag}")
    for cut in sorted(rng.sample(range(1, 11), 3)):

        def report(progress, cut=cut):
            if progress.n_done >= 8 * cut:
                raise Cut

        with pytest.raises(Cut):
            run(tmp_path / "cut.db", make(name, lag=lag), report=report)
    assert run(tmp_path / "cut.db", make(name, lag=lag)) == whole


def test_proposers_that_take_turns_are_taken_over_as_they_came(tmp_path):
    names = ["sobol", "evolve", "optuna:nsga2:population_size=10"]
    whole = run(tmp_path / "whole.db", make(names))
    for n in (16, 40, 40):  # the last one brings it to where the first run ended
        run(tmp_path / "cut.db", make(names), trials=n)
    assert told(make(), tmp_path / "cut.db") == whole


# ------------------------------------------------------------------ designs of the user's own


def test_enqueued_designs_come_first_and_are_paid_once(tmp_path):
    def study():
        made = make("random", trials=24)
        assert made.enqueue({"pe_rows": 16, "weight_bits": 8}, {"ffn_keep": 0.6}) == [
            "ffn_keep: 0.6 is not a level, took 0.625"
        ]
        return made

    path = tmp_path / "a.db"
    whole = run(path, study())
    assert whole[4][:3] == ["user", "user", "random"]
    values = study().bound_space.values(study().results(path).stored.codes[:2])
    assert values[0]["pe_rows"] == 16
    assert {v for k, v in values[0].items() if k.startswith("weight_bits")} == {8}
    assert values[1]["ffn_keep"] == 0.625
    run(path, study(), trials=8)
    assert told(study(), path)[4].count("user") == 2


def test_a_cut_run_with_enqueued_designs_equals_the_uninterrupted_one(tmp_path):
    def study():
        made = make(reference=True)
        made.enqueue({"pe_rows": 16})
        return made

    def report(progress):
        if progress.n_done >= 30:
            raise Cut

    whole = run(tmp_path / "whole.db", study())
    with pytest.raises(Cut):
        run(tmp_path / "cut.db", study(), report=report)
    assert run(tmp_path / "cut.db", study()) == whole
    assert whole[4][:2] == ["reference", "user"]


def test_the_reference_design_stands_beside_the_front(tmp_path):
    study = make(reference=True)
    run(tmp_path / "a.db", study)
    front = study.front(tmp_path / "a.db")
    assert front.results.reference == 0
    assert study.bound_space.values(front.results.stored.codes[:1])[0]["ffn_keep"] == 1.0
    assert "reference design 0" in front.text()


def test_a_warm_start_takes_over_what_fits_and_says_what_does_not(tmp_path, capsys):
    path = tmp_path / "a.db"
    old = make("random")
    run(path, old)
    best = old.front(path)
    space = Space(weight_bits=Choice(4, 8, per="block"), pe_rows=Choice(*range(8, 72, 4)), dataflow=Choice("os", "is"))
    warm = Study(
        "warm", model=small_model("text"), scenario=Scenario(prompt_tokens=7, output_tokens=5), hardware="npu-template",
        space=space, objectives="min latency_s, min energy_j", proposers="random", ask_size=16, warm_start="resumed",
    )  # fmt: skip
    warm.run(32, db=path, executor="local")
    err = capsys.readouterr().err
    assert "warm: warm start: ffn_keep is no parameter here, left out" in err
    assert "left at the reference" in err  # ws
    assert "6 is not a level" in err
    results = warm.results(path)
    taken = results.space.values(results.stored.codes[results.stored.batches == 0])
    assert results.stored.proposers[0] == "warm start: resumed"
    assert {v["pe_rows"] for v in taken} <= {v["pe_rows"] for v in old.bound_space.values(
        best.results.stored.codes[best.numbers])}  # fmt: skip
    warm.run(16, db=path, report=quiet, executor="local")
    assert list(warm.results(path).stored.proposers.values()).count("warm start: resumed") == 1


# ------------------------------------------------------------------ stop rules


def test_a_target_ends_a_run_and_is_stored(tmp_path):
    path = tmp_path / "a.db"
    probe = make(trials=400)
    run(path, probe)
    objectives = probe.results(path).objectives
    feasible = probe.results(path).violation == 0
    bound = sorted(objectives[feasible, 0])[len(objectives) // 10]
    other = tmp_path / "b.db"
    run(other, make(trials=400), target=f"latency_s <= {bound:.9e}")
    results = make().results(other)
    assert results.row.state == "finished"
    assert results.row.stop_reason.startswith("target reached: latency_s <= ")
    # The first batch that has such a design is the last one.
    first = next(i for i in range(400) if feasible[i] and objectives[i, 0] <= float(f"{bound:.9e}"))
    assert len(results) == (first // 8 + 1) * 8
    run(other, make(trials=400))
    assert told(make(), other) == told(probe, path)  # and it can be run again, to where it would have ended


def test_a_hypervolume_target(tmp_path):
    seen = []
    run(tmp_path / "a.db", make(), report=lambda p: seen.append((p.n_done, p.hypervolume)))
    wanted = seen[6][1]
    run(tmp_path / "b.db", make(), target=wanted)
    n = next(n for n, volume in seen if volume >= wanted)
    assert len(make().results(tmp_path / "b.db")) == n


def test_a_plateau_is_what_its_formula_says_however_the_run_was_cut(tmp_path):
    seen = {}
    run(tmp_path / "a.db", make(trials=800), report=lambda p: seen.setdefault(p.n_done, p.hypervolume))
    rule = Plateau(designs=80, gain_ratio=0.01)
    # Batches end at every 8 designs, and every 10 designs are looked at: at the first batch end behind each.
    looks = [n for n in range(8, 801, 8) if n // 10 > (n - 8) // 10 and n > 80]
    end = next(n for n in looks if seen[n] - seen[n - 80] <= 0.01 * seen[n])
    run(tmp_path / "b.db", make(trials=800), plateau=rule)
    stopped = make().results(tmp_path / "b.db")
    assert len(stopped) == end
    assert stopped.row.stop_reason == "plateau: 80 designs added no more than 0.01 of the hypervolume"

    def report(progress):
        if progress.n_done >= 48:
            raise Cut

    with pytest.raises(Cut):
        run(tmp_path / "c.db", make(trials=800), plateau=rule, report=report)
    run(tmp_path / "c.db", make(trials=800), plateau=rule)
    assert len(make().results(tmp_path / "c.db")) == end


def test_a_clock_ends_a_run(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("dse.stopping.time.monotonic", lambda: now[0])

    def report(progress):
        now[0] = 60.0 * progress.n_done

    run(tmp_path / "a.db", make(), wall_clock="20 min", report=report)
    results = make().results(tmp_path / "a.db")
    assert results.row.stop_reason == "1200 s of wall clock are over"
    assert len(results) == 24  # the loop tells of a batch, then asks the clock


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({"wall_clock": "2 weeks"}, "is no time"),
        ({"wall_clock": -1}, "not more than nothing"),
        ({"target": "area_mm2 <= 3"}, "is no objective"),
        ({"target": "latency <= 3"}, "unknown metric"),
    ],
)
def test_rules_that_are_none(tmp_path, options, law):
    with pytest.raises(UserError, match=law):
        make().run(db=tmp_path / "a.db", report=quiet, **options)
    with pytest.raises(UserError, match="gain_ratio=2"):
        Plateau(gain_ratio=2)
