"""Who proposes designs. Adding a proposer: a module, and its line here."""

from __future__ import annotations

from typing import Final

PROPOSERS: Final = {
    "auto": "agents.auto:Auto",
    "random": "agents.sampling:Random",
    "sobol": "agents.sampling:Sobol",
    "evolve": "agents.evolve:Evolve",
    "tpe": "agents.tpe:Tpe",
    "gp": "agents.gp:Gp",
    "local": "agents.local:Local",
    "bottleneck": "agents.bottleneck:Bottleneck",
    "allocate": "agents.allocate:Allocate",
    "enumerate": "agents.exhaustive:Enumerate",
    "optuna": "agents.optuna_sampler:OptunaSampler",
    "llm": "agents.llm.arm:LlmArm",
}
