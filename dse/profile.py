"""A quality profile: how much of a model's quality each compression choice costs, as a file that grows line by line.

JSON lines. The first line is the header, every other line one measurement, appended as soon as it is there, so an
interrupted profile keeps what it measured and goes on from there; a last line that was cut off is not a measurement.

Header fields (``*``: required):

    format*, version*   "mfm-dse-profile", 1
    model*              name, for people
    kind*               "measured" on the model itself, "heuristic" from its weights alone, "prior" from publications
    modules*            the modules it is about, in checkpoint order: {"path"*, "component"*, "section" ("stem",
                        "block", "head"), "block" (-1 outside blocks), "leaf", "kind" ("attention", "mlp", ""),
                        "n_weights", "tied_to"}
    metric              {"name", "sense" ("max" or "min"), "base" (uncompressed), "base_se", "chance" (of output that
                        knows nothing), "is_binary" (a sample is right or wrong)}; without it there is the KL alone
    n_samples*, seed*   samples of a measurement, seed of everything random
    total_loss_nats     KL of output that knows nothing, as the logarithm of the number of outputs
    reference           knob -> value at which nothing is compressed, where that depends on the model (image_px)
    date                as the caller gives it
    provenance*         {"software", "data", "quantiser": {"symmetric", "granularity" ("tensor", "channel", "group"),
                        "group_size"}}; further entries are kept as they are

A measurement: {"group", "knob", "value", "kl_nats", "kl_se_nats", "metric", "metric_se", "n_samples"}: everything in
the group is at the value, the rest of the model is uncompressed. ``kl_nats`` is the mean of KL(full || compressed) per
predicted output; it or ``metric`` may be null, not both. Standard errors are those of the means, null where unknown.
Widths are whole numbers from 1 to 16, also such as no design can have (5 bits): they are interpolated between.

A real configuration: {"map": {knob: {group: value}}, "held_out", ...the same figures}. It calibrates the surrogate, or
only tests it where ``held_out`` is true. Where groups of a map overlap, the finer one holds.

A group is a path along the hierarchy, in the words of the labels of search spaces:

    ""                            the whole model (image_px, token_stride, visual_token_keep have only this)
    "decoder"                     a component
    "decoder/7", "decoder/0-10"   one of its blocks, or a run of them; "vision/stem", "vision/head" beside the blocks
    "decoder/7/mlp"               a half of a block; "decoder/0-10/self_attn.q_proj" a leaf of blocks
    "model.layers.7.mlp.up_proj"  a module by its path

and "/channels 2 of 4" behind any of them a part of the output channels. ``head_keep``, ``ffn_keep``, ``block_keep``,
``k_bits`` and ``v_bits`` belong to blocks, ``weight_bits`` and ``act_bits`` to modules.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from dse.canonical import content_hash
from dse.entries import Entry
from dse.errors import SpaceError, TableError, did_you_mean
from dse.knobs import KNOBS, Scope
from dse.model import Model, ModuleKind, Section
from dse.params import Value

FORMAT: Final = "mfm-dse-profile"
VERSION: Final = 1
KINDS: Final = ("measured", "heuristic", "prior")
PROFILED: Final = (
    "weight_bits", "act_bits", "k_bits", "v_bits", "head_keep", "ffn_keep", "block_keep", "visual_token_keep",
    "image_px", "token_stride",
)  # fmt: skip
# A standard error estimated from n samples is itself uncertain by 1 / sqrt(2 (n - 1)): 27 % at 8.
LEAST_SAMPLES: Final = 8
PLAIN_BITS: Final = 16
_SHOWN: Final = 4
_CHANNELS: Final = re.compile(r"(.*?)/?channels ([1-9]\d*) of ([1-9]\d*)")
_BLOCKS: Final = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class ProfiledModule:
    """A module as the profile's header describes it; see the module docstring."""

    path: str
    component: str
    section: str = Section.BLOCK.value
    block: int = -1
    leaf: str = ""
    kind: str = ""
    n_weights: int = 0
    tied_to: str = ""


@dataclass(frozen=True, slots=True)
class TaskMetric:
    """What the task is scored by; see the module docstring."""

    name: str
    base: float
    sense: str = "max"
    base_se: float | None = None
    chance: float = 0.0
    is_binary: bool = False

    def retained_ratio(self, value: float) -> float:
        """Return the part of what the uncompressed model has over chance that is left; may be above 1 or below 0."""
        return (value - self.chance) / (self.base - self.chance)


