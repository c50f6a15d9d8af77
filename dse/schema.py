"""The fields of a design of one problem, and the groups that ``per=`` forms along the hierarchy.

A field is a knob with its *entries*: the places it has a value for (modules, blocks, roles, or the problem as one).
Entries stand in checkpoint order on one flat axis.

The hierarchy is component > block > module > channel group. ``per`` names a depth, and after dots a kind of module
and a part of its channels:

    "model"                      one value for all entries (the default)
    "component"                  one per component (vision, projector, decoder, ...)
    "block_half|third|quarter"   one per component and half, third, quarter of its blocks; "block_6" for six parts
    "block"                      one per block
    "....module"                 and one per module in it ("block_third.module": q_proj of the first third, ...)
    "....kind"                   and one per kind: attention, mlp (what is neither keeps its own name)
    "....channel_half"           and one per half of the module's output channels; "channel_4" for four parts
    "module"                     short for "block.module", "channel_4" for "block.module.channel_4"

What stands before or after the blocks of a component (patch embedding, token table, output head) forms the groups
"stem" and "head" at every block depth.

A path selects entries: ``[role/][component/][module/]knob``, such as "decoder/weight_bits", "lm_head/weight_bits" or
"draft/decoder/k_bits". Where two declarations select the same entry, the closer one holds: one that names a module
before one that names a component, that before one that names a role, and a plain knob before an alias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np

from dse.canonical import content_hash
from dse.entries import Entry
from dse.errors import SpaceError, unknown
from dse.hardware import Accelerator
from dse.knobs import ALIASES, KNOBS, Knob, Scope
from dse.model import Block, Model, Module, ModuleKind, Section
from dse.params import Value
from dse.policy import answering, check_choice
from dse.problem import PARALLEL, Problem

POLICY: Final = ("draft", "draft_tokens", "cascade", "threshold", "self_tests", "solutions", "prefill_chunk")
# Words of several declarations stand in one array: wide enough for any, whichever comes first.
_WORD: Final = np.dtype("<U64")
_PARTS: Final = {"half": 2, "third": 3, "quarter": 4}
_DTYPES: Final[dict[type, np.dtype[Any]]] = {
    int: np.dtype(np.int64),
    float: np.dtype(np.float64),
    bool: np.dtype(np.uint8),
}


@dataclass(frozen=True)
class Field:
    """A knob with its entries and reference values.

    Attributes:
        knob: the knob.
        entries: the places it has a value for, g of them.
        default: reference values, shape (g,).
    """

    knob: Knob
    entries: tuple[Entry, ...]
    default: np.ndarray

    @property
    def name(self) -> str:
        """The knob's name."""
        return self.knob.name

    @property
    def is_scalar(self) -> bool:
        """Whether a design has one value of it, an array (n,) in a batch."""
        return self.knob.scope is Scope.PROBLEM

    @property
    def dtype(self) -> np.dtype:
        """Array type of its values in a batch."""
        return self.default.dtype


