"""Otter's methods in an event loop, for those who have a server of their own."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..arguments import Prompts
from ..completion import Run
from ..engine import Handle, News
from ..errors import EngineError
from ..model import Otter
from ..scoring import Ranked, Score, ranked, with_query
from ..steps import Piece, Step
from .driver import Driver

_T = TypeVar("_T")

_N_PREPARING = 8
"""Calls whose texts, grammars and templates are read at once: a hostile one may take seconds."""


@dataclass
class Call:
    """The texts of one call, submitted, and what their pieces become."""

    run: Run
    whole: Callable[[], Any]
    chunks: Callable[[], Generator[Any, None, None]]
    begin: float = field(default_factory=time.perf_counter)
    first: float | None = None
    """When the first token was there."""
    n_tokens: int = 0
    """So far."""

    @property
    def handles(self) -> Sequence[Handle]:
        """Of the engine."""
        return self.run.handles


class AsyncOtter:
    """An :class:`otter_gguf.Otter` in an event loop.

    The methods take the same arguments, give the same results and raise the same errors; they are awaited. All texts
    share batches, whatever call they are of (``docs/python-api.md``, "Threads"). A text ends as soon as the task that
    awaits it is cancelled, or the iterator of its chunks is closed.

    Args:
        llm: A model; closed with this object. Its own methods can still be used by other threads.

    The other way to make one is :meth:`open`, which takes the arguments of :class:`otter_gguf.Otter`.
    """

    def __init__(self, llm: Otter) -> None:
        self.llm = llm
        self.driver = Driver(llm.engine)
        self._preparing = _Preparing(llm)
        self._is_closed = False
        self._threads = ThreadPoolExecutor(_N_PREPARING, "otter-gguf prepare")

    @classmethod
    async def open(cls, model_path: str | Path, **options: Any) -> AsyncOtter:
        """Load a model beside the event loop."""
        return cls(await asyncio.to_thread(Otter, model_path, **options))

    async def create_completion(self, prompt: Prompts, *, stream: bool = False, **options: Any) -> Any:
        """As :meth:`otter_gguf.Otter.create_completion`; with ``stream=True`` the result is an async iterator."""
        call = await self.prepare("create_completion", prompt, **options)
        return self.chunks(call) if stream else await self.whole(call)

    __call__ = create_completion

    async def create_chat_completion(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, **options: Any
    ) -> Any:
        """As :meth:`otter_gguf.Otter.create_chat_completion`; with ``stream=True`` the result is an async iterator."""
        call = await self.prepare("create_chat_completion", messages, **options)
        return self.chunks(call) if stream else await self.whole(call)

    async def generate(self, tokens: Sequence[int], **options: Any) -> AsyncGenerator[Step, None]:
        """As :meth:`otter_gguf.Otter.generate`: ``async for token, rewards in llm.generate(...)``."""
        call = await self.prepare("generate", tokens, **options)
        async with aclosing(self._news(call)) as following:
            async for news in following:
                for one in news:
                    if one.event is not None:
                        yield one.event.step

    async def score(self, prompt: str | Sequence[int], response: str | Sequence[int] | None = None) -> Score:
        """As :meth:`otter_gguf.Otter.score`."""
        (score,) = await self.score_many([(prompt, response)])
        return score

    async def score_many(self, texts: Iterable[tuple[str | Sequence[int], str | Sequence[int] | None]]) -> list[Score]:
        """As :meth:`otter_gguf.Otter.score_many`."""
        joined = await self.in_thread(self.llm._to_score, list(texts))
        handles = self.llm.engine.submit_reading([tokens for tokens, _ in joined], "rewards")
        following = self.driver.follow(handles)
        try:
            while await following.next():
                pass
        finally:
            following.close()
        return self.llm._scores(joined, [handle.result for handle in handles if handle.result is not None])

    async def rerank(
        self, query: str, documents: Sequence[str], *, label: str | None = None, top_n: int | None = None
    ) -> list[Ranked]:
        """As :meth:`otter_gguf.Otter.rerank`."""
        return ranked(await self.score_many(with_query(query, documents)), documents, label, top_n)

    async def tokenize(self, text: str | bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As :meth:`otter_gguf.Otter.tokenize`."""
        return await self.in_thread(self.llm.tokenize, text, add_bos, special)

    async def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        """As :meth:`otter_gguf.Otter.detokenize`."""
        return await self.in_thread(self.llm.detokenize, tokens, special)

    async def tokenize_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """As :meth:`otter_gguf.Otter.tokenize_chat`."""
        return await self.in_thread(partial(self.llm.tokenize_chat, messages, **options))

    async def close(self) -> None:
        """End all texts, then free context and weights. Idempotent."""
        self._is_closed = True
        await asyncio.to_thread(self.driver.close)
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)
        await asyncio.to_thread(self.llm.close)

    async def __aenter__(self) -> AsyncOtter:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Async{self.llm!r}"

    # ---- the parts of a call, for servers that want to look at it meanwhile ------------------------------------------

    async def prepare(self, method: str, prompt: Any, **options: Any) -> Call:
        """Read and check all that one of Otter's methods is given, and submit its texts. Errors as there."""
        future: Future[Call] = self._submit(partial(getattr(self._preparing, method), prompt, **options))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(self._abandon)
            raise

    async def whole(self, call: Call) -> Any:
        """The result of a call."""
        pieces: list[Piece] = []
        async for news in self._news(call):
            pieces += [one.piece for one in news if one.piece is not None]
        call.run.pieces = iter(pieces)
        return call.whole()

    async def chunks(self, call: Call) -> AsyncGenerator[Any, None]:
        """The chunks of a call, as they come."""
        pieces: deque[Piece] = deque()
        call.run.pieces = _until_empty(pieces)
        chunks = call.chunks()
        is_chat = call.run.is_chat
        async with aclosing(self._news(call)) as following:
            async for news in following:
                if is_chat and any(one.piece for one in news):
                    yield next(chunks)  # of the role alone
                    is_chat = False
                for one in news:
                    if one.piece is not None:
                        pieces.append(one.piece)
                        yield next(chunks)

    async def in_thread(self, work: Callable[..., _T], *args: Any) -> _T:
        """Do what may take long beside the event loop."""
        return await asyncio.wrap_future(self._submit(partial(work, *args)))

    def _submit(self, work: Callable[[], _T]) -> Future[_T]:
        if self._is_closed:
            raise EngineError("the model is closed")
        return self._threads.submit(work)

    async def _news(self, call: Call) -> AsyncGenerator[list[News], None]:
        following = self.driver.follow(call.handles)
        try:
            while news := await following.next():
                call.first = call.first or time.perf_counter()
                call.n_tokens += sum(one.event is not None for one in news)
                yield news
        finally:
            following.close()

    def _abandon(self, future: Future[Call]) -> None:
        if not future.cancelled() and future.exception() is None:
            self.llm.engine.abandon(future.result().handles)


class _Preparing(Otter):
    """The same model, whose methods check and submit, and leave the rest to the driver."""

    def __init__(self, llm: Otter) -> None:
        self.__dict__ = llm.__dict__

    def _answer(self, run: Run, *, whole: Any, chunks: Any, stream: bool) -> Any:
        return Call(run, whole, chunks)

    def _steps(self, handles: Sequence[Handle]) -> Any:
        run = Run("", (), [], handles, iter(()), lambda token: b"")
        return Call(run, lambda: None, lambda: (_ for _ in ()))


def _until_empty(pieces: deque[Piece]) -> Iterator[Piece]:
    """Those that are there; asked for no more of them than there are."""
    while True:
        yield pieces.popleft()
