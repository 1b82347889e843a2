"""Serve a model over HTTP, as OpenAI's and llama-server's clients expect it, with the reward of every token.

Requests share batches, whatever guides them. A page to look at stands at /. docs/server.md describes the routes.
Sampling options given here are the defaults of requests. Needs the extra: pip install 'otter-gguf[server]'.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..options import SamplingOptions
from ..serving.options import OWN_NAMES, ServerOptions
from . import _common

if TYPE_CHECKING:
    from ..model import Otter

HELP = "serve a model over HTTP: OpenAI's routes with rewards, and a page"

_MAX_KEYS = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags as in llama-server."""
    _common.add_options(parser.add_argument_group("server"), ServerOptions, ())
    parser.add_argument("--api-key-file", metavar="FILE", help="keys, one in each line; any of them will do")
    parser.add_argument(
        "--rule-model",
        action="append",
        default=[],
        metavar="ALIAS=FILE",
        help="a model that rules of requests may name: base.gguf or base.gguf|sidecar.otter.gguf (may be repeated)",
    )
    _common.add_model_arguments(parser)
    _common.add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Load the models, then answer until SIGTERM or Ctrl-C."""
    from ..guidance.spec import model_files

    try:
        from ..serving.app import Service
        from ..serving.async_otter import AsyncOtter
        from ..serving.run import serve
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'otter-gguf[server]'") from None
    options = ServerOptions(**_common.given(args, ServerOptions))
    if args.api_key_file is not None:
        keys = _common.read_text(args.api_key_file, _MAX_KEYS).split()
        if not keys:
            raise ConfigError(f"{args.api_key_file}: no key in it")
        options = dataclasses.replace(options, api_key=",".join(filter(None, [options.api_key, *keys])))
    if options.host not in OWN_NAMES and not options.api_key:
        print(f"whoever reaches {options.host} can use this server: --api-key asks for a key", file=sys.stderr)
    defaults = _common.given(args, SamplingOptions)
    SamplingOptions(**defaults)
    with contextlib.ExitStack() as stack:
        models: dict[str, Otter] = {}
        for text in args.rule_model:
            alias, equals, files = text.partition("=")
            if not alias or not equals or alias in models:
                raise ConfigError(f"--rule-model {text}: expected ALIAS=FILE, each alias once")
            models[alias] = stack.enter_context(_load(args, model_files(files)))
        llm = stack.enter_context(_load(args))
        serve(Service(AsyncOtter(llm), options, models, defaults))
    return 0


def _load(args: argparse.Namespace, files: tuple[str, str | None] | None = None) -> Otter:
    from ..model import Otter

    llm = _common.load(args, files)
    assert isinstance(llm, Otter)  # there is no --isolate
    return llm
