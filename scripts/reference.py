"""Write what of docs/ follows from the code: commands, knobs, shown output, tables of what was validated.

``make reference``; tests fail while a page is not fresh. Tables of validation come from docs/validation.json, which the
tests that validate write (``make validation``): the page validation.md has all of them, and other pages those that they
name between ``<!-- validation: TABLE -->`` and ``<!-- end of validation -->``.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

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
    found = {"cli.md": cli_reference(), "knobs.md": knob_reference(), "index.md": with_output(DOCS / "index.md")}
    found["validation.md"] = validation_page()
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if page.name not in found and REGION.search(text):
            found[page.name] = REGION.sub(lambda m: f"{m[1]}\n{validation_table(m[2])}\n{m[3]}", text)
    return found


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


# ------------------------------------------------------------------------------------------------ validation

REGION = re.compile(r"(<!-- validation: ([\w ]+) -->)\n.*?(<!-- end of validation -->)", re.DOTALL)
VALIDATION_HEAD = """# What was validated

Written by `scripts/reference.py` from [validation.json](validation.json), which the tests named here write (`make
validation`, version {versions}). Every later run of a test compares what it finds with what stands here, at the digits
shown, and fails where they differ. *Rows* are compared values; tests without a number draw theirs, or count by hand.
*Target* is what was aimed at, where anything was. What a model leaves out is on its own page; figures there that rest
on runs too long for tests name the command that prints them.
"""
TABLES = {
    "models": "Descriptions of models",
    "analytical": "`analytical`, accelerators",
    "fusion": "Fusion",
    "scalesim": "`analytical:scalesim`",
    "simulated": "`simulated`, accelerators",
    "crosscheck": "Exports that the tools ran",
    "kernels": "`analytical`, kernels of devices",
    "devices": "`analytical`, devices",
    "step times": "`policy`, sums over growing contexts",
    "policy": "`policy`, drafters and cascades",
    "serving": "`serving`",
    "prior": "`prior`",
    "surrogate": "`surrogate`",
    "allocation": "Best maps for a budget",
}


def _validation() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((DOCS / "validation.json").read_text(encoding="utf-8"))["rows"]
    return rows


def validation_page() -> str:
    """Return the page with every table, and the test behind each row."""
    rows = _validation()
    unknown = {row["table"] for row in rows} ^ set(TABLES)
    if unknown:
        raise SystemExit(f"tables without a title, or titles without a table: {', '.join(sorted(unknown))}")
    parts = [VALIDATION_HEAD.format(versions=", ".join(sorted({row["version"] for row in rows})))]
    for name, title in TABLES.items():
        parts += [f"## {title}\n", validation_table(name), ""]
        tests = dict.fromkeys(row["test"] for row in rows if row["table"] == name)
        parts += ["Shown by " + ", ".join(f"`{test}`" for test in tests) + ".\n"]
    return "\n".join(parts)


def validation_table(name: str) -> str:
    """Return one table; where all its rows have the same figures, each is a column."""
    rows = [row for row in _validation() if row["table"] == name]
    labels = list(rows[0]["figures"])
    columns = labels if all(list(row["figures"]) == labels for row in rows) else []
    has = {key: any(row[key] for row in rows) for key in ("n", "target")}
    heads = ["compared", "with", *(["rows"] if has["n"] else [])]
    heads += [" ".join(label.replace("{}", "").split()) for label in columns] or ["result"]
    heads += ["target"] if has["target"] else []
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        values = {k: f"{v:,}" if isinstance(v, int) else f"{v:.{row['digits']}g}" for k, v in row["figures"].items()}
        cells = [row["what"], row["against"], *([f"{row['n']:,}" if row["n"] else ""] if has["n"] else [])]
        cells += [values[k] for k in columns] or [row["result"] or ", ".join(k.format(v) for k, v in values.items())]
        lines.append(f"| {' | '.join(_bars(cell) for cell in [*cells, *([row['target']] if has['target'] else [])])} |")
    return "\n".join(lines)


def _bars(cell: str) -> str:
    return cell.replace("|", "\\|")


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
