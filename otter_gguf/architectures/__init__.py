"""Architectures that can be widened, one file each; the file's name is the Hugging Face ``model_type``.

Training and converters read the same description, so nothing here imports torch. A new architecture is a new file here
that defines ``ARCHITECTURE``, a row in ``csrc/architectures.h`` (``docs/add-an-architecture.md`` is the walk-through),
and a toy model in ``tests/architecture_toys.py``, which every test of architectures then runs.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..config import BaseGeometry
from ..errors import UnsupportedError


@dataclass(frozen=True)
class SubLayer:
    """One residual sub-layer, by module paths relative to its layer: norm, maps into it, the map back."""

    norm: str
    """The norm whose output the input maps read; empty where they read the state as it is.

    Attention and FFN may read the same one, beside each other. What is inserted has one for both then."""
    inputs: tuple[str, ...]
    """Linear maps that read the normed state: queries, keys, values; gate, up, or up alone.

    One path in several places is a fused map, whose rows are those parts in that order."""
    output: str
    """Linear map whose output is added to the residual."""
    activation: str = ""
    """Module of the element-wise function between them, if there is one."""
    input_bias: bool = False
    """Whether the input maps have biases; those stay with the base's rows, inserted rows have none."""
    output_bias: bool = False
    """Whether the output map has a bias; inserted rows have one then."""
    by_head: bool = False
    """Whether the rows of a fused map stand head by head: queries, key and value of one KV head, then of the next."""
    head_norms: tuple[str, ...] = ()
    """Norms of queries and of keys, over the channels of each head by itself, if there are any."""
    joint_head_norms: bool = False
    """Whether these have one statistic for all heads, and a weight for each channel of each head."""
    heads_dim: int = -2
    """Dimension of the heads in what norms of each head by itself read."""
    post_norm: str = ""
    """The norm of the output before it is added to the residual, if there is one."""
    experts: str = ""
    """Module of a mixture of experts. Then ``inputs`` and ``output`` are no modules of the base: the inserted maps
    stand beside the experts, as children of that module."""
    split_sizes: tuple[str, ...] = ()
    """Attributes of the attention module by which its code cuts the outputs of its maps: numbers of heads, or of their
    channels."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Every module with weights."""
        return tuple(filter(None, (self.norm, *self.inputs, *self.head_norms, self.output, self.post_norm)))


ATTENTION = SubLayer(
    norm="input_layernorm",
    inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
)
FFN = SubLayer(
    norm="post_attention_layernorm",
    inputs=("mlp.gate_proj", "mlp.up_proj"),
    output="mlp.down_proj",
    activation="mlp.act_fn",
)
EXPERTS = SubLayer(
    norm="post_attention_layernorm",
    inputs=("mlp.gate_proj", "mlp.up_proj"),
    output="mlp.down_proj",
    experts="mlp",
)
NOT_WIDENED_EXPERTS = "what is inserted into its FFN stands beside the experts"


_ROPE_THETA = 10000.0
"""llama.cpp's base of rotary frequencies for files that do not say it."""


def _n_head_kv(config: Any) -> int:
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def same_config(_config: Any) -> str | None:
    """Nothing in a configuration of the architecture is refused."""
    return None


def one_form(_base: BaseGeometry) -> dict[str, Any]:
    """The architecture's modules are the same for all sizes."""
    return {}


def widened_config(base: BaseGeometry, width: int, n_head_kv: int, n_ff: int) -> dict[str, Any]:
    """The sizes of a widened checkpoint, where ``head_dim`` says the head size."""
    return {
        "hidden_size": base.n_embd + width,
        "num_attention_heads": base.n_head + base.group * n_head_kv,
        "num_key_value_heads": base.n_head_kv + n_head_kv,
        "head_dim": base.head_dim,
        "intermediate_size": base.n_ff + n_ff,
        "tie_word_embeddings": False,
    }


