"""What several verbs share: flags made from the option dataclasses, input texts, JSON output."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from ..errors import ConfigError, FileError
from ..options import LoadOptions, SamplingOptions, choices

if TYPE_CHECKING:
    from ..guidance import Policy
    from ..model import Otter

T = TypeVar("T")


def add_model_arguments(parser: argparse.ArgumentParser, *, leave_out: tuple[str, ...] = ()) -> None:
    """``-m``, ``--otter``, ``--verbose`` and the flags of :class:`LoadOptions`."""
    group = parser.add_argument_group("model (without -m: the demo model that comes with the package)")
    group.add_argument("-m", "--model", metavar="FILE", help="base GGUF (any quantization), or merged")
    group.add_argument("--otter", metavar="FILE", help="the sidecar (*.otter.gguf); not with a merged file")
    add_options(group, LoadOptions, leave_out)
    group.add_argument("-v", "--verbose", action="store_true", help="show llama.cpp's log on stderr")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of :class:`SamplingOptions`."""
    add_options(parser.add_argument_group("sampling"), SamplingOptions, ())


def add_guidance_arguments(parser: argparse.ArgumentParser) -> None:
    """``--weight``, ``--candidates``, ``--label``."""
    group = parser.add_argument_group("guidance (ARGS)")
    group.add_argument("-w", "--weight", type=number, help="steer by reward: logits per unit (paper: 1.0 to 1.5)")
    group.add_argument("--candidates", type=int, metavar="N", help="tokens considered in a step (default: 10)")
    group.add_argument("--label", help="which reward guides, if the model predicts several")


def add_options(group: argparse._ArgumentGroup, options: type, leave_out: tuple[str, ...]) -> None:
    """One flag for each field that names one; a flag not given is not in the result (see :func:`given`)."""
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        flags, text = field.metadata["flags"], field.metadata["help"]
        if not flags or field.name in leave_out:
            continue
        if hints[field.name] is bool:
            action = "store_false" if field.default is True else "store_true"
            group.add_argument(*flags, dest=field.name, action=action, default=argparse.SUPPRESS, help=text)
            continue
        allowed = choices(options, field.name)
        group.add_argument(
            *flags,
            dest=field.name,
            default=argparse.SUPPRESS,
            type=_parser_of(hints[field.name]),
            choices=allowed or None,
            metavar="TYPE" if len(allowed) > 4 else None if allowed else "N",
            help=text if field.default in ((), None) else f"{text} (default: {field.default})",
        )


def _parser_of(hint: Any) -> Callable[[str], Any]:
    if hint is float:
        return number
    if hint is int or hint == int | None:
        return int
    if hint == tuple[float, ...]:
        return lambda text: tuple(map(number, text.split(",")))
    return str


def number(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def given(args: argparse.Namespace, options: type) -> dict[str, Any]:
    """The options of a dataclass that were given on the command line."""
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(options) if hasattr(args, field.name)}


def model_files(args: argparse.Namespace) -> tuple[str, str | None]:
    """Base and sidecar of the command line; the demo's where no model is named."""
    if args.model is not None:
        return args.model, args.otter
    if args.otter is not None:
        raise ConfigError("--otter needs the base it belongs to: give -m")
    from ..demo import demo_files

    files = demo_files()
    return str(files.base), str(files.sidecar)


def load_options(args: argparse.Namespace) -> LoadOptions:
    """The :class:`LoadOptions` of the command line; also sets the log level."""
    from .._logging import set_verbose

    set_verbose(args.verbose)
    return LoadOptions(**given(args, LoadOptions))


def load(args: argparse.Namespace, **defaults: Any) -> Otter:
    """The model of the command line; ``defaults`` for options that were not given."""
    from ..model import Otter

    model, otter = model_files(args)
    return Otter(model, otter=otter, verbose=args.verbose, **{**defaults, **given(args, LoadOptions)})


def guidance(args: argparse.Namespace) -> Policy | None:
    """The policy of the command line, if ``--weight`` is given."""
    from ..guidance import ARGS

    if args.weight is None:
        if args.candidates is not None or args.label is not None:
            raise ConfigError("--candidates and --label need --weight")
        return None
    n_candidates = ARGS.n_candidates if args.candidates is None else args.candidates
    return ARGS(weight=args.weight, n_candidates=n_candidates, label=args.label)


def read_text(path: str) -> str:
    """A text file in UTF-8; ``-`` is stdin."""
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8")
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: no UTF-8 text (byte {error.start})") from None


def prompt_of(args: argparse.Namespace) -> str | None:
    """The text of ``-p`` or ``-f``."""
    if args.prompt is not None and args.file is not None:
        raise ConfigError("-p and -f exclude each other")
    return read_text(args.file) if args.file is not None else args.prompt


def print_json(value: Any) -> None:
    """One JSON document on stdout; pure ASCII, so harmless to a terminal."""
    print(json.dumps(value, indent=2))
