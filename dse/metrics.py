"""What a design costs and how good it is: named columns with status, limits and intervals.

A :class:`MetricBatch` answers a design batch row by row. Each row is

- ``OK``: all columns hold numbers;
- ``INFEASIBLE``: the design cannot run. Its columns are NaN, and :class:`Limit` says which law it breaks and by how
  much (a tile larger than the memory, a model larger than the device);
- ``FAILED``: the cost model broke on it; the message says how. Neighbours are unharmed.

An interval belongs to a metric where its value is uncertain; ``basis`` says what kind of evidence each metric rests
on ("datasheet", "prior", "measured", ...) and stands beside the value in every output.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from dse import units
from dse.errors import unknown


class Status(enum.IntEnum):
    """State of a row."""

    OK = 0
    INFEASIBLE = 1
    FAILED = 2


@dataclass(frozen=True, slots=True)
class Metric:
    """A quantity that designs are compared by.

    Attributes:
        name: carries its unit.
        sense: "min" or "max", what people usually want.
        help: what it is.
    """

    name: str
    sense: str
    help: str

    @property
    def unit(self) -> str:
        """Unit as people write it, "" for a plain number."""
        return units.unit_of(self.name)


def _all(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


METRICS: Final[dict[str, Metric]] = _all(
    Metric("latency_s", "min", "time from the request to its last output token"),
    Metric("ttft_s", "min", "time to first token: encoding and prefill"),
    Metric("tpot_s", "min", "time per output token after the first, mean over the output"),
    Metric("encode_s", "min", "time in the encoders and the projector"),
    Metric("prefill_s", "min", "time in the decoder up to the first token"),
    Metric("decode_s", "min", "time from the first to the last output token"),
    Metric("throughput_tokens_per_s", "max", "output tokens of the whole batch per second of latency"),
    Metric("energy_j", "min", "energy of one request"),
    Metric("power_w", "min", "mean power while the batch runs"),
    Metric("memory_bytes", "min", "memory that weights, caches and the largest activations take together"),
    Metric("weight_bytes", "min", "stored weights with their scales and zero points"),
    Metric("kv_bytes", "min", "key-value cache and encoder states of the whole batch"),
    Metric("activation_bytes", "min", "largest activations alive at one time"),
    Metric("dram_bytes", "min", "DRAM traffic of one batch of requests"),
    Metric("array_utilisation_ratio", "max", "part of the latency in which the array works"),
    Metric("vector_utilisation_ratio", "max", "part of the latency in which the vector unit works"),
    Metric("dram_utilisation_ratio", "max", "DRAM traffic over what the bandwidth could move in the latency"),
    Metric("read_wait_s", "min", "time in which the working unit waits for data from DRAM"),
    Metric("write_wait_s", "min", "time in which it waits until results are written"),
    Metric("area_mm2", "min", "silicon area of the accelerator"),
    Metric("cost_usd", "min", "rental cost of one request at the low end of the price range"),
    Metric("latency_p50_s", "min", "median of the latency over queries and routes"),
    Metric("latency_p95_s", "min", "latency that 95 % of the queries stay within"),
    Metric("latency_p99_s", "min", "latency that 99 % of the queries stay within"),
    Metric("ttft_p50_s", "min", "median of the time to first token over requests"),
    Metric("ttft_p95_s", "min", "time to first token that 95 % of the requests stay within"),
    Metric("ttft_p99_s", "min", "time to first token that 99 % of the requests stay within"),
    Metric("tpot_p50_s", "min", "median over requests of their time per output token"),
    Metric("tpot_p95_s", "min", "time per output token that 95 % of the requests stay within"),
    Metric("tpot_p99_s", "min", "time per output token that 99 % of the requests stay within"),
    Metric("queue_s", "min", "mean time from arrival to the first step of a request"),
    Metric("throughput_requests_per_s", "max", "requests served per second"),
    Metric("goodput_requests_per_s", "max", "requests per second that keep to all limits of the scenario"),
    Metric("capacity_requests_per_s", "max", "requests per second that are served where some always wait"),
    Metric("load_ratio", "min", "rate of arrival over capacity; 1 where all requests are there from the start"),
    Metric("n_running", "max", "mean number of requests that run on one replica"),
    Metric("n_waiting", "min", "mean number of requests that wait for one replica"),
    Metric("kv_occupancy_ratio", "min", "mean share of the cache's blocks in use"),
    Metric("kv_peak_ratio", "min", "largest share of the cache's blocks in use"),
    Metric("kv_capacity_tokens", "max", "positions that the cache of one replica has room for"),
    Metric("preemption_ratio", "min", "preemptions per request"),
    Metric("million_tokens_energy_j", "min", "energy per million output tokens, idle time included"),
    Metric("million_tokens_cost_usd", "min", "rental cost per million output tokens at the low end of the price"),
    Metric("escalation_ratio", "min", "share of the queries that the first stage passes on"),
    Metric("n_draft_tokens", "max", "tokens guessed per step of the model that answers last"),
    Metric("n_tokens_per_step", "max", "tokens that a step of the model that answers last yields"),
    Metric("quality_loss", "min", "increase of the loss per token over the uncompressed model"),
    Metric("accuracy_ratio", "max", "task accuracy relative to the uncompressed model"),
    Metric("quality_cliff_ratio", "min", "part of the predicted loss that comes from choices at or beyond a cliff"),
)


def metric(name: str, known: Iterable[str] | None = None) -> Metric:
    """Return the metric of that name.

    Raises:
        NameUnknown: no such metric, with the nearest ones; a bare quantity ("latency") is told to name its unit.
    """
    names = list(METRICS if known is None else known)
    if name in names:
        return METRICS.get(name) or Metric(name, "min", "")
    with_unit = [n for n in names if n.startswith(name + "_")]
    if with_unit:
        error = unknown("metric", name, names)
        error.hint = f"name its unit: {' or '.join(with_unit)}"
        raise error
    raise unknown("metric", name, names)


@dataclass(frozen=True)
class Limit:
    """A law that some designs of a batch break.

    Attributes:
        name: what is limited; carries its unit ("sram_bytes").
        needed: what each row needs, (n,); NaN where the law does not apply.
        available: what there is, (n,).
        text: the law in words, with {needed} and {available} to be filled in.
    """

    name: str
    needed: np.ndarray
    available: np.ndarray
    text: str

    @property
    def excess_ratio(self) -> np.ndarray:
        """How far each row is beyond the limit, relative to it; 0 where it is kept, shape (n,)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            over = (self.needed - self.available) / np.where(self.available > 0, self.available, 1.0)
        return np.where(np.nan_to_num(self.needed, nan=-np.inf) > self.available, over, 0.0)

    def describe(self, row: int) -> str:
        """Return the law, the amounts and the excess of one row in words."""
        needed, available = float(self.needed[row]), float(self.available[row])
        shown = {
            "needed": units.format_quantity(needed, self.name),
            "available": units.format_quantity(available, self.name),
        }
        return f"{self.text.format(**shown)} (over by {units.format_quantity(needed - available, self.name)})"

    def take(self, rows: np.ndarray) -> Limit:
        """Return the limit of the given rows."""
        return Limit(self.name, self.needed[rows], self.available[rows], self.text)


