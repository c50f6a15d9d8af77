from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dse.designs import Design, DesignBatch
from dse.errors import NameUnknown, SpaceError
from dse.lookup import spread
from dse.params import Choice, Float, Int
from dse.schema import Schema
from dse.space import Space
from dse.testing.samples import small_problem, small_space
from dse.testing.strategies import code_rows

PROBLEM = small_problem()
SPACE = small_space(PROBLEM)


COVERING = ("", "vision/", "decoder/", "projector/")


def bound(**declarations):
    return Space(declarations).bind(PROBLEM)


# ------------------------------------------------------------------ groups


HALVES = "vision/stem vision/0-1 vision/2 projector/stem decoder/stem decoder/0-1 decoder/2 decoder/head"
BLOCKS = "vision/stem vision/0 vision/1 vision/2 projector/stem decoder/stem decoder/0 decoder/1 decoder/2 decoder/head"


@pytest.mark.parametrize(
    ("per", "labels"),
    [("component", "vision projector decoder"), ("block_half", HALVES), ("block", BLOCKS), ("block_9", BLOCKS)],
)
def test_depths_of_the_hierarchy(per, labels):
    expected = [f"weight_bits[{label}]" for label in labels.split()]
    assert list(bound(weight_bits=Choice(4, 8, per=per)).labels) == expected


def test_without_a_depth_there_is_one_value():
    assert bound(weight_bits=Choice(4, 8)).labels == ("weight_bits",)


def test_kinds_and_modules_inside_a_depth():
    kinds = bound(weight_bits=Choice(4, 8, per="component.kind")).labels
    assert "weight_bits[decoder/attention]" in kinds
    assert "weight_bits[decoder/mlp]" in kinds
    assert "weight_bits[decoder/lm_head]" in kinds
    modules = bound(weight_bits=Choice(4, 8, per="block_half.module")).labels
    assert "weight_bits[decoder/0-1/self_attn.q_proj]" in modules
    assert len(bound(weight_bits=Choice(4, 8, per="module")).labels) == len(SPACE.schema.fields["weight_bits"].entries)


def test_channel_groups_split_every_module():
    halves = bound(weight_bits=Choice(4, 8, per="component.module.channel_half"))
    assert "weight_bits[decoder/self_attn.q_proj/channels 1 of 2]" in halves.labels
    assert len(halves.schema.fields["weight_bits"].entries) == 2 * len(SPACE.schema.fields["weight_bits"].entries)
    codes = halves.reference_codes()
    codes[0, halves.labels.index("weight_bits[decoder/self_attn.q_proj/channels 2 of 2]")] = 0
    codes[0, halves.labels.index("weight_bits[decoder/self_attn.q_proj/channels 1 of 2]")] = 1
    bits = halves.decode(codes)["weight_bits"][0]
    entries = halves.schema.fields["weight_bits"].entries
    chosen = [b for b, e in zip(bits, entries, strict=True) if e.leaf == "self_attn.q_proj"]
    assert chosen == [8, 4] * 3


def test_thirds_of_blocks_are_as_even_as_can_be():
    sizes = {}
    for entry in small_space(PROBLEM).schema.fields["block_keep"].entries:
        sizes[entry.component] = sizes.get(entry.component, 0) + 1
    assert sizes == {"vision": 3, "decoder": 3}
    thirds = bound(block_keep=Choice(0.5, 1.0, per="block_third")).labels
    assert thirds == tuple(f"block_keep[{c}/{i}]" for c in ("vision", "decoder") for i in range(3))


# ------------------------------------------------------------------ which declaration holds


def test_a_module_prevails_over_its_component_however_the_paths_are_written():
    space = bound(**{"decoder/weight_bits": Choice(4), "lm_head/weight_bits": Choice(16), "weight_bits": Choice(8)})
    batch = space.decode(space.reference_codes())
    bits = dict(zip([e.path for e in batch.schema.fields["weight_bits"].entries], batch["weight_bits"][0], strict=True))
    assert bits["lm_head"] == 16
    assert bits["model.language_model.layers.0.mlp.up_proj"] == 4
    assert bits["model.visual.blocks.0.mlp.up_proj"] == 8


