"""Sums of what places lose, for many designs at once, and what a whole design loses by them.

Two callers: the cost model "surrogate" has a design's fields as arrays; profilers and tests have maps (knob -> group ->
value) of the profiled model and need no problem around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from costmodels.calibrated import KlCurve, RetainedCurve, fit_kl, fit_retained
from costmodels.prior import ACCURACY_PER_NAT
from costmodels.sensitivity import MILDEST, Damages, Part, Sensitivity, Tables, scale_of
from dse.entries import Entry
from dse.params import Value
from dse.profile import PLAIN_BITS, PROFILED, Configuration, Group, QualityProfile, read_group

ConfigurationMap = Mapping[str, Mapping[str, Value]]


@dataclass(frozen=True)
class Sums:
    """What places of designs lose together, shape (n,) each.

    Attributes:
        kl, damage: sums over places with corrections of coarser groups.
        kl_low, kl_high: ends of the KL sum by what was interpolated and shared.
        cliff: the part of ``kl`` at or beyond cliffs.
        is_open: whether a choice is made that no measurement bounds.
    """

    kl: np.ndarray
    damage: np.ndarray
    kl_low: np.ndarray
    kl_high: np.ndarray
    cliff: np.ndarray
    is_open: np.ndarray

    @staticmethod
    def total(parts: Sequence[Sums], n: int) -> Sums:
        """Return the sums over several knobs of the same n designs."""
        found = {name: np.zeros(n) for name in ("kl", "damage", "kl_low", "kl_high", "cliff")}
        is_open = np.zeros(n, dtype=bool)
        for part in parts:
            for name, total in found.items():
                total += getattr(part, name)
            is_open |= part.is_open
        return Sums(**found, is_open=is_open)


class Knob:
    """A knob's places with their tables.

    Args:
        sensitivity: its curves over the places.
        units: what each place has whole numbers of (heads, channels), 0 where it has none, shape (g,).
    """

    def __init__(self, sensitivity: Sensitivity, units: np.ndarray | None = None) -> None:
        self.sensitivity = sensitivity
        self._units = units
        self._columns: dict[float, Tables] = {}
        self._is_width = scale_of(sensitivity.knob) == "bits"

    @cached_property
    def _by_width(self) -> Tables:
        return self.sensitivity.tables(np.arange(PLAIN_BITS + 1))

    def look_up(self, values: np.ndarray) -> tuple[np.ndarray, Tables]:
        """Return where in the tables each value stands, shape of ``values``, milder values later; and the tables."""
        if self._is_width:
            return np.ascontiguousarray(values, dtype=np.int64), self._by_width
        distinct, index = np.unique(values, return_inverse=True)
        # Each value on its own, so that a row does not depend on what its neighbours have.
        for value in distinct.tolist():
            if value not in self._columns:
                self._columns[value] = self._at(value)
        found = [self._columns[value] for value in distinct.tolist()]
        parts = (
            np.concatenate([getattr(t, name) for t in found], axis=1) for name in ("places", "corrections", "shared")
        )
        return np.ascontiguousarray(index.reshape(values.shape), dtype=np.int64), Tables(*parts)

    def _at(self, value: float) -> Tables:
        effective = None
        if self._units is not None:
            whole = np.maximum(self._units, 1)
            kept = np.minimum(np.ceil(value * whole - 1e-9) / whole, 1.0)
            effective = np.where(self._units > 0, kept, value)[:, None]
        return self.sensitivity.tables(np.array([value]), effective)

    def sums(self, values: np.ndarray) -> Sums:
        """Return what the places lose together.

        Args:
            values: shape (n, g).
        """
        index, tables = self.look_up(values)
        total = sum_places(index, np.ascontiguousarray(tables.places))
        kl, damage = total[:, 0].copy(), total[:, 1].copy()
        for part in self.sensitivity.corrected:
            delta = tables.corrections[part.number, index[:, part.columns].max(axis=1)]
            kl, damage = kl + delta[:, 0], damage + delta[:, 1]
        kl = np.maximum(kl, 0.0)
        spread = total[:, 2] - total[:, 0]
        low, high = spread / self.sensitivity.factor, spread
        for part in self.sensitivity.sharing:
            below, above = self._between(index[:, part.columns], tables, part)
            low, high = low + below, high + above
        return Sums(kl, damage, np.maximum(kl - low, 0.0), kl + high, np.minimum(total[:, 3], kl), total[:, 4] > 0)

    @staticmethod
    def _between(index: np.ndarray, tables: Tables, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Return how far places that share a group's loss may be below and above what their shares say."""
        own = sum_places(np.ascontiguousarray(index), np.ascontiguousarray(tables.places[part.columns]))[:, 0]
        whole = tables.shared[part.number, :, 0]
        mild, harsh = whole[index.max(axis=1)], whole[index.min(axis=1)]
        return np.maximum(own - mild, 0.0), np.maximum(harsh - own, 0.0)


