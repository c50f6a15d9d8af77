"""Quality from published tables: a prior, with an interval that spans to total loss where no data supports it.

The currency is d, the increase of the loss per token in nats, ln(perplexity / perplexity of the uncompressed model).
Contributions of the choices add up:

    weights       sum over modules of share_m * exp(a - b bits_m + c ln billions): a uniform map has the published
                  loss, a mixed one the mean by parameters (no depth profile: those do not transfer between models)
    activations   share-weighted like weights; one published width (8 bits), other widths by the same b per bit
    cache         keys and values by halves; two published widths, scaled by the same b per bit
    pruning       exp(p + q ln ratio + s ln billions), ratio = pruned share of a component's block weights
    images        retained score against the share of visual tokens, linear in its logarithm between published points

Task accuracy falls by :data:`ACCURACY_PER_NAT` of itself per nat. Total loss is d = ln(vocabulary): output that knows
nothing. All fits are made when the model is prepared, from ``data/published_quality.csv`` (facts with sources).

An interval is a factor on d either way: :data:`KNOWN_FACTOR` for the lineage and the sizes that the tables are about
(LLaMA-1 and -2, 6.7 to 65 billion), :data:`UNKNOWN_FACTOR` for other models. A choice that is milder than any published
one (weights above 4 bits, less than a fifth pruned) loses no more than the mildest published one: its interval reaches
from no loss to the upper end of that one's. Where nothing that is published bounds a choice, the interval reaches from
no loss to total loss: weights of 2 bits, or of encoders, projectors, token tables and output heads; activations other
than 8 bits; caches; more than half pruned, dropped blocks, pruned encoders; pooled tokens, other image sizes, visual
tokens of models other than LLaVA.

Left out: which layers are sensitive, which tokens are dropped, the quantiser beyond group-wise weight rounding with
calibration. A prior orders designs; it does not replace a measurement.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

import numpy as np

from costmodels.products import PLAIN_BITS
from costmodels.sums import sum_by_width, sum_weights
from costmodels.tables import Kept, block_columns, dim_table, unique_rows
from costmodels.workload import Workload
from dse.canonical import content_hash
from dse.designs import DesignBatch
from dse.entries import Entry
from dse.metrics import MetricBatch
from dse.model import Model, Module, ModuleKind, Section
from dse.problem import TARGET, Problem
from dse.protocols import Breakdown

VERSION: Final = "2"

# Relative loss of an 11-task zero-shot mean per nat, least squares over 74 rows that state both (correlation 0.90).
ACCURACY_PER_NAT: Final = 0.229

# 90th percentile of predicted over published d, one model of the LLaMA-1 lineage left out at a time: 1.9; with the
# whole lineage fitted and LLaMA-3 predicted: 6.8.
KNOWN_FACTOR: Final = 1.9
UNKNOWN_FACTOR: Final = 7.0


@dataclass(frozen=True, slots=True)
class _Row:
    kind: str
    billions: float
    method: str
    level: float
    loss: float  # nats, from perplexity or from a score


@cache
def _rows() -> tuple[_Row, ...]:
    text = (resources.files("costmodels") / "data" / "published_quality.csv").read_text(encoding="utf-8")
    rows = []
    for r in csv.DictReader(text.splitlines()):
        value, baseline = float(r["value"]), float(r["baseline"])
        loss = math.log(value / baseline) if r["metric"] == "perplexity" else (1 - value / baseline) / ACCURACY_PER_NAT
        rows.append(_Row(r["kind"], float(r["params_billion"] or "nan"), r["method"], float(r["level"]), loss))
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class Fits:
    """What the published rows say.

    Attributes:
        weight: (a, b, c) of ln d = a - b bits + c ln billions; rows of 3 and 4 bits (2 bits are beyond a cliff).
        act_8: d at 8-bit activations, geometric mean.
        cache_2: d at a 2-bit cache, mean.
        pruning: (p, q, s) of ln d = p + q ln ratio + s ln billions, rows of FLAP, the best untuned method.
        token_share, token_loss: d against the share of visual tokens kept, mean over methods, shares ascending.
        token_low, token_high: its range over methods.
        weight_bits, pruning_ratio, billions: (least, most) of the rows that weights and pruning are fitted to.
    """

    weight: tuple[float, float, float]
    act_8: float
    cache_2: float
    pruning: tuple[float, float, float]
    token_share: tuple[float, ...]
    token_loss: tuple[float, ...]
    token_low: tuple[float, ...]
    token_high: tuple[float, ...]
    weight_bits: tuple[float, float]
    pruning_ratio: tuple[float, float]
    billions: tuple[float, float]


@cache
def fits() -> Fits:
    """Return the fits to the published rows."""
    weight = [r for r in _rows() if r.kind == "weight_bits" and r.level > 2]
    pruning = [r for r in _rows() if r.kind == "pruning" and r.method == "FLAP"]
    a, minus_b, c = _log_fit(weight, lambda r: r.level)
    p, q, s = _log_fit(pruning, lambda r: math.log(r.level))
    tokens = [r for r in _rows() if r.kind == "visual_tokens"]
    shares = sorted({r.level for r in tokens})
    by_share = [[r.loss for r in tokens if r.level == share] for share in shares]
    return Fits(
        weight=(a, -minus_b, c),
        act_8=math.exp(_mean([math.log(r.loss) for r in _rows() if r.kind == "act_bits"])),
        cache_2=_mean([r.loss for r in _rows() if r.kind == "kv_bits" and r.level == 2]),
        pruning=(p, q, s),
        token_share=(*shares, 1.0),
        token_loss=(*map(_mean, by_share), 0.0),
        token_low=(*map(min, by_share), 0.0),
        token_high=(*map(max, by_share), 0.0),
        weight_bits=_range([r.level for r in weight]),
        pruning_ratio=_range([r.level for r in pruning]),
        billions=_range([r.billions for r in weight]),
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _log_fit(rows: Sequence[_Row], of: Callable[[_Row], float]) -> tuple[float, float, float]:
    matrix = np.array([[1.0, of(r), math.log(r.billions)] for r in rows])
    solution, *_ = np.linalg.lstsq(matrix, np.log([r.loss for r in rows]), rcond=None)
    return float(solution[0]), float(solution[1]), float(solution[2])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class Prior:
    """The quality cost model "prior"."""

    name = "prior"
    group = "quality"
    fidelity = "prior"
    version = VERSION
    laws: frozenset[str] = frozenset({"fewer_bits_never_gain_quality"})

    def prepare(self, problem: Problem) -> PriorEvaluator:
        """Return the prior for a problem's target model."""
        return PriorEvaluator(problem)


