"""The native module and Python know the same errors."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest

from otter_gguf import _native, errors


def test_the_lists_are_the_same() -> None:
    python = {
        name for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == errors.__name__
    }
    assert set(_native.ERROR_CLASSES) == python - {"OtterError"}
    assert len(_native.ERROR_CLASSES) == len(set(_native.ERROR_CLASSES))


@pytest.mark.parametrize("name", _native.ERROR_CLASSES)
def test_every_error_is_an_otter_error(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.OtterError)


def test_native_code_raises_these_very_classes() -> None:
    with pytest.raises(errors.FileError) as caught:
        _native.GgufFile("/nothing/here.gguf")
    assert type(caught.value) is errors.FileError


# ---- messages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("as  it is: 'a\\n'", "as  it is: 'a\\n'"),
        ("first\n    second\r\nthird\u2028\n", "first second third"),
        ("\x1b[31mred\x07 \t \x9b", "\\x1b[31mred\\x07 \\t \\x9b"),
        ("gnp.\u202egpj", "gnp.\\u202egpj"),
        ("half \ud800", "half \\ud800"),
        ("\u00fc\u2603 \U0001f9a6", "\u00fc\u2603 \U0001f9a6"),
    ],
)
def test_a_message_is_one_printable_line(text: str, expected: str) -> None:
    assert str(errors.FileError(text)) == expected


def test_a_message_has_a_bounded_length() -> None:
    """Its beginning and its end, where it says what to do."""
    text = f"the pattern {'x' * 400_000} is wrong: give another"
    message = str(errors.ConfigError(text))
    assert len(message) < errors.MAX_MESSAGE + 100
    assert len(str(errors.ConfigError("\x1b" * 400_000))) < errors.MAX_MESSAGE + 100
    assert message.startswith("the pattern xxx")
    assert message.endswith("x is wrong: give another")
    assert str(len(text)) in message
    assert str(errors.ConfigError("x" * errors.MAX_MESSAGE)) == "x" * errors.MAX_MESSAGE


def test_errors_of_native_code_are_as_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b.gguf"
    with pytest.raises(errors.FileError) as caught:
        _native.GgufFile(str(path))
    assert str(caught.value).isprintable()
    assert r"b\x1b.gguf" in str(caught.value)


def test_errors_are_sent_to_other_processes() -> None:
    error = pickle.loads(pickle.dumps(errors.FileError("a\nb")))
    assert (type(error), str(error)) == (errors.FileError, "a b")
