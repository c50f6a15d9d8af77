"""Look-up tables from codes to values: how rows of codes become arrays over designs, and whole blocks are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dse.schema import Field

if TYPE_CHECKING:
    from dse.space import Parameter


@dataclass(frozen=True)
class Table:
    """Look-up of one field's values for the parameters of one declaration.

    Attributes:
        field: the field.
        columns: code columns of the parameters.
        entries: entries that take a value, shape (e,).
        column_of_entry: code column of each of them, shape (e,).
        row_of_entry: column of ``values`` for each of them, shape (e,).
        values: values by level, shape (levels, 1) or, for spread knobs and whole maps, (levels, e).
    """

    field: Field
    columns: range
    entries: np.ndarray
    column_of_entry: np.ndarray
    row_of_entry: np.ndarray
    values: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return self.values.dtype if self.field.knob.kind is str else self.field.dtype

    def look_up(self, codes: np.ndarray) -> np.ndarray:
        """Return what each row writes to the entries, shape (n, e)."""
        if self.values.shape[1] > 1:
            return self.values[codes[:, self.column_of_entry], self.row_of_entry]
        # One look-up per parameter, then a copy for each of its entries.
        by_parameter = self.values[:, 0].take(codes[:, self.columns.start : self.columns.stop])
        return by_parameter.take(self.column_of_entry - self.columns.start, axis=1)

    def values_of(self, column: int) -> np.ndarray:
        """Return what each level of one parameter writes to its entries, shape (levels, entries)."""
        return self.values[:, self.row_of_entry[self.column_of_entry == column]]


def make_table(field: Field, parameters: Sequence[Parameter], first: int) -> Table:
    """Return the look-up of a field for the parameters of a declaration, of which ``first`` is the first column."""
    sets = [
        p.entries[p.knobs.index(field.name)] if field.name in p.knobs else np.array([], np.intp) for p in parameters
    ]
    entries = np.concatenate(sets)
    columns = np.concatenate([np.full(len(s), first + j) for j, s in enumerate(sets)]).astype(np.intp)
    levels = parameters[0].levels
    if parameters[0].maps:
        (parameter,) = parameters
        values = parameter.maps[parameter.knobs.index(field.name)]
        rows = np.arange(len(entries))
    elif field.knob.spread:
        values = np.concatenate([spread(np.array(levels, dtype=np.float64), len(s)) for s in sets], axis=1)
        rows = np.arange(len(entries))
    else:
        dtype = np.dtype(np.str_) if field.knob.kind is str else field.dtype
        values = np.array(levels, dtype=dtype)[:, None]
        if field.knob.kind is str:
            values = values.astype(np.result_type(values, field.default))
        rows = np.zeros(len(entries), dtype=np.intp)
    return Table(field, range(first, first + len(parameters)), entries, columns, rows, values)


def spread(fractions: np.ndarray, size: int) -> np.ndarray:
    """Return which of ``size`` members are kept at each fraction, as evenly spaced as can be.

    ``ceil(fraction * size)`` members are kept: member j where ``floor((j + 1) k / size) > floor(j k / size)``.

    Args:
        fractions: shape (levels,), in 0..1.
        size: members of the group.

    Returns:
        0 or 1, shape (levels, size), unsigned 8-bit.
    """
    kept = np.ceil(fractions * size - 1e-9).astype(np.int64)[:, None]
    steps = np.arange(size + 1)[None, :] * kept // max(size, 1)
    return np.diff(steps, axis=1).astype(np.uint8)
