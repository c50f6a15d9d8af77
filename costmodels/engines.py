"""Engines that serve designs: step times, room for caches, places and guesses, for whoever judges what they do.

:class:`Engines` builds them for the designs of a problem; :mod:`costmodels.serving` simulates them, and
:mod:`costmodels.queueing` solves them in closed form. Per design a table of step times (:mod:`costmodels.stepcosts`)
from the analytical model of the hardware, and the room that memory leaves for keys and values
(:mod:`costmodels.capacity`). ``batch`` requests run at a time over all replicas; a step computes ``prefill_chunk``
positions, or with 0 as many as :data:`POSITIONS` and whole prompts only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from costmodels.answering import judge_of
from costmodels.capacity import Capacity, Engine, capacity
from costmodels.decoding import Decoding, published
from costmodels.speculation import CANDIDATES, Rates, rates_of, survival
from costmodels.stepcosts import Drafting, Extent, StepCosts
from costmodels.steps import Steps
from costmodels.steptable import StepTable
from dse.canonical import content_hash
from dse.designs import DesignBatch
from dse.metrics import Limit, MetricBatch, ToldLimit
from dse.policy import NGRAM, NONE, Policy
from dse.problem import PARALLEL, TARGET, Problem

POSITIONS: Final = 8192
"""Positions of a step where prompts are not cut: TensorRT-LLM's ``max_num_tokens`` and vLLM's default on 80 GB GPUs
(recalled)."""
CHUNK_ROWS: Final = 16


@dataclass(frozen=True)
class EngineBatch:
    """The engines of n designs, arrays (n,).

    Attributes:
        batch: the designs.
        costs: of their steps.
        room: for caches.
        extent: how far steps reach.
        prompt: positions of the scenario's prompt, images and sounds included.
        depth: guesses per step.
        alive: chances that guesses are kept; None where nobody guesses.
        limits: what designs may break.
        devices: of all replicas.
        cuts: whether prompts are cut into chunks.
        encodes: whether requests have images or sounds.
    """

    batch: DesignBatch
    costs: StepCosts
    room: Capacity
    extent: Extent
    prompt: np.ndarray
    depth: np.ndarray
    alive: Rates | None
    limits: list[Limit | ToldLimit]
    devices: np.ndarray
    cuts: np.ndarray
    encodes: bool

    def table(self, row: int, end: int) -> StepTable:
        """Return the step times of a design."""
        return self.costs.tables(row, end)

    def kept(self, row: int, end: int) -> np.ndarray:
        """Return the chances that guesses are kept: at the low end of times all the luck there is."""
        if self.alive is None:
            return np.zeros(0)
        chances = (self.alive.high, self.alive.value, self.alive.low)[end]
        return np.asarray(chances[row, 1 : 1 + int(self.depth[row])])


ONE_SOLUTION: Final = (
    "nothing logged: policy.cascade has {available} solution(s) of each stage, the design writes {needed}"
)


class Engines:
    """The engines of one problem.

    Args:
        problem: the problem.
        maker: how the engine treats memory.
        role: who answers.
        further_tokens: most tokens that a request writes beside its answer: other solutions, self-tests. None where
            designs have one solution and no test, because no answers are logged.
    """

    def __init__(self, problem: Problem, maker: Engine, role: str = TARGET, further_tokens: int | None = None) -> None:
        self.problem, self.maker, self.role, self._further_tokens = problem, maker, role, further_tokens
        self._policy = problem.policy or Policy()
        roles = list(problem.models) if problem.policy else [TARGET]
        self._steps = {role: Steps(problem, role) for role in roles}
        self._quality = {role: judge_of(problem, role) for role in roles} if problem.policy else {}
        self._decoding = Decoding(role, self._steps, self._policy, problem.scenario.output_tokens)
        base: Any = self._steps[self.role].evaluator
        self.given = frozenset(base.metrics)
        self.encodes = self._steps[self.role].workload.passes("encode") > 0

    def fingerprint(self, version: str, *options: Any) -> str:
        """Return the hash of all that results depend on besides the designs."""
        base: Any = self._steps[self.role].evaluator
        return content_hash(
            {
                "model": version,
                "hardware": base.fingerprint,
                "quality": [one.fingerprint for one in self._quality.values()],
                "problem": self.problem.content_hash,
                "scenario": self.problem.scenario.to_json(),
                "engine": [*options, *self.maker],
            }
        )

    def groups(self, batch: DesignBatch) -> list[tuple[np.ndarray, str]]:
        """Return rows by drafter."""
        if "draft" not in batch:
            return [(np.arange(len(batch)), NONE)]
        names = batch.of_role("draft", self.role)
        return [(np.flatnonzero(names == name), name) for name in dict.fromkeys(names.tolist())]

    def engine(self, batch: DesignBatch, drafter: str) -> EngineBatch:
        """Return the engines of designs that have one drafter."""
        n, scenario = len(batch), self.problem.scenario
        requests, devices, tensor, pipeline = (
            np.broadcast_to(batch[name], n).astype(np.float64) if name in batch else np.ones(n)
            for name in ("batch", *PARALLEL[:3])
        )
        replicas = np.maximum(np.floor(devices / (tensor * pipeline)), 1.0)
        places = np.ceil(requests / replicas)
        own = self._steps[self.role]
        prompt = np.maximum(own.workload.prompt_tokens(batch), 1.0)
        longest = prompt - scenario.prompt_tokens + self._longest()
        chunk = np.broadcast_to(batch["prefill_chunk"], n) if "prefill_chunk" in batch else np.zeros(n)
        limits: list[Limit | ToldLimit] = [
            Limit(
                "pipeline_parallel", pipeline, np.ones(n),
                "serving runs {available} pipeline stage, the design has {needed}",
            )
        ]  # fmt: skip
        if self._further_tokens is None and "solutions" in batch:
            solutions = np.broadcast_to(batch.of_role("solutions", self.role), n).astype(np.float64)
            limits.append(Limit("n_solutions", solutions, np.ones(n), ONE_SOLUTION))
        depth, guesses, alive, drafting = self._guesses(batch, drafter, limits)
        positions = np.where(chunk > 0, chunk, np.maximum(POSITIONS, longest))
        positions = np.maximum(positions, places * (1 + guesses))
        extent = Extent(places, positions, longest, replicas, guesses)
        host = self._policy.host
        n_blocks = sum(b.component == "decoder" for b in own.model.blocks)
        costs = StepCosts(own, batch, extent, drafting, host.pass_s + host.block_s * n_blocks, host.step_s)
        room = self._room(batch, extent, costs, drafter, limits)
        return EngineBatch(
            batch,
            costs,
            room,
            extent,
            prompt,
            depth,
            alive,
            limits,
            replicas * tensor * pipeline,
            chunk > 0,
            self.encodes,
        )

    def _longest(self) -> int:
        """Return the text positions of the longest request, prompt and output."""
        scenario = self.problem.scenario
        given = [a.prompt_tokens + a.output_tokens for a in scenario.arrivals]
        return max(given, default=scenario.prompt_tokens + scenario.output_tokens) + (self._further_tokens or 0)

    def _guesses(
        self, batch: DesignBatch, name: str, limits: list[Limit | ToldLimit]
    ) -> tuple[np.ndarray, np.ndarray, Rates | None, Drafting | None]:
        """Return guesses per step, positions checked for them, chances S and the drafter's work."""
        n = len(batch)
        if name == NONE:
            return np.zeros(n), np.zeros(n), None, None
        quality = {role: one.evaluate(batch) for role, one in self._quality.items()}
        losses = {r: (q.values["quality_loss"], q.intervals["quality_loss"][1]) for r, q in quality.items()}
        answer = self._decoding.answer(batch, losses)
        limits += answer.limits
        steps = self._steps.get(name)
        kind = NGRAM if steps is None else steps.model.model_type
        given = self._policy.accepted(self.role, name) or published(kind)
        most = min(given.most_tokens, CANDIDATES[-1] * 2)
        rates = rates_of(given, most, losses[self.role], losses.get(name, (np.zeros(n), np.zeros(n))))
        alive = Rates(*(survival(r) for r in rates))
        depth = np.minimum(answer.n_guesses, most)
        checked = np.where(depth > 0, given.nodes or depth, 0.0)
        passes = np.where(depth > 0, 1.0 if kind == "medusa" else depth, 0.0)
        reads = steps is not None and bool(steps.model.blocks)
        return depth, checked, alive, Drafting(steps, passes, float(given.width), reads)

    def _room(
        self, batch: DesignBatch, extent: Extent, costs: StepCosts, drafter: str, limits: list[Limit | ToldLimit]
    ) -> Capacity:
        """Return the room for keys and values, and add what single models are limited by."""
        one = batch.replaced(batch=extent.replicas)
        n = len(batch)
        weights, cache = np.zeros(n), np.zeros(n)
        final = extent.longest
        for role in [self.role, drafter] if drafter in self._steps else [self.role]:
            evaluator: Any = self._steps[role].evaluator
            found: MetricBatch = evaluator.evaluate(one)
            limits += [replace(x, text=f"{role}: {x.text}") if isinstance(x, Limit) else x for x in found.limits]
            sizes = self._steps[role].workload
            positions = sizes.prompt_tokens(batch) + self.problem.scenario.output_tokens
            reserved = np.broadcast_to(batch.of_role("max_context", role), n) if "max_context" in batch else 0
            per_token = found.values["kv_bytes"] / np.maximum(np.maximum(positions, reserved), 1.0)
            weights = weights + found.values["weight_bytes"]
            cache = cache + per_token * final
        # Designs that cannot run at all have no sizes; they are refused by the limits above.
        weights, cache = (np.nan_to_num(a, nan=1.0) for a in (weights, cache))
        model = self.problem.models[self.role]
        memory = float(self.problem.hardware.memory_bytes)
        room = capacity(memory, weights, costs.live_bytes, extent.places, model.vocab_size, cache, final, self.maker)
        text = (
            f"weights, a step's activations and the cache of one request need {{needed}}, "
            f"{self.problem.hardware.name} has {{available}} to use"
        )
        limits.append(Limit("memory_bytes", room.needed_bytes, room.reported_bytes - room.reserved_bytes, text))
        longest = np.full(n, float(model.max_context or np.inf))
        text = f"{model.name} takes {{available}} of context, the longest request of the trace has {{needed}}"
        limits.append(
            Limit("context_tokens", final if self.problem.scenario.trace else np.full(n, np.nan), longest, text)
        )
        return room
