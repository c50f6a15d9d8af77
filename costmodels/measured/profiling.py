"""A profile, measurement by measurement: single choices first, then whole configurations.

Nothing is written here; whoever asks for the next measurement keeps it and decides when it is enough.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from costmodels.losses import Predictor
from costmodels.measured import plan
from costmodels.measured.bench import Bench, NotFinite
from costmodels.measured.compress import Settings, resolve
from costmodels.measured.quantise import Quantiser
from costmodels.measured.target import Source
from dse.canonical import canonical_json
from dse.capabilities import ProfileOrder
from dse.params import Value
from dse.profile import Configuration, Measurement, ProfileHeader, QualityProfile, read_group

_LEAST_HELD_OUT: Final = 3
_TINY: Final = 1e-9


class MeasuredProfiling:
    """A profile of one model to be measured.

    Args:
        order: what is to be profiled, and how.

    Raises:
        UserError: a model, file or setting that cannot be.
    """

    def __init__(self, order: ProfileOrder) -> None:
        self.order = order
        self.quantiser = Quantiser(**order.quantiser)
        self.source = Source(order.file, order.weights, order.text)
        self.bench = Bench(self.source, order.model, self.quantiser)
        self.choices = plan.candidates(self.bench.anatomy, self.bench.target.image_knobs, order.values, order.per)
        self.skipped: list[str] = []

    @property
    def notes(self) -> Sequence[str]:
        """What cannot be measured, one sentence each."""
        return [*self.bench.anatomy.notes, *self.skipped]

    @cached_property
    def header(self) -> ProfileHeader:
        """The profile's first line."""
        bench = self.bench
        return ProfileHeader(
            model=bench.anatomy.model,
            kind="measured",
            modules=bench.anatomy.modules,
            n_samples=bench.n_samples,
            seed=self.order.seed,
            provenance={
                "software": {"torch": torch.__version__.split("+")[0], "device": bench.target.device.type},
                "data": {
                    "samples": bench.n_samples,
                    "test_samples": sum(len(r.scores) for r in bench._reference("test_samples")),
                    "own_test_samples": bench.target.has_test_samples,
                    "base_on_test_samples": bench.metric("test_samples").base,
                },
                "quantiser": self.quantiser.to_json(),
                "target": target_json(self.source, self.order.out),
            },
            metric=bench.metric(),
            total_loss_nats=bench.total_loss_nats,
            date=self.order.date,
        )

    @property
    def n_singles(self) -> int:
        """Single choices that there are to measure."""
        return sum(len(values) for by_group in self.choices.values() for values in by_group.values())

    def singles(self, known: Sequence[Measurement]) -> Iterator[Measurement]:
        """Yield the measurements of single choices that are not known yet, the most telling first."""
        rows = list(known)
        done = {(r.group, r.knob, r.value) for r in rows}
        for stage in (plan.first, lambda choices: plan.rest(choices, rows)):
            for one in stage(self.choices):
                if (one.group, one.knob, one.value) in done:
                    continue
                try:
                    figures = self.bench.measure(self.settings({one.knob: {one.group: one.value}}))
                except NotFinite:
                    self.skipped.append(f"{one.knob}={one.value} of {one.group or 'the model'}: output not finite")
                    continue
                rows.append(Measurement(one.group, one.knob, one.value, figures))
                yield rows[-1]

    def configurations(self, known: QualityProfile, n: int, n_held_out: int) -> Iterator[Configuration]:
        """Yield random configurations of what is measured, on the test samples, until there are n and n_held_out."""
        there = {(r.knob, r.group) for r in known.rows}
        choices = {
            knob: {group: values for group, values in by_group.items() if (knob, group) in there}
            for knob, by_group in self.choices.items()
        }
        for is_held_out, count in ((False, n), (True, n_held_out)):
            seen = [canonical_json(c.map) for c in known.configurations if c.held_out == is_held_out]
            for i in range(4 * count):
                chosen = plan.draw(choices, np.random.default_rng([self.order.seed, int(is_held_out), i]))
                if len(seen) >= count or not any(choices.values()):
                    break
                if not chosen or canonical_json(chosen) in seen:
                    continue
                try:
                    figures = self.bench.measure(self.settings(chosen), "test_samples")
                except NotFinite:
                    self.skipped.append("a random configuration: output not finite")
                    continue
                seen.append(canonical_json(chosen))
                yield Configuration(chosen, figures, is_held_out)

    def scores(self, profile: QualityProfile) -> Mapping[str, float]:
        """Return how well the surrogate predicts the held-out configurations; empty with fewer than three."""
        held_out = [c for c in profile.configurations if c.held_out]
        return errors(Predictor(profile), held_out) if len(held_out) >= _LEAST_HELD_OUT else {}

    def settings(self, chosen: Mapping[str, Mapping[str, Value]]) -> Settings:
        """Return a map knob -> group -> value as settings of single places."""
        modules = self.bench.anatomy.modules
        groups = {g: read_group(g, modules) for by_group in chosen.values() for g in by_group}
        return resolve(chosen, groups, {knob: self._places.entries(knob) for knob in chosen})

    @cached_property
    def _places(self) -> QualityProfile:
        return QualityProfile(ProfileHeader("", "measured", self.bench.anatomy.modules, 1, 0, {}))


