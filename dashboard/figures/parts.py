"""What a design is made of: where time and energy go, maps of bits and widths, operators on a roofline, percentiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go

from dashboard.figures.theme import GREY, SHADES, axis, colour, dressed, symbol, titled
from dse.protocols import Breakdown, Roofline

# A kind of cost has one colour in every metric; what is not listed takes those that are left.
_KINDS: Final = {
    kind: i
    for i, kinds in enumerate(
        (
            ("compute", "array", "weight bits"),
            ("weight traffic", "weights", "activation bits"),
            ("activation traffic", "activations", "pruning of decoder"),
            ("kv traffic", "cache", "cache bits"),
            ("on-chip memory", "vector unit", "images"),
            ("overhead", "leakage", "idle", "static"),
            ("interface", "exchange", "collectives", "pruning of vision"),
        )
    )
    for kind in kinds
}


def _kind_colours(kinds: Sequence[str]) -> list[int]:
    """Return the colour of each kind, no two alike while there are colours left."""
    taken: dict[str, int] = {}
    for kind in kinds:
        wanted = _KINDS.get(kind, 0)
        free = [i for i in (*range(wanted, 28), *range(wanted)) if i not in taken.values()]
        taken[kind] = free[0]
    return [taken[kind] for kind in kinds]


def breakdown_figure(parts: Sequence[tuple[str, Breakdown]], *, by: str = "kind") -> go.Figure:
    """Return one metric of one or several designs as stacked bars: a bar per component and phase, a colour per kind.

    Args:
        parts: (name of the design or "", its breakdown, one row).
        by: what a colour stands for, "kind" of cost or "class" of operators.
    """
    totals: dict[str, dict[str, float]] = {}
    for name, part in parts:
        for (component, phase, op_class, kind), value in zip(part.labels, part.parts[0], strict=True):
            bar = component if phase == "all" else f"{component}, {phase}"
            bar = f"{name}: {bar}" if name else bar
            stack = totals.setdefault(kind if by == "kind" else op_class, {})
            stack[bar] = stack.get(bar, 0.0) + float(value)
    bars = list(dict.fromkeys(bar for stack in totals.values() for bar in stack))
    if len(parts) > 1:
        order = {name: i for i, (name, _) in enumerate(parts)}
        bars.sort(key=lambda bar: order[bar.partition(": ")[0]])
    paints = _kind_colours(list(totals))
    figure = go.Figure(
        [
            go.Bar(
                y=bars,
                x=[stack.get(b, 0.0) for b in bars],
                name=kind,
                orientation="h",
                marker={"color": colour(i), "pattern": {"shape": ("", "/", "x", ".")[i // 7 % 4]}},
                hovertemplate="%{y}<br>" + kind + ": %{x:.4g}<extra></extra>",
            )
            for i, (kind, stack) in zip(paints, totals.items(), strict=True)
        ]
    )
    dressed(
        figure,
        130 + 30 * len(bars),
        xaxis={"title": {"text": titled(parts[0][1].metric) if parts else ""}},
        yaxis={"autorange": "reversed"},
    )
    return figure.update_layout(barmode="stack")


_CELLS_WITH_TEXT: Final = 48


@dataclass(frozen=True)
class Map:
    """Values of a knob over the hierarchy of one component.

    Attributes:
        title: what it shows.
        rows: blocks (or stem, head), from the first one on.
        columns: modules inside a block, in the order of the checkpoint.
        values: shape (rows, columns), NaN where a block has no such module.
        unit: of a value, "" for plain numbers.
        levels: the values that the knob may take, ascending; empty for a fraction from 0 to 1.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray
    unit: str
    levels: Sequence[float] = ()


