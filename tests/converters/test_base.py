"""A Hugging Face base through llama.cpp's own converter, and everything that is refused before it runs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from otter_gguf.converters.base import convert_base

from otter_gguf import _native
from otter_gguf.errors import ConfigError, EngineError, FileError, UnsupportedError
from otter_gguf.gguf.base import BaseFiles, base_geometry
from otter_gguf.gguf.fingerprint import fingerprint
from tests.refusals import refused

from ..gguf.toy_files import GEOMETRY, base_tensors, gguf_name, rope_order, save_safetensors
from .toy_hf import Payload, write_hf_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_model(tmp_path_factory.mktemp("hf") / "toy")


@pytest.fixture(scope="module")
def base(model: Path) -> Path:
    convert_base(model, model.parent / "base.gguf", outtype="f32")
    return model.parent / "base.gguf"


def test_the_base_is_converted(base: Path) -> None:
    with BaseFiles.open(base) as files:
        _native.check_base(files.metadata_file)
        assert base_geometry(files) == GEOMETRY
        for name, values in base_tensors().items():
            tensor = files.tensor(gguf_name(name))
            assert tensor is not None
            shortened = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)  # the folder holds bfloat16
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                shortened = rope_order(shortened, GEOMETRY.head_dim)
            assert bytes(files.tensor_data(tensor.name)) == shortened.tobytes()
    assert [path for path in base.parent.iterdir() if path.name.startswith(".")] == []


def test_every_outtype_has_one_fingerprint(model: Path, base: Path, tmp_path: Path) -> None:
    convert_base(model, tmp_path / "q8_0.gguf", outtype="q8_0")
    with BaseFiles.open(base) as first, BaseFiles.open(tmp_path / "q8_0.gguf") as second:
        assert fingerprint(first) == fingerprint(second)


def test_the_script_is_told_to_work_in_a_clone(model: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "converters" / "convert_otter_to_gguf.py"
    target = tmp_path / "base.gguf"
    command = [sys.executable, str(script), str(model), "-o", str(target), "--outtype", "f16"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stdout.strip()) == (0, str(target)), result.stderr
    assert "INFO" not in result.stderr
    with BaseFiles.open(target) as files:
        assert base_geometry(files) == GEOMETRY


# ---- refused ---------------------------------------------------------------------------------------------------


def test_the_converters_own_words_are_in_the_error(tmp_path: Path) -> None:
    folder = write_hf_model(tmp_path / "odd")
    save_safetensors(folder / "model.safetensors", {**base_tensors(), "model.nobody.weight": np.ones(4, np.float32)})
    (tmp_path / "base.gguf").write_text("old")
    with refused(EngineError, folder, "model.nobody.weight", "--verbose"):
        convert_base(folder, tmp_path / "base.gguf", force=True)
    assert (tmp_path / "base.gguf").read_text() == "old"
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    folder = write_hf_model(tmp_path / "hf")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with refused(FileError, folder, "pickled", "model*.safetensors"):
        convert_base(folder, tmp_path / "base.gguf")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_the_model_never_runs(tmp_path: Path, name: str) -> None:
    folder = write_hf_model(tmp_path / "hf")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", None]}
    data = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(data | {"auto_map": auto_map}))
    with refused(UnsupportedError, folder / name, "auto_map"):
        convert_base(folder, tmp_path / "base.gguf")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    with refused(FileError, tmp_path / "nowhere", "folder"):
        convert_base(tmp_path / "nowhere", tmp_path / "base.gguf")
    (tmp_path / "empty").mkdir()
    with refused(FileError, tmp_path / "empty" / "config.json"):
        convert_base(tmp_path / "empty", tmp_path / "base.gguf")


def test_a_type_that_llama_cpp_does_not_convert_to_is_refused(model: Path, tmp_path: Path) -> None:
    with refused(ConfigError, "--outtype", "q4_0", "q8_0", "quantize"):
        convert_base(model, tmp_path / "base.gguf", outtype="q4_0")


def test_an_existing_file_is_kept(model: Path, base: Path) -> None:
    before = base.read_bytes()
    with refused(FileError, base, "--force"):
        convert_base(model, base)
    assert base.read_bytes() == before
