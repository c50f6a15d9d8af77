"""Commands about language models: what they were asked and answered, and how well they know the trade."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from dse.cli.completing import study_argument
from dse.cli.output import db_option, emit, json_option
from dse.errors import UserError

if TYPE_CHECKING:
    from dse.calls import Call, Edit, Session
    from dse.results import Results


@click.group(epilog="Example: dse llm log medical-vqa-edge")
def llm() -> None:
    """Read the letters of a study's language model, or examine one."""


def _loaded(study: str, db: str | None) -> tuple[list[Session], list[Call], list[Edit], Results]:
    from dse.results import Results
    from dse.store import open_store
    from dse.study import database

    store = open_store(database(db), read_only=True)
    try:
        log = store.call_log(store.study(study).id)
        return log.sessions(), log.calls(), log.edits(), Results.load(store, study)
    finally:
        store.close()


def _compared(edits: list[Edit], results: Results) -> tuple[dict[Any, int], dict[Any, dict[str, float]]]:
    from dse.calls import designs_of, observed_ratios

    designs = designs_of(edits, results.stored.hashes)
    names = [o.name for o in results.goal.objectives]
    values = {n: results.metrics.values[n] for n in names if n in results.metrics.values}
    return designs, observed_ratios(edits, designs, values)


@llm.command(epilog="Example: dse llm log medical-vqa-edge")
@study_argument
@db_option
@json_option
def log(study: str, db: str | None, as_json: bool) -> None:
    """List the calls of STUDY, what they cost, and how well each model's predictions held."""
    from dse.calls import ACCEPTED, scores
    from dse.text import printable, table

    sessions, calls, edits, results = _loaded(study, db)
    designs, observed = _compared(edits, results)
    found = scores(calls, edits, observed)
    if as_json:
        emit(
            {
                "study": study,
                "sessions": [vars(s) for s in sessions],
                "calls": [_brief(c, edits) for c in calls],
                "scores": [vars(s) for s in found],
            }
        )
        return
    header = ["call", "round", "role", "batch", "outcome", "tokens", "USD", "s", "proposed", "accepted", "detail"]
    rows = []
    for call in calls:
        own = [e for e in edits if e.call == call.number]
        tokens = f"{call.n_prompt_tokens}+{call.n_output_tokens}" if call.n_prompt_tokens >= 0 else "?"
        rows.append(
            [
                str(call.number), str(call.round), call.role, str(call.batch), call.outcome, tokens,
                _figure(call.usd, 4), _figure(call.latency_s, 1), str(len(own)),
                str(sum(e.verdict == ACCEPTED for e in own)), call.detail[:60],
            ]
        )  # fmt: skip
    click.echo(table(header, rows, left=0) if rows else f"study {study!r} asked no language model")
    for session in sessions:
        if session.stop_reason:
            click.echo(f"run {session.number} stopped asking: {printable(session.stop_reason)}")
    for s in found:
        click.echo(
            f"{printable(s.model)}: {s.n_answered} of {s.n_calls} calls answered, {s.n_accepted} of {s.n_proposed} "
            f"proposals accepted, {s.n_evaluated} evaluated, {s.tokens:,} tokens, {s.usd:.4f} USD; "
            f"of {s.n_predictions} predictions {_figure(100 * s.sign_ratio, 0)} % had the right direction, "
            f"median error x{_figure(math.exp(s.log_error), 2)}"
        )
    if designs:
        click.echo(f"designs: {', '.join(map(str, sorted(designs.values())))}")


