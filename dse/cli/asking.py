"""One design asked for on the command line: options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from dse.cli import completing
from dse.cli.output import read_size
from dse.errors import UserError

if TYPE_CHECKING:
    from dse.problem import Problem

_OPTIONS: Final = (
    click.option("--model", shell_complete=completing.models, help="Catalogue name, or path of a config.json."),
    click.option("--hardware", shell_complete=completing.hardware, help="Catalogue name, or path of a TOML file."),
    click.option("--set", "settings", multiple=True, metavar="KNOB=VALUE", help="A knob's value; repeatable."),
    click.option("--prompt-tokens", type=int, default=128, show_default=True),
    click.option("--output-tokens", type=int, default=128, show_default=True),
    click.option("--images", type=int, help="Images per request.  [default: 1 if the model takes images]"),
    click.option("--image-px", default="1024x1024", show_default=True, metavar="WxH", help="Size of an image."),
    click.option("--audio-s", type=float, help="Seconds of audio.  [default: 30 if the model takes audio]"),
    click.option("--batch", type=int, default=1, show_default=True, help="Requests that run together."),
)


def design_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a model, hardware, a request, and knobs (``settings``)."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def problem_of(
    model: str | None,
    hardware: str | None,
    prompt_tokens: int,
    output_tokens: int,
    images: int | None,
    image_px: str,
    audio_s: float | None,
    batch: int,
) -> Problem:
    """Return the problem that the options describe.

    Raises:
        UsageError: no model or hardware.
        UserError: none of that name, or a request that cannot be.
    """
    if not model or not hardware:
        raise click.UsageError(f"Missing option '--{'hardware' if model else 'model'}'.")
    from dse.hardware import read_hardware
    from dse.model import read_model
    from dse.problem import TARGET, Problem
    from dse.scenario import Scenario

    read = read_model(model)
    scenario = Scenario(
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        images=int(read.image_rule is not None) if images is None else images,
        image_px=read_size(image_px),
        audio_s=(30.0 if read.audio_rule is not None else 0.0) if audio_s is None else audio_s,
        batch=batch,
    )
    return Problem({TARGET: read}, scenario, read_hardware(hardware))


def settings_of(settings: Sequence[str]) -> dict[str, str]:
    """Return the values of knobs by path.

    Raises:
        UserError: a text that is not KNOB=VALUE.
    """
    values: dict[str, str] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise UserError(f"--set {text!r} is not KNOB=VALUE", "e.g. --set weight_bits=4 or --set decoder/k_bits=8")
        values[name.strip()] = value.strip()
    return values
