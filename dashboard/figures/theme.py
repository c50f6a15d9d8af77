"""What all figures have in common: colours that colour-blind people can tell apart, symbols beside them, axis titles.

Colours are those of Okabe and Ito (Color Universal Design, 2008), without their yellow, which vanishes on white, and
their black, which vanishes in dark mode; sequences are Cividis (Nuñez, Anderton and Renslow, PLOS ONE 13(7), 2018).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from dse.units import unit_of

GREY, BLUE, ORANGE, GREEN, PINK, SKY, RED = "#8A8A8A", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS: Final = (BLUE, ORANGE, GREEN, PINK, SKY, RED, GREY)
SYMBOLS: Final = ("circle", "square", "diamond", "cross", "triangle-up", "star", "x")
SHADES: Final = "Cividis"
GREYS: Final = ((0.0, "rgba(138,138,138,0)"), (1 / 255, "rgba(138,138,138,0.12)"), (1.0, "rgba(138,138,138,0.9)"))


def titled(name: str) -> str:
    """Return a metric's name with its unit for an axis: "latency_s" becomes "latency (s)"."""
    unit = unit_of(name)
    plain = name
    for suffix in (f"_{unit.replace('/', '_per_').lower()}", "_bytes", "_ratio"):
        plain = plain.removesuffix(suffix)
    return f"{plain.replace('_', ' ')} ({unit})" if unit else plain.replace("_", " ")


def heading(name: str) -> str:
    """Return :func:`titled` as a heading: its first letter large, its unit as it is."""
    title = titled(name)
    return title[:1].upper() + title[1:]


def dressed(figure: go.Figure, height: int, **axes: dict[str, Any]) -> go.Figure:
    """Return the figure with the common margins and legend.

    Args:
        figure: the figure, changed in place.
        height: in pixels.
        axes: layout of axes ("xaxis", "yaxis", ...).
    """
    figure.update_layout(
        height=height,
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "title": {"text": ""}},
        font={"size": 13},
        **axes,
    )
    return figure


def axis(name: str, *, log: bool = False, span: tuple[float, float] | None = None) -> dict[str, Any]:
    """Return the layout of an axis for a metric; ``span`` is what it shows, in the metric's unit."""
    layout: dict[str, Any] = {"title": {"text": titled(name)}, "type": "log" if log else "linear"}
    if span is not None:
        layout["range"] = [float(v) for v in (np.log10(span) if log else span)]
    if log:
        layout["exponentformat"] = "power"
    return layout


def colour(i: int) -> str:
    """Return the colour of the i-th of several things."""
    return COLOURS[i % len(COLOURS)]


def symbol(i: int) -> str:
    """Return the symbol of the i-th of several things; with the colour it tells 49 apart."""
    return SYMBOLS[(i + i // len(SYMBOLS)) % len(SYMBOLS)]
