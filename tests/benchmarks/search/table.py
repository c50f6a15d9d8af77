"""The tables of docs/search.md, from the kept runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.search.statistics import a12, holm, median_interval, wilcoxon_p

BEGIN, END = "<!-- bench-search: begin -->", "<!-- bench-search: end -->"
PACKAGED = ("optuna:tpe", "optuna:nsga2:population_size=20", "optuna:nsga2:population_size=50")
OURS = "auto"


def write_tables(
    page: Path, document: Mapping[str, Any], spaces: Sequence[str], arms: Sequence[str], checkpoints: Sequence[int]
) -> None:
    """Put the tables between the markers of a page."""
    lines = [
        f"Measured on {document.get('date', '?')} (Python {document.get('python', '?')}, numpy "
        f"{document.get('numpy', '?')}) by `make bench-search`. Hypervolume as a share of the true front's "
        "(the best known one's for `large-vlm`): median over paired seeds, quartiles in brackets.",
    ]
    for space in spaces:
        lines += ["", f"### {space}", ""]
        shown = [c for i, c in enumerate(checkpoints) if any(_column(document, space, arm, i) for arm in arms)]
        lines += [
            f"| arm | {' | '.join(str(c) for c in shown)} | seeds | proposer, ms per design |",
            "|---|" + "---|" * (len(shown) + 2),
        ]
        for arm in arms:
            cells = [_cell(_column(document, space, arm, checkpoints.index(c))) for c in shown]
            runs = _runs(document, space, arm)
            cost = f"{np.median([r['ms_per_design'] for r in runs.values()]):.2f}" if runs else ""
            lines.append(f"| {arm} | {' | '.join(cells)} | {len(runs)} | {cost} |")
        lines += ["", *_against(document, space, arms, checkpoints)]
    text = page.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}")


def _runs(document: Mapping[str, Any], space: str, arm: str) -> dict[int, Any]:
    found = {}
    for key, run in document["runs"].items():
        of_space, of_arm, seed = key.split("|")
        if (of_space, of_arm) == (space, arm):
            found[int(seed)] = run
    return found


def _column(document: Mapping[str, Any], space: str, arm: str, i: int) -> dict[int, float]:
    """Return the ratio at the i-th checkpoint by seed."""
    return {s: r["ratios"][i] for s, r in sorted(_runs(document, space, arm).items()) if i < len(r["ratios"])}


def _cell(column: Mapping[int, float]) -> str:
    if not column:
        return ""
    low, middle, high = np.quantile(list(column.values()), [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def _against(document: Mapping[str, Any], space: str, arms: Sequence[str], checkpoints: Sequence[int]) -> list[str]:
    """Compare our default with every arm at every checkpoint."""
    lines = [
        f"`{OURS}` against the best packaged arm: median of the paired ratios with its 95 % interval; A12 and Wilcoxon "
        "p, with Holm over the arms at that number of designs (ten pairs cannot go below 0.002 before it).",
        "",
        "| designs | best packaged | ratio | A12 | p |",
        "|---|---|---|---|---|",
    ]
    pairs, p = [], []
    for i, c in enumerate(checkpoints):
        ours = _column(document, space, OURS, i)
        for arm in arms:
            other = _column(document, space, arm, i)
            seeds = sorted(set(ours) & set(other))
            if arm != OURS and len(seeds) > 1:
                a, b = np.array([ours[s] for s in seeds]), np.array([other[s] for s in seeds])
                pairs.append((c, arm, a, b))
                p.append(wilcoxon_p(a, b))
    adjusted = np.ones(len(p))
    for c in checkpoints:
        family = [k for k, (at, *_) in enumerate(pairs) if at == c]
        if family:
            adjusted[family] = holm(np.array(p)[family])
    for c in checkpoints:
        rivals = [(np.median(b), k) for k, (at, arm, _, b) in enumerate(pairs) if at == c and arm in PACKAGED]
        if not rivals:
            continue
        best, k = max(rivals)
        _, arm, a, b = pairs[k]
        if best <= 0:
            lines.append(f"| {c} | {arm} | its median is 0 | {a12(a, b):.2f} | {adjusted[k]:.2g} |")
            continue
        ratio, low, high = median_interval(a / np.maximum(b, 1e-12))
        shown = f"{ratio:.3f} ({low:.3f}-{high:.3f}), {len(a)} seeds"
        lines.append(f"| {c} | {arm} | {shown} | {a12(a, b):.2f} | {adjusted[k]:.2g} |")
    return lines
