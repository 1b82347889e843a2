"""Continue a prompt, or chat, with every token in the colour of its reward.

With -p or -f the prompt is continued as it stands. Without, each line typed is answered: as a conversation where the
model file has a chat template, else as a prompt of its own. Ctrl-C stops an answer, Ctrl-D ends the program.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ContextFullError
from ..options import SamplingOptions
from ..text import terminal_safe
from . import _common

if TYPE_CHECKING:
    from ..completion import Rewards
    from ..model import Otter

HELP = "generate text, each token coloured by its reward"

COMMANDS = "/reset forgets the conversation, /exit ends it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags as in llama.cpp."""
    parser.add_argument("-p", "--prompt", help="text to continue")
    parser.add_argument("-f", "--file", metavar="FILE", help="file with the text to continue; - is stdin")
    parser.add_argument("-n", "--predict", type=int, default=256, metavar="N", help="tokens at most (default: 256)")
    parser.add_argument("-r", "--stop", action="append", metavar="TEXT", help="end before this text (may be repeated)")
    parser.add_argument("-sys", "--system-prompt", metavar="TEXT", help="first message of a conversation")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="(default: auto)")
    parser.add_argument("--json", action="store_true", help="print the completion with all rewards as JSON (with -p)")
    _common.add_model_arguments(parser)
    _common.add_sampling_arguments(parser)
    _common.add_guidance_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Load the model, then continue the prompt or converse."""
    prompt = _common.prompt_of(args)
    if args.json and prompt is None:
        raise ConfigError("--json needs a prompt (-p or -f)")
    options = {"max_tokens": args.predict, "stop": args.stop, "guidance": _common.guidance(args)}
    options.update(_common.given(args, SamplingOptions))
    candidates = options["guidance"].n_candidates if options["guidance"] else 1
    with _common.load(args, n_seq_max=candidates) as llm:
        if args.json:
            _common.print_json(llm.create_completion(prompt or "", stream=False, prompt_rewards=True, **options))
        elif prompt is not None:
            Session(llm, args, options).complete(prompt)
        else:
            Session(llm, args, options).converse()
    return 0


class Session:
    """A model, how it answers, and how that is shown."""

    def __init__(self, llm: Otter, args: argparse.Namespace, options: dict[str, Any]) -> None:
        from ..guidance.base import reward_index
        from ._colour import wants_colour

        self.llm = llm
        self.options = options
        self.colour = wants_colour(args.color, sys.stdout)
        self.system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
        self.messages = list(self.system)
        label = args.label or (llm.reward_labels[0] if llm.reward_labels else None)
        self.column = reward_index(llm.reward_labels, label) if label else 0

    def complete(self, prompt: str) -> None:
        """Continue one prompt."""
        from ._colour import dim

        sys.stdout.write(dim(prompt, self.colour))
        self.show(self.llm.create_completion(prompt, stream=True, **self.options))

    def converse(self) -> None:
        """Answer line by line until the end of input."""
        chats = self.llm.has_chat_template
        if sys.stdin.isatty():
            import readline  # noqa: F401 (gives input() its line editing)

            print(
                f"{'conversation' if chats else 'no chat template: each line is a prompt'}; {COMMANDS}", file=sys.stderr
            )
        while (line := _read_line()) not in (None, "/exit"):
            if line == "/reset":
                self.messages = list(self.system)
            elif line:
                self.answer(line) if chats else self.complete(line)

    def answer(self, line: str) -> None:
        """One turn of a conversation; a turn that does not fit is taken back."""
        self.messages.append({"role": "user", "content": line})
        try:
            chunks = self.llm.create_chat_completion(self.messages, stream=True, cache_prompt=True, **self.options)
            text = self.show(chunks)
        except ContextFullError as error:
            self.messages.pop()
            print(f"{error}, or /reset", file=sys.stderr)
            return
        self.messages.append({"role": "assistant", "content": text})

    def show(self, chunks: Iterable[Any]) -> str:
        """Print chunks as they come, then a line about them on stderr; returns the text. Ctrl-C ends it early."""
        from ._colour import Painter, RewardScale

        insertion = self.llm.insertion
        scale = RewardScale(insertion, self.column, self.llm.last_rewards[self.column]) if insertion else None
        painter = Painter(sys.stdout, scale if self.colour else None, self.column)
        texts: list[str] = []
        rows: list[list[float]] = []
        begin = time.perf_counter()
        try:
            for chunk in chunks:
                text, rewards = _content(chunk)
                painter.write(text, rewards)
                texts.append(text)
                rows += rewards["token_rewards"] if rewards else [[]]
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        print()
        self._summary(len(rows), time.perf_counter() - begin, rows, scale)
        return "".join(texts)

    def _summary(self, n_tokens: int, seconds: float, rows: list[list[float]], scale: Any) -> None:
        if not sys.stderr.isatty():
            return
        parts = [f"{n_tokens} tokens, {n_tokens / max(seconds, 1e-9):.1f} tokens/s"]
        if scale and rows:
            label = self.llm.reward_labels[self.column]
            parts.append(f"{terminal_safe(label)} {rows[-1][self.column]:+.3f}")
            if self.colour:
                parts.append(scale.legend())
        print("  |  ".join(parts), file=sys.stderr)


def _content(chunk: dict[str, Any]) -> tuple[str, Rewards | None]:
    choice = chunk["choices"][0]
    text = choice["delta"]["content"] if "delta" in choice else choice["text"]
    return text, choice["rewards"]


def _read_line() -> str | None:
    """The next line of input, None at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
