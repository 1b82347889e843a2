"""benchmarks/weight_types.py on its first rows."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks.demo_model.stories import preference_pairs
from benchmarks.weight_types import PAIR_SEED, base_rows, print_tables, relative_error, sidecar_rows


def test_errors_are_relative_to_what_varies() -> None:
    wanted = np.array([9.0, 11.0])
    assert relative_error(wanted, wanted) == 0.0
    assert relative_error(wanted + 0.5, wanted) == 0.5


def test_rows_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = list(preference_pairs(PAIR_SEED, 2, "B"))
    bases = list(islice(base_rows(tmp_path, 1000), 1))
    sidecars = list(islice(sidecar_rows(tmp_path, pairs), 5))
    assert [(row.type, row.tensor_types, row.differing) for row in bases] == [("F32", ("F32",), 0)]
    assert bases[0].logits >= 1000
    assert (sidecars[0].error, sidecars[0].weights_error) == (0.0, 0.0)
    assert 1e-6 < sidecars[1].weights_error < sidecars[1].error < 1e-3
    mixed, pure = sidecars[3:]
    assert (mixed.tensor_types, pure.tensor_types) == (("Q8_0", "F16"), ("Q8_0",))
    assert mixed.error < pure.error
    assert mixed.random_error < pure.random_error
    print_tables(bases, sidecars[:2], len(pairs), 300)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| F32 | F32 | 3.63 | ")
    assert lines[-1].startswith("| F16 | F16 | 1.40 | 0.0")
