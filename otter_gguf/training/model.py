"""OtterModel: a Hugging Face language model with an insertion, as ``PeftModel`` is one with an adapter."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..adapter_format import CONFIG_NAME, INFIX, TENSORS_NAME, AdapterRecord
from ..architectures import Architecture
from ..config import HeadConfig, InsertionConfig
from ..errors import ConfigError, MismatchError, UnsupportedError
from ..gguf.sidecar import geometry_differences
from .attention import set_split_sizes, split_heads
from .base import architecture_of, geometry, load_base
from .checkpoint import adapter_folder, check_overwrite, load_tensors, write_tensors
from .fingerprint import base_fingerprint, check_fingerprint
from .layout import Widening, layout
from .modules import (
    Beside,
    FusedLinear,
    Head,
    Narrow,
    Padded,
    SlicedEmbedding,
    TableEmbedding,
    ValueHead,
    Widened,
    WidenedActivation,
    WidenedExperts,
    WidenedHeadNorm,
    WidenedLayerNorm,
    WidenedLinear,
    WidenedRMSNorm,
)
from .own_attention import WidenedAttention
from .peft_base import adapter_record, check_adapters, unwrap
from .renamed import CACHE, CHECKPOINTING
from .vocabulary import VocabularyHead

if TYPE_CHECKING:
    from transformers import Cache

_BASE_PREFIX = "base_model."


@dataclass
class OtterOutput(CausalLMOutputWithPast):
    """``CausalLMOutputWithPast`` and rewards. ``hidden_states`` are the widened states [h, h']."""

    cache: Cache | None = None
    """The KV cache, under the name that transformers 5.24 gave it, whichever version is installed."""
    rewards: Tensor | None = None
    """(batch, tokens, n_rewards): calibrated, one column for each of ``InsertionConfig.reward_labels``."""
    raw_rewards: Tensor | None = None
    """(batch, tokens, n_rewards): before activation and calibration."""
    queries: dict[str, Tensor] | None = None
    """(batch, tokens, rows) of each head that gives no reward; :meth:`VocabularyHead.scores` makes scores of them."""
    final_state: Tensor | None = None
    """(batch, tokens, d + e): what the heads read, [h, h'] after the final norm; h alone where none reads h'."""


class OtterModel(nn.Module):
    """A frozen base with inserted tensors. Made by :func:`otter_gguf.training.insert` or :meth:`from_pretrained`.

    The base's modules are replaced in place by widened ones (:mod:`.modules`); the base object given in is the one
    that is used. Only inserted tensors have gradients. The base stays in evaluation mode: no dropout.
    """

    def __init__(self, base_model: nn.Module, insertion: InsertionConfig) -> None:
        """Inserted tensors are zero; :func:`insert` and :meth:`from_pretrained` fill them.

        Raises:
            UnsupportedError: an architecture without a file, a base with a bias in a map back to the residual, or an
                attention function that leaves out a part of the base's attention.
            MismatchError: ``insertion.base`` is not this base's geometry; every differing size is listed.
            ConfigError: the base carries an insertion already.
        """
        super().__init__()
        base_model = unwrap(base_model)
        self.architecture = architecture_of(base_model)
        self.insertion = insertion
        self.layout = layout(self.architecture, insertion)
        self.training_record: dict[str, Any] = {}
        differences = geometry_differences(insertion.base, self.architecture.geometry(base_model.config))
        if differences:
            raise MismatchError(f"the insertion is made for another base: {', '.join(differences)}")
        _check_attention(base_model, self.architecture)
        if any(isinstance(module, Widened) for module in base_model.modules()):
            raise ConfigError("the base model carries an insertion already; load it anew")
        widened = {widening.path: self._widen(base_model, widening) for widening in self.layout}
        base_model.requires_grad_(False)  # from here on nothing fails, so a refused base is left as it was
        for path, module in widened.items():
            base_model.set_submodule(path, module)
        self.base_model = base_model
        for attention, n_head_kv in self._widened_attention():
            split_heads(attention, insertion.base, n_head_kv, self.architecture.attention.split_sizes)
        self._enabled = True
        like = next(base_model.parameters())
        self.heads = nn.ModuleDict({head.name: self._head(head, like) for head in insertion.heads})
        self.eval()

    def _widened_attention(self) -> Iterator[tuple[nn.Module, int]]:
        """The base's attention modules that hold inserted heads, and how many KV heads those are."""
        for i, n_head_kv in enumerate(self.insertion.n_head_kv):
            if n_head_kv and not self.architecture.own_attention:
                path = f"{self.architecture.layers}.{i}.{self.architecture.attention_module}"
                yield self.base_model.get_submodule(path), n_head_kv

    def _head(self, head: HeadConfig, like: Tensor) -> Head:
        module: type[Head] = pkgutil.resolve_name(head.of_kind.module)
        return module(head, self.insertion.base, self.insertion.head_input_size(head), like)

    def _widen(self, base_model: PreTrainedModel, widening: Widening) -> Widened | Beside:
        kind, rows = widening.kind, len(widening.rows)
        if kind == "beside":
            return Beside(rows, widening.columns, next(base_model.parameters()))
        base = base_model.get_submodule(widening.path)
        if kind == "slice":
            return SlicedEmbedding(base, widening.rows)
        if kind == "table":
            return TableEmbedding(base, rows)
        if kind == "narrow":
            return Narrow(base, widening.base_columns)
        if kind == "experts":
            return WidenedExperts(base, widening.base_columns)
        if kind == "attention":
            return WidenedAttention(base, self.insertion.base, self.architecture.attention)
        if kind == "activation":
            return WidenedActivation(base, widening.base_columns, sum(part.base for part in widening.parts))
        if kind == "heads":
            return WidenedHeadNorm(base, widening.base_columns, self.architecture.attention.heads_dim)
        if kind == "norm":
            epsilon = float(getattr(base, self.architecture.norm_epsilon))
            if self.architecture.layer_norm:
                return WidenedLayerNorm(base, rows, widening.base_columns, epsilon)
            return WidenedRMSNorm(base, rows, widening.base_columns, epsilon, self.architecture.norm_offset)
        if kind == "pad":
            return Padded(base, self.insertion.width, widening.base_columns)
        outputs = (self.architecture.attention.output, self.architecture.ffn.output)
        if widening.path.endswith(outputs) and getattr(base, "bias", None) is not None and not widening.bias:
            raise UnsupportedError(f"{widening.path} has a bias; only maps that read the state may have one")
        if kind == "fused":
            return FusedLinear(base, rows, widening.base_columns, widening.columns, widening.parts)
        return WidenedLinear(base, rows, widening.base_columns, widening.columns, widening.bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool = False,
        return_logits: bool = True,
    ) -> OtterOutput:
        """Logits of the base, unchanged, and the reward of every prefix.

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens), 0 = padding. Not needed for padding on the right.
            cache: keys and values of the tokens before these; transformers before 5.24 names it ``past_key_values``.
            logits_to_keep: as in transformers; rewards always come for every token.
            return_logits: False leaves out the output projection; ``logits`` is then ``None``.

        Returns:
            ``logits`` (batch, tokens, V), ``rewards`` (batch, tokens, n_rewards), the cache as in transformers.
        """
        arguments: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            CACHE: cache,
            "use_cache": use_cache,
            "output_hidden_states": output_hidden_states,
        }
        if not return_logits:
            decoded = self.base_model.get_submodule(self.architecture.decoder)(**arguments)
            return OtterOutput(
                **self._predictions(decoded.last_hidden_state),
                cache=getattr(decoded, CACHE),
                hidden_states=decoded.hidden_states,
            )
        # The base's own forward makes the logits, with whatever scaling its architecture adds.
        with self._final_state() as state:
            output = self.base_model(**arguments, logits_to_keep=logits_to_keep)
        return OtterOutput(
            logits=output.logits,
            **self._predictions(state[0]),
            cache=getattr(output, CACHE),
            hidden_states=output.hidden_states,
        )

    def rewards(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Rewards (batch, tokens, n_rewards) of every prefix, without the cost of the output projection."""
        output = self(input_ids, attention_mask, use_cache=False, return_logits=False)
        return cast(Tensor, output.rewards)

    @contextmanager
    def _final_state(self) -> Iterator[list[Tensor]]:
        """Collects the final normed state of a forward pass."""
        states: list[Tensor] = []
        norm = self.base_model.get_submodule(self.architecture.norm)
        handle = norm.register_forward_hook(lambda _module, _arguments, output: states.append(output))
        try:
            yield states
        finally:
            handle.remove()

    def _predictions(self, state: Tensor) -> dict[str, Any]:
        """What the heads make of the final normed state, as fields of :class:`OtterOutput`."""
        if not self._enabled:
            return {}
        heads = self.value_heads.values()
        raw = [head.raw(state) for head in heads]
        return {
            "rewards": torch.cat([head.calibrated(x) for head, x in zip(heads, raw, strict=True)], dim=-1),
            "raw_rewards": torch.cat(raw, dim=-1),
            "queries": {name: head(state) for name, head in self.other_heads.items()} or None,
            "final_state": state,
        }

    @property
    def value_heads(self) -> dict[str, ValueHead]:
        """The value heads by name, in the order of the rewards."""
        return {name: head for name, head in self.heads.items() if isinstance(head, ValueHead)}

    @property
    def other_heads(self) -> dict[str, Head]:
        """The heads that give no reward, by name."""
        return {name: cast(Head, head) for name, head in self.heads.items() if not isinstance(head, ValueHead)}

    @property
    def vocabulary_heads(self) -> dict[str, VocabularyHead]:
        """The vocabulary heads by name."""
        return {name: head for name, head in self.heads.items() if isinstance(head, VocabularyHead)}

    @contextmanager
    def disable_insertion(self) -> Iterator[None]:
        """Inside, the model is its base alone: nothing inserted is computed and ``rewards`` is ``None``."""
        before = self._enabled
        self._set_enabled(False)
        try:
            yield
        finally:
            self._set_enabled(before)

    def _set_enabled(self, enabled: bool) -> None:
        self._enabled = enabled
        for module in self.base_model.modules():
            if isinstance(module, Widened):
                module.enabled = enabled
        for attention, _ in self._widened_attention():
            set_split_sizes(attention, enabled)

    def train(self, mode: bool = True) -> OtterModel:
        """Only gradient checkpointing looks at the mode; dropout in a frozen base would be noise and nothing else."""
        super().train(mode)
        for module in self.base_model.modules():
            module.training = mode and isinstance(module, GradientCheckpointingLayer)
        return self

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """As the base model's method: recompute each layer in the backward pass instead of keeping activations."""
        getattr(self.base_model, f"{CHECKPOINTING}_enable")(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same under the name that earlier versions of transformers call it by."""
        self.activation_checkpointing_enable(**kwargs)

    def inserted_parameters(self) -> dict[str, nn.Parameter]:
        """Every inserted tensor by its name in the adapter checkpoint, in data-flow order."""
        return {
            name.removeprefix(_BASE_PREFIX): parameter for name, parameter in self.named_parameters() if INFIX in name
        }

    def print_trainable_parameters(self) -> None:
        """The line that PEFT prints, on stdout."""
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.parameters())
        share = 100 * trainable / total
        sys.stdout.write(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}\n")

    @property
    def config(self) -> Any:
        """The Hugging Face configuration of the base; the insertion's is ``insertion``."""
        return self.base_model.config

    @property
    def device(self) -> torch.device:
        return self.base_model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base_model.dtype

    @property
    def base_name(self) -> str | None:
        """Folder or Hub name that the base was loaded from; set it to what others shall find the base by."""
        return self.base_model.config._name_or_path or None

    @base_name.setter
    def base_name(self, name: str) -> None:
        self.base_model.config._name_or_path = name

    @property
    def base_revision(self) -> str | None:
        """Hub commit that the base was loaded from."""
        return getattr(self.base_model.config, "_commit_hash", None)

    def save_pretrained(self, path: str | Path, *, force: bool = False) -> None:
        """Write the adapter checkpoint: ``otter_config.json`` and ``otter_model.safetensors`` with inserted tensors.

        Raises:
            FileError: not writable.
            ConfigError: ``path`` holds an adapter with another insertion, and ``force`` is not set.
        """
        check_overwrite(Path(path), self.insertion, force=force)
        with adapter_folder(Path(path), CONFIG_NAME, TENSORS_NAME) as folder:
            self._write_adapter(folder)

    def _write_adapter(self, folder: Path, *, full: bool = False) -> None:
        """Write both files of an adapter into an empty folder."""
        binding = {
            "base_fingerprint": base_fingerprint(self.base_model, self.insertion.base),
            "base_adapters": adapter_record(self.base_model),
        }
        record = AdapterRecord(
            self.insertion, self.base_name, self.base_revision, binding, full, training=self.training_record
        )
        write_tensors(self.inserted_parameters(), folder)
        record.write(folder)

    def load_weights(self, path: str | Path) -> None:
        """Take the trained tensors from a folder that :meth:`save_pretrained` wrote for the same insertion.

        Raises:
            FileError: unreadable, values that are not finite, or tensors that do not fit (all listed).
        """
        load_tensors(self.inserted_parameters(), Path(path) / TENSORS_NAME)

    @classmethod
    def from_pretrained(
        cls, base_model: nn.Module | str | Path | None, path: str | Path, *, check_base: bool = True
    ) -> OtterModel:
        """Load an adapter checkpoint onto its base. :func:`otter_gguf.training.load` reads the other forms, too.

        Args:
            base_model: the base, or a ``PeftModel`` around it, or its folder, Hub name or GGUF file; ``None`` = the one
                that the checkpoint names.
            path: the adapter's folder.
            check_base: compare the base with the fingerprint in the checkpoint, if it has one, and its PEFT adapters
                with those that the checkpoint names.

        Raises:
            FileError: a file is missing or damaged; all missing, extra and misshapen tensors in one message.
            MismatchError: the base has other sizes, norms or PEFT adapters than the adapter's.
            UnsupportedError: another format version, or an architecture that this version does not know.
            ConfigError: the folder holds a full reward model, which has a class of its own.
        """
        path, record = Path(path), AdapterRecord.read(Path(path))
        model = cls(cls._load_base(base_model, path, record, check_base), record.insertion)
        load_tensors(model.inserted_parameters(), path / TENSORS_NAME)
        model.training_record = record.training
        return model

    @staticmethod
    def _load_base(
        base_model: nn.Module | str | Path | None, path: Path, record: AdapterRecord, check: bool
    ) -> PreTrainedModel:
        """The base that a folder's adapter is for; see :meth:`from_pretrained`."""
        if record.full:
            reason = "a full reward model with a fine-tuned base of its own"
            raise ConfigError(f"{path}: {reason}; load it with otter_gguf.training.load")
        base = unwrap(base_model) if isinstance(base_model, nn.Module) else load_base(base_model, path, record)
        # Other sizes have a message of their own, which __init__ gives.
        if check and geometry(base) == record.insertion.base:
            check_fingerprint(record.binding.get("base_fingerprint"), base, record.insertion.base, str(path))
            check_adapters(record.binding, base, str(path))
        return base


def _check_attention(model: PreTrainedModel, architecture: Architecture) -> None:
    found, known = model.config._attn_implementation, architecture.attention_functions
    if known and found not in known:
        raise UnsupportedError(
            f"{found} leaves out a part of the attention of a {architecture.model_class}; load the base with"
            f" attn_implementation={known[0]!r}"
        )
