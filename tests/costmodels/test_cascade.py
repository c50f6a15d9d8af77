"""Cascades: the recursion against enumeration of paths, monotone thresholds, rankings, logs, published summaries."""

import csv
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.cascade import mean_over_routes, quantiles, ranking, route
from dse.cascades import CascadeProfile, CascadeTable, Rerun, StageProfile, cascade_from_json
from dse.errors import TableError, UserError


def _table(rng, q, k, m):
    names = (*(f"stage{i + 1}" for i in range(k - 1)), "target")
    score = rng.integers(0, 6, (q, k)) / 5  # with ties
    tests = (rng.random((q, k, m)) < 0.6).astype(float)
    return CascadeTable(
        names, score, (rng.random((q, k)) < 0.6).astype(float), rng.integers(1, 50, (q, k)) * 1.0, tests
    )


def _enumerate(table, threshold, tests, kept, cost):
    """Every path of every query, one at a time: (weight, cost, credit, first stage passed on), flips included."""
    q, k = table.score.shape
    paths = []
    for i in range(q):
        alive = [(1.0, 0.0)]
        for s in range(k):
            weight, so_far = alive.pop()
            spent = so_far + cost[i][s]
            scores = [
                table.tests[j, s, : int(tests[s])].mean() if s < k - 1 and tests[s] else table.score[j, s]
                for j in range(q)
            ]
            wrong = [j for j in range(q) if table.correct[j, s] == 0]
            cases = []  # (chance, passes, credit)
            passes = s == k - 1 or scores[i] >= threshold[s]
            if table.correct[i, s]:
                cases.append((kept[s], passes, 1.0))
                pool = wrong or range(q)
                for j in pool:
                    cases.append(((1 - kept[s]) / len(pool), s == k - 1 or scores[j] >= threshold[s], 0.0))
            else:
                cases.append((1.0, passes, 0.0))
            paths += [(weight * c / q, spent, credit, s > 0) for c, ok, credit in cases if ok]
            alive.append((weight * sum(c for c, ok, _ in cases if not ok), spent))
    return paths


@pytest.mark.validates("policy", "cascades, drawn tables", "enumeration of every path", "equal to 1e-12")
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), q=st.integers(1, 7), k=st.integers(1, 4), m=st.integers(0, 3))
def test_the_recursion_is_the_enumeration_of_every_path(seed, q, k, m):
    rng = np.random.default_rng(seed)
    table = _table(rng, q, k, m)
    threshold, kept = rng.integers(0, 6, (3, k - 1)) / 5, rng.random((3, k))
    kept[0] = 1.0
    tests = rng.integers(0, m + 1, (3, k - 1)).astype(float)
    routes = route(table, threshold, tests, kept)
    cost = rng.random((3, q, k))
    spent = mean_over_routes(routes, cost)
    points = quantiles(routes, cost, (0.5, 0.95))
    for d in range(3):
        paths = _enumerate(table, threshold[d], tests[d], kept[d], cost[d])
        assert sum(w for w, *_ in paths) == pytest.approx(1.0)
        assert spent[d] == pytest.approx(sum(w * c for w, c, *_ in paths), rel=1e-12)
        assert routes.accuracy_ratio[d] == pytest.approx(sum(w * r for w, _, r, _ in paths), abs=1e-12)
        assert routes.escalation_ratio[d] == pytest.approx(sum(w for w, _, _, on in paths if on), abs=1e-12)
        for level, point in zip((0.5, 0.95), points[:, d], strict=True):
            below = sum(w for w, c, *_ in paths if c < point - 1e-12)
            up_to = sum(w for w, c, *_ in paths if c <= point + 1e-12)
            assert below <= level + 1e-9
            assert up_to >= level - 1e-9


def _several(rng, q, k, m, s):
    tables = [_table(rng, q, k, m) for _ in range(s)]
    return replace(tables[0], further=tuple(tables[1:]))


def _enumerate_solutions(table, stage, tests, several, threshold, kept, is_last):
    """Every combination of flips of the first ``several`` answers, and of what flipped ones score, query by query."""
    q = len(table.score)
    answers = [
        [
            (float(one.tests[i, stage, :tests].mean()) if tests else float(one.score[i, stage]), one.correct[i, stage])
            for one in table.solutions[:several]
        ]
        for i in range(q)
    ]
    every = [a for own in answers for a in own]
    pool = [score for score, right in every if not right] or [score for score, _ in every]
    found = []
    for own in answers:
        options = []
        for score, right in own:
            cases = [(kept if right else 1.0, score, right)]
            if right:
                cases += [((1 - kept) / len(pool), wrong, 0.0) for wrong in pool]
            options.append(cases)
        keeps = credit = 0.0
        for combination in itertools.product(*options):
            chance = math.prod(c for c, _, _ in combination)
            best = max(score for _, score, _ in combination)
            right = next(r for _, score, r in combination if score == best)
            if is_last or best >= threshold:
                keeps, credit = keeps + chance, credit + chance * right
        found.append((keeps, credit))
    return np.array(found)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), q=st.integers(1, 4), m=st.integers(0, 3), s=st.integers(1, 3))
