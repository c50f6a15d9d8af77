"""The command that says how far the fidelities of a study agree."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from dse.cli.completing import study_argument
from dse.cli.looking import stored_results
from dse.cli.output import db_option, emit, json_option

if TYPE_CHECKING:
    from dse.agreement import Agreement


@click.command(epilog="Example: dse fidelity medical-vqa-edge")
@study_argument
@db_option
@json_option
def fidelity(study: str, db: str | None, as_json: bool) -> None:
    """Show how far the fidelities of STUDY agree, on the designs that have both."""
    from dse.agreement import agreements

    results = stored_results(study, db)
    found = agreements(results)
    if as_json:
        emit({"study": study, "fidelities": results.fidelities, "rungs": [_record(one) for one in found]})
        return
    if not found:
        click.echo(f"study {study!r} has one fidelity: {results.fidelity}; Study(ladder=Rung(...)) adds others")
    for one in found:
        _print(one)


def _record(agreement: Agreement) -> dict[str, Any]:
    record = asdict(agreement)
    for metric in record["metrics"]:
        metric |= {k: None for k, v in metric.items() if isinstance(v, float) and not math.isfinite(v)}
    return record


def _print(agreement: Agreement) -> None:
    from dse.text import table

    one = agreement
    click.echo(f"{one.fidelity}: {one.n_designs:,} of {one.n_below:,} designs of {one.below}")
    click.echo(
        f"front {one.n_front}, {one.n_stayed} of them on the front below too; "
        f"{one.n_infeasible} infeasible, {one.n_failed} failed here"
    )
    if one.n_within_reach:
        click.echo(f"{one.n_within_reach:,} designs were within reach of the front when the last ones went up")
    header = ["metric", "pairs", "rank correlation", "median ratio", "9 in 10 ratios", "inside the interval"]
    rows = [
        [
            m.metric,
            f"{m.n_pairs:,}",
            _shown(m.rank_correlation),
            _shown(m.ratio),
            "" if math.isnan(m.ratio) else f"{m.low_ratio:.3g} .. {m.high_ratio:.3g}",
            "" if math.isnan(m.inside_ratio) else f"{m.inside_ratio:.0%}",
        ]
        for m in one.metrics
    ]
    click.echo(table(header, rows, left=1) + "\n")


def _shown(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"
