"""The step-time door: what one pass of a model takes, per design, on devices and accelerators alike.

A request, a speculative cycle and a serving simulator are made of passes: image and sound encoding; prefill of p tokens
that end at context c (a whole prompt, or a chunk of one); a decode step of b sequences at context c; a verification
step of g + 1 tokens per sequence. :class:`Steps` costs them with the evaluators that cost whole requests
(:mod:`costmodels.device`, :mod:`costmodels.accelerator`), so a pass has one price wherever it is asked for. Arrays over
designs throughout; lengths may differ from design to design.

Decode at growing context. With f(c) the time of a step whose last position is c, a request of P prompt positions and T
output tokens spends f(P + 1) + ... + f(P + T - 1) after its first token. Spans are linear in c up to a window and
constant behind it, so f is smooth between the kinks of windows (and jumps where a fixed chunk begins); between two
kinks a, b the sum over whole numbers is the integral from a + 1/2 to b + 1/2 up to f'' / 24 per step, and that
integral is taken by Gauss and Legendre's rule with three nodes: exact for linear f, where the sum equals the integral,
and for cubics. The request's own evaluators take f at the mean span instead, exact for linear f alone. Against the
full sum the mean is off by at most 8e-4 (an 8B model on an H100, batch 64, context growing from 128 to 4,224), the
three nodes by 1e-4 (tests/costmodels/test_steps.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    from costmodels.workload import Pass, Workload
    from dse.designs import DesignBatch
    from dse.problem import Problem

# Nodes and weights of Gauss and Legendre's rule on (0, 1).
_NODES: Final = 0.5 + 0.5 * np.sqrt(0.6) * np.array([-1.0, 0.0, 1.0])
_WEIGHTS: Final = np.array([5.0, 8.0, 5.0]) / 18.0
_MOST_CHUNKS: Final = 16
_FEW: Final = 4


@dataclass(frozen=True)
class Step:
    """What passes take; all sequences of a pass together.

    Attributes:
        seconds: low end, value and high end, shape (3, n).
        joules: the same of the energy; zero where the hardware's power is not known.
        dram_bytes: memory traffic, shape (n,).
        live_bytes: largest activations, shape (n,).
    """

    seconds: np.ndarray
    joules: np.ndarray
    dram_bytes: np.ndarray
    live_bytes: np.ndarray

    @classmethod
    def none(cls, n: int) -> Step:
        """Return n passes of nothing."""
        return cls(np.zeros((3, n)), np.zeros((3, n)), np.zeros(n), np.zeros(n))

    @staticmethod
    def concat(parts: Sequence[Step]) -> Step:
        """Return the rows of several steps, one after the other."""
        return Step(
            np.concatenate([p.seconds for p in parts], axis=1),
            np.concatenate([p.joules for p in parts], axis=1),
            np.concatenate([p.dram_bytes for p in parts]),
            np.concatenate([p.live_bytes for p in parts]),
        )

    def plus(self, other: Step) -> Step:
        """Return both, one after the other in time."""
        return Step(
            self.seconds + other.seconds,
            self.joules + other.joules,
            self.dram_bytes + other.dram_bytes,
            np.maximum(self.live_bytes, other.live_bytes),
        )

    def times(self, factor: np.ndarray | float) -> Step:
        """Return so many of them, shape (n,)."""
        return Step(self.seconds * factor, self.joules * factor, self.dram_bytes * factor, self.live_bytes)

    def summed(self, weights: np.ndarray) -> Step:
        """Return the weighted sums of runs of rows, where ``weights`` is (n, k) and there are n k rows here."""
        n, k = weights.shape

        def total(values: np.ndarray) -> np.ndarray:
            return np.asarray((values.reshape(*values.shape[:-1], n, k) * weights).sum(axis=-1))

        live = np.where(weights > 0, self.live_bytes.reshape(n, k), 0.0).max(axis=1)
        return Step(total(self.seconds), total(self.joules), total(self.dram_bytes), live)


class Stepper(Protocol):
    """An evaluator of one role that costs passes."""

    workload: Workload

    def step(self, batch: DesignBatch, asked: Pass) -> Step:
        """Return what one pass takes."""
        ...


def stepper(problem: Problem, role: str) -> Stepper:
    """Return the analytical evaluator of a role on the problem's hardware."""
    from costmodels.accelerator import AcceleratorEvaluator
    from costmodels.analytical import VERSION
    from costmodels.device import DeviceEvaluator
    from dse.hardware import Accelerator

    if isinstance(problem.hardware, Accelerator):
        return AcceleratorEvaluator(problem, problem.hardware, VERSION, role)
    return DeviceEvaluator(problem, problem.hardware, VERSION, role)


