"""What each place of a model loses at each value of a knob, from a quality profile: tables that batches look up.

Two currencies add up over places: the KL in nats, and the *damage* -ln(retained), where retained is the part of the
metric above chance that is left; sums of damage are products of retained fractions and never fall below zero quality.

A place takes the measurements of the finest group that it is in. At a value that was measured they are the value;
between and beyond,

    ln loss(v) = s(x(v)) + r(x(v))    x: bits; -ln(1 - keep); -ln(stride); ln(pixels)

with ``s`` the knob's common shape (medians over groups of the differences between neighbouring values; where no group
has both, :data:`SLOPES`) and ``r`` the group's own offset, linear between its values and constant beyond: one measured
width ranks the others. KL falls monotonically with the value (pooled where noise says otherwise), and nothing is lost
at the reference. A place of a coarser group that has no measurement of its own takes a share by weights.

A coarser group that was measured beside its parts corrects them (the cluster expansion of the loss): with ``v`` the
mildest value in group G and the sum over measured proper parts H of G,

    delta_G(v) = loss_G(v) - sum of its places at v - sum of delta_H(v)

is added, so a group all at one value has what was measured of it, and one whose places go on to harsher values keeps
it.

Intervals: a choice that was measured is itself. One that the shape gave lies within the factor that the profile shows
when each measured value is predicted from the group's others (:data:`SHAPE_FACTOR` where there are too few). Places
that share a coarser group's loss lie between the group's loss at the mildest and at the harshest of their values.
Values harsher than all measured ones, and places of which nothing is known, are open up to total loss.

Single scores are noisy where KL is not, so a row's damage is the mean of two witnesses by their precision: its own,
with the standard error of the score, and the power law of the KL that runs through all rows, with their scatter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from costmodels.prior import ACCURACY_PER_NAT
from dse.entries import Entry
from dse.profile import Measurement, QualityProfile

# d ln(loss) / d x: published losses fall 4 to 5 times per bit and as pruned ratio^1.7; the rest is a guess.
SLOPES: Final = {"bits": -1.39, "keep": -1.7, "stride": -2.0, "px": -2.0}
SHAPE_FACTOR: Final = 2.0
# Where groups of several places end: nothing is compressed (strides and pixels belong to the whole model).
MILDEST: Final = {"bits": 16, "keep": 1.0, "stride": 1, "px": 0}
_KL_FLOOR: Final = 1e-7
_DAMAGE_FLOOR: Final = 1e-4
_CLIFF_STEEPER: Final = 3.0  # times the common shape
_CLIFF_NATS: Final = 0.05
CHANNELS: Final = ("kl", "damage", "wide", "cliff", "unknown")


def scale_of(knob: str) -> str:
    """Return which coordinate a knob's values have: "bits", "keep", "stride" or "px"."""
    return knob.rsplit("_", 1)[-1]


def coordinate(knob: str, values: np.ndarray) -> np.ndarray:
    """Return x(v), growing towards milder values, shape of ``values``."""
    match scale_of(knob):
        case "bits":
            return values.astype(float)
        case "keep":
            return -np.log(np.maximum(1.0 - values, 1e-9))
        case "stride":
            return -np.log(np.maximum(values, 1e-9))
        case _:
            return np.log(np.maximum(values, 1e-9))


def is_reference(knob: str, values: np.ndarray, reference: Mapping[str, object]) -> np.ndarray:
    """Return where nothing is compressed, boolean."""
    match scale_of(knob):
        case "bits":
            return np.asarray(values >= 16)
        case "keep":
            return np.asarray(values >= 1)
        case "stride":
            return np.asarray(values <= 1)
        case _:
            most = float(reference.get(knob, np.inf))  # type: ignore[arg-type]
            return np.asarray((values == 0) | (values >= most))


@dataclass(frozen=True)
class Curve:
    """A group's measurements of a knob: values ascending by x, losses in one currency, shape (m,) each."""

    values: np.ndarray
    loss: np.ndarray


