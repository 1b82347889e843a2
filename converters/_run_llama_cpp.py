"""Runs llama.cpp's converter as a program: ``_run_llama_cpp.py SCRIPT FOLDER [OPTION ...]``.

The script reads configurations through transformers, whose version 5 has renamed keys that the script still asks for.
They are put back before it starts.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# By model type: the key that the script reads, and where transformers 5 has the value.
_OLDER_KEYS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "gpt_neox": ("rotary_pct", lambda config: config["rope_parameters"]["partial_rotary_factor"]),
    "gpt2": ("n_ctx", lambda config: config["n_positions"]),
}


def main(script: Path) -> None:
    """Replaces this program's arguments and import path by the script's, and runs it."""
    sys.argv = sys.argv[1:]
    # The folder of this file holds modules with common names; the script's holds its own.
    sys.path[0] = str(script.parent)
    base: Any = importlib.import_module("conversion.base")
    load: Callable[..., dict[str, Any]] = base.ModelBase.load_hparams

    def load_hparams(*arguments: Any, **options: Any) -> dict[str, Any]:
        config = load(*arguments, **options)
        if config.get("model_type") in _OLDER_KEYS:
            key, value = _OLDER_KEYS[config["model_type"]]
            config.setdefault(key, value(config))
        return config

    base.ModelBase.load_hparams = staticmethod(load_hparams)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