def test_the_longer_path_prevails():
    space = bound(
        **{
            "weight_bits": Choice(4, 8, per="component"),
            "decoder/weight_bits": Choice(2, 3),
            "decoder/lm_head/weight_bits": Choice(16),
        }
    )
    batch = space.decode(np.array([[0, 0, 0, 0]]))
    bits = dict(zip([e.path for e in batch.schema.fields["weight_bits"].entries], batch["weight_bits"][0], strict=True))
    assert bits["lm_head"] == 16
    assert bits["model.language_model.layers.0.mlp.up_proj"] == 2
    assert bits["model.visual.blocks.0.mlp.up_proj"] == 4
    assert space.n_designs == 2 * 2 * 2 * 1


def test_an_alias_sets_both_and_yields_to_the_plain_name():
    both = bound(kv_bits=Choice(4, 8))
    assert both.labels == ("kv_bits",)
    batch = both.decode(np.array([[1]], dtype=int))
    assert (batch["k_bits"] == 8).all()
    assert (batch["v_bits"] == 8).all()
    keys_apart = bound(kv_bits=Choice(4, 8), k_bits=Choice(16))
    batch = keys_apart.decode(np.zeros((1, 2), dtype=int))
    assert (batch["k_bits"] == 16).all()
    assert (batch["v_bits"] == 4).all()


