"""Collects the additive parts of metrics while a batch is evaluated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from dse.designs import DesignBatch
from dse.metrics import MetricBatch
from dse.protocols import Breakdown, Roofline

Label = tuple[str, str, str, str]  # component, phase, operator class, cost kind


class Ledger:
    """Sums of parts by metric and label.

    Args:
        n: number of designs.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._parts: dict[str, dict[Label, np.ndarray]] = {}
        self._bounds: dict[tuple[str, str, str], list[np.ndarray]] = {}

    def add(self, metric: str, labels: Sequence[Label], parts: np.ndarray) -> None:
        """Add parts, shape (n, len(labels)), to what is there under each label."""
        sums = self._parts.setdefault(metric, {})
        for label in dict.fromkeys(labels):
            columns = [i for i, other in enumerate(labels) if other == label]
            sums[label] = sums.get(label, np.zeros(self._n)) + parts[:, columns].sum(axis=1)

    def add_one(self, metric: str, label: Label, part: np.ndarray) -> None:
        """Add one part, shape (n,)."""
        self.add(metric, [label], np.broadcast_to(part, self._n)[:, None])

    def breakdowns(self) -> list[Breakdown]:
        """Return the collected parts; labels whose parts are all zero are left out."""
        out = []
        for metric, sums in self._parts.items():
            labels = tuple(label for label, part in sums.items() if part.any())
            parts = np.stack([sums[label] for label in labels], axis=1) if labels else np.zeros((self._n, 0))
            out.append(Breakdown(metric, labels, parts))
        return out

    def bound(
        self, phase: str, labels: Sequence[tuple[str, str]], compute_s: np.ndarray, traffic_s: np.ndarray,
        seconds: np.ndarray,
    ) -> None:  # fmt: skip
        """Add operators, shape (n, len(labels)): their times at the peaks and what they take.

        Args:
            phase: the phase they are in.
            labels: (component, class) of each.
            compute_s, traffic_s, seconds: see :class:`~dse.protocols.Roofline`.
        """
        for component, cls in dict.fromkeys(labels):
            columns = [i for i, other in enumerate(labels) if other == (component, cls)]
            found = [np.broadcast_to(x, (self._n, len(labels)))[:, columns].sum(axis=1)
                     for x in (compute_s, traffic_s, seconds)]  # fmt: skip
            key = (component, phase, cls)
            self._bounds[key] = [
                a + b for a, b in zip(self._bounds.get(key, [np.zeros(self._n)] * 3), found, strict=True)
            ]

    def roofline(self) -> Roofline:
        """Return the collected operators; those that do nothing in any design are left out."""
        found = {label: times for label, times in self._bounds.items() if times[2].any()}
        planes = [
            np.stack([t[i] for t in found.values()], axis=1) if found else np.zeros((self._n, 0)) for i in range(3)
        ]
        return Roofline(tuple(found), *planes)


class Itemised(ABC):
    """What evaluators have in common that can itemise what they cost: passes over a batch, breakdown, roofline.

    Attributes:
        pass_rows: designs that are costed at once; a batch is cut into as many passes as it needs.
    """

    pass_rows: int

    @abstractmethod
    def _evaluate(self, batch: DesignBatch, ledger: Ledger | None) -> MetricBatch:
        """Return the metrics of some designs, and enter what they consist of where there is a ledger."""

    def evaluate(self, batch: DesignBatch) -> MetricBatch:
        """Return the metrics of each design, row by row."""
        if len(batch) <= self.pass_rows:
            return self._evaluate(batch, None)
        parts = []
        for start in range(0, len(batch), self.pass_rows):
            stop = min(start + self.pass_rows, len(batch))
            parts.append((np.arange(start, stop), self._evaluate(batch.take(slice(start, stop)), None)))
        return MetricBatch.scatter(parts, len(batch))

    def breakdown(self, batch: DesignBatch) -> list[Breakdown]:
        """Return the metrics that are sums in their additive parts."""
        ledger = Ledger(len(batch))
        self._evaluate(batch, ledger)
        return ledger.breakdowns()

    def roofline(self, batch: DesignBatch) -> Roofline:
        """Return the operators against the peaks of their unit and of the memory, each at its own precision."""
        ledger = Ledger(len(batch))
        self._evaluate(batch, ledger)
        return ledger.roofline()
