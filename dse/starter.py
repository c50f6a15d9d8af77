"""The text of a first study: a script with comments, for a model, hardware and request.

The model and the hardware are read, so the script varies only what they have, and a mistake is told before the file is
written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from dse.accelerators import Accelerator
from dse.errors import UserError
from dse.hardware import read_hardware
from dse.model import read_model
from dse.objectives import Goal
from dse.problem import TARGET, Problem
from dse.scenario import Scenario
from dse.schema import Schema

MOST_NAME: Final = 200


@dataclass(frozen=True)
class Answers:
    """What a first study is made from; texts as :class:`dse.study.Study` takes them."""

    name: str
    model: str
    hardware: str
    objectives: str
    constraints: str
    prompt_tokens: int
    output_tokens: int
    trials: int


# Knob -> its line, with what it does; in the order of the file.
_LINES: Final[dict[str, tuple[str, str]]] = {
    "weight_bits": ('Choice(3, 4, 6, 8, 16, per="block_third.kind")', "a bit map: per third of the blocks and kind"),
    "act_bits": ("Choice(8, 16)", "activations that enter linear modules"),
    "k_bits": ("Choice(4, 8, 16)", "cached keys; kv_bits stands for keys and values together"),
    "v_bits": ("Choice(4, 8, 16)", "cached values"),
    "ffn_keep": ('Float(0.5, 1.0, step=0.125, per="block_third")', "MLP channels that pruning keeps"),
    "image_px": ("Choice(448, 672, 1024)", "longer side of the image that the model sees"),
    "visual_token_keep": ("Float(0.25, 1.0, step=0.125)", "visual tokens kept"),
    "batch": ("Choice(1, 4, 16, 64)", "requests that run together"),
    "tensor_parallel": ("Choice(1, 2, 4)", "devices that share each layer; needs n_devices"),
    "n_devices": ("Choice(1, 2, 4)", "devices"),
    "pe_rows": ("Choice(16, 32, 64, 128)", "rows of the array"),
    "pe_cols": ("Choice(16, 32, 64, 128)", "columns of the array"),
    "sram_bytes": ('Choice("256 KiB", "1 MiB", "4 MiB")', "on-chip memory"),
}
# Written out as comments: there, but to be switched on by the user.
_OFF: Final = {"k_bits", "v_bits", "visual_token_keep", "tensor_parallel", "n_devices"}


def study_text(answers: Answers) -> str:
    """Return the script.

    Raises:
        UserError: a model, hardware, objective or constraint that cannot be; a name that is none.
    """
    if not answers.name.isprintable() or not 0 < len(answers.name.strip()) <= MOST_NAME:
        raise UserError(
            f"{answers.name[:60]!r} is no name for a study", f"printable characters, at most {MOST_NAME}, in one line"
        )
    model, hardware = read_model(answers.model), read_hardware(answers.hardware)
    goal = Goal.parse(answers.objectives, answers.constraints)
    request: dict[str, Any] = {"prompt_tokens": answers.prompt_tokens, "output_tokens": answers.output_tokens}
    if model.image_rule is not None:
        request |= {"images": 1, "image_px": (1024, 1024)}
    if model.audio_rule is not None:
        request["audio_s"] = 30.0
    problem = Problem({TARGET: model}, Scenario(**request), hardware)
    knobs = "\n".join(_knob_lines(Schema(problem).fields))
    shown = ", ".join(f"{key}={value!r}" for key, value in request.items())
    kind = "an accelerator to be designed" if isinstance(hardware, Accelerator) else "an existing device"
    constraints = '    # constraints="memory_bytes <= 4 GiB",  # what a design must keep to\n'
    if goal.constraints:
        constraints = f"    constraints={_quoted(answers.constraints)},\n"
    return f'''"""A study that 'dse new' began."""

from dse import Choice, Float, Scenario, Space, Study

study = Study(
    {_quoted(answers.name)},
    # A catalogue name (dse models) or the path of a Hugging Face config.json.
    model={_quoted(answers.model)},
    # The request that is served.
    scenario=Scenario({shown}),
    # {kind}; dse hardware lists the catalogue, a TOML file of your own works too.
    hardware={_quoted(answers.hardware)},
    # What may vary; other knobs keep their reference value. dse knobs lists them all, docs/studies.md explains per=.
    space=Space(
{knobs}
    ),
    # dse evaluate shows which metrics there are.
    objectives={_quoted(answers.objectives)},
{constraints}    # Designs to evaluate, by dse run and by python alike; dse run --trials N is another number for once.
    trials={answers.trials},
)

if __name__ == "__main__":
    # Stored as it runs: the same command goes on where it stopped.
    study.run()
    print(study.front())
    # Then: dse show NAME NUMBER, dse export NAME NUMBER --to FORMAT (dse formats lists what there is).
'''


def _quoted(text: str) -> str:
    """Return printable text as a Python string in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _knob_lines(fields: dict[str, Any]) -> list[str]:
    return [
        f"        {'# ' if name in _OFF else ''}{name}={domain},  # {text}"
        for name, (domain, text) in _LINES.items()
        if name in fields
    ]
