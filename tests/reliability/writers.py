"""Everything that writes files: each verb of the command line that does, and the writers that Python alone reaches.

A writer gets a folder of inputs, made once, and a folder to write to. What must hold of it is in :mod:`.harness`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from otter_gguf.cli.main import main
from otter_gguf.evaluation.store import Generation

from .warm import import_converter, warm_converter

Arguments = Callable[[Path, Path], list[object]]


def _nothing(inputs: Path, out: Path) -> None:
    """Of writers whose old targets are plain files."""


def _by_content(path: Path) -> str:
    return tree_hash(path)


@dataclass(frozen=True)
class Writer:
    """One way to write files."""

    name: str
    targets: tuple[str, ...]
    """What is written, relative to the folder; folders end in a slash. Each must be old or new as a whole."""
    prepare: Callable[[Path], object]
    """Makes the inputs."""
    run: Callable[[Path, Path], int]
    """Writes with the exit code of the command line; replaces what is there. (inputs, folder to write to)"""
    old: Callable[[Path, Path], None] = _nothing
    """Puts old folders in place; old files are made by the harness."""
    identity: Callable[[Path], str | None] = field(default=_by_content)
    """What is equal for two complete targets: less than their bytes where these hold timings."""
    is_part: Callable[[Path], bool] = lambda path: False
    """Whether a target is whole with less in it, where a writer keeps what it had when it was interrupted."""
    scratch: int = 0
    """Temporary names besides one a target: 1 where parts are made in a folder of their own."""
    gaps: bool = False
    """An old target may be missing for a moment, for it stands among other things in its folder."""
    keeps: bool = False
    """It never replaces what is there."""
    slow: bool = False
    """A run takes seconds."""


def tree_hash(path: Path) -> str:
    """A file's sha256, or that of a folder's files with their names; hidden ones do not count."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
            digest.update(f"{file.relative_to(path)} {tree_hash(file)}\n".encode())
    return digest.hexdigest()


def _verb(name: str, prepare: Callable[[Path], object], targets: str, arguments: Arguments, **more: Any) -> Writer:
    def run(inputs: Path, out: Path) -> int:
        return main([str(argument) for argument in (*name.split()[:1], *arguments(inputs, out), "--force")])

    return Writer(name, tuple(targets.split()), prepare, run, **more)


# ---- inputs ----------------------------------------------------------------------------------------------------


def _files(folder: Path) -> None:
    """A base, an adapter, its sidecar, both merged, a widened checkpoint."""
    from otter_gguf.gguf.merge import merge
    from tests.converters.toy_widened import write_widened
    from tests.gguf import toy_files

    base = toy_files.write_base(folder / "base.gguf")
    config = toy_files.insertion()
    toy_files.write_adapter(folder / "adapter", config)
    toy_files.write_sidecar(folder / "otter.gguf", base, config)
    merge(base, folder / "otter.gguf", folder / "merged.gguf")
    write_widened(folder / "widened")


def _shards(folder: Path) -> None:
    """A base in two files."""
    from tests.quantizable import shards

    for path in shards().parent.glob("F32-*-of-*.gguf"):
        shutil.copyfile(path, folder / path.name)


def _runnable(folder: Path) -> None:
    """A model that generates, prompts, and a judge."""
    from tests.synthetic_models import pair

    for name, path in zip(("base.gguf", "otter.gguf"), pair(), strict=True):
        shutil.copyfile(path, folder / name)
    (folder / "prompts.txt").write_text("The otter\nUrchins are\n")


def _hf_base(folder: Path) -> None:
    from tests.converters.toy_hf import write_hf_model

    write_hf_model(folder / "base")
    import_converter()


def _trainable(folder: Path) -> None:
    """A Hugging Face base, an adapter, rows."""
    from tests.training.toy import toy_folder, toy_otter, toy_rows, write_rows

    toy_folder(folder / "base")
    model = toy_otter()
    model.base_name = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    write_rows(folder / "pairs.jsonl", toy_rows(8))