@dataclass(frozen=True)
class Architecture:
    """What GGUF and llama.cpp make of a Hugging Face model, and where its widened modules stand.

    The defaults are Llama's modules, which most architectures share.
    """

    gguf: str
    """llama.cpp's name of it, ``general.architecture``; several model types may share one."""
    model_class: str
    """Class name of the Hugging Face model with the language-model head."""
    interleaved_rope: bool
    """Whether query and key rows are permuted in a GGUF, as llama.cpp rotates neighbouring channels and transformers
    channels that are half a head apart."""
    notes: str
    """What is special about it, and what of it is refused, in a few words for people."""
    known_as: str = ""
    """The models that people have of it, by their names; "" = as the class is called."""
    refusal: Callable[[Any], str | None] = same_config
    """Why llama.cpp would compute something else than transformers for a Hugging Face configuration, if it would."""
    form: Callable[[BaseGeometry], dict[str, Any]] = one_form
    """Fields of this description that are others for a base of certain sizes."""
    widened_config: Callable[[BaseGeometry, int, int, int], dict[str, Any]] = widened_config
    """Configuration fields of a widened checkpoint, from (base, inserted width, KV heads, inner size).

    ``ConfigError`` for sizes that transformers refuses."""
    decoder: str = "model"
    """The module that maps tokens to final normed states."""
    embedding: str = "model.embed_tokens"
    positions: str = ""
    """The embedding of positions that is added to that of tokens, if there is one."""
    layers: str = "model.layers"
    attention: SubLayer = ATTENTION
    attention_module: str = "self_attn"
    """The module that calls transformers' attention function, by its path in a layer."""
    own_attention: bool = False
    """Whether that module has code of its own instead of such a function. Then the inserted heads stand beside it as a
    whole, and their maps become its children."""
    ffn: SubLayer = FFN
    norm: str = "model.norm"
    """The final norm."""
    lm_head: str = "lm_head"
    norm_epsilon: str = "variance_epsilon"
    """Attribute of a norm module that holds its epsilon."""
    layer_norm: bool = False
    """Whether norms are LayerNorm with biases instead of RMSNorm."""
    norm_offset: float = 0.0
    """What the base's norms add to their weights. Inserted weights and those of a GGUF are the sums."""
    n_head_kv: Callable[[Any], int] = _n_head_kv
    """KV heads from a configuration."""
    n_ff: str = "intermediate_size"
    """Field of the configuration that says the FFN's inner size, four times the width where it says nothing; of one
    expert in a mixture of experts."""
    n_expert: str = ""
    """Field of the configuration that says how many experts an FFN has, if it has them."""
    hidden_act: str = "hidden_act"
    """Field of the configuration that names the FFN's activation."""
    activations: tuple[str, ...] = ("silu",)
    """Each ``hidden_act`` that is what llama.cpp takes for granted, up to rounding or a known approximation."""
    attention_functions: tuple[str, ...] = ()
    """transformers' attention functions that compute all of its attention; empty: every one does."""
    lost_in_gguf: str = ""
    """What transformers computes otherwise when it reads a GGUF of it, if there is something."""
    not_widened: str = ""
    """Why there is no plainly widened checkpoint of it, if there is none."""

    @property
    def one_norm(self) -> bool:
        """Whether attention and FFN read the same norm."""
        return bool(self.attention.norm) and self.attention.norm == self.ffn.norm

    @property
    def traits(self) -> frozenset[str]:
        """How its layers differ from Llama's, each by the name of that feature in ``csrc/architectures.h``."""
        attention, ffn = self.attention, self.ffn
        has = {
            "all_biases": attention.input_bias and attention.output_bias and ffn.input_bias and ffn.output_bias,
            "experts": ffn.experts,
            "fused_gate": len(set(ffn.inputs)) < len(ffn.inputs),
            "gelu_ffn": self.activations != ("silu",),
            "head_norms": attention.head_norms,
            "joint_head_norms": attention.joint_head_norms,
            "layer_norm": self.layer_norm,
            "no_pre_norms": not (attention.norm or ffn.norm),
            "one_norm": self.one_norm,
            "positions": self.positions,
            "post_norm": attention.post_norm and ffn.post_norm,
            "ungated": len(ffn.inputs) == 1,
        }
        return frozenset(trait for trait, present in has.items() if present)

    def of_form(self, base: BaseGeometry) -> Architecture:
        """The description of a base of these sizes."""
        return replace(self, **self.form(base))

    @property
    def title(self) -> str:
        """What people call it."""
        return self.known_as or self.model_class.removesuffix("ForCausalLM")

    @property
    def tested(self) -> str:
        """What ``tests/native/test_architectures.py`` and ``tests/training`` prove of it, in a few words."""
        # ggml looks every function but SiLU up in a table of 16-bit numbers: logits and rewards are both off by that
        precision = "1e-4" if self.activations == ("silu",) else "twice the difference of the logits"
        widened = () if self.not_widened else ("widened checkpoints",)
        return "; ".join(("logits bit for bit", f"rewards as in torch, to {precision}", *widened))

    @property
    def gguf_modules(self) -> dict[str, str]:
        """llama.cpp's name of each module of a layer."""
        attention, ffn = self.attention, self.ffn
        names = {
            attention.norm: "attn_norm",
            **dict(zip(attention.inputs, ("attn_q", "attn_k", "attn_v"), strict=True)),
            **dict(zip(attention.head_norms, ("attn_q_norm", "attn_k_norm"), strict=False)),
            attention.output: "attn_output",
            attention.post_norm: "post_attention_norm",
            ffn.norm: "ffn_norm",
            **dict(zip(ffn.inputs, ("ffn_gate", "ffn_up"), strict=True)),
            ffn.output: "ffn_down",
            ffn.post_norm: "post_ffw_norm",
        }
        return {module: name for module, name in names.items() if module}

    def geometry(self, config: Any) -> BaseGeometry:
        """Sizes from a Hugging Face configuration.

        Raises:
            UnsupportedError: llama.cpp would run a model of this configuration otherwise than transformers.
        """
        reason = self.refusal(config)
        activation = getattr(config, self.hidden_act)
        if activation not in self.activations:
            reason = f"{self.hidden_act} is {activation}, expected {' or '.join(self.activations)}"
        if reason:
            raise UnsupportedError(f"a {self.model_class} that llama.cpp cannot run: {reason}")
        return BaseGeometry(
            architecture=self.gguf,
            n_layer=config.num_hidden_layers,
            n_embd=config.hidden_size,
            n_head=config.num_attention_heads,
            n_head_kv=self.n_head_kv(config),
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            n_ff=getattr(config, self.n_ff) or 4 * config.hidden_size,
            n_vocab=config.vocab_size,
            n_expert=getattr(config, self.n_expert) if self.n_expert else 0,
        )


