"""The process that loads and runs a stranger's file: it answers questions about its models until nobody asks."""

from __future__ import annotations

import io
import itertools
import logging
import os
import pickle
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from ..errors import ConfigError
from ..model import Otter
from .wire import BrokenWireError, read_question, write_answer

FACTS = ("model_path", "n_vocab", "n_rewards", "has_chat_template", "metadata", "insertion", "n_ctx")


def main(channel: int, life: int) -> None:
    """Answer on the socket ``channel``; end with the process that holds the other end of the pipe ``life``."""
    _end_with(life)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash here is foreseen; nobody needs gigabytes of its remains
    logging.getLogger("otter_gguf").addHandler(logging.StreamHandler(sys.stderr))
    with socket.socket(fileno=channel) as connection, connection.makefile("rwb") as stream:
        server = Server()
        signal.signal(signal.SIGINT, server.interrupted)
        server.serve(stream)


def _end_with(life: int) -> None:
    """End at once when the pipe's other end is closed, which the system does however that process ends."""
    threading.Thread(target=lambda: (os.read(life, 1), os._exit(1)), daemon=True).start()
    if sys.platform == "linux":  # also while native code holds the interpreter's lock
        import fcntl

        fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)


class Server:
    """Models and what they are in the middle of, each by a number."""

    def __init__(self) -> None:
        self.models: dict[int, Otter] = {}
        self.iterators: dict[int, Iterator[Any]] = {}
        self._numbers = itertools.count()
        self._busy = False

    def serve(self, stream: io.BufferedRWPair) -> None:
        """Until the other side is gone."""
        while True:
            try:
                number, question = read_question(stream)
                value, error = self._answer(question)
                try:
                    write_answer(stream, number, value, error)
                except TypeError as unsendable:
                    write_answer(stream, number, None, unsendable)
            except (BrokenWireError, OSError):
                return

    def interrupted(self, *_: object) -> None:
        """SIGINT: ends the call under way. Between calls there is nothing to end. It may come again: where Python has
        nobody to give an exception to, as in a finalizer, the first one was lost."""
        if self._busy:
            raise KeyboardInterrupt

    def _answer(self, question: bytes) -> tuple[Any, BaseException | None]:
        try:
            try:
                self._busy = True
                return self._do(question), None
            finally:
                self._busy = False
        except BaseException as error:
            return None, error

    def _do(self, question: bytes) -> Any:
        verb, dropped, arguments = self._unpickled(question)
        for number in dropped:
            self.iterators.pop(number, None)
            if number in self.models:  # opened for a caller who was interrupted meanwhile
                self.models.pop(number).close()
        return getattr(self, f"_do_{verb}")(*arguments)

    def _unpickled(self, question: bytes) -> Any:
        try:
            return _Unpickler(io.BytesIO(question), self.models).load()
        except Exception as error:
            raise ConfigError(
                f"an argument cannot be made again in the isolated process ({error}); what it is made of must stand "
                "in a module that can be imported there, not in a script or a notebook"
            ) from None

    def _do_open(self, path: str, options: dict[str, Any]) -> dict[str, Any]:
        llm, number = Otter(path, **options), next(self._numbers)
        self.models[number] = llm
        facts = {name: getattr(llm, name) for name in FACTS}
        facts["insertion"] = llm.insertion.to_dict() if llm.insertion else None
        return facts | {"number": number, "text": repr(llm)}

    def _do_close(self, number: int) -> None:
        self.models.pop(number).close()

    def _do_get(self, number: int, name: str) -> Any:
        return getattr(self.models[number], name)

    def _do_call(self, number: int, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        """``{"value": ...}``, or ``{"iterator": its number}``."""
        value = getattr(self.models[number], name)(*args, **options)
        if not isinstance(value, Iterator):
            return {"value": value}
        iterator = next(self._numbers)
        self.iterators[iterator] = value
        return {"iterator": iterator}

    def _do_next(self, iterator: int) -> list[Any]:
        """The next item, or an empty list."""
        try:
            return [next(self.iterators[iterator])]
        except BaseException as error:
            self.iterators.pop(iterator, None)
            if isinstance(error, StopIteration):
                return []
            raise


class _Unpickler(pickle.Unpickler):
    """Puts the models of this process where the question names them."""

    def __init__(self, stream: BinaryIO, models: dict[int, Otter]) -> None:
        super().__init__(stream)
        self._models = models

    def persistent_load(self, number: int) -> Otter:
        return self._models[number]
