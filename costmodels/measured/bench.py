"""What a configuration costs: divergence from the full model's output, and the task's metric, with their noise.

KL(full || compressed) is summed over the outputs that count and divided by their number; its standard error is that of
a ratio of two sums over samples, se^2 = n / (n - 1) sum (k_i - KL c_i)^2 / (sum c)^2 for sums k_i over the c_i outputs
of sample i. The metric is the mean of one score per sample.

Results are kept by the canonical map, so what was measured once is not measured again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch

from costmodels.measured.anatomy import Anatomy, described, matrix_of, named
from costmodels.measured.compress import Settings, applied
from costmodels.measured.quantise import Quantiser
from costmodels.measured.target import Source, Target
from dse.canonical import canonical_json
from dse.errors import UserError
from dse.model import Model
from dse.profile import LEAST_SAMPLES, Figures, TaskMetric

SPLITS: Final = ("samples", "test_samples", "log_samples")


class NotFinite(UserError):
    """The compressed model's output is not finite."""


@dataclass(frozen=True)
class _Reference:
    """The full model's answers to one batch: log-probabilities of the outputs that count, which, and the scores."""

    log_p: torch.Tensor
    mask: torch.Tensor
    best: torch.Tensor
    scores: torch.Tensor


class Bench:
    """A model on the bench.

    Args:
        source: where model and samples come from.
        model: its description, None to go by names.
        quantiser: how weights are rounded.
    """

    def __init__(self, source: Source, model: Model | None = None, quantiser: Quantiser | None = None) -> None:
        self.target = Target(source)
        self.quantiser = quantiser or Quantiser()
        net, caches = self.target.model, self.target.cache_modules()
        self.anatomy: Anatomy = (
            described(net, model, caches) if model is not None else named(net, type(net).__name__, caches)
        )
        self._known: dict[str, Figures] = {}
        self._references: dict[str, list[_Reference]] = {}

    def metric(self, split: str = "samples") -> TaskMetric:
        """Return the task's metric of the full model on one split of the samples."""
        scores = torch.cat([r.scores for r in self._reference(split)])
        base, se = _mean(scores)
        if self.target.evaluates and base <= self.target.chance:
            raise UserError(
                f"the full model scores {base:g}, no better than CHANCE = {self.target.chance:g}",
                "check evaluate(logits, batch) and the weights",
            )
        is_binary = bool(((scores == 0) | (scores == 1)).all()) and self.target.evaluates
        return TaskMetric(self.target.metric_name, base, "max", se, self.target.chance, is_binary=is_binary)

    @property
    def n_samples(self) -> int:
        """Samples that single choices are measured on."""
        return sum(len(r.scores) for r in self._reference("samples"))

    @property
    def total_loss_nats(self) -> float:
        """Logarithm of the number of classes: the loss of output that knows nothing."""
        return math.log(self._reference("samples")[0].log_p.shape[-1])

    def measure(self, settings: Settings, split: str = "samples") -> Figures:
        """Return what a configuration costs.

        Args:
            settings: the configuration.
            split: "samples" or "test_samples".

        Raises:
            NotFinite: the compressed model's output is not.
            UserError: a score that cannot be.
        """
        key = canonical_json([split, sorted((k, str(v)) for k, v in vars(settings).items())])
        if key not in self._known:
            self._known[key] = self._measure(settings, split)
        return self._known[key]

    def _measure(self, settings: Settings, split: str) -> Figures:
        references = self._reference(split)
        sums, counts, scores = [], [], []
        with torch.no_grad(), self.compressed(settings):
            for batch, full in zip(self._batches(split), references, strict=True):
                logits, mask = self.target.forward(batch, **settings.image)
                if mask.shape != full.mask.shape or not torch.equal(mask, full.mask):
                    raise UserError(
                        f"forward() gives other outputs at {settings.image}: {int(mask.sum())} that count, of the full "
                        f"model {int(full.mask.sum())}",
                        "return the logits of the same outputs (of the answer, say) at every setting",
                    )
                if not torch.isfinite(logits).all():
                    raise NotFinite("the output of the compressed model is not finite")
                log_q = logits[mask].log_softmax(-1)
                kl = torch.where(full.log_p > -torch.inf, full.log_p.exp() * (full.log_p - log_q), 0.0).sum(-1)
                per_sample = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
                per_sample[mask] = kl.double()
                sums.append(per_sample.sum(1).cpu())
                counts.append(mask.sum(1).cpu())
                scores.append(self._scores(logits, mask, batch, full))
        k, c = torch.cat(sums), torch.cat(counts).double()
        kl_nats = float(k.sum() / c.sum())
        residual = k - kl_nats * c
        n = len(k)
        kl_se = float((residual.square().sum() * n / max(n - 1, 1)).sqrt() / c.sum())
        metric, metric_se = _mean(torch.cat(scores))
        is_told = n >= LEAST_SAMPLES
        return Figures(max(kl_nats, 0.0), kl_se if is_told else None, metric, metric_se if is_told else None, n)

    def answers(self, settings: Settings, split: str = "log_samples") -> tuple[np.ndarray, np.ndarray]:
        """Return what the compressed model answers as a stage: confidences and credits, shape (samples,) both.

        Args:
            settings: the configuration.
            split: one of :data:`SPLITS`.
        """
        with torch.no_grad(), self.compressed(settings):
            found = [self.target.answer(batch, **settings.image) for batch in self._batches(split)]
        return torch.cat([score for score, _ in found]).numpy(), torch.cat([credit for _, credit in found]).numpy()

    @contextmanager
    def compressed(self, settings: Settings) -> Iterator[None]:
        """Compress the model for the duration of the block."""
        prunes = any(min(v.values(), default=1.0) < 1 for k, v in settings.blocks.items() if k.endswith("n_keep")
                     or k == "head_keep")  # fmt: skip
        scores: Mapping[str, np.ndarray] = self.column_scores if prunes else {}
        with applied(self.target.model, self.anatomy, settings, self.quantiser, scores):
            yield

    def _scores(self, logits: torch.Tensor, mask: torch.Tensor, batch: Any, full: _Reference) -> torch.Tensor:
        if self.target.evaluates:
            return self.target.evaluate(logits, batch)
        same = (logits.argmax(-1) == full.best) & mask
        return (same.sum(1) / mask.sum(1).clamp_min(1)).double().cpu()

    def _batches(self, split: str) -> list[Any]:
        found: list[Any] = getattr(self.target, split)
        return found

    def _reference(self, split: str) -> list[_Reference]:
        if split == "test_samples" and not self.target.has_test_samples:
            split = "samples"
        if split not in self._references:
            with torch.no_grad():
                self._references[split] = [self._full(i, batch) for i, batch in enumerate(self._batches(split))]
        return self._references[split]

    def _full(self, number: int, batch: Any) -> _Reference:
        logits, mask = self.target.forward(batch)
        if not mask.any():
            raise UserError(f"no output of batch {number} counts", "the mask that forward() gives is all False")
        if not torch.isfinite(logits[mask]).all():
            raise UserError(
                f"the full model's output for batch {number} is not finite", "load the weights in 32 bits, check them"
            )
        best = logits.argmax(-1)
        scores = self.target.evaluate(logits, batch) if self.target.evaluates else torch.ones(len(logits)).double()
        return _Reference(logits[mask].log_softmax(-1), mask, best, scores)

    @cached_property
    def column_scores(self) -> dict[str, np.ndarray]:
        """What each input column adds to the output of the projections that pruning shortens: E[x^2] |w|^2."""
        net = self.target.model
        names = {u.name for b in self.anatomy.blocks.values() for u in (*b.heads, *b.channels)}
        squares: dict[str, torch.Tensor] = {}

        def watch(name: str) -> Any:
            def hook(_: torch.nn.Module, args: tuple[Any, ...]) -> None:
                x = args[0].float().flatten(0, -2)
                squares[name] = squares.get(name, 0) + x.square().sum(0)

            return hook

        hooks = [net.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
        try:
            with torch.no_grad():
                for batch in self.target.samples:
                    self.target.forward(batch)
        finally:
            for hook in hooks:
                hook.remove()
        found = {}
        for name in names:
            matrix = matrix_of(net.get_submodule(name))
            assert matrix is not None
            weight = matrix[0].float()
            norms = weight.square().sum(1 if matrix[1] else 0)
            # A projection that the forward pass does not call as a module is judged by its weights alone.
            found[name] = (norms * squares[name] if name in squares else norms).double().cpu().numpy()
        return found


def _mean(scores: torch.Tensor) -> tuple[float, float]:
    n = len(scores)
    se = float(scores.std(unbiased=True) / math.sqrt(n)) if n > 1 else 0.0
    return float(scores.mean()), se
