"""The agents' tables of docs/search.md, from the kept runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.search.statistics import a12, median_interval, wilcoxon_p

BEGIN, END = "<!-- bench-agents: begin -->", "<!-- bench-agents: end -->"


def write(
    page: Path,
    document: Mapping[str, Any],
    spaces: Sequence[str],
    arms: Sequence[str],
    checkpoints: Sequence[int],
    without: str,
) -> None:
    """Put the tables between the markers of a page."""
    evidence = ", ".join(f"{name} {version}" for name, version in document.get("evidence", {}).items())
    lines = [
        f"Measured on {document.get('date', '?')} (Python {document.get('python', '?')}, numpy "
        f"{document.get('numpy', '?')}; evidence by {evidence}) by `make bench-agents`. Superior designs: mean over "
        "seeds. Hypervolume as a share of the true front's (the best known one's for `large-vlm`): median, quartiles.",
    ]
    for space in spaces:
        runs = {arm: _runs(document, space, arm) for arm in arms}
        shares = [r["share"] for found in runs.values() for r in found.values()]
        if not shares:
            continue
        lines += ["", f"### {space}: {min(shares):.2%} to {max(shares):.2%} of the space superior", ""]
        heads = [f"superior of {c}" for c in checkpoints] + [f"hypervolume at {c}" for c in checkpoints]
        lines += [
            f"| arm | {' | '.join(heads)} | seeds (to the end) | ms per design |",
            "|---|" + "---|" * (len(heads) + 2),
        ]
        for arm, found in runs.items():
            reached = [[r for r in found.values() if len(r["ratios"]) > i] for i in range(len(checkpoints))]
            superior = [f"{np.mean([r['superior'][i] for r in rs]):.1f}" if rs else "" for i, rs in enumerate(reached)]
            volumes = [_cell([r["ratios"][i] for r in rs]) if rs else "" for i, rs in enumerate(reached)]
            cost = f"{np.median([r['ms_per_design'] for r in found.values()]):.1f}" if found else ""
            n = f"{len(found)} ({len(reached[-1])})"
            lines.append(f"| {arm} | {' | '.join([*superior, *volumes])} | {n} | {cost} |")
        lines += ["", "| hypervolume | at | ratio of pairs, median (95 %) | A12 | p |", "|---|---|---|---|---|"]
        for ours, other in (("auto", without), ("auto + junk", "auto"), ("bottleneck", "optuna:tpe")):
            lines += [_against(runs[ours], runs[other], ours, other, i, c) for i, c in enumerate(checkpoints)]
    text = page.read_text()
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{tail}")


def _runs(document: Mapping[str, Any], space: str, arm: str) -> dict[int, Any]:
    keys = [key.split("|") for key in document["runs"]]
    return {int(seed): document["runs"][f"{s}|{a}|{seed}"] for s, a, seed in keys if (s, a) == (space, arm)}


def _cell(values: Sequence[float]) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def _against(ours: Mapping[int, Any], other: Mapping[int, Any], name: str, rival: str, i: int, at: int) -> str:
    seeds = sorted(s for s in set(ours) & set(other) if min(len(ours[s]["ratios"]), len(other[s]["ratios"])) > i)
    a, b = (np.array([runs[s]["ratios"][i] for s in seeds]) for runs in (ours, other))
    if not seeds:
        return f"| {name} / {rival} | {at} | no pairs | | |"
    if (b <= 0).any():
        zeros = int((b <= 0).sum())
        better = int((a > b).sum())
        return f"| {name} / {rival} | {at} | {zeros} of {len(seeds)} are 0 below the line; above in {better} | | |"
    middle, low, high = median_interval(a / b)
    shown = f"{middle:.3f} ({low:.3f}-{high:.3f}), {len(seeds)} seeds"
    return f"| {name} / {rival} | {at} | {shown} | {a12(a, b):.2f} | {wilcoxon_p(a, b):.2g} |"