def unwritten_rope(config: Any) -> str | None:
    """The reason to refuse a rotary embedding whose frequencies llama.cpp's converter does not write."""
    rope = config.rope_parameters
    if rope["rope_type"] != "default" or rope["rope_theta"] != _ROPE_THETA:
        return (
            f"its rotary embedding is {rope}, and llama.cpp's converter keeps a plain one of base {_ROPE_THETA:g} only"
        )
    return None


def other_windows(config: Any, period: int) -> str | None:
    """The reason to refuse other layers with a window than all but each ``period``-th; llama.cpp knows no others."""
    expected = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(config.num_hidden_layers)]
    if list(config.layer_types) != expected or not config.sliding_window:
        return f"other layers attend within a window than all but each {period}. one"
    return None


def sliding_window(config: Any) -> str | None:
    """The reason to refuse a configuration where some layers see a window of the text only."""
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return "some of its layers attend within a sliding window; set use_sliding_window to false"
    return None


def supported() -> tuple[str, ...]:
    """Every ``model_type`` that has a file here."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def describe(model_type: str) -> Architecture:
    """The architecture of a ``model_type`` that is supported."""
    architecture: Architecture = importlib.import_module(f"{__name__}.{model_type}").ARCHITECTURE
    return architecture


def find(model_type: str, model_class: str | None = None) -> Architecture:
    """The architecture of a Hugging Face ``model_type``.

    Raises:
        UnsupportedError: no file for ``model_type``, or another class of model than the language model.
    """
    if not re.fullmatch(r"[a-z0-9_]+", model_type) or model_type not in supported():
        raise UnsupportedError(f"model type {model_type!r} is not supported; supported: {', '.join(supported())}")
    architecture = describe(model_type)
    if model_class is not None and model_class != architecture.model_class:
        raise UnsupportedError(f"a {model_class} cannot be widened; load it as {architecture.model_class}")
    return architecture


def table() -> list[dict[str, str]]:
    """Of all that is supported ``model_type``, ``title``, ``model_class``, ``gguf``, ``tested`` and ``notes``."""
    return [
        {
            "model_type": model_type,
            "title": architecture.title,
            "model_class": architecture.model_class,
            "gguf": architecture.gguf,
            "tested": architecture.tested,
            "notes": architecture.notes,
        }
        for model_type, architecture in ((model_type, describe(model_type)) for model_type in supported())
    ]


def of_gguf(name: str) -> tuple[Architecture, ...]:
    """Every architecture that is ``name`` in a GGUF; all of them have the same tensors there.

    Raises:
        UnsupportedError: there is none.
    """
    known = [describe(model_type) for model_type in supported()]
    found = tuple(architecture for architecture in known if architecture.gguf == name)
    if not found:
        names = ", ".join(sorted({architecture.gguf for architecture in known}))
        raise UnsupportedError(f"architecture {name!r} cannot be converted, only: {names}")
    return found


def of_base(base: BaseGeometry) -> Architecture:
    """The architecture of a base, as far as a GGUF tells it: of several model types one.

    ``UnsupportedError`` as from :func:`of_gguf`.
    """
    return of_gguf(base.architecture)[0].of_form(base)
