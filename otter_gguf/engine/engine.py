"""The engine: all texts of one model, one batch a step."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from ..context.batches import batches
from ..context.session import Session
from ..context.streams import MOST_LOGITS, Stream, StreamPool
from ..context.turns import Turn, in_turn
from ..errors import ConfigError, ContextFullError, EngineError, OtterError
from ..steps import Float32
from .begin import What, jobs_of, reading_job
from .feeds import Feed, Part, Prefill
from .job import Handle, Job, News
from .request import Request

_T = TypeVar("_T")

_NO_PROGRESS_SECONDS = 0.001
"""Between two steps that could do nothing, because another thread's call has what this one's texts wait for."""


class Engine:
    """All texts of one model.

    Texts are submitted, and go on step by step: a step feeds the next tokens of all of them in one batch, whatever
    chooses these tokens. Between two steps texts begin, end and are cancelled. Beside running texts a prompt is fed in
    pieces of at most ``n_ubatch`` tokens, one a step, so that it delays none of them by more than a piece.

    From several threads, each step is done by one of the threads that wait for a text, for all of them.

    A text holds sequences of the context from its beginning to its end, as many as
    :func:`otter_gguf.engine.sequences_needed` says. Where they are all in use, or the cache is full, texts that are
    paused give way, oldest first; else a new text waits, and of running ones the longest ends.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.streams = session, session.streams
        self.in_pieces = False
        """Whether prompts are fed in pieces also where no text is running: for a thread that does steps for callers who
        come and go."""
        self._waiting: deque[Job] = deque()
        self._jobs: list[Job] = []
        self._abandoned: deque[Handle] = deque()
        self._driving: set[int] = set()
        """Threads that do steps, or wait for one."""
        self._in_step: list[Job] = []
        """The texts that the step works on which is under way, or which an exception has left."""

    # ---- what callers do ---------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], *, stream: bool = False) -> list[Handle]:
        """Ask for the texts of one call. A beginning that all their prompts have in common is fed once.

        A text ends when nobody holds its handle any more. ``stream``: they are paused while nobody is in
        :meth:`follow`.

        Raises:
            ConfigError: An option is out of range, contradicts another, or guidance needs what the model lacks.
            ContextFullError: A prompt is longer than a text may be.
            MismatchError: A reward model or an expert has another vocabulary.
        """
        if not requests:
            raise ConfigError("the prompt is empty: give at least one")
        handles = [Handle(request, index, is_stream=stream) for index, request in enumerate(requests)]
        self._waiting.extend(jobs_of(self.session, handles))
        return handles

    def submit_reading(self, texts: Iterable[Sequence[int]], what: What) -> list[Handle]:
        """Ask for the ``result`` of texts that are not continued: the rewards (n, n_rewards) of every token, or
        (n - 1,) ln p of each next one, in nats. Errors as :meth:`submit`."""
        tokens = list(texts)
        handles = [Handle(index=index) for index in range(len(tokens))]
        self._waiting.extend(
            [reading_job(self.session, handle, text, what) for handle, text in zip(handles, tokens, strict=True)]
        )
        return handles

    def read(self, texts: Iterable[Sequence[int]], what: What) -> list[Float32]:
        """The results of :meth:`submit_reading`."""
        handles = self.submit_reading(texts, what)
        for _ in self.follow(handles):
            pass
        return [handle.result for handle in handles if handle.result is not None]

    def step(self) -> list[News]:
        """Feed the next tokens of all texts that are not paused, and what it made of them."""
        return self._in_turn(self._step)

    def cancel(self, handle: Handle) -> None:
        """End a text; its cells of the context are free then. Nothing happens if it is over."""
        self._in_turn(lambda: self._end(handle, keep=False))

    def start(self, handles: Sequence[Handle]) -> None:
        """Feed the prompts of texts, as far as there is room for them. What ended a text by an error is raised."""
        self._drive(handles, lambda: self._have_begun(handles))
        self._raise_errors(handles)

    def follow(self, handles: Sequence[Handle]) -> Iterator[News]:
        """The news of texts until all are over, in steps that are done when the next one is asked for.

        What ended a text by an error is raised. Texts that are not over when the iterator is closed are ended.
        """
        try:
            while True:
                self._drive(handles, lambda: any(handle.news for handle in handles))
                news = [one for handle in handles for one in handle.take()]
                yield from news
                self._raise_errors(handles)
                if not news:
                    return
        finally:
            self.abandon(handles)

    def abandon(self, handles: Iterable[Handle]) -> None:
        """Nobody will ask for these texts any more: whoever uses the engine next sees to them. So this may be called
        anywhere, as by the garbage collector or in an event loop: it does not wait for the step under way."""
        self._abandoned.extend(handle for handle in handles if not handle.done)

    def in_turn(self, work: Callable[[], _T]) -> _T:
        """Do some work while no step is done."""
        return self._in_turn(work)

    def alone(self, work: Callable[[], _T]) -> _T:
        """Do some work that needs the whole context: paused texts end, and what the cache holds is forgotten.
        ``EngineError`` while texts are running."""

        def clear_first() -> _T:
            while self.streams.make_room():
                pass
            if self.streams.live:
                raise EngineError(f"{self.session.path}: texts are running in the context that this call needs alone")
            return work()

        return self._in_turn(clear_first)

    def close(self, free: Callable[[], None]) -> None:
        """End all texts, and free the model."""

        def end() -> None:
            for job in (*self._jobs, *self._waiting):
                job.break_off(EngineError(f"{self.session.path}: the model is closed"))
            self._jobs = []
            self._waiting.clear()
            self._abandoned.clear()
            self.streams.abandon()
            free()

        self._in_turn(end)

    def save_state(self) -> tuple[list[int], bytes]:
        """The tokens of the last text, and its cells as llama.cpp writes them."""
        return self._in_turn(self.streams.state)

    def load_state(self, tokens: Sequence[int], data: bytes) -> None:
        """Put a saved text into the cache, where nothing else is then. ``ConfigError`` if the data is damaged or of
        another kind of context; other errors as :meth:`alone`."""
        self.alone(lambda: self.streams.load_state(tokens, data))

    # ---- driving -----------------------------------------------------------------------------------------------

    def _drive(self, handles: Sequence[Handle], enough: Callable[[], bool]) -> None:
        """Do steps until there is enough, or all is over."""

        def is_enough() -> bool:
            return enough() or all(handle.done for handle in handles)

        def advance() -> bool:
            if not is_enough():
                self._step()
            return is_enough()

        thread = threading.get_ident()
        try:
            self._driving.add(thread)
            for handle in handles:
                handle.paused = False
            while not is_enough() and not self._in_turn(advance):
                if not any(job.handle in handles for job in self._jobs):
                    time.sleep(_NO_PROGRESS_SECONDS)
                elif len(self._driving) > 1:
                    time.sleep(0)  # others look whether there is enough for them
        except BaseException:
            self.abandon(handles)
            raise
        finally:
            for handle in handles:
                handle.paused = handle.is_stream
            self._driving.discard(thread)

    def _raise_errors(self, handles: Sequence[Handle]) -> None:
        for handle in handles:
            if handle.error is not None:
                self.abandon(handles)
                raise handle.error

    def _have_begun(self, handles: Sequence[Handle]) -> bool:
        """Whether the prompts of all texts that have room are fed."""
        begun = [job.handle for job in self._jobs if job.handle in handles]
        return bool(begun) and all(handle.prompt_rewards is not None for handle in begun)

    def _in_turn(self, work: Callable[[], _T]) -> _T:
        """Do some work while nobody else uses this model, nor one that its texts use."""
        while True:
            turns = self._turns()
            done: list[_T] = []

            def checked(turns: set[Turn] = turns, done: list[_T] = done) -> None:
                if self._turns() <= turns:
                    if self._in_step:
                        self._recover()
                    self._clean_up()
                    done.append(work())

            in_turn(turns, checked)
            if done:
                return done[0]

    def _turns(self) -> set[Turn]:
        turns = {self.session.turn}
        for job in (*self._jobs, *self._waiting):
            if len(job.needs) > 1:
                turns.update(session.turn for session in job.needs)
        return turns

    # ---- one step ----------------------------------------------------------------------------------------------

    def _step(self) -> list[News]:
        self._in_step = [job for job in (*self._jobs, *self._waiting) if not job.handle.paused]

        # 1. Texts that wait get sequences of the context, as far as there are any.
        self._admit()
        running = [job for job in self._jobs if not job.handle.paused]

        # 2. Each text says what it wants fed: the token that it draws, or the candidates for one.
        self._advance(running)

        # 3. A piece of the prompts. Those that are fed wholly now go on to their last token.
        self._feed_prompts(running)

        # 4. The next tokens of all texts, in one batch.
        fed = [job for job in running if job.feed(self.streams)]
        self._feed(self.streams, fed)

        # 5. What comes of them: choices between candidates, tokens that are certain, ends.
        self._advance(fed)

        news = [news for job in self._jobs for news in job.tell()]
        self._clean_up()
        self._in_step = []
        return news

    def _admit(self) -> None:
        """In the order in which they came; one that finds no room does not hold up smaller ones."""
        for job in list(self._waiting):
            if not job.is_over and not job.handle.paused and job.lease():
                self._jobs.append(job)
                self._waiting.remove(job)

    def _advance(self, jobs: Sequence[Job]) -> None:
        """Resume texts until each wants something fed here, has told something, or is over. What they ask of other
        models is done on the way, in one batch a model."""
        active = [job for job in jobs if job.can_go_on]
        while active:
            for job in active:
                job.resume()
            active = [job for job in active if job.can_go_on and not job.has_told]
            pools = [pool for job in jobs if (pool := job.other_pool) is not None]
            for pool in dict.fromkeys(pools):
                asking = [job for job in jobs if job.other_pool is pool]
                prefills = [prefill for job in asking if (prefill := job.prefill(pool)) is not None]
                for prefill, error in self._prefill(pool, prefills):
                    prefill.error = error
                self._feed(pool, [job for job in asking if job.feed(pool)])
                active += [job for job in asking if job.can_go_on]

    def _feed_prompts(self, running: Sequence[Job]) -> None:
        while prefills := [prefill for job in running if (prefill := job.prefill(self.streams)) is not None]:
            before = sum(prefill.n_left for prefill in prefills)
            full = self._prefill(self.streams, prefills)
            self._advance([job for job in running if not job.has_told])
            if self._is_busy():
                return  # the rest beside the next tokens of running texts
            if full and sum(prefill.n_left for prefill in prefills) == before:
                if any(job.feed(self.streams) for job in running):
                    return  # texts that will end and make room
                self._put_back(running, *full[-1])
            elif self.in_pieces:
                return  # somebody may have come meanwhile

    def _put_back(self, running: Sequence[Job], prefill: Prefill, error: ContextFullError) -> None:
        """Several prompts hold what one of them needs: let the last one begin anew, when others are over. A single one
        will never have more room."""
        (job,) = [job for job in running if job.prefill(self.streams) is prefill]
        if len([job for job in running if not job.is_over]) > 1:
            job.put_back()
            self._jobs.remove(job)
            self._waiting.appendleft(job)
        else:
            prefill.error = error
            self._advance([job])

    def _prefill(self, pool: StreamPool, prefills: Sequence[Prefill]) -> list[tuple[Prefill, ContextFullError]]:
        """At most ``n_ubatch`` tokens of them; all where no text is running beside them. Those for which the cache has
        no room."""
        in_pieces = self._is_busy() or (self.in_pieces and pool is self.streams)
        room, full = pool.context.n_ubatch if in_pieces else None, []
        for _, group in groupby(prefills, key=lambda prefill: prefill.read):
            together = list(group)
            if _try_prefill(pool, together, room) is None:
                continue
            for prefill in together:  # one of them may have room
                while (error := _try_prefill(pool, [prefill], room)) is not None and pool.make_room():
                    pass
                if error is not None:
                    full.append((prefill, error))
        return full

    def _is_busy(self) -> bool:
        """Whether texts are running, which a prompt should not hold up."""
        running = (job for job in self._jobs if not job.handle.paused and job.handle.prompt_rewards is not None)
        return any(job.feed(self.streams) for job in running)

    def _feed(self, pool: StreamPool, jobs: Sequence[Job]) -> None:
        """The tokens that texts want fed, in one batch. Where the cache has no room the longest text is shifted, or
        left out."""
        feeds = [feed for job in jobs if (feed := job.feed(pool)) is not None]
        try:
            _feed_parts(pool, [part for feed in feeds for part in feed.parts])
            for feed in feeds:
                if not feed.candidates:
                    _keep_single(pool, feed)
        except OtterError as error:
            for job in jobs:
                job.fail(error)
        for job in jobs:
            job.wish = None

    # ---- ends --------------------------------------------------------------------------------------------------

    def _clean_up(self) -> None:
        """End what nobody asks for any more, and forget what has given way to others."""
        while self._abandoned:
            self._end(self._abandoned[0], keep=True)
            self._abandoned.popleft()
        for job in (*self._jobs, *self._waiting):
            if not job.is_wanted:
                job.finish()
        self._forget_over()

    def _end(self, handle: Handle, *, keep: bool) -> None:
        for job in (*self._jobs, *self._waiting):
            if job.handle is handle:
                job.finish(keep=keep)
        self._forget_over()

    def _forget_over(self) -> None:
        """Let go of the texts that are over. Each says so first: whoever follows it would else wait for ever."""
        for job in [job for job in (*self._jobs, *self._waiting) if job.is_over]:
            job.release(keep=True)
            job.tell()
            if job in self._waiting:  # in place: another thread may submit meanwhile
                self._waiting.remove(job)
        self._jobs = [job for job in self._jobs if not job.is_over]

    def _recover(self) -> None:
        """An exception came out of a step, from anywhere: the texts that were in it are over, but for those that had
        not begun."""
        broken = [job for job in self._in_step if job.has_begun]
        for job in broken:
            job.break_off(EngineError(f"{self.session.path}: the text ended, because a step of it was interrupted"))
        for session in {session for job in broken for session in job.needs}:
            session.streams.recover(broken)
        self._forget_over()
        self._in_step = []


