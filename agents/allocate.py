"""Hull points of the knapsack of losses and costs as designs: a start of the search, not a search.

    allocate               losses of the profile, or of the prior without one, against each objective that it can cost
    allocate:surrogate     losses of a quality cost model by its name

What each level of each compressing parameter adds to the metrics is asked of the cost models "analytical" and that
one, a batch of as many designs as there are levels; these are cheap, are not stored as designs and do not count as
trials. The maps on the hull (:func:`dse.allocation.hull`) are then proposed at equal steps of cost, all other
parameters at the reference first, then as in designs of the front; when all are known it has no more to say.
"""

from __future__ import annotations

import numpy as np

from agents.standing import stand
from dse.allocation import hull
from dse.errors import UserError
from dse.marginals import Marginals, compressing, marginals
from dse.problem import TARGET
from dse.protocols import History, Proposals
from dse.space import BoundSpace

_COSTS = ("latency_s", "energy_j", "weight_bytes", "memory_bytes")
_LOSS = "quality_loss"
_FRONT = 8


class Allocate:
    """See the module.

    Args:
        options: "" or the name of a quality cost model.
    """

    window = 256

    def __init__(self, options: str = "") -> None:
        self.name = f"allocate:{options}" if options else "allocate"
        self._quality = options
        self._kept: tuple[str, Marginals | None, list[np.ndarray]] | None = None

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:  # noqa: ARG002
        """Return up to k hull points that nobody proposed."""
        table, maps = self._maps(history.space)
        if table is None:
            return Proposals(np.empty((0, history.space.n_parameters), np.uint16))
        bases = [table.base]
        if len(history):
            order = stand(history.objectives, history.violation).order[:_FRONT]
            bases += list(history.codes[order])
        wanted = [o.name for o in history.goal.objectives]
        chosen = [maps[_COSTS.index(m)] for m in _COSTS if m in wanted] or [maps[-1]]
        codes = []
        for base in bases:
            for points in chosen:
                whole = np.repeat(base[None, :], len(points), axis=0)
                whole[:, table.parameters] = points
                codes.append(whole)
        every = history.space.repair(np.concatenate(codes))
        _, first = np.unique(every, axis=0, return_index=True)
        every = every[np.sort(first)]
        fresh = np.flatnonzero(~history.is_known(every))
        if len(fresh) > k:
            first_pass = fresh[fresh < len(chosen[0]) * len(chosen)]
            pool = first_pass if len(first_pass) >= k else fresh
            fresh = pool[np.linspace(0, len(pool) - 1, k).round().astype(int)]
        return Proposals(every[fresh])

    def _maps(self, space: BoundSpace) -> tuple[Marginals | None, list[np.ndarray]]:
        """Return the marginals and, for each cost, the chosen levels on its hull, cheapest first."""
        if self._kept is None or self._kept[0] != space.content_hash:
            self._kept = (space.content_hash, *self._made(space))
        return self._kept[1], self._kept[2]

    def _made(self, space: BoundSpace) -> tuple[Marginals | None, list[np.ndarray]]:
        if not len(compressing(space)):
            return None, []
        quality = self._quality or ("surrogate" if TARGET in space.schema.problem.quality else "prior")
        try:
            table = marginals(space, ("analytical", quality))
            found = [np.array([a.chosen for a in hull(table.choices(_LOSS, cost))]) for cost in _COSTS]
        except UserError:
            return None, []  # nothing that adds up here: others search
        return table, found
