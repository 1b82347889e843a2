"""A model in a process of its own: whatever a stranger's file does to llama.cpp there, it is an exception here.

Every call runs as a whole in the child process, guidance and callbacks included: they are sent there, so what they are
made of must stand in a module that can be imported, and what they change stays there. Nothing that comes back is
unpickled. It is no sandbox: the child may do what its user may (docs/security.md).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NoReturn, TypeVar, cast, overload

from .._logging import set_verbose
from ..config import InsertionConfig
from ..context.turns import Turn
from ..errors import ConfigError, EngineError, OtterError
from ..model import Otter
from ..options import LoadArguments, LoadOptions, SamplingOptions, takes
from ..scoring import Score
from ..text_model import TextModel
from .channel import Channel

if TYPE_CHECKING:
    from typing_extensions import Unpack

_F = TypeVar("_F", bound=Callable[..., Any])

_BEGIN = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from otter_gguf.isolation.server import main; "


class OpenArguments(LoadArguments, total=False):
    """What both classes can be given at load."""

    otter: str | Path | None
    seed: int
    verbose: bool


@overload
def open_model(
    model_path: str | Path, *, isolate: Literal[False] = False, **options: Unpack[OpenArguments]
) -> Otter: ...


@overload
def open_model(model_path: str | Path, *, isolate: bool, **options: Unpack[OpenArguments]) -> TextModel: ...


@takes(Otter)
def open_model(model_path: str | Path, *, isolate: bool = False, **options: Unpack[OpenArguments]) -> TextModel:
    """:class:`otter_gguf.Otter`, or with ``isolate`` an :class:`IsolatedOtter`; ``options`` are those of both."""
    return IsolatedOtter(model_path, **options) if isolate else Otter(model_path, **options)


def _there(declared: _F) -> _F:
    """The method of this name of the model in the other process; the call runs there as a whole."""

    @functools.wraps(declared, updated=())  # the signature is found through __wrapped__
    def method(self: IsolatedOtter, *args: Any, **options: Any) -> Any:
        return self._call(declared.__name__, *args, **options)

    return cast(_F, method)


def _out_of_reach(name: str) -> property:
    def refuse(self: object) -> NoReturn:
        raise ConfigError(f"the {name} of an isolated model is in another process: open the model without isolation")

    return property(refuse)


class IsolatedOtter(TextModel):
    """An :class:`otter_gguf.Otter` that lives in a child process.

    Same arguments, methods, results and errors. A crash there is an ``EngineError`` that names the signal; the object
    is of no use then, this process is as before. The lower level (``model``, ``context``, ``session``, ``engine``) is
    not reachable.

    Args:
        beside: Another isolated model, whose process is shared: so that it can be a ``reward_model`` of this one, or
            part of its guidance, or the other way round. A crash ends all models of a process.
    """

    @takes(LoadOptions)
    def __init__(
        self,
        model_path: str | Path,
        *,
        otter: str | Path | None = None,
        seed: int = -1,
        verbose: bool = False,
        beside: TextModel | None = None,
        **options: Unpack[LoadArguments],
    ) -> None:
        self.options = LoadOptions(**options)
        SamplingOptions(seed=seed)
        set_verbose(verbose)
        if beside is not None and not isinstance(beside, IsolatedOtter):
            raise ConfigError("beside: expected an isolated model, this one lives in this process")
        self.seed = seed
        self._process = _Process(str(model_path)) if beside is None else beside._process
        with self._process.opening():
            arguments = {"otter": None if otter is None else str(otter), "seed": seed, "verbose": verbose, **options}
            facts = self._process.ask("open", str(model_path), arguments)
        self._take(facts)

    def _take(self, facts: Mapping[str, Any]) -> None:
        self.model_path = facts["model_path"]
        self.metadata = facts["metadata"]
        self.insertion = InsertionConfig.from_dict(facts["insertion"]) if facts["insertion"] else None
        self._facts = facts
        self._open = True

    # ---- what it is --------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Of the process in which the model lives."""
        return self._process.pid

    @property
    def n_ctx(self) -> int:
        return int(self._facts["n_ctx"])

    @property
    def n_vocab(self) -> int:
        return int(self._facts["n_vocab"])

    @property
    def n_rewards(self) -> int:
        return int(self._facts["n_rewards"])

    @property
    def has_chat_template(self) -> bool:
        return bool(self._facts["has_chat_template"])

    @property
    def last_rewards(self) -> list[float]:
        return list(self._ask("get", "last_rewards"))

    model, context, session, engine = map(_out_of_reach, ("model", "context", "session", "engine"))

    def __repr__(self) -> str:
        return f"Isolated{self._facts['text']}"

    # ---- methods -----------------------------------------------------------------------------------------------

    tokenize = _there(TextModel.tokenize)
    detokenize = _there(TextModel.detokenize)
    token_bos = _there(TextModel.token_bos)
    token_eos = _there(TextModel.token_eos)
    create_completion = _there(TextModel.create_completion)
    __call__ = create_completion
    create_chat_completion = _there(TextModel.create_chat_completion)
    tokenize_chat = _there(TextModel.tokenize_chat)
    generate = _there(TextModel.generate)
    reset = _there(TextModel.reset)
    save_state = _there(TextModel.save_state)
    load_state = _there(TextModel.load_state)
    score = _there(TextModel.score)
    rerank = _there(TextModel.rerank)
    render_chat = _there(TextModel.render_chat)

    def score_many(self, texts: Iterable[tuple[str | Sequence[int], str | Sequence[int] | None]]) -> list[Score]:
        return [self.score(prompt, response) for prompt, response in texts]

    def close(self) -> None:
        """Free the model; the process ends with its last one. Idempotent."""
        if self._open:
            self._open = False
            self._process.forget(self._facts["number"])

    # ---- inside ------------------------------------------------------------------------------------------------

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        answer = self._ask("call", name, args, options)
        return _Items(self._process, answer["iterator"]) if "iterator" in answer else answer["value"]

    def _ask(self, verb: str, *arguments: Any) -> Any:
        if not self._open:
            raise EngineError(f"{self.model_path}: the model is closed")
        return self._process.ask(verb, self._facts["number"], *arguments)

    def __reduce__(self) -> str:
        raise TypeError("an isolated model cannot be sent to another process")


