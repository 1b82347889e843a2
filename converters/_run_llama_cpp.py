"""Runs llama.cpp's converter as a program: ``_run_llama_cpp.py PARENT SCRIPT FOLDER [OPTION ...]``.

``PARENT`` is the process that waits for it; on Linux the converter ends with it, for nobody else would take its file.

The script reads configurations through transformers, whose version 5 has renamed keys that the script still asks for,
and fills one in that the script takes at its word. What it means to read is put there. It would also take some writes
that failed for done.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def _falcon_keys(config: dict[str, Any]) -> dict[str, Any]:
    # the number of query heads stands there where all of them share one KV head (7B)
    shared = config["multi_query"] and not config["new_decoder_architecture"]
    return {"num_kv_heads": 1} if shared else {}


_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# By model type: the keys that the script reads, with the values that transformers 5 has elsewhere.
_KEYS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "falcon": _falcon_keys,
    "gpt_neox": lambda config: {"rotary_pct": config["rope_parameters"]["partial_rotary_factor"]},
    "gpt2": lambda config: {"n_ctx": config["n_positions"]},
}


def end_with(parent: int) -> None:
    """Be killed when the parent ends, in whatever way; at once, if it has."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the process that started the converter has ended")


def report_failed_writes() -> None:
    """Write tensors through Python's file: numpy's ``tofile`` says nothing of an error in the last part of an array."""
    numpy: Any = importlib.import_module("numpy")
    tensor_class: Any = importlib.import_module("gguf.lazy").LazyNumpyTensor

    def tofile(tensor: Any, file: BinaryIO) -> None:
        array = numpy.ascontiguousarray(tensor_class.to_eager(tensor))
        file.write(array.reshape(-1).view(numpy.uint8))

    tensor_class.tofile = tofile


def main(script: Path) -> None:
    """Replaces this program's arguments and import path by the script's, and runs it."""
    sys.argv = sys.argv[2:]
    # The folder of this file holds modules with common names; the script's holds its own.
    sys.path[0] = str(script.parent)
    base: Any = importlib.import_module("conversion.base")
    load: Callable[..., dict[str, Any]] = base.ModelBase.load_hparams

    def load_hparams(*arguments: Any, **options: Any) -> dict[str, Any]:
        config = load(*arguments, **options)
        if config.get("model_type") in _KEYS:
            config |= _KEYS[config["model_type"]](config)
        return config

    base.ModelBase.load_hparams = staticmethod(load_hparams)
    report_failed_writes()
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    main(Path(sys.argv[2]))
