"""Joint search against stage by stage: does it pay to search compression, run-time policy and hardware together?

    python -m tests.benchmarks.thesis [--seeds 10] [--paid 300] [--processes 2] [--out FILE.json]

The problem is that of studies/medical_vqa_cascade.py (SmolVLM-256M first, Qwen2.5-VL-3B on doubt, an EAGLE head or
prompt look-ups guess tokens, a chip that is being designed for it) with the pruning, resolution, cache and chip knobs
of studies/medical_vqa_edge.py, its objectives (latency, energy, accuracy) and its constraints. Everything below was
fixed before the first run.

Arms, each with the same number of paid designs, the baseline among them:

    joint       all knobs at once
    (a) alone   one family of knobs, all others at the baseline: bits, pruning, resolution, speculation, cascade,
                hardware; and one stage: compression (the first three), policy (the next two), hardware. Families with
                fewer designs than that are enumerated.
    (b) staged  three stages in each of their six orders, a third of the designs each; knobs of later stages are at the
                baseline until their turn.
    (c) twice   two rounds of (b) in the same order, a sixth of the designs each.

What a stage hands to the next, two variants of (b) and (c):

    knee        one design, as where a team delivers a result: of the front of all that the arm has paid for, the one
                nearest to the front's ideal point, each objective scaled to the front's range (Euclidean)
    front       the whole front of all that the arm has paid for (16 members at equal steps along the first objective
                where it is larger): which of them to go on from is one more knob of the next stage. The kindest
                variant: nothing is decided before its turn that is worth keeping.

The baseline is the design nearest to the uncompressed model on the template's chip: 8-bit weights, nothing pruned, the
image as it comes, no drafter, the large model alone. Every search is by ``auto`` in batches of 8, from the baseline or
what was handed on; designs that a stage can express and that were paid for before are known to it for free. An arm is
judged by all that it paid for, whichever stage that was in.

Measure: hypervolume of the feasible designs over one reference point for all arms and seeds: latency and energy of the
baseline, accuracy_ratio 0.7 (the small model alone has 0.73). Latency and energy count by their logarithms, since
designs are compared in factors; volumes on plain axes are printed beside. Printed are medians over seeds of joint over
arm, seed by seed, with 95 % bootstrap intervals, and the signed-rank p value with Holm over the arms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import runpy
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from dse import Choice, Float, Space, catalogue
from dse.evaluation import Evaluation
from dse.hypervolume import hypervolume
from dse.loop import Loop
from dse.objectives import Goal
from dse.pareto import first_front
from dse.space import BoundSpace
from tests.benchmarks.search.play import InMemory, Started
from tests.benchmarks.search.spaces import CodeSpace
from tests.benchmarks.search.statistics import holm, median_interval, wilcoxon_p

STUDY = Path(__file__).resolve().parents[2] / "studies" / "medical_vqa_cascade.py"
ASK_SIZE, MOST_HANDED, LEAST_ACCURACY = 8, 16, 0.7
FAMILIES = {
    "bits": ("weight_bits", "kv_bits"),
    "pruning": ("head_keep", "ffn_keep"),
    "resolution": ("image_px", "token_stride"),
    "speculation": ("draft", "draft_tokens"),
    "cascade": ("cascade", "threshold"),
    "hardware": ("pe_rows", "pe_cols", "dataflow", "sram_bytes", "dram_bytes_per_s", "vector_lanes"),
}
STAGES = {
    "compression": ("bits", "pruning", "resolution"),
    "policy": ("speculation", "cascade"),
    "hardware": ("hardware",),
}
KNOBS = Space(
    {
        "target/weight_bits": Choice(3, 4, 6, 8, per="block_third"),
        "stage1/weight_bits": Choice(4, 8, 16),
        "target/kv_bits": Choice(4, 8, 16),
        "target/head_keep": Float(0.75, 1.0, step=0.125, per="block_third"),
        "target/ffn_keep": Float(0.5, 1.0, step=0.125, per="block_third"),
        "target/image_px": Choice(448, 672, 896, 1024),
        "target/token_stride": Choice(1, 2),
        "target/draft": Choice("none", "ngram", "draft"),
        "target/draft_tokens": Choice(0, 1, 2, 4),
    },
    cascade=Choice("target", "stage1", "stage1+target"),
    threshold=Float(0.0, 1.0, step=0.0625),
    pe_rows=Choice(16, 32, 64, 128),
    pe_cols=Choice(16, 32, 64, 128),
    dataflow=Choice("ws", "os", "is"),
    sram_bytes=Choice("512 KiB", "1 MiB", "2 MiB", "4 MiB", "8 MiB"),
    dram_bytes_per_s=Choice("34 GB/s", "51 GB/s", "68 GB/s", "102 GB/s"),
    vector_lanes=Choice(32, 64, 128, 256),
)


class Bill:
    """The problem, and every design that was evaluated, by its codes.

    Attributes:
        space: all knobs.
        goal: of the study.
        baseline: codes of the baseline, shape (p,).
    """

    def __init__(self) -> None:
        study = runpy.run_path(str(STUDY))["study"]
        self.space: BoundSpace = KNOBS.bind(study.problem)
        self.goal: Goal = study.goal
        self._evaluation = Evaluation(self.space, ["policy"])
        self._known: dict[bytes, np.ndarray] = {}
        self.baseline = self.space.codes_of({"target/image_px": 1024})[0][0]
        self._names = self.goal.metrics

    def columns(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of the goal of rows of codes; a row is worked out once."""
        codes = np.ascontiguousarray(codes)
        keys = [row.tobytes() for row in codes]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            (found,) = self._evaluation.evaluate(codes[new])
            table = np.stack([found.values[name] for name in self._names], axis=1)
            for row, i in enumerate(new):
                self._known[keys[i]] = table[row]
        values = np.stack([self._known[key] for key in keys])
        return dict(zip(self._names, values.T, strict=True))

    def points(self, codes: np.ndarray) -> np.ndarray:
        """Return the objectives of the feasible designs of ``codes``, NaN for the others, shape (n, m)."""
        columns = self.columns(codes)
        points = self.goal.to_minimise(columns, len(codes))
        points[self.goal.violation(columns, np.zeros(len(codes))) > 0] = np.nan
        return points

    def volumes(self, codes: np.ndarray) -> tuple[float, float]:
        """Return the hypervolume by logarithms of latency and energy, and on plain axes relative to the baseline's."""
        points = self.points(codes)
        points = points[~np.isnan(points).any(axis=1)]
        base = self.points(self.baseline[None])[0]
        relative = np.column_stack([points[:, :2] / base[:2], points[:, 2]])
        logs = np.column_stack([np.log(relative[:, :2]), relative[:, 2]])
        return (
            hypervolume(logs, np.array([0.0, 0.0, -LEAST_ACCURACY])),
            hypervolume(relative, np.array([1.0, 1.0, -LEAST_ACCURACY])),
        )

    def front(self, codes: np.ndarray) -> np.ndarray:
        """Return which rows are on the front, ordered by the first objective."""
        points = self.points(codes)
        rows = np.flatnonzero(~np.isnan(points).any(axis=1))
        rows = rows[first_front(points[rows])]
        return rows[np.argsort(points[rows, 0], kind="stable")]


