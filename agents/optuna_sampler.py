"""Optuna's samplers as proposers, in memory, through ask and tell. The only module that imports Optuna.

``optuna:tpe``, ``optuna:nsga2``, ``optuna:nsga3``, ``optuna:random``; an option follows after another colon
(``optuna:nsga2:population_size=20``). Parameters are given to Optuna as level indices: integers where the levels
are ordered numbers, categories otherwise. Constraints go in as the summed violation.

A proposer's answer must depend on history and generator alone, while a sampler keeps state. So every batch starts from
a study that holds exactly the history, with a sampler seeded from the batch's generator: designs are told as finished
trials in proposal order, with the generation marks that Optuna's genetic samplers look for (they are the marks of the
history). What is asked is told back as failed once its parameters are known, because its real result returns with a
later history. Between batches the study is kept as a cache; a history that does not extend the last one rebuilds it.

Left out: CmaEs and GP (single-objective, or too slow at these dimensions) and QMC, whose state is not in its trials;
``sobol`` is our own. TPE's cost per ask grows with its trials (at 1,000 of them 0.34 s in the independent form, 0.05 s
in the multivariate one), so it sees a window of history and models parameters jointly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from dse.errors import UserError, unknown
from dse.protocols import History, Proposals
from dse.space import BoundSpace

_INFEASIBLE_VALUE: Final = 1e300


def _tpe(seed: int, options: Mapping[str, Any]) -> BaseSampler:
    return TPESampler(seed=seed, multivariate=True, constant_liar=True, **options)


def _nsga2(seed: int, options: Mapping[str, Any]) -> BaseSampler:
    return NSGAIISampler(seed=seed, **options)


def _nsga3(seed: int, options: Mapping[str, Any]) -> BaseSampler:
    return NSGAIIISampler(seed=seed, **options)


# name -> (constructor, window, options it takes)
_SAMPLERS: Final[dict[str, tuple[Callable[[int, Mapping[str, Any]], BaseSampler], int, tuple[str, ...]]]] = {
    "tpe": (_tpe, 400, ("n_startup_trials", "n_ei_candidates")),
    "nsga2": (_nsga2, 0, ("population_size",)),
    "nsga3": (_nsga3, 0, ("population_size",)),
    "random": (lambda seed, _: RandomSampler(seed=seed), 1, ()),
}

# Samplers of Optuna that this study's laws, or its kind of space, rule out.
_LEFT_OUT: Final = {
    "cmaes": "it takes one objective and no categories; use evolve",
    "gp": "it needs torch, and seconds per design at 40 knobs; use our own gp",
    "qmc": "its place in the sequence is not in its trials, so a resume would start anew; use sobol",
    "grid": "its grid is not in its trials; use enumerate",
    "bruteforce": "it walks a tree of all trials for each design; use enumerate",
}


class OptunaSampler:
    """An Optuna sampler behind the proposer protocol.

    Args:
        options: "tpe", "nsga2:population_size=20", ...

    Raises:
        NameUnknown: no such sampler, or an option that it does not take.
        UserError: an option whose value is not a whole number, or a sampler that cannot work here, with the reason.
    """

    def __init__(self, options: str = "") -> None:
        kind, _, rest = options.partition(":")
        if kind in _LEFT_OUT:
            raise UserError(f"optuna:{kind} cannot propose here", _LEFT_OUT[kind])
        if kind not in _SAMPLERS:
            raise unknown("Optuna sampler", kind, _SAMPLERS, "write optuna:tpe, optuna:nsga2, ...")
        self._make, self.window, known = _SAMPLERS[kind]
        self._options = _read_options(rest, known, kind)
        self._is_genetic = kind in ("nsga2", "nsga3")
        self.name = f"optuna:{options}"
        self._study: optuna.Study | None = None
        self._told = np.empty(0, dtype=np.int64)

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Ask the sampler for k designs."""
        view = distributions(history.space)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = self._synchronised(history, view)
            study.sampler = self._make(int(rng.integers(2**31)), self._options)
            if self._is_genetic:
                self._cache_parents(study, history.seed)
            trials = [study.ask(view) for _ in range(k)]
            asked = [study.tell(trial, state=TrialState.FAIL) for trial in trials]
        codes = np.array([[int(t.params[label]) for label in history.space.labels] for t in asked])
        return Proposals(codes, marks=np.array([_generation(t) for t in asked]))

    def _synchronised(self, history: History, view: Mapping[str, BaseDistribution]) -> optuna.Study:
        """Return a study whose finished trials are the history's rows.

        With designs pending, or designs of others joining the first generation late, a genetic sampler may have chosen
        parents that it would choose otherwise today; a study built anew depends on the history alone.
        """
        n = len(self._told)
        extends = n <= len(history) and np.array_equal(self._told, history.numbers[:n])
        is_stale = len(history.pending_codes) > 0 or (self._is_genetic and bool((history.marks < 0).any()))
        if self._study is None or not extends or is_stale:
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            directions = [StudyDirection.MINIMIZE] * history.goal.n_objectives
            self._study = optuna.create_study(directions=directions, sampler=RandomSampler(seed=0))
            n = 0
        self._study.add_trials([_trial(history, view, row) for row in range(n, len(history))])
        self._told = history.numbers.copy()
        return self._study

    def _cache_parents(self, study: optuna.Study, seed: int) -> None:
        """Let a genetic sampler choose the parents of each complete generation in turn, NSGA-III by a seed of its own.

        Left alone it recurses from the latest generation to the first, beyond Python's limit after a thousand of them,
        and draws the parents of a generation in whichever batch first needs them, which a resume cannot know.
        """
        first = self._make(0, self._options)
        assert isinstance(first, NSGAIISampler | NSGAIIISampler)
        size = first.population_size
        key = _GENERATION_KEYS[self._make is _nsga3]
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        counts = np.bincount([t.system_attrs[key] for t in finished]) if finished else np.zeros(1, np.int64)
        last = len(counts) - 1
        for generation in range(1, last + 1 + (counts[-1] >= size)):
            drawn = np.random.SeedSequence([seed, generation]).generate_state(1)[0] >> 1
            sampler = self._make(int(drawn), self._options)
            assert isinstance(sampler, NSGAIISampler | NSGAIIISampler)
            sampler.get_parent_population(study, generation)