class Schema:
    """The fields of every design of a problem.

    Args:
        problem: the problem.
        channel_groups: parts that the output channels of each module are split into for ``weight_bits``.
    """

    def __init__(self, problem: Problem, channel_groups: int = 1) -> None:
        self.problem = problem
        self.channel_groups = channel_groups
        fields = (_field(knob, problem, channel_groups) for knob in KNOBS.values())
        self.fields: dict[str, Field] = {f.name: f for f in fields if f is not None}

    @cached_property
    def n_blocks(self) -> dict[tuple[str, str], int]:
        """Number of blocks by (role, component)."""
        counts: dict[tuple[str, str], int] = {}
        for role, model in self.problem.models.items():
            for block in model.blocks:
                counts[role, block.component] = max(counts.get((role, block.component), 0), block.index + 1)
        return counts

    @cached_property
    def content_hash(self) -> str:
        """Hash of what all designs have in common: models, hardware, storage format, channel groups."""
        return content_hash({"problem": self.problem.content_hash, "channel_groups": self.channel_groups})

    def field(self, name: str, where: str = "") -> Field:
        """Return the field of that name.

        Raises:
            NameUnknown: no such knob at all, with the nearest.
            SpaceError: the knob exists, but not in this problem; the message says why.
        """
        if name in self.fields:
            return self.fields[name]
        if name not in KNOBS:
            raise unknown("knob", name, [*self.fields, *ALIASES], where)
        raise SpaceError(
            f"knob {name!r} does not exist in this problem: {_why_absent(KNOBS[name], self.problem)}", where
        )

    def select(self, path: str) -> tuple[list[Field], list[np.ndarray], int]:
        """Return what a knob path selects.

        Args:
            path: ``[role/][component/][module/]knob``.

        Returns:
            The fields (two for an alias such as kv_bits), for each the indices of the selected entries, and the
            rank of the path, by which the closer of two declarations prevails.

        Raises:
            NameUnknown: the knob, or a part of the path, is unknown.
            SpaceError: the path selects nothing.
        """
        *prefix, name = path.split("/")
        fields = [self.field(n, f"in {path!r}") for n in ALIASES.get(name, (name,)) if self._exists(n, name)]
        chosen = []
        for one in fields:
            mask = np.ones(len(one.entries), dtype=bool)
            for part in prefix:
                hits = np.array([_matches(entry, part) for entry in one.entries])
                if not hits.any():
                    raise unknown(f"part of {path!r}:", part, sorted(_part_names(one.entries)))
                mask &= hits
            if not mask.any():
                raise SpaceError(f"{path!r} selects nothing: no entry is in all of {' and '.join(prefix)}")
            chosen.append(np.flatnonzero(mask))
        return fields, chosen, self._rank(prefix, name)

    def _rank(self, prefix: Sequence[str], name: str) -> int:
        roles = set(self.problem.models)
        components = {m.component for model in self.problem.models.values() for m in model.modules}
        weights = (2 if part in roles else 4 if part in components else 8 for part in prefix)
        return sum(weights) + (name not in ALIASES)

    def _exists(self, name: str, asked: str) -> bool:
        # An alias may stand for fields of which a model lacks one (latent attention caches no values of their own).
        return name == asked or name in self.fields or not any(n in self.fields for n in ALIASES[asked])

    def check_levels(self, field: Field, chosen: np.ndarray, levels: Sequence[Value], where: str) -> None:
        """Check levels whose legal values depend on the problem's roles.

        Raises:
            UserError: one that cannot be.
        """
        if field.name in ("draft", "cascade"):
            roles = [field.entries[i].role for i in chosen]
            for value in levels:
                check_choice(field.name, roles, value, self.problem.models, where)

    def groups(self, entries: Sequence[Entry], per: str, where: str) -> tuple[np.ndarray, list[str]]:
        """Return the group of each entry, shape (len(entries),), and the label of each group.

        Args:
            entries: some or all entries of a field.
            per: the depth, see the module docstring.
            where: the place, for messages.

        Raises:
            SpaceError: ``per`` is no depth, or one that these entries do not have.
        """
        keys = [self._key(entry, _parse_per(per, where)) for entry in entries]
        order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        many_roles = len(self.problem.models) > 1
        labels = [_label(key, many_roles, self.n_blocks) for key in order]
        return np.array([order[key] for key in keys], dtype=np.intp), labels

    def _key(self, entry: Entry, per: _Per) -> _Key:
        if per.parts < 0 or not entry.role:
            return _Key()
        if not entry.component:
            return _Key(role=entry.role)
        leaf = entry.leaf if per.split == "module" else (entry.kind or entry.leaf) if per.split == "kind" else ""
        channel = entry.channel * per.channels // entry.n_channels if per.channels else 0
        channels = per.channels
        section, part, parts = "", 0, 0
        if per.parts:
            section = entry.section
            if section == Section.BLOCK:
                total = self.n_blocks[entry.role, entry.component]
                parts = min(per.parts, total)
                part = entry.block * parts // total
        return _Key(entry.role, entry.component, section, part, parts, leaf, channel, channels)


