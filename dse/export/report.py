"""The front of a study as a report for people: Markdown, or one HTML file with its figures inside.

HTML: no script, nothing from elsewhere (a content policy in the page says so too), all text escaped; every figure has
its table. Markdown: text cells lose what Markdown reads as markup. Figures show each pair of objectives, the front
over all feasible designs.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from dse.export.files import write_whole
from dse.front import Front
from dse.results import Results
from dse.shown import show_knob
from dse.text import printable
from dse.units import format_quantity

_MOST_POINTS: Final = 2_000
_MOST_FIGURES: Final = 6
_WIDTH, _HEIGHT, _MARGIN = 560, 360, 64

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; margin: 1rem 0; }
"""


def write_report(results: Results, path: Path, kind: str, *, overwrite: bool = False) -> int:
    """Write the front as a report, whole or not at all, and return the number of its designs.

    Args:
        results: of the study.
        path: the file.
        kind: "markdown" or "html".
        overwrite: replace a file that exists.

    Raises:
        UserError: the file exists or cannot be written.
    """
    front = results.front()
    text = html_report(front) if kind == "html" else markdown_report(front)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), overwrite=overwrite)
    return len(front)


def markdown_report(front: Front) -> str:
    """Return the front as Markdown: what was asked, the front's metrics, and its knobs."""
    title, facts = _facts(front)
    lines = [f"# {_plain(title)}", "", *(f"- {_plain(fact)}" for fact in facts), ""]
    for heading, header, rows in _tables(front):
        lines += [f"## {heading}", "", _row(header), _row(["---"] * len(header)), *map(_row, rows), ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell if cell == '---' else _plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Return text as Markdown that shows it: every character that can begin markup is escaped."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+!|~$&" else c for c in printable(text))


