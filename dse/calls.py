"""Calls to language models as they are kept: what was asked, what came back, what became of each proposal.

A proposer that asks a language model writes into a :class:`CallLog`, which the coordinator backs with the store. None
of it is needed to evaluate a design, all of it is needed to say where one came from. A call is written before it is
sent, with the most it can cost, and again when it is answered: what is in flight is counted, also after a kill.

A *round* is one occasion to propose; it has a call of the proposer role, and those of other roles and repairs. Each
proposal of an answer gets a verdict, with the reason, before anything is paid for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import numpy as np

from dse.errors import unknown

SENT: Final = "sent"
LOST: Final = "lost"  # its process ended before the answer came
ABANDONED: Final = "abandoned"  # its study ended first
ACCEPTED: Final = "accepted"
REJECTED: Final = "rejected"
# outcome -> what it says, for people
OUTCOMES: Final = {
    SENT: "no answer yet",
    "ok": "an answer that could be read",
    "refusal": "the model declined to answer",
    "truncated": "the answer ended at the token limit",
    "invalid": "an answer that is none of what was asked for",
    "rate_limited": "the server asked to slow down, until time ran out",
    "unavailable": "no answer: connection, time or server",
    "rejected": "the server does not take the request (key, model, address)",
    "unrecorded": "a replay met a prompt that was never sent",
    LOST: "its process ended before the answer came; counted at the most it can have cost",
    ABANDONED: "the study ended before the answer came; counted at the most it can have cost",
}


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        number: in its study, from 0.
        session: run of the study that made it.
        round: occasion, from 0.
        role: "probe", "proposer", "repair", "analyst" or "critic".
        batch: number of the batch after whose proposal it was sent; -1 before the first.
        template: version of the prompt's template.
        model: model's name as the endpoint knows it.
        parameters: what else was sent (API, form of the answer, token limit, ...), JSON types.
        messages: (role, text) of each message.
        prompt_hash: of messages and schema, by which a replay finds the answer.
        reserved_tokens, reserved_usd: the most it can take, counted while nothing better is known; NaN where no
            price is known.
        started_s: seconds since the epoch.
        outcome: a key of :data:`OUTCOMES`.
        detail: why, in words; never a key, never a server's text about one.
        latency_s: from sending to the end of the last try; NaN while under way.
        n_tries: requests sent.
        n_prompt_tokens, n_output_tokens: as the server told, -1 where it did not.
        usd: what it cost, NaN where unknown.
        answer: the raw answer, bounded.
    """

    number: int
    session: int
    round: int
    role: str
    batch: int
    template: str
    model: str
    parameters: Mapping[str, Any]
    messages: tuple[tuple[str, str], ...]
    prompt_hash: str
    reserved_tokens: int
    reserved_usd: float
    started_s: float
    outcome: str = SENT
    detail: str = ""
    latency_s: float = math.nan
    n_tries: int = 0
    n_prompt_tokens: int = -1
    n_output_tokens: int = -1
    usd: float = math.nan
    answer: str = ""

    @property
    def counted_tokens(self) -> int:
        """Tokens as caps count them: told by the server, else the most they can be if anything was sent."""
        if self.n_prompt_tokens >= 0 and self.n_output_tokens >= 0:
            return self.n_prompt_tokens + self.n_output_tokens
        return self.reserved_tokens if self._may_have_cost else 0

    @property
    def counted_usd(self) -> float:
        """Dollars as caps count them; 0 where no price is known."""
        if not math.isnan(self.usd):
            return self.usd
        return self.reserved_usd if self._may_have_cost and not math.isnan(self.reserved_usd) else 0.0

    @property
    def _may_have_cost(self) -> bool:
        # A server that limits, refuses or cannot be reached charges nothing; one that fell silent may.
        return self.outcome in (SENT, LOST, ABANDONED, "ok", "invalid", "truncated", "refusal") or (
            self.outcome == "unavailable" and self.n_tries > 0 and "no answer within" in self.detail
        )


