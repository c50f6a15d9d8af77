"""What a knob does to which additive part of a cost, by the field's first-order laws: a prior, to be corrected.

Each law says that a part is proportional to a function of the knob's value: array time to 1 / elements, traffic to
bits, area to size, quantisation noise power to 4^-bits (6.02 dB per bit; Bennett, Bell Syst. Tech. J. 27, 1948), work
in an encoder to pixels, attention to their square. Laws are tied to knobs of the vocabulary (:mod:`dse.knobs`) and the
words that breakdowns use (component, phase, operator class, cost kind), not to any model, chip or space; what a law
gets wrong, and what no law speaks of (dataflows, tiles, loop orders, plug-ins), is learned from paid designs.

Knobs that are set group by group add up where they act on a sum over groups: a part is ``sum_g w_g f(x_g)`` over the
groups of one declaration, and a product over declarations, except that losses of quality add up over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dse import units
from dse.devices import Device
from dse.errors import DseError
from dse.evidence import Label
from dse.hardware import read_hardware
from dse.knobs import ALIASES
from dse.params import Value
from dse.space import BoundSpace, Parameter

_TRAFFIC: Final = ("weight traffic", "kv traffic", "activation traffic")
_WHOLE: Final = ("model", "accelerator", "device", "all")
_LOSS: Final = "nats/token"
_ORIGINAL_PX: Final = 1024.0  # where 0 stands for the image as it is


@dataclass(frozen=True)
class Law:
    """A part is proportional to ``exp(shape(value))``.

    Attributes:
        unit: unit of the metrics it holds for: "s", "J", "B", "mm2", "nats/token".
        kinds: cost kinds of the parts, all if empty; "pruning" stands for all that begin with it.
        shape: natural logarithm of the factor, of a knob's value.
        classes, phases, components: of the parts, all if empty.
    """

    unit: str
    kinds: tuple[str, ...]
    shape: Callable[[float], float]
    classes: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()
    components: tuple[str, ...] = ()

    def holds(self, unit: str, label: Label) -> bool:
        """Whether it speaks of a part of a metric of that unit."""
        component, phase, op_class, kind = label
        return (
            unit == self.unit
            and (not self.kinds or kind in self.kinds or kind.partition(" ")[0] in self.kinds)
            and (not self.classes or op_class in self.classes)
            and (not self.phases or phase in self.phases)
            and (not self.components or component in self.components)
        )


def _power(exponent: float) -> Callable[[float], float]:
    return lambda value: exponent * math.log(max(value, 1e-12))


def _noise(bits: float) -> float:
    return -math.log(4.0) * bits


def _cut(keep: float) -> float:
    return 2.0 * math.log(1.0 - keep + 0.02)


def _pixels(exponent: float) -> Callable[[float], float]:
    return lambda value: exponent * math.log(value or _ORIGINAL_PX)


def _flag(factor: float) -> Callable[[float], float]:
    return lambda value: math.log(factor) if value else 0.0


_BITS: Final = _power(1.0)
_SHARED: Final = (Law("s", ("compute",), _power(-0.9)), Law("mm2", ("array",), _power(1.0)))
LAWS: Final[Mapping[str, Sequence[Law]]] = {
    "weight_bits": (
        Law("s", ("weight traffic",), _BITS), Law("J", ("weight traffic",), _BITS), Law("B", ("weights",), _BITS),
        Law(_LOSS, ("weight bits",), _noise),
    ),
    "act_bits": (
        Law("s", ("activation traffic",), _power(0.7)), Law("J", ("activation traffic",), _power(0.7)),
        Law(_LOSS, ("activation bits",), _noise),
    ),
    "k_bits": (
        Law("s", ("kv traffic",), _BITS), Law("J", ("kv traffic",), _BITS), Law("B", ("cache",), _BITS),
        Law(_LOSS, ("cache bits",), _noise),
    ),
    "ffn_keep": (
        Law("s", ("compute", "weight traffic"), _power(0.7), ("linear",)), Law("B", ("weights",), _power(0.7)),
        Law("J", ("compute", "weight traffic", "on-chip memory"), _power(0.7), ("linear",)),
        Law(_LOSS, ("pruning",), _cut),
    ),
    "head_keep": (
        Law("s", ("compute", "weight traffic"), _power(0.3), ("linear",)), Law("B", ("weights",), _power(0.3)),
        Law("s", (), _power(1.0), ("attention",)), Law("J", (), _power(1.0), ("attention",)),
        Law("J", ("compute", "weight traffic", "on-chip memory"), _power(0.3), ("linear",)),
        Law(_LOSS, ("pruning",), _cut),
    ),
    "block_keep": (
        Law("s", (), _power(1.0)), Law("J", (), _power(1.0)), Law("B", ("weights",), _power(1.0)),
        Law(_LOSS, ("pruning",), _cut),
    ),
    "image_px": (
        Law("s", (), _pixels(2.0), ("linear", "norm", "elementwise"), ("encode",)),
        Law("s", (), _pixels(4.0), ("attention",), ("encode",)), Law("s", (), _pixels(1.5), (), ("prefill",)),
        Law("J", (), _pixels(2.0), ("linear", "norm", "elementwise"), ("encode",)),
        Law("J", (), _pixels(4.0), ("attention",), ("encode",)), Law("J", (), _pixels(1.5), (), ("prefill",)),
        Law("B", ("activations",), _pixels(2.0)), Law("B", ("cache",), _pixels(1.5)),
        Law(_LOSS, ("images",), _pixels(-2.0)),
    ),
    "token_stride": (
        Law("s", (), _power(-1.5), (), ("prefill",)), Law("J", (), _power(-1.5), (), ("prefill",)),
        Law("B", ("cache",), _power(-1.5)), Law(_LOSS, ("images",), _power(2.0)),
    ),
    "visual_token_keep": (
        Law("s", (), _power(0.8), (), ("prefill",)), Law("J", (), _power(0.8), (), ("prefill",)),
        Law("B", ("cache",), _power(0.8)), Law(_LOSS, ("images",), _power(-1.0)),
    ),
    "max_context": (Law("B", ("cache",), _power(1.0)),),
    "fuse_attention": (Law("s", ("activation traffic",), _flag(0.3), ("attention",)),
                       Law("J", ("activation traffic",), _flag(0.3), ("attention",))),
    "fuse_mlp": (Law("s", ("activation traffic",), _flag(0.6)), Law("J", ("activation traffic",), _flag(0.6))),
    "fuse_norm": (Law("s", ("activation traffic",), _flag(0.6)), Law("J", ("activation traffic",), _flag(0.6))),
    "pe_rows": _SHARED, "pe_cols": _SHARED, "n_cores": _SHARED,
    "freq_hz": (Law("s", ("compute",), _power(-0.9)),),
    "vector_lanes": (
        Law("s", ("compute",), _power(-0.9), ("norm", "elementwise")), Law("mm2", ("vector unit",), _power(1.0)),
    ),
    "sram_bytes": (
        Law("s", _TRAFFIC, _power(-0.3), (), ("encode", "prefill")), Law("mm2", ("on-chip memory",), _power(1.0)),
        Law("J", _TRAFFIC, _power(-0.3), (), ("encode", "prefill")), Law("J", ("on-chip memory",), _power(0.3)),
    ),
    "dram_bytes_per_s": (Law("s", _TRAFFIC, _power(-1.0)), Law("mm2", ("interface",), _power(1.0))),
    "batch": (
        Law("s", (), _power(0.9), (), ("encode", "prefill")), Law("B", ("cache", "activations"), _power(1.0)),
        Law("s", ("kv traffic", "activation traffic"), _power(0.9), (), ("decode",)),
        Law("J", ("weight traffic",), _power(-1.0), (), ("decode",)),
    ),
    "tensor_parallel": (Law("s", ("compute", *_TRAFFIC), _power(-0.8)), Law("B", ("weights", "cache"), _power(-1.0))),
}  # fmt: skip


def device_shape(part: str) -> Callable[[Value], float]:
    """Return the logarithm of how long a part takes on a device of the catalogue ("compute", "power", else traffic)."""

    def shape(name: Value) -> float:
        try:
            device = read_hardware(str(name))
        except DseError:
            return 0.0
        if not isinstance(device, Device):
            return 0.0
        if part == "power":
            return math.log(device.power_w) if device.power_w else 0.0
        if part == "compute":
            return -math.log(device.peak_ops_per_s.get("bf16") or max(device.peak_ops_per_s.values()))
        return -math.log(device.memory_bytes_per_s)

    return shape


@dataclass(frozen=True)
class _Factor:
    """``log sum_g w_g exp(table_g[code_g])`` over some parameters."""

    columns: tuple[int, ...]
    tables: tuple[np.ndarray, ...]
    log_weights: tuple[float, ...]

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        terms = [
            weight + table[codes[:, j]]
            for j, table, weight in zip(self.columns, self.tables, self.log_weights, strict=True)
        ]
        return terms[0] if len(terms) == 1 else np.logaddexp.reduce(np.stack(terms), axis=0)


class Influence:
    """The laws laid over a space, for some parts.

    Args:
        space: the search space.
        parts: (metric, label) of each part.
        sizes: share of each component in what a part of the whole model is summed over.
    """

    def __init__(self, space: BoundSpace, parts: Sequence[tuple[str, Label]], sizes: Mapping[str, float]) -> None:
        self._space, self._sizes = space, sizes
        self._components = [c for c in dict.fromkeys(label[0] for _, label in parts) if c not in _WHOLE]
        self._factors = [self._of(metric, label) for metric, label in parts]

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Return the logarithm of each part up to a constant, shape (n, parts)."""
        found = np.zeros((len(codes), len(self._factors)))
        known: dict[int, np.ndarray] = {}
        for i, factors in enumerate(self._factors):
            for factor in factors:
                if id(factor) not in known:
                    known[id(factor)] = factor(codes)
                found[:, i] += known[id(factor)]
        return found

    def touches(self, part: int) -> set[int]:
        """Return the columns of the parameters that a law ties to a part."""
        return {j for factor in self._factors[part] for j in factor.columns}

    def _of(self, metric: str, label: Label) -> list[_Factor]:
        unit = units.unit_of(metric)
        terms: dict[str, list[tuple[int, np.ndarray, float]]] = {}
        for j, parameter in enumerate(self._space.parameters):
            table = self._table(parameter, unit, label)
            weight = self._weight(parameter, label) if table is not None else 0.0
            if table is not None and weight > 0:
                # Losses add up whatever causes them; costs multiply over declarations.
                terms.setdefault("" if unit == _LOSS else parameter.path, []).append((j, table, math.log(weight)))
        return [self._shared(term) for term in terms.values()]

    def _shared(self, terms: list[tuple[int, np.ndarray, float]]) -> _Factor:
        factor = _Factor(tuple(j for j, _, _ in terms), tuple(t for _, t, _ in terms), tuple(w for _, _, w in terms))
        cache: dict[tuple[object, ...], _Factor] = self.__dict__.setdefault("_cache", {})
        key = (factor.columns, tuple(t.tobytes() for t in factor.tables), factor.log_weights)
        return cache.setdefault(key, factor)

    def _weight(self, parameter: Parameter, label: Label) -> float:
        """Return the part of a part that a parameter's group holds, 0 for a group of another component."""
        mine = parameter.group.partition("/")[0]
        peers = [p for p in self._space.parameters if p.path == parameter.path]
        kind = label[3].rpartition(" ")[2]
        where = kind if label[3].startswith("pruning of ") else label[0]
        if len(peers) == 1 or not mine:
            return 1.0 if mine in ("", where) or where in _WHOLE else 0.0
        if where not in _WHOLE:
            here = [p for p in peers if p.group.partition("/")[0] == where]
            return 1.0 / len(here) if mine == where else 0.0
        inside = sum(p.group.partition("/")[0] == mine for p in peers)
        return max(self._sizes.get(mine, 1.0), 1e-3) / inside

    @staticmethod
    def _table(parameter: Parameter, unit: str, label: Label) -> np.ndarray | None:
        """Return the logarithm of the factor at each level; None where no law speaks of it."""
        for name in dict.fromkeys(n for knob in parameter.knobs for n in ALIASES.get(knob, (knob,))):
            if name == "device" and unit == "s":
                shape = device_shape("compute" if label[3] == "compute" else "traffic")
                return np.array([shape(v) for v in parameter.levels])
            name = "k_bits" if name == "v_bits" else name
            for law in LAWS.get(name, ()):
                if law.holds(unit, label) and not any(isinstance(v, str) for v in parameter.levels):
                    return np.array([law.shape(float(v)) for v in parameter.levels])
        return None