@dataclass(frozen=True)
class ProfileHeader:
    """What was profiled, and how; see the module docstring."""

    model: str
    kind: str
    modules: tuple[ProfiledModule, ...]
    n_samples: int
    seed: int
    provenance: Mapping[str, Any]
    metric: TaskMetric | None = None
    total_loss_nats: float | None = None
    reference: Mapping[str, Value] = field(default_factory=dict)
    date: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the first line of the file as JSON types."""
        metric = None if self.metric is None else _plain(self.metric)
        return {
            "format": FORMAT,
            "version": VERSION,
            **{f.name: getattr(self, f.name) for f in fields(self)},
            "modules": [_plain(m) for m in self.modules],
            "metric": metric,
            "reference": dict(self.reference),
            "provenance": dict(self.provenance),
        }


@dataclass(frozen=True, slots=True)
class Figures:
    """What one configuration measured: means with their standard errors, None where unknown."""

    kl_nats: float | None
    kl_se_nats: float | None
    metric: float | None
    metric_se: float | None
    n_samples: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One group at one value."""

    group: str
    knob: str
    value: Value
    figures: Figures

    def to_json(self) -> dict[str, Any]:
        """Return the line of the file as JSON types."""
        return {"group": self.group, "knob": self.knob, "value": self.value, **_plain(self.figures)}


@dataclass(frozen=True, slots=True)
class Configuration:
    """A real configuration: knob -> group -> value."""

    map: Mapping[str, Mapping[str, Value]]
    figures: Figures
    held_out: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the line of the file as JSON types."""
        plain = {knob: dict(by_group) for knob, by_group in self.map.items()}
        return {"map": plain, "held_out": self.held_out, **_plain(self.figures)}


@dataclass(frozen=True)
class Group:
    """Which places a group path names.

    Attributes:
        component, section, first, last, leaf: "" and -1 where the path does not say.
        path: module path, "" where it names none.
        channel, n_channels: part of the output channels, 0 of 1 for all of them.
    """

    component: str = ""
    section: str = ""
    first: int = -1
    last: int = -1
    leaf: str = ""
    path: str = ""
    channel: int = 0
    n_channels: int = 1

    @property
    def fineness(self) -> tuple[int, int, int, int]:
        """Grows from coarse to fine: the module, then what is said of the leaf, the blocks and the component."""
        width = self.last - self.first + 1 if self.first >= 0 else 0
        depth = 3 if self.path else 2 if self.leaf else 1 if self.section or width else 0
        return (depth, -width, int(bool(self.component)), self.n_channels)

    def holds(self, entry: Entry) -> bool:
        """Return whether an entry of a field is in the group."""
        if entry.channel * self.n_channels // entry.n_channels != self.channel:
            return False
        if self.path:
            return entry.path == self.path
        if self.component and entry.component != self.component:
            return False
        if self.section and entry.section != self.section:
            return False
        if self.first >= 0 and not (entry.section == Section.BLOCK and self.first <= entry.block <= self.last):
            return False
        return not self.leaf or self.leaf in (entry.leaf, entry.kind)


@dataclass(frozen=True)
class QualityProfile:
    """A profile as a value.

    Attributes:
        header: what was profiled, and how.
        rows: single-group measurements.
        configurations: real configurations.
        origin: file it was read from, for messages; no part of its content.
    """

    header: ProfileHeader
    rows: tuple[Measurement, ...] = ()
    configurations: tuple[Configuration, ...] = ()
    origin: str = field(default="", compare=False)

    @cached_property
    def content_hash(self) -> str:
        """Hash of all that it says."""
        return content_hash(self.to_json())

    @property
    def kind(self) -> str:
        """One of :data:`KINDS`."""
        return self.header.kind

    def to_json(self) -> list[dict[str, Any]]:
        """Return the lines of the file as JSON types."""
        return [self.header.to_json(), *(r.to_json() for r in self.rows), *(c.to_json() for c in self.configurations)]

    @classmethod
    def from_json(cls, lines: Sequence[Any], origin: str = "profile") -> QualityProfile:
        """Return the profile that :meth:`to_json` described.

        Raises:
            TableError: see :mod:`dse.profilefile`.
        """
        from dse.profilefile import parse

        return parse(list(enumerate(lines, 1)), origin)

    @cached_property
    def groups(self) -> dict[str, Group]:
        """Every group that it speaks of, by path."""
        named = {r.group for r in self.rows}
        named |= {g for c in self.configurations for by_group in c.map.values() for g in by_group}
        return {path: read_group(path, self.header.modules, self.origin) for path in sorted(named)}

    def entries(self, knob: str) -> tuple[Entry, ...]:
        """Return the places of a knob in the profiled model, as fields of designs have them, the role left empty."""
        modules = self.header.modules
        match KNOBS[knob].scope:
            case Scope.WEIGHT | Scope.LINEAR:
                return tuple(
                    Entry("", m.component, m.section, m.block, m.leaf, m.kind, 0, 1, m.path)
                    for m in modules
                    if not m.tied_to
                )
            case Scope.IMAGE:
                return (Entry(),)
            case _:
                blocks = dict.fromkeys((m.component, m.block) for m in modules if m.section == Section.BLOCK)
                return tuple(Entry("", component, Section.BLOCK, block) for component, block in blocks)

    def check_model(self, model: Model, what: str = "the study's model") -> None:
        """Check that the profile is about a model: the same modules with weights that can be quantised.

        Raises:
            TableError: they differ; the first differences are named.
        """
        quantised = (ModuleKind.LINEAR, ModuleKind.EMBEDDING)
        wanted = [m.path for m in model.modules if m.kind in quantised]
        known = {m.path for m in self.header.modules}
        linear = {m.path for m in model.modules if m.kind is ModuleKind.LINEAR and not m.tied_to}
        extra = [m.path for m in self.header.modules if m.path not in set(wanted)]
        # Token tables are no linear modules: a profile may leave them alone.
        absent = [path for path in wanted if path in linear and path not in known]
        if extra or absent:
            says = [f"only in the profile: {_some(extra)}"] if extra else []
            says += [f"only in {model.name}: {_some(absent)}"] if absent else []
            raise TableError(
                f"{self.origin or 'profile'} is of {self.header.model!r}, {what} is {model.name!r}: {'; '.join(says)}",
                f"profile {model.name} itself (dse profile), or name the model that was profiled",
            )

    def missing(self, knob: str, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries that no measurement of a knob speaks of, not even of a coarser group."""
        groups = [self.groups[g] for g in dict.fromkeys(r.group for r in self.rows if r.knob == knob)]
        return [e for e in entries if not any(g.holds(e) for g in groups)]


