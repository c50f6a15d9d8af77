"""Figures as pure functions: arrays in, Plotly figure out. Colours are the colour-blind-safe set of Okabe and Ito."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from dse.protocols import Breakdown
from dse.units import unit_of

GREY, BLUE, ORANGE = "#999999", "#0072B2", "#E69F00"
PARTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


def front_figure(
    x: np.ndarray,
    y: np.ndarray,
    numbers: np.ndarray,
    on_front: np.ndarray,
    names: tuple[str, str],
    logs: tuple[bool, bool],
) -> go.Figure:
    """Return feasible designs in the plane of two metrics, the front drawn over the others.

    Args:
        x, y: metrics of the designs, shape (n,).
        numbers: design numbers, shape (n,); they come back with a selection.
        on_front: whether a design is on the front, shape (n,).
        names: metric names, with units.
        logs: whether each axis is logarithmic.
    """
    figure = go.Figure()
    for chosen, label, colour, size, symbol in (
        (~on_front, "dominated", GREY, 5, "circle"),
        (on_front, "front", BLUE, 9, "diamond"),
    ):
        figure.add_trace(
            go.Scattergl(
                x=x[chosen].astype(np.float32),
                y=y[chosen].astype(np.float32),
                customdata=numbers[chosen].astype(np.int32),
                mode="markers",
                name=f"{label} ({int(chosen.sum()):,})",
                marker={"color": colour, "size": size, "symbol": symbol, "opacity": 0.5 if colour == GREY else 1.0},
                hovertemplate="design %{customdata}<br>%{x:.4g}<br>%{y:.4g}<extra></extra>",
            )
        )
    for axis, name, log in (("xaxis", names[0], logs[0]), ("yaxis", names[1], logs[1])):
        figure.update_layout({axis: {"title": {"text": titled(name)}, "type": "log" if log else "linear"}})
    figure.update_layout(
        dragmode="select",
        legend={"orientation": "h", "y": 1.08},
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        height=520,
    )
    return figure


def progress_figure(n_designs: Sequence[int], hypervolumes: Sequence[float]) -> go.Figure:
    """Return the hypervolume of the front against designs evaluated."""
    figure = go.Figure(go.Scatter(x=list(n_designs), y=list(hypervolumes), mode="lines", line={"color": BLUE}))
    figure.update_layout(
        xaxis={"title": {"text": "designs evaluated"}},
        yaxis={"title": {"text": "hypervolume"}, "rangemode": "tozero"},
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        height=260,
    )
    return figure


def breakdown_figure(part: Breakdown) -> go.Figure:
    """Return one metric of one design as stacked bars: a bar per component and phase, a colour per cost kind."""
    totals: dict[str, dict[str, float]] = {}
    for (component, phase, _, kind), value in zip(part.labels, part.parts[0], strict=True):
        bar = component if phase == "all" else f"{component}, {phase}"
        kinds = totals.setdefault(kind, {})
        kinds[bar] = kinds.get(bar, 0.0) + float(value)
    bars = list(dict.fromkeys(bar for kinds in totals.values() for bar in kinds))
    figure = go.Figure(
        [
            go.Bar(y=bars, x=[kinds.get(b, 0.0) for b in bars], name=kind, orientation="h", marker={"color": colour})
            for (kind, kinds), colour in zip(totals.items(), PARTS * 4, strict=False)
        ]
    )
    figure.update_layout(
        barmode="stack",
        xaxis={"title": {"text": titled(part.metric)}},
        yaxis={"autorange": "reversed"},
        legend={"orientation": "h", "y": -0.25},
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        height=140 + 40 * len(bars),
    )
    return figure


def titled(name: str) -> str:
    """Return a metric's name with its unit for an axis: "latency_s" becomes "latency (s)"."""
    unit = unit_of(name)
    plain = name
    for suffix in (f"_{unit.replace('/', '_per_').lower()}", "_bytes", "_ratio"):
        plain = plain.removesuffix(suffix)
    return f"{plain.replace('_', ' ')} ({unit})" if unit else plain.replace("_", " ")
