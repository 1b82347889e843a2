"""F7: files that lie about sizes, given to every verb that writes something made of them: refused, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from otter_gguf.cli.main import main
from otter_gguf.gguf.merge import merge

from ..converters.toy_hf import write_hf_model
from ..converters.toy_widened import write_widened
from ..quantizable import write_importance, write_importance_dat
from . import lies
from .gguf_builder import Gguf
from .toy_files import base_tensors, gguf_name, insertion, split_base, write_adapter, write_base, write_sidecar

Verb = Callable[[Path, Path, Path], list[object]]
"""Its arguments. (folder of good files, the file or folder in question, folder to write to)"""

_FIRST_SHARD = "part-00001-of-00002.gguf"


# ---- good files ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind."""
    folder = tmp_path_factory.mktemp("good")
    base = write_base(folder / "base.gguf")
    write_adapter(folder / "adapter", insertion())
    write_sidecar(folder / "sidecar.gguf", base)
    merge(base, folder / "sidecar.gguf", folder / "merged.gguf")
    split_base(base, 2)
    write_widened(folder / "widened")
    write_hf_model(folder / "hf", "F32")
    values = {gguf_name(name): values[0] ** 2 for name, values in base_tensors().items() if values.ndim == 2}
    write_importance(folder / "imatrix.gguf", values)
    write_importance_dat(folder / "imatrix.dat", values)
    return folder


def _quantize(good: Path, file: Path, out: Path) -> list[object]:
    return ["quantize", file, out / "out.gguf", "Q8_0", "-t", 1]


def _quantize_otter(good: Path, file: Path, out: Path) -> list[object]:
    return ["quantize", file, out / "out.gguf", "F16", "-t", 1]


def _quantize_shards(good: Path, file: Path, out: Path) -> list[object]:
    return ["quantize", file, out / "o-00001-of-00002.gguf", "Q8_0", "-t", 1, "--keep-split"]


def _quantize_by_first(good: Path, file: Path, out: Path) -> list[object]:
    return _quantize(good, file.with_name(_FIRST_SHARD), out)


def _merge_base(good: Path, file: Path, out: Path) -> list[object]:
    return ["merge", file, good / "sidecar.gguf", "-o", out / "out.gguf"]


def _merge_sidecar(good: Path, file: Path, out: Path) -> list[object]:
    return ["merge", good / "base.gguf", file, "-o", out / "out.gguf"]


def _split(good: Path, file: Path, out: Path) -> list[object]:
    return ["split", file, "--base", out / "base.gguf", "--otter", out / "otter.gguf"]


def _to_adapter(good: Path, file: Path, out: Path) -> list[object]:
    return ["convert", file, "--to-adapter", "-o", out / "adapter"]


def _adapter_for(good: Path, file: Path, out: Path) -> list[object]:
    return ["convert", good / "adapter", "--base", file, "--no-tokenizer-check", "-o", out / "out.gguf"]


def _widened_for(good: Path, file: Path, out: Path) -> list[object]:
    return ["convert", good / "widened", "--base", file, "--no-tokenizer-check", "--merged", "-o", out / "out.gguf"]


def _adapter(good: Path, file: Path, out: Path) -> list[object]:
    return ["convert", file.parent, "--base", good / "base.gguf", "--no-tokenizer-check", "-o", out / "out.gguf"]


def _widened_against(good: Path, file: Path, out: Path) -> list[object]:
    return [*_adapter(good, good / "widened" / "config.json", out), "--base-hf", file.parent]


def _hf_base(good: Path, file: Path, out: Path) -> list[object]:
    return ["convert", file.parent, "-o", out / "out.gguf"]


def _imatrix(good: Path, file: Path, out: Path) -> list[object]:
    return ["quantize", good / "base.gguf", out / "out.gguf", "Q4_0", "-t", 1, "--imatrix", file]


# ---- lies by kind of file --------------------------------------------------------------------------------------

