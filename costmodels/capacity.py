"""Room for keys and values on a device: its memory, less everything else that lies there, item by item.

    "vllm"     cache = reported x 0.9 - weights - live - context
    "trtllm"   cache = (reported - weights - live - context) x 0.95

    live = max(activations of a step, sampling)

- *Reported memory* is what the driver lets programs have, in bytes (GiB, not GB; catalogue entries say where it was
  read).
- *Shares*: vLLM's ``gpu_memory_utilization`` up to 0.19; the ``kv_cache_free_gpu_mem_fraction`` that TensorRT-LLM's
  published tables were measured with. The rest is for recorded graphs, fragments, others.
- *Sampling*: logits of the requests that a step samples for and what sorting makes of them, in vLLM 39 bytes per logit:
  its log for Llama-3-8B on an H100 (vllm-project/vllm pull request 10511: peak of 1.26 GiB at 256 requests, on one and
  on two devices alike) less hidden states of 8,192 positions. 30 of them are accounted for: logits at 16 and 32 bits,
  sorted values, 64-bit indices, 12 bytes of the sort's workspace. TensorRT-LLM, greedy: logits at 16 and 32 bits.
- *Context*: libraries' workspaces, 0.2 GiB (0.16 and 0.20 GiB in the logs of pull requests 12126 and 14447).

Caches are cut into blocks of 16 positions. A block's bytes follow from a request's cache at its full length, so caches
with a window are spread over it evenly, encoder states too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, NamedTuple

import numpy as np

BLOCK_TOKENS: Final = 16
CONTEXT_BYTES: Final = 0.2 * 2**30


class Engine(NamedTuple):
    """How a serving engine treats memory.

    Attributes:
        name: what it is called.
        used_ratio: part of the memory that it uses.
        is_of_free: whether that part is of what weights and a step leave, and not of all.
        sampling_bytes: per logit.
        reserves: whether a request takes blocks for its whole length when it is admitted.
    """

    name: str
    used_ratio: float
    is_of_free: bool
    sampling_bytes: float
    reserves: bool


ENGINES: Final = {
    "vllm": Engine("vllm", 0.9, is_of_free=False, sampling_bytes=39.0, reserves=False),
    "trtllm": Engine("trtllm", 0.95, is_of_free=True, sampling_bytes=6.0, reserves=True),
}


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
    engine: Engine = ENGINES["vllm"],
) -> Capacity:
    """Return the room for keys and values, arrays (n,).

    Args:
        reported_bytes: memory of a device.
        weight_bytes: weights on the fullest device.
        step_bytes: largest activations of a step.
        sampled: requests that a step samples for.
        vocabulary: size of the token table.
        request_bytes, request_tokens: cache on the fullest device, and positions, of the longest request.
        engine: what shares it out.
    """
    n = len(weight_bytes)
    live = np.maximum(step_bytes, engine.sampling_bytes * sampled * vocabulary)
    other = weight_bytes + live + CONTEXT_BYTES
    if engine.is_of_free:
        left = engine.used_ratio * (reported_bytes - other)
    else:
        left = engine.used_ratio * reported_bytes - other
    n_blocks = np.ceil(request_tokens / BLOCK_TOKENS)
    per_block = np.maximum(request_bytes / request_tokens * BLOCK_TOKENS, 1e-9)
    return Capacity(
        reported_bytes=np.full(n, reported_bytes),
        reserved_bytes=reported_bytes - other - left,
        weight_bytes=weight_bytes,
        activation_bytes=live,
        context_bytes=np.full(n, CONTEXT_BYTES),
        kv_bytes=np.maximum(left, 0.0),
        block_bytes=per_block,
        request_bytes=n_blocks * per_block,
    )
