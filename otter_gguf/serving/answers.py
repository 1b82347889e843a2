"""From results of Otter's methods to the JSON of answers: what each client expects beside text and rewards."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any

from .. import __version__
from ..chat.tools import ToolText
from ..errors import (
    ConfigError,
    ContextFullError,
    FileError,
    MismatchError,
    OtterError,
    UnsupportedError,
)
from .async_otter import Call
from .requests import Asked, Json

FINGERPRINT = f"otter-gguf-{__version__}"

_KINDS: tuple[tuple[type[Exception], int, str], ...] = (
    (ContextFullError, 400, "exceed_context_size_error"),
    (ConfigError, 400, "invalid_request_error"),
    (MismatchError, 400, "invalid_request_error"),
    (UnsupportedError, 501, "not_supported_error"),
    (FileError, 500, "server_error"),  # a chat template that fails
)


class RefusedError(OtterError):
    """A request that is refused for another reason than what it asks for."""

    def __init__(self, code: int, kind: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.code, self.kind = code, kind
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def error_of(error: BaseException) -> tuple[int, Json]:
    """Status and body of an error, as llama-server's. Of one that nobody expected nothing is told but that it was."""
    code, kind, message = 500, "server_error", "the server failed; its log says more"
    if isinstance(error, OtterError):
        message = str(error)
    if isinstance(error, RefusedError):
        code, kind = error.code, error.kind
    else:
        code, kind = next(((code, kind) for one, code, kind in _KINDS if isinstance(error, one)), (code, kind))
    return code, {"error": {"code": code, "message": message, "type": kind}}


def dumps(value: Any) -> bytes:
    """JSON; numbers that it cannot hold are null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":")).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + dumps(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


class Answer:
    """What a request for texts is answered with: its calls, one for each of ``n``, as one answer.

    Args:
        asked: The request.
        calls: Under way.
        model: The name in the answer.
    """

    def __init__(self, asked: Asked, calls: Sequence[Call], model: str) -> None:
        self.asked, self.calls, self.model = asked, calls, model
        self._head = {"id": f"{'chat' if asked.is_chat else ''}{calls[0].run.id}", "created": calls[0].run.created}
        self._offsets: dict[int, int] = {}
        tools = asked.options.get("tools") if asked.options.get("tool_choice") != "none" else None
        self._tools = [ToolText(tools) for _ in calls] if tools else []

    def whole(self, results: Sequence[Any]) -> Json:
        """Of the results of all calls."""
        choices = [
            self._choice(choice, number) for number, result in enumerate(results) for choice in result["choices"]
        ]
        return {
            **results[0],
            **self._head,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": sorted(choices, key=lambda choice: int(choice["index"])),
            "usage": self.usage(),
            "timings": self.timings(),
        }

    def chunk(self, number: int, chunk: Json) -> Json:
        """Of a chunk of one call."""
        choices = [self._choice(choice, number) for choice in chunk["choices"]]
        extra = {"timings": self.timings()} if self._tells_timings(choices) else {}
        if not self.asked.include_usage:
            chunk.pop("usage")
        return {
            **chunk,
            **self._head,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            **extra,
        }

    def _tells_timings(self, choices: Sequence[Json]) -> bool:
        is_begin = any("role" in choice.get("delta", ()) for choice in choices)
        return (self.asked.timings_per_token and not is_begin) or any(choice["finish_reason"] for choice in choices)

    def last_chunk(self) -> Json:
        """The event with the counts alone."""
        kind = "chat.completion.chunk" if self.asked.is_chat else "text_completion"
        return {
            **self._head,
            "object": kind,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [],
            "usage": self.usage(),
            "timings": self.timings(),
        }

    def usage(self) -> Json:
        """Tokens so far. A prompt counts once, however often it is continued."""
        n_prompt = sum(map(len, self.calls[0].run.prompts))
        n_tokens = sum(call.n_tokens for call in self.calls)
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_tokens,
            "total_tokens": n_prompt + n_tokens,
            "prompt_tokens_details": {"cached_tokens": self._n_cached()},
        }

    def _n_cached(self) -> int:
        return sum(handle.n_cached for handle in self.calls[0].handles)

    def timings(self) -> Json:
        """Milliseconds, as llama-server's."""
        now, begin = time.perf_counter(), min(call.begin for call in self.calls)
        first = min((call.first for call in self.calls if call.first), default=now)
        n_cached, n_tokens = self._n_cached(), sum(call.n_tokens for call in self.calls)
        n_prompt = sum(map(len, self.calls[0].run.prompts)) - n_cached
        return {
            "cache_n": n_cached,
            **_rates("prompt", n_prompt, first - begin),
            **_rates("predicted", n_tokens, now - first),
        }

    def _choice(self, choice: Json, number: int) -> Json:
        asked = self.asked
        choice["index"] = choice["index"] * asked.n + number
        rewards = choice["rewards"]
        if asked.return_tokens and rewards:
            choice["tokens"] = rewards["tokens"]
        if asked.as_logprobs and rewards and choice["logprobs"]:
            _add_rewards(choice["logprobs"], rewards, is_chat=asked.is_chat)
        prompt = choice.pop("prompt_logprobs", None)
        if asked.echo and choice.get("logprobs"):
            self._echo_logprobs(choice, prompt, choice["index"])
        for step in choice.get("steps", ()):
            if "candidates" in step:
                step["pieces"] = [self.calls[number].run.text_of(token) for token in step["candidates"]]
        if self._tools:
            self._find_calls(choice, self._tools[number])
        if not asked.rewards:
            del choice["rewards"]
        return choice

    def _find_calls(self, choice: Json, text: ToolText) -> None:
        """Take calls of functions out of the text."""
        message = choice["message"] if "message" in choice else choice["delta"]
        content = text.push(message["content"])
        if choice["finish_reason"] is not None:
            rest, calls = text.finish()
            content += rest
            if calls:
                message["tool_calls"] = calls
                choice["finish_reason"] = "tool_calls"
        message["content"] = content if content or "role" not in message or "tool_calls" not in message else None

    def _echo_logprobs(self, choice: Json, prompt: Json | None, index: int) -> None:
        """Put those of the prompt in front; places count from the prompt's beginning."""
        own = choice["logprobs"]
        if prompt is not None:
            self._offsets[index] = sum(map(len, prompt["tokens"]))
        shift = self._offsets.get(index, 0)
        own["text_offset"] = [place + shift for place in own["text_offset"]]
        if prompt is not None:
            choice["logprobs"] = {key: [*prompt[key], *own[key]] for key in own}


def _rates(what: str, count: int, seconds: float) -> Json:
    return {
        f"{what}_n": count,
        f"{what}_ms": 1000 * seconds,
        f"{what}_per_token_ms": 1000 * seconds / max(1, count),
        f"{what}_per_second": count / max(1e-9, seconds),
    }


def _add_rewards(logprobs: Json, rewards: Json, *, is_chat: bool) -> None:
    """The rewards of each token as further entries of its most likely ones."""
    names = [f"<|reward:{label}|>" for label in rewards["labels"]]
    tops = [one["top_logprobs"] for one in logprobs["content"]] if is_chat else logprobs["top_logprobs"]
    for top, row in zip(tops, rewards["token_rewards"], strict=True):
        if is_chat:
            top += [
                {"token": name, "bytes": list(name.encode()), "logprob": reward}
                for name, reward in zip(names, row, strict=True)
            ]
        else:
            top.update(zip(names, row, strict=True))
