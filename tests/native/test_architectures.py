"""Every architecture: base logits bit for bit those of stock llama.cpp, rewards those of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from otter_gguf.converters.base import convert_base

from otter_gguf import _native
from otter_gguf.architectures import find, supported
from otter_gguf.config import InsertionConfig
from otter_gguf.errors import ConfigError, ContextFullError, FileError, MismatchError, UnsupportedError
from otter_gguf.gguf.base import BaseFiles, base_geometry
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.loading import check_files
from otter_gguf.training import OtterModel, geometry
from tests.architecture_toys import (
    BYTE_LEVEL,
    FORMS,
    HEADS,
    LONG_TEXT,
    convert_with_any_tokenizer,
    long_rope,
    toy,
    widen,
    write_tokenizer,
    write_toy,
    write_widened,
)
from tests.gguf.toy_files import float_tensor, rewrite
from tests.native.helpers import Float32, base_logits, feed, feed_chunks, open_base, open_otter, random_tokens
from tests.refusals import refused

TOLERANCE = 1e-4
PLACEMENTS: dict[str, dict[str, Any]] = {
    "everywhere": {},
    "table": {"state_source": "table"},
    "odd width": {"width": 5, "state_offset": 11},
    "attention only": {"n_ff": 0},
    "ffn only": {"n_head_kv": 0},
    "head only": {"width": 0, "n_head_kv": 0, "n_ff": 0, "heads": HEADS[2:]},
}
CACHES: dict[str, dict[str, Any]] = {
    "f32": {},
    "f16": {"type_k": "f16", "type_v": "f16"},
    "f16 flash": {"type_k": "f16", "type_v": "f16", "flash_attn": "on"},
}


def _other_multiplier(model: Any) -> None:
    for layer in model.model.layers:
        layer.residual_multiplier *= 1.1


def _less_of(*names: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if name.endswith(names):
                parameter.data.mul_(0.5)

    return change


def _rope_everywhere(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.use_rope = True


def _rotate_whole_heads(model: Any) -> None:
    channels = torch.arange(0, geometry(model).head_dim, 2)
    model.model.rotary_emb.inv_freq = 10000.0 ** -(channels / geometry(model).head_dim)


def _no_cap(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None


def _other_window(model: Any) -> None:
    model.config.sliding_window *= 2


def _one_rope(model: Any) -> None:
    rope = model.model.rotary_emb
    rope.sliding_attention_inv_freq.copy_(rope.full_attention_inv_freq)


# Changes of the special part of an architecture; of one with several, what it is stands behind the name.
SPECIAL_PARTS: dict[str, Callable[[Any], None]] = {
    "gemma": _less_of("norm.weight"),
    "falcon": _less_of("norm.bias", "ln_f.bias"),
    "gpt2": _less_of("wpe.weight"),
    "gpt_neox": _less_of("norm.bias", "dense.bias", "dense_4h_to_h.bias"),
    "gemma2 cap": _no_cap,
    "gemma2 window": _other_window,
    "gemma2 post-norms": _less_of("post_attention_layernorm.weight", "post_feedforward_layernorm.weight"),
    "gemma3_text window": _other_window,
    "gemma3_text rope": _one_rope,
    "gemma3_text head norms": _less_of("q_norm.weight", "k_norm.weight"),
    "granite": _other_multiplier,
    "mixtral": _less_of("mlp.gate.weight"),
    "phi3": _rotate_whole_heads,
    "olmo2 head norms": _less_of("q_norm.weight", "k_norm.weight"),
    "olmo2 post-norms": _less_of("post_attention_layernorm.weight", "post_feedforward_layernorm.weight"),
    "qwen2": _less_of("q_proj.bias", "k_proj.bias", "v_proj.bias"),
    "qwen3": _less_of("q_norm.weight", "k_norm.weight"),
    "qwen3_moe": _less_of("mlp.gate.weight"),
    "smollm3": _rope_everywhere,
    "stablelm": _less_of("layernorm.bias", "norm.bias"),
    "starcoder2": _less_of("o_proj.bias", "c_proj.bias"),
}
# Other forms of an architecture, by a field of its configuration.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    FORMS["falcon 40B"],
    ("gpt2", {"tie_word_embeddings": False}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("stablelm", {"use_qkv_bias": True}),
]
every_architecture = pytest.mark.parametrize("model_type", supported())
every_form = pytest.mark.parametrize(("model_type", "form"), FORMS.values(), ids=FORMS)
WINDOWED = ("gemma2", "gemma3_text")
"""Model types some of whose layers attend within a window; in the toys of 16 tokens."""


class Toy(NamedTuple):
    """A widened toy: in torch, and its two files."""

    torch: OtterModel
    base: Path
    sidecar: Path
    config: InsertionConfig


def make(
    folder: Path, model_type: str, type: str = "F32", init: str = "normal", model: Any = None, **changes: Any
) -> Toy:
    model = model or toy(model_type)
    layers = model.config.num_hidden_layers
    sizes = {name: (size,) * layers if name in ("n_head_kv", "n_ff") else size for name, size in changes.items()}
    base = write_toy(folder / f"base-{type}.gguf", model, type)
    otter = widen(model, init, **sizes)
    return Toy(otter, base, write_widened(folder, otter, base), otter.insertion)


def in_torch(otter: OtterModel, tokens: Any) -> tuple[Float32, Float32]:
    """Logits and rewards (tokens, ...) of one text."""
    with torch.no_grad():
        output = otter(torch.from_numpy(np.asarray(tokens, np.int64))[None])
    assert output.rewards is not None
    return output.logits[0].numpy(), output.rewards[0].numpy()


class _TableGelu(torch.nn.Module):
    """ggml's GELU on the CPU: a table over all 16-bit numbers, straight lines beyond 10."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        looked_up = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x.abs() < 10, looked_up, x.clamp(min=0))


