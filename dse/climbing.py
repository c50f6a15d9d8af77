"""The coordinator above the lowest rung: designs go up round by round, and what is stored decides who.

When the lowest rung has what the run was asked for, the designs of each upper rung are chosen (dse/promotion.py) in
rounds, small ones first, each from all results before it. A round is recorded before it is evaluated, by the same
executors as everything else; of a run that was killed, the open round is finished in its order, and the next follows
from the same rows as it would have. Proposers do not see the upper rungs: a shift that is the same for all designs
leaves dominance as it is, and one that is not is learned here, when the lower front is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dse.errors import UserError
from dse.evaluation import build_evaluation, hard_violation
from dse.execute import Means, make_executor
from dse.ladder import combinations, label
from dse.loop import Progress, reference_point
from dse.metrics import MetricBatch
from dse.pareto import constrained_front
from dse.promotion import Chosen, Standing, choose, features, round_size
from dse.protocols import Executor
from dse.results import Results
from dse.store import Promotion, Store, StudyRow
from dse.store.patience import patiently

if TYPE_CHECKING:
    from dse.study import Study


@dataclass
class Tier:
    """The designs that a rung has evaluated, in the order in which they came.

    Attributes:
        numbers: of the designs, shape (n,).
        objectives, margins: NaN where unknown, shape (n, m) and (n, c).
        violation: 0 where feasible, shape (n,).
        failed: where a cost model broke, shape (n,).
    """

    numbers: np.ndarray
    objectives: np.ndarray
    margins: np.ndarray
    violation: np.ndarray
    failed: np.ndarray

    @classmethod
    def of(cls, results: Results, rung: int) -> Tier:
        """Return what is stored of a rung."""
        view = results.at(rung)
        order = np.concatenate([p.designs for p in results.stored.promotions if p.rung == rung] or [np.arange(0)])
        numbers = order if rung else np.arange(len(view))
        numbers = numbers[view.evaluated[numbers]]
        failed = np.zeros(len(view), dtype=bool)
        failed[list(view.metrics.errors)] = True
        return cls(numbers, view.objectives[numbers], view.margins[numbers], view.violation[numbers], failed[numbers])

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def standing(self) -> Standing:
        """What promotion looks at."""
        return Standing(self.objectives, self.margins)

    def extended(self, fresh: Tier) -> Tier:
        """Return these designs and then the fresh ones."""
        names = ("numbers", "objectives", "margins", "violation", "failed")
        return Tier(*(np.concatenate([getattr(self, name), getattr(fresh, name)]) for name in names))


class Climbing:
    """Promotes the designs of a study.

    Args:
        study: with a ladder.
        store, row: where it is kept; the lease is ours.
        means: where it evaluates.
        was_lost: whether a coordinator ended without giving the lease back.
    """

    def __init__(self, study: Study, store: Store, row: StudyRow, means: Means, was_lost: bool) -> None:
        self._study, self._store, self._row, self._means = study, store, row, means
        spec = study.spec()
        self._labels = [label(combination) for combination in combinations(spec)]
        self._evaluators = [
            [
                store.add_evaluator(row.id, group, m["fidelity"], m["name"], m["version"], m["fingerprint"], rung)
                for group, m in models.items()
            ]
            for rung, models in enumerate(spec["ladder"], 1)
        ]
        if was_lost:
            results = self._load()
            for promotion in results.stored.promotions:
                there = results.at(promotion.rung).evaluated[promotion.designs]
                if not there.all():
                    lost = promotion.designs[~there].tolist()
                    store.count_attempt(row.id, lost, "its coordinator ended without a word")

    def _load(self) -> Results:
        found: list[Results] = []
        patiently(lambda: found.append(Results.load(self._store, self._study.name)))
        return found[-1]

    @property
    def has_work(self) -> bool:
        """Whether a round is open, or a rung has budget and somebody to promote."""
        results = self._load()
        if any(not p.is_done for p in results.stored.promotions):
            return True
        return any(len(_Rung(self, results, rung).next().rows) for rung in range(1, len(self._labels)))

    def climb(
        self, end: str, should_stop: Callable[[], bool], clock: Callable[[], str], tell: Callable[[Progress], None]
    ) -> str:
        """Promote until budgets are used up, or nobody is left within reach, and return why it ended.

        Args:
            end: why the lowest rung ended.
            should_stop: asked after every chunk.
            clock: says why to end now, "" to go on.
            tell: called after every chunk.

        Raises:
            UserError: all designs of a round failed.
        """
        ends = [end]
        for rung in range(1, len(self._labels)):
            one = _Rung(self, self._load(), rung)
            recipe = partial(
                build_evaluation, self._study.problem.to_json(), self._study.space.to_json(),
                self._study.ladder.rungs[rung - 1].models,
            )  # fmt: skip
            executor = None
            try:
                while (promotion := one.open_round()) is not None:
                    executor = executor or make_executor(self._means, recipe, self._study.ladder.evaluations[rung - 1])
                    for _ in one.evaluate(promotion, executor):
                        tell(one.progress())
                        if should_stop():
                            return "stopped"
                        if is_over := clock():
                            return is_over
            finally:
                if executor is not None:
                    executor.close()
            ends.append(one.end)
            tell(one.progress("; ".join(ends)))
        return "; ".join(ends)


class _Rung:
    """One rung while designs go up to it."""

    def __init__(self, climbing: Climbing, results: Results, rung: int) -> None:
        self._study, self._store, self._study_id = climbing._study, climbing._store, climbing._row.id
        self._results, self._rung, self._label = results, rung, climbing._labels[rung]
        self._evaluators = climbing._evaluators[rung - 1]
        self._below, self.tier = Tier.of(results, rung - 1), Tier.of(results, rung)
        self._n_rounds = len(results.stored.promotions)
        waiting = [p for p in results.stored.promotions if not p.is_done and p.rung == rung]
        self._waiting = waiting[0] if waiting else None
        self._features = features(results.space, results.stored.codes[self._below.numbers])
        self._budget = self._study.ladder.rungs[rung - 1].budget(len(self._below))
        self._n_target = self._budget
        self._reference: np.ndarray | None = None
        self.end = ""

    def next(self) -> Chosen:
        """Return who goes up next, as rows of the rung below."""
        rows = {number: row for row, number in enumerate(self._below.numbers.tolist())}
        promoted = np.array([rows[number] for number in self.tier.numbers.tolist()], dtype=np.int64)
        k = min(round_size(len(self.tier), self._study.ask_size), self._budget - len(self.tier))
        rng = np.random.default_rng([self._study.seed, self._rung, self._n_rounds])
        return choose(self._below.standing, self._features, promoted, self.tier.standing, k, rng)

    def open_round(self) -> Promotion | None:
        """Return the round that was left open, or a new one, recorded; None where this rung has all it gets."""
        if self._waiting is not None:
            promotion, self._waiting = self._waiting, None
            return promotion
        if len(self.tier) >= self._budget:
            self.end = f"{len(self.tier):,} designs promoted to {self._label}, its budget"
            return None
        chosen = self.next()
        self._n_target = min(self._budget, len(self.tier) + chosen.n_within_reach)
        if not len(chosen.rows):
            self.end = f"{len(self.tier):,} designs promoted to {self._label}, no other is within reach of its front"
            return None
        designs = self._below.numbers[chosen.rows]
        promotion = Promotion(self._n_rounds, self._rung, len(self._below), chosen.n_within_reach, designs, False)
        patiently(lambda: self._store.add_promotion(self._study_id, promotion))
        self._n_rounds += 1
        return promotion

    def evaluate(self, promotion: Promotion, executor: Executor) -> Iterator[None]:
        """Evaluate what a round still lacks, and store it chunk by chunk.

        Raises:
            UserError: all of its designs failed.
        """
        known = set(self.tier.numbers.tolist())
        designs = np.array([d for d in promotion.designs.tolist() if d not in known], dtype=np.int64)
        codes = self._results.stored.codes[designs].astype(np.uint16)
        done, first_error, n_failed = 0, "", 0
        for chunk in executor.collect(executor.submit(codes)):
            numbers = designs[chunk.start : chunk.start + len(chunk.groups[0])]
            done += len(numbers)
            answers = [(e.id, g) for e, g in zip(self._evaluators, chunk.groups, strict=True)]
            enter = partial(
                self._store.add_promoted, self._study_id, promotion.number, numbers.tolist(), answers,
                is_last=done == len(designs),
            )  # fmt: skip
            patiently(enter)
            fresh = self._tier(numbers, chunk.groups)
            self.tier = self.tier.extended(fresh)
            errors = [text for group in chunk.groups for _, text in sorted(group.errors.items())]
            first_error, n_failed = first_error or next(iter(errors), ""), n_failed + int(fresh.failed.sum())
            yield
        if n_failed and n_failed == len(promotion.designs):
            raise UserError(
                f"all {n_failed} designs promoted to {self._label} in this round have failed; "
                f"the first error: {first_error}",
                "what is done is stored; correct the cost model, then run it again",
            )

    def _tier(self, numbers: np.ndarray, groups: Sequence[MetricBatch]) -> Tier:
        """Return fresh results beside the groups that this rung takes over from below."""
        goal, mine = self._study.goal, {e.group for e in self._evaluators}
        below = self._results.at(self._rung - 1)
        kept = [
            self._results.stored.answers[e.id].metrics.take(numbers) for e in below.evaluators if e.group not in mine
        ]
        every = [*kept, *groups]
        joined, excess = MetricBatch.join(every), hard_violation(every)
        n = len(numbers)
        return Tier(
            numbers,
            goal.to_minimise(joined.values, n),
            goal.margins(joined.values, n),
            goal.violation(joined.values, excess),
            np.isinf(excess),
        )

    def progress(self, end: str = "") -> Progress:
        """Return where this rung stands."""
        tier = self.tier
        feasible = tier.violation == 0
        if self._reference is None and feasible.any():
            self._reference = reference_point(tier.objectives[feasible])
        front = constrained_front(tier.objectives, tier.violation) if feasible.any() else np.arange(0)
        return Progress(
            n_done=len(tier),
            n_target=self._n_target,
            n_duplicates=0,
            n_infeasible=int(((tier.violation > 0) & ~tier.failed).sum()),
            n_failed=int(tier.failed.sum()),
            n_front=len(front),
            reference=self._reference,
            points=tier.objectives[front],
            end=end,
            stage=self._label,
        )
