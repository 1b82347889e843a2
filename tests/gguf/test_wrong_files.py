"""Files that are well formed and wrong: refused before anything is computed, with every difference in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from otter_gguf import ConfigError, FileError, MismatchError, Otter, OtterError, UnsupportedError, _native
from otter_gguf.config import BaseGeometry
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.gguf.merge import merge
from otter_gguf.gguf.writer import TensorPlan
from tests.gguf.toy_files import (
    GEOMETRY,
    base_tensors,
    float_tensor,
    insertion,
    rewrite,
    split_base,
    write_base,
    write_sidecar,
)
from tests.refusals import assert_names, refused

Paths = tuple[Path, Path | None]


class Folder:
    """The good files, and new ones beside them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base = write_base(path / "base.gguf")
        self.sidecar = write_sidecar(path / "toy.otter.gguf", self.base)
        merge(self.base, self.sidecar, path / "merged.gguf")
        self.merged = path / "merged.gguf"

    def other_base(self, **sizes: int) -> Path:
        """A base of other sizes."""
        return write_base(self.path / "other.gguf", geometry=BaseGeometry(**(dataclasses.asdict(GEOMETRY) | sizes)))


class Wrong(NamedTuple):
    """Files that do not belong together; the message holds every one of ``names``."""

    files: Callable[[Folder], Paths]
    error: type[OtterError]
    names: tuple[object, ...]


def other(**sizes: int) -> Callable[[Folder], Paths]:
    return lambda folder: (folder.other_base(**sizes), folder.sidecar)


def reweighted(name: str, values: Any) -> Callable[[Folder], Paths]:
    """A sidecar with other values in one tensor."""
    plan = float_tensor(name, np.asarray(values, np.float32))
    return lambda folder: (folder.base, rewrite(folder.sidecar, folder.path / "new.gguf", tensors={name: plan}))


def without(*names: str) -> Callable[[Folder], Paths]:
    changes: dict[str, TensorPlan | None] = dict.fromkeys(names)
    return lambda folder: (folder.base, rewrite(folder.sidecar, folder.path / "new.gguf", tensors=changes))


def with_entry(key: str, type: str, value: object) -> Callable[[Folder], Paths]:
    """A sidecar with another value of a key."""
    entry = KeyValue(key, type, value)
    return lambda folder: (folder.base, rewrite(folder.sidecar, folder.path / "new.gguf", metadata={key: entry}))


def retokenized(folder: Folder) -> Paths:
    """Same sizes and weights, two tokens exchanged."""
    with _native.GgufFile(str(folder.base)) as file:
        tokens = file.value("tokenizer.ggml.tokens")
    tokens[260], tokens[261] = tokens[261], tokens[260]
    return write_base(
        folder.path / "other.gguf", metadata=(KeyValue("tokenizer.ggml.tokens", "arr[str]", tokens),)
    ), folder.sidecar


def renamed_architecture(folder: Folder) -> Paths:
    return write_base(folder.path / "other.gguf", geometry=dataclasses.replace(GEOMETRY, architecture="smollm3")), (
        folder.sidecar
    )


def other_sidecar(**changes: Any) -> Callable[[Folder], Paths]:
    """A sidecar made for a base of other sizes."""

    def files(folder: Folder) -> Paths:
        geometry = BaseGeometry(**(dataclasses.asdict(GEOMETRY) | changes))
        base = write_base(folder.path / "its-base.gguf", geometry=geometry)
        return folder.base, write_sidecar(folder.path / "its.otter.gguf", base, insertion(base=geometry))

    return files


def several_faults(folder: Folder) -> Paths:
    changes: dict[str, TensorPlan | None] = {
        "blk.0.attn_norm.otter.weight": None,
        "blk.1.attn_norm.otter.weight": float_tensor("blk.1.attn_norm.otter.weight", np.ones(31, np.float32)),
        "blk.7.attn_norm.otter.weight": float_tensor("blk.7.attn_norm.otter.weight", np.ones(32, np.float32)),
        "output_norm.otter.weight": TensorPlan("output_norm.otter.weight", "F16", (32,), lambda: [bytes(64)]),
    }
    return folder.base, rewrite(folder.sidecar, folder.path / "new.gguf", tensors=changes)