def activate_as_ggml(otter: OtterModel) -> None:
    """SiLU is exact in both; GELU is not."""
    if has_gelu(otter):
        for i in range(otter.insertion.base.n_layer):
            path = f"{otter.architecture.layers}.{i}.{otter.architecture.ffn.activation}"
            if hasattr(otter.base_model.get_submodule(path), "base"):
                path += ".base"
            otter.base_model.set_submodule(path, _TableGelu())


def has_gelu(otter: OtterModel) -> bool:
    return otter.architecture.activations != ("silu",)


def assert_close(made: Toy, found: Float32, expected: Float32, logits: float = 5e-3) -> float:
    """The largest difference. Where GELU is rounded to 16 bits, a number at the edge of two tells others now and then,
    in any layer: most are as close as ever in two layers, and none is further than twice what the logits are."""
    difference = np.abs(found - expected)
    if not has_gelu(made.torch):
        assert difference.max() <= TOLERANCE
    else:
        assert np.quantile(difference, 0.9) <= TOLERANCE * made.config.base.n_layer / 2
        assert difference.max() <= 2 * logits
    return float(difference.max())


@every_form
@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q4_0"])
def test_logits_are_identical(model_type: str, form: dict[str, Any], type: str, tmp_path: Path) -> None:
    """A prompt and single tokens, with every kind of cache."""
    made = make(tmp_path, model_type, type, model=toy(model_type, **form))
    tokens = random_tokens(60)
    for cache in CACHES.values():
        for size in (40, 1):
            plain = base_logits(open_base(made.base, **cache), tokens, size)
            logits, rewards = feed_chunks(open_otter(made.base, made.sidecar, made.config, **cache), tokens, size)
            assert np.array_equal(plain.view(np.uint32), logits.view(np.uint32))
            assert rewards.std(axis=0).min() > 1e-3


