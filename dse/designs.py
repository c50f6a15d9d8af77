"""Designs as arrays: a batch is one array per knob, and a design is a batch of one row.

A :class:`DesignBatch` holds every field of its schema: a knob of the problem as a whole as an array (n,), every other
one as (n, g) with g entries (modules, blocks, roles). Row order is part of the contract: whoever gets a batch answers
row by row in that order. Fields that a search space leaves alone are broadcast views of the reference value and cost
no memory.

The content hash of a row is taken over the canonical values of all fields and the content hashes of models and
hardware, never over the codes of a search space: the same design has the same hash in every study whose fields go to
the same depth (a map by channel groups is another description, even where its groups agree).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from dse.errors import SpaceError
from dse.params import Value
from dse.schema import Field, Schema, value_of

HASH_BYTES = 16


class DesignBatch:
    """n designs of one schema.

    Args:
        schema: the fields.
        arrays: field name -> values, (n,) or (n, g); absent fields take the reference value.
        n: number of rows; needed when ``arrays`` is empty.

    Raises:
        SpaceError: an unknown field, or an array whose shape or length does not fit.
    """

    def __init__(self, schema: Schema, arrays: Mapping[str, np.ndarray], n: int | None = None) -> None:
        self.schema = schema
        lengths = {len(a) for a in arrays.values()} | ({n} if n is not None else set())
        if len(lengths) != 1:
            raise SpaceError(f"a batch has one length, not {sorted(lengths)}", "give arrays with one row per design")
        self.n = lengths.pop()
        for name in arrays:
            schema.field(name)
        self._arrays = {name: self._column(f, arrays.get(name)) for name, f in schema.fields.items()}

    def _column(self, field: Field, array: np.ndarray | None) -> np.ndarray:
        shape = (self.n,) if field.is_scalar else (self.n, len(field.entries))
        if array is None:
            return np.broadcast_to(field.default if not field.is_scalar else field.default[0], shape)
        if array.shape != shape:
            raise SpaceError(f"{field.name}: expected an array of shape {shape}, got {array.shape}")
        if field.knob.kind is str or (array.strides[0] == 0 and array.dtype == field.dtype):
            return array
        # C order always: sums along a row of another order round differently, and rows must not depend on a layout.
        return np.ascontiguousarray(array, dtype=field.dtype)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, name: str) -> np.ndarray:
        """Return the values of a knob, (n,) or (n, g)."""
        return self._arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def of_role(self, name: str, role: str) -> np.ndarray:
        """Return the values of a knob with one entry per role, for that role, shape (n,); its default if absent."""
        columns = [i for i, e in enumerate(self.schema.fields[name].entries) if e.role == role]
        return self._arrays[name][:, columns[0]]

    def take(self, rows: np.ndarray | Sequence[int] | slice) -> DesignBatch:
        """Return the given rows as a batch, in the given order."""
        arrays = {name: array[rows] for name, array in self._arrays.items()}
        return DesignBatch(self.schema, arrays)

    def replaced(self, **columns: np.ndarray) -> DesignBatch:
        """Return the same designs with other values of some fields."""
        return DesignBatch(self.schema, {**self._arrays, **columns})

    def rows(self) -> Iterator[Design]:
        """Yield each row as a design, for people and files; cost models work on the arrays."""
        for i in range(self.n):
            yield Design(self.take([i]))

    @staticmethod
    def concat(batches: Iterable[DesignBatch]) -> DesignBatch:
        """Return the rows of several batches of one schema, one batch after the other."""
        parts = list(batches)
        names = parts[0]._arrays
        return DesignBatch(parts[0].schema, {name: np.concatenate([p[name] for p in parts]) for name in names})

    @cached_property
    def hashes(self) -> list[bytes]:
        """Content hash of each row, 16 bytes each.

        A knob at its default is left out, so that knobs which later versions add do not change the hashes of designs
        that leave them alone. What the hardware or the scenario gives has no default and is always in.
        """
        names = sorted(self._arrays)
        given = np.stack([self._is_off_default(name) for name in names], axis=1)
        keyed = hashlib.blake2b(digest_size=HASH_BYTES, key=self.schema.content_hash.encode())
        pieces = [(j, self._piece(name)) for j, name in enumerate(names) if given[:, j].any()]
        written = [p for _, p in pieces] or [np.empty((self.n, 0), np.uint8)]
        is_in = np.repeat(given[:, [j for j, _ in pieces]], [p.shape[1] for _, p in pieces], axis=1)
        # What each row writes, one row behind the other.
        flat = np.concatenate(written, axis=1)[is_in].data
        ends = np.cumsum(is_in.sum(axis=1)).tolist()
        found = []
        for start, end in zip([0, *ends], ends, strict=False):
            one = keyed.copy()
            one.update(flat[start : max(end - 1, start)])  # no separator behind the last one
            found.append(one.digest())
        return found

    def _is_off_default(self, name: str) -> np.ndarray:
        """Return which rows have another value than the knob's default, boolean, shape (n,)."""
        default, array = self.schema.fields[name].knob.default, self._arrays[name]
        if default is None:
            return np.ones(self.n, dtype=bool)
        shared = array.strides[0] == 0
        off: np.ndarray = (array[:1] if shared else array) != default
        return np.broadcast_to(off if off.ndim == 1 else off.any(axis=1), self.n)

    def _piece(self, name: str) -> np.ndarray:
        r"""Return what a knob adds to the bytes that are hashed, NAME \0 VALUES \0, shape (n, bytes)."""
        array = self._arrays[name]
        if self.n and array.strides[0] == 0:
            shared = self._bytes(array[:1])
            values = np.broadcast_to(shared, (self.n, shared.shape[1]))
        else:
            values = self._bytes(array)
        label = np.frombuffer(name.encode() + b"\0", dtype=np.uint8)
        end = np.zeros((self.n, 1), dtype=np.uint8)
        return np.concatenate([np.broadcast_to(label, (self.n, len(label))), values, end], axis=1)

    @staticmethod
    def _bytes(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind == "U":
            # Fixed 64 bytes: the width of a numpy text array depends on its longest row, a hash must not.
            array = np.char.encode(array, "utf-8").astype("S64")
        elif array.dtype.kind == "f":
            array = array + 0.0  # -0.0 and 0.0 are one value
        array = np.ascontiguousarray(array)
        return array.view(np.uint8).reshape(len(array), array[:1].nbytes)


class Design:
    """One design: a batch of one row, with names for people.

    Args:
        batch: a batch of one row.
    """

    def __init__(self, batch: DesignBatch) -> None:
        if len(batch) != 1:
            raise SpaceError(f"a design is a batch of one row, not of {len(batch)}")
        self.batch = batch

    @property
    def hash(self) -> str:
        """Content hash, 32 hexadecimal digits."""
        return self.batch.hashes[0].hex()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Design) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def changes(self) -> dict[str, Value]:
        """Return what differs from the reference design, per run of equal entries: label -> value."""
        found: dict[str, Value] = {}
        for name, field in self.batch.schema.fields.items():
            row = self.batch[name][0]
            if field.is_scalar:
                if row != field.default[0]:
                    found[name] = value_of(self.batch[name], 0)
                continue
            for value in dict.fromkeys(row.tolist()):
                where = np.flatnonzero((row == value) & (row != field.default))
                if len(where):
                    found[f"{name}[{describe_entries(self.batch.schema, name, where)}]"] = value
        return found

    def __repr__(self) -> str:
        changes = ", ".join(f"{k}={v}" for k, v in self.changes().items())
        return f"Design({self.hash[:8]}: {changes or 'reference'})"


def describe_entries(schema: Schema, name: str, entries: np.ndarray) -> str:
    """Return a short text for a set of entries of a field: "all", or the components with counts."""
    field = schema.fields[name]
    if len(entries) == len(field.entries):
        return "all"
    total: dict[str, int] = {}
    chosen: dict[str, int] = {}
    for entry in field.entries:
        total[entry.component or entry.role] = total.get(entry.component or entry.role, 0) + 1
    for i in entries:
        entry = field.entries[int(i)]
        chosen[entry.component or entry.role] = chosen.get(entry.component or entry.role, 0) + 1
    return ", ".join(c if chosen[c] == total[c] else f"{chosen[c]} of {total[c]} in {c}" for c in chosen)
