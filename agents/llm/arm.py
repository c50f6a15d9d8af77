"""``llm``: a language model as an arm of the portfolio.

It is shown evidence and optimiser state, answers with edits to named designs, and is paid like every other arm by what
its designs add. Its calls run beside the study: a batch takes what is ready and never waits for more, unless
``wait_s`` says so. What enters, enters at a batch that the log keeps. Without key, server, sense or budget the arm has
nothing ready, the study is design by design the one without it, and the reason is said once.

Alone or beside other proposers, ``llm`` joins ``auto``: a model on its own is worse than random search (docs/llm.md).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from agents.llm import prompt
from agents.llm.answer import MOST_PLACES, Checker, parse
from agents.llm.budget import Budget
from agents.llm.client import Endpoint, is_installed
from agents.llm.digest import digest
from agents.llm.provider import SCRIPTS, Provider, Replay, Reply, Request, Scripted
from agents.llm.round import Correspondence, Round, Snapshot
from agents.llm.settings import Access, Settings, access, price_of
from agents.llm.wire import plain
from dse.calls import ACCEPTED, Call, CallLog, Edit, MemoryLog, Session
from dse.capabilities import ExamPaper
from dse.errors import UserError
from dse.protocols import History, Proposals

if TYPE_CHECKING:
    from dse.evaluation import Evaluation
    from dse.objectives import Goal

WINDOW: Final = 300
PROBE_S: Final = 20.0
_PROBE_TOKENS: Final = 400
_FRUITLESS_ROUNDS: Final = 6  # in a row, before it gives up
_LONGEST_SPACING: Final = 16  # times the usual number of designs between rounds
_GRACE_S: Final = 1.0

PROBE: Final = Request(
    "probe",
    (("system", "You answer in JSON."), ("user", 'Answer with {"ready": true}.')),
    "ready",
    {
        "type": "object",
        "properties": {"ready": {"type": "boolean"}},
        "required": ["ready"],
        "additionalProperties": False,
    },
    _PROBE_TOKENS,
)


class LlmArm:
    """See the module.

    Args:
        options: "usd=2,calls=40", see :class:`agents.llm.settings.Settings`.
        provider: who answers, in place of what the options name.

    Raises:
        UserError: an option, a template or a price table that cannot be.
    """

    name = "llm"
    window = WINDOW

    def __init__(self, options: str = "", provider: Provider | None = None) -> None:
        self.settings = Settings.parse(options)
        self.template = prompt.read_template(self.settings.template)
        price_of("")  # a table that cannot be read is said now
        self._given = provider
        self._mail: Correspondence | None = None
        self._reset()

    def _reset(self) -> None:
        self._queue: list[Edit] = []
        self._entered: dict[int, Edit] = {}
        self._round: Round | None = None
        self._n_rounds = self._n_asked_at = self._n_fruitless = 0
        self._theory = ""
        self._is_open, self._is_off = False, True
        self._starts: set[int] | None = None  # of a replay: batches after which rounds began
        self._due: dict[int, set[bytes]] = {}  # of a replay: batch -> designs that entered there
        self._tell: Callable[[str], None] = lambda text: print(f"llm: {text}", file=sys.stderr)  # noqa: T201

    # ------------------------------------------------------------------ a run

    def open(self, log: CallLog, tell: Callable[[str], None]) -> None:
        """Begin a run: take over what is on record, find out whether anybody answers, say what it may cost."""
        self.close()
        self._reset()
        self._is_open, self._tell = True, tell
        found = self._provider(log)
        sessions = log.sessions()
        shown = {"provider": self.settings.provider} if isinstance(found, str) else _shown(found)
        reason = found if isinstance(found, str) else ""
        log.begin(Session(len(sessions), self.settings.to_json() | shown, time.time(), reason))
        if isinstance(found, str):
            self._tell(f"the language model takes no part: {found}")
            return
        price = price_of(found.model) if found.is_paid else None
        calls = log.calls()
        budget = Budget(self.settings, price, found.is_paid, calls)
        version = prompt.version_of(self.template)
        self._mail = Correspondence(found, log, budget, self.settings, len(sessions), version)
        self._is_off = False
        self._take_over(log, calls)
        if found.is_paid and price is None and self.settings.is_usd_given:
            self._stop("the cap on dollars cannot be watched: no price for this model; put it into DSE_LLM_PRICES")
        elif found.name == "openai":
            self._probe()
        if not self._is_off and found.name != "replay":
            self._tell(f"{plain(found.model, 80)} at {found.where or 'no server'}: {budget.estimate()}")

    def _provider(self, log: CallLog) -> Provider | str:
        """Return who answers, or why nobody does."""
        s = self.settings
        if self._given is not None:
            return self._given
        if s.provider == "replay":
            record = log.of_study(s.study)
            calls = record.calls()
            self._starts = {c.batch for c in calls if c.role != "probe"}
            for edit in record.edits():
                if edit.batch >= 0:
                    self._due.setdefault(edit.batch, set()).add(edit.hash)
            return Replay(c for c in calls if c.role != "probe")
        if s.provider in SCRIPTS:
            return Scripted(SCRIPTS[s.provider], s.provider)
        found = access()
        if not isinstance(found, Access):
            return found
        if not is_installed():
            return "the openai package is not installed; pip install 'mfm-dse[llm]'"
        if found.warning:
            self._tell(found.warning)
        return Endpoint(found.model, found.base_url, found.key, s.api, s.form)

    def _take_over(self, log: CallLog, calls: Sequence[Call]) -> None:
        """Go on from what is on record: proposals that wait, those that were evaluated, the last theory."""
        edits = [e for e in log.edits() if e.verdict == ACCEPTED]
        stored = log.evaluated([e.hash for e in edits])
        self._queue = [e for e, there in zip(edits, stored, strict=True) if not there]
        self._entered = {_mark(e): e for e in edits if e.batch >= 0}
        self._n_rounds = 1 + max((c.round for c in calls if c.role != "probe"), default=-1)
        for call in calls:
            if call.role == "analyst" and call.outcome == "ok":
                document, _ = parse(call.answer)
                words = document.get("theory") if isinstance(document, dict) else None
                self._theory = plain(words, 800) if isinstance(words, str) else self._theory

    def _probe(self) -> None:
        """Ask for next to nothing: key, address, model and form of answers are known before anything is evaluated."""
        assert self._mail is not None
        answers: list[tuple[Call, Reply]] = []
        in_round: list[Call] = []
        done = threading.Event()

        def ask() -> None:
            try:
                answers.append(self._mail.ask(PROBE, -1, -1, in_round, PROBE_S))  # type: ignore[union-attr]
            finally:
                done.set()

        threading.Thread(target=ask, name="dse-llm-probe", daemon=True).start()
        done.wait(PROBE_S + _GRACE_S)
        if not answers:
            self._tell(f"no answer within {PROBE_S:g} s; it is asked again while the study runs")
            return
        call, reply = answers[0]
        if not reply.outcome:
            self._stop(reply.detail)
        elif reply.outcome == "rejected":
            self._stop(f"{self._mail.provider.where}: {reply.detail}")
        elif reply.outcome == "unavailable" and "no connection" in reply.detail:
            self._stop(f"{reply.detail}; check OPENAI_BASE_URL")
        elif reply.outcome == "invalid" or (reply.outcome == "ok" and parse(reply.text)[0] is None):
            self._mail.judged(call, in_round, "invalid", reply.detail or "the answer is no JSON")
            remedy = "set DSE_LLM_MODEL to a model with structured output, and check OPENAI_BASE_URL"
            self._stop(f"{plain(self._mail.provider.model, 80)} does not answer in JSON; {remedy}")
        elif reply.outcome != "ok":
            self._tell(f"{reply.detail or reply.outcome}; it is asked again while the study runs")
        elif (form := (reply.parameters or {}).get("form")) not in (None, "json_schema"):
            self._tell(f"answers come in the form {form!r}: without a schema of the server's, more will be rejected")

    def close(self) -> None:
        """End the run: a round under way is given up, and counted at the most it can have cost."""
        if self._mail is None:
            return
        mail, self._mail, self._is_off = self._mail, None, True
        if self._round is not None and not self._round.done.wait(0.0):
            mail.provider.close()
            self._round.done.wait(_GRACE_S)
        mail.abandon()
        mail.provider.close()
        self._round = None

    def _stop(self, reason: str) -> None:
        """Ask no more in this run, and say so."""
        assert self._mail is not None
        self._is_off = True
        self._mail.log.stop(self._mail.session, plain(reason, 500))
        self._tell(f"the language model takes no part any more: {plain(reason, 500)}")

    def exam(
        self, evaluation: Evaluation | None, goal: Goal | None, n: int, seed: int, tell: Callable[[str], None]
    ) -> ExamPaper:
        """Return how the model does on n questions per skill, within the caps; see :mod:`agents.llm.exam`."""
        from agents.llm import exam

        if evaluation is None or goal is None:
            study = exam.default_study()
            evaluation, goal = study.evaluation, study.goal
        asked = exam.questions(evaluation, goal, n, seed)
        self.open(MemoryLog(), tell)
        try:
            if self._is_off or self._mail is None:
                raise UserError("nobody can be examined", "see above, and docs/llm.md")
            return exam.sit(asked, self._mail, tell)
        finally:
            self.close()

    # ------------------------------------------------------------------ an arm

    def n_ready(self, history: History) -> int:
        """Return how many proposals are ready and still new; a study that keeps no letters has them in memory."""
        if not self._is_open:
            self.open(MemoryLog(), self._tell)
        self._collect(self.settings.wait_s)
        if self._queue:
            known = history.is_known(np.array([e.codes for e in self._queue]))
            self._queue = [e for e, is_known in zip(self._queue, known, strict=True) if not is_known]
        return len(self._ready(history))

    def _ready(self, history: History) -> list[Edit]:
        if self._starts is None:
            return self._queue
        due = self._due.get(history.batch, set())
        return [e for e in self._queue if e.hash in due]

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return up to k of the proposals that are ready."""
        del rng
        if not self._is_open:
            self.open(MemoryLog(), self._tell)
        chosen = self._ready(history)[:k]
        if not chosen or self._mail is None:
            return Proposals(np.empty((0, history.space.n_parameters), dtype=np.int64))
        taken = {_mark(e) for e in chosen}
        self._queue = [e for e in self._queue if _mark(e) not in taken]
        self._entered |= {_mark(e): e for e in chosen}
        self._mail.log.entered([(e.call, e.place) for e in chosen], history.batch)
        return Proposals(
            np.array([e.codes for e in chosen], dtype=np.int64),
            [(e.parent,) for e in chosen],
            np.array([_mark(e) for e in chosen]),
        )

    def consider(self, history: History) -> None:
        """Begin a round where one is due."""
        self._collect(0.0)
        if self._is_off or self._mail is None or self._round is not None or not len(history):
            return
        try:
            self._begin_if_due(history)
        except Exception as error:
            self._stop(f"{type(error).__name__}: {plain(error, 300)}")
            raise

    def _begin_if_due(self, history: History) -> None:
        if self._starts is not None:
            if history.batch in self._starts:
                self._begin(history, at_once=True)
            return
        spacing = self.settings.every * min(2**self._n_fruitless, _LONGEST_SPACING)
        is_due = not self._n_asked_at or history.n_total - self._n_asked_at >= spacing
        if is_due and len(self._queue) <= self.settings.designs // 2:
            self._begin(history, at_once=False)

    def _begin(self, history: History, at_once: bool) -> None:
        assert self._mail is not None
        found = digest(history, self._own(history), self._theory)
        rows = {int(n): i for i, n in enumerate(history.numbers.tolist())}
        parents = {n: history.codes[rows[n]] for n in found.parents}
        waiting = {e.hash for e in self._queue}
        checker = Checker(history.space, history.goal, parents, history.is_known, waiting)
        at = Snapshot(history.space, history.goal, found, checker, history.batch, self._n_rounds, self._theory)
        self._n_rounds += 1
        self._n_asked_at = history.n_total
        self._round = Round(self._mail, at, self.template)
        if at_once:
            self._round.run()
        else:
            self._round.start()

    def _collect(self, wait_s: float) -> None:
        """Take over a round that has ended."""
        done = self._round
        if done is None or self._mail is None or not done.done.wait(wait_s):
            return
        self._round = None
        self._queue += done.accepted
        self._theory = done.theory or self._theory
        self._n_fruitless = 0 if done.accepted else self._n_fruitless + 1
        if self._is_off:
            return
        if self._mail.stopped:
            self._stop(self._mail.stopped)
        elif self._n_fruitless >= _FRUITLESS_ROUNDS:
            why = f"; the last: {done.trouble}" if done.trouble else ""
            self._stop(f"{self._n_fruitless} rounds in a row brought no design{why}")

    def _own(self, history: History) -> list[str]:
        """Return lines on earlier proposals: predicted and observed, the latest first."""
        rows = {int(n): i for i, n in enumerate(history.numbers.tolist())}
        lines = []
        for row in np.flatnonzero(history.marks >= 0)[::-1].tolist():
            edit = self._entered.get(int(history.marks[row]))
            if edit is None:
                continue
            seen = observed(history, row, rows.get(edit.parent))
            told = [
                f"{o.name} {edit.predicted[o.name]:.2f} -> {seen[o.name]:.2f}" if o.name in edit.predicted
                else f"{o.name} {seen[o.name]:.2f}"
                for o in history.goal.objectives if o.name in seen
            ]  # fmt: skip
            state = "" if history.violation[row] == 0 else "; not feasible"
            lines.append(f"- d{history.numbers[row]} from d{edit.parent}: {', '.join(told) or 'no result'}{state}")
        return lines[:12]


def observed(history: History, row: int, parent: int | None) -> dict[str, float]:
    """Return objective -> ratio of a design's value to its parent's, where both are known and positive."""
    if parent is None:
        return {}
    out = {}
    for j, objective in enumerate(history.goal.objectives):
        new, old = (objective.sign * float(history.objectives[i, j]) for i in (row, parent))
        if new > 0 and old > 0:
            out[objective.name] = new / old
    return out


def _mark(edit: Edit) -> int:
    return edit.call * MOST_PLACES + edit.place


def _shown(provider: Provider) -> dict[str, str]:
    return {"provider": provider.name, "model": provider.model, "where": provider.where}
