"""A model in a process of its own: the same results, and whatever happens there stays there."""

from __future__ import annotations

import gc
import inspect
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, BestOfN, ConfigError, DExperts, EngineError, FileError, MismatchError, Otter
from otter_gguf.cli import main as cli
from otter_gguf.isolation import IsolatedOtter, open_model
from otter_gguf.isolation import channel as _channel
from otter_gguf.isolation.wire import BrokenWireError, decode, encode, read_answer, write_answer
from otter_gguf.scoring import Score
from otter_gguf.text_model import TextModel
from tests import hostile
from tests.completions import chat_pair, choice_of, joined, tokens_of
from tests.guidance.reference import EXACT
from tests.refusals import assert_names, refused
from tests.synthetic_models import TEXT, Pair, pair

REPOSITORY = Path(__file__).parents[1]
OPTIONS: dict[str, Any] = {**EXACT, "n_ctx": 256, "n_threads": 1, "seed": 1}
MESSAGES = [{"role": "user", "content": "Where do otters live?"}]


def isolated(files: Pair | None = None, **options: Any) -> IsolatedOtter:
    files = files or chat_pair()
    return IsolatedOtter(files.base, otter=files.otter, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def llm() -> Iterator[IsolatedOtter]:
    with isolated() as llm:
        yield llm


@pytest.fixture(scope="module")
def own() -> Iterator[Otter]:
    """The same in this process."""
    files = chat_pair()
    with Otter(files.base, otter=files.otter, **OPTIONS) as own:
        yield own


def is_gone(pid: int, seconds: float = 5) -> bool:
    """Whether the process is gone, not even a zombie, soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def without_id(response: Any) -> Any:
    return {key: value for key, value in response.items() if key not in ("id", "created")}


# ---- the same --------------------------------------------------------------------------------------------------

LOWER_LEVEL = {"model", "context", "session", "engine"}


def test_everything_public_is_there(llm: IsolatedOtter, own: Otter) -> None:
    names = {name for name in dir(own) if not name.startswith("_")}
    assert names >= LOWER_LEVEL
    assert names - LOWER_LEVEL <= set(dir(llm)) | set(vars(llm))
    for name in names - LOWER_LEVEL:
        if inspect.ismethod(getattr(Otter, name, None)) or inspect.isfunction(getattr(Otter, name, None)):
            assert name in vars(IsolatedOtter), f"{name} would run in this process"
            assert list(inspect.signature(getattr(llm, name)).parameters) == list(
                inspect.signature(getattr(own, name)).parameters
            )


def test_what_it_says_of_itself(llm: IsolatedOtter, own: Otter) -> None:
    for name in ("n_ctx", "n_vocab", "n_rewards", "reward_labels", "vocabulary_heads", "has_chat_template", "seed"):
        assert getattr(llm, name) == getattr(own, name), name
    for name in ("insertion", "metadata", "model_path", "options"):
        assert getattr(llm, name) == getattr(own, name), name
    assert repr(llm) == f"Isolated{own!r}"
    assert llm.pid != os.getpid()


CALLS: dict[str, Callable[[TextModel], Any]] = {
    "tokenize": lambda llm: llm.tokenize(TEXT, special=True),
    "detokenize": lambda llm: llm.detokenize(llm.tokenize(TEXT)),
    "plain": lambda llm: without_id(llm.create_completion(TEXT, max_tokens=12, temperature=0)),
    "drawn": lambda llm: without_id(llm("a", max_tokens=12, temperature=1, seed=3, logprobs=2, prompt_rewards=True)),
    "args": lambda llm: without_id(llm.create_completion("a", max_tokens=8, guidance=ARGS(2.0), step_records=True)),
    "batch": lambda llm: without_id(llm.create_completion(["a", "b"], max_tokens=5, temperature=0)),
    "schema": lambda llm: without_id(
        llm.create_completion("a", max_tokens=9, seed=1, json_schema={"type": "object", "$": 1})
    ),
    "callback": lambda llm: tokens_of(
        llm.create_completion("a", max_tokens=3, logits_processor=hostile.first_vowel, temperature=0)
    ),
    "chat": lambda llm: without_id(llm.create_chat_completion(MESSAGES, max_tokens=6, temperature=0, logprobs=True)),
    "tokenize_chat": lambda llm: llm.tokenize_chat(MESSAGES),
    "stream": lambda llm: joined(llm.create_completion("a", max_tokens=9, temperature=0, stream=True)),
    "guided stream": lambda llm: joined(
        llm.create_completion("a", max_tokens=9, temperature=0, stream=True, guidance=ARGS(2.0))
    ),
    "last_rewards": lambda llm: (llm.create_completion("a", max_tokens=0), llm.last_rewards)[1],
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_results(llm: IsolatedOtter, own: Otter, name: str) -> None:
    assert CALLS[name](llm) == CALLS[name](own)


def test_the_same_arrays(llm: IsolatedOtter, own: Otter) -> None:
    ours, theirs = own.score("The otter", " swims"), llm.score("The otter", " swims")
    assert isinstance(theirs, Score)
    assert theirs.to_dict() == ours.to_dict()
    assert theirs.rewards.dtype == np.float32
    assert theirs.rewards.flags.writeable
    for (token, rewards), (other, expected) in islice(zip(llm.generate([65]), own.generate([65]), strict=True), 9):
        assert token == other
        np.testing.assert_array_equal(rewards, expected)


def test_several_texts_are_scored_there(llm: IsolatedOtter, own: Otter) -> None:
    texts = [("The otter", " swims"), ("The otter", None)]
    for one, other in zip(own.score_many(texts), llm.score_many(texts), strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
    ours, theirs = (model.rerank("The otter", [" swims", " eats"], top_n=1) for model in (own, llm))
    assert [one["document"] for one in ours] == [one["document"] for one in theirs]


def test_states_go_from_one_process_to_the_other(llm: IsolatedOtter, own: Otter) -> None:
    own.create_completion(TEXT, max_tokens=0)
    llm.create_completion("other", max_tokens=0)
    llm.load_state(own.save_state())
    assert llm.save_state() == own.save_state()
    wrong = pair()
    with isolated(wrong) as other, refused(MismatchError, wrong.base):
        other.load_state(own.save_state())


def test_an_iterator_gives_way_to_a_call_that_needs_its_sequences(llm: IsolatedOtter, own: Otter) -> None:
    for model in (llm, own):
        chunks = model.create_completion("a", max_tokens=50, temperature=0, stream=True)
        next(iter(chunks))
        assert choice_of(model.create_completion("b", max_tokens=1))
        model.create_completion("b", max_tokens=1, guidance=BestOfN(own.options.n_seq_max))
        with refused(ConfigError, "stream"):
            list(chunks)


def test_dropped_iterators_are_forgotten_there(llm: IsolatedOtter) -> None:
    for _ in range(3):
        llm.create_completion("a", max_tokens=50, stream=True)
    gc.collect()
    assert llm._process.dropped
    llm.tokenize("a")
    assert llm._process.dropped == []


def test_errors_are_the_same(llm: IsolatedOtter, own: Otter, tmp_path: Path) -> None:
    wrong: list[Callable[[TextModel], Any]] = [
        lambda model: model.create_completion([]),
        lambda model: model.create_completion("a", temperature=-1),
        lambda model: model.create_completion("a", no_such_option=1),  # type: ignore[call-overload]
        lambda model: model.score([65] * 1000),
        lambda model: model.load_state(None),  # type: ignore[arg-type]
    ]
    for call in wrong:
        messages = []
        models: tuple[TextModel, ...] = (llm, own)
        for model in models:
            with pytest.raises(Exception) as raised:  # noqa: PT011 (compared below)
                call(model)
            messages.append((raised.type, str(raised.value)))
        assert messages[0] == messages[1]
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with refused(FileError, "bad.gguf"):
        IsolatedOtter(tmp_path / "bad.gguf")


def test_an_exception_of_a_callback_arrives(llm: IsolatedOtter) -> None:
    with pytest.raises(ZeroDivisionError):
        llm.create_completion("a", max_tokens=3, logits_processor=hostile.divide)
    assert llm.tokenize("a")


# ---- crashes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "names"),
    [
        (hostile.read_address_zero, ("SIGSEGV",)),
        (hostile.abort, ("SIGABRT", "some.c:12", r"GGML_ASSERT(\x1b[2Jfalse)")),
        (hostile.leave, ("code 3",)),
    ],
)
def test_a_crash_is_an_error_here(callback: Any, names: tuple[str, ...]) -> None:
    llm = isolated()
    pid = llm.pid
    with refused(EngineError, "chat.gguf", "create_completion", *names):
        llm.create_completion("a", max_tokens=3, logits_processor=callback)
    assert is_gone(pid)
    with refused(EngineError, "chat.gguf", "score"):
        llm.score("a")
    llm.close()
    llm.close()
    with isolated() as again:
        assert len(tokens_of(again.create_completion("a", max_tokens=2, temperature=0))) == 2


def test_a_crash_in_the_middle_of_a_stream() -> None:
    with isolated() as llm:
        chunks = llm.create_completion("a", max_tokens=50, stream=True, temperature=0)
        assert next(chunks)
        os.kill(llm.pid, signal.SIGBUS)
        with refused(EngineError, "chat.gguf", "SIGBUS"):
            list(chunks)


def test_a_crash_while_loading() -> None:
    with refused(EngineError, "chat.gguf", "SIGABRT", "loading"):
        isolated(verbose=hostile.Bomb())


def test_a_crash_between_calls_leaves_no_zombie() -> None:
    with isolated() as llm:
        os.kill(llm.pid, signal.SIGKILL)
        assert is_gone(llm.pid)
        with refused(EngineError, "chat.gguf", "SIGKILL", "tokenize"):
            llm.tokenize("a")


# ---- life ------------------------------------------------------------------------------------------------------


def test_close_ends_the_process() -> None:
    llm = isolated()
    llm.close()
    assert is_gone(llm.pid)
    with refused(EngineError, "chat.gguf", "closed"):
        llm.tokenize("a")


def test_a_forgotten_model_ends_its_process() -> None:
    llm = isolated()
    pid = llm.pid
    assert not is_gone(pid, 0.1)
    del llm
    gc.collect()
    assert is_gone(pid)


PARENT = """
import sys
from otter_gguf import open_model
from tests import hostile
llm = open_model(sys.argv[1], otter=sys.argv[2], isolate=True, n_ctx=64, n_threads=1)
print(llm.pid, flush=True)
if sys.argv[3] != "none":
    llm.create_completion("a", max_tokens=5, logits_processor=getattr(hostile, sys.argv[3]))
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("callback", "number"),
    [
        ("none", signal.SIGKILL),
        ("hang_with_lock", signal.SIGKILL),
        *(pytest.param(name, signal.SIGTERM, marks=pytest.mark.slow) for name in ("none", "slow", "deaf")),
    ],
)
def test_the_child_dies_with_its_parent(callback: str, number: int) -> None:
    if callback == "hang_with_lock" and sys.platform != "linux":
        pytest.skip("needs a signal that the system sends at the parent's end")
    command = [sys.executable, "-c", PARENT, *map(str, chat_pair()), callback]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": "."}
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        assert not is_gone(pid, 0)
        parent.send_signal(number)
        parent.wait(10)
    assert is_gone(pid)


