"""No code comes with a model: nothing is unpickled, whatever a file is called, and no module of a model is imported."""

from __future__ import annotations

import ast
import functools
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from otter_gguf.converters.base import check_folder, find_script

from otter_gguf import FileError, Otter, UnsupportedError
from otter_gguf.cli import main as cli
from otter_gguf.gguf.check import check_file
from tests.converters.toy_hf import Payload, write_hf_model
from tests.refusals import assert_names, refused
from tests.synthetic_models import pair

ROOT = Path(__file__).resolve().parents[1]
UNPICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
SHIPPED = Path(find_script()).parent
"""llama.cpp's converter, as it is installed with the package."""
ISOLATION = ROOT / "otter_gguf" / "isolation"
"""What sends questions to a child process and reads them there; its answers are never unpickled."""

NAMES = ("pytorch_model.bin", "model.pt", "adapter.pth", "base.ckpt", "base.gguf", "model.safetensors")


@functools.cache
def sources() -> list[tuple[Path, ast.Module]]:
    """Every source of the package, of its converters and of the benchmarks, parsed; of llama.cpp's, none."""
    folders = [ROOT / name for name in ("otter_gguf", "converters", "benchmarks")]
    # Where it is installed, and where `make native` puts it into the tree.
    shipped = {SHIPPED, ROOT / "otter_gguf" / "converters" / SHIPPED.name}
    return [source for folder in folders for source in parsed(folder) if shipped.isdisjoint(source[0].parents)]


def parsed(folder: Path) -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text("utf-8"), str(path))) for path in sorted(folder.rglob("*.py"))]


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
        if path.parent != ISOLATION:
            assert not imported(tree) & UNPICKLERS, path
        for call in calls(tree):
            name = ast.unparse(call.func)
            assert name not in ("torch.load", "np.load", "numpy.load", "eval", "exec"), f"{path}:{call.lineno}"
            assert keyword(call, "allow_pickle") in (None, False), f"{path}:{call.lineno}"
    assert n_files > 50


def test_the_shipped_converter_trusts_models_through_transformers_alone() -> None:
    """Which is where its start forbids it: see ``test_the_start_of_the_converter_runs_no_code``."""
    seen = 0
    for path, tree in parsed(SHIPPED):
        assert not imported(tree) & (UNPICKLERS - {"yaml"}), path
        for call in calls(tree):
            name, where = ast.unparse(call.func), f"{path}:{call.lineno}"
            if keyword(call, "trust_remote_code") not in (None, False):
                assert name.startswith("Auto"), where
                assert name.endswith(".from_pretrained"), where
                seen += 1
            assert name not in ("np.load", "numpy.load", "eval", "exec", "yaml.load"), where
            assert not name.startswith(("torch.hub", "subprocess", "os.system", "os.exec", "os.spawn")), where
            assert keyword(call, "allow_pickle") in (None, False), where
    assert seen >= 10


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


# ---- Hugging Face folders --------------------------------------------------------------------------------------

STARTER = ROOT / "converters" / "_run_llama_cpp.py"
AUTO_MAP = {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None], "AutoModelForCausalLM": "evil.Evil"}


def with_keys(folder: Path, name: str, **more: object) -> None:
    """Add entries to a JSON file of the folder, made if missing."""
    path = folder / name
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **more}))


def evil_source(folder: Path) -> str:
    """Leaves a mark beside the folder wherever it runs."""
    return f"import os\nos.close(os.open({str(folder.parent / 'ran')!r}, os.O_CREAT))\nclass Evil: pass\n"


def other_configuration(folder: Path) -> None:
    """The configuration names another one, which names the code."""
    config = json.loads((folder / "config.json").read_text())
    with_keys(folder, "config.4.0.0.json", **config, auto_map=AUTO_MAP)
    with_keys(folder, "config.json", configuration_files=["config.4.0.0.json"])


def the_reproduction(folder: Path) -> None:
    """Of a class that llama.cpp's converter reads the tokenizer of with trust_remote_code=True."""
    with_keys(folder, "config.json", architectures=["DreamModel"])
    other_configuration(folder)


def a_linked_configuration(folder: Path) -> None:
    with_keys(folder.parent, "elsewhere.json", auto_map=AUTO_MAP)
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").symlink_to(folder.parent / "elsewhere.json")


