"""What the inserted part of a file holds, declared once: its tensors and keys, their checks, the binding to a base."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .. import _native
from ..config import BaseGeometry, HeadConfig, InsertionConfig
from ..errors import ConfigError, FileError, MismatchError, UnsupportedError
from ..heads import is_head_name, kinds
from ..tensors import check_shapes
from ..text import listed
from . import keys
from .base import BaseFiles, base_geometry, is_inserted
from .encoding import ALIGNMENT, TENSOR_TYPES, shape_without_ones
from .fingerprint import fingerprint
from .keys import Key
from .recipes import expected_tensors

_MAX_TEXT = 1000
"""Characters of a text in a key; the longest one that belongs there is a sha256."""
_MAX_HEADS = 1000
"""Each is looked for key by key."""

# Sizes of the base: the key in the sidecar and the field of BaseGeometry.
BASE_SIZE_KEYS: tuple[tuple[Key, str], ...] = (
    (keys.BASE_BLOCK_COUNT, "n_layer"),
    (keys.BASE_EMBEDDING_LENGTH, "n_embd"),
    (keys.BASE_HEAD_COUNT, "n_head"),
    (keys.BASE_HEAD_COUNT_KV, "n_head_kv"),
    (keys.BASE_KEY_LENGTH, "head_dim"),
    (keys.BASE_FEED_FORWARD_LENGTH, "n_ff"),
    (keys.BASE_VOCAB_SIZE, "n_vocab"),
    (keys.BASE_EXPERT_COUNT, "n_expert"),
)


# ---- what belongs in a file ------------------------------------------------------------------------------------


def stays_float32(tensor_name: str) -> bool:
    """Norms, biases and heads are small and sensitive: they are F32 in every sidecar. Token tables are large."""
    return "norm." in tensor_name or tensor_name.endswith(".bias") or tensor_name.startswith("cls.output.")


def mixture_type(tensor_name: str, type: str) -> str:
    """The type of a tensor in a sidecar of this type, as far as its rows fit it.

    F32 for what stays so; in Q8_0 F16 for ``ffn_down``: ggml rounds what meets a quantized matrix to 8 bits, in blocks
    of 32, and the outliers among the products of a feed-forward part cost their neighbours precision. That makes a
    third of Q8_0's error (docs/quantization.md); below Q8_0 the rounding of the weights outweighs it.
    """
    if stays_float32(tensor_name):
        return "F32"
    return "F16" if type == "Q8_0" and ".ffn_down." in tensor_name else type


def is_sidecar(file: _native.GgufFile) -> bool:
    """Whether a file says of itself that it is an Otter sidecar."""
    return _string(file, keys.GENERAL_TYPE) == "adapter" and _string(file, keys.ADAPTER_TYPE) == keys.ADAPTER_TYPE_OTTER


def is_merged(file: _native.GgufFile) -> bool:
    """Whether a file holds a base and its inserted part."""
    return keys.MERGED_BASE_SIZE.name in file.keys


# ---- reading ---------------------------------------------------------------------------------------------------


def read_insertion(file: _native.GgufFile) -> InsertionConfig:
    """The insertion that a sidecar or a merged file describes; only its keys are read and checked.

    Raises:
        FileError: The file has no inserted part, or its keys are missing, of a wrong type or contradictory.
        UnsupportedError: Written for another format version.
    """
    if not is_sidecar(file) and not is_merged(file):
        raise FileError(f"{file.path}: no Otter sidecar and no merged file (key {keys.ADAPTER_TYPE} is not 'otter')")
    _check_version(file)
    head_names = _read(file, (keys.HEADS,))[keys.HEADS]
    if len(head_names) > _MAX_HEADS:
        raise FileError(
            f"{file.path}: key {keys.HEADS.name} has {len(head_names)} names, expected at most {_MAX_HEADS}"
        )
    if not all(map(is_head_name, head_names)):  # they become part of keys, and of messages on a terminal
        raise FileError(f"{file.path}: key {keys.HEADS.name} holds a name other than 1 to 16 of a-z, 0-9, _")
    wanted = [*keys.SIDECAR_KEYS, *(keys.MERGED_KEYS if is_merged(file) else ())]
    wanted += [key for key in (*keys.OPTIONAL_SIDECAR_KEYS, *keys.CHECKSUM_KEYS) if key.name in file.keys]
    wanted += [
        head_key(key, name)
        for name in head_names
        for key in keys.head_keys(_string(file, head_key(keys.HEAD_KIND, name).name))
    ]
    values = _read(file, wanted)
    try:
        config = _insertion(file, values, head_names)
    except ConfigError as error:
        raise FileError(f"{file.path}: {error}") from None
    _check_unknown_keys(file, wanted)
    return config


def read_fingerprint(file: _native.GgufFile) -> str:
    """The fingerprint of the base that a sidecar or merged file was made for."""
    return str(_read(file, (keys.BASE_FINGERPRINT,))[keys.BASE_FINGERPRINT])


def head_key(key: Key, name: str) -> Key:
    """A per-head key with the head's name in its place."""
    return dataclasses.replace(key, name=key.name.format(name=name))


