"""Any OpenAI-compatible endpoint, through the openai SDK; the only module that imports it, when first asked.

The SDK's own retries, redirects and parsing are off. One deadline covers all tries of a call; an answer is read in
pieces, to a bounded length and within the deadline, whatever the server sends and however slowly. What the server
takes (structured output by schema, as plain JSON object, or by prompt only; the name of the token limit) is found out
by the first answers and remembered. A key is sent to the endpoint and nowhere else: not into errors, logs or answers.
"""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from agents.llm.provider import Reply, Request
from agents.llm.wire import MODES, body_of, plain, read, redacted

MOST_BYTES: Final = 1_048_576
MOST_TRIES: Final = 5
_CONNECT_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.5
_PIECE_BYTES: Final = 16_384
_LIMITS: Final = ("max_completion_tokens", "max_tokens")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
HOME: Final = "https://api.openai.com/v1"


def is_installed() -> bool:
    """Return whether the SDK is there; nothing is imported."""
    return importlib.util.find_spec("openai") is not None


class _Ended(Exception):
    """An answer that is too long or comes too slowly."""


class Endpoint:
    """A model behind an OpenAI-compatible endpoint.

    Args:
        model: its name there.
        base_url: of the API, usually ending in "/v1".
        key: sent as a bearer token; "" for servers on this machine that ask for none.
        api: "chat" or "responses".
        mode: form of the answers, one of :data:`agents.llm.wire.MODES`; "auto" to find out.
    """

    name, is_paid = "openai", True

    def __init__(self, model: str, base_url: str, key: str, api: str = "chat", mode: str = "auto") -> None:
        self.model, self._base_url, self._key, self._api = model, base_url, key, api
        self.where = host_of(base_url)
        self.is_paid = not is_loopback(base_url)
        self._modes = list(MODES) if mode == "auto" else [mode]
        self._limits = list(_LIMITS if self.where == host_of(HOME) else _LIMITS[::-1])
        self._client: Any = None
        self._lock = threading.Lock()
        self._closing = threading.Event()

    @property
    def mode(self) -> str:
        """Form of the answers that it takes, as far as is known."""
        return self._modes[0]

    def ask(self, request: Request, deadline_s: float) -> Reply:
        """Return the answer, or what went wrong, after all tries within the deadline."""
        import openai  # noqa: F401  seconds, the first time; not the server's

        end = time.monotonic() + deadline_s
        n_tries, pause_s = 0, _FIRST_PAUSE_S
        reply = Reply("unavailable", detail=f"no answer within {deadline_s:g} s")
        while (left := end - time.monotonic()) > 0 and n_tries < MOST_TRIES and not self._closing.is_set():
            n_tries += 1
            mode, limit = self._modes[0], self._limits[0]
            reply, wait_s = self._try(request, left, deadline_s)
            reply = replace(reply, parameters={"api": self._api, "form": mode, limit: request.max_output_tokens})
            if wait_s is None:
                break
            wait_s = max(wait_s, 0.0) if wait_s >= 0 else pause_s
            pause_s *= 2
            if time.monotonic() + wait_s >= end:
                break
            self._closing.wait(wait_s)
        shown = redacted(reply.detail, self._key)
        return replace(reply, n_tries=n_tries, text=redacted(reply.text, self._key), detail=shown)

    def close(self) -> None:
        """Give up what is under way."""
        self._closing.set()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    # ------------------------------------------------------------------ one try

    def _try(self, request: Request, left_s: float, deadline_s: float) -> tuple[Reply, float | None]:
        """Return a reply, and after how long to try again: None for not at all, -1 for the usual pause."""
        import openai

        body = body_of(request, self.model, self._api, self._modes[0], self._limits[0])
        try:
            return read(self._send(body, left_s), self._api), None
        except openai.APIStatusError as error:
            return self._refused(error)
        except (openai.APITimeoutError, TimeoutError):
            return Reply("unavailable", detail=f"no answer within {deadline_s:g} s"), None
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__ if error.__cause__ else type(error).__name__
            return Reply("unavailable", detail=f"no connection to {self.where}: {cause}"), -1.0
        except _Ended as error:
            return Reply("invalid" if "longer" in str(error) else "unavailable", detail=str(error)), None
        except ValueError:
            return Reply("invalid", detail="the body is no JSON (a web page? see OPENAI_BASE_URL)"), None
        except Exception as error:  # noqa: BLE001  transport errors have no common base that the SDK names
            return Reply("unavailable", detail=f"the answer broke off: {type(error).__name__}"), -1.0

    def _send(self, body: Mapping[str, Any], left_s: float) -> Any:
        """Return the decoded body of an answer."""
        client = self._connected()
        create = (client.responses if self._api == "responses" else client.chat.completions).with_streaming_response
        end = time.monotonic() + left_s
        with create.create(**body, timeout=_timeout(left_s)) as response:
            _bound(response.http_response, end)
            data = bytearray()
            for piece in response.iter_bytes(_PIECE_BYTES):
                data += piece
                if len(data) > MOST_BYTES:
                    raise _Ended(f"the answer is longer than {MOST_BYTES:,} bytes")
        return json.loads(data)

    def _refused(self, error: Any) -> tuple[Reply, float | None]:
        """Return what an HTTP status says; of one about keys, no word of the server's is kept."""
        status = error.status_code
        if status in (401, 403):
            return Reply("rejected", detail=f"HTTP {status}: the key was not accepted; check OPENAI_API_KEY"), None
        told = _message(error)
        if status == 429:
            if "insufficient_quota" in told or "billing" in told:
                return Reply("rejected", detail="HTTP 429: the account's quota is used up"), None
            return Reply("rate_limited", detail="HTTP 429: too many requests"), _retry_after(error)
        if status in (408, 409) or status >= 500:
            return Reply("unavailable", detail=f"HTTP {status}"), -1.0
        if 300 <= status < 400:
            return Reply("rejected", detail=f"HTTP {status}: it redirects; set OPENAI_BASE_URL to its new place"), None
        if status == 404:
            return Reply("rejected", detail="HTTP 404: no such model or address; check DSE_LLM_MODEL and the URL"), None
        if status in (400, 413, 422):
            limit = self._limits[0]
            if limit in told and len(self._limits) > 1:
                self._limits.pop(0)
                return Reply("unavailable", detail=f"HTTP {status}: it knows no {limit}"), 0.0
            if len(self._modes) > 1:
                gone = self._modes.pop(0)
                return Reply("unavailable", detail=f"HTTP {status}: it takes no answers of form {gone}"), 0.0
        return Reply("rejected", detail=f"HTTP {status}: {plain(redacted(told, self._key), 200)}"), None

    def _connected(self) -> Any:
        with self._lock:
            if self._closing.is_set():
                raise TimeoutError
            if self._client is None:
                import openai

                http = openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [_bound_errors]})
                self._client = openai.OpenAI(
                    api_key=self._key or "none",
                    base_url=self._base_url,
                    max_retries=0,
                    http_client=http,
                    default_headers={"Accept-Encoding": "identity"},
                )
            return self._client


