"""A problem: which models in which roles, for what requests, on what hardware: what a cost model is prepared for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from dse.canonical import content_hash
from dse.errors import UserError
from dse.hardware import Accelerator, Device, Hardware, read_hardware
from dse.model import Model
from dse.params import Value
from dse.policy import Policy, check_roles, is_stage
from dse.profile import QualityProfile
from dse.scenario import Scenario

TARGET: Final = "target"
PARALLEL: Final = ("n_devices", "tensor_parallel", "pipeline_parallel", "expert_parallel")


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How weights below 16 bits are stored: groups along the input features share a scale and a zero point.

    Attributes:
        group_size: weights per group.
        scale_bits: bits of a group's scale.
        zero_points: whether each group also stores a zero point, as wide as its weights.
    """

    group_size: int = 128
    scale_bits: int = 16
    zero_points: bool = True

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.scale_bits < 0:
            raise UserError(f"weight format: group_size={self.group_size}, scale_bits={self.scale_bits} cannot be")


@dataclass(frozen=True)
class Problem:
    """What designs are evaluated for.

    Attributes:
        models: role -> model. The role "target" is always there; further stages and drafters are roles beside it.
        scenario: the request.
        hardware: device or accelerator template.
        weight_format: storage format of quantised weights.
        fusion: groups of operators that run fused, by name: (producer, consumer) patterns on the names of operators
            inside a block, as ("self_attn.q_proj", "self_attn.rope"). A name that starts with "decode/" (or another
            phase) holds in that phase alone.
        policy: what is known of drafters and stages; None for designs without a choice of either.
        quality: role -> quality profile of its model, where there is one. Evidence, no part of what designs mean.
    """

    models: Mapping[str, Model]
    scenario: Scenario
    hardware: Hardware
    weight_format: WeightFormat = field(default_factory=WeightFormat)
    fusion: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    policy: Policy | None = None
    quality: Mapping[str, QualityProfile] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if TARGET not in self.models:
            raise UserError(f"a problem needs a model in the role {TARGET!r}, not only {sorted(self.models)}")
        # One order, whatever the order they were written in: the columns of designs follow it.
        roles = sorted(self.models, key=lambda role: (role != TARGET, role))
        object.__setattr__(self, "models", {role: self.models[role] for role in roles})
        object.__setattr__(self, "fusion", _read_fusion(self.fusion))
        for role, profile in self.quality.items():
            if role not in self.models:
                raise UserError(f"quality: a profile for the role {role!r}", f"the roles are {', '.join(self.models)}")
            profile.check_model(self.models[role])
        target, scenario = self.models[TARGET], self.scenario
        if not (scenario.prompt_tokens or scenario.images or scenario.audio_s):
            raise UserError("the request is empty: no prompt, no image, no sound", "use prompt_tokens >= 1")
        if self.policy is not None:
            check_roles(self.models, self.policy)
        for role in filter(is_stage, self.models):
            lacks = [
                what
                for what, has, asked in (
                    ("images", self.models[role].image_rule, scenario.images),
                    ("audio", self.models[role].audio_rule, scenario.audio_s),
                )
                if asked and has is None
            ]
            if lacks:
                raise UserError(f"{self.models[role].name} in the role {role!r} takes no {' and no '.join(lacks)}")
        if scenario.images and target.image_rule is None:
            raise UserError(f"{target.name} takes no images, but the scenario has {scenario.images}", "use images=0")
        if scenario.audio_s and target.audio_rule is None:
            raise UserError(f"{target.name} takes no audio, but the scenario has {scenario.audio_s} s", "use audio_s=0")

    @property
    def target(self) -> Model:
        """The model in the role "target"."""
        return self.models[TARGET]

    @cached_property
    def content_hash(self) -> str:
        """Hash of everything that a design's meaning rests on: models, hardware and storage format."""
        return content_hash(
            {
                "models": {role: model.content_hash for role, model in self.models.items()},
                "hardware": self.hardware.content_hash,
                "weight_format": self._format_json(),
                **self._fusion_json(),
                **({} if self.policy is None else {"policy": self.policy.content_hash}),
            }
        )

    def bind(self, structural: Mapping[str, Value]) -> Problem:
        """Return the problem with the values of structural knobs put in place (another device, say)."""
        device = structural.get("device")
        if device is None or device == self.hardware.name:
            return self
        return replace(self, hardware=read_hardware(str(device)))

    def defaults(self) -> dict[str, Value]:
        """Return the reference value of every problem-wide knob that exists here."""
        values: dict[str, Value] = {"batch": self.scenario.batch, "cascade": TARGET, "prefill_chunk": 0}
        if isinstance(self.hardware, Accelerator):
            values |= self.hardware.reference
            if self.fusion:
                values["fuse_groups"] = True
        elif isinstance(self.hardware, Device):
            values |= {"device": self.hardware.name, **dict.fromkeys(PARALLEL, 1)}
        return values

    def to_json(self) -> dict[str, Any]:
        """Return the problem as JSON types, self-contained: catalogue files may change, a stored study does not."""
        return {
            "models": {role: model.to_json() for role, model in self.models.items()},
            "scenario": self.scenario.to_json(),
            "hardware": self.hardware.to_json(),
            "weight_format": self._format_json(),
            **self._fusion_json(),
            **({} if self.policy is None else {"policy": self.policy.to_json()}),
            **({"quality": {r: p.to_json() for r, p in self.quality.items()}} if self.quality else {}),
        }

    def _fusion_json(self) -> dict[str, Any]:
        return (
            {"fusion": {name: [list(e) for e in edges] for name, edges in self.fusion.items()}} if self.fusion else {}
        )

    def _format_json(self) -> dict[str, Any]:
        form = self.weight_format
        return {"group_size": form.group_size, "scale_bits": form.scale_bits, "zero_points": form.zero_points}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Problem:
        """Return the problem that :meth:`to_json` described."""
        return cls(
            models={role: Model.from_json(model) for role, model in document["models"].items()},
            scenario=Scenario.from_json(document["scenario"]),
            hardware=read_hardware(document["hardware"]),
            weight_format=WeightFormat(**document["weight_format"]),
            fusion=document.get("fusion", {}),
            policy=Policy.from_json(document["policy"]) if "policy" in document else None,
            quality={
                role: QualityProfile.from_json(lines, f"profile of {role}")
                for role, lines in document.get("quality", {}).items()
            },
        )


def _read_fusion(groups: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, tuple[tuple[str, str], ...]]:
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for name in sorted(groups):
        edges = groups[name]
        if isinstance(edges, str) or not all(
            not isinstance(e, str) and len(e) == 2 and all(isinstance(end, str) for end in e) for e in edges
        ):
            raise UserError(
                f"fusion group {name!r}: {edges!r} is no list of (producer, consumer) pairs",
                'write fusion={"name": [("self_attn.q_proj", "self_attn.rope")]}',
            )
        found[name] = tuple((e[0], e[1]) for e in edges)
    return found