@dataclass(frozen=True)
class Edit:
    """One proposal of an answer and what became of it.

    Attributes:
        call: number of the call whose answer it is in.
        place: position there.
        parent: number of the design it starts from, -1 where it names none that exists.
        changes: (knob, group, value) as written.
        bottleneck: what it says it relieves.
        predicted: objective -> predicted ratio of new to parent's value.
        reason: in the model's words; data, never shown as anything but text.
        verdict: "accepted" or "rejected".
        detail: why rejected, or what was snapped.
        hash: content hash of the design, b"" where there is none.
        codes: its codes, () where there are none.
        batch: number of the batch that it entered, -1 while it has not.
    """

    call: int
    place: int
    parent: int
    changes: tuple[tuple[str, str, str], ...]
    bottleneck: str
    predicted: Mapping[str, float]
    reason: str
    verdict: str
    detail: str = ""
    hash: bytes = b""
    codes: tuple[int, ...] = ()
    batch: int = -1


@dataclass(frozen=True)
class Session:
    """What one run of a study could spend on calls, and why it stopped asking.

    Attributes:
        number: from 0.
        settings: caps, roles, endpoint without its credentials, JSON types.
        started_s: seconds since the epoch.
        stop_reason: "" while calls may be made.
    """

    number: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    started_s: float = 0.0
    stop_reason: str = ""


class CallLog(Protocol):
    """Where a proposer keeps its calls. Safe to use from a second thread."""

    def sessions(self) -> list[Session]:
        """Return what runs so far could spend, oldest first."""
        ...

    def calls(self) -> list[Call]:
        """Return all calls of the study, oldest first; those that a killed run had under way are "lost"."""
        ...

    def edits(self) -> list[Edit]:
        """Return all proposals, in the order of calls and places."""
        ...

    def evaluated(self, hashes: Sequence[bytes]) -> list[bool]:
        """Return which designs are in the study already, by content hash."""
        ...

    def begin(self, session: Session) -> None:
        """Keep a new run."""
        ...

    def stop(self, session: int, reason: str) -> None:
        """Keep why a run makes no more calls."""
        ...

    def add(self, call: Call) -> None:
        """Keep a call that is about to be sent."""
        ...

    def finish(self, call: Call, edits: Sequence[Edit] = ()) -> None:
        """Keep how a call ended, with the verdicts on its proposals."""
        ...

    def amend(self, edit: Edit) -> None:
        """Keep another verdict on a proposal."""
        ...

    def entered(self, places: Sequence[tuple[int, int]], batch: int) -> None:
        """Keep which proposals, as (call, place), were handed over for a batch."""
        ...

    def of_study(self, name: str) -> CallLog:
        """Return the log of another study in the same place.

        Raises:
            NameUnknown: there is none of that name.
        """
        ...


class MemoryLog:
    """A log of a study that is not stored."""

    def __init__(self) -> None:
        self._sessions: dict[int, Session] = {}
        self._calls: dict[int, Call] = {}
        self._edits: dict[tuple[int, int], Edit] = {}

    def sessions(self) -> list[Session]:
        """Return all runs."""
        return list(self._sessions.values())

    def calls(self) -> list[Call]:
        """Return all calls."""
        return list(self._calls.values())

    def edits(self) -> list[Edit]:
        """Return all proposals."""
        return list(self._edits.values())

    def evaluated(self, hashes: Sequence[bytes]) -> list[bool]:
        """Return that none is: nothing is stored."""
        return [False] * len(hashes)

    def begin(self, session: Session) -> None:
        """Keep a new run."""
        self._sessions[session.number] = session

    def stop(self, session: int, reason: str) -> None:
        """Keep why a run makes no more calls."""
        self._sessions[session] = replace(self._sessions[session], stop_reason=reason)

    def add(self, call: Call) -> None:
        """Keep a call that is about to be sent."""
        self._calls[call.number] = call

    def finish(self, call: Call, edits: Sequence[Edit] = ()) -> None:
        """Keep how a call ended."""
        self._calls[call.number] = call
        self._edits |= {(e.call, e.place): e for e in edits}

    def amend(self, edit: Edit) -> None:
        """Keep another verdict on a proposal."""
        self._edits[edit.call, edit.place] = edit

    def of_study(self, name: str) -> CallLog:
        """Raise: nothing is stored."""
        raise unknown("study", name, ())

    def entered(self, places: Sequence[tuple[int, int]], batch: int) -> None:
        """Keep which proposals were handed over for a batch."""
        self._edits |= {key: replace(self._edits[key], batch=batch) for key in places}


