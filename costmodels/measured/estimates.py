"""Profiles of the heuristic kind: what weights, or weights and gradients, say without compressing anything.

``fisher``  KL = 1/2 sum F_i dw_i^2, the second-order expansion of the divergence in the rounding errors dw, with the
            diagonal of the Fisher information F = E[(d ln p(y) / d w)^2], y drawn from the model's own output: needs
            samples, no answers, and eight gradients per batch instead of a measurement per choice.
``weights`` |dw|^2, the squared error of rounding: needs nothing but the weights. It has no scale in
            nats; the worst module at its narrowest width is put at total loss, and ranks are all it is good for.

On a small vision-language model the first ranks bit maps at 0.895, the second at 0.669, against 0.94 for measured
sums. Weights alone: activations, caches, pruning and images have no estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import torch

from costmodels.measured.anatomy import matrix_of
from costmodels.measured.profiling import MeasuredProfiling
from dse.capabilities import ProfileOrder
from dse.profile import Configuration, Figures, Measurement, ProfileHeader, QualityProfile, read_group

_DRAWS: Final = 8


class EstimatedProfiling(MeasuredProfiling):
    """A profile that is estimated.

    Args:
        order: what is to be profiled; ``estimate`` says how.
    """

    def __init__(self, order: ProfileOrder) -> None:
        super().__init__(order)
        self.choices = {knob: v for knob, v in self.choices.items() if knob == "weight_bits"}

    @property
    def notes(self) -> Sequence[str]:
        """What has no estimate."""
        return [*super().notes, "activations, caches, pruning and images have no estimate from weights"]

    @property
    def header(self) -> ProfileHeader:
        """The profile's first line: no metric, which nothing was scored by."""
        full = super().header
        provenance = {k: v for k, v in full.provenance.items() if k != "target"} | {"estimate": self.order.estimate}
        return replace(full, kind="heuristic", metric=None, provenance=provenance)

    def singles(self, known: Sequence[Measurement]) -> Iterator[Measurement]:
        """Yield the estimates that are not known yet."""
        done = {(r.group, r.value) for r in known}
        estimate = self._fisher() if self.order.estimate == "fisher" else self._squares()
        for group, values in self.choices.get("weight_bits", {}).items():
            for value in values:
                if (group, value) not in done:
                    figures = Figures(estimate(group, int(value)), None, None, None, self.bench.n_samples)
                    yield Measurement(group, "weight_bits", value, figures)

    def configurations(self, known: QualityProfile, n: int, n_held_out: int) -> Iterator[Configuration]:
        """Yield nothing: an estimate is not calibrated."""
        del known, n, n_held_out
        yield from ()

    def _errors(self, group: str, bits: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Yield name, weights and rounding errors of each module of a group, as matrices."""
        place = read_group(group, self.bench.anatomy.modules)
        for entry in self._places.entries("weight_bits"):
            name = self.bench.anatomy.names.get(entry.path)
            if name is None or not place.holds(entry):
                continue
            found = matrix_of(self.bench.target.model.get_submodule(name))
            assert found is not None
            full = (found[0].t() if found[1] else found[0].flatten(1)).float()
            yield name, full, self.quantiser.weights(full, bits) - full

    def _squares(self) -> Callable[[str, int], float]:
        def error(group: str, bits: int) -> float:
            return sum(float(d.square().sum()) for _, _, d in self._errors(group, bits))

        worst = max(error(g, int(v)) for g, values in self.choices["weight_bits"].items() for v in values)
        return lambda group, bits: error(group, bits) / worst * self.bench.total_loss_nats

    def _fisher(self) -> Callable[[str, int], float]:
        """Return the estimate by the Fisher information; the gradients are taken when it is first asked."""
        information: dict[str, torch.Tensor] = {}

        def estimate(group: str, bits: int) -> float:
            if not information:
                information.update(self._information())
            errors = self._errors(group, bits)
            return 0.5 * sum(float((information[n] * d.square()).sum()) for n, _, d in errors)

        return estimate

    def _information(self) -> dict[str, torch.Tensor]:
        """Return E[(d ln p / d w)^2] per output of every weight, shape of its matrix."""
        target, draw = self.bench.target, torch.Generator(device=self.bench.target.device)
        draw.manual_seed(self.order.seed)
        names = self.bench.anatomy.names.values()
        found = {name: matrix_of(target.model.get_submodule(name)) for name in names}
        weights = {name: m for name, m in found.items() if m is not None}
        total = {name: torch.zeros_like(w, dtype=torch.float32) for name, (w, _) in weights.items()}
        n_outputs = 0
        for w, _ in weights.values():
            w.requires_grad_(True)
        try:
            for batch in target.samples:
                logits, mask = target.forward(batch)
                log_p = logits.log_softmax(-1)
                for i in range(_DRAWS):
                    y = torch.multinomial(log_p.detach().exp().flatten(0, 1), 1, generator=draw).view(mask.shape)
                    # Drawn outputs have scores of mean zero, independent of each other: the square of their sum is
                    # the sum of their squares in expectation.
                    drawn = (log_p.gather(-1, y[..., None])[..., 0] * mask).sum()
                    gradients = torch.autograd.grad(
                        drawn, [w for w, _ in weights.values()], retain_graph=i + 1 < _DRAWS, allow_unused=True
                    )
                    for name, g in zip(weights, gradients, strict=True):
                        if g is not None:
                            total[name] += g.float().square()
                    n_outputs += int(mask.sum())
        finally:
            for w, _ in weights.values():
                w.requires_grad_(False)
        return {
            name: (total[name].t() if inputs_first else total[name].flatten(1)) / n_outputs
            for name, (_, inputs_first) in weights.items()
        }
