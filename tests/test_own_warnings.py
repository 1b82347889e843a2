"""Whose call a deprecation is."""

from __future__ import annotations

import textwrap
import types
import warnings
from pathlib import Path

import pytest

from tests.own_warnings import ROOT, is_ours, own_deprecations


def library(name: str, code: str, **names: object) -> types.ModuleType:
    """A module of another's package."""
    module = types.ModuleType(name)
    vars(module).update(names)
    exec(compile(textwrap.dedent(code), f"/site-packages/{name}.py", "exec"), vars(module))
    return module


OLD = library(
    "library.inner",
    """
    import warnings
    def old(category=DeprecationWarning, stacklevel=1):
        inside(category, stacklevel)
    def inside(category, stacklevel):
        warnings.warn("use new()", category, stacklevel=stacklevel)
    """,
)
OTHER = library("other", "def call():\n    old()\n", old=OLD.old)


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning, PendingDeprecationWarning])
@pytest.mark.parametrize("stacklevel", [1, 2, 3, 9])
def test_our_call_is_found(category: type[Warning], stacklevel: int) -> None:
    with pytest.warns(category, match="new"), own_deprecations() as found:
        OLD.old(category, stacklevel)
    (line,) = found
    assert line.startswith(__file__)
    assert "use new()" in line


def test_a_call_among_libraries_is_not_ours() -> None:
    with pytest.warns(DeprecationWarning, match="new"), own_deprecations() as found:
        OTHER.call()
    assert not found


def test_a_library_that_calls_itself_is_not_ours() -> None:
    deep = library(
        "deep",
        """
        import warnings
        def call(depth):
            warnings.warn("old", FutureWarning) if depth == 0 else call(depth - 1)
        """,
    )
    with pytest.warns(FutureWarning, match="old"), own_deprecations() as found:
        deep.call(1)
    assert len(found) == 1
    with pytest.warns(FutureWarning, match="old"), own_deprecations() as found:
        deep.call(20)
    assert not found


def test_a_module_of_torch_stands_between_without_being_the_caller() -> None:
    between = library("torch.nn.modules.module", "def call(function):\n    function()\n")
    with pytest.warns(DeprecationWarning, match="new"), own_deprecations() as found:
        between.call(OLD.old)
    assert len(found) == 1


def test_native_code_that_warns_was_called_by_us() -> None:
    with pytest.warns(DeprecationWarning, match="~"), own_deprecations() as found:
        warnings.warn("~", DeprecationWarning, stacklevel=2)  # no frame of a library stands between
    assert len(found) == 1


def test_another_kind_of_warning_is_none() -> None:
    with pytest.warns(UserWarning, match="new"), own_deprecations() as found:
        OLD.old(UserWarning)
    assert not found


def test_the_hook_is_put_back() -> None:
    before = warnings.showwarning
    with pytest.raises(ZeroDivisionError), own_deprecations():
        raise ZeroDivisionError
    assert warnings.showwarning is before


def test_what_is_ours() -> None:
    assert is_ours(str(ROOT / "otter_gguf" / "model.py"))
    assert is_ours(__file__)
    assert not is_ours(str(ROOT / ".venv" / "lib" / "site-packages" / "transformers" / "trainer.py"))
    assert not is_ours(str(Path("/usr/lib/python3/threading.py")))
