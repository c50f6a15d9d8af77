"""Draws frozen benchmark spaces from the real cost models. Run once; what it wrote is never written again.

A cost model improves, and with it every design's cost; a benchmark of search methods must not. So a benchmark space is
a snapshot: tables drawn from the cost models of one day, and a rule that turns a row of codes into objectives. The rule
is the anchored decomposition (cut-HDMR; Rabitz and Alis, J. Math. Chem. 25, 1999) over the hardware: with ``h`` the
combination of all knobs that act everywhere (the chip, the image) and ``x_g`` the knobs of one group of the model,

    f(h, x) = f(h, reference) + sum over groups of [f(h, x_g, reference elsewhere) - f(h, reference)],

exact for a cost that adds up over the groups, with every interaction inside ``h``, inside a group, and between the two.
The table of differences, of shape (combinations of h, values of all groups), is kept as the factors of its singular
value decomposition. What this leaves out against the cost model is printed and stored with the snapshot: the snapshot
is its own truth, and need only resemble the real thing.

    python -m tests.benchmarks.search.freeze NAME
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dse import Choice, Float, Scenario, Space
from dse.evaluation import Evaluation
from dse.hardware import read_hardware
from dse.metrics import MetricBatch
from dse.model import read_model
from dse.problem import Problem
from dse.space import BoundSpace
from tests.benchmarks.search.spaces import FOLDER, FORMAT

RELATIVE_ERROR = 2e-4  # of the factors against the table, of each metric's typical value


@dataclass(frozen=True)
class Recipe:
    """What a snapshot is drawn from.

    Attributes:
        model, hardware: catalogue names.
        scenario: the request.
        space: the knobs.
        everywhere: paths of the knobs that act everywhere; the others are grouped by ``groups``.
        groups: beginnings of group labels that belong together; a parameter joins the first that its label contains.
        tables: metrics to keep tables of.
        objectives, constraints: of the benchmark, over those metrics.
    """

    model: str
    hardware: str
    scenario: Scenario
    space: Space
    everywhere: tuple[str, ...]
    groups: tuple[str, ...]
    tables: tuple[str, ...]
    objectives: str
    constraints: str


_PHOTO = Scenario(images=1, image_px=(1024, 1024), prompt_tokens=96, output_tokens=48)

RECIPES: dict[str, Recipe] = {
    # A vision-language model and the chip that is designed for it: bits and pruning per component.
    "edge-vlm": Recipe(
        "smolvlm-256m", "npu-template", _PHOTO,
        Space(
            weight_bits=Choice(3, 4, 6, 8, per="component"), kv_bits=Choice(4, 8, 16, per="component"),
            ffn_keep=Float(0.5, 1.0, step=0.125, per="component"), image_px=Choice(448, 672, 1024),
            pe_rows=Choice(16, 32, 64, 128), pe_cols=Choice(16, 32, 64, 128), dataflow=Choice("ws", "os", "is"),
            sram_bytes=Choice("1 MiB", "2 MiB", "4 MiB"),
        ),
        ("image_px", "pe_rows", "pe_cols", "dataflow", "sram_bytes"), ("vision", "projector", "decoder"),
        ("latency_s", "energy_j", "quality_loss", "area_mm2", "memory_bytes"),
        "min latency_s, min energy_j, min quality_loss", "area_mm2 <= 15.5, memory_bytes <= 600 MiB",
    ),
    # A model on hardware that is for sale: two objectives, a categorical device, a memory budget.
    "gpu-serving": Recipe(
        "qwen2.5-vl-3b", "rtx-4090", _PHOTO,
        Space(
            device=Choice("rtx-4090", "l4", "l40s", "jetson-agx-orin-64gb", "h100-pcie-80gb", "a100-40gb-sxm"),
            batch=Choice(1, 2, 4, 8, 16), image_px=Choice(448, 672, 896, 1024), token_stride=Choice(1, 2),
            weight_bits=Choice(4, 8, 16, per="component"), kv_bits=Choice(4, 8, 16, per="component"),
            head_keep=Float(0.5, 1.0, step=0.25, per="component"), ffn_keep=Float(0.5, 1.0, step=0.25, per="component"),
        ),
        ("device", "batch", "image_px", "token_stride"), ("vision", "projector", "decoder"),
        ("latency_s", "energy_j", "quality_loss", "memory_bytes"),
        "min energy_j, min quality_loss", "latency_s <= 1, memory_bytes <= 3 GiB",
    ),
    # A chip for a text model: array, memories and mapping against each other, area as an objective.
    "npu-mapping": Recipe(
        "llama-3.2-1b", "npu-template", Scenario(prompt_tokens=512, output_tokens=64),
        Space(
            weight_bits=Choice(3, 4, 6, 8, per="block_half"), kv_bits=Choice(4, 8, 16, per="component"),
            pe_rows=Choice(16, 32, 64, 128), pe_cols=Choice(16, 32, 64, 128), dataflow=Choice("ws", "os", "is"),
            sram_bytes=Choice("1 MiB", "2 MiB", "4 MiB", "8 MiB"),
            dram_bytes_per_s=Choice("34 GB/s", "68 GB/s", "102 GB/s"),
            vector_lanes=Choice(32, 128), tile_m=Choice(32, 64, 128), tile_n=Choice(64, 128, 256),
        ),
        ("pe_rows", "pe_cols", "dataflow", "sram_bytes", "dram_bytes_per_s", "vector_lanes", "tile_m", "tile_n"),
        ("decoder/0", "decoder/8", "decoder"),
        ("latency_s", "energy_j", "quality_loss", "area_mm2"),
        "min latency_s, min energy_j, min area_mm2", "quality_loss <= 0.02",
    ),
    # The large one: about 40 knobs, a bit map along the hierarchy and the chip.
    "large-vlm": Recipe(
        "qwen2.5-vl-3b", "npu-template", _PHOTO,
        Space(
            weight_bits=Choice(3, 4, 6, 8, per="block_third.kind"), kv_bits=Choice(4, 8, 16, per="block_third"),
            head_keep=Float(0.75, 1.0, step=0.125, per="block_third"),
            ffn_keep=Float(0.5, 1.0, step=0.0625, per="block_third"),
            image_px=Choice(448, 672, 896, 1024), token_stride=Choice(1, 2),
            pe_rows=Choice(16, 32, 64, 128), pe_cols=Choice(16, 32, 64, 128), dataflow=Choice("ws", "os", "is"),
            sram_bytes=Choice("1 MiB", "2 MiB", "4 MiB", "8 MiB"),
            dram_bytes_per_s=Choice("34 GB/s", "51 GB/s", "68 GB/s", "102 GB/s"),
        ),
        ("image_px", "token_stride", "pe_rows", "pe_cols", "dataflow", "sram_bytes", "dram_bytes_per_s"), (),
        ("latency_s", "energy_j", "quality_loss", "area_mm2", "memory_bytes"),
        "min latency_s, min energy_j, min quality_loss", "area_mm2 <= 24, memory_bytes <= 2.5 GiB",
    ),
}  # fmt: skip


def bind(recipe: Recipe) -> BoundSpace:
    """Return the recipe's space over its problem."""
    problem = Problem({"target": read_model(recipe.model)}, recipe.scenario, read_hardware(recipe.hardware))
    return recipe.space.bind(problem)


