"""The entry point: finds the command, prints errors in words, sets the exit code."""

from __future__ import annotations

import errno
import io
import os
import sys
from importlib import import_module
from typing import Any, Final

import click

from dse.errors import DseError, did_you_mean

# command -> module that has it under the same name
_COMMANDS: Final = {
    "new": "dse.cli.starting",
    "run": "dse.cli.running",
    "submit": "dse.cli.running",
    "pause": "dse.cli.running",
    "resume": "dse.cli.running",
    "stop": "dse.cli.running",
    "studies": "dse.cli.looking",
    "front": "dse.cli.looking",
    "show": "dse.cli.looking",
    "fidelity": "dse.cli.agreeing",
    "evaluate": "dse.cli.looking",
    "fuse": "dse.cli.fusing",
    "plot": "dse.cli.plotting",
    "export": "dse.cli.exchanging",
    "formats": "dse.cli.exchanging",
    "import": "dse.cli.exchanging",
    "crosscheck": "dse.cli.crosscheck",
    "trace": "dse.cli.tracing",
    "dashboard": "dse.cli.looking",
    "models": "dse.cli.catalogs",
    "model": "dse.cli.catalogs",
    "hardware": "dse.cli.catalogs",
    "calibrate": "dse.cli.calibrating",
    "cascade": "dse.cli.cascading",
    "allocate": "dse.cli.allocating",
    "profile": "dse.cli.profiling",
    "knobs": "dse.cli.catalogs",
    "db": "dse.cli.upkeep",
    "llm": "dse.cli.llm",
    "doctor": "dse.cli.catalogs",
    "completion": "dse.cli.starting",
}

# command -> function, where the name is a word of the language
_FUNCTIONS: Final = {"import": "import_"}

# The first line tells click to leave the lines as they are.
_EXAMPLES: Final = """\b
Examples:
  dse run studies/medical_vqa_edge.py
  dse front medical-vqa-edge
  dse evaluate --model qwen2.5-vl-3b --hardware npu-template --set weight_bits=4
"""


class _Commands(click.Group):
    """Commands that are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name]), _FUNCTIONS.get(cmd_name, cmd_name))
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in _COMMANDS:
            hint = did_you_mean(args[0], _COMMANDS)
            ctx.fail(f"No such command {args[0]!r}." + (f" D{hint[1:]}" if hint else " 'dse --help' lists all."))
        return super().resolve_command(ctx, args)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EXAMPLES)
@click.version_option(package_name="mfm-dse", prog_name="dse")
def dse() -> None:
    """Explore compression, inference policy and hardware of multimodal foundation models together."""


def main() -> None:
    """Run the command line and exit."""
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        code = dse.main(args=arguments, standalone_mode=False)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except DseError as error:
        click.echo(f"dse: {error}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("dse: interrupted; what was acknowledged is stored", err=True)
        return 130
    except SystemExit:
        if not isinstance(sys.stdout, io.TextIOBase):
            return 0  # click has met a closed pipe and wrapped it: its reader has seen enough
        raise
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        # The output could not be written. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            return 0
        click.echo(f"dse: the output could not be written: {error.strerror}", err=True)
        return 1
    return code if isinstance(code, int) else 0
