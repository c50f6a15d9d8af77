"""Fused groups: legality, exact savings edge by edge, hand computations, and the best partition against brute force."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.best_fusion import candidates, cheapest
from costmodels.fusion import FORM_NAMES, Partitioner, form_edges, leaf_of
from costmodels.groups import TILE_ROWS
from costmodels.totals import ACTIVATION_BYTES, WEIGHT_BYTES
from dse import Choice, Scenario, Space, catalogue
from dse.cli.main import run as dse
from dse.errors import UserError
from dse.hardware import read_hardware
from dse.metrics import Status
from dse.model import Graph, Op, OpKind, read_model
from dse.problem import Problem
from dse.testing.samples import small_problem
from dse.whatif import design_of

ROWS = 41


def problem_with(fusion=None, kind="text", **scenario):
    base = small_problem(kind, **({"prompt_tokens": ROWS, "output_tokens": 5} | scenario))
    return replace(base, fusion=fusion or {})


def evaluator_of(problem):
    return catalogue.cost_model("analytical").prepare(problem)


def design(problem, **fields):
    space = Space({k: Choice(v) for k, v in ({"sram_bytes": 2**26, "batch": 1} | fields).items()}).bind(problem)
    return space.decode(np.zeros_like(space.reference_codes()))


def evaluated(problem, **fields):
    return evaluator_of(problem).evaluate(design(problem, **fields))


def group_planes(problem, phase, leader, **fields):
    """Return what the group led by an operator of block 1 does."""
    found = {s.phase: s for s in evaluator_of(problem).schedule(design(problem, **fields))}[phase]
    ops = problem.target.graph(phase).ops
    return found.groups[:, 0, next(i for i, op in enumerate(ops) if op.block == 1 and leaf_of(op) == leader)]


# ------------------------------------------------------------------------------------------------- savings


def prefill_edges(kind):
    problem = problem_with(kind=kind)
    graph = problem.target.graph("prefill")
    parts = Partitioner(graph, problem.target)
    inside = [(p, c) for p, c in parts.edges() if graph.ops[p].block == graph.ops[c].block == 1]
    return parts, [(p, c) for p, c in inside if not parts.why_not(p, c)]


def elements_read(parts, p, c):
    """Elements per row that consumer c reads of producer p, by hand from the operators."""
    op = parts.ops[c]
    if op.kind is OpKind.LINEAR:
        return op.k.size(2, 160)
    if op.kind is OpKind.CACHE:
        return 0  # what is appended is counted where the cache is
    if op.kind is OpKind.ROPE:  # 4 query heads of 16 and 2 key heads of 16, all rotated
        return {"q_proj": 64, "k_proj": 32}[leaf_of(parts.ops[p]).rpartition(".")[2]]
    return op.n.size(2, 160)


def leaf_pairs():
    """The edges of a block that may be fused alone: not a part of an attention, not past what another path brings."""
    parts, edges = prefill_edges("text")
    return sorted((leaf_of(parts.ops[p]), leaf_of(parts.ops[c])) for p, c in edges if is_legal(parts, [(p, c)]))


def is_legal(parts, edges):
    try:
        parts.groups(edges)
    except UserError:
        return False
    return True


@pytest.mark.validates(
    "fusion",
    "every edge of a block that may be fused, alone",
    "the bytes that cross it, by hand",
    "saves exactly those",
)
@pytest.mark.parametrize("leaf_pair", leaf_pairs())
def test_an_edge_saves_what_crosses_it(leaf_pair):
    """With memory for everything, fusing one edge saves its read, and the write where nobody else reads it."""
    parts, edges = prefill_edges("text")
    p, c = next(e for e in edges if (leaf_of(parts.ops[e[0]]), leaf_of(parts.ops[e[1]])) == leaf_pair)
    saved = elements_read(parts, p, c)
    if parts.consumers[p] == [c]:
        saved += parts.ops[p].n.size(2, 160)
    problem = problem_with({"prefill/one": [leaf_pair]})
    before, after = evaluated(problem_with()), evaluated(problem)
    n_blocks = 3
    assert before.values["dram_bytes"][0] - after.values["dram_bytes"][0] == n_blocks * ROWS * saved * 2


def test_two_operators_by_hand():
    """Norm and query projection, 41 rows of 64 features in tiles of 8: 6 row tiles, weights of 64 x 64 at 16 bits.

    Two columns of weights at a time: 2 KiB do not keep the 8 KiB of weights, so each row tile fetches them anew.
    """
    problem = problem_with({"prefill/pair": [("input_layernorm", "self_attn.q_proj")]})
    shape = {"tile_m": 8, "tile_n": 8, "tile_k": 8, "loop_order": "mnk", "pe_rows": 8, "pe_cols": 8}
    # Norm slot: 8 rows x (64 read at 16 bits, twice + 64 kept at 16) = 3,072. Projection slot: 8 x (64 kept + an
    # output tile of 8 at 32 bits) + two weight tiles of 8 x 8 at 16 bits = 1,024 + 256 + 256 = 1,536.
    planes = group_planes(problem, "prefill", "input_layernorm", sram_bytes=4096, **shape)
    assert planes[16] == 3072
    assert planes[WEIGHT_BYTES] == 6 * 64 * 64 * 2
    # The norm reads its input and writes for k_proj and v_proj, the projection writes its result.
    assert planes[ACTIVATION_BYTES] == 3 * ROWS * 64 * 2
    assert planes[TILE_ROWS] == 8
    kept = group_planes(problem, "prefill", "input_layernorm", sram_bytes=2**15, **shape)
    assert kept[WEIGHT_BYTES] == 64 * 64 * 2


@pytest.mark.validates("fusion", "a gated MLP in row tiles: bytes and on-chip memory", "by hand", "equal")
def test_an_mlp_by_hand():
    """Gate, up, activation, product, down: 64 -> 160 -> 64. Hidden features pass in chunks of 8."""
    shape = {"tile_m": 8, "tile_n": 8, "tile_k": 8, "loop_order": "mnk", "pe_rows": 8, "pe_cols": 8}
    planes = group_planes(problem_with(), "prefill", "mlp.gate_proj", fuse_mlp=True, sram_bytes=10_000, **shape)
    weights = 3 * 64 * 160 * 2
    assert planes[WEIGHT_BYTES] == 6 * weights
    assert planes[ACTIVATION_BYTES] == 3 * ROWS * 64 * 2  # read by gate and up, written by down
    # 8 rows x (2 operands of 64 at 16 bits, twice + 64 sums at 32 + chunks of 8: gate and up at 32, act and product at
    # 16) + two tiles of 8 x 8 at 16 bits of each of three weights.
    assert planes[16] == 8 * (2 * 2 * 64 * 2 + 64 * 4 + 8 * (4 + 4 + 2 + 2)) + 3 * 2 * 8 * 8 * 2
    kept = group_planes(problem_with(), "prefill", "mlp.gate_proj", fuse_mlp=True, sram_bytes=2**17, **shape)
    assert kept[WEIGHT_BYTES] == weights


@given(
    st.sampled_from(["fuse_attention", "fuse_mlp", "fuse_norm"]), st.sampled_from([2, 4, 8, 16]),
    st.sampled_from(["ws", "os", "is"]), st.sampled_from([0.25, 0.5, 1.0]), st.integers(1, 3),
)  # fmt: skip
def test_fusing_never_moves_more_where_a_tile_covers_all_rows(form, bits, dataflow, keep, batch):
    problem = problem_with()
    fields = {"weight_bits": bits, "dataflow": dataflow, "head_keep": keep, "ffn_keep": keep, "batch": batch}
    plain, fused = evaluated(problem, **fields), evaluated(problem, **fields, **{form: True})
    assert fused.status[0] == Status.OK
    assert fused.values["dram_bytes"][0] < plain.values["dram_bytes"][0]
    assert fused.values["weight_bytes"][0] == plain.values["weight_bytes"][0]


def test_dropped_blocks_end_a_group():
    """A residual sum whose next block is dropped is written and read as if it were unfused."""
    problem = problem_with({"prefill/next": [("mlp.residual", "input_layernorm")]})
    before, after = problem_with(), problem
    space = {"block_keep": 0.5}
    saved = evaluated(before, **space).values["dram_bytes"] - evaluated(after, **space).values["dram_bytes"]
    kept = int(design(problem, **space)["block_keep"].sum())
    chain = design(problem, **space)["block_keep"][0].tolist()
    pairs = sum(a and b for a, b in itertools.pairwise(chain))
    assert kept < 3
    assert saved[0] == pairs * ROWS * 64 * 2


def test_infeasible_with_the_amount():
    result = evaluated(
        problem_with(),
        fuse_mlp=True,
        sram_bytes=4096,
        tile_m=64,
        tile_n=8,
        tile_k=8,
        pe_rows=8,
        pe_cols=8,
        loop_order="mnk",
    )
    assert result.status[0] == Status.INFEASIBLE
    assert "the fused decoder mlp in prefill needs" in result.reason(0)
    assert "over by" in result.reason(0)


def test_mode_scalesim_refuses_fusion():
    problem = problem_with()
    model = catalogue.cost_model("analytical:scalesim").prepare(problem)
    result = model.evaluate(design(problem, fuse_mlp=True))
    assert result.status[0] == Status.INFEASIBLE
    assert "operator by operator" in result.reason(0)


# ------------------------------------------------------------------------------------------------ legality


def test_forms_that_are_illegal_together_are_an_infeasible_design():
    """Keys to the cache, past the rotation that fuse_norm's group does not hold."""
    problem = problem_with({"mine": [("self_attn.v_proj", "self_attn.cache")]})
    assert evaluated(problem).status[0] == Status.OK
    assert evaluated(problem, fuse_norm=True, fuse_groups=False).status[0] == Status.OK
    result = evaluated(problem, fuse_norm=True)
    assert result.status[0] == Status.INFEASIBLE
    assert "must be convex" in result.reason(0)


