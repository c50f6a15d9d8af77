"""Parameter domains: what values a knob may take in a search space.

Every domain is a finite, ordered list of levels, so a design is a row of small integers (level indices) everywhere
outside the cost models. A float without a step gets a grid of :data:`GRID_LEVELS` levels; a value off the grid is
snapped to the nearest level and reported.

    Choice(3, 4, 6, 8, per="block_third.module")      one level per third of the blocks and kind of module
    Int(1, 8), Int(16, 4096, log=True)
    Float(0.5, 1.0, step=0.125, per="block")
    Choice("256 KiB", "1 MiB")                        text with units, read in the unit that the knob's name carries
    Int(1, 8, when={"draft": ("qwen2.5-0.5b",)})      only active where another knob has one of these values
    Choice(3, 4, 6, 8, per="budget:block.module")     one level for all: how much is spent, at best (dse/budgets.py)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

import numpy as np

from dse.errors import SpaceError

GRID_LEVELS: Final = 1024
MAX_LEVELS: Final = 65_536  # codes are stored as unsigned 16-bit integers

Value = bool | int | float | str
Condition = Mapping[str, Value | Sequence[Value]]


class Domain:
    """A finite, ordered list of levels, with the group size it applies to and the condition under which it does.

    Args:
        per: the level of the hierarchy that gets its own value, such as "component", "block_third" or
            "block_third.module" (see :mod:`dse.schema`); "" for one value everywhere. With "budget:" before it, one
            level sets all groups at once, to the best map of its cost (see :mod:`dse.budgets`).
        when: other knobs and the values they must have for this one to matter.
    """

    def __init__(self, *, per: str = "", when: Condition | None = None) -> None:
        self.per = per
        self.when: dict[str, tuple[Value, ...]] = {}
        for name, values in (when or {}).items():
            self.when[name] = (values,) if isinstance(values, bool | int | float | str) else tuple(values)

    def levels(self) -> tuple[Value, ...]:
        """Return the levels as written, in order."""
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        """Return what :func:`from_json` needs to build the domain again, as JSON types."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Return the domain as JSON types."""
        document = {"type": type(self).__name__, **self.arguments()}
        if self.per:
            document["per"] = self.per
        if self.when:
            document["when"] = {name: list(values) for name, values in self.when.items()}
        return document

    def __repr__(self) -> str:
        shown = [f"{k}={v!r}" for k, v in self.to_json().items() if k != "type"]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Domain) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(repr(self))


class Choice(Domain):
    """Any of the given values; their order is the order of the levels, so write ordered values in order.

    Raises:
        SpaceError: no value, a value twice, or a value that is no bool, number or text.
    """

    def __init__(self, *values: Value, per: str = "", when: Condition | None = None) -> None:
        super().__init__(per=per, when=when)
        if len(values) == 1 and isinstance(values[0], list | tuple):
            raise SpaceError(
                f"Choice takes its values one by one, not as a {type(values[0]).__name__}", "write Choice(*values)"
            )
        if not values:
            raise SpaceError("Choice() has no value to choose from", "give at least one value")
        values = tuple(v.item() if isinstance(v, np.generic) else v for v in values)
        for value in values:
            if not isinstance(value, bool | int | float | str):
                raise SpaceError(f"Choice value {value!r} is a {type(value).__name__}", "use numbers, text or booleans")
            if isinstance(value, float) and not math.isfinite(value):
                raise SpaceError(f"Choice value {value} is not finite")
        if len(set(values)) < len(values):
            twice = next(v for i, v in enumerate(values) if v in values[:i])
            raise SpaceError(f"Choice lists {twice!r} twice")
        _check_n_levels(len(values), "Choice")
        self.values = values

    def levels(self) -> tuple[Value, ...]:
        """Return the values in the order they were written."""
        return self.values

    def arguments(self) -> dict[str, Any]:
        """Return the arguments as JSON types."""
        return {"values": list(self.values)}


