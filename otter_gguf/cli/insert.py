"""``otter-gguf insert``: a fresh insertion for a Hugging Face model, as an adapter folder."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..adapter_format import CONFIG_NAME
from ..config import BaseGeometry, HeadConfig, InsertionConfig, StateSource
from ..errors import ConfigError, UnsupportedError
from ..heads import Activation, HeadInput
from ..heads.vocabulary import score_activation
from ..train_options import flags
from ._common import add_options, given, print_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..training import OtterModel

HELP = "insert fresh parameters into a Hugging Face model"


@dataclass(frozen=True)
class InsertOptions:
    """What is inserted, as the command line says it."""

    width: int = field(
        default=64, metadata=flags("--width", "inserted residual channels; 0 = reward heads on the base's state alone")
    )
    n_head_kv: str = field(
        default="1", metadata=flags("--kv-heads", "inserted KV heads: one number, or one a layer, as 1,0,2")
    )
    n_ff: str = field(default="256", metadata=flags("--inner", "inserted FFN inner size: one number, or one a layer"))
    layers: str = field(default="all", metadata=flags("--layers", "layers with an insertion, such as 0,4-7"))
    init: Literal["copy", "normal", "uniform"] = field(
        default="copy", metadata=flags("--init", "first values: the base's own rows, or drawn")
    )
    init_std: float = field(
        default=0.0, metadata=flags("--init-std", "standard deviation of drawn values; 0 = the base's own")
    )
    state_source: StateSource = field(
        default="slice", metadata=flags("--state", "inserted state at layer 0: slice of the base's, or trained table")
    )
    state_offset: int = field(
        default=0, metadata=flags("--state-offset", "first channel of the slice, and of what copy copies")
    )
    head_input: HeadInput = field(default="inserted", metadata=flags("--head-input", "the state that heads read"))
    activation: Activation = field(default="none", metadata=flags("--activation", "applied to each reward"))
    vocabulary_rank: int = field(
        default=0,
        metadata=flags("--vocabulary-rank", "add a head of this rank that scores every possible next token; 0 = none"),
    )
    vocabulary_input: HeadInput = field(
        default="both", metadata=flags("--vocabulary-input", "the state that this head reads")
    )
    vocabulary_reward: str | None = field(
        default=None, metadata=flags("--vocabulary-reward", "the reward that it predicts (default: the first)")
    )
    seed: int = field(default=0, metadata=flags("-s --seed", "of everything drawn"))

    def __post_init__(self) -> None:
        given = {"vocabulary_input": "both", "vocabulary_reward": None}
        if not self.vocabulary_rank and any(getattr(self, name) != default for name, default in given.items()):
            raise ConfigError("--vocabulary-input and --vocabulary-reward need --vocabulary-rank")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = f"{HELP}; writes an adapter folder."
    parser.add_argument(
        "--base", required=True, metavar="DIR", help="Hugging Face model (folder or Hub name) or GGUF file"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="adapter folder to write")
    add_insert_arguments(parser)
    add_tokenizer_check(parser, "insert")
    parser.add_argument("--force", action="store_true", help="replace an adapter that is there")
    parser.add_argument("--json", action="store_true", help="machine-readable summary")


def add_tokenizer_check(parser: argparse.ArgumentParser, verb: str) -> None:
    """``--no-tokenizer-check``, for a base that is a GGUF file."""
    parser.add_argument(
        "--no-tokenizer-check",
        action="store_true",
        help=f"{verb} although training and the GGUF may make other tokens of a text",
    )


def add_insert_arguments(parser: argparse.ArgumentParser, *, leave_out: tuple[str, ...] = ()) -> None:
    """The flags of :class:`InsertOptions` and ``--head``; shared with ``train --base``."""
    group = parser.add_argument_group("insertion")
    add_options(group, InsertOptions, leave_out)
    group.add_argument(
        "--head",
        action="append",
        metavar="NAME[=LABEL,...]",
        help="a reward head, repeatable; one scalar a label (default: reward)",
    )


def run(args: argparse.Namespace) -> int:
    """Insert and save; prints the folder."""
    require_training()
    from ..training.base import load_base

    if (args.output / CONFIG_NAME).exists() and not args.force:
        raise ConfigError(f"{args.output}: holds an adapter already; give another folder, or --force to replace it")
    _check_tokenizer(args.base, check=not args.no_tokenizer_check)
    model = insert_from(args, load_base(args.base))
    model.save_pretrained(args.output, force=True)
    if args.json:
        print_json({"output": str(args.output), **summary(model)})
    else:
        model.print_trainable_parameters()
        print(args.output)
    return 0


def _check_tokenizer(base: str, *, check: bool) -> None:
    """Refuse a GGUF base now that could not be trained later for its tokenizer; a warning without ``check``."""
    from ..training.base import load_tokenizer
    from ..training.gguf_base import is_gguf

    if not is_gguf(base) or not Path(base).is_file():
        return
    try:
        load_tokenizer(base, check=check)
    except UnsupportedError as error:  # inserting takes no tokenizer
        if check:
            raise
        warnings.warn(str(error), stacklevel=2)


def insert_from(args: argparse.Namespace, base: PreTrainedModel) -> OtterModel:
    """Widen ``base`` as the command line says."""
    from ..training import geometry, insert

    options = InsertOptions(**given(args, InsertOptions))
    config = insertion_config(options, geometry(base), args.head or (), given(args, InsertOptions).keys())
    return insert(base, config, options.init, options.init_std or None, options.seed)


def insertion_config(
    options: InsertOptions, base: BaseGeometry, heads: Any = (), explicit: Any = ()
) -> InsertionConfig:
    """The configuration that the options mean for a base.

    Args:
        heads: values of ``--head``.
        explicit: names of the options that were given; with width 0 the others say "nothing inserted".

    Raises:
        ConfigError: a flag that cannot be read, or sizes that contradict each other or the base.
    """
    nothing = options.width == 0
    n_head_kv = "0" if nothing and "n_head_kv" not in explicit else options.n_head_kv
    n_ff = "0" if nothing and "n_ff" not in explicit else options.n_ff
    head_input: HeadInput = "base" if nothing and "head_input" not in explicit else options.head_input
    layers = _layers(options.layers, base.n_layer)
    config = InsertionConfig(
        base,
        options.width,
        _sizes("--kv-heads", n_head_kv, layers),
        _sizes("--inner", n_ff, layers),
        heads=tuple(_head(text, head_input, options.activation) for text in heads or ["reward"]),
        state_source=options.state_source,
        state_offset=options.state_offset,
    )
    if not options.vocabulary_rank:
        return config
    head_input = "base" if nothing and "vocabulary_input" not in explicit else options.vocabulary_input
    head = vocabulary_head(config, options.vocabulary_rank, head_input, options.vocabulary_reward)
    return dataclasses.replace(config, heads=(*config.heads, head))


def vocabulary_head(config: InsertionConfig, rank: int, head_input: HeadInput, reward: str | None) -> HeadConfig:
    """A head ``next`` that predicts a reward of ``config`` (``None``: the first), in its activation and unit."""
    label = reward or config.reward_labels[0]
    if label not in config.reward_labels:
        raise ConfigError(f"--vocabulary-reward {label}: no such reward, only {', '.join(config.reward_labels)}")
    source, index = config.reward_source(label)
    calibration: dict[str, Any] = {"scale": source.scale[index : index + 1], "shift": source.shift[index : index + 1]}
    return HeadConfig(
        "next", (label,), head_input, score_activation(source), **calibration, kind="vocabulary", rank=rank
    )


def _layers(text: str, n_layer: int) -> list[bool]:
    """Which layers are meant by ``all`` or by numbers and ranges."""
    if text == "all":
        return [True] * n_layer
    chosen = [False] * n_layer
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last < n_layer:
            raise ConfigError(f"--layers {text}: {part!r} is no layer or range within 0-{n_layer - 1}")
        chosen[first : last + 1] = [True] * (last + 1 - first)
    return chosen


def _sizes(flag: str, text: str, layers: list[bool]) -> tuple[int, ...]:
    """One size a layer, 0 where the layer is left out."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ConfigError(f"{flag} {text}: expected a number, or one a layer separated by commas")
    sizes = [int(size) for size in text.split(",")]
    if len(sizes) == 1:
        sizes *= len(layers)
    if len(sizes) != len(layers):
        raise ConfigError(f"{flag} has {len(sizes)} sizes, the base has {len(layers)} layers")
    return tuple(size if chosen else 0 for size, chosen in zip(sizes, layers, strict=True))


def _head(text: str, head_input: HeadInput, activation: Activation) -> HeadConfig:
    name, _, labels = text.partition("=")
    return HeadConfig(name, tuple(labels.split(",")) if labels else (name,), head_input, activation)


def summary(model: OtterModel) -> dict[str, Any]:
    """What was inserted, for ``--json``."""
    inserted = sum(tensor.numel() for tensor in model.inserted_parameters().values())
    return {
        "base": model.base_name,
        "inserted_parameters": inserted,
        "base_parameters": sum(tensor.numel() for tensor in model.parameters()) - inserted,
        "rewards": list(model.insertion.reward_labels),
        "insertion": model.insertion.to_dict(),
    }


def require_training() -> None:
    """``ConfigError`` with the command to run where torch and transformers are not installed."""
    missing = [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)} not installed; run: pip install 'otter-gguf[train]'")
