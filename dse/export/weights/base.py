"""What all formats of quantised weights have in common: plan, write, and say what is missing."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dse.errors import UserError
from dse.export.design import slug
from dse.export.differences import beyond
from dse.export.plain import statement
from dse.export.weights.layers import Ability, Layer, Plan, Scheme, layers, plan
from dse.model import Model
from dse.problem import TARGET
from dse.protocols import Chosen, Exported


@dataclass(frozen=True)
class Writing:
    """What a format writes from.

    Attributes:
        chosen: the design.
        model: the model whose weights they are.
        role: its role.
        plan: what the format says of each layer.
        universe: all its layers, dropped ones included.
        said: the statement that goes into the file.
    """

    chosen: Chosen
    model: Model
    role: str
    plan: Plan
    universe: list[Layer]
    said: Mapping[str, Any]


class WeightFormat(ABC):
    """A format of quantised weights.

    Args:
        role: the role of the model that is written; an option in the exporter's name ("compressed-tensors:draft").
    """

    name: str
    help: str
    ability: Ability
    covers: frozenset[str] = frozenset({"weight_bits", "act_bits"})

    def __init__(self, role: str = TARGET) -> None:
        self.role = role

    def export(self, chosen: Chosen) -> Exported:
        """Return the files, and what they do not say."""
        planned = self.plan(chosen)
        missing, notes = beyond(chosen, self.covers, self.role)
        if "block_keep" not in self.covers and any(layer.is_dropped for layer in layers(chosen, self.role)):
            notes.append("blocks are dropped: names count those of the unpruned checkpoint")
        more, hints = self.remarks(chosen, planned)
        missing = [*planned.differences.sentences(), *more, *missing]
        notes = [*hints, *notes]
        model = chosen.problem.models[self.role]
        said = statement(chosen, self.name, missing, notes)
        files = self.write(Writing(chosen, model, self.role, planned, layers(chosen, self.role), said))
        return Exported({name: text.encode() for name, text in files.items()}, missing, notes)

    def plan(self, chosen: Chosen) -> Plan:
        """Return what the format says of each layer of a design."""
        return plan(chosen, self.role, self.ability)

    def remarks(self, chosen: Chosen, planned: Plan) -> tuple[list[str], list[str]]:  # noqa: ARG002
        """Return sentences of its own: what it cannot express, and notes."""
        return [], []

    @abstractmethod
    def write(self, writing: Writing) -> dict[str, str]:
        """Return file name -> text."""


def hub_name(model: Model) -> str:
    """Return what people call a checkpoint of the model: one word without a path."""
    return slug(model.name)


def storage(scheme: Scheme) -> dict[str, Any]:
    """Return bits, group size (-1 for one scale per output) and symmetry, as several formats name them."""
    return {"bits": scheme.bits, "group_size": scheme.group_size or -1, "sym": not scheme.zero_points}


def commonest(planned: Plan, file: str) -> Scheme:
    """Return the scheme of most layers.

    Raises:
        UserError: no layer is quantised, so there is nothing that such a file could say.
    """
    found = planned.schemes()
    if not found:
        raise UserError(
            f"no weight of this design is quantised in {re.sub('[^a-z.-]', '', file)}: there is nothing to write",
            "dse export --to design has the whole design",
        )
    return next(iter(found))
