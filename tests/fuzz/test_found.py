"""What the fuzzer found, in small."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import pytest

from otter_gguf import BestOfN, ChunkBeam, ConfigError, EngineError, Otter, SpeculativeRejection
from otter_gguf.config import BaseGeometry, HeadConfig
from otter_gguf.errors import FileError
from otter_gguf.guidance.search import Search
from tests.gguf.gguf_builder import Gguf, Tensor
from tests.gguf.toy_files import GEOMETRY, insertion, write_base, write_sidecar
from tests.refusals import refused

MOST = 2**31 - 1


@pytest.mark.parametrize("token", [-1, 288, 2**31, 2**63, -(2**70)])
def test_tokens_beyond_the_vocabulary_have_no_text(token: int, tmp_path: Path) -> None:
    with Otter(write_base(tmp_path / "base.gguf"), n_ctx=8) as llm:
        assert llm.detokenize([287, 0])
        assert llm.detokenize([]) == b""
        with refused(ConfigError, str(token), "288"):
            llm.detokenize([3, token])


def test_sizes_that_llama_cpp_cannot_count_with() -> None:
    assert insertion(state_source="table", state_offset=MOST).state_offset == MOST
    with refused(ConfigError, "state_offset", str(2**31)):
        insertion(state_source="table", state_offset=2**31)
    with refused(ConfigError, "n_vocab", str(2**31)):
        BaseGeometry(**{**GEOMETRY.to_dict(), "n_vocab": 2**31})


def test_a_sidecar_with_such_a_size(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base.gguf")
    sidecar = write_sidecar(tmp_path / "toy.otter.gguf", base, insertion(state_source="table"))
    path = Path(Gguf.read(sidecar).set("otter.state.offset", "u32", 2**31).write(tmp_path / "far.otter.gguf"))
    with refused(FileError, "far.otter.gguf", "state_offset"):
        Otter(base, otter=path)


def _with_bias(bias: float, folder: Path) -> Otter:
    """A model whose only reward has a bias and a scale of the same size."""
    base = write_base(folder / "base.gguf")
    config = insertion(heads=(HeadConfig(scale=(bias,)),))
    sidecar = write_sidecar(folder / "toy.otter.gguf", base, config)
    file = Gguf.read(sidecar)
    name = next(str(name) for name, _ in file.tensors if str(name).endswith(".bias"))
    file = file.tensor(name, Tensor((1,), "F32", struct.pack("<f", bias)))
    return Otter(base, otter=file.write(folder / "large.otter.gguf"), n_ctx=32, n_threads=1, n_seq_max=4)


@pytest.mark.parametrize("search", [BestOfN(2), ChunkBeam(), SpeculativeRejection(2, pause=1)])
def test_searches_do_not_choose_by_rewards_that_are_no_numbers(search: Search, tmp_path: Path) -> None:
    with _with_bias(1e30, tmp_path) as llm:
        assert math.isinf(llm.score([5, 6]).rewards[-1, 0])
        with refused(EngineError, "base.gguf", "inf"):
            llm.create_completion([5, 6], max_tokens=3, guidance=search, seed=1)
    with _with_bias(1e10, tmp_path) as llm:
        assert llm.create_completion([5, 6], max_tokens=3, guidance=search, seed=1)["choices"]


@pytest.mark.parametrize("name", ["max_tokens", "logprobs", "n_keep", "top_k", "seed", "temperature", "stop", "prompt"])
def test_numbers_that_python_does_not_write(name: str, tmp_path: Path) -> None:
    """One of more than 4,300 digits has no ``repr``; the message names the argument all the same."""
    options: dict[str, Any] = {"prompt": [1, 2], "max_tokens": 1, name: -(10**5000)}
    with Otter(write_base(tmp_path / "base.gguf"), n_ctx=8) as llm, refused(ConfigError, name, "int"):
        llm.create_completion(**options)
