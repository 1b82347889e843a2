"""Quantize bases, sidecars and merged files.

A base goes through llama.cpp's own quantizer, so it comes out as ``llama-quantize`` would write it. Inserted tensors,
which that quantizer does not know, go through ggml's; of a merged file each part takes its own way. What binds a
sidecar to its base survives all of this, and is compared before a file gets its name.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .. import _native
from ..errors import ConfigError, EngineError, FileError, MismatchError, OtterError, UnsupportedError
from ..gguf.atomic import atomic_path, hand_over, scratch_folder
from ..gguf.base import BaseFiles, is_inserted
from ..gguf.checksums import check_checksums, has_checksums
from ..gguf.encoding import ALIGNMENT, TENSOR_TYPES, KeyValue
from ..gguf.fingerprint import fingerprint
from ..gguf.merge import MergedParts, merge, split
from ..gguf.sidecar import is_merged, is_sidecar, mixture_type, stays_float32, validate_insertion
from ..gguf.writer import TensorPlan, progress_bar, write_gguf
from .importance import Float32, ImportanceMatrix, read_importance

Part = Literal["base", "inserted"]

COPY = "COPY"
"""The type that leaves every tensor in its own."""
BASE_TYPES = _native.QUANTIZE_TYPES
"""Types of a base, under llama-quantize's names; many are mixtures."""
SIDECAR_TYPES = (*TENSOR_TYPES, COPY)
"""Types of inserted matrices; norms and heads stay F32, and Q8_0 is a mixture (:func:`mixture_type`)."""
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Types of a base that llama-quantize knows by a second name."""
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
"""Where rows are no multiple of 256, as llama.cpp has it; where they are none of 32 either, F16."""
FULL_TYPES = ("F32", "F16", "BF16", "Q8_0")
"""Types that may be quantized further without ``allow_requantize``: they are close to the trained values."""

_FLOAT_TYPES = ("F32", "F16", "BF16")
_QUANTIZATION_VERSION = KeyValue("general.quantization_version", "u32", 2)
_CHUNK_VALUES = 1 << 20


@dataclass(frozen=True)
class QuantizeOptions:
    """What to make of a file."""

    type: str
    """Of the base, one of :data:`BASE_TYPES`; of a sidecar that stands alone, one of :data:`SIDECAR_TYPES`."""
    otter_type: str | None = None
    """Merged files: type of the inserted part; None leaves it as it is."""
    imatrix: str | Path | None = None
    """Importance matrix of the base, from llama-imatrix."""
    n_threads: int = 0
    """0 = all cores."""
    allow_requantize: bool = False
    """Accept tensors of types other than :data:`FULL_TYPES`."""
    output_tensor_type: str | None = None
    """Tensor type of the base's output projection, instead of the mixture's."""
    pure: bool = False
    """Give every matrix the type itself, instead of a mixture of types."""
    keep_split: bool = False
    """Write as many files as the base has; else one."""

    def __post_init__(self) -> None:
        for name in ("type", "otter_type", "output_tensor_type"):
            value = getattr(self, name)
            object.__setattr__(self, name, value.upper() if value else value)
        if self.n_threads < 0:
            raise ConfigError(f"--threads {self.n_threads}: expected 0 (all cores) or more")
        if self.otter_type not in (None, *SIDECAR_TYPES):
            raise ConfigError(f"--otter-type {self.otter_type}: expected one of {', '.join(SIDECAR_TYPES)}")

    @property
    def base_type(self) -> str:
        """llama-quantize's name. ``ConfigError`` if there is no such type."""
        type = ALIASES.get(self.type, self.type)
        if type not in BASE_TYPES:
            raise ConfigError(f"type {self.type}: expected one of {', '.join(BASE_TYPES)}")
        return type


class PlannedTensor(NamedTuple):
    """A tensor before and after."""

    part: Part
    name: str
    shape: tuple[int, ...]
    """GGUF order: columns first."""
    old_type: str
    new_type: str
    fallback: bool
    """Whether its rows do not fit the type that was asked for."""

    @property
    def old_bytes(self) -> int:
        """Size before."""
        return _native.tensor_nbytes(self.old_type, self.shape)

    @property
    def new_bytes(self) -> int:
        """Size after."""
        return _native.tensor_nbytes(self.new_type, self.shape)