# ---------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Score:
    """How well a model's predictions and proposals held.

    Attributes:
        model: its name.
        n_calls, n_answered: calls, and those that could be read.
        n_proposed, n_accepted, n_evaluated: proposals, those worth paying for, those with metrics.
        n_predictions: predicted effects on single objectives that can be compared.
        sign_ratio: share of these whose direction was right (less than 1 % counts as no change), NaN without any.
        log_error: median of |ln(predicted / observed ratio)|, NaN without any.
        tokens: prompt and output tokens, counted as caps do.
        usd: dollars, likewise.
    """

    model: str
    n_calls: int
    n_answered: int
    n_proposed: int
    n_accepted: int
    n_evaluated: int
    n_predictions: int
    sign_ratio: float
    log_error: float
    tokens: int
    usd: float


NO_CHANGE_RATIO: Final = 0.01


def designs_of(edits: Sequence[Edit], hashes: Sequence[bytes]) -> dict[tuple[int, int], int]:
    """Return (call, place) -> number of the design that a proposal is, for those that are in the study.

    Args:
        edits: as a log gives them; only those that entered a batch have designs of their own.
        hashes: content hashes of the study's designs, by number.
    """
    numbers = {h: n for n, h in enumerate(hashes)}
    return {(e.call, e.place): numbers[e.hash] for e in edits if e.batch >= 0 and e.hash in numbers}


def observed_ratios(
    edits: Sequence[Edit], designs: Mapping[tuple[int, int], int], values: Mapping[str, np.ndarray]
) -> dict[tuple[int, int], dict[str, float]]:
    """Return (call, place) -> objective -> ratio of the design's value to its parent's, where both are above 0.

    Args:
        edits: as a log gives them.
        designs: as :func:`designs_of` gives them.
        values: objective -> its values by design number, NaN where unknown.
    """
    out: dict[tuple[int, int], dict[str, float]] = {}
    for edit in edits:
        number = designs.get((edit.call, edit.place))
        if number is None:
            continue
        row = out[edit.call, edit.place] = {}
        for name, column in values.items():
            if 0 <= edit.parent < len(column) and column[number] > 0 and column[edit.parent] > 0:
                row[name] = float(column[number] / column[edit.parent])
    return out


def scores(
    calls: Sequence[Call], edits: Sequence[Edit], observed: Mapping[tuple[int, int], Mapping[str, float]]
) -> list[Score]:
    """Return a score per model.

    Args:
        calls, edits: as a log gives them.
        observed: (call, place) of an evaluated proposal -> objective -> observed ratio of new to parent's value.
    """
    out = []
    for model in dict.fromkeys(c.model for c in calls):
        mine = {c.number: c for c in calls if c.model == model}
        own = [e for e in edits if e.call in mine]
        compared = [
            (ratio, seen[name])
            for e in own
            for seen in [observed.get((e.call, e.place), {})]
            for name, ratio in e.predicted.items()
            if seen.get(name, 0.0) > 0 and ratio > 0
        ]
        right = [_direction(a) == _direction(b) for a, b in compared]
        errors = sorted(abs(math.log(a / b)) for a, b in compared)
        out.append(
            Score(
                model=model,
                n_calls=len(mine),
                n_answered=sum(c.outcome == "ok" for c in mine.values()),
                n_proposed=len(own),
                n_accepted=sum(e.verdict == ACCEPTED for e in own),
                n_evaluated=sum((e.call, e.place) in observed for e in own),
                n_predictions=len(compared),
                sign_ratio=sum(right) / len(right) if right else math.nan,
                log_error=_median(errors),
                tokens=sum(c.counted_tokens for c in mine.values()),
                usd=sum(c.counted_usd for c in mine.values()),
            )
        )
    return out


def _direction(ratio: float) -> int:
    return 0 if abs(ratio - 1) < NO_CHANGE_RATIO else 1 if ratio > 1 else -1


def _median(ordered: Sequence[float]) -> float:
    n = len(ordered)
    return math.nan if not n else (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def spent(calls: Iterable[Call]) -> tuple[float, int, int]:
    """Return dollars, tokens and number of calls, as caps count them."""
    calls = list(calls)
    return sum(c.counted_usd for c in calls), sum(c.counted_tokens for c in calls), len(calls)
