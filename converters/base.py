"""A Hugging Face base model to GGUF, by llama.cpp's own converter of the pinned version, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import otter_gguf.converters
from otter_gguf import _native
from otter_gguf.architectures import describe, supported
from otter_gguf.errors import ConfigError, EngineError, FileError, OtterError, UnsupportedError
from otter_gguf.files import open_regular, read_json, read_regular
from otter_gguf.gguf.atomic import atomic_path

from .checkpoint import weight_map

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto")

_SCRIPT = "convert_hf_to_gguf.py"
_RUNNER = Path(__file__).with_name("_run_llama_cpp.py")
_BAR = "Writing:"  # the title of the script's progress bar
_KEPT_LINES = 40
_NEEDED = ("torch", "transformers", "safetensors")
_CONFIGS = ("config.json", "tokenizer_config.json")
_CODE_KEYS = ("auto_map", "configuration_files")
"""Keys by which a folder has transformers load Python code, or another configuration, which may hold the first one."""
_TEXT_PARTS = ("Gemma3ForConditionalGeneration",)
"""Model classes with more than text, whose text part is of a supported architecture; that is what gets converted."""


def convert_base(
    folder: str | Path, target: str | Path, *, outtype: str = "auto", verbose: bool = False, force: bool = False
) -> None:
    """Convert a Hugging Face model folder.

    Args:
        folder: Holds ``config.json``, the tokenizer and safetensors.
        target: The GGUF file to write.
        outtype: One of ``OUTTYPES``; ``auto`` keeps 16 bits.
        verbose: Pass on the converter's log, not only its progress bar.
        force: Replace an existing file.

    Raises:
        FileError: Not such a folder, only pickled weights, damaged ones, or ``target`` cannot be written.
        UnsupportedError: torch or transformers are missing, the folder brings code of its own, or its model is of an
            architecture that takes no insertion.
        EngineError: llama.cpp's converter failed, its last line is part of the message; or its file is no model that
            fits itself, as with a configuration of other sizes than the weights.
    """
    folder = Path(folder)
    if outtype not in OUTTYPES:
        raise ConfigError(f"--outtype {outtype}: a base converts to {', '.join(OUTTYPES)}; quantize it afterwards")
    model_class = check_folder(folder)
    script = find_script()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"{folder}: converting a Hugging Face base needs {' and '.join(missing)}: pip install 'otter-gguf[train]'"
        )
    _check_weights(folder)
    inputs = [path for path in folder.iterdir() if path.is_file()]
    with atomic_path(target, inputs=inputs, force=force) as temporary:
        options = ["--outfile", str(temporary), "--outtype", outtype]
        _run([model_class, str(script), str(folder), *options], folder, verbose)
        _check_finished(temporary, folder)


def check_folder(folder: Path) -> str:
    """Refuse what is no model folder, and everything that would run code out of it; returns the model's class."""
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder")
    _check_brings_no_code(folder)
    model_class = _model_class(folder / "config.json")
    if not any(path.name.startswith("model") for path in weight_files(folder)):
        raise FileError(f"{folder}: no model*.safetensors; pickled weights (.bin, .pt) can run code and are not opened")
    return model_class


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, and those that its index names. ``FileError`` if one is no regular file."""
    found = set(folder.glob("*.safetensors"))
    if (folder / "model.safetensors.index.json").is_file():
        found |= {folder / name for name in weight_map(folder, "model").values()}
    for path in found:
        open_regular(path).close()
    return sorted(found)


def _check_brings_no_code(folder: Path) -> None:
    """In any JSON file: which of them transformers reads depends on its version and on the others."""
    for path in sorted(folder.glob("*.json")):
        data = read_json(path) if path.name in _CONFIGS else _object_of(path)
        for key in _CODE_KEYS:
            # A vocabulary may hold such a word, with a token's id.
            if key in data and type(data[key]) is not int:
                raise UnsupportedError(f"{path}: {key}: a model that brings Python code of its own is not converted")


def _object_of(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file holds nothing that transformers could read as one."""
    try:
        data = json.loads(read_regular(path).decode("utf-8"))
    except (FileError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _model_class(path: Path) -> str:
    """The class by which the script chooses its code. ``UnsupportedError`` unless it can be widened.

    The script knows some two hundred more, each by code of its own that nobody here has read.
    """
    config = read_json(path)
    text_config = config.get("text_config")
    names = (text_config.get("architectures") if isinstance(text_config, dict) else None) or config.get("architectures")
    allowed = (*(describe(model_type).model_class for model_type in supported()), *_TEXT_PARTS)
    if not isinstance(names, list) or not names or names[0] not in allowed:
        raise UnsupportedError(
            f"{path}: architectures is {names!r}, expected one of {', '.join(sorted(allowed))}; convert other models "
            "with llama.cpp's convert_hf_to_gguf.py, which may run code that they bring"
        )
    return str(names[0])


def _check_weights(folder: Path) -> None:
    """The script takes headers at their word; the reference implementation of the format does not."""
    from safetensors import SafetensorError, safe_open

    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise FileError(f"{path}: damaged: {error}") from None


def _check_finished(written: Path, folder: Path) -> None:
    try:
        with _native.GgufFile(str(written)) as file:
            _native.check_base(file)
    except OtterError as error:
        reason = str(error).removeprefix(f"{written}: ")
        raise EngineError(f"{folder}: llama.cpp's converter made a file that cannot be loaded: {reason}") from None


def find_script() -> Path:
    """llama.cpp's converter, which the build puts beside the converters."""
    folders = [Path(entry) / "llama_cpp" for entry in otter_gguf.converters.__path__]
    if os.environ.get("OTTER_LLAMA_CPP_DIR"):
        folders.append(Path(os.environ["OTTER_LLAMA_CPP_DIR"]))
    for folder in folders:
        if (folder / _SCRIPT).is_file():
            return folder / _SCRIPT
    raise FileError(
        f"{_SCRIPT} of llama.cpp was not found beside otter_gguf.converters; install otter-gguf again, or set "
        "OTTER_LLAMA_CPP_DIR to an unpacked llama.cpp tree"
    )


def _run(command: list[str], folder: Path, verbose: bool) -> None:
    """Run the script; its progress bar goes to our stderr, its log only if asked for."""
    process = subprocess.Popen(
        [sys.executable, str(_RUNNER), str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        close_fds=False,  # the one inheritable descriptor is the lock on the file that it writes
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert process.stderr is not None
    try:
        lines = _pass_on(process.stderr, verbose)
        if process.wait() != 0:
            reason = lines[-1] if lines else f"exit code {process.returncode}"
            raise EngineError(f"{folder}: llama.cpp's converter failed: {reason} (--verbose shows its log)")
    finally:
        process.kill()  # for Ctrl-C; does nothing to a process that has ended
        process.wait()
        process.stderr.close()


def _pass_on(stream: Iterable[str], verbose: bool) -> deque[str]:
    """Show what the user should see; returns the last lines. A bar redraws itself with carriage returns: lines here."""
    kept: deque[str] = deque(maxlen=_KEPT_LINES)
    drew_bar = False
    for line in map(str.rstrip, stream):
        if line.startswith(_BAR):
            if sys.stderr.isatty():
                drew_bar = True
                print(f"\r{line}", end="", file=sys.stderr, flush=True)
        elif line:
            kept.append(line)
            if verbose:
                print(line, file=sys.stderr)
    if drew_bar:
        print(file=sys.stderr)
    return kept
