"""Accuracy of device kernels on measurements, and a GPT-3 layer on four A100.

Errors are mean absolute relative ones on rows that were not fitted. The GPT-3 layer (LLMCompass raw data: eager
PyTorch, attention as separate products and softmax, NCCL) is predicted op by op, without a search per shape, in two
ways, neither of which uses a row of the layer:

- *shipped*: the constants that ship (A100, vLLM and TensorRT-LLM kernels, their own all-reduce);
- *eager*: launches and efficiencies of eager kernels, from the same source's sweeps of single operators on one A100 and
  of all-reduces on four (20 products, 64 softmax, layer norm and GELU, 30 messages). All-reduces are interpolated
  between measured sizes, in logarithms.

Every operator of the layer was timed from Python around a synchronisation (LLMCompass matmul.py@b95c6c9),
so launches are those of the host.
"""

from __future__ import annotations

import csv
import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from costmodels import calibration, collectives, kernels
from costmodels.constants import shipped
from costmodels.kernels import Work
from costmodels.measurements import Key, Measurement, read_table, tiles
from dse.hardware import Device, hardware_names, read_hardware
from dse.text import table

DATA = Path(__file__).parents[1] / "data"
HIDDEN, RANKS, HEADS, HEAD_DIM, BATCH = 12288, 4, 96, 128, 8


