"""No code comes with a model: nothing is unpickled, whatever a file is called, and no module of a model is imported."""

from __future__ import annotations

import ast
import functools
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from otter_gguf import FileError, Otter
from otter_gguf.cli import main as cli
from otter_gguf.gguf.check import check_file
from tests.converters.toy_hf import Payload
from tests.refusals import refused
from tests.synthetic_models import pair

ROOT = Path(__file__).resolve().parents[1]
UNPICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
ISOLATION = {"isolation.py", "_isolated.py"}
"""What sends questions to a child process and reads them there; its answers are never unpickled."""

NAMES = ("pytorch_model.bin", "model.pt", "adapter.pth", "base.ckpt", "base.gguf", "model.safetensors")


@functools.cache
def sources() -> list[tuple[Path, ast.Module]]:
    """Every source of the package, of its converters and of the benchmarks, parsed."""
    folders = [ROOT / name for name in ("otter_gguf", "converters", "benchmarks")]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py")) if "llama_cpp" not in path.parts]
    return [(path, ast.parse(path.read_text("utf-8"), str(path))) for path in paths]


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def keyword(call: ast.Call, name: str) -> object:
    """The constant that is given, or the expression, or None."""
    for given in call.keywords:
        if given.arg == name:
            return given.value.value if isinstance(given.value, ast.Constant) else given.value
    return None


# ---- what the sources say --------------------------------------------------------------------------------------


def test_code_of_a_model_is_never_trusted() -> None:
    """Where nothing is said, transformers would ask on the terminal."""
    seen = 0
    for path, tree in sources():
        for call in calls(tree):
            name = ast.unparse(call.func)
            if name.startswith("Auto") and name.endswith(".from_pretrained"):
                assert keyword(call, "trust_remote_code") is False, f"{path}:{call.lineno}"
                seen += 1
            assert keyword(call, "trust_remote_code") in (None, False), f"{path}:{call.lineno}"
    assert seen >= 4


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


def test_nothing_unpickles() -> None:
    n_files = 0
    for path, tree in sources():
        n_files += 1
        if path.name not in ISOLATION:
            assert not imported(tree) & UNPICKLERS, path
        for call in calls(tree):
            name = ast.unparse(call.func)
            assert name not in ("torch.load", "np.load", "numpy.load", "eval", "exec"), f"{path}:{call.lineno}"
            assert keyword(call, "allow_pickle") in (None, False), f"{path}:{call.lineno}"
    assert n_files > 50


# ---- what happens ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["pickle", "torch"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """What leaves a mark if it is unpickled: plain, and in the archive that torch.save writes."""
    plain = pickle.dumps(Payload(tmp_path / "ran"))
    if request.param == "pickle":
        return plain
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("archive/data.pkl", plain)
        archive.writestr("archive/version", "3\n")
    return (tmp_path / "archive").read_bytes()


def test_the_content_does_run(content: bytes, tmp_path: Path) -> None:
    if content.startswith(b"PK"):
        with zipfile.ZipFile(tmp_path / "archive") as archive:
            content = archive.read("archive/data.pkl")
    pickle.loads(content)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", NAMES)
def test_no_name_makes_a_pickle_run(
    name: str, content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for model, sidecar in ((path, None), (pair().base, path)):
        with refused(FileError, path, "GGUF"):
            Otter(model, otter=sidecar, n_ctx=32, n_threads=1)
    assert not check_file(path).ok
    out, base = str(tmp_path / "out.gguf"), str(pair().base)
    for arguments in (
        ["info", str(path)],
        ["check", str(path)],
        ["run", "-m", str(path), "-p", "a"],
        ["score", "-m", base, "--otter", str(path), "-p", "a"],
        ["quantize", str(path), out, "Q8_0"],
        ["merge", base, str(path), "-o", out],
        ["split", str(path), "--base", out],
        ["convert", str(path), "-o", out],
        ["convert", str(tmp_path), "-o", out],
    ):
        assert cli.main(arguments) == 2, arguments
        assert "Traceback" not in capfd.readouterr().err, arguments
    assert not (tmp_path / "ran").exists()
    assert not Path(out).exists()