def test_a_parent_that_ends_leaves_nothing() -> None:
    command = [sys.executable, "-c", PARENT, *map(str, chat_pair()), "none"]
    environment = os.environ | {"PYTHONPATH": "."}
    done = subprocess.run(
        command, input=b"", capture_output=True, cwd=REPOSITORY, env=environment, timeout=60, check=True
    )
    assert is_gone(int(done.stdout))
    assert done.stderr == b""


FORK = """
import os, sys
from otter_gguf import EngineError, open_model
llm = open_model(sys.argv[1], otter=sys.argv[2], isolate=True, n_ctx=64, n_threads=1)
copy = os.fork()
if copy == 0:
    try:
        llm.tokenize("a")
    except EngineError as error:
        print(error, flush=True)
    sys.exit()
os.waitpid(copy, 0)
print(llm.tokenize("a"))
"""


def test_a_copy_of_the_parent_cannot_ask_and_does_no_harm() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, *map(str, chat_pair())]
    environment = os.environ | {"PYTHONPATH": "."}
    done = subprocess.run(
        command, capture_output=True, cwd=REPOSITORY, env=environment, timeout=60, check=True, text=True
    )
    refused, tokens = done.stdout.splitlines()
    assert "isolated by another process" in refused
    assert tokens.startswith("[")


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------


