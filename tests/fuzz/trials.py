"""One trial: files or inputs drawn from a seed and a number, and what comes of using them.

A trial ends well if everything works or is refused with an ``OtterError`` of one line. What it draws depends on its
seed and its number alone, so that it can be had again.
"""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path
from typing import Any

from otter_gguf import ConfigError, EngineError, OtterError
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.check import check_file
from otter_gguf.gguf.describe import describe
from otter_gguf.gguf.fingerprint import fingerprint
from otter_gguf.gguf.keys import BASE_FINGERPRINT
from otter_gguf.gguf.merge import merge, split
from otter_gguf.isolation import open_model
from otter_gguf.quantization import BASE_TYPES, SIDECAR_TYPES, QuantizeOptions, quantize
from otter_gguf.text_model import TextModel
from tests.gguf.gguf_builder import Gguf
from tests.gguf.mutants import GENTLE, MUTATIONS, copied, mutated

from . import uses, vocabularies
from .inputs import load_options
from .outcomes import BadEndError, Beat, Counts, outcome, run_use
from .seeds import CHAT_TEMPLATE, TRAINED, Seeds

GROUP = 10
"""Trials of texts that share a model, which need not be loaded for each."""

# ---- files -----------------------------------------------------------------------------------------------------

FILE_KINDS = {"base": 5, "sidecar": 4, "pair": 4, "merged": 2, "shards": 1, "tokenizer": 7, "template": 0.3}
"""How often each is drawn."""


DAMAGE = 0.2
"""A file whose bytes are changed anywhere ends in the reader: few are enough."""


class FileTrials:
    """Changed files, each loaded and used."""

    name = "files"

    def __init__(self, seeds: Seeds, scratch: Path) -> None:
        self._seeds = seeds
        self._scratch = scratch

    def close(self) -> None:
        """Nothing stays open."""

    def run(self, seed: int, number: int, beat: Beat) -> tuple[str, int, Counts]:
        """Kind, bytes of the files, and how the uses ended."""
        rng = random.Random(f"files {seed} {number}")
        kind = rng.choices(list(FILE_KINDS), list(FILE_KINDS.values()))[0]
        beat(f"{kind}: making")
        base, sidecar = self.make(kind, rng)
        size = sum(path.stat().st_size for path in self._scratch.iterdir())
        counts = Counts()
        self._use(kind, base, sidecar, rng, counts, beat)
        return kind, size, counts

    def make(self, kind: str, rng: random.Random) -> tuple[Path, Path | None]:
        """Write the changed files of a kind: the base or the merged file, and the sidecar if there is one."""
        for path in self._scratch.iterdir():
            path.unlink()
        name = rng.choice([name for name in self._seeds.names if name != TRAINED])
        if kind == "shards":
            return self._shards(name, rng), None
        form = kind if kind == "merged" else "base"
        good = self._seeds.file(self._seeds.path(name, form))
        if kind == "sidecar":
            sidecar = self._seeds.file(self._seeds.path(name, "otter"))
            return self._seeds.path(name, "base"), self._write("mutant.otter.gguf", _changed(sidecar, kind, rng))
        base = self._write("mutant.gguf", _changed(good, kind, rng))
        return base, self._renewed(
            name, base, rng
        ) if kind != "base" and form == "base" and rng.random() < 0.7 else None

    def _write(self, name: str, raw: bytes) -> Path:
        path = self._scratch / name
        path.write_bytes(raw)
        return path

    def _shards(self, name: str, rng: random.Random) -> Path:
        files = self._seeds.shards(name)
        changed = rng.randrange(len(files))
        for index, path in enumerate(files):
            self._write(path.name, mutated(self._seeds.file(path), rng) if index == changed else path.read_bytes())
        return self._scratch / files[0].name

    def _renewed(self, name: str, base: Path, rng: random.Random) -> Path:
        """The sidecar, made to belong to the changed base; at times changed itself."""
        good = self._seeds.file(self._seeds.path(name, "otter"))
        try:
            with BaseFiles.open(base) as files:
                good = good.set(BASE_FINGERPRINT.name, "str", fingerprint(files))
        except OtterError:
            pass  # the sidecar belongs to another base then
        return self._write("mutant.otter.gguf", mutated(good, rng) if rng.random() < 0.3 else good.build())

    def _use(self, kind: str, base: Path, sidecar: Path | None, rng: random.Random, counts: Counts, beat: Beat) -> None:
        options = load_options(rng)
        isolate = rng.random() < 0.003
        opened: list[TextModel] = []
        beat(f"load {options}")
        counts.add("load", outcome(lambda: opened.append(_load(base, sidecar, isolate, options))))
        for llm in opened:
            with closing(llm):
                for use in uses.file_uses(rng, template=kind == "template"):
                    counts.add(use[0], run_use(use, llm, rng, beat))
        if rng.random() < 0.1:
            beat("check")
            counts.add("check", outcome(lambda: check_file(sidecar or base, base if sidecar else None)))
        if rng.random() < 0.1:
            beat("describe")
            counts.add("describe", outcome(lambda: describe(sidecar or base)))
        if rng.random() < 0.05:
            beat("merge or split")
            counts.add("merge or split", outcome(lambda: self._put_together(kind, base, sidecar)))
        if rng.random() < (0.1 if opened else 0.02):
            beat("quantize")
            counts.add("quantize", outcome(lambda: self._quantize(sidecar or base, rng)))

    def _put_together(self, kind: str, base: Path, sidecar: Path | None) -> None:
        if kind == "merged":
            split(base, self._scratch / "split.gguf", self._scratch / "split.otter.gguf", force=True)
        elif sidecar is not None:
            merge(base, sidecar, self._scratch / "merged.gguf", force=True)

    def _quantize(self, source: Path, rng: random.Random) -> None:
        kinds = SIDECAR_TYPES if ".otter." in source.name else BASE_TYPES
        options = QuantizeOptions(
            rng.choice(kinds), n_threads=1, allow_requantize=rng.random() < 0.7, pure=rng.random() < 0.3
        )
        quantize(source, self._scratch / "quantized.gguf", options, force=True)


