"""Caps: what may be spent in a round and in a study, with what is in flight counted at the most it can cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from agents.llm.provider import Reply, Request
from agents.llm.settings import Price, Settings
from dse.calls import Call, spent


@dataclass
class Budget:
    """What is left.

    Args:
        settings: the caps.
        price: of the model; None where it is unknown or free.
        is_paid: whether tokens cost money at all.
        calls: of the study so far, those of earlier runs included.
    """

    settings: Settings
    price: Price | None
    is_paid: bool
    calls: list[Call]

    def reserved_usd(self, request: Request) -> float:
        """Return the most that a call can cost, NaN where no price is known."""
        if not self.is_paid:
            return 0.0
        return math.nan if self.price is None else self.price.usd(request.n_tokens, request.max_output_tokens)

    def usd(self, reply: Reply) -> float:
        """Return what a call has cost, NaN where it is not known."""
        if not self.is_paid:
            return 0.0
        if self.price is None or reply.n_prompt_tokens < 0 or reply.n_output_tokens < 0:
            return math.nan
        return self.price.usd(reply.n_prompt_tokens, reply.n_output_tokens)

    def over(self, request: Request, in_round: Sequence[Call]) -> tuple[str, bool]:
        """Return which cap a call would break, "" if none, and whether it is one of the study's."""
        s, tokens, usd = self.settings, request.n_tokens + request.max_output_tokens, self.reserved_usd(request)
        usd = 0.0 if math.isnan(usd) else usd
        for calls, caps, where in (
            (self.calls, (s.usd, s.tokens, s.calls, s.seconds), "the study"),
            (in_round, (s.round_usd, s.round_tokens, s.round_calls, s.round_seconds), "a round"),
        ):
            spent_usd, spent_tokens, n = spent(calls)
            seconds = sum(c.latency_s for c in calls if not math.isnan(c.latency_s))
            for name, now, more, cap in (
                ("usd", spent_usd, usd, caps[0]),
                ("tokens", spent_tokens, tokens, caps[1]),
                ("calls", n, 1, caps[2]),
                ("seconds", seconds, 0, caps[3]),
            ):
                if now + more > cap or (name == "seconds" and now >= cap):
                    return f"cap on {name} of {where}: {now:.6g} of {cap:g} are spent", where == "the study"
        return "", False

    def estimate(self) -> str:
        """Return in words what the study may spend at most."""
        s = self.settings
        tokens = min(s.tokens, s.calls * (s.ceiling + s.output_tokens))
        money = ""
        if self.is_paid and self.price is not None:
            one = self.price.usd(s.ceiling, s.output_tokens)
            money = f", {min(s.usd, s.calls * one):.2f} USD (a call {one:.4f} at most)"
        elif self.is_paid:
            money = ", dollars unknown: no price for this model"
        return f"at most {s.calls} calls, {tokens:,} tokens{money}, {s.seconds:g} s"