def read_group(path: str, modules: Sequence[ProfiledModule], where: str = "") -> Group:
    """Return the places that a group path names.

    Raises:
        TableError: the path names nothing in the model.
    """
    match = _CHANNELS.fullmatch(path)
    channel, n_channels, rest = 0, 1, path
    if match:
        rest, channel, n_channels = match[1], int(match[2]) - 1, int(match[3])
        if channel >= n_channels:
            raise TableError(f"{where}: group {path!r}: there are {n_channels} parts", "write channels 1 of 4")
    if not rest:
        return Group(channel=channel, n_channels=n_channels)
    if any(m.path == rest for m in modules):
        return Group(path=rest, channel=channel, n_channels=n_channels)
    component, *words = rest.split("/")
    inside = [m for m in modules if m.component == component]
    section, first, last = "", -1, -1
    if words and (blocks := _BLOCKS.fullmatch(words[0])):
        first, last = int(blocks[1]), int(blocks[2] or blocks[1])
        words.pop(0)
    elif words and words[0] in (Section.STEM, Section.HEAD):
        section = words.pop(0)
    group = Group(component, section, first, last, words[0] if words else "", "", channel, n_channels)
    whole = Group(component, section, first, last, group.leaf)
    found = [m for m in inside if whole.holds(Entry("", m.component, m.section, m.block, m.leaf, m.kind))]
    if not found or len(words) > 1:
        known = [m.path for m in modules] + [m.component for m in modules]
        hint = did_you_mean(rest, dict.fromkeys(known)) or 'write "decoder", "decoder/7", "decoder/7/mlp" or a module'
        raise TableError(f"{where}: group {path!r} names nothing in the profiled model", hint)
    return group


def read_value(knob: str, value: Value, where: str) -> Value:
    """Return a profiled knob's value as designs have it.

    Raises:
        TableError: not a profiled knob, or a value that it cannot have.
    """
    if knob not in PROFILED:
        hint = did_you_mean(knob, PROFILED) or f"known: {', '.join(PROFILED)}"
        raise TableError(f"{where}: unknown knob {knob!r}", hint)
    if knob.endswith("_bits"):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= PLAIN_BITS:
            raise TableError(f"{where}: {knob}={value!r} is no width", f"a whole number from 1 to {PLAIN_BITS}")
        return value
    try:
        return KNOBS[knob].read(value, knob)
    except SpaceError as error:
        raise TableError(f"{where}: {error.message}", error.hint) from None


def profiled_modules(model: Model) -> tuple[ProfiledModule, ...]:
    """Return a catalogue model's modules with weights as a profile's header lists them."""
    units = model.units
    quantised = (ModuleKind.LINEAR, ModuleKind.EMBEDDING)
    return tuple(
        ProfiledModule(
            m.path, m.component, m.section.value, m.block, m.leaf, m.part,
            m.n_weights(*units.get((m.component, m.block), (0, 0))), m.tied_to,
        )
        for m in model.modules
        if m.kind in quantised
    )  # fmt: skip


def _plain(record: Any) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def to_line(document: Mapping[str, Any]) -> str:
    """Return a line of a profile, newline included."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"


def read_profile(path: str | Path) -> QualityProfile:
    """Return the profile in a file; see :func:`dse.profilefile.read`."""
    from dse.profilefile import read

    return read(Path(path))
