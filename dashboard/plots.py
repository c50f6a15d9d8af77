"""Figures as files: ``dse plot`` draws what the pages draw, without a server.

HTML holds the figure with all that it needs and asks nobody for anything. PNG is that page as a headless Chromium
shows it: the one of the environment variable CHROMIUM, or one that is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import plotly.graph_objects as go

from dashboard.colouring import coloured, colourings
from dashboard.figures.front import POINTS_DRAWN, Axis, Layer, drawable, front_figure
from dashboard.figures.parts import breakdown_figure
from dashboard.figures.search import hypervolume_figure, importance_figure
from dashboard.figures.theme import GREY
from dashboard.history import growth
from dse.errors import UserError, unknown
from dse.importance import importance
from dse.results import Results

_BROWSERS: Final = ("chromium-headless-shell", "chromium", "google-chrome")
_WIDTH: Final = 1100
_LIMIT_S: Final = 120


class Plotter:
    """Draws stored studies into files."""

    kinds = ("front", "growth", "importance", "breakdown")

    def draw(self, results: Results, kind: str, options: Mapping[str, str], suffix: str) -> bytes:
        """Return a figure as a file's content.

        Args:
            results: the study.
            kind: one of :attr:`kinds`.
            options: "x", "y", "colour" of a front, "design" and "metric" of a breakdown; what is missing has a default.
            suffix: ".html" or ".png".

        Raises:
            UserError: a kind, option or format that there is not, nothing to draw, or no browser for a PNG.
        """
        if kind not in _KINDS:
            raise unknown("plot", kind, _KINDS)
        if suffix not in (".html", ".png"):
            raise UserError(f"figures are not written as {suffix or 'a file without an ending'!r}", "use .html or .png")
        figure = _KINDS[kind](results, options)
        goal = "; ".join(map(str, [*results.goal.objectives, *results.goal.constraints]))
        name = "".join(c for c in results.row.name if c.isprintable()).replace("<", "&lt;")[:120]
        title = {"text": f"{name}: {kind}<br><sup>{goal.replace('<', '&lt;')}</sup>"}
        margin = {"t": 110, "l": 60, "r": 40, "b": 60}
        figure.update_layout(template="plotly_white", width=_WIDTH, title=title, margin=margin)
        page: str = figure.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False})
        return page.encode() if suffix == ".html" else _screenshot(page, int(figure.layout.height or 500) + 20)


def _front(results: Results, options: Mapping[str, str]) -> go.Figure:
    drawn = results.front()  # of the highest fidelity that designs have reached
    results, front = drawn.results, drawn.numbers
    wanted = [o.name for o in results.goal.objectives]
    names = [options.get("x") or wanted[0], options.get("y") or wanted[min(1, len(wanted) - 1)]]
    for name in names:
        if name not in results.metrics.values:
            raise unknown("metric", name, results.metrics.values)
    colour = options.get("colour") or "front"
    if colour not in colourings(results):
        raise unknown("colouring", colour, colourings(results))
    columns = [results.metrics.values[n] for n in names]
    if not len(front):
        raise UserError(
            f"study {results.row.name!r} has no feasible design to draw", "'dse front' says what is nearest"
        )
    axes = []
    for name, column in zip(names, columns, strict=True):
        values = column[front]
        axes.append(Axis(name, log=bool(np.nanmin(values) > 0 and np.nanmax(values) > 10 * np.nanmin(values))))
    good = drawable(columns, axes) & (results.violation == 0)
    rest = np.setdiff1d(np.flatnonzero(good), front)
    below = None
    if len(rest) > POINTS_DRAWN:
        below = Layer("dominated", rest, [c[rest] for c in columns], GREY)
        rest = rest[:0]
    return front_figure(coloured(results, colour, rest, front[good[front]], columns), axes, below)


def _growth(results: Results, options: Mapping[str, str]) -> go.Figure:
    del options
    curve = growth(results)
    if not len(curve.volumes):
        raise UserError(f"study {results.row.name!r} has no feasible design, so no front that grew")
    return hypervolume_figure({"all": (curve.n_designs, curve.volumes)}, "designs evaluated")


def _importance(results: Results, options: Mapping[str, str]) -> go.Figure:
    del options
    names = [n for n in results.goal.metrics if n in results.metrics.values]
    shares = np.stack(
        [importance(results.stored.codes, results.space.n_levels, results.metrics.values[n]) for n in names], axis=1
    )
    best = np.nan_to_num(shares, nan=-1).max(axis=1)
    order = [j for j in np.argsort(-best, kind="stable").tolist() if best[j] >= 0][:40]
    if not order:
        raise UserError(f"study {results.row.name!r} has too few designs with metrics to tell which knobs matter")
    return importance_figure([results.space.parameters[j].label for j in order], names, shares[order])


def _breakdown(results: Results, options: Mapping[str, str]) -> go.Figure:
    text = options.get("design", "")
    if not text.isdigit():
        raise UserError("a breakdown is of one design", "--design NUMBER says of which")
    best = results.fidelities_of(int(text))[-1]
    parts = {p.metric: p for p in best.breakdown(int(text)) if p.parts.any()}
    name = options.get("metric") or next(iter(parts), "")
    if name not in parts:
        raise unknown("breakdown", name, parts)
    return breakdown_figure([("", parts[name])])


_KINDS: Final[Mapping[str, Callable[[Results, Mapping[str, str]], go.Figure]]] = {
    "front": _front,
    "growth": _growth,
    "importance": _importance,
    "breakdown": _breakdown,
}


def _screenshot(page: str, height: int) -> bytes:
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise UserError(
            "a PNG needs a browser, and there is none", "write .html, install Chromium, or name one in CHROMIUM"
        )
    with tempfile.TemporaryDirectory(prefix="dse-plot-") as folder:
        source, target = Path(folder) / "figure.html", Path(folder) / "figure.png"
        source.write_text(page, encoding="utf-8")
        command = [
            browser, "--headless", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=2",
            f"--window-size={_WIDTH + 20},{height}", "--virtual-time-budget=20000", f"--user-data-dir={folder}/profile",
            f"--screenshot={target}", source.as_uri(),
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:  # Chromium's sandbox refuses to run for root
            command.insert(1, "--no-sandbox")
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_LIMIT_S)
            return target.read_bytes()
        except (OSError, subprocess.SubprocessError) as error:
            raise UserError(f"{browser} made no picture: {type(error).__name__}", "write .html instead") from None