_BASE_NUMBERS = {
    "llama.block_count": (1, 3, 2**31),
    "llama.embedding_length": (32, 128, 2**32 - 1),
    "llama.feed_forward_length": (48, 192),
    "llama.attention.head_count": (2, 8),
    "llama.attention.head_count_kv": (1, 4),
    "llama.rope.dimension_count": (32, 2**31),
}
_SHARD_NUMBERS = {
    "split.no": (2, 3, 2**16 - 1),
    "split.count": (0, 1, 3, 2**16 - 1),
    "split.tensors.count": (0, 20, 22, 2**31 - 1),
}
_INSERTED_NUMBERS = {
    "otter.width": (16, 64, 2**32 - 1),
    "otter.attention.head_count_kv": (2, 0),
    "otter.feed_forward_length": (64, 0),
    "otter.state.offset": (64, 2**32 - 1),
    "otter.base.block_count": (1, 3),
    "otter.base.embedding_length": (32, 128),
    "otter.base.attention.head_count": (2, 8),
    "otter.base.attention.head_count_kv": (1, 4),
    "otter.base.attention.key_length": (8, 32),
    "otter.base.feed_forward_length": (48, 192),
    "otter.base.vocab_size": (287, 2**31),
}
_BASE_MATRICES = ("token_embd.weight", "blk.0.attn_k.weight", "blk.1.ffn_down.weight", "output.weight")
_INSERTED_MATRICES = ("blk.0.attn_qkv.otter.weight", "blk.1.attn_output.otter.weight", "cls.output.safety.otter.weight")


def _base_lies(file: Gguf) -> lies.Lies:
    yield from lies.number_lies(file, _BASE_NUMBERS)
    yield from lies.vocabulary_lies(file)
    yield from lies.shape_lies(file, _BASE_MATRICES)


def _shard_lies(file: Gguf) -> lies.Lies:
    yield from lies.number_lies(file, _SHARD_NUMBERS)


def _sidecar_lies(file: Gguf) -> lies.Lies:
    yield from lies.number_lies(file, _INSERTED_NUMBERS)
    yield from lies.shape_lies(file, _INSERTED_MATRICES)


def _merged_lies(file: Gguf) -> lies.Lies:
    yield from _sidecar_lies(file)
    sizes = {}
    for key in ("otter.merged.base_size", "otter.merged.sidecar_size"):
        size = int.from_bytes(dict(file.kvs)[key].payload, "little")
        sizes[key] = (0, size - 32, size + 32, 2**63)
    yield from lies.number_lies(file, sizes)


class Kind(NamedTuple):
    """Of files: the good one, the verbs that read such a file, and lies that it takes more than the file to see."""

    file: str
    verbs: tuple[Verb, ...]
    well_formed: Callable[[Gguf], lies.Lies] = lambda file: iter(())


KINDS = (
    Kind("base.gguf", (_quantize, _merge_base, _adapter_for, _widened_for), _base_lies),
    Kind(_FIRST_SHARD, (_quantize, _quantize_shards, _adapter_for), _shard_lies),
    Kind("part-00002-of-00002.gguf", (_quantize_by_first,), _shard_lies),
    Kind("sidecar.gguf", (_quantize_otter, _merge_sidecar, _to_adapter), _sidecar_lies),
    Kind("merged.gguf", (_quantize, _split, _to_adapter), _merged_lies),
    Kind("imatrix.gguf", (_imatrix,)),
    Kind("imatrix.dat", (_imatrix,)),
    Kind("adapter/otter_model.safetensors", (_adapter,)),
    Kind("widened/model.safetensors", (_adapter,)),
    Kind("hf/model.safetensors", (_widened_against, _hf_base)),
)
BY_FILE = [pytest.param(kind, id=kind.file) for kind in KINDS]
BY_VERB = [
    pytest.param(kind, verb, id=f"{kind.file} {verb.__name__}", marks=[pytest.mark.slow] * (verb is _hf_base))
    for kind in KINDS
    for verb in kind.verbs
]