# What a folder can bring, the error that names it, and the names. All bring evil.py.
REFUSED: dict[str, tuple[Callable[[Path], None], tuple[object, ...]]] = {
    "config.json": (lambda d: with_keys(d, "config.json", auto_map=AUTO_MAP), ("config.json", "auto_map")),
    "tokenizer_config.json": (
        lambda d: with_keys(d, "tokenizer_config.json", auto_map=AUTO_MAP),
        ("tokenizer_config.json", "auto_map"),
    ),
    "an old form": (
        lambda d: with_keys(d, "tokenizer_config.json", auto_map=["evil.Evil", None]),
        ("tokenizer_config.json", "auto_map"),
    ),
    "processor_config.json": (
        lambda d: with_keys(d, "processor_config.json", auto_map={"AutoProcessor": "evil.Evil"}),
        ("processor_config.json", "auto_map"),
    ),
    "preprocessor_config.json": (
        lambda d: with_keys(d, "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"}),
        ("preprocessor_config.json", "auto_map"),
    ),
    "another configuration": (other_configuration, ("config.4.0.0.json", "auto_map")),
    "its name alone": (
        lambda d: with_keys(d, "config.json", configuration_files=["config.4.0.0.json"]),
        ("config.json", "configuration_files"),
    ),
    "another class of model": (
        lambda d: with_keys(d, "config.json", architectures=["DreamModel"]),
        ("config.json", "architectures", "DreamModel", "LlamaForCausalLM"),
    ),
    "another class of the text part": (
        lambda d: with_keys(d, "config.json", text_config={"architectures": ["DreamModel"]}),
        ("config.json", "architectures", "DreamModel"),
    ),
    "a link": (a_linked_configuration, ("tokenizer_config.json", "auto_map")),
    "the reproduction": (the_reproduction, ("config.4.0.0.json", "auto_map")),
}


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A folder that converts, with a module beside its weights that would leave a mark."""
    folder = write_hf_model(tmp_path / "model")
    (folder / "evil.py").write_text(evil_source(folder))
    return folder


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_that_brings_code_is_refused(kind: str, evil: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plant, named = REFUSED[kind]
    plant(evil)
    with refused(UnsupportedError, *named):
        check_folder(evil)
    assert cli.main(["convert", str(evil), "-o", str(evil.parent / "out.gguf")]) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert not (evil.parent / "ran").exists()
    assert not (evil.parent / "out.gguf").exists()


def test_what_only_looks_like_code_is_accepted(evil: Path) -> None:
    """A token, a file that transformers never reads, and the text part of a larger model."""
    with_keys(evil, "vocab.json", auto_map=1234, configuration_files=1235)
    (evil / "._config.json").write_bytes(b"\0\5\x16\7 no JSON")
    assert check_folder(evil) == "LlamaForCausalLM"
    with_keys(evil, "config.json", architectures=["Gemma3ForConditionalGeneration"])
    assert check_folder(evil) == "Gemma3ForConditionalGeneration"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "more.safetensors"])
def test_a_pipe_in_the_folder_is_refused_without_waiting(name: str, evil: Path) -> None:
    (evil / name).unlink(missing_ok=True)
    os.mkfifo(evil / name)
    with refused(FileError, evil / name):
        check_folder(evil)


def test_the_index_names_files_of_the_folder_alone(evil: Path) -> None:
    with_keys(evil, "model.safetensors.index.json", weight_map={"a": "../other.safetensors"})
    with refused(FileError, "model.safetensors.index.json", "'../other.safetensors'"):
        check_folder(evil)


def start(folder: Path, *, model_class: str = "LlamaForCausalLM", unguarded: bool = False) -> str:
    """Run the start of llama.cpp's converter on a folder that nobody has checked; its stderr."""
    script, out = str(find_script()), str(folder.parent / "out.gguf")
    arguments = [str(STARTER), str(os.getpid()), model_class, script, str(folder), "--outfile", out]
    command = [sys.executable, *arguments]
    if unguarded:
        program = (
            f"import sys; sys.path.insert(0, {str(STARTER.parent)!r}); import _run_llama_cpp as r; from pathlib import "
            "Path; r.forbid_code = lambda folder: None; sys.path.insert(0, ''); "
            "r.main(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))"
        )
        command = [sys.executable, "-c", program, *arguments[1:]]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "cache")}
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    return result.stderr


