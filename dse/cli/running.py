"""Commands that run studies, or ask a running one to pause, go on or stop."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from dse.cli.output import db_option, emit, json_option
from dse.errors import UserError

if TYPE_CHECKING:
    from dse.stopping import Plateau


@click.command(epilog="Example: dse run studies/medical_vqa_edge.py --trials 500")
@click.argument("file", type=click.Path())
@click.option(
    "--trials", type=click.IntRange(min=1), metavar="N", help="Designs to evaluate.  [default: the study's own number]"
)
@click.option("--seed", type=click.IntRange(min=0), metavar="S", help="Another seed than the study's; use with --fork.")
@db_option
@click.option("--executor", type=click.Choice(["auto", "local", "ray"]), default="auto", show_default=True)
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Ray workers; 0 for one per core.")
@click.option("--study", "chosen", metavar="NAME", help="Which study, where the file has several.")
@click.option("--fork", metavar="NEW", help="Run it under another name, beside the stored one.")
@click.option("--wall-clock", metavar="TIME", help="End after this time: seconds, '90 min', '2 h'.")
@click.option("--plateau", metavar="N:RATIO", help="End when N designs added no more than RATIO of the hypervolume.")
@click.option("--target", metavar="GOAL", help="End when a design keeps 'latency_s <= 0.2, ...', or at a hypervolume.")
@json_option
def run(
    file: str,
    trials: int | None,
    seed: int | None,
    db: str | None,
    executor: str,
    workers: int,
    chosen: str | None,
    fork: str | None,
    wall_clock: str | None,
    plateau: str | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Run the study in FILE, or continue it where it stopped.

    FILE is Python and has a study at module level. What is finished is stored at once; Ctrl-C saves and exits with 130.
    """
    from dse.studyfile import load_study

    study = load_study(file, chosen)
    if seed is not None or fork is not None:
        study = study.with_changes(name=fork, seed=seed)
    results = study.run(
        trials or study.trials,
        db=db,
        executor=executor,
        workers=workers,
        wall_clock=wall_clock,
        plateau=_plateau(plateau),
        target=_number(target),
    )
    front = results.front()
    if as_json:
        emit({"study": results.row.name, "designs": len(results), "front": front.records()})
        return
    click.echo(str(front))
    where = f" --db {shlex.quote(db)}" if db else ""
    number = int(front.numbers[0]) if len(front) else results.nearest()
    click.echo(f"\nNext: dse show {shlex.quote(results.row.name)} {number}{where}", err=True)
    click.echo(f"      dse dashboard{where}", err=True)


def _plateau(text: str | None) -> Plateau | None:
    from dse.stopping import Plateau

    if text is None:
        return None
    designs, _, ratio = text.partition(":")
    try:
        return Plateau(int(designs), float(ratio))
    except ValueError:
        raise UserError(f"--plateau {text!r} is not N:RATIO", "e.g. --plateau 1000:0.001") from None


def _number(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _request(name: str, db: str | None, request: str, as_json: bool) -> None:
    from dse.store import open_store
    from dse.study import database

    store = open_store(database(db))
    store.request(name, request)
    store.close()
    if as_json:
        emit({"study": name, "requested": request})
    else:
        click.echo(f"asked study {name!r} to {request}; it obeys after its current batch")


@click.command(epilog="Example: dse pause medical-vqa-edge")
@click.argument("study")
@db_option
@json_option
def pause(study: str, db: str | None, as_json: bool) -> None:
    """Ask a running STUDY to wait."""
    _request(study, db, "pause", as_json)


@click.command(epilog="Example: dse resume medical-vqa-edge")
@click.argument("study")
@db_option
@json_option
def resume(study: str, db: str | None, as_json: bool) -> None:
    """Let a paused STUDY go on."""
    _request(study, db, "resume", as_json)


@click.command(epilog="Example: dse stop medical-vqa-edge")
@click.argument("study")
@db_option
@json_option
def stop(study: str, db: str | None, as_json: bool) -> None:
    """Ask a running STUDY to save and end."""
    _request(study, db, "stop", as_json)