def _string(file: _native.GgufFile, key: str) -> str | None:
    if key not in file.keys or file.key_type(key) != "str":
        return None
    return str(file.value(key))


def _check_version(file: _native.GgufFile) -> None:
    version = _read(file, (keys.VERSION,))[keys.VERSION]
    if version != keys.FORMAT_VERSION:
        raise UnsupportedError(
            f"{file.path}: key {keys.VERSION.name} is {version}, this otter-gguf reads version {keys.FORMAT_VERSION}; "
            "update otter-gguf or convert the adapter again"
        )


def _read(file: _native.GgufFile, wanted: list[Key] | tuple[Key, ...]) -> dict[Key, Any]:
    """Values of required keys; one error names all that are missing or of another type."""
    known = set(file.keys)
    problems = [f"{key.name} is missing" for key in wanted if key.name not in known]
    problems += [
        f"{key.name} is {file.key_type(key.name)}, expected {key.type}"
        for key in wanted
        if key.name in known and file.key_type(key.name) != key.type
    ]
    values = {} if problems else {key: file.value(key.name) for key in wanted}
    problems += [
        f"{key.name} holds a text of {len(text)} characters, expected at most {_MAX_TEXT}"
        for key, value in values.items()
        for text in ([value] if key.type == "str" else value if key.type == "arr[str]" else ())
        if len(text) > _MAX_TEXT
    ]
    if problems:
        raise FileError(f"{file.path}: keys: {listed(problems)}")
    return values


def _check_unknown_keys(file: _native.GgufFile, wanted: list[Key]) -> None:
    names = {key.name for key in wanted}
    unknown = [key for key in file.keys if key.startswith(keys.PREFIX) and key not in names]
    if unknown:
        raise UnsupportedError(
            f"{file.path}: unknown keys {listed(unknown, ', ')}: update otter-gguf to read this file"
        )


def _insertion(file: _native.GgufFile, values: Mapping[Key, Any], head_names: list[str]) -> InsertionConfig:
    architecture = _string(file, keys.GENERAL_ARCHITECTURE)
    if architecture is None or len(architecture) > _MAX_TEXT:
        raise FileError(f"{file.path}: keys: {keys.GENERAL_ARCHITECTURE} is missing or no string, or much too long")
    base, heads = _base_and_heads(file, architecture, values, head_names)
    return InsertionConfig(
        base=base,
        width=values[keys.WIDTH],
        n_head_kv=tuple(values[keys.HEAD_COUNT_KV]),
        n_ff=tuple(values[keys.FEED_FORWARD_LENGTH]),
        heads=heads,
        state_source=values[keys.STATE_SOURCE],
        state_offset=values[keys.STATE_OFFSET],
    )


def _base_and_heads(
    file: _native.GgufFile, architecture: str, values: Mapping[Key, Any], head_names: list[str]
) -> tuple[BaseGeometry, tuple[HeadConfig, ...]]:
    """What an insertion is made of; one ``ConfigError`` says what is wrong with each part."""
    sizes = {field: values[key] for key, field in BASE_SIZE_KEYS if key in values}
    makers: list[Callable[[], Any]] = [functools.partial(BaseGeometry, architecture=architecture, **sizes)]
    makers += [functools.partial(_head, file, values, name) for name in head_names]
    parts: list[Any] = []
    problems = []
    for make in makers:
        try:
            parts.append(make())
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(listed(problems))
    return parts[0], tuple(parts[1:])


def _head(file: _native.GgufFile, values: Mapping[Key, Any], name: str) -> HeadConfig:
    kind = values[head_key(keys.HEAD_KIND, name)]
    if kind not in kinds():
        raise UnsupportedError(
            f"{file.path}: head {name!r} is of kind {kind!r}, this otter-gguf knows {' and '.join(kinds())} heads; "
            "update otter-gguf to read this file"
        )
    return HeadConfig.from_dict(
        {"name": name, **{key.field: values[head_key(key, name)] for key in keys.head_keys(kind)}}
    )


# ---- checking --------------------------------------------------------------------------------------------------


def validate_insertion(file: _native.GgufFile) -> InsertionConfig:
    """Check everything about a sidecar, or a merged file's inserted part, that can be checked without the base.

    Raises:
        FileError: Keys or tensors are missing, extra, of a wrong type or shape (all named in one message), or a
            weight is NaN or infinite.
        UnsupportedError: Unknown format version, head kind or key.
    """
    config = read_insertion(file)
    check_tensors(file, config)
    _check_finite(file)
    return config