class Sizes(NamedTuple):
    """Tensors of one type in one part."""

    part: Part
    type: str
    old_tensors: int
    old_bytes: int
    new_tensors: int
    new_bytes: int


@dataclass(frozen=True)
class QuantizationPlan:
    """What becomes of each tensor."""

    tensors: tuple[PlannedTensor, ...]
    without_importance: tuple[str, ...] = ()
    """Tensors of the base to be quantized for which the importance matrix has no values."""

    @property
    def old_bytes(self) -> int:
        """Size of all tensors before."""
        return sum(tensor.old_bytes for tensor in self.tensors)

    @property
    def new_bytes(self) -> int:
        """Size of all tensors after."""
        return sum(tensor.new_bytes for tensor in self.tensors)

    def sizes(self) -> list[Sizes]:
        """By part and type, the base first; types in the order in which they appear."""
        counts: dict[tuple[Part, str], Counter[str]] = {}
        for tensor in self.tensors:
            for age in ("old", "new"):
                count = counts.setdefault((tensor.part, getattr(tensor, f"{age}_type")), Counter())
                count.update({f"{age}_tensors": 1, f"{age}_bytes": getattr(tensor, f"{age}_bytes")})
        ordered = sorted(counts.items(), key=lambda item: item[0][0])
        return [Sizes(part, type, *(count[name] for name in Sizes._fields[2:])) for (part, type), count in ordered]


def plan_quantization(source: str | Path, options: QuantizeOptions) -> QuantizationPlan:
    """What :func:`quantize` would do; nothing is written beside the source. Raises what it would raise before it
    writes."""
    with BaseFiles.open(source) as files:
        return _job(files, options).plan


def quantize(
    source: str | Path, target: str | Path, options: QuantizeOptions, *, force: bool = False
) -> QuantizationPlan:
    """Write ``source`` with other weight types.

    Args:
        source: A base (its file or first shard), a sidecar, or a merged file.
        target: Appears as a whole or not at all. Several files (``keep_split``) get their names one after the other,
            the first of them, which stands for all, last.
        options: The types.
        force: Replace an existing file.

    Raises:
        FileError: ``source`` is damaged, has a value that the type cannot hold, or ``target`` cannot be written.
        ConfigError: An unknown type, one that needs an importance matrix, an option that is not for this file, or a
            tensor that is quantized already without ``allow_requantize``.
        MismatchError: The importance matrix is another model's.
        UnsupportedError, EngineError: llama.cpp cannot quantize the base.
    """
    with BaseFiles.open(source) as files:
        job = _job(files, options)
        inputs = [*(file.path for file in files.files), *([options.imatrix] if options.imatrix else [])]
        job.write(Path(target), inputs, force)
        return job.plan


def fitting_type(type: str, n_columns: int) -> str:
    """The type itself, or the one of :data:`FALLBACK` that rows of this length fit, or F16."""
    for candidate in (type, FALLBACK.get(type, "F16")):
        try:
            _native.tensor_nbytes(candidate, (n_columns,))
        except FileError:
            continue
        return candidate
    return "F16"


def _job(files: BaseFiles, options: QuantizeOptions) -> _Base | _Sidecar | _Merged:
    if is_sidecar(files.metadata_file):
        return _Sidecar(files.metadata_file, options)
    if is_merged(files.metadata_file):
        return _Merged(files, options)
    if options.otter_type:
        raise ConfigError(f"{files.path}: holds no inserted part, so --otter-type is not for it")
    return _Base(files, options)


# ---- bases -----------------------------------------------------------------------------------------------------


