"""What users give: paths, names, spellings old and new, and everything that can be wrong with them."""

import contextlib
import copy
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dse.errors import ModelError, NameUnknown, UserError
from dse.model import Model, model_names, read_model
from dse.model.families import ARCHITECTURES
from dse.model.read import MAX_FILE_BYTES

SAMPLES = json.loads((Path(__file__).parent / "samples.json").read_text())["configs"]
HUB = json.loads((Path(__file__).parent / "hub.json").read_text())["configs"]
LLAMA = SAMPLES["llama, shared head, own head size, biases"]


def write(folder, config, name="config.json"):
    path = folder / name
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def changed(config, **fields):
    return {k: v for k, v in (config | fields).items() if v is not ...}


def test_names_and_aliases_in_any_case():
    model = read_model("Qwen2.5-VL-3B")
    assert model is read_model("qwen2.5-vl-3b") is read_model("qwen/qwen2.5-vl-3b-instruct")
    assert read_model("medgemma-4b").name == "gemma-3-4b"
    assert read_model("DeepSeek-Coder-V2-Lite").name == "deepseek-v2-lite"


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(NameUnknown, match=r"unknown model 'qwen2.5-vl-3'\n.*did you mean 'qwen2.5-vl-3b'"):
        read_model("qwen2.5-vl-3")
    with pytest.raises(NameUnknown, match=r"the path of a config\.json works too"):
        read_model("no/such/checkpoint")


def test_a_config_file_and_its_folder_are_the_same_model(tmp_path):
    folder = tmp_path / "my-checkpoint"
    folder.mkdir()
    path = write(folder, LLAMA)
    assert read_model(path).name == read_model(str(folder)).name == "my-checkpoint"
    assert read_model(path).content_hash == read_model(folder).content_hash
    assert read_model(path).sources == {"config": str(path)}
    assert read_model(write(tmp_path, LLAMA, "tiny.json")).name == "tiny"


def test_a_preprocessor_beside_the_config_is_read(tmp_path):
    config = SAMPLES["qwen2_5_vl"]
    path = write(tmp_path, config)
    free = read_model(path).visual_layout(1120, 1120).n_tokens
    write(tmp_path, {"min_pixels": 3136, "max_pixels": 28 * 28 * 64}, "preprocessor_config.json")
    limited = read_model(path)
    assert (free, limited.visual_layout(1120, 1120).n_tokens) == (1600, 64)
    newer = tmp_path / "newer"
    newer.mkdir()
    sizes = {"image_processor": {"size": {"shortest_edge": 3136, "longest_edge": 28 * 28 * 64}}}
    write(newer, sizes, "processor_config.json")
    assert read_model(write(newer, config)).content_hash == limited.content_hash