def merged_with_another_base(folder: Folder) -> Paths:
    """A merged file with a weight of its base changed by a tool that knows nothing of the fingerprint."""
    norm = float_tensor("output_norm.weight", np.full(64, 0.5, np.float32))
    return rewrite(folder.merged, folder.path / "new.gguf", tensors={norm.name: norm}), None


def shard_gone(folder: Folder) -> Paths:
    first = split_base(folder.base, 2)
    first.with_name("part-00002-of-00002.gguf").unlink()
    return first, folder.sidecar


def shard_of_another_model(folder: Folder) -> Paths:
    first = split_base(folder.base, 2)
    second = first.with_name("part-00002-of-00002.gguf")
    values = {name: tensor for name, tensor in base_tensors(seed=5).items() if "norm" in name}
    with _native.GgufFile(str(second)) as file:
        own = [tensor.name for tensor in file.tensors if "norm" in tensor.name]
    changed: dict[str, TensorPlan | None] = {
        name: float_tensor(name, value) for name, value in zip(own, values.values(), strict=False)
    }
    rewrite(second, folder.path / "new.gguf", tensors=changed).replace(second)
    return first, folder.sidecar


WRONG: dict[str, Wrong] = {
    "other width": Wrong(other(n_embd=32, n_head=2, n_head_kv=1), MismatchError, ("n_embd", 32, 64)),
    "more layers": Wrong(other(n_layer=3), MismatchError, ("n_layer", 3, 2)),
    "fewer layers": Wrong(other(n_layer=1), MismatchError, ("n_layer", 1, 2)),
    "smaller vocabulary": Wrong(other(n_vocab=280), MismatchError, ("n_vocab", 280, 288)),
    "other inner size": Wrong(other(n_ff=64), MismatchError, ("n_ff", 64, 96)),
    "other KV heads": Wrong(other(n_head_kv=4), MismatchError, ("n_head_kv", 4, 2)),
    "other heads": Wrong(
        other(n_head=2, head_dim=32, n_head_kv=1),
        MismatchError,
        ("n_head", 2, 4, "n_head_kv", 1, 2, "head_dim", 32, 16),
    ),
    "everything other": Wrong(
        other(n_layer=3, n_embd=32, n_head=2, n_head_kv=1, n_ff=64, n_vocab=270),
        MismatchError,
        ("n_layer", 3, "n_embd", 32, "n_head", 2, "n_head_kv", 1, "n_ff", 64, "n_vocab", 270, "fingerprint"),
    ),
    "other architecture": Wrong(renamed_architecture, MismatchError, ("architecture", "smollm3", "llama")),
    "other weights of the same shapes": Wrong(
        lambda folder: (write_base(folder.path / "other.gguf", tensors=base_tensors(seed=3)), folder.sidecar),
        MismatchError,
        ("fingerprint", "weights", "tokenizer"),
    ),
    "other tokens of the same number": Wrong(retokenized, MismatchError, ("fingerprint", "tokenizer")),
    "made for another width": Wrong(
        other_sidecar(n_embd=96, n_head=6, n_head_kv=3), MismatchError, ("n_embd", 64, 96, "n_head", 4)
    ),
    "made for another vocabulary": Wrong(
        other_sidecar(n_vocab=270), MismatchError, ("n_vocab", 288, 270)
    ),
    "fingerprint forged": Wrong(
        with_entry("otter.base.fingerprint", "str", "0" * 64), MismatchError, ("fingerprint", "000000000000")
    ),
    "size forged": Wrong(
        with_entry("otter.base.vocab_size", "u32", 287), MismatchError, ("n_vocab", 288, 287)
    ),
    "a base as a sidecar": Wrong(lambda folder: (folder.base, folder.base), FileError, ("base.gguf", "adapter.type")),
    "a sidecar as a base": Wrong(lambda folder: (folder.sidecar, None), FileError, ("toy.otter.gguf", "--otter")),
    "a sidecar on a sidecar": Wrong(
        lambda folder: (folder.sidecar, folder.sidecar), FileError, ("toy.otter.gguf", "--otter")
    ),
    "a merged file and a sidecar": Wrong(
        lambda folder: (folder.merged, folder.sidecar), ConfigError, ("merged.gguf", "toy.otter.gguf")
    ),
    "a merged file as a sidecar of another base": Wrong(
        lambda folder: (folder.other_base(n_vocab=280), folder.merged), FileError, ("merged.gguf", "alone")
    ),
    "a merged file as a sidecar of its own base": Wrong(
        lambda folder: (folder.base, folder.merged), FileError, ("merged.gguf", "alone")
    ),
    "a merged file whose base was changed": Wrong(merged_with_another_base, MismatchError, ("fingerprint",)),
    "no tensors": Wrong(
        lambda folder: without(*(tensor for tensor in names_of(folder.sidecar)))(folder), FileError, ("tensors", "none")
    ),
    "a tensor missing": Wrong(without("output_norm.otter.weight"), FileError, ("output_norm.otter.weight",)),
    "two tensors missing": Wrong(
        without("blk.0.ffn_up.otter.weight", "cls.output.reward.otter.bias"),
        FileError,
        ("blk.0.ffn_up.otter.weight", "cls.output.reward.otter.bias"),
    ),
    "a tensor too many": Wrong(
        reweighted("blk.1.ffn_norm.otter.weight", np.ones(32)),
        FileError,
        ("blk.1.ffn_norm.otter.weight",),
    ),
    "several faults at once": Wrong(
        several_faults,
        FileError,
        (
            "blk.0.attn_norm.otter.weight",
            "blk.7.attn_norm.otter.weight",
            "blk.1.attn_norm.otter.weight", "[31]", "[32]",
            "output_norm.otter.weight", "F16", "F32",
        ),
    ),
    "a weight NaN": Wrong(
        reweighted("output_norm.otter.weight", [np.nan] * 32), FileError, ("output_norm.otter.weight", "NaN", "value 0")
    ),
    "a weight infinite": Wrong(
        reweighted("cls.output.reward.otter.bias", [np.inf]), FileError, ("cls.output.reward.otter.bias", "value 0")
    ),
    "a scale NaN": Wrong(
        with_entry("otter.head.reward.scale", "arr[f32]", [float("nan")]), FileError, ("reward", "scale", 1)
    ),
    "a head too many": Wrong(
        with_entry("otter.heads", "arr[str]", ["reward", "safety", "more"]),
        FileError,
        ("otter.head.more.kind", "otter.head.more.labels"),
    ),
    "a newer version": Wrong(with_entry("otter.version", "u32", 2), UnsupportedError, ("otter.version", 2)),
    "a part missing": Wrong(shard_gone, FileError, ("part-00002-of-00002.gguf", "No such file")),
    "a part of another model": Wrong(shard_of_another_model, MismatchError, ("fingerprint",)),
}  # fmt: skip


def names_of(path: Path) -> list[str]:
    with _native.GgufFile(str(path)) as file:
        return [tensor.name for tensor in file.tensors]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp gets no file to see."""

    def load(*args: object, **options: object) -> None:
        pytest.fail("llama.cpp was asked to load a file that should have been refused")

    monkeypatch.setattr(_native, "Model", load)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_refused_before_anything_is_computed(kind: str, folder: Folder) -> None:
    base, sidecar = WRONG[kind].files(folder)
    with refused(OtterError) as caught:
        Otter(base, otter=sidecar, n_ctx=32, n_threads=1)
    message = str(caught.value)
    assert type(caught.value) is WRONG[kind].error, message
    assert_names(message.replace(f"{folder.path}/", ""), *WRONG[kind].names)


def test_there_are_many_kinds() -> None:
    assert len(WRONG) >= 25


@pytest.mark.parametrize("type", ["F32", "F16", "Q8_0", "Q4_0"])
def test_the_right_files_run_in_any_quantization(type: str, folder: Folder) -> None:
    base = write_base(folder.path / "quantized.gguf", type=type)
    with Otter(base, otter=folder.sidecar, n_ctx=32, n_threads=1) as llm:
        assert np.isfinite(llm.score("1 2").rewards).all()
