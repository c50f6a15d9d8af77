"""``auto``: a portfolio. A stratified start, then every arm gets the share of each batch that it earns.

A design earns what it added to the dominated volume when it came in (the decrease of the least violation, before
anything is feasible). The earnings of an arm per design it was given are discounted with age, so that an arm that was
good at the start gives way: a bandit with discounted rewards (Garivier and Moulines, ALT 2011) whose shares follow
the rates, every arm keeping a few percent to be heard again. Arms begin from prior rates that favour the models while
designs are few and evolution later.

    auto                                   bottleneck, gp, tpe, evolve, local
    auto:arms=evolve+local+optuna:nsga2    any proposers of the catalogue, those of others too

Where the study can tell what costs consist of, ``bottleneck`` makes the start from the first design that runs, for it
needs no sample to learn from; where nobody can tell, it has no place here, and the start is a stratified sample.

A design's mark says which arm proposed it, and carries the arm's own mark. While little is known, batches are smaller
than asked for: a model of 20 designs has no 64 opinions, and the next batch will know more. An arm that fails, or has
nothing to say, leaves its designs to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from agents.sampling import stratified
from agents.standing import gains_in_order
from agents.variation import Layout, make_new, unknown_rows
from dse import catalogue
from dse.asking import Mishaps, ask
from dse.errors import UserError, unknown
from dse.protocols import History, Proposals, Proposer
from dse.space import row_keys

DEFAULT_ARMS: Final = ("gp", "tpe", "evolve", "local", "bottleneck")
START_DESIGNS: Final = 16
_MOST_ARMS: Final = 16
_BATCH_RATIO: Final = 0.125  # of the designs known, while they are few
_LEAST_BATCH: Final = 8
_MEMORY: Final = 120.0  # designs after which earnings count a third
_PRIOR_DESIGNS: Final = 12.0
_FLOOR: Final = 0.04
# Prior worth of a design of each arm, while designs are few and when there are many; 1 for arms not listed.
_EARLY: Final = {"bottleneck": 6.0, "gp": 6.0, "tpe": 1.0, "evolve": 1.0, "local": 0.5}
_LATE: Final = {"bottleneck": 0.5, "gp": 1.0, "tpe": 0.3, "evolve": 2.0, "local": 1.0}
_TURN: Final = 400.0  # designs at which early and late weigh alike
_MODELS: Final = ("gp", "bottleneck")
_MODEL_LIMIT: Final = 900  # beyond, a model costs more time than it saves designs


class Auto:
    """See the module.

    Args:
        options: "" for the default arms, or "arms=NAME+NAME+...".
        others: further arms, proposers of any kind.

    Raises:
        UserError: options that are none, an arm twice, or more than 16 of them.
        NameUnknown: an arm that is no proposer.
    """

    def __init__(self, options: str = "", others: Sequence[Proposer] = ()) -> None:
        self.name = f"auto:{options}" if options else "auto"
        key, _, names = options.partition("=")
        if options and key != "arms":
            raise unknown("option of auto", key, ("arms",), "write auto:arms=evolve+local")
        listed = names.split("+") if options else list(DEFAULT_ARMS)
        listed += [other.name for other in others]
        if len(set(listed)) < len(listed) or not 1 <= len(listed) <= _MOST_ARMS or "auto" in listed:
            raise UserError(f"auto: arms={names!r}", f"1 to {_MOST_ARMS} different proposers, not auto itself")
        self._names = listed
        self._arms: Sequence[Proposer] = [
            *(catalogue.proposer(name) for name in listed[: len(listed) - len(others)]), *others,
        ]  # fmt: skip
        windows = [arm.window for arm in self._arms]
        self.window = 0 if 0 in windows else max(1200, *windows)

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return up to k designs of all arms, by their shares, in random order."""
        done = history.n_total + len(history.pending_codes)
        if done < START_DESIGNS and not self._has_insight(history):
            start = stratified(history.space, min(k, START_DESIGNS), rng)
            start, fresh = make_new(history, Layout.of(history.space), start, rng)
            return Proposals(start[fresh])
        k = min(k, max(_LEAST_BATCH, int(_BATCH_RATIO * done)))
        counts = _counts(self.shares(history), k, rng)
        codes: list[np.ndarray] = []
        parents: list[tuple[int, ...]] = []
        marks: list[np.ndarray] = []
        missing = 0
        # The arm with the most designs comes last and fills up what others had none for.
        for arm in np.argsort(counts, kind="stable"):
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
        return Proposals(np.concatenate(codes)[order], [parents[i] for i in order], np.concatenate(marks)[order])

    def _has_insight(self, history: History) -> bool:
        """Whether the bottleneck arm has a design to start from, and somebody who tells what it costs."""
        told = history.evidence is not None and history.evidence.explain is not None
        return "bottleneck" in self._names and told and bool(np.isfinite(history.objectives).all(axis=1).any())

    def _ask(
        self, history: History, arm: int, k: int, earlier: Sequence[np.ndarray], rng: np.random.Generator
    ) -> Proposals:
        """Return up to k designs of one arm that no arm before it in this batch proposed."""
        proposer = self._arms[arm]
        view = replace(
            history.limited(proposer.window),
            pending_codes=np.concatenate([history.pending_codes, *earlier]),
            pending_marks=np.concatenate([_own(history.pending_marks, arm), *(np.full(len(c), -1) for c in earlier)]),
        )
        view = replace(view, marks=_own(view.marks, arm))
        found = ask(proposer, view, k, rng, None, Mishaps()) or Proposals(history.codes[:0])
        codes = found.codes
        taken = set(row_keys(np.concatenate([history.pending_codes[:0], *earlier])))
        fresh = np.flatnonzero(unknown_rows(history, codes, taken)).tolist()
        return Proposals(
            codes[fresh],
            [found.parents[i] for i in fresh] if found.parents else (),
            None if found.marks is None else np.asarray(found.marks)[fresh],
        )

    def shares(self, history: History) -> np.ndarray:
        """Return the share of the next batch that each arm gets, shape (arms,), summing to 1."""
        late = 1.0 - np.exp(-history.n_total / _TURN)
        heads = self._names
        prior = np.array([_EARLY.get(h, 1.0) * (1 - late) + _LATE.get(h, 1.0) * late for h in heads])
        allowed = np.array([h not in _MODELS or history.n_total < _MODEL_LIMIT or len(heads) == 1 for h in heads])
        if "bottleneck" in heads and len(heads) > 1:
            own = np.array([h == "bottleneck" for h in heads])
            if not self._has_insight(history):
                allowed &= ~own
            elif history.n_total + len(history.pending_codes) < START_DESIGNS:
                allowed = own
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
                rate = (earned + _PRIOR_DESIGNS * expected) / (given + _PRIOR_DESIGNS)
        rate = np.where(allowed, rate / rate.sum(), 0.0)
        shares = np.where(allowed, _FLOOR + rate / rate.sum(), 0.0)
        return shares / shares.sum()


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
