"""Completions in OpenAI's shape, with the rewards of every token beside the text."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, TypedDict

from .steps import FinishReason, Float32, Logprobs, Piece, Record

if TYPE_CHECKING:
    from .engine import Handle


class Rewards(TypedDict):
    """The rewards of a text or of a chunk of it."""

    labels: list[str]
    """What each reward means."""
    tokens: list[int]
    text_offset: list[int]
    """Where each token begins, in characters of the completion's text."""
    token_rewards: list[list[float]]
    """(tokens, labels): the rewards of the text that ends with the token."""
    reward: float
    """The first label's reward for the whole text so far."""


class CompletionLogprobs(TypedDict):
    """As OpenAI's completions give them: under the base, at temperature 1, natural logarithms.

    Tokens that are no text by themselves read ``bytes:\\xf0\\x9f``, special ones have their names.
    """

    tokens: list[str]
    text_offset: list[int]
    token_logprobs: list[float | None]
    """None for the first token of a prompt."""
    top_logprobs: list[dict[str, float] | None]
    """The most likely ones, best first, and the chosen one where it is none of them."""


class TokenLogprob(TypedDict, total=False):
    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(TypedDict):
    """As OpenAI's chat completions give them."""

    content: list[TokenLogprob]


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Choice(TypedDict):
    index: int
    finish_reason: FinishReason | None
    rewards: Rewards | None


class CompletionChoice(_Choice, total=False):
    text: str
    logprobs: CompletionLogprobs | None
    prompt_logprobs: CompletionLogprobs
    prompt_rewards: Rewards | None
    steps: list[Record]


class CompletionResponse(TypedDict):
    """What ``create_completion`` returns, and what it yields with ``stream=True`` (then without ``usage``)."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None


class Message(TypedDict, total=False):
    role: str
    content: str


class ChatChoice(_Choice, total=False):
    message: Message
    delta: Message
    logprobs: ChatLogprobs | None
    steps: list[Record]


class ChatResponse(TypedDict):
    """What ``create_chat_completion`` returns (``message``), and what it yields with ``stream=True`` (``delta``)."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None


@dataclass
class Run:
    """One call under way: one text or several."""

    model_name: str
    labels: Sequence[str]
    prompts: Sequence[Sequence[int]]
    handles: Sequence[Handle]
    """What the engine has of each text."""
    pieces: Iterator[Piece]
    token_bytes: Callable[[int], bytes]
    """Special tokens by name."""
    logprobs: bool = False
    step_records: bool = False
    is_chat: bool = False
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def rewards(self, piece: Piece, before: float) -> Rewards | None:
        """The rewards of a piece; ``before`` is the reward of the text up to it."""
        if not self.labels:
            return None
        rows = [event.step.rewards.tolist() for event in piece.events]
        return {
            "labels": list(self.labels),
            "tokens": [event.step.token for event in piece.events],
            "text_offset": piece.offsets,
            "token_rewards": rows,
            "reward": rows[-1][0] if rows else before,
        }

    def prompt_rewards(self, index: int) -> Float32:
        """(tokens or 1, n_rewards): of every token of a prompt or of the last; once it has been fed."""
        rewards = self.handles[index].prompt_rewards
        assert rewards is not None
        return rewards

    def first_reward(self, index: int = 0) -> float:
        """The first label's reward of a prompt."""
        return float(self.prompt_rewards(index)[-1, 0]) if self.labels else 0.0

    def usage(self, n_tokens: int) -> Usage:
        """Token counts of all texts together."""
        n_prompt = sum(map(len, self.prompts))
        return {"prompt_tokens": n_prompt, "completion_tokens": n_tokens, "total_tokens": n_prompt + n_tokens}

    def text_of(self, token: int) -> str:
        """A token alone: its text, or its bytes as OpenAI writes those that are none."""
        data = self.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def join(run: Run) -> list[Piece]:
    """Run to the end: each text as one piece."""
    wholes = [Piece(index) for index in range(len(run.prompts))]
    texts: list[list[str]] = [[] for _ in wholes]
    for piece in run.pieces:
        whole = wholes[piece.index]
        texts[piece.index].append(piece.text)
        whole.events += piece.events
        whole.offsets += piece.offsets
        whole.records += piece.records
        whole.finish_reason = piece.finish_reason
    for whole, parts in zip(wholes, texts, strict=True):
        whole.text = "".join(parts)
    return wholes


def completion(run: Run, echoes: Sequence[str], with_prompt_rewards: bool) -> CompletionResponse:
    """Run to the end; one choice for each prompt."""
    wholes = join(run)
    choices = [
        _completion_choice(run, whole, echoes, run.first_reward(whole.index), with_prompt_rewards, is_first=True)
        for whole in wholes
    ]
    return _completion(run, choices, run.usage(sum(len(whole.events) for whole in wholes)))


def completion_chunks(
    run: Run, echoes: Sequence[str], with_prompt_rewards: bool
) -> Generator[CompletionResponse, None, None]:
    """Run piece by piece; the echoed prompt and its rewards come with a text's first one."""
    echo = list(echoes)
    before: dict[int, float] = {}
    for piece in run.pieces:
        index, fresh = piece.index, piece.index not in before
        reward = before.setdefault(index, run.first_reward(index))
        choice = _completion_choice(run, piece, echo, reward, fresh and with_prompt_rewards, is_first=fresh)
        yield _completion(run, [choice], None)
        before[index] = float(piece.events[-1].step.rewards[0]) if piece.events and run.labels else reward
        echo[index] = ""