def map_figure(chosen: Map) -> go.Figure:
    """Return a map as a heat map, the value written in each cell; modules down, blocks across."""
    shown = chosen.values.T
    text = [["" if np.isnan(v) else f"{v:g}" for v in row] for row in shown]
    bar: dict[str, Any] = {"title": {"text": chosen.unit, "side": "right"}, "thickness": 12}
    if chosen.levels:  # widths by their place among those there are: from 3 to 4 bits is as far as from 8 to 16
        place = np.searchsorted(chosen.levels, shown).astype(np.float64)
        colours, top = np.where(np.isnan(shown), np.nan, place), float(max(len(chosen.levels) - 1, 1))
        bar |= {"tickvals": list(range(len(chosen.levels))), "ticktext": [f"{v:g}" for v in chosen.levels]}
    else:
        colours, top = shown, 1.0
    figure = go.Figure(
        go.Heatmap(
            z=colours.astype(np.float32),
            x=list(chosen.rows),
            y=list(chosen.columns),
            text=text,
            texttemplate="%{text}" if len(chosen.rows) <= _CELLS_WITH_TEXT else None,
            colorscale=SHADES,
            zmin=0,
            zmax=top,
            xgap=1,
            ygap=1,
            colorbar=bar,
            showscale=len(chosen.columns) > 3,  # its marks would lie on each other; the cells say it too
            hovertemplate=f"block %{{x}}, %{{y}}: %{{text}} {chosen.unit}<extra></extra>",
        )
    )
    return dressed(
        figure,
        max(160, 96 + 26 * len(chosen.columns)),
        xaxis={"type": "category", "title": {"text": "block"}},
        yaxis={"type": "category", "autorange": "reversed"},
    )


def roofline_figure(roof: Roofline, design: int = 0) -> go.Figure:
    """Return the operators of a design below the roof of its hardware, each relative to the peak of its precision.

    Args:
        roof: operators that take time; those of a design are a row.
        design: which row.
    """
    compute, traffic, seconds = roof.compute_s[design], roof.traffic_s[design], roof.seconds[design]
    drawn = np.flatnonzero((compute > 0) & (traffic > 0) & (seconds > 0))
    drawn = drawn[np.argsort(-seconds[drawn], kind="stable")]
    intensity, share = compute[drawn] / traffic[drawn], compute[drawn] / seconds[drawn]
    low, high = min(float(intensity.min(initial=1.0)), 1.0) / 3, max(float(intensity.max(initial=1.0)), 1.0) * 3
    figure = go.Figure(
        go.Scatter(
            x=[low, 1.0, high],
            y=[low, 1.0, 1.0],
            mode="lines",
            name="roof: memory, then compute",
            line={"color": GREY, "dash": "dash"},
            hoverinfo="skip",
        )
    )
    whole = float(seconds.sum())
    for i, at in enumerate(drawn):
        name, part = ", ".join(roof.labels[at]), float(seconds[at]) / whole
        figure.add_trace(
            go.Scatter(
                x=[float(intensity[i])],
                y=[float(share[i])],
                mode="markers",
                name=name,
                marker={"color": colour(i), "symbol": symbol(i), "size": 9 + 22 * part**0.5},
                hovertemplate=f"{name}<br>%{{x:.3g}} of the ridge, %{{y:.1%}} of the peak<br>{part:.1%} of the time"
                "<extra></extra>",
            )
        )
    x, y = axis("intensity", log=True), axis("share", log=True)
    x["title"], y["title"] = {"text": "intensity, of the ridge point"}, {"text": "rate, of the peak"}
    dressed(figure, 460, xaxis=x, yaxis=y)
    return figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"})


def percentiles_figure(rows: Sequence[tuple[str, float, Mapping[int, float]]]) -> go.Figure:
    """Return how times spread over requests: a line per metric from its median to its rarest value.

    Args:
        rows: (metric, its mean or NaN, percentile -> seconds that so many percent stay within).
    """
    figure = go.Figure()
    percents = list(dict.fromkeys(p for _, _, spread in rows for p in spread))
    names = [titled(name) for name, _, _ in rows]
    for name, (_, _, spread) in zip(names, rows, strict=True):
        span = list(spread.values())
        line = {"color": GREY, "width": 3}
        figure.add_trace(go.Scatter(x=span, y=[name] * len(span), mode="lines", line=line, showlegend=False,
                                    hoverinfo="skip"))  # fmt: skip
    drawn = [(f"{p} % stay within", [spread.get(p) for _, _, spread in rows]) for p in percents]
    for i, (label, values) in enumerate([*drawn, ("mean", [None if np.isnan(m) else m for _, m, _ in rows])]):
        mark = {"color": colour(i), "symbol": symbol(i), "size": 11}
        figure.add_trace(go.Scatter(x=values, y=names, mode="markers", name=label, marker=mark,
                                    hovertemplate=f"{label}: %{{x:.4g}} s<extra>%{{y}}</extra>"))  # fmt: skip
    x = axis("time_s", log=True) | {"title": {"text": "seconds"}}
    return dressed(figure, 120 + 44 * len(rows), xaxis=x, yaxis={"type": "category", "autorange": "reversed"})
