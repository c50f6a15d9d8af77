"""The command that finds which operators to fuse."""

from __future__ import annotations

import json
from typing import Any

import click

from dse.cli.asking import design_options, problem_of, settings_of
from dse.cli.output import emit, json_option


@click.command(
    epilog="Example: dse fuse --model qwen2.5-vl-3b --hardware npu-template --sram '4 MiB' --set weight_bits=4"
)
@design_options
@click.option("--sram", metavar="SIZE", help="On-chip memory, e.g. '4 MiB'; the same as --set sram_bytes=SIZE.")
@click.option("--by", type=click.Choice(["bytes", "time"]), default="bytes", show_default=True,
              help="What is to be least: DRAM bytes of a pass, or its time.")  # fmt: skip
@json_option
def fuse(settings: tuple[str, ...], sram: str | None, by: str, as_json: bool, **asked: Any) -> None:
    """Find the best legal fusion of each kind of block of MODEL, under the on-chip memory of a design.

    Prints it as Study(fusion=...) takes it, with the DRAM traffic it saves and the memory it holds.
    """
    from dse import catalogue
    from dse.text import table
    from dse.units import format_quantity
    from dse.whatif import design_of

    values = settings_of(settings) | ({"sram_bytes": sram} if sram else {})
    problem = problem_of(**asked)
    found = catalogue.fuser().best_fusions(problem, design_of(problem, values), by)
    fusion = {name: edges for one in found for name, edges in one.fusion.items()}
    if as_json:
        records = [
            {
                "phase": one.phase, "component": one.component, "blocks": list(one.blocks), "fusion": one.fusion,
                "dram_bytes": one.dram_bytes, "unfused_dram_bytes": one.unfused_dram_bytes, "seconds": one.seconds,
                "unfused_seconds": one.unfused_seconds, "held_bytes": one.held_bytes,
            }
            for one in found
        ]  # fmt: skip
        emit({"model": problem.target.name, "hardware": problem.hardware.name, "blocks": records, "fusion": fusion})
        return
    rows = []
    for one in found:
        saved = one.unfused_dram_bytes - one.dram_bytes
        rows.append(
            [
                one.phase,
                one.component,
                f"{one.blocks[0]} (of {len(one.blocks)} alike)",
                str(len(one.fusion)),
                format_quantity(one.unfused_dram_bytes, "dram_bytes"),
                f"{format_quantity(saved, 'dram_bytes')} ({saved / one.unfused_dram_bytes:.1%})",
                f"{1e6 * one.unfused_seconds:,.1f}",
                f"{1e6 * one.seconds:,.1f}",
                format_quantity(one.held_bytes, "held_bytes"),
            ]
        )
    heads = ["phase", "component", "block", "groups", "DRAM", "saved", "us", "us fused", "on chip"]
    click.echo(table(heads, rows))
    click.echo("\nfusion={")
    for name, edges in fusion.items():
        pairs = ", ".join(f"({json.dumps(p)}, {json.dumps(c)})" for p, c in edges)
        click.echo(f"    {json.dumps(name)}: [{pairs}],")
    click.echo("}")
