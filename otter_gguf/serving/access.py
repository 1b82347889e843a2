"""Who may send requests, and how large ones: an ASGI middleware in front of all routes.

A web page anywhere can make its visitor's browser send requests to a server on that machine. So a request with a
foreign ``Origin`` is refused unless that origin is allowed, and while the server listens to its own machine alone, one
whose ``Host`` is another machine's: such a name was pointed here by somebody else.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from .answers import RefusedError, dumps, error_of
from .options import OWN_NAMES, ServerOptions

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC = frozenset({"/", "/page.css", "/page.js", "/health", "/v1/health", "/models", "/v1/models"})
"""What needs no key, as in llama-server."""

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Access:
    """Keys, origins and hosts."""

    def __init__(self, app: App, options: ServerOptions) -> None:
        self.app, self.options = app, options
        self._is_local = options.host in OWN_NAMES
        self._keys = [key.encode() for key in filter(None, options.api_key.split(","))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get(b"origin")
        cors = self._cors(origin) if origin in self.options.cors_origins or "*" in self.options.cors_origins else []

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *(() if cors else _HEADERS), *cors]
            await send(message)

        try:
            if cors and scope["method"] == "OPTIONS":
                await _answer(send_with_headers, 204, b"")
                return
            self._check(scope, headers, origin, bool(cors))
        except RefusedError as error:
            code, body = error_of(error)
            await _answer(send_with_headers, code, dumps(body))
            return
        await self.app(scope, receive, send_with_headers)

    def _check(self, scope: Scope, headers: dict[bytes, str], origin: str | None, allowed: bool) -> None:
        host = headers.get(b"host", "")
        if self._is_local and not self._keys and _name(host) not in (*OWN_NAMES, self.options.host):
            raise RefusedError(403, "permission_error", f"the host is {host[:100]!r}, expected that of this machine")
        if origin is not None and not allowed and origin.partition("://")[2] != host:
            raise RefusedError(403, "permission_error", f"{origin[:100]!r} is not allowed here (--cors-origins)")
        if self._keys and scope["path"] not in PUBLIC and not self._is_key(headers):
            raise RefusedError(401, "authentication_error", "Invalid API Key")

    def _is_key(self, headers: dict[bytes, str]) -> bool:
        """In a time that says nothing about the keys."""
        scheme, _, given = headers.get(b"authorization", "").partition(" ")
        shown = given.strip() if scheme.lower() == "bearer" else headers.get(b"x-api-key", "")
        matches = [hmac.compare_digest(shown.encode("latin-1", "replace"), key) for key in self._keys]
        return any(matches)

    def _cors(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        if origin is None:
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-headers", b"authorization, content-type, x-api-key"),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"vary", b"origin"),
        ]


def _name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


async def _answer(send: Send, code: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
