"""What is known about how requests are decoded and routed: acceptance of drafters, answers of cascade stages, the host.

The choices themselves are knobs (``draft``, ``draft_tokens``, ``cascade``, ``threshold``, ``self_tests``,
``prefill_chunk``); a policy holds the data that they are judged by. Roles: ``target`` answers last; ``stage1``,
``stage2``, ... may be asked before it; ``draft...`` guess tokens for others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dse.acceptance import Acceptance
from dse.canonical import content_hash
from dse.cascades import CascadeProfile, CascadeTable, cascade_from_json
from dse.errors import SpaceError, UserError, unknown

if TYPE_CHECKING:
    from dse.model import Model
    from dse.params import Value

NONE: Final = "none"
NGRAM: Final = "ngram"
VOCABULARY_SLACK: Final = 128
"""Rows by which two tables of one tokeniser may differ: padding to other multiples (as llama.cpp and vLLM allow)."""


@dataclass(frozen=True)
class Host:
    """Time that the host takes to start a pass, where it does not replay a recorded one.

    A pass takes the longer of its host time and its device time: the host runs ahead.

    Attributes:
        pass_s: per pass.
        block_s: per block of the decoder.
        step_s: per speculative step beside its passes: laying out a tree, comparing tokens, moving the cache.
    """

    pass_s: float = 0.0
    block_s: float = 0.0
    step_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("pass_s", "block_s", "step_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise UserError(f"host: {name}={value!r} is not a time in seconds")


EAGER: Final = Host(pass_s=1e-3, block_s=5e-5, step_s=1.5e-3)
"""An eager PyTorch loop (A100, 64 cores): the three constants are fitted to the speed-ups that
Spec-Bench (hemingkx/Spec-Bench Leaderboard.md) has for Vicuna-7B on an A100, five methods; held-out rows in
docs/policy.md."""


@dataclass(frozen=True)
class Policy:
    """Data behind the policy knobs.

    Attributes:
        acceptance: drafter -> acceptance: a rate, an :class:`~dse.acceptance.Acceptance`, or the path of a log. The
            drafter is "ngram" or a role; "stage1/draft" is for that stage alone. What is missing is a published prior,
            wide.
        cascade: what the stages answer: a table, a profile, or the path of a log.
        test_tokens: tokens that a stage generates per self-test, running it included.
        host: time of the host.
    """

    acceptance: Mapping[str, Acceptance | float | str | Path] = field(default_factory=dict)
    cascade: CascadeTable | CascadeProfile | str | Path | None = None
    test_tokens: int = 64
    host: Host = field(default_factory=Host)

    def __post_init__(self) -> None:
        read = {name: Acceptance.read(given) for name, given in sorted(self.acceptance.items())}
        object.__setattr__(self, "acceptance", read)
        if isinstance(self.cascade, str | Path):
            object.__setattr__(self, "cascade", CascadeTable.of_log(self.cascade))
        tokens = self.test_tokens
        if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= 1_000_000:
            raise UserError(f"policy: test_tokens={tokens!r} is not a whole number of 1 or more")

    def accepted(self, role: str, drafter: str) -> Acceptance | None:
        """Return what is known of a drafter's guesses for a role."""
        return self.rates.get(f"{role}/{drafter}") or self.rates.get(drafter)

    @property
    def rates(self) -> dict[str, Acceptance]:
        """The acceptance of each drafter, read."""
        return {name: Acceptance.read(one) for name, one in self.acceptance.items()}

    @property
    def answers(self) -> CascadeTable | CascadeProfile | None:
        """What the stages answer, read."""
        assert not isinstance(self.cascade, str | Path), "read when made"
        return self.cascade

    @cached_property
    def content_hash(self) -> str:
        """Hash of its content."""
        return content_hash(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types, logs included."""
        return {
            "acceptance": {name: one.to_json() for name, one in self.rates.items()},
            "cascade": None if self.answers is None else self.answers.to_json(),
            "test_tokens": self.test_tokens,
            "host": {"pass_s": self.host.pass_s, "block_s": self.host.block_s, "step_s": self.host.step_s},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Policy:
        """Return the policy that :meth:`to_json` described."""
        cascade = document.get("cascade")
        return cls(
            {name: Acceptance.from_json(one) for name, one in document.get("acceptance", {}).items()},
            None if cascade is None else cascade_from_json(cascade),
            document.get("test_tokens", 64),
            Host(**document.get("host", {})),
        )


def is_stage(role: str) -> bool:
    """Whether a role is asked before the target."""
    return role.startswith("stage") and role[5:].isdigit()


def answering(roles: Sequence[str]) -> list[str]:
    """Return the roles that answer, in the order in which they are asked."""
    stages = sorted((r for r in roles if is_stage(r)), key=lambda r: int(r[5:]))
    return [*stages, "target"]


def cascades(roles: Sequence[str]) -> list[str]:
    """Return the values of the knob ``cascade``: every choice of answering roles, joined by "+"."""
    named = answering(roles)
    return ["+".join(c) for n in range(1, len(named) + 1) for c in combinations(named, n)]


def share_vocabulary(one: Model, other: Model) -> bool:
    """Whether two models may have one tokeniser, as far as the sizes of their token tables tell."""
    return abs(one.vocab_size - other.vocab_size) <= VOCABULARY_SLACK


def check_roles(models: Mapping[str, Model], policy: Policy) -> None:
    """Check the roles and the data of a policy against each other.

    Raises:
        UserError: a drafter whose vocabulary is nobody's, a stage that nothing is known of, a name that is no role.
    """
    named = answering(list(models))
    for role, model in models.items():
        if role in named or any(share_vocabulary(model, models[r]) for r in named):
            continue
        raise UserError(
            f"{model.name} in the role {role!r} has a vocabulary of {model.vocab_size}, "
            f"{models['target'].name} one of {models['target'].vocab_size}: it cannot guess its tokens",
            "use a drafter of the same family",
        )
    for name in policy.acceptance:
        drafter = name.rpartition("/")[2]
        if drafter != NGRAM and drafter not in models:
            raise unknown("drafter in policy.acceptance", drafter, [NGRAM, *models])
    answers = policy.answers
    if answers is not None:
        stages = list(answers.stages)
        for stage in stages:
            if stage not in named:
                raise unknown("stage in policy.cascade", stage, named)
        if [s for s in named if s in stages] != stages:
            raise UserError(f"policy.cascade has stages {stages}, they are asked in the order {named}")
    if len(named) > 1:
        missing = named if answers is None else [r for r in named if r not in answers.stages]
        if missing:
            raise UserError(
                f"nothing says how well {' and '.join(missing)} answer",
                "give policy=Policy(cascade=...): a log, or a CascadeProfile",
            )


def check_choice(knob: str, roles: Sequence[str], value: Value, models: Mapping[str, Model], where: str) -> None:
    """Check a value of ``cascade``, or of ``draft`` for answering roles.

    Raises:
        NameUnknown: no such cascade or drafter.
        SpaceError: a drafter of another vocabulary, or a model that would guess for itself.
    """
    if knob == "cascade" and value not in cascades(list(models)):
        raise unknown(f"cascade in {where}:", str(value), cascades(list(models)))
    if knob != "draft" or value in (NONE, NGRAM):
        return
    if value not in models:
        raise unknown(f"drafter in {where}:", str(value), [NONE, NGRAM, *models])
    for role in roles:
        if role == value:
            raise SpaceError(f"{where}: {role} cannot guess for itself")
        if not share_vocabulary(models[role], models[str(value)]):
            raise SpaceError(
                f"{where}: {value} has a vocabulary of {models[str(value)].vocab_size}, "
                f"{role} one of {models[role].vocab_size}",
                "use a drafter of the same family, or give each stage its own choice (stage1/draft=...)",
            )