def test_a_catalogue_format_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'null_fields = ["q_lora_rank"]\n[source]\nconfig = "made up"\n[config]\n'
        + "\n".join(
            f"{k} = {json.dumps(v)}" for k, v in SAMPLES["deepseek_v2, one-step queries"].items() if v is not None
        )
    )
    model = read_model(path)
    assert model.name == "mine"
    assert model.sources == {"config": "made up"}
    assert model.n_params == Model.from_config(SAMPLES["deepseek_v2, one-step queries"], "x").n_params


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not toml [", "is not TOML"),
        ("[source]\n", r"\[config\] is missing"),
        ("[config]\n", r"\[source\] is missing"),
        ('colour = "red"\n', "unknown table in .* 'colour'"),
        (
            'null_fields = ["text_config.a"]\n[source]\n[config]\nmodel_type = "llama"\n',
            r"null_fields: \[text_config\] is",
        ),
    ],
)
def test_catalogue_format_files_that_cannot_be(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_model(path)


def test_missing_nested_fields_are_class_defaults_and_top_level_ones_are_errors():
    config = HUB["llava-1.5-7b-hf"]["config"]
    assert "hidden_size" not in config["text_config"]
    assert Model.from_config(config, "x").module("lm_head").in_dim.size() == 4096
    with pytest.raises(ModelError, match=r"x: hidden_size is missing\n.*a config of 'llama' needs it"):
        Model.from_config(changed(LLAMA, hidden_size=...), "x")
    with pytest.raises(ModelError, match="x: vision_config is missing"):
        Model.from_config({k: v for k, v in config.items() if k != "vision_config"}, "x")


def test_missing_key_value_heads_mean_one_per_query_head():
    model = Model.from_config(SAMPLES["llama, no num_key_value_heads"], "x")
    assert model.blocks[0].head_units == 6
    assert model.kv_bytes_per_token() == 2 * 3 * 96 * 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": -96}, "hidden_size=-96 is not a whole number from 1"),
        ({"hidden_size": 0}, "hidden_size=0 is not a whole number from 1"),
        ({"hidden_size": "96"}, "hidden_size='96' is not a whole number"),
        ({"hidden_size": 96.0}, "hidden_size=96.0 is not a whole number"),
        ({"hidden_size": True}, "hidden_size=True is not a whole number"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": [96]}, r"hidden_size=\[96\] is not"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers=1000000000000 is not a whole number from 1 to 4096"),
        ({"num_key_value_heads": 4}, "num_key_value_heads=4 does not divide num_attention_heads=6"),
        (
            {"head_dim": None, "num_attention_heads": 7, "num_key_value_heads": 7},
            "num_attention_heads=7 does not divide hid",
        ),
        ({"attention_bias": "yes"}, "attention_bias='yes' is not true or false"),
        ({"model_type": 3}, "model_type=3 is not a string"),
        ({"model_type": ...}, "model_type=None is not a string"),
    ],
)
def test_values_that_cannot_be_are_named_with_their_file(tmp_path, fields, message):
    path = write(tmp_path, changed(LLAMA, **fields))
    with pytest.raises(ModelError, match=message) as caught:
        read_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("sample", "table", "fields", "message"),
    [
        ("qwen3_moe, one dense block", None, {"num_experts_per_tok": 9}, "num_experts_per_tok=9 exceeds the 7 experts"),
        ("qwen3_moe, one dense block", None, {"mlp_only_layers": [5]}, r"mlp_only_layers=\[5\] is not a list of"),
        ("ministral, listed windows", None, {"layer_types": ["full_attention"]}, "layer_types lists 1 blocks, not 3"),
        ("ministral, listed windows", None, {"layer_types": ["x"] * 3}, "layer_types has 'x', which is none of full_"),
        ("deepseek_v3, biases", None, {"moe_layer_freq": 2}, "moe_layer_freq=2 is not 1"),
        ("llava_next", None, {"image_grid_pinpoints": [[70, 100]]}, "has 70x100, no multiple of the tile of 70 pixels"),
        ("llava_next", None, {"image_grid_pinpoints": [70]}, r"image_grid_pinpoints=\[70\] is not a list of \[height"),
        (
            "llava_next",
            None,
            {"vision_feature_layer": 9},
            "vision_feature_layer=9 is not an index, or a list of indices",
        ),
        ("gemma3", None, {"mm_tokens_per_image": 10}, "mm_tokens_per_image=10 is no square grid that divides the 6x6"),
        ("idefics3", None, {"scale_factor": 5}, "scale_factor=5 does not divide the 6x6 patches"),
        ("idefics3", None, {"text_config": 5}, "text_config=5 is not a table"),
        ("llama4", "vision_config", {"intermediate_size": 100}, "intermediate_size=100 is not hidden_size x 2.2 = 240"),
        ("qwen2_5_vl", "vision_config", {"out_hidden_size": 64}, "hands on 64 features, the decoder takes 96"),
        ("mllama", "vision_config", {"vision_output_dim": 100}, "vision_output_dim=100 is not hidden_size x"),
        (
            "internvl, small tower's norms",
            None,
            {"downsample_ratio": 0.3},
            "downsample_ratio=0.3 is not one over a whole",
        ),
        (
            "internvl, small tower's norms",
            "text_config",
            {"model_type": "qwen9"},
            "text_config.model_type='qwen9' is not",
        ),
        ("llava_next", "vision_config", {"model_type": "clip"}, "did you mean 'clip_vision_model'"),
    ],
)
def test_contradictions_are_named(sample, table, fields, message):
    config = copy.deepcopy(SAMPLES[sample])
    (config[table] if table else config).update(fields)
    with pytest.raises(ModelError, match=message) as caught:
        Model.from_config(config, "x", file="some/config.json")
    assert "some/config.json" in str(caught.value)