def interrupt(llm: TextModel, callback: Any) -> float:
    """Seconds from Ctrl-C to its exception."""
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        llm.create_completion("a", max_tokens=200, logits_processor=callback, temperature=0)
    return time.monotonic() - begin - 0.3


def test_ctrl_c_ends_the_call_and_not_the_model() -> None:
    with isolated() as llm:
        pid = llm.pid
        expected = tokens_of(llm.create_completion("b", max_tokens=5, temperature=0))
        assert interrupt(llm, hostile.slow) < 1
        assert tokens_of(llm.create_completion("b", max_tokens=5, temperature=0)) == expected
        assert llm.pid == pid


def test_ctrl_c_ends_a_process_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_channel, "_PATIENCE", 0.5)
    with isolated() as llm:
        assert interrupt(llm, hostile.deaf) < 2
        assert is_gone(llm.pid)
        with refused(EngineError, "chat.gguf", "SIGKILL", "tokenize"):
            llm.tokenize("a")


def test_ctrl_c_to_the_child_alone_between_calls_does_nothing(llm: IsolatedOtter) -> None:
    os.kill(llm.pid, signal.SIGINT)
    time.sleep(0.1)
    assert llm.tokenize("a")


# ---- what cannot be sent ---------------------------------------------------------------------------------------