@llm.command(epilog="Example: dse llm show medical-vqa-edge 3")
@study_argument
@click.argument("number", type=int)
@db_option
@json_option
def show(study: str, number: int, db: str | None, as_json: bool) -> None:
    """Print call NUMBER of STUDY: prompt, answer, verdicts, designs, predicted against observed."""
    from dse.text import printable

    _, calls, edits, results = _loaded(study, db)
    if not 0 <= number < len(calls):
        has = f"it has calls 0 to {len(calls) - 1}" if calls else "it asked no language model"
        raise UserError(f"study {study!r} has no call {number}", has)
    call, own = calls[number], [e for e in edits if e.call == number]
    designs, observed = _compared(own, results)
    if as_json:
        emit(
            {
                **_brief(call, own),
                "messages": [{"role": role, "content": text} for role, text in call.messages],
                "answer": call.answer,
                "edits": [
                    {
                        **{k: v for k, v in vars(e).items() if k not in ("hash", "codes")},
                        "design": designs.get((e.call, e.place)),
                        "observed": observed.get((e.call, e.place), {}),
                    }
                    for e in own
                ],
            }
        )
        return
    click.echo(
        f"call {call.number} ({call.role}, {printable(call.model)}), template {call.template}, "
        f"prompt {call.prompt_hash}"
    )
    click.echo(f"{call.outcome}: {printable(call.detail)}" if call.detail else call.outcome)
    for role, text in call.messages:
        click.echo(f"\n--- {role}\n{_lines(text)}")
    click.echo(f"\n--- answer\n{_lines(call.answer)}")
    for e in own:
        number_of = designs.get((e.call, e.place))
        seen = observed.get((e.call, e.place), {})
        changes = ", ".join(f"{k}[{g}]={v}" for k, g, v in e.changes)
        click.echo(f"\n{e.place}: {e.verdict}{f' ({printable(e.detail)})' if e.detail else ''}")
        click.echo(f"   from design {e.parent}: {printable(changes)}")
        click.echo(f"   targets {printable(e.bottleneck)}: {printable(e.reason)}")
        if number_of is not None:
            told = [f"{n} {_figure(e.predicted.get(n, math.nan), 2)} -> {r:.2f}" for n, r in seen.items()]
            click.echo(f"   design {number_of}: predicted -> observed ratio {', '.join(told) or 'unknown'}")


@llm.command(epilog="Example: dse llm exam --questions 20")
@click.argument("file", type=click.Path(), required=False)
@click.option("--questions", "n", type=click.IntRange(1, 500), default=10, show_default=True, help="Per skill.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the questions.")
@click.option("--options", default="", metavar="OPTIONS", help="As of the proposer llm: provider=random, usd=0.5, ...")
@click.option("--study", "chosen", metavar="NAME", help="Which study, where FILE has several.")
@json_option
def exam(file: str | None, n: int, seed: int, options: str, chosen: str | None, as_json: bool) -> None:
    """Put multiple-choice questions to the model that the environment names, made from the cost models of FILE's study.

    Without FILE the questions are about a vision-language model on an accelerator. Keys are exact; guessing gets 25 %.
    """
    from dse import catalogue
    from dse.studyfile import load_study
    from dse.text import printable, table

    study = load_study(file, chosen) if file else None
    # An exam has a call per question and no rounds to save.
    defaults = f"calls={3 * n + 1},round_calls=1000000,round_tokens=1000000"
    proposer = catalogue.examinable(f"llm:{defaults}{',' if options else ''}{options}")
    paper = proposer.exam(
        study.evaluation if study else None, study.goal if study else None, n, seed,
        lambda text: click.echo(printable(text), err=True),
    )  # fmt: skip
    tokens = sum(c.counted_tokens for c in paper.calls)
    usd = sum(c.counted_usd for c in paper.calls)
    if as_json:
        emit(
            {
                "model": paper.model, "scores": [vars(s) for s in paper.scores], "questions": list(paper.questions),
                "tokens": tokens, "usd": usd, "stop_reason": paper.stop_reason,
            }
        )  # fmt: skip
        return
    rows = [
        [s.skill, f"{s.n_right} of {s.n_questions}", f"{s.n_right / s.n_questions:.0%}",
         f"{s.low_ratio:.0%} .. {s.high_ratio:.0%}", f"{s.chance_ratio:.0%}", str(s.n_unanswered)]
        for s in paper.scores
    ]  # fmt: skip
    click.echo(f"{printable(paper.model)}: {tokens:,} tokens, {usd:.4f} USD")
    click.echo(table(["skill", "right", "share", "95 % interval", "guessing", "unanswered"], rows, left=1))


def _brief(call: Call, edits: list[Edit]) -> dict[str, Any]:
    from dse.calls import ACCEPTED

    own = [e for e in edits if e.call == call.number]
    return {
        **{k: v for k, v in vars(call).items() if k not in ("messages", "answer")},
        "proposed": len(own),
        "accepted": sum(e.verdict == ACCEPTED for e in own),
    }


def _lines(text: str) -> str:
    from dse.text import printable

    return "\n".join(printable(line) for line in text.splitlines())


def _figure(number: float, digits: int) -> str:
    return "?" if math.isnan(number) else f"{number:.{digits}f}"
