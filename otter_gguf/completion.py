"""Completions in OpenAI's shape, with the rewards of every token beside the text."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from .generation import Float32, Step
from .text import TextStream

FinishReason = Literal["stop", "length"]


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


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Choice(TypedDict):
    index: int
    logprobs: None
    finish_reason: FinishReason | None
    rewards: Rewards | None


class CompletionChoice(_Choice, total=False):
    text: str
    prompt_rewards: Rewards | None


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


class ChatResponse(TypedDict):
    """What ``create_chat_completion`` returns (``message``), and what it yields with ``stream=True`` (``delta``)."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None


@dataclass
class Piece:
    """Text that is certain, with the tokens that it begins."""

    text: str
    steps: list[Step]
    offsets: list[int]
    finish_reason: FinishReason | None = None


@dataclass
class Run:
    """One completion under way."""

    model_name: str
    labels: Sequence[str]
    prompt_tokens: Sequence[int]
    prompt_rewards: Float32
    """(prompt tokens or 1, n_rewards): of every prompt token or of the last."""
    pieces: Iterator[Piece]
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def rewards(self, piece: Piece, before: float) -> Rewards | None:
        """The rewards of a piece; ``before`` is the reward of the text up to it."""
        if not self.labels:
            return None
        rows = [step.rewards.tolist() for step in piece.steps]
        return {
            "labels": list(self.labels),
            "tokens": [step.token for step in piece.steps],
            "text_offset": piece.offsets,
            "token_rewards": rows,
            "reward": rows[-1][0] if rows else before,
        }

    def first_reward(self) -> float:
        """The first label's reward of the prompt."""
        return float(self.prompt_rewards[-1, 0]) if self.labels else 0.0

    def usage(self, n_tokens: int) -> Usage:
        """Token counts."""
        n_prompt = len(self.prompt_tokens)
        return {"prompt_tokens": n_prompt, "completion_tokens": n_tokens, "total_tokens": n_prompt + n_tokens}


def make_pieces(
    steps: Iterable[Step],
    text: TextStream,
    token_bytes: Callable[[int], bytes],
    max_tokens: int | None,
    ended: Callable[[], bool],
) -> Iterator[Piece]:
    """Decode tokens to text until a stop string, the end of the text, or ``max_tokens``.

    A token belongs to the first piece that holds a character of it, so that tokens within a stop string are left out.
    ``ended`` tells, once ``steps`` is over, whether the model ended the text.
    """
    waiting: deque[tuple[int, Step]] = deque()
    reason: FinishReason | None = "length" if max_tokens == 0 else None
    for count, step in enumerate(steps if reason is None else (), 1):
        waiting.append((text.decoded, step))
        certain = text.push(token_bytes(step.token))
        if text.stopped or count == max_tokens:
            reason = "stop" if text.stopped else "length"
            certain += text.finish()
            break
        if certain:
            yield _piece(certain, _release(waiting, text.released))
    else:
        certain = text.finish()
    reason = reason or ("stop" if ended() else "length")
    limit = text.released if text.stopped else text.released + 1
    yield _piece(certain, _release(waiting, limit), reason)


def _release(waiting: deque[tuple[int, Step]], limit: int) -> list[tuple[int, Step]]:
    """Take the tokens that begin before a character."""
    taken = []
    while waiting and waiting[0][0] < limit:
        taken.append(waiting.popleft())
    return taken


def _piece(text: str, taken: list[tuple[int, Step]], reason: FinishReason | None = None) -> Piece:
    return Piece(text, [step for _, step in taken], [offset for offset, _ in taken], reason)


def join(pieces: Iterable[Piece]) -> Piece:
    """All pieces as one."""
    whole = Piece("", [], [])
    texts = []
    for piece in pieces:
        texts.append(piece.text)
        whole.steps += piece.steps
        whole.offsets += piece.offsets
        whole.finish_reason = piece.finish_reason
    whole.text = "".join(texts)
    return whole


def completion(run: Run, echo: str, with_prompt_rewards: bool) -> CompletionResponse:
    """Run to the end."""
    whole = join(run.pieces)
    return _completion(run, whole, echo, run.first_reward(), with_prompt_rewards, run.usage(len(whole.steps)))


def completion_chunks(run: Run, echo: str, with_prompt_rewards: bool) -> Iterator[CompletionResponse]:
    """Run piece by piece; the echoed prompt and its rewards come with the first one."""
    reward = run.first_reward()
    for piece in run.pieces:
        yield _completion(run, piece, echo, reward, with_prompt_rewards, None)
        reward = float(piece.steps[-1].rewards[0]) if piece.steps and run.labels else reward
        echo, with_prompt_rewards = "", False


def _completion(
    run: Run, piece: Piece, echo: str, before: float, with_prompt_rewards: bool, usage: Usage | None
) -> CompletionResponse:
    choice: CompletionChoice = {
        "text": echo + piece.text,
        "index": 0,
        "logprobs": None,
        "finish_reason": piece.finish_reason,
        "rewards": run.rewards(piece, before),
    }
    if with_prompt_rewards:
        choice["prompt_rewards"] = _prompt_rewards(run)
    return {
        "id": run.id,
        "object": "text_completion",
        "created": run.created,
        "model": run.model_name,
        "choices": [choice],
        "usage": usage,
    }


def _prompt_rewards(run: Run) -> Rewards | None:
    if not run.labels:
        return None
    return {
        "labels": list(run.labels),
        "tokens": list(run.prompt_tokens),
        "text_offset": [],
        "token_rewards": run.prompt_rewards.tolist(),
        "reward": run.first_reward(),
    }


def chat_completion(run: Run) -> ChatResponse:
    """Run to the end."""
    whole = join(run.pieces)
    choice = _chat_choice(run, whole, run.first_reward())
    choice["message"] = {"role": "assistant", "content": whole.text}
    return _chat(run, "chat.completion", choice, run.usage(len(whole.steps)))


def chat_completion_chunks(run: Run) -> Iterator[ChatResponse]:
    """Run piece by piece; the first chunk names the role."""
    reward = run.first_reward()
    role: Message = {"role": "assistant"}
    for piece in run.pieces:
        choice = _chat_choice(run, piece, reward)
        choice["delta"] = {**role, "content": piece.text}
        yield _chat(run, "chat.completion.chunk", choice, None)
        reward = float(piece.steps[-1].rewards[0]) if piece.steps and run.labels else reward
        role = {}


def _chat_choice(run: Run, piece: Piece, before: float) -> ChatChoice:
    return {
        "index": 0,
        "logprobs": None,
        "finish_reason": piece.finish_reason,
        "rewards": run.rewards(piece, before),
    }


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