def test_an_unknown_architecture_is_named_with_the_nearest(tmp_path):
    with pytest.raises(ModelError) as caught:
        read_model(write(tmp_path, changed(LLAMA, model_type="qwen2_5_vll")))
    message = str(caught.value)
    assert "model_type='qwen2_5_vll' is not supported" in message
    assert "did you mean 'qwen2_5_vl'" in message
    assert all(name in message for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "holds a list, not an object"),
        ("", "is not JSON"),
        ("[" * 100_000, "cannot be parsed"),
        ('{"model_type": "llama", "hidden_size": ' + "9" * 5_000 + "}", "cannot be parsed"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, message):
    with pytest.raises(ModelError, match=message):
        read_model(write(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_model(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        read_model(tmp_path / "absent.json")
    binary = tmp_path / "config.json"
    binary.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ModelError, match="cannot be read"):
        read_model(binary)
    binary.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(ModelError, match="more than a config's"):
        read_model(binary)


junk = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.integers(10**6, 10**20), st.floats(), st.text(max_size=5),
    st.lists(st.one_of(st.integers(-2, 9), st.text(max_size=2), st.none()), max_size=4), st.builds(dict),
    st.builds(lambda: {"model_type": "llama"}),
)  # fmt: skip


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_no_file_whatsoever_ends_in_a_traceback(data):
    config = copy.deepcopy(data.draw(st.sampled_from(list(SAMPLES.values()))))
    for _ in range(data.draw(st.integers(1, 3))):
        table = config
        key = data.draw(st.sampled_from(sorted(table)))
        if isinstance(table[key], dict) and table[key] and data.draw(st.booleans()):
            table = table[key]
            key = data.draw(st.sampled_from(sorted(table)))
        if data.draw(st.booleans()):
            table[key] = data.draw(junk)
        else:
            del table[key]
        if not config:
            break
    with contextlib.suppress(UserError):
        model = Model.from_config(config, "x")
        assert model.n_params > 0
        assert json.loads(json.dumps(model.to_json()))["name"] == "x"


@pytest.mark.parametrize("name", [*model_names(), *HUB, *SAMPLES])
def test_json_and_pickle_give_the_same_model(name):
    config = SAMPLES.get(name) or (HUB[name]["config"] if name in HUB else None)
    model = Model.from_config(config, name) if config else read_model(name)
    for again in (Model.from_json(json.loads(json.dumps(model.to_json()))), pickle.loads(pickle.dumps(model))):
        assert again.content_hash == model.content_hash
        assert (again.name, again.modules, again.blocks) == (model.name, model.modules, model.blocks)
        assert {p: again.graph(p) for p in again.graphs} == dict(model.graphs)
        assert (again.image_rule, again.audio_rule, again.sources) == (
            model.image_rule,
            model.audio_rule,
            model.sources,
        )


def test_documents_of_another_format_are_refused():
    document = read_model("qwen2.5-0.5b").to_json()
    with pytest.raises(ModelError, match="format='dse-model/9' is not 'dse-model/1'"):
        Model.from_json(document | {"format": "dse-model/9"})


def hashed(config):
    return Model.from_config(config, "x").content_hash


def test_the_hash_is_that_of_the_content():
    assert hashed(LLAMA) == hashed(LLAMA | {"torch_dtype": "float16", "rope_theta": 1.0, "use_cache": False})
    assert hashed(LLAMA) == hashed(dict(reversed(LLAMA.items())))
    assert hashed(LLAMA) != hashed(LLAMA | {"hidden_size": 192})
    assert hashed(LLAMA) != hashed(LLAMA | {"tie_word_embeddings": False})
    hub = HUB["Qwen2.5-0.5B"]["config"]
    assert hashed(hub) == read_model("qwen2.5-0.5b").content_hash
    assert Model.from_config(hub, "another name").content_hash == hashed(hub)


def test_spelling_out_a_default_changes_nothing():
    plain = SAMPLES["qwen2, tied, late windows"]
    assert hashed(plain) == hashed(plain | {"head_dim": 16})
    assert hashed(plain) == hashed(plain | {"layer_types": ["full_attention", *["sliding_attention"] * 2]})
    gemma = HUB["gemma-3-4b-it"]["config"]
    spelled = copy.deepcopy(gemma)
    spelled["text_config"] |= {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
    assert hashed(gemma) == hashed(spelled)


def test_a_head_may_be_tied_in_the_nested_table_alone():
    config = copy.deepcopy(SAMPLES["internvl, small tower's norms"])
    assert "tie_word_embeddings" not in config
    for tied in (True, False):
        config["text_config"]["tie_word_embeddings"] = tied
        assert bool(Model.from_config(config, "x").module("lm_head").tied_to) is tied


def test_old_and_new_places_of_the_language_fields_are_the_same_model():
    old = HUB["Qwen2-VL-2B-Instruct"]["config"]
    own = {"architectures", "model_type", "vision_config", "vision_start_token_id", "tie_word_embeddings"}
    new = {k: old[k] for k in own}
    new["text_config"] = {k: v for k, v in old.items() if k not in own} | {"model_type": "qwen2_vl_text"}
    assert hashed(old) == hashed(new)
    old_names = Model.from_config(old, "x").modules
    assert old_names == Model.from_config(new, "x").modules


def test_a_phase_or_module_that_does_not_exist():
    model = read_model("qwen2.5-0.5b")
    with pytest.raises(NameUnknown, match=r"unknown phase 'verify'"):
        model.graph("verify")
    with pytest.raises(NameUnknown, match=r"did you mean 'model.layers.0.self_attn.q_proj'"):
        model.module("model.layers.0.self_attn.qproj")


def test_reading_loads_nothing_heavy():
    code = (
        "import sys; from dse.model import read_model, model_names; model_names(); read_model('qwen2.5-vl-3b');"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "pandas", "torch", "transformers", "sqlalchemy", "ray", "optuna"} & set(loaded)


def test_representation_is_short():
    assert re.fullmatch(r"<Model qwen2.5-0.5b: qwen2, 0.494 B parameters>", repr(read_model("qwen2.5-0.5b")))
