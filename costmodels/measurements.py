"""Tables of measured kernel latencies: reading them, refusing bad ones, and turning shapes into work.

A table is CSV with a header and the columns hw, op, precision, shape, latency_ms; framework, framework_version and
others are optional. ``shape`` is ``key=value;key=value``:

    gemm                  m, n, k                                     O[m, n] = A[m, k] W[k, n]
    context_attention     heads, kv_heads, head_dim, batch, isl       causal; step (cached positions before) optional
    generation_attention  heads, kv_heads, head_dim, batch, step      one query per sequence, step positions cached
    encoder_attention     heads, head_dim, batch, isl                 not causal
    moe                   tokens, hidden, inter, topk, experts        three products; moe_tp, moe_ep, dist optional
    allreduce             gpus, elements                              elements of 16 bits

kv_heads 0 means as many as heads. Precisions: see :data:`GEMM` and :data:`ATTENTION`. What a shape computes and moves
is counted here for measurements and by :mod:`costmodels.device` for models, by the same rules: each operand moves once,
head dimensions are computed in multiples of 16, a causal mask halves the work. Expert routing "balanced" touches
min(experts, tokens x topk) experts, any other is taken as independent draws; a rank of an expert-parallel group
(moe_ep) touches at least one.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from costmodels.kernels import QUERY_ROWS, Work
from dse.errors import TableError, did_you_mean
from dse.hardware import Device

COLUMNS: Final = ("hw", "op", "precision", "shape", "latency_ms")


class Format(NamedTuple):
    """Operand formats of a precision: bytes of a weight and an activation, peaks it computes at, best first."""

    weight_bytes: float
    act_bytes: float
    peaks: tuple[str, ...]
    quantises: bool

    @property
    def has_waves(self) -> bool:
        """Whether products pay for idle processors at their end; kernels that widen weights split them otherwise."""
        return self.weight_bytes >= self.act_bytes


GEMM: Final[Mapping[str, Format]] = {
    "bfloat16": Format(2.0, 2.0, ("fp16",), False),
    "int8_wo": Format(1.0, 2.0, ("fp16",), False),
    "int4_wo": Format(0.5, 2.0, ("fp16",), False),
    "sq": Format(1.0, 1.0, ("int8",), True),
    "fp8": Format(1.0, 1.0, ("fp8",), True),
    "fp8_block": Format(1.0, 1.0, ("fp8",), True),
    "nvfp4": Format(0.5625, 0.5625, ("fp4",), True),  # a scale of 8 bits per 16 elements
}
ATTENTION: Final[Mapping[str, Format]] = {  # weight_bytes are those of a cached element
    "bfloat16": Format(2.0, 2.0, ("fp16",), False),
    "bfloat16/kv:bfloat16": Format(2.0, 2.0, ("fp16",), False),
    "bfloat16/kv:fp8": Format(1.0, 2.0, ("fp16",), False),
    "fp8/kv:fp8": Format(1.0, 1.0, ("fp8",), True),
}
SHAPES: Final[Mapping[str, tuple[tuple[str, ...], Mapping[str, float]]]] = {  # op -> keys, optional keys and defaults
    "gemm": (("m", "n", "k"), {}),
    "context_attention": (("heads", "kv_heads", "head_dim", "batch", "isl"), {"step": 0}),
    "generation_attention": (("heads", "kv_heads", "head_dim", "batch", "step"), {"isl": 1}),
    "encoder_attention": (("heads", "head_dim", "batch", "isl"), {"kv_heads": 0}),
    "moe": (("tokens", "hidden", "inter", "topk", "experts"), {"moe_tp": 1, "moe_ep": 1}),
    "allreduce": (("gpus", "elements"), {}),
}
_MAY_BE_ZERO: Final = ("kv_heads", "step")
_ALIASES: Final = {"float16": "bfloat16", "fp16": "bfloat16", "bf16": "bfloat16"}


class Key(NamedTuple):
    """What has constants of its own.

    Attributes:
        device: catalogue name.
        framework: "" if the table does not say.
        op: kind of kernel.
        variant: "mha" or "gqa" for decode attention (other kernels serve grouped queries), "skewed" for experts with
            uneven routing, else "".
        precision: of the operands.
    """

    device: str
    framework: str
    op: str
    variant: str
    precision: str


@dataclass(frozen=True)
class Measurement:
    """One row: what ran, how long, and where the row stands (line of the file, from 1)."""

    key: Key
    shape: Mapping[str, float]
    latency_s: float
    line: int
    identity: str

    @property
    def order(self) -> str:
        """A hash of what the row is about, by which rows are split in the same way everywhere."""
        return hashlib.sha256(self.identity.encode()).hexdigest()


def formats(op: str) -> Mapping[str, Format]:
    """Return the precisions of a kind of kernel."""
    if op == "allreduce":
        return {"bfloat16": GEMM["bfloat16"]}
    return ATTENTION if op.endswith("attention") else GEMM


def peak(device: Device, form: Format) -> float | None:
    """Return the peak that operands of a format compute at, None where the datasheet has none."""
    return next((device.peak_ops_per_s[p] for p in form.peaks if p in device.peak_ops_per_s), None)


def read_table(path: Path, devices: Mapping[str, Device]) -> list[Measurement]:
    """Return the rows of a table.

    Args:
        path: CSV file.
        devices: name or alias -> device.

    Raises:
        TableError: missing file or column, or a row that cannot be used; names line, column and remedy.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            missing = [c for c in COLUMNS if c not in header]
            if missing:
                raise TableError(
                    f"{path}: line 1: column {missing[0]!r} is missing",
                    f"a table has the columns {', '.join(COLUMNS)} and optionally framework, framework_version",
                )
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: cannot be read: {error}", "name a CSV file with a header line") from None
    if not rows:
        raise TableError(f"{path}: line 2: there is no row below the header", "a table needs at least one measurement")
    seen: dict[str, Measurement] = {}
    for line, row in rows:
        found = _read_row(f"{path}: line {line}", line, row, devices)
        known = seen.get(found.identity)
        if known is not None and known.latency_s != found.latency_s:
            raise TableError(
                f"{path}: line {line}: column 'latency_ms' is {found.latency_s * 1e3:g}, but line {known.line} has "
                f"{known.latency_s * 1e3:g} for the same kernel",
                "keep one of them, or their median; or tell them apart by framework or framework_version",
            )
        seen.setdefault(found.identity, found)
    return list(seen.values())


