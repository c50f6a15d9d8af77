"""How a design was found: the chain of designs it was derived from, and what each step changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dse.params import Value
from dse.results import Results


@dataclass(frozen=True)
class Step:
    """A design, and how it came from its parent.

    Attributes:
        number: its number.
        proposer: who proposed it.
        mark: the proposer's mark.
        changes: label -> (value before, value after); None where a parameter did not matter. Empty at the root.
        ratios: objective -> its value over that of the parent. Empty at the root; NaN where one is not known or zero.
    """

    number: int
    proposer: str
    mark: int
    changes: dict[str, tuple[Value | None, Value | None]]
    ratios: dict[str, float]


def lineage(results: Results, number: int) -> list[Step]:
    """Return the chain of first parents from its root to a design, the design last.

    Raises:
        UserError: there is no design of that number.
    """
    results.design(number)
    chain = [number]
    while parents := results.stored.parents[chain[-1]]:
        if parents[0] >= chain[-1]:  # a parent is older; a stored study that says otherwise has no chain
            break
        chain.append(parents[0])
    chain.reverse()
    values = results.space.values(results.stored.codes[chain])
    steps = []
    for i, n in enumerate(chain):
        before, after = values[max(i - 1, 0)], values[i]
        changes = {
            label: (before.get(label), after.get(label))
            for label in results.space.labels
            if before.get(label) != after.get(label)
        }
        y = results.objectives[[chain[max(i - 1, 0)], n]]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(y[0] != 0, y[1] / y[0], np.nan)
        steps.append(
            Step(
                number=n,
                proposer=results.stored.proposers.get(int(results.stored.batches[n]), ""),
                mark=int(results.stored.marks[n]),
                changes=changes,
                ratios={o.name: float(r) for o, r in zip(results.goal.objectives, ratios, strict=True)} if i else {},
            )
        )
    return steps


def superior(results: Results, number: int) -> np.ndarray:
    """Return the numbers of feasible designs that are better than one of them in every objective."""
    y = results.objectives
    with np.errstate(invalid="ignore"):
        return np.flatnonzero((y < y[number]).all(axis=1) & (results.violation == 0))


def told(step: Step, proposer: str = "") -> str:
    """Return a step as one line.

    Args:
        step: the step.
        proposer: who to name instead of the stored proposer (an arm of a portfolio).
    """
    who = proposer or step.proposer or "?"
    if not step.ratios:
        return f"design {step.number} by {who}"
    shown = [f"{label} {a} -> {b}" for label, (a, b) in step.changes.items()]
    more = f", and {len(shown) - 6} more" if len(shown) > 6 else ""
    gains = ", ".join(f"{name} x{ratio:.3g}" for name, ratio in step.ratios.items())
    return f"design {step.number} by {who}: {', '.join(shown[:6])}{more} ({gains})"