class Steps:
    """Passes of one role of a problem.

    Args:
        problem: the problem.
        role: the role.
        evaluator: what costs passes; by default the analytical model of the problem's hardware.
    """

    def __init__(self, problem: Problem, role: str, evaluator: Stepper | None = None) -> None:
        self.evaluator = evaluator or stepper(problem, role)
        self.workload = self.evaluator.workload
        self.model = self.workload.model
        blocks = [b for b in self.model.blocks if b.component == "decoder"]
        self._windows = sorted({c.window for b in blocks for c in b.caches if c.window and c.rows == "context"})
        ops = self.model.graph("decode").ops
        self._chunks = sorted({op.window for op in ops if op.chunked and op.window})
        self._windows = [w for w in self._windows if w not in self._chunks]

    def encode(self, batch: DesignBatch, sequences: np.ndarray | None = None) -> Step:
        """Return the encoding of the images and sounds of ``sequences`` requests, (n,), by default the batch."""
        one = np.ones(len(batch))
        return self._run(batch, "encode", one, one, one, sequences)

    def prefill(
        self, batch: DesignBatch, tokens: np.ndarray, context: np.ndarray, sequences: np.ndarray | None = None
    ) -> Step:
        """Return the pass over ``tokens`` positions of a prompt that end at ``context``, arrays (n,)."""
        return self._run(batch, "prefill", tokens, context, np.ones(len(batch)), sequences)

    def decode(self, batch: DesignBatch, context: np.ndarray, sequences: np.ndarray | None = None) -> Step:
        """Return one decode step at ``context`` positions, the new one included, (n,)."""
        one = np.ones(len(batch))
        return self._run(batch, "decode", one, context, one, sequences)

    def verify(
        self, batch: DesignBatch, tokens: np.ndarray, context: np.ndarray, sequences: np.ndarray | None = None
    ) -> Step:
        """Return a step that checks ``tokens`` positions per sequence at once, the last at ``context``, (n,)."""
        return self._run(batch, "decode", tokens, context, tokens, sequences)

    def whole_prefill(
        self, batch: DesignBatch, chunk: np.ndarray | None = None, sequences: np.ndarray | None = None
    ) -> Step:
        """Return the prefill of each design's prompt, in chunks of ``chunk`` positions, (n,); 0 for one pass."""
        prompt = self.workload.prompt_tokens(batch)
        size = prompt if chunk is None else np.where(chunk > 0, np.minimum(chunk, prompt), prompt)
        n_chunks = np.ceil(prompt / size)
        most = int(n_chunks.max(initial=1))
        # Designs differ in their number of chunks; those behind the last one weigh nothing.
        at = np.arange(1, most + 1)[None, :]
        ends = np.minimum(at * size[:, None], prompt[:, None])
        tokens = ends - np.minimum((at - 1) * size[:, None], prompt[:, None])
        weights = (tokens > 0).astype(np.float64)
        tokens = np.where(tokens > 0, tokens, 1.0)
        return self._each(batch, "prefill", tokens, ends, np.ones_like(ends), sequences).summed(weights)

    def decoding(
        self,
        batch: DesignBatch,
        first: np.ndarray,
        steps: float,
        sequences: np.ndarray | None = None,
        tokens: np.ndarray | None = None,
    ) -> Step:
        """Return the mean of the steps whose last positions are ``first`` ... ``first`` + ``steps`` - 1, (n,).

        Args:
            batch: the designs.
            first: last position of the first step, (n,).
            steps: how many positions the steps go through, at least one; the same for all designs.
            sequences: requests that run together, by default the batch.
            tokens: positions that each step computes; one by default.
        """
        contexts, weights = self._panels(first, np.full(len(batch), float(steps)))
        rows = np.ones_like(contexts) if tokens is None else np.broadcast_to(tokens[:, None], contexts.shape)
        contexts = np.maximum(contexts, rows)
        return self._each(batch, "decode", rows, contexts, rows, sequences).summed(weights)

    def _panels(self, first: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the contexts at which steps are costed, and their weights, which add up to 1, (n, k) each."""
        if steps.max(initial=0.0) <= _FEW:
            # So few are summed one by one: what rounds up to tiles is no smooth function.
            at = np.arange(_FEW)
            each = np.where(at < steps[:, None], 1.0, 0.0)
            return first[:, None] + np.minimum(at, steps[:, None] - 1), each / each.sum(axis=1, keepdims=True)
        start, stop = first - 0.5, first - 0.5 + steps
        cuts = [np.full_like(start, float(window)) for window in self._windows]
        for chunk in self._chunks:
            most = min(int(np.ceil(steps.max() / chunk)) + 1, _MOST_CHUNKS)
            begin = np.floor(start / chunk)
            # A chunk begins after a multiple of its size.
            cuts += [(begin + i) * chunk + 0.5 for i in range(1, most + 1)]
        inside = [c for c in cuts if ((c > start) & (c < stop)).any()]
        edges = np.sort(np.stack([start, *(np.clip(c, start, stop) for c in inside), stop], axis=1), axis=1)
        wide = np.diff(edges, axis=1)
        contexts = (edges[:, :-1, None] + wide[:, :, None] * _NODES).reshape(len(first), -1)
        weights = (wide[:, :, None] * _WEIGHTS / steps[:, None, None]).reshape(len(first), -1)
        return contexts, weights

    def _each(
        self, batch: DesignBatch, phase: str, rows: np.ndarray, context: np.ndarray, logits: np.ndarray,
        sequences: np.ndarray | None,
    ) -> Step:  # fmt: skip
        """Return the passes of lengths (n, k), design by design, n k rows."""
        n, k = context.shape
        repeated = batch if k == 1 else batch.take(np.repeat(np.arange(n), k))
        together = None if sequences is None else np.repeat(sequences, k)
        return self._run(repeated, phase, rows.reshape(-1), context.reshape(-1), logits.reshape(-1), together)

    def _run(
        self, batch: DesignBatch, phase: str, rows: np.ndarray, context: np.ndarray, logits: np.ndarray,
        sequences: np.ndarray | None,
    ) -> Step:  # fmt: skip
        from costmodels.workload import Pass

        if sequences is not None:
            batch = batch.replaced(batch=sequences)
        lengths = (np.ascontiguousarray(a, dtype=np.float64) for a in (rows, context, logits))
        return self.evaluator.step(batch, Pass(phase, *lengths))