def _read_row(where: str, line: int, row: Mapping[str, str | None], devices: Mapping[str, Device]) -> Measurement:
    def cell(name: str) -> str:
        value = (row.get(name) or "").strip()
        if not value:
            raise TableError(f"{where}: column {name!r} is empty", "fill it in, or take the row out")
        return value

    def known(name: str, value: str, names: Sequence[str], remedy: str) -> str:
        if value not in names:
            hint = did_you_mean(value, names) or f"known: {', '.join(sorted(names))}"
            raise TableError(f"{where}: column {name!r}: unknown {value!r}", f"{hint} {remedy}".strip())
        return value

    remedy = "(a device of your own: --hardware FILE.toml)"
    device = devices[known("hw", cell("hw").lower(), list(devices), remedy)]
    op = known("op", cell("op"), list(SHAPES), "")
    named = "/".join(
        (part[:3] if part.startswith("kv:") else "") + _ALIASES.get(part.removeprefix("kv:"), part.removeprefix("kv:"))
        for part in cell("precision").split("/")
    )
    precision = known("precision", named, list(formats(op)), f"for {op}")
    form = formats(op)[precision]
    if op != "allreduce" and peak(device, form) is None:
        raise TableError(
            f"{where}: column 'precision': {device.name} has no {' or '.join(form.peaks)} peak in its datasheet",
            "correct the row, or give the device a peak in a TOML file of your own and name it with --hardware",
        )
    shape, dist = _read_shape(where, op, cell("shape"))
    try:
        latency_ms = float(cell("latency_ms"))
    except ValueError:
        latency_ms = math.nan
    if not 0 < latency_ms < math.inf:
        raise TableError(
            f"{where}: column 'latency_ms' is {row['latency_ms']!r}, not a positive number",
            "measure it again, or take the row out",
        )
    framework, version = ((row.get(c) or "").strip() for c in ("framework", "framework_version"))
    variant = ""
    if op == "generation_attention":
        variant = "mha" if shape["kv_heads"] in (0, shape["heads"]) else "gqa"
    elif op == "moe" and dist != "balanced":
        variant = "skewed"
    key = Key(device.name, framework, op, variant, precision)
    text = ";".join(f"{k}={v:g}" for k, v in sorted(shape.items()))
    return Measurement(key, shape, latency_ms / 1e3, line, "|".join((*key, version, dist, text)))


