"""What a user sets: options in the proposer's name, endpoint and key in the environment, prices in a table.

    llm:usd=2,calls=40,analyst=on              in proposers=, or behind ``dse run --llm``
    OPENAI_API_KEY, OPENAI_BASE_URL            as the openai SDK reads them
    DSE_LLM_MODEL                              the model's name at the endpoint
    DSE_LLM_PRICES                             a TOML file with prices, beside those of prices.toml

An option that cannot be is refused when the study is made. What the environment lacks is said when a run starts, and
the study goes on without the arm.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from agents.llm.client import HOME, is_loopback, url_error
from agents.llm.provider import SCRIPTS
from agents.llm.wire import APIS, MODES
from dse.errors import UserError, unknown

KEY_VARIABLE: Final = "OPENAI_API_KEY"
URL_VARIABLE: Final = "OPENAI_BASE_URL"
MODEL_VARIABLE: Final = "DSE_LLM_MODEL"
PRICES_VARIABLE: Final = "DSE_LLM_PRICES"
_SWITCHES: Final = {"on": True, "off": False}


@dataclass(frozen=True)
class Settings:
    """Options of the arm, all with defaults.

    Attributes:
        provider: "openai", "replay", or a scripted one ("random", "prose").
        study: for a replay, whose calls; "" for the study's own.
        api: "chat" or "responses".
        form: of answers: "json_schema", "json_object", "prompt", or "auto" to find out.
        usd, tokens, calls, seconds: caps on what a study may take; seconds are those spent in calls.
        round_usd, round_tokens, round_calls, round_seconds: caps on one round.
        ceiling: tokens of a prompt at most.
        output_tokens: tokens of an answer at most.
        designs: proposals asked for in a round.
        every: designs that must be finished between two rounds.
        wait_s: how long a batch waits for an answer under way; by default none does.
        repair: whether a badly flawed answer is sent back once, with the reasons.
        analyst, critic: whether these roles are asked too.
        template: file with the prompt's template, "" for ours.
    """

    provider: str = "openai"
    study: str = ""
    api: str = "chat"
    form: str = "auto"
    usd: float = 1.0
    tokens: int = 400_000
    calls: int = 50
    seconds: float = 1800.0
    round_usd: float = math.inf
    round_tokens: int = 60_000
    round_calls: int = 4
    round_seconds: float = 120.0
    ceiling: int = 8000
    output_tokens: int = 3000
    designs: int = 8
    every: int = 8
    wait_s: float = 0.0
    repair: bool = True
    analyst: bool = False
    critic: bool = False
    template: str = ""
    is_usd_given: bool = False

    @classmethod
    def parse(cls, options: str) -> Settings:
        """Return the settings of "key=value,key=value".

        Raises:
            NameUnknown: an option that is none.
            UserError: a value that cannot be.
        """
        kinds = {f.name: str(f.type) for f in fields(cls) if f.name != "is_usd_given"}
        values: dict[str, Any] = {}
        for item in filter(None, (part.strip() for part in options.split(","))):
            key, _, text = item.partition("=")
            if key not in kinds:
                raise unknown("option of llm", key, kinds, "write llm:usd=2,calls=40")
            values[key] = _read(key, text, kinds[key])
        settings = cls(**values, is_usd_given="usd" in values)
        settings._check()
        return settings

    def _check(self) -> None:
        for name, known in (("api", APIS), ("form", ("auto", *MODES)), ("provider", ("openai", "replay", *SCRIPTS))):
            if getattr(self, name) not in known:
                raise unknown(f"{name} of llm", getattr(self, name), known)
        for name, least in (("ceiling", 2000), ("output_tokens", 200), ("designs", 1), ("every", 1), ("calls", 1)):
            if getattr(self, name) < least:
                raise UserError(f"llm: {name}={getattr(self, name)} is too small", f"use {name} >= {least}")
        if self.provider == "replay" and not self.study:
            raise UserError(
                "llm: a replay needs the study whose calls it repeats", "write llm:provider=replay,study=NAME"
            )
        if self.designs > 64:
            raise UserError(f"llm: designs={self.designs} are too many for one answer", "use designs <= 64")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON types, to be kept with a run."""
        return {k: v for k, v in asdict(self).items() if not (isinstance(v, float) and math.isinf(v))}


