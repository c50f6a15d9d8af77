"""The fault table: whatever an endpoint does, the study goes on, the log says what happened, and usage is booked."""

from __future__ import annotations

import json
import math
import sqlite3

import numpy as np
import pytest

from agents.llm.arm import LlmArm
from agents.llm.client import Endpoint
from agents.llm.provider import Request
from dse.calls import ACCEPTED
from dse.store import open_store
from tests.agents.llm_server import FAULTS, INJECTION, KEY, serving
from tests.agents.llm_study import asked_study, quiet

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
TRIALS = 32


@pytest.fixture(autouse=True)
def endpoint_of_nobody(monkeypatch):
    """No test talks to anybody but its own server, whatever the environment says; connections elsewhere fail."""
    for name in ("OPENAI_BASE_URL", "DSE_LLM_MODEL", "DSE_LLM_PRICES", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("DSE_LLM_MODEL", "test-model")


def run(tmp_path, monkeypatch, url, options=""):
    """Run a study with an endpoint; return what is on record, the results, and what was said."""
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    db = tmp_path / "a.db"
    options = f"wait_s=30,round_seconds=1,calls=4{',' if options else ''}{options}"
    study = asked_study("study", ["auto", f"llm:{options}"], TRIALS)
    results = study.run(db=db, report=quiet, executor="local")
    store = open_store(db, read_only=True)
    log = store.call_log(store.study("study").id)
    found = log.calls(), log.edits(), log.sessions(), results
    store.close()
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same study without a language model."""
    return asked_study("plain", "auto", TRIALS).run(
        db=tmp_path_factory.mktemp("plain") / "a.db", report=quiet, executor="local"
    )


# fault -> (outcome of the first call, a word of its detail, whether the server told what it used, tries)
TABLE = {
    "429 once": ("ok", "", True, 2),
    "429 once, no retry-after": ("ok", "", True, 2),
    "429 always": ("rate_limited", "429", False, 1),
    "429 quota": ("rejected", "quota", False, 1),
    "500": ("unavailable", "500", False, 2),
    "500 once": ("ok", "", True, 2),
    "500 large": ("invalid", "longer", False, 1),
    "401": ("rejected", "OPENAI_API_KEY", False, 1),
    "404": ("rejected", "DSE_LLM_MODEL", False, 1),
    "302": ("rejected", "redirects", False, 1),
    "hang": ("unavailable", "no answer within", False, 1),
    "drip": ("unavailable", "no answer within", False, 1),
    "reset": ("unavailable", "connection", False, 2),
    "short body": ("unavailable", "broke off", False, 2),
    "html": ("invalid", "no JSON", False, 1),
    "list": ("invalid", "list", False, 1),
    "truncated json": ("invalid", "no JSON", True, 1),
    "fenced json": ("ok", "fence", True, 1),
    "wrong type": ("invalid", "list", True, 1),
    "numbers": ("ok", "", True, 1),
    "prose": ("invalid", "no JSON", True, 1),
    "refusal": ("refusal", "declined", True, 1),
    "filtered": ("refusal", "filter", True, 1),
    "incomplete": ("truncated", "limit", True, 1),
    "empty": ("invalid", "empty", True, 1),
    "empty choices": ("invalid", "no choices", True, 1),
    "error with 200": ("invalid", "no choices", False, 1),
    "large": ("invalid", "longer", False, 1),
    "echoed key": ("invalid", "no JSON", True, 1),
    "injection": ("ok", "", True, 1),
    "no schema": ("ok", "", True, 2),
    "no json": ("ok", "", True, 3),
    "no max_tokens": ("ok", "", True, 2),
}


def test_the_table_has_every_fault():
    assert set(TABLE) == set(FAULTS)


@pytest.mark.parametrize("fault", TABLE)
def test_a_fault_has_its_outcome_and_the_study_is_unharmed(tmp_path, monkeypatch, plain, fault):
    outcome, word, is_told, n_tries = TABLE[fault]
    with serving(fault) as server:
        calls, edits, sessions, results = run(tmp_path, monkeypatch, server.url)
    assert [c.role for c in calls[:2]] == ["probe", "proposer"]
    assert len(calls) <= 4
    assert calls[0].outcome == "ok"
    first = calls[1]
    assert (first.outcome, first.n_tries) == (outcome, n_tries), first.detail
    assert word in first.detail
    assert (first.n_prompt_tokens > 0) == is_told
    assert first.latency_s < 3
    assert len(results) == TRIALS
    assert results.stored.evaluated.all()
    if not any(e.verdict == ACCEPTED for e in edits):
        np.testing.assert_array_equal(results.stored.codes, plain.stored.codes)  # design by design the study without
    else:
        assert outcome == "ok"
    if outcome == "rejected":
        assert first.detail in sessions[0].stop_reason
        assert len(calls) == 2
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes()
        assert KEY[3:].encode() not in path.read_bytes()


def test_an_answer_with_instructions_is_only_data(tmp_path, monkeypatch):
    with serving("injection") as server:
        _, edits, _, results = run(tmp_path, monkeypatch, server.url)
    accepted = [e for e in edits if e.verdict == ACCEPTED]
    rejected = [e for e in edits if e.verdict != ACCEPTED]
    assert accepted
    assert any("parent" in e.detail for e in rejected)
    for edit in edits:
        for text in (edit.reason, edit.bottleneck, edit.detail, *sum(edit.changes, ())):
            assert text.isprintable()
            assert len(text) <= 300
    assert all(e.reason.startswith("Ignore all previous") and "\x1b" not in e.reason for e in accepted)
    tables = sqlite3.connect(tmp_path / "a.db").execute("SELECT count(*) FROM design").fetchone()
    assert tables == (len(results),)
    # What it said reaches no later prompt: only numbers of its proposals do.
    store = open_store(tmp_path / "a.db", read_only=True)
    prompts = [text for c in store.call_log(1).calls() if c.role == "proposer" for _, text in c.messages]
    store.close()
    assert not any(INJECTION[:20] in text for text in prompts)


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize(("fault", "outcome"), [("", "ok"), ("refusal", "refusal"), ("incomplete", "truncated")])
def test_both_interfaces(api, fault, outcome):
    schema = {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}
    request = Request("proposer", (("system", "s"), ("user", "u")), "x", schema, 100)
    with serving(fault) as server:
        endpoint = Endpoint("m", server.url, KEY, api)
        reply = endpoint.ask(request, 5.0)
        endpoint.close()
        path, headers, body = server.seen[0]
    assert reply.outcome == outcome
    assert (reply.n_prompt_tokens, reply.n_output_tokens) == (1000, 50)
    assert path == ("/v1/chat/completions" if api == "chat" else "/v1/responses")
    assert {k.lower(): v for k, v in headers.items()}["authorization"] == f"Bearer {KEY}"
    if api == "responses":
        assert body["store"] is False
        assert body["text"]["format"] == {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    else:
        assert body["response_format"]["json_schema"]["schema"] == schema
        assert body["max_tokens"] == 100
    if not fault:
        assert isinstance(json.loads(reply.text)["a"], float)


def test_what_the_server_takes_is_found_out_once():
    request = Request("proposer", (("system", "s"), ("user", "u")), "x", {"type": "object", "properties": {}}, 100)
    with serving("no json") as server:
        endpoint = Endpoint("m", server.url, KEY)
        assert endpoint.ask(request, 5.0).n_tries == 3
        reply = endpoint.ask(request, 5.0)
        endpoint.close()
        assert reply.n_tries == 1
        assert reply.parameters["form"] == "prompt"
        assert "response_format" not in server.seen[-1][2]
        assert "JSON schema" in server.seen[-1][2]["messages"][0]["content"]


def test_a_server_that_does_not_tell_its_usage_is_booked_at_the_most_it_can_have_been(tmp_path, monkeypatch):
    with serving(usage=False) as server:
        calls, *_ = run(tmp_path, monkeypatch, server.url)
    assert all(c.n_prompt_tokens == -1 for c in calls)
    assert [c.counted_tokens for c in calls] == [c.reserved_tokens for c in calls], [
        (c.outcome, c.detail) for c in calls
    ]


# ------------------------------------------------------------------ said at the start


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"OPENAI_API_KEY": "", "OPENAI_BASE_URL": "https://api.openai.com/v1"}, "no key: set OPENAI_API_KEY"),
        ({"OPENAI_BASE_URL": "localhost:8000"}, "is not http://HOST/v1"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, "no connection to 127.0.0.1:9"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "DSE_LLM_MODEL": ""}, "no model: set DSE_LLM_MODEL"),
    ],
)
def test_what_is_missing_is_said_once_before_any_evaluation(tmp_path, monkeypatch, capsys, plain, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    results = asked_study("study", ["auto", "llm"], TRIALS).run(db=tmp_path / "a.db", executor="local")
    lines = capsys.readouterr().err.splitlines()
    (line,) = [i for i, text in enumerate(lines) if "takes no part" in text]
    assert said in lines[line]
    assert not any(f"/{TRIALS} designs" in text for text in lines[:line])
    np.testing.assert_array_equal(results.stored.codes, plain.stored.codes)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("prose", "does not answer in JSON; set DSE_LLM_MODEL"),
        ("html", "does not answer in JSON"),
        ("401", "check OPENAI_API_KEY"),
        ("404", "check DSE_LLM_MODEL"),
        ("no json", "answers come in the form 'prompt'"),
        ("hang", "it is asked again while the study runs"),
    ],
)
def test_a_probe_tells_what_is_wrong_before_any_evaluation(tmp_path, monkeypatch, capsys, fault, said):
    monkeypatch.setattr("agents.llm.arm.PROBE_S", 0.5 if fault == "hang" else 10.0)
    with serving(fault, spare_probe=False) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        arm = "llm:round_seconds=0.2,wait_s=5"
        results = asked_study("study", ["auto", arm], TRIALS).run(16, db=tmp_path / "a.db", executor="local")
    lines = capsys.readouterr().err.splitlines()
    assert said in "\n".join(lines[:2])
    assert len(results) == 16
    assert KEY not in "\n".join(lines)


def test_a_paid_endpoint_without_a_price_and_with_a_cap_on_dollars_is_not_asked(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "https://api.example.invalid/v1")
    said: list[str] = []
    from dse.calls import MemoryLog

    log = MemoryLog()
    arm = LlmArm("usd=2")
    arm.open(log, said.append)
    arm.close()
    assert "DSE_LLM_PRICES" in said[0]
    assert log.calls() == []
    assert math.isclose(log.sessions()[0].settings["usd"], 2.0)
