"""Reading what an endpoint sends back: any JSON document becomes a reply.

Both APIs are read by hand, key by key: a local server may leave out or misspell anything, and the usage that was paid
for is booked before the answer is judged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from agents.llm.provider import Reply, Request

ANSWER_LENGTH: Final = 65_536  # characters of an answer that are kept and read
_MOST_TOKENS: Final = 100_000_000
_KEY_LIKE: Final = re.compile(r"(?:sk|pk|rk)-[A-Za-z0-9_*.-]{6,}|Bearer\s+\S+")

MODES: Final = ("json_schema", "json_object", "prompt")
APIS: Final = ("chat", "responses")


def body_of(request: Request, model: str, api: str, mode: str, limit_name: str) -> dict[str, Any]:
    """Return the arguments of the SDK's ``create``.

    Args:
        request: what is asked.
        model: model's name.
        api: one of :data:`APIS`.
        mode: one of :data:`MODES`; without a schema of the server's own, the prompt tells it.
        limit_name: what chat completions call the limit of the answer.
    """
    messages = [{"role": role, "content": text} for role, text in request.messages]
    if mode != "json_schema":
        messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n\n{_told(request)}"}
    schema = {"name": request.name, "schema": dict(request.schema), "strict": True}
    if api == "responses":
        forms = {"json_schema": {"type": "json_schema", **schema}, "json_object": {"type": "json_object"}}
        body: dict[str, Any] = {"model": model, "input": messages, "max_output_tokens": request.max_output_tokens}
        return body | {"store": False} | ({"text": {"format": forms[mode]}} if mode in forms else {})
    forms = {"json_schema": {"type": "json_schema", "json_schema": schema}, "json_object": {"type": "json_object"}}
    body = {"model": model, "messages": messages, limit_name: request.max_output_tokens}
    return body | ({"response_format": forms[mode]} if mode in forms else {})


def _told(request: Request) -> str:
    import json

    return (
        "Answer with one JSON object and nothing else. It has to follow this JSON schema:\n"
        f"{json.dumps(request.schema, separators=(',', ':'))}"
    )


def read(document: Any, api: str) -> Reply:
    """Return the reply that a decoded JSON body is, for either API."""
    if not isinstance(document, Mapping):
        return Reply("invalid", detail=f"the body is a JSON {type(document).__name__}, not an object")
    usage = document.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    names = ("prompt_tokens", "completion_tokens") if api == "chat" else ("input_tokens", "output_tokens")
    n_prompt, n_output = (_tokens(usage.get(name)) for name in names)
    outcome, text, detail = (_chat if api == "chat" else _responses)(document)
    return Reply(outcome, text[:ANSWER_LENGTH], detail, n_prompt, n_output)


def _tokens(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_TOKENS else -1


def _chat(document: Mapping[str, Any]) -> tuple[str, str, str]:
    choices = document.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        return "invalid", "", "the answer has no choices"
    choice = choices[0]
    message = choice.get("message")
    message = message if isinstance(message, Mapping) else {}
    text, refusal = _text(message.get("content")), message.get("refusal")
    if isinstance(refusal, str) and refusal:
        return "refusal", text or refusal, "the model declined"
    finish = choice.get("finish_reason")
    if finish == "content_filter":
        return "refusal", text, "the server's content filter ended the answer"
    return _ended(text, finish == "length")


def _responses(document: Mapping[str, Any]) -> tuple[str, str, str]:
    parts: list[str] = []
    output = document.get("output")
    for item in output if isinstance(output, list) else []:
        content = item.get("content") if isinstance(item, Mapping) and item.get("type") == "message" else None
        for part in content if isinstance(content, list) else []:
            if not isinstance(part, Mapping):
                continue
            if part.get("type") == "refusal":
                return "refusal", _text(part.get("refusal")), "the model declined"
            parts.append(_text(part.get("text")))
    text, status = "".join(parts), document.get("status")
    why = document.get("incomplete_details")
    if status == "incomplete":
        if isinstance(why, Mapping) and why.get("reason") == "content_filter":
            return "refusal", text, "the server's content filter ended the answer"
        return _ended(text, is_cut=True)
    if status not in ("completed", None):
        return "unavailable", text, f"the answer's status is {plain(status, 40)}"
    return _ended(text, is_cut=False)


def _ended(text: str, is_cut: bool) -> tuple[str, str, str]:
    if is_cut:
        return "truncated", text, "the answer reached its token limit; raise output_tokens"
    if not text.strip():
        return "invalid", text, "the answer is empty"
    return "ok", text, ""


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def plain(value: Any, length: int) -> str:
    """Return any value as one bounded line of printable text."""
    text = "".join(c if c.isprintable() else " " for c in str(value)[: 4 * length])
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def redacted(text: str, *secrets: str) -> str:
    """Return text without the given secrets, and without what looks like a key."""
    for secret in secrets:
        if len(secret) >= 4:
            text = text.replace(secret, "[key]")
    return _KEY_LIKE.sub("[key]", text)