class _Key(NamedTuple):
    role: str = ""
    component: str = ""
    section: str = ""
    part: int = 0
    parts: int = 0
    leaf: str = ""
    channel: int = 0
    channels: int = 0


class _Per(NamedTuple):
    """parts: -1 for the model as one, 0 for whole components, else parts of the blocks (huge: each block)."""

    parts: int
    split: str = ""
    channels: int = 0


_EACH_BLOCK: Final = 1 << 30


def _parse_per(per: str, where: str) -> _Per:
    if per.startswith("budget"):
        raise SpaceError(
            f"{where}: per={per!r} is resolved when a Study is made",
            "bind dse.budgets.resolved(space, problem) instead",
        )
    words = (per or "model").split(".")
    if words[0] == "module" or words[0].startswith("channel"):
        words = ["block", "module", *words[words[0] == "module" :]]
    parts, split, channels = _depth(words[0]), "", 0
    rest = words[1:]
    if rest and rest[0] in ("module", "kind"):
        split = rest.pop(0)
    if rest and rest[0].startswith("channel_"):
        channels = _count(rest.pop(0).removeprefix("channel_"))
    if parts is None or rest or channels < 0 or (parts == -1 and len(words) > 1):
        raise SpaceError(
            f"{where}: per={per!r} is no depth of the hierarchy",
            "use model, component, block_half, block_third, block_quarter, block_<n> or block, then optionally "
            ".module or .kind, then optionally .channel_<n>",
        )
    return _Per(parts, split, channels)


def _depth(word: str) -> int | None:
    if word in ("model", "component", "block"):
        return {"model": -1, "component": 0, "block": _EACH_BLOCK}[word]
    count = _count(word.removeprefix("block_")) if word.startswith("block_") else -1
    return count if count > 0 else None


def _count(word: str) -> int:
    if word in _PARTS:
        return _PARTS[word]
    return int(word) if re.fullmatch(r"[1-9]\d{0,5}", word) else -1


def channel_groups(pers: Iterable[str]) -> int:
    """Return how many channel groups the schema needs for these ``per=`` depths.

    Raises:
        SpaceError: two depths split channels into different numbers of parts.
    """
    counts = {p.channels for p in (_parse_per(per, "space") for per in pers) if p.channels}
    if len(counts) > 1:
        raise SpaceError(
            f"space: channels are split into {' and '.join(map(str, sorted(counts)))} parts", "use one number"
        )
    return counts.pop() if counts else 1


