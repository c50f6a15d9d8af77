"""Rates of the parts that decide how large a study can be, in CPU time of one process.

Every rate stands beside a yardstick measured in the same run, so that runs on other machines, or on a busy one, can be
compared: sorting 1,000,000 random float64 and multiplying two arrays of that size, ten times. "per yardstick" is how
many units one yardstick's time buys.

    python -m tests.benchmarks [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from costmodels import scalesim
from dse import Choice, Float, Scenario, Space, Study, catalogue
from dse.hardware import read_hardware
from dse.hypervolume import hypervolume
from dse.model import read_model
from dse.pareto import first_front
from dse.problem import Problem
from dse.space import BoundSpace
from dse.testing.samples import small_model
from tests.benchmarks import devices, engine, prompts, quality, serving, simulator
from tests.oracles.test_zigzag import summary as zigzag

REPEATS = 5


def cpu_s(work: Callable[[], object]) -> float:
    """Return the least CPU time of some repetitions, after one that warms up."""
    work()
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def yardstick() -> float:
    """Return the CPU seconds of the yardstick."""
    numbers = np.random.default_rng(0).random(1_000_000)

    def work() -> None:
        for _ in range(10):
            np.sort(numbers)
            np.multiply(numbers, numbers)

    return cpu_s(work)


def llava_space(**tiles: Choice) -> BoundSpace:
    """LLaVA-1.5-7B on the accelerator template: a width for each of its 374 weights, and the accelerator's knobs."""
    scenario = Scenario(images=1, image_px=(336, 336), prompt_tokens=64, output_tokens=64)
    problem = Problem({"target": read_model("llava-1.5-7b")}, scenario, read_hardware("npu-template"))
    return Space(
        weight_bits=Choice(3, 4, 6, 8, per="module"),
        act_bits=Choice(8, 16, per="module"),
        kv_bits=Choice(4, 8, 16, per="block"),
        head_keep=Float(0.5, 1.0, per="block"),
        ffn_keep=Float(0.5, 1.0, per="block"),
        visual_token_keep=Choice(0.25, 0.5, 1.0),
        pe_rows=Choice(16, 32, 64, 128),
        pe_cols=Choice(16, 32, 64, 128),
        dataflow=Choice("ws", "os", "is"),
        sram_bytes=Choice("1 MiB", "4 MiB", "16 MiB"),
        **tiles,
    ).bind(problem)


def device_work() -> Callable[[], object]:
    """Return the evaluation of 1,024 designs of LLaVA-1.5-7B on an H200, widths per module and pruning per block."""
    scenario = Scenario(images=1, image_px=(336, 336), prompt_tokens=64, output_tokens=64)
    problem = Problem({"target": read_model("llava-1.5-7b")}, scenario, read_hardware("h200-sxm-141gb"))
    space = Space(
        weight_bits=Choice(4, 8, 16, per="module"),
        act_bits=Choice(8, 16, per="module"),
        kv_bits=Choice(8, 16, per="block"),
        head_keep=Float(0.5, 1.0, per="block"),
        ffn_keep=Float(0.5, 1.0, per="block"),
        visual_token_keep=Choice(0.25, 0.5, 1.0),
        batch=Choice(1, 4, 8),
    ).bind(problem)
    evaluator = catalogue.cost_model("analytical").prepare(problem)
    batch = space.decode(space.sample(1024, np.random.default_rng(0)))
    return lambda: evaluator.evaluate(batch)


FIXED_TILES: dict[str, Choice] = {
    "tile_m": Choice(32, 64, 128), "tile_n": Choice(64, 128, 256), "tile_k": Choice(64, 128, 256),
    "loop_order": Choice("mnk", "nmk", "mkn", "nkm"),
}  # fmt: skip
FUSED: dict[str, Choice] = {name: Choice(True) for name in ("fuse_attention", "fuse_mlp", "fuse_norm")}
FREE_TILES: dict[str, Choice] = {"tile_m": Choice(0), "loop_order": Choice("auto")}


