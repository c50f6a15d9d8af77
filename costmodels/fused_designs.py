"""What a batch of designs fuses: the ``fuse_*`` knobs as masks over the groups of a phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from costmodels.fused_tables import FusedTables
from costmodels.fusion import GIVEN, MLP, NORM
from dse.designs import DesignBatch

FORM_KNOBS: Final = {"fuse_mlp": MLP, "fuse_norm": NORM}


@dataclass(frozen=True)
class AskedPhase:
    """The fusion of one phase for a batch of designs.

    Attributes:
        tables: its groups.
        mask: forms of each component, shape (n, components).
        attention: attentions that are fused, shape (n, attentions).
        skipped_products, skipped_vectors: what runs in groups, shapes (n, products), (n, vector operators).
    """

    tables: FusedTables
    mask: np.ndarray
    attention: np.ndarray
    skipped_products: np.ndarray
    skipped_vectors: np.ndarray

    def group_of(self) -> np.ndarray:
        """Return the leader of the group that each operator runs in, itself where it runs alone, (n, operators)."""
        out = np.tile(np.arange(len(self.tables.op_labels)), (len(self.mask), 1))
        for c in range(len(self.tables.components)):
            for bits in np.unique(self.mask[:, c]).tolist():
                rows = np.flatnonzero(self.mask[:, c] == bits)
                for group in self.tables.members[c, bits]:
                    out[np.ix_(rows, np.array(group))] = group[0]
        for x, members in enumerate(self.tables.attention_members):
            out[np.ix_(np.flatnonzero(self.attention[:, x]), np.array(members))] = members[0]
        return out


def n_forms(batch: DesignBatch) -> np.ndarray:
    """Return how many choices of fusion are on, shape (n,)."""
    total = np.zeros(len(batch), dtype=np.int64)
    for name in (*FORM_KNOBS, "fuse_attention"):
        if name in batch:
            total += batch[name].sum(axis=1, dtype=np.int64)
    if "fuse_groups" in batch:
        total += batch["fuse_groups"].astype(np.int64)
    return total


def asked_phase(batch: DesignBatch, role: str, tables: FusedTables) -> AskedPhase:
    """Return the fusion that designs ask for in a phase.

    Args:
        batch: the designs.
        role: the model that the phase belongs to.
        tables: its groups.
    """
    n, attentions = len(batch), tables.attentions
    mask = np.zeros((n, len(tables.components)), dtype=np.int64)
    for name, bit in FORM_KNOBS.items():
        mask |= bit * _by_component(batch, name, role, tables.components)
    attention = _by_component(batch, "fuse_attention", role, tables.components)[:, attentions.component]
    if "fuse_groups" in batch:
        given = batch["fuse_groups"].astype(np.int64)[:, None]
        mask |= GIVEN * given
        attention = attention | (given & attentions.is_given)
    attention = np.ascontiguousarray(attention, dtype=np.uint8)
    products, vectors = tables.skipped(mask, attention)
    return AskedPhase(tables, mask, attention, np.ascontiguousarray(products), np.ascontiguousarray(vectors))


def _by_component(batch: DesignBatch, name: str, role: str, components: tuple[str, ...]) -> np.ndarray:
    """Return a switch for each component, 0 where it has none, shape (n, components)."""
    out = np.zeros((len(batch), len(components)), dtype=np.int64)
    if name in batch:
        for x, entry in enumerate(batch.schema.fields[name].entries):
            if entry.role == role and entry.component in components:
                out[:, components.index(entry.component)] = batch[name][:, x]
    return out