def test_solutions_and_generated_tests_equal_the_enumeration_of_every_outcome(seed, q, m, s):
    """Two stages; each writes up to s solutions and m tests; the enumeration knows no product and no distribution."""
    rng = np.random.default_rng(seed)
    table = _several(rng, q, 2, m, s)
    n = 3
    threshold, kept = rng.integers(0, 6, (n, 1)) / 5, rng.random((n, 2))
    kept[0] = 1.0
    tests, several = rng.integers(0, m + 1, (n, 2)) * 1.0, rng.integers(1, s + 1, (n, 2)) * 1.0
    routes = route(table, threshold, tests, kept, several)
    for d in range(n):
        first, last = (
            _enumerate_solutions(
                table, stage, int(tests[d, stage]), int(several[d, stage]), threshold[d, 0], kept[d, stage], stage == 1
            )
            for stage in range(2)
        )
        assert last[:, 0] == pytest.approx(1.0)
        assert routes.escalation_ratio[d] == pytest.approx(1 - first[:, 0].mean(), abs=1e-12)
        right = first[:, 1] + (1 - first[:, 0]) * last[:, 1]
        assert routes.accuracy_ratio[d] == pytest.approx(right.mean(), abs=1e-12)


def test_a_compressed_stage_that_was_asked_again_answers_as_it_did():
    """Runs at 0, 0.04 and 0.16 nats; a loss of 0.09 is half way between the roots of the last two."""
    own, runs = np.array([0.9, 0.8, 0.7, 0.1]), ([0.9, 0.4, 0.7, 0.1], [0.9, 0.4, 0.2, 0.6])
    right = np.array([1.0, 1.0, 1.0, 0.0])
    table = CascadeTable(("stage1", "target"), np.stack([own, own], axis=1), np.stack([right, np.ones(4)], axis=1))
    reruns = tuple(
        Rerun(loss, CascadeTable(("stage1",), np.array(score)[:, None], right[:, None]))
        for loss, score in zip((0.16, 0.04), (runs[1], runs[0]), strict=True)
    )
    loss = np.array([[0.0, 0.0], [0.04, 0.0], [0.09, 0.0], [0.16, 0.0], [9.0, 0.0]])
    kept = np.array([[0.9, 1.0]] * 4 + [[0.5, 1.0]])
    one = np.ones((5, 1))
    routes = route(replace(table, reruns=reruns), 0.5 * one, 0 * one, kept, None, loss)
    # Passed on: the last query; then query 2 too; then 2 and 3, but not 4. Half way: queries 2, half of 3, half of 4.
    assert routes.escalation_ratio[:4].tolist() == pytest.approx([0.25, 0.5, 0.5, 0.5])
    assert routes.stop[2, :, 0].tolist() == pytest.approx([1.0, 0.0, 0.5, 0.5])
    # Beyond the last run half of the right answers turn wrong, and score as its one wrong answer does: 0.6, kept.
    assert routes.stop[4, :, 0].tolist() == pytest.approx([1.0, 0.5, 0.5, 1.0])
    assert routes.right[4, :, 0].tolist() == pytest.approx([0.5, 0.0, 0.0, 0.0])
    # Without a loss the runs are not looked at.
    plain = route(replace(table, reruns=reruns), 0.5 * one, 0 * one, np.ones((5, 2)))
    assert plain.escalation_ratio.tolist() == [0.25] * 5


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_higher_threshold_passes_on_more_and_costs_more(seed):
    table = _table(np.random.default_rng(seed), 40, 2, 0)
    threshold = np.linspace(0, 1, 9)[:, None]
    routes = route(table, threshold, np.zeros((9, 1)), np.ones((9, 2)))
    assert (np.diff(routes.escalation_ratio) >= -1e-15).all()
    assert (np.diff(mean_over_routes(routes, np.ones((1, 1, 2)))) >= -1e-15).all()
    assert routes.escalation_ratio[0] == 0.0
    np.testing.assert_allclose(routes.stop.sum(axis=2), 1.0)