class Int(Domain):
    """Integers from ``low`` to ``high``, both included, every ``step``; with ``log``, a geometric grid of integers.

    Raises:
        SpaceError: an empty range, a step below 1, more than 65,536 levels, or a logarithm of a number below 1.
    """

    def __init__(
        self, low: int, high: int, *, step: int = 1, log: bool = False, per: str = "", when: Condition | None = None
    ) -> None:
        super().__init__(per=per, when=when)
        where = f"Int({low}, {high}, step={step}, log={log})"
        for number in (low, high, step):
            if isinstance(number, bool) or not isinstance(number, int):
                raise SpaceError(f"{where}: {number!r} is not an integer", "use Float for fractions")
        _check_range(low, high, step, log, where)
        if log and low < 1:
            raise SpaceError(f"{where}: a logarithmic range starts at 1 or above", f"use low >= 1, not {low}")
        self.low, self.high, self.step, self.log = low, high, step, log
        if not log:
            _check_n_levels((high - low) // step + 1, where)

    def levels(self) -> tuple[Value, ...]:
        """Return the integers, ascending."""
        if not self.log:
            return tuple(range(self.low, self.high + 1, self.step))
        count = min(GRID_LEVELS, self.high - self.low + 1)
        return tuple(sorted({round(x) for x in _geometric(self.low, self.high, count)}))

    def arguments(self) -> dict[str, Any]:
        """Return the arguments as JSON types."""
        return {"low": self.low, "high": self.high, "step": self.step, "log": self.log}


class Float(Domain):
    """Numbers from ``low`` to ``high``, both included, every ``step``; without a step, on a grid of 1,024 levels.

    The grid is linear, or geometric with ``log``. With a step the last level is the largest ``low + i * step`` that
    does not exceed ``high``; levels are decimal sums, so 0.1 + 0.2 is 0.3.

    Raises:
        SpaceError: an empty range, a step that is not positive, a step together with ``log``, or a logarithm of a
            number that is not positive.
    """

    def __init__(
        self,
        low: float,
        high: float,
        *,
        step: float | None = None,
        log: bool = False,
        per: str = "",
        when: Condition | None = None,
    ) -> None:
        super().__init__(per=per, when=when)
        where = f"Float({low}, {high}, step={step}, log={log})"
        for number in (low, high, 1 if step is None else step):
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise SpaceError(f"{where}: {number!r} is not a finite number")
        _check_range(low, high, 1 if step is None else step, log and step is not None, where)
        if log and low <= 0:
            raise SpaceError(f"{where}: a logarithmic range starts above 0", f"use low > 0, not {low}")
        self.low, self.high, self.step, self.log = float(low), float(high), step, log
        if step is not None:
            _check_n_levels(self._n_steps(), where)

    def _n_steps(self) -> int:
        assert self.step is not None
        span = Decimal(repr(self.high)) - Decimal(repr(self.low))
        return int(span / Decimal(repr(float(self.step)))) + 1

    def levels(self) -> tuple[Value, ...]:
        """Return the numbers, ascending."""
        if self.step is not None:
            low, step = Decimal(repr(self.low)), Decimal(repr(float(self.step)))
            return tuple(float(low + i * step) for i in range(self._n_steps()))
        if self.low == self.high:
            return (self.low,)
        if self.log:
            return tuple(_geometric(self.low, self.high, GRID_LEVELS))
        width = self.high - self.low
        inner = (self.low + width * (i / (GRID_LEVELS - 1)) for i in range(GRID_LEVELS - 1))
        return (*inner, self.high)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments as JSON types."""
        return {"low": self.low, "high": self.high, "step": self.step, "log": self.log}


class Maps(Domain):
    """Whole maps: one level sets the values of all groups of a declaration at once.

    What "budget:" before a depth becomes when a study is made (:func:`dse.budgets.resolved`).

    Args:
        values: what stands for each map where people and samplers see it, ascending, in the knob's unit.
        groups: labels of the groups that are set.
        maps: for each of the values, the value of each group.
        per: depth of the groups.
        when: as for every domain.

    Raises:
        SpaceError: no map, values that do not ascend, or maps of another length than the groups.
    """

    def __init__(
        self,
        values: Sequence[float],
        groups: Sequence[str],
        maps: Sequence[Sequence[Value]],
        *,
        per: str,
        when: Condition | None = None,
    ) -> None:
        super().__init__(per=per, when=when)
        self.values, self.groups = tuple(float(v) for v in values), tuple(groups)
        self.maps = tuple(tuple(one) for one in maps)
        if not self.maps or len(self.maps) != len(self.values):
            raise SpaceError(f"{len(self.maps)} maps for {len(self.values)} values", "give each value its map")
        if any(a >= b for a, b in pairwise(self.values)):
            raise SpaceError(f"maps at {self.values[:4]}...: their values do not ascend")
        if any(len(one) != len(self.groups) for one in self.maps):
            raise SpaceError(f"maps of {sorted({len(m) for m in self.maps})} values for {len(self.groups)} groups")
        _check_n_levels(len(self.maps), "Maps")

    def levels(self) -> tuple[Value, ...]:
        """Return what stands for each map, ascending."""
        return self.values

    def arguments(self) -> dict[str, Any]:
        """Return the arguments as JSON types."""
        return {"values": list(self.values), "groups": list(self.groups), "maps": [list(m) for m in self.maps]}


def from_json(document: Mapping[str, Any]) -> Domain:
    """Return the domain that :meth:`Domain.to_json` described.

    Raises:
        SpaceError: the document names no known domain or lacks an argument.
    """
    rest = dict(document)
    kind = rest.pop("type", None)
    rest["when"] = {name: tuple(values) for name, values in rest.get("when", {}).items()}
    try:
        if kind == "Choice":
            return Choice(*rest.pop("values"), **rest)
        if kind == "Int":
            return Int(rest.pop("low"), rest.pop("high"), **rest)
        if kind == "Float":
            return Float(rest.pop("low"), rest.pop("high"), **rest)
        if kind == "Maps":
            return Maps(rest.pop("values"), rest.pop("groups"), rest.pop("maps"), **rest)
    except (KeyError, TypeError) as error:
        raise SpaceError(f"stored domain {document!r} cannot be read: {error}") from None
    raise SpaceError(f"stored domain of unknown type {kind!r}", "it was written by a newer version of mfm-dse")


def _check_range(low: float, high: float, step: float, log_with_step: bool, where: str) -> None:
    if low > high:
        raise SpaceError(f"{where} is empty: {low} > {high}", "swap the bounds")
    if step <= 0:
        raise SpaceError(f"{where}: the step {step} is not positive")
    if log_with_step and step != 1:
        raise SpaceError(f"{where}: a logarithmic grid has no step", "leave out step or log")


def _check_n_levels(count: int, where: str) -> None:
    if count > MAX_LEVELS:
        raise SpaceError(f"{where} has {count} levels, the limit is {MAX_LEVELS}", "use a larger step or log=True")


def _geometric(low: float, high: float, count: int) -> list[float]:
    if low == high:
        return [float(low)]
    ratio = math.log(high / low)
    inner = [low * math.exp(ratio * i / (count - 1)) for i in range(1, count - 1)]
    return [float(low), *inner, float(high)]
