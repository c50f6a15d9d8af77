"""The quality cost model "measured": every design is put into the real model and run on the samples.

Model, samples and rounding are those of a profile's header (the study's own, or the one of ``measured:PROFILE``), so
that what is measured is what was profiled; their content is checked by its hash. PyTorch is imported when the first
design is measured, and results are kept by the canonical map.

quality_loss is KL(full || compressed) per predicted output in nats, accuracy_ratio the metric over the full
model's, both on the test samples; intervals hold the sampling noise of 90 % (1.645 standard errors,
for the accuracy of the metric alone, the full model's being the same samples). What designs choose but the model's
samples do not tell (an image size that the user's forward does not take) makes a design fail, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dse.canonical import content_hash
from dse.capabilities import ProfileOrder, Profiling
from dse.designs import DesignBatch
from dse.errors import UserError
from dse.metrics import MetricBatch
from dse.problem import TARGET, Problem
from dse.profile import PROFILED, Figures, QualityProfile, read_profile
from dse.protocols import Breakdown

if TYPE_CHECKING:
    from costmodels.measured.bench import Bench
    from costmodels.measured.compress import Settings

VERSION: Final = "1"
_Z90: Final = 1.645


class Measured:
    """The quality cost model "measured".

    Args:
        profile: path of a profile whose model is measured.
    """

    group = "quality"
    fidelity = "measured"
    version = VERSION
    laws: frozenset[str] = frozenset()

    def __init__(self, profile: str = "") -> None:
        self.name = f"measured:{profile}" if profile else "measured"
        self.profile = profile

    def prepare(self, problem: Problem) -> MeasuredEvaluator:
        """Return an evaluator of the problem's target model.

        Raises:
            UserError: no profile is named, or its model and samples are not there any more or have changed.
            TableError: the profile is of another model.
        """
        profile = read_profile(self.profile) if self.profile else problem.quality.get(TARGET)
        if profile is None:
            raise UserError(
                f"the cost model 'measured' needs a profile of {problem.target.name}, which says where its model is",
                'make one with "dse profile" and give Study(quality="FILE.jsonl"), or name it: "measured:FILE.jsonl"',
            )
        return MeasuredEvaluator(profile, problem)

    def profiling(self, order: ProfileOrder) -> Profiling:
        """Return a profile to be measured.

        Raises:
            UserError: no PyTorch, or a model, file or setting that cannot be.
        """
        need_torch()
        if order.estimate:
            from costmodels.measured.estimates import EstimatedProfiling

            return EstimatedProfiling(order)
        from costmodels.measured.profiling import MeasuredProfiling

        return MeasuredProfiling(order)


def need_torch() -> None:
    """Raise a UserError unless PyTorch can be imported."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError(
            "measuring a model needs PyTorch, which is not installed", "pip install 'mfm-dse[torch]'"
        ) from None