def errors(predictor: Predictor, measured: Sequence[Configuration]) -> dict[str, float]:
    """Return rank correlation, R2, mean error and coverage of predictions against measured configurations.

    Args:
        predictor: of their profile.
        measured: configurations that it was not fitted to.

    Returns:
        ``kl_rank``, ``kl_factor`` (median of the larger over the smaller), ``kl_coverage_ratio``; of the score relative
        to the full model's ``rank``, ``r2``, ``error`` (mean, absolute) and ``coverage_ratio``; ``n``.
    """
    told = predictor.predict_maps([c.map for c in measured])
    kl = np.array([c.figures.kl_nats for c in measured], dtype=np.float64)
    low_high = (told.kl_low <= kl) & (kl <= told.kl_high)
    factor = np.exp(np.abs(np.log(np.maximum(told.kl, _TINY) / np.maximum(kl, _TINY))))
    found = {
        "n": float(len(measured)),
        "kl_rank": _rank_correlation(told.kl, kl),
        "kl_factor": float(np.median(factor)),
        "kl_coverage_ratio": float(low_high.mean()),
    }
    metric = predictor.profile.header.metric
    if metric is None or any(c.figures.metric is None for c in measured):
        return found
    score = np.array([c.figures.metric for c in measured], dtype=np.float64) / configuration_base(predictor.profile)
    inside = (told.score_low <= score) & (score <= told.score_high)
    spread = float(((score - score.mean()) ** 2).sum())
    return found | {
        "rank": _rank_correlation(told.score, score),
        "r2": 1.0 - float(((told.score - score) ** 2).sum()) / spread if spread else float("nan"),
        "error": float(np.abs(told.score - score).mean()),
        "coverage_ratio": float(inside.mean()),
    }


def configuration_base(profile: QualityProfile) -> float:
    """Return the full model's metric on the samples that configurations are measured on."""
    metric, data = profile.header.metric, profile.header.provenance["data"]
    assert metric is not None
    return float(data.get("base_on_test_samples", metric.base)) if isinstance(data, Mapping) else metric.base


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation, ties at their mean rank; NaN where one side does not vary."""
    ranks = [np.searchsorted(np.sort(x), x) + np.searchsorted(np.sort(x), x, side="right") for x in (a, b)]
    if any(np.ptp(r) == 0 for r in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def target_json(source: Source, out: str) -> dict[str, Any]:
    """Return where the model comes from, as a profile says it: paths from the profile's folder, hashes of content."""
    folder = Path(out).resolve().parent
    hashes = source.hashes()
    parts = {
        name: {"path": Path(os.path.relpath(Path(at).resolve(), folder)).as_posix(), "hash": hashes[name]}
        for name, at in source.parts().items()
    }
    return {"folder": _folder_said(Path(out), parts) or folder.as_posix(), **parts}


def _folder_said(out: Path, parts: Mapping[str, Any]) -> str:
    """Return the folder that a profile of the same target was begun in: it may have been moved with all it is about."""
    if not out.is_file():
        return ""
    with suppress(ValueError, KeyError, AttributeError), out.open(encoding="utf-8") as file:
        said = json.loads(file.readline())["provenance"]["target"]
        if {name: said[name] for name in parts} == dict(parts):
            return str(said["folder"])
    return ""
