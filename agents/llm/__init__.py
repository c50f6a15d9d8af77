"""A language model as an arm of the portfolio: evidence in, validated designs out, never below the sampler.

arm.py        the arm: what is ready, when to ask, what is on record
round.py      one occasion to propose: calls of its roles, verdicts, within the caps
digest.py     what the history says, as lines of numbers
prompt.py     the template and its ceiling
answer.py     from an answer to designs: parse, check, snap
provider.py   who answers: protocol, replay, scripts
client.py     any OpenAI-compatible endpoint (the only module that imports openai)
wire.py       what endpoints send back, read by hand
budget.py     caps; settings.py: options, environment, prices
exam.py       multiple-choice questions with exact keys
"""