@pytest.mark.parametrize(
    ("edges", "law"),
    [
        ([("self_attn.value", "self_attn.o_proj")], "inner loop runs over heads"),
        ([("self_attn.score", "self_attn.softmax")], "fuse all three or not at all"),
        ([("input_layernorm", "self_attn.q_proj"), ("self_attn.o_proj", "self_attn.residual"),
          ("mlp.residual", "input_layernorm"), ("self_attn.residual", "mlp.residual")], "must be convex"),
        ([("norm", "lm_head")], "rows differ"),
        ([("input_layernorm", "nothing")], "no edge goes from"),
    ],
)  # fmt: skip
def test_illegal_groups_are_refused_when_prepared(edges, law):
    with pytest.raises(UserError, match=law):
        evaluator_of(problem_with({"mine": edges}))


def test_groups_that_wait_for_each_other_are_refused():
    """a -> c and b -> d fused, with a -> d and b -> c beside: each group needs the other's result."""
    ops = (
        Op("a", OpKind.NORM, "decoder", 0, "token"), Op("b", OpKind.NORM, "decoder", 0, "token"),
        Op("c", OpKind.ADD, "decoder", 0, "token", inputs=("a", "b")),
        Op("d", OpKind.ADD, "decoder", 0, "token", inputs=("b", "a")),
    )  # fmt: skip
    parts = Partitioner(Graph("prefill", ops), small_problem("text").target)
    with pytest.raises(UserError, match="must have an order"):
        parts.groups([(0, 2), (1, 3)])
    assert parts.groups([(0, 2)]) == [(0, 2)]