def columns_of(recipe: Recipe, space: BoundSpace) -> list[np.ndarray]:
    """Return the columns of the knobs that act everywhere, then those of each group."""
    everywhere = [j for j, p in enumerate(space.parameters) if p.path in recipe.everywhere]
    groups: dict[str, list[int]] = {}
    for j, p in enumerate(space.parameters):
        if j not in everywhere:
            key = next((g for g in recipe.groups if g in p.label), p.group)
            groups.setdefault(key, []).append(j)
    return [np.array(everywhere), *(np.array(v) for v in groups.values())]


def combinations(n_levels: np.ndarray) -> np.ndarray:
    """Return all rows of codes over the given level counts, the last knob fastest, shape (product, knobs)."""
    return np.stack(np.unravel_index(np.arange(n_levels.prod()), n_levels), axis=1)


def metrics(evaluation: Evaluation, codes: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return columns of the cost models, NaN where a design cannot run."""
    parts = [MetricBatch.join(evaluation.evaluate(codes[i : i + 4096])).values for i in range(0, len(codes), 4096)]
    return {name: np.concatenate([p[name] for p in parts]) for name in names}


def freeze(name: str) -> Path:
    """Draw a snapshot and return where it lies."""
    recipe = RECIPES[name]
    path = FOLDER / f"{name}.npz"
    if path.exists():
        raise SystemExit(f"{path} is frozen")
    space = bind(recipe)
    evaluation = Evaluation(space, ("analytical", "prior"))
    everywhere, *groups = columns_of(recipe, space)
    h = combinations(space.n_levels[everywhere])
    reference = space.reference_codes()[0]
    print(f"{name}: {space.n_parameters} knobs, {space.n_designs:,} designs, {len(h):,} combinations everywhere")
    anchor = np.tile(reference, (len(h), 1))
    anchor[:, everywhere] = h
    base = metrics(evaluation, anchor, recipe.tables)
    differences: dict[str, list[np.ndarray]] = {m: [] for m in recipe.tables}
    for columns in groups:
        for local in combinations(space.n_levels[columns]):
            rows = anchor.copy()
            rows[:, columns] = local
            found = metrics(evaluation, rows, recipe.tables)
            for m in recipe.tables:
                differences[m].append(found[m] - base[m])
    arrays: dict[str, np.ndarray] = {}
    for m in recipe.tables:
        table = np.stack(differences[m], axis=1)
        assert np.isfinite(table).all(), f"{m}: some combinations cannot run; take them out of the space"
        u, s, v = np.linalg.svd(table, full_matrices=False)
        error = np.sqrt(np.cumsum((s**2)[::-1])[::-1] / table.size)
        rank = int((error > RELATIVE_ERROR * np.median(np.abs(base[m]) + np.abs(table).mean())).sum())
        arrays |= {
            f"{m}.base": base[m].astype(np.float32),
            f"{m}.left": (u[:, :rank] * s[:rank]).astype(np.float32),
            f"{m}.right": v[:rank].astype(np.float32),
        }
        print(f"  {m}: rank {rank} of {min(table.shape)}")
    document = {
        "format": FORMAT, "name": name, "labels": list(space.labels), "paths": [p.path for p in space.parameters],
        "levels": [list(p.levels) for p in space.parameters], "columns": [c.tolist() for c in (everywhere, *groups)],
        "metrics": list(recipe.tables), "objectives": recipe.objectives, "constraints": recipe.constraints,
        "drawn_from": {"model": recipe.model, "hardware": recipe.hardware,
                       "cost_models": {m.name: m.version for m in evaluation.models}},
    }  # fmt: skip
    arrays["document"] = np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)
    np.savez_compressed(path, **arrays)
    compare(name, evaluation, space)
    return path


def compare(name: str, evaluation: Evaluation, space: BoundSpace, n: int = 2000) -> None:
    """Print how far the snapshot is from the cost models on random designs."""
    from tests.benchmarks.search.spaces import load

    frozen = load(name)
    codes = space.sample(n, np.random.default_rng(0))
    real = metrics(evaluation, codes, tuple(frozen.metrics))
    ours = frozen.columns(codes)
    for m in frozen.metrics:
        ratio = np.abs(ours[m] / real[m] - 1)
        print(f"  {m}: median {np.median(ratio):.2%}, 95 % {np.quantile(ratio, 0.95):.2%} off the cost model")
    violation = frozen.goal.violation(ours, np.zeros(n))
    print(f"  feasible: {np.mean(violation == 0):.1%} of random designs")


if __name__ == "__main__":
    print(freeze(sys.argv[1]))
