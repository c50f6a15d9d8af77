"""The command that writes a simulated timeline."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dse.cli.completing import study_argument
from dse.cli.looking import stored_results
from dse.cli.output import db_option, emit, json_option


@click.command(epilog="Example: dse trace medical-vqa-edge 17 --phase decode --out trace.json")
@study_argument
@click.argument("number", type=int)
@click.option("--phase", default="prefill", show_default=True, help="encode, prefill or decode.")
@click.option("--out", required=True, type=click.Path(dir_okay=False), metavar="FILE", help="File to write.")
@click.option("--max-events", type=click.IntRange(1, 5_000_000), default=100_000, show_default=True,
              help="Draw at most the first so many events.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
@db_option
@json_option
def trace(
    study: str, number: int, phase: str, out: str, max_events: int, overwrite: bool, db: str | None, as_json: bool
) -> None:
    """Simulate one pass of design NUMBER of STUDY and write its timeline.

    Perfetto (ui.perfetto.dev) and chrome://tracing open the file.
    """
    from dse import catalogue
    from dse.export import write_files
    from dse.protocols import Exported

    chosen = stored_results(study, db).design(number)
    document = catalogue.tracer().trace(chosen.problem, chosen.design, phase, max_events)
    path = Path(out)
    (written,) = write_files(Exported({path.name: json.dumps(document).encode()}), path.parent, overwrite=overwrite)
    about = document["otherData"]
    if as_json:
        emit({"study": study, "number": number, "file": str(written), **about})
        return
    click.echo(f"{written}: {about['n_events']:,} events of {phase}, {about['seconds']:.6g} s")
    if about["note"]:
        click.echo(about["note"], err=True)
