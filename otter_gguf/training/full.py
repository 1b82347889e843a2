"""The full reward model, the usual baseline: a copy of the base, all of it fine-tuned, with heads on its final state.

It is an :class:`OtterModel` of width 0 whose base is trained along, so that losses, data, trainer and scores are the
same for both. Saved, it is an adapter folder with the heads, and the fine-tuned base in a Hugging Face folder inside;
converted, a base GGUF and a sidecar that run as a second model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from ..config import HeadConfig, InsertionConfig
from ..errors import ConfigError, FileError, UnsupportedError
from .checkpoint import (
    CONFIG_NAME,
    FINE_TUNED_BASE,
    TENSORS_NAME,
    adapter_folder,
    check_overwrite,
    load_base,
    load_tensors,
    load_tokenizer,
    read_config,
    save_tokenizer,
    write_adapter,
)
from .fingerprint import check_fingerprint
from .initialisation import initialise_heads
from .model import OtterModel, geometry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BASE_FOLDER = "base"


class FullRewardModel(OtterModel):
    """A fine-tuned base with value heads. Made by :func:`full_reward_model` or :meth:`OtterModel.from_pretrained`.

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
            write_adapter(self, folder, **{FINE_TUNED_BASE: BASE_FOLDER})

    def load_weights(self, path: str | Path) -> None:
        """As :meth:`OtterModel.load_weights`, with the base's tensors."""
        path = Path(path)
        base, _ = _fine_tuned_base(path, read_config(path))
        self.base_model.load_state_dict(base.state_dict())
        load_tensors(self, path / TENSORS_NAME)


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


def load_full(path: Path, record: dict[str, Any]) -> FullRewardModel:
    """Load what :meth:`FullRewardModel.save_pretrained` wrote; see :meth:`OtterModel.from_pretrained`."""
    base, folder = _fine_tuned_base(path, record)
    base.config._name_or_path = record.get("base_model_name_or_path") or ""
    base.config._commit_hash = record.get("revision")
    model = FullRewardModel(base, InsertionConfig.from_dict(record["insertion"]))
    load_tensors(model, path / TENSORS_NAME)
    model.training_record = record["training"]
    if (folder / "tokenizer_config.json").exists():
        model.tokenizer = load_tokenizer(folder)
    return model


def _fine_tuned_base(path: Path, record: dict[str, Any]) -> tuple[PreTrainedModel, Path]:
    """The base inside a folder, compared with the fingerprint, and where it stands."""
    if record.get(FINE_TUNED_BASE) != BASE_FOLDER:
        raise FileError(f"{path / CONFIG_NAME}: {FINE_TUNED_BASE} is not {BASE_FOLDER!r}: no full reward model")
    folder = path / BASE_FOLDER
    base = load_base(folder)
    check_fingerprint(record.get("base_fingerprint"), base, geometry(base), str(path))
    return base, folder
