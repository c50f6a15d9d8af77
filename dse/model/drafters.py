"""Draft heads of a given target, ready to stand in a role of a problem."""

from __future__ import annotations

from dse.model.families.heads import EAGLE, MEDUSA
from dse.model.model import Model


def eagle_head(target: Model) -> Model:
    """Return the EAGLE head of a target: one decoder block that guesses one token per pass."""
    return _head(EAGLE, target, {})


def medusa_heads(target: Model, n_heads: int = 4) -> Model:
    """Return Medusa heads of a target: one pass guesses ``n_heads`` tokens."""
    return _head(MEDUSA, target, {"medusa_num_heads": n_heads})


def _head(kind: str, target: Model, fields: dict[str, int]) -> Model:
    config = {"model_type": kind, "base_config": dict(target.config), **fields}
    return Model.from_config(config, f"{kind} of {target.name}", sources=target.sources)
