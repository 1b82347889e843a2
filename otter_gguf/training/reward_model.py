"""A reward of an OtterModel as the sequence classifier that TRL and transformers call a reward model."""

from __future__ import annotations

import copy
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from ..errors import ConfigError
from .model import OtterModel


class OtterRewardModel(PreTrainedModel):
    """One reward of an :class:`OtterModel`, with the interface of ``AutoModelForSequenceClassification``.

    A view: it trains the tensors of the ``OtterModel`` itself, and only what is inserted has gradients. Its ``config``
    is a copy of the base's with ``num_labels`` 1. Loaded again with :meth:`OtterModel.from_pretrained`.
    """

    base_model_prefix = "decoder"
    # What the base's own class allows has been checked when it was loaded; its attention function is the one in use.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    supports_gradient_checkpointing = True

    def __init__(self, otter: OtterModel, reward: str | None = None) -> None:
        """Raises ``ConfigError`` where ``reward`` is unknown, or missing with several rewards."""
        config = copy.deepcopy(otter.config)
        config.num_labels = 1
        super().__init__(config)
        self.otter = otter
        head, self.label = otter.insertion.reward_source(_reward_name(otter, reward))
        self.head = head.name
        self.train(otter.training)

    @property
    def decoder(self) -> nn.Module:
        """The widened base without its output projection: tokens -> final normed states (batch, tokens, d + e)."""
        return self.otter.base_model.get_submodule(self.otter.architecture.decoder)

    def score(self, state: Tensor) -> Tensor:
        """Final normed states (..., d + e) -> the calibrated reward of the prefix of each, (..., 1)."""
        rewards: Tensor = self.otter.value_heads[self.head](state)
        return rewards[..., self.label, None]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        margin: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """The reward of each whole sequence.

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens), 0 = padding, on the left or on the right; ``None`` = no padding. The
                padding token is not looked for: it is often the end-of-text token, which counts.
            position_ids: (batch, tokens); default: every sequence starts at 0.
            token_type_ids, use_cache, return_dict, margin: part of what tokenizers and TRL hand to a reward model;
                without effect.

        Returns:
            ``logits`` (batch, 1): the reward at the last token of each sequence.
        """
        if attention_mask is not None and position_ids is None:
            position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        state = self.decoder(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        if attention_mask is None:
            return SequenceClassifierOutput(logits=self.score(state[:, -1]))
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (attention_mask.to(steps.device).bool() * steps).argmax(dim=1)
        return SequenceClassifierOutput(logits=self.score(state[torch.arange(len(state), device=state.device), last]))

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """As :meth:`OtterModel.activation_checkpointing_enable`."""
        self.otter.activation_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """As :meth:`OtterModel.gradient_checkpointing_enable`."""
        self.activation_checkpointing_enable(*args, **kwargs)

    def save_pretrained(
        self, save_directory: str | PathLike[Any], is_main_process: bool = True, *_: Any, **__: Any
    ) -> None:
        """Write the adapter checkpoint of the ``OtterModel``; what stands there is replaced, as transformers does.

        Further options of transformers, such as ``state_dict`` and ``max_shard_size``, are for whole models and have no
        effect: the adapter is one file.
        """
        if is_main_process:
            self.otter.save_pretrained(Path(save_directory), force=True)


def _reward_name(otter: OtterModel, reward: str | None) -> str:
    labels = otter.insertion.reward_labels
    if reward is None and len(labels) == 1:
        return labels[0]
    if reward not in labels:
        raise ConfigError(f"reward {reward!r}, expected one of {', '.join(labels) or 'none: there is no value head'}")
    return reward
