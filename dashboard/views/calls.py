"""What was a language model asked, what did it answer, and was it right?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import streamlit as st

from dashboard import letters
from dashboard.data import View
from dashboard.figures.calls import prediction_figure
from dashboard.views.shell import choose_study, guarded, live, plain_table, wrapping
from dse.calls import ACCEPTED, OUTCOMES, Call, Edit, scores, spent

_TEXT_HEIGHT: Final = 340
_DOLLARS: Final = st.column_config.NumberColumn(format="$%.4f")


@guarded
def page() -> None:
    """Show the calls of a study to language models."""
    st.header("Language model")
    view = choose_study(with_fidelity=False)
    if view is None:
        return
    n_calls = len(letters.log(view.results)[1])
    if not n_calls:
        st.info("This study has asked no language model.")
        st.caption("One joins the search as an arm of its portfolio:")
        st.code('Study(..., proposers=["auto", "llm"])', language=None)
        return
    live(view, _overview)
    _call(view, _number(n_calls))


def _number(n_calls: int) -> int:
    asked = st.query_params.get("call", "")
    if asked and not (asked.isdigit() and int(asked) < n_calls):
        st.warning(f"The address names no call of this study; it has 0 to {n_calls - 1}.")
        st.session_state["call"] = n_calls - 1
    with st.sidebar:
        return int(st.number_input("call", 0, n_calls - 1, n_calls - 1, key="call", bind="query-params"))


def _overview(view: View) -> None:
    sessions, calls, edits = letters.log(view.results)
    dollars, tokens, n_calls = spent(calls)
    accepted = sum(e.verdict == ACCEPTED for e in edits)
    cells = wrapping()
    cells.metric("calls", f"{n_calls:,}", width="content")
    cells.metric(
        "tokens",
        f"{tokens:,}",
        help="as caps count them: what is not known counts at the most it can be",
        width="content",
    )
    cells.metric("spent", f"${dollars:.4f}", width="content")
    cells.metric("proposals accepted", f"{accepted:,} of {len(edits):,}", width="content")
    for session in sessions:
        if session.stop_reason:
            st.text(f"Run {session.number} stopped asking: {session.stop_reason}")
    _, observed = letters.compared(view.results, edits)
    found = scores(calls, edits, observed)
    columns = ["model", "calls", "answered", "proposed", "accepted", "evaluated", "predictions", "right direction",
               "median error", "tokens", "cost"]  # fmt: skip
    rows = [
        (s.model, s.n_calls, s.n_answered, s.n_proposed, s.n_accepted, s.n_evaluated, s.n_predictions, s.sign_ratio,
         math.exp(s.log_error), s.tokens, s.usd)
        for s in found
    ]  # fmt: skip
    config: dict[str, Any] = {
        "right direction": st.column_config.NumberColumn(format="percent", help="less than 1 % counts as no change"),
        "median error": st.column_config.NumberColumn(format="x%.2f", help="predicted over observed ratio, or inverse"),
        "cost": _DOLLARS,
    }
    plain_table(rows, columns, column_config=config)
    _predictions(edits, view, observed)
    st.subheader("Calls")
    _calls(calls, edits)


def _predictions(edits: Sequence[Edit], view: View, observed: Mapping[letters.Place, Mapping[str, float]]) -> None:
    st.subheader("Predicted against observed")
    designs, _ = letters.compared(view.results, edits)
    rows = [
        (e.call, designs[e.call, e.place], e.parent, name, ratio, observed[e.call, e.place][name])
        for e in edits
        if (e.call, e.place) in observed
        for name, ratio in e.predicted.items()
        if ratio > 0 and observed[e.call, e.place].get(name, 0.0) > 0
    ]
    if not rows:
        st.info("No prediction can be compared yet.")
        return
    compared = {}
    for name in dict.fromkeys(row[3] for row in rows):
        mine = [row for row in rows if row[3] == name]
        predicted, seen, numbers = (np.array([row[i] for row in mine]) for i in (4, 5, 1))
        compared[name] = (predicted, seen, numbers)
    alt = "Observed over predicted ratio of a new design's objectives to its parent's, with the line of equality."
    st.plotly_chart(prediction_figure(compared), key="predictions", alt=alt)
    with st.expander("as a table"):
        plain_table(rows, ["call", "design", "parent", "objective", "predicted ratio", "observed ratio"])


def _calls(calls: Sequence[Call], edits: Sequence[Edit]) -> None:
    rows = []
    for call in reversed(calls):
        own = [e for e in edits if e.call == call.number]
        rows.append(
            (call.number, call.round, call.role, call.model, call.batch, call.outcome,
             _known(call.n_prompt_tokens), _known(call.n_output_tokens), _finite(call.usd), _finite(call.latency_s),
             len(own), sum(e.verdict == ACCEPTED for e in own), call.detail)
        )  # fmt: skip
    columns = ["call", "round", "role", "model", "after batch", "outcome", "prompt tokens", "answer tokens", "cost",
               "seconds", "proposed", "accepted", "detail"]  # fmt: skip
    config = {"cost": _DOLLARS, "seconds": st.column_config.NumberColumn(format="%.1f")}
    plain_table(rows, columns, column_config=config)


def _call(view: View, number: int) -> None:
    _, calls, edits = letters.log(view.results)
    call, own = calls[number], [e for e in edits if e.call == number]
    designs, observed = letters.compared(view.results, own)
    st.subheader(f"Call {number}")
    st.text(f"{call.role}, {call.model}, template {call.template}, prompt {call.prompt_hash}")
    st.text(f"{OUTCOMES.get(call.outcome, call.outcome)}{f': {call.detail}' if call.detail else ''}")
    if own:
        rows = []
        for e in own:
            place = (e.call, e.place)
            rows.append(
                (e.place, e.verdict, e.detail, e.parent, letters.changes(e), e.bottleneck, e.reason, designs.get(place),
                 letters.ratios(e.predicted), letters.ratios(observed.get(place, {})))
            )  # fmt: skip
        columns = ["place", "verdict", "why", "parent", "changes", "relieves", "reason", "design", "predicted",
                   "observed"]  # fmt: skip
        plain_table(rows, columns)
    for role, text in [*call.messages, ("answer", call.answer)]:
        with st.expander(role, expanded=role == "answer"), st.container(height=_TEXT_HEIGHT):
            st.text(text or "(nothing)")


def _known(count: int) -> int | None:
    return count if count >= 0 else None


def _finite(number: float) -> float | None:
    return None if math.isnan(number) else number