class Shape:
    """The common shape s(x) of a knob's curves.

    Args:
        knob: the knob.
        curves: its curves in one currency.
        floor: losses below it count as it.
    """

    def __init__(self, knob: str, curves: Sequence[Curve], floor: float) -> None:
        self.knob, self.floor = knob, floor
        self.slope = SLOPES[scale_of(knob)]
        knots = np.unique(np.concatenate([coordinate(knob, c.values) for c in curves])) if curves else np.zeros(1)
        steps = self.slope * np.diff(knots)
        for i in range(len(steps)):
            found = []
            for c in curves:
                x = coordinate(knob, c.values)
                a, b = np.flatnonzero(x == knots[i]), np.flatnonzero(x == knots[i + 1])
                if len(a) and len(b) and c.loss[a[0]] > floor:
                    found.append(np.log(max(c.loss[b[0]], floor) / c.loss[a[0]]))
            if found:
                steps[i] = min(float(np.median(found)), 0.0)
        self._knots, self._level = knots, np.concatenate([[0.0], np.cumsum(steps)])
        factors = [r for c in curves for r in self._left_out(c)]
        enough = len(factors) >= 8
        self.factor = float(np.exp(np.quantile(factors, 0.9))) if enough else SHAPE_FACTOR

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return s(x), the ends continued by the default slope."""
        below, above = np.minimum(x - self._knots[0], 0.0), np.maximum(x - self._knots[-1], 0.0)
        return np.interp(x, self._knots, self._level) + self.slope * (below + above)

    def at(self, curve: Curve, values: np.ndarray) -> np.ndarray:
        """Return a curve's loss at values that are not the reference, shape of ``values``."""
        own, x = coordinate(self.knob, curve.values), coordinate(self.knob, values)
        offset = np.log(np.maximum(curve.loss, self.floor)) - self(own)
        found = np.exp(np.interp(x, own, offset) + self(x))
        for value, loss in zip(curve.values, curve.loss, strict=True):
            found = np.where(values == value, loss, found)
        return found

    def _left_out(self, curve: Curve) -> list[float]:
        """Return |ln| of predicted over measured, each value left out of its curve."""
        found = []
        for i in range(len(curve.values) if len(curve.values) > 1 else 0):
            rest = Curve(np.delete(curve.values, i), np.delete(curve.loss, i))
            if curve.loss[i] > self.floor:
                found.append(abs(float(np.log(self.at(rest, curve.values[i : i + 1])[0] / curve.loss[i]))))
        return found


class Damages:
    """The damage of each row: its score and what its KL lets expect, by their precision; see the module docstring."""

    def __init__(self, profile: QualityProfile) -> None:
        self.metric = profile.header.metric
        rows = [r for r in profile.rows if r.figures.metric is not None and r.figures.kl_nats is not None]
        self._law: tuple[float, float, float] | None = None
        if self.metric is not None and len(rows) >= 8:
            kl = np.array([max(float(r.figures.kl_nats or 0.0), _KL_FLOOR) for r in rows])
            raw = np.array([self._raw(r) for r in rows])
            self._law = _power_law(kl, raw, np.array([self._error(r) for r in rows]))

    def of(self, row: Measurement) -> float:
        """Return the damage of a row; NaN where nothing tells it."""
        kl = row.figures.kl_nats
        expected = None
        if self._law is not None and kl is not None:
            factor, power, _ = self._law
            expected = factor * max(kl, _KL_FLOOR) ** power
        if row.figures.metric is None:
            return float("nan") if expected is None else expected
        raw = self._raw(row)
        if expected is None or self._law is None:
            return raw
        error, spread = self._error(row), self._law[2] * expected
        weight = spread**2 / (spread**2 + error**2) if spread or error else 1.0
        return weight * raw + (1 - weight) * expected

    def _raw(self, row: Measurement) -> float:
        assert self.metric is not None
        assert row.figures.metric is not None
        # A score of n samples cannot tell less than 1 / n of the whole from nothing.
        least = 1.0 / max(row.figures.n_samples, 2)
        return -float(np.log(max(self.metric.retained_ratio(row.figures.metric), least)))

    def _error(self, row: Measurement) -> float:
        """Return the standard error of the raw damage, 0 where it is not known."""
        assert self.metric is not None
        score, error = row.figures.metric or 0.0, row.figures.metric_se
        if error is None and self.metric.is_binary:
            error = float(np.sqrt(max(score * (1 - score), 0.0) / row.figures.n_samples))
        above = max(abs(score - self.metric.chance), 1e-3)
        return (error or 0.0) / above


