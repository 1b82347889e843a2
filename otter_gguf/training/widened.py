"""The paper's form: a checkpoint with larger sizes and full matrices with zero blocks; written, and read back.

Any engine that knows the architecture runs it after the one-line change to its norm (the statistic over the first d
channels). h'_0 must be part of the embedding there, so a slice is written as a table of the embedding's channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from ..adapter_format import INFIX, AdapterRecord
from ..errors import ConfigError, FileError, MismatchError, UnsupportedError
from ..gguf.atomic import atomic_folder
from ..tensors import Shape, check_shapes
from ..widened_format import Widened, check_widenable, is_even, read_widened, widened_entry, widened_tensors
from .base import load_base, save_tokenizer
from .checkpoint import fill
from .model import OtterModel
from .modules import BASE_INFIX
from .peft_base import check_plain_base, unwrap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PURPOSE = "a widened checkpoint"
_SHOWN_DIFFERENCES = 10


def export_widened(
    model: OtterModel,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write ``config.json`` and safetensors; ``config.json`` carries ``{"otter": {"insertion": ...}}``.

    Args:
        model: what is written.
        path: the folder.
        dtype: of every tensor; default: the base's.
        tokenizer: written beside the model.

    Raises:
        ConfigError: width 0, or sizes that the architecture's configuration cannot express, such as other sizes from
            layer to layer.
        UnsupportedError: an architecture without this form, or a base that is quantized or has an adapter.
        FileError: not writable, or the folder holds a checkpoint already.
    """
    path, dtype = Path(path), dtype or model.dtype
    check_plain_base(model.base_model, _PURPOSE)
    check_widenable(model.architecture)
    if model.insertion.width == 0 or not is_even(model.insertion):
        raise ConfigError("a widened checkpoint needs an inserted width and the same sizes in every layer")
    if (path / "config.json").exists():
        raise FileError(f"{path}: holds a checkpoint already; give another folder")
    config = _widened_config(model, dtype)
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in _tensors(model)}
    with atomic_folder(path, names=(), last="config.json") as folder:
        try:
            save_torch_state_dict(tensors, folder, metadata={"format": "pt"})
            config.save_pretrained(folder)
            if tokenizer is not None:
                save_tokenizer(tokenizer, folder)
        except (OSError, SafetensorError) as error:
            raise FileError(f"{path}: cannot write the widened checkpoint: {error}") from None


def _widened_config(model: OtterModel, dtype: torch.dtype) -> Any:
    insertion = model.insertion
    config = copy.deepcopy(model.config)
    sizes = model.architecture.widened_config(
        insertion.base, insertion.width, insertion.n_head_kv[0], insertion.n_ff[0]
    )
    record = AdapterRecord(insertion, model.base_name, model.base_revision, training=model.training_record)
    architectures = [type(model.base_model).__name__]  # a model that was never saved has not noted its own
    for name, value in {**sizes, "architectures": architectures, "dtype": dtype, **widened_entry(record)}.items():
        setattr(config, name, value)
    return config


def load_widened(path: str | Path, base_model: nn.Module | str | Path | None = None) -> OtterModel:
    """Load a widened checkpoint onto its base: the inverse of :func:`export_widened`, tensor for tensor.

    Args:
        path: the widened checkpoint's folder.
        base_model: the base, or its folder, Hub name or GGUF file; ``None`` = the one that the checkpoint names.

    Raises:
        FileError: a file is missing or damaged; all missing, extra and misshapen tensors in one message.
        MismatchError: the base has other sizes; an original block is not the base's, or a block that must be zero is
            not (every such tensor is named).
        UnsupportedError: an architecture that this version does not know, or that has no such form.
    """
    path = Path(path)
    record = read_widened(path)
    if not record.insertion.width:
        raise FileError(f"{path}: the insertion of a widened checkpoint has a width")
    base = unwrap(base_model) if isinstance(base_model, nn.Module) else load_base(base_model, path, record)
    check_plain_base(base, _PURPOSE)
    model = OtterModel(base, record.insertion)
    try:
        with _open(path) as (shapes, read):
            check_shapes(path, _shapes(model), shapes)
            fill(model.inserted_parameters(), _inserted(model, read), path)
            _check_blocks(model, read, path)
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path}: {error}") from None
    model.training_record = record.training
    return model


