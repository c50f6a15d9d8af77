"""cascade: what a log of a cascade says about its scores and thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from dse.cli.output import emit, json_option


@click.command(epilog="Example: dse cascade answers.csv --cost stage1=1 --cost target=12 --test-cost 0.2")
@click.argument("log", metavar="LOG.csv")
@click.option(
    "--cost",
    "costs",
    multiple=True,
    metavar="STAGE=NUMBER",
    help="Cost of an answer; mean tokens by default, 1 where there are none.",
)
@click.option(
    "--test-cost",
    default=0.0,
    show_default=True,
    metavar="RATIO",
    help="Cost of a self-test over that of the stage's answer.",
)
@click.option("--seed", default=0, show_default=True, help="Of the split into halves.")
@json_option
def cascade(log: str, costs: tuple[str, ...], test_cost: float, seed: int, as_json: bool) -> None:
    """Tell how well scores rank, which thresholds pay, and whether they hold on queries they were not chosen on.

    LOG.csv (or .jsonl) has the columns query, stage, score and correct, and if known tokens, test_1, test_2, ...; the
    stages are asked in the order in which they first appear.
    """
    from dse.cascades import CascadeTable
    from dse.catalogue import cascade_judge
    from dse.errors import UserError
    from dse.text import table as text_table

    table = CascadeTable.of_log(log)
    tokens = {s: 1.0 if table.tokens is None else float(table.tokens[:, k].mean()) for k, s in enumerate(table.stages)}
    if not 0 <= test_cost < float("inf"):
        raise UserError(f"--test-cost {test_cost} is not a ratio of 0 or more")
    found = cascade_judge().judge(table, tokens | _read_costs(costs, table.stages), test_cost, seed)
    if as_json:
        emit({"scores": list(found.scores), "alone": list(found.alone), "front": list(found.front),
              "held_out": list(found.held_out)})  # fmt: skip
        return
    click.echo(
        text_table(
            ["stage", "accuracy", "cost"],
            [[a["stage"], f"{a['accuracy']:.3f}", f"{a['cost']:.4g}"] for a in found.alone],
            left=1,
        )
    )
    rows = [[s["stage"], s["score"], f"{s['auroc']:.3f}", f"{s['low']:.3f} ... {s['high']:.3f}",
             "ranks worse than confidence" if s["worse"] else ""] for s in found.scores]  # fmt: skip
    click.echo("\n" + text_table(["stage", "score", "AUROC", "95 %", ""], rows, left=2))
    if found.front:
        click.echo(
            "\nno other choice is cheaper and as accurate:\n"
            + text_table(["choice", "cost", "accuracy", "escalation"], [_cells(f, "") for f in found.front], left=1)
        )
        click.echo(
            "\nchosen on one half, then the other:\n"
            + text_table(
                ["goal", "choice", "cost", "accuracy", "escalation", "fresh cost", "accuracy", "escalation"],
                [[f["goal"], *_cells(f, ""), *_cells(f, "fresh_")[1:]] for f in found.held_out],
                left=2,
            )
        )


def _cells(row: Mapping[str, Any], prefix: str) -> list[str]:
    choice = ", ".join(
        f"{stage} {'test' if row['tests'][stage] else 'score'} >= {t:.3g}" for stage, t in row["thresholds"].items()
    )
    numbers = [row[f"{prefix}{name}"] for name in ("cost", "accuracy", "escalation")]
    return [choice, f"{numbers[0]:.4g}", f"{numbers[1]:.3f}", f"{numbers[2]:.3f}"]


def _read_costs(given: tuple[str, ...], stages: tuple[str, ...]) -> dict[str, float]:
    from dse.errors import UserError, unknown

    found = {}
    for one in given:
        stage, _, number = one.partition("=")
        if stage not in stages:
            raise unknown("stage in --cost", stage, stages)
        try:
            found[stage] = float(number)
        except ValueError:
            raise UserError(f"--cost {one!r} has no number", "write --cost stage1=1") from None
        if not 0 <= found[stage] < float("inf"):
            raise UserError(f"--cost {one!r} is not a cost of 0 or more")
    return found
