"""The loop with made-up proposers, cost models and executors: what it promises whoever they are."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from dse.errors import UserError
from dse.evaluation import Evaluation
from dse.execute import Means, make_executor
from dse.execute.local import LocalExecutor
from dse.loop import Batch, Loop, reference_point
from dse.metrics import MetricBatch
from dse.objectives import Goal
from dse.params import Choice
from dse.progress import describe
from dse.protocols import Chunk, Proposals
from dse.space import Space
from dse.testing.samples import small_problem

SPACE = Space(
    pe_rows=Choice(*range(1, 21)), pe_cols=Choice(*range(1, 21)), n_cores=Choice(*range(1, 11)), batch=Choice(1, 2)
).bind(small_problem())
GOAL = Goal.parse("min latency_s, min energy_j", "area_mm2 <= 30")


@dataclass
class Toy:
    """latency = 100 / (rows x cores), energy = rows + cols; rows above 18 cannot run; cols 7 x rows 7 breaks."""

    name: str = "toy"
    group: str = "hardware"
    fidelity: str = "analytical"
    version: str = "1"
    laws: frozenset[str] = frozenset()
    metrics: tuple[str, ...] = ("latency_s", "energy_j", "area_mm2")
    fingerprint: str = "toy-1"
    calls: list[int] = field(default_factory=list)
    breaks: str = ""

    def prepare(self, problem):
        del problem
        return self

    def evaluate(self, batch):
        self.calls.append(len(batch))
        rows, cols = batch["pe_rows"].astype(float), batch["pe_cols"].astype(float)
        broken = (rows == 7) & (cols == 7)
        if self.breaks == "raise" and broken.any():
            raise ZeroDivisionError("seven times seven")
        energy = rows + cols
        if self.breaks == "nan":
            energy = np.where(broken, np.nan, energy)
        if self.breaks == "negative":
            energy = np.where(broken, -1.0, energy)
        if self.breaks == "shape":
            energy = energy[:1]
        values = {"latency_s": 100 / (rows * batch["n_cores"]), "energy_j": energy, "area_mm2": rows * cols / 8}
        if self.breaks == "missing":
            del values["energy_j"]
        return MetricBatch(values, len(batch))

    def breakdown(self, batch):
        del batch
        return []


@dataclass
class Memory:
    """A journal that remembers."""

    batches: list[Batch] = field(default_factory=list)
    answers: list[tuple[int, int, list[MetricBatch], bool]] = field(default_factory=list)

    def proposed(self, batch):
        self.batches.append(batch)

    def evaluated(self, batch, start, groups, *, is_last):
        self.answers.append((batch.number, start, list(groups), is_last))


@dataclass
class Uniform:
    name: str = "uniform"
    window: int = 0
    seen: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)

    def propose(self, history, k, rng):
        self.seen.append(history.n_total)
        self.pending.append(len(history.pending_codes))
        return Proposals(history.space.sample(k, rng))


@dataclass
class Stuck:
    """Always the same design."""

    name: str = "stuck"
    window: int = 0

    def propose(self, history, k, rng):
        del rng
        return Proposals(np.zeros((k, history.space.n_parameters), dtype=int))


def make(proposers, toy=None, journal=None, space=SPACE, **options):
    toy = toy or Toy()
    options = {"seed": 1, "ask_size": 16, "lag": 1} | options
    executor = LocalExecutor(Evaluation(space, [toy]))
    return Loop(space, GOAL, proposers, executor, journal or Memory(), **options)


def run(loop, target):
    *_, last = loop.run(target)
    return last


def test_it_reaches_its_target_and_records_before_it_evaluates():
    journal = Memory()
    last = run(make([Uniform()], journal=journal), 100)
    assert last.n_done == 100
    assert last.end == "target reached"
    assert sum(len(b.codes) for b in journal.batches) == 100
    assert [b.first for b in journal.batches] == np.cumsum([0, *(len(b.codes) for b in journal.batches)])[:-1].tolist()
    assert len({h for b in journal.batches for h in b.hashes}) == 100


def test_the_same_seed_gives_the_same_study_and_another_seed_another():
    a, b, c = Memory(), Memory(), Memory()
    run(make([Uniform()], journal=a), 60)
    run(make([Uniform()], journal=b), 60)
    run(make([Uniform()], journal=c, seed=2), 60)
    hashes = [[h for batch in j.batches for h in batch.hashes] for j in (a, b, c)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_design_is_never_paid_for_twice():
    toy = Toy()
    last = run(make([Uniform(), Stuck()], toy), 80)
    assert sum(toy.calls) == 80
    assert last.n_duplicates > 0


def test_a_stuck_proposer_gives_way_to_random_designs():
    journal = Memory()
    last = run(make([Stuck()], journal=journal), 40)
    assert last.n_done == 40
    assert {b.proposer for b in journal.batches} == {"stuck", "random"}


def test_a_small_space_is_exhausted():
    tiny = Space(pe_rows=Choice(1, 2, 3), n_cores=Choice(1, 2)).bind(small_problem())
    last = run(make([Uniform()], space=tiny), 50)
    assert last.n_done == 6
    assert last.end == "search space exhausted"


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_batch_b_sees_the_batches_up_to_b_minus_lag(lag):
    proposer = Uniform()
    run(make([proposer], lag=lag, ask_size=10), 60)
    assert proposer.seen == [max(0, 10 * (b - lag + 1)) for b in range(6)]
    assert proposer.pending == [10 * min(b, lag - 1) for b in range(6)]


@pytest.mark.parametrize("cut", [1, 3, 4])
@pytest.mark.parametrize("lag", [1, 2])
def test_a_study_restored_from_its_journal_goes_on_as_if_never_stopped(cut, lag):
    whole = Memory()
    run(make([Uniform(), Stuck()], journal=whole, lag=lag), 90)

    first = Memory()
    for progress in make([Uniform(), Stuck()], journal=first, lag=lag).run(90):
        if len({n for n, *_ in first.answers}) >= cut:
            break
        del progress
    second = Memory(batches=list(first.batches), answers=list(first.answers))
    loop = make([Uniform(), Stuck()], journal=second, lag=lag)
    for batch in first.batches:
        parts = [groups for number, _, groups, _ in first.answers if number == batch.number]
        n = sum(len(p[0]) for p in parts)
        groups = [MetricBatch.scatter([(np.arange(n), MetricBatch.scatter(_placed(parts), n))], n)] if parts else []
        loop.restore(Batch(**{**batch.__dict__, "n_evaluated": n}), groups)
    run(loop, 90)
    assert [b.hashes for b in second.batches] == [b.hashes for b in whole.batches]
    assert [b.proposer for b in second.batches] == [b.proposer for b in whole.batches]


def _placed(parts):
    starts = np.cumsum([0, *(len(p[0]) for p in parts)])
    return [(np.arange(a, b), p[0]) for a, b, p in zip(starts, starts[1:], parts, strict=False)]


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        ("raise", "ZeroDivisionError: seven times seven"),
        ("nan", "energy_j=nan is not a finite number"),
        ("negative", "energy_j=-1.0 is negative"),
    ],
)
def test_a_broken_row_fails_alone(breaks, reason):
    toy = Toy(breaks=breaks)
    rows = np.zeros((5, 4), dtype=int)
    rows[2, [SPACE.labels.index("pe_rows"), SPACE.labels.index("pe_cols")]] = 6  # both are 7
    result = Evaluation(SPACE, [toy]).evaluate(rows)[0]
    assert result.status.tolist() == [0, 0, 2, 0, 0]
    assert result.reason(2) == reason
    assert np.isnan(result.values["energy_j"][2])
    assert result.values["energy_j"][3] == 2.0


@pytest.mark.parametrize("breaks", ["shape", "missing"])
def test_columns_that_cannot_be_right_fail_their_rows(breaks):
    result = Evaluation(SPACE, [Toy(breaks=breaks)]).evaluate(np.zeros((3, 4), dtype=int))[0]
    assert result.status.tolist() == ([2, 2, 2] if breaks == "missing" else [0, 0, 0])


def test_two_cost_models_of_one_group_are_refused():
    with pytest.raises(UserError, match="both give the hardware metrics"):
        Evaluation(SPACE, [Toy(), Toy(name="other")])


def test_stopping_keeps_what_is_done():
    journal = Memory()
    loop = make([Uniform()], journal=journal)
    asked = []
    *_, last = loop.run(1000, lambda: len(journal.answers) >= 3 or asked.append(1))
    assert last.end == "stopped"
    assert last.n_done < 1000
    again = run(loop, 100)
    assert again.n_done == 100


def test_the_reference_point_is_fixed_once():
    loop = make([Uniform()])
    points = [p.reference for p in loop.run(80) if p.reference is not None]
    assert all(np.array_equal(p, points[0]) for p in points)
    np.testing.assert_allclose(reference_point(np.array([[1.0, 5.0], [3.0, 5.0]])), [3.2, 5.5])


@dataclass
class Mischief:
    """Breaks its promises on every second ask."""

    how: str
    name: str = "mischief"
    window: int = 0
    asks: int = 0

    def propose(self, history, k, rng):
        self.asks += 1
        codes = history.space.sample(k, rng)
        if self.asks % 2:
            return Proposals(codes)
        if self.how == "raise":
            raise RuntimeError("no idea")
        if self.how == "exit":
            raise SystemExit(1)
        if self.how == "hang":
            time.sleep(60)
        return {
            "transposed": Proposals(codes.T),
            "flat": Proposals(codes.ravel()),
            "nan": Proposals(np.where(codes > 3, np.nan, codes)),
            "fraction": Proposals(codes + 0.5),
            "marks": Proposals(codes, marks=np.zeros(k + 1, dtype=int)),
            "parents": Proposals(codes, parents=[()]),
            "nothing": None,
        }[self.how]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "RuntimeError: no idea"),
        ("exit", "SystemExit: 1"),
        ("hang", "TimeoutError: took longer than 0.05 s"),
        ("transposed", "expected integers of shape (n, 4), got uint16 (4, 16)"),
        ("flat", "expected integers of shape (n, 4), got uint16 (64,)"),
        ("nan", "expected integers of shape (n, 4), got float64"),
        ("fraction", "expected integers of shape (n, 4), got float64"),
        ("marks", "marks are int64 of shape (17,)"),
        ("parents", "1 parents for 16 designs"),
        ("nothing", "AttributeError"),
    ],
)
def test_a_proposer_that_fails_loses_its_turn_and_is_counted(how, reason):
    journal = Memory()
    loop = make([Mischief(how)], journal=journal)
    loop.ask_limit_s = 0.05
    last = run(loop, 64)
    assert last.n_done == 64
    assert [b.proposer for b in journal.batches][:4] == ["mischief", "random", "mischief", "random"]
    assert last.mishaps.n == 2
    assert last.mishaps.first.startswith("mischief: ")
    assert reason in last.mishaps.first
    assert "2 asks failed (mischief: " in describe(last, 1.0)


@pytest.mark.parametrize("executor", ["local", "process"])
def test_rows_that_break_are_counted_in_the_summary(executor):
    means = Means(executor, workers=1)
    pool = make_executor(means, lambda: None, Evaluation(SPACE, [Toy(breaks="nan")]))
    try:
        last = run(Loop(SPACE, GOAL, [Sevens()], pool, Memory(), seed=1, ask_size=16, lag=1), 64)
    finally:
        pool.close()
    assert last.n_done == 64
    assert last.n_failed == 10  # ten numbers of cores, each with seven rows, seven columns and a batch of one
    assert "10 failed" in describe(last, 1.0)


@dataclass
class Sevens:
    """First the ten designs of seven rows and columns, then any others."""

    name: str = "sevens"
    window: int = 0

    def propose(self, history, k, rng):
        codes = history.space.sample(k, rng)
        cells = [SPACE.labels.index(n) for n in ("pe_rows", "pe_cols")]
        codes[:, cells[1]] += codes[:, cells[1]] == 6
        if not history.n_total:
            codes[:10] = 0
            codes[:10, cells] = 6
            codes[:10, SPACE.labels.index("n_cores")] = np.arange(10)
        return Proposals(codes)


@dataclass
class Slices:
    """An executor that answers a batch in chunks of three."""

    evaluation: Evaluation
    name: str = "slices"
    waiting: dict[int, np.ndarray] = field(default_factory=dict)

    def submit(self, codes):
        self.waiting[len(self.waiting)] = codes
        return len(self.waiting) - 1

    def collect(self, ticket):
        codes = self.waiting[ticket]
        self.waiting[ticket] = None  # a batch is collected once
        for start in range(0, len(codes), 3):
            yield Chunk(start, self.evaluation.evaluate(codes[start : start + 3]))

    def close(self):
        pass


@pytest.mark.parametrize("at", range(1, 8))
def test_a_stop_that_is_told_once_holds_wherever_it_is_heard(at):
    asked = []

    def once():
        asked.append(1)
        return len(asked) == at

    loop = Loop(SPACE, GOAL, [Uniform()], Slices(Evaluation(SPACE, [Toy()])), Memory(), seed=0, ask_size=8, lag=1)
    steps = list(loop.run(200, once))
    assert steps[-1].end == "stopped"
    assert len(asked) == at
