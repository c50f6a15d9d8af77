"""Commands that look at stored results, or at one design, or hand it on."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from dse.cli.asking import design_options, problem_of, settings_of
from dse.cli.output import db_option, emit, json_option
from dse.errors import UserError
from dse.text import printable

if TYPE_CHECKING:
    from dse.protocols import Breakdown
    from dse.results import Results


def stored_results(study: str, db: str | None) -> Results:
    """Return what a stored study found."""
    from dse.results import Results
    from dse.store import open_store
    from dse.study import database

    store = open_store(database(db), read_only=True)
    try:
        return Results.load(store, study)
    finally:
        store.close()


@click.command(epilog="Example: dse studies")
@db_option
@json_option
def studies(db: str | None, as_json: bool) -> None:
    """List the stored studies."""
    from dse.store import open_store
    from dse.study import database
    from dse.text import table

    store = open_store(database(db), read_only=True)
    rows = store.studies()
    store.close()
    if as_json:
        emit(
            [
                {
                    "name": r.name, "state": r.state, "stop_reason": r.stop_reason, "designs": r.n_designs,
                    "target": r.target, "created_s": r.created_s, "updated_s": r.updated_s,
                    "objectives": r.objectives, "constraints": r.constraints,
                }
                for r in rows
            ]
        )  # fmt: skip
        return
    header = ["study", "state", "designs", "target", "last result", "objectives"]
    cells = [
        [
            r.name,
            r.state,
            f"{r.n_designs:,}",
            f"{r.target:,}",
            _ago(r.updated_s),
            ", ".join(r.objectives),
        ]
        for r in rows
    ]
    click.echo(table(header, cells, left=2) if rows else "no studies yet: dse run FILE")


def _ago(then_s: float) -> str:
    seconds = max(0.0, time.time() - then_s)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


@click.command(epilog="Example: dse front medical-vqa-edge")
@click.argument("study")
@click.option(
    "--fidelity", metavar="NAME", help="Within which combination, e.g. analytical.  [default: the highest reached]"
)
@db_option
@json_option
def front(study: str, fidelity: str | None, db: str | None, as_json: bool) -> None:
    """Print the Pareto front of STUDY."""
    results = stored_results(study, db)
    found = results.front(fidelity)
    if as_json:
        goal = results.row.spec["goal"]
        told = {"fidelity": found.results.fidelity, "fidelities": results.fidelities}
        told["front_only_by_prior"] = found.numbers[found.by_prior].tolist()
        emit({"study": study, **goal, **told, "designs": len(results), "front": found.records()})
    else:
        click.echo(found.text())


@click.command(epilog="Example: dse show medical-vqa-edge 17")
@click.argument("study")
@click.argument("number", type=int)
@db_option
@json_option
def show(study: str, number: int, db: str | None, as_json: bool) -> None:
    """Show design NUMBER of STUDY: knobs, metrics, breakdown, origin."""
    results = stored_results(study, db)
    views = results.fidelities_of(number)
    chosen, record = views[-1].design(number), views[-1].records([number])[0]
    parts = _breakdown(views[-1], number) if record["status"] == "ok" else []
    if as_json:
        fields = ("fidelity", "status", "is_feasible", "reason", "metrics")
        both = [{field: one[field] for field in fields} for view in views for one in view.records([number])]
        told = {"provenance": dict(chosen.provenance), "breakdown": _breakdown_records(parts), "fidelities": both}
        emit({"study": study, **record, **told})
        return
    click.echo(f"design {number} of study {study!r}, proposed by {record['proposer']}, {_verdict(record)}")
    if doubt := views[-1].front().doubt(number):
        click.echo(doubt)
    if len(views) > 1:
        click.echo(f"knobs, metrics and breakdown at {record['fidelity']}")
    _print_knobs(record["knobs"])
    _print_metrics(chosen.metrics)
    _print_beside([view.design(number).metrics for view in views], [view.fidelity for view in views])
    _print_breakdown(parts)


def _breakdown(results: Results, number: int) -> list[Breakdown]:
    try:
        return results.breakdown(number)
    except UserError as error:
        click.echo(f"dse: {error.message}", err=True)
        return []


def _verdict(record: dict[str, Any]) -> str:
    if record["is_feasible"]:
        return "feasible"
    return f"{record['status']}: {record['reason']}" if record["reason"] else record["status"]


@click.command(
    epilog="""\b
