"""What can be had at once? Designs in the plane of two or three metrics, and how to choose among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import streamlit as st

from dashboard import data
from dashboard.colouring import coloured, colourings
from dashboard.data import View
from dashboard.figures.front import POINTS_DRAWN, Axis, Layer, drawable, front_figure, parallel_figure, thinned
from dashboard.figures.theme import GREY, ORANGE, RED, titled
from dashboard.views.shell import (
    basket,
    choose_study,
    drawable_metrics,
    guarded,
    link,
    live,
    metric_columns,
    metric_frame,
    prior_note,
    set_aside,
    shown,
    wrapping,
)
from dse import picks
from dse.errors import DseError
from dse.results import Results
from dse.units import format_quantity

NONE: Final = "–"
SCALES: Final = ("automatic", "linear", "log")
MORE: Final = ("infeasible", "intervals")
_RECENT: Final = 1_000
_TABLE_ROWS: Final = 120
_LINES: Final = 1_500
_INTERVALS: Final = 400
_STEPS_PER_DECADE: Final = 24


@guarded
def page() -> None:
    """Show the front of one study."""
    st.header("Front")
    view = choose_study()
    if view is None:
        return
    results = view.results
    st.caption("What the study looks for:")
    st.text("; ".join([*map(str, results.goal.objectives), *map(str, results.goal.constraints)]))
    names = drawable_metrics(results)
    if not names:
        _counts(view)
        st.info("No design has metrics yet.")
        _reasons(results)
        return
    axes = _axes(results, names)
    options = _options(results)
    kept = _sliders(results)
    live(view, lambda now: _picture(now, axes, options, kept))


def _counts(view: View) -> None:
    results = view.results
    cells = wrapping()
    cells.metric("designs", f"{int(results.evaluated.sum()):,}", width="content")
    cells.metric("feasible", f"{int((results.violation == 0).sum()):,}", width="content")
    cells.metric("on the front", f"{len(view.front):,}", width="content")
    cells.metric("failed", f"{len(results.metrics.errors):,}", width="content")
    cells.metric("state", results.row.state, width="content")


def _axes(results: Results, names: Sequence[str]) -> list[str]:
    objectives = [o.name for o in results.goal.objectives if o.name in names] or list(names)
    x, y, z, c = st.columns([3, 3, 3, 3])
    first, second = objectives[0], objectives[min(1, len(objectives) - 1)]
    chosen = [
        x.selectbox("across", names, names.index(first), key="x", bind="query-params"),
        y.selectbox("up", names, names.index(second), key="y", bind="query-params"),
        z.selectbox("third axis", [NONE, *names], key="z", bind="query-params"),
    ]
    choices = colourings(results)
    c.selectbox("colour", choices, key="colour", bind="query-params")
    named = [n for n in chosen if n is not None and n != NONE and n in names]
    return named if len(named) >= 2 else [first, second]


def _options(results: Results) -> dict[str, Any]:
    left, middle, right = st.columns([3, 3, 3])
    scale = left.segmented_control("scale", SCALES, default=SCALES[0], key="scale", bind="query-params", wrap=True)
    picked = middle.pills("also show", MORE, selection_mode="multi", key="show", bind="query-params", wrap=True)
    others = [NONE, *(row.name for row in data.studies() if row.name != results.row.name)]
    other = right.selectbox("beside it", others, key="with", bind="query-params", help="the front of another study")
    return {"scale": scale or SCALES[0], "show": set(picked or []), "other": None if other == NONE else other}


def _is_log(values: np.ndarray, scale: str) -> bool:
    """Return whether an axis is logarithmic: as asked, or where values are positive and span more than a decade."""
    values = values[np.isfinite(values)]
    if scale == SCALES[0]:
        return bool(len(values) and values.min() > 0 and values.max() > 10 * values.min())
    return scale == "log"


def _sliders(results: Results) -> dict[str, tuple[float, float]]:
    """Return the spans that the visitor has narrowed metrics to."""
    kept: dict[str, tuple[float, float]] = {}
    with st.expander("Only designs with ..."):
        cells = st.columns(2)
        for i, name in enumerate(n for n in results.goal.metrics if n in results.metrics.values):
            values = results.metrics.values[name]
            steps = _steps(values[np.isfinite(values)])
            if len(steps) < 2:
                continue
            words = [format_quantity(v, name) for v in steps]
            words = words if len(set(words)) == len(words) else [format_quantity(v, name, 6) for v in steps]
            low, high = cells[i % 2].select_slider(
                name, words, (words[0], words[-1]), key=f"only-{name}", bind="query-params"
            )
            first, last = words.index(low), words.index(high)
            if (first, last) != (0, len(words) - 1):
                kept[name] = (float(steps[first]), float(steps[last]))
    return kept


def _steps(values: np.ndarray) -> np.ndarray:
    """Return the stops of a slider, which stay where they are while a study grows."""
    if not len(values):
        return values
    low, high = float(values.min()), float(values.max())
    if low > 0:
        first, last = np.floor(np.log10(low) * _STEPS_PER_DECADE), np.ceil(np.log10(high) * _STEPS_PER_DECADE)
        return 10 ** (np.arange(first, last + 1) / _STEPS_PER_DECADE)
    step = 10 ** np.floor(np.log10(max(high - low, 1e-12))) / 20
    return np.arange(np.floor(low / step), np.ceil(high / step) + 1) * step


def _picture(view: View, named: Sequence[str], options: dict[str, Any], kept: dict[str, tuple[float, float]]) -> None:
    results = view.results
    _counts(view)
    inside = np.ones(len(results), dtype=bool)
    for name, (low, high) in kept.items():
        values = results.metrics.values.get(name, np.full(len(results), np.nan))
        inside &= (values >= low) & (values <= high)
    columns = [results.metrics.values.get(n, np.full(len(results), np.nan)) for n in named]
    feasible = results.violation == 0
    axes = [
        Axis(n, _is_log(c[feasible] if feasible.any() else c, options["scale"]), _zoom().get(n))
        for n, c in zip(named, columns, strict=True)
    ]
    inside &= drawable(columns, axes)
    front = view.front[inside[view.front]]
    layers, below, note = _layers(view, axes, columns, inside, front, options)
    if not any(len(layer.numbers) for layer in layers):
        st.info("No feasible design yet." if not len(view.front) else "No design is within what is chosen above.")
        _reasons(results)
        return
    event = st.plotly_chart(
        front_figure(layers, axes, below),
        on_select="rerun",
        selection_mode=("points", "box", "lasso"),
        key=f"picture-{'-'.join(a.name for a in axes)}",
        config={"displaylogo": False},
        alt=f"Designs of the study by {' and '.join(titled(a.name) for a in axes)}; the table below has the front.",
    )
    if note:
        st.caption(note)
    _zooming(event, axes)
    _selected(results, event)
    _picks(view, front)
    _tables(view, front)


def _layers(
    view: View,
    axes: Sequence[Axis],
    columns: Sequence[np.ndarray],
    inside: np.ndarray,
    front: np.ndarray,
    options: dict[str, Any],
) -> tuple[list[Layer], Layer | None, str]:
    """Return what is drawn as points, what as a density, and a note where not every design is a point."""
    results = view.results
    feasible = results.violation == 0
    rest = inside & feasible
    rest[front] = False
    dominated = np.flatnonzero(rest)
    below, note = None, ""
    if len(dominated) > POINTS_DRAWN:
        below = _layer("dominated", dominated, columns)
        drawn = dominated[-_RECENT:]
        note = (
            f"{len(dominated):,} dominated designs are drawn as a density, the latest {len(drawn):,} of them as points"
        )
        dominated = drawn
        if len(axes) == 3:
            below, note = None, note.replace("are drawn as a density, ", "are too many for three axes; ")
    shown_front = front[thinned([c[front] for c in columns], axes)] if len(front) > _RECENT else front
    if len(shown_front) < len(front):
        note += f"{'; ' if note else ''}{len(front) - len(shown_front):,} designs of the front lie under others"
    layers = coloured(results, st.session_state.get("colour"), dominated, shown_front, columns)
    if "intervals" in options["show"] and len(shown_front) <= _INTERVALS:
        layers = [_with_ends(results, layer, axes) if layer.size > 6 else layer for layer in layers]
    elif "intervals" in options["show"]:
        note += f"{'; ' if note else ''}intervals are drawn for up to {_INTERVALS} designs: narrow the choice above"
    if "infeasible" in options["show"]:
        broken = np.flatnonzero(inside & ~feasible)[-POINTS_DRAWN // 4 :]
        words = np.array([results.reason(int(n)) for n in broken[-_RECENT:]])
        broken = broken[-len(words) :] if len(words) else broken[:0]
        layers.insert(0, _layer("infeasible", broken, columns, colour=RED, symbol="x-thin-open", size=6, note=words))
    if options["other"]:
        layers.append(_other(options["other"], axes, results.fidelity))
    return layers, below, note


def _layer(name: str, numbers: np.ndarray, columns: Sequence[np.ndarray], **look: Any) -> Layer:
    return Layer(name, numbers, [c[numbers] for c in columns], **({"colour": GREY} | look))


def _with_ends(results: Results, layer: Layer, axes: Sequence[Axis]) -> Layer:
    ends = []
    for a in axes:
        band = results.metrics.intervals.get(a.name)
        ends.append(None if band is None else (band[0][layer.numbers], band[1][layer.numbers]))
    return Layer(**{**layer.__dict__, "ends": ends})


def _other(name: str, axes: Sequence[Axis], fidelity: str) -> Layer:
    """Return the front of another study, at the same fidelity where it has that one, else labelled with its own."""
    try:
        other = data.look(name)
        if fidelity in other.results.fidelities:
            other = data.look(name, other.results.fidelities.index(fidelity))
    except DseError:
        return Layer(f"front of {name}", np.empty(0, int), [np.empty(0)] * len(axes), colour=ORANGE)
    blank = np.full(len(other.results), np.nan)
    columns = [other.results.metrics.values.get(a.name, blank) for a in axes]
    numbers = other.front[drawable(columns, axes)[other.front]]
    numbers = numbers[thinned([c[numbers] for c in columns], axes)] if len(numbers) > _RECENT else numbers
    at = "" if other.results.fidelity == fidelity else f" at {other.results.fidelity}"
    chosen = _layer(f"front of {name}{at}", numbers, columns, colour=ORANGE, symbol="square-open", size=8)
    return Layer(**{**chosen.__dict__, "numbers": np.full(len(numbers), -1)})


def _zoom() -> dict[str, tuple[float, float]]:
    """Return the window that is shown, metric -> span; in the address as "name:low:high,..."."""
    found = {}
    for part in st.query_params.get("zoom", "").split(","):
        name, _, span = part.partition(":")
        try:
            low, high = (float(v) for v in span.split(":"))
        except ValueError:
            continue
        if np.isfinite([low, high]).all() and low < high:
            found[name] = (low, high)
    return found


def _zooming(event: Any, axes: Sequence[Axis]) -> None:
    boxes = event["selection"].get("box") or []
    row = wrapping()
    if boxes and len(axes) == 2 and row.button("Zoom to the box", icon=":material/zoom_in:"):
        spans = [sorted(float(v) for v in boxes[-1][letter]) for letter in "xy"]
        st.query_params["zoom"] = ",".join(
            f"{a.name}:{low:.6g}:{high:.6g}" for a, (low, high) in zip(axes, spans, strict=True)
        )
        st.rerun()
    if _zoom() and row.button("Show all", icon=":material/zoom_out_map:"):
        del st.query_params["zoom"]
        st.rerun()


def _selected(results: Results, event: Any) -> None:
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


def _picks(view: View, front: np.ndarray) -> None:
    """Offer a few designs out of a front that nobody reads whole."""
    if len(front) < 2:
        return
    results = view.results
    points = results.objectives[front]
    st.subheader("Picks")
    chosen = {"knee: bends most": picks.knee(points), "balanced: gives up no objective": picks.balanced(points)}
    with st.popover("Weights", icon=":material/tune:"):
        weights = [
            st.slider(str(o), 0.0, 1.0, 0.5, 0.05, key=f"weight-{o.name}", bind="query-params")
            for o in results.goal.objectives
        ]
    if any(weights):
        chosen["by your weights"] = picks.weighted(points, weights)
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


def _tables(view: View, front: np.ndarray) -> None:
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
    if lines.open:
        with lines:
            _parallel(results, front)
    if broken.open:
        with broken:
            _reasons(results)


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


def _reasons(results: Results) -> None:
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