class _Items(Iterator[Any]):
    """An iterator there, asked for one item at a time."""

    _number: int | None = None  # also of an object whose making was interrupted

    def __init__(self, process: _Process, number: int) -> None:
        self._process = process
        self._number = number

    def __next__(self) -> Any:
        number, self._number = self._number, None  # whatever is raised, it is over: as with a generator
        if number is None:
            raise StopIteration
        try:
            items = self._process.ask("next", number)
        except BaseException:
            self._process.dropped.append(number)
            raise
        if not items:
            raise StopIteration
        self._number = number
        return items[0]

    def close(self) -> None:
        """End it early."""
        number, self._number = self._number, None
        if number is not None:
            self._process.dropped.append(number)

    __del__ = close


class _Process:
    """The child process, and whose turn it is to ask it."""

    def __init__(self, first: str) -> None:
        self.path = first
        """Of its first model: how the process is called in messages."""
        self.dropped: list[int] = []
        """Iterators that nobody asks for any more, and models that nobody got; told with the next question."""
        self._owner = os.getpid()
        self._n_models = 0
        self._turn = Turn("this isolated process")
        ours, theirs = socket.socketpair()
        life, self._life = os.pipe()
        with ours, theirs, open(life, "rb"):
            self._channel = Channel(_start(theirs.fileno(), life))
            self._channel.begin(ours.dup())
        self.pid = self._channel.popen.pid
        self._end = weakref.finalize(self, _end, self._channel, self._life, self._owner)

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Around the loading of a model; the process ends if it fails and there is no other."""
        self._n_models += 1
        try:
            yield
        except BaseException:
            self._leave()
            raise

    def forget(self, number: int) -> None:
        """Close a model; the last one ends the process."""
        if self._n_models > 1 and self._end.alive:
            with contextlib.suppress(OtterError):  # it may be gone by itself
                self.ask("close", number)
        self._leave()

    def _leave(self) -> None:
        self._n_models -= 1
        if self._n_models == 0:
            self._end()

    def ask(self, verb: str, *arguments: Any) -> Any:
        """The answer; what was raised there is raised here. ``EngineError`` if the process is gone."""
        if os.getpid() != self._owner:
            raise EngineError(f"{self.path}: isolated by another process than this one: open it here")
        answer = self._turn.call(lambda: self._exchange(verb, arguments))
        if answer is None:
            raise EngineError(self._obituary(verb, arguments))
        value, error = answer
        if error is not None:
            raise error
        return value

    def _exchange(self, verb: str, arguments: tuple[Any, ...]) -> Any:
        self.dropped += self._channel.made_for_nobody()
        return self._channel.exchange(self._pickled(verb, arguments))

    def _pickled(self, verb: str, arguments: tuple[Any, ...]) -> bytes:
        stream = io.BytesIO()
        dropped = list(self.dropped)
        try:
            _Pickler(stream, self).dump((verb, dropped, arguments))
        except OtterError:
            raise
        except Exception as error:
            raise ConfigError(f"an argument cannot be sent to the isolated process: {error}") from None
        del self.dropped[: len(dropped)]
        return stream.getvalue()

    def _obituary(self, verb: str, arguments: tuple[Any, ...]) -> str:
        """How it ended."""
        how, words = self._channel.end()
        path = arguments[0] if verb == "open" else self.path
        doing = "while loading" if verb == "open" else f"in {arguments[1]}" if verb == "call" else "in a call"
        return f"{path}: the isolated process ended {how} {doing}{words}; open the model again to go on"


def _start(channel: int, life: int) -> subprocess.Popen[str]:
    """Its standard output is ours, its standard error comes through a pipe, and Ctrl-C by :meth:`Channel.exchange`."""
    command = [sys.executable, "-c", f"{_BEGIN}main({channel}, {life})", json.dumps(list(map(str, sys.path)))]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},  # no debugger is to be attached to what crashes
        pass_fds=(channel, life),
        start_new_session=True,
    )


def _end(channel: Channel, life: int, owner: int) -> None:
    """End the process and bury it; called when nobody needs it any more, at the latest when Python ends."""
    os.close(life)
    if os.getpid() == owner:  # not in a copy of this process
        channel.questions.put(None)
        channel.popen.kill()
        channel.popen.wait()


class _Pickler(pickle.Pickler):
    """Names models that live in the child instead of sending them."""

    def __init__(self, stream: BinaryIO, process: _Process) -> None:
        super().__init__(stream)
        self._process = process

    def persistent_id(self, value: object) -> int | None:
        if not isinstance(value, TextModel):
            return None
        if not isinstance(value, IsolatedOtter) or value._process is not self._process:
            raise ConfigError(
                f"{value.model_path}: lives in another process than the isolated model: open it with beside=that model"
            )
        return int(value._facts["number"])
