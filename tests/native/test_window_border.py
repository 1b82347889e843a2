"""A cache of layers with a window, cut at the last position where nothing is missing, and one before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.native.helpers import feed, open_base, open_otter, random_tokens

pytest.importorskip("torch")  # the toys are made with it
from tests.native.test_architectures import WINDOWED, make

WINDOW = 16
N_TOKENS = 80
# A saved sequence holds what its next token may see: positions 64 to 79. A token sees WINDOW positions, its own too.
BORDER = N_TOKENS - WINDOW + WINDOW - 1


@pytest.mark.parametrize("model_type", WINDOWED)
def test_a_text_is_cut_up_to_the_border_and_no_further(model_type: str, tmp_path: Path) -> None:
    made, tokens = make(tmp_path, model_type), random_tokens(N_TOKENS)
    for context in (open_base(made.base), open_otter(made.base, made.sidecar, made.config)):
        feed(context, tokens)
        whole = context.logits()[BORDER:].copy()
        context.load_state(context.state(), 1)
        assert not context.sequence_remove(1, BORDER - 1)
        assert context.sequence_max_position(1) == N_TOKENS - 1
        assert context.sequence_remove(1, BORDER)
        feed(context, tokens[BORDER:], BORDER, sequences=1)
        assert np.abs(context.logits() - whole).max() <= 1e-4 * np.abs(whole).max()