def _power_law(kl: np.ndarray, raw: np.ndarray, error: np.ndarray) -> tuple[float, float, float]:
    """Return (factor, power, relative scatter) of damage = factor * KL^power by weighted least squares."""
    best = (np.inf, 1.0, 1.0)
    for power in np.linspace(0.4, 1.3, 19):
        x, factor = kl**power, 1.0
        weight = np.ones_like(kl)
        for _ in range(4):
            factor = max(float((weight * x * raw).sum() / (weight * x * x).sum()), 1e-6)
            weight = 1.0 / (error**2 + (0.5 * factor * x) ** 2 + 1e-8)
        # Likelihood of normal noise, whose width depends on the fit.
        misfit = float((weight * (raw - factor * x) ** 2 - np.log(weight)).sum())
        best = min(best, (misfit, factor, float(power)))
    _, factor, power = best
    expected = factor * kl**power
    clear = expected > 2 * error
    excess = ((raw - expected) ** 2 - error**2)[clear] / expected[clear] ** 2
    scatter = float(np.sqrt(np.clip(np.median(excess) / 0.455, 0.05**2, 1.0))) if clear.sum() >= 8 else 0.5
    return factor, power, scatter


@dataclass(frozen=True)
class Part:
    """A group whose places are looked at together: their columns, and the group's number in :class:`Tables`."""

    columns: np.ndarray
    number: int


@dataclass(frozen=True)
class Tables:
    """What a knob's places lose at given values.

    Attributes:
        places: by :data:`CHANNELS`, shape (g, u, 5): KL and damage; ``wide``, KL times the factor of what the shape
            gave; ``cliff``, the KL of choices at or beyond a cliff; ``unknown``, 1 where nothing is known.
        corrections: (KL, damage) that each coarser group adds by its mildest value, shape (groups, u, 2).
        shared: (KL, damage) that places without a row of their own share in each coarser group, (groups, u, 2).
    """

    places: np.ndarray
    corrections: np.ndarray
    shared: np.ndarray


