"""Commands that run studies, or ask a running one to pause, go on or stop."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from dse.cli.completing import study_argument
from dse.cli.output import db_option, emit, json_option
from dse.errors import UserError

if TYPE_CHECKING:
    from dse.stopping import Plateau


def executor_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say where a study evaluates and what a design may take."""
    for option in (
        click.option("--ray-address", metavar="auto|HOST:PORT", help="A Ray cluster.  [default: Ray on this machine]"),
        click.option(
            "--worker-memory",
            default="",
            metavar="SIZE",
            help="What a worker may take ('4 GiB') before it is replaced.  [default: its share of the machine]",
        ),
        click.option(
            "--timeout",
            "timeout_s",
            type=float,
            metavar="SECONDS",
            help="What one design may take; it fails after three times. Not with the local executor.",
        ),
        click.option("--workers", type=click.IntRange(min=0), default=0, help="Workers of a pool; 0 for one per core."),
        click.option(
            "--executor",
            type=click.Choice(["auto", "local", "process", "ray"]),
            default="auto",
            show_default=True,
            help="Where designs are evaluated; rows are the same.",
        ),
    ):
        command = option(command)
    return command


@click.command(epilog="Example: dse run studies/medical_vqa_edge.py --trials 500")
@click.argument("file", type=click.Path())
@click.option(
    "--trials", type=click.IntRange(min=1), metavar="N", help="Designs to evaluate.  [default: the study's own number]"
)
@click.option("--seed", type=click.IntRange(min=0), metavar="S", help="Another seed than the study's; use with --fork.")
@db_option
@executor_options
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="How long to wait while another process runs this study.  [default: refuse at once]",
)
@click.option("--study", "chosen", metavar="NAME", help="Which study, where the file has several.")
@click.option("--fork", metavar="NEW", help="Run it under another name, beside the stored one.")
@click.option("--wall-clock", metavar="TIME", help="End after this time: seconds, '90 min', '2 h'.")
@click.option("--plateau", metavar="N:RATIO", help="End when N designs added no more than RATIO of the hypervolume.")
@click.option("--target", metavar="GOAL", help="End when a design keeps 'latency_s <= 0.2, ...', or at a hypervolume.")
@click.option(
    "--llm",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[OPTIONS]",
    help="Add the language model as an arm: OPENAI_API_KEY, OPENAI_BASE_URL, DSE_LLM_MODEL; e.g. usd=2,calls=40.",
)
@json_option
def run(
    file: str,
    trials: int | None,
    seed: int | None,
    db: str | None,
    executor: str,
    workers: int,
    timeout_s: float | None,
    worker_memory: str,
    ray_address: str | None,
    wait_s: float,
    chosen: str | None,
    fork: str | None,
    wall_clock: str | None,
    plateau: str | None,
    target: str | None,
    llm: str | None,
    as_json: bool,
) -> None:
    """Run the study in FILE, or continue it where it stopped.

    FILE is Python and has a study at module level. What is finished is stored at once; Ctrl-C saves and exits with 130.
    """
    from dse.studyfile import load_study
    from dse.units import parse

    study = load_study(file, chosen)
    if seed is not None or fork is not None or llm is not None:
        arm = [] if llm is None else [f"llm:{llm}" if llm else "llm"]
        study = study.with_changes(name=fork, seed=seed, proposers=arm)
    results = study.run(
        trials or study.trials,
        db=db,
        executor=executor,
        workers=workers,
        timeout_s=timeout_s,
        worker_memory_bytes=int(parse(worker_memory, "memory_bytes")) if worker_memory else 0,
        ray_address=ray_address,
        wait_s=wait_s,
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
@study_argument
@db_option
@json_option
def pause(study: str, db: str | None, as_json: bool) -> None:
    """Ask a running STUDY to wait."""
    _request(study, db, "pause", as_json)


@click.command(epilog="Example: dse resume medical-vqa-edge")
@study_argument
@db_option
@json_option
def resume(study: str, db: str | None, as_json: bool) -> None:
    """Let a paused STUDY go on."""
    _request(study, db, "resume", as_json)


@click.command(epilog="Example: dse stop medical-vqa-edge")
@study_argument
@db_option
@json_option
def stop(study: str, db: str | None, as_json: bool) -> None:
    """Ask a running STUDY to save and end."""
    _request(study, db, "stop", as_json)


@click.command(epilog="Example: dse submit study.py --db postgresql://me@base/studies")
@click.argument("file", type=click.Path())
@click.option(
    "--ray-address",
    "address",
    default="http://127.0.0.1:8265",
    show_default=True,
    metavar="URL",
    help="The cluster's job server.",
)
@click.option("--db", required=True, metavar="URL", help="A database that the cluster reaches; a file by its path.")
@click.option("--working-dir", type=click.Path(), metavar="DIR", help="Folder to send along.  [default: the study's]")
@click.option("--trials", type=click.IntRange(min=1), metavar="N", help="Designs to evaluate.")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="What one design may take.")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Ray workers; 0 for one per core.")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Wait for its end so long."
)
@json_option
def submit(
    file: str,
    address: str,
    db: str,
    working_dir: str | None,
    trials: int | None,
    timeout_s: float | None,
    workers: int,
    wait_s: float,
    as_json: bool,
) -> None:
    """Hand the study in FILE to a Ray cluster, which runs it there after this machine has gone.

    The cluster has mfm-dse with the extra 'ray' installed. Its job server lets in whoever knows the token
    (RAY_AUTH_MODE and RAY_AUTH_TOKEN, as at its start); keep its port on the loopback address or behind SSH.
    """
    from dse.execute.jobs import submit_study

    job = submit_study(
        file,
        address,
        db,
        working_dir=working_dir,
        trials=trials,
        timeout_s=timeout_s,
        workers=workers,
        wait_s=wait_s,
    )
    if as_json:
        emit({"job": job.id, "status": job.status, "address": address, "db": db})
    else:
        click.echo(f"job {job.id}: {job.status}")
    if job.status in ("FAILED", "STOPPED"):
        click.echo(job.log_tail, err=True)
        raise SystemExit(1)
