"""`dse allocate`: the map that loses least within a budget, or all of them."""

from __future__ import annotations

from typing import Any

import click

from dse.cli import completing
from dse.cli.output import emit, json_option, read_size

_COSTS = {"bytes": "weight_bytes", "seconds": "latency_s", "joules": "energy_j"}


@click.command(
    epilog="Example: dse allocate --model qwen2.5-vl-3b --hardware npu-template --profile p.jsonl --budget '2 GiB'"
)
@click.option("--model", shell_complete=completing.models, required=True, help="Catalogue name or config.json.")
@click.option("--hardware", shell_complete=completing.hardware, required=True, help="Catalogue name or TOML file.")
@click.option("--image-px", default="336x336", show_default=True, help="Size of the image of a request.")
@click.option("--profile", default=None, help="Quality profile; without one, the prior.")
@click.option("--bits", default="2,3,4,6,8,16", show_default=True, help="Widths that weights may take.")
@click.option("--per", default="module", show_default=True, help="What takes its own value, as in search spaces.")
@click.option("--ffn-keep", default="", help="Fractions of MLP channels to choose from as well, such as 0.5,0.75,1.")
@click.option("--head-keep", default="", help="Fractions of attention heads to choose from as well.")
@click.option("--budget", default=None, help="Most that it may cost: '2 GiB', '0.5 s', '3 J'; all maps without one.")
@click.option(
    "--cost", type=click.Choice(list(_COSTS)), default="bytes", show_default=True, help="What the budget is of."
)
@json_option
def allocate(
    model: str,
    hardware: str,
    image_px: str,
    profile: str | None,
    bits: str,
    per: str,
    ffn_keep: str,
    head_keep: str,
    budget: str | None,
    cost: str,
    as_json: bool,
) -> None:
    """Choose the bits of each place so that quality loses least within a budget."""
    from dse import units
    from dse.allocation import hull, solve
    from dse.hardware import read_hardware
    from dse.marginals import marginals
    from dse.model import read_model
    from dse.params import Choice
    from dse.problem import TARGET, Problem
    from dse.profile import read_profile
    from dse.scenario import Scenario
    from dse.space import Space
    from dse.text import table

    read = read_model(model)
    width, height = read_size(image_px)
    scenario = Scenario(images=int(read.image_rule is not None), image_px=(width, height))
    quality = {TARGET: read_profile(profile)} if profile else {}
    problem = Problem({TARGET: read}, scenario, read_hardware(hardware), quality=quality)
    domains: dict[str, Choice] = {"weight_bits": Choice(*_numbers(bits, int), per=per)}
    for name, text in (("ffn_keep", ffn_keep), ("head_keep", head_keep)):
        if text:
            domains[name] = Choice(*_numbers(text, float), per="block")
    space = Space(domains).bind(problem)
    found = marginals(space, ("analytical", "surrogate" if profile else "prior"))
    metric = _COSTS[cost]
    choices = found.choices("quality_loss", metric)
    base = found.at_base[metric]
    maps = hull(choices) if budget is None else [solve(choices, units.parse(budget, metric) - base)]
    records: list[dict[str, Any]] = [
        {
            metric: base + one.cost,
            "summed_quality_loss": found.at_base["quality_loss"] + one.loss,
            "map": space.values(found.codes(one.chosen[None, :]))[0],
        }
        for one in maps
    ]
    if as_json:
        basis = quality[TARGET].kind if profile else "prior"
        emit({"model": read.name, "hardware": problem.hardware.name, "losses": basis, "maps": records})
        return
    rows = [
        [units.format_quantity(r[metric], metric), units.format_quantity(r["summed_quality_loss"], "quality_loss")]
        for r in records
    ]
    click.echo(table([metric, f"summed quality_loss ({quality[TARGET].kind if profile else 'prior'})"], rows))
    if budget is not None:
        for label, value in records[0]["map"].items():
            click.echo(f"  {label} = {value}")


def _numbers(text: str, kind: type) -> list[Any]:
    from dse.errors import UserError

    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"{text!r} is no list of numbers", "write 2,3,4,8") from None