class Sensitivity:
    """A profile's curves of one knob, laid over places.

    Args:
        profile: the profile.
        knob: the knob; the profile has rows of it.
        entries: the places.
        weights: size of each place, by which places share the loss of a coarser group, shape (g,).
        damages: of the profile's rows.

    Attributes:
        corrected, sharing: the coarser groups of :attr:`Tables.corrections` and :attr:`Tables.shared`.
        factor: of what the shape gave, see the module docstring.
    """

    def __init__(
        self, profile: QualityProfile, knob: str, entries: Sequence[Entry], weights: np.ndarray, damages: Damages
    ) -> None:
        self.knob, self.n_places, self.reference = knob, len(entries), profile.header.reference
        by_path: dict[str, list[Measurement]] = {}
        for row in profile.rows:
            if row.knob == knob:
                by_path.setdefault(row.group, []).append(row)
        # From coarse to fine; each place belongs to the last group that holds it.
        paths = sorted(by_path, key=lambda p: profile.groups[p].fineness)
        members = {p: np.flatnonzero([profile.groups[p].holds(e) for e in entries]) for p in paths}
        self._kl, self._damage = self._curves(by_path, damages)
        self._shapes = (
            Shape(knob, list(self._kl.values()), _KL_FLOOR), Shape(knob, list(self._damage.values()), _DAMAGE_FLOOR),
        )  # fmt: skip
        self.factor = self._shapes[0].factor
        owner = np.full(len(entries), -1)
        for i, path in enumerate(paths):
            owner[members[path]] = i
        share = np.zeros(len(entries))
        for i, path in enumerate(paths):
            inside = weights[members[path]]
            equal = np.full(len(inside), 1.0 / max(len(inside), 1))
            shares = inside / inside.sum() if inside.sum() > 0 else equal
            share[members[path]] = np.where(owner[members[path]] == i, shares, share[members[path]])
        self._share, self._bare = share, owner < 0
        self._owned = {p: np.flatnonzero(owner == i) for i, p in enumerate(paths) if (owner == i).any()}
        # A place that nothing is known of is taken for one of the others, by weights.
        self._bare_share = weights / max(float(weights[owner >= 0].sum()), 1.0)
        self.sharing = [Part(c, i) for i, c in enumerate(c for c in self._owned.values() if len(c) > 1)]
        self._sharing_paths = [p for p, c in self._owned.items() if len(c) > 1]
        self.corrected: list[Part] = []
        self._knots: list[tuple[np.ndarray, np.ndarray]] = []
        for path in sorted(paths, key=lambda p: len(members[p])):
            if len(members[path]) > 1 and len(self._owned.get(path, ())) < len(members[path]):
                self._correct(path, members[path])

    def _curves(
        self, by_path: Mapping[str, Sequence[Measurement]], damages: Damages
    ) -> tuple[dict[str, Curve], dict[str, Curve]]:
        """Return the curves of KL and of damage; where a knob has but one of them, that stands in for the other."""
        kl = {p: c for p, own in by_path.items() if (c := self._curve(own, None)) is not None}
        damage = {p: c for p, own in by_path.items() if (c := self._curve(own, damages)) is not None}
        for into, of, factor in ((kl, damage, 1 / ACCURACY_PER_NAT), (damage, kl, ACCURACY_PER_NAT)):
            for path in of.keys() - into.keys():
                into[path] = Curve(of[path].values, _falling(np.maximum(of[path].loss, 0.0)) * factor)
        return kl, damage

    def _curve(self, rows: Sequence[Measurement], damages: Damages | None) -> Curve | None:
        values, losses = [], []
        for row in rows:
            loss = row.figures.kl_nats if damages is None else damages.of(row)
            if loss is not None and np.isfinite(loss):
                values.append(float(row.value))
                losses.append(loss)
        kept = ~is_reference(self.knob, np.array(values), self.reference)
        if not kept.any():
            return None
        v, loss_of = np.array(values)[kept], np.array(losses)[kept]
        order = np.argsort(coordinate(self.knob, v))
        return Curve(v[order], _falling(loss_of[order]) if damages is None else loss_of[order])

    def tables(self, values: np.ndarray, effective: np.ndarray | None = None) -> Tables:
        """Return what every place loses at ``values``, shape (u,).

        Args:
            values: of the knob.
            effective: what each place makes of them (whole heads, say), shape (g, u); ``values`` by default.
        """
        at = np.broadcast_to(values, (self.n_places, len(values))) if effective is None else effective
        places = self._places(at.astype(float))
        x = coordinate(self.knob, values.astype(float))
        off = ~is_reference(self.knob, values, self.reference)
        corrections = np.zeros((len(self.corrected), len(values), 2))
        for part, (knots, delta) in zip(self.corrected, self._knots, strict=True):
            for i in range(2):
                corrections[part.number, :, i] = np.where(off, np.interp(x, knots, delta[i]), 0.0)
        shared = np.zeros((len(self.sharing), len(values), 2))
        for part, path in zip(self.sharing, self._sharing_paths, strict=True):
            shared[part.number] = self._figures(path, values.astype(float))[:2].T * self._share[part.columns].sum()
        return Tables(places, corrections, shared)

    def _places(self, at: np.ndarray) -> np.ndarray:
        places = np.zeros((*at.shape, len(CHANNELS)))
        for path, columns in self._owned.items():
            figures = np.moveaxis(self._figures(path, at[columns]), 0, 2)
            figures[:, :, :4] *= self._share[columns][:, None, None]
            places[columns] = figures
        bare = self._bare
        if bare.any():
            off = ~is_reference(self.knob, at[bare], self.reference)
            mean = places[~bare].sum(axis=0)
            places[bare] = off[:, :, None] * mean[None] * self._bare_share[bare][:, None, None]
            places[bare, :, 4] = off
        return places

    def _figures(self, path: str, values: np.ndarray) -> np.ndarray:
        """Return a group's (KL, damage, wide KL, cliff, unknown) at values, shape (5, ...)."""
        off = ~is_reference(self.knob, values, self.reference)
        out = np.zeros((len(CHANNELS), *values.shape))
        for i, (curves, shape) in enumerate(zip((self._kl, self._damage), self._shapes, strict=True)):
            if path in curves:
                out[i] = np.where(off, shape.at(curves[path], values), 0.0)
        if path in self._kl:
            curve = self._kl[path]
            out[2] = out[0] * np.where(np.isin(values, curve.values), 1.0, self.factor)
            out[3] = np.where(self._beyond_cliff(curve, values), out[0], 0.0)
            out[4] = off & (coordinate(self.knob, values) < coordinate(self.knob, curve.values[:1]) - 1e-9)
        return out

    def _beyond_cliff(self, curve: Curve, values: np.ndarray) -> np.ndarray:
        """Return where values are at or beyond the mildest cliff of a curve, boolean."""
        x, loss = coordinate(self.knob, curve.values), np.maximum(curve.loss, _KL_FLOOR)
        # At the mild end, where the loss is in the noise, any step would be steep.
        steps = np.log(loss[:-1] / np.maximum(loss[1:], _CLIFF_NATS / 50)) + self._shapes[0].slope * np.diff(x)
        found = np.flatnonzero((steps > np.log(_CLIFF_STEEPER)) & (loss[:-1] > _CLIFF_NATS))
        edge = x[found[-1]] if len(found) else -np.inf
        return np.asarray(coordinate(self.knob, values) <= edge)

    def _correct(self, path: str, columns: np.ndarray) -> None:
        """Add what a coarser group loses beyond the sum of its places and of the coarser groups inside it."""
        if path not in self._kl:
            return
        values = self._kl[path].values
        places = self._places(np.broadcast_to(values, (self.n_places, len(values))))
        delta = self._figures(path, values)[:2] - np.moveaxis(places[columns, :, :2].sum(axis=0), 1, 0)
        x, inside = coordinate(self.knob, values), set(columns.tolist())
        for part, (knots, table) in zip(self.corrected, self._knots, strict=True):
            if set(part.columns.tolist()) < inside:
                delta -= np.stack([np.interp(x, knots, one) for one in table])
        if np.abs(delta).max() > 1e-12:
            ends = coordinate(self.knob, np.array([MILDEST[scale_of(self.knob)]], dtype=float))
            self.corrected.append(Part(columns, len(self.corrected)))
            self._knots.append((np.concatenate([x, ends]), np.concatenate([delta, np.zeros((2, 1))], axis=1)))


def _falling(loss: np.ndarray) -> np.ndarray:
    """Return the losses with neighbours that rise pooled to their mean, non-increasing."""
    blocks: list[list[float]] = []
    for value in loss.tolist():
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-1][0] > blocks[-2][0]:
            last = blocks.pop()
            whole = blocks[-1][1] + last[1]
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + last[0] * last[1]) / whole, whole]
    return np.array([value for value, count in blocks for _ in range(int(count))])
