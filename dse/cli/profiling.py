"""profile: measure what each compression choice costs a model's quality."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dse.cli.output import emit, json_option

if TYPE_CHECKING:
    from dse.capabilities import Profiling
    from dse.model import Model
    from dse.params import Value
    from dse.profile import Measurement, QualityProfile

_PLAIN_INTERVAL_S = 10.0


@click.command(epilog="Example: dse profile mine.py --weights checkpoint --out mine.jsonl --budget '20 min'")
@click.argument("file", metavar="[FILE.py]", required=False, default="")
@click.option("--weights", metavar="FOLDER", default="", help="Checkpoint: a Hugging Face folder, or what FILE takes.")
@click.option(
    "--text", metavar="FILE", default="", help="Plain text to measure a language model on, instead of FILE.py."
)
@click.option(
    "--model", "description", metavar="NAME", help="Description, if not the checkpoint's own; 'none' for none."
)
@click.option(
    "--out", default="profile.jsonl", show_default=True, metavar="FILE", help="The profile; goes on if there."
)
@click.option("--budget", metavar="N|TIME", help="Single choices: at most N measurements, or a time such as '20 min'.")
@click.option("--calibrate", type=click.IntRange(0), default=16, show_default=True, help="Random configurations.")
@click.option(
    "--held-out", type=click.IntRange(0), default=8, show_default=True, help="More, to test the surrogate on."
)
@click.option("--values", multiple=True, metavar="KNOB=A,B,..", help="Measure these values of these knobs only.")
@click.option(
    "--per", default="module", show_default=True, help="Groups of widths: module, block.kind, block, component."
)
@click.option("--granularity", default="group", show_default=True, help="What shares a scale: tensor, channel, group.")
@click.option("--group-size", type=click.IntRange(1), default=128, show_default=True, help="Weights per group.")
@click.option("--symmetric", is_flag=True, help="Weights without zero points.")
@click.option("--estimate", type=click.Choice(["weights", "fisher"]), help="Estimate instead of measuring.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random configurations.")
@json_option
def profile(
    file: str, weights: str, text: str, description: str | None, out: str, budget: str | None, calibrate: int,
    held_out: int, values: tuple[str, ...], per: str, granularity: str, group_size: int, symmetric: bool,
    estimate: str | None, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure what bits, pruning and visual tokens cost a PyTorch model, choice by choice.

    FILE.py gives samples() and forward(model, batch), and model() unless --weights is a Hugging Face folder. Every
    measurement is on disk at once; the same command goes on where it was interrupted.
    """
    from dse import catalogue, profilefile
    from dse.capabilities import ProfileOrder

    quantiser = {"granularity": granularity, "group_size": group_size, "symmetric": symmetric}
    path = Path(out)
    order = ProfileOrder(
        file=file, weights=weights, text=text, out=out, model=_description(description, weights), quantiser=quantiser,
        values=dict(map(_values, values)), per=per, seed=seed, date=time.strftime("%Y-%m-%d"), estimate=estimate or "",
    )  # fmt: skip
    limit_s, most = _budget(budget)
    profiling = catalogue.profiler().profiling(order)
    known = profilefile.start(path, profiling.header)
    tell = _teller(path.name)
    base = profiling.header.metric
    if base is not None and not as_json:
        click.echo(f"full model: {base.name} {base.base:.4g} on {profiling.header.n_samples} samples", err=True)
    end = time.monotonic() + limit_s
    for i, row in enumerate(_each(profiling.singles(known.rows), most, end), len(known.rows) + 1):
        profilefile.append(path, row)
        place = row.group or "the model"
        tell(
            f"{i} of {profiling.n_singles} single choices; {row.knob}={row.value} of {place}: "
            f"{row.figures.kl_nats or 0:.3g} nats"
        )
    known = profilefile.read(path)
    configurations = profiling.configurations(known, calibrate, held_out)
    for i, one in enumerate(configurations, len(known.configurations) + 1):
        profilefile.append(path, one)
        tell(f"{i} of {calibrate + held_out} configurations")
    _report(path, profiling, profilefile.read(path), as_json)


