"""One fidelity against the next: the same designs, evaluated by both."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from dashboard.figures.theme import BLUE, GREY, axis, dressed


def parity_figure(
    metric: str, names: tuple[str, str], low: np.ndarray, high: np.ndarray, numbers: np.ndarray,
    band: tuple[float, float] | None = None,
) -> go.Figure:  # fmt: skip
    """Return one metric of the same designs at two fidelities, around the line on which both agree.

    Args:
        metric: its name.
        names: of the lower and the higher fidelity.
        low, high: the metric at each, shape (n,).
        numbers: design numbers, shape (n,).
        band: ratios high / low between which 90 % of the pairs lie, drawn around the line.
    """
    log = bool((low > 0).all() and (high > 0).all() and max(low.max(), high.max()) > 10 * min(low.min(), high.min()))
    ends = np.array([min(low.min(), high.min()), max(low.max(), high.max())])
    figure = go.Figure()
    if band is not None:
        for ratio, name in zip(band, ("5 % below", "95 % below"), strict=True):
            figure.add_trace(
                go.Scatter(
                    x=ends, y=ends * ratio, mode="lines", name=f"{name}: ratio {ratio:.3g}",
                    line={"color": GREY, "dash": "dot"}, hoverinfo="skip",
                )
            )  # fmt: skip
    figure.add_trace(
        go.Scatter(x=ends, y=ends, mode="lines", name="both agree", line={"color": GREY}, hoverinfo="skip")
    )
    figure.add_trace(
        go.Scattergl(
            x=low.astype(np.float32),
            y=high.astype(np.float32),
            customdata=numbers.astype(np.int32),
            mode="markers",
            name=f"designs ({len(low):,})",
            marker={"color": BLUE, "size": 7, "opacity": 0.8},
            hovertemplate="design %{customdata}<br>%{x:.4g} to %{y:.4g}<extra></extra>",
        )
    )
    x, y = axis(metric, log=log), axis(metric, log=log)
    x["title"]["text"] += f", {names[0]}"
    y["title"]["text"] += f", {names[1]}"
    return dressed(figure, 460, xaxis=x, yaxis=y)