def made(kind: Kind, good: Path) -> Iterator[tuple[str, bytes]]:
    """The lies about a kind."""
    raw = (good / kind.file).read_bytes()
    if kind.file.endswith(".dat"):
        yield from _proved(lies.dat_lies(raw), lies.dat_fits, raw)
    elif kind.file.endswith(".safetensors"):
        yield from _proved(lies.safetensors_lies(raw), lies.safetensors_fits, raw)
    else:
        file = Gguf.read(good / kind.file)
        yield from _proved(lies.gguf_lies(file), lies.gguf_fits, raw)
        yield from kind.well_formed(file)


def _proved(mutants: lies.Lies, fits: Callable[[bytes], bool], raw: bytes) -> lies.Lies:
    """Without those that are true by chance, as a larger alignment that all sizes are multiples of."""
    assert fits(raw)
    return ((what, mutant) for what, mutant in mutants if not fits(mutant))


def copied(kind: Kind, good: Path, folder: Path) -> Path:
    """A file to lie in, with those that belong to it."""
    source = good / kind.file
    if source.parent != good:
        shutil.copytree(source.parent, folder / source.parent.name)
        return folder / kind.file
    for path in good.glob("part-*") if source.name.startswith("part-") else [source]:
        shutil.copyfile(path, folder / path.name)
    return folder / source.name


# ---- trials ----------------------------------------------------------------------------------------------------


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def outcome(arguments: list[object], capfd: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit code and the lines of stderr, after nothing on stdout but for the name of what was written."""
    capfd.readouterr()
    code = main([str(argument) for argument in arguments])
    printed, errors = capfd.readouterr()
    assert code == 0 or printed == ""
    return code, errors.splitlines()


def problem(arguments: list[object], folder: Path, capfd: pytest.CaptureFixture[str]) -> str | None:
    """Anything but exit code 2, one line, and the same files as before."""
    before = sorted(folder.rglob("*"))
    code, lines = outcome(arguments, capfd)
    new = [str(path) for path in sorted(folder.rglob("*")) if path not in before]
    if code == 2 and len(lines) == 1 and lines[0].startswith("otter-gguf: ") and not new:
        return None
    for path in new:
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink(missing_ok=True)
    return f"code {code}, leaves {new}, says {lines}"


@pytest.mark.parametrize("kind", BY_FILE)
def test_a_lie_is_refused(kind: Kind, good: Path, tmp_path: Path, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = copied(kind, good, tmp_path)
    found = []
    for what, mutant in made(kind, good):
        file.write_bytes(mutant)
        for verb in kind.verbs:
            if wrong := problem(verb(good, file, out), tmp_path, capfd):
                found.append(f"{verb.__name__}, {what}: {wrong}")
    assert found == []


@pytest.mark.parametrize(("kind", "verb"), BY_VERB)
def test_the_good_file_goes_through(
    kind: Kind, verb: Verb, good: Path, tmp_path: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = copied(kind, good, tmp_path)
    code, lines = outcome(verb(good, file, out), capfd)
    assert code == 0, lines
    assert list(out.iterdir())


def test_there_are_two_hundred_lies(good: Path) -> None:
    numbers = [len(dict(made(kind, good))) for kind in KINDS]
    assert min(numbers) >= 15
    assert sum(numbers) >= 200


# ---- a Hugging Face base, whose weights are well formed --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("hidden_size", 128),
        ("num_hidden_layers", 1),
        ("num_hidden_layers", 3),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("intermediate_size", 192),
    ],
)
def test_a_configuration_that_lies_is_refused(
    entry: str, value: int, tmp_path: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {entry: value}
    folder = write_hf_model(tmp_path / "hf", **changes)
    assert problem(["convert", folder, "-o", out / "out.gguf"], tmp_path, capfd) is None


@pytest.mark.slow
def test_a_matrix_that_is_turned_round_is_refused(
    good: Path, tmp_path: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = copied(KINDS[-1], good, tmp_path)
    names = ("model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight")
    for what, mutant in lies.reshaped_lies((good / KINDS[-1].file).read_bytes(), names):
        file.write_bytes(mutant)
        assert problem(_hf_base(good, file, out), tmp_path, capfd) is None, what
