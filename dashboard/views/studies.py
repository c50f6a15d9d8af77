"""Which studies are there, and how are they doing? Also: pause, resume, stop, start one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import pandas as pd
import streamlit as st

from dashboard import data, launching
from dashboard.history import growth
from dashboard.views.shell import NO_STUDY, RUN_ONE, RUNNING, TICK_S, guarded, link, wrapping
from dse.errors import DseError
from dse.store import StudyRow

# Reading a study of 100,000 designs takes a second; those that are not read yet follow at the next look.
_READING_S: Final = 1.0
_PACE_BATCHES: Final = 20


@guarded
def page() -> None:
    """List the studies."""
    st.header("Studies")
    try:
        _all()
    except DseError as error:  # no database yet: a study that is started here makes one
        data.explained(error)
    _start()


def _all() -> None:
    rows = data.studies()
    if not rows:
        st.info(NO_STUDY)
        st.code(RUN_ONE, language=None)
        return
    is_live = any(row.state in RUNNING for row in rows)
    st.fragment(_listing, run_every=TICK_S if is_live else None)()


def _listing() -> None:
    rows = data.studies()
    frame = _frame(rows)
    event = st.dataframe(
        frame,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="listing",
        column_config={
            "progress": st.column_config.ProgressColumn("progress", format="percent", min_value=0, max_value=1),
            "hypervolume": st.column_config.LineChartColumn(
                "hypervolume", help="of the front, over the designs so far"
            ),
            "rate": st.column_config.NumberColumn("designs/s", format="%.3g", help="over the last batches"),
            "designs": st.column_config.NumberColumn("designs", format="localized"),
        },
        alt="Studies with their state, designs, rate, front size and hypervolume.",
    )
    picked = event["selection"]["rows"]
    if not picked or picked[0] >= len(rows):
        st.caption("Select a row to see its front, or to pause, resume or stop it.")
        return
    row = rows[picked[0]]
    st.text(row.name)
    cells = wrapping()
    link(cells, "front", "Open the front", ":material/scatter_plot:", study=row.name)
    for what, states, icon in (
        ("pause", ("running",), ":material/pause:"),
        ("resume", ("paused",), ":material/play_arrow:"),
        ("stop", RUNNING, ":material/stop:"),
    ):
        if cells.button(what.capitalize(), disabled=row.state not in states, icon=icon, key=f"ask-{what}"):
            try:
                data.request(row.name, what)
                st.toast(f"asked to {what}; it obeys after its current batch")
            except DseError as error:
                data.explained(error, f"The study was not asked to {what}.")
    if row.stop_reason and row.state not in RUNNING:
        st.text(f"ended: {row.stop_reason}")


def _frame(rows: Sequence[StudyRow]) -> pd.DataFrame:
    until = time.monotonic() + _READING_S
    extras = [_extras(row, until) for row in rows]
    now = time.time()
    return pd.DataFrame(
        {
            "study": [r.name for r in rows],
            "state": [r.state for r in rows],
            "designs": [r.n_designs for r in rows],
            "progress": [min(1.0, r.n_designs / r.target) if r.target else None for r in rows],
            "left": [max(0, r.target - r.n_designs) for r in rows],
            "rate": [e["rate"] for e in extras],
            "front": pd.array([e["front"] for e in extras], dtype="Int64"),
            "hypervolume": [e["hypervolume"] for e in extras],
            "proposers": [", ".join(map(str, r.spec.get("proposers", []))) for r in rows],
            "objectives": [", ".join(r.objectives) for r in rows],
            "constraints": [", ".join(r.constraints) for r in rows],
            "started": [_ago(now - r.created_s) for r in rows],
            "last result": [_ago(now - r.updated_s) for r in rows],
        }
    )


def _extras(row: StudyRow, until: float) -> dict[str, Any]:
    """Return what only the designs tell; nothing where a study is damaged, or where time is up for now."""
    if time.monotonic() > until:
        return {"rate": None, "front": None, "hypervolume": None}
    try:
        view = data.look(row.name)
    except DseError:
        return {"rate": None, "front": None, "hypervolume": None}
    stored = view.results.stored
    rate = None
    if row.state in RUNNING and stored.n_batches > 1:
        last = stored.created_s[-_PACE_BATCHES:]
        n = int((stored.batches >= stored.n_batches - len(last)).sum())
        rate = n / max(float(last[-1] - last[0]), 1e-3) if len(last) > 1 else None
    curve = growth(view.results, n_points=24)
    return {
        "rate": rate,
        "front": len(view.front),
        "hypervolume": curve.volumes.tolist() if len(curve.volumes) else None,
    }


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


def _start() -> None:
    """Offer the study files of the server's folder, with another budget and seed."""
    files = launching.study_files()
    with st.expander("Start a study"):
        if not files:
            st.info("There are no study files in the folder 'studies' where the dashboard was started.")
            return
        with st.form("start", border=False):
            file = st.selectbox("study file", [str(f) for f in files])
            left, middle, right = st.columns(3)
            trials = left.number_input("designs", 1, 10_000_000, 1000, step=100)
            seed = middle.number_input("seed", 0, 2**31 - 1, None, placeholder="as in the file")
            fork = right.text_input(
                "name", placeholder="as in the file", help="another name keeps it beside the stored one"
            )
            if st.form_submit_button("Start", icon=":material/rocket_launch:"):
                try:
                    with st.spinner("starting"):
                        log = launching.start(str(file), data.database_url(), int(trials), seed, fork or "")
                    st.success("Started; it goes on when this page is closed. Its log:")
                    st.code(str(log), language=None)
                except DseError as error:
                    data.explained(error, "The study was not started.")
        for name, text in launching.latest_logs():
            st.caption("log")
            st.text(name)
            st.code(text, language=None)