class MeasuredEvaluator:
    """The real model of one problem.

    Args:
        profile: says where model and samples are.
        problem: the problem.
    """

    metrics: Sequence[str] = ("quality_loss", "accuracy_ratio")

    def __init__(self, profile: QualityProfile, problem: Problem) -> None:
        profile.check_model(problem.models[TARGET])
        self._profile, self._model = profile, problem.models[TARGET]
        provenance = profile.header.provenance
        if profile.kind != "measured" or "target" not in provenance:
            raise UserError(
                f"{profile.origin} is a {profile.kind} profile and names no model that could be measured",
                "profile the model itself with dse profile",
            )
        self._source = _located(provenance["target"], profile.origin)
        self.fingerprint = content_hash(
            {
                "model": VERSION,
                "problem": problem.content_hash,
                "target": {name: part["hash"] for name, part in provenance["target"].items() if name != "folder"},
                "quantiser": provenance["quantiser"],
            }
        )

    def evaluate(self, batch: DesignBatch) -> MetricBatch:
        """Return the loss and accuracy of each design, run one by one."""
        errors: dict[int, str] = {}
        figures: dict[int, Figures] = {}
        for row in range(len(batch)):
            try:
                figures[row] = self._bench.measure(self._settings(batch, row), "test_samples")
            except UserError as error:
                errors[row] = str(error)
        loss, loss_se, score, score_se = np.full((4, len(batch)), np.nan)
        for row, one in figures.items():
            loss[row], loss_se[row] = one.kl_nats, one.kl_se_nats or 0.0
            score[row], score_se[row] = one.metric, one.metric_se or 0.0
        base = self._bench.metric("test_samples").base
        ratio, band = np.maximum(score / base, 0.0), _Z90 * score_se / base
        return MetricBatch(
            values={"quality_loss": loss, "accuracy_ratio": ratio},
            n=len(batch),
            intervals={
                "quality_loss": (np.maximum(loss - _Z90 * loss_se, 0.0), loss + _Z90 * loss_se),
                "accuracy_ratio": (np.maximum(ratio - band, 0.0), ratio + band),
            },
            basis={"quality_loss": "measured", "accuracy_ratio": "measured"},
            errors=errors,
        )

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return nothing: a measured loss has no additive parts."""
        del batch
        return []

    @cached_property
    def _bench(self) -> Bench:
        need_torch()
        from costmodels.measured.bench import Bench
        from costmodels.measured.quantise import Quantiser
        from costmodels.measured.target import Source

        quantiser = Quantiser(**self._profile.header.provenance["quantiser"])
        return Bench(Source(**self._source), self._model, quantiser)

    def _settings(self, batch: DesignBatch, row: int) -> Settings:
        from costmodels.measured.compress import Settings

        found = Settings()
        parts: dict[str, list[int]] = {}
        for knob in PROFILED:
            if knob not in batch:
                continue
            field = batch.schema.fields[knob]
            for entry, value, plain in zip(field.entries, batch[knob][row].tolist(), field.default, strict=True):
                if entry.role != TARGET:
                    continue
                if knob == "weight_bits":
                    parts.setdefault(entry.path, []).append(int(value))
                elif value == plain:
                    continue
                elif knob == "act_bits":
                    found.act_bits[entry.path] = int(value)
                elif entry.component:
                    found.blocks.setdefault(knob, {})[entry.component, entry.block] = float(value)
                else:
                    found.image[knob] = value
        found.weight_bits = {path: tuple(bits) for path, bits in parts.items() if set(bits) != {16}}
        self._check(found)
        return found

    def _check(self, settings: Settings) -> None:
        """Refuse what cannot be done to the model: it would be measured as if it were free."""
        anatomy, target = self._bench.anatomy, self._bench.target
        wrong = [f"{knob}: forward(model, batch) does not take it" for knob in settings.image
                 if knob not in target.image_knobs]  # fmt: skip
        wrong += [f"weight_bits of {path}" for path in settings.weight_bits if path not in anatomy.names]
        wrong += [f"act_bits of {path}" for path in settings.act_bits if path not in anatomy.linear]
        needed = {
            "k_bits": "keys",
            "v_bits": "values",
            "head_keep": "heads",
            "ffn_keep": "channels",
            "block_keep": "name",
        }
        wrong += [
            f"{knob} of {component} block {index}"
            for knob, by_block in settings.blocks.items()
            for component, index in by_block
            if not getattr(anatomy.blocks[component, index], needed[knob])
        ]
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise UserError(
                f"not measurable on this model: {'; '.join(wrong[:3])}{more}", "fix these knobs in the space"
            )


def _located(target: Mapping[str, Any], origin: str) -> dict[str, str]:
    """Return where the parts of a target are, their content checked."""
    from costmodels.measured.hashing import hash_of

    found: dict[str, str] = {}
    for name, part in target.items():
        if name == "folder":
            continue
        path = Path(origin).resolve().parent / part["path"]
        if not (Path(origin).is_file() and path.exists()):
            path = Path(target["folder"]) / part["path"]
        if not path.exists():
            raise UserError(
                f"{origin} was measured on {name} {str(path)!r}, which is not there",
                "put it back, or profile again; paths are relative to the profile",
            )
        if hash_of(path) != part["hash"]:
            raise UserError(
                f"{name} {str(path)!r} has changed since {origin} was measured", "profile again, or restore the file"
            )
        found[name] = str(path)
    return found