@pytest.mark.parametrize(
    "name",
    ["llava-1.5-7b", "qwen2.5-vl-3b", "deepseek-v2-lite", "mixtral-8x7b", "gemma-3-4b", "llama-3.2-11b-vision",
     "whisper-large-v3", "llama-4-scout-17b-16e", "qwen3-vl-8b"],
)  # fmt: skip
def test_named_forms_are_legal_in_real_models(name):
    model = read_model(name)
    for phase in ("encode", "prefill", "decode"):
        parts = Partitioner(model.graph(phase), model)
        forms = form_edges(parts, phase, {})
        for n in range(1, 3):
            for chosen in itertools.combinations(FORM_NAMES, n):
                assert isinstance(parts.groups(set().union(*(forms[bit] for bit in chosen))), list)
    assert forms[1]
    assert forms[2]


def test_given_groups_are_part_of_the_problem():
    plain, mine = problem_with(), problem_with({"mine": [("input_layernorm", "self_attn.q_proj")]})
    assert plain.content_hash != mine.content_hash
    assert Problem.from_json(mine.to_json()).content_hash == mine.content_hash
    assert "fusion" not in plain.to_json()
    assert evaluator_of(plain).fingerprint != evaluator_of(mine).fingerprint
    off = evaluated(mine, fuse_groups=False).values["dram_bytes"]
    assert off == evaluated(plain).values["dram_bytes"] > evaluated(mine).values["dram_bytes"]


def test_given_groups_equal_named_forms():
    edges = [
        ("mlp.gate_proj", "mlp.act"),
        ("mlp.act", "mlp.multiply"),
        ("mlp.up_proj", "mlp.multiply"),
        ("mlp.multiply", "mlp.down_proj"),
    ]
    mine, named = evaluated(problem_with({"m": edges})), evaluated(problem_with(), fuse_mlp=True)
    attention = [("*.score", "*.softmax"), ("*.softmax", "*.value")]
    flash, form = evaluated(problem_with({"a": attention})), evaluated(problem_with(), fuse_attention=True)
    for name in named.values:
        assert mine.values[name][0] == named.values[name][0]
        assert flash.values[name][0] == form.values[name][0]


# -------------------------------------------------------------------------------------------- best partition