def test_a_cascade_pays_only_if_the_first_stage_keeps_enough():
    """c1 < p1 c2: with costs 1 and 4, keeping 30 % pays (1 + 0.7 x 4 = 3.8 < 4) and keeping 20 % does not."""
    score = np.repeat([[0.9, 0.0]], 10, axis=0)
    for kept, expected in ((3, 3.8), (2, 4.2)):
        score[:, 0] = np.arange(10) < kept
        table = CascadeTable(("stage1", "target"), score, np.ones((10, 2)))
        routes = route(table, np.array([[0.5]]), np.zeros((1, 1)), np.ones((1, 2)))
        assert mean_over_routes(routes, np.array([[[1.0, 4.0]]]))[0] == pytest.approx(expected)


def test_percentiles_are_of_the_mixture_not_of_the_mean():
    """Nine of ten queries take 1 s, the tenth 1 + 10 s: mean 2 s, median 1 s, 95th percentile 11 s."""
    score = np.array([[1.0, 0.0]] * 9 + [[0.0, 0.0]])
    table = CascadeTable(("stage1", "target"), score, np.ones((10, 2)))
    routes = route(table, np.array([[0.5]]), np.zeros((1, 1)), np.ones((1, 2)))
    cost = np.array([[[1.0, 10.0]]])
    assert mean_over_routes(routes, cost)[0] == pytest.approx(2.0)
    assert quantiles(routes, cost, (0.5, 0.9, 0.95))[:, 0].tolist() == [1.0, 1.0, 11.0]


def test_compression_changes_escalation_and_accuracy_together():
    """Six right answers score 1, four wrong ones 0, threshold 0.5; a third of the right ones turn wrong and score 0."""
    right = np.arange(10) < 6
    table = CascadeTable(
        ("stage1", "target"), np.stack([right, right], axis=1) * 1.0, np.stack([right, ~right + right], axis=1) * 1.0
    )
    routes = route(table, np.array([[0.5], [0.5]]), np.zeros((2, 1)), np.array([[1.0, 1.0], [2 / 3, 1.0]]))
    assert routes.escalation_ratio.tolist() == pytest.approx([0.4, 0.6])
    assert routes.accuracy_ratio.tolist() == pytest.approx([1.0, 1.0])


