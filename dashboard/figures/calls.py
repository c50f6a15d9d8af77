"""What a language model expected of its proposals, against what they turned out to do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from dashboard.figures.theme import GREY, axis, colour, dressed, symbol, titled


def prediction_figure(compared: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> go.Figure:
    """Return predicted against observed ratios of a new design's value to its parent's, an objective each a colour.

    Args:
        compared: objective -> (predicted ratios, observed ratios, design numbers), shape (n,) each, ratios above 0.
    """
    every = np.concatenate([np.concatenate(pair[:2]) for pair in compared.values()] or [np.ones(1)])
    ends = np.array([min(every.min(initial=1.0), 0.9) / 1.05, max(every.max(initial=1.0), 1.1) * 1.05])
    figure = go.Figure(
        go.Scatter(
            x=ends, y=ends, mode="lines", name="as predicted", line={"color": GREY, "dash": "dash"}, hoverinfo="skip"
        )
    )
    for i, (name, (predicted, observed, numbers)) in enumerate(compared.items()):
        figure.add_trace(
            go.Scatter(
                x=predicted,
                y=observed,
                customdata=numbers,
                mode="markers",
                name=titled(name),
                marker={"color": colour(i), "symbol": symbol(i), "size": 9, "opacity": 0.85},
                hovertemplate="design %{customdata}<br>predicted x%{x:.3g}, observed x%{y:.3g}<extra></extra>",
            )
        )
    x, y = axis("predicted", log=True), axis("observed", log=True)
    x["title"], y["title"] = {"text": "predicted ratio to the parent"}, {"text": "observed ratio to the parent"}
    # Quadrants: in the lower left and the upper right the direction was right.
    figure.add_hline(1.0, line={"color": GREY, "width": 1})
    figure.add_vline(1.0, line={"color": GREY, "width": 1})
    return dressed(figure, 440, xaxis=x, yaxis=y)
