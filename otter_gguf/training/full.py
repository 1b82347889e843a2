"""The full reward model, the usual baseline: a copy of the base, all of it fine-tuned, with heads on its final state.

It is an :class:`OtterModel` of width 0 whose base is trained along, so that losses, data, trainer and scores are the
same for both. Saved, it is an adapter folder with the heads, and the fine-tuned base in a Hugging Face folder inside;
converted, a base GGUF and a sidecar that run as a second model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from ..adapter_format import BASE_FOLDER, CONFIG_NAME, FINE_TUNED_BASE, TENSORS_NAME, AdapterRecord
from ..config import HeadConfig, InsertionConfig
from ..errors import ConfigError, FileError, UnsupportedError
from .base import geometry, load_base, load_tokenizer, save_tokenizer
from .checkpoint import adapter_folder, check_overwrite
from .fingerprint import check_fingerprint
from .initialisation import initialise_heads
from .model import OtterModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class FullRewardModel(OtterModel):
    """A fine-tuned base with value heads. Made by :func:`full_reward_model` or :func:`otter_gguf.training.load`.

    What rewards depend on is trained, in F32: everything up to the final norm, and the heads. An output projection
    with weights of its own is not. As in every :class:`OtterModel` there is no dropout.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    """Written beside the base by :meth:`save_pretrained`; llama.cpp's converter needs it there."""

    def __init__(self, base_model: PreTrainedModel, insertion: InsertionConfig) -> None:
        """As :class:`OtterModel`.

        Raises:
            ConfigError: the insertion has a width, or ``base_model`` carries an insertion.
            UnsupportedError: a quantized base, whose weights cannot be trained.
        """
        if insertion.width:
            raise ConfigError(f"a full reward model has heads alone, but width is {insertion.width}")
        if not all(parameter.is_floating_point() for parameter in base_model.parameters()):
            raise UnsupportedError("a quantized base cannot be fine-tuned; load it in floating point")
        super().__init__(base_model.float(), insertion)
        base_model.get_submodule(self.architecture.decoder).requires_grad_(True)

    def save_pretrained(self, path: str | Path, *, force: bool = False) -> None:
        """Write ``base/``, a Hugging Face folder of the fine-tuned base, and the heads as an adapter beside it.

        The folder appears as a whole, as every adapter does. The configuration holds the fingerprint of the base: one
        whose base was exchanged is refused when it is loaded.

        Raises:
            FileError: not writable.
            ConfigError: ``path`` holds something else than such a model with the same heads, and ``force`` is not set.
        """
        path = Path(path)
        check_overwrite(path, self.insertion, full=True, force=force)
        with adapter_folder(path, BASE_FOLDER, CONFIG_NAME, TENSORS_NAME) as folder:
            self.base_model.save_pretrained(folder / BASE_FOLDER)
            if self.tokenizer is not None:
                save_tokenizer(self.tokenizer, folder / BASE_FOLDER)
            self._write_adapter(folder, full=True)

    def load_weights(self, path: str | Path) -> None:
        """As :meth:`OtterModel.load_weights`, with the base's tensors."""
        base = self._load_base(None, Path(path), AdapterRecord.read(Path(path)), True)
        self.base_model.load_state_dict(base.state_dict())
        super().load_weights(path)

    @classmethod
    def from_pretrained(
        cls, base_model: nn.Module | str | Path | None, path: str | Path, *, check_base: bool = True
    ) -> OtterModel:
        """As :meth:`OtterModel.from_pretrained`, with the base inside the folder: ``base_model`` is ``None``."""
        model = super().from_pretrained(base_model, path, check_base=check_base)
        tokenizer = Path(path) / BASE_FOLDER
        if isinstance(model, FullRewardModel) and (tokenizer / "tokenizer_config.json").exists():
            model.tokenizer = load_tokenizer(tokenizer)
        return model

    @staticmethod
    def _load_base(
        base_model: nn.Module | str | Path | None, path: Path, record: AdapterRecord, check: bool
    ) -> PreTrainedModel:
        if base_model is not None:
            raise ConfigError(f"{path}: a full reward model, which holds its own fine-tuned base; give no other")
        if not record.full:
            raise FileError(f"{path / CONFIG_NAME}: no {FINE_TUNED_BASE}: the adapter of a frozen base")
        base = load_base(path / BASE_FOLDER)
        if check:
            check_fingerprint(record.binding.get("base_fingerprint"), base, geometry(base), str(path))
        base.config._name_or_path = record.base_name or ""
        base.config._commit_hash = record.revision
        return base


def full_reward_model(
    base_model: PreTrainedModel, heads: Iterable[HeadConfig | str] = ("reward",), seed: int = 0
) -> FullRewardModel:
    """Make ``base_model`` a reward model that is trained as a whole; the object given in is the one that changes.

    Args:
        base_model: the base, such as ``LlamaForCausalLM``; what it was loaded from is never written to.
        heads: configurations, or names of heads with one label of the same name. All read the base's state.
        seed: fixes the first weights of the heads.

    Raises:
        ConfigError, UnsupportedError: see :class:`FullRewardModel`.
    """
    configs = tuple(
        HeadConfig(head, (head,), "base") if isinstance(head, str) else dataclasses.replace(head, input="base")
        for head in heads
    )
    insertion = InsertionConfig.uniform(geometry(base_model), 0, 0, heads=configs)
    model = FullRewardModel(base_model, insertion)
    initialise_heads(model, seed)
    model.training_record = {"init": {"kind": "full", "seed": seed}}
    return model
