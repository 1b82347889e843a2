"""A Hugging Face base model to GGUF, by llama.cpp's own converter of the pinned version, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import otter_gguf.converters
from otter_gguf import _native
from otter_gguf.errors import ConfigError, EngineError, FileError, OtterError, UnsupportedError
from otter_gguf.gguf.atomic import atomic_path

from .checkpoint import read_json

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto")

_SCRIPT = "convert_hf_to_gguf.py"
_RUNNER = Path(__file__).with_name("_run_llama_cpp.py")
_BAR = "Writing:"  # the title of the script's progress bar
_KEPT_LINES = 40
_NEEDED = ("torch", "transformers", "safetensors")


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
        UnsupportedError: torch or transformers are missing, or the folder brings code of its own.
        EngineError: llama.cpp's converter failed, its last line is part of the message; or its file is no model that
            fits itself, as with a configuration of other sizes than the weights.
    """
    folder = Path(folder)
    if outtype not in OUTTYPES:
        raise ConfigError(f"--outtype {outtype}: a base converts to {', '.join(OUTTYPES)}; quantize it afterwards")
    check_folder(folder)
    script = find_script()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"{folder}: converting a Hugging Face base needs {' and '.join(missing)}: pip install 'otter-gguf[train]'"
        )
    _check_weights(folder)
    inputs = [path for path in folder.iterdir() if path.is_file()]
    with atomic_path(target, inputs=inputs, force=force) as temporary:
        _run([str(script), str(folder), "--outfile", str(temporary), "--outtype", outtype], folder, verbose)
        _check_finished(temporary, folder)


def check_folder(folder: Path) -> None:
    """Refuse what is no model folder, and everything that would run code out of it."""
    configs = [folder / "config.json", folder / "tokenizer_config.json"]
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder")
    for path in [configs[0], *filter(Path.is_file, configs[1:])]:
        if "auto_map" in read_json(path):
            raise UnsupportedError(f"{path}: auto_map: a model that brings Python code of its own is not converted")
    if not (any(folder.glob("model*.safetensors")) or (folder / "model.safetensors.index.json").is_file()):
        raise FileError(f"{folder}: no model*.safetensors; pickled weights (.bin, .pt) can run code and are not opened")


def _check_weights(folder: Path) -> None:
    """The script takes headers at their word; the reference implementation of the format does not."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
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
