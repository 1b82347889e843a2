"""The process of ``otter-gguf serve``: uvicorn, and an end that texts under way are told of."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import Any

import uvicorn

from .app import Service
from .options import ServerOptions

_CLOSE_SECONDS = 1.0


class _Server(uvicorn.Server):
    """Says where it listens, and gives texts under way their time when it ends."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            options = self._service.options
            port = self.servers[0].sockets[0].getsockname()[1]
            host = f"[{options.host}]" if ":" in options.host else options.host
            scheme = "https" if options.ssl_cert_file else "http"
            print(f"listening at {scheme}://{host}:{port}", file=sys.stderr, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending = asyncio.ensure_future(self._service.end())
        await super().shutdown(sockets)
        await self._ending


def serve(service: Service) -> None:
    """Answer until SIGTERM or Ctrl-C. ``OSError`` if the address cannot be had."""
    options = service.options
    listening = _listen(options)
    config: dict[str, Any] = {
        "log_config": None,
        "access_log": False,
        "lifespan": "off",
        "server_header": False,
        "timeout_graceful_shutdown": round(options.grace + 1.5),
        "ssl_keyfile": options.ssl_key_file or None,
        "ssl_certfile": options.ssl_cert_file or None,
    }

    async def main() -> None:
        server = _Server(uvicorn.Config(service.app(), **config), service)
        try:
            await server.serve([listening])
        finally:
            try:
                await asyncio.wait_for(service.model.close(), _CLOSE_SECONDS)
            except asyncio.TimeoutError:
                os._exit(0)  # all have been told; a step under way cannot be broken off

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn's own while it serves; it raises them once more behind that
    asyncio.run(main())


def _listen(options: ServerOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((options.host, options.port))
    except BaseException as error:
        listening.close()
        if isinstance(error, OSError):
            error.filename = f"{options.host}:{options.port}"
        raise
    return listening
