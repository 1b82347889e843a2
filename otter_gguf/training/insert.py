"""insert(): a fresh insertion in a Hugging Face model."""

from __future__ import annotations

from typing import cast

from transformers import PreTrainedModel

from ..config import InsertionConfig
from .initialisation import Init, check_init, initialise, initialise_heads
from .model import OtterModel
from .modules import ValueHead

_DEFAULT_STD = 0.02


def insert(
    model: PreTrainedModel,
    config: InsertionConfig,
    init: Init = "copy",
    init_std: float | None = None,
    seed: int = 0,
) -> OtterModel:
    """Widen ``model`` in place and initialise what is inserted.

    Args:
        model: the base, such as ``LlamaForCausalLM``; frozen from here on.
        config: what is inserted where, e.g. ``InsertionConfig.uniform(geometry(model), width=64, n_ff=256)``.
        init: ``copy`` the base's own rows, or draw from ``normal`` or ``uniform`` (see :mod:`.initialisation`).
        init_std: standard deviation of the drawn ones; default: the base's ``initializer_range``.
        seed: fixes everything that is drawn, heads included.

    Raises:
        ConfigError, MismatchError, UnsupportedError: see :class:`OtterModel` and :func:`check_init`.
    """
    std = init_std if init_std is not None else getattr(model.config, "initializer_range", _DEFAULT_STD)
    check_init(config, init, std)
    otter = OtterModel(model, config)
    initialise(model, otter.layout, init, std, seed)
    initialise_heads((cast(ValueHead, head) for head in otter.heads.values()), seed)
    otter.training_record = {"init": {"kind": init, "std": std, "seed": seed}}
    return otter
