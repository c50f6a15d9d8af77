"""The coordinator: the one process that writes a study while it runs.

It takes over what is stored, drives the loop, writes what the loop does, keeps the lease alive, and obeys signals, the
control table and stop rules.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Final

import numpy as np

from dse.climbing import Climbing
from dse.errors import DseError, Interrupted, StoreError, StoreRefused, UserError
from dse.evaluation import build_evaluation
from dse.execute import Means, make_executor
from dse.loop import Batch, Loop, Progress
from dse.metrics import MetricBatch
from dse.protocols import Corresponding
from dse.results import check_codes, code_dtype
from dse.stopping import Rules
from dse.store import HEARTBEAT_S, EvaluatorRow, Store, StoredStudy, StudyRow
from dse.store.patience import patiently

if TYPE_CHECKING:
    from dse.study import Study

Reporter = Callable[[Progress], None]
# What a proposer may take for a batch where designs have a limit; surrogates of long histories take minutes.
ASK_LIMIT_S: Final = 600.0
# As many designs in a row must fail, and all of their batch, before a study that has worked stops.
FAILED_IN_A_ROW: Final = 8


def drive(
    study: Study,
    store: Store,
    row: StudyRow,
    trials: int,
    means: Means,
    report: Reporter | None,
    rules: Rules,
    was_lost: bool,
    only_given: bool,
) -> None:
    """Evaluate ``trials`` more designs of a study whose lease is ours; see :meth:`dse.study.Study.run`."""
    evaluators = [
        store.add_evaluator(row.id, m.group, m.fidelity, m.name, m.version, f)
        for m, f in zip(study.evaluation.models, study.evaluation.fingerprints(), strict=True)
    ]
    stored = store.load(row.id, code_dtype(study.bound_space), study.bound_space.n_parameters)
    check_codes(study.name, study.bound_space, stored)
    n_finished = int(stored.evaluated.sum())
    if was_lost and n_finished < len(stored.codes):
        unfinished = np.flatnonzero(~stored.evaluated).tolist()
        store.count_attempt(row.id, unfinished, "its coordinator ended without a word")
    climbing = Climbing(study, store, row, means, was_lost) if study.ladder else None
    # A run that had all its designs but did not come to say so has little or nothing left to do.
    is_open = row.state in ("interrupted", "failed") or (climbing is not None and climbing.has_work)
    goes_on = trials == row.asked and (n_finished < row.target or (n_finished == row.target and is_open))
    target = row.target if goes_on else n_finished + trials
    store.update_study(row.id, state="running", target=target, asked=trials, stop_reason="")
    clock = rules.clock()
    recipe = partial(build_evaluation, study.problem.to_json(), study.space.to_json(), study.cost_models)
    workers_pool = make_executor(means, recipe, study.evaluation)
    journal = _StoreJournal(store, row.id, evaluators, code_dtype(study.bound_space))
    end, reason, progress = "failed", "", None
    try:
        loop = Loop(
            study.bound_space, study.goal, study.proposers, workers_pool, journal,
            seed=study.seed, ask_size=study.ask_size, lag=study.lag,
        )  # fmt: skip
        loop.reference = row.reference
        loop.record.evidence.explain = study.evaluation.explain
        loop.record.evidence.problem = study.problem
        if means.timeout_s is not None:
            loop.ask_limit_s = max(ASK_LIMIT_S, means.timeout_s)
        for batch, groups, by in _stored_batches(stored, one_by_one=row.reference is None):
            loop.restore(batch, groups, by)
        for points in study.given_points(store, stored, report is None):
            loop.enqueue(points.source, points.codes)
            if only_given:
                target = loop.n_designs
        rule = rules.watch(loop.record, clock)
        _open(study, store, row.id, report is None)
        with _stop_on_signal() as stopping, _reporting(study.name, report) as tell, _heartbeat(store, row.id):
            for progress in loop.run(target, lambda: stopping() or journal.should_stop(stopping), rule):
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
            if climbing is not None and not (only_given or stopping() or end == "stopped" or clock()):
                workers_pool.close()
                store.update_study(row.id, target=loop.record.n)  # a rule may have ended it earlier
                end = climbing.climb(end, lambda: journal.should_stop(stopping), clock, tell)
        if stopping():
            end = "interrupted"
            raise Interrupted(
                f"study {study.name!r} was interrupted; {_told(progress)} are stored, run it again to continue"
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
        _close(study)
        workers_pool.close()
    state = "stopped" if end == "stopped" else "finished"
    patiently(lambda: store.update_study(row.id, state=state, stop_reason=end))


def _open(study: Study, store: Store, study_id: int, is_told: bool) -> None:
    """Begin the run for proposers that keep letters, before anything is evaluated."""

    def tell(text: str) -> None:
        if is_told:
            print(f"{study.name}: {text}", file=sys.stderr)  # noqa: T201

    for proposer in study.proposers:
        if isinstance(proposer, Corresponding):
            proposer.open(store.call_log(study_id), tell)


def _close(study: Study) -> None:
    for proposer in study.proposers:
        if isinstance(proposer, Corresponding):
            with suppress(DseError):  # a store that is gone has been told of already
                proposer.close()


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


def _stored_batches(
    stored: StoredStudy, *, one_by_one: bool
) -> Iterator[tuple[Batch, list[MetricBatch], list[tuple[str, int]]]]:
    """Yield what is stored in the order it was proposed, as :meth:`Loop.restore` takes it.

    Args:
        stored: the study.
        one_by_one: yield each batch by itself; else finished neighbours come together, which is sooner done.
    """
    sizes = np.bincount(stored.batches, minlength=stored.n_batches)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    n_waiting = np.concatenate([[0], np.cumsum(~stored.evaluated)])
    is_whole = (sizes > 0) & (n_waiting[edges[1:]] == n_waiting[edges[:-1]])
    start = 0
    while start < stored.n_batches:
        end = start + 1
        while not one_by_one and is_whole[start] and end < stored.n_batches and is_whole[end]:
            end += 1
        rows = slice(int(edges[start]), int(edges[end]))
        n_evaluated = int(stored.evaluated[rows].sum())
        batch = Batch(
            number=end - 1,
            proposer=stored.proposers[end - 1],
            first=rows.start,
            codes=stored.codes[rows].astype(np.uint16),
            hashes=stored.hashes[rows],
            marks=stored.marks[rows],
            parents=(),
            n_asked=rows.stop - rows.start,
            n_proposed=sum(stored.n_proposed_by_batch[start:end]),
            n_evaluated=n_evaluated,
        )
        by = [(stored.proposers[b], int(sizes[b])) for b in range(start, end)]
        yield batch, [m.take(slice(rows.start, rows.start + n_evaluated)) for m in stored.metrics], by
        start = end


def _told(progress: Progress | None) -> str:
    return f"{progress.n_done:,} designs" if progress is not None else "all finished designs"


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
