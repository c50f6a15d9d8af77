"""The serving cost model "policy": whole requests under drafters, cascades and chunks, in closed form.

It joins what the groups ``hardware`` and ``quality`` know of single models into what a request sees, because neither
can: how often a query is passed on depends on how good the compressed stage is, how many guesses are kept on how far
both models have drifted, and what all of that costs on the hardware. So one model of the group ``serving`` gives
latency, energy, memory and quality of the mixture; the two groups below keep the figures of single passes of single
models.

Per design and answering role: times by :mod:`costmodels.decoding`, losses by the role's quality profile or the prior
(:mod:`costmodels.answering`); over roles: :mod:`costmodels.cascade`. Memory is that of all roles in use (weights and
caches of the batch) and the largest activations of any; the batch runs together in every stage (a later stage waits
until it has one). Energy and cost are of one query. The accuracy is relative to the uncompressed target alone, from the
table where there is one, and may exceed 1; with a cascade ``quality_loss`` is the loss that this accuracy stands for,
without one the target's own.

Without a drafter, a cascade or a chunk every figure is that of "analytical" and "prior", but for the integral over the
growing context (:mod:`costmodels.steps`).

Left out: queues and arrivals (batches start together), stages on devices of their own, the rest of a guess's life in
    the cache; solutions of one query side by side (they are written one after another).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from costmodels.answering import Answered, Answering
from costmodels.cascade import Routes, mean_over_routes, quantiles
from costmodels.decoding import Answer, Decoding, Loss
from costmodels.prior import ACCURACY_PER_NAT
from costmodels.steps import Steps
from dse.canonical import content_hash
from dse.capabilities import Judgement
from dse.cascades import CascadeTable
from dse.designs import DesignBatch
from dse.hardware import Device
from dse.metrics import Limit, MetricBatch, ToldLimit
from dse.policy import Policy, answering
from dse.problem import TARGET, Problem
from dse.protocols import Breakdown

VERSION: Final = "1"
CHUNK_ROWS: Final = 64
TIMES: Final = ("latency_s", "latency_p50_s", "latency_p95_s", "latency_p99_s", "ttft_s", "tpot_s")
_LEVELS: Final = (0.5, 0.95, 0.99)


class PolicyModel:
    """The serving cost model "policy"."""

    name = "policy"
    group = "serving"
    fidelity = "analytical"
    version = VERSION
    laws: frozenset[str] = frozenset({"fewer_bits_never_gain_quality"})

    def prepare(self, problem: Problem) -> PolicyEvaluator:
        """Return the evaluator of a problem; without a policy its designs have no drafter and one stage."""
        return PolicyEvaluator(problem)

    def judge(self, table: CascadeTable, costs: Mapping[str, float], test_cost_ratio: float, seed: int) -> Judgement:
        """Return what a logged cascade is good for; see :mod:`costmodels.judging`."""
        from costmodels.judging import judge

        return judge(table, costs, test_cost_ratio, seed)


@dataclass(frozen=True)
class _Stage:
    """What a stage takes for one query of the scenario's length, arrays (n,); seconds and joules (3, n)."""

    first_s: np.ndarray
    first_j: np.ndarray
    token_s: np.ndarray
    token_j: np.ndarray
    answer: Answer


@dataclass(frozen=True)
class StageFigures:
    """What one stage of a cascade does for n designs, means over the queries that it is asked, arrays (n,).

    Attributes:
        role: who it is.
        asked_ratio, answered_ratio, right_ratio: share of all queries that it is asked, answers, answers rightly.
        answer_s, answer_j: of one answer by it, all its solutions, self-tests not included; joules NaN where the
            hardware has none.
        self_tests_s, self_tests_j: of all self-tests of one answer.
        n_draft_tokens: its look-ahead.
    """

    role: str
    asked_ratio: np.ndarray
    answered_ratio: np.ndarray
    right_ratio: np.ndarray
    answer_s: np.ndarray
    answer_j: np.ndarray
    self_tests_s: np.ndarray
    self_tests_j: np.ndarray
    n_draft_tokens: np.ndarray


@dataclass(frozen=True)
class _Cascaded:
    """A cascade of n designs: its stages, and what they answer."""

    stages: Sequence[_Stage]
    answered: Answered