@every_form
def test_logits_are_identical_with_k_types_and_a_quantized_cache(
    model_type: str, form: dict[str, Any], tmp_path: Path
) -> None:
    """Rows long enough for blocks of 256; llama.cpp mixes what it stores in such a cache, the inserted heads' too."""
    model = toy(model_type, hidden_size=256, intermediate_size=256, head_dim=64, **form)
    base = write_toy(tmp_path / "base.gguf", model, "Q4_K")
    otter = widen(model)
    sidecar = write_widened(tmp_path, otter, base, "q8_0")
    cache = {"type_k": "q8_0", "type_v": "q8_0", "flash_attn": "on"}
    tokens = random_tokens(40)
    for size in (20, 1):
        plain = base_logits(open_base(base, **cache), tokens, size)
        logits, rewards = feed_chunks(open_otter(base, sidecar, otter.insertion, **cache), tokens, size)
        assert np.array_equal(plain.view(np.uint32), logits.view(np.uint32))
        assert rewards.std(axis=0).min() > 1e-3


@every_form
def test_logits_are_identical_with_several_sequences(model_type: str, form: dict[str, Any], tmp_path: Path) -> None:
    """Two texts in a batch, a copied, cut and continued one, a saved and restored one."""
    made = make(tmp_path, model_type, "Q8_0", model=toy(model_type, **form))
    tokens, found = random_tokens(60), []
    for context in (open_base(made.base), open_otter(made.base, made.sidecar, made.config)):
        feed(context, tokens[:40], sequences=[0] * 25 + [1] * 15, positions=[*range(25), *range(15)])
        logits = [context.logits().copy()]
        context.sequence_copy(0, 2)
        assert context.sequence_remove(2, 20)
        feed(context, tokens[40:43], sequences=[0, 1, 2], positions=[25, 15, 20])
        logits.append(context.logits().copy())
        state = context.state()
        feed(context, tokens[43:50], 26)
        logits.append(context.logits().copy())
        context.load_state(state)
        feed(context, tokens[43:50], 26)
        logits.append(context.logits().copy())
        found.append(np.concatenate(logits))
    assert np.array_equal(found[0], found[1])


NOT_SHIFTED = [name for name in supported() if find(name).positions or name in WINDOWED]


@pytest.mark.parametrize("form", [name for name, (model_type, _) in FORMS.items() if model_type not in NOT_SHIFTED])
def test_a_context_shift_rotates_the_inserted_keys_too(form: str, tmp_path: Path) -> None:
    """With one layer no key depends on another token, so what is left is as if it had been fed without the rest."""
    model_type, changes = FORMS[form]
    model = toy(model_type, num_hidden_layers=1, **changes)
    base = write_toy(tmp_path / "base.gguf", model)
    otter = widen(model)
    sidecar = write_widened(tmp_path, otter, base)
    tokens, logits = random_tokens(60), []
    for context in (open_base(base), open_otter(base, sidecar, otter.insertion)):
        feed(context, tokens[:40])
        assert context.sequence_remove(0, 5, 15)
        context.sequence_shift(0, 15, 40, -10)
        feed(context, tokens[40:], 30)
        logits.append(context.logits().copy())
    assert np.array_equal(logits[0], logits[1])
    left = np.concatenate([tokens[:5], tokens[15:]])
    _, expected = feed_chunks(open_otter(base, sidecar, otter.insertion), left, 50)
    _, of_all = feed_chunks(open_otter(base, sidecar, otter.insertion), tokens, 60)
    assert np.abs(context.rewards() - expected[30:]).max() <= TOLERANCE
    assert np.abs(context.rewards() - of_all[40:]).max() > 1e-3


def test_learned_positions_are_neither_shifted_nor_exceeded(tmp_path: Path) -> None:
    """llama.cpp would rotate keys that no rotary embedding has made, and end the process beyond the last position."""
    made = make(tmp_path, "gpt2")
    tokens = random_tokens(20)
    for context in (open_base(made.base, n_ctx=600), open_otter(made.base, made.sidecar, made.config, n_ctx=600)):
        feed(context, tokens, 492)
        with refused(ContextFullError, "position 512", "model"):
            feed(context, tokens, 493)
        assert context.sequence_remove(0, 500)
        with refused(ConfigError, "KV cache", "type_k"):
            context.sequence_shift(0, 495, 500, -10)


