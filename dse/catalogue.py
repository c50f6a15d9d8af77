"""Names to objects: cost models, proposers, exporters and outside tools, ours and those of others, by one mechanism.

Each package announces a dict ``name -> "module:attribute"`` through an entry point, so adding a built-in is one line
in that dict, and nothing is imported before it is asked for:

    [project.entry-points."mfm_dse.cost_models"]
    builtin = "costmodels:COST_MODELS"

A name may carry options after a colon ("optuna:tpe"): the part before it is looked up, and the object is called with
the part after it. A plug-in that cannot be imported is reported when its name is asked for, and harms no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from dse.capabilities import Calibrator, CascadeJudge, Examinable, Fuser, OutsideTool, Plotter, Profiler, Tracer
from dse.errors import UserError, unknown
from dse.protocols import CostModel, Exporter, Late, Portfolio, Proposer

GROUPS: Final = {
    "cost model": "mfm_dse.cost_models",
    "proposer": "mfm_dse.proposers",
    "exporter": "mfm_dse.exporters",
    "outside tool": "mfm_dse.outside_tools",
    "plotter": "mfm_dse.plotters",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """One catalogue entry: its name, where it lives, and the distribution that announced it."""

    name: str
    target: str
    distribution: str


@cache
def listing(kind: str) -> dict[str, Listing]:
    """Return all entries of a kind, one of :data:`GROUPS`, by name, without importing them.

    Raises:
        UserError: two distributions announce one name; nothing says which is meant.
    """
    found: dict[str, Listing] = {}
    for point in sorted(entry_points(group=GROUPS[kind]), key=lambda p: (p.value, p.name)):
        distribution = point.dist.name if point.dist else "?"
        for name, target in _announced(point).items():
            known = found.get(name)
            if known is not None and known.target != target:
                raise UserError(
                    f"{kind} {name!r} is announced by {known.distribution} and by {distribution}",
                    "uninstall one of them, or ask its author for another name",
                )
            found[name] = Listing(name, target, distribution)
    return found


def _announced(point: EntryPoint) -> Mapping[str, str]:
    try:
        names = point.load()
    except Exception as error:  # noqa: BLE001  a broken plug-in must not take the others down
        return {point.name: f"!{point.value}: {type(error).__name__}: {error}"}
    return names if isinstance(names, Mapping) else {point.name: point.value}


def _load(kind: str, name: str) -> Any:
    entries = listing(kind)
    head, _, options = name.partition(":")
    if head not in entries:
        raise unknown(kind, name, entries)
    entry = entries[head]
    if entry.target.startswith("!"):
        raise UserError(f"{kind} {head!r} of {entry.distribution} cannot be loaded: {entry.target[1:]}")
    module, _, attribute = entry.target.partition(":")
    try:
        made = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{kind} {head!r} ({entry.target}, from {entry.distribution}) cannot be loaded: {error}",
            "install what it needs, or remove the plug-in",
        ) from error
    return made(options) if options else made()


def cost_model(name: str) -> CostModel:
    """Return the cost model of that name; :func:`listing` names them all."""
    model: CostModel = _load("cost model", name)
    return model


def _first(capability: Any, what: str) -> Any:
    for name in sorted(listing("cost model")):
        model = _load("cost model", name)
        if isinstance(model, capability):
            return model
    raise UserError(f"no cost model {what}", "'dse doctor' shows which are installed")


def calibrator() -> Calibrator:
    """Return the first cost model, by name, that takes measurements of devices.

    Raises:
        UserError: none does.
    """
    found: Calibrator = _first(Calibrator, "takes measurements of devices")
    return found


def tracer() -> Tracer:
    """Return the first cost model, by name, that draws designs over time.

    Raises:
        UserError: none does.
    """
    found: Tracer = _first(Tracer, "draws designs over time")
    return found


def fuser() -> Fuser:
    """Return the first cost model, by name, that finds which operators to fuse.

    Raises:
        UserError: none does.
    """
    found: Fuser = _first(Fuser, "finds which operators to fuse")
    return found


def profiler() -> Profiler:
    """Return the first cost model, by name, that measures quality profiles.

    Raises:
        UserError: none does.
    """
    found: Profiler = _first(Profiler, "measures quality profiles")
    return found


def cascade_judge() -> CascadeJudge:
    """Return the first cost model, by name, that reads logs of cascades.

    Raises:
        UserError: none does.
    """
    found: CascadeJudge = _first(CascadeJudge, "reads logs of cascades")
    return found


def proposer(name: str) -> Proposer:
    """Return a new proposer of that name; :func:`listing` names them all."""
    made: Proposer = _load("proposer", name)
    return made


def examinable(name: str) -> Examinable:
    """Return a proposer that can be examined.

    Raises:
        NameUnknown: no proposer of that name.
        UserError: one that takes no exams.
    """
    made = proposer(name)
    if not isinstance(made, Examinable):
        raise UserError(f"proposer {name!r} takes no exams", "examine llm")
    return made


def together(proposers: Sequence[Proposer]) -> list[Proposer]:
    """Return proposers as they take turns: those that answer late have no turns, they join the first portfolio.

    Raises:
        UserError: late ones beside others, and no portfolio among these.
    """
    late = [p for p in proposers if isinstance(p, Late)]
    if not late:
        return list(proposers)
    rest = [p for p in proposers if not isinstance(p, Late)] or [proposer("auto")]
    for i, host in enumerate(rest):
        if isinstance(host, Portfolio):
            return [*rest[:i], host.with_arms(late), *rest[i + 1 :]]
    names = ", ".join(p.name for p in late)
    raise UserError(f"{names} answers late and needs a portfolio to join", 'add "auto" to the proposers')


def exporter(name: str) -> Exporter:
    """Return the exporter of that name; :func:`listing` names them all."""
    made: Exporter = _load("exporter", name)
    return made


def outside_tool(name: str) -> OutsideTool:
    """Return the outside tool of that name; :func:`listing` names them all."""
    made: OutsideTool = _load("outside tool", name)
    return made


def plotter() -> Plotter:
    """Return the first plotter, by name.

    Raises:
        UserError: there is none, or what it draws with is not installed.
    """
    for name in sorted(listing("plotter")):
        made: Plotter = _load("plotter", name)
        return made
    raise UserError("there is nothing to draw with", "pip install 'mfm-dse[dashboard]'")
