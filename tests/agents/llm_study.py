"""The small study that is run with a language model among its proposers."""

from __future__ import annotations

from dse import Choice, Scenario, Space, Study
from dse.testing.samples import small_model


def quiet(progress):
    del progress


def asked_study(name, proposers, trials=64, seed=0):
    return Study(
        name,
        model=small_model("text"),
        scenario=Scenario(prompt_tokens=7, output_tokens=5),
        hardware="npu-template",
        space=Space(
            weight_bits=Choice(3, 4, 6, 8, per="block"), pe_rows=Choice(8, 16, 32, 64), dataflow=Choice("ws", "os")
        ),
        objectives="min latency_s, min energy_j, min quality_loss",
        proposers=proposers,
        ask_size=8,
        trials=trials,
        seed=seed,
    )