def html_report(front: Front) -> str:
    """Return the front as one HTML page with its figures."""
    title, facts = _facts(front)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{_safe(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_safe(title)}</h1>",
        "<ul>" + "".join(f"<li>{_safe(fact)}</li>" for fact in facts) + "</ul>",
        *figures(front),
    ]
    for heading, header, rows in _tables(front):
        head = "".join(f"<th>{_safe(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
        parts.append(f"<h2>{_safe(heading)}</h2>\n<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")
    return "\n".join([*parts, "</body></html>", ""])


def _safe(text: str) -> str:
    return html.escape(printable(text))


def _facts(front: Front) -> tuple[str, list[str]]:
    results = front.results
    problem = results.space.schema.problem
    models = ", ".join(f"{model.name} ({role})" for role, model in problem.models.items())
    bases = {name: results.metrics.basis.get(name, "") for name in results.goal.metrics}
    kinds = [f"{name}: {basis}" for name, basis in bases.items() if basis]
    facts = [
        f"model: {models}",
        f"hardware: {problem.hardware.name}",
        f"objectives: {', '.join(map(str, results.goal.objectives))}",
        f"constraints: {', '.join(map(str, results.goal.constraints)) or 'none'}",
        f"designs: {len(results):,} evaluated or waiting, {int((results.violation == 0).sum()):,} feasible, "
        f"{len(front):,} on the front",
        *(
            [f"fidelity: {results.fidelity}, {int(results.evaluated.sum()):,} designs"]
            if len(results.fidelities) > 1
            else []
        ),
        *(f"cost model: {e.cost_model} {e.version}, {e.group}, {e.fidelity}" for e in results.evaluators),
        *([f"evidence: {', '.join(kinds)}"] if kinds else []),
    ]
    return f"Pareto front of study {results.row.name}", facts


def _tables(front: Front) -> list[tuple[str, list[str], list[list[str]]]]:
    results = front.results
    header, rows = front.table()
    knobs = results.space.values(results.stored.codes[front.numbers]) if len(front) else []
    labels = list(dict.fromkeys(label for row in knobs for label in row))
    settings = [
        [str(number), *(show_knob(label, row[label]) if label in row else "" for label in labels)]
        for number, row in zip(front.numbers, knobs, strict=True)
    ]
    return [("Metrics", header, rows), ("Knobs", ["design", *labels], settings)]


def figures(front: Front) -> list[str]:
    """Return a scatter plot of each pair of objectives as SVG, six at most: the front over the feasible designs."""
    results, numbers = front.results, front.numbers
    if not len(numbers):
        return []
    feasible = np.flatnonzero(results.violation == 0)
    step = max(1, -(-len(feasible) // _MOST_POINTS))
    objectives = results.goal.objectives
    values = results.objectives * np.array([o.sign for o in objectives])
    names = [o.name for o in objectives]
    pairs = list(itertools.combinations(range(len(names)), 2))[:_MOST_FIGURES]
    return [_scatter(values[:, [i, j]], feasible[::step], numbers, names[i], names[j]) for i, j in pairs]


def _scatter(points: np.ndarray, others: np.ndarray, front: np.ndarray, x_name: str, y_name: str) -> str:
    shown = points[np.concatenate([others, front])]
    axes = [_axis(shown[:, i], length) for i, length in ((0, _WIDTH), (1, _HEIGHT))]
    x, y = (axis(points[:, i]) for i, (axis, _) in enumerate(axes))
    y = _HEIGHT - y
    dots = "".join(f'<circle cx="{x[n]:.1f}" cy="{y[n]:.1f}" r="2" fill="#b0b0b0"/>' for n in others)
    marks = "".join(
        f'<rect x="{x[n] - 3:.1f}" y="{y[n] - 3:.1f}" width="6" height="6" fill="#0072b2"><title>design {n}: '
        f"{_safe(format_quantity(float(points[n, 0]), x_name))}, {_safe(format_quantity(float(points[n, 1]), y_name))}"
        "</title></rect>"
        for n in front
    )
    ticks = "".join(
        f'<text x="{float(axes[0][0](np.array([t]))[0]):.1f}" y="{_HEIGHT - _MARGIN + 18}" text-anchor="middle">'
        f"{_safe(format_quantity(t, x_name, 3))}</text>"
        for t in axes[0][1]
    ) + "".join(
        f'<text x="{_MARGIN - 6}" y="{_HEIGHT - float(axes[1][0](np.array([t]))[0]) + 4:.1f}" text-anchor="end">'
        f"{_safe(format_quantity(t, y_name, 3))}</text>"
        for t in axes[1][1]
    )
    frame = (
        f'<path d="M{_MARGIN} 10V{_HEIGHT - _MARGIN}H{_WIDTH - 10}" fill="none" stroke="#444"/>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 20}" text-anchor="middle">{_safe(x_name)}</text>'
        f'<text x="{_MARGIN}" y="8" text-anchor="middle" dominant-baseline="hanging">{_safe(y_name)}</text>'
    )
    alt = f"{y_name} over {x_name}: {len(front)} designs on the front, {len(others)} feasible designs in grey"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" font-size="11">'
        f"<title>{_safe(alt)}</title>{frame}{ticks}{dots}{marks}</svg>"
    )


def _axis(values: np.ndarray, length: int) -> tuple[_Scale, list[float]]:
    """Return where values stand on an axis, and the values at its ends and in its middle; logarithmic from 100 on."""
    low, high = float(values.min()), float(values.max())
    is_log = low > 0 and high / low >= 100
    scale = _Scale(low, high, is_log, length)
    middle = float(np.sqrt(low * high)) if is_log else (low + high) / 2
    return scale, [low] if low == high else [low, middle, high]


class _Scale:
    def __init__(self, low: float, high: float, is_log: bool, length: int) -> None:
        self._low, self._high, self._is_log, self._length = low, high, is_log, length

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return pixels from the lower left corner."""
        low, high, given = self._low, self._high, values
        if self._is_log:
            low, high, given = np.log(low), np.log(high), np.log(np.maximum(values, self._low))
        share = (given - low) / (high - low) if high > low else np.full_like(given, 0.5)
        return _MARGIN + 10 + share * (self._length - _MARGIN - 30)