def accuracy() -> str:
    """Return the table of held-out errors by op and precision, and by device."""
    devices = {d.name: d for d in map(read_hardware, hardware_names()) if isinstance(d, Device)}
    names = {alias: d for d in devices.values() for alias in (d.name, *d.aliases)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured_ops.csv"
        path.write_bytes(gzip.decompress((DATA / "measured_ops.csv.gz").read_bytes()))
        scores = calibration.calibrate(read_table(path, names), devices).scores
    columns = ("error_ratio", "folds_ratio", "roofline_ratio", "fixed_ratio", "transfer_ratio")
    header = ["op", "precision", "device", "rows", "held-out %", "5 folds %", "roofline %", "fixed %", "left out %"]
    lines = []
    for op, precision in sorted({(s.op, s.precision) for s in scores}):
        mine = [s for s in scores if (s.op, s.precision) == (op, precision)]
        weights = [s.n_rows for s in mine]
        means = [np.average([getattr(s, c) for s in mine], weights=weights) for c in columns[:-1]]
        lines.append([op, precision, "all", str(sum(weights)), *(f"{100 * v:.1f}" for v in means), ""])
        for s in mine:
            cells = [f"{100 * getattr(s, c):.1f}" for c in columns]
            lines.append([op, precision, s.device, str(s.n_rows), *(c.replace("nan", "-") for c in cells)])
    return table(header, lines, left=3)


def gpt3_layer() -> str:
    """Return measured and predicted times of one layer of GPT-3 175B, batch 8, tensor-parallel over four A100."""
    measured = measured_layer()
    lines = []
    for phase, rows, context in (("prefill", BATCH * 2048, 2048), ("decode", BATCH, 1025)):
        predictions = [predict(phase, rows, context) for predict in (shipped_layer, eager_layer)]
        for op in measured[phase]:
            shown = [f"{1e3 * measured[phase][op]:.4g}", *(f"{1e3 * p[op]:.4g}" for p in predictions)]
            lines.append([phase, op, *shown])
        total = sum(measured[phase].values())
        sums = [sum(p.values()) for p in predictions]
        lines.append([phase, "sum", f"{1e3 * total:.4g}", *(f"{1e3 * s:.4g} ({s / total - 1:+.1%})" for s in sums)])
    return table(["phase", "op", "measured ms", "shipped constants", "eager constants"], lines, left=2)


def _rows() -> list[dict[str, str]]:
    with (DATA / "llmcompass_a100.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def measured_layer() -> dict[str, dict[str, float]]:
    """Return phase -> op -> measured seconds."""
    found: dict[str, dict[str, float]] = {"prefill": {}, "decode": {}}
    for row in _rows():
        if row["model"].startswith("GPT-3") and "op=" in row["model"]:
            found["prefill" if "prefill" in row["model"] else "decode"][row["model"].split("op=")[1]] = (
                float(row["value"]) / 1e3
            )
    return found


def _products(rows: int, context: int) -> dict[str, tuple[int, np.ndarray]]:
    """Return op -> (kernels, (count, m, k, n)) of one rank; attention is one batched product over its heads."""
    width, per_sequence = HIDDEN // RANKS, rows // BATCH
    batch = BATCH * HEADS // RANKS
    return {
        "Q_K_V": (3, np.array([1, rows, HIDDEN, width])),
        "Q_mul_K": (1, np.array([batch, per_sequence, HEAD_DIM, context])),
        "A_mul_V": (1, np.array([batch, per_sequence, context, HEAD_DIM])),
        "Wo_proj": (1, np.array([1, rows, width, HIDDEN])),
        "W1_proj": (1, np.array([1, rows, HIDDEN, 4 * width])),
        "W2_proj": (1, np.array([1, rows, 4 * width, HIDDEN])),
    }


def _vector_elements(rows: int, context: int) -> dict[str, float]:
    return {
        "Softmax": float(HEADS // RANKS * rows * context), "LayerNorm_MHA": float(rows * HIDDEN),
        "LayerNorm_FFN": float(rows * HIDDEN), "GeLU": float(rows * 4 * HIDDEN // RANKS),
    }  # fmt: skip


def _product_work(count: float, m: float, k: float, n: float) -> Work:
    a100 = read_hardware("a100-80gb-sxm")
    assert isinstance(a100, Device)
    operations, moved = 2 * count * m * k * n, 2 * count * (m * k + k * n + m * n)
    fill = moved / (a100.cache_bytes or 1)
    if count > 1:  # each product of a batch is computed in whole tiles of 128 rows; a single one is cut to suit
        operations *= np.ceil(m / kernels.QUERY_ROWS) * kernels.QUERY_ROWS / m
    waves = count * tiles(np.float64(m), np.float64(n)) / (a100.n_cores or 1)
    values = (operations / a100.peak_ops_per_s["fp16"], moved / a100.memory_bytes_per_s, 0.0, 1.0, fill, waves, 0.0)
    return Work(*(np.array([v]) for v in values))


def _layer(
    rows: int, context: int, product: np.ndarray, vector: dict[str, np.ndarray], reduce: Callable[[float], float]
) -> dict[str, float]:
    a100 = read_hardware("a100-80gb-sxm")
    assert isinstance(a100, Device)
    found = {
        op: n * float(kernels.seconds(_product_work(*sizes), product)[0])
        for op, (n, sizes) in _products(rows, context).items()
    }
    for op, elements in _vector_elements(rows, context).items():
        launch, efficiency = vector[op.split("_")[0].lower()]
        found[op] = float(launch + 4 * elements / a100.memory_bytes_per_s / efficiency)
    for op in ("AllReduce_MHA", "AllReduce_FFN"):
        found[op] = reduce(2.0 * rows * HIDDEN)
    return found


def shipped_layer(phase: str, rows: int, context: int) -> dict[str, float]:
    """Return op -> seconds by the constants that ship."""
    del phase
    a100 = read_hardware("a100-80gb-sxm")
    assert isinstance(a100, Device)
    product, reduce = (shipped().find(a100, op, "bfloat16").constants for op in ("gemm", "allreduce"))
    plain = np.array([0.0, 0.8])  # vector work: fused, 0.8 of the bandwidth
    link = a100.link_bytes_per_s or 0.0

    def reduced(sent: float) -> float:
        return float(collectives.all_reduce_s(np.array([sent]), np.array([float(RANKS)]), link, reduce)[0])

    return _layer(rows, context, product, dict.fromkeys(("softmax", "layernorm", "gelu"), plain), reduced)


def eager_layer(phase: str, rows: int, context: int) -> dict[str, float]:
    """Return op -> seconds by constants of the same source's sweeps."""
    del phase
    return _layer(rows, context, *_eager_constants())


def _eager_constants() -> tuple[np.ndarray, dict[str, np.ndarray], Callable[[float], float]]:
    """Fit constants to the sweeps of single operators: products like any table, vector work by a line."""
    from scipy.optimize import least_squares

    a100 = read_hardware("a100-80gb-sxm")
    assert isinstance(a100, Device)
    tables: dict[Key, list[Measurement]] = {}
    vector: dict[str, list[tuple[float, float]]] = {}
    messages: list[tuple[float, float]] = []
    for row in _rows():
        op, *sizes = row["model"].split()
        if op not in ("gemm", "allreduce", "softmax", "layernorm", "gelu"):
            continue
        value, size = float(row["value"]), {k: float(v) for k, v in (s.split("=") for s in sizes)}
        if op == "allreduce":
            messages.append((size["size"], value / 1e6))
        elif op == "gemm":
            key = Key(a100.name, "eager", op, "", "bfloat16")
            tables.setdefault(key, []).append(Measurement(key, size, value / 1e3, 0, row["model"]))
        else:
            elements = size.get("elements") or size["rows"] * size["cols"]
            vector.setdefault(op, []).append((elements, elements / (value * 1e9)))
    fitted = calibration.fit(calibration.groups_of([r for rows in tables.values() for r in rows], {a100.name: a100}))
    lines = {}
    for op, points in vector.items():
        moved, seconds = np.array(points).T * np.array([[4 / a100.memory_bytes_per_s], [1.0]])

        def residuals(p, moved=moved, seconds=seconds):
            return np.log((np.exp(p[0]) + moved / np.exp(p[1])) / seconds)

        lines[op] = np.exp(least_squares(residuals, np.log([2e-5, 0.7]), loss="soft_l1", f_scale=0.06).x)
    (product,) = fitted.values()
    sizes, times = np.log(sorted(messages)).T
    return product, lines, lambda sent: float(np.exp(np.interp(np.log(sent), sizes, times)))
