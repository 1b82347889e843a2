"""Every public function of the native module with every bad value: a typed error or an answer, never a crash."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import EngineError, FileError, _native
from otter_gguf.gguf.sidecar import read_insertion, to_native_spec
from otter_gguf.loading import check_files, load_model
from otter_gguf.options import LoadOptions
from tests.guidance.reference import vocabulary_pair
from tests.native.helpers import SAMPLING, open_sampler
from tests.refusals import refused
from tests.reliability.bad_values import ALLOWED, BAD, Callee, calls, stub_callees, unexpected
from tests.synthetic_models import pair

# What numpy says of truth values and casts of the values that are wrong on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CALLEES = tuple(stub_callees())
TENSOR = "output_norm.weight"
TOKENS = np.arange(3, 7, dtype=np.int32)
KEYED = ("key_type", "value", "raw_value", "array_length", "tensor_data", "non_finite")
"""Methods of a file whose stub says KeyError."""


@functools.cache
def model() -> _native.Model:
    return load_model(check_files(*vocabulary_pair()), LoadOptions())


def file() -> _native.GgufFile:
    return _native.GgufFile(str(pair().base))


def context() -> _native.Context:
    """With a batch in it."""
    made = _native.Context(model(), n_ctx=64, n_seq_max=2, n_threads=1)
    made.decode(TOKENS, np.arange(4, dtype=np.int32), np.zeros(4, np.int32), np.ones(4, np.bool_))
    return made


def sampler() -> _native.Sampler:
    return open_sampler(model(), repeat_penalty=1.1, seed=1)


SUBJECTS: dict[str, Callable[[], Any]] = {"GgufFile": file, "Model": model, "Context": context, "Sampler": sampler}
CLASSES = {
    name: getattr(_native, name) for name in ("GgufFile", "HeadSpec", "InsertionSpec", "Model", "Context", "Sampler")
}


def spec() -> _native.InsertionSpec:
    with _native.GgufFile(str(vocabulary_pair().otter)) as sidecar:
        return to_native_spec(read_insertion(sidecar))


def head() -> _native.HeadSpec:
    return _native.HeadSpec(name="reward", kind="value", input="base", activation="none", scale=[1.0], shift=[0.0])


def good(callee: Callee, folder: Path) -> dict[str, Any]:
    """A right value for each parameter that has no default, and for those that must fit together."""
    n_vocab, files = model().n_vocab, vocabulary_pair()
    of_all: dict[str, Any] = {
        "path": str(pair().base),
        "key": "general.architecture",
        "file": file(),
        "names": [TENSOR],
        "shape": [32, 4],
        "values": np.zeros((2, 32), np.float32),
        "data": bytes(64),
        "n_columns": 32,
        "model": model(),
        "token": 5,
        "tokens": TOKENS,
        "positions": np.arange(10, 14, dtype=np.int32),
        "sequences": np.zeros(4, np.int32),
        "outputs": np.ones(4, np.bool_),
        "head": 0,
        "row": 0,
        "k": 3,
        "sequence": 0,
        "begin": 0,
        "end": -1,
        "delta": 1,
        "logits": np.zeros(n_vocab, np.float32),
        "scores": np.zeros(4, np.float32),
        "seed": 1,
        "schema": "{}",
        "callback": None,
    }
    own: dict[str, dict[str, Any]] = {
        "HeadSpec.__init__": {
            "name": "reward",
            "kind": "value",
            "input": "base",
            "activation": "none",
            "scale": [1.0],
            "shift": [0.0],
        },
        "InsertionSpec.__init__": {
            "width": 32,
            "n_head_kv": [1],
            "n_ff": [8],
            "state_source": "slice",
            "state_offset": 0,
            "heads": [head()],
        },
        "Context.__init__": {"n_ctx": 64, "n_threads": 1},
        "Context.sequence_copy": {"source": 0, "target": 1},
        "Context.load_state": {"data": context().state()},
        "Sampler.__init__": SAMPLING,
        "Sampler.restore": {"state": sampler().save()},
        "Model.__init__": {"path": str(files.base), "sidecar": str(files.otter), "insertion": spec()},
        "Model.tokenize": {"text": b"some text"},
        "GgufFile.tensor_data": {"name": TENSOR},
        "GgufFile.non_finite": {"name": TENSOR},
        "tensor_nbytes": {"type": "Q8_0"},
        "quantize": {"type": "Q8_0"},
        "dequantize": {"type": "F16"},
        "model_quantize": {"source": str(files.base), "target": str(folder / "out"), "type": "Q8_0", "n_threads": 1},
    }
    wanted = (*callee.parameters, *callee.keyword_only)
    given = {**of_all, **own.get(callee.path, {})}
    return {name: given[name] for name in wanted if name in given}


def function_of(callee: Callee, subject: Any) -> Callable[..., object]:
    if callee.name == "__init__":
        return CLASSES[callee.owner]  # type: ignore[no-any-return]
    return getattr(subject if callee.owner else _native, callee.name)  # type: ignore[no-any-return]


def used(callee: Callee) -> bool:
    return callee.name not in ("close",) and bool(callee.parameters or callee.keyword_only)


@pytest.mark.parametrize("callee", [*filter(used, CALLEES)], ids=lambda callee: callee.path)
def test_bad_values_are_typed_errors(callee: Callee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some bad values are good names of files
    subject: Any = SUBJECTS[callee.owner]() if callee.owner in SUBJECTS else None
    allowed = (*ALLOWED, KeyError) if callee.name in KEYED else ALLOWED
    right = good(callee, tmp_path)
    assert unexpected(function_of(callee, subject), callee, right, allowed) == []
    if callee.owner == "Context" and callee.name != "__init__":
        subject.clear()
        assert np.array_equal(subject.score(TOKENS), _native.Context(model(), n_ctx=64, n_threads=1).score(TOKENS))
    _native.set_log_callback(None)


def test_every_parameter_gets_at_least_twelve() -> None:
    assert len(BAD) >= 12
    n_parameters = sum(len(callee.parameters) + len(callee.keyword_only) for callee in CALLEES)
    assert sum(1 for callee in CALLEES for _ in calls(callee, {})) == len(BAD) * n_parameters
    assert n_parameters > 100


def test_the_stub_names_what_there_is() -> None:
    """What is called here is what the module has."""
    stub = {callee.path for callee in CALLEES if callee.owner and callee.name != "__init__"}
    classes = (*CLASSES.values(), _native.TensorInfo, _native.SamplerState, _native.QuantizeReport)
    module = {
        f"{owner.__name__}.{name}"
        for owner in classes
        for name in dir(owner)
        if not name.startswith("_") and not isinstance(getattr(owner, name), property)
    }
    assert stub == module
    functions = {callee.name for callee in CALLEES if not callee.owner}
    assert functions == {name for name in dir(_native) if type(getattr(_native, name)).__name__.startswith("builtin")}


def test_an_unexpected_exception_is_found() -> None:
    callee = Callee("", "f", ("a",), ("b",))

    def f(a: Any, *, b: Any = 0) -> None:
        if a == 2**63 or b == 2**63:
            raise KeyError("no key")
        raise ValueError

    found = unexpected(lambda a, **named: f(a, **named) if isinstance(a, int) else None, callee, {"a": 1})
    assert [line.split(":")[0] for line in found] == ["f(a=2^63)", "f(b=2^63)"]


# ---- after close -----------------------------------------------------------------------------------------------


def closed(owner: str) -> Any:
    if owner == "Model":
        subject: Any = load_model(check_files(*vocabulary_pair()), LoadOptions())
    else:
        subject = SUBJECTS[owner]()
    subject.close()
    subject.close()
    return subject


@pytest.mark.parametrize("owner", ["GgufFile", "Model", "Context"])
def test_use_after_close_is_a_typed_error(owner: str, tmp_path: Path) -> None:
    subject = closed(owner)
    error = FileError if owner == "GgufFile" else EngineError
    for callee in CALLEES:
        if callee.owner == owner and callee.name not in ("__init__", "close"):
            right = good(callee, tmp_path)
            positional = [right[name] for name in callee.parameters if name in right]
            with refused(error, "closed"):
                getattr(subject, callee.name)(*positional)


@pytest.mark.parametrize("owner", ["GgufFile", "Model", "Context"])
def test_properties_after_close_are_typed_errors(owner: str) -> None:
    subject = closed(owner)
    for name in dir(CLASSES[owner]):
        if isinstance(getattr(CLASSES[owner], name), property) and name != "path":
            with refused(FileError if owner == "GgufFile" else EngineError, "closed"):
                getattr(subject, name)


def test_what_is_made_of_something_closed_is_a_typed_error() -> None:
    for make in (_native.Context, open_sampler):
        with refused(EngineError, "closed"):
            make(closed("Model"))
    for function in (_native.check_base, lambda file: _native.check_finite(file, [TENSOR])):
        with refused(FileError, "closed"):
            function(closed("GgufFile"))


def test_views_outlive_what_they_view() -> None:
    opened, made = file(), context()
    data, logits = opened.tensor_data(TENSOR), made.logits()
    before = bytes(data), logits.copy()
    opened.close()
    made.close()
    assert bytes(data) == before[0]
    assert np.array_equal(logits, before[1])
    assert data.readonly
    assert not logits.flags.writeable