def test_what_cannot_be_sent_is_refused(llm: IsolatedOtter, own: Otter) -> None:
    with refused(ConfigError, "<lambda>"):
        llm.create_completion("a", logits_processor=lambda tokens, logits: logits)
    with refused(ConfigError, "chat.gguf", "beside"):
        llm.create_completion("a", guidance=ARGS(1.0), reward_model=own)
    with isolated() as other, refused(ConfigError, "chat.gguf", "beside"):
        llm.create_completion("a", guidance=ARGS(1.0), reward_model=other)
    with refused(ConfigError, "beside:"):
        isolated(beside=own)
    with refused(TypeError, "isolated"):
        pickle.dumps(llm)
    assert llm.tokenize("a")


def test_what_cannot_be_made_again_is_refused(llm: IsolatedOtter, monkeypatch: pytest.MonkeyPatch) -> None:
    def stranger(tokens: Any, logits: Any) -> Any:
        return logits

    stranger.__module__, stranger.__qualname__ = "__main__", "stranger"
    monkeypatch.setattr(sys.modules["__main__"], "stranger", stranger, raising=False)
    with refused(ConfigError, "'stranger'", "module"):
        llm.create_completion("a", logits_processor=stranger)


def test_the_lower_level_is_out_of_reach(llm: IsolatedOtter, own: Otter) -> None:
    for name in LOWER_LEVEL:
        with refused(ConfigError, f"the {name}", "isolated"):
            getattr(llm, name)
    with refused(ConfigError, "isolated"):
        own.create_completion("a", guidance=ARGS(1.0), reward_model=llm)
    with refused(AttributeError, "no_such"):
        llm.no_such  # type: ignore[attr-defined]  # noqa: B018


def test_a_second_thread_waits(llm: IsolatedOtter) -> None:
    ended = []

    def call() -> None:
        llm.create_completion("a", max_tokens=2, logits_processor=hostile.slow)
        ended.append("first")

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.3)
    assert llm.tokenize("a")
    ended.append("second")
    thread.join()
    assert ended == ["first", "second"]


# ---- several models in one process -----------------------------------------------------------------------------


def test_models_side_by_side(llm: IsolatedOtter, own: Otter) -> None:
    judge = pair(seed=5)
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0}
    with isolated(judge, beside=llm) as there, Otter(judge.base, otter=judge.otter, **OPTIONS) as here:
        assert there.pid == llm.pid
        for given, expected in (
            ({"guidance": ARGS(30.0), "reward_model": there}, {"guidance": ARGS(30.0), "reward_model": here}),
            ({"guidance": DExperts(expert=there)}, {"guidance": DExperts(expert=here)}),
        ):
            theirs = choice_of(llm.create_completion("a", **options, **given))
            assert theirs == choice_of(own.create_completion("a", **options, **expected))
            assert theirs["text"] != choice_of(llm.create_completion("a", **options))["text"]
    assert llm.tokenize("a")  # the process stays for the model that is left
    with pytest.raises(FileError):
        IsolatedOtter("no such file", beside=llm)
    assert llm.tokenize("a")


# ---- answers are not trusted -----------------------------------------------------------------------------------


