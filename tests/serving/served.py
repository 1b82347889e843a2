"""A model behind HTTP, in a thread of this process, on loopback; and a client that speaks nothing but HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn

from otter_gguf import AsyncOtter, Otter
from otter_gguf.serving.app import Service
from otter_gguf.serving.options import ServerOptions
from otter_gguf.serving.run import _Server


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> str:
        """The kind of an error; its body must be llama-server's."""
        error = self.json["error"]
        assert error["code"] == self.status
        assert error["message"]
        return str(error["type"])

    @property
    def events(self) -> list[Any]:
        """Of a stream that came to its end."""
        *parts, rest = self.data.decode().split("\n\n")
        assert rest == ""
        return [event_of(part) for part in parts if not part.startswith(":")]


def event_of(part: str) -> Any:
    assert part.startswith("data: "), part
    return "[DONE]" if part == "data: [DONE]" else json.loads(part[6:])


class Client:
    """Of one server."""

    def __init__(self, port: int, service: Service) -> None:
        self.port, self.service = port, service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPConnection:
        """A request whose answer is not read yet."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path, data, {key.replace("_", "-"): value for key, value in headers.items()})
        return connection

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """A request and its whole answer."""
        connection = self.send(method, path, body, **headers)
        try:
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        return self.ask("POST", path, body, **headers)

    def complete(self, **body: Any) -> Any:
        """A completion that must work."""
        reply = self.post("/v1/completions", body)
        assert reply.status == 200, reply.data
        return reply.json


@contextmanager
def serving(llm: Otter, models: Any = None, sampling: Any = None, **options: Any) -> Iterator[Client]:
    """A server of this model, which stays open."""
    listening = socket.create_server(("127.0.0.1", 0))
    begun = threading.Event()
    services: list[Service] = []
    servers: list[_Server] = []
    problems: list[BaseException] = []

    async def main() -> None:
        service = Service(AsyncOtter(llm), ServerOptions(**{"grace": 0.0, **options}), models, sampling)
        server = _Server(uvicorn.Config(service.app(), log_config=None, lifespan="off"), service)
        services.append(service)
        servers.append(server)
        serve = asyncio.ensure_future(server.serve([listening]))
        while not server.started and not serve.done():
            await asyncio.sleep(0.01)
        begun.set()
        await serve
        await asyncio.to_thread(service.model.driver.close)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            problems.append(error)
            begun.set()

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait(60)
    try:
        yield Client(listening.getsockname()[1], services[0])
    finally:
        servers[0].should_exit = True
        thread.join(60)
        assert not thread.is_alive()
        assert not problems, problems
