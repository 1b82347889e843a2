"""How the server is reached and what it lets callers use; the flags of ``otter-gguf serve`` come from here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from .._numbers import finite, shown
from ..errors import ConfigError

OWN_NAMES = ("localhost", "127.0.0.1", "::1")
"""Hosts that nobody but this machine reaches."""


def _flag(flag: str, text: str) -> dict[str, Any]:
    return {"flags": (flag,), "help": text}


@dataclass(frozen=True)
class ServerOptions:
    """Where it listens, who may use it, and how much."""

    host: str = field(
        default="127.0.0.1", metadata=_flag("--host", "address to listen at; 0.0.0.0 lets the network in")
    )
    port: int = field(default=8080, metadata=_flag("--port", "port to listen at; 0 = any free one"))
    alias: str = field(default="", metadata=_flag("--alias", "name of the model in answers; empty = its file's"))
    api_key: str = field(default="", metadata=_flag("--api-key", "what callers must show as 'Authorization: Bearer'"))
    cors_origins: tuple[str, ...] = field(
        default=(), metadata=_flag("--cors-origins", "other web pages that may use it, such as https://a.example,...")
    )
    ssl_key_file: str = field(default="", metadata=_flag("--ssl-key-file", "PEM file of the private key, for https"))
    ssl_cert_file: str = field(default="", metadata=_flag("--ssl-cert-file", "PEM file of the certificate, for https"))
    queue: int = field(default=64, metadata=_flag("--queue", "requests that may wait for a place; more get a 503"))
    timeout: float = field(default=600.0, metadata=_flag("--timeout", "seconds that a request may take; 0 = any"))
    grace: float = field(
        default=3.0, metadata=_flag("--grace", "seconds that running texts are given when the server is ended")
    )
    max_tokens: int = field(
        default=0, metadata=_flag("--max-tokens", "tokens that a text may ask for; 0 = as many as the context has")
    )
    max_texts: int = field(default=128, metadata=_flag("--max-texts", "texts and documents of one request"))
    max_body: int = field(default=4 << 20, metadata=_flag("--max-body", "bytes of a request"))
    webui: bool = field(default=True, metadata=_flag("--no-webui", "leave out the page at /"))

    def __post_init__(self) -> None:
        origins: object = self.cors_origins
        if isinstance(origins, str):  # of a flag
            object.__setattr__(self, "cors_origins", tuple(filter(None, origins.split(","))))
        least = {"port": 0, "queue": 0, "max_tokens": 0, "max_texts": 1, "max_body": 1024}
        for name, bound in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < bound:
                raise ConfigError(f"{name} is {shown(value)}, expected a whole number of at least {bound}")
        if self.port > 65535:
            raise ConfigError(f"port is {self.port}, expected a number from 0 to 65535")
        for name in ("timeout", "grace"):
            if finite(getattr(self, name), name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected seconds, or 0")
        for one in fields(self):
            if one.type == "str" and not isinstance(getattr(self, one.name), str):
                raise ConfigError(f"{one.name} is {shown(getattr(self, one.name))}, expected text")
        if bool(self.ssl_key_file) != bool(self.ssl_cert_file):
            raise ConfigError("ssl_key_file and ssl_cert_file belong together: give both")
