"""The pages: which studies there are, what each has found, and what one design is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import numpy as np
import pandas as pd
import streamlit as st

from dashboard import data, figures
from dse.errors import DseError, UserError
from dse.hypervolume import hypervolume
from dse.metrics import METRICS
from dse.pareto import ParetoArchive
from dse.results import Results
from dse.shown import show as shown
from dse.shown import show_knob

POINTS_DRAWN = 20_000


def _guarded(page: Callable[[], None]) -> Callable[[], None]:
    """Return the page with errors told in words."""

    @wraps(page)
    def shown() -> None:
        try:
            page()
        except DseError as error:
            data.explained(error)

    return shown


@_guarded
def studies_page() -> None:
    """List the studies."""
    st.header("Studies")
    rows = data.studies()
    if not rows:
        st.info("No study is stored yet. Run one:")
        st.code("dse run studies/medical_vqa_edge.py", language=None)
        return
    frame = pd.DataFrame(
        {
            "study": [r.name for r in rows],
            "state": [r.state for r in rows],
            "designs": [r.n_designs for r in rows],
            "target": [r.target for r in rows],
            "objectives": [", ".join(r.objectives) for r in rows],
            "constraints": [", ".join(r.constraints) for r in rows],
            "last result": pd.to_datetime([r.updated_s for r in rows], unit="s", utc=True),
        }
    )
    event = st.dataframe(frame, hide_index=True, on_select="rerun", selection_mode="single-row", key="studies")
    picked = event["selection"]["rows"]
    if picked:
        st.query_params["study"] = rows[picked[0]].name
        st.switch_page(navigation()["front"])
    st.caption("Select a row to see its front.")


@_guarded
def front_page() -> None:
    """Show the front of one study."""
    st.header("Front")
    name = _study_choice()
    if name is None:
        return
    results = data.results(name).top
    if len(results.fidelities) > 1:
        chosen = st.selectbox("fidelity", results.fidelities, results.rung, key=f"fidelity-{name}")
        results = results.at(results.fidelities.index(chosen))
    front = results.front(results.rung)
    cells = st.columns(4)
    done = int(results.evaluated.sum())
    cells[0].metric("designs", f"{done:,}")
    cells[1].metric("on the front", f"{len(front):,}")
    cells[2].metric("feasible", f"{int((results.violation == 0).sum()):,}")
    cells[3].metric("state", results.row.state)
    if not len(front):
        st.info("No feasible design yet.")
        st.text(str(front))
        return
    _front_plot(results, front.numbers)
    st.subheader("Designs on the front")
    names = front.columns()
    table = pd.DataFrame({n: results.metrics.values[n][front.numbers] for n in names})
    table.insert(0, "design", front.numbers)
    event = st.dataframe(table, hide_index=True, on_select="rerun", selection_mode="single-row", key=f"front-{name}")
    if event["selection"]["rows"]:
        st.query_params["study"] = name
        st.query_params["design"] = str(front.numbers[event["selection"]["rows"][0]])
        st.switch_page(navigation()["design"])
    priors = [n for n in names if results.metrics.basis.get(n) == "prior"]
    if priors:
        st.caption(f"{', '.join(priors)}: a prior from published tables, not a measurement of this model.")
    st.subheader("Progress")
    n_designs, volumes = _progress(results)
    st.plotly_chart(figures.progress_figure(n_designs, volumes), key=f"progress-{name}")


def _front_plot(results: Results, on_front: np.ndarray) -> None:
    names = [n for n in results.metrics.values if np.isfinite(results.metrics.values[n]).any()]
    wanted = results.goal.metrics
    left, middle, right = st.columns([3, 3, 2])
    if not names:
        st.info("No design has metrics yet.")
        return
    first, second = (n if n in names else names[0] for n in (wanted[0], wanted[min(1, len(wanted) - 1)]))
    x_name = left.selectbox("horizontal", names, index=names.index(first))
    y_name = middle.selectbox("vertical", names, index=names.index(second))
    with right:
        logs = (st.checkbox("log horizontal"), st.checkbox("log vertical"))
    feasible = np.flatnonzero(results.violation == 0)
    drawn = np.union1d(feasible[-POINTS_DRAWN:], on_front)
    figure = figures.front_figure(
        results.metrics.values[x_name][drawn],
        results.metrics.values[y_name][drawn],
        drawn,
        np.isin(drawn, on_front),
        (x_name, y_name),
        logs,
    )
    event = st.plotly_chart(figure, on_select="rerun", selection_mode=("points", "box", "lasso"), key="front")
    chosen = sorted({int(np.ravel(p["customdata"])[0]) for p in event["selection"]["points"]})
    if chosen:
        st.caption(f"{len(chosen):,} designs selected")
        st.dataframe(results.frame(chosen[:500])[results.goal.metrics])


def _progress(results: Results) -> tuple[list[int], list[float]]:
    reference = results.row.reference
    if reference is None:
        return [], []
    archive, n_designs, volumes = ParetoArchive(results.goal.n_objectives), [], []
    step = max(1, len(results) // 100)
    for start in range(0, len(results), step):
        rows = np.arange(start, min(start + step, len(results)))
        archive.add(rows, results.objectives[rows], results.violation[rows])
        n_designs.append(int(rows[-1]) + 1)
        volumes.append(hypervolume(archive.points, reference))
    return n_designs, volumes


@_guarded
def design_page() -> None:
    """Show one design."""
    st.header("Design")
    name = _study_choice()
    if name is None:
        return
    results = data.results(name).top
    front = results.front(results.rung)
    first = int(front.numbers[0]) if len(front) else 0
    number = st.number_input("design", 0, max(0, len(results) - 1), _asked_number(len(results), first))
    st.query_params["design"] = str(number)
    if not len(results):
        st.info("This study has no design yet.")
        return
    if not results.evaluated[int(number)]:
        results = results.at(0)
    if len(results.fidelities) > 1:
        st.caption(f"at {results.fidelity}")
    record = results.records([int(number)])[0]
    if record["is_feasible"]:
        st.success("feasible" + (", on the front" if int(number) in front.numbers else ""))
    else:
        st.warning("not feasible")
        st.text(record["reason"] or record["status"])
    st.text(f"proposed by {record['proposer']}")
    left, right = st.columns(2)
    with left:
        st.subheader("Metrics")
        metrics = results.metrics.take(slice(int(number), int(number) + 1))
        rows = [
            (n, shown(metrics, n, 0), metrics.basis.get(n, ""), METRICS[n].help if n in METRICS else "")
            for n in metrics.values
        ]
        st.dataframe(pd.DataFrame(rows, columns=["metric", "value", "basis", "meaning"]), hide_index=True)
    with right:
        st.subheader("Knobs")
        knobs = [(label, show_knob(label, k["value"])) for label, k in record["knobs"].items()]
        st.dataframe(pd.DataFrame(knobs, columns=["knob", "value"]), hide_index=True)
    if record["status"] == "ok":
        _breakdowns(results, int(number))


def _asked_number(n_designs: int, fallback: int) -> int:
    text = st.query_params.get("design", "")
    return int(text) if text.isdigit() and int(text) < n_designs else fallback


def _breakdowns(results: Results, number: int) -> None:
    try:
        parts = results.breakdown(number)
    except UserError as error:
        st.info("There is no breakdown.")
        st.text(error.message)
        return
    for part in parts:
        if part.parts.any():
            st.subheader(figures.titled(part.metric).capitalize())
            st.plotly_chart(figures.breakdown_figure(part), key=f"{part.metric}-{number}")
            rows = [(*label, float(v)) for label, v in zip(part.labels, part.parts[0], strict=True)]
            with st.expander("as a table"):
                columns = ["component", "phase", "class", "kind", part.metric]
                st.dataframe(pd.DataFrame(rows, columns=columns), hide_index=True)


def _study_choice() -> str | None:
    names = [r.name for r in data.studies()]
    if not names:
        st.info("No study is stored yet. Run one:")
        st.code("dse run studies/medical_vqa_edge.py", language=None)
        return None
    asked = st.query_params.get("study", names[0])
    if asked not in names:
        st.warning("The address names a study that is not stored; showing the latest instead.")
        asked = names[0]
    name = st.selectbox("study", names, index=names.index(asked))
    st.query_params["study"] = name
    return name


def navigation() -> dict[str, st.Page]:
    """Return all pages by name."""
    return {
        "studies": st.Page(studies_page, title="Studies", url_path="studies", default=True),
        "front": st.Page(front_page, title="Front", url_path="front"),
        "design": st.Page(design_page, title="Design", url_path="design"),
    }