@contextmanager
def _open(path: Path) -> Iterator[tuple[dict[str, Shape], Callable[[str], Tensor]]]:
    """Shape of every stored tensor, and how to read one."""
    files = sorted(path.glob("model*.safetensors"))
    if not files:
        raise FileError(f"{path}: no model*.safetensors")
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt", device="cpu")) for file in files]
        source = {name: file for file in opened for name in file.keys()}  # noqa: SIM118
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in source.items()}
        yield shapes, lambda name: cast(Tensor, source[name].get_tensor(name))


def _inserted(model: OtterModel, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Every inserted tensor by its adapter name, cut out of the stored matrices."""
    layout = widened_tensors(model.insertion)
    cut: dict[str, Tensor] = {}
    for name in model.inserted_parameters():
        whole = name.replace(INFIX, ".")
        if whole in layout:
            axis = layout[whole].axis
            cut[name] = read(whole).narrow(axis, layout[whole].original[axis], layout[whole].added[axis])
        else:  # a head
            cut[name] = read(name)
    return cut


def _check_blocks(model: OtterModel, read: Callable[[str], Tensor], path: Path) -> None:
    """What would be exported must be what is stored; ``MismatchError`` names every tensor that differs."""
    problems: dict[str, str] = {}
    for name, tensor in _tensors(model):
        found = read(name)
        expected = tensor.detach().to(device=found.device, dtype=found.dtype)
        wrong = (found != expected).nonzero()
        if len(wrong):
            index = tuple(wrong[0].tolist())
            problems[name] = (
                f"{name} ({len(wrong)} elements, first {list(index)}: {found[index].item():.6g}, "
                f"expected {expected[index].item():.6g})"
            )
    if problems:
        shown = [text if i < _SHOWN_DIFFERENCES else name for i, (name, text) in enumerate(problems.items())]
        raise MismatchError(
            f"{path}: {len(problems)} tensors are not the base's with zero blocks: {', '.join(shown)}; "
            "give the base that was widened, in the type it had"
        )


def _shapes(model: OtterModel) -> dict[str, Shape]:
    heads = {name: tuple(tensor.shape) for name, tensor in _heads(model).items()}
    return heads | {name: widened.shape for name, widened in widened_tensors(model.insertion).items()}


def _heads(model: OtterModel) -> dict[str, Tensor]:
    """Tensors that keep their adapter names."""
    return {name: tensor for name, tensor in model.inserted_parameters().items() if name.startswith("heads.")}


def _tensors(model: OtterModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the widened checkpoint, one at a time."""
    layout, inserted = widened_tensors(model.insertion), model.inserted_parameters()
    base = {
        name.replace(BASE_INFIX, "."): parameter.detach()
        for name, parameter in model.base_model.named_parameters(remove_duplicate=False)
        if INFIX not in name
    }
    if others := base.keys() - layout.keys():
        raise UnsupportedError(f"there is no widened checkpoint of a base with {min(others)}; use the adapter instead")
    yield from _heads(model).items()
    for name, widened in layout.items():
        added: Tensor | None = inserted.get(f"{name.removesuffix('weight')}otter.weight")
        if added is None and widened.inserted:  # h'_0 is a slice of the embedding
            first = model.insertion.state_offset
            added = base[name][:, first : first + model.insertion.width]
        yield name, _blocks(widened, base[name], added)


def _blocks(widened: Widened, base: Tensor, inserted: Tensor | None) -> Tensor:
    """[[base, 0], [inserted]], or [base, inserted] of a vector or an embedding."""
    if inserted is None:
        inserted = base.new_full(widened.inserted_shape, widened.fill)
    if base.ndim == 2 and widened.axis == 0:
        base = functional.pad(base, (0, widened.added[1]))
    return torch.cat([base.to(inserted.dtype), inserted.detach()], dim=widened.axis)
