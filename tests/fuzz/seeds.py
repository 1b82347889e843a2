"""The good files that are changed: every architecture as a base, a sidecar, merged and in shards.

python -m tests.fuzz.seeds FOLDER      in a process of its own, because torch is needed to write them
"""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.gguf.base import BaseFiles, base_geometry
from otter_gguf.gguf.merge import merge
from tests import tokenizer_toys
from tests.gguf import toy_files
from tests.gguf.gguf_builder import Gguf

CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TRAINED = "trained"
"""A seed with a vocabulary of 4,000 tokens, whose merges cross the borders of words."""


def write_seeds(folder: Path) -> None:
    """Some 25 pairs: every architecture, and Llamas with other insertions and tokenizers."""
    write_architectures(folder)
    write_llamas(folder)
    complete(folder)


def complete(folder: Path) -> None:
    """Write the other forms of each pair: merged, and the base in shards."""
    for base in sorted(folder.glob("*.base.gguf")):
        merge(base, _beside(base, "otter"), _beside(base, "merged"))
        _write_shards(base)


def write_architectures(folder: Path) -> None:
    """A toy of each, with torch."""
    from tests import architecture_toys as toys

    for name, (model_type, changes) in toys.FORMS.items():
        model = toys.toy(model_type, **changes)
        base = toys.write_toy(folder / f"{name.replace(' ', '_')}.base.gguf", model)
        made = folder / "made"
        made.mkdir()
        shutil.copy(toys.write_widened(made, toys.widen(model), base), _beside(base, "otter"))
        shutil.rmtree(made)


def write_llamas(folder: Path, *, trained: bool = True) -> None:
    """Their names begin with ``toy``; ``trained``: also :data:`TRAINED`, which takes a second."""
    for name, insertion in _insertions().items():
        base = toy_files.write_base(folder / f"toy-{name}.base.gguf")
        toy_files.write_sidecar(_beside(base, "otter"), base, insertion)
    others: dict[str, Callable[[Path], Path]] = {
        "toy-bpe": tokenizer_toys.bpe_base,
        "toy-sentencepiece": tokenizer_toys.sentencepiece_base,
        "toy-q8": lambda path: toy_files.write_base(path, type="Q8_0"),
    }
    if trained:
        others[TRAINED] = lambda path: tokenizer_toys.trained_bpe_base(path, "gpt-2")
    for name, write in others.items():
        base = write(folder / f"{name}.base.gguf")
        toy_files.write_sidecar(_beside(base, "otter"), base, _insertion_for(base))


def _insertions() -> dict[str, InsertionConfig]:
    scores = HeadConfig("next", ("reward",), kind="vocabulary", rank=8)
    return {
        "values": toy_files.insertion(),
        "vocabulary": toy_files.insertion(heads=(HeadConfig(), scores)),
        "table": toy_files.insertion(state_source="table"),
        "heads-only": toy_files.insertion(width=0, n_head_kv=(0, 0), n_ff=(0, 0), heads=(HeadConfig(input="base"),)),
    }


def _insertion_for(base: Path) -> InsertionConfig:
    with BaseFiles.open(base) as files:
        return toy_files.insertion(base=base_geometry(files))


def _write_shards(base: Path) -> None:
    folder = base.with_name(name_of(base) + ".shards")
    folder.mkdir()
    toy_files.split_base(Path(shutil.copy(base, folder / "whole.gguf")), 2)
    (folder / "whole.gguf").unlink()


def _beside(base: Path, form: str) -> Path:
    return base.with_name(f"{name_of(base)}.{form}.gguf")


def name_of(base: Path) -> str:
    """The name of a seed."""
    return base.name.removesuffix(".base.gguf")


class Seeds:
    """The good files of a folder, read when they are needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = sorted(map(name_of, folder.glob("*.base.gguf")))

    def path(self, name: str, form: str) -> Path:
        """Of a ``base``, its ``otter`` or its ``merged`` form."""
        return self.folder / f"{name}.{form}.gguf"

    def shards(self, name: str) -> list[Path]:
        """The files of a base, the first one first."""
        return sorted((self.folder / f"{name}.shards").iterdir())

    @functools.cache  # noqa: B019 (there is one object in a process)
    def file(self, path: Path) -> Gguf:
        """A good file. It is shared: copy it before it is changed."""
        return Gguf.read(path)


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
