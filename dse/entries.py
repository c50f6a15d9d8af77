"""Where a knob has values: the places of a model, as columns of designs and groups of profiles name them."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One place that a knob has a value for.

    Attributes:
        role, component: where it belongs; "" for the problem as a whole.
        section: stem, block or head of its component.
        block: block index, -1 outside blocks.
        leaf: module path inside block or section, "" for whole blocks.
        kind: "attention", "mlp" or "" for other modules.
        channel, n_channels: which of how many parts of the output channels.
        path: Hugging Face module path, "" for blocks, roles and the problem.
    """

    role: str = ""
    component: str = ""
    section: str = ""
    block: int = -1
    leaf: str = ""
    kind: str = ""
    channel: int = 0
    n_channels: int = 1
    path: str = ""