class PolicyEvaluator:
    """The policy model for one problem.

    Args:
        problem: the problem.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.policy = problem, problem.policy or Policy()
        self._roles = answering(list(problem.models)) if problem.policy else [TARGET]
        used = list(problem.models) if problem.policy else [TARGET]
        self._steps = {role: Steps(problem, role) for role in used}
        self._answering = Answering(problem, used)
        output = problem.scenario.output_tokens
        self._decoding = {r: Decoding(r, self._steps, self.policy, output) for r in self._roles}
        base: Any = self._steps[TARGET].evaluator
        self.fingerprint = content_hash(
            {
                "model": VERSION,
                "hardware": base.fingerprint,
                "quality": self._answering.fingerprint,
                "problem": problem.content_hash,
            }
        )
        given = set(base.metrics)
        self.metrics: Sequence[str] = (
            *TIMES, "throughput_tokens_per_s", "memory_bytes", "weight_bytes", "kv_bytes", "escalation_ratio",
            "accuracy_ratio", "quality_loss", "n_draft_tokens", "n_tokens_per_step",
            *(name for name in ("energy_j", "area_mm2", "cost_usd") if name in given),
        )  # fmt: skip

    def evaluate(self, batch: DesignBatch) -> MetricBatch:
        """Return the metrics of each design, row by row."""
        parts = []
        for rows, stages in self.cascades(batch):
            for start in range(0, len(rows), CHUNK_ROWS):
                some = rows[start : start + CHUNK_ROWS]
                parts.append((some, self._evaluate(batch.take(some), stages)[0]))
        return MetricBatch.scatter(parts, len(batch)).masked()

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return the mean latency by role and what it does."""
        sums: dict[tuple[str, str, str, str], np.ndarray] = {}
        for rows, stages in self.cascades(batch):
            _, parts = self._evaluate(batch.take(rows), stages)
            for label, part in parts.items():
                sums.setdefault(label, np.zeros(len(batch)))[rows] += part
        return [Breakdown("latency_s", tuple(sums), np.stack(list(sums.values()), axis=1))]

    @staticmethod
    def cascades(batch: DesignBatch) -> list[tuple[np.ndarray, list[str]]]:
        """Return rows by cascade, with its stages."""
        if "cascade" not in batch:
            return [(np.arange(len(batch)), [TARGET])]
        values = np.broadcast_to(batch["cascade"], len(batch))
        return [(np.flatnonzero(values == v), v.split("+")) for v in dict.fromkeys(values.tolist())]

    # ------------------------------------------------------------------ one cascade

    def stage_figures(self, batch: DesignBatch) -> list[StageFigures]:
        """Return what each stage does, in the order in which they are asked.

        Raises:
            ValueError: designs of different cascades, which have different stages.
        """
        ((_, roles),) = self.cascades(batch)
        found, figures, n = self._cascaded(batch, roles), [], len(batch)
        said = found.answered
        routes, joules = said.routes[1], np.nan if "energy_j" not in self.metrics else 1.0
        lengths = np.broadcast_to(said.lengths, (n, *said.lengths.shape[1:]))
        for k, (role, stage) in enumerate(zip(roles, found.stages, strict=True)):
            asked = routes.reach[:, :, k]
            further = (asked * np.maximum(lengths[:, :, k] - 1, 0.0)).sum(1) / np.maximum(asked.sum(1), 1e-300)
            tokens = said.tests[:, k] * self.policy.test_tokens
            reach, stop, right = (part[:, :, k].mean(axis=1) for part in (routes.reach, routes.stop, routes.right))
            figures.append(
                StageFigures(
                    role, reach, stop, right, stage.first_s[1] + further * stage.token_s[1],
                    (stage.first_j[1] + further * stage.token_j[1]) * joules, tokens * stage.token_s[1],
                    tokens * stage.token_j[1] * joules, stage.answer.n_guesses,
                )
            )  # fmt: skip
        return figures

    def routing(self, batch: DesignBatch) -> tuple[list[str], Answered]:
        """Return the stages of designs of one cascade, and what they answer.

        Raises:
            ValueError: designs of different cascades.
        """
        ((_, roles),) = self.cascades(batch)
        return roles, self._answering.answer(batch, roles)

    def _cascaded(self, batch: DesignBatch, roles: list[str]) -> _Cascaded:
        requests = np.broadcast_to(batch["batch"], len(batch)).astype(np.float64)
        answered = self._answering.answer(batch, roles)
        losses: dict[str, Loss] = {
            role: (q.values["quality_loss"], q.intervals["quality_loss"][1]) for role, q in answered.quality.items()
        }
        return _Cascaded([self._stage(role, batch, losses, requests) for role in roles], answered)

    def _evaluate(self, batch: DesignBatch, roles: list[str]) -> tuple[MetricBatch, dict[Any, np.ndarray]]:
        n, requests = len(batch), np.broadcast_to(batch["batch"], len(batch)).astype(np.float64)
        found = self._cascaded(batch, roles)
        stages, said = found.stages, found.answered
        quality, tests, lengths, routes = said.quality, said.tests, said.lengths, said.routes
        limits: list[Limit | ToldLimit] = [limit for s in stages for limit in s.answer.limits]
        hardware, held = self._hardware(batch, roles, stages)
        limits += [*said.limits, *(limit for one in hardware for limit in one.limits)]
        times = [self._times(stages, lengths, tests, routes, end) for end in range(3)]
        values = times[1][1] | self._answers(routes[1], quality[TARGET].values["quality_loss"], roles)
        ends = [
            self._answers(r, quality[TARGET].intervals["quality_loss"][e], roles)
            for e, r in ((0, routes[2]), (1, routes[0]))
        ]
        bands = {
            name: (np.min([t[name] for t in times[0]], axis=0), np.max([t[name] for t in times[2]], axis=0))
            for name in times[1][1]
        } | {
            name: (np.minimum(ends[0][name], ends[1][name]), np.maximum(ends[0][name], ends[1][name]))
            for name in ends[0]
        }
        values |= held
        values["n_draft_tokens"], values["n_tokens_per_step"] = stages[-1].answer.n_guesses, stages[-1].answer.n_tokens
        if "area_mm2" in self.metrics:
            values["area_mm2"], bands["area_mm2"] = hardware[0].values["area_mm2"], hardware[0].intervals["area_mm2"]
        if "energy_j" not in self.metrics:
            del values["energy_j"], bands["energy_j"]
        device = self.problem.hardware
        if "cost_usd" in self.metrics and isinstance(device, Device) and device.price_usd_per_hour:
            busy = np.broadcast_to(batch["n_devices"], n) / 3600 / requests
            low, high = (price * busy for price in device.price_usd_per_hour)
            values["cost_usd"] = low * values["latency_s"]
            bands["cost_usd"] = (low * bands["latency_s"][0], high * bands["latency_s"][1])
        output = mean_over_routes(_stops(routes[1]), said.lengths_of_one)
        values["throughput_tokens_per_s"] = requests * output / values["latency_s"]
        bands["throughput_tokens_per_s"] = tuple(requests * output / bands["latency_s"][e] for e in (1, 0))
        limits.append(self._memory(held["memory_bytes"]))
        bands = {m: (np.minimum(a, values[m]), np.maximum(b, values[m])) for m, (a, b) in bands.items()}
        broken = [limit for limit in limits if (limit.excess_ratio > 0).any()]
        basis = dict.fromkeys(values, "analytical") | dict.fromkeys(ends[0], self._answering.basis(self._roles))
        result = MetricBatch(values, n, bands, basis, broken).masked()
        return result, self._parts(roles, stages, lengths, tests, routes[1])

    def _stage(self, role: str, batch: DesignBatch, losses: Mapping[str, Loss], requests: np.ndarray) -> _Stage:
        answer = self._decoding[role].answer(batch, losses)
        first, further = answer.encode.plus(answer.prefill), max(self.problem.scenario.output_tokens - 1, 1)
        return _Stage(
            first.seconds, first.joules / requests, answer.decode.seconds / further,
            answer.decode.joules / further / requests, answer,
        )  # fmt: skip

    def _times(
        self, stages: Sequence[_Stage], lengths: np.ndarray, tests: np.ndarray, routes: Sequence[Routes], end: int
    ) -> list[dict[str, np.ndarray]]:
        """Return times and energy with the seconds of one end, for the routes of each end."""
        seconds, joules, first, token = [], [], [], []
        for k, stage in enumerate(stages):
            further = np.maximum(lengths[:, :, k] - 1, 0.0) + tests[:, k, None] * self.policy.test_tokens
            seconds.append(stage.first_s[end][:, None] + further * stage.token_s[end][:, None])
            joules.append(stage.first_j[end][:, None] + further * stage.token_j[end][:, None])
            first.append(stage.first_s[end][:, None])
            token.append(stage.token_s[end][:, None])
        cost, energy = (np.stack(np.broadcast_arrays(*one), axis=2) for one in (seconds, joules))
        firsts, per_token = (np.stack(one, axis=2) for one in (first, token))
        found = []
        for r in routes:
            points = quantiles(r, cost, _LEVELS)
            before = np.cumsum(cost, axis=2) - cost
            found.append(
                {
                    "latency_s": mean_over_routes(r, cost),
                    **dict(zip(("latency_p50_s", "latency_p95_s", "latency_p99_s"), points, strict=True)),
                    "ttft_s": mean_over_routes(_stops(r), before + firsts),
                    "tpot_s": mean_over_routes(_stops(r), per_token),
                    "energy_j": mean_over_routes(r, energy),
                }
            )
        return found

    def _answers(self, routes: Routes, loss: np.ndarray, roles: Sequence[str]) -> dict[str, np.ndarray]:
        """Return what the answers are worth: relative to the uncompressed target's."""
        table = self._answering.table
        whole = 1.0 if table is None else float(table.correct[:, table.stages.index(TARGET)].mean())
        ratio = routes.accuracy_ratio / max(whole, 1e-12)
        lost = loss if list(roles) == [TARGET] else np.maximum(1.0 - ratio, 0.0) / ACCURACY_PER_NAT
        found = {"accuracy_ratio": ratio, "quality_loss": np.array(lost)}
        return found | {"escalation_ratio": np.maximum(routes.escalation_ratio, 0.0)}

    def _hardware(
        self, batch: DesignBatch, roles: Sequence[str], stages: Sequence[_Stage]
    ) -> tuple[list[MetricBatch], dict[str, np.ndarray]]:
        """Return what the hardware group says of every role in use, and the memory of all of them."""
        n = len(batch)
        used = {role: np.ones(n, dtype=bool) for role in roles}
        for stage in stages:
            for role, rows in stage.answer.drafters.items():
                used[role] = used.get(role, np.zeros(n, dtype=bool)) | rows
        found, sums = [], {"weight_bytes": np.zeros(n), "kv_bytes": np.zeros(n)}
        live = np.zeros(n)
        for role, mask in used.items():
            rows = np.flatnonzero(mask)
            if not len(rows):
                continue
            evaluator: Any = self._steps[role].evaluator
            one: MetricBatch = evaluator.evaluate(batch if len(rows) == n else batch.take(rows))
            one = MetricBatch.scatter([(rows, one)], n)
            laws = [replace(x, text=f"{role}: {x.text}") if isinstance(x, Limit) else x for x in one.limits]
            found.append(replace(one, limits=laws))
            for name in sums:
                sums[name][rows] += one.values[name][rows]
            live[rows] = np.maximum(live[rows], one.values["activation_bytes"][rows])
        for stage in stages:
            for part in (stage.answer.encode, stage.answer.prefill, stage.answer.decode):
                live = np.maximum(live, part.live_bytes)
        return found, sums | {"memory_bytes": sums["weight_bytes"] + sums["kv_bytes"] + live}

    def _memory(self, needed: np.ndarray) -> Limit:
        text = f"the models in use need {{needed}} of memory, {self.problem.hardware.name} has {{available}}"
        return Limit("memory_bytes", needed, np.full(len(needed), float(self.problem.hardware.memory_bytes)), text)

    def _parts(
        self, roles: Sequence[str], stages: Sequence[_Stage], lengths: np.ndarray, tests: np.ndarray, routes: Routes
    ) -> dict[Any, np.ndarray]:
        """Return the mean latency by role and activity."""
        found: dict[Any, np.ndarray] = {}
        for k, (role, stage) in enumerate(zip(roles, stages, strict=True)):
            asked = routes.reach[:, :, k].mean(axis=1)
            further = (routes.reach[:, :, k] * np.maximum(lengths[:, :, k] - 1, 0.0)).mean(axis=1)
            whole = stage.answer.decode.seconds[1]
            drafting = np.where(whole > 0, stage.answer.draft_s / np.where(whole > 0, whole, 1.0), 0.0)
            tested = asked * tests[:, k] * self.policy.test_tokens * stage.token_s[1]
            parts = {
                ("encode", "encode"): asked * stage.answer.encode.seconds[1],
                ("prefill", "prefill"): asked * stage.answer.prefill.seconds[1],
                ("decode", "draft"): further * stage.token_s[1] * drafting,
                ("decode", "target"): further * stage.token_s[1] * (1 - drafting),
                ("decode", "self-test"): tested,
            }
            found |= {(role, phase, kind, "time"): part for (phase, kind), part in parts.items()}
        return found


def _stops(routes: Routes) -> Routes:
    """Return routes whose weights are those of answering, for means over answers."""
    return replace(routes, reach=routes.stop)
