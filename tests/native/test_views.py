"""Views of logits outlive the decodes behind them."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest

from otter_gguf import _native
from tests.native.children import run_child
from tests.native.helpers import feed, open_base, open_otter, random_tokens
from tests.native.test_non_disruption import CONFIG, make


@pytest.fixture
def context(tmp_path: Path) -> _native.Context:
    return open_otter(*make(tmp_path), CONFIG)


def test_a_view_keeps_its_numbers_when_a_decode_takes_more_room(context: _native.Context) -> None:
    """llama.cpp frees the memory then; here it would be unmapped."""
    feed(context, random_tokens(150))
    views = [context.logits(), context.logits()[3:5]]
    kept = [view.copy() for view in views]
    feed(context, random_tokens(300), 150)
    assert context.logits().shape[0] == 300
    for view, copy in zip(views, kept, strict=True):
        assert np.array_equal(view, copy)


def test_a_view_can_be_read_when_rewards_take_more_room(context: _native.Context) -> None:
    """A row for each token that fits a batch, where no head was read before."""
    feed(context, random_tokens(4), rewards=False)
    view = context.logits()
    kept = view.copy()
    context.score(random_tokens(20), sequence=1)
    assert np.array_equal(view, kept)


def test_a_decode_that_fits_makes_no_copy(context: _native.Context) -> None:
    """The negative twin: llama.cpp's memory is used again, so that a view shows the newest numbers."""
    feed(context, random_tokens(10))
    view = context.logits()
    feed(context, random_tokens(10, seed=1), 10)
    assert np.array_equal(view, context.logits())
    assert np.shares_memory(view, context.logits())


def test_a_view_outlives_context_and_model(tmp_path: Path) -> None:
    context = open_base(make(tmp_path)[0])
    feed(context, random_tokens(150))
    view, kept = context.logits(), context.logits().copy()
    feed(context, random_tokens(300), 150)
    gone = weakref.ref(context.logits())
    context.close()
    del context
    gc.collect()
    assert gone() is None
    assert np.array_equal(view, kept)
    before = _native.live_objects()["contexts"]
    del view
    gc.collect()
    assert _native.live_objects()["contexts"] == before - 1


def test_a_finalizer_may_close_a_file_that_is_being_read(tmp_path: Path) -> None:
    """Each object of Python that a method makes may run the collector, which may run anything."""
    make(tmp_path)
    code = """
    import gc
    from otter_gguf import _native
    gc.set_threshold(1, 1, 1)

    class Closer:
        def __init__(self, file):
            self.file, self.me = file, self
        def __del__(self):
            self.file.close()

    for _ in range(50):
        for read in ("keys", "tensors"):
            file = _native.GgufFile(sys.argv[1])
            Closer(file)
            try:
                found = getattr(file, read)
            except Exception as error:
                assert "closed" in str(error), error
            else:
                assert all(repr(entry) for entry in found)
    print("read")
    """
    assert run_child(code, next(tmp_path.glob("*.gguf"))) == "read\n"
