"""The catalogue's files: sources, names, and that adding one is adding a file."""

import tomllib
from importlib import resources

import pytest

from dse.model import model_names, read_model
from dse.units import carries_unit

FILES = {f.name.removesuffix(".toml"): f for f in (resources.files("dse") / "catalog" / "models").iterdir()}
DOCUMENTS = {name: tomllib.loads(f.read_text(encoding="utf-8")) for name, f in FILES.items()}

REFERENCE = {
    "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "qwen3-8b", "qwen2.5-coder-32b", "starcoder2-15b",
    "mixtral-8x7b", "mixtral-8x22b", "qwen3-vl-235b-a22b", "qwen3-vl-8b", "llama-4-scout-17b-16e",
    "llama-4-maverick-17b-128e", "deepseek-v3", "deepseek-v2", "deepseek-v2-lite", "llava-1.5-7b", "llava-1.5-13b",
    "qwen2-vl-7b", "qwen2-vl-72b", "qwen2.5-vl-3b", "qwen2.5-vl-7b", "qwen2.5-vl-72b", "internvl3-78b",
    "llama-3.2-11b-vision", "llama-3.2-90b-vision", "paligemma-3b-224", "gemma-3-4b", "smolvlm-2.2b", "smolvlm-256m",
    "whisper-large-v3", "qwen2-audio-7b",
}  # fmt: skip


def test_names_are_the_files():
    assert model_names() == sorted(FILES)
    assert set(model_names()) >= REFERENCE


@pytest.mark.parametrize("name", FILES)
def test_every_file_reads_and_names_its_source(name):
    model, document = read_model(name), DOCUMENTS[name]
    assert model.name == name
    assert model.max_context
    assert document["source"]["config"]
    assert all(isinstance(text, str) and text for text in document["source"].values())
    assert all(carries_unit(key) for key in document.get("published", {}))
    assert ("published" in document) <= ("published" in document["source"])


@pytest.mark.parametrize("name", FILES)
def test_every_stated_field_is_one_that_the_reader_asks_for(name):
    model = read_model(name)
    asked = {path.rpartition(".")[2] for path in model.facts} | {"model_type", "max_image_size"}
    stated = set(_leaves(DOCUMENTS[name]["config"])) | set(_leaves(DOCUMENTS[name].get("preprocessor", {})))
    # Sizes of dense blocks that no block of this model has; pixel limits, which are noted under one spelling.
    spare = {"intermediate_size", "intermediate_size_mlp", "shortest_edge", "longest_edge"}
    assert stated - asked - spare == set()


def _leaves(table):
    for key, value in table.items():
        yield from _leaves(value) if isinstance(value, dict) else [key]


def test_aliases_are_unique_and_no_names():
    aliases = [alias.lower() for d in DOCUMENTS.values() for alias in d.get("aliases", [])]
    assert len(set(aliases)) == len(aliases)
    assert not set(aliases) & set(FILES)
    for name, document in DOCUMENTS.items():
        for alias in document.get("aliases", []):
            assert read_model(alias).name == name


def test_modalities():
    assert read_model("qwen2.5-vl-3b").modalities == ("text", "image")
    assert read_model("qwen2-audio-7b").modalities == ("text", "audio")
    assert read_model("mixtral-8x7b").modalities == ("text",)