def _label(key: _Key, many_roles: bool, n_blocks: dict[tuple[str, str], int]) -> str:
    words = [key.role] if many_roles and key.role else []
    words += [key.component] if key.component else []
    if key.section == Section.BLOCK:
        total = n_blocks[key.role, key.component]
        first = -(-key.part * total // key.parts)
        last = -(-(key.part + 1) * total // key.parts) - 1
        words.append(str(first) if first == last else f"{first}-{last}")
    elif key.section:
        words.append(str(key.section))
    words += [key.leaf] if key.leaf else []
    words += [f"channels {key.channel + 1} of {key.channels}"] if key.channels else []
    return "/".join(words)


def _matches(entry: Entry, part: str) -> bool:
    return part in (entry.role, entry.component, entry.leaf, entry.leaf.rsplit(".", 1)[-1])


def _part_names(entries: Iterable[Entry]) -> set[str]:
    names = set()
    for e in entries:
        names |= {e.role, e.component, e.leaf.rsplit(".", 1)[-1]}
    return names - {""}


def _field(knob: Knob, problem: Problem, channel_groups: int) -> Field | None:
    if knob.name in POLICY and problem.policy is None:
        return None
    if knob.scope is Scope.PROBLEM:
        value = problem.defaults().get(knob.name)
        if value is None:
            return None
        default = np.array([value], dtype=_DTYPES.get(knob.kind, np.dtype(np.str_)))
        return Field(knob, (Entry(),), default)
    entries: list[Entry] = []
    for role, model in problem.models.items():
        entries += _entries(knob, role, model, channel_groups, problem)
    if not entries:
        return None
    dtype = np.dtype(np.uint8) if knob.spread else _DTYPES.get(knob.kind, _WORD)
    default = np.full(len(entries), knob.default, dtype=dtype)
    return Field(knob, tuple(entries), default)


def _entries(knob: Knob, role: str, model: Model, channel_groups: int, problem: Problem) -> list[Entry]:
    """Return the places of one model that a knob has a value for."""
    match knob.scope:
        case Scope.WEIGHT:
            quantised = (ModuleKind.LINEAR, ModuleKind.EMBEDDING)
            owners = [m for m in model.modules if m.kind in quantised and not m.tied_to]
            return [_module_entry(role, m, c, channel_groups) for m in owners for c in range(channel_groups)]
        case Scope.LINEAR:
            return [_module_entry(role, m, 0, 1) for m in model.modules if m.kind is ModuleKind.LINEAR]
        case Scope.IMAGE:
            return [Entry(role)] if _has_image_knob(knob, model) else []
        case Scope.ANSWER | Scope.STAGE:
            asked = answering(list(problem.models))
            return [Entry(role)] if role in asked[: None if knob.scope is Scope.ANSWER else -1] else []
        case Scope.TEXT:
            return [Entry(role)] if any(b.caches for b in model.blocks) else []
        case Scope.ATTENTION | Scope.MLP | Scope.NORM:
            if not isinstance(problem.hardware, Accelerator):
                return []
            found = [b.component for b in model.blocks if _has_block_knob(knob, b)]
            return [Entry(role, component) for component in dict.fromkeys(found)]
        case _:
            blocks = [b for b in model.blocks if _has_block_knob(knob, b)]
            return [Entry(role, b.component, Section.BLOCK, b.index) for b in blocks]


def _module_entry(role: str, m: Module, channel: int, n_channels: int) -> Entry:
    return Entry(role, m.component, m.section, m.block, m.leaf, m.part, channel, n_channels, m.path)


def _has_block_knob(knob: Knob, block: Block) -> bool:
    match knob.scope:
        case Scope.HEADS | Scope.ATTENTION:
            return block.head_units > 0
        case Scope.FFN | Scope.MLP:
            return block.ffn_units > 0
        case Scope.CACHE:
            return any(sum(c.k if knob.name == "k_bits" else c.v) > 0 for c in block.caches)
        case _:
            return True


def _has_image_knob(knob: Knob, model: Model) -> bool:
    rule = model.image_rule
    return rule is not None and (rule.resizes if knob.name == "image_px" else rule.has_tokens)


def _why_absent(knob: Knob, problem: Problem) -> str:
    if knob.name in POLICY:
        if problem.policy is None:
            return "the problem has no policy; give policy=Policy() for drafters and cascades"
        return "it belongs to stages before the target, and there is none (role stage1)"
    if knob.name == "fuse_groups":
        return "the study names no fusion groups"
    if knob.scope in (Scope.ATTENTION, Scope.MLP, Scope.NORM) and not isinstance(problem.hardware, Accelerator):
        return f"it belongs to an accelerator template, and the hardware is {problem.hardware.name}"
    if knob.scope is Scope.PROBLEM:
        other = "an existing device" if knob.name in ("device", *PARALLEL) else "an accelerator template"
        return f"it belongs to {other}, and the hardware is {problem.hardware.name}"
    models = " and ".join(m.name for m in problem.models.values())
    reason = {
        Scope.CACHE: "keeps no such cache",
        Scope.HEADS: "has no attention heads to prune",
        Scope.FFN: "has no MLP channels to prune",
        Scope.IMAGE: "has no such choice of image size or visual tokens",
        Scope.TEXT: "has no key-value cache",
    }.get(knob.scope, "has no such module")
    return f"{models} {reason}"


def value_of(array: np.ndarray, index: int | tuple[int, ...]) -> Value:
    """Return one element of a field's array as a plain Python value."""
    item = array[index].item()
    return item if not isinstance(item, np.generic) else item.item()
