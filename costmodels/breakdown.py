"""Collects the additive parts of metrics while a batch is evaluated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
