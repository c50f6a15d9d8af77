"""The surrogate and allocated bit maps on the vision-language models of studies/digits_vlm, three training seeds.

    python -m tests.benchmarks.digits FOLDER [SEED ...]

Trains (once), profiles weights and pruning, calibrates on 20 random configurations, then measures 60 others over the
full range (2 to 8 bits, up to half of the heads and channels pruned) and 60 in the useful one (3 bits and more, at most
a quarter pruned), each drawn with a severity of its own as calibration runs are, on test digits. Prints rank
correlation, R2, mean error and coverage; then KL of knapsack maps against uniform ones at equal bytes. Everything is
kept in FOLDER.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path

import numpy as np

from costmodels.measured import plan
from costmodels.measured.profiling import MeasuredProfiling, errors
from dse import profilefile
from dse.allocation import Choices, solve
from dse.capabilities import ProfileOrder
from dse.model import read_model
from dse.profile import Configuration

USER_FILE = Path(__file__).resolve().parents[2] / "studies" / "digits_vlm" / "digits.py"
FULL = {"weight_bits": (2, 3, 4, 6, 8), "head_keep": (0.75, 0.5), "ffn_keep": (0.875, 0.75, 0.5)}
USEFUL = {"weight_bits": (3, 4, 6, 8), "head_keep": (0.75,), "ffn_keep": (0.875, 0.75)}
N_CALIBRATION, N_UNSEEN = 20, 60


def measured(folder: Path, weights: Path) -> MeasuredProfiling:
    """Return the profile of a checkpoint with its calibration runs, measured as far as it is not there."""
    out = folder / f"{weights.name}.jsonl"
    order = ProfileOrder(str(USER_FILE), str(weights), out=str(out), model=read_model(weights), values=FULL)
    profiling = MeasuredProfiling(order)
    known = profilefile.start(out, profiling.header)
    began = time.process_time()
    for row in profiling.singles(known.rows):
        profilefile.append(out, row)
    if not known.rows:
        print(f"{weights.name}: sensitivity pass of {profiling.n_singles}: {time.process_time() - began:.1f} CPU s")
    for one in profiling.configurations(profilefile.read(out), N_CALIBRATION, 0):
        profilefile.append(out, one)
    return profiling


def unseen(folder: Path, profiling: MeasuredProfiling, regime: str, seed: int) -> list[Configuration]:
    """Return random configurations of a regime that no calibration saw."""
    values = {"full": FULL, "useful": USEFUL}[regime]
    choices = {
        knob: {group: [v for v in listed if v in values[knob]] for group, listed in by_group.items()}
        for knob, by_group in profiling.choices.items()
    }
    out = folder / f"{Path(profiling.order.weights).name}-{regime}.jsonl"
    known = list(profilefile.start(out, profiling.header).configurations)
    rng = np.random.default_rng([7, seed, regime == "full"])
    drawn = [plan.draw(choices, rng) for _ in range(N_UNSEEN)]
    for chosen in drawn[len(known) :]:
        figures = profiling.bench.measure(profiling.settings(chosen), "test_samples")
        known.append(Configuration(chosen, figures, held_out=True))
        profilefile.append(out, known[-1])
    return known


def maps_at(profiling: MeasuredProfiling, mean_bits: float) -> dict[str, int]:
    """Return the bit map of the least summed KL whose weights take ``mean_bits`` each."""
    rows = [r for r in profilefile.read(Path(profiling.order.out)).rows if r.knob == "weight_bits"]
    at = {(r.group, r.value): r.figures.kl_nats or 0.0 for r in rows}
    groups, widths = list(dict.fromkeys(r.group for r in rows)), sorted(FULL["weight_bits"])
    size = {m.path: m.n_weights for m in profiling.bench.anatomy.modules}
    loss = np.array([[at[g, b] for b in widths] for g in groups])
    cost = np.array([[size[g] * b for b in widths] for g in groups], dtype=np.float64)
    best = solve(Choices(loss, cost), mean_bits * sum(size[g] for g in groups))
    return {g: widths[c] for g, c in zip(groups, best.chosen, strict=True)}


def main(folder: Path, seeds: list[int]) -> None:
    """Print the tables."""
    from costmodels.losses import Predictor

    train = runpy.run_path(str(USER_FILE))["train"]
    pooled: dict[str, list[float]] = {}
    for seed in seeds:
        profiling = measured(folder, train(folder / f"large{seed}", "large", seed))
        predictor = Predictor(profilefile.read(Path(profiling.order.out)))
        for regime in ("full", "useful"):
            found = errors(predictor, unseen(folder, profiling, regime, seed))
            pooled.setdefault(regime, []).append(found["coverage_ratio"])
            print(f"seed {seed} {regime}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()))
        kl = {}
        best = {bits: maps_at(profiling, bits) for bits in (3.0, 2.5)}
        compared = {"uniform 3": dict.fromkeys(best[3.0], 3), "knapsack 3": best[3.0], "knapsack 2.5": best[2.5]}
        for name, bits in compared.items():
            figures = profiling.bench.measure(profiling.settings({"weight_bits": bits}), "test_samples")
            kl[name] = figures.kl_nats
            print(f"seed {seed} {name} bits: KL {figures.kl_nats:.4f} +- {figures.kl_se_nats:.4f}, "
                  f"metric {figures.metric:.4f}")  # fmt: skip
        print(f"seed {seed}: knapsack over uniform at 3 bits {kl['knapsack 3'] / kl['uniform 3']:.3f}")
    for regime, ratios in pooled.items():
        print(f"{regime}: coverage of the 90 % interval, pooled: {np.mean(ratios):.3f}")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main(Path(sys.argv[1]), [int(s) for s in sys.argv[2:]] or [0, 1, 2])
