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
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import numpy as np

from dse import catalogue
from dse.errors import DseError, Interrupted, StoreError, StoreRefused, StudyChanged, UserError, tell_in_words
from dse.evaluation import Evaluation
from dse.execute import Means, make_executor
from dse.hardware import Accelerator, Device, read_hardware
from dse.loop import Batch, Loop, Progress
from dse.metrics import MetricBatch
from dse.model import Model, read_model
from dse.objectives import Goal
from dse.problem import TARGET, Problem, WeightFormat
from dse.protocols import CostModel, Proposer
from dse.results import Front, Results, check_codes, code_dtype, compare
from dse.scenario import Scenario
from dse.space import Space
from dse.store import DEFAULT_URL, HEARTBEAT_S, EvaluatorRow, Store, StudyRow, open_store
from dse.store.patience import patiently

SPEC_FORMAT: Final = 1
DEFAULT_COST_MODELS: Final = ("analytical", "prior")
DB_VARIABLE: Final = "DSE_DB"
WAIT_STEP_S: Final = 0.5
# What a proposer may take for a batch where designs have a limit; surrogates of long histories take minutes.
ASK_LIMIT_S: Final = 600.0
# As many designs in a row must fail, and all of their batch, before a study that has worked stops.
FAILED_IN_A_ROW: Final = 8

