"""What language models proposed in a study, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dashboard import data
from dse.calls import Call, Edit, Session, designs_of, observed_ratios
from dse.results import Results

Place = tuple[int, int]


def log(results: Results) -> tuple[list[Session], list[Call], list[Edit]]:
    """Return the runs, calls and proposals of a study's language models."""
    with data.reading() as store:
        kept = store.call_log(results.row.id)
        return kept.sessions(), kept.calls(), kept.edits()


def compared(results: Results, edits: Sequence[Edit]) -> tuple[dict[Place, int], dict[Place, dict[str, float]]]:
    """Return the design that each proposal became, and the ratios of its objectives to its parent's."""
    designs = designs_of(edits, results.stored.hashes)
    names = [o.name for o in results.goal.objectives if o.name in results.metrics.values]
    return designs, observed_ratios(edits, designs, {n: results.metrics.values[n] for n in names})


def of_design(results: Results, number: int) -> list[tuple[Edit, dict[str, float]]]:
    """Return the proposals that became a design, each with the observed ratios."""
    with data.reading() as store:
        edits = store.call_log(results.row.id).edits()
    designs, observed = compared(results, edits)
    return [(e, observed.get((e.call, e.place), {})) for e in edits if designs.get((e.call, e.place)) == number]


def changes(edit: Edit) -> str:
    """Return the changes of a proposal as text."""
    return ", ".join(f"{knob}[{group}]={value}" for knob, group, value in edit.changes)


def ratios(found: Mapping[str, float]) -> str:
    """Return ratios as text."""
    return ", ".join(f"{name} x{ratio:.3g}" for name, ratio in found.items())