@dataclass(frozen=True)
class ToldLimit:
    """Limits as a store keeps them: the summed relative excess of each row, and its words.

    Attributes:
        excess_ratio: shape (n,).
        texts: row -> what :meth:`Limit.describe` said.
    """

    excess_ratio: np.ndarray
    texts: Mapping[int, str]

    def describe(self, row: int) -> str:
        """Return the stored words."""
        return self.texts.get(row, "")

    def take(self, rows: np.ndarray) -> ToldLimit:
        """Return the limits of the given rows."""
        return ToldLimit(
            self.excess_ratio[rows],
            {new: self.texts[old] for new, old in enumerate(rows.tolist()) if old in self.texts},
        )


@dataclass(frozen=True)
class MetricBatch:
    """Metrics of n designs, row by row.

    Attributes:
        values: metric -> (n,), NaN on rows that are not OK.
        intervals: metric -> (low (n,), high (n,)), for those that carry one.
        basis: metric -> kind of evidence.
        limits: laws that at least one row breaks.
        errors: row -> message of failed rows.
    """

    values: Mapping[str, np.ndarray]
    n: int
    intervals: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    basis: Mapping[str, str] = field(default_factory=dict)
    limits: Sequence[Limit | ToldLimit] = ()
    errors: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.n

    @property
    def excess_ratio(self) -> np.ndarray:
        """Sum of the relative excesses over all limits, 0 where a design can run, shape (n,)."""
        total = np.zeros(self.n)
        for limit in self.limits:
            total += limit.excess_ratio
        return total

    @property
    def status(self) -> np.ndarray:
        """:class:`Status` of each row, shape (n,), unsigned 8-bit."""
        status = np.where(self.excess_ratio > 0, Status.INFEASIBLE, Status.OK).astype(np.uint8)
        status[list(self.errors)] = Status.FAILED
        return status

    def reason(self, row: int) -> str:
        """Return why a row is not OK, "" if it is."""
        if row in self.errors:
            return self.errors[row]
        return "; ".join(limit.describe(row) for limit in self.limits if limit.excess_ratio[row] > 0)

    def masked(self) -> MetricBatch:
        """Return the batch with NaN in all columns of rows that are not OK."""
        bad = self.status != Status.OK
        if not bad.any():
            return self
        blank = {name: np.where(bad, np.nan, v) for name, v in self.values.items()}
        bands = {
            name: (np.where(bad, np.nan, low), np.where(bad, np.nan, high))
            for name, (low, high) in self.intervals.items()
        }
        return MetricBatch(blank, self.n, bands, self.basis, self.limits, self.errors)

    def take(self, rows: np.ndarray | slice) -> MetricBatch:
        """Return the given rows, in the given order."""
        index = np.arange(self.n)[rows]
        return MetricBatch(
            values={name: v[index] for name, v in self.values.items()},
            n=len(index),
            intervals={name: (low[index], high[index]) for name, (low, high) in self.intervals.items()},
            basis=self.basis,
            limits=[limit.take(index) for limit in self.limits],
            errors={new: self.errors[old] for new, old in enumerate(index.tolist()) if old in self.errors},
        )

    @staticmethod
    def scatter(parts: Sequence[tuple[np.ndarray, MetricBatch]], n: int) -> MetricBatch:
        """Return one batch of ``n`` rows from parts that each answer some of them.

        Args:
            parts: (row numbers, their metrics); together they cover every row once. A metric that a part lacks is
                NaN on its rows.
        """
        values: dict[str, np.ndarray] = {}
        intervals: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        limits: dict[tuple[str, str], Limit] = {}
        texts: dict[int, str] = {}
        told = ToldLimit(np.zeros(n), texts)
        basis: dict[str, str] = {}
        errors: dict[int, str] = {}
        for rows, part in parts:
            for name, column in part.values.items():
                values.setdefault(name, np.full(n, np.nan))[rows] = column
            for name, (low, high) in part.intervals.items():
                into = intervals.setdefault(name, (np.full(n, np.nan), np.full(n, np.nan)))
                into[0][rows], into[1][rows] = low, high
            for limit in part.limits:
                if isinstance(limit, ToldLimit):
                    told.excess_ratio[rows] += limit.excess_ratio
                    texts |= {int(rows[i]): text for i, text in limit.texts.items()}
                    continue
                merged = limits.setdefault(
                    (limit.name, limit.text), Limit(limit.name, np.full(n, np.nan), np.full(n, np.nan), limit.text)
                )
                merged.needed[rows], merged.available[rows] = limit.needed, limit.available
            for name, kind in part.basis.items():
                basis[name] = kind if basis.get(name, kind) == kind else f"{basis[name]}, {kind}"
            errors |= {int(rows[i]): text for i, text in part.errors.items()}
        told_limits = [told] if told.excess_ratio.any() else []
        return MetricBatch(values, n, intervals, basis, [*limits.values(), *told_limits], errors)

    @staticmethod
    def join(groups: Sequence[MetricBatch]) -> MetricBatch:
        """Return the columns of several metric groups of the same rows side by side; a row is OK if it is in all."""
        values: dict[str, np.ndarray] = {}
        intervals: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        basis: dict[str, str] = {}
        errors: dict[int, str] = {}
        for group in groups:
            values |= group.values
            intervals |= group.intervals
            basis |= group.basis
            errors = {**group.errors, **errors}
        limits = [limit for group in groups for limit in group.limits]
        return MetricBatch(values, groups[0].n, intervals, basis, limits, errors).masked()

    @staticmethod
    def failed(n: int, message: str) -> MetricBatch:
        """Return n failed rows."""
        return MetricBatch({}, n, errors=dict.fromkeys(range(n), message))
