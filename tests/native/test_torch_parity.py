"""Rewards of the GGUF against the torch model of the same tensors, for every kind of placement, head and state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from otter_gguf.converters.adapter import convert_adapter
from transformers import LlamaConfig, LlamaForCausalLM

from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.gguf.encoding import KeyValue
from otter_gguf.training import OtterModel, insert
from tests.gguf.toy_files import GEOMETRY, base_tensors, insertion, write_base
from tests.native.helpers import Float32, feed, feed_chunks, open_otter, random_tokens

HEADS = (
    HeadConfig(),
    HeadConfig("safety", ("harm", "help"), "both", "tanh", (2.0, 0.5), (0.0, -1.0)),
    HeadConfig("plain", ("x",), "base", "sigmoid"),
)
NONE = (0, 0)
PLACEMENTS: dict[str, dict[str, Any]] = {
    "everywhere": {"n_head_kv": (1, 1), "n_ff": (32, 32), "heads": HEADS},
    "own sizes": {"n_head_kv": (1, 2), "n_ff": (32, 8)},
    "attention only": {"n_head_kv": (1, 1), "n_ff": NONE},
    "ffn only": {"n_head_kv": NONE, "n_ff": (32, 32)},
    "first layer": {"n_head_kv": (1, 0), "n_ff": (16, 0)},
    "last layer": {"n_head_kv": (0, 2), "n_ff": (0, 16)},
    "odd width": {"width": 5, "state_offset": 11},
    "table": {"state_source": "table"},
    "head on a slice": {"n_head_kv": NONE, "n_ff": NONE},
    "head only": {"width": 0, "n_head_kv": NONE, "n_ff": NONE, "heads": (HeadConfig(input="base"),)},
}
TOLERANCE = 1e-4
EPSILON = 1e-5


def torch_base(epsilon: float = EPSILON) -> LlamaForCausalLM:
    """The toy base of tests/gguf/toy_files.py in torch."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=GEOMETRY.n_vocab,
            hidden_size=GEOMETRY.n_embd,
            intermediate_size=GEOMETRY.n_ff,
            num_hidden_layers=GEOMETRY.n_layer,
            num_attention_heads=GEOMETRY.n_head,
            num_key_value_heads=GEOMETRY.n_head_kv,
            head_dim=GEOMETRY.head_dim,
            rms_norm_eps=epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=False,
        )
    )
    model.load_state_dict({name: torch.from_numpy(values) for name, values in base_tensors().items()})
    model.eval()
    return model


def make(
    folder: Path, config: InsertionConfig, init: Any = "normal", epsilon: float = EPSILON
) -> tuple[OtterModel, Path, Path]:
    """The torch model, the base GGUF and the sidecar, all in F32."""
    model = insert(torch_base(epsilon), config, init, init_std=0.05)
    with torch.no_grad():  # zero biases and zero columns would hide mistakes
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and init != "copy":
                torch.manual_seed(len(name))
                parameter.add_(0.03 * torch.randn_like(parameter))
    model.save_pretrained(folder / "adapter")
    written = KeyValue("llama.attention.layer_norm_rms_epsilon", "f32", epsilon)
    write_base(folder / "base.gguf", metadata=(written,))
    with BaseFiles.open(folder / "base.gguf") as base:
        convert_adapter(folder / "adapter", folder / "toy.otter.gguf", base, outtype="f32")
    return model, folder / "base.gguf", folder / "toy.otter.gguf"


def torch_rewards(model: OtterModel, tokens: Any) -> tuple[Float32, Float32]:
    """Logits and rewards (tokens, ...) of one text."""
    with torch.no_grad():
        output = model(torch.from_numpy(np.asarray(tokens, np.int64))[None])
    return output.logits[0].numpy(), output.rewards[0].numpy()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_rewards_agree_with_torch(placement: str, tmp_path: Path) -> None:
    config = insertion(**PLACEMENTS[placement])
    model, base, sidecar = make(tmp_path, config)
    compared = 0
    for seed in range(10):
        tokens = random_tokens(100, seed=seed)
        logits, rewards = feed_chunks(open_otter(base, sidecar, config), tokens, 100)
        expected_logits, expected = torch_rewards(model, tokens)
        assert np.abs(rewards - expected).max() <= TOLERANCE
        assert np.abs(logits - expected_logits).max() <= TOLERANCE
        compared += len(rewards)
    assert compared == 1000
    assert expected.std(axis=0).min() > 1e-2  # the rewards say something


