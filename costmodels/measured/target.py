"""What is measured: a model with samples, from a user's Python file, a checkpoint of transformers, or both.

The file is plain Python. It may define

    model() or model(weights)           the full model, a torch.nn.Module; if left out, ``weights`` is a checkpoint
    samples()                           batches to measure on, a list of anything that forward takes
    test_samples()                      other batches, for whole configurations; samples() again if left out
    log_samples()                       batches that cascades are logged on; samples() again if left out
    forward(model, batch)               the logits, shape (n, ..., classes), n samples; or a pair (logits, mask) with a
                                        boolean mask of shape (n, ...) of the outputs that count
    evaluate(logits, batch)             the task's score of each sample, shape (n,), more is better; left out, the share
                                        of outputs on which the compressed model agrees with the full one
    answer(model, batch)                what the model answers when it is asked, as a stage of a cascade: a confidence
                                        from 0 to 1 and a credit (right or wrong) of each sample, shape (n,) both
    METRIC, CHANCE                      name of that score, and what a model that knows nothing gets
    cache_modules(model)                {(component, block): (name of the module that gives keys, ... values)} where
                                        they cannot be recognised

``forward`` may take the knobs ``visual_token_keep``, ``token_stride`` and ``image_px`` by keyword: those that it names
are measured. Only ``samples`` and ``forward`` must be there, and with a text file beside a language model, not even
they: it is cut into windows of tokens, and the next token is to be told.

A file is code of the user's own, run as any script of theirs is; weights are read as safetensors, never unpickled.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch

from costmodels.measured.hashing import hash_of
from dse.errors import UserError

IMAGE_KNOBS: Final = ("visual_token_keep", "token_stride", "image_px")
AGREEMENT: Final = "agreement with the full model"
_WINDOW_TOKENS: Final = 128
_BATCH: Final = 8


@dataclass(frozen=True)
class Source:
    """Where a target comes from; enough to build it again elsewhere.

    Attributes:
        file: the user's Python file, "" for none.
        weights: checkpoint, a Hugging Face folder or whatever ``model(weights)`` takes; "" for none.
        text: file of plain text that a language model is measured on, "" for none.
    """

    file: str = ""
    weights: str = ""
    text: str = ""

    def hashes(self) -> dict[str, str]:
        """Return a hash of the content of each part that is there."""
        return {name: hash_of(Path(at)) for name, at in self.parts().items()}

    def parts(self) -> dict[str, str]:
        """Return the parts that are there, by name."""
        return {name: at for name in ("file", "weights", "text") if (at := getattr(self, name))}


class Target:
    """A model and its samples, loaded.

    Args:
        source: where they come from.

    Raises:
        UserError: a file, function or checkpoint that is missing or cannot be used.
    """

    def __init__(self, source: Source) -> None:
        for name, at in source.parts().items():
            if not Path(at).exists():
                raise UserError(f"there is no {name} {at!r}", "name a file or folder that exists")
        if not (source.file or source.weights):
            raise UserError(
                "nothing to measure", "name a Python file with model(), samples() and forward(model, batch)"
            )
        self.source = source
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._file: ModuleType | None = _load(Path(source.file)) if source.file else None
        needed = ["samples", "forward"] if not source.text else []
        needed += ["model"] if not source.weights else []
        lacking = [name for name in needed if self._function(name) is None]
        if lacking and self._file is not None:
            raise UserError(
                f"{source.file} lacks {' and '.join(f'{name}()' for name in lacking)}",
                "a file to be measured defines samples() and forward(model, batch), and model() unless --weights names "
                "a Hugging Face folder; see docs/profiling.md",
            )
        if lacking:
            raise UserError(
                f"{source.weights} comes without samples",
                "give a Python file with samples() and forward(model, batch), or for a language model --text FILE",
            )

    def _function(self, name: str) -> Callable[..., Any] | None:
        found = getattr(self._file, name, None)
        return found if callable(found) else None

    @cached_property
    def model(self) -> torch.nn.Module:
        """The full model, in evaluation mode, on the device."""
        make = self._function("model")
        if make is None:
            net = load_checkpoint(Path(self.source.weights))
        else:
            net = make(self.source.weights) if inspect.signature(make).parameters else make()
            if not isinstance(net, torch.nn.Module):
                raise UserError(f"model() of {self.source.file} gives a {type(net).__name__}, no torch.nn.Module")
        return net.eval().requires_grad_(False).to(self.device)

    @cached_property
    def samples(self) -> list[Any]:
        """The batches that single choices are measured on, on the device."""
        return self._batches("samples")

    @cached_property
    def test_samples(self) -> list[Any]:
        """The batches that whole configurations are measured on."""
        if self._function("test_samples") is not None or (self.source.text and self._function("samples") is None):
            return self._batches("test_samples")
        return self.samples

    @cached_property
    def log_samples(self) -> list[Any]:
        """The batches that cascades are logged on."""
        return self._batches("log_samples") if self._function("log_samples") is not None else self.samples

    @property
    def has_test_samples(self) -> bool:
        """Whether configurations are measured on samples of their own."""
        return self.test_samples is not self.samples

    def _batches(self, name: str) -> list[Any]:
        make = self._function(name)
        if make is None:
            found: Any = windows(Path(self.source.text), Path(self.source.weights), second=name == "test_samples")
        else:
            found = make()
        if not isinstance(found, Sequence) or isinstance(found, str | bytes) or not found:
            raise UserError(f"{name}() gives {type(found).__name__}, no list of batches", "return a list, one or more")
        return [_to(batch, self.device) for batch in found]

    @cached_property
    def image_knobs(self) -> tuple[str, ...]:
        """The knobs that the user's forward takes by keyword."""
        make = self._function("forward")
        taken = inspect.signature(make).parameters if make is not None else {}
        return tuple(name for name in IMAGE_KNOBS if name in taken)

    def forward(self, batch: Any, **knobs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (n, outputs, classes) in 32 bits, and which outputs count, boolean, shape (n, outputs)."""
        make = self._function("forward")
        found = make(self.model, batch, **knobs) if make is not None else _next_tokens(self.model, batch)
        logits, mask = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        if not isinstance(logits, torch.Tensor) or logits.dim() < 2:
            shape = f" of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else ""
            raise UserError(
                f"forward() gives a {type(logits).__name__}{shape}, no logits",
                "return a tensor (n samples, ..., classes), or a pair of it and a boolean mask (n, ...)",
            )
        if mask is None:
            mask = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
        if mask.shape != logits.shape[:-1]:
            raise UserError(
                f"forward() gives logits of shape {tuple(logits.shape)} with a mask of shape {tuple(mask.shape)}",
                "the mask has the shape of the logits without their last axis",
            )
        n, classes = logits.shape[0], logits.shape[-1]
        return logits.float().reshape(n, -1, classes), mask.reshape(n, -1)

    @property
    def metric_name(self) -> str:
        """What the score is called."""
        given = getattr(self._file, "METRIC", "score")
        return AGREEMENT if self._function("evaluate") is None else str(given)

    @property
    def chance(self) -> float:
        """The score of a model that knows nothing."""
        return float(getattr(self._file, "CHANCE", 0.0))

    @property
    def evaluates(self) -> bool:
        """Whether the user's file scores answers."""
        return self._function("evaluate") is not None

    def evaluate(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return the user's score of each sample, shape (n,), 64-bit; checked.

        Raises:
            UserError: another shape, or a score that is not a finite number.
        """
        make = self._function("evaluate")
        assert make is not None
        scores = torch.as_tensor(make(logits, batch)).double().cpu()
        if scores.shape != (len(logits),):
            raise UserError(
                f"evaluate() gives shape {tuple(scores.shape)} for {len(logits)} samples",
                "return one score per sample, shape (n,): their mean is the metric",
            )
        if not torch.isfinite(scores).all():
            row = int((~torch.isfinite(scores)).nonzero()[0])
            raise UserError(
                f"evaluate() gives {float(scores[row])} for sample {row} of a batch",
                "every sample has a finite score; leave out samples that have none",
            )
        return scores

    def answer(self, batch: Any, **knobs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the user's confidence and credit of each sample, shape (n,) both, 64-bit; checked.

        Raises:
            UserError: no ``answer`` in the file, or figures that are none from 0 to 1.
        """
        make = self._function("answer")
        if make is None:
            raise UserError(
                f"{self.source.file or 'no file'} does not say how a stage answers",
                "define answer(model, batch): confidences and credits of the samples, shape (n,) both",
            )
        score, credit = (torch.as_tensor(part).double().cpu() for part in make(self.model, batch, **knobs))
        for name, part in (("confidence", score), ("credit", credit)):
            if part.dim() != 1 or len(part) != len(score) or not bool(((part >= 0) & (part <= 1)).all()):
                raise UserError(f"answer() gives a {name} that is no number from 0 to 1 for each sample")
        return score, credit

    def cache_modules(self) -> dict[tuple[str, int], tuple[str, str]] | None:
        """Return the modules that give keys and values as the user names them, None if they do not."""
        make = self._function("cache_modules")
        return None if make is None else dict(make(self.model))


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"dse_target_{hash_of(path)}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{str(path)!r} is no Python file", "name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {error}", "correct the file") from error
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
    return module


def _to(value: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: _to(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_to(v, device) for v in value)
    return value


# ---------------------------------------------------------------------------------------------- transformers


def load_checkpoint(folder: Path) -> torch.nn.Module:
    """Return the model of a Hugging Face folder, its weights from safetensors.

    Raises:
        UserError: transformers is not installed; no config, no weights, or none that it can load.
    """
    try:
        import transformers
        from safetensors import SafetensorError
    except ImportError:
        raise UserError(
            "a checkpoint needs transformers, which is not installed", "pip install 'mfm-dse[torch]'"
        ) from None
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder} has no config.json", "name the folder of a Hugging Face checkpoint")
    if not list(folder.glob("*.safetensors")):
        others = sorted(p.name for p in [*folder.glob("*.bin"), *folder.glob("*.pt")])
        raise UserError(
            f"{folder} has a config but no weights"
            + (f" in safetensors, only {', '.join(others[:3])}" if others else ""),
            "download *.safetensors into it" if not others else "convert them: model.save_pretrained(folder)",
        )
    listed = json.loads(config.read_text(encoding="utf-8")).get("architectures") or []
    cls = next((getattr(transformers, name) for name in listed if hasattr(transformers, name)), None)
    if cls is None:
        raise UserError(
            f"{config}: architectures={listed} names no class of transformers {transformers.__version__}",
            "write model(weights) in a Python file of your own",
        )
    transformers.logging.disable_progress_bar()
    try:
        net, said = cls.from_pretrained(folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{folder} cannot be loaded: {error}", "check that config and weights belong together"
        ) from error
    if missing := sorted(said["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{folder} lacks weights: {', '.join(missing[:3])}{more}", "they would be random; complete the checkpoint"
        )
    model: torch.nn.Module = net
    return model


def windows(text: Path, folder: Path, *, second: bool) -> list[torch.Tensor]:
    """Return batches of windows of tokens of a text: even ones, or the odd ones as the second half."""
    from transformers import AutoTokenizer

    try:
        tokeniser = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} has no tokeniser that can be loaded: {error}", "copy it beside the weights"
        ) from error
    tokens = torch.tensor(tokeniser(text.read_text(encoding="utf-8"))["input_ids"])
    rows = tokens[: len(tokens) // _WINDOW_TOKENS * _WINDOW_TOKENS].reshape(-1, _WINDOW_TOKENS)[int(second) :: 2]
    if not len(rows):
        raise UserError(
            f"{text} has {len(tokens)} tokens", f"{2 * _WINDOW_TOKENS} are two windows; some hundred windows are good"
        )
    return list(rows.split(_BATCH))


def _next_tokens(net: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = net(input_ids=batch, use_cache=False).logits
    return logits[:, :-1]
