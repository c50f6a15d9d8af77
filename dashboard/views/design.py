"""What is this design, and where does it come from?"""

from __future__ import annotations

import io
import re
import zipfile
from typing import Any, Final

import numpy as np
import pandas as pd
import streamlit as st

from dashboard import data, letters, lineage, maps
from dashboard.data import View
from dashboard.figures.parts import breakdown_figure, map_figure, percentiles_figure, roofline_figure
from dashboard.figures.theme import heading, titled
from dashboard.views.shell import (
    choose_study,
    guarded,
    link,
    metric_columns,
    metric_frame,
    plain_table,
    prior_note,
    set_aside,
    shown,
    wrapping,
)
from dse import catalogue
from dse.errors import DseError, UserError
from dse.front import Front
from dse.metrics import METRICS
from dse.results import Results
from dse.shown import show_knob

_PERCENTILE: Final = re.compile(r"(\w+)_p(\d+)_s")


@guarded
def page() -> None:
    """Show one design."""
    st.header("Design")
    view = choose_study()
    if view is None:
        return
    results = view.results
    if not len(results):
        st.info("This study has no design yet.")
        return
    number = _number(view)
    if not results.evaluated[number] and results.rung:
        view = data.look(results.row.name)
        results = view.results
    if len(results.fidelities) > 1:
        st.caption(f"Its metrics at {results.fidelity}.")
    record = results.records([number])[0]
    _verdict(view, number, record)
    made, goes, comes, out = st.tabs(["What it is", "Where time and energy go", "Where it comes from", "Export"])
    with made:
        _metrics_and_knobs(results, number, record)
        _percentiles(results, number)
        _maps(results, number)
    with goes:
        if record["status"] == "ok":
            _breakdowns(results, number)
            _roofline(results, number)
        else:
            st.info("A design that cannot run has no breakdown.")
    with comes:
        _reasons(results, number)
        _lineage(results, number)
    with out:
        _exports(results, number, record["is_feasible"])


def _number(view: View) -> int:
    first = int(view.front[0]) if len(view.front) else view.results.nearest()
    asked = st.query_params.get("design", "")
    if asked and not (asked.isdigit() and int(asked) < len(view.results)):
        st.warning(f"The address names no design of this study; it has 0 to {len(view.results) - 1}.")
        st.session_state["design"] = first
    with st.sidebar:
        number = st.number_input("design", 0, len(view.results) - 1, first, key="design", bind="query-params")
    return int(number)


def _verdict(view: View, number: int, record: dict[str, Any]) -> None:
    if record["is_feasible"]:
        st.success(f"design {number}: feasible" + (", on the front" if number in view.front else ""))
        if doubt := Front(view.results, view.front).doubt(number):
            st.caption(f"{doubt}.")
    else:
        st.warning(f"design {number}: not feasible")
        st.text(record["reason"] or record["status"])
    row = wrapping()
    row.text(f"proposed by {record['proposer']}", width="content")
    if row.button("Set aside to compare", icon=":material/bookmark_add:"):
        set_aside(view.results.row.name, [number])
        st.toast("set aside: the Compare page has it")


def _metrics_and_knobs(results: Results, number: int, record: dict[str, Any]) -> None:
    left, right = st.columns(2)
    with left:
        st.subheader("Metrics")
        metrics = results.metrics
        rows = [
            (n, shown(metrics, n, number), metrics.basis.get(n, ""), METRICS[n].help if n in METRICS else "")
            for n in metrics.values
        ]
        plain_table(rows, ["metric", "value", "basis", "meaning"])
        prior_note(results, list(metrics.values))
    with right:
        st.subheader("Knobs")
        reference = results.space.values(results.space.reference_codes())[0]
        knobs = [
            (label, show_knob(label, k["value"]), show_knob(label, reference[label]) if label in reference else "–")
            for label, k in record["knobs"].items()
        ]
        knobs.sort(key=lambda row: row[1] == row[2])
        changed = sum(one[1] != one[2] for one in knobs)
        st.caption(f"{changed} of {len(knobs)} differ from the reference design; those come first.")
        plain_table(knobs, ["knob", "here", "reference"])


def _percentiles(results: Results, number: int) -> None:
    """Show how times spread over requests, where a cost model tells it."""
    values = {n: float(v[number]) for n, v in results.metrics.values.items() if np.isfinite(v[number])}
    spreads: dict[str, dict[int, float]] = {}
    for name, value in values.items():
        if found := _PERCENTILE.fullmatch(name):
            spreads.setdefault(f"{found[1]}_s", {})[int(found[2])] = value
    if not spreads:
        return
    rows = [(n, values.get(n, np.nan), dict(sorted(spread.items()))) for n, spread in spreads.items()]
    st.subheader("Percentiles over requests")
    alt = "For each time, what half of the requests stay within, what nearly all of them do, and the mean."
    st.plotly_chart(percentiles_figure(rows), key=f"percentiles-{number}", alt=alt)
    with st.expander("as a table"):
        percents = sorted({p for _, _, spread in rows for p in spread})
        table = [(n, *(None if np.isnan(v) else v for v in (mean, *(spread.get(p, np.nan) for p in percents))))
                 for n, mean, spread in rows]  # fmt: skip
        plain_table(table, ["metric", "mean", *(f"{p} %" for p in percents)])


