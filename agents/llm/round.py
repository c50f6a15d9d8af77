"""One occasion to propose: the calls of its roles, one after the other, and the verdicts on what came back.

It runs beside the study, in a thread of its own, on a snapshot: it reads what it was given when it began, writes its
calls into the log, and leaves proposals that are worth paying for. Nothing that a model or a server does ends it with
an exception.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from agents.llm import prompt
from agents.llm.answer import Checker, parse, written
from agents.llm.budget import Budget
from agents.llm.digest import Digest
from agents.llm.provider import Provider, Reply, Request
from agents.llm.settings import Settings
from agents.llm.wire import plain
from dse.calls import ABANDONED, ACCEPTED, REJECTED, Call, CallLog, Edit
from dse.errors import DseError
from dse.objectives import Goal
from dse.space import BoundSpace

ANALYST_EVERY: Final = 4  # rounds between two theories
_THEORY: Final = 800  # characters


@dataclass
class Correspondence:
    """Sends requests and keeps what comes of them: within the caps, each in the log before it goes out.

    Args:
        provider: who answers.
        log: where calls are kept.
        budget: what is left.
        settings: caps and roles.
        session: number of this run.
        template: version of the prompt's template.
    """

    provider: Provider
    log: CallLog
    budget: Budget
    settings: Settings
    session: int
    template: str
    stopped: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_closed: bool = False

    def ask(
        self, request: Request, round_: int, batch: int, in_round: list[Call], deadline_s: float
    ) -> tuple[Call, Reply]:
        """Return the call and the reply; a reply of outcome "" says which cap forbids it, and nothing was sent."""
        forbidden, is_final = self.budget.over(request, in_round)
        if forbidden:
            self.stopped = forbidden if is_final else self.stopped
            return _nothing(request), Reply("", detail=forbidden)
        call = Call(
            number=len(self.budget.calls),
            session=self.session,
            round=round_,
            role=request.role,
            batch=batch,
            template=self.template,
            model=self.provider.model,
            parameters={"provider": self.provider.name, "max_output_tokens": request.max_output_tokens},
            messages=request.messages,
            prompt_hash=request.prompt_hash,
            reserved_tokens=request.n_tokens + request.max_output_tokens,
            reserved_usd=self.budget.reserved_usd(request),
            started_s=time.time(),
        )
        self._write(lambda: self.log.add(call))
        self.budget.calls.append(call)
        in_round.append(call)
        began = time.monotonic()
        try:
            reply = self.provider.ask(request, deadline_s)
        except Exception as error:  # noqa: BLE001  a provider of others; its failure belongs to its call
            reply = Reply("unavailable", detail=f"the provider failed: {type(error).__name__}")
        call = replace(
            call,
            outcome=reply.outcome,
            detail=plain(reply.detail, 500),
            latency_s=time.monotonic() - began,
            n_tries=reply.n_tries,
            n_prompt_tokens=reply.n_prompt_tokens,
            n_output_tokens=reply.n_output_tokens,
            usd=self.budget.usd(reply),
            answer=reply.text,
            parameters={**call.parameters, **(reply.parameters or {})},
        )
        self._keep(call, in_round, [])
        if reply.outcome == "rejected":
            self.stopped = reply.detail
        return call, reply

    def judged(self, call: Call, in_round: list[Call], outcome: str, detail: str, edits: Sequence[Edit] = ()) -> None:
        """Keep what became of an answer: its outcome, now that it was read, and the verdicts."""
        self._keep(replace(call, outcome=outcome, detail=plain(detail, 500)), in_round, edits)

    def _keep(self, call: Call, in_round: list[Call], edits: Sequence[Edit]) -> None:
        self.budget.calls[call.number] = call
        in_round[[c.number for c in in_round].index(call.number)] = call
        self._write(lambda: self.log.finish(call, edits))

    def amend(self, edit: Edit) -> None:
        """Keep another verdict on a proposal."""
        self._write(lambda: self.log.amend(edit))

    def _write(self, write: Callable[[], None]) -> None:
        with self.lock:
            if not self.is_closed:
                write()

    def abandon(self) -> None:
        """Keep that calls under way get no answer any more; nothing is written after that."""
        for call in list(self.budget.calls):
            if call.outcome == "sent":
                ended = replace(call, outcome=ABANDONED, detail="the study ended before the answer came")
                self._write(partial(self.log.finish, ended))
        with self.lock:
            self.is_closed = True


def _nothing(request: Request) -> Call:
    return Call(-1, 0, 0, request.role, -1, "", "", {}, (), request.prompt_hash, 0, math.nan, 0.0)


@dataclass
class Snapshot:
    """What a round works on: nothing of it changes while it runs.

    Attributes:
        space: the search space.
        goal: objectives and constraints.
        found: digest of the history.
        checker: judges proposals.
        batch: number of the batch after which it began.
        number: of the round.
        theory: the analyst's last words.
    """

    space: BoundSpace
    goal: Goal
    found: Digest
    checker: Checker
    batch: int
    number: int
    theory: str


@dataclass
class Round:
    """A round under way or done.

    Attributes:
        accepted: proposals that are worth paying for, when it is done.
        theory: the analyst's words, "" where it was not asked.
        trouble: what went wrong, "" if nothing.
    """

    mail: Correspondence
    at: Snapshot
    template: str
    accepted: list[Edit] = field(default_factory=list)
    theory: str = ""
    trouble: str = ""
    calls: list[Call] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin, in a thread."""
        threading.Thread(target=self.run, name="dse-llm", daemon=True).start()

    def run(self) -> None:
        """Do all of it."""
        try:
            self._propose()
        except DseError as error:  # the store is gone, or the prompt has no room: the study itself says so
            self.trouble = plain(error, 500)
        except Exception as error:  # noqa: BLE001  nothing here may end the study
            self.trouble = f"{type(error).__name__}: {plain(error, 300)}"
        finally:
            self.done.set()

    def _left_s(self) -> float:
        used = sum(c.latency_s for c in self.calls if not math.isnan(c.latency_s))
        return max(self.mail.settings.round_seconds - used, 0.01)

    def _ask(self, request: Request) -> tuple[Call, Reply]:
        return self.mail.ask(request, self.at.number, self.at.batch, self.calls, self._left_s())

    def _propose(self) -> None:
        s, at = self.mail.settings, self.at
        if s.analyst and at.number % ANALYST_EVERY == 0:
            self._theorise()
        found = at.found
        if theory := self.theory or at.theory:
            quoted = json.dumps(theory, ensure_ascii=False)
            found = replace(found, sections={**found.sections, "theory": [quoted]})
        request = prompt.proposer_request(
            at.space, at.goal, found, self.template, s.designs, s.ceiling, s.output_tokens
        )
        call, reply = self._ask(request)
        edits, problem = self._judge(call, reply)
        accepted = [e for e in edits if e.verdict == ACCEPTED]
        flawed = bool(problem) or len(accepted) < (len(edits) + 1) // 2
        if s.repair and flawed and reply.outcome == "ok":
            problems = [problem] if problem else [e.detail for e in edits if e.verdict == REJECTED]
            again = prompt.repair_request(request, reply.text, problems)
            call, reply = self._ask(again)
            more, _ = self._judge(call, reply)
            known = {e.hash for e in accepted}
            accepted += [e for e in more if e.verdict == ACCEPTED and e.hash not in known][: s.designs - len(accepted)]
        if s.critic and accepted:
            accepted = self._criticised(accepted)
        self.accepted = accepted
        if not accepted:
            self.trouble = self.trouble or problem or reply.detail

    def _judge(self, call: Call, reply: Reply) -> tuple[list[Edit], str]:
        """Return verdicts on an answer, and what is wrong with it as a whole."""
        if reply.outcome != "ok":
            return [], reply.detail or reply.outcome
        document, note = parse(reply.text)
        verdict: list[Edit] | str = note
        if document is not None:
            verdict = self.at.checker.judge(document, self.mail.settings.designs, call.number)
        if isinstance(verdict, str):
            self.mail.judged(call, self.calls, "invalid", verdict)
            return [], verdict
        self.mail.judged(call, self.calls, "ok", note, verdict)
        return verdict, ""

    def _read(self, call: Call, reply: Reply, key: str) -> Any:
        """Return one entry of an answer's object; None where there is none, which the log is told."""
        if reply.outcome != "ok":
            return None
        document, note = parse(reply.text)
        if not isinstance(document, Mapping) or key not in document:
            self.mail.judged(call, self.calls, "invalid", note or f"the answer has no {key!r}")
            return None
        return document[key]

    def _theorise(self) -> None:
        s = self.mail.settings
        words = self._read(*self._ask(prompt.analyst_request(self.at.found, s.ceiling, s.output_tokens)), "theory")
        self.theory = plain(words, _THEORY) if isinstance(words, str) else ""

    def _criticised(self, accepted: list[Edit]) -> list[Edit]:
        """Return the proposals that the critic keeps; one whose answer cannot be read rejects nothing."""
        s = self.mail.settings
        listed = [f"p{i}: from d{e.parent}: {written(e.changes)}" for i, e in enumerate(accepted)]
        call, reply = self._ask(prompt.critic_request(self.at.found, listed, s.ceiling, s.output_tokens))
        verdicts = self._read(call, reply, "verdicts")
        against: dict[str, str] = {}
        for verdict in verdicts if isinstance(verdicts, list) else []:
            if isinstance(verdict, Mapping) and verdict.get("keep") is False:
                against[str(verdict.get("proposal"))] = plain(verdict.get("reason", ""), 200)
        kept = [e for i, e in enumerate(accepted) if f"p{i}" not in against]
        for i, edit in enumerate(accepted):
            if (why := against.get(f"p{i}")) is not None:
                refused = replace(edit, verdict=REJECTED, detail=f"critic: {why}")
                self.mail.amend(refused)
        return kept
