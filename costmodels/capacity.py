"""Room for keys and values on a device: its memory, less everything else that lies there, item by item.

    usable = reported memory x used ratio
    cache  = usable - weights - live - context,     live = max(activations of a step, sampling)

- *Reported memory* is what the driver lets programs have, in bytes (GiB, not GB; catalogue entries say where it was
  read).
- *Used ratio*, 0.9: vLLM's ``gpu_memory_utilization`` up to 0.19. The rest is for recorded graphs, fragments, others.
- *Sampling*: logits of the last step's requests and what sorting and sampling make of them, 39 bytes per logit: vLLM's
  log for Llama-3-8B on an H100 (vllm-project/vllm pull request 10511: peak of 1.26 GiB at 256 requests, one and two
  devices alike) less the hidden states of 8,192 positions. 30 of them are accounted for: logits at 16 and 32 bits,
  sorted values, 64-bit indices, 12 bytes of the sort's workspace.
- *Context*: libraries' workspaces, 0.2 GiB (0.16 and 0.20 GiB in the logs of pull requests 12126 and 14447).

Caches are cut into blocks of 16 positions. A block's bytes follow from a request's cache at its full length, so caches
with a window are spread over it evenly, encoder states too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

BLOCK_TOKENS: Final = 16
USED_RATIO: Final = 0.9
SAMPLING_BYTES_PER_LOGIT: Final = 39.0
CONTEXT_BYTES: Final = 0.2 * 2**30


@dataclass(frozen=True)
class Capacity:
    """What lies in the memory of the fullest device of n designs, bytes, arrays (n,).

    Attributes:
        reported_bytes: what the driver reports.
        reserved_bytes: left alone.
        weight_bytes: stored weights.
        activation_bytes: largest activations of a step, or sampling where that is larger.
        context_bytes: workspaces of libraries.
        kv_bytes: what is left, 0 where nothing is.
        block_bytes: of one block of the cache.
        request_bytes: cache of the longest request.
    """

    reported_bytes: np.ndarray
    reserved_bytes: np.ndarray
    weight_bytes: np.ndarray
    activation_bytes: np.ndarray
    context_bytes: np.ndarray
    kv_bytes: np.ndarray
    block_bytes: np.ndarray
    request_bytes: np.ndarray

    @property
    def n_blocks(self) -> np.ndarray:
        """Whole blocks that there are, shape (n,)."""
        return np.floor(self.kv_bytes / self.block_bytes)

    @property
    def needed_bytes(self) -> np.ndarray:
        """What one request needs besides the part that is left alone, shape (n,)."""
        return self.weight_bytes + self.activation_bytes + self.context_bytes + self.request_bytes

    def item(self, row: int) -> dict[str, float]:
        """Return the items of one design."""
        return {f.name: float(getattr(self, f.name)[row]) for f in fields(self)}


def capacity(
    reported_bytes: float,
    weight_bytes: np.ndarray,
    step_bytes: np.ndarray,
    sampled: np.ndarray,
    vocabulary: int,
    request_bytes: np.ndarray,
    request_tokens: np.ndarray,
    used_ratio: float = USED_RATIO,
) -> Capacity:
    """Return the room for keys and values, arrays (n,).

    Args:
        reported_bytes: memory of a device.
        weight_bytes: weights on the fullest device.
        step_bytes: largest activations of a step.
        sampled: requests that a step samples for.
        vocabulary: size of the token table.
        request_bytes, request_tokens: cache on the fullest device, and positions, of the longest request.
        used_ratio: part of the memory that is used.
    """
    n = len(weight_bytes)
    usable = reported_bytes * used_ratio
    live = np.maximum(step_bytes, SAMPLING_BYTES_PER_LOGIT * sampled * vocabulary)
    left = np.maximum(usable - weight_bytes - live - CONTEXT_BYTES, 0.0)
    n_blocks = np.ceil(request_tokens / BLOCK_TOKENS)
    per_block = np.maximum(request_bytes / request_tokens * BLOCK_TOKENS, 1e-9)
    return Capacity(
        np.full(n, reported_bytes), np.full(n, reported_bytes - usable), weight_bytes, live,
        np.full(n, CONTEXT_BYTES), left, per_block, n_blocks * per_block,
    )  # fmt: skip