def _maps(results: Results, number: int) -> None:
    found = maps.maps(results.design(number).design)
    if not found:
        return
    st.subheader("Maps")
    for tab, (kind, some) in zip(st.tabs(list(found)), found.items(), strict=True):
        with tab:
            for one in some:
                st.text(one.title)
                alt = f"{kind} of {one.title}: blocks across, modules down."
                st.plotly_chart(map_figure(one), key=f"map-{kind}-{one.title}-{number}", alt=alt)
            with st.expander("as tables"):
                for one in some:
                    st.text(one.title)
                    st.dataframe(pd.DataFrame(one.values.T, index=list(one.columns), columns=list(one.rows)))


def _breakdowns(results: Results, number: int) -> None:
    try:
        parts = results.breakdown(number)
    except UserError as error:
        st.info("There is no breakdown.")
        st.text(error.message)
        return
    by = st.segmented_control(
        "colour by", ["kind of cost", "class of operators"], default="kind of cost", key="by", bind="query-params"
    )
    for part in parts:
        if not part.parts.any():
            continue
        st.subheader(heading(part.metric))
        figure = breakdown_figure([("", part)], by="class" if by == "class of operators" else "kind")
        st.plotly_chart(
            figure, key=f"{part.metric}-{number}", alt=f"{titled(part.metric)} by component, phase and kind."
        )
        rows = [
            (*label, float(v), float(v / part.parts[0].sum()))
            for label, v in zip(part.labels, part.parts[0], strict=True)
        ]
        rows.sort(key=lambda row: -row[4])
        with st.expander("as a table"):
            plain_table(
                rows,
                ["component", "phase", "class", "kind", part.metric, "share"],
                column_config={"share": st.column_config.NumberColumn("share", format="percent")},
            )


def _roofline(results: Results, number: int) -> None:
    try:
        roof = results.roofline(number)
    except UserError:
        return  # the breakdown above has said why
    if roof is None or not len(roof.labels):
        return
    st.subheader("Roofline")
    st.caption(
        "Each class of operators at the precision that it runs at: left of 1 memory bounds it, right its unit. "
        "The distance to the dashed roof is what a better mapping could gain; larger marks take more time."
    )
    alt = "Rate relative to the peak over intensity relative to the ridge point, one mark per class of operators."
    st.plotly_chart(roofline_figure(roof), key=f"roofline-{number}", alt=alt)
    times = (roof.compute_s[0], roof.traffic_s[0], roof.seconds[0])
    order = np.argsort(-times[-1], kind="stable")
    rows = [(*roof.labels[i], *(float(t[i]) for t in times)) for i in order]
    with st.expander("as a table"):
        plain_table(rows, ["component", "phase", "class", "compute_s at the peak", "traffic_s at the peak", "takes_s"])


def _reasons(results: Results, number: int) -> None:
    """Say why a language model proposed the design, where one did."""
    found = letters.of_design(results, number)
    if not found:
        return
    st.subheader("Why a language model proposed it")
    rows = [
        (
            e.call,
            e.parent,
            letters.changes(e),
            e.bottleneck,
            e.reason,
            letters.ratios(e.predicted),
            letters.ratios(seen),
        )
        for e, seen in found
    ]
    plain_table(rows, ["call", "parent", "changes", "relieves", "reason", "predicted", "observed"])
    at = {"study": results.row.name, "call": str(found[0][0].call)}
    link(st, "llm", f"Open call {found[0][0].call}", ":material/forum:", **at)


def _lineage(results: Results, number: int) -> None:
    found = lineage.ancestors(results, number)
    st.subheader("Derived from")
    if found:
        rows = [
            (a.generation, a.number, a.proposer, "; ".join(a.changes) or "nothing that matters",
             *(shown(results.metrics, o.name, a.number) for o in results.goal.objectives))
            for a in found
        ]  # fmt: skip
        names = [o.name for o in results.goal.objectives]
        plain_table(rows, ["steps back", "design", "proposer", "what was changed from it", *names])
    else:
        st.info("Its proposer named no design that it was derived from.")
    born = lineage.children(results, number)
    if born:
        st.subheader("Led to")
        st.dataframe(
            metric_frame(results, np.array(born), results.goal.metrics),
            hide_index=True,
            column_config=metric_columns(results.goal.metrics),
        )
    st.subheader("Like it")
    near = lineage.similar(results, number)
    rows = [
        (n, distance, "; ".join(lineage.differences(results, number, n)),
         *(shown(results.metrics, o.name, n) for o in results.goal.objectives))
        for n, distance in near
    ]  # fmt: skip
    plain_table(rows, ["design", "distance", "difference", *(o.name for o in results.goal.objectives)])


def _exports(results: Results, number: int, is_feasible: bool) -> None:
    names = catalogue.listing("exporter")
    if not is_feasible:
        st.warning("This design is not feasible; what is exported says so.")
    # The whole design first; the others are each for one tool.
    name = st.selectbox("format", sorted(names, key=lambda n: (n != "design", n)), key="format")
    exporter = catalogue.exporter(name)
    st.text(exporter.help)
    try:
        exported = exporter.export(results.design(number))
    except DseError as error:
        st.info("This format cannot take the design.")
        st.text(str(error))
        return
    for sentence in exported.not_expressible:
        st.text(f"not expressible: {sentence}")
    if len(exported.files) == 1:
        (file, content), *_ = exported.files.items()
    else:
        file, content = f"{name}-{number}.zip", _zipped(exported.files)
    st.download_button(f"Download {name}", content, file_name=file, on_click="ignore", icon=":material/download:")
    for file, content in exported.files.items():
        with st.expander(f"`{file}`" if file.isascii() and "`" not in file else "file"):
            st.code(content[:20_000].decode(errors="replace"), language=None)


def _zipped(files: Any) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
    return held.getvalue()
