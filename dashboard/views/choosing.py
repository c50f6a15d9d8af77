"""How to choose among the designs of a front: a selection, a few picks, tables, parallel axes, what is not feasible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.data import View
from dashboard.figures.front import parallel_figure
from dashboard.views.shell import (
    basket,
    link,
    metric_columns,
    metric_frame,
    prior_note,
    set_aside,
    shown,
    wrapping,
)
from dse import picks as chosen_by
from dse.front import Front
from dse.results import Results

_TABLE_ROWS: Final = 120
_LINES: Final = 1_500


def selected(results: Results, event: Any) -> None:
    """List the designs that were selected in the picture."""
    numbers = sorted(
        {int(np.ravel(p["customdata"])[0]) for p in event["selection"].get("points", []) if "customdata" in p}
    )
    numbers = [n for n in numbers if 0 <= n < len(results)]
    if not numbers:
        st.caption("Draw a box or a lasso, or click a point, to list designs here.")
        return
    st.subheader(f"{len(numbers):,} designs selected")
    chosen = st.dataframe(
        metric_frame(results, np.array(numbers[:_TABLE_ROWS]), results.goal.metrics),
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        key="selected",
        column_config=metric_columns(results.goal.metrics),
        height=240,
    )
    rows = [numbers[i] for i in chosen["selection"]["rows"] if i < len(numbers)]
    _open_or_compare(results, rows or numbers[:1], "selected")


def _open_or_compare(results: Results, numbers: Sequence[int], key: str) -> None:
    row, name = wrapping(), results.row.name
    at = {"study": name} | ({"fidelity": results.fidelity} if len(results.fidelities) > 1 else {})
    link(row, "design", f"Open design {numbers[0]}", ":material/developer_board:", **at, design=str(numbers[0]))
    if row.button("Set aside to compare", key=f"aside-{key}", icon=":material/bookmark_add:"):
        set_aside(name, numbers)
    if aside := basket(name):
        designs = ",".join(map(str, aside))
        label = f"Compare {designs.replace(',', ', ')}"
        link(row, "compare", label, ":material/compare_arrows:", **at, designs=designs)


def picks(view: View, front: np.ndarray) -> None:
    """Offer a few designs out of a front that nobody reads whole."""
    if len(front) < 2:
        return
    results = view.results
    points = results.objectives[front]
    st.subheader("Picks")
    chosen = {"knee: bends most": chosen_by.knee(points), "balanced: gives up no objective": chosen_by.balanced(points)}
    with st.popover("Weights", icon=":material/tune:"):
        weights = [
            st.slider(str(o), 0.0, 1.0, 0.5, 0.05, key=f"weight-{o.name}", bind="query-params")
            for o in results.goal.objectives
        ]
    if any(weights):
        chosen["by your weights"] = chosen_by.weighted(points, weights)
    rows = [
        (why, int(front[i]), *(shown(results.metrics, n, int(front[i])) for n in results.goal.metrics))
        for why, i in chosen.items()
    ]
    event = st.dataframe(
        pd.DataFrame(rows, columns=["pick", "design", *results.goal.metrics]),
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="picks",
    )
    picked, designs = event["selection"]["rows"], [int(front[i]) for i in chosen.values()]
    _open_or_compare(results, [designs[picked[0]] if picked else designs[0]], "picks")


def tables(view: View, front: np.ndarray) -> None:
    """Show the front as a table and over parallel axes, and what is not feasible."""
    results = view.results
    names = results.goal.metrics
    # Only what is open is drawn: a live page sends it again and again.
    table, lines, broken = st.tabs(
        ["Front as a table", "Parallel axes", "Not feasible"], key="below", on_change="rerun", bind="query-params"
    )
    with table:
        few = (
            front
            if len(front) <= _TABLE_ROWS
            else front[np.linspace(0, len(front) - 1, _TABLE_ROWS).round().astype(int)]
        )
        event = st.dataframe(
            metric_frame(results, few, names),
            hide_index=True,
            on_select="rerun",
            selection_mode="multi-row",
            key="front-table",
            column_config=metric_columns(names),
        )
        if len(few) < len(front):
            st.caption(f"{len(few)} of {len(front):,}, at equal steps; the file has all.")
        st.download_button(
            "Front as CSV",
            lambda: results.frame(front).to_csv().encode(),
            file_name="front.csv",
            mime="text/csv",
            icon=":material/download:",
            on_click="ignore",
        )
        rows = [int(few[i]) for i in event["selection"]["rows"] if i < len(few)]
        if rows:
            _open_or_compare(results, rows, "table")
        prior_note(results, names)
        if doubts := Front(results, view.front).doubts():
            st.caption(f"{doubts}.")
    if lines.open:
        with lines:
            _parallel(results, front)
    if broken.open:
        with broken:
            reasons(results)


def _parallel(results: Results, front: np.ndarray) -> None:
    """Draw the front over what varies on it; drag along an axis to brush."""
    if not len(front):
        st.info("No design is on the front within what is chosen above.")
        return
    few = front[np.linspace(0, len(front) - 1, min(len(front), _LINES)).round().astype(int)]
    codes = results.space.repair(results.stored.codes[few])
    varying = [j for j in range(codes.shape[1]) if len(np.unique(codes[:, j])) > 1]
    labels = [results.space.parameters[j].label for j in varying]
    picked = st.multiselect("knobs", labels, labels[:6], key="knobs", bind="query-params", max_selections=12)
    columns: list[tuple[str, np.ndarray, Sequence[str] | None]] = []
    for label in picked:
        j = varying[labels.index(label)]
        parameter = results.space.parameters[j]
        levels = [str(v) for v in parameter.levels]
        columns.append((label, codes[:, j], levels if len(levels) <= 16 else None))
    columns += [(n, results.metrics.values[n][few], None) for n in results.goal.metrics if n in results.metrics.values]
    figure = parallel_figure(columns, results.objectives[few, 0])
    st.plotly_chart(figure, key="parallel", alt="The front over parallel axes of knobs and metrics.")
    st.caption(
        f"{len(few):,} designs of the front; colour: {results.goal.objectives[0].name}. Drag along an axis to brush."
    )


def reasons(results: Results) -> None:
    """Show why designs are not feasible, the commonest reasons first, with the design that is nearest."""
    rows = np.flatnonzero((results.violation > 0) & results.evaluated)
    if not len(rows):
        st.info("Every evaluated design is feasible.")
        return
    nearest = rows[np.argsort(results.violation[rows], kind="stable")[:_TABLE_ROWS]]
    st.caption(f"{len(rows):,} designs are not feasible; those nearest to it first.")
    frame = pd.DataFrame(
        {
            "design": nearest,
            "excess": [float(v) if np.isfinite(v) else None for v in results.violation[nearest]],
            "reason": [results.reason(int(n)) for n in nearest],
        }
    )
    st.dataframe(
        frame,
        hide_index=True,
        column_config={"excess": st.column_config.NumberColumn("excess", format="percent", help="summed, relative")},
    )
