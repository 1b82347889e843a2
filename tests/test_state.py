"""A saved text goes on as if it had never been left."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_gguf import ARGS, ConfigError, ContextFullError, FileError, MismatchError, Otter, _native
from otter_gguf.context.batches import common_length
from otter_gguf.context.state import ContextState, identity
from tests.completions import choice_of, tokens_of, without_end
from tests.guidance.reference import EXACT, open_exact, vocabulary_pair
from tests.refusals import refused
from tests.synthetic_models import TEXT, Pair, load, pair

MORE = " More of it."


@pytest.fixture(scope="module")
def llm() -> Iterator[Otter]:
    with open_exact() as llm:
        yield llm


@pytest.fixture(scope="module")
def other() -> Iterator[Otter]:
    """Another context of the same files, of another size."""
    with open_exact(n_ctx=300, n_seq_max=12, n_batch=64) as other:
        yield other


@pytest.fixture(scope="module")
def state(llm: Otter) -> ContextState:
    """Of TEXT."""
    llm.create_completion(TEXT, max_tokens=0)
    return llm.save_state()


def go_on(llm: Otter, **options: Any) -> Any:
    """The text that follows TEXT and MORE, where the context holds TEXT."""
    given = {"max_tokens": 20, "temperature": 1, "seed": 3, "cache_prompt": True, **options}
    calls = llm.context.timing()["calls"]
    choice = choice_of(llm.create_completion(TEXT + MORE, **given))
    return choice, llm.context.timing()["calls"] - calls


# ---- going on --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [None, ARGS(3.0)], ids=["plain", "args"])
def test_a_text_goes_on_as_if_nothing_had_happened(llm: Otter, other: Otter, guidance: Any) -> None:
    llm.create_completion(TEXT, max_tokens=0)
    saved = llm.save_state()
    stayed, n_calls = go_on(llm, guidance=guidance)

    llm.create_completion("something else", max_tokens=30, guidance=guidance)
    llm.load_state(saved)
    loaded, n_calls_again = go_on(llm, guidance=guidance)
    assert loaded == stayed, "text and rewards, to the last bit"
    assert n_calls_again == n_calls

    other.load_state(saved)
    elsewhere, n_calls_elsewhere = go_on(other, guidance=guidance)
    assert elsewhere == stayed
    assert n_calls_elsewhere == n_calls, "nothing of the prompt was fed again"


def test_without_loading_the_prompt_is_fed_again(llm: Otter) -> None:
    """The twin of the count of calls: with one token a batch it shows what is fed."""
    with open_exact(n_batch=1, n_ubatch=1, n_seq_max=1) as slow:
        slow.create_completion(TEXT, max_tokens=0)
        saved = slow.save_state()
        _, few = go_on(slow, max_tokens=0)
        slow.create_completion("else", max_tokens=0)
        _, many = go_on(slow, max_tokens=0)
        slow.load_state(saved)
        _, again = go_on(slow, max_tokens=0)
    held, whole = (llm.tokenize(text, special=True) for text in (TEXT, TEXT + MORE))
    assert few == again == len(whole) - common_length(held, whole)
    assert many == len(whole) - 1, "all but the begin-of-text token"


def test_what_was_generated_is_part_of_the_state(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    tokens = tokens_of(llm.create_completion(prompt, max_tokens=6, temperature=0))
    assert llm.save_state().tokens == (*prompt, *tokens)
    steps = llm.generate(prompt, temperature=0, guidance=ARGS(0.0))
    taken = [next(steps).token for _ in range(3)]
    assert llm.save_state().tokens == (*prompt, *taken), "of a text under way too"


def test_a_guided_text_leaves_no_candidates_in_the_state(llm: Otter) -> None:
    prompt = llm.tokenize(TEXT)
    steps = llm.generate(prompt, temperature=0, guidance=ARGS(3.0))
    taken = [next(steps).token for _ in range(3)]
    saved = llm.save_state()
    assert saved.tokens == (*prompt, *taken)
    llm.load_state(saved)
    cached = choice_of(llm.create_completion([*saved.tokens, 65], max_tokens=5, temperature=0, cache_prompt=True))
    fresh = choice_of(llm.create_completion([*saved.tokens, 65], max_tokens=5, temperature=0))
    assert cached["rewards"]["tokens"] == fresh["rewards"]["tokens"]
    np.testing.assert_allclose(cached["rewards"]["token_rewards"], fresh["rewards"]["token_rewards"], atol=1e-4)


def test_an_empty_context_has_a_state_too(other: Otter) -> None:
    with open_exact() as fresh:
        saved = fresh.save_state()
        assert saved.tokens == ()
        fresh.load_state(saved)
        assert tokens_of(fresh.create_completion(TEXT, max_tokens=3, cache_prompt=True))


def test_loading_ends_a_stream(llm: Otter, state: ContextState) -> None:
    stream = llm.create_completion(TEXT, max_tokens=9, stream=True, logit_bias=without_end(llm))
    next(stream)
    llm.load_state(state)
    with refused(ConfigError, "stream"):
        list(stream)


def test_a_cleared_context_is_not_taken_for_the_text_that_it_held(llm: Otter, state: ContextState) -> None:
    llm.load_state(state)
    llm.context.clear()
    fresh = choice_of(llm.create_completion(TEXT + MORE, max_tokens=5, temperature=0))
    llm.load_state(state)
    llm.context.clear()
    assert choice_of(llm.create_completion(TEXT + MORE, max_tokens=5, temperature=0, cache_prompt=True)) == fresh


# ---- what does not belong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        pair(seed=1),
        pair("Q8_0"),
        pair(seed=4, base_of=0),
        Pair(vocabulary_pair().base, pair().otter),
    ],
    ids=["base", "quantization", "sidecar", "heads"],
)
def test_other_models_are_refused(state: ContextState, files: Pair) -> None:
    with load(files, **EXACT) as stranger:
        tokens = tokens_of(stranger.create_completion("a", max_tokens=2, temperature=0))
        with refused(MismatchError, files.base):
            stranger.load_state(state)
        assert tokens_of(stranger.create_completion("a", max_tokens=2, temperature=0)) == tokens


def test_a_plain_model_is_another_one(state: ContextState) -> None:
    with Otter(pair().base, n_ctx=64, n_threads=1) as plain, refused(MismatchError, pair().base):
        plain.load_state(state)


def test_other_cache_types_are_refused(state: ContextState) -> None:
    with load(vocabulary_pair()) as halved:
        with pytest.raises(ConfigError):
            halved.load_state(state)
        assert tokens_of(halved.create_completion(TEXT, max_tokens=2, cache_prompt=True))


def test_a_state_longer_than_the_context_is_refused(state: ContextState) -> None:
    with open_exact(n_ctx=16) as short, refused(ContextFullError, len(state.tokens), 16):
        short.load_state(state)


def test_damaged_cells_are_refused_and_leave_nothing(llm: Otter, state: ContextState) -> None:
    size = len(state.data)
    flipped = [state.data[:i] + bytes([state.data[i] ^ 8]) + state.data[i + 1 :] for i in (0, 9, size // 2, size - 1)]
    for data in (b"", state.data[: size // 2], state.data + b"\0", *flipped):
        with pytest.raises(ConfigError):
            llm.load_state(dataclasses.replace(state, data=data))
        assert llm.save_state().tokens == ()
        assert llm.context.sequence_max_position(0) == -1


def test_tokens_without_cells_are_refused(llm: Otter, state: ContextState) -> None:
    with refused(ConfigError, len(state.tokens) + 1, len(state.tokens)):
        llm.load_state(dataclasses.replace(state, tokens=(*state.tokens, 65)))
    llm.load_state(dataclasses.replace(state, tokens=state.tokens[:-9]))
    assert llm.context.sequence_max_position(0) == len(state.tokens) - 10, "cells without tokens are dropped"


@pytest.mark.parametrize("given", [None, b"data", "path"])
def test_other_objects_are_refused(llm: Otter, given: Any) -> None:
    with refused(ConfigError, "state", type(given).__name__, "save_state"):
        llm.load_state(given)


def test_identity_tells_files_apart_and_not_places(tmp_path: Path) -> None:
    base, sidecar = vocabulary_pair()
    copies = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for source, target in zip((base, sidecar), copies, strict=True):
        target.write_bytes(source.read_bytes())
    same = identity(str(base), str(sidecar))
    assert identity(str(copies[0]), str(copies[1])) == same
    assert len({same, identity(str(base)), identity(str(pair(seed=1).base)), identity(str(pair("Q8_0").base))}) == 4


@pytest.mark.parametrize("place", ["begin", "end"])
def test_identity_sees_both_ends_of_a_tensor(tmp_path: Path, place: str) -> None:
    data = bytearray(pair().base.read_bytes())
    with _native.GgufFile(str(pair().base)) as file:
        largest = max(file.tensors, key=lambda tensor: tensor.n_bytes)
    data[largest.offset if place == "begin" else largest.offset + largest.n_bytes - 1] ^= 1
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(data)
    assert identity(str(changed)) != identity(str(pair().base))


# ---- files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(state: ContextState, tmp_path: Path) -> Path:
    """A file of the state."""
    state.save(tmp_path / "text.state")
    return tmp_path / "text.state"


def test_a_file_gives_the_state_back(saved: Path, state: ContextState) -> None:
    assert ContextState.load(saved) == state
    assert ContextState.load(str(saved)) == state
    assert os.listdir(saved.parent) == [saved.name]


def test_pickle_gives_the_state_back(state: ContextState) -> None:
    assert pickle.loads(pickle.dumps(state)) == state


def test_an_existing_file_is_replaced_on_demand_alone(saved: Path, state: ContextState) -> None:
    changed = dataclasses.replace(state, tokens=(1, 2))
    with refused(FileError, saved, "--force"):
        changed.save(saved)
    assert ContextState.load(saved) == state
    changed.save(saved, force=True)
    assert ContextState.load(saved) == changed


def test_a_file_that_cannot_be_written_or_read_is_named(state: ContextState, tmp_path: Path) -> None:
    with refused(FileError, tmp_path / "nowhere"):
        state.save(tmp_path / "nowhere" / "file")
    with refused(FileError, "none.state"):
        ContextState.load(tmp_path / "none.state")
    with refused(FileError, tmp_path, "regular"):
        ContextState.load(tmp_path)


def test_every_cut_is_refused(state: ContextState, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    small = dataclasses.replace(state, tokens=state.tokens[:3], data=state.data[:50])
    small.save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with refused(FileError, path):
            ContextState.load(path)
    path.write_bytes(whole)
    assert ContextState.load(path) == small


def test_every_flipped_byte_is_refused(state: ContextState, tmp_path: Path) -> None:
    path = tmp_path / "flipped"
    dataclasses.replace(state, tokens=state.tokens[:3], data=state.data[:50]).save(path)
    whole = path.read_bytes()
    for index in range(len(whole)):
        for bit in (0x01, 0x80):
            path.write_bytes(whole[:index] + bytes([whole[index] ^ bit]) + whole[index + 1 :])
            with refused(FileError, path):
                ContextState.load(path)


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """The file with another header, the rest as it is."""

    def edit(whole: bytes) -> bytes:
        (length,) = struct.unpack_from("<I", whole, 8)
        header = json.loads(whole[12 : 12 + length])
        change(header)
        text = json.dumps(header).encode()
        return whole[:8] + struct.pack("<I", len(text)) + text + whole[12 + length :]

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        lambda whole: b"GGUF" + whole[4:],
        lambda whole: whole + b"more",
        lambda whole: whole[:8] + struct.pack("<I", 2**32 - 1) + whole[12:],
        lambda whole: whole[:8] + struct.pack("<I", 0) + whole[12:],
        lambda whole: whole[:12] + b"[" * 90 + whole[102:],
        with_header(lambda header: header.update(version=2)),
        with_header(lambda header: header.update(version=True)),
        with_header(lambda header: header.update(n_tokens=-1)),
        with_header(lambda header: header.update(n_tokens=2**62)),
        with_header(lambda header: header.update(n_bytes=10.5)),
        with_header(lambda header: header.update(n_bytes=10**400)),
        with_header(lambda header: header.update(model=None)),
        with_header(lambda header: header.pop("n_tokens")),
        with_header(lambda header: header.update(model="x" * 5000)),
    ],
)
def test_hostile_files_are_refused(saved: Path, edit: Callable[[bytes], bytes]) -> None:
    saved.write_bytes(edit(saved.read_bytes()))
    with refused(FileError, saved):
        ContextState.load(saved)
