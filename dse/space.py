"""Search spaces: which knobs a study varies, over which values, at which depth of the hierarchy.

:class:`Space` is the declaration, written before a model is known. :meth:`Space.bind` lays it over a problem and gives
a :class:`BoundSpace`: an ordered list of *parameters*, each with a finite list of levels. There a design is a row of
integer codes, one per parameter, and codes become designs (and back) by table look-up on whole batches. Parameters
stand in the order of the problem's fields, so a space that is written in another order has the same codes.

Two codes may mean one design: inactive conditional parameters have no effect, and several fractions can keep the same
whole blocks. :meth:`BoundSpace.repair` puts inactive parameters at code 0; the content hash of the decoded design
settles the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from dse import params, units
from dse.canonical import content_hash
from dse.designs import DesignBatch
from dse.errors import SpaceError, unknown
from dse.knobs import ALIASES, KNOBS
from dse.lookup import Table, make_table, spread
from dse.params import Domain, Maps, Value
from dse.problem import Problem
from dse.schema import Field, Schema, channel_groups, value_of

CODE_DTYPE: Final = np.dtype(np.uint16)


class Space:
    """The declaration of a search space.

    Args:
        declarations: knob path -> domain; for paths that are no Python names ("decoder/weight_bits").
        knobs: the same as keyword arguments.

    Raises:
        SpaceError: no knob, or something that is no domain.
        NameUnknown: a knob that does not exist.
    """

    def __init__(self, declarations: Mapping[str, Domain] | None = None, **knobs: Domain) -> None:
        self.declarations: dict[str, Domain] = dict(declarations or {})
        for name, domain in knobs.items():
            if name in self.declarations:
                raise SpaceError(f"space: {name!r} is declared twice")
            self.declarations[name] = domain
        if not self.declarations:
            raise SpaceError("space: no knob to vary", "declare at least one, such as weight_bits=Choice(4, 8)")
        for path, domain in self.declarations.items():
            name = path.rsplit("/", 1)[-1]
            if name not in KNOBS and name not in ALIASES:
                raise unknown("knob", name, [*KNOBS, *ALIASES], f"in the space, at {path!r}")
            if not isinstance(domain, Domain):
                raise SpaceError(f"space: {path}={domain!r} is no domain", f"write {path}=Choice(...), Int or Float")

    def bind(self, problem: Problem) -> BoundSpace:
        """Return the space laid over a problem; see :class:`BoundSpace` for the errors."""
        return BoundSpace(self, Schema(problem, channel_groups(d.per for d in self.declarations.values())))

    def to_json(self) -> dict[str, Any]:
        """Return the declaration as JSON types."""
        return {path: domain.to_json() for path, domain in self.declarations.items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Space:
        """Return the declaration that :meth:`to_json` described."""
        return cls({path: params.from_json(domain) for path, domain in document.items()})


@dataclass(frozen=True)
class Parameter:
    """One dimension of a bound space.

    Attributes:
        label: unique name for people, files and prompts ("weight_bits[decoder/0-11/self_attn.q_proj]").
        path: the declaration it comes from.
        knobs: the knobs it sets (two for kv_bits).
        levels: its values, in order.
        entries: for each knob, the indices of the entries that take its value.
        group: the label of its group, "" for a single value.
        maps: where a level is a whole map, for each knob what each level writes to the entries, shape (levels,
            entries); empty elsewhere.
    """

    label: str
    path: str
    knobs: tuple[str, ...]
    levels: tuple[Value, ...]
    entries: tuple[np.ndarray, ...]
    group: str
    maps: tuple[np.ndarray, ...] = ()

    @property
    def unit(self) -> str:
        """Unit of its values as people write it."""
        return KNOBS[self.knobs[0]].unit

    @property
    def is_ordered(self) -> bool:
        """Whether neighbouring levels are neighbouring numbers."""
        if any(isinstance(v, str | bool) for v in self.levels):
            return False
        return all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))  # type: ignore[operator]


@dataclass(frozen=True)
class _Declaration:
    """A declaration laid over the schema: the parameters ``first`` to ``last - 1`` share its levels."""

    path: str
    domain: Domain
    first: int
    last: int


class BoundSpace:
    """A search space over the fields of one problem.

    Args:
        space: the declaration.
        schema: the fields.

    Raises:
        SpaceError: a value outside a knob's law, two declarations of equal rank for one entry, a declaration that no
            entry is left for, a condition on something that is not varied, or conditions that form a cycle.
    """

    def __init__(self, space: Space, schema: Schema) -> None:
        self.space = space
        self.schema = schema
        self.parameters: tuple[Parameter, ...]
        self._declarations: list[_Declaration] = []
        parameters: list[Parameter] = []
        owners = self._owners()
        for path in sorted(space.declarations, key=self._place_of):
            domain, first = space.declarations[path], len(parameters)
            parameters += self._parameters_of(path, domain, owners)
            self._declarations.append(_Declaration(path, domain, first, len(parameters)))
        self.parameters = tuple(parameters)
        self._conditions = self._read_conditions()

    # ------------------------------------------------------------------ what it is

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the parameters, in code order."""
        return tuple(p.label for p in self.parameters)

    @cached_property
    def n_levels(self) -> np.ndarray:
        """Number of levels of each parameter, shape (p,)."""
        return np.array([len(p.levels) for p in self.parameters], dtype=np.int64)

    @property
    def n_parameters(self) -> int:
        """Number of parameters."""
        return len(self.parameters)

    @property
    def n_designs(self) -> int:
        """Number of code rows, an upper bound on the number of different designs."""
        return math.prod(int(n) for n in self.n_levels)

    @cached_property
    def content_hash(self) -> str:
        """Hash of the declaration and of the schema it is bound to."""
        return content_hash({"space": self.space.to_json(), "schema": self.schema.content_hash})

    def describe(self) -> list[str]:
        """Return the space in words, a line per declaration."""
        lines = []
        for one in self._declarations:
            parameters = self.parameters[one.first : one.last]
            levels = parameters[0].levels
            shown = [units.format_quantity(float(v), one.path, 6) if _is_number(v) else str(v) for v in levels]
            text = ", ".join(shown) if len(shown) <= 8 else f"{shown[0]} to {shown[-1]} in {len(shown)} levels"
            line = f"{one.path}: {text}"
            if len(parameters) > 1 or parameters[0].group:
                line += f"; one for each of {len(parameters)} groups ({one.domain.per or 'model'})"
            for name, values in one.domain.when.items():
                line += f"; only where {name} is {' or '.join(map(str, values))}"
            lines.append(f"{line}. {KNOBS[parameters[0].knobs[0]].help}")
        return lines

    # ------------------------------------------------------------------ codes

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return n repaired rows of codes, uniform over levels, shape (n, p)."""
        return self.repair(rng.integers(0, self.n_levels, size=(n, self.n_parameters)))

    def from_unit(self, points: np.ndarray) -> np.ndarray:
        """Return the repaired codes of points in [0, 1)^p, shape (n, p)."""
        return self.repair((np.clip(points, 0.0, np.nextafter(1.0, 0.0)) * self.n_levels).astype(np.int64))

    def repair(self, codes: np.ndarray) -> np.ndarray:
        """Return the codes inside their ranges, inactive parameters at 0, shape (n, p), unsigned 16-bit.

        Raises:
            SpaceError: the array is not (n, p) or not of integers.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.n_parameters or codes.dtype.kind not in "iu":
            raise SpaceError(
                f"codes: expected integers of shape (n, {self.n_parameters}), got {codes.dtype} {codes.shape}"
            )
        clipped = np.clip(codes, 0, self.n_levels - 1).astype(CODE_DTYPE)
        return np.where(self.active(clipped), clipped, CODE_DTYPE.type(0)) if self._conditions else clipped

    def active(self, codes: np.ndarray) -> np.ndarray:
        """Return which parameters matter in each row, shape (n, p), boolean."""
        mask = np.ones(codes.shape, dtype=bool)
        for columns, needed in self._conditions:
            for other, levels in needed:
                met = np.isin(codes[:, other], levels) & mask[:, other]
                mask[:, columns] &= met[:, None]
        return mask

    def decode(self, codes: np.ndarray) -> DesignBatch:
        """Return the designs that rows of codes stand for; inactive parameters leave the reference value."""
        codes = self.repair(codes)
        active = self.active(codes) if self._conditions else None
        arrays: dict[str, np.ndarray] = {}
        for table in self._tables:
            array = arrays.get(table.field.name)
            if array is None:
                shape = (len(codes), len(table.field.entries))
                array = arrays[table.field.name] = np.empty(shape, dtype=table.dtype)
                array[:] = table.field.default
            values = table.look_up(codes)
            if active is not None:
                values = np.where(active[:, table.column_of_entry], values, array[:, table.entries])
            array[:, table.entries] = values
        for name, array in arrays.items():
            if self.schema.fields[name].is_scalar:
                arrays[name] = array[:, 0]
        return DesignBatch(self.schema, arrays, n=len(codes))

    def encode(self, batch: DesignBatch) -> np.ndarray:
        """Return codes whose designs are those of the batch, shape (n, p).

        Raises:
            SpaceError: a design that this space cannot express: a value that is no level, different values inside
                one group, or another value than the reference where nothing is varied. First three rows are named.
        """
        codes = np.zeros((len(batch), self.n_parameters), dtype=CODE_DTYPE)
        for j, parameter in enumerate(self.parameters):
            table = next(t for t in self._tables if j in t.columns)
            k = parameter.knobs.index(table.field.name)
            values = batch[table.field.name].reshape(len(batch), -1)[:, parameter.entries[k]]
            pattern = table.values_of(j)  # (levels, entries of the parameter)
            same = (values[:, None, :] == pattern[None, :, :]).all(axis=2)
            codes[:, j] = same.argmax(axis=1)
        codes = self.repair(codes)
        wrong = [i for i, (a, b) in enumerate(zip(self.decode(codes).hashes, batch.hashes, strict=True)) if a != b]
        if wrong:
            raise SpaceError(f"{len(wrong)} of {len(batch)} designs are not in this space, first rows: {wrong[:3]}")
        return codes

    def codes_of(self, values: Mapping[str, Value]) -> tuple[np.ndarray, list[str]]:
        """Return the codes of one design given by labels, shape (1, p), and a note for every value that was snapped.

        Args:
            values: label or declaration path -> value; a path sets all its parameters. What is not named keeps the
                level nearest to the reference value.

        Raises:
            NameUnknown: no such label or path.
            SpaceError: a value that its knob cannot have.
        """
        codes, notes = self.reference_codes(), []
        for name, value in values.items():
            columns = [j for j, p in enumerate(self.parameters) if name in (p.label, p.path)]
            if not columns:
                raise unknown("parameter", name, dict.fromkeys([*self.space.declarations, *self.labels]))
            for j in columns:
                parameter = self.parameters[j]
                read = _number_of(value, name) if parameter.maps else KNOBS[parameter.knobs[0]].read(value, name)
                codes[0, j] = _nearest(parameter.levels, read, name)
                if parameter.levels[codes[0, j]] != read:
                    notes.append(f"{parameter.label}: {read} is not a level, took {parameter.levels[codes[0, j]]}")
        return self.repair(codes), notes

    def reference_codes(self) -> np.ndarray:
        """Return the codes nearest to the reference design, shape (1, p)."""
        codes = np.zeros((1, self.n_parameters), dtype=CODE_DTYPE)
        for j, p in enumerate(self.parameters):
            reference = value_of(self.schema.fields[p.knobs[0]].default, int(p.entries[0][0]))
            codes[0, j] = _nearest(p.levels, reference, p.label, strict=False)
        return self.repair(codes)

    def values(self, codes: np.ndarray) -> list[dict[str, Value]]:
        """Return each row as label -> value, inactive parameters left out; for people and files."""
        codes = self.repair(codes)
        active = self.active(codes)
        return [
            {p.label: p.levels[row[j]] for j, p in enumerate(self.parameters) if on[j]}
            for row, on in zip(codes.tolist(), active, strict=True)
        ]

    # ------------------------------------------------------------------ construction

    def _place_of(self, path: str) -> tuple[int, int, str]:
        """Return where a declaration stands: by field and entry, so that the order it was written in means nothing."""
        fields, chosen, _ = self.schema.select(path)
        first = int(chosen[0][0]) if len(chosen[0]) else 0
        return list(self.schema.fields).index(fields[0].name), first, path

    def _owners(self) -> dict[str, np.ndarray]:
        """Return for each field the number of the declaration that holds each entry: the closest one."""
        owner: dict[str, np.ndarray] = {}
        rank: dict[str, np.ndarray] = {}
        paths = list(self.space.declarations)
        for number, path in enumerate(paths):
            fields, chosen, closeness = self.schema.select(path)
            for field, entries in zip(fields, chosen, strict=True):
                held = owner.setdefault(field.name, np.full(len(field.entries), -1))
                ranks = rank.setdefault(field.name, np.full(len(field.entries), -1))
                tie = entries[ranks[entries] == closeness]
                if len(tie):
                    raise SpaceError(
                        f"space: {path!r} and {paths[held[tie[0]]]!r} both set {field.name} of the same place",
                        "keep one of them, or let one name a component or a module",
                    )
                stronger = entries[ranks[entries] < closeness]
                held[stronger], ranks[stronger] = number, closeness
        return owner

    def _parameters_of(self, path: str, domain: Domain, owners: dict[str, np.ndarray]) -> list[Parameter]:
        number = list(self.space.declarations).index(path)
        where = f"space: {path}"
        fields, chosen, _ = self.schema.select(path)
        levels = self._levels(path, domain, fields[0])
        self.schema.check_levels(fields[0], chosen[0], levels, where)
        members: dict[str, dict[str, np.ndarray]] = {}
        for field, entries in zip(fields, chosen, strict=True):
            entries = entries[owners[field.name][entries] == number]
            if domain.per and not field.knob.scope.has_blocks and domain.per not in ("model", "component"):
                raise SpaceError(
                    f"{where}: per={domain.per!r}, but {field.name} has one value per design", "leave out per"
                )
            groups, labels = self.schema.groups([field.entries[i] for i in entries], domain.per, where)
            for g, label in enumerate(labels):
                members.setdefault(label, {})[field.name] = entries[groups == g]
        if not members:
            raise SpaceError(f"{where} has no effect: closer declarations cover all it selects")
        if isinstance(domain, Maps):
            return [self._mapped(path, domain, levels, members)]
        single = len(members) == 1 and domain.per in ("", "model")
        return [
            Parameter(
                label=path if single else f"{path}[{label}]",
                path=path,
                knobs=tuple(by_field),
                levels=levels,
                entries=tuple(by_field.values()),
                group="" if single else label,
            )
            for label, by_field in members.items()
        ]

    def _mapped(
        self, path: str, domain: Maps, levels: tuple[Value, ...], members: dict[str, dict[str, np.ndarray]]
    ) -> Parameter:
        """Return the one parameter whose levels are whole maps."""
        strange = [label for label in members if label not in domain.groups]
        if strange:
            raise SpaceError(
                f"space: {path}: its maps say nothing of {', '.join(strange[:3])}", "they were made for another model"
            )
        names = list(dict.fromkeys(name for by_field in members.values() for name in by_field))
        entries, written = [], []
        for name in names:
            knob, parts, columns = self.schema.fields[name].knob, [], []
            for label, by_field in members.items():
                if name not in by_field:
                    continue
                at = domain.groups.index(label)
                values = [knob.read(one[at], f"space: {path}[{label}]") for one in domain.maps]
                n = len(by_field[name])
                column = np.array(values, dtype=np.float64 if knob.spread else self.schema.fields[name].dtype)
                parts.append(by_field[name])
                columns.append(spread(column, n) if knob.spread else np.repeat(column[:, None], n, axis=1))
            entries.append(np.concatenate(parts))
            written.append(np.concatenate(columns, axis=1))
        return Parameter(path, path, tuple(names), levels, tuple(entries), "", tuple(written))

    @staticmethod
    def _levels(path: str, domain: Domain, field: Field) -> tuple[Value, ...]:
        if isinstance(domain, Maps):
            return domain.levels()
        levels = tuple(field.knob.read(v, f"space: {path}") for v in domain.levels())
        if len(set(levels)) < len(levels):
            twice = next(v for i, v in enumerate(levels) if v in levels[:i])
            raise SpaceError(f"space: {path} lists {twice} twice, in different units")
        return levels

    def _read_conditions(self) -> list[tuple[np.ndarray, list[tuple[int, np.ndarray]]]]:
        """Return (columns, [(other column, its levels that activate them)]) with every condition after its causes."""
        by_path = {d.path: d for d in self._declarations}
        done: dict[str, int] = {}

        def depth(path: str, trail: tuple[str, ...]) -> int:
            if path in trail:
                raise SpaceError(f"space: conditions form a cycle: {' -> '.join((*trail, path))}")
            if path not in done:
                done[path] = max((1 + depth(n, (*trail, path)) for n in by_path[path].domain.when), default=0)
            return done[path]

        for one in self._declarations:
            for name, values in one.domain.when.items():
                self._check_condition(one.path, name, values, by_path)
        ordered = sorted((d for d in self._declarations if d.domain.when), key=lambda d: depth(d.path, ()))
        return [
            (
                np.arange(d.first, d.last),
                [(by_path[n].first, self._codes_of_levels(by_path[n], v)) for n, v in d.domain.when.items()],
            )
            for d in ordered
        ]

    def _check_condition(self, path: str, name: str, values: Sequence[Value], by_path: dict[str, _Declaration]) -> None:
        if name not in by_path:
            raise unknown(f"knob in the condition of {path!r}:", name, by_path, "a condition names a declared knob")
        other = by_path[name]
        if other.last - other.first != 1:
            raise SpaceError(f"space: the condition of {path!r} is on {name!r}, which has a value per group")
        if len(self._codes_of_levels(other, values)) < len(values):
            levels = ", ".join(map(str, self.parameters[other.first].levels[:12]))
            raise SpaceError(
                f"space: {path!r} is active where {name} is in {tuple(values)}, but {name} is one of {levels}"
            )

    def _codes_of_levels(self, declaration: _Declaration, values: Sequence[Value]) -> np.ndarray:
        parameter = self.parameters[declaration.first]
        read = [KNOBS[parameter.knobs[0]].read(v, f"condition on {declaration.path}") for v in values]
        return np.array([i for i, level in enumerate(parameter.levels) if level in read], dtype=CODE_DTYPE)

    @cached_property
    def _tables(self) -> list[Table]:
        tables = []
        for declaration in self._declarations:
            parameters = self.parameters[declaration.first : declaration.last]
            for name in dict.fromkeys(n for p in parameters for n in p.knobs):
                tables.append(make_table(self.schema.fields[name], parameters, declaration.first))
        return tables


def row_keys(codes: np.ndarray) -> list[bytes]:
    """Return each row of codes as bytes, equal where and only where the rows are."""
    rows = np.ascontiguousarray(codes, dtype=CODE_DTYPE)
    raw, width = rows.tobytes(), rows.shape[1] * CODE_DTYPE.itemsize
    return [raw[i : i + width] for i in range(0, len(raw), width)]


def _nearest(levels: Sequence[Value], value: Value, where: str, strict: bool = True) -> int:
    if value in levels:
        return levels.index(value)
    if not _is_number(value):
        if strict:
            raise SpaceError(f"{where}={value!r} is not in ({', '.join(map(str, levels))})")
        return 0
    return min(range(len(levels)), key=lambda i: abs(float(levels[i]) - float(value)))


def _number_of(value: Value, where: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise SpaceError(f"{where}={value!r} is not a number", "its levels are maps, each named by a number") from None


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