class _Base:
    """A base through llama.cpp's quantizer; ``self.plan`` is its own dry run."""

    def __init__(self, files: BaseFiles, options: QuantizeOptions) -> None:
        self.files = files
        self.options = options
        _native.check_base(files.metadata_file)  # and the files beside it
        for file in files.files:
            if file.alignment != ALIGNMENT:
                raise UnsupportedError(
                    f"{file.path}: tensors aligned to {file.alignment} bytes, llama.cpp's quantizer writes {ALIGNMENT}"
                )
        if options.keep_split and len(files.files) == 1:
            raise ConfigError(f"{files.path}: is one file, so --keep-split is not for it")
        self.imatrix = read_importance(options.imatrix) if options.imatrix else None
        self.importance = _fitting_importance(self.imatrix, files) if self.imatrix else {}
        self.plan = self._plan()

    def write(self, target: Path, inputs: Sequence[str | Path], force: bool) -> None:
        """Write one file, or as many as there are."""
        if self.options.keep_split:
            self._write_shards(target, inputs, force)
            return
        with atomic_path(target, inputs=inputs, force=force) as temporary:
            self._run(str(temporary), target)
            self._check(temporary)

    def _plan(self) -> QuantizationPlan:
        report = self._quantizer("", dry_run=True)
        if report.needs_importance:
            raise ConfigError(f"type {self.options.type} needs an importance matrix: give --imatrix")
        fallbacks = set(report.fallbacks)
        tensors = tuple(
            PlannedTensor("base", t.name, t.shape, t.type, report.types[t.name], t.name in fallbacks)
            for t in self.files.tensors
        )
        _check_requantization(self.files.path, tensors, self.options)
        missing = (t.name for t in tensors if t.new_type not in (t.old_type, *_FLOAT_TYPES))
        without = tuple(name for name in missing if name not in self.importance) if self.imatrix else ()
        return QuantizationPlan(tensors, without)

    def _run(self, temporary: str, target: Path) -> None:
        sizes = {tensor.name: tensor.old_bytes for tensor in self.plan.tensors}
        try:
            with progress_bar("Quantizing", self.plan.old_bytes) as bar:
                self._quantizer(temporary, progress=lambda name, type: bar.update(sizes.get(name, 0)))
        except EngineError as error:
            if "iostream" in str(error):  # all that C++ says of a write that failed
                raise FileError(f"{target}: llama.cpp's quantizer cannot write it; is the disk full?") from None
            raise

    def _quantizer(self, target: str, **more: Any) -> _native.QuantizeReport:
        options = self.options
        return _native.model_quantize(
            os.fsencode(self.files.path),  # a name may be no UTF-8
            os.fsencode(target),
            options.base_type,
            options.n_threads,
            pure=options.pure,
            keep_split=options.keep_split,
            output_tensor_type=options.output_tensor_type,
            importance=self.importance,
            metadata=_importance_metadata(self.imatrix) if self.imatrix else {},
            **more,
        )

    def _write_shards(self, target: Path, inputs: Sequence[str | Path], force: bool) -> None:
        count = len(self.files.files)
        names = [f"-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
        if not target.name.endswith(names[0]):
            raise ConfigError(f"{target}: with --keep-split name the first of {count} files: NAME{names[0]}")
        stem = target.name.removesuffix(names[0])
        with ExitStack() as stack:
            # Left in reverse order: the first file, by which the others are found, gets its name last.
            temporaries = [
                stack.enter_context(atomic_path(target.with_name(stem + name), inputs=inputs, force=force))
                for name in names
            ]
            with scratch_folder(target) as folder:
                self._run(str(folder / "shard"), target)
                self._check(folder / f"shard{names[0]}")
                for name, temporary in zip(names, temporaries, strict=True):
                    hand_over(folder / f"shard{name}", temporary)

    def _check(self, written: Path) -> None:
        """The finished file has the planned types, and sidecars of the source fit it."""
        with BaseFiles.open(written) as result:
            types = {tensor.name: tensor.type for tensor in result.tensors}
            planned = {tensor.name: tensor.new_type for tensor in self.plan.tensors}
            if types != planned or fingerprint(result) != fingerprint(self.files):
                raise EngineError(f"{self.files.path}: llama.cpp's quantizer wrote another model than planned")


def _check_requantization(path: str, tensors: Sequence[PlannedTensor], options: QuantizeOptions) -> None:
    """Refuse to round values a second time, unless asked for."""
    coarse = [t for t in tensors if t.new_type != t.old_type and t.old_type not in FULL_TYPES]
    if coarse and not options.allow_requantize:
        first = coarse[0]
        raise ConfigError(
            f"{path}: {len(coarse)} tensors have lost precision already ({first.name} is {first.old_type}); take a "
            f"file in {', '.join(FULL_TYPES[:-1])} or {FULL_TYPES[-1]}, or give --allow-requantize"
        )


def _fitting_importance(imatrix: ImportanceMatrix, base: BaseFiles) -> dict[str, Float32]:
    """The values for matrices of this base. ``MismatchError`` if they are another model's."""
    fitting, differing = {}, []
    for tensor in base.tensors:
        values = imatrix.values.get(tensor.name)
        if values is None:
            continue
        n_values = tensor.shape[0] * math.prod(tensor.shape[2:])
        if values.size == n_values:
            fitting[tensor.name] = values
        else:
            differing.append(f"{tensor.name} has {values.size} values, expected {n_values}")
    if differing or not fitting:
        reason = "; ".join(differing) or "it names none of its tensors"
        raise MismatchError(f"{imatrix.path}: made for another model than {base.path}: {reason}")
    return fitting


def _importance_metadata(imatrix: ImportanceMatrix) -> Mapping[str, int | str]:
    """The keys that llama-quantize leaves in a file; of a path only its last part."""
    return {
        "quantize.imatrix.file": Path(imatrix.path).name,
        "quantize.imatrix.dataset": imatrix.dataset,
        "quantize.imatrix.entries_count": len(imatrix.values),
        "quantize.imatrix.chunks_count": imatrix.n_chunks,
    }


# ---- sidecars --------------------------------------------------------------------------------------------------


class _Sidecar:
    """A sidecar through ggml's quantizer."""

    def __init__(self, file: _native.GgufFile, options: QuantizeOptions) -> None:
        self.file = file
        self.options = options
        if options.type not in SIDECAR_TYPES:
            kind = "a mixture for a base; a sidecar has one of" if options.type in BASE_TYPES else "expected one of"
            raise ConfigError(f"type {options.type}: {kind} {', '.join(SIDECAR_TYPES)}")
        flags = {
            "--otter-type": options.otter_type,
            "--imatrix": options.imatrix,
            "--output-tensor-type": options.output_tensor_type,
            "--keep-split": options.keep_split,
        }
        for flag, value in flags.items():
            if value:
                raise ConfigError(f"{file.path}: a sidecar, {flag} is not for it")
        validate_insertion(file)
        if has_checksums(file):
            check_checksums(file)  # or damaged values would get checksums of their own
        self.plan = QuantizationPlan(plan_inserted(file, options.type, options))

    def write(self, target: Path, inputs: Sequence[str | Path], force: bool) -> None:
        """Write the file."""
        pool = ThreadPoolExecutor(self.options.n_threads or os.cpu_count())
        plans = [
            TensorPlan(t.name, t.new_type, t.shape, partial(_requantized, self.file, t, pool))
            for t in self.plan.tensors
        ]
        try:
            write_gguf(target, self._metadata(), plans, inputs=inputs, force=force, check=_check_sidecar)
        finally:
            pool.shutdown(cancel_futures=True)

    def _metadata(self) -> list[KeyValue]:
        file = self.file
        entries = [KeyValue(key, file.key_type(key), file.value(key)) for key in file.keys]
        quantized = any(tensor.new_type not in _FLOAT_TYPES for tensor in self.plan.tensors)
        if quantized and _QUANTIZATION_VERSION.key not in file.keys:
            entries.append(_QUANTIZATION_VERSION)
        return entries


def plan_inserted(file: _native.GgufFile, type: str, options: QuantizeOptions) -> tuple[PlannedTensor, ...]:
    """The inserted tensors of a sidecar or merged file, in the types of ``type``'s mixture or those that rows fit."""
    tensors = []
    for tensor in file.tensors:
        if not is_inserted(tensor.name):
            continue
        wanted = _wanted_type(tensor, type, options)
        new_type = fitting_type(wanted, tensor.shape[0])
        tensors.append(PlannedTensor("inserted", tensor.name, tensor.shape, tensor.type, new_type, new_type != wanted))
    _check_requantization(file.path, tensors, options)
    return tuple(tensors)


def _wanted_type(tensor: _native.TensorInfo, type: str, options: QuantizeOptions) -> str:
    """Before it is known whether the rows fit."""
    if type == COPY:
        return tensor.type
    return type if options.pure and not stays_float32(tensor.name) else mixture_type(tensor.name, type)


def _requantized(
    file: _native.GgufFile, tensor: PlannedTensor, pool: ThreadPoolExecutor
) -> Iterator[bytes | memoryview]:
    """The tensor's bytes in its new type, some rows at a time."""
    data = file.tensor_data(tensor.name)
    if tensor.new_type == tensor.old_type:
        yield data
        return
    n_columns, n_rows = tensor.shape[0], math.prod(tensor.shape[1:])
    row_size = _native.tensor_nbytes(tensor.old_type, (n_columns,))
    step = max(1, _CHUNK_VALUES // n_columns)

    def rows(first: int) -> bytes:
        values = _native.dequantize(data[first * row_size : (first + step) * row_size], tensor.old_type, n_columns)
        return _native.quantize(values, tensor.new_type)

    try:
        yield from pool.map(rows, range(0, n_rows, step))
    except FileError as error:
        raise FileError(f"{file.path}: tensor {tensor.name}: {error}") from None


def _check_sidecar(path: Path) -> None:
    with _native.GgufFile(str(path)) as file:
        validate_insertion(file)


# ---- merged files ----------------------------------------------------------------------------------------------


class _Merged:
    """A merged file: taken apart, each part quantized, merged again."""

    def __init__(self, files: BaseFiles, options: QuantizeOptions) -> None:
        self.path = files.path
        self.options = options
        _native.check_base(files.metadata_file)
        inserted = plan_inserted(files.metadata_file, options.otter_type or COPY, options)
        base = self._plan_base(MergedParts(files.metadata_file))
        self.plan = QuantizationPlan((*base.tensors, *inserted), base.without_importance)

    def write(self, target: Path, inputs: Sequence[str | Path], force: bool) -> None:
        """Write the file; takes the room of both parts and of the result beside it."""
        options = self.options
        with atomic_path(target, inputs=inputs, force=force) as temporary, scratch_folder(target) as folder:
            base, sidecar, merged = (folder / name for name in ("base.gguf", "sidecar.gguf", "merged.gguf"))
            split(self.path, base, sidecar)
            if options.type != COPY:
                self._quantize_part(base, dataclasses.replace(options, otter_type=None))
            if options.otter_type:
                kept = {name: getattr(options, name) for name in ("n_threads", "allow_requantize", "pure")}
                self._quantize_part(sidecar, QuantizeOptions(options.otter_type, **kept))
            merge(base, sidecar, merged)
            hand_over(merged, temporary)

    def _plan_base(self, parts: MergedParts) -> QuantizationPlan:
        """A plan needs no weights: the base's header, and a hole in the place of its data."""
        with tempfile.TemporaryDirectory(prefix="otter-gguf-") as folder:
            path = Path(folder) / "base.gguf"
            path.write_bytes(next(parts.base()))
            os.truncate(path, parts.base_size)
            with self._naming_the_file(path), BaseFiles.open(path) as base:
                return _Base(base, self.options).plan

    def _quantize_part(self, path: Path, options: QuantizeOptions) -> None:
        """In place."""
        target = path.with_suffix(".new")
        with self._naming_the_file(path):
            quantize(path, target, options)
        os.replace(target, path)

    @contextmanager
    def _naming_the_file(self, part: Path) -> Iterator[None]:
        """Errors name the merged file instead of a part that is gone when they are read."""
        try:
            yield
        except OtterError as error:
            raise type(error)(str(error).replace(str(part), self.path)) from None
