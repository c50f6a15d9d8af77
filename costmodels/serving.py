"""The serving cost model "serving": requests arrive, wait, share steps, and are served; simulated request by request.

Per design a table of step times and room for keys and values (:mod:`costmodels.engines`), and an event loop over all
requests (:mod:`costmodels.batching`); figures by :mod:`costmodels.served`.

- *Requests*: the scenario's, all alike, arriving at ``requests_per_s`` independently of each other; as its ``trace``
  has them; or, with neither, all there from the start, which measures throughput. Random numbers depend on the seed
  alone ("serving:7" is seed 7), so designs see the same arrivals and the same luck.
- *Engine*: as :mod:`costmodels.engines` builds it. Data-parallel replicas take requests in turn. It treats memory as
  vLLM does and preempts; "serving:7,trtllm" is TensorRT-LLM's way, blocks for whole requests at admission.
- *Speculation*: look-ahead and rates as in :mod:`costmodels.decoding`; how many guesses are kept is drawn per step.
- *Beyond capacity*: capacity is the rate at which requests are served where all are there from the start. A design
  whose arrivals exceed it is infeasible, by so much: its queue would grow without end. A trace is served whatever its
  rate; ``load_ratio`` tells.

The interval of a figure is that of runs with all passes at their low and at their high ends. Where the high end is
beyond capacity the queue grows, and the upper end is that of the requests simulated.

Energy counts what steps take and a device's idle power between them; an accelerator's leakage between steps is left
out. Left out too: sharing of common prefixes, pipeline stages, hosts and networks beyond ``policy.host``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from costmodels.batching import Run, simulate
from costmodels.batchloop import Limits
from costmodels.capacity import BLOCK_TOKENS, ENGINES, Capacity, Engine
from costmodels.engines import EngineBatch, Engines
from costmodels.served import (
    PREEMPTION,
    EngineEvaluator,
    Spent,
    Timeline,
    answer,
    figures,
    metrics_of,
    span_s,
    timeline,
)
from costmodels.steptable import step_cost
from dse.designs import DesignBatch
from dse.errors import UserError
from dse.metrics import Limit, MetricBatch
from dse.policy import Policy, is_stage
from dse.problem import Problem
from dse.protocols import Evaluator

VERSION: Final = "1"
WAVES: Final = 8
"""Requests that capacity is measured with, as a multiple of those that run at a time: filling and draining the engine
costs up to about one part in so many."""
FEWEST: Final = 64
APART: Final = "apart"
_VALUE: Final = 1


class Serving:
    """The serving cost model "serving".

    Args:
        options: the seed, the engine ("vllm" by default), and "apart" where stages of a cascade have devices of their
            own, as "7,trtllm,apart".

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
        numbers = [word for word in words if word not in ENGINES and word != APART]
        if (
            len(numbers) > 1 or len(engines) > 1 or words.count(APART) > 1
            or not all(w.isdecimal() and len(w) < 19 for w in numbers)
        ):  # fmt: skip
            raise UserError(
                f"cost model 'serving': {options!r} is no seed, engine ({', '.join(ENGINES)}) and {APART!r}",
                "write serving:7, serving:7,trtllm, or serving:7,apart for stages on devices of their own",
            )
        self.engine = ENGINES[engines[0]]
        self.seed, self.apart = int(numbers[0]) if numbers else 0, APART in words
        self.name = f"serving:{options}" if options else "serving"

    def prepare(self, problem: Problem) -> Evaluator:
        """Return the evaluator of a problem; of one with logged answers that of :mod:`costmodels.routed`."""
        if any(is_stage(role) for role in problem.models) or (problem.policy or Policy()).answers is not None:
            from costmodels.routed import RoutedEvaluator

            return RoutedEvaluator(problem, self.seed, self.engine, self.apart)
        return ServingEvaluator(problem, self.seed, self.engine)


