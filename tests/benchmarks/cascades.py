"""Compressed cascades of the digits pair: escalation, accuracy and acceptance predicted, and measured again.

    python -m tests.benchmarks.cascades FOLDER [SEED ...]

The small model of studies/digits_vlm is asked first, the large one on doubt (or the small one guesses for it). Both are
trained (once), profiled on "samples" and logged on "log_samples": uncompressed, and in six compressed runs each, of
growing loss. Then 30 cascades, both stages compressed at random (the range of tests/benchmarks/digits.py that is called
useful: 3 bits and more, at most a quarter pruned), thresholds drawn for 10 to 40 % escalation of the uncompressed pair,
are run on digits that nothing was measured on. Their predictions know the profiles and the log:

    independent   compression changes neither scores nor acceptance; each stage's accuracy falls by its own ratio
    flips         costmodels/cascade.py without compressed runs: right answers turn wrong and score as wrong ones do
    runs          the same with them: as the runs on both sides of the predicted loss

Acceptance: the formula of costmodels/speculation.py with both predicted losses, as it is and with its one constant
fitted to the compressed runs of the log, beside the uncompressed rate.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from costmodels.cascade import Routes, route
from costmodels.losses import Predictor
from costmodels.measured import plan
from costmodels.measured.cascading import logged
from costmodels.measured.compress import Settings
from costmodels.measured.profiling import MeasuredProfiling
from costmodels.speculation import fitted_loss_ratio, rates_of
from dse import profilefile
from dse.acceptance import Acceptance
from dse.cascades import CascadeTable

N_CASCADES, N_RUNS = 30, 6
ROLES = {"stage1": "small", "target": "large"}
USEFUL = {"weight_bits": (3, 4, 6, 8), "head_keep": (0.75,), "ffn_keep": (0.875, 0.75)}
ESCALATION = (0.1, 0.4)


@dataclass(frozen=True)
class Pair:
    """Both models with profiles, and what they answer.

    Attributes:
        profiling: role -> its model on the bench.
        predictors: role -> what its profile says.
        table: the log, compressed runs in it.
        runs: role -> the settings of those, by growing loss.
    """

    profiling: dict[str, MeasuredProfiling]
    predictors: dict[str, Predictor]
    table: CascadeTable
    runs: dict[str, list[Settings]]


def log_pair(profiling: dict[str, MeasuredProfiling], predictors: dict[str, Predictor], n_runs: int, seed: int) -> Pair:
    """Return a pair with its log: each stage as it is, and compressed at growing severity."""
    runs: dict[str, list[Settings]] = {}
    for number, (role, one) in enumerate(profiling.items()):
        rng = np.random.default_rng([11, seed, number])
        drawn = [plan.draw(one.choices, rng) for _ in range(8 * n_runs)]
        loss = predictors[role].predict_maps(drawn).kl
        order = np.argsort(loss)
        # Equal steps of the root of the loss, up to what nine of ten draws lose.
        wanted = np.linspace(0, np.sqrt(np.quantile(loss, 0.9)), n_runs + 1)[1:]
        picked = dict.fromkeys(int(order[np.argmin(abs(np.sqrt(loss[order]) - w))]) for w in wanted)
        runs[role] = [one.settings(drawn[i]) for i in picked]
    return Pair(profiling, predictors, logged({r: p.bench for r, p in profiling.items()}, runs), runs)


def drawn_cascades(pair: Pair, n: int, seed: int) -> tuple[dict[str, list], np.ndarray]:
    """Return the configurations of each stage, and thresholds (n, 1)."""
    chosen = {}
    for number, (role, one) in enumerate(pair.profiling.items()):
        choices = {
            knob: {group: [v for v in listed if v in USEFUL[knob]] for group, listed in by_group.items()}
            for knob, by_group in one.choices.items()
        }
        rng = np.random.default_rng([13, seed, number])
        chosen[role] = [plan.draw(choices, rng) for _ in range(n)]
    share = np.random.default_rng([17, seed]).uniform(*ESCALATION, n)
    return chosen, np.quantile(pair.table.score[:, 0], share, method="inverted_cdf")[:, None]


def predicted(pair: Pair, chosen: dict[str, list], threshold: np.ndarray) -> dict[str, np.ndarray]:
    """Return escalation and accuracy by each prediction, (n, 2) each, and the acceptance of guesses, (n,)."""
    said = {role: pair.predictors[role].predict_maps(maps) for role, maps in chosen.items()}
    kept = np.stack([np.minimum(said[role].score, 1.0) for role in chosen], axis=1)
    loss = np.stack([said[role].kl for role in chosen], axis=1)
    tests = np.zeros(threshold.shape)

    def figures(routes: Routes) -> np.ndarray:
        return np.column_stack([routes.escalation_ratio, routes.accuracy_ratio])

    plain = route(pair.table, threshold, tests, np.ones(kept.shape))
    alone = np.column_stack([plain.escalation_ratio, (plain.right.mean(axis=1) * kept).sum(axis=1)])
    base = float(overlap(pair, [Settings()], [Settings()], "log_samples")[0])
    pairs = list(zip(pair.runs["stage1"], pair.runs["target"], strict=False))
    known = [
        [pair.profiling[r].bench.measure(s, "log_samples").kl_nats or 0.0 for r, s in zip(ROLES, two, strict=True)]
        for two in pairs
    ]
    ratio = fitted_loss_ratio(
        base,
        np.sum(known, axis=1),
        overlap(pair, [p[0] for p in pairs], [p[1] for p in pairs], "log_samples"),
    )
    ends = (loss[:, 1], said["target"].kl_high), (loss[:, 0], said["stage1"].kl_high)
    rates = rates_of(Acceptance.of_rate(base), 1, *ends)
    fitted = rates_of(replace(Acceptance.of_rate(base), loss_ratio=ratio), 1, *ends)
    print(f"  acceptance {base:.3f}, share of a loss that it feels {ratio:.3f}")
    return {
        "independent": alone,
        "flips": figures(route(replace(pair.table, reruns=()), threshold, tests, kept)),
        "runs": figures(route(pair.table, threshold, tests, kept, None, loss)),
        "acceptance, independent": np.full(len(threshold), base),
        "acceptance": rates.value[:, 0],
        "acceptance, fitted": fitted.value[:, 0],
        "acceptance, low": rates.low[:, 0],
        "acceptance, high": rates.high[:, 0],
    }


def measured(pair: Pair, chosen: dict[str, list], threshold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return escalation and accuracy (n, 2) and acceptance (n,) of the compressed models on the test samples."""
    settings = {role: [pair.profiling[role].settings(c) for c in maps] for role, maps in chosen.items()}
    found = []
    for row in range(len(threshold)):
        (score, first), (_, last) = (
            pair.profiling[role].bench.answers(settings[role][row], "test_samples") for role in chosen
        )
        keeps = score >= threshold[row, 0]
        found.append((1 - keeps.mean(), np.where(keeps, first, last).mean()))
    return np.array(found), overlap(pair, settings["stage1"], settings["target"], "test_samples")


