"""Write docs/cli.md from the commands themselves. ``make cli-reference``; a test fails while the page is not fresh."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import click

from dse.cli.main import dse

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """# Command line

Written by `scripts/cli_reference.py` from the commands; `make cli-reference` writes it anew. `dse COMMAND --help` says
the same.

Exit codes: 0 done · 1 failed, or a check with findings · 2 wrong input, said in words with the remedy · 130
interrupted, what was acknowledged is stored. With `--json`, one document is on stdout; everything else goes to stderr.
"""


def reference() -> str:
    """Return the page."""
    context = click.Context(dse, info_name="dse", terminal_width=10_000)
    sections = [
        section
        for name in dse.list_commands(context)
        if (command := dse.get_command(context, name)) is not None
        for section in _sections(command, context, name)
    ]
    return "\n".join([HEAD, *sections])


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


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
    sys.stdout.write(f"{PAGE} is written\n")
