"""The native module and Python know the same errors."""

from __future__ import annotations

import inspect

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