def _load(base: Path, sidecar: Path | None, isolate: bool, options: dict[str, Any]) -> TextModel:
    """With these options; with plain ones where they do not fit the model."""
    try:
        return open_model(base, otter=sidecar, isolate=isolate, **options)
    except (ConfigError, EngineError):
        plain = {name: value for name, value in options.items() if name.startswith("n_") or name == "seed"}
        return open_model(base, otter=sidecar, isolate=isolate, **plain)


def _changed(good: Gguf, kind: str, rng: random.Random) -> bytes:
    if kind == "template":
        return mutated(good, rng, vocabularies.TEMPLATE_MUTATIONS, 0.0)
    if kind == "tokenizer":
        others = GENTLE[:1] if rng.random() < 0.2 else []
        return mutated(good, rng, [*vocabularies.MUTATIONS, *others], DAMAGE)
    return mutated(good, rng, GENTLE if rng.random() < 0.6 else MUTATIONS, DAMAGE)


# ---- texts -----------------------------------------------------------------------------------------------------


class TextTrials:
    """Texts, constraints and options, given to good models."""

    name = "texts"

    def __init__(self, seeds: Seeds, scratch: Path) -> None:
        self._seeds = seeds
        self._scratch = scratch
        self._group: tuple[int, int] | None = None
        self._llm: TextModel | None = None
        self._answer: list[int] | None = None

    def close(self) -> None:
        """Free the model."""
        if self._llm is not None:
            self._llm.close()
        self._llm, self._group = None, None

    def run(self, seed: int, number: int, beat: Beat) -> tuple[str, int, Counts]:
        """Kind, bytes of the files, and how the use ended."""
        counts = Counts()
        beat("load")
        llm = self._model(seed, number // GROUP)
        rng = random.Random(f"texts {seed} {number}")
        size = sum(path.stat().st_size for path in self._scratch.iterdir())
        use = rng.choice(uses.TEXT_USES if rng.random() < 0.95 else [("chat", uses.chat)])
        end = run_use(use, llm, rng, beat)
        counts.add(use[0], end)
        if end == "interrupted" or rng.random() < 0.05:
            beat(f"an answer after {use[0]}")
            self._check_answer(llm)
        return use[0], size, counts

    def _check_answer(self, llm: TextModel) -> None:
        try:
            answer = _tokens(llm)
        except OtterError as error:
            raise BadEndError(f"no answer afterwards: {type(error).__name__}: {error}"[:300]) from error
        if answer != self._answer:
            raise BadEndError(f"a wrong answer afterwards: {answer}, expected {self._answer}")

    def _model(self, seed: int, group: int) -> TextModel:
        if self._llm is not None and self._group == (seed, group):
            return self._llm
        self.close()
        rng = random.Random(f"model {seed} {group}")
        base, sidecar = self._files(rng)
        options = load_options(rng)
        options["n_ctx"] = max(options["n_ctx"], 16)
        options.pop("verify_checksums", None)  # the sidecar is another than was written
        isolate = rng.random() < 0.05
        llm = _load(base, sidecar, isolate, options)
        self._llm, self._group, self._answer = llm, (seed, group), _tokens(llm)
        return llm

    def _files(self, rng: random.Random) -> tuple[Path, Path | None]:
        """A good base with some tokenizer, and its sidecar."""
        for path in self._scratch.iterdir():
            path.unlink()
        names = self._seeds.names
        name = TRAINED if TRAINED in names and rng.random() < 0.3 else rng.choice(names)
        base = copied(self._seeds.file(self._seeds.path(name, "base")))
        pre = rng.choice([None, *(pre for pre in vocabularies.PRE_TOKENIZERS)])
        if name == TRAINED:
            base = base.drop("tokenizer.ggml.pre") if pre is None else base.set("tokenizer.ggml.pre", "str", pre)
        elif (kind := rng.random()) < 0.6:
            vocabularies.byte_level(base, pre)
        elif kind < 0.7:
            vocabularies.gemma4(base)
        vocabularies.set_template(base, CHAT_TEMPLATE)
        path = Path(base.write(self._scratch / "base.gguf"))
        with BaseFiles.open(path) as files:
            renewed = fingerprint(files)
        sidecar = self._seeds.file(self._seeds.path(name, "otter")).set(BASE_FINGERPRINT.name, "str", renewed)
        return path, Path(sidecar.write(self._scratch / "base.otter.gguf"))


def _tokens(llm: TextModel) -> list[int]:
    answer: Any = llm.create_completion([3, 4, 5], max_tokens=4, temperature=0)
    return list(answer["choices"][0]["rewards"]["tokens"])