@given(seed=st.integers(0, 2**32 - 1), q=st.integers(2, 30))
def test_auroc_is_the_share_of_pairs_in_order(seed, q):
    rng = np.random.default_rng(seed)
    score, correct = rng.integers(0, 5, q) / 4, (rng.random(q) < 0.5).astype(float)
    pairs = [
        (a, b) for a, x in zip(score, correct, strict=True) if x for b, y in zip(score, correct, strict=True) if not y
    ]
    found = ranking(score, correct)
    if not pairs:
        assert np.isnan(found.auroc)
    else:
        assert found.auroc == pytest.approx(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
        assert found.low <= found.auroc <= found.high


@pytest.mark.parametrize(("accuracy", "auroc"), [(0.3, 0.6), (0.6, 0.8), (0.9, 0.95)])
def test_a_profile_has_the_figures_it_was_asked_for(accuracy, auroc):
    profile = CascadeProfile({"stage1": StageProfile(accuracy, auroc, 0.9, 0.2), "target": StageProfile(0.8, 0.7)}, 0.6)
    table = profile.table()
    right = table.correct[:, 0] > 0.5
    assert right.mean() == pytest.approx(accuracy, abs=0.01)
    assert ranking(table.score[:, 0], table.correct[:, 0]).auroc == pytest.approx(auroc, abs=0.02)
    assert table.tests[right, 0].mean() == pytest.approx(0.9, abs=0.02)
    assert table.tests[~right, 0].mean() == pytest.approx(0.2, abs=0.02)
    # Scores are chances: of answers that score about s, a share of about s is right.
    near = (table.score[:, 0] > accuracy - 0.1) & (table.score[:, 0] < accuracy + 0.1)
    assert table.correct[near, 0].mean() == pytest.approx(table.score[near, 0].mean(), abs=0.06)
    # Hard for one is hard for the other.
    assert np.corrcoef(table.correct.T)[0, 1] > 0.15
    assert cascade_from_json(json.loads(json.dumps(profile.to_json()))) == profile


def _log(path, text):
    path.write_text(text)
    return path


def test_a_log_is_read_and_kept(tmp_path):
    text = "query,stage,score,correct,tokens,test_1,test_2\na,stage1,0.5,1,10,1,0\na,target,0.9,true,20,1,1\n"
    table = CascadeTable.of_log(_log(tmp_path / "log.csv", text))
    assert table.stages == ("stage1", "target")
    assert table.tokens is not None
    assert table.tokens.tolist() == [[10.0, 20.0]]
    assert table.scores(0, 0).tolist() == [0.5]
    assert table.scores(0, 2).tolist() == [0.5]
    assert table.scores(0, 1).tolist() == [1.0]
    back = cascade_from_json(json.loads(json.dumps(table.to_json())))
    assert back.content_hash == table.content_hash


def test_a_log_with_solutions_and_compressed_runs_is_read_and_kept(tmp_path):
    head = "query,stage,score,correct,test_1,solution,loss\n"
    rows = [
        "a,stage1,0.5,1,1,1,", "b,stage1,0.4,0,0,1,", "a,stage1,0.6,0,0,2,", "b,stage1,0.3,1,1,2,",
        "a,target,0.9,1,1,1,", "b,target,0.8,1,1,1,", "a,target,0.7,1,0,2,", "b,target,0.6,0,1,2,",
        "b,stage1,0.2,0,0,1,0.1", "a,stage1,0.1,0,1,1,0.1", "a,stage1,0.25,0,1,2,0.1", "b,stage1,0.35,0,0,2,0.1",
    ]  # fmt: skip
    table = CascadeTable.of_log(_log(tmp_path / "log.csv", head + "\n".join(rows) + "\n"))
    assert (table.stages, table.n_solutions, table.n_tests) == (("stage1", "target"), 2, 1)
    assert table.solutions[1].score.tolist() == [[0.6, 0.7], [0.3, 0.6]]
    losses, runs = table.runs(0)
    assert losses.tolist() == [0.0, 0.1]
    assert runs[1].score.tolist() == [[0.1], [0.2]]
    assert runs[1].solutions[1].score.tolist() == [[0.25], [0.35]]
    assert table.runs(1)[0].tolist() == [0.0]
    back = cascade_from_json(json.loads(json.dumps(table.to_json())))
    assert back.content_hash == table.content_hash
    half = table.rows(np.array([1]))
    assert half.runs(0)[1][1].score.tolist() == [[0.2]]


def test_solutions_of_a_profile_are_as_good_as_asked_and_alike():
    stages = {"stage1": StageProfile(0.5, 0.7, 0.9, 0.2), "target": StageProfile(0.8, 0.7)}
    loose, tight = (CascadeProfile(stages, 0.5, 2, 3, c).table() for c in (0.1, 0.9))
    for table in (loose, tight):
        for one in table.solutions:
            assert one.correct.mean(axis=0) == pytest.approx([0.5, 0.8], abs=0.02)
    any_right = [np.max([one.correct[:, 0] for one in t.solutions], axis=0).mean() for t in (loose, tight)]
    assert 0.5 < any_right[1] < any_right[0] < 1 - 0.5**3 + 0.02
    profile = CascadeProfile(stages, 0.5, 2, 3, 0.4)
    assert cascade_from_json(json.loads(json.dumps(profile.to_json()))) == profile


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("query,stage,score,correct,loss\na,target,0.5,1,0.1\n", "no row of an uncompressed stage"),
        ("query,stage,score,correct,loss\na,target,0.5,1,\na,target,0.5,1,-1\n", "loss='-1'"),
        ("query,stage,score,correct,loss\na,target,.5,1,\nb,target,.5,1,\na,target,.5,1,1\n", "'b' has no row of"),
        ("query,stage,score,correct,solution\na,target,0.5,1,1.5\n", "solution=1.5"),
        ("query,stage,score,correct,solution\na,target,0.5,1,1\na,target,0.5,1,3\n", "no row of target, solution 2"),
        ("query,stage,score,correct\na,target,nan,1\n", "score='nan'"),
        ("query,stage,score,correct\na,target,,1\n", "score missing"),
        ("query,stage,score,correct\na,target,inf,1\n", "score='inf'"),
        ("query,stage,score,correct\na,target,3.5,1\n", "score='3.5'"),
        ("query,stage,score,correct\na,target,0.5,maybe\n", "correct='maybe'"),
        ("query,stage,score,correct\na,stage1,0.5,1\na,target,0.5,1\nb,target,0.5,1\n", "'b' has no row of stage1"),
        ("query,stage,score,correct\na,target,0.5,1\na,target,0.5,1\n", "twice"),
        ("query,stage,score\na,target,0.5\n", "correct missing"),
        ("query,stage,score,correct,tokens\na,target,0.5,1,5\nb,target,0.5,1,\n", "tokens are missing in some"),
    ],
)
def test_logs_that_cannot_be(tmp_path, text, law):
    with pytest.raises(TableError, match=law):
        CascadeTable.of_log(_log(tmp_path / "log.csv", text))


