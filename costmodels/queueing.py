"""The serving cost model "queueing": requests that arrive, wait and share steps, in closed form.

The same engines (:mod:`costmodels.engines`) and the same metrics as the simulation "serving", without its event loop:
the rung below it. What steps take that b requests share, and how prompts are read, is in :mod:`costmodels.stepmeans`;
chances of b and the wait for a place in :mod:`costmodels.waiting`. Places are ``batch``, or as many mean footprints as
the cache holds. With R(b) the time in the engine, averaged over what is found there,

    queue_s = W + rest of the running step,   ttft_s = queue_s + steps that read,   latency_s = queue_s + E[R(b)]

At batch 1 all of that is M/G/1, exact in its means. Percentiles are those of a grid of points: waits, luck, and kinds
of requests (of a trace, at equal steps).

Where all requests are there from the start, they run in waves of B that take R(B) each, the last one R of what is left;
capacity is the rate of such waves, as the simulation measures it. A trace beyond capacity is a fluid: request i of n
waits i (1 / mu - 1 / lambda). Poisson arrivals beyond capacity are infeasible by so much.

Left out, and simulated by "serving": preemption (places hold the mean footprint, not the last), the order of arrivals
in a trace (its rate, the spread of its gaps and its mix of lengths are kept). Intervals are those of passes at their
low and high ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from costmodels.capacity import BLOCK_TOKENS, ENGINES, Engine
from costmodels.engines import EngineBatch, Engines
from costmodels.served import LEVELS, EngineEvaluator, Spent, answer, metrics_of
from costmodels.speculation import moments, n_steps
from costmodels.stepmeans import N_LUCK, Kinds, Reading, StepMeans, reading, step_means
from costmodels.waiting import LEVELS as POINTS
from costmodels.waiting import WEIGHTS, Line, line, quantiles, total
from dse.errors import UserError
from dse.metrics import Limit, MetricBatch
from dse.policy import Policy, is_stage
from dse.problem import Problem

VERSION: Final = "1"
N_KINDS: Final = 12


class Queueing:
    """The serving cost model "queueing".

    Args:
        options: the engine, "vllm" by default, or "trtllm".

    Raises:
        UserError: another option.
    """

    group = "serving"
    fidelity = "analytical"
    version = VERSION
    laws: frozenset[str] = frozenset({"breakdown_adds_up"})

    def __init__(self, options: str = "") -> None:
        if options and options not in ENGINES:
            raise UserError(
                f"cost model 'queueing': {options!r} is no engine ({', '.join(ENGINES)}); it draws nothing, so no seed",
                "write queueing, or queueing:trtllm",
            )
        self.engine = ENGINES[options or "vllm"]
        self.name = f"queueing:{options}" if options else "queueing"

    def prepare(self, problem: Problem) -> QueueingEvaluator:
        """Return the evaluator of a problem.

        Raises:
            UserError: logged answers, with whose stages and solutions this model does not queue.
        """
        answers = (problem.policy or Policy()).answers
        stages = [r for r in problem.models if is_stage(r)] if answers is None else list(answers.stages)
        if stages:
            raise UserError(
                f"cost model 'queueing' serves one model, one answer a request; there are those of {', '.join(stages)}",
                "judge cascades with 'policy', below 'serving', which routes requests one by one",
            )
        return QueueingEvaluator(problem, self.engine)


class QueueingEvaluator(EngineEvaluator):
    """The closed form for one problem.

    Args:
        problem: the problem.
        engine: what serves.
    """

    def __init__(self, problem: Problem, engine: Engine = ENGINES["vllm"]) -> None:
        self.problem, self.engines = problem, Engines(problem, engine)
        self.fingerprint = self.engines.fingerprint(VERSION, "queueing")
        self.metrics: Sequence[str] = metrics_of(self.engines.given)

    def _evaluate(self, engine: EngineBatch) -> MetricBatch:
        n = len(engine.batch)
        limits = [limit for limit in engine.limits if (limit.excess_ratio > 0).any()]
        known = sum((limit.excess_ratio for limit in limits), np.zeros(n)) == 0
        kinds = self._kinds(engine)
        ends = []
        for end in range(3):
            values, spent, most = self._end(engine, kinds, end)
            values |= spent.figures(engine, self.problem.hardware, end, values["kv_peak_ratio"], self.metrics)
            ends.append({name: np.where(known, values[name], np.nan) for name in self.metrics})
            if end == 1:
                capacity = np.where(known, most, np.inf)
        rate, name = self.problem.scenario.requests_per_s, self.problem.hardware.name
        text = f"requests arrive at {{needed}}, {name} serves {{available}}: the queue grows without end"
        limits.append(Limit("requests_per_s", np.where(known, rate, np.nan), capacity, text))
        return answer(ends, n, limits, "analytical")

    # ------------------------------------------------------------------ requests

    def _kinds(self, engine: EngineBatch) -> Kinds:
        """Return what requests are like; of a trace at equal steps, sorted by their output."""
        scenario, n, replicas = self.problem.scenario, len(engine.batch), engine.extent.replicas
        if not scenario.trace:
            one = engine.prompt[:, None]
            rate = np.full(n, scenario.requests_per_s or np.inf)
            # Replicas take requests in turn: gaps of each are sums of so many.
            return Kinds(
                one, np.full_like(one, scenario.output_tokens), rate / replicas, 1 / replicas, scenario.n_requests
            )
        arrival, text, output = (np.array(column, dtype=np.float64) for column in zip(*scenario.arrivals, strict=True))
        order = np.lexsort((text, output))
        k = min(len(order), N_KINDS)
        middle = order[((np.arange(k) + 0.5) / k * len(order)).astype(np.int64)]
        prompt = np.maximum(text[middle] + (engine.prompt - scenario.prompt_tokens)[:, None], 1.0)
        # Sums over kinds are those over the trace: what it asks in all is what capacity is about.
        prompt = np.maximum(prompt * (text.mean() / text[middle].mean()), 1.0)
        outputs = np.broadcast_to(
            np.maximum(output[middle] * (output.mean() / output[middle].mean()), 1.0), prompt.shape
        )
        span = arrival[-1] - arrival[0]
        gaps = np.diff(arrival)
        cv2 = float(gaps.var() / gaps.mean() ** 2) if span > 0 else 0.0
        rate = np.full(n, (len(arrival) - 1) / span if span > 0 else np.inf)
        return Kinds(prompt, outputs, rate / replicas, cv2 / replicas, len(arrival))

    # ------------------------------------------------------------------ steps

    def _luck(self, engine: EngineBatch, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and mean square of the tokens of a step, (n,)."""
        if engine.alive is None:
            one = np.ones(len(engine.batch))
            return one, one
        return moments((engine.alive.high, engine.alive.value, engine.alive.low)[end], engine.depth)

    def _places(self, engine: EngineBatch, kinds: Kinds) -> np.ndarray:
        """Return how many requests run at a time, whole numbers (n,)."""
        extra = engine.extent.guesses[:, None]
        written = kinds.output if self.engines.maker.reserves else kinds.output / 2
        blocks = np.ceil((kinds.prompt + written + extra) / BLOCK_TOKENS)
        # Who stays longer is there more often.
        footprint = (blocks * kinds.output).sum(axis=1) / kinds.output.sum(axis=1)
        return np.maximum(np.minimum(engine.extent.places, np.floor(engine.room.n_blocks / footprint)), 1.0)

    # ------------------------------------------------------------------ figures

    def _end(self, engine: EngineBatch, kinds: Kinds, end: int) -> tuple[dict[str, np.ndarray], Spent, np.ndarray]:
        """Return the metrics at one end, what was spent, and the capacity."""
        n, replicas = len(engine.batch), engine.extent.replicas
        mean, square = self._luck(engine, end)
        decode = n_steps(kinds.output - 1.0, mean[:, None], square[:, None])
        own = kinds.n_requests / np.minimum(replicas, kinds.n_requests)
        places = self._places(engine, kinds)
        means = step_means(engine, kinds, decode, places, end, encodes=self.engines.encodes)
        states = int(places.max())
        of_b = np.minimum(np.broadcast_to(np.arange(1.0, states + 1.0), (n, states)), places[:, None])
        served = means.over(means.served, of_b)
        read_s = (means.n_read * means.own_s)[:, -1:]
        per_step = (places[:, None] / means.served[:, -1:] - read_s) / np.maximum(decode.mean(axis=1)[:, None], 1e-12)
        scale = kinds.prompt / kinds.prompt.mean(axis=1)[:, None]
        size = read_s * scale + decode * per_step
        lucky = decode * np.maximum(square / mean**2 - 1.0, 0.0)[:, None]
        moment2 = (size**2 + lucky * per_step**2).mean(axis=1)
        moment3 = (size**3 + 3 * size * lucky * per_step**2).mean(axis=1)
        average = size.mean(axis=1)
        queue = line(
            kinds.rate, served, places, kinds.gap_cv2, np.maximum(moment2 / average**2 - 1.0, 0.0),
            moment3 * average / moment2**2, own,
        )  # fmt: skip
        # Requests that are alike and guess nothing stay together where they start together.
        is_even = (engine.depth == 0) & (kinds.output.min(axis=1) == kinds.output.max(axis=1))
        waves = _Waves(own, places, means, is_even)
        return self._figures(engine, kinds, _Load(means, decode, lucky, places, of_b, queue, waves, own))

    def _figures(
        self, engine: EngineBatch, kinds: Kinds, load: _Load
    ) -> tuple[dict[str, np.ndarray], Spent, np.ndarray]:
        n, replicas, means, queue, waves = len(engine.batch), engine.extent.replicas, load.means, load.queue, load.waves
        of_b, places, is_wave = load.of_b, load.places, np.isinf(kinds.rate)
        seen = np.where(is_wave[:, None], np.arange(1, of_b.shape[1] + 1) == waves.usual[:, None], queue.seen)
        rate = np.where(is_wave, 0.0, np.minimum(kinds.rate, waves.most))
        joins = total(seen * ((of_b > 1) & (of_b < places[:, None])))
        joins = np.where(
            is_wave, 0.0, joins + total(seen * ((of_b > 1) & (of_b == places[:, None]))) * queue.free_ratio
        )
        met = reading(means, seen, of_b, rate, np.broadcast_to(kinds.gap_cv2, n), joins)
        placed_s = total(queue.chances * of_b) / np.where(is_wave, 1.0, kinds.rate)
        whole_s = np.where(queue.is_stable, placed_s, total(seen * means.over(means.whole_s, of_b)))
        whole_s = np.where(is_wave, waves.whole_s, whole_s)
        wait = np.where(is_wave, waves.wait_s, queue.wait_s)
        waits = np.where(is_wave[:, None], waves.waits_s, queue.waits_s)
        first_s = np.minimum(np.where(is_wave, waves.first_s, met.first_s), whole_s)
        values = {
            "ttft_s": wait + met.rest_s + first_s,
            "latency_s": wait + met.rest_s + whole_s,
            "queue_s": wait + met.rest_s,
        }
        ttft, tpot, latency, weights = self._points(kinds, load, seen, rate, met, first_s, whole_s, waits)
        values["tpot_s"] = tpot.mean(axis=(1, 2))
        even = np.ones((n, tpot[0].size))
        for name, points, weight in (("ttft", ttft, weights), ("latency", latency, weights), ("tpot", tpot, even)):
            cut = quantiles(points.reshape(n, -1), weight, LEVELS)
            values |= dict(zip((f"{name}_p50_s", f"{name}_p95_s", f"{name}_p99_s"), cut, strict=True))
        scenario, good = self.problem.scenario, np.ones(latency.shape, dtype=bool)
        for limit, points in (
            (scenario.ttft_slo_s, ttft), (scenario.tpot_slo_s, tpot[..., None]), (scenario.latency_slo_s, latency)
        ):  # fmt: skip
            if limit:
                good &= points <= limit
        every, capable = float(kinds.n_requests), waves.most * replicas
        arriving = (every - 1.0) / np.where(is_wave, 1.0, kinds.rate * replicas)
        drained = np.where(queue.is_stable, arriving + values["latency_s"], every / capable + whole_s)
        span = np.where(is_wave, waves.span_s, drained)
        served, tokens = every / span, every * kinds.output.mean(axis=1)
        blocks = np.ceil((kinds.prompt + kinds.output / 2) / BLOCK_TOKENS)
        footprint = (blocks * kinds.output).sum(axis=1) / kinds.output.sum(axis=1) / engine.room.n_blocks
        values |= {
            "throughput_requests_per_s": served,
            "throughput_tokens_per_s": tokens / span,
            "goodput_requests_per_s": served * (good.reshape(n, -1) * weights).sum(axis=1),
            "capacity_requests_per_s": np.where(is_wave, served, capable),
            "load_ratio": np.where(is_wave, 1.0, kinds.rate * replicas / capable),
            "n_running": served * whole_s / replicas,
            "n_waiting": served * values["queue_s"] / replicas,
            "kv_peak_ratio": np.minimum(_peak(seen, of_b, load.own) * footprint, 1.0),
        }
        values["kv_occupancy_ratio"] = np.minimum(values["n_running"] * footprint, values["kv_peak_ratio"])
        # Steps and joules that a request takes with so many in places, over what there is.
        is_full = is_wave | ~queue.is_stable
        chances = np.where(is_full[:, None], seen, queue.chances / np.maximum(1.0 - queue.idle_ratio, 1e-300)[:, None])
        power = total(chances * means.over(means.joules / means.step_s, of_b))
        busy = np.where(is_full, span * replicas, every / np.where(is_full, 1.0, kinds.rate) * (1.0 - queue.idle_ratio))
        busy = np.minimum(busy, span * replicas)
        return values, Spent(span, busy, power * busy, np.full(n, every), tokens), capable

    def _points(
        self, kinds: Kinds, load: _Load, seen: np.ndarray, rate: np.ndarray, met: Reading, first_s: np.ndarray,
        whole_s: np.ndarray, waits: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """Return times to first token, per token and in all, (n, kinds, luck, waits), and weights, (n, points)."""
        from scipy.special import ndtri

        means, of_b, n = load.means, load.of_b, len(rate)
        among = np.maximum(total(seen * of_b), 1.0)
        spread = np.where(rate > 0, np.maximum(total(seen * of_b**2) - among**2, 0.0), 0.0)
        near = np.stack([np.maximum(among - 0.5, 1.0), np.minimum(among + 0.5, load.places)], axis=1)
        low, high = means.over(means.decode_s, near).T
        slope = np.where(near[:, 1] > near[:, 0], (high - low) / np.maximum(near[:, 1] - near[:, 0], 1e-12), 0.0)
        steps = load.decode.mean(axis=1)
        slope, added = slope * steps, total(seen * means.over(means.added_s, of_b)) * (load.places > 1)
        came = rate * whole_s
        variance = (added**2 * came + added * np.maximum(slope, 0.0) * came + slope**2 * spread * 2 / 3) / (
            1.0 - met.busy_ratio
        ) ** 2
        scale = load.decode / np.maximum(steps[:, None], 1e-12)
        writes = (whole_s - first_s)[:, None] * scale
        step_s = (whole_s - first_s) / np.maximum(steps, 1e-12)
        noise = np.sqrt(scale * variance[:, None] + load.lucky * step_s[:, None] ** 2)
        level = (np.arange(N_LUCK) + 0.5) / N_LUCK
        # Sampled in another order than what a request meets while it reads.
        written = np.maximum(writes[:, :, None] + noise[:, :, None] * ndtri(level), 0.0)
        reads = (
            np.minimum(met.lucky_first_s, whole_s[:, None])[:, None, :]
            * (kinds.prompt / kinds.prompt.mean(axis=1)[:, None])[:, :, None]
        )
        ttft = (met.lucky_rest_s[:, None, :] + reads)[:, :, :, None] + waits[:, None, None, :]
        latency = ttft + written[:, :, :, None]
        further = np.maximum(kinds.output - 1.0, 1.0)[:, :, None]
        tpot = np.where(kinds.output[:, :, None] > 1, written / further, means.decode_s[:, :1, None])
        weights = np.broadcast_to(WEIGHTS / (ttft.shape[1] * N_LUCK), ttft.shape).reshape(n, -1)
        return ttft, tpot, latency, weights


class _Load(NamedTuple):
    """What requests of n designs meet: steps, decode steps of kinds and their luck, places, states, line, waves."""

    means: StepMeans
    decode: np.ndarray
    lucky: np.ndarray
    places: np.ndarray
    of_b: np.ndarray
    queue: Line
    waves: _Waves
    own: np.ndarray


class _Waves:
    """Requests that are all there from the start: waves that fill all places, and one of what is left.

    Args:
        own: requests of an engine, shape (n,).
        places: that run at a time.
        means: what steps take.
        is_even: whether requests of a wave stay together.
    """

    def __init__(self, own: np.ndarray, places: np.ndarray, means: StepMeans, is_even: np.ndarray) -> None:
        self.usual = np.maximum(np.minimum(np.floor(own), places), 1.0)
        n_full = np.floor(own / self.usual)
        rest = np.round(own - n_full * self.usual)
        times = np.where(is_even[:, None], means.wave_s, means.b / means.served)
        at = np.stack([places, self.usual, np.maximum(rest, 1.0)], axis=1)
        every, whole, left = means.over(times, at).T
        _, lives, dies = np.minimum(means.over(np.minimum(times, means.whole_s), at), means.over(times, at)).T
        self.most = places / every
        self.span_s = n_full * whole + np.where(rest > 0, left, 0.0)
        self.whole_s = (n_full * self.usual * lives + np.where(rest > 0, rest * dies, 0.0)) / own
        # Prompts of a wave are read step by step.
        full, fits = (means.over(v, at[:, 1:2])[:, 0] for v in (means.full_s, means.fits))
        own_s = means.over(means.n_read * means.own_s, at[:, 1:2])[:, 0]
        self.first_s = np.where(
            is_even & (fits > 1), np.maximum(full * np.minimum(self.usual / fits, 1.0), own_s), own_s
        )
        reading_s = np.maximum(np.minimum(np.maximum(self.usual / fits - 1.0, 0.0) * full, whole), whole - lives)
        number = POINTS * own[:, None] / self.usual[:, None]
        wave = np.floor(number)
        self.waits_s = wave * whole[:, None] + (number - wave) * reading_s[:, None]
        self.wait_s = (self.waits_s * WEIGHTS).sum(axis=1)


def _peak(seen: np.ndarray, of_b: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return the requests in places that one arrival of all finds exceeded, (n,)."""
    filled = np.cumsum(seen, axis=1)
    at = np.argmax(filled >= (1.0 - 1.0 / (own[:, None] + 1.0)), axis=1)
    return np.asarray(np.take_along_axis(of_b, at[:, None], axis=1)[:, 0])