def _read_shape(where: str, op: str, text: str) -> tuple[dict[str, float], str]:
    needed, optional = SHAPES[op]
    example = ";".join(f"{k}=..." for k in needed)
    shape: dict[str, float] = dict(optional)
    dist, given = "balanced", set()
    for part in text.split(";"):
        name, equals, value = (p.strip() for p in part.partition("="))
        if op == "moe" and name == "dist":
            dist = value
            continue
        if not equals or name not in (*needed, *optional) or name in given:
            raise TableError(f"{where}: column 'shape': {part!r} does not belong there", f"{op} takes {example}")
        given.add(name)
        if not value.isascii() or not value.isdigit() or (int(value) == 0 and name not in _MAY_BE_ZERO):
            raise TableError(
                f"{where}: column 'shape': {name}={value!r} is not a positive whole number", f"{op} takes {example}"
            )
        shape[name] = float(value)
    missing = [k for k in needed if k not in given]
    if missing:
        raise TableError(f"{where}: column 'shape': {missing[0]} is missing", f"{op} takes {example}")
    if shape.get("kv_heads", 0) and shape["heads"] % shape["kv_heads"]:
        raise TableError(
            f"{where}: column 'shape': heads={shape['heads']:g} is no multiple of kv_heads={shape['kv_heads']:g}",
            "each key-value head serves a whole number of heads",
        )
    return shape, dist


def work_of(rows: Sequence[Measurement], device: Device) -> Work:
    """Return the work of measured kernels of one kind on a device, arrays (n,); not for collectives."""
    op, precision = rows[0].key.op, rows[0].key.precision
    s = {name: np.array([r.shape[name] for r in rows]) for name in rows[0].shape}
    form = formats(op)[precision]
    count = {"gemm": _gemm, "moe": _moe}.get(op)
    if count is not None:
        operations, moved, passed, blocks, cut, odd = count(s, form, rows[0].key.variant)
    else:
        operations, moved, passed, blocks, cut, odd = _attention(s, form, op)
    limit = peak(device, form)
    assert limit is not None, "rows are refused where the device lacks the precision"
    bandwidth, cache = device.memory_bytes_per_s, device.cache_bytes
    cores = float(device.n_cores or DEFAULT_CORES)
    return Work(
        compute_s=operations / limit,
        traffic_s=moved / bandwidth,
        pass_s=passed / bandwidth,
        waves=blocks / cores,
        fill=moved / cache if cache else np.full(len(rows), np.inf),
        rows=cut / cores if op == "gemm" else cut,
        misaligned=odd,
    )


TILE: Final = 128.0  # side of a product's tile, a common one

# Of a device whose processors nobody has counted; enters waves alone.
DEFAULT_CORES: Final = 128

