"""insert(): a fresh insertion in a Hugging Face model."""

from __future__ import annotations

from torch import nn

from ..config import InsertionConfig
from .initialisation import Init, check_init, initialise, initialise_heads
from .model import OtterModel
from .peft_base import unwrap

_DEFAULT_STD = 0.02


def insert(
    model: nn.Module,
    config: InsertionConfig,
    init: Init = "copy",
    init_std: float | None = None,
    seed: int = 0,
) -> OtterModel:
    """Widen ``model`` in place and initialise what is inserted.

    Args:
        model: the base, such as ``LlamaForCausalLM``, or a ``PeftModel`` around it; frozen from here on.
        config: what is inserted where, e.g. ``InsertionConfig.uniform(geometry(model), width=64, n_ff=256)``.
        init: ``copy`` the base's own rows, or draw from ``normal`` or ``uniform`` (see :mod:`.initialisation`).
        init_std: standard deviation of the drawn ones; default: the base's ``initializer_range``.
        seed: fixes everything that is drawn, heads included.

    Raises:
        ConfigError, MismatchError, UnsupportedError: see :class:`OtterModel` and :func:`check_init`.
    """
    base = unwrap(model)
    std = init_std if init_std is not None else getattr(base.config, "initializer_range", _DEFAULT_STD)
    check_init(config, init, std)
    otter = OtterModel(base, config)
    initialise(base, otter.layout, init, std, seed)
    initialise_heads(otter, seed)
    otter.training_record = {"init": {"kind": init, "std": std, "seed": seed}}
    return otter
