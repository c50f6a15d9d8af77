"""Figures and what they are drawn from: pure functions, checked against what went in."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from dse import Choice, Float, Scenario, Space, Study
from dse.hypervolume import hypervolume
from dse.pareto import constrained_front
from dse.protocols import Breakdown, Roofline
from dse.testing.samples import small_model

pytest.importorskip("plotly")
from dashboard import lineage
from dashboard.colouring import coloured, colourings
from dashboard.figures.fidelity import parity_figure
from dashboard.figures.front import Axis, Layer, drawable, front_figure, parallel_figure, thinned
from dashboard.figures.parts import breakdown_figure, map_figure, percentiles_figure, roofline_figure
from dashboard.figures.search import contour_figure, hypervolume_figure, importance_figure, shares_figure, slice_figure
from dashboard.figures.theme import heading, titled
from dashboard.history import growth, sources
from dashboard.maps import maps


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    study = Study(
        "figures",
        model=small_model(),
        scenario=Scenario(images=1, image_px=(140, 84), prompt_tokens=7, output_tokens=5),
        hardware="npu-template",
        space=Space(
            {"decoder/weight_bits": Choice(3, 4, 8, per="block.module")},
            k_bits=Choice(4, 8),
            ffn_keep=Float(0.5, 1.0, step=0.25, per="block"),
            pe_rows=Choice(4, 8, 16, 32),
        ),
        objectives="min latency_s, min energy_j, min quality_loss",
        constraints="area_mm2 <= 13",
        proposers=["random", "evolve"],
        ask_size=16,
    )
    return study.run(128, db=tmp_path_factory.mktemp("db") / "a.db", report=lambda _: None, executor="local")


def points(n, seed=0):
    return np.random.default_rng(seed).random((n, 2)) * [3.0, 100.0] + [1e-3, 1.0]


def decoded(array):
    """The numbers of a trace as they are sent."""
    document = array if isinstance(array, dict) else None
    if document is None:
        return np.asarray(array)
    return np.frombuffer(base64.b64decode(document["bdata"]), dtype=document["dtype"])


def test_titles_say_the_unit():
    assert titled("latency_s") == "latency (s)"
    assert titled("throughput_tokens_per_s") == "throughput (tokens/s)"
    assert heading("energy_j") == "Energy (J)"
    assert titled("accuracy_ratio") == "accuracy"


def test_a_front_sends_single_precision_and_its_numbers():
    xy = points(1000)
    layer = Layer("front", np.arange(1000) + 7, [xy[:, 0], xy[:, 1]])
    figure = front_figure([layer], [Axis("latency_s", log=True), Axis("energy_j", span=(5.0, 50.0))])
    trace = figure.to_plotly_json()["data"][0]
    np.testing.assert_array_equal(decoded(trace["x"]), xy[:, 0].astype(np.float32))
    np.testing.assert_array_equal(decoded(trace["customdata"]), np.arange(1000) + 7)
    assert figure.layout.yaxis.range == (5.0, 50.0)
    assert len(figure.to_json()) < 30_000


def test_a_density_is_where_designs_are():
    xy = points(50_000)
    below = Layer("dominated", np.arange(50_000), [xy[:, 0], xy[:, 1]])
    for log in (False, True):
        figure = front_figure([], [Axis("latency_s", log), Axis("energy_j", log)], below)
        z, edges = np.asarray(figure.data[0].z), [np.asarray(figure.data[0][letter]) for letter in "xy"]
        inside, *_ = np.histogram2d(xy[:, 0], xy[:, 1], bins=edges)
        assert ((z.T > 0) == (inside > 0)).mean() > 0.999
        assert z.max() == 255
        assert len(figure.to_json()) < 25_000


def test_words_from_users_are_not_read_as_html():
    layer = Layer("<b>x</b>", np.arange(2), [np.ones(2), np.ones(2)], note=np.array(["<i>a</i>", "b"]))
    text = front_figure([layer], [Axis("latency_s"), Axis("energy_j")]).to_json()
    assert "<b>x" not in text
    assert "<i>" not in text
    assert "<b>" not in parallel_figure([("<b>k", np.zeros(2), ["<b>1"])], np.zeros(2)).to_json()


def test_three_axes_and_intervals():
    xy = points(5)
    layer = Layer(
        "front", np.arange(5), [xy[:, 0], xy[:, 1], xy[:, 0]], ends=[(xy[:, 0] / 2, xy[:, 0] * 3), None, None]
    )
    figure = front_figure([layer], [Axis("latency_s"), Axis("energy_j", log=True), Axis("area_mm2")])
    assert figure.layout.scene.yaxis.type == "log"
    np.testing.assert_allclose(figure.data[0].error_x.array, 2 * xy[:, 0], rtol=1e-6)
    np.testing.assert_allclose(figure.data[0].error_x.arrayminus, xy[:, 0] / 2, rtol=1e-6)


def test_thinning_leaves_a_point_where_there_was_one():
    xy = points(30_000)
    axes = [Axis("latency_s"), Axis("energy_j")]
    kept = thinned(list(xy.T), axes)
    assert kept.sum() < 30_000
    spot = np.abs(xy[~kept][:200, None, :] - xy[kept][None]) / np.ptp(xy, axis=0)
    assert spot.max(axis=2).min(axis=1).max() < 1 / 130


def test_what_has_no_place_in_the_picture_is_left_out():
    column = np.array([np.nan, -1.0, 0.5, 2.0, np.inf])
    assert drawable([column], [Axis("latency_s")]).tolist() == [False, True, True, True, False]
    assert drawable([column], [Axis("latency_s", log=True)]).tolist() == [False, False, True, True, False]
    assert drawable([column], [Axis("latency_s", span=(0, 1))]).tolist() == [False, False, True, False, False]


def test_every_colouring_draws_every_design(results):
    front = constrained_front(results.objectives, results.violation)
    rest = np.setdiff1d(np.flatnonzero(results.violation == 0), front)
    columns = [results.metrics.values["latency_s"], results.metrics.values["energy_j"]]
    for by in [*colourings(results), None, "knob: none", "metric: none"]:
        layers = coloured(results, by, rest, front, columns)
        drawn = np.concatenate([layer.numbers for layer in layers])
        assert sorted(drawn.tolist()) == sorted([*rest, *front])
        front_figure(layers, [Axis("latency_s"), Axis("energy_j")])


def test_bars_of_a_breakdown_add_up(results):
    number = int(constrained_front(results.objectives, results.violation)[0])
    for part in results.breakdown(number):
        for by in ("kind", "class"):
            total = sum(float(np.sum(bar.x)) for bar in breakdown_figure([("", part)], by=by).data)
            assert total == pytest.approx(float(part.parts.sum()))
    two = [(f"design {i}", part) for i in range(2)]
    assert len(breakdown_figure(two).data[0].y) % 2 == 0


def test_kinds_have_colours_of_their_own():
    kinds = ("compute", "weight traffic", "unheard of", "array", "also new")
    part = Breakdown("latency_s", tuple(("d", "decode", "linear", k) for k in kinds), np.ones((1, 5)))
    colours = [bar.marker.color for bar in breakdown_figure([("", part)]).data]
    assert len(set(colours)) == 5
    assert (
        colours[0]
        == breakdown_figure([("", Breakdown("energy_j", part.labels[:1], part.parts[:, :1]))]).data[0].marker.color
    )


def test_maps_hold_each_value_in_its_place(results):
    number = int(np.argmax([len(set(row)) for row in results.stored.codes.tolist()]))
    design = results.design(number).design
    found = maps(design)
    field = design.schema.fields["weight_bits"]
    decoder = next(m for m in found["Weights"] if m.title == "decoder")
    for entry, value in zip(field.entries, design["weight_bits"][0].tolist(), strict=True):
        if entry.component == "decoder":
            row = str(entry.block) if entry.section == "block" else str(entry.section)
            assert decoder.values[decoder.rows.index(row), decoder.columns.index(entry.leaf)] == value
    assert [c for m in found["Cache"] for c in m.columns] == ["k_bits", "v_bits"]
    figure = map_figure(decoder)
    assert figure.data[0].text[0][0] in ("", *(f"{v:g}" for v in decoder.levels))
    assert "Activations" not in found  # as in the reference design


def test_growth_ends_at_the_front(results):
    curve = growth(results)
    front = results.front().numbers
    assert curve.n_designs[-1] == len(results)
    assert (np.diff(curve.volumes) >= 0).all()
    assert curve.volumes[-1] == pytest.approx(hypervolume(results.objectives[front], results.row.reference))
    hypervolume_figure({"all": (curve.n_designs, curve.volumes)}, "designs")
    who = sources(results, front)
    assert sum(len(s.rows) for s in who) == len(results)
    assert sum(s.n_front for s in who) == len(front)
    assert {s.name for s in who} == {"random", "evolve"}
    alone = growth(results, who[0].rows)
    assert alone.volumes[-1] <= curve.volumes[-1]


def test_lineage_follows_parents(results):
    child = next(i for i, parents in enumerate(results.stored.parents) if parents)
    found = lineage.ancestors(results, child)
    assert {a.number for a in found if a.generation == 1} == set(results.stored.parents[child])
    parent = results.stored.parents[child][0]
    assert child in lineage.children(results, parent)
    codes = results.space.repair(results.stored.codes[[parent, child]])
    changed = {p.label for p, differs in zip(results.space.parameters, codes[0] != codes[1], strict=True) if differs}
    assert {text.split(": ")[0] for text in lineage.differences(results, parent, child)} <= changed
    near = lineage.similar(results, child)
    assert child not in [n for n, _ in near]
    assert all(results.violation[n] == 0 for n, _ in near)


def test_a_roofline_by_hand():
    """1 ms at the peak of compute, 4 ms of traffic, taken in 5 ms: left of the ridge, at a fifth of the peak."""
    labels = (("decoder", "prefill", "linear"), ("decoder", "decode", "linear"), ("decoder", "decode", "nothing"))
    times = [np.array([[1e-3, 6e-3, 0.0]]), np.array([[4e-3, 2e-3, 0.0]]), np.array([[5e-3, 8e-3, 0.0]])]
    figure = roofline_figure(Roofline(labels, *times))
    assert [trace.name for trace in figure.data[1:]] == ["decoder, decode, linear", "decoder, prefill, linear"]
    marks = [(trace.x[0], trace.y[0]) for trace in figure.data[1:]]
    np.testing.assert_allclose(marks, [(3.0, 0.75), (0.25, 0.2)])
    assert (figure.data[0].x[1], figure.data[0].y[1]) == (1.0, 1.0)


def test_percentiles_stand_beside_their_mean():
    figure = percentiles_figure([("ttft_s", 0.2, {50: 0.1, 95: 0.4}), ("tpot_s", np.nan, {50: 0.01, 95: 0.02})])
    lines = [t for t in figure.data if t.mode == "lines"]
    assert [(t.x, t.y) for t in lines] == [((0.1, 0.4), ("ttft (s)",) * 2), ((0.01, 0.02), ("tpot (s)",) * 2)]
    marks = {t.name: t.x for t in figure.data if t.mode == "markers"}
    assert marks == {"50 % stay within": (0.1, 0.01), "95 % stay within": (0.4, 0.02), "mean": (0.2, None)}


def test_other_figures_take_what_they_are_given():
    shares_figure(["a", "b"], np.array([0, 10, 20]), np.array([[5, 10], [5, 0]]))
    importance_figure(["k"], ["latency_s"], np.array([[np.nan]]))
    slice_figure(["4", "8"], np.arange(8.0).reshape(4, 2), np.array([1, 2]), "latency_s")
    contour_figure(("a", "b"), (["1", "2"], ["x"]), np.array([[1.0, np.nan]]), np.array([[1, 0]]), "latency_s")
    figure = parity_figure("latency_s", ("analytical", "simulated"), np.array([1.0, 30]), np.array([1.1, 31]),
                           np.array([0, 1]), (0.9, 1.2))  # fmt: skip
    assert figure.layout.xaxis.type == "log"
