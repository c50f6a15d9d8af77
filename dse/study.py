"""The user's handle: declare a study, run it, look at its front.

    study = Study("vqa-edge", model="qwen2.5-vl-3b", scenario=Scenario(...), hardware="npu-template",
                  space=Space(weight_bits=Choice(4, 8, per="component")), objectives="min latency_s, min quality_loss")
    study.run(trials=2_000)
    print(study.front())

A study is stored under its name with its whole definition. Running it again continues it; a definition that differs
from the stored one is refused with the difference.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dse import catalogue, seeding
from dse.budgets import resolved
from dse.canonical import compare
from dse.coordinator import Reporter, drive
from dse.coverage import check_coverage
from dse.errors import StoreError, StoreRefused, StudyChanged, UserError, tell_in_words
from dse.evaluation import Evaluation
from dse.execute import Means
from dse.front import Front
from dse.hardware import Accelerator, Device, read_hardware
from dse.ladder import Ladder, Rung
from dse.model import Model, read_model
from dse.objectives import Goal
from dse.params import Value
from dse.policy import Policy
from dse.problem import TARGET, Problem, WeightFormat
from dse.profile import QualityProfile, read_profile
from dse.protocols import CostModel, Proposer
from dse.results import Results
from dse.scenario import Scenario
from dse.seeding import Points
from dse.space import Space
from dse.stopping import Plateau, Rules
from dse.store import DEFAULT_URL, Store, StoredStudy, StudyRow, open_store
from dse.store.patience import patiently

if TYPE_CHECKING:
    import pandas as pd

SPEC_FORMAT: Final = 1
DEFAULT_COST_MODELS: Final = ("analytical", "prior")
POLICY_COST_MODELS: Final = ("policy",)
PROFILED_COST_MODELS: Final = ("analytical", "surrogate")
DB_VARIABLE: Final = "DSE_DB"
WAIT_STEP_S: Final = 0.5

# A script that is run as it is ("python studies/x.py") ends like the command line does.
tell_in_words()


class Study:
    """A named search: problem, space, goal, and how it is searched.

    Args:
        name: under which it is stored.
        model: catalogue name, path of a Hugging Face config.json or its folder, or a model read already; a mapping
            role -> model where there are several.
        scenario: the request.
        hardware: catalogue name, path of a TOML file, or a description read already.
        space: the knobs to vary.
        objectives: "min latency_s, max accuracy_ratio".
        constraints: "area_mm2 <= 40, memory_bytes <= 4 GiB".
        proposers: "auto", one name, or several that take turns batch by batch; or proposers themselves. One that
            answers late ("llm") takes no turns: it joins "auto" as an arm.
        cost_models: names or cost models, one per metric group, that evaluate every design; by default "analytical" and
            "prior", with a policy "policy", which gives the metrics of both for whole requests.
        ladder: rungs above these, from low to high: dearer cost models that evaluate the promising designs only,
            ``Rung("simulated", designs=200)``.
        weight_format: storage format of quantised weights.
        fusion: operators that run fused beside the named forms, see :class:`dse.problem.Problem`.
        policy: what is known of drafters and cascade stages; gives the space their knobs.
        quality: quality profile of the model, as a file or read already; a mapping role -> profile where there are
            several models. With one, the cost model "surrogate" takes the place of "prior" unless others are named;
            "policy" judges each role by its own, or by the prior.
        trials: designs that a run evaluates unless it is told otherwise.
        seed: seed of everything random.
        ask_size: designs asked for at a time.
        lag: batches that may be under way at once; 1 proposes each batch from all results before it.
        reference: evaluate the reference design (of the levels those nearest to it) first, to compare with.
        warm_start: name of a stored study whose best designs are evaluated at the start, as far as they fit in here.

    Raises:
        UserError: anything in the definition that cannot be, before anything is evaluated.
    """

    def __init__(
        self,
        name: str,
        *,
        model: str | Path | Model | Mapping[str, str | Path | Model],
        scenario: Scenario,
        hardware: str | Path | Accelerator | Device,
        space: Space,
        objectives: str | Sequence[str],
        constraints: str | Sequence[str] = (),
        proposers: str | Proposer | Sequence[str | Proposer] = "auto",
        cost_models: str | Sequence[str | CostModel] | None = None,
        ladder: Rung | Sequence[Rung] = (),
        weight_format: WeightFormat | None = None,
        fusion: Mapping[str, Sequence[tuple[str, str]]] | None = None,
        policy: Policy | None = None,
        quality: str | Path | QualityProfile | Mapping[str, str | Path | QualityProfile] | None = None,
        trials: int = 1000,
        seed: int = 0,
        ask_size: int = 64,
        lag: int = 1,
        reference: bool = False,
        warm_start: str = "",
    ) -> None:
        self.name = _check_name(name)
        for value, kind, what in ((scenario, Scenario, "scenario"), (space, Space, "space")):
            if not isinstance(value, kind):
                raise UserError(f"{what}={value!r} is a {type(value).__name__}", f"write {what}={kind.__name__}(...)")
        models = model if isinstance(model, Mapping) else {TARGET: model}
        self.problem = Problem(
            models={role: m if isinstance(m, Model) else read_model(m) for role, m in models.items()},
            scenario=scenario,
            hardware=hardware if isinstance(hardware, Accelerator | Device) else read_hardware(hardware),
            weight_format=weight_format or WeightFormat(),
            fusion=fusion or {},
            policy=policy,
            quality=_profiles(quality),
        )
        self.space = resolved(space, self.problem)
        self.bound_space = self.space.bind(self.problem)
        named = cost_models or _default_cost_models(self.problem)
        self.cost_models = (named,) if isinstance(named, str) else tuple(named)
        for role, profile in self.problem.quality.items():
            check_coverage(profile, self.bound_space, role)
        self.goal = Goal.parse(objectives, constraints, self.evaluation.metrics)
        self.ladder = Ladder(
            self.bound_space, self.evaluation, (ladder,) if isinstance(ladder, Rung) else ladder, self.goal.metrics
        )
        listed = [proposers] if isinstance(proposers, str) or not isinstance(proposers, Sequence) else list(proposers)
        self.proposers = catalogue.together([catalogue.proposer(p) if isinstance(p, str) else p for p in listed])
        if not self.proposers:
            raise UserError("a study needs at least one proposer", 'use proposers="auto"')
        for number, what in ((trials, "trials"), (ask_size, "ask_size"), (lag, "lag")):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise UserError(f"{what}={number!r} is not a whole number of 1 or more")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise UserError(f"seed={seed!r} is not a whole number of 0 or more")
        self.trials, self.seed, self.ask_size, self.lag = trials, seed, ask_size, lag
        self.reference, self.warm_start = reference, warm_start
        self._queue: list[np.ndarray] = []
        self._db: str | None = None

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {self.problem.target.name} on {self.problem.hardware.name})"

    def _repr_html_(self) -> str:
        """Return what it is, and its front so far where it has been run by this object, for notebooks."""
        goal = self.goal
        told = {
            "study": self.name,
            "models": ", ".join(f"{role}: {model.name}" for role, model in self.problem.models.items()),
            "hardware": self.problem.hardware.name,
            "objectives": ", ".join(map(str, goal.objectives)),
            "constraints": ", ".join(map(str, goal.constraints)) or "none",
            "search space": f"{self.bound_space.n_parameters} parameters",
        }
        rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in told.items())
        front = self.front()._repr_html_() if self._db is not None else ""
        return f"<table>{rows}</table>{front}"

    @cached_property
    def evaluation(self) -> Evaluation:
        """Its cost models, prepared in this process."""
        return Evaluation(self.bound_space, self.cost_models)

    def with_changes(
        self, *, name: str | None = None, seed: int | None = None, proposers: Sequence[str | Proposer] = ()
    ) -> Study:
        """Return the same study under another name, with another seed, or with further proposers."""
        copy = object.__new__(Study)
        copy.__dict__ |= self.__dict__
        copy.name = self.name if name is None else _check_name(name)
        copy.seed = self.seed if seed is None else seed
        further = [catalogue.proposer(p) if isinstance(p, str) else p for p in proposers]
        copy.proposers = catalogue.together([*self.proposers, *further])
        return copy

    def spec(self) -> dict[str, Any]:
        """Return the definition as JSON types: what is stored, and compared when the study is run again."""
        fingerprints = self.evaluation.fingerprints()
        rungs = {"ladder": self.ladder.to_json()} if self.ladder else {}
        return {
            "format": SPEC_FORMAT,
            "problem": self.problem.to_json(),
            "space": self.space.to_json(),
            "goal": self.goal.to_json(),
            "proposers": [p.name for p in self.proposers],
            "cost_models": {
                m.group: {"name": m.name, "fidelity": m.fidelity, "version": m.version, "fingerprint": f}
                for m, f in zip(self.evaluation.models, fingerprints, strict=True)
            },
            **rungs,
            "seed": self.seed,
            "ask_size": self.ask_size,
            "lag": self.lag,
        }

    # ------------------------------------------------------------------ designs of the user's own

    def enqueue(self, *designs: Mapping[str, Value]) -> list[str]:
        """Have designs evaluated by the next run, before anything is proposed; those that are known are not paid again.

        Args:
            designs: label or declaration path -> value ({"weight_bits": 4, "pe_rows": 32}); a path sets all of its
                parameters, what is not named stays at the level nearest to the reference design.

        Returns:
            A note for every value that was snapped to a level.

        Raises:
            NameUnknown: a name that is no parameter of the space.
            SpaceError: a value that its knob cannot have.
        """
        read = [self.bound_space.codes_of(values) for values in designs]
        self._queue += [codes for codes, _ in read]
        return [note for _, notes in read for note in notes]

    def given_points(self, store: Store, stored: StoredStudy, is_told: bool) -> Iterator[Points]:
        """Yield what is evaluated before anything is proposed: reference design, warm start, enqueued designs.

        Args:
            store: where the other study of a warm start is.
            stored: this study as it is stored; a warm start is made once.
            is_told: whether to say on stderr what did not fit.
        """
        if self.reference:
            yield seeding.reference(self.bound_space)
        source = seeding.warm_source(self.warm_start)
        if self.warm_start and source not in stored.proposers.values():
            points = seeding.warm_start(self.bound_space, Results.load(store, self.warm_start), self.ask_size)
            for note in points.notes if is_told else ():
                print(f"{self.name}: {note}", file=sys.stderr)  # noqa: T201
            yield points
        if self._queue:
            yield Points(seeding.USER, np.concatenate(self._queue), ())

    # ------------------------------------------------------------------ running

    def run(
        self,
        trials: int | None = None,
        *,
        db: str | Path | None = None,
        executor: str = "auto",
        workers: int = 0,
        timeout_s: float | None = None,
        worker_memory_bytes: int = 0,
        ray_address: str | None = None,
        wait_s: float = 0.0,
        report: Reporter | None = None,
        wall_clock: float | str | None = None,
        plateau: Plateau | None = None,
        target: float | str | None = None,
        only_given: bool = False,
    ) -> Results:
        """Evaluate ``trials`` designs (the study's own number by default) and return what the study has found so far.

        Asked for the same number again, a run that was interrupted goes on to where it was meant to end; otherwise
        ``trials`` more designs are evaluated. Then the promising ones go up the ladder, if the study has one. Ctrl-C
        finishes the chunk under way, stores it and raises :class:`~dse.errors.Interrupted`; a second one stops at once.

        Args:
            trials: designs to evaluate; what was proposed before is never paid for twice.
            db: database URL or SQLite path; the environment variable DSE_DB or "mfm-dse.db" here by default.
            executor: "auto", "local", "process" or "ray".
            workers: workers of a pool, 0 for one per core.
            timeout_s: what one design may take; one that takes longer three times fails. Not with "local".
            worker_memory_bytes: what a worker may take before it is replaced; 0 for an equal share of the machine.
            ray_address: a Ray cluster, "auto" or "HOST:PORT"; None for a local one.
            wait_s: how long to wait while another process runs this study; 0 refuses at once.
            report: called with the progress after every chunk; a live display on the terminal by default.
            wall_clock: end after so many seconds, or "90 min", "2 h".
            plateau: end when the front has stopped growing; see :class:`~dse.stopping.Plateau`.
            target: end when a feasible design keeps all of these bounds ("latency_s <= 0.2, energy_j <= 1"), or when
                the front's hypervolume reaches a number. Whatever ended a run is stored, and it can be run again.
            only_given: evaluate what is enqueued and what was left over, propose nothing.

        Raises:
            StudyChanged: a study of that name is stored with another definition.
            StoreRefused: the database is not ours, or another process runs this study.
            Interrupted: stopped by a signal, everything finished is stored.
        """
        means = Means(executor, workers, timeout_s, worker_memory_bytes, ray_address)
        trials = self.trials if trials is None else trials
        if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
            raise UserError(f"trials={trials!r} is not a whole number of 1 or more")
        rules = Rules.read(self.goal, self.evaluation.metrics, wall_clock, plateau, target)
        store = open_store(database(db))
        self._db = database(db)
        try:
            row = self._open(store)
            was_lost = self._acquire(store, row, wait_s)
            row = store.study(self.name)  # as whoever had it left it
            try:
                drive(self, store, row, trials, means, report, rules, was_lost, only_given)
            except StoreError:
                with suppress(StoreError):  # said already
                    store.release(row.id)
                raise
            except BaseException:
                store.release(row.id)
                raise
            patiently(lambda: store.release(row.id))
            return Results.load(store, self.name)
        finally:
            store.close()

    def results(self, db: str | Path | None = None) -> Results:
        """Return what is stored of this study."""
        store = open_store(database(db or self._db), read_only=True)
        try:
            return Results.load(store, self.name)
        finally:
            store.close()

    def dataframe(self, db: str | Path | None = None) -> pd.DataFrame:
        """Return all stored designs as a data frame; see :meth:`~dse.results.Results.frame`."""
        return self.results(db).frame()

    def front(self, db: str | Path | None = None, *, fidelity: str | int | None = None) -> Front:
        """Return the stored Pareto front, by default of the highest rung reached; see :meth:`Results.front`."""
        return self.results(db).front(fidelity)

    def _acquire(self, store: Store, row: StudyRow, wait_s: float) -> bool:
        """Take the lease; while another process has it, try again until ``wait_s`` have passed."""
        deadline = time.monotonic() + wait_s
        told = False
        while True:
            try:
                return store.acquire(row.id, self.name)
            except StoreRefused as refused:
                if time.monotonic() >= deadline:
                    raise
                if not told:
                    print(f"{refused.message}; waiting for up to {wait_s:g} s", file=sys.stderr, flush=True)  # noqa: T201
                    told = True
            time.sleep(min(WAIT_STEP_S, max(0.0, deadline - time.monotonic())))

    def _open(self, store: Store) -> StudyRow:
        spec = self.spec()
        if not store.has_study(self.name):
            return store.create_study(self.name, spec)
        row = store.study(self.name)
        differences = compare(row.spec, spec)
        if differences:
            shown = "\n    ".join(differences[:8])
            more = f"\n    and {len(differences) - 8} more" if len(differences) > 8 else ""
            raise StudyChanged(
                f"study {self.name!r} is stored with another definition (stored -> now):\n    {shown}{more}",
                "change it back, rename the study, or keep both with 'dse run FILE --fork NEW_NAME'",
            )
        return row


def _default_cost_models(problem: Problem) -> tuple[str, ...]:
    if problem.policy is not None:
        return POLICY_COST_MODELS
    return PROFILED_COST_MODELS if TARGET in problem.quality else DEFAULT_COST_MODELS


def database(db: str | Path | None) -> str:
    """Return the database to use: the given one, else DSE_DB, else "mfm-dse.db" in the current folder."""
    return str(db or os.environ.get(DB_VARIABLE) or DEFAULT_URL)


def _profiles(
    quality: str | Path | QualityProfile | Mapping[str, str | Path | QualityProfile] | None,
) -> dict[str, QualityProfile]:
    by_role = quality if isinstance(quality, Mapping) else {} if quality is None else {TARGET: quality}
    return {role: p if isinstance(p, QualityProfile) else read_profile(p) for role, p in by_role.items()}


def _check_name(name: str) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > 200 or not name.isprintable():
        raise UserError(f"study name {name!r} is not 1 to 200 printable characters")
    return name