def _try_prefill(pool: StreamPool, prefills: Sequence[Prefill], room: int | None) -> ContextFullError | None:
    """Feed at most ``room`` tokens of the beginnings of texts, all where it is None. What was fed stays fed."""
    try:
        if prefills[0].read == "nothing":
            _prefill(pool, prefills, room)
        elif prefills[0].read == "rewards" and len(prefills) > 1:
            _read_rewards(pool, prefills, room)
        else:
            for prefill in prefills:
                _read_prefill(pool, prefill, room)
    except ContextFullError as error:
        return error
    return None


def _read_prefill(pool: StreamPool, prefill: Prefill, room: int | None) -> None:
    ((stream, tokens),) = prefill.entries
    count = len(tokens) if room is None or prefill.read == "log_probabilities" else room
    if prefill.visit is not None:
        count = min(count, MOST_LOGITS)
        prefill.answers.append(pool.read_logits(stream, tokens[:count], prefill.visit))
    else:
        prefill.answers.append(pool.read(stream, tokens[:count], log_probabilities=prefill.read == "log_probabilities"))
    prefill.entries = [(stream, tokens[count:])]


def _read_rewards(pool: StreamPool, prefills: Sequence[Prefill], room: int | None) -> None:
    """Of several texts in batches that they share."""
    by_stream = {id(stream): prefill for prefill in prefills for stream, _ in prefill.entries}
    for batch in batches([entry for prefill in prefills for entry in prefill.entries], pool.context.n_ubatch):
        for (stream, tokens), rewards in zip(batch, pool.read_together(batch), strict=True):
            prefill = by_stream[id(stream)]
            prefill.answers.append(rewards)
            prefill.entries = [(stream, prefill.entries[0][1][len(tokens) :])]
        if room is not None:
            return


