"""Commands for the first minutes: a new study from a few answers, and completion for the shell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from dse.cli import completing
from dse.errors import UserError

_SHELLS: Final = ("bash", "zsh", "fish")
_INSTALL: Final = {
    "bash": "echo 'eval \"$(dse completion bash)\"' >> ~/.bashrc",
    "zsh": "echo 'eval \"$(dse completion zsh)\"' >> ~/.zshrc",
    "fish": "dse completion fish > ~/.config/fish/completions/dse.fish",
}


@click.command(epilog="Example: dse new medical-vqa --model qwen2.5-vl-3b --hardware h100-sxm-80gb")
@click.argument("name")
@click.option("--model", shell_complete=completing.models, help="Catalogue name, or path of a config.json.")
@click.option("--hardware", shell_complete=completing.hardware, help="Catalogue name, or path of a TOML file.")
@click.option("--objectives", help="What to minimise or maximise.  [default: latency, energy, quality]")
@click.option("--constraints", help="Bounds on metrics, such as 'memory_bytes <= 4 GiB'.")
@click.option("--prompt-tokens", type=click.IntRange(0), help="Text tokens of a request.  [default: 128]")
@click.option("--output-tokens", type=click.IntRange(1), help="Tokens that are generated.  [default: 128]")
@click.option("--trials", type=click.IntRange(1), default=1000, show_default=True, help="Designs to evaluate.")
@click.option("--out", type=click.Path(), help="The file.  [default: NAME.py]")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists.")
def new(
    name: str,
    model: str | None,
    hardware: str | None,
    objectives: str | None,
    constraints: str | None,
    prompt_tokens: int | None,
    output_tokens: int | None,
    trials: int,
    out: str | None,
    overwrite: bool,
) -> None:
    """Write a commented study file. What no option says is asked for, on a terminal."""
    from dse.export.design import slug
    from dse.export.files import write_whole
    from dse.starter import Answers, study_text

    ask = sys.stdin.isatty() and sys.stdout.isatty()
    model = model or _ask("Model (dse models lists them)", "qwen2.5-vl-3b", "--model", ask)
    hardware = hardware or _ask("Hardware (dse hardware lists it)", "npu-template", "--hardware", ask)
    if ask and constraints is None:
        constraints = click.prompt("Constraints, such as 'memory_bytes <= 4 GiB'", default="", show_default=False)
    text = study_text(
        Answers(
            name=name,
            model=model,
            hardware=hardware,
            objectives=objectives or "min latency_s, min energy_j, min quality_loss",
            constraints=constraints or "",
            prompt_tokens=128 if prompt_tokens is None else prompt_tokens,
            output_tokens=128 if output_tokens is None else output_tokens,
            trials=trials,
        )
    )
    path = Path(out or f"{slug(name).replace('-', '_')}.py")
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), overwrite=overwrite)
    click.echo(f"{path} is written: read it, change it, then  dse run {path}")


def _ask(question: str, usual: str, option: str, ask: bool) -> str:
    if not ask:
        raise UserError(f"which one? {option} is missing", f"e.g. {option} {usual}")
    answer: str = click.prompt(question, default=usual)
    return answer


@click.command(
    epilog="""\b
Example: dse completion fish > ~/.config/fish/completions/dse.fish
         eval "$(dse completion bash)"            completion in this shell"""
)
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for SHELL: commands, options, studies, formats, models and hardware after a tab."""
    from click.shell_completion import get_completion_class

    from dse.cli.main import dse

    found = get_completion_class(shell)
    if found is None:
        raise UserError(f"there is no completion for {shell!r}", f"there is one for {', '.join(_SHELLS)}")
    click.echo(found(dse, {}, "dse", "_DSE_COMPLETE").source())
    if sys.stdout.isatty():
        click.echo(f"# to keep it: {_INSTALL[shell]}", err=True)
