"""Commands that hand designs to other tools, and take them from there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dse.cli.looking import stored_results
from dse.cli.output import db_option, emit, json_option
from dse.errors import UserError

if TYPE_CHECKING:
    from dse.results import Results

_WHOLE = ("csv", "parquet", "optuna")


@click.command(
    epilog="""\b
Example: dse export medical-vqa-edge 17 --to design
         dse export medical-vqa-edge --to csv designs.csv
         dse export medical-vqa-edge --to optuna sqlite:///optuna.db"""
)
@click.argument("study")
@click.argument("what", metavar="[NUMBER | FILE | URL]")
@click.option(
    "--to",
    "target",
    required=True,
    metavar="FORMAT",
    help="'csv' or 'parquet' FILE, 'optuna' URL: all designs. Else an exporter of one design: 'design' is our own.",
)
@click.option("--out", type=click.Path(), default=".", show_default=True, help="Folder for the files of one design.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--force", is_flag=True, help="Export a design that is not feasible.")
@db_option
@json_option
def export(
    study: str, what: str, target: str, out: str, overwrite: bool, force: bool, db: str | None, as_json: bool
) -> None:
    """Export STUDY, or one design of it, for other tools."""
    results = stored_results(study, db)
    if target in _WHOLE:
        _export_all(study, what, target, overwrite, as_json, results)
        return
    from dse import catalogue
    from dse.export import write_files

    if not what.isdigit():
        raise UserError(f"{what!r} is not the number of a design", f"dse export {study} NUMBER --to {target}")
    number = int(what)
    chosen = results.design(number)
    if results.violation[number] > 0 and not force:
        raise UserError(f"design {number} is not feasible: {results.reason(number)}", "--force exports it all the same")
    exported = catalogue.exporter(target).export(chosen)
    paths = write_files(exported, out, overwrite=overwrite)
    if as_json:
        emit({"files": [str(p) for p in paths], "not_expressible": list(exported.not_expressible)})
        return
    for path in paths:
        click.echo(str(path))
    for sentence in exported.not_expressible:
        click.echo(f"not expressible: {sentence}", err=True)


def _export_all(study: str, where: str, target: str, overwrite: bool, as_json: bool, results: Results) -> None:
    if target == "optuna":
        from dse.export.optuna_storage import export_study

        n = export_study(results, where)
    else:
        from dse.export.tables import write_table

        n = write_table(results, Path(where), target, overwrite=overwrite)
    if as_json:
        emit({"study": study, "format": target, "to": where, "designs": n})
    else:
        click.echo(f"{n:,} designs of study {study!r} are in {where}")


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
