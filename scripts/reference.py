"""Write what of docs/ follows from the code: docs/cli.md, docs/knobs.md, and the output that docs/index.md shows.

``make reference``; tests fail while a page is not fresh.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import shlex
import tempfile
from pathlib import Path

import click

from dse.cli.main import dse, run
from dse.knobs import KNOBS
from dse.metrics import METRICS

DOCS = Path(__file__).resolve().parents[1] / "docs"
CLI_HEAD = """# Command line

Written by `scripts/reference.py` from the commands; `make reference` writes it anew. `dse COMMAND --help` says the
same.

Exit codes: 0 done · 1 failed, or a check with findings · 2 wrong input, said in words with the remedy · 130
interrupted, what was acknowledged is stored. With `--json`, one document is on stdout; everything else goes to
stderr.
"""


def pages() -> dict[str, str]:
    """Return file name -> text of every page that follows from the code."""
    return {"cli.md": cli_reference(), "knobs.md": knob_reference(), "index.md": with_output(DOCS / "index.md")}


# ------------------------------------------------------------------------------------------------ commands


def cli_reference() -> str:
    """Return the page on commands."""
    context = click.Context(dse, info_name="dse", terminal_width=10_000)
    sections = [
        section
        for name in dse.list_commands(context)
        if (command := dse.get_command(context, name)) is not None
        for section in _sections(command, context, name)
    ]
    return "\n".join([CLI_HEAD, *sections])


def _sections(command: click.Command, parent: click.Context, name: str) -> list[str]:
    """Return the section of a command, and those of its own commands."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=10_000)
    found = [_section(command, context)]
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            nested = command.get_command(context, inner)
            if nested is not None:
                found += _sections(nested, context, inner)
    return found


def _section(command: click.Command, context: click.Context) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## {context.command_path}", "", "```", usage, "```", ""]
    text = inspect.cleandoc(command.help or "")
    lines += [_escaped(" ".join(part.split())) + "\n" for part in re.split(r"\n\s*\n", text) if part.strip()]
    rows = [
        record
        for option in command.get_params(context)
        if (record := option.get_help_record(context)) and record[1] and "--help" not in option.opts
    ]
    if rows:
        lines += ["| option | meaning |", "|---|---|"]
        lines += [f"| {_code(names)} | {_escaped(' '.join(meaning.split()))} |" for names, meaning in rows]
        lines.append("")
    if command.epilog:
        shown = inspect.cleandoc(command.epilog.replace("\b", "")).strip()
        lines += ["```", shown, "```", ""]
    return "\n".join(lines)


def _code(text: str) -> str:
    """Return text as code in a table's cell; the bar between choices would end the cell."""
    return f"`{text}`".replace("|", "\\|")


def _escaped(text: str) -> str:
    """Return text whose marks Markdown does not take for its own."""
    return re.sub(r"([\\*<|])", r"\\\1", text)


# ------------------------------------------------------------------------------------------------ knobs and metrics