@njit(cache=True)
def sum_places(index: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return sums over places of what their values stand for, shape (n, t).

    Args:
        index: where in the table each place's value stands, shape (n, g).
        table: shape (g, u, t).
    """
    out = np.zeros((len(index), table.shape[2]))
    for i in range(len(index)):
        for j in range(index.shape[1]):
            for t in range(table.shape[2]):
                out[i, t] += table[j, index[i, j], t]
    return out


@dataclass(frozen=True)
class Prediction:
    """What designs lose, with 90 % intervals, shape (n,) each; ``score`` is relative to the uncompressed model."""

    kl: np.ndarray
    kl_low: np.ndarray
    kl_high: np.ndarray
    score: np.ndarray
    score_low: np.ndarray
    score_high: np.ndarray
    cliff_ratio: np.ndarray
    is_open: np.ndarray


class Predictor:
    """A profile's surrogate: from sums to predictions, calibrated on the profile's real configurations.

    Args:
        profile: the profile.
        total_loss_nats: KL of output that knows nothing, where the profile does not say.
    """

    def __init__(self, profile: QualityProfile, total_loss_nats: float = np.inf) -> None:
        self.profile = profile
        self.damages = Damages(profile)
        self.total_loss = profile.header.total_loss_nats or total_loss_nats
        self.knobs = tuple(k for k in PROFILED if any(r.knob == k for r in profile.rows))
        self.kl_curve, self.retained_curve = self._fit([c for c in profile.configurations if not c.held_out])

    def lay(self, knob: str, entries: Sequence[Entry], weights: np.ndarray, units: np.ndarray | None = None) -> Knob:
        """Return a profiled knob over places; ``weights`` and ``units`` as in the classes above."""
        return Knob(Sensitivity(self.profile, knob, entries, weights, self.damages), units)

    def predict(self, sums: Sums) -> Prediction:
        """Return what designs lose by their sums."""
        curve = self.kl_curve
        unsure = sums.is_open | ((self.profile.kind != "measured") & (curve.n == 0) & (sums.kl > 0))
        kl, low, high = (np.minimum(curve.at(s), self.total_loss) for s in (sums.kl, sums.kl_low, sums.kl_high))
        low, high = low / curve.factor, np.minimum(high * curve.factor, self.total_loss)
        low, high = np.where(unsure, 0.0, low), np.where(unsure, np.maximum(self.total_loss, kl), high)
        score = self._score(sums, kl, low, high, unsure)
        ratio = sums.cliff / np.where(sums.kl > 0, sums.kl, 1.0)
        return Prediction(kl, low, high, *score, ratio, unsure)

    def predict_maps(self, maps: Sequence[ConfigurationMap]) -> Prediction:
        """Return what configurations of the profiled model lose; what a map leaves out is not compressed."""
        return self.predict(self.sums_of(maps))

    def sums_of(self, maps: Sequence[ConfigurationMap]) -> Sums:
        """Return the sums over the places of the profiled model."""
        parts = []
        for knob in self.knobs:
            laid, members = self._laid[knob]
            values = np.full((len(maps), laid.sensitivity.n_places), float(self._mildest(knob)))
            for row, by_knob in zip(values, maps, strict=True):
                chosen = by_knob.get(knob, {})
                for group in sorted(chosen, key=lambda g: self._group(g).fineness):
                    if group not in members:
                        members[group] = np.array([self._group(group).holds(e) for e in self.profile.entries(knob)])
                    row[members[group]] = float(chosen[group])
            parts.append(laid.sums(values))
        return Sums.total(parts, len(maps))

    def _group(self, path: str) -> Group:
        return self.profile.groups.get(path) or read_group(path, self.profile.header.modules, "map")

    def _mildest(self, knob: str) -> Value:
        return self.profile.header.reference.get(knob, MILDEST[scale_of(knob)])

    @cached_property
    def _laid(self) -> dict[str, tuple[Knob, dict[str, np.ndarray]]]:
        sizes = {m.path: float(m.n_weights) for m in self.profile.header.modules}
        found: dict[str, tuple[Knob, dict[str, np.ndarray]]] = {}
        for knob in self.knobs:
            entries = self.profile.entries(knob)
            found[knob] = self.lay(knob, entries, np.array([sizes.get(e.path, 1.0) for e in entries])), {}
        return found

    def _fit(self, configurations: Sequence[Configuration]) -> tuple[KlCurve, RetainedCurve]:
        if not configurations:
            return KlCurve(), RetainedCurve()
        sums = self.sums_of([c.map for c in configurations])
        kl = np.array([np.nan if c.figures.kl_nats is None else c.figures.kl_nats for c in configurations])
        has = np.isfinite(kl)
        curve = fit_kl(sums.kl[has], kl[has])
        metric = self.profile.header.metric
        told = [i for i, c in enumerate(configurations) if c.figures.metric is not None]
        if metric is None:
            return curve, RetainedCurve()
        scores = np.array([metric.retained_ratio(configurations[i].figures.metric or 0.0) for i in told])
        errors = [e for i in told if (e := configurations[i].figures.metric_se) is not None]
        noise = float(np.median(errors)) / abs(metric.base - metric.chance) if errors else 0.0
        return curve, fit_retained(sums.kl[told], sums.damage[told], scores, noise)

    def _score(
        self, sums: Sums, kl: np.ndarray, low: np.ndarray, high: np.ndarray, unsure: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the score relative to the uncompressed model's, and its interval."""
        metric = self.profile.header.metric
        if metric is None:
            score, worst, best = (np.clip(1 - ACCURACY_PER_NAT * d, 0.0, 1.0) for d in (kl, high, low))
            return score, worst, best
        curve = self.retained_curve
        scale = np.where(sums.kl > 0, sums.kl, 1.0)
        retained = curve.at(sums.kl, sums.damage)
        least = curve.at(sums.kl_high, sums.damage * np.where(sums.kl > 0, sums.kl_high / scale, 1.0))
        most = curve.at(sums.kl_low, sums.damage * np.where(sums.kl > 0, sums.kl_low / scale, 1.0))
        least, most = least - curve.half_width(least), most + curve.half_width(most)
        least, most = np.where(unsure, 0.0, least), np.where(unsure, np.maximum(1.0, retained), most)
        nothing = ~(sums.kl > 0) & (sums.damage == 0)
        chance = metric.chance / metric.base if metric.sense == "max" and metric.base else 0.0
        found = []
        for part in (retained, np.minimum(least, retained), np.maximum(most, retained)):
            found.append(np.maximum(chance + (1 - chance) * np.where(nothing, 1.0, part), 0.0))
        return found[0], found[1], found[2]
