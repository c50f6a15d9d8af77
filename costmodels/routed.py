"""Cascades in the serving simulation: a request that a stage does not keep goes to the next one, and queues there.

Each stage is an engine (:mod:`costmodels.engines`) with its own queue, places and cache. A request brings a query of
the cascade's table; whether a stage keeps it is drawn with the chance that :mod:`costmodels.cascade` gives that query
and stage (0 or 1 where nothing is compressed), with numbers that depend on the seed alone. Queries come in random
order, all of them before one comes again. Before the last stage a request writes its self-tests after its answer; they
are tokens like others, and it is passed on when they are written.

Stages share the design's devices (they take turns, step by step; weights of all of them lie there, and the rest is
shared out so that each caches equally many requests), or have as many devices each ("serving:0,apart"). A request's
time to first token is that of the answer that is kept; its latency is that of all stages it was at: percentiles are
those of the mixture. Waiting is that of all stages. ``accuracy_ratio`` and ``quality_loss`` are those of "policy",
``escalation_ratio`` is counted.

Solutions of a stage are written one after another, as one long answer that stays in the cache whole.

Left out: prefixes of a query that stages of one family could share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from costmodels.batching import Run, Stage, Sums, route
from costmodels.batchloop import Limits
from costmodels.capacity import BLOCK_TOKENS, Capacity, Engine
from costmodels.engines import CHUNK_ROWS, EngineBatch, Engines
from costmodels.policy import PolicyEvaluator
from costmodels.served import PREEMPTION, Spent, answer, figures, latency_parts, metrics_of, span_s
from costmodels.steptable import step_cost
from dse.designs import DesignBatch
from dse.metrics import Limit, MetricBatch, ToldLimit
from dse.policy import Policy, answering
from dse.problem import Problem
from dse.protocols import Breakdown

VERSION: Final = "1"
WAVES: Final = 8
FEWEST: Final = 64
_VALUE: Final = 1
_ANSWERS: Final = ("accuracy_ratio", "quality_loss")


class RoutedEvaluator:
    """The serving simulation of cascades for one problem.

    Args:
        problem: the problem.
        seed: of arrivals, of queries, of routes, of guesses kept.
        maker: how engines treat memory.
        apart: whether stages have devices of their own.
    """

    def __init__(self, problem: Problem, seed: int, maker: Engine, apart: bool) -> None:
        self.problem, self.seed, self._apart = problem, seed, apart
        self._policy = problem.policy or Policy()
        self._solved = PolicyEvaluator(problem)
        table = None if self._policy.answers is None else self._policy.answers.table()
        output = problem.scenario.output_tokens
        further = 0
        if table is not None:
            each = output if table.tokens is None else max(int(table.tokens.max()), output)
            further = table.n_tests * self._policy.test_tokens + each * table.n_solutions - output
        self._engines = {role: Engines(problem, maker, role, further) for role in answering(list(problem.models))}
        any_engines = next(iter(self._engines.values()))
        self.fingerprint = any_engines.fingerprint(VERSION, "routed", seed, apart, self._solved.fingerprint)
        self.metrics: Sequence[str] = (*metrics_of(any_engines.given), PREEMPTION, "escalation_ratio", *_ANSWERS)

    def evaluate(self, batch: DesignBatch) -> MetricBatch:
        """Return the metrics of each design, row by row."""
        parts = []
        for rows, roles in self._solved.cascades(batch):
            of_drafters: dict[tuple[str, ...], list[int]] = {}
            names = {role: batch.of_role("draft", role) if "draft" in batch else None for role in roles}
            for row in rows.tolist():
                key = tuple("none" if values is None else str(values[row]) for values in names.values())
                of_drafters.setdefault(key, []).append(row)
            for drafters, found in of_drafters.items():
                for start in range(0, len(found), CHUNK_ROWS):
                    some = np.array(found[start : start + CHUNK_ROWS])
                    parts.append((some, self._evaluate(batch.take(some), roles, drafters)))
        return MetricBatch.scatter(parts, len(batch)).masked()

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return the mean latency as waiting, what comes before the first token of the answer kept, and its tokens."""
        return latency_parts(self.evaluate(batch).values)

    # ------------------------------------------------------------------ engines

    def _built(
        self, batch: DesignBatch, roles: Sequence[str], drafters: Sequence[str]
    ) -> tuple[list[EngineBatch], Capacity, list[Limit | ToldLimit]]:
        """Return the stages' engines, what lies in memory, and what designs may break."""
        engines = [self._engines[role].engine(batch, name) for role, name in zip(roles, drafters, strict=True)]
        limits = [limit for engine in engines for limit in engine.limits]
        rooms = [engine.room for engine in engines]
        if self._apart or len(rooms) == 1:
            most = {
                name: np.max([getattr(room, name) for room in rooms], axis=0)
                for name in ("weight_bytes", "activation_bytes", "kv_bytes", "request_bytes", "reserved_bytes")
            }
            blocks = np.sum([room.n_blocks for room in rooms], axis=0)
            whole = replace(rooms[0], **most, block_bytes=most["kv_bytes"] / np.maximum(blocks, 1.0))
            return engines, whole, limits
        weights = np.sum([room.weight_bytes for room in rooms], axis=0)
        live = np.max([room.activation_bytes for room in rooms], axis=0)
        request = np.sum([room.request_bytes for room in rooms], axis=0)
        maker = self._engines[roles[0]].maker
        first = rooms[0]
        other = weights + live + first.context_bytes
        used = maker.used_ratio
        left = used * (first.reported_bytes - other) if maker.is_of_free else used * first.reported_bytes - other
        text = (
            f"weights of {'+'.join(roles)}, a step's activations and the caches of one request need {{needed}}, "
            f"{self.problem.hardware.name} has {{available}} to use"
        )
        reserved = first.reported_bytes - other - left
        limits.append(Limit("memory_bytes", other + request, first.reported_bytes - reserved, text))
        shared = np.maximum(left, 0.0)
        engines = [
            replace(engine, room=replace(engine.room, kv_bytes=shared * engine.room.request_bytes / request))
            for engine in engines
        ]
        blocks = np.sum([engine.room.n_blocks for engine in engines], axis=0)
        whole = replace(
            first, weight_bytes=weights, activation_bytes=live, kv_bytes=shared, request_bytes=request,
            reserved_bytes=reserved, block_bytes=shared / np.maximum(blocks, 1.0) * (1 - 1e-12),
        )  # fmt: skip
        return engines, whole, limits

    # ------------------------------------------------------------------ runs

    def _evaluate(self, batch: DesignBatch, roles: list[str], drafters: tuple[str, ...]) -> MetricBatch:
        n, rate = len(batch), self.problem.scenario.requests_per_s
        engines, whole, limits = self._built(batch, roles, drafters)
        said = self._solved.routing(batch)[1]
        routes = said.routes[1]
        limits += said.limits
        limits = [limit for limit in limits if (limit.excess_ratio > 0).any()]
        ok = sum((limit.excess_ratio for limit in limits), np.zeros(n)) == 0
        names = [name for name in self.metrics if name not in _ANSWERS]
        ends = [{name: np.full(n, np.nan) for name in names} for _ in range(3)]
        spent, most = [Spent.none(n) for _ in ends], np.full(n, np.inf)
        reach = np.maximum(routes.reach, 1e-300)
        keep = np.where(routes.reach > 0, routes.stop / reach, 1.0)
        for row in np.flatnonzero(ok).tolist():
            written = [
                np.broadcast_to(x[min(row, len(x) - 1)], keep[row].shape) for x in (said.lengths, said.lengths_of_one)
            ]
            checks = said.tests[row] * self._policy.test_tokens
            one = _Design(self, engines, row, keep[row], written, said.solutions[row], checks)
            arrival = self._arrivals()
            is_backlog = arrival[-1] == arrival[0]
            if not is_backlog:
                most[row] = one.capacity(_VALUE)
                if rate > most[row]:
                    continue
            for end, (values, paid) in enumerate(zip(ends, spent, strict=True)):
                runs, found = one.run(arrival, end)
                for name, value in found.items():
                    values[name][row] = value
                paid.add(row, runs)
                paid.tokens[row] = found["throughput_tokens_per_s"] * span_s(runs)
                served = found["throughput_requests_per_s"]
                capable = served if is_backlog else one.capacity(end)
                asked = served if is_backlog else rate or len(arrival) / (arrival[-1] - arrival[0])
                values["capacity_requests_per_s"][row], values["load_ratio"][row] = capable, asked / capable
        copies = len(roles) if self._apart else 1
        paid_for = replace(
            engines[0], room=whole, devices=engines[0].devices * copies,
            extent=replace(engines[0].extent, replicas=engines[0].extent.replicas * copies),
        )  # fmt: skip
        for end, (values, paid) in enumerate(zip(ends, spent, strict=True)):
            values |= paid.figures(paid_for, self.problem.hardware, end, values["kv_peak_ratio"], self.metrics)
        name = self.problem.hardware.name
        text = f"requests arrive at {{needed}}, {name} serves {{available}}: the queue grows without end"
        limits.append(Limit("requests_per_s", np.where(most < np.inf, rate, np.nan), most, text))
        simulated = answer(ends, n, limits, "simulated")
        solved = self._solved.evaluate(batch)
        return replace(
            simulated,
            values={**simulated.values, **{name: solved.values[name] for name in _ANSWERS}},
            intervals={**simulated.intervals, **{name: solved.intervals[name] for name in _ANSWERS}},
            basis={**simulated.basis, **{name: solved.basis[name] for name in _ANSWERS}},
        ).masked()

    def _arrivals(self) -> np.ndarray:
        scenario = self.problem.scenario
        if scenario.trace:
            return np.array([a.arrival_s for a in scenario.arrivals])
        gaps = np.random.default_rng([self.seed, 1]).exponential(1.0, scenario.n_requests)
        return np.cumsum(gaps) / scenario.requests_per_s if scenario.requests_per_s else np.zeros(scenario.n_requests)

    def lengths(self, engine: EngineBatch, row: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return prompts and outputs of n requests of a stage, as the scenario or its trace has them."""
        scenario, prompt = self.problem.scenario, int(engine.prompt[row])
        if not scenario.trace:
            return np.full(n, prompt), np.full(n, scenario.output_tokens)
        text, output = (
            np.resize([getattr(a, x) for a in scenario.arrivals], n) for x in ("prompt_tokens", "output_tokens")
        )
        return np.maximum(text + prompt - scenario.prompt_tokens, 1), output

    @property
    def apart(self) -> bool:
        """Whether stages have devices of their own."""
        return self._apart

    @property
    def answers_vary(self) -> bool:
        """Whether the cascade's table says how long answers are."""
        table = None if self._policy.answers is None else self._policy.answers.table()
        return table is not None and table.tokens is not None

    def engines_of(self) -> Engines:
        """Return the engines of any stage."""
        return next(iter(self._engines.values()))


class _Design:
    """One design's cascade, ready to be run.

    Args:
        of: the evaluator.
        engines: of the stages.
        row: of the design.
        keep: chance that a stage keeps a query, shape (q, k).
        written: tokens of all solutions of a stage, and of the first one, shapes (q, k).
        solutions: that a stage writes, shape (k,).
        checks: tokens of self-tests, shape (k,).
    """

    def __init__(
        self, of: RoutedEvaluator, engines: Sequence[EngineBatch], row: int, keep: np.ndarray,
        written: Sequence[np.ndarray], solutions: np.ndarray, checks: np.ndarray,
    ) -> None:  # fmt: skip
        self._of, self._engines, self._row = of, engines, row
        self._keep, self._written, self._solutions, self._checks = keep, written, solutions, checks

    def run(self, arrival: np.ndarray, end: int) -> tuple[list[Run], dict[str, float]]:
        """Return runs that stand for whole requests, one per replica, and their figures."""
        row, engines, of = self._row, self._engines, self._of
        n, (q, k) = len(arrival), self._keep.shape
        rng = np.random.default_rng([of.seed, 2])
        query = np.concatenate([rng.permutation(q) for _ in range(-(-n // q))])[:n]
        kept = rng.random((n, k)) < self._keep[query]
        kept[:, -1] = True
        last = kept.argmax(axis=1)
        stages, answers = [], np.zeros((n, k), dtype=np.int64)  # answers: tokens of the solution that counts
        for i, engine in enumerate(engines):
            prompt, output = of.lengths(engine, row, n)
            every = output * int(self._solutions[i])
            answers[:, i] = output
            if of.answers_vary:
                every, answers[:, i] = (np.maximum(np.round(x[query, i]), 1).astype(np.int64) for x in self._written)
            limits = Limits(
                int(engine.extent.places[row]), int(engine.extent.positions[row]), int(engine.room.n_blocks[row]),
                BLOCK_TOKENS, bool(engine.cuts[row]), of.engines_of().maker.reserves,
            )  # fmt: skip
            stages.append(
                Stage(
                    prompt, every + int(self._checks[i]), limits, engine.table(row, end), engine.kept(row, end),
                    int(engine.extent.guesses[row]), engine.encodes,
                )
            )  # fmt: skip
        replicas = int(engines[0].extent.replicas[row])
        runs = []
        for i in range(min(replicas, n)):
            mine = slice(i, None, replicas)
            part = [replace(s, prompt=s.prompt[mine], output=s.output[mine]) for s in stages]
            runs.append(self._whole(route(arrival[mine], part, last[mine], of.seed + i, apart=of.apart), last[mine]))
        context = float(engines[-1].extent.longest[row])
        token_s, _ = step_cost(engines[-1].table(row, end), 1, context, 0, 0.0, 1, 0, 0)
        found = figures(runs, 1, token_s, of.problem.scenario)
        found["throughput_tokens_per_s"] = float(answers[np.arange(n), last].sum() / span_s(runs))
        found["escalation_ratio"] = float((last > 0).mean())
        return runs, found

    def capacity(self, end: int) -> float:
        """Return the requests per second that are served where some always wait."""
        row = self._row
        at_once = max(
            min(e.extent.places[row], e.room.kv_bytes[row] / e.room.request_bytes[row]) for e in self._engines
        )
        n = int(max(WAVES * at_once, FEWEST) * self._engines[0].extent.replicas[row])
        runs, _ = self.run(np.zeros(n), end)
        return n / span_s(runs)

    def _whole(self, parts: Sequence[Run], last: np.ndarray) -> Run:
        """Return the run of whole requests: from the first stage's arrival to the end of the answer kept."""
        at, row = np.arange(len(last)), self._row
        first, end, output = (
            np.stack([getattr(p, x) for p in parts])[last, at] for x in ("first_s", "end_s", "output")
        )
        waited = np.nansum([p.start_s - p.arrival_s for p in parts], axis=0)
        blocks = [engine.room.n_blocks[row] for engine in self._engines]
        bytes_each = [b * engine.room.block_bytes[row] for b, engine in zip(blocks, self._engines, strict=True)]
        share = [b / sum(bytes_each) / count for b, count in zip(bytes_each, blocks, strict=True)]
        total = {name: sum(getattr(p.sums, name) for p in parts) for name in Sums._fields if name != "end_s"}
        total["blocks_s"] = sum(w * p.sums.blocks_s for w, p in zip(share, parts, strict=True))
        total["peak_blocks"] = sum(w * p.sums.peak_blocks for w, p in zip(share, parts, strict=True))
        sums = Sums(end_s=float(end.max()), **total)
        arrival = parts[0].arrival_s
        return Run(arrival, arrival + waited, first, end, parts[0].prompt, output, sums, parts[0].timeline)
