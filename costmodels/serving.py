"""The serving cost model "serving": requests arrive, wait, share steps, and are served; simulated request by request.

Per design a table of step times (:mod:`costmodels.stepcosts`) from the analytical model of the hardware, the room that
memory leaves for keys and values (:mod:`costmodels.capacity`), and an event loop over all requests
(:mod:`costmodels.batching`); figures by :mod:`costmodels.served`.

- *Requests*: the scenario's, all alike, arriving at ``requests_per_s`` independently of each other; as its ``trace``
  has them; or, with neither, all there from the start, which measures throughput. Random numbers depend on the seed
  alone ("serving:7" is seed 7), so designs see the same arrivals and the same luck.
- *Engine*: ``batch`` requests at a time over all replicas; a step computes ``prefill_chunk`` positions, or with 0 as
  many as :data:`POSITIONS` and whole prompts only. Data-parallel replicas take requests in turn. It treats memory as
  vLLM does and preempts; "serving:7,trtllm" is TensorRT-LLM's way, blocks for whole requests at admission.
- *Speculation*: look-ahead and rates as in :mod:`costmodels.decoding`; how many guesses are kept is drawn per step.
- *Beyond capacity*: capacity is the rate at which requests are served where all are there from the start. A design
  whose arrivals exceed it is infeasible, by so much: its queue would grow without end. A trace is served whatever its
  rate; ``load_ratio`` tells.

The interval of a figure is that of runs with all passes at their low and at their high ends. Where the high end is
beyond capacity the queue grows, and the upper end is that of the requests simulated.

Energy counts what steps take and a device's idle power between them; an accelerator's leakage between steps is left
out. Left out too: sharing of common prefixes, pipeline stages, cascades, hosts and networks beyond ``policy.host``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from costmodels.batching import Limits, Run, simulate
from costmodels.capacity import BLOCK_TOKENS, ENGINES, Capacity, Engine, capacity
from costmodels.decoding import Decoding, published
from costmodels.device_energy import IDLE_RATIO
from costmodels.prior import PriorEvaluator
from costmodels.served import Timeline, figures, span_s, timeline
from costmodels.speculation import CANDIDATES, Rates, rates_of, survival
from costmodels.stepcosts import Drafting, Extent, StepCosts
from costmodels.steps import Steps
from costmodels.steptable import StepTable, step_cost
from dse.canonical import content_hash
from dse.designs import DesignBatch
from dse.errors import UserError
from dse.hardware import Device
from dse.metrics import Limit, MetricBatch, ToldLimit
from dse.policy import NGRAM, NONE, Policy, is_stage
from dse.problem import PARALLEL, TARGET, Problem
from dse.protocols import Breakdown

VERSION: Final = "1"
POSITIONS: Final = 8192
"""Positions of a step where prompts are not cut: TensorRT-LLM's ``max_num_tokens`` and vLLM's default on 80 GB GPUs
(recalled)."""
CHUNK_ROWS: Final = 16
WAVES: Final = 8
"""Requests that capacity is measured with, as a multiple of those that run at a time: filling and draining the engine
costs up to about one part in so many."""
FEWEST: Final = 64
_VALUE: Final = 1
_METRICS: Final = (
    "ttft_s", "ttft_p50_s", "ttft_p95_s", "ttft_p99_s", "tpot_s", "tpot_p50_s", "tpot_p95_s", "tpot_p99_s",
    "latency_s", "latency_p50_s", "latency_p95_s", "latency_p99_s", "queue_s", "throughput_tokens_per_s",
    "throughput_requests_per_s", "goodput_requests_per_s", "capacity_requests_per_s", "load_ratio", "n_running",
    "n_waiting", "kv_occupancy_ratio", "kv_peak_ratio", "kv_capacity_tokens", "preemption_ratio", "memory_bytes",
    "weight_bytes", "kv_bytes",
)  # fmt: skip


class Serving:
    """The serving cost model "serving".

    Args:
        options: the seed and the engine ("vllm" by default), as "7,trtllm".

    Raises:
        UserError: another option.
    """

    group = "serving"
    fidelity = "simulated"
    version = VERSION
    laws: frozenset[str] = frozenset({"breakdown_adds_up"})

    def __init__(self, options: str = "") -> None:
        words = [word for word in options.split(",") if word]
        engines = [word for word in words if word in ENGINES] or ["vllm"]
        numbers = [word for word in words if word not in ENGINES]
        if len(numbers) > 1 or len(engines) > 1 or not all(w.isdecimal() and len(w) < 19 for w in numbers):
            raise UserError(
                f"cost model 'serving': {options!r} is no seed and engine ({', '.join(ENGINES)})",
                "write serving:7, or serving:7,trtllm",
            )
        self.engine = ENGINES[engines[0]]
        self.seed = int(numbers[0]) if numbers else 0
        self.name = f"serving:{options}" if options else "serving"

    def prepare(self, problem: Problem) -> ServingEvaluator:
        """Return the evaluator of a problem.

        Raises:
            UserError: stages of a cascade, which this model does not route to.
        """
        stages = [role for role in problem.models if is_stage(role)]
        if stages:
            raise UserError(
                f"cost model 'serving' serves one model with its drafters, the problem has {', '.join(stages)}",
                "judge cascades with 'policy', or serve each stage in a study of its own",
            )
        return ServingEvaluator(problem, self.seed, self.engine)


@dataclass(frozen=True)
class _Engine:
    """The engines of n designs, arrays (n,): tables, room, and what guesses are worth."""

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

    def table(self, row: int, end: int) -> StepTable:
        """Return the step times of a design."""
        return self.costs.tables(row, end)

    def kept(self, row: int, end: int) -> np.ndarray:
        """Return the chances that guesses are kept: at the low end of times all the luck there is."""
        if self.alive is None:
            return np.zeros(0)
        chances = (self.alive.high, self.alive.value, self.alive.low)[end]
        return np.asarray(chances[row, 1 : 1 + int(self.depth[row])])


class ServingEvaluator:
    """The serving simulation for one problem.

    Args:
        problem: the problem.
        seed: of arrivals and of guesses kept.
        engine: what serves.
    """

    def __init__(self, problem: Problem, seed: int, engine: Engine) -> None:
        self.problem, self.seed, self._maker = problem, seed, engine
        self._policy = problem.policy or Policy()
        roles = list(problem.models) if problem.policy else [TARGET]
        self._steps = {role: Steps(problem, role) for role in roles}
        self._quality = {role: PriorEvaluator(problem, role) for role in roles} if problem.policy else {}
        self._decoding = Decoding(TARGET, self._steps, self._policy, problem.scenario.output_tokens)
        base: Any = self._steps[TARGET].evaluator
        self.fingerprint = content_hash(
            {
                "model": VERSION,
                "hardware": base.fingerprint,
                "quality": [one.fingerprint for one in self._quality.values()],
                "problem": problem.content_hash,
                "scenario": problem.scenario.to_json(),
                "engine": [seed, *engine],
            }
        )
        given = set(base.metrics)
        self.metrics: Sequence[str] = (
            *_METRICS,
            *(("energy_j", "million_tokens_energy_j") if "energy_j" in given else ()),
            *(("cost_usd", "million_tokens_cost_usd") if "cost_usd" in given else ()),
        )
        self._encodes = self._steps[TARGET].workload.passes("encode") > 0

    def evaluate(self, batch: DesignBatch) -> MetricBatch:
        """Return the metrics of each design, row by row."""
        parts = []
        for rows, drafter in self._groups(batch):
            for start in range(0, len(rows), CHUNK_ROWS):
                some = rows[start : start + CHUNK_ROWS]
                parts.append((some, self._evaluate(self._engine(batch.take(some), drafter))))
        return MetricBatch.scatter(parts, len(batch)).masked()

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return the mean latency as waiting, reading the prompt, and writing."""
        found = self.evaluate(batch).values
        first, labels = found["ttft_s"], [("queue", "wait"), ("prefill", "step"), ("decode", "step")]
        parts = np.stack([found["queue_s"], first - found["queue_s"], found["latency_s"] - first], axis=1)
        names = tuple(("engine", phase, kind, "time") for phase, kind in labels)
        return [Breakdown("latency_s", names, np.maximum(np.nan_to_num(parts), 0.0))]

    def timeline(self, design: DesignBatch) -> Timeline:
        """Return what the first replica of a design does over time, step by step.

        Args:
            design: a batch of one row.

        Raises:
            UserError: a design that cannot run.
        """
        ((_, drafter),) = self._groups(design)
        engine = self._engine(design, drafter)
        found = self._evaluate(engine)
        if found.reason(0):
            raise UserError(f"this design cannot run: {found.reason(0)}")
        runs = self._runs(engine, 0, _VALUE, *self._requests(engine, 0), with_timeline=True)
        return timeline(runs[0], int(engine.room.n_blocks[0]))

    def room(self, batch: DesignBatch) -> Capacity:
        """Return what lies in the memory of each design's fullest device; designs with one drafter."""
        ((_, drafter),) = self._groups(batch)
        return self._engine(batch, drafter).room

    # ------------------------------------------------------------------ engines

    def _groups(self, batch: DesignBatch) -> list[tuple[np.ndarray, str]]:
        """Return rows by drafter."""
        if "draft" not in batch:
            return [(np.arange(len(batch)), NONE)]
        names = batch.of_role("draft", TARGET)
        return [(np.flatnonzero(names == name), name) for name in dict.fromkeys(names.tolist())]

    def _engine(self, batch: DesignBatch, drafter: str) -> _Engine:
        n, scenario = len(batch), self.problem.scenario
        requests, devices, tensor, pipeline = (
            np.broadcast_to(batch[name], n).astype(np.float64) if name in batch else np.ones(n)
            for name in ("batch", *PARALLEL[:3])
        )
        replicas = np.maximum(np.floor(devices / (tensor * pipeline)), 1.0)
        places = np.ceil(requests / replicas)
        own = self._steps[TARGET]
        prompt = np.maximum(own.workload.prompt_tokens(batch), 1.0)
        longest = prompt - scenario.prompt_tokens + self._longest()
        chunk = np.broadcast_to(batch["prefill_chunk"], n) if "prefill_chunk" in batch else np.zeros(n)
        limits: list[Limit | ToldLimit] = [
            Limit(
                "pipeline_parallel", pipeline, np.ones(n),
                "the serving simulation runs {available} pipeline stage, the design has {needed}",
            )
        ]  # fmt: skip
        depth, guesses, alive, drafting = self._guesses(batch, drafter, limits)
        positions = np.where(chunk > 0, chunk, np.maximum(POSITIONS, longest))
        positions = np.maximum(positions, places * (1 + guesses))
        extent = Extent(places, positions, longest, replicas, guesses)
        host = self._policy.host
        n_blocks = sum(b.component == "decoder" for b in own.model.blocks)
        costs = StepCosts(own, batch, extent, drafting, host.pass_s + host.block_s * n_blocks, host.step_s)
        room = self._room(batch, extent, costs, drafter, limits)
        return _Engine(
            batch, costs, room, extent, prompt, depth, alive, limits, replicas * tensor * pipeline, chunk > 0
        )

    def _longest(self) -> int:
        """Return the text positions of the longest request, prompt and output."""
        scenario = self.problem.scenario
        given = [a.prompt_tokens + a.output_tokens for a in scenario.arrivals]
        return max(given, default=scenario.prompt_tokens + scenario.output_tokens)

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
        given = self._policy.accepted(TARGET, name) or published(kind)
        most = min(given.most_tokens, CANDIDATES[-1] * 2)
        rates = rates_of(given, most, losses[TARGET], losses.get(name, (np.zeros(n), np.zeros(n))))
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
        for role in [TARGET, drafter] if drafter in self._steps else [TARGET]:
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
        model = self.problem.target
        memory = float(self.problem.hardware.memory_bytes)
        room = capacity(memory, weights, costs.live_bytes, extent.places, model.vocab_size, cache, final, self._maker)
        text = (
            f"weights, a step's activations and the cache of one request need {{needed}}, "
            f"{self.problem.hardware.name} has {{available}} to use"
        )
        limits.append(Limit("memory_bytes", room.needed_bytes, room.reported_bytes - room.reserved_bytes, text))
        longest = np.full(n, float(self.problem.target.max_context or np.inf))
        text = f"{model.name} takes {{available}} of context, the longest request of the trace has {{needed}}"
        limits.append(
            Limit("context_tokens", final if self.problem.scenario.trace else np.full(n, np.nan), longest, text)
        )
        return room

    # ------------------------------------------------------------------ runs

    def _requests(self, engine: _Engine, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return arrivals, prompts and outputs of a design's requests."""
        scenario = self.problem.scenario
        if scenario.trace:
            arrival, text, output = (np.array(column) for column in zip(*scenario.arrivals, strict=True))
            return arrival, np.maximum(text + int(engine.prompt[row]) - scenario.prompt_tokens, 1), output
        n = scenario.n_requests
        gaps = np.random.default_rng([self.seed, 1]).exponential(1.0, n)
        rate = scenario.requests_per_s
        arrival = np.cumsum(gaps) / rate if rate else np.zeros(n)
        return arrival, np.full(n, int(engine.prompt[row])), np.full(n, scenario.output_tokens)

    def _runs(
        self, engine: _Engine, row: int, end: int, arrival: np.ndarray, prompt: np.ndarray, output: np.ndarray,
        *, with_timeline: bool = False,
    ) -> list[Run]:  # fmt: skip
        """Return the run of each replica that gets a request; replicas take them in turn."""
        extent, replicas = engine.extent, int(engine.extent.replicas[row])
        room = Limits(
            int(extent.places[row]), int(extent.positions[row]), int(engine.room.n_blocks[row]), BLOCK_TOKENS,
            bool(engine.cuts[row]), self._maker.reserves,
        )  # fmt: skip
        table, kept, checked = engine.table(row, end), engine.kept(row, end), int(extent.guesses[row])
        return [
            simulate(
                arrival[i::replicas], prompt[i::replicas], output[i::replicas], room, table, kept, self.seed + i,
                checked=checked, encodes=self._encodes, with_timeline=with_timeline,
            )
            for i in range(min(replicas, len(arrival)))
        ]  # fmt: skip

    def _most(self, engine: _Engine, row: int, end: int, prompt: np.ndarray, output: np.ndarray) -> float:
        """Return the requests per second that a design serves where some always wait."""
        at_once = min(engine.extent.places[row], engine.room.kv_bytes[row] / engine.room.request_bytes[row])
        n = int(max(WAVES * at_once, FEWEST) * engine.extent.replicas[row])
        runs = self._runs(engine, row, end, np.zeros(n), np.resize(prompt, n), np.resize(output, n))
        return n / span_s(runs)

    def _evaluate(self, engine: _Engine) -> MetricBatch:
        n = len(engine.batch)
        limits = [limit for limit in engine.limits if (limit.excess_ratio > 0).any()]
        ok = sum((limit.excess_ratio for limit in limits), np.zeros(n)) == 0
        ends = [{name: np.full(n, np.nan) for name in self.metrics} for _ in range(3)]
        rate, most = self.problem.scenario.requests_per_s, np.full(n, np.inf)
        for row in np.flatnonzero(ok).tolist():
            arrival, prompt, output = self._requests(engine, row)
            is_backlog = arrival[-1] == arrival[0]
            if not is_backlog:
                most[row] = self._most(engine, row, _VALUE, prompt, output)
                if rate > most[row]:
                    continue
            for end, values in enumerate(ends):
                runs = self._runs(engine, row, end, arrival, prompt, output)
                for name, value in self._figures(engine, row, end, runs).items():
                    values[name][row] = value
                served = values["throughput_requests_per_s"][row]
                capable = served if is_backlog else self._most(engine, row, end, prompt, output)
                asked = served if is_backlog else rate or len(arrival) / (arrival[-1] - arrival[0])
                values["capacity_requests_per_s"][row], values["load_ratio"][row] = capable, asked / capable
        name = self.problem.hardware.name
        text = f"requests arrive at {{needed}}, {name} serves {{available}}: the queue grows without end"
        limits.append(Limit("requests_per_s", np.where(most < np.inf, rate, np.nan), most, text))
        values = ends[_VALUE]
        exact = ("memory_bytes", "weight_bytes", "kv_bytes", "kv_capacity_tokens")
        bands = {
            name: (np.min([e[name] for e in ends], axis=0), np.max([e[name] for e in ends], axis=0))
            for name in self.metrics
            if name not in exact
        }
        broken = [limit for limit in limits if (limit.excess_ratio > 0).any()]
        return MetricBatch(values, n, bands, dict.fromkeys(values, "simulated"), broken).masked()

    def _figures(self, engine: _Engine, row: int, end: int, runs: Sequence[Run]) -> dict[str, float]:
        room = engine.room
        n_blocks = int(room.n_blocks[row])
        context = float(engine.extent.longest[row])
        token_s, _ = step_cost(engine.table(row, end), 1, context, 0, 0.0, 1, 0, 0)
        found = figures(runs, n_blocks, token_s, self.problem.scenario)
        tokens, requests = sum(int(run.output.sum()) for run in runs), sum(len(run.output) for run in runs)
        found["kv_capacity_tokens"] = float(n_blocks * BLOCK_TOKENS)
        found["weight_bytes"] = float(room.weight_bytes[row])
        found["kv_bytes"] = float(found["kv_peak_ratio"] * n_blocks * room.block_bytes[row])
        found["memory_bytes"] = float(found["weight_bytes"] + room.activation_bytes[row] + room.context_bytes[row])
        found["memory_bytes"] += found["kv_bytes"]
        span, hardware, devices = span_s(runs), self.problem.hardware, float(engine.devices[row])
        if "energy_j" in self.metrics:
            joules = sum(run.sums.joules for run in runs)
            if isinstance(hardware, Device) and hardware.power_w:
                idle = span * float(engine.extent.replicas[row]) - sum(run.sums.busy_s for run in runs)
                own = devices / float(engine.extent.replicas[row])
                joules += IDLE_RATIO[end] * hardware.power_w * own * max(idle, 0.0)
            found["energy_j"], found["million_tokens_energy_j"] = joules / requests, 1e6 * joules / tokens
        if "cost_usd" in self.metrics:
            assert isinstance(hardware, Device)
            assert hardware.price_usd_per_hour
            price = hardware.price_usd_per_hour[end // 2] * devices * span / 3600
            found["cost_usd"], found["million_tokens_cost_usd"] = price / requests, 1e6 * price / tokens
        return found