def overlap(pair: Pair, drafts: list[Settings], targets: list[Settings], split: str) -> np.ndarray:
    """Return the acceptance of the small model's guesses by the large one, E[sum min(p, q)], of pairs of settings."""
    import torch

    found = []
    for settings in zip(drafts, targets, strict=True):
        chances = []
        for role, one in zip(ROLES, settings, strict=True):
            bench = pair.profiling[role].bench
            with torch.no_grad(), bench.compressed(one):
                rows = [bench.target.forward(batch, **one.image) for batch in bench._batches(split)]
            chances.append(torch.cat([logits[mask].softmax(-1) for logits, mask in rows]))
        found.append(float(torch.minimum(*chances).sum(-1).mean()))
    return np.array(found)


def transfer(pair: Pair) -> tuple[float, float]:
    """Return escalation in the log and on fresh digits, of the threshold nearest to 20 % in the log."""
    score = pair.table.score[:, 0]
    threshold = np.quantile(score, 0.2, method="inverted_cdf")
    fresh, _ = pair.profiling["stage1"].bench.answers(Settings(), "test_samples")
    return float((score < threshold).mean()), float((fresh < threshold).mean())


def shown(predictions: dict[str, np.ndarray], found: tuple[np.ndarray, np.ndarray]) -> list[str]:
    """Return lines of mean errors in points and rank correlations."""
    from scipy.stats import spearmanr

    lines = []
    for name in ("independent", "flips", "runs"):
        error = 100 * (predictions[name] - found[0])
        rank = [spearmanr(predictions[name][:, i], found[0][:, i]).statistic for i in range(2)]
        parts = [
            f"{what} off by {abs(error[:, i]).mean():.1f} points (bias {error[:, i].mean():+.1f}, rank {rank[i]:.2f})"
            for i, what in enumerate(("escalation", "accuracy"))
        ]
        lines.append(f"  {name}: {', '.join(parts)}")
    for name in ("acceptance, independent", "acceptance", "acceptance, fitted"):
        error = 100 * (predictions[name] - found[1])
        lines.append(f"  {name}: off by {abs(error).mean():.1f} points (bias {error.mean():+.1f})")
    inside = (predictions["acceptance, low"] <= found[1]) & (found[1] <= predictions["acceptance, high"])
    lines.append(f"  acceptance within its ends: {inside.mean():.2f}")
    return lines


def main(folder: Path, seeds: list[int]) -> None:
    """Print the figures of each training seed, and of all together."""
    import runpy

    from tests.benchmarks import digits

    train = runpy.run_path(str(digits.USER_FILE))["train"]
    all_predicted: dict[str, list[np.ndarray]] = {}
    all_found: list[tuple[np.ndarray, np.ndarray]] = []
    for seed in seeds:
        profiling = {r: digits.measured(folder, train(folder / f"{v}{seed}", v, seed)) for r, v in ROLES.items()}
        predictors = {r: Predictor(profilefile.read(Path(p.order.out))) for r, p in profiling.items()}
        pair = log_pair(profiling, predictors, N_RUNS, seed)
        alone = pair.table.correct.mean(axis=0)
        losses = {r: np.round(pair.table.runs(k)[0], 3).tolist() for k, r in enumerate(ROLES)}
        print(f"seed {seed}: right alone {alone[0]:.3f} and {alone[1]:.3f} in the log; runs at {losses}")
        chosen_on, fresh = transfer(pair)
        print(f"  threshold for 20 %: {100 * chosen_on:.1f} % in the log, {100 * fresh:.1f} % on fresh digits")
        chosen, threshold = drawn_cascades(pair, N_CASCADES, seed)
        predictions, found = predicted(pair, chosen, threshold), measured(pair, chosen, threshold)
        print("\n".join(shown(predictions, found)), flush=True)
        for name, part in predictions.items():
            all_predicted.setdefault(name, []).append(part)
        all_found.append(found)
    pooled = {name: np.concatenate(parts) for name, parts in all_predicted.items()}
    together = tuple(np.concatenate(parts) for parts in zip(*all_found, strict=True))
    print(f"all {len(seeds)} seeds, {len(together[1])} cascades:")
    print("\n".join(shown(pooled, together)))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main(Path(sys.argv[1]), [int(s) for s in sys.argv[2:]] or [0, 1, 2])
