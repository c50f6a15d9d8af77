"""Fidelities of a study: the combination that all designs are evaluated with, and the rungs above it.

A *combination* is one cost model per metric group. The study's ``cost_models`` are the first; each :class:`Rung` names
cost models that take the place of those of the same groups below, the other groups stay. A front is drawn within one
combination, and labelled with it: "hardware=simulated, quality=prior". Which designs go up is decided in
:mod:`dse.promotion`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dse.canonical import content_hash
from dse.errors import UserError, unknown
from dse.evaluation import Evaluation
from dse.protocols import CostModel
from dse.space import BoundSpace

SHARE: Final = 0.1


@dataclass(frozen=True)
class Rung:
    """One step up: which cost models, and for how many designs.

    Attributes:
        cost_models: names or cost models; each replaces that of its group on the rung below.
        designs: most designs that go up in the whole study: a whole number, or a share between 0 and 1 of the designs
            finished on the rung below.

    Raises:
        UserError: no cost model, or a number of designs that is none.
    """

    cost_models: str | CostModel | Sequence[str | CostModel]
    designs: int | float = SHARE

    def __post_init__(self) -> None:
        if not self.models:
            raise UserError("a rung needs at least one cost model", 'e.g. Rung("simulated", designs=200)')
        count = self.designs
        is_share = isinstance(count, float) and 0.0 < count < 1.0
        is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 1
        if not (is_share or is_count):
            raise UserError(
                f"Rung(designs={count!r}) is neither a whole number of 1 or more nor a share between 0 and 1",
                "e.g. designs=200, or designs=0.1 for a tenth",
            )

    @property
    def models(self) -> tuple[str | CostModel, ...]:
        """Its cost models."""
        one = isinstance(self.cost_models, str) or not isinstance(self.cost_models, Sequence)
        return (self.cost_models,) if one else tuple(self.cost_models)  # type: ignore[return-value,arg-type]

    def budget(self, n_below: int) -> int:
        """Return how many designs may go up when ``n_below`` are finished below."""
        return self.designs if isinstance(self.designs, int) else math.ceil(self.designs * n_below)


class Ladder:
    """The rungs of a study, checked and prepared.

    Args:
        space: the bound search space.
        base: the study's own evaluation.
        rungs: from low to high.
        needed: metrics of the study's goal, which every combination must give.

    Raises:
        UserError: a rung that changes nothing or gives what another group gives, or whose combination lacks a metric of
            the goal.
    """

    def __init__(self, space: BoundSpace, base: Evaluation, rungs: Sequence[Rung], needed: Sequence[str]) -> None:
        self.rungs = tuple(rungs)
        self.evaluations = [Evaluation(space, rung.models) for rung in self.rungs]
        self._fingerprints = [evaluation.fingerprints() for evaluation in self.evaluations]
        held = _identities(base, base.fingerprints()) if self.rungs else {}
        columns = dict(base.metrics_by_group) if self.rungs else {}
        for evaluation, fingerprints in zip(self.evaluations, self._fingerprints, strict=True):
            fresh = _identities(evaluation, fingerprints)
            for group, identity in fresh.items():
                if held.get(group) == identity:
                    raise UserError(
                        f"a rung names cost model {identity[0]!r}, which gives the {group} metrics below it too",
                        "name one of another fidelity",
                    )
            held |= fresh
            columns |= evaluation.metrics_by_group
            _check_owners(evaluation, columns)
            given = {name for names in columns.values() for name in names}
            missing = [name for name in needed if name not in given]
            if missing:
                raise UserError(
                    f"with {', '.join(m.name for m in evaluation.models)} nobody gives {', '.join(missing)}, "
                    "which the goal needs",
                    "take it out of objectives and constraints, or another cost model for the rung",
                )

    def __len__(self) -> int:
        return len(self.rungs)

    def to_json(self) -> list[dict[str, dict[str, str]]]:
        """Return what a study's definition says of its rungs; how many designs go up is none of it."""
        return [
            {
                m.group: {"name": m.name, "fidelity": m.fidelity, "version": m.version, "fingerprint": f}
                for m, f in zip(evaluation.models, fingerprints, strict=True)
            }
            for evaluation, fingerprints in zip(self.evaluations, self._fingerprints, strict=True)
        ]


def _check_owners(evaluation: Evaluation, columns: Mapping[str, Sequence[str]]) -> None:
    """Check that nobody else gives the metrics of a rung's cost models: it would hide which of the two is shown."""
    for model in evaluation.models:
        for group, names in columns.items():
            both = [name for name in columns[model.group] if name in names]
            if both and group != model.group:
                raise UserError(
                    f"cost model {model.name!r} of a rung gives {', '.join(both[:3])}, as the {group} metrics do",
                    f"it takes the place of {model.group} cost models; name one of group {group}",
                )


def _identities(evaluation: Evaluation, fingerprints: Sequence[str]) -> dict[str, tuple[str, str]]:
    return {
        m.group: (m.name, content_hash([m.fidelity, f])) for m, f in zip(evaluation.models, fingerprints, strict=True)
    }


def combinations(spec: Mapping[str, Any]) -> list[dict[str, dict[str, str]]]:
    """Return the combinations that a stored definition names, from the lowest: group -> its cost model."""
    found = [dict(spec["cost_models"])]
    for rung in spec.get("ladder", ()):
        found.append(found[-1] | rung)
    return found


def label(combination: Mapping[str, Mapping[str, str]]) -> str:
    """Return a combination in words: "hardware=simulated, quality=prior"."""
    return ", ".join(f"{group}={model['fidelity']}" for group, model in combination.items())


def rung_of(spec: Mapping[str, Any], wanted: str | int) -> int:
    """Return the rung that is meant: its number, its label, or a fidelity or cost model that it is the first to have.

    Raises:
        NameUnknown: there is none.
    """
    known = combinations(spec)
    if (isinstance(wanted, int) or wanted.isdecimal()) and 0 <= int(wanted) < len(known):
        return int(wanted)
    for number, combination in enumerate(known):
        words = {word for model in combination.values() for word in (model["fidelity"], model["name"])}
        if wanted == label(combination) or wanted in words:
            return number
    raise unknown("fidelity", str(wanted), [label(c) for c in known], "a number, or a fidelity, will do")