def validate_for(base: BaseFiles, file: _native.GgufFile) -> InsertionConfig:
    """:func:`validate_insertion`, and that the inserted part belongs to a base; ``file`` may be the merged file itself.

    Raises:
        MismatchError: It was made for another base; the message lists every difference.
        FileError, UnsupportedError: As :func:`validate_insertion`. Where tensors are wrong and the base is another too,
            one message says both.
    """
    config = read_insertion(file)
    try:
        check_tensors(file, config)
    except FileError as error:
        raise FileError("; ".join([str(error), *_binding_problems(base, file)])) from None
    _check_finite(file)
    check_binding(base, file)
    return config


def _check_finite(file: _native.GgufFile) -> None:
    _native.check_finite(file, [tensor.name for tensor in own_tensors(file)])


def own_tensors(file: _native.GgufFile) -> list[_native.TensorInfo]:
    """Every tensor of a sidecar; the inserted ones of a merged file."""
    all_of_them = not is_merged(file)
    return [tensor for tensor in file.tensors if all_of_them or is_inserted(tensor.name)]


def check_tensors(file: _native.GgufFile, config: InsertionConfig) -> None:
    """``FileError`` that lists every tensor that is missing, extra, or of a wrong type or shape."""
    tensors = {tensor.name: tensor for tensor in own_tensors(file)}
    if not tensors:
        raise FileError(f"{file.path}: tensors: there is none")
    further = [problem for tensor in tensors.values() for problem in _wrong_types(tensor)]
    if not is_merged(file) and file.alignment != ALIGNMENT:
        further.append(f"alignment is {file.alignment}, expected {ALIGNMENT}")
    expected = {name: shape_without_ones(shape) for name, shape in expected_tensors(config).items()}
    check_shapes(
        file.path, expected, {name: shape_without_ones(tensor.shape) for name, tensor in tensors.items()}, further
    )


def _wrong_types(tensor: _native.TensorInfo) -> list[str]:
    problems = []
    if stays_float32(tensor.name) and tensor.type != "F32":
        problems.append(f"{tensor.name} is {tensor.type}, expected F32")
    if tensor.type not in TENSOR_TYPES:
        problems.append(f"{tensor.name} is {tensor.type}, expected one of {', '.join(TENSOR_TYPES)}")
    return problems


class Binding(NamedTuple):
    """What decides whether a sidecar belongs to a base."""

    geometry: BaseGeometry
    fingerprint: str

    @classmethod
    def of(cls, base: BaseFiles) -> Binding:
        """Of a base that is there."""
        return cls(base_geometry(base), fingerprint(base))


def check_binding(base: BaseFiles, sidecar: _native.GgufFile) -> None:
    """``MismatchError`` that lists every difference between a base and the one that the sidecar was made for.

    ``sidecar`` may be the merged file that holds the base.
    """
    for problem in _binding_problems(base, sidecar):
        raise MismatchError(f"{sidecar.path}: {problem}")


def _binding_problems(base: BaseFiles, sidecar: _native.GgufFile) -> list[str]:
    """One text about all differences, or none."""
    wanted = Binding(read_insertion(sidecar).base, read_fingerprint(sidecar))
    differences = binding_differences(wanted, Binding.of(base))
    if not differences:
        return []
    advice = "use the base it was trained on, in any quantization"
    return [f"made for another base than {base.path}: {'; '.join(differences)}; {advice}"]


def binding_differences(wanted: Binding, found: Binding) -> list[str]:
    """Each difference in words; an empty list if the base is the wanted one."""
    differences = geometry_differences(wanted.geometry, found.geometry)
    if wanted.fingerprint != found.fingerprint:
        reason = "" if differences else " (same sizes, but other weights or another tokenizer)"
        differences.append(f"fingerprint is {found.fingerprint[:12]}, expected {wanted.fingerprint[:12]}{reason}")
    return differences


def geometry_differences(wanted: BaseGeometry, found: BaseGeometry) -> list[str]:
    """Each differing field in words."""
    return [
        f"{field.name} is {getattr(found, field.name)}, expected {getattr(wanted, field.name)}"
        for field in dataclasses.fields(BaseGeometry)
        if getattr(wanted, field.name) != getattr(found, field.name)
    ]


def to_native_spec(config: InsertionConfig) -> _native.InsertionSpec:
    """What the native blocks need of a configuration."""
    return _native.InsertionSpec(
        width=config.width,
        n_head_kv=config.n_head_kv,
        n_ff=config.n_ff,
        state_source=config.state_source,
        state_offset=config.state_offset,
        heads=[
            _native.HeadSpec(
                name=head.name,
                kind=head.of_kind.native,
                input=head.input,
                activation=head.activation,
                scale=head.scale,
                shift=head.shift,
                rank=head.rank,
            )
            for head in config.heads
        ],
    )
