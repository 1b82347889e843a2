"""Many requests of every kind: nothing of them is left, neither places in the context nor memory.

A few hundred by default; ``OTTER_SOAK_REQUESTS=10000`` for as many.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'server' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'server' is not installed")

from tests.completions import chat_pair
from tests.guidance.reference import open_exact
from tests.serving.served import Client, serving

N_REQUESTS = int(os.environ.get("OTTER_SOAK_REQUESTS", "300"))
N_CLIENTS = 6


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with open_exact(chat_pair(), n_ctx=1024, n_seq_max=24) as llm, serving(llm) as client:
        yield client


def request(pick: random.Random) -> tuple[str, dict[str, Any]]:
    """One of those that a server gets."""
    text = "The otter lives in the sea, and eats urchins."[pick.randrange(20) :]
    options = {"max_tokens": pick.randrange(1, 6), "seed": pick.randrange(100), "stream": pick.random() < 0.5}
    guidance = pick.choice([None, None, "args:n_candidates=3", "vocabulary", "best_of_n:n=2"])
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": text, "otter": {"guidance": guidance}, **options}),
        ("/v1/completions", {"prompt": text, "echo": True, "logprobs": 1, **options}),
        ("/v1/completions", {"prompt": text, "json_schema": {"type": "integer"}, **options}),
        ("/v1/completions", {"prompt": text, "temperature": -1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **options}),
        ("/v1/rerank", {"query": text, "documents": ["a", "b"]}),
        ("/tokenize", {"content": text}),
    ]
    return pick.choice(kinds)


def send(port: int, numbers: list[int], problems: list[Any]) -> None:
    """So many requests over one connection; some clients go away in the middle of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for number in numbers:
        pick = random.Random(number)
        path, body = request(pick)
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        if pick.random() < 0.1:
            connection.close()
            continue
        response.read()
        if response.status not in (200, 400):
            problems.append((response.status, path, body))
    connection.close()


def run(client: Client, numbers: range) -> int:
    """Resident bytes behind these requests."""
    problems: list[Any] = []
    threads = [
        threading.Thread(target=send, args=(client.port, list(numbers[index::N_CLIENTS]), problems))
        for index in range(N_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    end = time.monotonic() + 20
    while client.service.under_way:
        assert time.monotonic() < end
        time.sleep(0.01)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_nothing_is_left_of_many_requests(client: Client) -> None:
    before = run(client, range(N_REQUESTS // 2))
    after = run(client, range(N_REQUESTS // 2, N_REQUESTS))
    engine, streams = client.service.model.llm.engine, client.service.model.llm.session.streams
    assert not streams.live
    assert not engine._jobs
    assert not engine._waiting
    held = {sequence for stream in streams.kept for sequence in stream.sequences}
    assert sorted({*streams._free, *held}) == list(range(24))
    assert not client.service.model.driver._followed
    print(f"{before / 1e6:.1f} MB, then {after / 1e6:.1f} MB")
    assert after < before * (1.01 if N_REQUESTS >= 10000 else 1.05)
