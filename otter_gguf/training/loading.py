"""Loading a trained model whatever form its folder has."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..adapter_format import CONFIG_NAME, AdapterRecord
from ..widened_format import is_widened
from .full import FullRewardModel
from .model import OtterModel
from .widened import load_widened


def load(path: str | Path, base_model: nn.Module | str | Path | None = None, *, check_base: bool = True) -> OtterModel:
    """The model of an adapter folder, a full reward model (:mod:`.full`) or a widened checkpoint (:mod:`.widened`).

    Args:
        path: the folder; what it holds is found there.
        base_model: as in :meth:`OtterModel.from_pretrained`; a full reward model has its own.
        check_base: as in :meth:`OtterModel.from_pretrained`; a widened checkpoint is always compared with its base.

    Raises:
        OtterError: as from the function that reads the form.
    """
    path = Path(path)
    if not (path / CONFIG_NAME).exists() and is_widened(path):
        return load_widened(path, base_model)
    kind = FullRewardModel if AdapterRecord.read(path).full else OtterModel
    return kind.from_pretrained(base_model, path, check_base=check_base)
