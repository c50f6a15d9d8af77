"""Commands that hand designs to other tools, and take them from there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dse.cli import completing
from dse.cli.looking import stored_results
from dse.cli.output import db_option, emit, json_option
from dse.errors import UserError
from dse.text import printable

if TYPE_CHECKING:
    from dse.protocols import Chosen
    from dse.results import Results

WHOLE = ("csv", "parquet", "markdown", "html", "optuna")


@click.command(
    epilog="""\b
Example: dse export medical-vqa-edge 17 --to design
         dse export medical-vqa-edge 17 --to compressed-tensors --out deploy
         dse export medical-vqa-edge-17.json --to vllm
         dse export medical-vqa-edge front.html --to html
         dse export medical-vqa-edge sqlite:///optuna.db --to optuna"""
)
@click.argument("study", shell_complete=completing.studies_and_documents)
@click.argument("what", metavar="[NUMBER | FILE | URL]", required=False)
@click.option(
    "--to",
    "target",
    required=True,
    metavar="FORMAT",
    shell_complete=completing.formats,
    help="csv, parquet: all designs; markdown, html: the front; optuna: all designs, to a URL. "
    "Else an exporter of one design: 'dse formats' lists them.",
)
@click.option("--out", type=click.Path(), default=".", show_default=True, help="Folder for the files of one design.")
@click.option("--front", "front_only", is_flag=True, help="csv, parquet: designs of the front only.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--force", is_flag=True, help="Export a design that is not feasible.")
@click.option("--strict", is_flag=True, help="Fail, and write nothing, if the format cannot express all of the design.")
@db_option
@json_option
def export(
    study: str,
    what: str | None,
    target: str,
    out: str,
    front_only: bool,
    overwrite: bool,
    force: bool,
    strict: bool,
    db: str | None,
    as_json: bool,
) -> None:
    """Export one design of STUDY, or all of it, for other tools.

    STUDY is a stored study, or a design document that '--to design' wrote.
    """
    if target in WHOLE:
        if not what:
            raise UserError(f"--to {target} needs a file or URL", f"dse export {study} WHERE --to {target}")
        _export_all(study, what, target, stored_results(study, db), front_only, overwrite, as_json)
        return
    from dse import catalogue
    from dse.export import write_files

    exporter = catalogue.exporter(target)  # an unknown format is told before a study is read
    chosen, reason = _chosen(study, what, target, db)
    if reason and not force:
        raise UserError(f"the design is not feasible: {reason}", "--force exports it all the same")
    exported = exporter.export(chosen)
    if strict and exported.not_expressible:
        listed = "\n  ".join(exported.not_expressible)
        raise UserError(f"{target} cannot express all of the design (--strict), nothing was written", listed)
    paths = write_files(exported, out, overwrite=overwrite)
    if as_json:
        emit(
            {
                "files": [str(p) for p in paths],
                "not_expressible": list(exported.not_expressible),
                "notes": list(exported.notes),
            }
        )
        return
    for path in paths:
        click.echo(printable(str(path)))
    for sentence in exported.not_expressible:
        click.echo(printable(f"not expressible: {sentence}"), err=True)
    for sentence in exported.notes:
        click.echo(printable(f"note: {sentence}"), err=True)


def _chosen(study: str, what: str | None, target: str, db: str | None) -> tuple[Chosen, str]:
    """Return a design of a study, or of a document, and why it is not feasible, "" if it is."""
    if what is None:
        if not study.endswith((".json", ".toml")):
            raise UserError("which design of it?", f"dse export {study} NUMBER --to {target}")
        from dse.export.design_file import read_design

        chosen = read_design(study).chosen
        return chosen, chosen.metrics.reason(0)
    if not (what.isascii() and what.isdigit()):
        raise UserError(f"{what!r} is not the number of a design", f"dse export {study} NUMBER --to {target}")
    number = int(what)
    results = stored_results(study, db).fidelities_of(number)[-1]  # the best that is known of it
    chosen = results.design(number)
    if not results.violation[number] > 0:
        return chosen, ""
    return chosen, results.reason(number) or "it has not been evaluated"


def _export_all(
    study: str, where: str, target: str, results: Results, front_only: bool, overwrite: bool, as_json: bool
) -> None:
    if target == "optuna":
        from dse.export.optuna_storage import export_study

        n = export_study(results, where)
    elif target in ("markdown", "html"):
        from dse.export.report import write_report

        n = write_report(results, Path(where), target, overwrite=overwrite)
    else:
        from dse.export.tables import write_table

        n = write_table(results, Path(where), target, front_only=front_only, overwrite=overwrite)
    if as_json:
        emit({"study": study, "format": target, "to": where, "designs": n})
    else:
        click.echo(printable(f"{n:,} designs of study {study!r} are in {where}"))


@click.command(epilog="Example: dse formats")
@json_option
def formats(as_json: bool) -> None:
    """List what designs can be exported to."""
    from dse import catalogue
    from dse.text import table

    rows = [["csv, parquet", "all designs, or with --front those of the front, as a table"],
            ["markdown, html", "the front as a report, with figures in HTML"],
            ["optuna", "all designs, in an Optuna storage"]]  # fmt: skip
    names = sorted(catalogue.listing("exporter"))
    found = [(name, catalogue.exporter(name).help) for name in names]
    if as_json:
        emit([{"name": name, "help": text} for name, text in found])
        return
    click.echo("one design: dse export STUDY NUMBER --to FORMAT")
    click.echo(table(["format", "what opens it"], [list(row) for row in found], left=2))
    click.echo("\na whole study: dse export STUDY FILE --to FORMAT")
    click.echo(table(["format", "what it is"], rows, left=2))


@click.command("import", epilog="Example: dse import studies/medical_vqa_edge.py --optuna sqlite:///optuna.db")
@click.argument("file", type=click.Path())
@click.option("--optuna", "url", required=True, metavar="URL", help="Optuna storage to read from.")
@click.option("--from", "source", metavar="NAME", help="Its study.  [default: the only one]")
@click.option("--study", "chosen", metavar="NAME", help="Which study of FILE, where it has several.")
@db_option
@json_option
def import_(file: str, url: str, source: str | None, chosen: str | None, db: str | None, as_json: bool) -> None:
    """Evaluate the designs of an Optuna study in the study of FILE, as far as its space has them.

    Parameters go over by name. Values come from this study's own cost models, Optuna's are not taken over.
    """
    from dse.export.optuna_storage import read_designs
    from dse.studyfile import load_study

    study = load_study(file, chosen)
    designs, notes = read_designs(url, source, study.bound_space)
    if not designs:
        raise UserError(f"no trial of it has a parameter of study {study.name!r}", "\n".join(notes[:5]))
    notes = [*notes, *dict.fromkeys(study.enqueue(*designs))]
    before = _n_stored(study.name, db)
    results = study.run(len(designs), db=db, executor="local", only_given=True)
    for note in [] if as_json else notes:
        click.echo(note, err=True)
    n = len(results) - before
    if as_json:
        emit({"study": study.name, "trials": len(designs), "designs": n, "notes": notes})
    else:
        click.echo(f"{n:,} new designs of {len(designs):,} trials are in study {study.name!r}")


def _n_stored(name: str, db: str | None) -> int:
    from dse.store import open_store
    from dse.study import database

    store = open_store(database(db))
    try:
        return store.study(name).n_designs if store.has_study(name) else 0
    finally:
        store.close()