# ---- writers from Python ---------------------------------------------------------------------------------------


def _save_state(inputs: Path, out: Path) -> int:
    from otter_gguf.context.state import ContextState

    return _in_main(lambda: ContextState((1, 2, 3), bytes(200_000), "0" * 64).save(out / "state", force=True))


def _in_main(call: Callable[[], object]) -> int:
    """With the command line's exit codes: 2 for an error of ours, 130 for Ctrl-C."""
    from otter_gguf.errors import OtterError

    try:
        call()
    except OtterError as error:
        print(f"otter-gguf: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


@functools.cache
def _model(kind: str, seed: int = 0) -> Any:
    """Made before the process is forked, so that saving is all that a child does."""
    from otter_gguf.training import full_reward_model
    from tests.training.toy import toy_base, toy_otter, toy_tokenizer

    if kind == "adapter":
        return toy_otter(base=toy_base(seed), width=16)  # a widened checkpoint's heads must divide its width
    model = full_reward_model(toy_base(seed))
    model.tokenizer = toy_tokenizer()
    return model


def _save(kind: str) -> Writer:
    """Saving a model over an older one of the same form."""

    def save(inputs: Path, out: Path) -> int:
        return _in_main(lambda: _model(kind).save_pretrained(out / "model", force=True))

    def prepare(inputs: Path) -> None:
        _model(kind, 1).save_pretrained(inputs / "old")

    def old(inputs: Path, out: Path) -> None:
        shutil.copytree(inputs / "old", out / "model")

    return Writer(f"save {kind}", ("model/",), prepare, save, old)


def _export(inputs: Path, out: Path) -> int:
    from otter_gguf.training import export_widened

    return _in_main(lambda: export_widened(_model("adapter"), out / "widened"))


def _plot(inputs: Path, out: Path) -> int:
    """What ``demo`` writes."""
    from otter_gguf.demo.plot import save_plot
    from tests.demo.made_up import experiment

    return _in_main(lambda: save_plot(experiment(), out / "demo.png"))


# ---- the table -------------------------------------------------------------------------------------------------


def _old_adapter(inputs: Path, out: Path) -> None:
    shutil.copytree(inputs / "adapter", out / "adapter")
    (out / "adapter" / "otter_config.json").write_text('{"old": true}')


def _old_run(inputs: Path, out: Path) -> None:
    shutil.copytree(inputs / "adapter", out / "run")
    (out / "run" / "notes.txt").write_text("somebody else's")


def _adapter_of_run(path: Path) -> str | None:
    names = ("otter_config.json", "otter_model.safetensors")
    return "".join(tree_hash(path / name) for name in names) if (path / names[0]).exists() else None


def _readable(path: Path) -> str:
    """Of results that hold timings: that they are complete."""
    if path.suffix == ".png":
        data = path.read_bytes()
        return str((data[:8], data[-12:]))
    if path.suffix == ".json":
        return str(sorted(json.loads(path.read_text())))
    lines = path.read_text().splitlines()
    return str([sorted(json.loads(line)) for line in lines] if path.suffix == ".jsonl" else len(lines))


def _texts_so_far(path: Path) -> bool:
    """Ctrl-C keeps the texts of an evaluation, for the next run goes on with them."""
    if path.name != "texts.jsonl":
        return False
    header, *rows = map(json.loads, path.read_text().splitlines())
    return bool(header) and all(Generation(**row).text for row in rows)


_RUN = ("-p", "The otter", "-n", 3, "-t", 1, "-c", 64, "--temp", 0, "-w", 1)
_EVAL = ("--policy", "args:weight=1,n_candidates=2", "-n", 2, "--seeds", 1, "-t", 1, "-c", 64)
_TRAIN = ("--max-steps", 2, "--save-steps", 1, "--cpu", "--threads", 1, "--batch-size", 2)
_OUT_SHARDS = "out-00001-of-00002.gguf out-00002-of-00002.gguf"


def _quantize(kind: str, source: str, targets: str = "out.gguf", *flags: str, **more: Any) -> Writer:
    def arguments(inputs: Path, out: Path) -> list[object]:
        return [inputs / source, out / targets.split()[0], "Q4_0", "-t", 1, *flags]

    return _verb(f"quantize {kind}", more.pop("prepare", _files), targets, arguments, **more)


def _convert_base(kind: str, outtype: str) -> Writer:
    def arguments(inputs: Path, out: Path) -> list[object]:
        return [inputs / "base", "--outtype", outtype, "-o", out / "out.gguf"]

    return _verb(f"convert {kind}", _hf_base, "out.gguf", arguments, slow=True)


def _warm(writer: Writer) -> Writer:
    """llama.cpp's converter starts warm."""

    def run(inputs: Path, out: Path) -> int:
        with warm_converter():
            return writer.run(inputs, out)

    return replace(writer, run=run)


_ALL = (
    _verb("merge", _files, "out.gguf", lambda i, o: [i / "base.gguf", i / "otter.gguf", "-o", o / "out.gguf"]),
    _verb(
        "split",
        _files,
        "base.gguf otter.gguf",
        lambda i, o: [i / "merged.gguf", "--base", o / "base.gguf", "--otter", o / "otter.gguf"],
    ),
    _quantize("base", "base.gguf"),
    _quantize("sidecar", "otter.gguf"),
    _quantize("merged", "merged.gguf", scratch=1),
    _quantize("shards", "F32-00001-of-00002.gguf", _OUT_SHARDS, "--keep-split", prepare=_shards, scratch=1),
    _verb(
        "convert adapter",
        _files,
        "out.gguf",
        lambda i, o: [i / "adapter", "--base", i / "base.gguf", "-o", o / "out.gguf"],
    ),
    _verb(
        "convert widened",
        _files,
        "out.gguf",
        lambda i, o: [i / "widened", "--base", i / "base.gguf", "--merged", "-o", o / "out.gguf"],
        scratch=1,
    ),
    _verb(
        "convert to-adapter",
        _files,
        "adapter/",
        lambda i, o: [i / "merged.gguf", "--to-adapter", "-o", o / "adapter"],
        old=_old_adapter,
    ),
    _warm(_convert_base("base", "auto")),
    _warm(_convert_base("base q8_0", "q8_0")),
    _convert_base("base, cold", "auto"),
    _verb(
        "run",
        _runnable,
        "records.jsonl page.html",
        lambda i, o: [
            *("-m", i / "base.gguf", "--otter", i / "otter.gguf", *_RUN),
            *("--records", o / "records.jsonl", "--html", o / "page.html"),
        ],
    ),
    _verb(
        "eval",
        _runnable,
        "results.json report.md texts.jsonl plots.png",
        lambda i, o: [
            *("-m", i / "base.gguf", "--otter", i / "otter.gguf", *_EVAL, "--prompts", i / "prompts.txt", "-o", o)
        ],
        identity=_readable,
        is_part=_texts_so_far,
        slow=True,
    ),
    Writer("demo plot", ("demo.png",), lambda inputs: None, _plot, slow=True),
    Writer("save state", ("state",), lambda inputs: None, _save_state),
    _verb(
        "insert",
        _trainable,
        "adapter/",
        lambda i, o: ["--base", i / "base", "-o", o / "adapter", "--width", 8],
        old=_old_adapter,
    ),
    _verb(
        "train",
        _trainable,
        "run/",
        lambda i, o: [i / "adapter", "--base", i / "base", "--data", i / "pairs.jsonl", "-o", o / "run", *_TRAIN],
        old=_old_run,
        identity=_adapter_of_run,
        gaps=True,
        slow=True,
    ),
    _save("adapter"),
    _save("full model"),
    Writer("export widened", ("widened/",), lambda inputs: _model("adapter"), _export, keeps=True),
)

WRITERS = {writer.name: writer for writer in _ALL}