def brute_force(parts, members, alone, fused):
    """The least cost over all subsets of the block's legal edges, each a partition if its groups are legal."""
    inside = set(members)
    edges = [(p, c) for p, c in parts.edges() if p in inside and c in inside and not parts.why_not(p, c)]
    best = math.inf
    for n in range(len(edges) + 1):
        for chosen in itertools.combinations(edges, n):
            if not is_legal(parts, chosen):
                continue
            groups = parts.groups(chosen)
            if all(g in fused for g in groups):
                lone = set(members) - {op for g in groups for op in g}
                best = min(best, sum(fused[g] for g in groups) + sum(alone[op] for op in lone))
    return best


@pytest.mark.validates("fusion", "best partition of half a block, random costs", "all subsets of its edges", "equal")
@pytest.mark.parametrize("seed", range(4))
def test_the_best_partition_is_the_best_of_all_subsets_of_edges(seed):
    """Random costs, so that no structure of ours helps; the MLP half of a block: 2^9 subsets."""
    problem = problem_with()
    parts = Partitioner(problem.target.graph("prefill"), problem.target)
    names = ("self_attn.o_proj", "self_attn.residual", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj",
             "mlp.act", "mlp.multiply", "mlp.down_proj", "mlp.residual")  # fmt: skip
    members = [i for i, op in enumerate(parts.ops) if op.block == 1 and leaf_of(op) in names]
    rng = np.random.default_rng(seed)
    alone = {op: float(rng.uniform(1, 2)) for op in members}
    fused = {g: float(sum(alone[op] for op in g) * rng.uniform(0.6, 1.1)) for g in candidates(parts, members)}
    fused = {g: cost for g, cost in fused.items() if rng.random() < 0.7}  # the others do not fit
    cost, groups = cheapest(parts, members, alone, fused)
    assert cost == pytest.approx(brute_force(parts, members, alone, fused), rel=1e-12)
    lone = set(members) - {op for g in groups for op in g}
    assert cost == pytest.approx(sum(fused[g] for g in groups) + sum(alone[op] for op in lone), rel=1e-12)


@pytest.mark.validates("fusion", "a best partition, put into the problem", "what was promised for each block", "equal")
@pytest.mark.parametrize("sram", [2**12, 2**14, 2**16, 2**24])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_the_best_partition_costs_what_it_says(phase, sram):
    """Put into the problem, it saves in every block what was promised for one."""
    problem = problem_with()
    fields = {"sram_bytes": sram, "pe_rows": 4, "pe_cols": 4}
    best = evaluator_of(problem).best_fusion(design(problem, **fields), phase)
    assert best.dram_bytes <= best.unfused_dram_bytes
    before, after = evaluated(problem, **fields), evaluated(problem_with(best.fusion), **fields)
    assert after.status[0] == Status.OK
    passes = {"prefill": 1, "decode": 4}[phase]
    saved = before.values["dram_bytes"][0] - after.values["dram_bytes"][0]
    assert saved == pytest.approx(3 * passes * (best.unfused_dram_bytes - best.dram_bytes), rel=1e-9)


def test_more_memory_never_makes_the_best_partition_worse():
    problem = problem_with()
    found = [
        evaluator_of(problem).best_fusion(design(problem, sram_bytes=2**b), "prefill").dram_bytes for b in range(14, 24)
    ]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0]


def test_the_command_line_prints_what_a_study_takes(capsys):
    """The partition of each kind of block, what it saves and holds; a problem that takes it saves as much."""
    arguments = ["fuse", "--model", "smolvlm-256m", "--hardware", "npu-template", "--sram", "4 MiB", "--images", "0"]
    arguments += ["--prompt-tokens", "64", "--output-tokens", "8", "--json"]
    assert dse(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert {b["phase"] for b in found["blocks"]} == {"prefill", "decode"}
    saved = 0.0
    for block in found["blocks"]:
        assert block["dram_bytes"] < block["unfused_dram_bytes"]
        assert 0 < block["held_bytes"] <= 2**22
        passes = 7 if block["phase"] == "decode" else 1
        saved += passes * len(block["blocks"]) * (block["unfused_dram_bytes"] - block["dram_bytes"])
    plain = Problem(
        {"target": read_model("smolvlm-256m")},
        Scenario(prompt_tokens=64, output_tokens=8),
        read_hardware("npu-template"),
    )
    fusion = {name: [tuple(edge) for edge in edges] for name, edges in found["fusion"].items()}
    before, after = (
        evaluator_of(p).evaluate(design_of(p, {"sram_bytes": "4 MiB"})).values["dram_bytes"][0]
        for p in (plain, replace(plain, fusion=fusion))
    )
    assert before - after == pytest.approx(saved, rel=1e-9)


def test_a_device_has_nothing_to_fuse(capsys):
    assert dse(["fuse", "--model", "smolvlm-256m", "--hardware", "h200-sxm-141gb"]) != 0
    assert "is a device" in capsys.readouterr().err
