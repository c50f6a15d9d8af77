"""How do these few designs differ?"""

from __future__ import annotations

import re
from typing import Final

import pandas as pd
import streamlit as st

from dashboard.figures.parts import breakdown_figure
from dashboard.figures.theme import heading, titled
from dashboard.views.shell import basket, choose_study, guarded, prior_note, shown
from dse.errors import UserError
from dse.protocols import Breakdown
from dse.results import Results
from dse.shown import show_knob

MOST: Final = 6


@guarded
def page() -> None:
    """Show up to six designs side by side."""
    st.header("Compare")
    view = choose_study()
    if view is None:
        return
    results = view.results
    if not len(results):
        st.info("This study has no design yet.")
        return
    # Empty by default: what equals a default is left out of the address, and this one would change with time.
    usual = ", ".join(map(str, basket(results.row.name) or view.front[:: max(1, len(view.front) // 3)][:3].tolist()))
    text = st.text_input(
        "designs", key="designs", bind="query-params", placeholder=usual, help="numbers, up to six: 3, 17, 40"
    )
    numbers = list(dict.fromkeys(int(word) for word in re.findall(r"\d{1,9}", text or usual)))
    unknown = [n for n in numbers if n >= len(results)]
    numbers = [n for n in numbers if n < len(results)]
    if unknown:
        st.warning(f"This study has designs 0 to {len(results) - 1}; left out: {', '.join(map(str, unknown))}.")
    if len(numbers) > MOST:
        st.warning(f"Six at most; left out: {', '.join(map(str, numbers[MOST:]))}.")
    numbers = numbers[:MOST]
    if not numbers:
        st.info("Name designs above, or set them aside on the pages Front and Design.")
        return
    only = st.toggle("only differences", value=True, key="only", bind="query-params")
    _metrics(results, numbers, only)
    _knobs(results, numbers, only)
    _breakdowns(results, numbers)


def _metrics(results: Results, numbers: list[int], only: bool) -> None:
    st.subheader("Metrics")
    rows = {}
    for name in dict.fromkeys([*results.goal.metrics, *results.metrics.values]):
        cells = [shown(results.metrics, name, n) for n in numbers]
        if not only or len(set(cells)) > 1 or len(numbers) == 1:
            rows[name] = cells
    rows["why not feasible"] = [_why(results, n) for n in numbers]
    rows["proposed by"] = [results.stored.proposers.get(int(results.stored.batches[n]), "") for n in numbers]
    _table(rows, numbers)
    prior_note(results, results.goal.metrics)


def _why(results: Results, number: int) -> str:
    if not results.evaluated[number]:
        return results.waiting_for(number)
    return results.reason(number) or "feasible"


def _knobs(results: Results, numbers: list[int], only: bool) -> None:
    st.subheader("Knobs")
    values = results.space.values(results.space.repair(results.stored.codes[numbers]))
    rows = {}
    for parameter in results.space.parameters:
        label = parameter.label
        cells = [show_knob(label, v[label]) if label in v else "–" for v in values]
        if not only or len(set(cells)) > 1 or len(numbers) == 1:
            rows[label] = cells
    if rows:
        _table(rows, numbers)
    else:
        st.info("They agree in every knob that matters.")


def _table(rows: dict[str, list[str]], numbers: list[int]) -> None:
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=[f"design {n}" for n in numbers])
    frame.insert(0, "name", list(rows))
    st.dataframe(frame, hide_index=True)


def _breakdowns(results: Results, numbers: list[int]) -> None:
    found: dict[str, list[tuple[str, Breakdown]]] = {}
    for n in numbers:
        if not results.evaluated[n] or (results.reason(n) and results.metrics.status[n]):
            continue
        try:
            for part in results.breakdown(n):
                if part.parts.any():
                    found.setdefault(part.metric, []).append((f"design {n}", part))
        except UserError as error:
            st.info("There is no breakdown.")
            st.text(error.message)
            return
    for metric, parts in found.items():
        st.subheader(heading(metric))
        st.plotly_chart(
            breakdown_figure(parts), key=f"parts-{metric}", alt=f"{titled(metric)} of each design, by part."
        )
        rows = [(name, *label, float(v)) for name, p in parts for label, v in zip(p.labels, p.parts[0], strict=True)]
        with st.expander("as a table"):
            columns = ["design", "component", "phase", "class", "kind", metric]
            st.dataframe(pd.DataFrame(rows, columns=columns), hide_index=True)
