"""A text under way in the engine: a coroutine, what it wants next, and what it holds of each context."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import NamedTuple

from ..context.session import Session
from ..context.streams import Stream, StreamPool
from ..errors import ConfigError
from ..steps import Event, Float32, Logprobs, Piece
from .feeds import Feed, Prefill, Told, Until, Wish
from .request import Request


class News(NamedTuple):
    """What a step has to tell of one text."""

    handle: Handle
    event: Event | None
    """A token; None when the text is over."""
    piece: Piece | None
    """Text that is certain now."""


@dataclass(eq=False)
class Handle:
    """One text that was submitted. It ends when nobody holds this object any more: an exception out of a signal handler
    can take it from a caller at any moment."""

    request: Request | None = None
    """None for a text that is read and not continued."""
    index: int = 0
    """Which text of its call; the ``index`` of its pieces."""
    prompt_rewards: Float32 | None = None
    """(tokens or 1, n_rewards): of every token of the prompt, or of the last; None until it has been fed."""
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    """Of every token of the prompt but the first, if they are asked for."""
    n_cached: int = 0
    """Tokens of the prompt that were in the cache already."""
    result: Float32 | None = None
    """What :meth:`otter_gguf.engine.Engine.submit_reading` asks for."""
    done: bool = False
    error: BaseException | None = None
    """Why it ended, if not by itself."""
    is_stream: bool = False
    """Whether the text is paused while nobody is reading on."""
    paused: bool = False
    """A paused text keeps its place but is not fed; where others need what it holds, it ends."""
    news: deque[tuple[Event | None, Piece | None]] = field(default_factory=deque)
    """What nobody has taken yet."""

    def take(self) -> list[News]:
        """What is new."""
        return [News(self, *self.news.popleft()) for _ in range(len(self.news))]


class Job:
    """One text under way.

    Args:
        session: The model that generates.
        handle: What the caller has of it.
        needs: Sequences of each model's context, that of ``session`` included.
        begin: Makes the coroutine when the sequences are there.
        after: A text that has to be over before this one begins.
    """

    def __init__(
        self,
        session: Session,
        handle: Handle,
        needs: dict[Session, int],
        begin: Callable[[Job], Coroutine[Wish, None, None]],
        after: Handle | None = None,
    ) -> None:
        self.session, self.needs = session, needs
        self.request, self.index = handle.request, handle.index
        self._caller = weakref.ref(handle)
        self._nobody = Handle(paused=True)
        self.streams: dict[Session, Stream] = {}
        """Of each model, the first one of its lease."""
        self.wish: Wish | None = None
        self.last_piece: Callable[[], Piece] | None = None
        """The rest of the text when it is over; the coroutine says how to make it."""
        self.has_begun = False
        """Whether it may hold something of a context."""
        self.is_over = False
        """The caller learns of it with the last news."""
        self._begin, self._after = begin, after
        self._work: Coroutine[Wish, None, None] | None = None
        self._is_running = False
        self._told: list[tuple[Event | None, Piece | None]] = []

    @property
    def handle(self) -> Handle:
        """What the caller has of it; one that nobody has where the caller has let go of it."""
        return self._caller() or self._nobody

    @property
    def is_wanted(self) -> bool:
        """Whether somebody holds its handle."""
        return self._caller() is not None

    def lease(self) -> bool:
        """Take sequences of every model that the text uses, and begin; False, and nothing is taken, if some are in
        use."""
        if self._after is not None and not self._after.done:
            return False
        request = self.request
        self.has_begun = True
        for session, count in self.needs.items():
            is_own = request is not None and session is self.session
            prompt = request.prompt if is_own and request is not None else ()
            reuse = is_own and request is not None and request.cache_prompt and not request.reads_prompt
            stream = session.streams.open(self, count, prompt, reuse=reuse)
            if stream is None:
                self.put_back()
                return False
            self.streams[session] = stream
            if is_own:
                self.handle.n_cached = len(stream.tokens)
        self._work = self._begin(self)
        return True

    # ---- what it wants -----------------------------------------------------------------------------------------

    def feed(self, pool: StreamPool) -> Feed | None:
        """The next tokens that it wants fed to this context."""
        return self.wish if isinstance(self.wish, Feed) and self.wish.pool is pool else None

    def prefill(self, pool: StreamPool) -> Prefill | None:
        """What is left of the beginnings that it wants fed to this context."""
        return self.wish if isinstance(self.wish, Prefill) and self.wish.pool is pool else None

    @property
    def other_pool(self) -> StreamPool | None:
        """Of the other model's context in which it wants something fed."""
        if isinstance(self.wish, (Feed, Prefill)) and self.wish.pool is not self.session.streams:
            return self.wish.pool
        return None

    @property
    def can_go_on(self) -> bool:
        """Whether nothing that it wants is left to be done."""
        if self.is_over:
            return False
        if isinstance(self.wish, Prefill):
            return self.wish.n_left == 0 or self.wish.error is not None
        return self.wish is None or isinstance(self.wish, Told) or (isinstance(self.wish, Until) and self.wish.is_so())

    @property
    def has_told(self) -> bool:
        """Whether it waits for the next step because it has told something in this one."""
        return isinstance(self.wish, Told)

    # ---- going on ----------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Let it go on to its next wish."""
        assert self._work is not None
        self.wish = None
        self._is_running = True
        try:
            self.wish = self._work.send(None)
        except StopIteration:
            self.finish()
        except Exception as error:
            self.fail(error)
        self._is_running = False
        if isinstance(self.wish, Told):
            self._told += self.wish.tokens

    def tell(self) -> list[News]:
        """What is new since the last call."""
        told, self._told = self._told, []
        for _, piece in told:
            if piece is not None:
                piece.index = self.index
        handle = self.handle
        handle.news.extend(told)
        handle.done = self.is_over
        return [News(handle, event, piece) for event, piece in told]

    # ---- ends --------------------------------------------------------------------------------------------------

    def put_back(self) -> None:
        """Give back what it holds, to begin anew later; for a text whose prompt is being fed."""
        self._stop()
        self.release(keep=False)
        self.has_begun = False

    def finish(self, *, keep: bool = True) -> None:
        """It is over, by itself or because nobody asks for it any more.

        ``keep``: its text may stay in the cache.
        """
        if not self.is_over:
            self._told.append((None, self.last_piece() if self.last_piece is not None else None))
            self._close()
            self.release(keep=keep)

    def fail(self, error: BaseException) -> None:
        """It ends by an error."""
        if not self.is_over:
            self.handle.error = error
            self._close()
            self.release(keep=True)

    def give_way(self) -> bool:
        """End it if nobody is asking for it just now, so that others get what it holds."""
        if not self.handle.paused or self._is_running or self.is_over:
            return False
        self.fail(ConfigError("this stream is over: another text was started in the same model's context"))
        return True

    def break_off(self, error: BaseException) -> None:
        """It is over; what it held has to be recovered (:meth:`otter_gguf.context.streams.StreamPool.recover`)."""
        self.handle.error = error
        self._close()
        self.streams = {}
        self.tell()

    def _close(self) -> None:
        self.is_over = True
        self._stop()

    def _stop(self) -> None:
        self.wish = None
        work, self._work = self._work, None
        if work is not None and not self._is_running:
            work.close()

    def release(self, *, keep: bool) -> None:
        """Give back what it holds of the contexts whose turn it is. Its text stays in the cache if ``keep`` and if a
        later prompt is likely to begin with it."""
        request = self.request
        for session, stream in list(self.streams.items()):
            if not session.turn.is_mine:  # it gives way in a context that its own engine does not have just now
                continue
            is_alone = all(other.lease is stream.lease for other in session.streams.live)
            wanted = is_alone or (request is not None and request.cache_prompt)
            session.streams.release(stream.lease, keep=keep and wanted and session is self.session)
            del self.streams[session]
