"""vLLM: the command and the YAML that serve a design (vllm serve MODEL --config vllm.yaml).

They say how it is served: parallelism, batch, context, prompt chunks, cache, images, drafter. Which weights are how
wide stands in the checkpoint (``dse export --to compressed-tensors``), so MODEL is the path of the compressed one. A
stage of a cascade has a server of its own (``--to vllm:stage1``); who is asked when stands in ``--to cascade-router``.

Drafters: as the design has them for this role, by the methods of vLLM's SpeculativeConfig ("ngram", "eagle", "medusa",
"draft_model"); a look-ahead that the design leaves open is the one that the cost model found, where it is known.
Prompt chunks: ``long-prefill-token-threshold``, which bounds what one pass takes of one prompt.

Experts: vLLM spreads them over all tensor- and data-parallel devices or over none. Cache: FP8 for one width of 8
bits. Images: processors of the Qwen2-VL kind bound the area, so the design's image becomes the pair of bounds under
which the request's image comes out at the design's size. The processor rounds in its own way: whether one area gives
that size is tried.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any, Final

import numpy as np

from dse.errors import UserError
from dse.export.design import slug
from dse.export.differences import beyond
from dse.export.kv import one_width
from dse.export.plain import comments, statement, yaml_text
from dse.export.weights.layers import model_in
from dse.hardware import Device
from dse.model import VisualLayout
from dse.model.families.heads import EAGLE, MEDUSA
from dse.model.images import SmartResize, resized
from dse.policy import NGRAM, NONE, answering
from dse.problem import PARALLEL, TARGET
from dse.protocols import Chosen, Exported

_METHODS: Final = {EAGLE: "eagle", MEDUSA: "medusa"}
_COVERS: Final = frozenset(
    {"device", "batch", *PARALLEL, "k_bits", "v_bits", "max_context", "image_px", "draft", "draft_tokens",
     "prefill_chunk",
     # The checkpoint has these.
     "weight_bits", "act_bits", "head_keep", "ffn_keep", "block_keep"}
)  # fmt: skip


class Vllm:
    """A shell script and a YAML file for ``vllm serve``.

    Args:
        role: the role of the model that is served; an option in the exporter's name ("vllm:stage1").
    """

    name = "vllm"
    help = "vllm serve command and YAML: parallelism, cache, images; the checkpoint brings its widths"

    def __init__(self, role: str = TARGET) -> None:
        self.role = role

    def export(self, chosen: Chosen) -> Exported:
        """Return both files, and what they do not say.

        Raises:
            UserError: the design runs on an accelerator to be designed, which vLLM cannot serve on; a role that
                answers nobody.
        """
        if not isinstance(chosen.problem.hardware, Device):
            raise UserError(
                f"{chosen.problem.hardware.name} is an accelerator to be designed: there is nothing to serve on",
                "choose a design on an existing device",
            )
        missing: list[str] = []
        hints: list[str] = []
        model = model_in(chosen, self.role)
        if self.role not in answering(list(chosen.problem.models)):
            raise UserError(f"{self.role} guesses tokens for others: nobody asks it", "serve the model it guesses for")
        if "cascade" in chosen.design and self.role not in str(chosen.design["cascade"][0]).split("+"):
            hints.append(f"the design's cascade is {chosen.design['cascade'][0]}: {self.role} is not asked")
        checkpoint = slug(model.name)
        arguments = {
            **_parallel(chosen, missing),
            **_sizes(chosen, self.role),
            **_cache(chosen, self.role, missing),
            **_images(chosen, self.role, missing),
            **_draft(chosen, self.role, missing, hints),
        }
        more, notes = beyond(chosen, _COVERS, self.role)
        missing += more
        notes = [f"{checkpoint}: put the path of the compressed checkpoint there", *hints, *notes]
        said = statement(chosen, self.name, missing, notes)
        words = ["vllm", "serve", checkpoint]
        lines = [" ".join(words), *(_option(key, value) for key, value in arguments.items())]
        command = "#!/bin/sh\n" + comments(said) + " \\\n  ".join(lines) + "\n"
        # Structured values as JSON text: what every version reads in its YAML.
        plain = {key: _json(value) if isinstance(value, dict) else value for key, value in arguments.items()}
        config = comments(said) + yaml_text({"model": checkpoint, **plain})
        files = {"vllm-serve.sh": command.encode(), "vllm.yaml": config.encode()}
        return Exported(files, missing, notes)


def _option(key: str, value: Any) -> str:
    if value is True:
        return f"--{key}"
    text = _json(value) if isinstance(value, dict) else str(value)
    return f"--{key} {shlex.quote(text)}"


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _parallel(chosen: Chosen, missing: list[str]) -> dict[str, Any]:
    devices, tensor, pipeline, expert = (int(chosen.design[name][0]) for name in PARALLEL)
    data = devices // (tensor * pipeline)
    found: dict[str, Any] = {"tensor-parallel-size": tensor, "pipeline-parallel-size": pipeline}
    if data > 1:
        found["data-parallel-size"] = data
    if devices != data * tensor * pipeline:
        missing.append(f"{devices} devices do not divide into {tensor} x {pipeline}: {data * tensor * pipeline} run")
    if expert == tensor * data and expert > 1:
        found["enable-expert-parallel"] = True
    elif expert > 1:
        missing.append(
            f"expert_parallel={expert}: vLLM spreads experts over all {tensor * data} devices of a stage or over none"
        )
    return found


def _sizes(chosen: Chosen, role: str) -> dict[str, Any]:
    devices, tensor, pipeline = (int(chosen.design[name][0]) for name in PARALLEL[:3])
    replicas = max(1, devices // (tensor * pipeline))
    found: dict[str, Any] = {"max-num-seqs": -(-int(chosen.design["batch"][0]) // replicas)}
    if "max_context" in chosen.design:
        context = int(chosen.design.of_role("max_context", role)[0])
        if context:
            found["max-model-len"] = context
    if "prefill_chunk" in chosen.design and int(chosen.design["prefill_chunk"][0]):
        found["long-prefill-token-threshold"] = int(chosen.design["prefill_chunk"][0])
    return found


def _cache(chosen: Chosen, role: str, missing: list[str]) -> dict[str, Any]:
    width, differs = one_width(chosen, role, (8,), "vLLM")
    missing += differs
    return {"kv-cache-dtype": "fp8"} if width < 16 else {}


def _images(chosen: Chosen, role: str, missing: list[str]) -> dict[str, Any]:
    rule, scenario = chosen.problem.models[role].image_rule, chosen.problem.scenario
    if rule is None:
        return {}
    found: dict[str, Any] = {"limit-mm-per-prompt": {"image": scenario.images}}
    if "image_px" not in chosen.design or not scenario.images:
        return found
    side = int(chosen.design.of_role("image_px", role)[0])
    width, height = scenario.image_px
    if not side or side == max(width, height):
        return found
    if not isinstance(rule, SmartResize):
        missing.append(f"image_px={side}: this model's processor takes no bound on the area of an image")
        return found
    wanted = rule.layout(*resized(height, width, side))
    least, most, got = _bounds(rule, (height, width), wanted)
    if (got.height_px, got.width_px) != (wanted.height_px, wanted.width_px):
        missing.append(
            f"image_px={side}: no bound on the area gives {wanted.width_px}x{wanted.height_px} pixels from "
            f"{width}x{height}, the nearest gives {got.width_px}x{got.height_px}"
        )
    return found | {"mm-processor-kwargs": {"min_pixels": least, "max_pixels": most}}


def _bounds(rule: SmartResize, size: tuple[int, int], wanted: VisualLayout) -> tuple[int, int, VisualLayout]:
    """Return bounds on the area under which an image of some size comes out as wanted, or nearest to it."""
    area, step = wanted.height_px * wanted.width_px, rule.patch_px * rule.merge
    edge = step * (wanted.height_px + wanted.width_px) + step * step
    grows = area > size[0] * size[1]
    tried = []
    for extra in range(0, edge, max(1, step * step // 4)):
        bound = area - extra if grows else area + extra
        least, most = (max(1, bound), max(rule.max_pixels, bound)) if grows else (min(rule.min_pixels, bound), bound)
        got = replace(rule, min_pixels=least, max_pixels=most).layout(*size)
        tried.append((abs(got.height_px * got.width_px - area), extra, least, most, got))
        if (got.height_px, got.width_px) == (wanted.height_px, wanted.width_px):
            return least, most, got
    _, _, least, most, got = min(tried, key=lambda t: t[:2])
    return least, most, got


def _draft(chosen: Chosen, role: str, missing: list[str], hints: list[str]) -> dict[str, Any]:
    """Return the drafter of a role, where the design has one."""
    if "draft" not in chosen.design or role not in {e.role for e in chosen.design.schema.fields["draft"].entries}:
        return {}
    drafter = str(chosen.design.of_role("draft", role)[0])
    if drafter == NONE:
        return {}
    config: dict[str, Any] = {"method": "ngram"}
    if drafter == NGRAM:
        hints.append("how long an n-gram has to match (prompt_lookup_min, prompt_lookup_max) is no part of a design")
    else:
        model = chosen.problem.models[drafter]
        config = {"method": _METHODS.get(model.model_type, "draft_model"), "model": slug(model.name)}
    n_tokens, is_known = look_ahead(chosen, role)
    if not is_known:
        missing.append(f"draft_tokens=0 of {role}: as many as pay; num_speculative_tokens is left to you")
    elif not n_tokens:
        hints.append(f"{drafter} does not pay for {role} at this batch: no drafter")
        return {}
    else:
        config["num_speculative_tokens"] = n_tokens
    policy = chosen.problem.policy
    known = policy.accepted(role, drafter) if policy else None
    if known is not None and known.nodes:
        missing.append(f"{drafter} guesses a tree of {known.nodes} tokens: vLLM guesses one chain")
    return {"speculative-config": config}


def look_ahead(chosen: Chosen, role: str) -> tuple[int, bool]:
    """Return the tokens that are guessed ahead of a role, and whether they are known.

    A look-ahead of 0 leaves the choice to the cost model, whose metric ``n_draft_tokens`` tells that of the role that
    answers last.
    """
    n_tokens = int(chosen.design.of_role("draft_tokens", role)[0])
    if n_tokens:
        return n_tokens, True
    last = str(chosen.design["cascade"][0]).rpartition("+")[2]
    found = chosen.metrics.values.get("n_draft_tokens")
    if role != last or found is None or not np.isfinite(found[0]):
        return 0, False
    return int(found[0]), True
