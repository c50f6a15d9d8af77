"""What each of our own proposers promises: on the kit, on problems with a known front, under constraints, on resume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.auto import Auto
from agents.exhaustive import Enumerate
from agents.local import moves
from agents.variation import Layout, cross, mutate
from dse import catalogue
from dse.errors import NameUnknown, UserError
from dse.hypervolume import hypervolume
from dse.loop import Loop
from dse.metrics import MetricBatch
from dse.objectives import Goal
from dse.params import Choice, Float, Int
from dse.protocols import Chunk, History, Proposals
from dse.record import Record
from dse.space import Space
from dse.testing.samples import small_problem

ADAPTIVE = ["evolve", "tpe", "gp", "local", "bottleneck", "auto"]
GRID = Space(
    pe_rows=Int(1, 12), pe_cols=Int(1, 12), n_cores=Int(1, 12), batch=Int(1, 12), tile_m=Int(1, 12), tile_n=Int(1, 12),
    tile_k=Int(1, 12), vector_lanes=Int(1, 12),
).bind(small_problem())  # fmt: skip
TWO = Goal.parse("min latency_s, min energy_j")
NOTHING = np.empty((0, GRID.n_parameters), np.uint16), np.empty(0, np.int64)


def zdt1(codes):
    """ZDT1 (Zitzler, Deb and Thiele, 2000) on a grid: the front is f2 = 1 - sqrt(f1), where all but x0 are 0."""
    x = codes / 11
    g = 1 + 9 * x[:, 1:].mean(axis=1)
    return {"latency_s": x[:, 0], "energy_j": g * (1 - np.sqrt(x[:, 0] / g))}


def dtlz2(codes):
    """DTLZ2 (Deb et al., 2002), three objectives: the front is an eighth of the unit sphere, the other x at 1/2."""
    x = codes / 11
    g = ((x[:, 2:] - 6 / 11) ** 2).sum(axis=1)
    a, b = x[:, 0] * np.pi / 2, x[:, 1] * np.pi / 2
    f = [(1 + g) * np.cos(a) * np.cos(b), (1 + g) * np.cos(a) * np.sin(b), (1 + g) * np.sin(a)]
    return dict(zip(("latency_s", "energy_j", "quality_loss"), f, strict=True))


class Toy:
    """Executor and journal of a function from codes to columns."""

    name = "toy"

    def __init__(self, rule):
        self.rule, self.batches, self.paid = rule, [], []

    def submit(self, codes):
        self.paid += [tuple(row) for row in codes.tolist()]
        self.batches.append(codes)
        return len(self.batches) - 1

    def collect(self, ticket):
        codes = self.batches[ticket]
        yield Chunk(0, [MetricBatch(self.rule(codes.astype(float)), len(codes))])

    def close(self):
        pass

    def proposed(self, batch):
        self.last = batch

    def evaluated(self, batch, start, groups, *, is_last):
        pass


def append(record, codes, objectives, violation, marks, proposer):
    """Add designs that ran, of a goal without constraints."""
    n = len(codes)
    record.append(codes, objectives, violation, np.empty((n, 0)), np.zeros(n, dtype=bool), marks, [(proposer, n)])


def search(name, rule, n, seed=0, *, space=GRID, goal=TWO, k=8, lag=1):
    toy = Toy(rule)
    proposers = [catalogue.proposer(name) if isinstance(name, str) else name]
    loop = Loop(space, goal, proposers, toy, toy, seed=seed, ask_size=k, lag=lag)
    *_, progress = loop.run(n)
    return loop.record, toy, progress


def volume(record, reference):
    return hypervolume(record.objectives()[record.violation() == 0], np.array(reference))


# The best of 8^11 random designs is nowhere near the front: random designs fail these by far (checked below).
@pytest.mark.parametrize(("name", "share"), [("evolve", 0.45), ("tpe", 0.7), ("gp", 0.9), ("auto", 0.95)])
def test_zdt1_front_is_approached(name, share):
    grid = np.arange(12) / 11
    true = hypervolume(np.stack([grid, 1 - np.sqrt(grid)], axis=1), np.array([1.1, 2.0]))
    reached = [volume(search(name, zdt1, 200, seed)[0], [1.1, 2.0]) / true for seed in range(3)]
    by_chance = [volume(search("random", zdt1, 200, seed)[0], [1.1, 2.0]) / true for seed in range(3)]
    assert max(by_chance) < 0.4
    assert min(reached) > share


@pytest.mark.parametrize("name", ["evolve", "tpe", "gp", "auto"])  # local stays where it starts
def test_dtlz2_better_than_chance_on_every_seed(name):
    goal = Goal.parse("min latency_s, min energy_j, min quality_loss")
    reference = [1.1, 1.1, 1.1]
    for seed in range(3):
        ours = volume(search(name, dtlz2, 120, seed, goal=goal)[0], reference)
        chance = volume(search("random", dtlz2, 120, seed, goal=goal)[0], reference)
        assert ours > 1.1 * chance


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("lag", [1, 2])
def test_nothing_is_proposed_twice(name, lag):
    record, toy, progress = search(name, zdt1, 150, lag=lag, k=16)
    assert record.n == 150
    assert len(set(toy.paid)) == 150
    assert progress.n_duplicates == 0


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_small_feasible_corner_is_found(name):
    # Feasible: the last four knobs sum to at most 6 of 44, 210 of 20,736 combinations: one design in a hundred.
    def rule(codes):
        return zdt1(codes) | {"area_mm2": 1 + codes[:, 4:].sum(axis=1)}

    goal = Goal.parse("min latency_s, min energy_j", "area_mm2 <= 7")
    n_random = [int((search("random", rule, 150, s, goal=goal)[0].violation() == 0).sum()) for s in range(4)]
    n_ours = [int((search(name, rule, 150, s, goal=goal)[0].violation() == 0).sum()) for s in range(4)]
    assert max(n_random) <= 3
    assert min(n_ours) > 5
    assert np.median(n_ours) > 40


@pytest.mark.parametrize("name", ADAPTIVE)
def test_designs_that_fail_are_lived_with(name):
    def rule(codes):
        return {m: np.where(codes[:, 3] > 5, np.nan, v) for m, v in zdt1(codes).items()}

    def broken(codes):
        columns = rule(codes)
        bad = np.flatnonzero(np.isnan(columns["latency_s"]))
        return MetricBatch(columns, len(codes), errors=dict.fromkeys(bad.tolist(), "no"))

    toy = Toy(rule)
    toy.collect = lambda ticket: iter([Chunk(0, [broken(toy.batches[ticket].astype(float))])])
    loop = Loop(GRID, TWO, [catalogue.proposer(name)], toy, toy, seed=0, ask_size=8, lag=1)
    *_, progress = loop.run(100)
    assert progress.n_done == 100
    assert progress.n_failed < 40  # half of the space fails


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("space", [
    Space(pe_rows=Int(1, 4), dataflow=Choice("ws", "os")),
    Space(dataflow=Choice("ws", "os", "is"), loop_order=Choice("mnk", "nkm"), batch=Choice(3)),
    Space(head_keep=Float(0.3, 1.0), dataflow=Choice("ws", "os"), pe_rows=Int(1, 4, when={"dataflow": "ws"})),
])  # fmt: skip
def test_small_odd_and_conditional_spaces(name, space):
    space = space.bind(small_problem())

    def rule(codes):
        return {"latency_s": codes[:, 0], "energy_j": 10 - codes.sum(axis=1) / 110}

    n = min(space.n_designs, 60)
    record, toy, _ = search(name, rule, n, space=space, k=4)
    assert len(set(toy.paid)) == len(toy.paid) == record.n
    assert record.n == n or space.n_designs > 60


@pytest.mark.parametrize("window", [600, 1200])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_instance_with_a_past_answers_as_a_new_one(name, window):
    old = catalogue.proposer(name)
    # Not only more of the same study: another one of the same length too.
    for n, seed in ((window // 2, 0), (window // 2, 1), (window + 200, 0), (window // 3, 0)):
        record, _, _ = search("random", zdt1, n, seed)
        part = Record(GRID, TWO, 0)
        append(part, record._codes[:n], record.objectives()[:n], record.violation()[:n], np.full(n, -1), "random")
        view = part.view(old.name, old.window, [])
        a, b = (p.propose(view, 8, np.random.default_rng(3)) for p in (old, catalogue.proposer(name)))
        np.testing.assert_array_equal(a.codes, b.codes)
        assert list(a.parents) == list(b.parents)


# ---------------------------------------------------------------------------------------------- enumerate


def test_enumerate_gives_every_design_once_and_none_that_is_none():
    space = Space(
        dataflow=Choice("ws", "os", "is"), batch=Int(1, 5), pe_rows=Int(1, 7, when={"dataflow": "ws"}),
        tile_m=Int(1, 4, when={"dataflow": ("os", "is")}),
    ).bind(small_problem())  # fmt: skip
    record, toy, progress = search(
        "enumerate", lambda c: {"latency_s": c[:, 0], "energy_j": c[:, 1]}, 10_000, space=space
    )
    # By hand: 5 batches times (7 rows for ws, 4 tiles for each of os and is).
    assert record.n == 5 * (7 + 4 + 4)
    assert len(set(toy.paid)) == record.n
    assert progress.end == "search space exhausted"


def test_enumerate_passes_over_what_others_proposed():
    space = Space(pe_rows=Int(1, 30), pe_cols=Int(1, 30)).bind(small_problem())
    toy = Toy(lambda c: {"latency_s": c[:, 0], "energy_j": c[:, 1]})
    loop = Loop(
        space, TWO, [catalogue.proposer(n) for n in ("random", "enumerate")], toy, toy, seed=0, ask_size=64, lag=2
    )
    *_, progress = loop.run(10_000)
    assert len(set(toy.paid)) == len(toy.paid) == 900
    assert progress.n_done == 900


def test_enumerate_refuses_what_it_would_never_finish():
    with pytest.raises(UserError, match="the limit is 50,000,000"):
        Enumerate().propose(Record(GRID, TWO, 0).view("enumerate", 1, []), 8, np.random.default_rng(0))


# ---------------------------------------------------------------------------------------------- auto


@pytest.mark.parametrize(
    ("name", "law"),
    [("auto:arms=evolv", "evolve"), ("auto:arm=evolve", "unknown option"), ("auto:arms=evolve+evolve", "different"),
     ("auto:arms=auto", "different"), ("auto:arms=", "unknown proposer")],
)  # fmt: skip
def test_portfolios_that_are_none(name, law):
    with pytest.raises((NameUnknown, UserError), match=law):
        catalogue.proposer(name)


def _history_in_which(arm, n_arms=2, n=160):
    """All arms propose in turn; only designs of ``arm`` add anything."""
    record = Record(GRID, TWO, 0)
    rng = np.random.default_rng(0)
    arms = np.arange(n) % n_arms
    better = np.linspace(0.5, 0.0, n)
    objectives = np.where((arms == arm)[:, None], np.stack([better, better], axis=1), 1.0 + rng.random((n, 2)))
    append(record, GRID.sample(n, rng), objectives, np.zeros(n), arms, "auto:arms=random+evolve")
    return record.view("auto:arms=random+evolve", 0, [])


@pytest.mark.parametrize("arm", [0, 1])
def test_the_arm_that_earns_gets_the_larger_share(arm):
    shares = Auto("arms=random+evolve").shares(_history_in_which(arm))
    assert shares.sum() == pytest.approx(1)
    assert shares[arm] > 0.75
    assert shares[1 - arm] > 0.02  # never silenced


def test_an_arm_that_stops_earning_loses_its_share():
    history = _history_in_which(0, n=160)
    auto = Auto("arms=random+evolve")
    more = 300
    rng = np.random.default_rng(1)
    arms = np.arange(more) % 2
    best = np.linspace(-0.1, -0.5, more)
    later = replace(
        history,
        codes=np.concatenate([history.codes, GRID.sample(more, rng)]),
        objectives=np.concatenate(
            [history.objectives, np.where((arms == 1)[:, None], np.stack([best, best], axis=1), 2.0)]
        ),
        violation=np.zeros(160 + more),
        numbers=np.arange(160 + more),
        marks=np.concatenate([history.marks, arms]),
        n_total=160 + more,
    )
    assert auto.shares(history)[0] > 0.75
    assert auto.shares(later)[1] > 0.75


def test_an_arm_that_answers_late_and_earns_nothing_falls_to_a_probe_rate():
    auto = Auto("arms=random+evolve+local+tpe+llm")
    before, after = (auto.shares(_history_in_which(0, n_arms=5, n=n))[4] for n in (1, 200))  # the fifth is the model
    assert after < before / 3


def test_in_a_real_run_an_arm_that_proposes_nonsense_is_starved():
    class Worst:
        name, window = "worst", 1

        def propose(self, history, k, rng):
            codes = history.space.sample(k, rng)
            codes[:, 1:] = 11 - codes[:, 1:] // 6
            return Proposals(codes)

    auto = Auto("arms=random+evolve")
    auto._arms = [Worst(), auto._arms[1]]
    record, _, _ = search(auto, zdt1, 300)
    marks = record._marks[:300]
    given = np.bincount(marks[marks >= 0] % 16, minlength=2)
    assert given[1] > 2 * given[0]


def test_arms_see_their_own_marks_only_and_what_the_others_propose_now():
    seen: dict[str, list[History]] = {"a": [], "b": []}

    class Spy:
        window = 0

        def __init__(self, name):
            self.name = name

        def propose(self, history, k, rng):
            seen[self.name].append(history)
            return Proposals(history.space.sample(k, rng), marks=np.full(k, 5 if self.name == "a" else 7))

    auto = Auto("arms=random+evolve")
    auto._arms = [Spy("a"), Spy("b")]
    search(auto, zdt1, 120)
    for name, mark in (("a", 5), ("b", 7)):
        marks = seen[name][-1].marks
        assert set(marks.tolist()) == {-1, mark}
    assert any(len(h.pending_codes) for h in seen["a"] + seen["b"])


# ---------------------------------------------------------------------------------------------- variation


def test_every_mutation_changes_something_and_stays_in_range():
    space = Space(pe_rows=Int(1, 40), dataflow=Choice("ws", "os", "is"), batch=Choice(4), n_cores=Int(1, 2)).bind(
        small_problem()
    )
    layout, rng = Layout.of(space), np.random.default_rng(0)
    codes = space.sample(2000, rng).astype(np.int64)
    changed = mutate(layout, codes, rng.integers(0, 4, 2000), rng)
    assert ((changed >= 0) & (changed < space.n_levels)).all()
    assert (changed != codes).any(axis=1).all()
    at = {label: space.labels.index(label) for label in ("batch", "pe_rows")}
    assert (changed[:, at["batch"]] == 0).all()  # a knob of one level
    gentle = mutate(layout, codes, np.zeros(2000, dtype=int), rng)
    assert np.abs(gentle[:, at["pe_rows"]] - codes[:, at["pe_rows"]]).max() <= 1


def test_block_crossover_cuts_a_declaration_at_most_once_and_mixes_only_the_parents():
    space = Space(weight_bits=Choice(2, 3, 4, 6, 8, per="block"), pe_rows=Int(1, 9)).bind(small_problem())
    layout, rng = Layout.of(space), np.random.default_rng(0)
    n = 500
    a, b = np.zeros((n, space.n_parameters), int), np.ones((n, space.n_parameters), int)
    child = cross(layout, a, b, np.full(n, 2), rng)
    inside = child[:, layout.block == 0]
    assert (np.abs(np.diff(inside, axis=1)).sum(axis=1) <= 1).all()
    assert 0.3 < child.mean() < 0.7
    assert (cross(layout, a, b, np.zeros(n, int), rng) == a).all()


def test_moves_are_counted_by_hand():
    space = Space(pe_rows=Int(1, 9), dataflow=Choice("ws", "os", "is"), batch=Choice(4)).bind(small_problem())
    knob, change = moves(Layout.of(space))
    # One up, one down; two other words; nothing to move on a knob of one level.
    assert space.labels == ("batch", "pe_rows", "dataflow")
    assert sorted(zip(knob.tolist(), change.tolist(), strict=True)) == [(1, -1), (1, 1), (2, 1), (2, 2)]


def test_local_polishes_all_neighbours_of_the_front_before_going_further():
    space = Space(pe_rows=Int(1, 9), pe_cols=Int(1, 9)).bind(small_problem())
    record = Record(space, TWO, 0)
    append(record, np.array([[4, 4]]), np.array([[0.0, 0.0]]), np.zeros(1), np.full(1, -1), "random")
    found = catalogue.proposer("local").propose(record.view("local", 0, []), 4, np.random.default_rng(0))
    assert sorted(map(tuple, found.codes.tolist())) == [(3, 4), (4, 3), (4, 5), (5, 4)]
    assert list(found.parents) == [(0,)] * 4
