"""``bottleneck``: reads where the front's costs go, and buys the moves that take most from there.

What an architect does with a profile (and what systems built on critical paths do: Explainable-DSE, ASPLOS 2023;
LUMINA, arXiv 2603.05904), without a language model. Each batch

1. asks for the additive breakdown of the designs on the front and of the latest ones;
2. finds the dominant parts of each objective, and the knobs that act on them: by the field's laws, corrected by what
   paid designs showed (:mod:`agents.parts`);
3. makes the moves of one knob, of two, and combinations that aim at those parts, beside what a genetic search on the
   predictions finds;
4. proposes those with the largest expected gain. A price is never guessed at and taken for known: every design whose
   price is asked is proposed, evaluated, counted and stored like any other.

While few designs are known batches are small, so that each one knows what the one before it showed. Parents are the
designs that a move starts from, so the study's records tell how a design was found.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from agents.lookahead import pick, search
from agents.parts import PartModel
from agents.sampling import stratified
from agents.standing import stand
from agents.variation import Layout, make_new, unknown_rows
from dse.protocols import History, Proposals

_ROWS: Final = 96
_CENTRES: Final = 8
_COMBINATIONS: Final = 384
_FINALISTS: Final = 160
_LEAST_BATCH: Final = 4
_BATCH_RATIO: Final = 0.125
_MOST_LEVELS: Final = 8


class Bottleneck:
    """See the module."""

    name = "bottleneck"
    window = 600

    def propose(self, history: History, k: int, rng: np.random.Generator) -> Proposals:
        """Return up to k designs of the largest expected gain; a stratified sample while nothing has run."""
        layout = Layout.of(history.space)
        k = min(k, max(_LEAST_BATCH, int(_BATCH_RATIO * history.n_total)))
        known = np.isfinite(history.objectives).all(axis=1)
        if not known.any():
            codes, fresh = make_new(history, layout, stratified(history.space, k, rng), rng)
            return Proposals(codes[fresh])
        order = stand(history.objectives, history.violation).order
        order = order[known[order]]
        model = PartModel(history, learned(order))
        centres = order[:_CENTRES]
        codes = np.concatenate([
            neighbours(layout, history.codes[centres]),
            self._combinations(history, layout, centres, model, rng),
            search(history, layout, order, model, k, rng),
        ])  # fmt: skip
        codes = history.space.repair(codes)
        codes = codes[unknown_rows(history, codes, set())]
        codes = codes[np.argsort(-model.quick(codes), kind="stable")[: max(_FINALISTS, 2 * k)]]
        chosen = codes[pick(model, codes, min(k, len(codes)), rng)]
        distance = (chosen[:, None, :] != history.codes[order][None, :, :]).sum(axis=2)
        return Proposals(chosen, [(int(n),) for n in history.numbers[order[distance.argmin(axis=1)]]])

    @staticmethod
    def _combinations(
        history: History, layout: Layout, centres: np.ndarray, model: PartModel, rng: np.random.Generator
    ) -> np.ndarray:
        """Return moves of two to six knobs each, knobs that act on dominant parts of the objectives first."""
        relevance = relevances(history, model, centres)
        start = history.codes[rng.choice(centres, _COMBINATIONS)].astype(np.int64)
        n_knobs = rng.integers(2, 7, _COMBINATIONS)
        keys = rng.random(start.shape) ** (1.0 / relevance)
        rank = np.argsort(np.argsort(-keys, axis=1), axis=1)
        other = (start + 1 + rng.integers(0, np.maximum(layout.n_levels - 1, 1), start.shape)) % layout.n_levels
        return np.where(rank < n_knobs[:, None], other, start)


def learned(order: np.ndarray) -> np.ndarray:
    """Return the rows to learn from: half of them the best, the rest spread over all others."""
    if len(order) <= _ROWS:
        return order
    head, tail = order[: _ROWS // 2], order[_ROWS // 2 :]
    return np.concatenate([head, tail[np.linspace(0, len(tail) - 1, _ROWS - _ROWS // 2).astype(np.int64)]])


def relevances(history: History, model: PartModel, centres: np.ndarray) -> np.ndarray:
    """Return how much each knob acts on where the costs of some designs go, between 0.1 and 1, shape (p,).

    A knob weighs the shares of the parts that a law ties to it, in the objective where that is most; knobs that no law
    speaks of keep a tenth.
    """
    totals = np.full(history.space.n_parameters, 0.1)
    made = np.exp(model.logs_at(history.codes[centres])).mean(axis=0)
    for objective in history.goal.objectives:
        own = [i for i, (metric, _) in enumerate(model.parts.parts) if metric == objective.name]
        acts = np.full(len(totals), 0.1)
        for i in own:
            share = made[i] / made[own].sum()
            acts[list(model.influence.touches(i))] += share
        totals = np.maximum(totals, np.minimum(acts, 1.0))
    return totals


def neighbours(layout: Layout, codes: np.ndarray) -> np.ndarray:
    """Return every design that differs in one knob: any level of a knob with few, the next ones of one with many."""
    found = []
    for j, n in enumerate(layout.n_levels.tolist()):
        steps = range(1, n) if n <= _MOST_LEVELS or not layout.ordered[j] else (-4, -2, -1, 1, 2, 4)
        for step in list(steps)[:64]:
            moved = codes.astype(np.int64)
            moved[:, j] = (
                (moved[:, j] + step) % n
                if n <= _MOST_LEVELS or not layout.ordered[j]
                else np.clip(moved[:, j] + step, 0, n - 1)
            )
            found.append(moved)
    return np.concatenate(found) if found else codes[:0]
