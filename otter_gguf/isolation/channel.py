"""The conversation with an isolated process, apart from the thread that asks.

In the caller's thread an exception out of a signal handler may come at any place. So that thread does nothing but to
put down a question and to wait; writing, reading and ending what nobody waits for any more is done by a thread in which
no signal handler runs. Each question has a number and a place for its own answer.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import signal
import socket
import subprocess
import threading
import time
from typing import Any

from .._waiting import readable
from ..text import terminal_safe
from .wire import read_answer, write_question

_PATIENCE = 5.0
"""Seconds that a call has to end that nobody waits for any more (Ctrl-C), and its process to say its last words."""
_PATROL = 0.02
"""Seconds between two looks whether the caller still waits."""
_INSISTENCE = 0.1
"""Seconds between two SIGINTs to a call that does not end."""
_MAX_WORDS = 400

Answer = tuple[Any, Exception | None]

_logger = logging.getLogger("otter_gguf.isolated")


class _Question:
    """One question, with a place for its answer and for no other."""

    def __init__(self, number: int, pickled: bytes) -> None:
        self.number = number
        self.pickled = pickled
        self.abandoned = False
        """Whether nobody waits for the answer any more."""
        self.answer: Answer | None = None
        self.answered = threading.Lock()
        """Released when the answer is there. An Event has a lock in Python, which an exception may leave closed."""
        self.answered.acquire()


class Channel:
    """One conversation, with two threads that know nothing of the object that users hold, so that it can go."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self.questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._last: _Question | None = None
        """The question of which the caller has not taken the answer."""
        self._made: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._last_words = ""
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def begin(self, connection: socket.socket) -> None:
        """Start the threads."""
        self._listener.start()
        threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def exchange(self, pickled: bytes) -> Answer | None:
        """The answer; None if the process ended. Whatever is raised meanwhile ends the call there, so that the next one
        can follow."""
        if self._last is not None:
            self._last.abandoned = True
        question = self._last = _Question(next(self._numbers), pickled)
        try:
            self.questions.put(question)
            question.answered.acquire()
        except BaseException:
            question.abandoned = True
            raise
        self._last = None
        return question.answer

    def made_for_nobody(self) -> list[int]:
        """Numbers of iterators and models in answers that nobody waited for."""
        return [self._made.get() for _ in range(self._made.qsize())]

    def end(self) -> tuple[str, str]:
        """How the process ended, and its last words in brackets."""
        code = self.popen.wait()
        self._listener.join(_PATIENCE)
        how = f"by {_signal_name(-code)}" if code < 0 else f"with code {code}"
        return how, f" ({self._last_words})" if self._last_words else ""

    def _converse(self, connection: socket.socket) -> None:
        """Questions and answers, one after the other."""
        with contextlib.suppress(OSError), connection, connection.makefile("rwb") as stream:
            while (question := self.questions.get()) is not None:
                try:
                    write_question(stream, question.number, question.pickled)
                    self._await(connection, question)
                    question.answer = read_answer(stream, question.number)
                except Exception:  # whatever it is, somebody waits
                    self._bury()
                if question.abandoned:
                    self._note(question.answer)
                question.answered.release()

    def _await(self, connection: socket.socket, question: _Question) -> None:
        """Until the answer begins. A call that nobody waits for is ended, by SIGINT or with its process."""
        begin = last = 0.0
        while not readable(connection, _PATROL):
            now = time.monotonic()
            if question.abandoned and now - last >= _INSISTENCE:
                begin, last = begin or now, now
                if now - begin < _PATIENCE:
                    self.popen.send_signal(signal.SIGINT)
                else:
                    self.popen.kill()

    def _note(self, answer: Answer | None) -> None:
        """What was made there for nobody is to be forgotten."""
        value = answer[0] if answer is not None else None
        for key in ("iterator", "number"):
            if isinstance(value, dict) and type(value.get(key)) is int:
                self._made.put(value[key])

    def _bury(self) -> None:
        """Of a process that is ending, or has to."""
        try:
            self.popen.wait(1)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()

    def _listen(self) -> None:
        """Pass on what it says on stderr; when it ends, no zombie is left."""
        assert self.popen.stderr is not None
        with self.popen.stderr as lines:
            for line in lines:
                if words := terminal_safe(line.strip())[:_MAX_WORDS]:
                    self._last_words = words
                    _logger.warning("%s", words)
        self.popen.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