class Part:
    """Some knobs of the space, from designs that are given: what a stage searches.

    Args:
        bill: the problem.
        columns: columns of its knobs.
        bases: designs to go on from, shape (b, p), of which those count that differ in other knobs; where there are
            several, which one is a further parameter.
    """

    def __init__(self, bill: Bill, columns: np.ndarray, bases: np.ndarray) -> None:
        self.name, self.goal, self._bill, self._columns = "part", bill.goal, bill, columns
        self._rest = np.setdiff1d(np.arange(bases.shape[1]), columns)
        self._bases = bases[np.sort(np.unique(bases[:, self._rest], axis=0, return_index=True)[1])]
        parameters = [bill.space.parameters[c] for c in columns]
        levels, labels = [p.levels for p in parameters], [p.label for p in parameters]
        paths = [p.path for p in parameters]
        if len(self._bases) > 1:
            levels.append(tuple(f"design {i}" for i in range(len(self._bases))))
            labels, paths = [*labels, "base"], [*paths, "base"]
        self.space = CodeSpace(levels, labels, paths)

    def whole(self, codes: np.ndarray) -> np.ndarray:
        """Return the designs that rows of the part stand for, shape (n, p)."""
        base = codes[:, -1].astype(int) if len(self._bases) > 1 else np.zeros(len(codes), dtype=int)
        designs = self._bases[base].copy()
        designs[:, self._columns] = codes[:, : len(self._columns)]
        return designs

    def columns(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of rows of the part."""
        return self._bill.columns(self.whole(codes))

    def expressed(self, paid: np.ndarray) -> np.ndarray:
        """Return the rows of the part that stand for designs of ``paid``."""
        found = []
        for number, base in enumerate(self._bases):
            rows = paid[(paid[:, self._rest] == base[self._rest]).all(axis=1)][:, self._columns]
            found.append(np.column_stack([rows, np.full(len(rows), number)]) if len(self._bases) > 1 else rows)
        return np.concatenate(found).astype(self._bases.dtype)


def search(bill: Bill, columns: np.ndarray, bases: np.ndarray, paid: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return ``paid`` with up to ``n`` new designs: what ``auto`` proposes of some knobs from some bases."""
    part = Part(bill, columns, bases)
    start = part.expressed(paid)
    if part.space.n_designs <= len(start) + n:
        grid = itertools.product(*(range(k) for k in part.space.n_levels.tolist()))
        tried = np.array(list(grid), dtype=start.dtype)
    else:
        proposer, memory = Started(catalogue.proposer("auto"), start), InMemory(part)
        loop = Loop(part.space, part.goal, [proposer], memory, memory, seed=seed, ask_size=ASK_SIZE, lag=1)
        for _ in itertools.chain(loop.run(len(start)), loop.run(len(start) + n)):
            pass
        tried = np.concatenate(memory.waiting)
    every = np.concatenate([paid, part.whole(tried)])
    every = every[np.sort(np.unique(every, axis=0, return_index=True)[1])]
    return every


def handed_on(bill: Bill, paid: np.ndarray, how: str) -> np.ndarray:
    """Return the designs that the next stage goes on from: the knee, or the front."""
    front = bill.front(paid)
    if not len(front):
        return paid[:1]
    if how == "front":
        if len(front) > MOST_HANDED:
            front = front[np.linspace(0, len(front) - 1, MOST_HANDED).round().astype(int)]
        return paid[front]
    points = bill.points(paid[front])
    span = np.ptp(points, axis=0)
    away = (points - points.min(axis=0)) / np.where(span > 0, span, 1.0)
    return paid[front[[np.argmin((away**2).sum(axis=1))]]]


class Arms:
    """What every arm pays for, one seed.

    Args:
        bill: the problem.
        n: designs that each pays for, the baseline included.
        seed: of everything random.
    """

    def __init__(self, bill: Bill, n: int, seed: int) -> None:
        self._bill, self._n, self._seed = bill, n, seed
        self._base = bill.baseline[None]
        self._firsts: dict[tuple[str, int], np.ndarray] = {}

    def all(self) -> dict[str, np.ndarray]:
        """Return the paid designs of every arm, by its name."""
        found = {"joint": self._first("everything", self._n - 1)}
        for name in (*FAMILIES, *(s for s in STAGES if s not in FAMILIES)):
            found[f"alone: {name}"] = self._first(name, self._n - 1)
        for order in itertools.permutations(STAGES):
            for rounds, how in itertools.product((1, 2), ("knee", "front")):
                arm = f"{'staged' if rounds == 1 else 'twice'}, {how}: {' > '.join(order)}"
                found[arm] = self._staged(order * rounds, how)
        return found

    def _columns(self, name: str) -> np.ndarray:
        families = list(FAMILIES) if name == "everything" else STAGES.get(name, (name,))
        knobs = {knob for family in families for knob in FAMILIES[family]}
        return np.flatnonzero([p.path.rpartition("/")[2] in knobs for p in self._bill.space.parameters])

    def _first(self, name: str, n: int) -> np.ndarray:
        """Return the designs of a search from the baseline; orders that begin alike share it."""
        if (name, n) not in self._firsts:
            columns = self._columns(name)
            self._firsts[name, n] = search(self._bill, columns, self._base, self._base, n, 100 * self._seed)
        return self._firsts[name, n]

    def _staged(self, turns: tuple[str, ...], how: str) -> np.ndarray:
        paid = self._base
        for number, name in enumerate(turns):
            # What a stage could not spend, because its space ended, the next ones may.
            n = (self._n - len(paid)) // (len(turns) - number)
            if not number:
                paid = self._first(name, n)
                continue
            bases = handed_on(self._bill, paid, how)
            paid = search(self._bill, self._columns(name), bases, paid, n, 100 * self._seed + number)
        return paid


@cache
def _bill() -> Bill:
    return Bill()


def play(seed: int, n: int) -> tuple[dict[str, tuple[float, float, int]], float]:
    """Return each arm's volumes and paid designs, and the CPU seconds of the seed."""
    began, bill = time.process_time(), _bill()
    found = {arm: (*bill.volumes(paid), len(paid)) for arm, paid in Arms(bill, n, seed).all().items()}
    return found, time.process_time() - began


def shown(runs: list[dict[str, tuple[float, float, int]]]) -> str:
    """Return the table of all arms, and of the best order in hindsight of each kind."""
    arms = list(runs[0])
    volumes = {arm: np.array([run[arm][:2] for run in runs]) for arm in arms}
    paid = {arm: int(np.median([run[arm][2] for run in runs])) for arm in arms}
    for kind in ("staged, knee", "staged, front", "twice, knee", "twice, front"):
        several = [arm for arm in arms if arm.startswith(kind)]
        volumes[f"{kind}: best of six orders, seed by seed"] = np.max([volumes[arm] for arm in several], axis=0)
        paid[f"{kind}: best of six orders, seed by seed"] = sum(paid[arm] for arm in several)
    others = [arm for arm in volumes if arm != "joint"]
    p = holm(np.array([wilcoxon_p(volumes["joint"][:, 0], volumes[arm][:, 0]) for arm in others]))
    joint = volumes["joint"]
    lines = [
        f"joint: volume {np.median(joint[:, 0]):.4f} (logarithms), {np.median(joint[:, 1]):.4f} (plain axes), medians "
        f"of {len(runs)} seeds",
        "",
        "| arm | paid | joint over arm | 95 % interval | p | plain axes | 95 % interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, p_value in zip(others, p, strict=True):
        cells = []
        for axis in (0, 1):
            # An arm that finds nothing beyond the reference point has no ratio.
            ratio = joint[:, axis] / np.where(volumes[arm][:, axis] > 0, volumes[arm][:, axis], np.nan)
            known = ratio[~np.isnan(ratio)]
            middle, low, high = median_interval(known) if len(known) == len(ratio) else (np.inf, np.nan, np.nan)
            cells.append((f"{middle:.3f}", f"{low:.3f} to {high:.3f}" if len(known) == len(ratio) else "no volume"))
        (a, b), (c, d) = cells
        lines.append(f"| {arm} | {paid[arm]} | {a} | {b} | {p_value:.2g} | {c} | {d} |")
    return "\n".join(lines)


def main() -> None:
    """Play all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--paid", type=int, default=300)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    runs, seconds = [], 0.0
    with ProcessPoolExecutor(args.processes) as pool:
        for found, spent in pool.map(play, range(args.seeds), [args.paid] * args.seeds):
            runs.append(found)
            seconds += spent
            if args.out:
                args.out.write_text(json.dumps(runs))
    print(f"{args.paid} paid designs per arm, {args.seeds} seeds, {seconds:.0f} CPU s\n{shown(runs)}")


if __name__ == "__main__":
    main()
