"""Search the budget instead of each place: one parameter whose levels are the best maps of their cost.

``weight_bits=Choice(3, 4, 6, 8, per="budget:block.module")`` declares one parameter. Its levels are the maps on the
lower convex hull of (cost, loss) over the groups of that depth (:func:`dse.allocation.hull`); what each group loses and
costs at each value is asked of the cost models (:mod:`dse.marginals`). Where a hundred groups would make a space of
4^100 designs, this one has as many as the hull has steps, each the best for its cost as far as losses add up; what a
single place could do beside it is given up.

A level is written as a value of the knob by its cost: on the straight line from the cheapest map, which stands for its
mean value, to the dearest. With costs that grow evenly "3.4 bits" costs what 3.4 bits everywhere would. Cost is stored
bytes where the knob changes them, else bytes of the cache, else latency, else energy. The maps become part of the
study's definition, so a study keeps them whatever becomes of a cost model.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from dse.allocation import hull
from dse.errors import SpaceError, UserError
from dse.knobs import ALIASES, KNOBS
from dse.marginals import LOSS, marginals
from dse.params import Choice, Domain, Maps
from dse.problem import TARGET, Problem
from dse.profile import PROFILED
from dse.space import Space

PREFIX: Final = "budget"
MOST_MAPS: Final = 64
_DEEPEST: Final = "block.module"
_COSTS: Final = ("weight_bytes", "kv_bytes", "latency_s", "energy_j")


def resolved(space: Space, problem: Problem) -> Space:
    """Return the space with every budget declared in it as the maps of this problem.

    Args:
        space: the declaration.
        problem: its quality profile gives the losses, or the prior where it has none.

    Raises:
        SpaceError: a budget over a knob that compresses nothing place by place, or that costs nothing.
    """
    if not any(_is_budget(domain) for domain in space.declarations.values()):
        return space
    return Space({p: _maps(p, d, problem) if _is_budget(d) else d for p, d in space.declarations.items()})


def _is_budget(domain: Domain) -> bool:
    return domain.per.partition(":")[0] == PREFIX and not isinstance(domain, Maps)


def _maps(path: str, domain: Domain, problem: Problem) -> Maps:
    where, per = f"space: {path}", domain.per.partition(":")[2] or _DEEPEST
    name = path.rsplit("/", 1)[-1]
    if not all(knob in PROFILED and KNOBS[knob].scope.has_blocks for knob in ALIASES.get(name, (name,))):
        able = ", ".join(knob for knob in PROFILED if KNOBS[knob].scope.has_blocks)
        raise SpaceError(f"{where}: per={domain.per!r}, but {name} has no budget to share out", f"these have: {able}")
    alone = Space({path: Choice(*domain.levels(), per=per)}).bind(problem)
    try:
        table = marginals(alone, ("analytical", "surrogate" if TARGET in problem.quality else "prior"))
    except UserError as error:
        raise SpaceError(f"{where}: per={domain.per!r} finds no budget: {error.message}", error.hint) from None
    changing = (c for c in _COSTS if c in table.metrics and np.nan_to_num(np.ptp(table.metrics[c], axis=1)).max() > 0)
    cost = next(changing, None)
    if cost is None:
        raise SpaceError(f"{where}: per={domain.per!r}, but no cost depends on it", "leave out budget:")
    maps = hull(table.choices(LOSS, cost))
    spent = np.array([one.cost for one in maps])
    share = (spent - spent[0]) / (spent[-1] - spent[0]) if len(maps) > 1 else np.zeros(1)
    steps = np.linspace(0.0, 1.0, min(MOST_MAPS, len(maps)))
    kept = np.unique(np.abs(share[None, :] - steps[:, None]).argmin(axis=1))
    levels = alone.parameters[0].levels
    ends = [np.mean([float(levels[c]) for c in maps[i].chosen]) for i in (0, -1)]
    values = [float(f"{ends[0] + (ends[1] - ends[0]) * s:.6g}") for s in share[kept]]
    fresh = [i for i, v in enumerate(values) if i == 0 or v > values[i - 1]]
    return Maps(
        [values[i] for i in fresh],
        [p.group for p in alone.parameters],
        [[levels[c] for c in maps[kept[i]].chosen] for i in fresh],
        per=per,
        when=domain.when,
    )
