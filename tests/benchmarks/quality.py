"""How well quality is predicted, and at what cost.

BLIP-2 from single groups, published perplexities that were left out, HAWQ-V3's maps, the surrogate's time beside the
analytical model's.

    python -m tests.benchmarks.quality
"""

from __future__ import annotations

import csv
import math
import time

import numpy as np

from costmodels import prior
from dse import Choice, Float, Scenario, Space, catalogue
from dse.hardware import read_hardware
from dse.model import read_model
from dse.problem import Problem
from dse.testing.samples import small_profile
from tests.benchmarks import blip2
from tests.dse import test_allocation as hawq

LLAMA_1 = (6.7, 13.0, 32.5, 65.2)


def predicted(fit: tuple[float, float, float], bits: np.ndarray, billions: np.ndarray) -> np.ndarray:
    """Return d in nats as the prior has it for maps of one width."""
    a, minus_b, c = fit
    return np.exp(a + minus_b * bits + c * np.log(billions))


def sizes_left_out() -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Return the published d of each size of LLaMA-1, what the prior fitted to the others says, and its factor."""
    rows = [r for r in prior._rows() if r.kind == "weight_bits" and r.level > 2]
    found = {}
    for size in LLAMA_1:
        fit = prior._log_fit([r for r in rows if r.billions != size], lambda r: r.level)
        new = [r for r in rows if r.billions == size]
        bits = np.array([r.level for r in new])
        told = predicted(fit, bits, np.full(len(new), size))
        found[f"LLaMA-1 {size:g}B"] = np.array([r.loss for r in new]), told, prior.KNOWN_FACTOR
    return found


def families_unseen() -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Return the same for families that the prior's table of weights does not have."""
    with (blip2.DATA / "published_perplexities.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["family"] != "llama-1" and float(r["w_bits"]) > 2]
    found = {}
    for family in sorted({r["family"] for r in rows}):
        new = [r for r in rows if r["family"] == family]
        loss = np.array([math.log(float(r["value"]) / float(r["baseline"])) for r in new])
        bits, billions = (np.array([float(r[c]) for r in new]) for c in ("w_bits", "params_B"))
        told = predicted((prior.fits().weight[0], -prior.fits().weight[1], prior.fits().weight[2]), bits, billions)
        found[family] = loss, told, prior.UNKNOWN_FACTOR
    return found


def surrogate_share(hardware: str, n: int = 64) -> float:
    """Return the surrogate's CPU time over the analytical model's for a batch of LLaVA-1.5-7B."""
    model = read_model("llava-1.5-7b")
    quality = {"target": small_profile(model)}
    scenario = Scenario(images=1, image_px=(336, 336), prompt_tokens=64, output_tokens=64)
    problem = Problem({"target": model}, scenario, read_hardware(hardware), quality=quality)
    widths = Choice(2, 3, 4, 8, 16, per="module")
    space = Space(weight_bits=widths, ffn_keep=Float(0.5, 1.0, step=0.125, per="block")).bind(problem)
    batch = space.decode(space.sample(n, np.random.default_rng(0)))
    seconds = []
    for name in ("surrogate", "analytical"):
        evaluator = catalogue.cost_model(name).prepare(problem)
        evaluator.evaluate(batch)
        times = []
        for _ in range(9):
            began = time.process_time()
            evaluator.evaluate(batch)
            times.append(time.process_time() - began)
        seconds.append(np.median(times))
    return float(seconds[0] / seconds[1])


def main() -> None:
    """Print all of it."""
    for name in ("mixed_bits", "grid"):
        rank, r2, _ = getattr(blip2, name)().score()
        print(f"BLIP-2 {name}: Spearman {rank:.4f}, R2 {r2:.4f}")
    print("published perplexities: left out, n, factor on d median / most, error of perplexity median / most, inside")
    for name, (loss, told, factor) in {**sizes_left_out(), **families_unseen()}.items():
        off = np.exp(np.abs(np.log(told / loss)))
        error = 100 * np.abs(np.exp(told - loss) - 1)
        print(
            f"  {name}: {len(loss)}, {np.median(off):.2f} / {off.max():.2f}, {np.median(error):.1f} % /"
            f" {error.max():.1f} %, {np.mean(off <= factor):.2f} within x{factor:g}"
        )
    worst, gain = 0.0, []
    for row in hawq.read("hawqv3_ilp_solutions.csv"):
        choices = hawq.hawq(row["net"], row["constraint"])
        all_4, all_8 = choices.cost.sum(axis=0)
        began = time.perf_counter()
        found = hawq.solve(choices, all_4 + float(row["ratio"]) * (all_8 - all_4))
        worst = max(worst, time.perf_counter() - began)
        published = np.array([int(b == "8") for b in row["published_bits"]])
        gain.append(found.loss / choices.loss[np.arange(len(published)), published].sum())
    print(
        f"HAWQ-V3: {len(gain)} cases solved, slowest {1e3 * worst:.0f} ms; objective over that of the published map: "
        f"median {np.median(gain):.3f}, most {max(gain):.3f}"
    )
    for hardware in ("npu-template", "h100-sxm-80gb"):
        print(f"surrogate on {hardware}: {100 * surrogate_share(hardware):.0f} % of the analytical model's time")


if __name__ == "__main__":
    main()
