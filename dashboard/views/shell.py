"""What all pages have in common: errors in words, the choice of a study, live refresh, text that is only text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Final

import numpy as np
import pandas as pd
import streamlit as st

from dashboard import data
from dashboard.data import View
from dse.errors import DseError
from dse.metrics import METRICS, MetricBatch
from dse.shown import show

TICK_S: Final = 2.0
RUNNING: Final = ("running", "paused")
NO_STUDY: Final = "No study is stored yet. Run one:"
RUN_ONE: Final = "dse run studies/medical_vqa_edge.py"


def guarded(page: Callable[[], None]) -> Callable[[], None]:
    """Return the page with errors told in words."""

    @wraps(page)
    def shown() -> None:
        try:
            page()
        except DseError as error:
            data.explained(error)

    return shown


def choose_study(*, with_fidelity: bool = True) -> View | None:
    """Let the visitor choose a study in the sidebar and return it as it is now; None where there is none.

    Args:
        with_fidelity: where the study has several fidelities, let the visitor choose among them too; the highest one
            that designs have reached is the default. Otherwise it is that which all designs have.
    """
    names = [row.name for row in data.studies()]
    if not names:
        st.info(NO_STUDY)
        st.code(RUN_ONE, language=None)
        return None
    asked = st.query_params.get("study")
    if asked and asked not in names:
        st.warning("The address names a study that is not stored, or no longer; this is the latest one.")
    view = data.look(_chosen("study", names, names[0]))
    if not with_fidelity or len(view.results.fidelities) == 1:
        return view
    labels = view.results.fidelities
    label = _chosen("fidelity", labels, labels[view.results.top.rung], help="of the metrics shown")
    return data.look(view.results.row.name, labels.index(label))


def _chosen(name: str, options: Sequence[str], default: str, **how: Any) -> str:
    """Let the visitor choose in the sidebar what all pages have in common: it goes along from page to page.

    The address always has it, the default too, which may be another one tomorrow. It is not bound to the widget, as a
    page's own choices are: what is bound on one page is left out of the addresses of others.
    """
    key, last = f"{name}-chosen", f"{name}-last"
    here = (st.query_params.get(name, ""), st.session_state.get(last, ""))
    value = next((v for v in here if v in options), default)
    st.session_state[key] = value
    with st.sidebar:
        st.selectbox(
            name, options, key=key, on_change=lambda: st.query_params.update({name: st.session_state[key]}), **how
        )
    st.session_state[last] = value
    if here[0] != value:
        st.query_params[name] = value
    return value


def live(view: View, draw: Callable[[View], None]) -> None:
    """Draw a part of a page, and again every two seconds while the study runs."""
    name, state, rung = view.results.row.name, view.results.row.state, view.results.rung

    def tick() -> None:
        try:
            now = data.look(name, rung)
        except DseError as error:
            data.explained(error)
            return
        if now.results.row.state != state:
            st.rerun()  # a study that has ended is not asked again
        draw(now)

    st.fragment(tick, run_every=TICK_S if state in RUNNING else None)()


def plain_table(
    rows: Sequence[Sequence[Any]], columns: Sequence[str], *, key: str | None = None, **options: Any
) -> Any:
    """Show rows of plain text and numbers."""
    frame = pd.DataFrame(list(rows), columns=list(columns))
    return st.dataframe(frame, hide_index=True, key=key, **options)


def metric_frame(results: Any, numbers: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Return designs with some metrics as numbers, the design's number first."""
    frame = pd.DataFrame({n: results.metrics.values[n][numbers] for n in names if n in results.metrics.values})
    frame.insert(0, "design", numbers)
    return frame


def metric_columns(names: Sequence[str]) -> Mapping[str, Any]:
    """Return how columns of metrics look: four digits, their meaning as help."""
    return {
        n: st.column_config.NumberColumn(
            n, format="bytes" if n.endswith("_bytes") else "%.4g", help=METRICS[n].help if n in METRICS else None
        )
        for n in names
    }


def shown(metrics: MetricBatch, name: str, number: int) -> str:
    """Return one metric of one design for people, with its interval; a dash where it has none."""
    if name not in metrics.values or not np.isfinite(metrics.values[name][number]):
        return "–"
    return show(metrics, name, number)


def drawable_metrics(results: Any) -> list[str]:
    """Return the metrics that at least one design has, those of the goal first."""
    wanted = [n for n in results.goal.metrics if n in results.metrics.values]
    names = list(dict.fromkeys([*wanted, *results.metrics.values]))
    return [n for n in names if np.isfinite(results.metrics.values[n]).any()]


def prior_note(results: Any, names: Sequence[str]) -> None:
    """Say which metrics rest on a prior."""
    priors = [n for n in names if results.metrics.basis.get(n) == "prior"]
    if priors:
        st.caption(f"{', '.join(priors)}: a prior from published tables, not a measurement of this model.")


def basket(study: str) -> list[int]:
    """Return the designs of a study that the visitor has set aside to compare."""
    baskets: dict[str, list[int]] = st.session_state.setdefault("baskets", {})
    return baskets.setdefault(study, [])


def set_aside(study: str, numbers: Sequence[int]) -> None:
    """Add designs to those set aside, six at most, the latest ones."""
    kept = list(dict.fromkeys([*basket(study), *(int(n) for n in numbers)]))[-6:]
    st.session_state["baskets"][study] = kept


def wrapping() -> Any:
    """Return a row whose cells are as wide as what is in them and go on below where the screen is narrow."""
    return st.container(horizontal=True, vertical_alignment="center", gap="medium")


def link(into: Any, page: str, label: str, icon: str, **parameters: str) -> None:
    """Draw a link to another page.

    Not a button: the address of this page is bound to its widgets, and no script may change it.

    Args:
        into: where it is drawn.
        page: address of the page, a key of :data:`dashboard.views.PAGES`.
        label, icon: what it shows.
        parameters: of the address.
    """
    from dashboard.views import navigation

    into.page_link(navigation()[page], label=label, icon=icon, query_params=parameters, width="content")