Reporter = Callable[[Progress], None]

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
        proposers: "auto", one name, or several that take turns batch by batch; or proposers themselves.
        cost_models: names or cost models, one per metric group.
        weight_format: storage format of quantised weights.
        trials: designs that a run evaluates unless it is told otherwise.
        seed: seed of everything random.
        ask_size: designs asked for at a time.
        lag: batches that may be under way at once; 1 proposes each batch from all results before it.

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
        cost_models: str | Sequence[str | CostModel] = DEFAULT_COST_MODELS,
        weight_format: WeightFormat | None = None,
        trials: int = 1000,
        seed: int = 0,
        ask_size: int = 64,
        lag: int = 1,
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
        )
        self.space = space
        self.bound_space = space.bind(self.problem)
        self.cost_models = (cost_models,) if isinstance(cost_models, str) else tuple(cost_models)
        self.goal = Goal.parse(objectives, constraints, self.evaluation.metrics)
        listed = [proposers] if isinstance(proposers, str) or not isinstance(proposers, Sequence) else list(proposers)
        self.proposers = [catalogue.proposer(p) if isinstance(p, str) else p for p in listed]
        if not self.proposers:
            raise UserError("a study needs at least one proposer", 'use proposers="auto"')
        for number, what in ((trials, "trials"), (ask_size, "ask_size"), (lag, "lag")):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise UserError(f"{what}={number!r} is not a whole number of 1 or more")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise UserError(f"seed={seed!r} is not a whole number of 0 or more")
        self.trials, self.seed, self.ask_size, self.lag = trials, seed, ask_size, lag
        self._db: str | None = None

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {self.problem.target.name} on {self.problem.hardware.name})"

    @cached_property
    def evaluation(self) -> Evaluation:
        """Its cost models, prepared in this process."""
        return Evaluation(self.bound_space, self.cost_models)

    def with_changes(self, *, name: str | None = None, seed: int | None = None) -> Study:
        """Return the same study under another name or with another seed."""
        copy = object.__new__(Study)
        copy.__dict__ |= self.__dict__
        copy.name = self.name if name is None else _check_name(name)
        copy.seed = self.seed if seed is None else seed
        return copy

    def spec(self) -> dict[str, Any]:
        """Return the definition as JSON types: what is stored, and compared when the study is run again."""
        fingerprints = self.evaluation.fingerprints()
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
            "seed": self.seed,
            "ask_size": self.ask_size,
            "lag": self.lag,
        }

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
    ) -> Results:
        """Evaluate ``trials`` designs (the study's own number by default) and return what the study has found so far.

        Asked for the same number again, a run that was interrupted goes on to where it was meant to end; otherwise
        ``trials`` more designs are evaluated. Ctrl-C finishes the chunk under way, stores it and raises
        :class:`~dse.errors.Interrupted`; a second one stops at once.

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

        Raises:
            StudyChanged: a study of that name is stored with another definition.
            StoreRefused: the database is not ours, or another process runs this study.
            Interrupted: stopped by a signal, everything finished is stored.
        """
        means = Means(executor, workers, timeout_s, worker_memory_bytes, ray_address)
        trials = self.trials if trials is None else trials
        if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
            raise UserError(f"trials={trials!r} is not a whole number of 1 or more")
        store = open_store(database(db))
        self._db = database(db)
        try:
            row = self._open(store)
            self._acquire(store, row, wait_s)
            row = store.study(self.name)  # as whoever had it left it
            try:
                self._drive(store, row, trials, means, report)
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

    def front(self, db: str | Path | None = None) -> Front:
        """Return the stored Pareto front."""
        return self.results(db).front()

    def _acquire(self, store: Store, row: StudyRow, wait_s: float) -> None:
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

    def _drive(self, store: Store, row: StudyRow, trials: int, means: Means, report: Reporter | None) -> None:
        evaluators = [
            store.add_evaluator(row.id, m.group, m.fidelity, m.name, m.version, f)
            for m, f in zip(self.evaluation.models, self.evaluation.fingerprints(), strict=True)
        ]
        stored = store.load(row.id, code_dtype(self.bound_space), self.bound_space.n_parameters)
        check_codes(self.name, self.bound_space, stored)
        n_finished = int(stored.evaluated.sum())
        goes_on = n_finished < row.target and trials == row.asked
        target = row.target if goes_on else n_finished + trials
        store.update_study(row.id, state="running", target=target, asked=trials, stop_reason="")
        recipe = partial(build_evaluation, self.problem.to_json(), self.space.to_json(), self.cost_models)
        workers_pool = make_executor(means, recipe, self.evaluation)
        journal = _StoreJournal(store, row.id, evaluators, code_dtype(self.bound_space))
        end, reason, progress = "failed", "", None
        try:
            loop = Loop(
                self.bound_space, self.goal, self.proposers, workers_pool, journal,
                seed=self.seed, ask_size=self.ask_size, lag=self.lag,
            )  # fmt: skip
            loop.reference = row.reference
            if means.timeout_s is not None:
                loop.ask_limit_s = max(ASK_LIMIT_S, means.timeout_s)
            for batch, groups in _stored_batches(stored, self.bound_space.n_parameters):
                loop.restore(batch, groups)
            with _stop_on_signal() as stopping, _reporting(self.name, report) as tell, _heartbeat(store, row.id):
                for progress in loop.run(target, lambda: stopping() or journal.should_stop(stopping)):
                    if loop.reference is not None and journal.reference is None:
                        journal.keep_reference(loop.reference)
                    tell(progress)
                    reason = journal.why_all_failed(progress)
                    if reason:
                        end = "stopped"
                        raise UserError(
                            reason, "what is done is stored; correct the cost model or the space, then run it again"
                        )
            end = progress.end if progress is not None else "target reached"
            if stopping():
                end = "interrupted"
                raise Interrupted(
                    f"study {self.name!r} was interrupted; {_told(progress)} are stored, run it again to continue"
                )
        except StoreRefused:  # another process has taken the study over: it is no longer ours to write
            raise
        except StoreError:
            with suppress(StoreError):  # said already
                store.update_study(row.id, state="failed", stop_reason="failed")
            raise
        except BaseException as error:
            state = "interrupted" if isinstance(error, Interrupted) else end if reason else "failed"
            patiently(lambda: store.update_study(row.id, state=state, stop_reason=reason or end))
            raise
        finally:
            workers_pool.close()
        state = "stopped" if end == "stopped" else "finished"
        patiently(lambda: store.update_study(row.id, state=state, stop_reason=end))


