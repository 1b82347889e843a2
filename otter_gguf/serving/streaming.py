"""Answers that come piece by piece, and what happens when nobody waits for an answer any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .._logging import logger
from ..errors import OtterError
from .answers import PING, error_of, event

_T = TypeVar("_T")

PING_SECONDS = 15.0
"""A comment is sent where nothing else is for so long: proxies close connections that are silent."""


class EventResponse(Response):
    """Server-sent events.

    However it ends, the generator is closed, also where it was never asked for anything, and ``at_end`` is called.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], at_end: Callable[[], None]) -> None:
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._events, self._at_end = events, at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _cancel(sending, gone)
            await self._events.aclose()
            self._at_end()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for part in self._events:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def events(
    chunks: AsyncGenerator[bytes, None], deadline: float | None, tell: Callable[[Exception], dict[str, Any]]
) -> AsyncGenerator[bytes, None]:
    """The events with comments where they take long; an error is the last event.

    Args:
        chunks: The events.
        deadline: When they must be over, by the event loop's clock; None = any time.
        tell: What is sent of an error.
    """
    clock = asyncio.get_running_loop().time
    part: asyncio.Future[bytes] | None = None
    try:
        while True:
            part = asyncio.ensure_future(anext(chunks))
            while not part.done():
                left = PING_SECONDS if deadline is None else min(PING_SECONDS, deadline - clock())
                if left <= 0:
                    raise TimeoutError
                await asyncio.wait({part}, timeout=left)
                if not part.done() and left == PING_SECONDS:
                    yield PING
            try:
                yield part.result()
            except StopAsyncIteration:
                return
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except Exception as error:
        yield event(tell(error))
    finally:
        if part is not None:
            await _cancel(part)
        await chunks.aclose()


async def merged(streams: Sequence[AsyncIterator[Any]]) -> AsyncGenerator[tuple[int, Any], None]:
    """The items of all iterators as they come, each with the number of its iterator."""
    if len(streams) == 1:
        async for item in streams[0]:
            yield 0, item
        return
    items: asyncio.Queue[tuple[int, Any, BaseException | None]] = asyncio.Queue()

    async def drain(number: int, stream: AsyncIterator[Any]) -> None:
        try:
            async for item in stream:
                items.put_nowait((number, item, None))
            items.put_nowait((number, None, StopAsyncIteration()))
        except Exception as error:
            items.put_nowait((number, None, error))

    tasks = [asyncio.ensure_future(drain(number, stream)) for number, stream in enumerate(streams)]
    n_left = len(tasks)
    try:
        while n_left:
            number, item, error = await items.get()
            if error is None:
                yield number, item
            elif isinstance(error, StopAsyncIteration):
                n_left -= 1
            else:
                raise error
    finally:
        await _cancel(*tasks)


async def unless_gone(request: Request, work: Coroutine[Any, Any, _T], seconds: float | None) -> _T:
    """The result of some work, which is cancelled when the caller goes away (``ConnectionError``) or the time is over
    (``TimeoutError``)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ConnectionError if gone.done() else TimeoutError
    finally:
        await _cancel(task, gone)


def told(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body of an error; what nobody expected is logged."""
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        message = "the request took longer than this server allows (--timeout)"
        return 504, {"error": {"code": 504, "message": message, "type": "timeout_error"}}
    code, body = error_of(error)
    if body["error"]["type"] == "server_error":
        logger.error("a request failed: %s", error, exc_info=None if isinstance(error, OtterError) else error)
    return code, body


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
            await task