def _read(key: str, text: str, kind: str) -> Any:
    if kind == "str":
        return text
    if kind == "bool":
        if text not in _SWITCHES:
            raise UserError(f"llm: {key}={text!r} is neither on nor off", f"write {key}=on")
        return _SWITCHES[text]
    try:
        number = int(text) if kind == "int" else float(text)
    except ValueError:
        raise UserError(f"llm: {key}={text!r} is not a {'whole ' if kind == 'int' else ''}number") from None
    if not 0 <= number < math.inf:
        raise UserError(f"llm: {key}={text} must be a number of 0 or more", "a cap of 0 forbids what it caps")
    return number


# ---------------------------------------------------------------------------------------------- the environment


@dataclass(frozen=True)
class Access:
    """An endpoint as the environment names it.

    Attributes:
        model: name of the model.
        base_url: of the API.
        key: secret; not printed.
        warning: what a user should know, "" if nothing.
    """

    model: str
    base_url: str
    key: str
    warning: str = ""

    def __repr__(self) -> str:
        return f"Access({self.model!r}, {self.base_url!r})"


def access(environment: Mapping[str, str] | None = None) -> Access | str:
    """Return the endpoint, or what is missing and what to do about it."""
    env = os.environ if environment is None else environment
    url, key = env.get(URL_VARIABLE, "").strip() or HOME, env.get(KEY_VARIABLE, "").strip()
    model = env.get(MODEL_VARIABLE, "").strip()
    if wrong := url_error(url):
        return f"{URL_VARIABLE}: {wrong}; set it to the endpoint's address"
    if not key and not is_loopback(url):
        return f"no key: set {KEY_VARIABLE}, or {URL_VARIABLE} to a server on this machine"
    if not key.isprintable() or not key.isascii():
        return f"{KEY_VARIABLE} has characters that no key has; set it anew"
    if not model:
        return f"no model: set {MODEL_VARIABLE} to a name that the endpoint knows"
    if len(model) > 200 or not model.isprintable():
        return f"{MODEL_VARIABLE} is not a name of up to 200 printable characters"
    clear = url.startswith("http://") and not is_loopback(url) and key
    return Access(model, url, key, "the key travels unencrypted: the address begins with http://" if clear else "")


# ---------------------------------------------------------------------------------------------- prices


@dataclass(frozen=True)
class Price:
    """What a model's tokens cost, in dollars per million."""

    input_usd: float
    output_usd: float

    def usd(self, n_prompt: int, n_output: int) -> float:
        """Return the price of so many tokens."""
        return (n_prompt * self.input_usd + n_output * self.output_usd) / 1e6


def price_of(model: str, path: str = "") -> Price | None:
    """Return a model's price by the user's table, then by ours; None where neither has it.

    Args:
        model: its name; a dated one ("gpt-4o-mini-2024-07-18") falls back to the name without its date.
        path: the user's table; DSE_LLM_PRICES by default.

    Raises:
        UserError: a table that cannot be read.
    """
    path = path or os.environ.get(PRICES_VARIABLE, "")
    tables = [_prices(Path(path).read_text, path)] if path else []
    tables.append(_prices(files("agents.llm").joinpath("prices.toml").read_text, "prices.toml"))
    for table in tables:
        for name in (model, model[:-11]):
            if name in table and (name == model or _is_dated(model)):
                return table[name]
    return None


def _is_dated(model: str) -> bool:
    tail = model[-11:]
    return len(tail) == 11 and tail[0] == tail[5] == tail[8] == "-" and tail.replace("-", "").isdigit()


def _prices(read: Any, where: str) -> dict[str, Price]:
    remedy = 'write [models."NAME"] with input_usd_per_million and output_usd_per_million'
    try:
        document = tomllib.loads(read(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"prices: {where} cannot be read: {error}", remedy) from None
    models = document.get("models", {})
    out = {}
    for name, row in models.items() if isinstance(models, dict) else ():
        values = [row.get(f"{k}_usd_per_million") if isinstance(row, dict) else None for k in ("input", "output")]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise UserError(f"prices: {where}: {name!r} has {value!r} for a price", remedy)
        out[name] = Price(float(values[0]), float(values[1]))  # type: ignore[arg-type]
    return out
