"""A small vision-language model that answers questions about two handwritten digits, and what a profiler needs of it.

The pictures are scikit-learn's 8 x 8 digits, two of them on a canvas of 16 x 16 at heights of their own. A question is
one of eight kinds ("both", "sum", "larger", ...), the answer one to four words and a full stop. The model is a LLaVA
(SigLIP tower, two-layer projector, Llama decoder) that transformers builds from a config, so that its checkpoint is a
Hugging Face folder and ``dse`` reads its description as it reads any other.

Digits are split before pictures are made of them: nothing that is measured was trained on.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn.functional import cross_entropy

KINDS: Final = ("left", "right", "both", "sum", "difference", "larger", "parity", "describe")
WORDS: Final = (
    "<pad>", "<image>", *(f"{kind}?" for kind in KINDS), *"0123456789",
    "left", "right", "same", "even", "odd", ".",
)  # fmt: skip
TOKEN: Final = {word: i for i, word in enumerate(WORDS)}
IMAGE_PX, PATCH_PX = 16, 4
N_VISUAL: Final = (IMAGE_PX // PATCH_PX) ** 2
ANSWER_TOKENS: Final = 5

# hidden features, MLP channels, blocks of the vision tower, blocks of the decoder, training steps
VARIANTS: Final = {"large": (64, 128, 3, 3, 2400), "small": (32, 64, 2, 2, 1200)}

Batch = dict[str, torch.Tensor]


# ---------------------------------------------------------------------------------------------- pictures and questions


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Return the digits, shape (1797, 8, 8), grey levels 0 to 1, and what they show, shape (1797,)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images.astype(np.float32) / 16.0, found.target


def split(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the digits of one part: "train" (1197), "profile" (300) or "test" (300)."""
    images, labels = digit_images()
    order = np.random.default_rng(0).permutation(len(images))
    start, stop = {"train": (600, None), "profile": (0, 300), "test": (300, 600)}[part]
    return images[order[start:stop]], labels[order[start:stop]]


def words_of(kind: str, left: int, right: int) -> list[str]:
    """Return the words of an answer, full stop included."""
    side = "same" if left == right else "left" if left > right else "right"
    words = {
        "left": [str(left)],
        "right": [str(right)],
        "both": [str(left), str(right)],
        "sum": list(f"{left + right:02d}"),
        "difference": [str(abs(left - right))],
        "larger": [side],
        "parity": ["odd" if (left + right) % 2 else "even"],
        "describe": ["left", str(left), "right", str(right)],
    }[kind]
    return [*words, "."]


ANSWERS: Final = np.array(
    [
        [
            [[TOKEN[w] for w in (*words_of(k, a, b), *["<pad>"] * 4)][:ANSWER_TOKENS] for b in range(10)]
            for a in range(10)
        ]
        for k in KINDS
    ]
)


def make_batch(part: tuple[np.ndarray, np.ndarray], n: int, rng: np.random.Generator) -> Batch:
    """Return ``n`` questions: pixels (n, 3, 16, 16) in -1..1, question (n,), answer (n, 5) padded with 0."""
    images, labels = part
    left, right = rng.integers(len(images), size=(2, n))
    canvas = np.zeros((n, IMAGE_PX, IMAGE_PX), dtype=np.float32)
    rows = np.arange(8)
    for column, which in ((0, left), (8, right)):
        top = rng.integers(IMAGE_PX - 8 + 1, size=n)
        at = (np.arange(n)[:, None, None], (top[:, None] + rows)[:, :, None], (column + rows)[None, None, :])
        canvas[at] = images[which]
    kind = rng.integers(len(KINDS), size=n)
    pixels = np.repeat(2.0 * canvas[:, None] - 1.0, 3, axis=1)
    return {
        "pixels": torch.from_numpy(pixels),
        "question": torch.from_numpy(TOKEN["left?"] + kind),
        "answer": torch.from_numpy(ANSWERS[kind, labels[left], labels[right]]),
    }


# ---------------------------------------------------------------------------------------------- the model


def config(variant: str) -> Any:
    """Return the LLaVA config of a variant."""
    from transformers import LlamaConfig, LlavaConfig, SiglipVisionConfig

    hidden, ffn, n_vision, n_text, _ = VARIANTS[variant]
    vision = SiglipVisionConfig(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=n_vision, num_attention_heads=4,
        image_size=IMAGE_PX, patch_size=PATCH_PX, vision_use_head=False,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=n_text, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=len(WORDS), max_position_embeddings=64, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=TOKEN["."], pad_token_id=TOKEN["<pad>"],
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=TOKEN["<image>"], image_seq_length=N_VISUAL,
        vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=False,
    )  # fmt: skip