def products_rate(n: int = 100_000) -> float:
    """Return closed-form evaluations of a matrix product per CPU second: random sizes, tiles, orders and arrays."""
    from costmodels.passes import N_PLANES, run_pass
    from costmodels.products import LINEAR, Bound, Products, Widths
    from costmodels.systolic import Chips

    rng = np.random.default_rng(0)
    per_chip = 1000
    chips = n // per_chip

    def sides() -> np.ndarray:
        return np.ascontiguousarray(rng.integers(1, 4097, (per_chip, 1)) * [1.0, 0.0, 0.0])

    one, zero = np.ones(per_chip), np.zeros(per_chip, dtype=np.int64)
    table = Products(
        kind=zero + LINEAR, block=zero, k=sides(), n=sides(), heads=one[:, None] * [1.0, 0.0, 0.0],
        kv_heads=one[:, None] * [1.0, 0.0, 0.0], rows=np.arange(per_chip), span=zero, copies=one, active=one,
        weight=np.arange(per_chip), share=one[:, None].copy(), act=zero, cache=zero, windowed=zero > 0,
    )  # fmt: skip
    plain = np.ones((chips, 1))
    bound = Bound(
        plain, plain, plain, rng.integers(1, 1025, (chips, per_chip)) * 1.0, np.ones((chips, per_chip)), plain
    )
    bits = rng.choice([3.0, 4.0, 8.0], (chips, per_chip))
    widths = Widths(bits, 8.0 * plain, 16.0 * plain, 128.0, 16.0, 1.0)

    def pick(*values: float) -> np.ndarray:
        return rng.choice(np.array(values, dtype=np.float64), chips)

    order = np.array([rng.permutation(3) for _ in range(chips)], dtype=np.float64).T.copy()
    arrays = Chips(
        pick(16, 32, 128), pick(16, 32, 128), pick(1, 2), rng.integers(0, 3, chips), rng.integers(0, 2, chips),
        pick(32, 64, 128), pick(64, 128, 256), pick(64, 128, 256), order[0], order[1], order[2],
        pick(2.0**20, 2.0**22), pick(1e9), pick(34e9, 68e9),
    )  # fmt: skip
    is_weight, planes = np.ones(per_chip, dtype=bool), np.zeros((N_PLANES, 0, 0))
    return n / cpu_s(lambda: run_pass(table, bound, widths, arrays, is_weight, ~is_weight, planes))


def rates() -> dict[str, tuple[float, str]]:
    """Return every rate with its unit."""
    found: dict[str, tuple[float, str]] = {}
    space = llava_space(**FIXED_TILES)
    analytical = catalogue.cost_model("analytical").prepare(space.schema.problem)
    prior = catalogue.cost_model("prior").prepare(space.schema.problem)
    rng = np.random.default_rng(0)
    for n in (64, 256, 1024, 4096):
        codes = space.sample(n, rng)
        batch = space.decode(codes)
        found[f"LLaVA-1.5-7B, hardware metrics, batch {n}"] = (
            n / cpu_s(lambda b=batch: analytical.evaluate(b)),
            "designs",
        )
        both = cpu_s(lambda batch=batch: (analytical.evaluate(batch), prior.evaluate(batch)))
        found[f"LLaVA-1.5-7B, all metrics, batch {n}"] = (n / both, "designs")
    fused = llava_space(**FIXED_TILES, **FUSED)
    fused_model = catalogue.cost_model("analytical").prepare(fused.schema.problem)
    batch_fused = fused.decode(fused.sample(1024, rng))
    both = cpu_s(lambda: (fused_model.evaluate(batch_fused), prior.evaluate(batch_fused)))
    found["LLaVA-1.5-7B, all metrics, everything fused, batch 1024"] = (1024 / both, "designs")
    found["LLaVA-1.5-7B on a GPU, batch 1024"] = (1024 / cpu_s(device_work()), "designs")
    free = llava_space(**FREE_TILES)
    batch_free = free.decode(free.sample(256, rng))
    mapped = catalogue.cost_model("analytical").prepare(free.schema.problem)
    both = cpu_s(lambda: (mapped.evaluate(batch_free), prior.evaluate(batch_free)))
    found["LLaVA-1.5-7B, all metrics, mapper free, batch 256"] = (256 / both, "designs")
    found["prompt of 8,000 tokens from 100,000 designs of 405 knobs"] = (1 / cpu_s(prompts.work()), "prompts")
    found["closed form of a matrix product, random sizes and chips"] = (products_rate(), "products")
    codes = space.sample(1024, rng)
    found["decode codes, 1,024 rows"] = (1024 / cpu_s(lambda: space.decode(codes)), "designs")
    found["hash designs, 1,024 rows"] = (1024 / cpu_s(lambda: space.decode(codes).hashes), "designs")
    for m, n in ((2, 1000), (3, 1000), (4, 200)):
        directions = np.abs(rng.normal(size=(n, m)))
        points = 1 - directions / np.linalg.norm(directions, axis=1, keepdims=True)
        seconds = cpu_s(lambda points=points, m=m: hypervolume(points, np.full(m, 1.1)))
        found[f"hypervolume, {n} points, {m} objectives"] = (1 / seconds, "fronts")
    cloud = rng.random((100_000, 3))
    found["first front of 100,000 points, 3 objectives"] = (1 / cpu_s(lambda: first_front(cloud)), "fronts")
    found["SCALE-Sim's counts in closed form, 1,000,000 products"] = (1e6 / cpu_s(products()), "products")
    found["study of a small model, random, to SQLite"] = (study_rate(), "designs")
    return found


