"""One design outside any study: what if this model ran on that hardware with these knobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dse.designs import DesignBatch
from dse.evaluation import Evaluation
from dse.metrics import MetricBatch
from dse.params import Choice, Value
from dse.problem import Problem
from dse.protocols import Breakdown, Chosen, CostModel, CostModelUsed
from dse.schema import Schema
from dse.space import BoundSpace, Space


def evaluate_design(
    problem: Problem,
    values: Mapping[str, Value],
    cost_models: Sequence[str | CostModel] = ("analytical", "prior"),
) -> tuple[Chosen, list[Breakdown]]:
    """Return one design with its metrics, and its breakdown.

    Args:
        problem: what it is evaluated for.
        values: knob path -> value; everything else keeps the reference value.
        cost_models: names or cost models, one per metric group.

    Raises:
        UserError: an unknown knob, or a value that it cannot have.
    """
    space = _space_of(problem, values)
    evaluation = Evaluation(space, cost_models)
    design: DesignBatch = space.decode(space.reference_codes())
    shown = space.values(space.reference_codes())[0] if values else {}
    return _evaluated(evaluation, Chosen("", -1, problem, design, shown, MetricBatch({}, 1)))


def evaluate_again(chosen: Chosen) -> tuple[Chosen, list[Breakdown]]:
    """Return a design with the metrics that the cost models of the same names give it now, and its breakdown.

    Raises:
        UserError: a cost model is not installed, or cannot cost the problem.
    """
    schema = chosen.design.schema
    space = BoundSpace(Space(batch=Choice(chosen.problem.scenario.batch)), schema)
    return _evaluated(Evaluation(space, [used.name for used in chosen.cost_models]), chosen)


def _evaluated(evaluation: Evaluation, chosen: Chosen) -> tuple[Chosen, list[Breakdown]]:
    groups = evaluation.evaluate_designs(chosen.design)
    used = [
        CostModelUsed(model.name, model.group, model.fidelity, model.version, fingerprint, list(batch.values))
        for model, fingerprint, batch in zip(evaluation.models, evaluation.fingerprints(), groups, strict=True)
    ]
    made = replace(chosen, metrics=MetricBatch.join(groups), cost_models=used)
    return made, evaluation.breakdown(chosen.design)


def design_of(problem: Problem, values: Mapping[str, Value]) -> DesignBatch:
    """Return one design, a batch of one row.

    Args:
        problem: what it is for.
        values: as for :func:`evaluate_design`.
    """
    space = _space_of(problem, values)
    return space.decode(space.reference_codes())


def _space_of(problem: Problem, values: Mapping[str, Value]) -> BoundSpace:
    if values:
        return Space({path: Choice(value) for path, value in values.items()}).bind(problem)
    # A space varies something; with nothing set, vary a knob that every problem has over its one value.
    return BoundSpace(Space(batch=Choice(problem.scenario.batch)), Schema(problem))