@pytest.mark.parametrize("model_type", WINDOWED)
def test_a_context_shift_rotates_the_inserted_keys_within_a_window(model_type: str, tmp_path: Path) -> None:
    """Keys of the first layer depend on no other token. h' is changed there alone, so that but for the size, which its
    norm takes from h, it is as if it had been fed without the rest."""
    model = toy(model_type)
    base = write_toy(tmp_path / "base.gguf", model)
    layers = model.config.num_hidden_layers
    otter = widen(model, n_head_kv=(1,) + (0,) * (layers - 1), n_ff=(0,) * layers)
    sidecar = write_widened(tmp_path, otter, base)
    tokens, logits = random_tokens(60), []
    for context in (open_base(base), open_otter(base, sidecar, otter.insertion, hidden_states=True)):
        feed(context, tokens[:40])
        assert context.sequence_remove(0, 5, 35)
        context.sequence_shift(0, 35, 40, -30)
        feed(context, tokens[40:], 10)
        logits.append(context.logits().copy())
    assert np.array_equal(logits[0], logits[1])
    found = _directions(context.hidden_states()[1])
    left = np.concatenate([tokens[:5], tokens[35:]])
    for text, at, same in ((left, 10, True), (tokens, 40, False)):
        context = open_otter(base, sidecar, otter.insertion, hidden_states=True)
        feed(context, text)
        difference = np.abs(_directions(context.hidden_states()[1][at:]) - found).max()
        assert (difference <= TOLERANCE) == same, difference


