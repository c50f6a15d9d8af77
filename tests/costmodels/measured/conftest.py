"""A language model of two blocks with random weights, as a checkpoint, and a user's file about it."""

from __future__ import annotations

import pytest

USER_FILE = """
import torch

METRIC = "next token"


def samples():
    return list(torch.randint(50, (24, 9), generator=torch.Generator().manual_seed(1)).split(8))


def test_samples():
    return list(torch.randint(50, (16, 9), generator=torch.Generator().manual_seed(2)).split(8))


def forward(model, batch):
    return model(input_ids=batch, use_cache=False).logits


def evaluate(logits, batch):
    return (logits.argmax(-1)[:, -1] % 2 == 0).double()
"""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a Llama with grouped queries: 4 query heads of 8 features, 2 key-value heads, 48 MLP channels."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=50, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    net = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.dim() > 1:
                weight.normal_(std=weight.shape[1] ** -0.5)
    folder = tmp_path_factory.mktemp("llama")
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def user_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(USER_FILE)
    return path