Example: dse evaluate --model qwen2.5-vl-3b --hardware npu-template --set weight_bits=4 --set act_bits=8
         dse evaluate --model llama-3.1-8b --hardware h100-sxm-80gb --batch 64 --requests-per-s 5
         dse evaluate medical-vqa-edge-17.json"""
)
@click.argument("file", type=click.Path(), required=False)
@design_options
@click.option("--cost-model", "cost_models", multiple=True, metavar="NAME", help="One per metric group; repeatable.")
@click.option(
    "--requests-per-s", type=float, default=0.0, help="Rate at which requests arrive, simulated by 'serving'."
)
@click.option("--trace", type=click.Path(), help="Requests as they arrived (.csv, .jsonl), simulated by 'serving'.")
@json_option
def evaluate(
    file: str | None,
    settings: tuple[str, ...],
    cost_models: tuple[str, ...],
    requests_per_s: float,
    trace: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Evaluate one design: what if MODEL ran on HARDWARE with these knobs, or the design document FILE once more.

    A document's metrics come out as recorded, bit for bit; where they do not, what differs is told (exit code 1).
    """
    if file is not None:
        if asked["model"] or asked["hardware"] or settings or cost_models or requests_per_s or trace:
            raise UserError("FILE says all about its design", "leave out --model, --hardware and all about the design")
        _evaluate_document(file, as_json)
        return
    from dse import catalogue
    from dse.policy import Policy
    from dse.shown import metric_records
    from dse.whatif import evaluate_design

    problem = problem_of(**asked)
    names = cost_models or (("serving",) if requests_per_s or trace else ("analytical", "prior"))
    problem = replace(
        problem,
        scenario=replace(problem.scenario, requests_per_s=requests_per_s, trace=trace or ()),
        policy=Policy() if any(catalogue.cost_model(name).group == "serving" for name in names) else None,
    )
    read, scenario = problem.target, problem.scenario
    chosen, parts = evaluate_design(problem, settings_of(settings), names)
    reason = chosen.metrics.reason(0)
    if as_json:
        emit(
            {
                "model": read.name, "hardware": problem.hardware.name, "scenario": scenario.to_json(),
                "hash": chosen.design.hashes[0].hex(), "knobs": dict(chosen.values), "is_feasible": not reason,
                "reason": reason, "metrics": metric_records(chosen.metrics, 0), "breakdown": _breakdown_records(parts),
            }
        )  # fmt: skip
    else:
        click.echo(f"{read.name} on {problem.hardware.name}: {reason or 'feasible'}")
        _print_metrics(chosen.metrics)
        _print_breakdown(parts if not reason else [])


def _evaluate_document(file: str, as_json: bool) -> None:
    from dse.export.design_file import evaluated, read_design
    from dse.shown import metric_records

    read = read_design(file)
    chosen, parts, differences = evaluated(read)
    reason = chosen.metrics.reason(0)
    if as_json:
        emit(
            {
                "file": file, "study": chosen.study, "number": chosen.number, "hash": chosen.design.hashes[0].hex(),
                "is_edited": read.is_edited, "is_reproduced": not differences, "differences": differences,
                "reason": reason, "metrics": metric_records(chosen.metrics, 0), "breakdown": _breakdown_records(parts),
            }
        )  # fmt: skip
    else:
        origin = f"design {chosen.number} of study {chosen.study!r}" if chosen.study else "a design outside any study"
        click.echo(printable(f"{origin}: {reason or 'it runs'}"))
        _print_metrics(chosen.metrics)
        _print_breakdown(parts if not reason else [])
        click.echo("" if differences else "\nall metrics are those of the document, bit for bit")
    for line in [] if as_json else differences:
        click.echo(printable(line), err=True)
    if differences and not read.is_edited:
        raise click.exceptions.Exit(1)


def _print_knobs(knobs: dict[str, dict[str, Any]]) -> None:
    from dse.shown import show_knob
    from dse.text import table

    rows = [[label, show_knob(label, knob["value"])] for label, knob in knobs.items()]
    click.echo("\n" + table(["knob", "value"], rows, left=1))


def _print_metrics(metrics: Any) -> None:
    from dse.metrics import METRICS
    from dse.shown import show as shown
    from dse.text import table

    rows = [
        [name, shown(metrics, name, 0), metrics.basis.get(name, ""), METRICS[name].help if name in METRICS else ""]
        for name in metrics.values
    ]
    lines = table(["metric", "value", "basis", "meaning"], [[r[0], r[1], r[2], r[3]] for r in rows], left=4)
    click.echo("\n" + lines)


def _print_beside(metrics: list[Any], labels: list[str]) -> None:
    """Print each metric that fidelities tell differently, and how far apart the first and the last one are."""
    from dse.shown import show as shown
    from dse.text import table

    names = [
        name
        for name in metrics[0].values
        if all(name in m.values for m in metrics) and len({float(m.values[name][0]) for m in metrics}) > 1
    ]
    if len(metrics) < 2 or not names:
        return
    rows = []
    for name in names:
        first, last = (float(m.values[name][0]) for m in (metrics[0], metrics[-1]))
        rows.append([name, *(shown(m, name, 0) for m in metrics), f"{last / first:.3g}" if first else ""])
    click.echo("\n" + table(["metric", *labels, "ratio"], rows, left=1))


def _breakdown_records(parts: list[Breakdown]) -> list[dict[str, Any]]:
    from dse.units import unit_of

    return [
        {
            "metric": part.metric,
            "unit": unit_of(part.metric),
            "component": c,
            "phase": p,
            "class": o,
            "kind": k,
            "value": float(v),
        }
        for part in parts
        for (c, p, o, k), v in zip(part.labels, part.parts[0], strict=True)
    ]


def _print_breakdown(parts: list[Breakdown]) -> None:
    from dse.text import table
    from dse.units import format_quantity

    for part in parts:
        total = float(part.parts[0].sum())
        if not total:
            continue
        order = part.parts[0].argsort()[::-1]
        rows = [
            [
                *part.labels[i],
                format_quantity(float(part.parts[0][i]), part.metric),
                f"{100 * part.parts[0][i] / total:.1f} %",
            ]
            for i in order[:12]
        ]
        click.echo(f"\n{part.metric} {format_quantity(total, part.metric)}, by part")
        click.echo(table(["component", "phase", "class", "kind", "amount", "share"], rows, left=4))
        if len(order) > 12:
            click.echo(f"... and {len(order) - 12} smaller parts (--json lists all)")


@click.command(epilog="Example: dse dashboard --port 8501")
@db_option
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True)
def dashboard(db: str | None, port: int) -> None:
    """Open the dashboard over the stored studies, on this machine only."""
    from dse.launch import launch_dashboard
    from dse.study import database

    raise click.exceptions.Exit(launch_dashboard(database(db), port))