KNOBS_HEAD = """# Knobs and metrics

Written by `scripts/reference.py`; `make reference` writes it anew.

## Knobs

What a knob is *one per* says how many values a design has of it: per `weight` a value for each channel group of
each module with a weight, per `linear` for each linear module, per `cache`, `heads`, `ffn`, `block` for each block
that has one, per `attention`, `mlp`, `norm` for each component with such blocks, per `image`, `text` for each model
that sees images or reads text, per `answer` for each model that answers, per `stage` for each that is asked before
the last; of the others a design has one. A space may group them ([studies.md](studies.md)). *Reference* is the
value where a space does not vary a knob; `-` is that of the request or the hardware.
"""
METRICS_HEAD = """## Metrics

Names carry their unit as the last part. Which of them a study has depends on its cost models: `dse evaluate` shows
them with their intervals and the kind of evidence (*basis*). Formulas are those of the cost models `analytical`,
`simulated` and `prior`; of a cascade, each is the mean over queries and routes ([policy.md](policy.md)).
"""
FORMULAS = {
    "latency_s": "`ttft_s + decode_s`",
    "ttft_s": "`encode_s + prefill_s`",
    "tpot_s": "`decode_s / (output_tokens - 1)`",
    "encode_s": "sum over the operators of the encoders and the projector",
    "prefill_s": "sum over the operators of the decoder, prompt and image tokens in one pass",
    "decode_s": "sum over `output_tokens - 1` passes of one token, at the mean context",
    "throughput_tokens_per_s": "`batch x output_tokens / latency_s`",
    "energy_j": "(operations, traffic and idle power of the batch) / `batch`",
    "power_w": "`energy_j x batch / latency_s`",
    "memory_bytes": "`weight_bytes + kv_bytes + activation_bytes`, of the fullest device",
    "weight_bytes": "sum over modules: elements x `weight_bits` / 8, scales and zero points of groups, biases",
    "kv_bytes": "`batch` x sum over blocks: positions x (width of keys x `k_bits` + of values x `v_bits`) / 8",
    "activation_bytes": "largest sum of tensors alive at one time",
    "dram_bytes": "operands and results of all operators that cross the memory port",
    "array_utilisation_ratio": "busy time of the array / `latency_s`",
    "vector_utilisation_ratio": "busy time of the vector unit / `latency_s`",
    "dram_utilisation_ratio": "`dram_bytes / (bandwidth x latency_s)`",
    "read_wait_s": "simulated: sum of waits for reads",
    "write_wait_s": "simulated: sum of waits for writes",
    "area_mm2": "array, vector unit, on-chip memory and memory port, each size x area per unit",
    "cost_usd": "`price_usd_per_hour / 3600 x n_devices x latency_s / batch`",
    "latency_p50_s": "50 % quantile of the mixture over queries and routes",
    "latency_p95_s": "95 % quantile of it",
    "latency_p99_s": "99 % quantile of it",
    "ttft_p50_s": "smallest `ttft_s` that 50 % of the requests stay within",
    "ttft_p95_s": "smallest `ttft_s` that 95 % of the requests stay within",
    "ttft_p99_s": "smallest `ttft_s` that 99 % of the requests stay within",
    "tpot_p50_s": "smallest `tpot_s` that 50 % of the requests stay within",
    "tpot_p95_s": "smallest `tpot_s` that 95 % of the requests stay within",
    "tpot_p99_s": "smallest `tpot_s` that 99 % of the requests stay within",
    "queue_s": "mean of first admission - arrival",
    "throughput_requests_per_s": "requests / (last token - first arrival)",
    "goodput_requests_per_s": "requests within all limits / (last token - first arrival)",
    "capacity_requests_per_s": "requests / time to serve them where all are there from the start",
    "load_ratio": "rate of arrival / `capacity_requests_per_s`",
    "n_running": "integral of requests that run / time, per replica",
    "n_waiting": "integral of requests that wait / time, per replica",
    "kv_occupancy_ratio": "integral of blocks in use / (blocks * time)",
    "kv_peak_ratio": "most blocks in use / blocks",
    "kv_capacity_tokens": "whole blocks * 16; memory less weights, activations, workspaces ([serving.md](serving.md))",
    "preemption_ratio": "preemptions / requests",
    "million_tokens_energy_j": "1e6 * energy of the run / output tokens",
    "million_tokens_cost_usd": "1e6 * devices * price per hour * hours of the run / output tokens",
    "escalation_ratio": "1 - share of queries whose answer the first stage keeps",
    "n_draft_tokens": "`draft_tokens`, or of those known the one of least time per token",
    "n_tokens_per_step": "1 + expected number of accepted guesses",
    "quality_loss": "nats per token; prior: sum of published losses of each choice",
    "accuracy_ratio": "prior: `1 - 0.229 x quality_loss`; with a cascade, right answers over the uncompressed target's",
    "quality_cliff_ratio": "loss of choices at or beyond a cliff / summed loss",
}


def knob_reference() -> str:
    """Return the page on knobs and metrics."""
    lines = [KNOBS_HEAD, "| knob | unit | one per | legal values | reference | meaning |", "|---|---|---|---|---|---|"]
    for knob in KNOBS.values():
        name = f"`{knob.name}`" + "".join(f" (`{alias}` sets it too)" for alias in knob.aliases)
        reference = "-" if knob.default is None else f"{knob.default:g}" if knob.kind is float else str(knob.default)
        one = "" if knob.scope.value == "problem" else knob.scope.value
        cells = [name, knob.unit, one, knob.legal, reference.lower(), _escaped(knob.help)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", METRICS_HEAD, "| metric | unit | better | meaning | formula |", "|---|---|---|---|---|"]
    for metric in METRICS.values():
        better = {"min": "less", "max": "more"}[metric.sense]
        cells = [f"`{metric.name}`", metric.unit, better, _escaped(metric.help), FORMULAS[metric.name]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------ shown output


def with_output(page: Path) -> str:
    """Return a page whose blocks of a console show what their command prints now; all run in one new folder."""
    before, database = os.getcwd(), os.environ.get("DSE_DB")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["DSE_DB"] = str(Path(folder) / "shown.db")
        try:
            return re.sub(r"```console\n\$ (.*)\n[^`]*```", _shown, page.read_text(encoding="utf-8"))
        finally:
            os.chdir(before)
            os.environ.pop("DSE_DB")
            if database is not None:
                os.environ["DSE_DB"] = database


def _shown(block: re.Match[str]) -> str:
    out, aside = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(aside):
        code = run(shlex.split(block[1])[1:])
    if code:
        raise SystemExit(f"{block[1]} ended with {code}: {aside.getvalue()}")
    lines = [line.rstrip() for line in out.getvalue().strip("\n").splitlines()]
    return "\n".join(["```console", f"$ {block[1]}", *lines, "```"])


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(DOCS / name)
