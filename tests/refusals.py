"""How tests check an error: by its class and by what it names, never by its sentences.

A message must name what the reader needs to act: the file, key, tensor, option or argument, the value found and the
value expected. How it is worded around them is free, so that a better sentence breaks no test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import cast

import pytest

from otter_gguf.errors import OtterError

_SENTENCE = re.compile(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}")


def names(message: str, name: object) -> bool:
    """Whether a message holds a name or value as a whole: ``3`` is not in ``13``, nor ``width`` in ``widths``."""
    text = str(name)
    before = r"(?<!\w)" if re.match(r"\w", text) else ""
    behind = r"(?!\w)" if re.search(r"\w$", text) else ""
    return re.search(f"{before}{re.escape(text)}{behind}", message) is not None


def assert_names(message: str, *wanted: object) -> None:
    """Fail unless the message names each of ``wanted``; a sentence is no name."""
    sentences = [name for name in wanted if _SENTENCE.search(str(name))]
    assert not sentences, f"a test pins the wording of a message: {sentences}"
    missing = [name for name in wanted if not names(message, name)]
    assert not missing, f"{message!r} does not name {missing}"


def refused(
    error: type[BaseException], *wanted: object
) -> AbstractContextManager[pytest.ExceptionInfo[BaseException], bool]:
    """Expect an error of a class whose one-line message names each of ``wanted``.

    Args:
        error: The class; one of its subclasses will do.
        wanted: File names, keys, tensors, options, values: what :func:`str` makes of them must stand in the message.
    """
    # The bool tells type checkers that the exception ends here.
    return cast("AbstractContextManager[pytest.ExceptionInfo[BaseException], bool]", _refused(error, wanted))


@contextmanager
def _refused(error: type[BaseException], wanted: tuple[object, ...]) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    with pytest.raises(error) as raised:
        yield raised
    message = str(raised.value)
    if isinstance(raised.value, OtterError):
        assert "\n" not in message, f"a message is one line: {message!r}"
    assert_names(message, *wanted)