def _prefill(pool: StreamPool, prefills: Sequence[Prefill], room: int | None) -> None:
    batch: list[tuple[Stream, Sequence[int]]] = []
    for stream, tokens in (entry for prefill in prefills for entry in prefill.entries):
        count = len(tokens) if room is None else min(room, len(tokens))
        room = None if room is None else room - count
        batch.append((stream, tokens[:count]))
    before = {id(stream): len(stream.tokens) for stream, _ in batch}
    try:
        pool.feed([entry for entry in batch if entry[1]])
    finally:
        for prefill in prefills:
            prefill.entries = [
                (stream, tokens[len(stream.tokens) - before[id(stream)] :]) for stream, tokens in prefill.entries
            ]


def _feed_parts(pool: StreamPool, parts: list[Part]) -> None:
    for part in parts:
        if part.n_keep is not None and len(part.stream.tokens) >= pool.n_ctx:
            pool.shift(part.stream, part.n_keep)
    while parts:
        try:
            rewards = iter(pool.decode([entry for part in parts for entry in part.entries]))
        except ContextFullError:
            if pool.make_room():
                continue
            longest = max(parts, key=lambda part: len(part.stream.tokens))
            if longest.n_keep is not None and len(longest.stream.tokens) >= longest.n_keep + 2:
                pool.shift(longest.stream, longest.n_keep)
                continue
            parts.remove(longest)
            for stream, _ in longest.entries:
                pool.close(stream)
        else:
            for part in parts:
                part.rewards = [next(rewards) for _ in part.entries]
            return


def _keep_single(pool: StreamPool, feed: Feed) -> None:
    """Make the only token of each entry part of its stream."""
    for part in feed.parts:
        if part.rewards is not None:
            pool.keep(part.entries, [0] * len(part.entries), part.rewards)