class PriorEvaluator:
    """The prior for one model.

    Args:
        problem: the problem.
        role: the role of the model.
    """

    metrics: Sequence[str] = ("quality_loss", "accuracy_ratio")

    def __init__(self, problem: Problem, role: str = TARGET) -> None:
        self.role = role
        self.model: Model = problem.models[role]
        self.workload = Workload(problem, role)
        self.fingerprint = content_hash(
            {
                "model": VERSION,
                "problem": problem.content_hash,
                "scenario": problem.scenario.to_json(),
                "rows": [[r.kind, r.method, r.level, round(r.loss, 12)] for r in _rows()],
            }
        )
        self.total_loss = math.log(self.model.vocab_size)
        self._billions = self.model.n_params / 1e9
        least, most = fits().billions
        is_known = _is_llama_lineage(self.model) and 0.95 * least <= self._billions <= 1.1 * most
        self._factor = KNOWN_FACTOR if is_known else UNKNOWN_FACTOR
        self._shares: dict[tuple[str, int], _Shares] = {}
        self._blocks = {
            component: _BlockWeights(self.model, component)
            for component in dict.fromkeys(m.component for m in self.model.modules if m.section is Section.BLOCK)
        }

    def evaluate(self, batch: DesignBatch) -> MetricBatch:
        """Return the expected loss and accuracy of each design, with their intervals."""
        loss, low, high = _total(self._contributions(batch), len(batch), self.total_loss)
        accuracy = [np.clip(1 - ACCURACY_PER_NAT * d, 0.0, 1.0) for d in (loss, high, low)]
        return MetricBatch(
            values={"quality_loss": loss, "accuracy_ratio": accuracy[0]},
            n=len(batch),
            intervals={"quality_loss": (low, high), "accuracy_ratio": (accuracy[1], accuracy[2])},
            basis={"quality_loss": "prior", "accuracy_ratio": "prior"},
        )

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return the loss by choice; contributions are scaled down where their sum exceeds total loss."""
        contributions = self._contributions(batch)
        parts = np.stack([np.broadcast_to(c.loss, len(batch)) for c in contributions], axis=1)
        total = parts.sum(axis=1)
        scale = np.minimum(total, self.total_loss) / np.where(total > 0, total, 1.0)
        labels = tuple(("model", "all", "quality", c.choice) for c in contributions)
        return [Breakdown("quality_loss", labels, parts * scale[:, None])]

    # ------------------------------------------------------------------ contributions

    def _contributions(self, batch: DesignBatch) -> list[_Contribution]:
        found = [self._weights(batch), self._activations(batch), self._caches(batch)]
        return [*found, *self._pruning(batch), self._images(batch)]

    def _weights(self, batch: DesignBatch) -> _Contribution:
        a, b, c = fits().weight
        at_zero_bits = math.exp(a + c * math.log(self._billions))
        least, most = fits().weight_bits
        widths = np.arange(PLAIN_BITS + 1)
        narrow = widths < PLAIN_BITS
        loss = np.where(narrow, at_zero_bits * np.exp(-b * widths), 0.0)
        low = np.where(widths <= most, loss, 0.0)
        high = np.where(narrow & (most < widths), at_zero_bits * math.exp(-b * most), loss)
        found = self._by_width(batch, "weight_bits", narrow & (widths < least), loss, low, high)
        return self._by_factor("weight bits", found[2], found[0] + found[1] > 0, low=found[3], high=found[4])

    def _activations(self, batch: DesignBatch) -> _Contribution:
        widths = np.arange(PLAIN_BITS + 1)
        narrow = widths < PLAIN_BITS
        loss = np.where(narrow, fits().act_8 * np.exp(fits().weight[1] * (8 - widths)), 0.0)
        found = self._by_width(batch, "act_bits", narrow & (widths != 8), loss)
        return self._by_factor("activation bits", found[2], found[0] + found[1] > 0)

    def _caches(self, batch: DesignBatch) -> _Contribution:
        total = np.zeros(1)
        for name in ("k_bits", "v_bits"):
            columns = self._columns(batch, name)
            if len(columns):
                bits = unique_rows(batch[name])[:, columns].astype(np.float64)
                loss = np.where(bits < PLAIN_BITS, 0.5 * fits().cache_2 * np.exp(fits().weight[1] * (2 - bits)), 0.0)
                total = total + loss.mean(axis=1)
        return self._by_factor("cache bits", total, total > 0)

    def _pruning(self, batch: DesignBatch) -> list[_Contribution]:
        p, q, s = fits().pruning
        scale = math.exp(p + s * math.log(self._billions))
        kept = self.workload.tables(batch.schema).kept(batch)
        kept = kept.full(max(len(kept.heads), len(kept.channels), len(kept.block)))
        least, most = fits().pruning_ratio
        found = []
        for component, weights in self._blocks.items():
            ratio = weights.pruned_ratio(kept)
            outside: np.ndarray = ratio > (most if component == "decoder" else 0.0)
            if component == "decoder":
                outside = outside | (kept.block < 1).any(axis=1)
            loss, mild = scale * ratio**q, (ratio > 0) & (ratio < least)
            low, high = np.where(mild, 0.0, loss), np.where(mild, scale * least**q, loss)
            found.append(self._by_factor(f"pruning of {component}", loss, outside, low, high))
        return found

    def _images(self, batch: DesignBatch) -> _Contribution:
        tokens = self.workload.visual_tokens(batch)
        if tokens is None:
            return _Contribution("images", np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1, dtype=bool))
        share = tokens.share
        f = fits()
        curves = [_log_interpolated(share, f.token_share, c) for c in (f.token_loss, f.token_low, f.token_high)]
        published = self.model.model_type == "llava"
        outside = (share < 1) & ~(tokens.is_only_dropped & published & (share >= f.token_share[0]))
        return _Contribution("images", curves[0], curves[1], curves[2], outside)

    def _columns(self, batch: DesignBatch, name: str) -> np.ndarray:
        """Return the entries of a knob that are this role's, shape (g,)."""
        entries = batch.schema.fields[name].entries if name in batch else ()
        return np.array([i for i, e in enumerate(entries) if e.role == self.role], dtype=np.intp)

    def _by_factor(
        self,
        choice: str,
        loss: np.ndarray,
        outside: np.ndarray,
        low: np.ndarray | None = None,
        high: np.ndarray | None = None,
    ) -> _Contribution:
        """Return a contribution whose interval is a factor below ``low`` and above ``high``, by default ``loss``."""
        least, most = loss if low is None else low, loss if high is None else high
        return _Contribution(choice, loss, least / self._factor, most * self._factor, outside)

    def _by_width(self, batch: DesignBatch, name: str, is_beyond: np.ndarray, *tables: np.ndarray) -> np.ndarray:
        """Return sums over a knob's entries, shape (2 + tables, n or 1).

        Entries that tables do not speak of and that are below 16 bits; entries at widths beyond what was published;
        then the share-weighted means of what ``tables`` (17,) say of each width, 0 ... 16 bits.
        """
        key = (name, batch.schema.channel_groups)
        if key not in self._shares:
            entries = batch.schema.fields[name].entries
            self._shares[key] = _entry_shares([entries[i] for i in self._columns(batch, name)], self.model)
        shares = self._shares[key]
        factors = [~shares.is_supported, np.ones(len(shares.share)), *(shares.share for _ in tables)]
        by_width = np.stack([np.arange(PLAIN_BITS + 1) < PLAIN_BITS, is_beyond, *tables]).astype(np.float64)
        bits = np.ascontiguousarray(unique_rows(batch[name])[:, self._columns(batch, name)], dtype=np.int64)
        return sum_by_width(bits, np.stack(factors).astype(np.float64), by_width)