def test_tables_that_cannot_be():
    with pytest.raises(UserError, match="not finite"):
        CascadeTable(("target",), np.array([[np.nan]]), np.ones((1, 1)))
    with pytest.raises(UserError, match="stages"):
        CascadeTable(("target",), np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(UserError, match="accuracy"):
        StageProfile(1.5)
    one = CascadeTable(("target",), np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(UserError, match="further solutions"):
        replace(one, further=(one.rows(np.array([0])),))
    with pytest.raises(UserError, match="other stages or queries"):
        replace(one, reruns=(Rerun(0.1, one.rows(np.array([0]))),))
    with pytest.raises(UserError, match=r"0\.1 nats has 1 self-tests"):
        replace(one, reruns=(Rerun(0.1, replace(one, tests=np.ones((2, 1, 1)))),))
    with pytest.raises(UserError, match="above 0"):
        Rerun(0.0, one)
    with pytest.raises(UserError, match="n_solutions=0"):
        CascadeProfile({"target": StageProfile(0.5)}, n_solutions=0)


@pytest.mark.parametrize(
    ("threshold", "tests", "kept"),
    [
        (np.zeros((2, 2)), np.zeros((2, 1)), np.ones((2, 2))),
        (np.zeros((2, 0)), np.zeros((2, 1)), np.ones((2, 2))),
        (np.zeros((1, 1)), np.zeros((2, 1)), np.ones((2, 2))),
        (np.full((2, 1), np.nan), np.zeros((2, 1)), np.ones((2, 2))),
        (np.zeros((2, 1)), np.zeros((2, 3)), np.ones((2, 2))),
        (np.zeros((2, 1)), np.zeros((2, 1)), np.ones((2, 3))),
    ],
)
def test_lists_of_the_wrong_length(threshold, tests, kept):
    table = CascadeTable(("stage1", "target"), np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(UserError, match=r"cascade: t.*\(2, 1\)|cascade: t.*2 design"):
        route(table, threshold, tests, kept)


def _summaries():
    file = Path(__file__).parents[1] / "data" / "frugalgpt.csv"
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in csv.DictReader(file.read_text().splitlines()):
        kind = "cascade" if row["system"] == "FrugalGPT" else "single"
        point = (float(row["test_cost_usd_per_query"]), float(row["test_acc"]))
        found.setdefault(row["dataset"], {"cascade": [], "single": []})[kind].append(point)
    return found


@pytest.mark.validates(
    "policy",
    "best two-stage cascades within published budgets, four data sets",
    "FrugalGPT's summaries",
    "ordered as published, none worse than the best single model of its price",
)
@pytest.mark.parametrize("data_set", ["HEADLINES", "COQA", "AGNEWS", "OVERRULING"])
def test_the_order_of_published_cascades_by_cost_and_accuracy(data_set):
    """FrugalGPT's summaries: accuracies and prices of single models in, the best two-stage cascade within each budget
        out.

    Two things are in the figures: what costs more is not less accurate, and a cascade is not worse than the best single
    model of its price. The profile (AUROC 0.7, correlation 0.8) is a guess that no data set was used for.
    """
    singles, published = (sorted(_summaries()[data_set][kind]) for kind in ("single", "cascade"))
    profile = CascadeProfile({str(i): StageProfile(a, 0.7) for i, (_, a) in enumerate(singles)}, 0.8, 0)
    table, points = profile.table(), list(singles)
    for pair in itertools.combinations(range(len(singles)), 2):
        two = table.of([str(i) for i in pair])
        threshold = np.quantile(two.score[:, 0], np.linspace(0, 1, 16))[:, None]
        routes = route(two, threshold, np.zeros((16, 1)), np.ones((16, 2)))
        cost = mean_over_routes(routes, np.array([[[singles[i][0] for i in pair]]]))
        points += zip(cost, routes.accuracy_ratio, strict=True)

    def best(at, budget):
        return max([a for c, a in at if c <= budget * (1 + 1e-9)], default=0.0)

    predicted = [best(points, cost) for cost, _ in published]
    for (cost, accuracy), found in zip(published, predicted, strict=True):
        assert found >= best(singles, cost) - 1e-12
        if accuracy > best(singles, cost) + 0.02:
            assert found > best(singles, cost)
    order = [accuracy for _, accuracy in published]
    for i, j in itertools.combinations(range(len(order)), 2):
        assert (predicted[i] - predicted[j]) * (order[i] - order[j]) >= 0