def _directions(rows: Float32) -> Float32:
    return cast(Float32, rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("model_type", WINDOWED)
def test_a_shift_is_refused_where_every_layer_has_a_window(model_type: str, tmp_path: Path) -> None:
    """llama.cpp would abort."""
    model = toy(model_type, num_hidden_layers=1)
    base = write_toy(tmp_path / "base.gguf", model)
    sidecar = write_widened(tmp_path, otter := widen(model), base)
    for context in (open_base(base), open_otter(base, sidecar, otter.insertion)):
        feed(context, random_tokens(20))
        assert not context.can_shift
        assert context.sequence_remove(0, 5, 15)
        with refused(ConfigError, "KV cache", "type_k"):
            context.sequence_shift(0, 15, 20, -10)


@pytest.mark.parametrize("model_type", WINDOWED)
def test_logits_are_identical_when_the_window_has_moved_on(model_type: str, tmp_path: Path) -> None:
    """Behind a saved sequence, which holds no more than the window of such layers, and where others have been."""
    made = make(tmp_path, model_type)
    tokens, found = random_tokens(160), []
    for context in (open_base(made.base, n_ctx=256), open_otter(made.base, made.sidecar, made.config, n_ctx=256)):
        feed(context, tokens[:80])
        logits = [context.logits().copy()]
        saved = context.state()
        feed(context, tokens[80:110], 80)
        logits.append(context.logits().copy())
        context.load_state(saved, 1)
        feed(context, tokens[80:110], 80, sequences=1)
        logits.append(context.logits().copy())
        assert context.sequence_remove(0)
        feed(context, tokens[60:160])
        logits.append(context.logits().copy())
        found.append(np.concatenate(logits))
    assert np.array_equal(found[0], found[1])
    assert np.abs(found[0][80:110] - found[0][110:140]).max() <= 1e-3  # the window was all that was needed


@pytest.mark.parametrize("model_type", WINDOWED)
def test_a_text_is_not_cut_where_the_window_is_gone(model_type: str, tmp_path: Path) -> None:
    """A saved sequence holds the last window. Going on before it, llama.cpp would attend to less without a word."""
    made, tokens = make(tmp_path, model_type), random_tokens(80)
    for context in (open_base(made.base), open_otter(made.base, made.sidecar, made.config)):
        feed(context, tokens)
        context.load_state(context.state(), 1)
        assert not context.sequence_remove(1, 75)
        assert context.sequence_max_position(1) == 79
        assert context.sequence_remove(0, 40)  # nothing of it is gone
        assert context.sequence_remove(1, 70, 75)  # it goes on at its end
        assert context.sequence_remove(1)


@pytest.mark.slow
@every_form
def test_the_toys_are_what_llama_cpps_converter_makes(
    model_type: str, form: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toys are written by the tests; this is the proof that their names, order of rows and keys are right."""
    model = toy(model_type, **form)
    model.save_pretrained(tmp_path / "hf")
    write_tokenizer(tmp_path / "hf", model_type)
    if model_type in BYTE_LEVEL:
        convert_with_any_tokenizer(tmp_path, monkeypatch)
    convert_base(tmp_path / "hf", tmp_path / "converted.gguf", outtype="f32")
    tokens = random_tokens(40)
    found = base_logits(open_base(tmp_path / "converted.gguf"), tokens, 40)
    assert np.array_equal(found, base_logits(open_base(write_toy(tmp_path / "toy.gguf", model)), tokens, 40))
    with BaseFiles.open(tmp_path / "converted.gguf") as files:
        _native.check_base(files.metadata_file)
        assert base_geometry(files) == geometry(model)


@every_architecture
def test_other_base_weights_change_logits(model_type: str, tmp_path: Path) -> None:
    """The comparison can fail."""
    first, second = (write_toy(tmp_path / f"{seed}.gguf", toy(model_type, seed)) for seed in (0, 1))
    tokens = random_tokens(20)
    assert not np.array_equal(base_logits(open_base(first), tokens, 20), base_logits(open_base(second), tokens, 20))


@every_form
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_rewards_agree_with_torch(model_type: str, form: dict[str, Any], placement: str, tmp_path: Path) -> None:
    """Many tokens at once, and the fused nodes for a few."""
    made = make(tmp_path, model_type, model=toy(model_type, **form), **PLACEMENTS[placement])
    tokens = random_tokens(100, seed=3)
    activate_as_ggml(made.torch)
    expected_logits, expected = in_torch(made.torch, tokens)
    for size in (100, 3):
        logits, rewards = feed_chunks(open_otter(made.base, made.sidecar, made.config), tokens, size)
        assert_close(made, rewards, expected, assert_close(made, logits, expected_logits))
    scores = open_otter(made.base, made.sidecar, made.config, n_ubatch=64).score(tokens)
    assert_close(made, scores, expected, np.abs(logits - expected_logits).max())
    assert expected.std(axis=0).min() > 1e-2  # the rewards say something


@pytest.mark.parametrize(("model_type", "form"), VARIANTS)
def test_another_form_of_it(model_type: str, form: dict[str, Any], tmp_path: Path) -> None:
    """Logits are identical, rewards those of torch, and logits are others than those of the usual form."""
    made = make(tmp_path, model_type, model=toy(model_type, **form))
    tokens = random_tokens(50, seed=3)
    activate_as_ggml(made.torch)
    expected_logits, expected = in_torch(made.torch, tokens)
    plain = base_logits(open_base(made.base), tokens, 50)
    for size in (50, 3):
        logits, rewards = feed_chunks(open_otter(made.base, made.sidecar, made.config), tokens, size)
        assert size < 50 or np.array_equal(plain.view(np.uint32), logits.view(np.uint32))
        assert_close(made, rewards, expected, assert_close(made, logits, expected_logits))
    assert np.abs(in_torch(widen(toy(model_type)), tokens)[0] - logits).max() > 1e-2


def test_rewards_agree_with_torchs_own_gelu_as_well_as_logits_do(tmp_path: Path) -> None:
    """ggml looks GELU up in a table of 16-bit numbers, for the base and for what is inserted."""
    made = make(tmp_path, "gemma")
    tokens = random_tokens(100, seed=3)
    expected_logits, expected = in_torch(made.torch, tokens)
    for size in (100, 3):
        logits, rewards = feed_chunks(open_otter(made.base, made.sidecar, made.config), tokens, size)
        difference = np.abs(logits - expected_logits).max()
        assert TOLERANCE < difference < 1e-2
        assert np.abs(rewards - expected).max() <= 2 * difference


def test_long_and_short_rotary_factors(tmp_path: Path) -> None:
    """llama.cpp takes the long ones where the context has room for long texts, torch where the text is long."""
    made = make(tmp_path, "phi3", model=toy("phi3", **long_rope()))
    tokens = random_tokens(LONG_TEXT + 20)
    for n_tokens, n_ctx in ((40, LONG_TEXT), (LONG_TEXT + 20, 2 * LONG_TEXT)):
        text = tokens[:n_tokens]
        logits, rewards = feed_chunks(open_otter(made.base, made.sidecar, made.config, n_ctx=n_ctx), text, n_tokens)
        assert np.array_equal(logits, base_logits(open_base(made.base, n_ctx=n_ctx), text, n_tokens))
        expected_logits, expected = in_torch(made.torch, text)
        assert np.abs(logits - expected_logits).max() <= TOLERANCE
        assert np.abs(rewards - expected).max() <= TOLERANCE
    assert np.abs(rewards[:40] - in_torch(made.torch, tokens[:40])[1]).max() > 1e-3


@pytest.mark.parametrize("special", SPECIAL_PARTS)
def test_the_special_part_matters(special: str, tmp_path: Path) -> None:
    """The negative twin: without what the architecture is special for, rewards are others."""
    model_type = special.split()[0]
    made = make(tmp_path, model_type)
    activate_as_ggml(made.torch)
    tokens = random_tokens(50)
    _, rewards = feed_chunks(open_otter(made.base, made.sidecar, made.config), tokens, 50)
    changed = toy(model_type)
    SPECIAL_PARTS[special](changed)
    assert np.abs(in_torch(widen(changed), tokens)[1] - rewards).max() > 1e-3
    assert_close(made, rewards, in_torch(made.torch, tokens)[1])


@every_form
def test_copy_initialisation_keeps_the_copied_channels(model_type: str, form: dict[str, Any], tmp_path: Path) -> None:
    """Where there are experts the first is copied, so this holds if it is the only one and copied whole."""
    model, sizes = toy(model_type, **form), dict[str, Any]()
    if geometry(model).n_expert:
        model = toy(model_type, num_experts=1, num_experts_per_tok=1)
        sizes["n_ff"] = geometry(model).n_ff
    made = make(tmp_path, model_type, init="copy", model=model, state_offset=7, **sizes)
    context = open_otter(made.base, made.sidecar, made.config, hidden_states=True)
    feed(context, random_tokens(60))
    h, h_inserted = context.hidden_states()
    assert np.abs(h_inserted - h[:, 7:39]).max() <= TOLERANCE
    assert np.abs(h_inserted - h[:, 6:38]).max() > 0.1


@every_architecture
def test_a_base_of_the_same_sizes_is_refused(model_type: str, tmp_path: Path) -> None:
    made = make(tmp_path, model_type)
    assert check_files(made.base, made.sidecar).insertion == made.config
    other = write_toy(tmp_path / "other.gguf", toy(model_type, seed=1))
    with refused(MismatchError, made.sidecar, other, "fingerprint", "weights"):
        check_files(other, made.sidecar)


def test_a_base_of_another_architecture_is_refused(tmp_path: Path) -> None:
    made = make(tmp_path, "qwen3")
    other = write_toy(tmp_path / "other.gguf", toy("llama", head_dim=32))
    with refused(MismatchError, made.sidecar, other, "architecture", "llama", "qwen3", "fingerprint"):
        check_files(other, made.sidecar)


@pytest.mark.parametrize(
    ("model_type", "missing"),
    [
        ("falcon", "blk.1.attn_norm.bias"),
        ("gpt2", "position_embd.weight"),
        ("gpt_neox", "blk.0.attn_norm.bias"),
        ("gpt_neox", "blk.1.ffn_down.bias"),
        ("gemma2", "blk.1.post_ffw_norm.weight"),
        ("gemma3_text", "blk.2.attn_k_norm.weight"),
        ("granite", "blk.1.ffn_gate.weight"),
        ("mixtral", "blk.1.ffn_down_exps.weight"),
        ("phi3", "blk.0.ffn_up.weight"),
        ("olmo2", "blk.1.post_attention_norm.weight"),
        ("qwen2", "blk.0.attn_output.weight"),
        ("qwen3", "blk.1.attn_q_norm.weight"),
        ("qwen3_moe", "blk.0.ffn_gate_inp.weight"),
        ("smollm3", "blk.3.attn_k.weight"),
        ("stablelm", "blk.1.attn_norm.bias"),
        ("starcoder2", "blk.0.ffn_up.bias"),
    ],
)
def test_a_base_without_one_of_its_tensors_is_refused(model_type: str, missing: str, tmp_path: Path) -> None:
    whole = write_toy(tmp_path / "whole.gguf", toy(model_type))
    damaged = rewrite(whole, tmp_path / "damaged.gguf", tensors={missing: None})
    with _native.GgufFile(str(whole)) as file:
        _native.check_base(file)
    with _native.GgufFile(str(damaged)) as file, refused(FileError, damaged, find(model_type).gguf, missing):
        _native.check_base(file)


@pytest.mark.parametrize(
    ("model_type", "key", "value", "names"),
    [
        ("qwen3_moe", "qwen3moe.expert_feed_forward_length", None, ("u32",)),
        ("phi3", "phi3.rope.dimension_count", 7, (7, 16)),
        ("qwen3", "qwen3.rope.dimension_count", 16, (16, 32)),
    ],
)
def test_a_size_that_the_graph_does_not_take_is_refused(
    model_type: str, key: str, value: int | None, names: tuple[object, ...], tmp_path: Path
) -> None:
    entry = None if value is None else KeyValue(key, "u32", value)
    damaged = rewrite(
        write_toy(tmp_path / "whole.gguf", toy(model_type)), tmp_path / "damaged.gguf", metadata={key: entry}
    )
    with _native.GgufFile(str(damaged)) as file, refused(FileError, damaged, key, *names):
        _native.check_base(file)


def test_granite_needs_its_logit_scale(tmp_path: Path) -> None:
    whole = write_toy(tmp_path / "whole.gguf", toy("granite"))
    key = KeyValue("granite.logit_scale", "f32", 0.0)
    for number, entry in enumerate((key, None)):
        damaged = rewrite(whole, tmp_path / f"{number}.gguf", metadata={key.key: entry})
        with _native.GgufFile(str(damaged)) as file, refused(FileError, damaged, key.key):
            _native.check_base(file)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({f"blk.1.ffn_norm.{kind}": None for kind in ("weight", "bias")}, ("attention", "FFN")),
        (
            {f"blk.1.attn_{x}_norm.weight": float_tensor(f"blk.1.attn_{x}_norm.weight", np.ones((n, 16), np.float32))
             for x, n in (("q", 4), ("k", 2))},
            ("query head",),
        ),
    ],
)  # fmt: skip
def test_the_forms_of_stablelm_2_12b_are_bases_but_hold_no_insertion(
    change: dict[str, Any], names: tuple[str, ...], tmp_path: Path
) -> None:
    made = make(tmp_path, "stablelm")
    other = rewrite(made.base, tmp_path / "other.gguf", tensors=change)
    with _native.GgufFile(str(other)) as file:
        _native.check_base(file)
    first, second = (base_logits(open_base(path), random_tokens(10), 10) for path in (made.base, other))
    assert not np.array_equal(first, second)
    with refused(UnsupportedError, "StableLM 2 12B", *names):
        open_otter(other, made.sidecar, made.config)


@pytest.mark.parametrize(("form", "n_kv"), [("falcon", 1), ("falcon 40B", 2)])
def test_other_forms_of_falcon_are_bases_but_hold_no_insertion(form: str, n_kv: int, tmp_path: Path) -> None:
    """Falcon2 11B has one norm and several KV heads."""
    model_type, changes = FORMS[form]
    made = make(tmp_path, model_type, model=toy(model_type, **changes))
    norm: dict[str, Any] = {f"blk.1.attn_norm_2.{kind}": None for kind in ("weight", "bias")}
    if n_kv == 1:
        norm = {name: float_tensor(name, np.ones(64, np.float32)) for name in norm}
    other = rewrite(made.base, tmp_path / "other.gguf", tensors=norm)
    with _native.GgufFile(str(other)) as file:
        _native.check_base(file)
    assert len(base_logits(open_base(other), random_tokens(10), 10)) == 10
    with refused(UnsupportedError, "Falcon2 11B", "KV heads"):
        open_otter(other, made.sidecar, made.config)


def test_a_falcon_with_biases_is_refused(tmp_path: Path) -> None:
    """llama.cpp's graph has no place for them."""
    whole, name = write_toy(tmp_path / "whole.gguf", toy("falcon")), "blk.0.attn_qkv.bias"
    other = rewrite(whole, tmp_path / "other.gguf", tensors={name: float_tensor(name, np.ones(96, np.float32))})
    with _native.GgufFile(str(other)) as file, refused(FileError, other, "falcon", name):
        _native.check_base(file)


@pytest.mark.parametrize(
    ("model_type", "key", "names", "error"),
    [
        ("gemma2", KeyValue("gemma2.attention.sliding_window", "u32", 0), (0,), FileError),
        ("gemma2", KeyValue("gemma2.attention.sliding_window", "u32", 2**22 + 1), (2**22 + 1, 2**22), FileError),
        ("gemma2", KeyValue("gemma2.attn_logit_softcapping", "f32", 0.0), (0,), FileError),
        ("gemma2", KeyValue("gemma2.attention.sliding_window_pattern", "arr[u32]", [1]), ("arr[u32]", 2), FileError),
        ("gemma3_text", KeyValue("gemma3.attention.key_length_swa", "u32", 32), (32, 64), UnsupportedError),
        ("olmo2", KeyValue("olmo2.attention.sliding_window", "u32", 8), (8,), UnsupportedError),
    ],
)
def test_keys_of_other_graphs_are_refused(
    model_type: str, key: KeyValue, names: tuple[object, ...], error: type[Exception], tmp_path: Path
) -> None:
    whole = write_toy(tmp_path / "whole.gguf", toy(model_type))
    damaged = rewrite(whole, tmp_path / "damaged.gguf", metadata={key.key: key})
    with _native.GgufFile(str(whole)) as file:
        _native.check_base(file)
    with _native.GgufFile(str(damaged)) as file, refused(error, damaged, key.key, *names):
        _native.check_base(file)


def test_the_widest_window_runs(tmp_path: Path) -> None:
    """llama.cpp takes memory for it at each decode: 16 MB here, and more than there is for a window of 2^31 - 1."""
    widest = KeyValue("gemma2.attention.sliding_window", "u32", 2**22)
    whole = write_toy(tmp_path / "whole.gguf", toy("gemma2"))
    base = rewrite(whole, tmp_path / "widest.gguf", metadata={widest.key: widest})
    context = open_base(base)
    feed(context, random_tokens(8))
    assert np.isfinite(context.logits()).all()


def test_an_unsupported_architecture_is_named(tmp_path: Path) -> None:
    """A model that llama.cpp runs and nobody has described here."""
    made = make(tmp_path, "llama")
    renamed = {
        entry.key: entry
        for key, type, value in _entries(made.base)
        if (entry := KeyValue(key.replace("llama.", "grok.", 1), type, value if value != "llama" else "grok"))
    }
    other = rewrite(made.base, tmp_path / "other.gguf", metadata=renamed)
    with refused(UnsupportedError, "grok", "--architectures"):
        open_otter(other, made.sidecar, made.config)


def _entries(path: Path) -> list[tuple[str, str, Any]]:
    with _native.GgufFile(str(path)) as file:
        return [(key, file.key_type(key), file.value(key)) for key in file.keys if not key.startswith("tokenizer.")]
