"""Published BLIP-2 scores: what single groups predict of mixed bit maps that were never used."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def blip2():
    path = Path(__file__).parents[1] / "benchmarks" / "blip2.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_blip2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("case", "n"), [("mixed_bits", 197), ("grid", 324)])
def test_mixed_maps_are_predicted_from_single_groups(case, n, validated):
    pytest.importorskip("scipy")
    found = getattr(blip2(), case)()
    rank, r2, _ = found.score()
    assert len(found.scores) == n
    assert rank >= 0.98
    assert r2 >= 0.985
    title = {"mixed_bits": "maps of two and more groups", "grid": "grid of part widths"}[case]
    validated(
        "surrogate", f"scores of mixed bit maps from single groups: BLIP-2, {title}", "gautomdas/mmq@a4cf91f", n,
        {"Spearman {}": rank, "R2 {}": r2}, "0.98, 0.985",
    )  # fmt: skip
