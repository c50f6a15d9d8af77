"""How did the search get there? Growth of the front, who found what, which knobs matter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
import streamlit as st

from dashboard.data import View
from dashboard.figures.search import contour_figure, hypervolume_figure, importance_figure, shares_figure, slice_figure
from dashboard.history import Growth, Source, growth, sources
from dashboard.views.shell import choose_study, drawable_metrics, guarded, live, wrapping
from dse.importance import importance
from dse.results import Results
from dse.shown import show_knob

CREDIT: Final = "share of what the dominated volume gained after the first design, each design counted as it came in"
_BINS: Final = 40
_SHOWN: Final = 24
_LEVELS: Final = 24


@guarded
def page() -> None:
    """Show how a study got to its front."""
    st.header("Search")
    view = choose_study(with_fidelity=False)  # what proposers see
    if view is None:
        return
    if not len(view.results):
        st.info("This study has no design yet.")
        return
    live(view, _growing)
    order = _importance(view.results)
    _slices(view.results, order)
    _unhappy(view.results)


def _growing(view: View) -> None:
    results = view.results
    who = sources(results, view.front)
    duplicates = sum(s.n_duplicates for s in who)
    cells = wrapping()
    cells.metric("designs", f"{len(results):,}", width="content")
    cells.metric("on the front", f"{len(view.front):,}", width="content")
    cells.metric(
        "duplicates avoided", f"{duplicates:,}", help="proposed again, and not paid for again", width="content"
    )
    curve = growth(results)
    cells.metric("hypervolume", f"{curve.volumes[-1]:.4g}" if len(curve.volumes) else "–", width="content")
    if len(curve.volumes):
        _hypervolume(results, curve, who)
    else:
        st.info("No feasible design yet, so there is no front that could grow.")
    st.subheader("Who found what")
    edges = np.unique(np.linspace(0, len(results), min(_BINS, len(results)) + 1).round().astype(int))
    counts = np.array([np.histogram(s.rows, edges)[0] for s in who])
    names = [s.name for s in who]
    st.plotly_chart(shares_figure(names, edges, counts), key="shares", alt="Share of each proposer along the study.")
    rows = [
        (s.name, len(s.rows), len(s.rows) / max(1, len(results)), s.n_feasible, s.n_front,
         s.n_front / max(1, len(s.rows)), None if np.isnan(s.credit_ratio) else s.credit_ratio, s.n_duplicates)
        for s in who
    ]  # fmt: skip
    columns = ["proposer", "designs", "share", "feasible", "on the front", "of its designs", "credit", "duplicates"]
    helps = {"share": "of all designs", "of its designs": "how many of them are on the front", "credit": CREDIT}
    percent = {n: st.column_config.NumberColumn(n, format="percent", help=text) for n, text in helps.items()}
    st.dataframe(pd.DataFrame(rows, columns=columns), hide_index=True, column_config=percent)


def _hypervolume(results: Results, curve: Growth, who: Sequence[Source]) -> None:
    st.subheader("Hypervolume of the front")
    across = st.segmented_control("over", ["designs", "time"], default="designs", key="over", bind="query-params")
    curves = {"all": curve}
    if len(who) > 1:
        curves |= {f"{s.name} alone": growth(results, s.rows, 30) for s in who if len(s.rows) > 1}
    by_time = across == "time"
    shown = {name: (c.seconds / 60 if by_time else c.n_designs, c.volumes) for name, c in curves.items()}
    title = "minutes since the first batch" if by_time else "designs evaluated"
    st.plotly_chart(hypervolume_figure(shown, title), key="growth", alt="Hypervolume of the front as it grew.")
    st.caption(
        "Volume that the front dominates below the worst of the first feasible designs, in the objectives' units."
    )
    if any(c.is_thinned for c in curves.values()):
        st.caption("The front is too large for an exact volume in so many objectives: it is a lower bound.")
    with st.expander("as a table"):
        rows = [
            (name, *row) for name, c in curves.items() for row in zip(c.n_designs, c.seconds, c.volumes, strict=True)
        ]
        st.dataframe(pd.DataFrame(rows, columns=["front", "designs", "seconds", "hypervolume"]), hide_index=True)


def _importance(results: Results) -> list[int]:
    """Show which parameters matter, and return them, the most important first."""
    st.subheader("Which knobs matter")
    names = [n for n in results.goal.metrics if n in results.metrics.values]
    shares = importance_table(results, names)
    best = np.nan_to_num(shares, nan=-1).max(axis=1, initial=-1)
    order = np.argsort(-best, kind="stable")
    order = order[best[order] >= 0][:_SHOWN]
    if not len(order):
        st.info("Too few designs with metrics to tell.")
        return list(range(results.space.n_parameters))
    labels = [results.space.parameters[j].label for j in order]
    st.plotly_chart(
        importance_figure(labels, names, shares[order]), key="importance", alt="Variance explained by each knob."
    )
    st.caption(
        "Share of a metric's variance among the evaluated designs that a knob explains by itself (omega squared)."
    )
    with st.expander("as a table"):
        frame = pd.DataFrame(shares[order], columns=names)
        frame.insert(0, "knob", labels)
        st.dataframe(frame, hide_index=True)
    return list(dict.fromkeys([*order.tolist(), *range(results.space.n_parameters)]))


def importance_table(results: Results, names: Sequence[str]) -> np.ndarray:
    """Return how much of each metric's variance each parameter explains, shape (p, len(names))."""
    codes, levels = results.stored.codes, results.space.n_levels
    return np.stack([importance(codes, levels, results.metrics.values[n]) for n in names], axis=1)


