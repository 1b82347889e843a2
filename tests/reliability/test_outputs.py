"""Where a verb is told to write (W8): never into an input, over nothing without --force, one writer at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from otter_gguf.cli.main import main
from otter_gguf.gguf.atomic import atomic_folder, atomic_path
from tests.refusals import assert_names

from .writers import WRITERS, tree_hash

Capture = pytest.CaptureFixture[str]

# A verb's words; OUT stands for the file that it writes, IN/ for the folder of inputs.
VERBS = {
    "merge": "merge IN/base.gguf IN/otter.gguf -o OUT",
    "split": "split IN/merged.gguf --base OUT",
    "quantize base": "quantize IN/base.gguf OUT Q4_0 -t 1",
    "quantize sidecar": "quantize IN/otter.gguf OUT Q4_0 -t 1",
    "quantize merged": "quantize IN/merged.gguf OUT Q4_0 -t 1",
    "convert adapter": "convert IN/adapter --base IN/base.gguf -o OUT",
    "convert widened": "convert IN/widened --base IN/base.gguf --merged -o OUT",
    "convert to-adapter": "convert IN/otter.gguf --to-adapter -o OUT",
}
FILES = [name for name in VERBS if name != "convert to-adapter"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    WRITERS["merge"].prepare(folder)
    return folder


def call(verb: str, inputs: Path, out: Path, *more: str) -> int:
    words = VERBS[verb].replace("IN/", f"{inputs}/").replace("OUT", str(out)).split()
    return main([*words, *more])


def assert_refused(capfd: Capture, *names: object) -> None:
    """Stderr is one line that holds the names."""
    error = capfd.readouterr().err
    assert error.startswith("otter-gguf: ")
    assert error.count("\n") == 1
    assert_names(error, *names)


@pytest.mark.parametrize("alias", ["the same name", "a symbolic link", "a hard link"])
@pytest.mark.parametrize("verb", FILES)
def test_an_input_is_never_written_to(verb: str, alias: str, inputs: Path, tmp_path: Path, capfd: Capture) -> None:
    source = Path(next(word for word in VERBS[verb].replace("IN/", f"{inputs}/").split() if word.endswith(".gguf")))
    out, before = tmp_path / "out.gguf", tree_hash(inputs)
    if alias == "the same name":
        out = source
    elif alias == "a symbolic link":
        out.symlink_to(source)
    else:
        os.link(source, out)
    assert call(verb, inputs, out, "--force") == 2
    assert_refused(capfd, out, source, "input")
    assert tree_hash(inputs) == before


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_there_stays_without_force(verb: str, inputs: Path, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "out"
    old = out / "otter_config.json" if verb == "convert to-adapter" else out
    old.parent.mkdir(exist_ok=True)
    old.write_text("old")
    assert call(verb, inputs, out) == 2
    assert_refused(capfd, old, "--force")
    assert old.read_text() == "old"
    assert call(verb, inputs, out, "--force") == 0
    assert not old.read_bytes().startswith(b"old")


@pytest.mark.parametrize("verb", VERBS)
def test_of_two_writers_the_second_is_refused(verb: str, inputs: Path, tmp_path: Path, capfd: Capture) -> None:
    out = tmp_path / "out"
    folder = verb == "convert to-adapter"
    first = atomic_folder(out, names=(), last="file") if folder else atomic_path(out)
    with first as temporary:
        assert call(verb, inputs, out) == 2
        assert_refused(capfd, out, "process")
        (temporary / "file" if folder else temporary).write_text("first")
    assert (out / "file" if folder else out).read_text() == "first"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("place", ["a folder", "below a file", "a link to another file"])
def test_a_place_for_nothing(verb: str, place: str, inputs: Path, tmp_path: Path, capfd: Capture) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    other.write_text("other")
    wants_folder = verb == "convert to-adapter"
    if place == "a folder":
        out.mkdir()
    elif place == "below a file":
        out = other / "out"
    else:
        out.symlink_to(other)
    # A folder is what --to-adapter wants; the file that a link leads to is replaced by who writes a file.
    succeeds = {"a folder": wants_folder, "below a file": False, "a link to another file": not wants_folder}[place]
    assert call(verb, inputs, out, "--force") == (0 if succeeds else 2)
    if not succeeds:
        assert_refused(capfd, out if place == "a folder" else other)
    assert (other.read_bytes() == b"other") is (place != "a link to another file" or not succeeds)
    assert out.is_symlink() is (place == "a link to another file")


@pytest.mark.parametrize("verb", VERBS)
def test_a_read_only_folder(verb: str, inputs: Path, tmp_path: Path, capfd: Capture) -> None:
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("root may write to read-only folders")
    assert call(verb, inputs, tmp_path / "out") == 2
    assert_refused(capfd, "Permission denied")
