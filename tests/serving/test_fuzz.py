"""Requests that nobody should send: the server answers each in OpenAI's shape, opens nothing, and goes on.

A few hundred by default; ``OTTER_FUZZ_REQUESTS=20000`` for as many, ``OTTER_FUZZ_SEED`` for others.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'server' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'server' is not installed")

from otter_gguf.serving.app import FIELDS, ROUTES
from otter_gguf.serving.requests import CHAT, COMPLETION, HARMLESS, OTTER, SAMPLING, SHARED
from tests.completions import chat_pair
from tests.guidance.reference import open_exact
from tests.serving.served import Client, serving

N_REQUESTS = int(os.environ.get("OTTER_FUZZ_REQUESTS", "300"))
SEED = int(os.environ.get("OTTER_FUZZ_SEED", "1"))
POSTS = [paths[0] for paths, is_post, _ in ROUTES if is_post]
GETS = [paths[0] for paths, is_post, _ in ROUTES if not is_post]

MOST_SECONDS = 12.0
"""Of one request: a grammar may take 5 seconds of processor time, on a machine that others use too."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with open_exact(chat_pair(), n_ctx=512, n_seq_max=8) as llm, serving(llm, timeout=8.0) as client:
        yield client


class Requests:
    """Makes them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pick = self.random.choice

    def request(self) -> tuple[str, str, bytes, dict[str, str]]:
        method, path = "POST", self.pick([*POSTS, *POSTS[:2] * 6])
        if self.random.random() < 0.15:
            method = self.pick(["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "POST"])
            path = self.pick([*GETS, *POSTS, "/", "/../etc/passwd", "/%2e%2e/page.js", "/" + "a" * 3000])
        return method, path, self.bytes(path), self.headers()

    def bytes(self, path: str) -> bytes:
        kind = self.random.random()
        if kind < 0.06:
            return bytes(self.random.randrange(256) for _ in range(self.random.randrange(300)))
        if kind < 0.1:
            return self.pick(
                [b"[" * 60000, b'{"a":' * 60000, b"", b"null", b'"x"', b"{" + b'"a":1,' * 5000 + b'"b":2}']
            )
        data = json.dumps(self.body(path)).encode()
        if kind < 0.2:  # a changed byte, or a cut
            at = self.random.randrange(len(data))
            return (
                data[:at]
                + self.pick([b"", b"\xff", b"NaN", b"\x00", b'"', b"]"])
                + data[at + self.pick([0, 1, len(data)]) :]
            )
        return data

    def body(self, path: str) -> dict[str, Any]:
        names = [*(CHAT if "chat" in path else COMPLETION), *SHARED, *SAMPLING, *sorted(HARMLESS), "best", "path"]
        if path in FIELDS:
            names = [*FIELDS[path], "model"]
        count = self.random.randrange(4)
        body = {name: self.value(name) for name in self.random.sample(names, min(count, len(names)))}
        if self.random.random() < 0.8:
            body |= {"messages": self.messages()} if "chat" in path or "template" in path else {}
            body |= {"prompt": self.value("prompt")} if path == "/v1/completions" else {}
        if path in ("/v1/completions", "/v1/chat/completions"):
            body.setdefault("max_tokens", self.pick([0, 1, 2, 3, 5]))
        return body

    def messages(self) -> Any:
        message = {
            "role": self.pick(["user", "system", "tool", "x", 5]),
            "content": self.pick(["hi", None, 5, [], "\ud800"]),
        }
        return self.pick([[{"role": "user", "content": "hi"}], [message], [], {}, [message] * 50, [[message]]])

    def value(self, name: str) -> Any:
        if self.random.random() < 0.2:
            return self.pick(ODD)()
        if name == "otter":
            names = self.random.sample([*OTTER, "x"], 2)
            return {one: self.pick([True, False, "args", "best_of_n:n=2", {"rule": "args"}, *RULES]) for one in names}
        usual: dict[str, list[Any]] = {
            "prompt": ["a", "The otter", ["a", "b"], [65, 66], [[65], [66]], [10**9], [-1], "é" * 900, " " * 300],
            "grammar": GRAMMARS,
            "json_schema": SCHEMAS,
            "response_format": [{"type": "json_object", "schema": schema} for schema in SCHEMAS],
            "tools": [[{"type": "function", "function": {"name": "f", "parameters": schema}}] for schema in SCHEMAS],
            "tool_choice": ["none", "auto", "required", {"function": {"name": "f"}}],
            "logit_bias": [
                {"65": 1e30},
                {"65": -1e300},
                {str(i): i for i in range(600)},
                [[65, False]],
                [[65]],
                {"x": 1},
            ],
            "stop": ["a", ["a"] * 500, "b" * 5000, [""]],
        }
        return self.pick(usual.get(name, [0, 1, 2, 0.5, "a", ["a"], True]))

    def headers(self) -> dict[str, str]:
        odd = (
            {"Content-Type": "text/plain"},
            {"Authorization": "Bearer \xff"},
            {"X-Odd": "a" * 20000},
            {"Origin": "null"},
        )
        return dict(self.pick([{}, {}, {}, {}, {}, {}, *odd]))


ODD: list[Callable[[], Any]] = [
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 2**31,
    lambda: 2**64,
    lambda: 10**400,
    lambda: -0.0,
    lambda: 1e308,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: "",
    lambda: "/etc/passwd",
    lambda: "\x00",
    lambda: "\ud800",
    lambda: "a" * 100_000,
    list,
    dict,
    lambda: [[]],
    lambda: {"a": {"b": {}}},
    lambda: list(range(3000)),
    lambda: {str(number): number for number in range(1000)},
]
RULES = [
    {"rule": "args", "n_candidates": 10**9},
    {"rule": "args", "n_candidates": 3, "weight": 1e300},
    {"rule": "best_of_n", "n": 10**6},
    {"rule": "cards", "target": 1e9},
    {"rule": "dexperts", "expert": "/etc/passwd"},
    {"rule": "gated", "policy": {"rule": "gated"}},
    {"rule": ["args"]},
    "args:label=/etc/passwd",
    "gated:entropy=1+" * 200 + "args",
    'contrast:prompt="' + "a" * 3000 + '"',
]
GRAMMARS = [
    'root ::= "a"*',
    "root ::= root",
    "root ::= (" * 200,
    'root ::= ("a" | "a" "a")*',
    "root ::= [a-z]{1,100000}",
    "root ::= " + "(" * 3000 + '"a"' + ")*" * 3000,
    "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40 ::= "a"\nroot ::= r0',
]
SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"old": {"type": "boolean"}}},
    {"$ref": "#"},
    {"$ref": "file:///etc/passwd"},
    {"type": "string", "pattern": "^(a+)+$"},
    {"type": "string", "minLength": 10**9},
    {"anyOf": [{"type": "integer"}] * 400},
    {"type": "array", "items": {"type": "string"}, "minItems": 100000},
    {"properties": {str(i): {} for i in range(300)}},
    5,
]


def _opened() -> list[str]:
    """Files that this process opens from now on, by Python."""
    opened: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and watching[0] and isinstance(args[0], (str, bytes)):
            opened.append(os.fsdecode(args[0]))

    watching = [True]
    sys.addaudithook(hook)
    _stop_watching.append(lambda: watching.__setitem__(0, False))
    return opened


_stop_watching: list[Callable[[], None]] = []


def test_odd_requests_are_answered(client: Client) -> None:
    client.complete(prompt="a", max_tokens=1)
    client.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1})
    made, opened = Requests(SEED), _opened()
    codes: dict[int, int] = {}
    slowest = 0.0
    for number in range(N_REQUESTS):
        method, path, data, headers = made.request()
        where = f"request {number} of seed {SEED}: {method} {path[:60]} {headers} {data[:2000]!r}"
        begin = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
        try:
            connection.request(method, path, data, {k: v.encode("latin-1") for k, v in headers.items()})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        slowest = max(slowest, time.monotonic() - begin)
        codes[response.status] = codes.get(response.status, 0) + 1
        assert response.status != 500, (where, answer)
        assert slowest < MOST_SECONDS, where
        assert b"Traceback" not in answer, where
        if response.status >= 400 and method != "HEAD" and response.headers["content-type"] == "application/json":
            assert json.loads(answer)["error"]["message"], where
    _stop_watching.pop()()
    print(f"{N_REQUESTS} requests, {codes}, slowest {slowest:.2f} s")
    assert not [name for name in opened if "passwd" in name]
    assert codes.get(200, 0) > N_REQUESTS // 20
    assert codes.get(400, 0) > N_REQUESTS // 20
    wait_until_idle(client)
    client.complete(prompt="a", max_tokens=1)


def wait_until_idle(client: Client) -> None:
    end = time.monotonic() + 30
    while client.service.under_way:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not client.service.model.llm.session.streams.live


@pytest.mark.parametrize(
    "data", [b"", b"\x16\x03\x01" * 100, b"GET / HTTP/9\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n"]
)
def test_what_is_no_request_harms_nobody(client: Client, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(data)
        connection.settimeout(0.3)
        with contextlib.suppress(OSError):
            connection.recv(1000)
    client.complete(prompt="a", max_tokens=1)


@pytest.mark.parametrize("bomb", range(len(GRAMMARS) + len(SCHEMAS)))
def test_a_bomb_delays_others_by_less_than_a_second(client: Client, bomb: int) -> None:
    shapes = [*({"grammar": one} for one in GRAMMARS), *({"json_schema": one} for one in SCHEMAS)]
    body = {"prompt": "a", "max_tokens": 30, **shapes[bomb]}
    thread = threading.Thread(target=lambda: client.post("/v1/completions", body))
    thread.start()
    gaps, last = [0.0], time.monotonic()
    while thread.is_alive() and time.monotonic() < last + 20:
        client.complete(prompt="a", max_tokens=3)
        now = time.monotonic()
        gaps.append(now - last)
        last = now
    thread.join()
    assert max(gaps) < 1.0 + 4 * sorted(gaps)[len(gaps) // 2], f"{max(gaps):.2f} s"