@pytest.mark.parametrize(
    ("declarations", "law"),
    [
        ({"up_proj/weight_bits": Choice(4), "mlp.up_proj/weight_bits": Choice(8)}, "both set weight_bits"),
        ({"batch": Choice(1)} | {f"{c}weight_bits": Choice(4) for c in COVERING}, "no effect"),
        ({"weight_bits": Choice(4, 5)}, "=5 is not in (2, 3, 4, 6, 8, 16)"),
        ({"head_keep": Float(0.5, 1.5)}, "not in the range 0.01 <= x <= 1"),
        ({"sram_bytes": Choice("1 MiB", 1048576)}, "twice, in different units"),
        ({"sram_bytes": Choice("4 s")}, "is not in B"),
        ({"pe_rows": Choice(16, 32, per="block")}, "one value per design"),
        ({"weight_bits": Choice(4, per="layer")}, "no depth of the hierarchy"),
        ({"dataflow": Choice("ws", "rs")}, "='rs' is not in (ws, os, is)"),
        ({"device": Choice("h100-sxm-80gb")}, "does not exist in this problem"),
        ({"batch": Int(0, 4)}, "not in the range 1 <= x"),
        ({"weight_bits": Choice(4.5)}, "not a whole number"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(declarations, law):
    with pytest.raises(SpaceError) as error:
        bound(**declarations)
    assert law in error.value.message


@pytest.mark.parametrize(
    ("declarations", "message", "hint"),
    [
        ({"weight_bit": Choice(4)}, "unknown knob 'weight_bit'", "did you mean 'weight_bits'"),
        ({"decodr/weight_bits": Choice(4)}, "part of 'decodr/weight_bits'", "did you mean 'decoder'"),
    ],
)
def test_unknown_names_say_what_was_meant(declarations, message, hint):
    with pytest.raises(NameUnknown) as error:
        bound(**declarations)
    assert message in error.value.message
    assert hint in error.value.hint


def test_an_empty_space_and_what_is_no_domain():
    with pytest.raises(SpaceError, match="no knob to vary"):
        Space()
    with pytest.raises(SpaceError, match="is no domain"):
        Space(weight_bits=[4, 8])
    with pytest.raises(SpaceError, match="declared twice"):
        Space({"batch": Choice(1)}, batch=Choice(2))


# ------------------------------------------------------------------ conditions


def conditional():
    return bound(
        dataflow=Choice("ws", "os", "is"),
        n_cores=Choice(1, 2, 4, when={"dataflow": ("ws", "os")}),
        vector_lanes=Choice(16, 64, when={"n_cores": (2, 4)}),
    )


def test_inactive_parameters_take_the_reference_value():
    space = conditional()
    assert space.labels == ("n_cores", "dataflow", "vector_lanes")
    codes = np.array([[2, 2, 1], [0, 0, 1], [1, 0, 1]])
    assert space.active(space.repair(codes)).tolist() == [[False, True, False], [True, True, False], [True, True, True]]
    assert space.repair(codes).tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 1]]
    batch = space.decode(codes)
    reference = space.schema.fields["n_cores"].default[0]
    assert batch["n_cores"].tolist() == [reference, 1, 2]
    assert batch["vector_lanes"].tolist() == [128, 128, 64]
    assert space.values(codes) == [
        {"dataflow": "is"},
        {"dataflow": "ws", "n_cores": 1},
        {"dataflow": "ws", "n_cores": 2, "vector_lanes": 64},
    ]


def test_inactive_differences_are_one_design():
    space = conditional()
    a, b = space.decode(np.array([[2, 2, 1]])), space.decode(np.array([[0, 2, 0]]))
    assert a.hashes == b.hashes


@pytest.mark.parametrize(
    ("declarations", "law"),
    [
        ({"batch": Choice(1, when={"pe_rows": 16})}, "unknown knob in the condition"),
        (
            {"batch": Choice(1, when={"weight_bits": 4}), "weight_bits": Choice(4, 8, per="block")},
            "has a value per group",
        ),
        ({"batch": Choice(1, when={"dataflow": "is"}), "dataflow": Choice("ws")}, "but dataflow is one of ws"),
        (
            {"n_cores": Choice(1, 2, when={"batch": 1}), "batch": Choice(1, 2, when={"n_cores": 1})},
            "conditions form a cycle",
        ),
    ],
)
def test_impossible_conditions_are_refused(declarations, law):
    with pytest.raises((SpaceError, NameUnknown)) as error:
        bound(**declarations)
    assert law in error.value.message


# ------------------------------------------------------------------ codes and designs


@given(code_rows(SPACE))
def test_codes_to_designs_and_back(codes):
    batch = SPACE.decode(codes)
    again = SPACE.encode(batch)
    assert SPACE.decode(again).hashes == batch.hashes


@given(code_rows(SPACE), st.integers(0, 5))
def test_a_design_has_one_hash_wherever_it_stands(codes, shift):
    batch = SPACE.decode(codes)
    order = np.roll(np.arange(len(codes)), shift)
    assert batch.take(order).hashes == [batch.hashes[i] for i in order]
    assert [d.hash for d in batch.rows()] == [h.hex() for h in batch.hashes]


def test_the_same_design_has_the_same_hash_in_another_space():
    coarse = bound(weight_bits=Choice(4, 8))
    fine = bound(weight_bits=Choice(2, 4, 8, per="block.module"), batch=Choice(1, 2))
    a = coarse.decode(coarse.codes_of({"weight_bits": 4})[0])
    b = fine.decode(fine.codes_of({"weight_bits": 4, "batch": 1})[0])
    assert a.hashes == b.hashes
    assert Design(a) == Design(b)


def test_hashes_are_stable():
    """Stored hashes outlive the code: how designs are hashed may only change together with the store's schema."""
    space = bound(
        weight_bits=Choice(4, 16, per="component"), dataflow=Choice("ws", "os"), ffn_keep=Float(0.5, 1.0),
        tile_m=Choice(128), tile_n=Choice(256), tile_k=Choice(256), loop_order=Choice("mnk"),
    )  # fmt: skip
    space.schema.__dict__["content_hash"] = "0" * 32  # what models and hardware contribute is theirs to change
    batch = space.decode(np.array([[0, 1, 0, 0, 1, 0, 0, 0, 0], [1, 1, 1, 1023, 0, 0, 0, 0, 0]]))
    assert [h.hex() for h in batch.hashes] == ["316f3052df812f31a5af14fc91b0d991", "5b28a3506aeec85e9db179bcc610e5aa"]


def test_another_model_or_hardware_is_another_design():
    text = small_space(small_problem("text"), image_px=None)
    device = small_space(small_problem(hardware="h100-sxm-80gb"))
    hashes = {s.decode(s.reference_codes()).hashes[0] for s in (SPACE, text, device)}
    assert len(hashes) == 3


@given(code_rows(SPACE))
def test_repair_is_idempotent_and_in_range(codes):
    wild = codes.astype(np.int64) * 7 - 3
    repaired = SPACE.repair(wild)
    assert (repaired < SPACE.n_levels).all()
    assert np.array_equal(SPACE.repair(repaired), repaired)


def test_a_value_off_the_grid_is_snapped_and_told():
    codes, notes = SPACE.codes_of({"ffn_keep": 0.8, "sram_bytes": "100 KiB", "dataflow": "os"})
    values = SPACE.values(codes)[0]
    assert values["ffn_keep[decoder/0]"] == 0.75
    assert values["sram_bytes"] == 65536
    assert len([n for n in notes if "is not a level" in n]) == 6 + 1
    with pytest.raises(SpaceError, match="not in"):
        SPACE.codes_of({"dataflow": "rs"})
    with pytest.raises(NameUnknown, match="unknown parameter 'ffn_kep'"):
        SPACE.codes_of({"ffn_kep": 1.0})


def test_a_design_outside_the_space_cannot_be_encoded():
    narrow, wide = bound(weight_bits=Choice(4, 8)), bound(weight_bits=Choice(4, 8, per="component"))
    mixed = wide.decode(np.array([[0, 1, 0]]))
    with pytest.raises(SpaceError, match="1 of 1 designs are not in this space"):
        narrow.encode(mixed)


def test_shapes_are_checked():
    with pytest.raises(SpaceError, match="expected integers of shape"):
        SPACE.repair(np.zeros((3, 2), dtype=int))
    with pytest.raises(SpaceError, match="expected integers"):
        SPACE.repair(np.zeros((3, SPACE.n_parameters)))
    with pytest.raises(SpaceError, match="expected an array of shape"):
        DesignBatch(Schema(PROBLEM), {"batch": np.ones((2, 2))})
    with pytest.raises(SpaceError, match="one length"):
        DesignBatch(Schema(PROBLEM), {"batch": np.ones(2), "pe_rows": np.ones(3)})


def test_sampling_covers_levels_evenly():
    codes = bound(batch=Choice(1, 2, 3, 4)).sample(4000, np.random.default_rng(0))
    counts = np.bincount(codes[:, 0])
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


@given(st.integers(1, 40), st.floats(0, 1))
def test_spreading_keeps_the_fraction_as_evenly_as_can_be(size, fraction):
    kept = spread(np.array([fraction]), size)[0]
    assert kept.sum() == int(np.ceil(fraction * size - 1e-9))
    gaps = np.diff(np.flatnonzero(kept))
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_the_space_in_words():
    lines = bound(sram_bytes=Choice("256 KiB", "1 MiB"), weight_bits=Choice(4, 8, per="component")).describe()
    assert lines[1].startswith("sram_bytes: 256 KiB, 1 MiB.")
    assert "one for each of 3 groups (component)" in lines[0]


def test_declarations_survive_json():
    again = Space.from_json(SPACE.space.to_json()).bind(PROBLEM)
    assert again.content_hash == SPACE.content_hash
    assert again.labels == SPACE.labels


def test_a_design_says_what_it_changes():
    space = bound(weight_bits=Choice(4, 16, per="component"), batch=Choice(1, 3))
    codes = space.reference_codes()
    codes[0, space.labels.index("weight_bits[decoder]")] = 0
    codes[0, space.labels.index("batch")] = 1
    changes = Design(space.decode(codes)).changes()
    assert changes == {"weight_bits[decoder]": 4, "batch": 3}
