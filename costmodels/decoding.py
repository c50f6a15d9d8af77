"""One model answering one request: encode, prefill, then tokens one by one or several per speculative step.

A speculative step of g guesses is g passes of the drafter (one where its heads guess all at once, none for n-grams,
which are looked up), and one pass of the target over g + 1 positions per sequence, at the batch that runs together; of
a tree of guesses, over its nodes + 1. Both are costed along the growing context (:mod:`costmodels.steps`). A drafter
that reads the prompt pays its prefill before the first token. The number of steps is that of
:func:`costmodels.speculation.n_steps`.

``draft_tokens = 0`` takes, of the listed look-aheads and of none, what costs least time per token at the middle of the
output.

Left out: the rows that a drafter catches up on after a step whose guesses were all kept (one more position in its next
pass); n-grams' look-up; drafters on devices of their own: they are laid out over devices as their target is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from costmodels.speculation import CANDIDATES, Rates, moments, n_steps, rates_of, survival
from costmodels.steps import Step, Steps
from dse.acceptance import Acceptance
from dse.designs import DesignBatch
from dse.metrics import Limit
from dse.policy import NGRAM, NONE, Host, Policy

Loss = tuple[np.ndarray, np.ndarray]

PUBLISHED: Final[Mapping[str, Acceptance]] = {
    NGRAM: Acceptance.of_mean(1.67, 10, source="Spec-Bench, prompt lookup, median over Vicuna 7B-33B"),
    "eagle": Acceptance.of_mean(3.57, 5, nodes=25, width=4, source="Spec-Bench, EAGLE, median over Vicuna 7B-33B"),
    "medusa": Acceptance.of_mean(2.33, 4, nodes=63, source="Spec-Bench, Medusa, median over Vicuna 7B-33B"),
    "model": Acceptance.of_mean(2.19, 5, source="Spec-Bench, Vicuna-68M as drafter, median over Vicuna 7B-33B"),
}
"""What drafters of a kind were seen to do, on other texts and models: values without an interval narrower than all."""


def published(kind: str, depth: int = 0) -> Acceptance:
    """Return the prior of a kind of drafter: its rate at any depth up to ``depth``, open from never to always."""
    found = PUBLISHED.get(kind, PUBLISHED["model"])
    n = min(depth, len(found.rates)) if depth else len(found.rates)
    rates = found.rates[:n]
    return replace(found, rates=rates, low=(0.0,) * n, high=(1.0,) * n, goes_on=kind in ("model", NGRAM))


@dataclass(frozen=True)
class Answer:
    """What one model takes to answer, for n designs.

    Attributes:
        encode, prefill: before the first token, a drafter's prefill included.
        decode: all further tokens of the scenario's output, shape (n,) passes together.
        draft_s: part of the decode time in the drafter, shape (n,).
        n_guesses: look-ahead, shape (n,).
        n_tokens: tokens per step, shape (n,).
        drafters: role -> which designs use it, boolean, shape (n,).
        limits: laws of speculation.
    """

    encode: Step
    prefill: Step
    decode: Step
    draft_s: np.ndarray
    n_guesses: np.ndarray
    n_tokens: np.ndarray
    drafters: Mapping[str, np.ndarray]
    limits: list[Limit]


class Decoding:
    """Answers of one role.

    Args:
        role: the role.
        steps: passes of every role.
        policy: what is known of drafters.
        output_tokens: of the request.
    """

    def __init__(self, role: str, steps: Mapping[str, Steps], policy: Policy, output_tokens: int) -> None:
        self.role, self._steps, self._policy = role, steps, policy
        self._own = steps[role]
        self._tokens = float(output_tokens - 1)
        self._span = max(self._tokens, 1.0)

    def answer(self, batch: DesignBatch, losses: Mapping[str, Loss]) -> Answer:
        """Return what it takes.

        Args:
            batch: the designs.
            losses: role -> (value, upper end) of its loss, arrays (n,).
        """
        n = len(batch)
        has_policy = "draft" in batch
        chunk = np.broadcast_to(batch["prefill_chunk"], n).astype(np.float64) if has_policy else None
        encode = self._own.encode(batch)
        prefill = self._own.whole_prefill(batch, chunk)
        names = batch.of_role("draft", self.role) if has_policy else np.full(n, NONE)
        decode, draft_s = Step.none(n), np.zeros(n)
        guesses, per_step = np.zeros(n), np.ones(n)
        drafters, limits = {}, []
        for name in dict.fromkeys(names.tolist()):
            rows = np.flatnonzero(names == name)
            part = batch if len(rows) == n else batch.take(rows)
            if name == NONE:
                _put(decode, rows, self._plain(part).times(self._tokens))
                continue
            own = {role: (value[rows], high[rows]) for role, (value, high) in losses.items()}
            found = self._speculate(part, name, own)
            _put(decode, rows, found.decode)
            if found.prefill is not None:
                more = Step.none(n)
                _put(more, rows, found.prefill)
                prefill = prefill.plus(more)
            draft_s[rows], guesses[rows], per_step[rows] = found.draft_s, found.n_guesses, found.n_tokens
            if name != NGRAM:
                drafters[name] = names == name
            asked, known = np.full(n, np.nan), np.full(n, np.inf)
            asked[rows], known[rows] = found.asked, found.known
            text = (
                f"{name} is known to guess {{available}} token(s) ahead of {self.role}, the design asks for {{needed}}"
            )
            limits.append(Limit("n_draft_tokens", asked, known, text))
        return Answer(encode, prefill, decode, draft_s, guesses, per_step, drafters, limits)

    # ------------------------------------------------------------------ plain and speculative steps

    def _first(self, batch: DesignBatch) -> np.ndarray:
        return self._own.workload.prompt_tokens(batch) + 1

    def _plain(self, batch: DesignBatch) -> Step:
        found = self._own.decoding(batch, self._first(batch), self._span)
        return self._hosted(found, self._own, self._policy.host)

    def _speculate(self, batch: DesignBatch, name: str, losses: Mapping[str, Loss]) -> _Speculated:
        n, drafter = len(batch), self._steps.get(name)
        kind = NGRAM if drafter is None else drafter.model.model_type
        given = self._policy.accepted(self.role, name) or published(kind)
        most = min(given.most_tokens, CANDIDATES[-1] * 2)
        nothing = (np.zeros(n), np.zeros(n))
        # A look-up has no weights that could be compressed.
        rates = rates_of(given, most, losses[self.role], losses.get(name, nothing))
        asked = np.broadcast_to(batch.of_role("draft_tokens", self.role), n).astype(np.float64)
        plain = self._plain(batch)
        alive = Rates(*(survival(r) for r in rates))
        if given.nodes:
            guesses = np.where(asked > 0, np.minimum(asked, most), most)
            best = self._cheapest(batch, drafter, kind, given, alive.value, plain, guesses[:, None])
            guesses = np.where((asked > 0) | (best > 0), guesses, 0.0)
        else:
            listed = np.array([c for c in CANDIDATES if c <= most], dtype=np.float64)
            free = asked == 0
            guesses = np.minimum(asked, most)
            if free.any():
                rows = np.flatnonzero(free)
                part = batch.take(rows)
                few = np.broadcast_to(listed, (len(rows), len(listed)))
                alike = Step(
                    plain.seconds[:, rows], plain.joules[:, rows], plain.dram_bytes[rows], plain.live_bytes[rows]
                )
                guesses[rows] = self._cheapest(part, drafter, kind, given, alive.value[rows], alike, few)
        draft, verify = self._passes(batch, drafter, kind, given, guesses)
        step = draft.plus(verify)
        counts = []
        for ends in (alive.high, alive.value, alive.low):  # quick, expected, slow
            mean, square = moments(ends, guesses)
            counts.append((n_steps(self._tokens, mean, square), mean))
        times = np.stack([c for c, _ in counts])
        off = guesses == 0
        decode = Step(
            np.where(off, plain.seconds * self._tokens, step.seconds * times),
            np.where(off, plain.joules * self._tokens, step.joules * times),
            np.where(off, plain.dram_bytes * self._tokens, step.dram_bytes * times[1]),
            np.maximum(step.live_bytes, plain.live_bytes),
        )
        reads = drafter is not None and bool(drafter.model.blocks)
        prefill = drafter.whole_prefill(batch) if drafter is not None and reads else None
        if prefill is not None:
            prefill = prefill.times(np.where(off, 0.0, 1.0))
        draft_s = np.where(off, 0.0, draft.seconds[1] * times[1])
        known = np.full(n, float(given.most_tokens))
        return _Speculated(prefill, decode, draft_s, guesses, counts[1][1], np.where(asked > 0, asked, np.nan), known)

    def _cheapest(
        self, batch: DesignBatch, drafter: Steps | None, kind: str, given: Acceptance, alive: np.ndarray, plain: Step,
        listed: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Return which look-ahead of ``listed`` (n, c) costs least time per token; 0 where none beats plain steps."""
        n, c = listed.shape
        repeated = batch.take(np.repeat(np.arange(n), c))
        flat = np.ascontiguousarray(listed).reshape(-1)
        draft, verify = self._passes(repeated, drafter, kind, given, flat, is_rough=True)
        mean, _ = moments(np.repeat(alive, c, axis=0), flat)
        cost = ((draft.seconds[1] + verify.seconds[1]) / mean).reshape(n, c)
        best = cost.argmin(axis=1)
        rows = np.arange(n)
        return np.where(cost[rows, best] < plain.seconds[1], listed[rows, best], 0.0)

    def _passes(
        self, batch: DesignBatch, drafter: Steps | None, kind: str, given: Acceptance, guesses: np.ndarray,
        *, is_rough: bool = False,
    ) -> tuple[Step, Step]:  # fmt: skip
        """Return all draft passes of a step, and its verification; in the middle of the output if rough."""
        host, n = self._policy.host, len(batch)
        checked = np.where(guesses > 0, given.nodes or guesses, 0.0) + 1.0
        verify = self._hosted(self._along(self._own, batch, checked, is_rough), self._own, host, host.step_s)
        if drafter is None:
            return Step.none(n), verify
        passes = np.where(guesses > 0, 1.0, 0.0) if kind == "medusa" else guesses
        one = self._hosted(self._along(drafter, batch, np.full(n, float(given.width)), is_rough), drafter, host)
        return one.times(passes), verify

    def _along(self, steps: Steps, batch: DesignBatch, tokens: np.ndarray, is_rough: bool) -> Step:
        first = steps.workload.prompt_tokens(batch) + tokens
        if is_rough:
            return steps.verify(batch, tokens, first + (self._span - 1) / 2)
        return steps.decoding(batch, first, self._span, tokens=tokens)

    @staticmethod
    def _hosted(step: Step, steps: Steps, host: Host, beside_s: float = 0.0) -> Step:
        n_blocks = sum(b.component == "decoder" for b in steps.model.blocks)
        least = host.pass_s + host.block_s * n_blocks
        return replace(step, seconds=np.maximum(step.seconds, least) + beside_s)


@dataclass(frozen=True)
class _Speculated:
    prefill: Step | None
    decode: Step
    draft_s: np.ndarray
    n_guesses: np.ndarray
    n_tokens: np.ndarray
    asked: np.ndarray
    known: np.ndarray


def _put(into: Step, rows: np.ndarray, part: Step) -> None:
    """Write a part's values to the given rows."""
    into.seconds[:, rows], into.joules[:, rows] = part.seconds, part.joules
    into.dram_bytes[rows], into.live_bytes[rows] = part.dram_bytes, part.live_bytes
