"""Runs llama.cpp's converter as a program: ``_run_llama_cpp.py PARENT CLASS SCRIPT FOLDER [OPTION ...]``.

``PARENT`` is the process that waits for it; on Linux the converter ends with it, for nobody else would take its file.
``CLASS`` is the model class that was found in the folder and may be converted; if the script finds another, it ends.

The script trusts the folder: it passes ``trust_remote_code=True`` to transformers in many places. No code of a model
runs all the same: transformers' loader of such code refuses, and so does the interpreter for code of the folder.

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
from types import CodeType
from typing import Any, BinaryIO, NoReturn


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


def forbid_code(folder: Path) -> None:
    """Let no code of a model run, whatever the script, transformers and torch are asked for.

    Python code that lies in the folder, or where transformers copies it to, is refused by the interpreter itself, so
    that this does not depend on the names of functions, which change with transformers' versions.
    """
    modules: Any = importlib.import_module("transformers.dynamic_module_utils")
    resolve: Callable[..., bool] = modules.resolve_trust_remote_code

    def trust_nothing(_asked: object, *arguments: Any, **options: Any) -> bool:
        return resolve(False, *arguments, **options)

    for name in ("get_class_from_dynamic_module", "get_class_in_module"):
        _replace_everywhere(getattr(modules, name), name, _refuse_code)
    _replace_everywhere(resolve, resolve.__name__, trust_nothing)
    torch: Any = importlib.import_module("torch")
    torch.load = _refuse_pickle
    forbidden = (str(folder.resolve()), os.path.realpath(modules.HF_MODULES_CACHE))
    sys.addaudithook(lambda event, arguments: _refuse_file(event, arguments, *forbidden))


def _replace_everywhere(old: object, name: str, new: Callable[..., object]) -> None:
    """Also in modules of transformers that have imported the function by name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "transformers" and vars(module).get(name) is old:
            setattr(module, name, new)


def _refuse_code(*_arguments: object, **_options: object) -> NoReturn:
    raise PermissionError("the model brings Python code of its own, which is never run")


def _refuse_pickle(*_arguments: object, **_options: object) -> NoReturn:
    raise PermissionError("pickled weights can run code and are not opened; save the model as safetensors")


def _refuse_file(event: str, arguments: tuple[Any, ...], folder: str, cache: str) -> None:
    """An audit hook: a module or library of ``folder`` itself, or of anywhere in ``cache``, must not start."""
    if event == "exec" and isinstance(arguments[0], CodeType):
        file = arguments[0].co_filename
    elif event == "import" and arguments[1]:  # an extension module
        file = arguments[1]
    elif event == "ctypes.dlopen" and isinstance(arguments[0], str):
        file = arguments[0]
    else:
        return
    place = os.path.dirname(os.path.realpath(file))
    # Not below the folder: a virtual environment may stand there.
    if os.sep in file and (place == folder or f"{place}{os.sep}".startswith(f"{cache}{os.sep}")):
        _refuse_code()


def report_failed_writes() -> None:
    """Write tensors through Python's file: numpy's ``tofile`` says nothing of an error in the last part of an array."""
    numpy: Any = importlib.import_module("numpy")
    tensor_class: Any = importlib.import_module("gguf.lazy").LazyNumpyTensor

    def tofile(tensor: Any, file: BinaryIO) -> None:
        array = numpy.ascontiguousarray(tensor_class.to_eager(tensor))
        file.write(array.reshape(-1).view(numpy.uint8))

    tensor_class.tofile = tofile


def main(model_class: str, script: Path, folder: Path) -> None:
    """Replaces this program's arguments and import path by the script's, and runs it."""
    sys.argv = sys.argv[3:]
    # The folder of this file holds modules with common names; the script's holds its own.
    sys.path[0] = str(script.parent)
    forbid_code(folder)
    base: Any = importlib.import_module("conversion.base")
    load: Callable[..., dict[str, Any]] = base.ModelBase.load_hparams

    def load_hparams(*arguments: Any, **options: Any) -> dict[str, Any]:
        config = load(*arguments, **options)
        if config.get("model_type") in _KEYS:
            config |= _KEYS[config["model_type"]](config)
        found = base.get_model_architecture(config, base.ModelType.TEXT)
        if found != model_class:
            sys.exit(f"transformers reads architecture {found!r} of the folder, and config.json says {model_class!r}")
        return config

    base.ModelBase.load_hparams = staticmethod(load_hparams)
    report_failed_writes()
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    main(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