class ServingEvaluator(EngineEvaluator):
    """The serving simulation for one problem.

    Args:
        problem: the problem.
        seed: of arrivals and of guesses kept.
        engine: what serves.
    """

    def __init__(self, problem: Problem, seed: int, engine: Engine) -> None:
        self.problem, self.seed, self.engines = problem, seed, Engines(problem, engine)
        self.fingerprint = self.engines.fingerprint(VERSION, seed)
        self.metrics: Sequence[str] = (*metrics_of(self.engines.given), PREEMPTION)

    def timeline(self, design: DesignBatch) -> Timeline:
        """Return what the first replica of a design does over time, step by step.

        Args:
            design: a batch of one row.

        Raises:
            UserError: a design that cannot run.
        """
        ((_, drafter),) = self.engines.groups(design)
        engine = self.engines.engine(design, drafter)
        found = self._evaluate(engine)
        if found.reason(0):
            raise UserError(f"this design cannot run: {found.reason(0)}")
        runs = self._runs(engine, 0, _VALUE, *self._requests(engine, 0), with_timeline=True)
        return timeline(runs[0], int(engine.room.n_blocks[0]))

    def room(self, batch: DesignBatch) -> Capacity:
        """Return what lies in the memory of each design's fullest device; designs with one drafter."""
        ((_, drafter),) = self.engines.groups(batch)
        return self.engines.engine(batch, drafter).room

    # ------------------------------------------------------------------ runs

    def _requests(self, engine: EngineBatch, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        self, engine: EngineBatch, row: int, end: int, arrival: np.ndarray, prompt: np.ndarray, output: np.ndarray,
        *, with_timeline: bool = False,
    ) -> list[Run]:  # fmt: skip
        """Return the run of each replica that gets a request; replicas take them in turn."""
        extent, replicas = engine.extent, int(engine.extent.replicas[row])
        room = Limits(
            int(extent.places[row]), int(extent.positions[row]), int(engine.room.n_blocks[row]), BLOCK_TOKENS,
            bool(engine.cuts[row]), self.engines.maker.reserves,
        )  # fmt: skip
        table, kept, checked = engine.table(row, end), engine.kept(row, end), int(extent.guesses[row])
        return [
            simulate(
                arrival[i::replicas], prompt[i::replicas], output[i::replicas], room, table, kept, self.seed + i,
                checked=checked, encodes=self.engines.encodes, with_timeline=with_timeline,
            )
            for i in range(min(replicas, len(arrival)))
        ]  # fmt: skip

    def _most(self, engine: EngineBatch, row: int, end: int, prompt: np.ndarray, output: np.ndarray) -> float:
        """Return the requests per second that a design serves where some always wait."""
        at_once = min(engine.extent.places[row], engine.room.kv_bytes[row] / engine.room.request_bytes[row])
        n = int(max(WAVES * at_once, FEWEST) * engine.extent.replicas[row])
        runs = self._runs(engine, row, end, np.zeros(n), np.resize(prompt, n), np.resize(output, n))
        return n / span_s(runs)

    def _evaluate(self, engine: EngineBatch) -> MetricBatch:
        n = len(engine.batch)
        limits = [limit for limit in engine.limits if (limit.excess_ratio > 0).any()]
        ok = sum((limit.excess_ratio for limit in limits), np.zeros(n)) == 0
        ends = [{name: np.full(n, np.nan) for name in self.metrics} for _ in range(3)]
        spent = [Spent.none(n) for _ in ends]
        rate, most = self.problem.scenario.requests_per_s, np.full(n, np.inf)
        for row in np.flatnonzero(ok).tolist():
            arrival, prompt, output = self._requests(engine, row)
            is_backlog = arrival[-1] == arrival[0]
            if not is_backlog:
                most[row] = self._most(engine, row, _VALUE, prompt, output)
                if rate > most[row]:
                    continue
            for end, (values, paid) in enumerate(zip(ends, spent, strict=True)):
                runs = self._runs(engine, row, end, arrival, prompt, output)
                for name, value in self._figures(engine, row, end, runs).items():
                    values[name][row] = value
                paid.add(row, runs)
                served = values["throughput_requests_per_s"][row]
                capable = served if is_backlog else self._most(engine, row, end, prompt, output)
                asked = served if is_backlog else rate or len(arrival) / (arrival[-1] - arrival[0])
                values["capacity_requests_per_s"][row], values["load_ratio"][row] = capable, asked / capable
        for end, (values, paid) in enumerate(zip(ends, spent, strict=True)):
            values |= paid.figures(engine, self.problem.hardware, end, values["kv_peak_ratio"], self.metrics)
        name = self.problem.hardware.name
        text = f"requests arrive at {{needed}}, {name} serves {{available}}: the queue grows without end"
        limits.append(Limit("requests_per_s", np.where(most < np.inf, rate, np.nan), most, text))
        return answer(ends, n, limits, "simulated")

    def _figures(self, engine: EngineBatch, row: int, end: int, runs: Sequence[Run]) -> dict[str, float]:
        """Return the figures of a design's runs, what it costs not yet among them."""
        context = float(engine.extent.longest[row])
        token_s, _ = step_cost(engine.table(row, end), 1, context, 0, 0.0, 1, 0, 0)
        return figures(runs, int(engine.room.n_blocks[row]), token_s, self.problem.scenario)
