"""What several verbs share: flags made from the option dataclasses, input texts, JSON output."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from ..errors import ConfigError, FileError
from ..files import MAX_TEXT, read_stream
from ..options import LoadOptions, SamplingOptions, choices

if TYPE_CHECKING:
    from ..guidance.spec import Guidance
    from ..text_model import TextModel

T = TypeVar("T")

_METAVARS = {str: "TEXT", tuple[str, ...]: "TEXT,..."}
"""What the help calls the values of other types than numbers."""


def add_model_arguments(parser: argparse.ArgumentParser, *, leave_out: tuple[str, ...] = ()) -> None:
    """``-m``, ``--otter``, ``--verbose`` and the flags of :class:`LoadOptions`."""
    group = parser.add_argument_group("model (without -m: the demo model that comes with the package)")
    group.add_argument("-m", "--model", metavar="FILE", help="base GGUF (any quantization), or merged")
    group.add_argument("--otter", metavar="FILE", help="the sidecar (*.otter.gguf); not with a merged file")
    add_options(group, LoadOptions, leave_out)
    group.add_argument("-v", "--verbose", action="store_true", help="show llama.cpp's log on stderr")


def add_isolation_argument(parser: argparse.ArgumentParser) -> None:
    """``--isolate``, for verbs that open their models with :func:`load`."""
    parser.add_argument(
        "--isolate",
        action="store_true",
        help="load and run the files in a process of their own: a crash there is an error message here",
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of :class:`SamplingOptions`."""
    add_options(parser.add_argument_group("sampling"), SamplingOptions, ())


def add_guidance_arguments(parser: argparse.ArgumentParser) -> None:
    """``--guidance`` with ``--weight``, ``--candidates``, ``--label``, and ``--reward-model``."""
    group = parser.add_argument_group("guidance")
    group.add_argument(
        "-g",
        "--guidance",
        metavar="RULE",
        help="how rewards guide: args:weight=1.5, gated:entropy=1+args, best_of_n ...; -g help lists all "
        "(default: args if --weight is given)",
    )
    group.add_argument("-w", "--weight", type=number, help="steer by reward: logits per unit (paper: 1.0 to 1.5)")
    group.add_argument("--candidates", type=int, metavar="N", help="tokens considered in a step (args: 10)")
    group.add_argument("--label", type=utf8, help="which reward guides, if the model predicts several")
    group.add_argument("--reward-model", metavar="FILE", help="take the rewards from this model of the same vocabulary")
    group.add_argument("--reward-otter", metavar="FILE", help="its sidecar; not with a merged file")


def add_constraint_arguments(parser: argparse.ArgumentParser) -> None:
    """Logit bias, grammar, JSON schema and context shift, as llama.cpp spells them."""
    group = parser.add_argument_group("constraints")
    group.add_argument(
        "-l",
        "--logit-bias",
        dest="token_biases",
        action="append",
        type=token_bias,
        metavar="TOKEN(+/-)BIAS",
        help="add to a token's logit, by its id: 15043+1, 15043-inf (may be repeated)",
    )
    group.add_argument("--grammar", dest="gbnf", type=utf8, metavar="GBNF", help="the text must follow this grammar")
    group.add_argument("--grammar-file", dest="gbnf_file", metavar="FILE", help="the grammar of this file")
    group.add_argument(
        "-j",
        "--json-schema",
        dest="schema",
        type=utf8,
        metavar="SCHEMA",
        help="the text must be JSON of this schema; {} = any",
    )
    group.add_argument(
        "-jf",
        "--json-schema-file",
        dest="schema_file",
        metavar="FILE",
        help="the text must be JSON of this file's schema",
    )
    group.add_argument("--context-shift", action="store_true", help="drop old tokens where the context is full")
    group.add_argument("--keep", type=int, metavar="N", help="first tokens that a shift leaves in place (default: 0)")


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
            metavar="TYPE" if len(allowed) > 4 else None if allowed else _METAVARS.get(hints[field.name], "N"),
            help=text if field.default in ((), None, "") else f"{text} (default: {field.default})",
        )


def _parser_of(hint: Any) -> Callable[[str], Any]:
    if hint is float:
        return number
    if hint is int or hint == int | None:
        return int
    if hint == Sequence[float]:
        return numbers
    return str


def utf8(argument: str) -> str:
    """A text as it was typed, in UTF-8 whatever the locale says. What is none stays as Python has it."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        return argument  # with half a surrogate pair for each byte, which is refused where the text is used


def number(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def numbers(text: str) -> tuple[float, ...]:
    """Finite numbers with commas between them."""
    return tuple(map(number, text.split(",")))


def token_bias(text: str) -> tuple[int, float]:
    """``15043+1``: a token's id and what is added to its logit."""
    match = re.fullmatch(r"(\d+)([+-].+)", text)
    if match is None:
        raise ValueError
    return int(match[1]), float(match[2])


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


def load(args: argparse.Namespace, files: tuple[str, str | None] | None = None, **defaults: Any) -> TextModel:
    """The model of the command line, or one of other files with the same options; ``defaults`` for options that were
    not given. With ``--isolate`` all models of a command live in one process beside this one."""
    model, otter = files or model_files(args)
    options = {"otter": otter, "verbose": args.verbose, **defaults, **given(args, LoadOptions)}
    if not getattr(args, "isolate", False):
        from ..model import Otter

        return Otter(model, **options)
    from ..isolation import IsolatedOtter

    args.first_isolated = llm = IsolatedOtter(model, beside=getattr(args, "first_isolated", None), **options)
    return llm


def guidance(args: argparse.Namespace, load: Callable[[str], TextModel] | None = None) -> Guidance:
    """The guidance of the command line: of ``--guidance``, else ARGS if ``--weight`` is given, else none."""
    from ..guidance import spec
    from ..guidance.args import ARGS

    flags = {"weight": args.weight, "n_candidates": args.candidates, "label": args.label}
    fields = {name: value for name, value in flags.items() if value is not None}
    if args.guidance is None:
        if fields and args.weight is None:
            raise ConfigError("--candidates and --label need --weight or --guidance")
        return ARGS(**fields) if fields else None
    rule = spec.parse(args.guidance, load)
    if rule is None and fields:
        raise ConfigError(f"--guidance {args.guidance} takes no --weight, --candidates or --label")
    for name, value in fields.items():
        rule = spec.override(rule, name, value) if rule else None
    return rule


def sequences_needed(rule: Guidance) -> int:
    """``n_seq_max`` for one text under this guidance."""
    from ..engine import sequences_needed as needed

    return needed(rule)


def constraints(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of completion methods that :func:`add_constraint_arguments` asks for."""
    sources = {
        "--grammar": ("grammar", args.gbnf),
        "--grammar-file": ("grammar", args.gbnf_file),
        "--json-schema": ("json_schema", args.schema),
        "--json-schema-file": ("json_schema", args.schema_file),
    }
    named = [flag for flag, (_, value) in sources.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} exclude each other")
    if args.keep is not None and not args.context_shift:
        raise ConfigError("--keep is for --context-shift, which is not given")
    options: dict[str, Any] = {}
    for flag in named:
        name, value = sources[flag]
        options[name] = read_text(value) if flag.endswith("-file") else value
    if args.token_biases:
        options["logit_bias"] = dict(args.token_biases)
    if args.context_shift:
        options |= {"context_shift": True, "n_keep": args.keep or 0}
    return options


def read_text(path: str, limit: int = MAX_TEXT) -> str:
    """A text file in UTF-8, of at most ``limit`` bytes; ``-`` is stdin."""
    try:
        return read_stream(path, limit).decode("utf-8")
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