@dataclass(frozen=True)
class _Contribution:
    """Loss by one kind of choice, shape (n or 1,) each; ``outside`` where no data supports it."""

    choice: str
    loss: np.ndarray
    low: np.ndarray
    high: np.ndarray
    outside: np.ndarray


def _total(parts: Sequence[_Contribution], n: int, total_loss: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the summed loss with its interval: no data anywhere leaves it open from no loss to total loss."""
    loss, low, high = np.zeros(n), np.zeros(n), np.zeros(n)
    for part in parts:
        loss = loss + part.loss
        low = low + np.where(part.outside, 0.0, part.low)
        high = high + np.where(part.outside, total_loss, part.high)
    loss, high = np.minimum(loss, total_loss), np.minimum(high, total_loss)
    return loss, np.minimum(low, loss), np.maximum(high, loss)


@dataclass(frozen=True)
class _Shares:
    """Weight of each entry in a sum over a component's blocks, and whether tables speak of it, shape (g,)."""

    share: np.ndarray
    is_supported: np.ndarray


def _entry_shares(entries: Sequence[Entry], model: Model) -> _Shares:
    """Return shares by parameters, relative to the block weights of the same component (the whole, without blocks)."""
    modules = [model.module(e.path) for e in entries]
    size = np.array([_n_weights(model, m) / e.n_channels for e, m in zip(entries, modules, strict=True)])
    inside = np.array([m.section is Section.BLOCK for m in modules], dtype=bool)
    components = np.array([m.component for m in modules])
    share = np.zeros(len(entries))
    for component in dict.fromkeys(components.tolist()):
        of = components == component
        whole = size[of & inside].sum() or size[of].sum()
        share[of] = size[of] / whole
    return _Shares(share, inside & (components == "decoder"))


def _n_weights(model: Model, module: Module) -> int:
    block = next((b for b in model.blocks if (b.component, b.index) == (module.component, module.block)), None)
    return module.n_weights(block.head_units, block.ffn_units) if block else module.n_weights()


class _BlockWeights:
    """Weights inside the blocks of one component, to tell which share pruning takes away."""

    def __init__(self, model: Model, component: str) -> None:
        inside = [
            m
            for m in model.modules
            if m.kind is ModuleKind.LINEAR and m.section is Section.BLOCK and m.component == component
        ]
        self._in, self._out = dim_table([m.in_dim for m in inside]), dim_table([m.out_dim for m in inside])
        self._copies = np.array([m.n_copies for m in inside], dtype=np.float64)
        self._block = block_columns(inside, model)
        self._whole = sum(_n_weights(model, m) for m in inside)

    def pruned_ratio(self, kept: Kept) -> np.ndarray:
        """Return the share of weights that is gone, shape (n or 1,)."""
        left = sum_weights(self._block, self._in, self._out, self._copies, kept.heads, kept.channels, kept.block)
        return np.maximum(1 - left / self._whole, 0.0)


def _log_interpolated(share: np.ndarray, shares: Sequence[float], losses: Sequence[float]) -> np.ndarray:
    """Return the loss at shares of tokens, linear in their logarithm, the first slope continued below."""
    x, y = np.log(shares), np.asarray(losses)
    at = np.log(np.clip(share, 1e-6, 1.0))
    slope = (y[1] - y[0]) / (x[1] - x[0])
    return np.where(at < x[0], y[0] + slope * (at - x[0]), np.interp(at, x, y))


def _is_llama_lineage(model: Model) -> bool:
    """Whether the decoder is a LLaMA-1 or LLaMA-2 (or Vicuna, which is one): its architecture with its vocabulary."""
    return model.model_type in ("llama", "llava", "llava_next") and 32_000 <= model.vocab_size <= 32_064