def _completion_choice(
    run: Run, piece: Piece, echoes: Sequence[str], before: float, with_prompt_rewards: bool, *, is_first: bool
) -> CompletionChoice:
    choice: CompletionChoice = {
        "text": echoes[piece.index] + piece.text,
        "index": piece.index,
        "logprobs": _completion_logprobs(run, piece) if run.logprobs else None,
        "finish_reason": piece.finish_reason,
        "rewards": run.rewards(piece, before),
    }
    if is_first and (request := run.handles[piece.index].request) and request.prompt_logprobs is not None:
        choice["prompt_logprobs"] = _prompt_logprobs(run, piece.index)
    if with_prompt_rewards:
        choice["prompt_rewards"] = _prompt_rewards(run, piece.index)
    if run.step_records:
        choice["steps"] = piece.records
    return choice


def _completion(run: Run, choices: list[CompletionChoice], usage: Usage | None) -> CompletionResponse:
    return {
        "id": run.id,
        "object": "text_completion",
        "created": run.created,
        "model": run.model_name,
        "choices": choices,
        "usage": usage,
    }


def _prompt_rewards(run: Run, index: int) -> Rewards | None:
    if not run.labels:
        return None
    return {
        "labels": list(run.labels),
        "tokens": list(run.prompts[index]),
        "text_offset": [],
        "token_rewards": run.prompt_rewards(index).tolist(),
        "reward": run.first_reward(index),
    }


def _completion_logprobs(run: Run, piece: Piece) -> CompletionLogprobs:
    tokens = [event.step.token for event in piece.events]
    places = [event.logprobs for event in piece.events if event.logprobs is not None]
    return {
        "tokens": [run.text_of(token) for token in tokens],
        "text_offset": piece.offsets,
        "token_logprobs": [place.logprob for place in places],
        "top_logprobs": [_ranked(run, token, place) for token, place in zip(tokens, places, strict=True)],
    }


def _prompt_logprobs(run: Run, index: int) -> CompletionLogprobs:
    """Of the prompt: the first token follows nothing, so it has none."""
    prompt, places = run.prompts[index], run.handles[index].prompt_logprobs
    tops = [_ranked(run, token, place) for token, place in zip(prompt[1:], places, strict=True)]
    texts = [run.text_of(token) for token in prompt]
    return {
        "tokens": texts,
        "text_offset": [0, *accumulate(map(len, texts[:-1]))],
        "token_logprobs": [None, *(place.logprob for place in places)],
        "top_logprobs": [None, *tops],
    }


def _ranked(run: Run, chosen: int, place: Logprobs) -> dict[str, float]:
    """By text, best first; of tokens of the same text the best."""
    ranked: dict[str, float] = {}
    for token, logprob in (*zip(place.tokens, place.logprobs, strict=True), (chosen, place.logprob)):
        ranked.setdefault(run.text_of(token), logprob)
    return ranked


def _chat_logprobs(run: Run, piece: Piece) -> ChatLogprobs:
    content: list[TokenLogprob] = []
    for event in piece.events:
        if event.logprobs is not None:
            entry = _token_logprob(run, event.step.token, event.logprobs.logprob)
            ranked = zip(event.logprobs.tokens, event.logprobs.logprobs, strict=True)
            entry["top_logprobs"] = [_token_logprob(run, token, logprob) for token, logprob in ranked]
            content.append(entry)
    return {"content": content}


def _token_logprob(run: Run, token: int, logprob: float) -> TokenLogprob:
    return {"token": run.text_of(token), "bytes": list(run.token_bytes(token)), "logprob": logprob}


def chat_completion(run: Run) -> ChatResponse:
    """Run to the end."""
    (whole,) = join(run)
    choice = _chat_choice(run, whole, run.first_reward())
    choice["message"] = {"role": "assistant", "content": whole.text}
    return _chat(run, "chat.completion", choice, run.usage(len(whole.events)))


def chat_completion_chunks(run: Run) -> Generator[ChatResponse, None, None]:
    """Run piece by piece. The first chunk names the role and has no text, as OpenAI's: clients look for either."""
    reward = run.first_reward()
    yield _chat_chunk(run, Piece(0), reward, {"role": "assistant", "content": ""})
    for piece in run.pieces:
        yield _chat_chunk(run, piece, reward, {"content": piece.text})
        reward = float(piece.events[-1].step.rewards[0]) if piece.events and run.labels else reward


def _chat_chunk(run: Run, piece: Piece, before: float, delta: Message) -> ChatResponse:
    choice = _chat_choice(run, piece, before)
    choice["delta"] = delta
    return _chat(run, "chat.completion.chunk", choice, None)


def _chat_choice(run: Run, piece: Piece, before: float) -> ChatChoice:
    choice: ChatChoice = {
        "index": 0,
        "logprobs": _chat_logprobs(run, piece) if run.logprobs else None,
        "finish_reason": piece.finish_reason,
        "rewards": run.rewards(piece, before),
    }
    if run.step_records:
        choice["steps"] = piece.records
    return choice


def _chat(
    run: Run,
    kind: Literal["chat.completion", "chat.completion.chunk"],
    choice: ChatChoice,
    usage: Usage | None,
) -> ChatResponse:
    return {
        "id": f"chat{run.id}",
        "object": kind,
        "created": run.created,
        "model": run.model_name,
        "choices": [choice],
        "usage": usage,
    }
