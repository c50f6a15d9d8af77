"""Calls to language models as rows: who asked what, what came back, which designs came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sqlalchemy import insert, select, update

from dse.calls import LOST, SENT, Call, Edit, Session
from dse.store import tables
from dse.store.writing import Writing

_CODES = np.dtype("<u2")


class Calling(Writing):
    """Sessions, calls and proposals."""

    def call_log(self, study_id: int) -> StoredCalls:
        """Return the calls of a study as a :class:`~dse.calls.CallLog`."""
        return StoredCalls(self, study_id)


class StoredCalls:
    """A :class:`~dse.calls.CallLog` in the store.

    Args:
        store: the store.
        study_id: the study.
    """

    def __init__(self, store: Calling, study_id: int) -> None:
        self._store, self._study_id = store, study_id

    def sessions(self) -> list[Session]:
        """Return what runs so far could spend, oldest first."""
        t = tables.llm_session
        with self._store._reading() as connection:
            rows = connection.execute(select(t).where(t.c.study_id == self._study_id).order_by(t.c.number)).all()
        return [Session(r.number, json.loads(r.settings), r.started_s, r.stop_reason) for r in rows]

    def calls(self) -> list[Call]:
        """Return all calls, oldest first."""
        t = tables.llm_call
        with self._store._reading() as connection:
            rows = connection.execute(select(t).where(t.c.study_id == self._study_id).order_by(t.c.number)).all()
        return [_call(row) for row in rows]

    def edits(self) -> list[Edit]:
        """Return all proposals, in the order of calls and places."""
        t = tables.llm_edit
        with self._store._reading() as connection:
            rows = connection.execute(
                select(t).where(t.c.study_id == self._study_id).order_by(t.c.call, t.c.place)
            ).all()
        return [_edit(row) for row in rows]

    def evaluated(self, hashes: Sequence[bytes]) -> list[bool]:
        """Return which designs are in the study already, by content hash."""
        t = tables.design
        found: set[bytes] = set()
        with self._store._reading() as connection:
            for start in range(0, len(hashes), 500):
                wanted = list(hashes[start : start + 500])
                rows = connection.execute(select(t.c.hash).where(t.c.study_id == self._study_id, t.c.hash.in_(wanted)))
                found.update(bytes(row.hash) for row in rows)
        return [h in found for h in hashes]

    def begin(self, session: Session) -> None:
        """Keep a new run; what an earlier one left under way is lost."""
        call = tables.llm_call
        with self._store._writing() as connection:
            connection.execute(
                update(call)
                .where(call.c.study_id == self._study_id, call.c.outcome == SENT)
                .values(outcome=LOST, detail="the process that sent it ended before the answer came")
            )
            connection.execute(
                insert(tables.llm_session).values(
                    study_id=self._study_id,
                    number=session.number,
                    settings=json.dumps(dict(session.settings)),
                    started_s=session.started_s,
                    stop_reason=session.stop_reason,
                )
            )

    def stop(self, session: int, reason: str) -> None:
        """Keep why a run makes no more calls."""
        t = tables.llm_session
        with self._store._writing() as connection:
            connection.execute(
                update(t).where(t.c.study_id == self._study_id, t.c.number == session).values(stop_reason=reason)
            )

    def add(self, call: Call) -> None:
        """Keep a call that is about to be sent."""
        with self._store._writing() as connection:
            connection.execute(insert(tables.llm_call).values(study_id=self._study_id, **_call_columns(call)))

    def finish(self, call: Call, edits: Sequence[Edit] = ()) -> None:
        """Keep how a call ended, with the verdicts on its proposals: in one transaction."""
        t = tables.llm_call
        with self._store._writing() as connection:
            connection.execute(
                update(t).where(t.c.study_id == self._study_id, t.c.number == call.number).values(**_call_columns(call))
            )
            if edits:
                connection.execute(
                    insert(tables.llm_edit), [{"study_id": self._study_id, **_edit_columns(e)} for e in edits]
                )

    def amend(self, edit: Edit) -> None:
        """Keep another verdict on a proposal."""
        t = tables.llm_edit
        with self._store._writing() as connection:
            connection.execute(
                update(t)
                .where(t.c.study_id == self._study_id, t.c.call == edit.call, t.c.place == edit.place)
                .values(verdict=edit.verdict, detail=edit.detail)
            )

    def of_study(self, name: str) -> StoredCalls:
        """Return the log of another study in this database."""
        return StoredCalls(self._store, self._store.study(name).id)

    def entered(self, places: Sequence[tuple[int, int]], batch: int) -> None:
        """Keep which proposals, as (call, place), were handed over for a batch."""
        t = tables.llm_edit
        with self._store._writing() as connection:
            for call, place in places:
                connection.execute(
                    update(t)
                    .where(t.c.study_id == self._study_id, t.c.call == call, t.c.place == place)
                    .values(batch=batch)
                )


def _call_columns(call: Call) -> dict[str, Any]:
    return {
        "number": call.number,
        "session": call.session,
        "round": call.round,
        "role": call.role,
        "batch": call.batch,
        "template": call.template,
        "model": call.model,
        "parameters": json.dumps(dict(call.parameters)),
        "messages": json.dumps([list(m) for m in call.messages], ensure_ascii=False),
        "prompt_hash": call.prompt_hash,
        "reserved_tokens": call.reserved_tokens,
        "reserved_usd": _null(call.reserved_usd),
        "started_s": call.started_s,
        "outcome": call.outcome,
        "detail": call.detail,
        "latency_s": _null(call.latency_s),
        "n_tries": call.n_tries,
        "n_prompt_tokens": call.n_prompt_tokens,
        "n_output_tokens": call.n_output_tokens,
        "usd": _null(call.usd),
        "answer": call.answer,
    }


def _call(row: Any) -> Call:
    values = {name: getattr(row, name) for name in _call_columns(_BLANK)}
    for name in ("reserved_usd", "latency_s", "usd"):
        values[name] = math.nan if values[name] is None else values[name]
    values["parameters"] = json.loads(values["parameters"])
    values["messages"] = tuple((role, text) for role, text in json.loads(values["messages"]))
    return Call(**values)


def _edit_columns(edit: Edit) -> dict[str, Any]:
    return {
        "call": edit.call,
        "place": edit.place,
        "parent": edit.parent,
        "changes": json.dumps([list(c) for c in edit.changes], ensure_ascii=False),
        "bottleneck": edit.bottleneck,
        "predicted": json.dumps(dict(edit.predicted)),
        "reason": edit.reason,
        "verdict": edit.verdict,
        "detail": edit.detail,
        "hash": edit.hash,
        "codes": np.array(edit.codes, dtype=_CODES).tobytes(),
        "batch": edit.batch,
    }


def _edit(row: Any) -> Edit:
    values = {name: getattr(row, name) for name in _edit_columns(_NO_EDIT)}
    values["changes"] = tuple((knob, group, value) for knob, group, value in json.loads(values["changes"]))
    values["predicted"] = json.loads(values["predicted"])
    values["hash"] = bytes(values["hash"])
    values["codes"] = tuple(np.frombuffer(values["codes"], dtype=_CODES).tolist())
    return Edit(**values)


def _null(number: float) -> float | None:
    return None if math.isnan(number) else number


_BLANK = Call(0, 0, 0, "", 0, "", "", {}, (), "", 0, math.nan, 0.0)
_NO_EDIT = replace(Edit(0, 0, -1, (), "", {}, "", ""))