def train(folder: Path, variant: str = "large", seed: int = 0, steps: int | None = None) -> Path:
    """Train a variant and keep it in ``folder`` as config.json and model.safetensors; nothing to do if it is there."""
    if (folder / "model.safetensors").is_file():
        return folder
    from transformers import LlavaForConditionalGeneration

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = LlavaForConditionalGeneration(config(variant))
    for block in net.modules():
        if isinstance(block, torch.nn.Linear | torch.nn.Conv2d):
            torch.nn.init.normal_(block.weight, std=block.weight[0].numel() ** -0.5)
    steps = steps or VARIANTS[variant][-1]
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps, pct_start=0.1)
    part = split("train")
    net.train()
    began = time.process_time()
    for step in range(steps):
        batch = make_batch(part, 128, rng)
        logits, mask = forward(net, batch)
        loss = cross_entropy(logits[mask], batch["answer"][mask])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 200 == 0:
            print(
                f"{variant} seed {seed}: step {step}, loss {loss.item():.3f}, {time.process_time() - began:.0f} CPU s"
            )
    net.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------------------------- what the profiler asks


def forward(
    net: Any, batch: Batch, visual_token_keep: float = 1.0, token_stride: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the answer's words, shape (n, 5, words), and which of them count.

    Args:
        net: the model.
        batch: questions.
        visual_token_keep: part of the visual tokens kept, evenly spaced.
        token_stride: side of the squares of visual tokens that are averaged.
    """
    return answer_logits(net, seen(net, batch, visual_token_keep, token_stride), batch)


def seen(net: Any, batch: Batch, visual_token_keep: float, token_stride: int) -> torch.Tensor:
    """Return the visual tokens that the decoder reads, shape (n, tokens, width)."""
    core = net.model
    tower = core.vision_tower
    # The features of LLaVA are those in front of the tower's last norm.
    features = tower.encoder(inputs_embeds=tower.embeddings(batch["pixels"])).last_hidden_state
    return fewer(core.multi_modal_projector(features), visual_token_keep, token_stride)


def fewer(visual: torch.Tensor, visual_token_keep: float, token_stride: int) -> torch.Tensor:
    """Return visual tokens, averaged over squares of the picture and thinned at equal steps, shape (n, fewer, width).

    Args:
        visual: tokens of a square picture, row by row, shape (n, tokens, width).
        visual_token_keep: part kept, rounded up.
        token_stride: side of the squares; those at the edge may be smaller.
    """
    n, n_tokens, width = visual.shape
    if token_stride > 1:
        side = math.isqrt(n_tokens)
        squares = visual.transpose(1, 2).reshape(n, width, side, side)
        pooled = torch.nn.functional.avg_pool2d(squares, token_stride, ceil_mode=True)
        visual = pooled.flatten(2).transpose(1, 2)
    kept = math.ceil(visual_token_keep * visual.shape[1])
    return visual[:, torch.linspace(0, visual.shape[1] - 1, kept).round().long()]


def answer_logits(net: Any, visual: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the answers' words after some visual tokens, and which of them count."""
    words = torch.cat([batch["question"][:, None], batch["answer"][:, :-1]], dim=1)
    text = net.model.language_model.embed_tokens(words)
    hidden = net.model.language_model(inputs_embeds=torch.cat([visual, text], dim=1), use_cache=False)
    logits = net.lm_head(hidden.last_hidden_state[:, visual.shape[1] :])
    return logits, batch["answer"] != TOKEN["<pad>"]


METRIC: Final = "exact match"
_BATCH: Final = 96


def samples() -> list[Batch]:
    """Return the questions that single choices are measured on."""
    rng = np.random.default_rng(1)
    return [make_batch(split("profile"), _BATCH, rng) for _ in range(5)]


def test_samples() -> list[Batch]:
    """Return questions about other digits, for whole configurations."""
    rng = np.random.default_rng(2)
    return [make_batch(split("test"), _BATCH, rng) for _ in range(16)]


def log_samples() -> list[Batch]:
    """Return the questions that cascades are logged on: more, about the digits of single choices."""
    rng = np.random.default_rng(3)
    return [make_batch(split("profile"), _BATCH, rng) for _ in range(16)]


def evaluate(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return 1 for each answer of which all words are right, given those before; else 0."""
    ignored = batch["answer"] == TOKEN["<pad>"]
    return ((logits.argmax(-1) == batch["answer"]) | ignored).all(1).double()


def answer(
    net: Any, batch: Batch, visual_token_keep: float = 1.0, token_stride: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how sure the model is of what it says on its own, and whether that is right, shape (n,) both.

    The confidence is the chance that it gives to its answer: the product over the words up to the full stop.
    """
    visual = seen(net, batch, visual_token_keep, token_stride)
    said = torch.zeros_like(batch["answer"])
    sure, ended = torch.ones(len(said)), torch.zeros(len(said), dtype=torch.bool)
    for place in range(ANSWER_TOKENS):
        logits, _ = answer_logits(net, visual, {**batch, "answer": said})
        chance, word = logits[:, place].softmax(-1).max(-1)
        said[:, place] = torch.where(ended, 0, word)
        sure = torch.where(ended, sure, sure * chance)
        ended |= word == TOKEN["."]
    return sure, (said == batch["answer"]).all(1).double()