def _slices(results: Results, order: Sequence[int]) -> None:
    st.subheader("Slices and contours")
    labels = [results.space.parameters[j].label for j in order]
    names = drawable_metrics(results)
    if not names:
        st.info("No design has metrics yet.")
        return
    left, middle, right = st.columns(3)
    metric = left.selectbox("metric", names, key="metric", bind="query-params")
    knob = middle.selectbox("knob", labels, key="knob", bind="query-params")
    other = right.selectbox("second knob", ["–", *labels], key="second", bind="query-params")
    if metric not in names or knob not in labels:
        return
    values = results.metrics.values[metric]
    known = np.isfinite(values)
    i = order[labels.index(knob)]
    first, first_names = _grouped(results, i)
    if other in labels and other != knob:
        j = order[labels.index(other)]
        second, second_names = _grouped(results, j)
        medians, counts = _medians(second[known], first[known], values[known], (len(second_names), len(first_names)))
        figure = contour_figure((knob, other), (first_names, second_names), medians, counts, metric)
        st.plotly_chart(figure, key="contour", alt=f"Median {metric} over {knob} and {other}.")
        with st.expander("as a table"):
            st.dataframe(pd.DataFrame(medians, index=second_names, columns=first_names))
        return
    used = [k for k in range(len(first_names)) if (first[known] == k).any()]
    quantiles = np.stack([np.quantile(values[known & (first == k)], [0, 0.25, 0.5, 0.75]) for k in used], axis=1)
    counts = np.array([int((first[known] == k).sum()) for k in used])
    shown = [first_names[k] for k in used]
    st.plotly_chart(slice_figure(shown, quantiles, counts, metric), key="slice", alt=f"{metric} by {knob}.")
    with st.expander("as a table"):
        frame = pd.DataFrame(quantiles.T, columns=["least", "lower quartile", "median", "upper quartile"])
        frame.insert(0, knob, shown)
        frame.insert(1, "designs", counts)
        st.dataframe(frame, hide_index=True)


def _grouped(results: Results, j: int) -> tuple[np.ndarray, list[str]]:
    """Return each design's level of a parameter and the levels' names; many levels in groups of neighbours."""
    parameter = results.space.parameters[j]
    codes = results.stored.codes[:, j].astype(np.int64)
    words = [show_knob(parameter.label, v) for v in parameter.levels]
    if len(words) <= _LEVELS:
        return codes, words
    groups = np.arange(len(words)) * _LEVELS // len(words)
    names = []
    for k in range(_LEVELS):
        mine = np.flatnonzero(groups == k)
        names.append(f"{words[mine[0]]} to {words[mine[-1]]}")
    return groups[codes], names


def _medians(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the median and the number of values in each cell of a table."""
    cell = rows * shape[1] + columns
    counts = np.bincount(cell, minlength=shape[0] * shape[1])
    order = np.lexsort((values, cell))
    starts = np.concatenate([[0], np.cumsum(counts)])
    medians = np.full(shape[0] * shape[1], np.nan)
    for k in np.flatnonzero(counts):
        mine = values[order[starts[k] : starts[k + 1]]]
        medians[k] = np.median(mine)
    return medians.reshape(shape), counts.reshape(shape)


def _unhappy(results: Results) -> None:
    """Count why designs are infeasible or failed."""
    st.subheader("Infeasible and failed")
    bad = np.flatnonzero((results.violation > 0) & results.evaluated)
    if not len(bad):
        st.info("Every evaluated design is feasible.")
        return
    failed = results.metrics.errors
    kinds: dict[tuple[str, str], list[int]] = {}
    for n in bad[-20_000:].tolist():
        words = results.reason(n)
        for one in words.split("; ") if n not in failed else [words]:
            kinds.setdefault(("failed" if n in failed else "infeasible", _without_numbers(one)), []).append(n)
    rows = [(state, what, len(ns), len(ns) / len(bad), ns[-1]) for (state, what), ns in kinds.items()]
    rows.sort(key=lambda row: -row[2])
    columns = ["state", "law", "designs", "share", "latest"]
    st.dataframe(
        pd.DataFrame(rows[:100], columns=columns),
        hide_index=True,
        column_config={"share": st.column_config.NumberColumn("share", format="percent")},
    )


def _without_numbers(text: str) -> str:
    """Return a reason with its amounts left out, so that equal laws count together."""
    if " is broken" in text:  # a constraint of the study: its bound is the same for all
        return text.partition(" is broken")[0] + " is broken"
    return re.sub(r"(?<![\w.])[-+]?\d[\d,.]*(?:e[-+]?\d+)?", "…", text.partition(" (over by")[0])[:200]
