"""The accelerator model against the same rules written as a plain walk over the operator graph, one design at a time.

The walk shares no code with the model: it loops over operators with Python numbers, as one would on paper.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from costmodels.vector_costs import VECTOR_COSTS
from dse import catalogue
from dse.metrics import Status
from dse.model import OpKind
from dse.testing.samples import small_problem, small_space


@dataclass
class Walk:
    problem: object
    batch: object
    known: dict = field(default_factory=dict)

    def value(self, name, component="", block=-1, path="", default=16.0):
        field = self.batch.schema.fields.get(name)
        if field is None:
            return default
        if field.is_scalar:
            return self.batch[name][0].item()
        for i, e in enumerate(field.entries):
            if (path and e.path == path) or (not path and (e.component, e.block) == (component, block)):
                return self.batch[name][0, i].item()
        return default

    def units(self, op):
        block = next(
            (b for b in self.problem.target.blocks if (b.component, b.index) == (op.component, op.block)), None
        )
        if block is None:
            return 0, 0, 1
        at = (op.component, op.block)
        heads = math.ceil(self.value("head_keep", *at, default=1.0) * block.head_units - 1e-9)
        channels = math.ceil(self.value("ffn_keep", *at, default=1.0) * block.ffn_units - 1e-9)
        return heads, channels, self.value("block_keep", *at, default=1)

    def rows(self):
        scenario, model = self.problem.scenario, self.problem.target
        requests = self.value("batch")
        found = {"token": 1, "last": 1}
        spans, sequences = {}, dict.fromkeys(("token", "last", "visual"), requests)
        prompt = scenario.prompt_tokens
        if scenario.images:
            width, height = scenario.image_px
            side = self.value("image_px", default=0) or max(width, height)
            scale = side / max(width, height)
            layout = model.visual_layout(round(height * scale), round(width * scale))
            kept = math.ceil(self.value("visual_token_keep") * layout.strided(self.value("token_stride")) - 1e-9)
            found |= {"cut": layout.cuts, "patch": layout.patches, "merged": layout.merged, "visual": kept}
            for symbol in ("cut", "patch", "merged"):
                sequences[symbol] = requests * layout.n_sequences
            spans["patch"] = layout.patches
            prompt += kept + layout.extra_tokens
        return found, sequences, spans, prompt

    def run(self):
        found, sequences, spans, prompt = self.rows()
        output = self.problem.scenario.output_tokens
        seconds, dram, macs = {}, 0.0, 0.0
        for phase, passes in (("encode", 1), ("prefill", 1), ("decode", output - 1)):
            if phase == "encode" and not self.problem.scenario.images:
                continue
            rows = dict(found)
            if phase == "prefill":
                rows["token"], spans["context"] = prompt, prompt
            if phase == "decode":
                spans["context"] = sum(prompt + 1 + t for t in range(output - 1)) / (output - 1)
            total = 0.0
            for op in self.problem.target.graph(phase).ops:
                cost = self.one(op, rows, sequences, spans)
                total += cost[0]
                dram += passes * cost[1]
                macs += passes * cost[2]
            seconds[phase] = total
        return seconds, dram, macs

    def one(self, op, rows, sequences, spans):
        heads, channels, kept = self.units(op)
        if not kept:
            return 0.0, 0.0, 0.0
        length, number = rows[op.rows], sequences[op.rows]
        span = spans.get(op.span, 0)
        span = min(span, op.window) if op.window else span
        size = op.n.size(heads, channels) * op.n_active
        bandwidth = self.value("dram_bytes_per_s")
        if op.kind.is_matmul:
            return self.product(op, length, number, span, heads, channels)
        if op.kind is OpKind.CACHE:
            cached = sum(
                c.k.size(heads) * self.stored(self.value("k_bits", op.component, op.block))
                + c.v.size(heads) * self.stored(self.value("v_bits", op.component, op.block))
                for b in self.problem.target.blocks
                if (b.component, b.index) == (op.component, op.block)
                for c in b.caches
            )
            moved = length * number * cached / 8
            return moved / bandwidth, moved, 0.0
        elements = length * number * (op.heads.size(heads, channels) * span if op.kind is OpKind.SOFTMAX else size)
        cost = VECTOR_COSTS[op.kind]
        moved = elements * 2 * (cost.reads + cost.writes)
        compute = elements * cost.ops / (self.value("vector_lanes") * self.value("freq_hz"))
        return max(compute, moved / bandwidth), moved, 0.0

    @staticmethod
    def stored(bits):
        return bits + ((16 + bits) / 128 if bits < 16 else 0)

    def product(self, op, length, number, span, heads, channels):
        k, n = op.k.size(heads, channels), op.n.size(heads, channels)
        if op.kind is OpKind.LINEAR:
            module = self.problem.target.module(op.module)
            bits = self.value("weight_bits", path=module.tied_to or op.module)
            count, m, a_bits = 1, length * number, self.value("act_bits", path=op.module)
            b_bytes = n * (k * bits + math.ceil(k / 128) * ((16 + bits) if bits < 16 else 0)) / 8
        else:
            k, n = (k, span) if op.kind is OpKind.SCORE else (span, n)
            kv_heads = op.kv_heads.size(heads, channels)
            if op.window and span < length:  # as many windows as the rows fill
                length, number = span, number * length / span
            count, m, a_bits = number * kv_heads, length * op.heads.size(heads, channels) / kv_heads, 16
            name = "k_bits" if op.kind is OpKind.SCORE else "v_bits"
            bits = self.value(name, op.component, op.block) if op.cached else 16
            b_bytes = k * n * self.stored(bits) / 8
        sizes = {"m": m, "n": n, "k": k}
        element = {"a": a_bits / 8, "b": b_bytes / (k * n)}
        rows, cols, bandwidth = self.value("pe_rows"), self.value("pe_cols"), self.value("dram_bytes_per_s")
        stationary = {"ws": "kn", "os": "mn", "is": "km"}[self.value("dataflow")]
        streamed = ({*"mnk"} - {*stationary}).pop()
        double_a, double_b = 1 + (a_bits > 8), 1 + (bits > 8)
        packed, slots = 1, double_a * double_b
        if self.value("mac_array") == "scalable":
            held = [next(w for w in (2, 4, 8, 16) if w >= x) for x in (a_bits, bits)]
            packed, slots = max(1, 64 // math.prod(held)), max(1, math.prod(held) / 64)
        least = rows * {"ws": double_b, "os": 1, "is": double_a}[self.value("dataflow")]
        if streamed == "k":
            slots /= packed
        unit = {stationary[0]: rows, stationary[1]: cols, streamed: 1}
        if "k" in stationary:
            unit["k"] *= packed
        steps = max(rows, least / slots)
        key = (count, m, k, n, *element.values(), a_bits, bits)
        if key not in self.known:
            fitting = [tile for tile in self.tiles(sizes, unit, steps) if self.fits(sizes, element, tile)]
            every = itertools.product(fitting, self.orders())
            self.known[key] = min((self.traffic(count, sizes, element, order, tile), tile) for tile, order in every)
        moved, tile = self.known[key][0], dict(zip("mnk", self.known[key][1], strict=True))

        def pieces(axis):
            whole = math.floor(sizes[axis] / tile[axis])
            rest = sizes[axis] - whole * tile[axis]
            return [tile[axis]] * whole + ([rest] if rest else [])

        folds = math.prod(sum(math.ceil(s / unit[axis]) for s in pieces(axis)) for axis in stationary)
        one_fold = sum(max(s * slots, least) for s in pieces(streamed))
        cycles = math.ceil(count * folds / self.value("n_cores")) * one_fold + rows + cols - 2
        # Nothing overlaps with the first fold that is loaded, nor with the last results that leave the array.
        edge = {axis: min(size, unit[axis]) for axis, size in sizes.items()}
        exposed = {
            "ws": edge["n"] * (edge["k"] * element["b"] + 2),
            "os": edge["m"] * edge["n"] * 2,
            "is": edge["m"] * (edge["k"] * element["a"] + 2),
        }[self.value("dataflow")]
        exposed = min(exposed, moved)
        time = exposed / bandwidth + max(cycles / self.value("freq_hz"), (moved - exposed) / bandwidth)
        return time, moved, count * m * k * n

    def orders(self):
        asked = self.value("loop_order")
        return ["mnk", "nmk", "mkn", "kmn", "nkm", "knm"] if asked == "auto" else [asked]

    def tiles(self, sizes, unit, steps):
        """Every tile (m, n, k) that the mapper may choose from: the given one, or 1, 2, 4, ... pieces and the most."""
        found = []
        for axis in "mnk":
            size, asked = sizes[axis], self.value(f"tile_{axis}")
            if asked:
                found.append([min(asked, size)])
                continue
            if unit[axis] > 1:
                folds = math.ceil(size / unit[axis])
                sides = [math.ceil(folds / 2**i) * unit[axis] for i in range(24) if 2**i <= folds] + [unit[axis]]
            else:
                sides, even = [size], []
                for trips in range(2, math.floor(size / steps) + 1):
                    tile = math.ceil(size / trips)
                    if size - tile * (math.ceil(size / tile) - 1) >= steps:
                        even.append(tile)
                        sides += [tile] * (trips & (trips - 1) == 0)
                sides += even[-1:]
            sides = {min(tile, size) for tile in sides}
            found.append(sides)
        return itertools.product(*found)

    def fits(self, sizes, element, tile):
        """Whether tiles fit on chip; a row where none of the given ones does is infeasible and not walked."""
        tile = dict(zip("mnk", tile, strict=True))
        several = {axis for axis in "mnk" if tile[axis] < sizes[axis]}
        a = tile["m"] * tile["k"] * element["a"] * (2 if several & {*"mk"} else 1)
        b = tile["k"] * tile["n"] * element["b"] * (2 if several & {*"kn"} else 1)
        return a + b + 4 * tile["m"] * tile["n"] <= self.value("sram_bytes")

    @staticmethod
    def traffic(count, sizes, element, order, tile):
        trips = {axis: math.ceil(sizes[axis] / t) for axis, t in zip("mnk", tile, strict=True)}

        def fetches(free):
            inside = order[order.index(free) + 1 :]
            return trips[free] if any(trips[axis] > 1 for axis in inside) else 1

        m, n, k = (sizes[axis] for axis in "mnk")
        moved = count * m * k * element["a"] * fetches("n") + count * k * n * element["b"] * fetches("m")
        return moved + count * m * n * (2 + 8 * (fetches("k") - 1))


@pytest.mark.validates(
    "analytical",
    "times and traffic of whole models, drawn designs",
    "a scalar walk over the operator graph with its own search for mappings",
    "equal to 1e-12",
)
@pytest.mark.parametrize(("kind", "scenario"), [("vision-language", {}), ("text", {"output_tokens": 40})])
def test_the_model_equals_a_walk_over_operators(kind, scenario):
    problem = small_problem(kind, **scenario)
    space = small_space(problem)
    batch = space.decode(space.sample(60, np.random.default_rng(5)))
    evaluator = catalogue.cost_model("analytical").prepare(problem)
    result = evaluator.evaluate(batch)
    rows = np.flatnonzero(result.status == Status.OK)
    assert len(rows) > 30
    for row in rows:
        seconds, dram, macs = Walk(problem, batch.take([row])).run()
        assert result.values["encode_s"][row] == pytest.approx(seconds.get("encode", 0.0), rel=1e-12)
        assert result.values["prefill_s"][row] == pytest.approx(seconds["prefill"], rel=1e-12)
        assert result.values["tpot_s"][row] == pytest.approx(seconds["decode"], rel=1e-12)
        assert result.values["dram_bytes"][row] == pytest.approx(dram, rel=1e-12)
        assert macs > 0


def test_energy_and_area_by_hand():
    """Reference chip: 4,096 elements x 8.54e-4 + 128 lanes x 4e-3 + 2 MiB x 8.34e-7 + 68e9 B/s x 1.5e-10 mm2."""
    problem = small_problem("text")
    space = small_space(problem)
    batch = space.decode(space.reference_codes())
    area = 4096 * 8.54e-4 + 128 * 4e-3 + 2097152 * 8.34e-7 + 68e9 * 1.5e-10
    chosen = batch.take([0])
    arrays = {"pe_rows": 64, "pe_cols": 64, "n_cores": 1, "vector_lanes": 128, "sram_bytes": 2**21}
    for name, value in (arrays | {"dram_bytes_per_s": 68e9}).items():
        chosen._arrays[name] = np.array([value], dtype=chosen[name].dtype)
    evaluator = catalogue.cost_model("analytical").prepare(problem)
    result = evaluator.evaluate(chosen)
    assert result.values["area_mm2"][0] == pytest.approx(area, rel=1e-12)
    found = {p.metric: p for p in evaluator.breakdown(chosen)}
    parts = {
        name: {label[3]: part for label, part in zip(p.labels, p.parts[0], strict=True)} for name, p in found.items()
    }
    assert parts["area_mm2"]["array"] == pytest.approx(4096 * 8.54e-4)
    assert parts["energy_j"]["leakage"] == pytest.approx(0.03 * area * result.values["latency_s"][0])
    dram = 8 * result.values["dram_bytes"][0] * 8.0e-12
    energy = zip(found["energy_j"].labels, found["energy_j"].parts[0], strict=True)
    traffic = sum(part for label, part in energy if label[3].endswith("traffic"))
    assert traffic == pytest.approx(dram, rel=1e-9)
