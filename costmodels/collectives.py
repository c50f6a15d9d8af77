"""Latency of collectives between the ranks of one node, in closed form.

M bytes per rank, n ranks, B the link bandwidth per direction of one device. Two algorithms, as the libraries have them:

    ring     t = a_r (1 + hop (n - 2)) + 2 (n - 1) / n  M / (B e_r) (n / 2)^contention
    direct   t = a_d (1 + hop (n - 2)) + 2 (n - 1) / n  M / (B e_d) (n / 2)^contention,  for messages up to a limit

An all-reduce of M bytes sends 2 (n - 1) / n M per rank whatever the algorithm, a reduce-scatter followed by an
all-gather; either alone, or an all-to-all, sends half of it. Above the limit the ring is used, and never counts less
than the direct form would. ``contention`` is near 0 behind a switch that serves all ranks at once, and positive where
ranks share a bus (PCI Express). Constants are fitted on all-reduces; all-gather, reduce-scatter and all-to-all are
derived from the same ring with half the traffic, not measured.
"""

from __future__ import annotations

from typing import Final

import numpy as np

FIELDS: Final = (
    "direct_launch_s", "ring_launch_s", "hop_ratio", "direct_ratio", "ring_ratio", "contention_exponent",
    "direct_limit_bytes",
)  # fmt: skip


def all_reduce_s(
    n_bytes: np.ndarray, ranks: np.ndarray, link_bytes_per_s: float | np.ndarray, constants: np.ndarray
) -> np.ndarray:
    """Return the latency of all-reduces.

    Args:
        n_bytes: message of each rank, shape (n,).
        ranks: devices that take part, shape (n,); a single one has nothing to do.
        link_bytes_per_s: per direction and device.
        constants: by :data:`FIELDS`.
    """
    return _ring_s(n_bytes, ranks, 2.0, link_bytes_per_s, constants)


def all_gather_s(
    n_bytes: np.ndarray, ranks: np.ndarray, link_bytes_per_s: float | np.ndarray, constants: np.ndarray
) -> np.ndarray:
    """Return the latency of all-gathers that leave ``n_bytes`` on each rank; reduce-scatters take as long."""
    return _ring_s(n_bytes, ranks, 1.0, link_bytes_per_s, constants)


def all_to_all_s(
    n_bytes: np.ndarray, ranks: np.ndarray, link_bytes_per_s: float | np.ndarray, constants: np.ndarray
) -> np.ndarray:
    """Return the latency of all-to-alls of ``n_bytes`` per rank, of which it keeps 1 / n."""
    return _ring_s(n_bytes, ranks, 1.0, link_bytes_per_s, constants)


def _ring_s(
    n_bytes: np.ndarray, ranks: np.ndarray, rounds: float, link_bytes_per_s: float | np.ndarray, constants: np.ndarray
) -> np.ndarray:
    direct_launch, ring_launch, hop, direct, ring, contention, limit = constants
    n = np.maximum(ranks, 2.0)
    hops = 1.0 + hop * (n - 2.0)
    wire = rounds * (n - 1.0) / n * n_bytes / link_bytes_per_s * (n / 2.0) ** contention
    at_once = direct_launch * hops + wire / direct
    in_turn = np.maximum(ring_launch * hops + wire / ring, at_once if limit > 0 else 0.0)
    return np.where(ranks > 1, np.where(n_bytes <= limit, at_once, in_turn), 0.0)