def _each(rows: Iterator[Measurement], most: float, end: float) -> Iterator[Measurement]:
    """Yield rows until there are enough or the time is over, asked before each is measured."""
    n = 0
    while n < most and time.monotonic() < end and (row := next(rows, None)) is not None:
        n += 1
        yield row


def _description(name: str | None, weights: str) -> Model | None:
    """Return the description to go by: the one that is named, else that of the checkpoint if it can be read."""
    from dse.errors import ModelError
    from dse.model import read_model

    if name == "none":
        return None
    if name:
        return read_model(name)
    if not (weights and (Path(weights) / "config.json").is_file()):
        return None
    try:
        return read_model(Path(weights))
    except ModelError as error:
        click.echo(f"going by the names of modules: {error.message}", err=True)
        return None


def _values(text: str) -> tuple[str, list[Value]]:
    from dse.errors import UserError

    knob, equals, listed = text.partition("=")
    if not equals or not listed:
        raise UserError(f"--values {text!r} is not KNOB=A,B", "e.g. --values weight_bits=2,3,4,8 --values ffn_keep=0.5")
    return knob.strip(), [word.strip() for word in listed.split(",")]


def _budget(text: str | None) -> tuple[float, float]:
    """Return the seconds that single choices may take, and their number at most; infinities where not limited."""
    from dse import units
    from dse.errors import UserError

    if text is None or text.isdigit():
        return math.inf, math.inf if text is None else int(text)
    try:
        return units.parse(text, "budget_s"), math.inf
    except UserError:
        raise UserError(
            f"--budget {text!r} is neither a number nor a time", "e.g. --budget 200, --budget '90 s'"
        ) from None


def _teller(name: str) -> Callable[[str], None]:
    """Return a function that shows progress on stderr: one changing line on a terminal, else a line now and then."""
    last = [-math.inf]

    def tell(line: str) -> None:
        now = time.monotonic()
        if sys.stderr.isatty():
            click.echo(f"\r\033[K{name}: {line}", err=True, nl=False)
        elif now - last[0] >= _PLAIN_INTERVAL_S:
            last[0] = now
            click.echo(f"{name}: {line}", err=True)

    return tell


def _report(path: Path, profiling: Profiling, found: QualityProfile, as_json: bool) -> None:
    if sys.stderr.isatty():
        click.echo("", err=True)
    left, scores = profiling.n_singles - len(found.rows), profiling.scores(found)
    if as_json:
        emit(
            {
                "profile": str(path), "model": found.header.model, "kind": found.kind, "n_rows": len(found.rows),
                "n_left": left, "n_configurations": len(found.configurations), "notes": list(profiling.notes),
                "held_out": dict(scores),
            }
        )  # fmt: skip
        return
    click.echo(f"{path}: {len(found.rows)} single choices" + (f", {left} left" if left > 0 else "")
               + f", {len(found.configurations)} configurations")  # fmt: skip
    worst = sorted(found.rows, key=lambda r: -(r.figures.kl_nats or 0.0))[:5]
    for row in worst:
        click.echo(f"  {row.figures.kl_nats or 0.0:.3g} nats  {row.knob}={row.value}  {row.group or 'the model'}")
    if scores:
        score = f", of the score {scores['rank']:.3f} (R2 {scores['r2']:.2f}, mean error {scores['error']:.3f})"
        click.echo(f"surrogate on {scores['n']:.0f} configurations it never saw: rank correlation of KL "
                   f"{scores['kl_rank']:.3f}{score if 'rank' in scores else ''}; 90 % intervals hold "
                   f"{100 * scores.get('coverage_ratio', scores['kl_coverage_ratio']):.0f} %")  # fmt: skip
    for note in profiling.notes:
        click.echo(f"not measured: {note}", err=True)