def test_values_go_there_and_back() -> None:
    value = {"$": 1, 2: (1, b"\0"), "a": [None, True, 1.5, "\udcff", float("inf")], "b": {"x": np.float32(0.5)}}
    stream = io.BytesIO()
    write_answer(stream, 7, value)
    stream.seek(0)
    found, error = read_answer(stream, 7)
    assert found == value | {"b": {"x": 0.5}}
    assert error is None
    with refused(TypeError, "object"):
        encode([object()], [])


NUMBER = 5
"""Of the question that is answered."""


def answer(content: object, blobs: bytes = b"") -> io.BytesIO:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return io.BytesIO(struct.pack("<IQ", len(text), NUMBER) + text + blobs)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b"[" * 100_000,
        b"\xff",
        [],
        {},
        {"value": 1},
        {"value": 1, "sizes": [-1]},
        {"value": 1, "sizes": [5]},
        {"value": 1, "sizes": [2**62]},
        {"error": ["OtterError"], "sizes": []},
        {"error": "OtterError", "sizes": []},
        {"value": {"$": "os.system", "command": "true"}, "sizes": []},
        {"value": {"$": "Score"}, "sizes": []},
        {"value": {"$": "bytes", "blob": 0}, "sizes": []},
        {"value": {"$": "array", "type": "|O", "shape": [1], "blob": 0}, "sizes": [8]},
        {"value": {"$": "array", "type": "<f4", "shape": [3], "blob": 0}, "sizes": [8]},
        {"value": {"$": "array", "type": "<f4", "shape": [-1, 0], "blob": 0}, "sizes": [8]},
        {"value": {"$": "dict", "items": [[[], 1]]}, "sizes": []},
    ],
)
def test_answers_that_are_none(content: Any) -> None:
    blobs = b"\0" * 8 if isinstance(content, dict) and content.get("sizes") == [8] else b""
    with pytest.raises(BrokenWireError):
        read_answer(answer(content, blobs), NUMBER)


def test_the_answer_to_another_question_is_none() -> None:
    good = {"value": 1, "sizes": []}
    assert read_answer(answer(good), NUMBER) == (1, None)
    for other in (0, NUMBER - 1, NUMBER + 1):
        with pytest.raises(BrokenWireError):
            read_answer(answer(good), other)


def test_a_length_without_end_is_refused() -> None:
    with pytest.raises(BrokenWireError):
        read_answer(io.BytesIO(struct.pack("<IQ", 2**32 - 1, NUMBER)), NUMBER)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("FileError", FileError),
        ("TypeError", TypeError),
        ("UnicodeDecodeError", EngineError),
        ("SystemExit", EngineError),
        ("eval", EngineError),
        ("annotations", EngineError),
        ("NoSuchError", EngineError),
    ],
)
def test_only_exceptions_can_be_raised_from_there(name: str, expected: type[Exception]) -> None:
    _, error = read_answer(answer({"error": [name, "words"], "sizes": []}), NUMBER)
    assert type(error) is expected
    assert "words" in str(error)


def test_decode_makes_nothing_but_known_types() -> None:
    array = decode({"$": "array", "type": "<i4", "shape": [2], "blob": 0}, [b"\1\0\0\0\2\0\0\0"])
    assert array.tolist() == [1, 2]
    with pytest.raises(KeyError):
        decode({"$": "Path"}, [])


# ---- ways in ---------------------------------------------------------------------------------------------------


def test_open_model() -> None:
    files = pair()
    with open_model(files.base, otter=files.otter, **OPTIONS) as plain:
        assert type(plain) is Otter
    with open_model(files.base, otter=files.otter, isolate=True, **OPTIONS) as other:
        assert type(other) is IsolatedOtter


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    files = chat_pair()
    common = ["-m", str(files.base), "--otter", str(files.otter), "-t", "1", "-c", "128"]
    outputs = []
    for more in ([], ["--isolate"]):
        assert cli.main(["score", *common, "-p", "The otter", *more]) == 0
        outputs.append(capsys.readouterr().out)
        run = ["run", *common, "-p", "The otter", "-n", "8", "--temp", "0", "-w", "2", *more]
        assert cli.main([*run, "--reward-model", str(files.base), "--reward-otter", str(files.otter)]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[:2] == outputs[2:]
    assert cli.main(["run", "--isolate", "-m", str(REPOSITORY / "README.md"), "-p", "a"]) == 2
    assert_names(capsys.readouterr().err, "README.md", "GGUF")
