"""One insertion in all its forms: torch, adapter folder, widened checkpoint, sidecar; the same logits and rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from otter_gguf.converters.widened import convert_widened
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from otter_gguf.config import HeadConfig, InsertionConfig
from otter_gguf.gguf.base import BaseFiles
from otter_gguf.training import OtterModel, export_widened, geometry, insert, load_widened
from tests.training.native_toy import (
    TOKENS,
    convert_folder,
    f32_sidecar,
    native_base,
    native_folder,
    native_logits,
    native_rewards,
    write_gguf_base,
)

D = 32
LOGITS, REWARDS = 1e-5, 1e-4
HEADS = (HeadConfig("safety", ("a", "b"), "inserted", "tanh", (2.0, 0.5), (0.5, -1.0)), HeadConfig("plain"))
VARIANTS: list[dict[str, Any]] = [{}, {"state_source": "table"}, {"n_ff": 0}, {"n_head_kv": 3, "width": 8}]


def smaller_base(**changes: Any) -> Any:
    """Logits around 1, so that 1e-5 is above the rounding of F32 and not far above."""
    return native_base(initializer_range=0.1, **changes)


def otter(base: Any = None, **changes: Any) -> OtterModel:
    base = base or smaller_base()
    sizes: dict[str, Any] = {"width": 16, "n_head_kv": 1, "n_ff": 12, "state_offset": 3, "heads": HEADS, **changes}
    return insert(base, InsertionConfig.uniform(geometry(base), **sizes), "normal", init_std=0.1)


def run(model: OtterModel) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        output = model(TOKENS)
    return output.logits, output.rewards


def run_widened(folder: Path, model: OtterModel, *, channels: int = D) -> tuple[Tensor, Tensor]:
    """transformers' Llama with one line of its norm changed; rewards by hand from h' and the stored heads."""

    def partial_norm(self: Any, x: Tensor) -> Any:
        rms = x[..., :channels].square().mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(rms + self.variance_epsilon))

    widened = LlamaForCausalLM.from_pretrained(folder).eval()
    for module in widened.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = partial_norm.__get__(module)
    with torch.no_grad():
        logits, state = widened(TOKENS).logits, widened.model(TOKENS).last_hidden_state[..., D:]
    tensors, rewards = load_file(folder / "model.safetensors"), []
    for head in model.insertion.heads:
        raw = functional.linear(
            state, tensors[f"heads.{head.name}.otter.weight"], tensors[f"heads.{head.name}.otter.bias"]
        )
        raw = torch.tanh(raw) if head.activation == "tanh" else raw
        rewards.append(raw * torch.tensor(head.scale) + torch.tensor(head.shift))
    return logits, torch.cat(rewards, dim=-1)


@pytest.mark.parametrize("changes", VARIANTS)
def test_every_form_computes_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    with torch.no_grad():
        plain = smaller_base()(TOKENS).logits
    model = otter(**changes)
    logits, rewards = run(model)
    assert torch.equal(logits, plain)
    assert rewards.std(dim=1).min() > 0.05

    model.save_pretrained(tmp_path / "adapter")
    export_widened(model, tmp_path / "widened")
    for again in (
        OtterModel.from_pretrained(smaller_base(), tmp_path / "adapter"),
        load_widened(tmp_path / "widened", smaller_base()),
    ):
        assert all(torch.equal(found, expected) for found, expected in zip(run(again), (logits, rewards), strict=True))

    found = run_widened(tmp_path / "widened", model)
    torch.testing.assert_close(found[0], plain, atol=LOGITS, rtol=0)
    torch.testing.assert_close(found[1], rewards, atol=REWARDS, rtol=0)
    whole_norm = run_widened(tmp_path / "widened", model, channels=D + model.insertion.width)
    assert (whole_norm[0] - plain).abs().max() > 1e-2

    base = write_gguf_base(tmp_path / "base.gguf", smaller_base())
    direct = f32_sidecar(tmp_path / "adapter", base, tmp_path / "a.otter.gguf")
    with BaseFiles.open(base) as files:
        convert_widened(tmp_path / "widened", tmp_path / "w.otter.gguf", files, outtype="f32")
    torch.testing.assert_close(native_logits(base), plain, atol=LOGITS, rtol=0)
    for sidecar in (direct, tmp_path / "w.otter.gguf"):
        torch.testing.assert_close(native_rewards(base, sidecar), rewards, atol=REWARDS, rtol=0)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj", "model.norm", "heads.plain"])
def test_a_changed_tensor_is_seen_in_every_form(tmp_path: Path, name: str) -> None:
    model = otter()
    _, before = run(model)
    with torch.no_grad():
        model.inserted_parameters()[f"{name}.otter.weight"].mul_(1.5)
    model.save_pretrained(tmp_path / "adapter")
    export_widened(model, tmp_path / "widened")
    base = write_gguf_base(tmp_path / "base.gguf", smaller_base())
    sidecar = f32_sidecar(tmp_path / "adapter", base, tmp_path / "a.otter.gguf")
    for rewards in (
        run(OtterModel.from_pretrained(smaller_base(), tmp_path / "adapter"))[1],
        run(load_widened(tmp_path / "widened", smaller_base()))[1],
        run_widened(tmp_path / "widened", model)[1],
        native_rewards(base, sidecar),
    ):
        assert (rewards - before).abs().max() > 100 * REWARDS


@pytest.mark.slow
def test_a_base_by_llama_cpps_converter_computes_the_same(tmp_path: Path) -> None:
    folder = native_folder(tmp_path / "base", initializer_range=0.1)
    model = otter(LlamaForCausalLM.from_pretrained(folder))
    logits, rewards = run(model)
    model.save_pretrained(tmp_path / "adapter")
    base = convert_folder(folder, tmp_path / "base.gguf")
    sidecar = f32_sidecar(tmp_path / "adapter", base, tmp_path / "a.otter.gguf")
    torch.testing.assert_close(native_logits(base), logits, atol=LOGITS, rtol=0)
    torch.testing.assert_close(native_rewards(base, sidecar), rewards, atol=REWARDS, rtol=0)
    loaded = OtterModel.from_pretrained(base, tmp_path / "adapter")
    assert all(torch.equal(found, expected) for found, expected in zip(run(loaded), (logits, rewards), strict=True))