def test_other_weights_give_other_rewards(tmp_path: Path) -> None:
    """The negative twin: every inserted tensor matters."""
    config = insertion(heads=HEADS)
    model, base, sidecar = make(tmp_path, config)
    tokens = random_tokens(50)
    _, rewards = feed_chunks(open_otter(base, sidecar, config), tokens, 50)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        with torch.no_grad():
            parameter.mul_(1.5)
            _, changed = torch_rewards(model, tokens)
            parameter.div_(1.5)
        assert np.abs(changed - rewards).max() > 1e-3, name


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_chunks_agree(size: int, tmp_path: Path) -> None:
    """Fused nodes for a few tokens, matrix products for many: the same rewards."""
    config = insertion(heads=HEADS)
    model, base, sidecar = make(tmp_path, config)
    tokens = random_tokens(100)
    _, rewards = feed_chunks(open_otter(base, sidecar, config), tokens, size)
    assert np.abs(rewards - torch_rewards(model, tokens)[1]).max() <= TOLERANCE


@pytest.mark.parametrize("size", [1, 64])
def test_the_epsilon_of_the_partial_norm_is_the_bases(size: int, tmp_path: Path) -> None:
    """One so large that it matters: beside usual states 1e-5 is nothing."""
    config = insertion(heads=HEADS)
    model, base, sidecar = make(tmp_path, config, epsilon=0.5)
    tokens = random_tokens(64)
    _, rewards = feed_chunks(open_otter(base, sidecar, config), tokens, size)
    assert np.abs(rewards - torch_rewards(model, tokens)[1]).max() <= TOLERANCE
    usual, _, _ = make(tmp_path / "usual", config)
    assert np.abs(rewards - torch_rewards(usual, tokens)[1]).max() > 1e-2


def test_score_of_all_tokens_agrees(tmp_path: Path) -> None:
    config = insertion(heads=HEADS)
    model, base, sidecar = make(tmp_path, config)
    tokens = random_tokens(300)
    for n_ubatch in (512, 64):
        rewards = open_otter(base, sidecar, config, n_ubatch=n_ubatch).score(tokens)
        assert np.abs(rewards - torch_rewards(model, tokens)[1]).max() <= TOLERANCE


def test_batch_of_sequences_agrees(tmp_path: Path) -> None:
    config = insertion(heads=HEADS)
    model, base, sidecar = make(tmp_path, config)
    texts = [random_tokens(20 + 10 * i, seed=i) for i in range(4)]
    context = open_otter(base, sidecar, config)
    feed(
        context,
        np.concatenate(texts),
        sequences=[i for i, text in enumerate(texts) for _ in text],
        positions=[position for text in texts for position in range(len(text))],
    )
    expected = np.concatenate([torch_rewards(model, text)[1] for text in texts])
    assert np.abs(context.rewards() - expected).max() <= TOLERANCE


def test_copy_initialisation_keeps_the_copied_channels(tmp_path: Path) -> None:
    """h' starts as an exact copy of its channels of h; the final norm's weights are copied too."""
    config = insertion(n_head_kv=(1, 1), n_ff=(32, 32), state_offset=7, heads=(HeadConfig(),))
    _, base, sidecar = make(tmp_path, config, "copy")
    context = open_otter(base, sidecar, config, hidden_states=True)
    feed(context, random_tokens(100))
    h, h_inserted = context.hidden_states()
    assert h.shape == (100, 64)
    assert h_inserted.shape == (100, 32)
    assert np.abs(h_inserted - h[:, 7:39]).max() <= TOLERANCE
    assert np.abs(h_inserted - h[:, 6:38]).max() > 0.1


def test_what_a_16_bit_cache_adds(tmp_path: Path) -> None:
    """Documented in docs/python-api.md: the F16 cache moves rewards by its own rounding, no more."""
    config = insertion(heads=HEADS)
    model, base, sidecar = make(tmp_path, config)
    tokens = random_tokens(100)
    _, rewards = feed_chunks(open_otter(base, sidecar, config, type_k="f16", type_v="f16"), tokens, 100)
    difference = np.abs(rewards - torch_rewards(model, tokens)[1]).max()
    assert 0 < difference <= 1e-2
