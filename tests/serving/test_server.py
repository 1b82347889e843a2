"""The server's routes, by a client that speaks HTTP to a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra 'server' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'server' is not installed")

from otter_gguf import ARGS, BestOfN, Otter, Vocabulary
from tests.completions import CHATML, chat_pair, choice_of
from tests.guidance.reference import open_exact
from tests.serving.served import Client, event_of, serving
from tests.synthetic_models import TEXT, pair

SCHEMA = {"type": "object", "properties": {"old": {"type": "boolean"}}, "required": ["old"]}


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact(n_seq_max=64, n_ctx=4096) as llm:
        yield llm


@pytest.fixture(scope="module")
def expert() -> Iterator[Otter]:
    with open_exact(pair(seed=4, base_of=0), n_seq_max=16) as expert:
        yield expert


@pytest.fixture(scope="module")
def client(llm: Otter, expert: Otter) -> Iterator[Client]:
    with serving(llm, {"friend": expert}, alias="toy") as client:
        yield client


@pytest.fixture(scope="module")
def chat() -> Iterator[Client]:
    with open_exact(chat_pair(), n_ctx=1024) as llm, serving(llm) as client:
        yield client


def wait(until: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.002)


def n_live(llm: Otter) -> int:
    return len(llm.session.streams.live)


# ---- texts -----------------------------------------------------------------------------------------------------------

# what a request asks for, and the same of Otter's own methods
KINDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"otter": {"guidance": {"rule": "vocabulary", "weight": 3}}}, {"guidance": Vocabulary(3.0)}),
    ({"otter": {"guidance": "args:weight=2,n_candidates=4"}}, {"guidance": ARGS(2.0, n_candidates=4)}),
    ({"otter": {"guidance": {"rule": "best_of_n", "n": 3}}}, {"guidance": BestOfN(3)}),
    ({"json_schema": SCHEMA}, {"json_schema": SCHEMA}),
    ({"temperature": 0, "logprobs": 2}, {"temperature": 0.0, "logprobs": 2}),
    ({"stop": ["e"], "repeat_penalty": 1.3}, {"stop": ["e"], "repeat_penalty": 1.3}),
    ({"logit_bias": {"101": 3}, "top_k": 9}, {"logit_bias": {101: 3}, "top_k": 9}),
]


def test_sixteen_clients_at_once_get_what_single_calls_give(llm: Otter, client: Client) -> None:
    asked, expected = [], []
    for index in range(16):
        body, options = KINDS[index % len(KINDS)]
        shared: dict[str, Any] = {"prompt": TEXT[2 * index :], "max_tokens": 6 + index, "seed": index}
        asked.append(shared | body)
        expected.append(llm.create_completion(**shared, **options))

    def ask(number: int) -> Any:
        if number % 2:
            return client.complete(**asked[number])
        events = client.post("/v1/completions", {**asked[number], "stream": True}).events
        assert events.pop() == "[DONE]"
        parts = [event["choices"][0] for event in events]
        rewards = [part["rewards"] for part in parts]
        whole = {"text": "".join(part["text"] for part in parts), "finish_reason": parts[-1]["finish_reason"]}
        whole["rewards"] = {
            key: [item for reward in rewards for item in reward[key]] for key in ("tokens", "token_rewards")
        }
        return {"choices": [whole]}

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(16)))
    for single, answer in zip(expected, found, strict=True):
        mine, theirs = choice_of(single), choice_of(answer)
        assert theirs["text"] == mine["text"]
        assert theirs["finish_reason"] == mine["finish_reason"]
        assert theirs["rewards"]["tokens"] == mine["rewards"]["tokens"]
        np.testing.assert_allclose(theirs["rewards"]["token_rewards"], mine["rewards"]["token_rewards"], atol=1e-4)
    wait(lambda: not client.service.under_way)
    assert n_live(llm) == 0


def test_an_answer_has_what_clients_of_openai_and_of_llama_server_read(client: Client) -> None:
    answer = client.complete(prompt=TEXT, max_tokens=5, seed=1, model="any")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "toy"
    assert answer["usage"]["completion_tokens"] == len(choice_of(answer)["rewards"]["tokens"])
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]
    assert answer["timings"]["predicted_n"] == answer["usage"]["completion_tokens"]
    events = client.post(
        "/v1/completions",
        {"prompt": TEXT, "max_tokens": 5, "seed": 1, "stream": True, "stream_options": {"include_usage": True}},
    ).events
    *chunks, last, done = events
    assert done == "[DONE]"
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert len({chunk["id"] for chunk in events[:-1]}) == 1
    without = client.post("/v1/completions", {"prompt": TEXT, "max_tokens": 2, "stream": True}).events
    assert not any("usage" in chunk for chunk in without[:-1])


def test_several_answers_have_seeds_that_follow_each_other(llm: Otter, client: Client) -> None:
    answer = client.complete(prompt=["The otter", "a"], max_tokens=6, seed=5, n=3)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    for index, choice in enumerate(answer["choices"]):
        prompt, number = divmod(index, 3)
        single = llm.create_completion(["The otter", "a"][prompt], max_tokens=6, seed=5 + number)
        assert choice["text"] == choice_of(single)["text"]
    streamed = client.post(
        "/v1/completions", {"prompt": ["The otter", "a"], "max_tokens": 6, "seed": 5, "n": 3, "stream": True}
    ).events[:-1]
    for choice in answer["choices"]:
        parts = [part for event in streamed for part in event["choices"] if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]


def test_an_echoed_prompt_has_log_probabilities(llm: Otter, client: Client) -> None:
    tokens = llm.tokenize(TEXT, special=True)
    expected = llm.engine.read([tokens], "log_probabilities")[0]
    for n_tokens in (0, 1):
        answer = client.complete(prompt=tokens, max_tokens=n_tokens, echo=True, logprobs=1, temperature=0)
        places = choice_of(answer)["logprobs"]
        assert len(places["tokens"]) == len(tokens) + n_tokens
        assert places["token_logprobs"][0] is None
        np.testing.assert_allclose(places["token_logprobs"][1 : len(tokens)], expected, atol=1e-6)
        for logprob, top in list(zip(places["token_logprobs"], places["top_logprobs"], strict=True))[1:]:
            assert logprob in top.values()
            assert max(top.values()) >= logprob
        assert places["text_offset"] == sorted(places["text_offset"])
    both = client.complete(
        prompt=TEXT, max_tokens=0, echo=True, logprobs=0, otter={"prompt_rewards": True, "guidance": "plain"}
    )
    rewards = choice_of(both)["prompt_rewards"]["token_rewards"]
    np.testing.assert_allclose(rewards, llm.score(TEXT).rewards, atol=1e-4)


def test_rewards_can_be_left_out_or_stand_among_log_probabilities(client: Client) -> None:
    plain = choice_of(client.complete(prompt="a", max_tokens=3, seed=1, otter={"rewards": False}))
    assert "rewards" not in plain
    choice = choice_of(client.complete(prompt="a", max_tokens=3, seed=1, logprobs=1, otter={"as_logprobs": True}))
    rows = [top["<|reward:reward|>"] for top in choice["logprobs"]["top_logprobs"]]
    assert [[row] for row in rows] == choice["rewards"]["token_rewards"]
    steps = choice_of(
        client.complete(prompt="a", max_tokens=3, otter={"step_records": True, "guidance": "args:n_candidates=3"})
    )["steps"]
    assert [len(step["candidates"]) for step in steps] == [3] * len(steps)
    assert steps


def test_rules_name_models_by_their_aliases_alone(llm: Otter, expert: Otter, client: Client) -> None:
    rule = {"rule": "dexperts", "expert": "friend"}
    answer = client.complete(prompt=TEXT, max_tokens=5, temperature=0, otter={"guidance": rule})
    assert choice_of(answer)["text"]
    judged = client.complete(
        prompt=TEXT, max_tokens=5, seed=1, otter={"guidance": "args:n_candidates=4", "reward_model": "friend"}
    )
    single = llm.create_completion(TEXT, max_tokens=5, seed=1, guidance=ARGS(n_candidates=4), reward_model=expert)
    assert choice_of(judged)["text"] == choice_of(single)["text"]
    for path in (str(pair().base), "/etc/passwd", "friend|/etc/passwd"):
        for otter in ({"guidance": {**rule, "expert": path}}, {"reward_model": path}):
            reply = client.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "otter": otter})
            assert reply.error == "invalid_request_error"


# ---- what is refused -------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": "a", "guidance": "args"}, "guidance"),
    ({"prompt": "a", "otter": {"weight": 1}}, "weight"),
    ({"prompt": "a", "otter": {"guidance": "args:weight=x"}}, "weight"),
    ({"prompt": "a", "otter": {"guidance": {"rule": "argh"}}}, "argh"),
    ({"prompt": "a", "otter": {"guidance": "gated:entropy=1+" * 40 + "args"}}, "guidance"),
    ({"prompt": "a", "temperature": -1}, "temperature"),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "top_k": 1.5}, "top_k"),
    ({"prompt": "a", "max_tokens": -7}, "max_tokens"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens"),
    ({"prompt": "a", "stream": 1}, "stream"),
    ({"prompt": "a", "stop": [""]}, "stop"),
    ({"prompt": "a", "t_max_predict_ms": 10**400}, "t_max_predict_ms"),
    ({"prompt": "a", "seed": "a", "n": 2}, "seed"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"999999": 1}}, "999999"),
    ({"prompt": "a", "n": 1000}, "n"),
    ({"prompt": ["a"] * 1000}, "n"),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "grammar": "root ::= ("}, "grammar"),
    ({"prompt": "a", "grammar": 'root ::= "a"', "json_schema": {}}, "json_schema"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": [[-1]]}, "prompt"),
    ({"prompt": "a", "otter": {"as_logprobs": True}}, "as_logprobs"),
]


@pytest.mark.parametrize(("body", "name"), REFUSED)
def test_a_wrong_request_is_refused_by_the_name_of_what_is_wrong(client: Client, body: Any, name: str) -> None:
    reply = client.post("/v1/completions", body)
    assert reply.status == 400
    assert reply.error == "invalid_request_error"
    assert name in reply.json["error"]["message"]


def test_what_harms_nothing_is_ignored(client: Client) -> None:
    client.complete(
        prompt="a", max_tokens=1, user="me", store=None, metadata={"a": "b"}, presence_penalty=None, suffix=""
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"5",
        b"\xff\xfe",
        b'{"prompt": NaN}',
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b"[" * 100000,
    ],
)
def test_what_is_no_json_object_is_refused(client: Client, body: bytes) -> None:
    assert client.post("/v1/completions", body).error == "invalid_request_error"


def test_a_long_prompt_is_refused_with_both_lengths(llm: Otter, client: Client) -> None:
    reply = client.post("/v1/completions", {"prompt": [65] * 5000})
    assert reply.error == "exceed_context_size_error"
    assert (reply.json["error"]["n_prompt_tokens"], reply.json["error"]["n_ctx"]) == (5000, llm.n_ctx)


def test_limits(llm: Otter) -> None:
    with serving(llm, max_body=2000, max_tokens=7) as client:
        assert client.post("/v1/completions", {"prompt": "a" * 3000}).status == 413
        assert client.post("/v1/completions", {"prompt": "a", "max_tokens": 8}).error == "invalid_request_error"
        answer = client.complete(prompt="a", max_tokens=-1, ignore_eos=True)
        assert answer["usage"]["completion_tokens"] == 7
        assert choice_of(answer)["finish_reason"] == "length"


def test_time_is_limited(llm: Otter, client: Client) -> None:
    begin = time.monotonic()
    cut = client.complete(prompt=TEXT, max_tokens=4000, ignore_eos=True, t_max_predict_ms=100)
    assert choice_of(cut)["finish_reason"] in ("stop", "length")
    assert time.monotonic() - begin < 10
    with serving(llm, timeout=0.2) as strict:
        body = {"prompt": TEXT, "max_tokens": 4000, "ignore_eos": True}
        reply = strict.post("/v1/completions", body)
        assert (reply.status, reply.error) == (504, "timeout_error")
        last = strict.post("/v1/completions", {**body, "stream": True}).events[-1]
        assert last["error"]["type"] == "timeout_error"
        wait(lambda: n_live(llm) == 0)


# ---- who may ask -----------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for(llm: Otter) -> None:
    with serving(llm, api_key="one,two") as client:
        assert client.get("/health").status == 200
        assert client.get("/v1/models").status == 200
        for headers in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Bearer "}, {"X_Api_Key": "on"}):
            reply = client.post("/tokenize", {"content": "a"}, **headers)
            assert (reply.status, reply.error) == (401, "authentication_error")
        for headers in ({"Authorization": "Bearer two"}, {"Authorization": "bearer one"}, {"X_Api_Key": "one"}):
            assert client.post("/tokenize", {"content": "a"}, **headers).status == 200


def test_other_pages_and_names_are_refused(llm: Otter, client: Client) -> None:
    assert client.get("/v1/models", Origin="https://evil.example").status == 403
    assert client.get("/v1/models", Host="evil.example").status == 403
    own = client.get("/v1/models", Origin=client.url)
    assert own.status == 200
    assert "access-control-allow-origin" not in own.headers
    with serving(llm, cors_origins=("https://friend.example",)) as open_client:
        reply = open_client.ask("OPTIONS", "/v1/completions", Origin="https://friend.example")
        assert reply.headers["access-control-allow-origin"] == "https://friend.example"
        assert open_client.get("/v1/models", Origin="https://friend.example").status == 200
        assert open_client.get("/v1/models", Origin="https://evil.example").status == 403


# ---- many at once ----------------------------------------------------------------------------------------------------


def test_a_client_that_goes_away_frees_its_place(llm: Otter, client: Client) -> None:
    for index in range(50):
        body = {"prompt": TEXT, "max_tokens": 4000, "ignore_eos": True, "stream": index % 2 == 0}
        connection = client.send("POST", "/v1/completions", body)
        if index % 2 == 0:
            connection.getresponse().read1(100)
        else:
            wait(lambda: n_live(llm) > 0)
        connection.close()
        wait(lambda: n_live(llm) == 0)
    wait(lambda: not client.service.under_way)


def test_a_full_queue_says_when_to_come_back(llm: Otter) -> None:
    with open_exact(n_seq_max=2) as small, serving(small, queue=1) as client:
        body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}
        others = [client.send("POST", "/v1/completions", body) for _ in range(3)]
        wait(lambda: len(client.service.under_way) == 3)
        reply = client.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
        assert (reply.status, reply.error) == (503, "unavailable_error")
        assert int(reply.headers["retry-after"]) > 0
        assert client.get("/health").status == 200
        assert len(client.get("/slots").json) == 3
        for connection in others:
            connection.close()
        wait(lambda: not client.service.under_way)
        client.complete(prompt="a", max_tokens=1)


def test_a_slow_reader_harms_nobody(llm: Otter, client: Client) -> None:
    body = {"prompt": TEXT, "max_tokens": 2000, "ignore_eos": True, "stream": True, "logprobs": 50}
    slow = client.send("POST", "/v1/completions", body)
    wait(lambda: n_live(llm) > 0)
    begin = time.monotonic()
    for _ in range(3):
        client.complete(prompt="a", max_tokens=10)
    assert time.monotonic() - begin < 20
    slow.close()
    wait(lambda: not client.service.under_way)


# ---- given texts -----------------------------------------------------------------------------------------------------


def test_documents_are_ranked(llm: Otter, client: Client) -> None:
    documents = [" swims", " lives in the sea", " eats"]
    rewards = [llm.score("The otter", document).reward for document in documents]
    order = sorted(range(3), key=lambda index: -rewards[index])
    for path in ("/v1/rerank", "/rerank", "/reranking"):
        answer = client.post(path, {"query": "The otter", "documents": documents, "model": "m"}).json
        assert [one["index"] for one in answer["results"]] == order
        np.testing.assert_allclose(
            [one["relevance_score"] for one in answer["results"]], sorted(rewards)[::-1], atol=1e-4
        )
    tei = client.post("/rerank", {"query": "The otter", "texts": documents, "return_text": True, "top_n": 2}).json
    assert [(one["index"], one["text"]) for one in tei] == [(index, documents[index]) for index in order[:2]]
    top = client.post(
        "/v1/rerank", {"query": "The otter", "documents": documents, "top_n": 1, "return_documents": True}
    )
    assert [one["document"] for one in top.json["results"]] == [documents[order[0]]]
    for wrong in (
        {"query": "a"},
        {"documents": ["a"]},
        {"query": "a", "documents": [5]},
        {"query": "a", "documents": []},
        {"query": "a", "documents": ["b"], "label": "x"},
        {"query": "a", "documents": ["b"], "top_n": 0},
    ):
        assert client.post("/v1/rerank", wrong).error == "invalid_request_error"


def test_texts_are_scored(llm: Otter, client: Client) -> None:
    answer = client.post("/score", {"text_1": "The otter", "text_2": [" swims", " eats"]}).json
    expected = [llm.score("The otter", text).reward for text in (" swims", " eats")]
    np.testing.assert_allclose([one["score"] for one in answer["data"]], expected, atol=1e-4)
    assert client.post("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"] * 3}).error == "invalid_request_error"
    pooled = client.post("/pooling", {"input": [TEXT, "a"], "task": "token_classify"}).json
    for text, one in zip((TEXT, "a"), pooled["data"], strict=True):
        np.testing.assert_allclose(one["data"], llm.score(text).rewards, atol=1e-4)
    assert client.post("/pooling", {"input": "a", "task": "embed"}).error == "invalid_request_error"


def test_tokens(llm: Otter, client: Client) -> None:
    tokens = client.post("/tokenize", {"content": TEXT}).json["tokens"]
    assert tokens == llm.tokenize(TEXT, add_bos=False, special=True)
    assert client.post("/detokenize", {"tokens": tokens}).json["content"] == TEXT
    pieces = client.post("/tokenize", {"content": "é", "with_pieces": True}).json["tokens"]
    assert [piece["piece"] for piece in pieces] == [[0xC3], [0xA9]]
    for wrong in ([-1], ["a"], [10**9]):
        assert client.post("/detokenize", {"tokens": wrong}).error == "invalid_request_error"


def test_a_plain_model_has_no_rewards() -> None:
    with Otter(pair().base, n_ctx=512, n_threads=1) as plain, serving(plain) as client:
        assert choice_of(client.complete(prompt="a", max_tokens=3, seed=1, logprobs=1))["rewards"] is None
        assert client.post("/v1/completions", {"prompt": "a", "stream": True, "max_tokens": 3}).events[-1] == "[DONE]"
        for otter in ({"guidance": "args"}, {"as_logprobs": True}):
            reply = client.post("/v1/completions", {"prompt": "a", "logprobs": 1, "otter": otter})
            assert reply.error == "invalid_request_error"
        for path, body in (("/v1/rerank", {"query": "a", "documents": ["b"]}), ("/pooling", {"input": "a"})):
            assert client.post(path, body).error == "invalid_request_error"


# ---- chat ------------------------------------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "hi"}]


def test_a_conversation(chat: Client) -> None:
    body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 6, "seed": 1, "logprobs": True, "top_logprobs": 2}
    answer = chat.post("/v1/chat/completions", body).json
    choice = choice_of(answer)
    assert choice["message"]["role"] == "assistant"
    assert len(choice["logprobs"]["content"]) == len(choice["rewards"]["tokens"])
    events = chat.post("/v1/chat/completions", {**body, "stream": True}).events
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas) == choice["message"]["content"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    same = chat.post("/v1/chat/completions", {**body, "messages": parts}).json
    assert choice_of(same)["message"] == choice["message"]
    prompt = chat.post("/apply-template", {"messages": parts}).json["prompt"]
    assert "hi" in prompt
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]
    for wrong in (image, [], [{"role": "user"}], [5]):
        assert chat.post("/v1/chat/completions", {"messages": wrong}).error == "invalid_request_error"


def test_the_cache_is_used_between_turns(chat: Client) -> None:
    messages = [{"role": "user", "content": "Once upon a time there was an otter in the sea."}]
    first = chat.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4}).json
    again = chat.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4}).json
    n_prompt = first["usage"]["prompt_tokens"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == n_prompt - 1
    fresh = chat.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4, "cache_prompt": False}).json
    assert fresh["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"deep": {"type": "boolean"}}, "required": ["deep"]},
        },
    }
    for name in ("dive", "swim")
]


def test_functions_can_be_called(chat: Client) -> None:
    template = CHATML + "{% for tool in tools %}{{ tool.function.name }}{% endfor %}"
    files = chat_pair(template, "tools.gguf")
    with open_exact(files, n_ctx=1024) as llm, serving(llm) as client:
        assert (
            client.post("/apply-template", {"messages": MESSAGES, "tools": TOOLS}).json["prompt"].endswith("diveswim")
        )
        body: dict[str, Any] = {"messages": MESSAGES, "tools": TOOLS, "seed": 1, "max_tokens": 200, "temperature": 0.3}
        for choice, allowed in (
            ("required", {"dive", "swim"}),
            ({"type": "function", "function": {"name": "swim"}}, {"swim"}),
        ):
            asked = {**body, "tool_choice": choice}
            answer = choice_of(client.post("/v1/chat/completions", asked).json)
            (call,) = answer["message"]["tool_calls"]
            assert answer["finish_reason"] == "tool_calls"
            assert answer["message"]["content"] is None
            assert call["function"]["name"] in allowed
            assert json.loads(call["function"]["arguments"])["deep"] in (True, False)
            events = client.post("/v1/chat/completions", {**asked, "stream": True}).events[:-1]
            deltas = [event["choices"][0]["delta"] for event in events]
            assert not any(delta.get("content") for delta in deltas)
            assert deltas[-1]["tool_calls"][0]["function"] == call["function"]
        free = choice_of(client.post("/v1/chat/completions", {**body, "tool_choice": "none", "max_tokens": 5}).json)
        assert "tool_calls" not in free["message"]
        mistakes: list[dict[str, Any]] = [
            {"tool_choice": "fly"},
            {"tools": [{}]},
            {"tools": [], "tool_choice": "required"},
        ]
        for wrong in mistakes:
            assert client.post("/v1/chat/completions", {**body, **wrong}).error == "invalid_request_error"
    assert chat.post("/v1/chat/completions", {"messages": MESSAGES, "tools": TOOLS}).error == "invalid_request_error"


def test_a_model_without_a_template_says_so(llm: Otter, client: Client) -> None:
    reply = client.post("/v1/chat/completions", {"messages": MESSAGES})
    assert reply.error == "invalid_request_error"
    assert reply.json["error"]["message"].startswith("toy ")
    assert str(llm.model_path) not in reply.data.decode()


# ---- about the server ------------------------------------------------------------------------------------------------


def test_what_the_server_says_of_itself(llm: Otter, client: Client) -> None:
    models = client.get("/v1/models").json
    assert [model["id"] for model in models["data"]] == ["toy"]
    props = client.get("/props").json
    assert props["default_generation_settings"]["n_ctx"] == llm.n_ctx
    assert props["otter"]["labels"] == ["reward"]
    assert props["otter"]["models"] == ["friend"]
    assert {"args", "gated", "best_of_n"} <= {rule["name"] for rule in props["otter"]["rules"]}
    text = client.get("/metrics").data.decode()
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(figures["llamacpp:tokens_predicted_total"]) > 0
    assert client.get("/v1/nothing").status == 404
    assert client.get("/v1/completions").status == 405
    assert client.get("/health").json == {"status": "ok"}


def test_the_described_interface_is_the_one_there_is(client: Client) -> None:
    described = client.get("/openapi.json").json
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            if method == "get":
                assert client.get(path).status == 200
                continue
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            reply = client.post(path, dict.fromkeys(schema["properties"]))
            assert "no such field" not in reply.data.decode()
            assert client.post(path, {"no_such_field": 1}).error == "invalid_request_error"


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_sigterm_ends_streams_by_an_error_event(tmp_path: Any) -> None:
    command = [
        sys.executable,
        "-m",
        "otter_gguf.cli.main",
        "serve",
        "--port",
        "0",
        "-t",
        "1",
        "-c",
        "4096",
        "--grace",
        "0.5",
    ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    ) as server:
        try:
            assert server.stderr is not None
            line = next(line for line in server.stderr if line.startswith("listening at "))
            client = Client(int(line.rsplit(":", 1)[1]), None)  # type: ignore[arg-type]
            body = {"prompt": "The old man", "max_tokens": 4000, "ignore_eos": True, "stream": True}
            data: list[bytes] = []
            connection = client.send("POST", "/v1/completions", body)
            response = connection.getresponse()
            data.append(response.read1(10))
            reader = threading.Thread(target=lambda: data.append(response.read()))
            reader.start()
            begin = time.monotonic()
            server.send_signal(signal.SIGTERM)
            assert server.wait(20) == 0
            assert time.monotonic() - begin < 5
            reader.join(20)
            last = b"".join(data).decode().strip().split("\n\n")[-1]
            assert event_of(last)["error"]["type"] == "unavailable_error"
            assert "Traceback" not in server.stderr.read()
        finally:
            server.kill()


def test_a_client_written_by_others(chat: Client) -> None:
    openai = pytest.importorskip("openai", reason="openai-python is not installed")
    with openai.OpenAI(base_url=f"{chat.url}/v1", api_key="none", max_retries=0) as theirs:
        assert [model.id for model in theirs.models.list()]
        whole = theirs.chat.completions.create(
            model="m",
            messages=MESSAGES,
            max_completion_tokens=6,
            seed=1,
            extra_body={"otter": {"guidance": "args:n_candidates=3"}},
        )
        assert whole.choices[0].model_extra["rewards"]["labels"]
        parts = list(
            theirs.chat.completions.create(
                model="m",
                messages=MESSAGES,
                max_completion_tokens=6,
                seed=1,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"otter": {"guidance": "args:n_candidates=3"}},
            )
        )
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert text == whole.choices[0].message.content
        assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens
        completion = theirs.completions.create(model="m", prompt="a", max_tokens=3, logprobs=1, echo=True)
        assert completion.choices[0].text.startswith("a")
        with pytest.raises(openai.BadRequestError):
            theirs.completions.create(model="m", prompt="a", temperature=-1)
