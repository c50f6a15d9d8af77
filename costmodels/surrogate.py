"""The quality cost model "surrogate": what a profile of the model says of a design, with an interval for everything.

See :mod:`costmodels.sensitivity` for what places lose, :mod:`costmodels.losses` for their sums and
:mod:`costmodels.calibrated` for what a whole design loses by them. Knobs that the profile has no row of are taken from
the prior, with its interval; the losses add, the scores multiply. ``quality_cliff_ratio`` is the part of the predicted
loss that comes from choices at or beyond a cliff: a group whose loss rises between neighbouring measured values three
times more than is usual, to above 0.05 nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.losses import Knob, Predictor, Sums, sum_places
from costmodels.prior import ACCURACY_PER_NAT, PriorEvaluator
from costmodels.tables import unique_rows
from dse.canonical import content_hash
from dse.designs import DesignBatch
from dse.entries import Entry
from dse.errors import UserError
from dse.knobs import KNOBS, Scope
from dse.metrics import MetricBatch
from dse.problem import TARGET, Problem
from dse.profile import PROFILED
from dse.protocols import Breakdown
from dse.schema import Schema

VERSION = "1"


class Surrogate:
    """The quality cost model "surrogate"."""

    name = "surrogate"
    group = "quality"
    fidelity = "surrogate"
    version = VERSION
    laws: frozenset[str] = frozenset()

    def prepare(self, problem: Problem) -> SurrogateEvaluator:
        """Return the surrogate for a problem's target model.

        Raises:
            UserError: the problem has no profile of it.
        """
        return SurrogateEvaluator(problem)


@dataclass(frozen=True)
class _Laid:
    """A knob over the places of a schema: the columns of its field, and its tables."""

    knob: Knob
    columns: np.ndarray
    entries: Sequence[Entry]


class SurrogateEvaluator:
    """A profile prepared for one problem.

    Args:
        problem: the problem.
        role: the role of the model.
    """

    metrics: Sequence[str] = ("quality_loss", "accuracy_ratio", "quality_cliff_ratio")

    def __init__(self, problem: Problem, role: str = TARGET) -> None:
        profile = problem.quality.get(role)
        if profile is None:
            raise UserError(
                f"the cost model 'surrogate' needs a quality profile of {problem.models[role].name}",
                'measure one with "dse profile" and give Study(quality="FILE.jsonl"), or use the cost model "prior"',
            )
        self.role, self.model = role, problem.models[role]
        self.predictor = Predictor(profile, math.log(self.model.vocab_size))
        self.prior = PriorEvaluator(problem, role)
        self.kind = {"measured": "surrogate"}.get(profile.kind, profile.kind)
        self._laid: dict[int, dict[str, _Laid]] = {}
        self.fingerprint = content_hash(
            {"model": VERSION, "profile": profile.content_hash, "prior": self.prior.fingerprint}
        )

    def evaluate(self, batch: DesignBatch) -> MetricBatch:
        """Return the expected loss and accuracy of each design, with their intervals."""
        n = len(batch)
        laid = self._lay(batch.schema)
        # A knob that nobody varies has one row for all designs.
        sums = Sums.total([one.knob.sums(unique_rows(batch[k])[:, one.columns]) for k, one in laid.items()], n)
        found = self.predictor.predict(sums)
        loss, loss_low, loss_high = found.kl, found.kl_low, found.kl_high
        score, score_low, score_high = found.score, found.score_low, found.score_high
        beside = self._beside(batch)
        if beside is not None:
            low, high = beside.intervals["quality_loss"]
            value = beside.values["quality_loss"]
            total = self.predictor.total_loss
            loss, loss_low = np.minimum(loss + value, total), np.minimum(loss_low + low, total)
            loss_high = np.minimum(loss_high + high, total)
            left = [np.clip(1 - ACCURACY_PER_NAT * d, 0.0, 1.0) for d in (value, high, low)]
            open_ = high >= self.prior.total_loss
            score, score_low, score_high = score * left[0], score_low * left[1], score_high * left[2]
            score_low = np.where(open_, 0.0, score_low)
        return MetricBatch(
            values={"quality_loss": loss, "accuracy_ratio": score, "quality_cliff_ratio": found.cliff_ratio},
            n=n,
            intervals={"quality_loss": (loss_low, loss_high), "accuracy_ratio": (score_low, score_high)},
            basis=dict.fromkeys(self.metrics, self.kind),
        )

    def summed_loss(self, batch: DesignBatch) -> np.ndarray:
        """Return the sums of KL before the calibration curve, plus what the prior adds, shape (n,)."""
        laid = self._lay(batch.schema)
        parts = [one.knob.sums(unique_rows(batch[k])[:, one.columns]) for k, one in laid.items()]
        beside = self._beside(batch)
        return Sums.total(parts, len(batch)).kl + (0.0 if beside is None else beside.values["quality_loss"])

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return the loss by component and choice, in proportion to what each adds to the sum of KL."""
        labels: list[tuple[str, str, str, str]] = []
        columns: list[np.ndarray] = []
        for name, one in self._lay(batch.schema).items():
            index, tables = one.knob.look_up(batch[name][:, one.columns])
            components = np.array([e.component or "model" for e in one.entries])
            for component in dict.fromkeys(components.tolist()):
                of = components == component
                sums = sum_places(np.ascontiguousarray(index[:, of]), np.ascontiguousarray(tables.places[of]))
                labels.append((component, "all", "quality", name))
                columns.append(sums[:, 0])
        beside = self._beside(batch)
        total = self.evaluate(batch).values["quality_loss"]
        prior = np.zeros(len(batch)) if beside is None else np.minimum(beside.values["quality_loss"], total)
        parts = np.stack(columns, axis=1) if columns else np.zeros((len(batch), 0))
        sums = parts.sum(axis=1)
        parts = parts * np.where(sums > 0, (total - prior) / np.where(sums > 0, sums, 1.0), 0.0)[:, None]
        # Coarser groups may lose something although their places do not; that has no place of its own.
        rest = total - prior - parts.sum(axis=1)
        labels += [("model", "all", "quality", "groups"), ("model", "all", "quality", "prior")]
        return [Breakdown("quality_loss", tuple(labels), np.column_stack([parts, rest, prior]))]

    def _beside(self, batch: DesignBatch) -> MetricBatch | None:
        """Return what the prior says of the varied knobs that the profile has no row of; None where there is none."""
        known = self.predictor.knobs
        arrays = {}
        for name in PROFILED:
            if name not in batch or name in known:
                continue
            own = [i for i, e in enumerate(batch.schema.fields[name].entries) if e.role in (self.role, "")]
            if (unique_rows(batch[name])[:, own] != batch.schema.fields[name].default[own]).any():
                arrays[name] = batch[name]
        if not arrays:
            return None
        return self.prior.evaluate(DesignBatch(batch.schema, arrays, len(batch)))

    def _lay(self, schema: Schema) -> Mapping[str, _Laid]:
        """Return the profiled knobs over the places of a schema (they differ by its channel groups alone)."""
        if schema.channel_groups not in self._laid:
            found = {}
            for knob in (k for k in self.predictor.knobs if k in schema.fields):
                entries = schema.fields[knob].entries
                columns = np.flatnonzero([e.role == self.role for e in entries])
                own = [entries[i] for i in columns]
                laid = self.predictor.lay(knob, own, self._weights(own), self._units(knob, own))
                found[knob] = _Laid(laid, columns, own)
            self._laid[schema.channel_groups] = found
        return self._laid[schema.channel_groups]

    def _weights(self, entries: Sequence[Entry]) -> np.ndarray:
        units = self.model.units
        return np.array(
            [
                self.model.module(e.path).n_weights(*units.get((e.component, e.block), (0, 0))) / e.n_channels
                if e.path
                else 1.0
                for e in entries
            ],
            dtype=np.float64,
        )

    def _units(self, knob: str, entries: Sequence[Entry]) -> np.ndarray | None:
        """Return the heads or channels of each place, which are kept in whole numbers."""
        which = {Scope.HEADS: 0, Scope.FFN: 1}.get(KNOBS[knob].scope)
        if which is None:
            return None
        return np.array([self.model.units[e.component, e.block][which] for e in entries], dtype=np.float64)
