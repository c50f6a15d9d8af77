"""What promotion finds of a front that only the dear cost model knows, on two-fidelity problems that are enumerated.

    python -m tests.benchmarks.fidelity [--seeds 20] [--budgets 20 50 100 200 400]

4,096 designs of six knobs with four levels stand below; what each costs above is known too, by enumeration. Objectives
below are those above times exp(-shift). The problems differ in the shift:

    equal      none
    regular    0.5 nats along the knobs, with interactions, and 0.02 of noise
    rough      0.3 nats of noise per design and objective, nothing that knobs explain
    mixed      both halves, and every eighth design cannot run above
    constrained  regular; a constraint that a third of the designs break above, half of them unnoticed below
    one        only the second objective shifts, by 0.4 nats of noise

Arms pay for the same number of designs above: `promotion` (dse/promotion.py, in the rounds that a study makes), `front
first` (the front below in random order, then what is next when those are set aside, and so on), `random`. Printed is
the hypervolume of the front found above, as a share of the true front's, on a logarithmic scale between the true
front's ideal and nadir point, reference 1.1 (median over seeds and quartiles). `lost` is the share of the true front's
members that the 5 % rule had given up when promotion ended, as mean over seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import numpy as np

from dse.hypervolume import hypervolume
from dse.pareto import first_front, ranks
from dse.promotion import Standing, choose, round_size

PROBLEMS = ("equal", "regular", "rough", "mixed", "constrained", "one")
LEVELS, KNOBS = 4, 6


def problem(name: str, seed: int) -> tuple[Standing, Standing, np.ndarray]:
    """Return all designs below, the same above (NaN where they cannot run), and their knobs."""
    rng = np.random.default_rng([seed, PROBLEMS.index(name)])
    codes = np.stack(np.meshgrid(*[np.arange(LEVELS)] * KNOBS, indexing="ij"), axis=-1).reshape(-1, KNOBS)
    x = codes / (LEVELS - 1.0)
    n = len(x)
    pull = rng.dirichlet(np.ones(KNOBS), size=3)
    # Each knob helps one objective and costs the others, by amounts of its own: time, energy, loss.
    z = np.stack([(x * (2.0 * rng.random(KNOBS) * side)).sum(axis=1) for side in (1.5 * pull - pull.mean(axis=0)) * 6])
    z = z.T + 0.3 * np.sin(3.0 * x @ rng.normal(size=(KNOBS, 3)))
    smooth = x @ rng.normal(size=(KNOBS, 3)) + (x[:, :3] * x[:, 3:]) @ rng.normal(size=(3, 3))
    smooth = 0.5 * (smooth - smooth.mean(axis=0)) / smooth.std(axis=0)
    noise = rng.normal(size=(n, 3))
    shift = {
        "equal": np.zeros((n, 3)),
        "regular": smooth + 0.02 * noise,
        "rough": 0.3 * noise,
        "mixed": 0.5 * smooth + 0.15 * noise,
        "constrained": smooth + 0.02 * noise,
        "one": np.stack([np.zeros(n), 0.4 * noise[:, 1], np.zeros(n)], axis=1),
    }[name]
    margin_high = np.empty((n, 0))
    margin_low = margin_high
    if name == "constrained":
        area = np.exp(x @ rng.random(KNOBS))
        margin_high = (area / np.quantile(area, 2 / 3) - 1.0)[:, None]
        margin_low = margin_high - 0.1 * np.abs(rng.normal(size=(n, 1)))
    high = np.exp(z)
    if name == "mixed":
        high[rng.random(n) < 1 / 8] = np.nan
    return Standing(np.exp(z - shift), margin_low), Standing(high, margin_high), x


def promotion(low: Standing, high: Standing, x: np.ndarray, budget: int, seed: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield who has gone up after each round, and how many are within reach."""
    done = np.empty(0, dtype=np.int64)
    number = 0
    while len(done) < budget:
        k = min(round_size(len(done), 64), budget - len(done))
        found = choose(low, x, done, high.take(done), k, np.random.default_rng([seed, 1, number]))
        if not len(found.rows):
            return
        done, number = np.concatenate([done, found.rows]), number + 1
        yield done, found.n_within_reach


def front_first(low: Standing, budget: int, seed: int) -> np.ndarray:
    """Return designs in the order of their rank below, at random within a rank."""
    feasible = np.flatnonzero((low.margins <= 0).all(axis=1))
    rank = ranks(low.objectives[feasible])
    order = np.lexsort((np.random.default_rng(seed).random(len(rank)), rank))
    return feasible[order[:budget]]


class Truth:
    """The upper front, and what share of its volume a choice of designs has."""

    def __init__(self, high: Standing) -> None:
        self.points = np.log(high.objectives)
        self.points[(high.margins > 0).any(axis=1)] = np.nan
        self.front = first_front(self.points)
        best = self.points[self.front]
        self._ideal, span = best.min(axis=0), np.ptp(best, axis=0)
        self._span = np.where(span > 0, span, 1.0)
        self._whole = self._volume(self.front)

    def _volume(self, rows: np.ndarray) -> float:
        points = (self.points[rows] - self._ideal) / self._span
        return hypervolume(points[~np.isnan(points).any(axis=1)], np.full(points.shape[1], 1.1))

    def share(self, rows: np.ndarray) -> float:
        """Return the hypervolume ratio of some designs."""
        return self._volume(rows) / self._whole


def play(name: str, seed: int, budgets: list[int]) -> dict[str, list[float]]:
    """Return the share of each arm at each budget, the share of the front lost, and designs paid at the end."""
    low, high, x = problem(name, seed)
    truth = Truth(high)
    found: dict[str, list[float]] = {}
    ended = 0
    given_up = 0.0
    rounds: list[np.ndarray] = []
    for rows, _ in promotion(low, high, x, max(budgets), seed):
        rounds.append(rows)
    last = rounds[-1]
    found["promotion"] = [truth.share(last[:b]) for b in budgets]
    rest = choose(low, x, last, high.take(last), len(x), np.random.default_rng(0))
    waiting = np.setdiff1d(truth.front, last)
    given_up = (
        1.0 - len(np.intersect1d(waiting, rest.rows)) / len(waiting)
        if rest.n_within_reach <= 1024 and len(waiting)
        else np.nan
    )
    ended = len(last)
    order = front_first(low, max(budgets), seed)
    found["front first"] = [truth.share(order[:b]) for b in budgets]
    anyone = np.random.default_rng(seed).permutation(len(x))
    found["random"] = [truth.share(anyone[:b]) for b in budgets]
    found["paid"] = [float(ended)]
    found["front"] = [float(len(truth.front))]
    found["lost"] = [given_up * len(waiting) / len(truth.front) if len(waiting) else 0.0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budgets", type=int, nargs="+", default=[20, 50, 100, 200, 400])
    parser.add_argument("--problems", nargs="+", default=PROBLEMS)
    arguments = parser.parse_args()
    for name in arguments.problems:
        runs = [play(name, seed, arguments.budgets) for seed in range(arguments.seeds)]
        for arm in ("promotion", "front first", "random"):
            table = np.array([run[arm] for run in runs])
            middle = np.quantile(table, [0.25, 0.5, 0.75], axis=0).round(3).T.tolist()
            print(
                json.dumps({"problem": name, "arm": arm, **dict(zip(map(str, arguments.budgets), middle, strict=True))})
            )
        told = {key: round(float(np.nanmean([run[key][0] for run in runs])), 3) for key in ("front", "paid", "lost")}
        print(json.dumps({"problem": name, **told}), flush=True)


if __name__ == "__main__":
    main()