def _timeout(left_s: float) -> Any:
    import openai

    return openai.Timeout(left_s, connect=min(left_s, _CONNECT_S))


def _message(error: Any) -> str:
    """Return what an error's body says, as text."""
    body = error.body
    try:
        return json.dumps(body)[:4000] if body is not None else str(error.message)[:4000]
    except (TypeError, ValueError):
        return ""


def _retry_after(error: Any) -> float:
    """Return the seconds that a server asks to wait, -1 where it does not say."""
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return -1.0
    return seconds if 0 <= seconds < 86_400 else -1.0


def _bound(response: Any, end: float) -> None:
    """Let the body of a response end with an error at a time, however slowly it comes."""
    response.stream = _bounded(response.stream, end, MOST_BYTES)


def _bound_errors(response: Any) -> None:
    """Let the body of an error end early: the SDK reads it as a whole."""
    if response.status_code >= 300:
        response.stream = _bounded(response.stream, time.monotonic() + _CONNECT_S, 65_536)


def _bounded(stream: Any, end: float, most_bytes: int) -> Any:
    # The transport checks the class; which distribution it is of, is the SDK's affair.
    base: Any = next(c for c in type(stream).__mro__ if c.__name__ == "SyncByteStream")

    class Bounded(base):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            n = 0
            for piece in stream:
                n += len(piece)
                if n > most_bytes:
                    raise _Ended(f"the answer is longer than {most_bytes:,} bytes")
                if time.monotonic() > end:
                    raise _Ended("no answer within its time: it came too slowly")
                yield piece

        def close(self) -> None:
            stream.close()

    return Bounded()


# ---------------------------------------------------------------------------------------------- addresses


def host_of(base_url: str) -> str:
    """Return host and port of a URL as they may be shown, without user and password."""
    parts = urlsplit(base_url)
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.hostname or '?'}{port}"


def is_loopback(base_url: str) -> bool:
    """Return whether a URL is of this machine: nothing there is paid for by the token."""
    return urlsplit(base_url).hostname in _LOOPBACK


def url_error(base_url: str) -> str:
    """Return what is wrong with a base URL, "" if it can be one."""
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError:
        return f"{plain(base_url, 80)!r} is no URL"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return f"{plain(base_url, 80)!r} is not http://HOST/v1 or https://HOST/v1"
    return ""
