"""From file names to native models and contexts: everything is checked before llama.cpp reads it.

llama.cpp opens a file by its name, after us. So that it reads what was checked, a name that is a link is followed once,
and what stands under each name must be the same before the check and after the loading.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from . import _native
from .config import InsertionConfig
from .errors import ConfigError, FileError, OtterError
from .gguf.base import BaseFiles, is_shard_name, shards_beside
from .gguf.checksums import check_checksums
from .gguf.merge import check_parts
from .gguf.sidecar import is_merged, is_sidecar, to_native_spec, validate_for
from .options import DEFAULT_CONTEXT_CAP, LoadOptions
from .threads import check_threads, default_threads

MAX_METADATA_ARRAY = 64
"""Longer arrays (a vocabulary has 100,000 entries) are left out of :func:`read_metadata`."""


@dataclass(frozen=True)
class ModelFiles:
    """A checked base and what is inserted into it."""

    path: str
    sidecar: str
    """Path of the sidecar; "" for a merged file and for a plain base."""
    insertion: InsertionConfig | None
    """None for a plain base."""
    metadata: dict[str, Any]
    places: tuple[str, str] = ("", "")
    """What the two paths lead to, where they are links; "" for a path that is used as it is."""
    states: tuple[FileState, ...] = ()
    """Of every file, before it was checked."""

    @property
    def opened(self) -> tuple[str, str]:
        """Base and sidecar by the paths under which they were checked, and are loaded."""
        return self.places[0] or self.path, self.places[1] or self.sidecar


class FileState(NamedTuple):
    """What a name stands for at some moment."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | Path) -> FileState | None:
        """The state now; None if nothing is there."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        return cls(str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def check_files(model_path: str | Path, otter: str | Path | None = None) -> ModelFiles:
    """Check a base, alone, with a sidecar, or merged with one, before llama.cpp reads anything.

    Raises:
        FileError: A file is damaged or of another kind.
        MismatchError: The sidecar was made for another base.
        UnsupportedError: A file needs something that this version lacks.
        ConfigError: A sidecar is given for a merged file.
    """
    place, sidecar = _followed(model_path), "" if otter is None else _followed(otter)
    paths = [*takewhile(os.path.exists, shards_beside(Path(place))), *([Path(sidecar)] if sidecar else [])]
    states = tuple(state for path in paths if (state := FileState.of(path)))
    with _named(place, model_path), _named(sidecar, otter), BaseFiles.open(place) as base:
        if is_sidecar(base.metadata_file):
            raise FileError(f"{model_path}: an Otter sidecar, no model: give its base as the model, this as --otter")
        _native.check_base(base.metadata_file)  # with the shards beside it
        insertion = _check_insertion(base, None if otter is None else sidecar)
        metadata = read_metadata(base.metadata_file)
    return ModelFiles(os.fsdecode(model_path), os.fsdecode(otter or ""), insertion, metadata, (place, sidecar), states)


def _followed(path: str | Path) -> str:
    """What a link leads to, so that it may be changed from now on. Shards find each other by the names they have."""
    name = os.fsdecode(path)
    return os.path.realpath(name) if os.path.islink(name) and not is_shard_name(Path(name)) else name


@contextmanager
def _named(place: str, path: str | Path | None) -> Iterator[None]:
    """Errors name a file as the user did."""
    try:
        yield
    except OtterError as error:
        if place in ("", str(path)):
            raise
        raise type(error)(str(error).replace(place, str(path))) from None


def _check_insertion(base: BaseFiles, otter: str | None) -> InsertionConfig | None:
    if is_merged(base.metadata_file):
        if otter is not None:
            raise ConfigError(f"{base.path}: a merged file holds its own insertion; leave out {otter}")
        return validate_for(base, base.metadata_file)
    if otter is None:
        return None
    with _native.GgufFile(otter) as sidecar:
        if is_merged(sidecar):
            raise FileError(f"{otter}: a merged file, no sidecar: it holds its base, so give it alone as the model")
        return validate_for(base, sidecar)


def read_metadata(file: _native.GgufFile) -> dict[str, Any]:
    """The metadata of a file as Python values, without long arrays."""
    short = (
        key
        for key in file.keys
        if not file.key_type(key).startswith("arr[") or file.array_length(key) <= MAX_METADATA_ARRAY
    )
    return {key: file.value(key) for key in short}


def load_model(files: ModelFiles, options: LoadOptions) -> _native.Model:
    """Load the weights. ``EngineError`` with llama.cpp's own words if it refuses, ``FileError`` if checksums are asked
    for and differ, or a file is another one than was checked."""
    if options.verify_checksums:
        verify_checksums(files)
    path, sidecar = map(os.fsencode, files.opened)  # a name may be no UTF-8
    model = _native.Model(
        path,
        sidecar=sidecar,
        insertion=to_native_spec(files.insertion) if files.insertion else None,
        n_gpu_layers=options.n_gpu_layers,
        split_mode=options.split_mode,
        main_gpu=options.main_gpu,
        tensor_split=options.tensor_split,
        use_mmap=options.use_mmap,
        use_mlock=options.use_mlock,
        check_tensors=options.check_tensors,
        hidden_states=options.hidden_states,
    )
    for state in files.states:
        if FileState.of(state.path) != state:
            model.close()
            raise FileError(
                f"{state.path}: another file than the one that was checked: it changed meanwhile; load again"
            )
    return model


def verify_checksums(files: ModelFiles) -> None:
    """Compare what is inserted, and the base in a merged file, with the checksums stored for them.

    ``FileError`` names what differs, or that there are none. A plain base has none: nothing is compared.
    """
    if files.insertion is None:
        return
    path, sidecar = files.opened
    with _native.GgufFile(sidecar or path) as file:
        check_checksums(file)
        if is_merged(file):
            check_parts(file)


def context_length(model: _native.Model, options: LoadOptions) -> int:
    """Tokens of a text: as asked, or the model's own length up to a cap."""
    return options.n_ctx or min(model.n_ctx_train, DEFAULT_CONTEXT_CAP)


def make_context(model: _native.Model, options: LoadOptions, *, n_outputs_max: int = 0) -> _native.Context:
    """A context for one text of :func:`context_length` tokens and the candidates of one step beside it.

    ``n_outputs_max``: tokens of a batch whose logits can be asked for; 0 = enough for the candidates. ``ConfigError``
    for more threads than the machine can run.
    """
    n_threads = check_threads("n_threads", options.n_threads) or default_threads()
    return _native.Context(
        model,
        n_ctx=context_length(model, options) + options.n_seq_max,
        n_batch=options.n_batch,
        n_ubatch=min(options.n_ubatch, options.n_batch),
        n_seq_max=options.n_seq_max,
        n_outputs_max=n_outputs_max,
        n_threads=n_threads,
        n_threads_batch=check_threads("n_threads_batch", options.n_threads_batch) or n_threads,
        type_k=options.type_k,
        type_v=options.type_v,
        flash_attn=str(options.flash_attn),  # no bool any more
    )
