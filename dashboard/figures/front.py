"""Designs by their metrics: points in two or three axes, over a density where they are many; parallel axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from dashboard.figures.theme import BLUE, GREYS, SHADES, axis, dressed, titled

# What a browser still draws at once without a wait; beyond, points give way to a density.
POINTS_DRAWN: Final = 20_000
_BINS: Final = (120, 80)
_SPOTS: Final = (220, 140)  # a point is wider than a spot


@dataclass(frozen=True)
class Layer:
    """Designs that are drawn alike.

    Attributes:
        name: what the legend says.
        numbers: design numbers, shape (n,); they come back with a selection.
        columns: their metrics along two or three axes, each shape (n,).
        colour, symbol, size, opacity: how a point looks.
        shade: a value for the colour of each point, shape (n,), and what it is; None for one colour.
        ends: per axis (low, high), each shape (n,), where intervals are drawn.
        note: words about each point, shape (n,).
    """

    name: str
    numbers: np.ndarray
    columns: Sequence[np.ndarray]
    colour: str = BLUE
    symbol: str = "circle"
    size: int = 6
    opacity: float = 1.0
    shade: tuple[np.ndarray, str] | None = None
    ends: Sequence[tuple[np.ndarray, np.ndarray] | None] = field(default=())
    note: np.ndarray | None = None


@dataclass(frozen=True)
class Axis:
    """An axis: a metric, linear or logarithmic, and the span it shows (None for all)."""

    name: str
    log: bool = False
    span: tuple[float, float] | None = None


def front_figure(layers: Sequence[Layer], axes: Sequence[Axis], below: Layer | None = None) -> go.Figure:
    """Return designs in two or three metrics.

    Args:
        layers: what is drawn as points, the last on top.
        axes: two or three.
        below: drawn as a density under the points, on two axes.
    """
    figure = go.Figure()
    if below is not None and len(axes) == 2 and len(below.numbers):
        figure.add_trace(_density(below, axes))
    for layer in layers:
        figure.add_trace(_points(layer, axes))
        if layer.shade is not None:
            bar = {"title": {"text": _escaped(layer.shade[1]), "side": "right"}, "thickness": 12}
            figure.update_layout(coloraxis={"colorscale": SHADES, "colorbar": bar})
    if len(axes) == 3:
        scene = {f"{letter}axis": axis(a.name, log=a.log, span=a.span) for letter, a in zip("xyz", axes, strict=True)}
        return dressed(figure, 620, scene=scene)
    x, y = axes
    dressed(figure, 560, xaxis=axis(x.name, log=x.log, span=x.span), yaxis=axis(y.name, log=y.log, span=y.span))
    return figure.update_layout(dragmode="select")


def _points(layer: Layer, axes: Sequence[Axis]) -> go.Scattergl | go.Scatter3d:
    columns = [np.asarray(c).astype(np.float32) for c in layer.columns]
    marker: dict[str, Any] = {"size": layer.size, "symbol": layer.symbol, "opacity": layer.opacity}
    if layer.shade is None:
        marker["color"] = layer.colour
    else:
        marker |= {"color": layer.shade[0].astype(np.float32), "coloraxis": "coloraxis"}
    numbers = layer.numbers.astype(np.int32)
    letters = "xyz"[: len(axes)]
    lines = [f"{titled(a.name)}: %{{{letter}:.4g}}" for a, letter in zip(axes, letters, strict=True)]
    hover = "<br>".join([f"{_escaped(layer.name)}, design %{{customdata}}", *lines])
    options: dict[str, Any] = dict(zip(letters, columns, strict=True))
    options |= {
        "customdata": numbers,
        "mode": "markers",
        "name": f"{_escaped(layer.name)} ({len(numbers):,})",
        "marker": marker,
        "hovertemplate": hover + ("<br>%{text}" if layer.note is not None else "") + "<extra></extra>",
    }
    if layer.note is not None:
        options["text"] = [_escaped(str(text)) for text in layer.note]
    for letter, column, ends in zip(letters, columns, layer.ends or [None] * len(axes), strict=False):
        if ends is not None:
            low, high = (np.asarray(end).astype(np.float32) for end in ends)
            options[f"error_{letter}"] = {
                "type": "data", "symmetric": False, "array": high - column, "arrayminus": column - low,
                "thickness": 1, "width": 0,
            }  # fmt: skip
    return (go.Scatter3d if len(axes) == 3 else go.Scattergl)(**options)


def _density(layer: Layer, axes: Sequence[Axis]) -> go.Heatmap:
    edges = [_edges(column, a, bins) for column, a, bins in zip(layer.columns, axes, _BINS, strict=True)]
    counts, *_ = np.histogram2d(layer.columns[0], layer.columns[1], bins=edges)
    # One byte per cell: 0 where nothing is, else the logarithm of the count.
    depth = np.log1p(counts) / np.log1p(counts.max())
    shown = np.where(counts > 0, np.maximum(np.rint(depth * 255), 1), 0).astype(np.uint8)
    return go.Heatmap(
        x=edges[0].astype(np.float32),
        y=edges[1].astype(np.float32),
        z=shown.T,
        zmin=0,
        zmax=255,
        colorscale=GREYS,
        showscale=False,
        name=layer.name,
        hoverinfo="skip",
    )


def _edges(column: np.ndarray, a: Axis, bins: int) -> np.ndarray:
    low, high = a.span or (float(column.min()), float(column.max()))
    if a.log:
        return np.geomspace(low, high if high > low else low * 1.01, bins + 1)
    return np.linspace(low, high if high > low else low + 1.0, bins + 1)


def thinned(columns: Sequence[np.ndarray], axes: Sequence[Axis]) -> np.ndarray:
    """Return which points to draw so that no two fall on one spot of the screen, boolean, shape (n,).

    Args:
        columns: two columns, each shape (n,).
        axes: their axes.
    """
    cells = np.zeros(len(columns[0]), dtype=np.int64)
    for column, a, bins in zip(columns[:2], axes[:2], _SPOTS, strict=True):
        edges = _edges(column, a, bins)
        cells = cells * (bins + 1) + np.clip(np.searchsorted(edges, column), 0, bins)
    _, first = np.unique(cells, return_index=True)
    kept = np.zeros(len(cells), dtype=bool)
    kept[first] = True
    return kept


def drawable(columns: Sequence[np.ndarray], axes: Sequence[Axis]) -> np.ndarray:
    """Return which designs have a place in the picture: finite, positive on logarithmic axes, within what is shown."""
    good = np.ones(len(columns[0]), dtype=bool)
    for column, a in zip(columns, axes, strict=True):
        good &= np.isfinite(column)
        if a.log:
            good &= column > 0
        if a.span is not None:
            good &= (column >= a.span[0]) & (column <= a.span[1])
    return good


def parallel_figure(columns: Sequence[tuple[str, np.ndarray, Sequence[str] | None]], shade: np.ndarray) -> go.Figure:
    """Return designs as lines over parallel axes, to be brushed along them.

    Args:
        columns: (name, values, names of whole-numbered values or None), values of shape (n,).
        shade: colour of each line, shape (n,).
    """
    dimensions = []
    for name, values, words in columns:
        one: dict[str, Any] = {"label": _short(titled(name)), "values": values.astype(np.float32)}
        if words is not None:
            one |= {"tickvals": list(range(len(words))), "ticktext": [_short(str(w)) for w in words]}
        dimensions.append(one)
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={"color": shade.astype(np.float32), "colorscale": SHADES},
            labelangle=-20,
            labelside="bottom",
        )
    )
    dressed(figure, 460)
    return figure.update_layout(margin={"l": 50, "r": 40, "t": 30, "b": 110})


def _short(text: str) -> str:
    text = _escaped(text)
    return text if len(text) <= 28 else "…" + text[-27:]


def _escaped(text: str) -> str:
    """Return text for places where Plotly reads a few tags of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
