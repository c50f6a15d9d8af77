"""``auto``: a portfolio. A stratified start, then every arm gets the share of each batch that it earns.

A design earns what it added to the dominated volume when it came in (the decrease of the least violation, before
anything is feasible). The earnings of an arm per design it was given are discounted with age, so that an arm that was
good at the start gives way: a bandit with discounted rewards (Garivier and Moulines, ALT 2011) whose shares follow
the rates, every arm keeping a few percent to be heard again. Arms begin from prior rates that favour the models while
designs are few and evolution later.

    auto                                   bottleneck, gp, tpe, evolve, local
    auto:with=llm                          these, and another one
    auto:arms=evolve+local+optuna:nsga2    any proposers of the catalogue, those of others too

Where the study can tell what costs consist of, ``bottleneck`` makes the start from the first design that runs, for it
needs no sample to learn from; where nobody can tell, it has no place here, and the start is a stratified sample.

An arm that answers late (a language model) gives what it has ready, at most its share; the rest of the batch is dealt
as if there were no such arm, so one that never answers changes nothing.

A design's mark says which arm proposed it, and carries the arm's own mark. While little is known, batches are smaller
than asked for: a model of 20 designs has no 64 opinions, and the next batch will know more. An arm that fails, or has
nothing to say, leaves its designs to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from agents.sampling import stratified
from agents.standing import gains_in_order
from agents.variation import Layout, make_new, unknown_rows
from dse import catalogue
from dse.asking import Mishaps, ask
from dse.errors import UserError, unknown
from dse.protocols import Corresponding, History, Late, Portfolio, Proposals, Proposer
from dse.space import row_keys

if TYPE_CHECKING:
    from dse.calls import CallLog

DEFAULT_ARMS: Final = ("gp", "tpe", "evolve", "local", "bottleneck")
T = TypeVar("T")
START_DESIGNS: Final = 16
_MOST_ARMS: Final = 16
_LATE_STREAM: Final = 0x1A7E
_BATCH_RATIO: Final = 0.125  # of the designs known, while they are few
_LEAST_BATCH: Final = 8
_MEMORY: Final = 120.0  # designs after which earnings count a third
_PRIOR_DESIGNS: Final = 12.0
_PRIOR_DESIGNS_LATE: Final = 4.0  # nothing is known of who answers late: what it earns decides sooner
_FLOOR: Final = 0.04
# Marks are stored, so the default arms keep their places: new ones come last.
# Prior worth of a design of each arm, while designs are few and when there are many; 1 for arms not listed.
_EARLY: Final = {"bottleneck": 6.0, "gp": 6.0, "tpe": 1.0, "evolve": 1.0, "local": 0.5}
_LATE: Final = {"bottleneck": 0.5, "gp": 1.0, "tpe": 0.3, "evolve": 2.0, "local": 1.0}
_TURN: Final = 400.0  # designs at which early and late weigh alike
_MODELS: Final = ("gp", "bottleneck")
_MODEL_LIMIT: Final = 900  # beyond, a model costs more time than it saves designs


class Auto:
    """See the module.

    Args:
        options: "" for the default arms, "with=NAME+..." for these and others, or "arms=NAME+NAME+...".
        others: further arms, proposers of any kind.

    Raises:
        UserError: options that are none, an arm twice, or more than 16 of them.
        NameUnknown: an arm that is no proposer.
    """

    def __init__(self, options: str = "", others: Sequence[Proposer] = ()) -> None:
        key, _, names = options.partition("=")
        if options and key not in ("arms", "with"):
            raise unknown("option of auto", key, ("arms", "with"), "write auto:arms=evolve+local")
        listed = names.split("+") if options else []
        given = [catalogue.proposer(name) for name in listed]
        # What a late arm may spend is no part of what the study is.
        shown = [arm.name if isinstance(arm, Late) else name for name, arm in zip(listed, given, strict=True)]
        self._settle(f"auto:{key}={'+'.join(shown)}" if options else "auto", key != "arms", [*given, *others])

    def _settle(self, name: str, has_default_arms: bool, given: Sequence[Proposer]) -> None:
        self._has_default_arms, self._given = has_default_arms, list(given)
        default = [catalogue.proposer(n) for n in DEFAULT_ARMS] if has_default_arms else []
        self._arms: list[Proposer] = [*default, *given]
        self._names = [arm.name for arm in self._arms]
        self._late = np.array([isinstance(arm, Late) for arm in self._arms])
        is_mixed = len(set(self._names)) == len(self._names) <= _MOST_ARMS and not self._late.all()
        if not is_mixed or any(isinstance(arm, Portfolio) for arm in self._arms):
            raise UserError(
                f"auto: arms {'+'.join(self._names)!r}",
                f"1 to {_MOST_ARMS} different proposers, not auto itself, not all of them late",
            )
        self.name = name
        windows = [arm.window for arm in self._arms]
        self.window = 0 if 0 in windows else max(1200, *windows)

    def with_arms(self, arms: Sequence[Proposer]) -> Auto:
        """Return the same portfolio with further arms, each in the place of a late one of its name."""
        key = "with" if self._has_default_arms else "arms"
        names = {arm.name for arm in arms}
        given = [*(a for a in self._given if not (isinstance(a, Late) and a.name in names)), *arms]
        made = object.__new__(Auto)
        made._settle(f"auto:{key}={'+'.join(a.name for a in given)}", self._has_default_arms, given)
        return made

    def arms_of(self, marks: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Return the names of the arms, and which one gave each design by its mark, -1 for the start."""
        return list(self._names), np.where(marks < 0, -1, marks % _MOST_ARMS)

    def open(self, log: CallLog, tell: Callable[[str], None]) -> None:
        """Begin a run, for the arms that keep letters."""
        for arm in self._arms:
            if isinstance(arm, Corresponding):
                arm.open(log, tell)

    def close(self) -> None:
        """End it."""
        for arm in self._arms:
            if isinstance(arm, Corresponding):
                arm.close()

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return up to k designs of all arms, by their shares, in random order."""
        done = history.n_total + len(history.pending_codes)
        if done < START_DESIGNS and not self._has_insight(history):
            start = stratified(history.space, min(k, START_DESIGNS), rng)
            start, fresh = make_new(history, Layout.of(history.space), start, rng)
            return Proposals(start[fresh])
        k = min(k, max(_LEAST_BATCH, int(_BATCH_RATIO * done)))
        late = self._late_counts(history, k)
        counts = late + _counts(self.shares(history, ~self._late), k - int(late.sum()), rng)
        codes: list[np.ndarray] = []
        parents: list[tuple[int, ...]] = []
        marks: list[np.ndarray] = []
        missing = 0
        # The arm with the most designs comes last and fills up what others had none for.
        for arm in np.lexsort((counts, ~self._late)):
            wanted = int(counts[arm]) + missing
            if not wanted:
                continue
            found = self._ask(history, int(arm), wanted, codes, rng)
            missing = wanted - len(found.codes)
            codes.append(found.codes)
            parents += list(found.parents) or [()] * len(found.codes)
            inner = np.full(len(found.codes), -1) if found.marks is None else np.asarray(found.marks)
            marks.append((inner + 1) * _MOST_ARMS + arm)
        order = rng.permutation(sum(len(c) for c in codes))
        for arm in np.flatnonzero(self._late):
            view = self._view(history, int(arm), codes)
            if isinstance(late_arm := self._arms[arm], Late):
                _guarded(partial(late_arm.consider, view))
        return Proposals(np.concatenate(codes)[order], [parents[i] for i in order], np.concatenate(marks)[order])

    def _has_insight(self, history: History) -> bool:
        """Whether the bottleneck arm has a design to start from, and somebody who tells what it costs."""
        told = history.evidence is not None and history.evidence.explain is not None
        return "bottleneck" in self._names and told and bool(np.isfinite(history.objectives).all(axis=1).any())

    def _ask(
        self, history: History, arm: int, k: int, earlier: Sequence[np.ndarray], rng: np.random.Generator
    ) -> Proposals:
        """Return up to k designs of one arm that no arm before it in this batch proposed."""
        found = ask(self._arms[arm], self._view(history, arm, earlier), k, rng, None, Mishaps())
        found = found or Proposals(history.codes[:0])
        codes = found.codes
        taken = set(row_keys(np.concatenate([history.pending_codes[:0], *earlier])))
        fresh = np.flatnonzero(unknown_rows(history, codes, taken)).tolist()
        return Proposals(
            codes[fresh],
            [found.parents[i] for i in fresh] if found.parents else (),
            None if found.marks is None else np.asarray(found.marks)[fresh],
        )

    def _view(self, history: History, arm: int, earlier: Sequence[np.ndarray]) -> History:
        """Return what an arm sees: its window, its own marks, and what arms before it proposed as pending."""
        view = replace(
            history.limited(self._arms[arm].window),
            pending_codes=np.concatenate([history.pending_codes, *earlier]),
            pending_marks=np.concatenate([_own(history.pending_marks, arm), *(np.full(len(c), -1) for c in earlier)]),
        )
        return replace(view, marks=_own(view.marks, arm))

    def _late_counts(self, history: History, k: int) -> np.ndarray:
        """Return how many of k designs each late arm gets: its share, of what it has ready."""
        counts = np.zeros(len(self._arms), dtype=np.int64)
        if not self._late.any():
            return counts
        # Numbers of its own: those of the other arms do not depend on whether an answer has come.
        draw = np.random.default_rng([history.seed, history.batch, _LATE_STREAM]).random(len(counts))
        ready = [
            _guarded(partial(arm.n_ready, self._view(history, i, []))) or 0 if isinstance(arm, Late) else 0
            for i, arm in enumerate(self._arms)
        ]
        if any(ready):
            counts = np.minimum(ready, np.floor(self.shares(history) * k + draw).astype(np.int64))
        return counts

    def shares(self, history: History, among: np.ndarray | None = None) -> np.ndarray:
        """Return the share of the next batch that each arm gets, shape (arms,), summing to 1.

        Args:
            history: finished designs.
            among: arms that take part, boolean; all by default.
        """
        late = 1.0 - np.exp(-history.n_total / _TURN)
        heads = self._names
        prior = np.array([_EARLY.get(h, 1.0) * (1 - late) + _LATE.get(h, 1.0) * late for h in heads])
        n_at_hand = int((~self._late).sum())
        allowed = np.array([h not in _MODELS or history.n_total < _MODEL_LIMIT or n_at_hand == 1 for h in heads])
        if "bottleneck" in heads and n_at_hand > 1:
            own = np.array([h == "bottleneck" for h in heads])
            if not self._has_insight(history):
                allowed &= ~own
            elif history.n_total + len(history.pending_codes) < START_DESIGNS:
                allowed = own
        allowed &= among if among is not None else np.ones(len(heads), dtype=bool)
        # The first design of all adds all there is: nobody's merit.
        marked = np.flatnonzero((history.marks >= 0) & (np.arange(len(history)) > 0))
        rate = prior / prior.sum()
        if len(marked):
            gains = gains_in_order(history.objectives, history.violation, int(marked[0]))[marked - marked[0]]
            arm = history.marks[marked] % _MOST_ARMS
            weight = np.exp((history.numbers[marked] - history.numbers[-1]) / _MEMORY)
            given = np.bincount(arm, weight, _MOST_ARMS)[: len(heads)]
            earned = np.bincount(arm, weight * gains, _MOST_ARMS)[: len(heads)]
            mean = earned.sum() / given.sum()
            if mean > 0:
                # Priors are relative: an arm that earns as expected keeps its prior rate.
                expected = prior * mean / (prior @ given / given.sum())
                trusted = np.where(self._late, _PRIOR_DESIGNS_LATE, _PRIOR_DESIGNS)
                rate = (earned + trusted * expected) / (given + trusted)
        rate = np.where(allowed, rate / rate.sum(), 0.0)
        shares = np.where(allowed, _FLOOR + rate / rate.sum(), 0.0)
        return shares / shares.sum()


def _guarded(call: Callable[[], T]) -> T | None:
    """Return what a call gives, None where it fails: an arm's failure is its own."""
    try:
        return call()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  anybody's code
        return None


def arm_of(proposer: str, mark: int) -> str:
    """Return the arm that proposed a design of a portfolio; the proposer itself where it is none, or nobody's arm.

    Args:
        proposer: its stored name.
        mark: the design's stored mark.
    """
    if proposer.partition(":")[0] != "auto" or mark < 0:
        return proposer
    names = Auto(proposer.partition(":")[2])._names
    arm = mark % _MOST_ARMS
    return names[arm] if arm < len(names) else proposer


def _own(marks: np.ndarray, arm: int) -> np.ndarray:
    """Return an arm's own marks, -1 for designs of others and where it gave none."""
    return np.where((marks >= 0) & (marks % _MOST_ARMS == arm), marks // _MOST_ARMS - 1, -1)


def _counts(shares: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return how many of k designs each arm gets: expected values are exact, and it varies by less than one."""
    edges = np.floor(np.cumsum(shares) * k + rng.random()).astype(np.int64)
    edges[-1] = k  # the sum of shares is 1 up to rounding
    return np.diff(edges, prepend=0)
