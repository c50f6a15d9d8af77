"""What can be had at once? Designs in the plane of two or three metrics, and how to choose among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import streamlit as st

from dashboard import data
from dashboard.colouring import coloured, colourings
from dashboard.data import View
from dashboard.figures.front import POINTS_DRAWN, Axis, Layer, drawable, front_figure, thinned
from dashboard.figures.theme import GREY, ORANGE, RED, titled
from dashboard.views.choosing import picks, reasons, selected, tables
from dashboard.views.shell import choose_study, drawable_metrics, guarded, live, wrapping
from dse.errors import DseError
from dse.results import Results
from dse.units import format_quantity

NONE: Final = "–"
SCALES: Final = ("automatic", "linear", "log")
MORE: Final = ("infeasible", "intervals")
_RECENT: Final = 1_000
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
        reasons(results)
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
        reasons(results)
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
    selected(results, event)
    picks(view, front)
    tables(view, front)


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
