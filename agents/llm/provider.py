"""What a language model is asked and what comes back, whoever answers.

A provider answers a request with a :class:`Reply` and never raises: whatever goes wrong is an outcome. The one that
speaks to an endpoint is in :mod:`agents.llm.client`; here are those that need no network:

    Replay     answers from recorded calls, by the hash of the prompt
    Scripted   answers by a function
    random     a scripted one: well-formed proposals drawn at random from what the schema allows
    prose      a scripted one: friendly words, no JSON
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final, Protocol

from dse.calls import Call

# Of ASCII text every match is a token; a single blank is part of what follows it.
_TOKEN: Final = re.compile(r"[A-Za-z]{1,4}|[^A-Za-z\s]|\s{2,}|[^\S ]")
_TOKENS_PER_MESSAGE: Final = 8  # role and separators


def count_tokens(text: str) -> int:
    """Return how many tokens a text has at most, for tokenisers as they are in use.

    Byte-pair vocabularies have single tokens for frequent words, and at least one for four letters of others, save
    rare letter sequences; digits and signs are taken as one each, letters beyond ASCII as their bytes, blanks as part
    of what follows them. It is an estimate meant to be on the safe side; what the server counted is kept beside it
    with each call.
    """
    if text.isascii():
        return len(_TOKEN.findall(text))
    return sum(1 if piece.isascii() else len(piece.encode()) for piece in _TOKEN.findall(text))


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        role: "probe", "proposer", "repair", "analyst", "critic" or "exam".
        messages: (role, text) of each message: "system", "user" or "assistant".
        name: of the schema.
        schema: JSON schema of the answer, within what strict structured output takes.
        max_output_tokens: the answer's limit.
    """

    role: str
    messages: tuple[tuple[str, str], ...]
    name: str
    schema: Mapping[str, Any]
    max_output_tokens: int

    @cached_property
    def prompt_hash(self) -> str:
        """Hash of messages and schema."""
        document = json.dumps([self.messages, self.schema], sort_keys=True, ensure_ascii=True)
        return blake2b(document.encode(), digest_size=16).hexdigest()

    @cached_property
    def n_tokens(self) -> int:
        """Tokens of the prompt at most, schema included."""
        texts = [text for _, text in self.messages] + [json.dumps(self.schema)]
        return sum(count_tokens(text) + _TOKENS_PER_MESSAGE for text in texts)


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        outcome: a key of :data:`dse.calls.OUTCOMES`.
        text: the answer's text, bounded, "" where there is none.
        detail: why, in words; never a key.
        n_prompt_tokens, n_output_tokens: as the server told, -1 where it did not.
        n_tries: requests sent.
        parameters: how it was asked (API, form, ...), JSON types.
    """

    outcome: str
    text: str = ""
    detail: str = ""
    n_prompt_tokens: int = -1
    n_output_tokens: int = -1
    n_tries: int = 1
    parameters: Mapping[str, Any] | None = None


class Provider(Protocol):
    """Who answers.

    Attributes:
        name: "openai", "replay" or "scripted".
        model: model's name.
        where: host as it may be shown, "" without a network.
        is_paid: whether answers may cost money.
    """

    name: str
    model: str
    where: str
    is_paid: bool

    def ask(self, request: Request, deadline_s: float) -> Reply:
        """Return the answer, or what went wrong, after all tries within the deadline; never raises."""
        ...

    def close(self) -> None:
        """Give up what is under way; safe to call twice."""
        ...


class Scripted:
    """Answers by a function of the request.

    Args:
        answer: gives the reply, or the text of one.
        model: a name to show.
    """

    name, where, is_paid = "scripted", "", False

    def __init__(self, answer: Callable[[Request], Reply | str], model: str = "scripted") -> None:
        self._answer, self.model = answer, model

    def ask(self, request: Request, deadline_s: float) -> Reply:
        """Return what the function says; tokens as they are estimated."""
        del deadline_s
        reply = self._answer(request)
        if isinstance(reply, Reply):
            return reply
        return Reply("ok", reply, "", request.n_tokens, count_tokens(reply))

    def close(self) -> None:
        """Nothing to give up."""


class Replay:
    """Answers from recorded calls; a prompt that was sent several times gets its answers in their order.

    Args:
        calls: the record.
    """

    name, where, is_paid = "replay", "", False

    def __init__(self, calls: Iterable[Call]) -> None:
        self._answers: dict[str, list[Call]] = {}
        model = "replay"
        for call in calls:
            if call.outcome not in ("sent", "lost", "abandoned"):
                self._answers.setdefault(call.prompt_hash, []).append(call)
                model = call.model
        self.model = model

    def ask(self, request: Request, deadline_s: float) -> Reply:
        """Return the recorded answer, "unrecorded" where there is none."""
        del deadline_s
        left = self._answers.get(request.prompt_hash)
        if not left:
            return Reply("unrecorded", detail=f"no call with prompt {request.prompt_hash} is on record", n_tries=0)
        call = left.pop(0) if len(left) > 1 else left[0]
        outcome = "ok" if call.answer and call.outcome == "invalid" else call.outcome  # judged anew
        return Reply(outcome, call.answer, call.detail, call.n_prompt_tokens, call.n_output_tokens, call.n_tries)

    def close(self) -> None:
        """Nothing to give up."""


# ---------------------------------------------------------------------------------------------- scripted by name


def _prose(_request: Request) -> str:
    return "What a fascinating design space! I would widen the memory first. Shall I explain how caches work?"


def _random(request: Request) -> str:
    """Return an answer that the schema allows, drawn from the prompt's hash."""
    return json.dumps(_draw(request.schema, random.Random(request.prompt_hash)))


def _draw(schema: Mapping[str, Any], rng: random.Random) -> Any:
    if "anyOf" in schema:
        return _draw(rng.choice(schema["anyOf"]), rng)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return {name: _draw(part, rng) for name, part in schema["properties"].items()}
    if kind == "array":
        return [_draw(schema["items"], rng) for _ in range(rng.randint(1, 4))]
    if kind == "number":
        return round(rng.uniform(0.5, 1.2), 2)
    return "*" if kind == "string" else kind == "boolean"


SCRIPTS: Final[dict[str, Callable[[Request], str]]] = {"random": _random, "prose": _prose}
