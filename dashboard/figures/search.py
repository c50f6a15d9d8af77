"""How a study got where it is: hypervolume, who found what, which parameters matter, slices and contours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from dashboard.figures.theme import BLUE, SHADES, axis, colour, dressed, symbol, titled

_DASHES = ("solid", "dash", "dot", "dashdot")


def hypervolume_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], across: str) -> go.Figure:
    """Return the hypervolume of the front as it grew.

    Args:
        curves: name -> (where along the axis, hypervolume), each shape (n,); the first is the whole study's.
        across: what the axis counts, "designs evaluated" or "minutes since the first batch".
    """
    figure = go.Figure()
    for i, (name, (where, volume)) in enumerate(curves.items()):
        figure.add_trace(
            go.Scatter(
                x=where.astype(np.float32),
                y=volume.astype(np.float64),
                mode="lines",
                name=name,
                line={"color": colour(i), "dash": _DASHES[i % 4], "width": 3 if i == 0 else 1.5},
            )
        )
    y = {"title": {"text": "hypervolume"}, "rangemode": "tozero"}
    return dressed(figure, 340, xaxis={"title": {"text": across}}, yaxis=y)


def shares_figure(names: Sequence[str], edges: np.ndarray, counts: np.ndarray) -> go.Figure:
    """Return who proposed the designs, along the study, as stacked bars.

    Args:
        names: proposers or arms, k of them.
        edges: design numbers between which is counted, shape (b + 1,).
        counts: designs, shape (k, b).
    """
    middle = (edges[:-1] + edges[1:]) / 2
    whole = np.maximum(counts.sum(axis=0), 1)
    figure = go.Figure(
        [
            go.Bar(
                x=middle, y=(counts[i] / whole).astype(np.float32), width=np.diff(edges), name=name,
                marker={"color": colour(i), "pattern": {"shape": ("", "/", "x", ".")[i // 7 % 4]}},
                hovertemplate=f"{name}: %{{y:.0%}} around design %{{x:.0f}}<extra></extra>",
            )
            for i, name in enumerate(names)
        ]
    )  # fmt: skip
    y = {"title": {"text": "share of designs"}, "tickformat": ".0%", "range": [0, 1]}
    dressed(figure, 300, xaxis={"title": {"text": "design number"}}, yaxis=y)
    return figure.update_layout(barmode="stack", bargap=0)


def importance_figure(parameters: Sequence[str], metrics: Sequence[str], shares: np.ndarray) -> go.Figure:
    """Return how much of each metric's variance each parameter explains, as a heat map.

    Args:
        parameters: p labels.
        metrics: m names.
        shares: shape (p, m), NaN where unknown.
    """
    figure = go.Figure(
        go.Heatmap(
            z=shares.astype(np.float32),
            x=[titled(m) for m in metrics],
            y=list(parameters),
            text=[["" if np.isnan(v) else f"{v:.0%}" for v in row] for row in shares],
            texttemplate="%{text}",
            colorscale=SHADES,
            zmin=0,
            zmax=1,
            colorbar={"tickformat": ".0%", "thickness": 12},
            hovertemplate="%{y}<br>%{x}: %{z:.1%}<extra></extra>",
        )
    )
    y = {"type": "category", "autorange": "reversed"}
    return dressed(figure, 120 + 24 * len(parameters), xaxis={"type": "category"}, yaxis=y)


def slice_figure(levels: Sequence[str], quantiles: np.ndarray, counts: np.ndarray, metric: str) -> go.Figure:
    """Return a metric by the levels of one parameter: median, the middle half and the best.

    Args:
        levels: the levels that occur, k of them, in order.
        quantiles: least, lower quartile, median, upper quartile of each level, shape (4, k).
        counts: designs of each level, shape (k,).
        metric: name of the metric.
    """
    best, low, middle, high = quantiles
    figure = go.Figure(
        [
            go.Scatter(
                x=list(levels),
                y=middle,
                error_y={"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low},
                mode="markers",
                name="median and middle half",
                marker={"color": BLUE, "size": 9},
                customdata=counts,
                hovertemplate="%{x}: %{y:.4g}, %{customdata:,} designs<extra></extra>",
            ),
            go.Scatter(
                x=list(levels),
                y=best,
                mode="markers",
                name="least",
                marker={"color": colour(1), "symbol": symbol(4), "size": 9},
            ),
        ]
    )
    return dressed(figure, 320, xaxis={"type": "category"}, yaxis=axis(metric))


def contour_figure(
    names: tuple[str, str], levels: tuple[Sequence[str], Sequence[str]], values: np.ndarray, counts: np.ndarray,
    metric: str,
) -> go.Figure:  # fmt: skip
    """Return the median of a metric over the levels of two parameters.

    Args:
        names: the parameters, across and up.
        levels: their levels, i and j of them.
        values: median of the metric, shape (j, i), NaN where no design is.
        counts: designs, shape (j, i).
        metric: name of the metric.
    """
    figure = go.Figure(
        go.Heatmap(
            x=list(levels[0]),
            y=list(levels[1]),
            z=values.astype(np.float32),
            customdata=counts,
            colorscale=SHADES,
            colorbar={"title": {"text": titled(metric), "side": "right"}, "thickness": 12},
            hovertemplate="%{x}, %{y}<br>%{z:.4g}, %{customdata:,} designs<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    x, y = ({"type": "category", "title": {"text": name}} for name in names)
    return dressed(figure, 360, xaxis=x, yaxis=y)
