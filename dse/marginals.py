"""What each level of each parameter adds to the metrics of a design, by the cost models themselves.

One batch: the reference design, and every parameter moved to each of its levels with all others left there. Losses and
costs of modules add up (a pass is a sequence of kernels, stored bytes are a sum), so differences to the reference are
the choices of a knapsack (:mod:`dse.allocation`), in bytes, seconds or joules of the target hardware.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dse.allocation import Choices
from dse.errors import UserError
from dse.evaluation import Evaluation
from dse.metrics import MetricBatch
from dse.profile import PROFILED
from dse.protocols import CostModel
from dse.space import CODE_DTYPE, BoundSpace

LOSS: Final = "quality_loss"


@dataclass(frozen=True)
class Marginals:
    """Metrics of designs that differ from a base in one parameter.

    Attributes:
        base: codes of the base, shape (p,).
        parameters: numbers of the parameters that were moved, shape (m,).
        levels: levels of each of them, shape (m,).
        metrics: metric -> value at (parameter, level), NaN beyond a parameter's levels and where it cannot run, (m, l).
        at_base: metric -> value of the base.
    """

    base: np.ndarray
    parameters: np.ndarray
    levels: np.ndarray
    metrics: dict[str, np.ndarray]
    at_base: dict[str, float]

    def choices(self, loss: str, cost: str) -> Choices:
        """Return the knapsack of two metrics, both relative to the base.

        Raises:
            UserError: a metric that there is not.
        """
        for name in (loss, cost):
            if name not in self.metrics:
                raise UserError(f"the cost models give no {name}", f"they give {', '.join(self.metrics)}")
        lost, paid = (self.metrics[name] - self.at_base[name] for name in (loss, cost))
        none = np.isnan(lost) | np.isnan(paid)
        return Choices(np.where(none, np.inf, lost), np.where(none, 0.0, paid))

    def codes(self, chosen: np.ndarray) -> np.ndarray:
        """Return the codes of maps, shape (n, p), from chosen levels, shape (n, m)."""
        codes = np.repeat(self.base[None, :], len(chosen), axis=0)
        codes[:, self.parameters] = chosen
        return codes


def compressing(space: BoundSpace) -> np.ndarray:
    """Return the numbers of the parameters that compress the model, place by place."""
    scoped = [k for k in PROFILED if k in space.schema.fields and space.schema.fields[k].knob.scope.has_blocks]
    return np.array([j for j, p in enumerate(space.parameters) if set(p.knobs) <= set(scoped)], dtype=np.int64)


def marginals(space: BoundSpace, cost_models: Sequence[str | CostModel]) -> Marginals:
    """Return the marginals of a space's compressing parameters at its reference design.

    Raises:
        UserError: the space varies no such knob, or its reference design cannot run.
    """
    moved = compressing(space)
    if not len(moved):
        raise UserError("the space compresses nothing place by place", "vary weight_bits, ffn_keep or head_keep")
    base = space.reference_codes()[0]
    levels = space.n_levels[moved]
    rows = [(i, level) for i, count in enumerate(levels.tolist()) for level in range(count)]
    codes = np.repeat(base[None, :], len(rows) + 1, axis=0).astype(CODE_DTYPE)
    for row, (i, level) in enumerate(rows):
        codes[row, moved[i]] = level
    evaluation = Evaluation(space, cost_models)
    found = MetricBatch.join(evaluation.evaluate(codes))
    if found.status[-1]:
        raise UserError(f"the reference design cannot run: {found.reason(len(rows))}", "allocate on larger hardware")
    columns = dict(found.values)
    if (summed := evaluation.summed_loss(codes)) is not None:
        # Calibration bends the sum: what allocation adds up is what stands under the curve.
        columns[LOSS] = np.where(found.status == 0, summed, np.nan)
    elif LOSS not in columns:
        raise UserError("no cost model gives losses to allocate by", "name a quality cost model")
    table: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        table[name] = np.full((len(moved), int(levels.max())), np.nan)
        for value, (i, level) in zip(column[:-1].tolist(), rows, strict=True):
            table[name][i, level] = value
    return Marginals(base, moved, levels, table, {name: float(v[-1]) for name, v in columns.items()})
