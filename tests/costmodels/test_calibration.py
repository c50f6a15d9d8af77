"""Calibration: tables that are refused, constants that are found again, and errors on rows that were not fitted.

Targets: mean absolute relative error, trained on one half of the rows and tested on the other.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from costmodels import calibration, kernels
from costmodels.measurements import read_table, work_of
from dse.errors import TableError
from dse.hardware import Device, hardware_names, read_hardware

DATA = Path(__file__).parents[1] / "data" / "measured_ops.csv.gz"
DEVICES = {d.name: d for d in map(read_hardware, hardware_names()) if isinstance(d, Device)}
NAMES = {alias: d for d in DEVICES.values() for alias in (d.name, *d.aliases)}
HEADER = "hw,op,precision,shape,latency_ms"
GOOD = "a100_sxm,gemm,bfloat16,m=64;n=4096;k=4096,0.027"


def table(tmp_path, *lines, header=HEADER):
    path = tmp_path / "table.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "measured_ops.csv"
    path.write_bytes(gzip.decompress(DATA.read_bytes()))
    return read_table(path, NAMES)


# ------------------------------------------------------------------ tables that are refused


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a100_sxm,gemm,bfloat16,m=64;n=4096;k=4096,-0.1", "column 'latency_ms' is '-0.1', not a positive number"),
        ("a100_sxm,gemm,bfloat16,m=64;n=4096;k=4096,0", "not a positive number"),
        ("a100_sxm,gemm,bfloat16,m=64;n=4096;k=4096,nan", "not a positive number"),
        ("a100_sxm,gemm,bfloat16,m=64;n=4096;k=4096,inf", "not a positive number"),
        ("a100_sxm,gemm,bfloat16,m=64;n=4096;k=4096,fast", "not a positive number"),
        ("a100_sxm,gemm,bfloat16,m=64;n=4096;k=4096,", "column 'latency_ms' is empty"),
        ("a100_sxn,gemm,bfloat16,m=64;n=4096;k=4096,0.1", "column 'hw': unknown 'a100_sxn'"),
        ("a100_sxm,gem,bfloat16,m=64;n=4096;k=4096,0.1", "column 'op': unknown 'gem'"),
        ("a100_sxm,gemm,bf17,m=64;n=4096;k=4096,0.1", "column 'precision': unknown 'bf17'"),
        ("a100_sxm,gemm,fp8,m=64;n=4096;k=4096,0.1", "column 'precision': a100-80gb-sxm has no fp8 peak"),
        ("a100_sxm,gemm,bfloat16,m=64;n=4096,0.1", "column 'shape': k is missing"),
        ("a100_sxm,gemm,bfloat16,m=64;n=4096;k=-1,0.1", "column 'shape': k='-1' is not a positive whole number"),
        ("a100_sxm,gemm,bfloat16,m=0;n=4096;k=1,0.1", "column 'shape': m='0'"),
        ("a100_sxm,gemm,bfloat16,64x4096x4096,0.1", "column 'shape': '64x4096x4096' does not belong there"),
        ("a100_sxm,gemm,bfloat16,m=1;m=2;n=3;k=4,0.1", "column 'shape': 'm=2' does not belong there"),
        (
            "a100_sxm,context_attention,bfloat16,heads=32;kv_heads=5;head_dim=128;batch=1;isl=9,0.1",
            "heads=32 is no multiple of kv_heads=5",
        ),
        ("a100_sxm,gemm,bfloat16,m=64;n=4096;k=4096,0.028", "but line 2 has 0.027 for the same kernel"),
    ],
)
def test_a_bad_row_names_line_and_column(tmp_path, line, said):
    with pytest.raises(TableError) as error:
        read_table(table(tmp_path, GOOD, line), NAMES)
    assert "table.csv: line 3: column " in error.value.message
    assert said in error.value.message
    assert error.value.hint
    assert error.value.exit_code == 1


@pytest.mark.parametrize("column", HEADER.split(","))
def test_a_missing_column_is_named(tmp_path, column):
    header = ",".join(c for c in HEADER.split(",") if c != column)
    with pytest.raises(TableError, match=f"line 1: column '{column}' is missing"):
        read_table(table(tmp_path, GOOD, header=header), NAMES)


def test_an_empty_table_and_none_at_all(tmp_path):
    with pytest.raises(TableError, match="no row below the header"):
        read_table(table(tmp_path), NAMES)
    with pytest.raises(TableError, match="cannot be read"):
        read_table(tmp_path / "nowhere.csv", NAMES)


def test_equal_duplicates_count_once(tmp_path):
    assert len(read_table(table(tmp_path, GOOD, GOOD), NAMES)) == 1


def test_quoted_lines_keep_their_numbers(tmp_path):
    bad = GOOD.replace("0.027", "-1")
    with pytest.raises(TableError, match="line 4"):
        read_table(table(tmp_path, '"a100_sxm",gemm,bfloat16,"m=1;n=2;\nk=3",0.1', bad), NAMES)


# ------------------------------------------------------------------ work, by hand


def test_work_of_a_product_by_hand(tmp_path):
    """64 x 4096 x 4096 in 8 bits on an H200: 2.147e9 operations; weights 16.8 MB, activations 0.26 + 0.52 MB."""
    row = read_table(table(tmp_path, "h200_sxm,gemm,fp8,m=64;n=4096;k=4096,0.01"), NAMES)
    work = work_of(row, DEVICES["h200-sxm-141gb"])
    moved = 4096 * 4096 + 64 * 4096 + 2 * 64 * 4096
    assert work.compute_s[0] == pytest.approx(2 * 64 * 4096**2 / 1979e12)
    assert work.traffic_s[0] == pytest.approx(moved / 4.8e12)
    assert work.pass_s[0] == pytest.approx(3 * 64 * 4096 / 4.8e12)
    assert work.fill[0] == pytest.approx(moved / (50 * 2**20))


def test_work_of_attention_by_hand(tmp_path):
    lines = [
        "a100_sxm,context_attention,bfloat16,heads=32;kv_heads=8;head_dim=72;batch=2;isl=1000,0.1",
        "a100_sxm,generation_attention,bfloat16,heads=32;kv_heads=8;head_dim=128;batch=2;step=999,0.1",
    ]
    context, decode = read_table(table(tmp_path, *lines), NAMES)
    a100 = DEVICES["a100-80gb-sxm"]
    work = work_of([context], a100)
    # 1,000 x 1,001 / 2 pairs per head; dimensions of 72 are computed as 80.
    assert work.compute_s[0] == pytest.approx(4 * 2 * 32 * 500_500 * 80 / 312e12)
    assert work.traffic_s[0] == pytest.approx((2 * 2 * 32 * 1000 * 72 * 2 + 2 * 2 * 8 * 1000 * 72 * 2) / 2.039e12)
    assert work.waves[0] == pytest.approx(2 * 8 * 4 * 1000 / 128 / 108)
    assert work.misaligned[0] == 1
    work = work_of([decode], a100)
    assert work.compute_s[0] == pytest.approx(4 * 2 * 32 * 1000 * 128 / 312e12)
    assert work.traffic_s[0] == pytest.approx((2 * 2 * 32 * 128 * 2 + 2 * 2 * 8 * 1000 * 128 * 2) / 2.039e12)
    assert decode.key.variant == "gqa"


# ------------------------------------------------------------------ fits


def test_known_constants_are_found_again(rows):
    """Latencies made by the form itself, of four groups with constants of their own."""
    rng = np.random.default_rng(5)
    groups = calibration.groups_of([r for r in rows if (r.key.op, r.key.precision) == ("gemm", "bfloat16")], DEVICES)
    for key, group in groups.items():
        truth = np.array([p.value for p in calibration.PRIORS["gemm"].values()])
        truth[[kernels.LAUNCH, kernels.COMPUTE, kernels.BANDWIDTH]] *= rng.uniform(0.7, 1.2, 3)
        latencies = group.predict(truth)
        made = [
            type(r)(r.key, r.shape, float(t), r.line, r.identity) for r, t in zip(group.rows, latencies, strict=True)
        ]
        groups[key] = calibration.Group(key, made, group.predict)
    for key, found in calibration.fit(groups).items():
        assert groups[key].predict(found) == pytest.approx(groups[key].measured_s, rel=0.02)


def test_the_order_of_rows_does_not_matter(rows):
    some = [r for r in rows if r.key.op == "encoder_attention"]
    first = calibration.fit(calibration.groups_of(some, DEVICES))
    again = calibration.fit(calibration.groups_of(some[::-1], DEVICES))
    assert all(np.array_equal(first[key], again[key]) for key in first)


def test_no_row_is_predicted_by_a_fit_that_saw_it(rows, monkeypatch):
    seen = []
    fit = calibration.fit

    def spy(groups):
        seen.append({row.identity for g in groups.values() for row in g.rows})
        return fit(groups)

    monkeypatch.setattr(calibration, "fit", spy)
    some = [r for r in rows if r.key.op == "encoder_attention"]
    calibration.held_out(calibration.groups_of(some, DEVICES), DEVICES, 2)
    everything = {r.identity for r in some}
    assert len(seen) == 2
    assert seen[0] | seen[1] == everything
    assert not seen[0] & seen[1]


def test_bands_hold_nine_of_ten_new_rows():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(300):
        errors = np.exp(rng.normal(0, 0.1, 40))
        low, high = calibration.band(1 / errors[:-1])
        held.append(low <= errors[-1] <= high)
    assert np.mean(held) >= 0.88


@pytest.mark.slow
def test_bands_hold_nine_of_ten_rows_that_made_neither_fit_nor_band(rows, validated):
    found = calibration.coverage(calibration.groups_of(rows, DEVICES), DEVICES)
    assert set(found) == set(calibration.PRIORS)
    assert all(0.85 <= share <= 0.95 for share in found.values()), found
    validated(
        "devices", "90 % bands, fitted on a third of the rows, made on another", "the last third", len(rows) // 3,
        {f"{KERNELS[op].strip(', ')} {{}} %": 100 * share for op, share in found.items()}, "90 %", digits=3,
    )  # fmt: skip


@pytest.mark.parametrize("op", ["gemm", "context_attention", "moe", "allreduce"])
def test_bad_cells_are_refused_for_every_kind_of_kernel(tmp_path, op):
    shapes = {
        "gemm": "m=64;n=4096;k=4096", "context_attention": "heads=32;kv_heads=8;head_dim=128;batch=2;isl=128",
        "moe": "tokens=8;hidden=4096;inter=1024;topk=2;experts=8", "allreduce": "gpus=4;elements=4096",
    }  # fmt: skip
    good = f"h200_sxm,{op},bfloat16,{shapes[op]},0.1"
    assert len(read_table(table(tmp_path, good), NAMES)) == 1
    for name in (part.split("=")[0] for part in shapes[op].split(";")):
        parts = shapes[op].split(";")
        without = ";".join(p for p in parts if not p.startswith(f"{name}="))
        with pytest.raises(TableError, match=f"line 2: column 'shape': {name} is missing"):
            read_table(table(tmp_path, good.replace(shapes[op], without)), NAMES)
        if name != "kv_heads":
            zero = ";".join(f"{name}=0" if p.startswith(f"{name}=") else p for p in parts)
            with pytest.raises(TableError, match=f"column 'shape': {name}='0' is not a positive whole number"):
                read_table(table(tmp_path, good.replace(shapes[op], zero)), NAMES)


TARGETS = {  # (op, precision or "" for all): mean absolute relative error of held-out rows
    ("gemm", "bfloat16"): 0.08, ("gemm", "int8_wo"): 0.08, ("gemm", "int4_wo"): 0.08, ("gemm", "fp8"): 0.10,
    ("gemm", "fp8_block"): 0.10, ("gemm", "nvfp4"): 0.10, ("context_attention", ""): 0.08,
    ("generation_attention", ""): 0.12, ("encoder_attention", ""): 0.12,
    # No target was set for these: what they reach, plus a margin.
    ("gemm", "sq"): 0.12, ("moe", ""): 0.27, ("allreduce", ""): 0.16,
}  # fmt: skip


SET = set(list(TARGETS)[:9])
PRECISIONS = {"int8_wo": "int8 weights", "int4_wo": "int4 weights", "sq": "int8 (smooth quant)"}
KERNELS = {"gemm": "product, ", "context_attention": "context attention", "generation_attention": "decode attention",
           "encoder_attention": "encoder attention", "moe": "experts", "allreduce": "all-reduce"}  # fmt: skip


@pytest.mark.parametrize(
    "op", ["gemm", "context_attention", "generation_attention", "encoder_attention", "moe", "allreduce"]
)
def test_errors_on_the_half_that_was_not_fitted(rows, op, validated):
    groups = calibration.groups_of([r for r in rows if r.key.op == op], DEVICES)
    errors, roofline, fixed = defaultdict(list), defaultdict(list), defaultdict(list)
    for key, ratios in calibration.held_out(groups, DEVICES, 2).items():
        device = DEVICES[key.device]
        for name in {(op, key.precision), (op, "")} & set(TARGETS):
            errors[name].append(np.abs(ratios - 1))
            roofline[name].append(np.abs(calibration.roofline_s(groups[key], device) / groups[key].measured_s - 1))
            fixed[name].append(np.abs(calibration.fixed_s(groups[key], device) / groups[key].measured_s - 1))
    assert errors
    for name, found in errors.items():
        mean = np.concatenate(found).mean()
        assert mean <= TARGETS[name], name
        assert mean < np.concatenate(fixed[name]).mean() < np.concatenate(roofline[name]).mean(), name
        if name in TARGETS:
            validated(
                "kernels", KERNELS[op] + PRECISIONS.get(name[1], name[1]), "tables of aiconfigurator-core 0.12.0",
                sum(map(len, found)),
                {"mean error, held out {} %": 100 * mean, "roofline {} %": 100 * np.concatenate(roofline[name]).mean(),
                 "one efficiency {} %": 100 * np.concatenate(fixed[name]).mean()},
                f"{100 * TARGETS[name]:.0f} %" if name in SET else "", digits=3,
            )  # fmt: skip


# Each device predicted from its datasheet and the others' constants, 16-bit products of vLLM. The targets are 12 % on
# A100 (10.9 with TensorRT-LLM) and H200 (10.8), and 20 % on B200 (10.0) and L40S. TensorRT-LLM on the L40S (47 %) is
# not predicted from others: its rows were measured with a warm cache, theirs with a cold one.
TRANSFER = {"a100-80gb-sxm": "12 %", "h200-sxm-141gb": "12 %", "b200-sxm-180gb": "20 %", "l40s": "20 %"}
LEFT_OUT = {"a100-80gb-sxm": 0.125, "h200-sxm-141gb": 0.12, "b200-sxm-180gb": 0.12, "l40s": 0.13}


def test_16_bit_products_of_a_device_that_was_left_out(rows, validated):
    chosen = [r for r in rows if (r.key.op, r.key.precision, r.key.framework) == ("gemm", "bfloat16", "vllm")]
    found = calibration.transferred(calibration.groups_of(chosen, DEVICES), DEVICES)
    for key, ratios in found.items():
        mean = np.abs(ratios - 1).mean()
        assert mean <= LEFT_OUT[key.device], key
        validated(
            "devices", f"product, bfloat16, {key.device} left out: its datasheet, the others' constants",
            "vLLM's kernels there", len(ratios), {"mean error {} %": 100 * mean}, TRANSFER[key.device], digits=3,
        )  # fmt: skip


def test_a_gpt3_layer_on_four_a100(rows, validated):
    """LLMCompass's measured prefill of one layer, 66.75 ms, from shipped constants; no row of it was fitted.

    Decode (1.11 ms) is out of reach: by the same constants 33 % short, because it ran unfused from Python, with
    launches of 50 us that fused kernels do not have; with launches fitted to eager operators 12 % short.
    """
    path = Path(__file__).parents[1] / "benchmarks" / "devices.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_devices", path)
    assert spec is not None
    assert spec.loader is not None
    layer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(layer)
    measured = layer.measured_layer()
    assert {phase: len(ops) for phase, ops in measured.items()} == {"prefill": 12, "decode": 12}
    assert sum(measured["prefill"].values()) == pytest.approx(66.7472e-3, rel=1e-4)
    assert sum(layer.shipped_layer("prefill", 8 * 2048, 2048).values()) == pytest.approx(66.7472e-3, rel=0.05)
    assert sum(layer.eager_layer("prefill", 8 * 2048, 2048).values()) == pytest.approx(66.7472e-3, rel=0.05)
    assert sum(layer.eager_layer("decode", 8, 1025).values()) == pytest.approx(1.1109e-3, rel=0.13)
    assert not any("GPT" in row.identity for row in rows)
    for phase, n_rows, context in (("prefill", 8 * 2048, 2048), ("decode", 8, 1025)):
        ours = {kind: sum(getattr(layer, f"{kind}_layer")(phase, n_rows, context).values()) for kind in
                ("shipped", "eager")}  # fmt: skip
        theirs = sum(measured[phase].values())
        validated(
            "devices", f"a layer of GPT-3 175B on four A100, {phase}", f"LLMCompass: {1e3 * theirs:.4g} ms", 12,
            {f"{kind} constants {{}} ms": 1e3 * s for kind, s in ours.items()}
            | {f"{kind}, error {{}} %": 100 * abs(s / theirs - 1) for kind, s in ours.items()},
            "10 %", digits=3,
        )  # fmt: skip
