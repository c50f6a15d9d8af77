"""Generated spaces: methods are tuned on these, never on the frozen ones. Any seed gives another space.

``roofline``: groups of a made-up model on a made-up chip: time is the larger of compute and traffic per group, energy
counts both, loss falls with the bits by a power of two, with an area and a memory limit. ``pairwise``: every objective
is a random sum of main effects and of interactions of pairs of knobs, half of them categorical. ``convex``: ZDT1 with a
Gray-like permutation on some knobs, on a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dse.objectives import Goal
from tests.benchmarks.search.spaces import CodeSpace


@dataclass(frozen=True)
class Generated:
    """A space with its rule; see :class:`tests.benchmarks.search.spaces.Frozen`."""

    name: str
    space: CodeSpace
    goal: Goal
    rule: Callable[[np.ndarray], dict[str, np.ndarray]]

    def columns(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of rows of codes."""
        return self.rule(np.asarray(codes, dtype=np.int64))


def roofline(seed: int, n_groups: int) -> Generated:
    """Return a space of ``2 n_groups + 7`` knobs."""
    rng = np.random.default_rng([seed, 1])
    bits, keep = (2, 3, 4, 6, 8), (0.5, 0.625, 0.75, 0.875, 1.0)
    chip = [(8, 16, 32, 64, 128), (8, 16, 32, 64, 128), ("a", "b", "c"), (0.5, 1, 2, 4, 8), (16, 32, 64, 128),
            (0.5, 1.0, 1.5), (1, 2, 4)]  # fmt: skip
    levels = [*chip, *[bits] * n_groups, *[keep] * n_groups]
    paths = [*"abcdefg", *["w"] * n_groups, *["k"] * n_groups]
    work, weights = rng.lognormal(0, 1.0, n_groups), rng.lognormal(0, 1.0, n_groups)
    sensitivity, prune = rng.lognormal(0, 1.2, n_groups), rng.lognormal(-1, 1.0, n_groups)
    fit = rng.uniform(0.3, 1.0, (3, n_groups))
    sizes = rng.integers(20, 200, (2, n_groups))

    def rule(codes: np.ndarray) -> dict[str, np.ndarray]:
        value = [np.array(v, dtype=float) if not isinstance(v[0], str) else np.arange(3) for v in chip]
        rows, cols, flow, sram, bw, freq, pixels = (v[codes[:, j]] for j, v in enumerate(value))
        w = np.array(bits)[codes[:, 7 : 7 + n_groups]]
        k = np.array(keep)[codes[:, 7 + n_groups :]]
        used = [np.ceil(s / d[:, None]) * d[:, None] / s for s, d in zip(sizes, (rows, cols), strict=True)]
        tokens = (1.0 / pixels)[:, None]
        compute = work * k * used[0] * used[1] * tokens / (rows * cols * freq)[:, None] / fit[flow.astype(int)] * 2000
        traffic = weights * k * w * (1 + 2 * tokens / np.sqrt(sram)[:, None]) / bw[:, None] * 4
        time = np.maximum(compute, traffic).sum(axis=1) + 0.3
        area = rows * cols / 400 + sram * 2 + bw / 16
        energy = (work * k * tokens * (0.2 + (w / 8) ** 1.5)).sum(axis=1) + (traffic * bw[:, None]).sum(axis=1) / 60
        loss = (sensitivity * 4.0 ** (2 - w) + prune * (1 - k) ** 2).sum(axis=1) + 0.4 * np.log2(pixels) ** 2
        return {
            "latency_s": time, "energy_j": energy + 0.03 * area * time, "quality_loss": loss, "area_mm2": area,
            "memory_bytes": (weights * k * w).sum(axis=1) / weights.sum() * 1e9,
        }  # fmt: skip

    goal = Goal.parse("min latency_s, min energy_j, min quality_loss", "area_mm2 <= 22, memory_bytes <= 4 GB")
    return Generated(f"roofline-{n_groups}-{seed}", CodeSpace(levels, paths=paths), goal, rule)


def pairwise(seed: int, n_knobs: int, n_objectives: int = 2) -> Generated:
    """Return a space of interacting knobs."""
    rng = np.random.default_rng([seed, 2])
    sizes = rng.choice([2, 3, 4, 5, 8], n_knobs)
    words = rng.random(n_knobs) < 0.5
    levels = [[f"v{i}" for i in range(n)] if w else list(range(n)) for n, w in zip(sizes, words, strict=True)]
    top = int(sizes.max())
    scale = rng.lognormal(0, 0.8, (n_objectives, n_knobs, 1))
    main = scale * np.where(words[None, :, None], 1.0, 0.0) * rng.normal(size=(n_objectives, n_knobs, top))
    slope = scale[..., 0] * rng.normal(size=(n_objectives, n_knobs)) * ~words
    bend = scale[..., 0] * rng.normal(size=(n_objectives, n_knobs)) * ~words
    pairs = np.array([rng.choice(n_knobs, 2, replace=False) for _ in range(2 * n_knobs)])
    joint = 0.4 * rng.normal(size=(n_objectives, len(pairs), top, top))

    def rule(codes: np.ndarray) -> dict[str, np.ndarray]:
        x = codes / np.maximum(sizes - 1, 1)
        j = np.arange(n_knobs)
        total = np.stack([
            main[o][j, codes].sum(axis=1) + x @ slope[o] + (x - 0.5) ** 2 @ (4 * bend[o])
            + joint[o][np.arange(len(pairs)), codes[:, pairs[:, 0]], codes[:, pairs[:, 1]]].sum(axis=1)
            for o in range(n_objectives)
        ])  # fmt: skip
        names = ("latency_s", "energy_j", "quality_loss")
        columns = {name: np.exp(total[o] / np.sqrt(n_knobs)) for o, name in enumerate(names[:n_objectives])}
        return columns | {"area_mm2": 10 * np.exp(-total.sum(axis=0) / np.sqrt(n_knobs) / n_objectives)}

    objectives = ", ".join(f"min {n}" for n in ("latency_s", "energy_j", "quality_loss")[:n_objectives])
    goal = Goal.parse(objectives, "area_mm2 <= 14")
    return Generated(f"pairwise-{n_knobs}-{seed}", CodeSpace(levels), goal, rule)


def convex(seed: int, n_knobs: int) -> Generated:
    """Return ZDT1 (Zitzler, Deb and Thiele, Evol. Comp. 8(2), 2000) on grids of 11 levels, best at random levels."""
    rng = np.random.default_rng([seed, 3])
    best = rng.integers(0, 11, n_knobs)

    def rule(codes: np.ndarray) -> dict[str, np.ndarray]:
        first = codes[:, 0] / 10
        g = 1 + 9 * (np.abs(codes - best)[:, 1:] / 10).mean(axis=1)
        return {"latency_s": first, "energy_j": g * (1 - np.sqrt(first / g))}

    space = CodeSpace([list(range(11))] * n_knobs)
    return Generated(f"convex-{n_knobs}-{seed}", space, Goal.parse("min latency_s, min energy_j"), rule)


def tuning_spaces(seed: int) -> list[Generated]:
    """Return one space of each kind, small and large."""
    return [
        roofline(seed, 2), roofline(seed, 16), pairwise(seed, 10), pairwise(seed, 36, 3), convex(seed, 10),
        convex(seed, 30),
    ]  # fmt: skip
