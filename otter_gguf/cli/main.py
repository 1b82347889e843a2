"""``otter-gguf VERB``: one module a verb, imported only when it is asked for."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TextIO

from .. import __version__
from ..errors import OtterError
from ..text import terminal_safe

VERBS = (
    "insert",
    "train",
    "convert",
    "merge",
    "split",
    "quantize",
    "verify",
    "check",
    "info",
    "run",
    "score",
    "rerank",
    "serve",
    "bench",
    "eval",
    "demo",
)

WRONG_INPUT = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb. Wrong input is one line on stderr and exit code 2; Ctrl-C is 130. Where stdout is closed, or cannot
    be written to, what would be printed is lost, which the exit code says in the second case."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    _accept_any_text()
    try:
        args = build_parser(arguments).parse_args(arguments)
        code = args.run(args)
        sys.stdout.flush()
    except OtterError as error:
        return _complain(str(error), WRONG_INPUT)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        return _reader_left()
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error), WRONG_INPUT)
    except (ValueError, OverflowError) as error:  # a number or a text that nobody expected
        return _complain(f"{type(error).__name__}: {error}", WRONG_INPUT)
    except MemoryError:
        return _complain("not enough memory", 1)
    return int(code)


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the verb in ``arguments``; of all verbs where there is none."""
    parser = argparse.ArgumentParser(
        prog="otter-gguf",
        description="Language models in GGUF files that predict a reward with every token.",
        epilog="otter-gguf VERB --help explains a verb.",
    )
    parser.add_argument("--version", action="version", version=f"otter-gguf {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    asked = [argument for argument in arguments if not argument.startswith("-")][:1]
    for verb in asked if asked and asked[0] in VERBS else VERBS:
        module = verb_module(verb)
        subparser = verbs.add_parser(verb, help=module.HELP, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def verb_module(verb: str) -> ModuleType:
    """``otter_gguf.cli.VERB``: HELP, add_arguments(parser), run(args)."""
    return importlib.import_module(f".{verb}", __package__)


def _open_closed_streams() -> None:
    """Nothing else may get the descriptor of a stream that is closed, as with ``>&-``: llama.cpp prints to them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 (until the process ends)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _accept_any_text() -> None:
    """Write what the locale's encoding lacks as an escape instead of failing; read pipes and files in UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper) and not sys.stdin.isatty():
        with contextlib.suppress(io.UnsupportedOperation):  # it has been read from already
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")


def _complain(message: str, code: int) -> int:
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is sys.stderr:
                print(f"otter-gguf: {terminal_safe(' '.join(message.split()))}", file=stream)
            stream.flush()
        except OSError:
            _discard(stream)
    return code


def _reader_left() -> int:
    """The reader of our output is gone, as in ``| head``: no error."""
    _discard(sys.stdout)
    return 0


def _discard(stream: TextIO) -> None:
    """Keep Python from writing what is left of a stream that cannot be written to when it ends."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