class _StoreJournal:
    """Writes what the loop does into the store."""

    def __init__(self, store: Store, study_id: int, evaluators: Sequence[EvaluatorRow], codes: np.dtype) -> None:
        self._store, self._study_id, self._evaluators, self._codes = store, study_id, evaluators, codes
        self.reference: np.ndarray | None = None
        self._first_error = ""
        self._failed_in_a_row = 0
        self._size = 0

    def proposed(self, batch: Batch) -> None:
        patiently(lambda: self._store.add_batch(
            self._study_id, batch.number, batch.proposer, batch.n_asked, batch.n_proposed, batch.first,
            batch.codes.astype(self._codes), batch.hashes, batch.marks, batch.parents,
        ))  # fmt: skip

    def evaluated(self, batch: Batch, start: int, groups: Sequence[MetricBatch], *, is_last: bool) -> None:
        answers = [(e.id, g) for e, g in zip(self._evaluators, groups, strict=True)]
        patiently(
            lambda: self._store.add_metrics(self._study_id, batch.number, batch.first + start, answers, is_last=is_last)
        )
        failed = np.zeros(len(groups[0]), dtype=bool)
        for group in groups:
            failed[list(group.errors)] = True
        if failed.all():
            first = min((row, text) for group in groups for row, text in group.errors.items())[1]
            self._first_error = self._first_error or first
            self._failed_in_a_row += len(failed)
        else:
            self._failed_in_a_row, self._first_error = int(failed[::-1].argmin()), ""
        self._size = len(batch.codes)

    def why_all_failed(self, progress: Progress) -> str:
        """Return why it is no use to go on: all designs so far have failed, or the last of them; "" if not."""
        if progress.n_done and progress.n_failed == progress.n_done:
            return f"all {progress.n_done} designs so far have failed; the first error: {self._first_error}"
        if self._failed_in_a_row >= max(self._size, FAILED_IN_A_ROW):
            return f"the last {self._failed_in_a_row} designs have all failed; the first error: {self._first_error}"
        return ""

    def keep_reference(self, reference: np.ndarray) -> None:
        self.reference = reference
        patiently(lambda: self._store.update_study(self._study_id, reference=reference))

    def should_stop(self, stopping: Callable[[], bool]) -> bool:
        """Obey the control table: wait while paused, stop when asked, there or by a signal."""
        request = patiently(lambda: self._store.take_request(self._study_id))
        if request == "pause":
            self._store.update_study(self._study_id, state="paused")
            while request == "pause" and not stopping():
                time.sleep(0.2)
                request = patiently(lambda: self._store.take_request(self._study_id))
            self._store.update_study(self._study_id, state="running")
        return request == "stop" or stopping()


def build_evaluation(
    problem: Mapping[str, Any], space: Mapping[str, Any], models: Sequence[str | CostModel]
) -> Evaluation:
    """Return the evaluation of a study from its stored definition; what workers are built with."""
    return Evaluation(Space.from_json(space).bind(Problem.from_json(problem)), models)


def database(db: str | Path | None) -> str:
    """Return the database to use: the given one, else DSE_DB, else "mfm-dse.db" in the current folder."""
    return str(db or os.environ.get(DB_VARIABLE) or DEFAULT_URL)


def _stored_batches(stored: Any, n_parameters: int) -> Iterator[tuple[Batch, list[MetricBatch]]]:
    for number in range(stored.n_batches):
        rows = np.flatnonzero(stored.batches == number)
        n_evaluated = int(stored.evaluated[rows].sum())
        batch = Batch(
            number=number,
            proposer=stored.proposers[number],
            first=int(rows[0]) if len(rows) else 0,
            codes=stored.codes[rows].astype(np.uint16).reshape(-1, n_parameters),
            hashes=[stored.hashes[i] for i in rows],
            marks=stored.marks[rows],
            parents=[stored.parents[i] for i in rows],
            n_asked=len(rows),
            n_proposed=stored.n_proposed_by_batch[number],
            n_evaluated=n_evaluated,
        )
        yield batch, [m.take(rows[:n_evaluated]) for m in stored.metrics]


def _told(progress: Progress | None) -> str:
    return f"{progress.n_done:,} designs" if progress is not None else "all finished designs"


def _check_name(name: str) -> str:
    if not isinstance(name, str) or not name.strip() or len(name) > 200 or not name.isprintable():
        raise UserError(f"study name {name!r} is not 1 to 200 printable characters")
    return name


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether SIGINT or SIGTERM came; the second signal stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    old = {s: signal.signal(s, remember) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _heartbeat(store: Store, study_id: int) -> Iterator[None]:
    """Keep the lease while a long evaluation or a pause has nothing to write."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            with suppress(DseError):  # lost or locked: the next write of the run itself says so
                store.renew(study_id)

    thread = threading.Thread(target=beat, name="dse-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _reporting(name: str, report: Reporter | None) -> Iterator[Reporter]:
    if report is not None:
        yield report
        return
    from dse.progress import live_display

    with live_display(name) as display:
        yield display