@pytest.mark.parametrize("unguarded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_start_of_the_converter_runs_no_code(unguarded: bool, evil: Path) -> None:
    """Even where the checks of the folder are passed by; without it, the code does run."""
    the_reproduction(evil)
    start(evil, model_class="DreamModel", unguarded=unguarded)
    assert (evil.parent / "ran").exists() is unguarded


@pytest.mark.slow
@pytest.mark.parametrize("key", ["llm_config", "thinker_config"])
def test_the_class_that_was_checked_is_the_one_that_is_converted(key: str, evil: Path) -> None:
    """The script looks for the class in places of its own."""
    hidden: dict[str, object] = {"architectures": ["DreamModel"]}
    with_keys(evil, "config.json", **{key: {"text_config": hidden} if key == "thinker_config" else hidden})
    assert_names(start(evil), "'DreamModel'", "'LlamaForCausalLM'")
    assert not (evil.parent / "ran").exists()


@pytest.mark.slow
def test_nothing_else_in_a_folder_runs(evil: Path) -> None:
    """Everything at once, with the folder as the working folder: it converts, and nothing has run."""
    source = evil_source(evil)
    modules = ("json", "torch", "numpy", "transformers", "safetensors", "conversion", "gguf", "sitecustomize")
    for name in (*modules, "usercustomize", "setup", "conftest", "tokenization_evil", "modeling_evil", "evil"):
        (evil / f"{name}.py").write_text(source)
    for name in ("custom_generate/generate.py", "gguf-py/gguf/__init__.py", "custom_generate/__init__.py"):
        (evil / name).parent.mkdir(parents=True, exist_ok=True)
        (evil / name).write_text(source)
    (evil / "evil.pth").write_text("import evil\n")
    (evil / "requirements.txt").write_text("evil\n")
    for name in ("pytorch_model.bin", "training_args.bin", "spiece.model", "optimizer.pt", "tokenizer.pkl"):
        (evil / name).write_bytes(pickle.dumps(Payload(evil.parent / "ran")))
    attack = "{{ cycler.__init__.__globals__.os.close(cycler.__init__.__globals__.os.open('../ran', 64)) }}"
    (evil / "chat_template.jinja").write_text(attack)
    with_keys(evil, "tokenizer_config.json", chat_template=attack, tokenizer_class="EvilTokenizer")
    with_keys(evil, "generation_config.json", custom_generate="evil")
    with_keys(evil, "adapter_config.json", base_model_name_or_path=str(evil.parent / "other"), peft_type="LORA")
    with_keys(evil, "processor_config.json", processor_class="evil.Evil")
    (evil / "linked.py").symlink_to(evil / "evil.py")
    tool = Path(sys.executable).with_name("otter-gguf")
    if not tool.exists():
        pytest.skip("the command is not installed")
    command = [str(tool), "convert", ".", "-o", "../out.gguf", "--outtype", "f16"]
    for code in (0, 2):
        result = subprocess.run(command, cwd=evil, capture_output=True, text=True, check=False, timeout=300)
        assert not (evil.parent / "ran").exists()
        assert result.returncode == code, result.stderr
        assert (evil.parent / "out.gguf").exists() is (code == 0)
        (evil.parent / "out.gguf").unlink(missing_ok=True)
        # What the script's reader of model cards, which takes plain data alone, ends at.
        (evil / "README.md").write_text("---\nlicense: !!python/object/apply:os.mkdir ['../ran']\n---\n")


# ---- the interpreter's own guard -------------------------------------------------------------------------------

GUARDED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import _run_llama_cpp as starter
folder, cache = sys.argv[2:4]
sys.addaudithook(lambda event, arguments: starter._refuse_file(event, arguments, folder, cache))
try:
    exec(sys.argv[4])
except PermissionError:
    print("refused")
"""

# Each is run with sys.path leading to the folder, in which a module, a package in a cache and a library lie.
WAYS = {
    "import": "sys.path.insert(0, folder); import evil",
    "a link": "sys.path.insert(0, cache + '/deep'); import linked",
    "a copy": "sys.path.insert(0, cache); import deep.evil",
    "run": "import runpy; runpy.run_path(folder + '/evil.py')",
    "exec": "exec(compile(open(folder + '/evil.py').read(), folder + '/evil.py', 'exec'))",
    "extension": "sys.path.insert(0, folder); import library",
    "library": "import ctypes; ctypes.CDLL(folder + '/library.so')",
}


@pytest.mark.parametrize("way", [*WAYS, "elsewhere"])
def test_the_interpreter_refuses_code_of_the_folder(way: str, tmp_path: Path) -> None:
    folder, cache = tmp_path / "model", tmp_path / "cache"
    (cache / "deep").mkdir(parents=True)
    folder.mkdir()
    (folder / "library.so").write_bytes(b"\x7fELF")
    (tmp_path / "harmless.py").write_text(evil_source(folder))
    for place in (folder / "evil.py", cache / "deep" / "evil.py"):
        place.write_text(evil_source(folder))
    (cache / "deep" / "linked.py").symlink_to(folder / "evil.py")
    action = WAYS.get(way, f"sys.path.insert(0, {str(tmp_path)!r}); import harmless")
    command = [sys.executable, "-c", GUARDED, str(STARTER.parent), str(folder), str(cache), action]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.stdout == ("" if way == "elsewhere" else "refused\n"), result.stderr
    assert (tmp_path / "ran").exists() is (way == "elsewhere")
