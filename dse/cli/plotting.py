"""The command that draws a study into a file."""

from __future__ import annotations

from pathlib import Path

import click

from dse.cli.completing import study_argument
from dse.cli.looking import stored_results
from dse.cli.output import db_option, emit, json_option
from dse.errors import UserError


@click.command(
    epilog="""\b
Example: dse plot medical-vqa-edge --out front.html
         dse plot medical-vqa-edge --kind breakdown --design 17 --out design-17.png"""
)
@study_argument
@click.option("--kind", default="front", show_default=True, help="front, growth, importance or breakdown.")
@click.option("--x", "across", metavar="METRIC", help="Of a front: what goes across.  [default: the first objective]")
@click.option("--y", "up", metavar="METRIC", help="Of a front: what goes up.  [default: the second objective]")
@click.option("--colour", metavar="BY", help="Of a front: 'front', 'proposer', 'knob: LABEL' or 'metric: NAME'.")
@click.option("--design", metavar="N", help="Of a breakdown: which design.")
@click.option("--metric", metavar="METRIC", help="Of a breakdown: which metric.  [default: the first]")
@click.option("--out", required=True, type=click.Path(), metavar="FILE", help="A file that ends in .html or .png.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
@db_option
@json_option
def plot(
    study: str,
    kind: str,
    across: str | None,
    up: str | None,
    colour: str | None,
    design: str | None,
    metric: str | None,
    out: str,
    overwrite: bool,
    db: str | None,
    as_json: bool,
) -> None:
    """Draw STUDY into a file; what the dashboard's pages show, without a server."""
    from dse import catalogue
    from dse.export import write_files
    from dse.protocols import Exported

    path = Path(out)
    if path.exists() and not overwrite:
        raise UserError(f"{out!r} exists", "--overwrite replaces it, --out names another file")
    given = {"x": across, "y": up, "colour": colour, "design": design, "metric": metric}
    content = catalogue.plotter().draw(
        stored_results(study, db), kind, {name: value for name, value in given.items() if value}, path.suffix.lower()
    )
    write_files(Exported({path.name: content}), path.parent, overwrite=overwrite)
    if as_json:
        emit({"study": study, "kind": kind, "file": out})
    else:
        click.echo(out)
