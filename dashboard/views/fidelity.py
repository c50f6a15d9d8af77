"""How far do the fidelities of a study agree?"""

from __future__ import annotations

import numpy as np
import streamlit as st

from dashboard.data import View
from dashboard.figures.fidelity import parity_figure
from dashboard.figures.theme import heading
from dashboard.views.shell import choose_study, guarded, live, metric_columns, plain_table, wrapping
from dse.agreement import Agreement, agreements, pairs
from dse.results import Results

_POINTS = 20_000


@guarded
def page() -> None:
    """Show each fidelity of a study against the next."""
    st.header("Fidelity")
    view = choose_study(with_fidelity=False)
    if view is None:
        return
    if len(view.results.fidelities) < 2:
        st.info("This study has one fidelity.")
        st.text(view.results.fidelity)
        st.caption("With a ladder, the promising designs are evaluated by dearer cost models as well:")
        st.code('Study(..., ladder=Rung("simulated", designs=200))', language=None)
        return
    live(view, _agreeing)


def _agreeing(view: View) -> None:
    results = view.results
    for rung, one in enumerate(agreements(results), 1):
        st.subheader(f"Step {rung}")
        st.text(f"{one.below}  →  {one.fidelity}")
        _counts(one)
        if not one.n_designs:
            st.info("No design has gone up yet.")
            continue
        _table(one)
        _parity(results, rung, one)


def _counts(one: Agreement) -> None:
    cells = wrapping()
    cells.metric("designs below", f"{one.n_below:,}", width="content")
    cells.metric("went up", f"{one.n_designs:,}", width="content")
    cells.metric("on the front", f"{one.n_front:,}", width="content")
    cells.metric("of these on the front below", f"{one.n_stayed:,}", width="content")
    troubles = [f"{n:,} {what}" for n, what in ((one.n_infeasible, "infeasible"), (one.n_failed, "failed")) if n]
    if troubles:
        st.caption(f"{' and '.join(troubles)} at the higher fidelity.")


def _table(one: Agreement) -> None:
    columns = ["metric", "pairs", "rank correlation", "median ratio", "5 %", "95 %", "inside the interval"]
    rows = [
        (m.metric, m.n_pairs, m.rank_correlation, m.ratio, m.low_ratio, m.high_ratio, m.inside_ratio)
        for m in one.metrics
    ]
    config = {n: st.column_config.NumberColumn(n, format="%.4g") for n in columns[2:6]}
    config["inside the interval"] = st.column_config.NumberColumn(
        "inside the interval", format="percent", help="pairs whose upper value lies in the interval of the lower one"
    )
    plain_table(rows, columns, column_config=config)
    st.caption(
        "Ratios are upper over lower. Designs go up because they promise something: over all designs the rank "
        "correlation is higher as a rule."
    )


def _parity(results: Results, rung: int, one: Agreement) -> None:
    names = [m.metric for m in one.metrics if m.n_pairs]
    if not names:
        return
    key = f"parity-{rung}"
    name = st.selectbox("metric", names, key=key)
    metric = next(m for m in one.metrics if m.metric == name)
    numbers, low, high = pairs(results, rung, name)
    if len(numbers) > _POINTS:
        kept = np.linspace(0, len(numbers) - 1, _POINTS).round().astype(int)
        numbers, low, high = numbers[kept], low[kept], high[kept]
    band = (metric.low_ratio, metric.high_ratio) if np.isfinite(metric.low_ratio) else None
    figure = parity_figure(name, ("lower", "higher"), low, high, numbers, band)
    alt = f"{heading(name)} at the higher fidelity over the lower one, with the line on which both agree."
    st.plotly_chart(figure, key=f"{key}-figure", alt=alt)
    with st.expander("as a table"):
        plain_table(
            list(zip(numbers.tolist(), low.tolist(), high.tolist(), strict=True)),
            ["design", "lower", "higher"],
            column_config=dict(zip(("lower", "higher"), (metric_columns([name])[name],) * 2, strict=True)),
        )