def _trial(history: History, view: Mapping[str, BaseDistribution], row: int) -> FrozenTrial:
    """Return a finished trial; designs of other proposers count as the first generation."""
    violation = float(history.violation[row])
    known = np.isfinite(history.objectives[row]).all()
    values = history.objectives[row] if known else np.full(history.goal.n_objectives, _INFEASIBLE_VALUE)
    return create_trial(
        params={name: int(code) for name, code in zip(view, history.codes[row], strict=True)},
        distributions=dict(view),
        values=values.tolist(),
        system_attrs=dict.fromkeys(_GENERATION_KEYS, max(0, int(history.marks[row]))),
        constraints={"violation": min(violation, _INFEASIBLE_VALUE)},
    )


def _generation(trial: FrozenTrial) -> int:
    return int(next((trial.system_attrs[key] for key in _GENERATION_KEYS if key in trial.system_attrs), -1))


_GENERATION_KEYS: Final = ("NSGAIISampler:generation", "NSGAIIISampler:generation")


@lru_cache(maxsize=8)
def distributions(space: BoundSpace) -> dict[str, BaseDistribution]:
    """Return Optuna's view of a space: label -> distribution over level indices."""
    return {
        p.label: IntDistribution(0, len(p.levels) - 1)
        if p.is_ordered
        else CategoricalDistribution(range(len(p.levels)))
        for p in space.parameters
    }


def _read_options(text: str, known: tuple[str, ...], kind: str) -> dict[str, int]:
    options: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            raise unknown(f"option of optuna:{kind}", name, known)
        if not value.isdigit():
            raise UserError(f"optuna:{kind}: {name}={value!r} is not a whole number")
        options[name] = int(value)
    return options
