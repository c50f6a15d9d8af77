"""Times of a request from those of its phases, and how far the times of an accelerator may be off.

The band of the accelerator's closed form. Its cycles are exact against SCALE-Sim, its traffic against ZigZag where
layers fit; what is uncertain is how much of both a real memory system overlaps. ZigZag, an independent model that has
been validated against a taped-out accelerator (94.3 % mean accuracy, Mei et al., DATE 2022), answers that otherwise:
:data:`BAND` are the least and the largest of its latency over ours on the even rows of the shipped comparison
(tests/data/zigzag_tpu_like.csv), 13 products; with 13 draws of the same kind a further one falls inside with
probability 12/14. Rounded outwards. On the odd rows, which it was not taken from, all 12 do, one by the rounding
(tests/oracles/test_zigzag.py).

Limits: one accelerator description, 8 bits, products alone. All products of a model are taken to be off the same way,
which makes the interval of a sum wide; passes bound by DRAM, where both models agree within 0.2 %, get it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

BAND: Final = (0.83, 1.34)


def request_times(phases: Mapping[str, np.ndarray], decode_passes: float) -> dict[str, np.ndarray]:
    """Return the times of a request in seconds, by metric, in the shape of its phases.

    Args:
        phases: seconds of a pass of "encode", "prefill" and "decode".
        decode_passes: how often decode runs.
    """
    first, decode = phases["encode"] + phases["prefill"], decode_passes * phases["decode"]
    return {
        "latency_s": first + decode,
        "ttft_s": first,
        "tpot_s": phases["decode"],
        "encode_s": phases["encode"],
        "prefill_s": phases["prefill"],
        "decode_s": decode,
    }