_Counts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _gemm(s: Mapping[str, np.ndarray], form: Format, variant: str) -> _Counts:
    del variant
    m, n, k = s["m"], s["n"], s["k"]
    none = np.zeros_like(m)
    passed = quantising_bytes(m * k, form.act_bytes) if form.quantises else none
    return (
        2 * m * n * k,
        m * k * form.act_bytes + n * k * form.weight_bytes + 2 * m * n,
        passed,
        none + 1,
        tiles(m, n) if form.has_waves else np.full_like(m, np.inf),
        none,
    )


def tiles(m: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the tiles of 128 x 128 results; without steps, so that a larger product is never faster."""
    return np.maximum(m / TILE, 1.0) * np.maximum(n / TILE, 1.0)


def quantising_bytes(elements: np.ndarray, act_bytes: float) -> np.ndarray:
    """Return the traffic of quantising activations: 16 bits in, narrow out."""
    return elements * (2.0 + act_bytes)


def _moe(s: Mapping[str, np.ndarray], form: Format, variant: str) -> _Counts:
    tokens, hidden, experts, ranks = s["tokens"], s["hidden"], s["experts"], s["moe_ep"]
    inter, routed = s["inter"] / s["moe_tp"], tokens * s["topk"]
    if variant:
        touched = experts / ranks * (1 - (1 - s["topk"] / experts) ** tokens)
    else:
        touched = np.minimum(experts, routed) / ranks
    touched = np.maximum(touched, 1.0)
    local = routed / ranks
    moved = touched * 3 * hidden * inter * form.weight_bytes + local * (hidden + 3 * inter) * form.act_bytes
    moved = moved + local * hidden * 2.0
    passed = 2 * local * hidden * 2.0  # rows are gathered before and summed after
    operations = 6 * local * hidden * inter
    return operations, moved, passed, np.ones_like(tokens), np.maximum(local / touched, 1e-3), np.zeros_like(tokens)


def _attention(s: Mapping[str, np.ndarray], form: Format, op: str) -> _Counts:
    heads, head_dim, batch, length = s["heads"], s["head_dim"], s["batch"], s["isl"]
    kv_heads = np.where(s["kv_heads"] > 0, s["kv_heads"], heads)
    decodes, causal = op == "generation_attention", op == "context_attention"
    before = s.get("step", np.zeros_like(heads))
    span = before + length
    pairs = batch * heads * (length * span - (length * (length - 1) / 2 if causal else 0.0))
    queries, cached = batch * heads * length * head_dim, batch * kv_heads * span * head_dim
    stored = form.weight_bytes if decodes else 2.0
    return (
        4 * pairs * computed_dim(head_dim),
        2 * queries * 2.0 + 2 * cached * stored,
        append_bytes(cached, queries, form) if causal else np.zeros_like(heads),
        batch * kv_heads * (np.ones_like(heads) if decodes else query_blocks(heads / kv_heads * length)),
        span if causal else np.full_like(heads, np.inf) if decodes else length,
        misaligned(head_dim),
    )


def computed_dim(head_dim: np.ndarray) -> np.ndarray:
    """Return the head dimension that is computed: whole steps of 16."""
    return 16.0 * np.ceil(head_dim / 16.0)


def misaligned(head_dim: np.ndarray) -> np.ndarray:
    """Return 1 where a head dimension is no multiple of 16, else 0."""
    return (head_dim % 16.0 > 0).astype(np.float64)


def query_blocks(rows: np.ndarray) -> np.ndarray:
    """Return the blocks that the query rows of a key-value head make; without steps, so that more rows never pay."""
    return np.maximum(rows / QUERY_ROWS, 1.0)


def append_bytes(cached: np.ndarray, queries: np.ndarray, form: Format) -> np.ndarray:
    """Return the traffic of writing keys and values to the cache, and of quantising queries."""
    return 2 * cached * (2.0 + form.weight_bytes) + (
        quantising_bytes(queries, form.act_bytes) if form.quantises else 0.0
    )