def products(n: int = 1_000_000) -> Callable[[], object]:
    """Return the counting of drawn products on drawn arrays, on all dataflows."""
    rng = np.random.default_rng(0)
    sizes = [rng.integers(1, 8192, n).astype(np.float64) for _ in range(3)]
    sides = [2.0 ** rng.integers(3, 8, n) for _ in range(2)]
    words = [1024.0 * rng.integers(1, 512, n) for _ in range(3)]
    stays = rng.integers(0, 3, n)
    return lambda: scalesim.count(*sizes, *sides, stays, *words)


def study_rate(n: int = 2048) -> float:
    """Return designs per CPU second of a whole study: propose, decode, hash, evaluate, commit."""
    with tempfile.TemporaryDirectory() as folder:
        space = Space(
            weight_bits=Choice(3, 4, 6, 8, per="block.module"),
            pe_rows=Choice(*range(8, 72, 4)),
            pe_cols=Choice(*range(8, 72, 4)),
        )
        study = Study(
            "bench", model=small_model("text"), scenario=Scenario(prompt_tokens=7, output_tokens=5),
            hardware="npu-template", space=space, objectives="min latency_s, min energy_j", proposers="random",
        )  # fmt: skip
        study.run(64, db=Path(folder) / "warm.db", report=lambda _: None, executor="local")
        began = time.process_time()
        study.run(n, db=Path(folder) / "a.db", report=lambda _: None, executor="local")
        return n / (time.process_time() - began)


def main() -> None:
    """Print all rates beside the yardstick."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    before = yardstick()
    found = rates()
    stick = min(before, yardstick())
    print(f"yardstick: {stick:.3f} CPU s (Python {platform.python_version()}, numpy {np.__version__})\n")
    print(f"{'':58}{'per CPU second':>16}{'per yardstick':>16}")
    for name, (rate, unit) in found.items():
        print(f"{name:58}{rate:>16,.0f}{rate * stick:>16,.0f}  {unit}")
    print("\nA study end to end (rates per CPU second; Optuna beside it)\n")
    end_to_end = engine.figures()
    for what, value, unit in end_to_end:
        print(f"{what:74}{value:>14,.2f}  {unit}")
    print("\nDevice kernels: errors on rows that were not fitted (a minute or two)\n")
    print(devices.accuracy())
    print("\nOne layer of GPT-3 175B on four A100, batch 8, 2,048 tokens; decode at position 1,025\n")
    print(devices.gpt3_layer())
    print("\nSimulator\n")
    print(simulator.report(llava_space(**FIXED_TILES)))
    print("\nServing\n")
    print(serving.report())
    agreement = zigzag()
    print(f"\n{'analytical against ZigZag 3.9.1, tpu_like, 25 products':58}")
    for name, value in agreement.items():
        print(f"{name:58}{value:>16.4f}")
    print("\nQuality\n")
    quality.main()
    if arguments.json:
        document = {
            "yardstick_s": stick,
            "zigzag": agreement,
            "rates_per_s": {name: rate for name, (rate, _) in found.items()},
            "end_to_end": {what: value for what, value, _ in end_to_end},
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
