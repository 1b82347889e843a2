"""``-p tests.without_torch``: tests that import torch or transformers are skipped where they do; for `make check`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

import pytest

HEAVY = frozenset({"torch", "transformers"})


class Skip(MetaPathFinder):
    """Turns an import of :data:`HEAVY` into a skip, of the test or of the whole file."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Called before any other finder."""
        if name.partition(".")[0] in HEAVY:
            pytest.skip(f"needs {name}", allow_module_level=True)


sys.meta_path.insert(0, Skip())
