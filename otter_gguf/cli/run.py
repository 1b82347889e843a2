"""Continue a prompt, or chat, with every token in the colour of its reward.

With -p or -f the prompt is continued as it stands. Without, each line typed is answered: as a conversation where the
model file has a chat template, else as a prompt of its own. Ctrl-C stops an answer, Ctrl-D ends the program.
docs/guidance.md explains guidance and the records of its steps.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, ContextFullError
from ..options import SamplingOptions
from ..text import terminal_safe
from . import _common

if TYPE_CHECKING:
    from ..guidance.spec import Guidance
    from ..text_model import TextModel
    from ._transcript import Transcript

HELP = "generate text, each token coloured by its reward"

COMMANDS = "/reset forgets the conversation, /exit ends it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags as in llama.cpp."""
    parser.add_argument("-p", "--prompt", type=_common.utf8, help="text to continue")
    parser.add_argument("-f", "--file", metavar="FILE", help="file with the text to continue; - is stdin")
    parser.add_argument("-n", "--predict", type=int, default=256, metavar="N", help="tokens at most (default: 256)")
    parser.add_argument(
        "-r",
        "--stop",
        action="append",
        type=_common.utf8,
        metavar="TEXT",
        help="end before this text (may be repeated)",
    )
    parser.add_argument(
        "-sys", "--system-prompt", type=_common.utf8, metavar="TEXT", help="first message of a conversation"
    )
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="(default: auto)")
    parser.add_argument("--json", action="store_true", help="print the completion with all rewards as JSON (with -p)")
    parser.add_argument(
        "--records", metavar="FILE", help="write what guidance saw in each step, as JSON lines (with -p)"
    )
    parser.add_argument(
        "--html", metavar="FILE", help="write a page with each token on the colour of its reward (with -p)"
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    _common.add_model_arguments(parser)
    _common.add_isolation_argument(parser)
    _common.add_sampling_arguments(parser)
    _common.add_constraint_arguments(parser)
    _common.add_guidance_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Load the models, then continue the prompt or converse."""
    from ..guidance.spec import describe, model_files

    if args.guidance == "help":
        print(describe())
        return 0
    prompt = _common.prompt_of(args)
    _check_outputs(args, prompt)
    options = {"max_tokens": args.predict, "stop": args.stop, **_common.constraints(args)}
    options.update(_common.given(args, SamplingOptions))
    options["step_records"] = bool(args.records or args.html)
    with contextlib.ExitStack() as models:

        def load_expert(text: str) -> TextModel:
            return models.enter_context(_common.load(args, model_files(text), n_seq_max=1))

        options["guidance"] = rule = _common.guidance(args, load_expert)
        if args.reward_model is not None or args.reward_otter is not None:
            options["reward_model"] = models.enter_context(_reward_model(args, rule))
        llm = models.enter_context(_common.load(args, n_seq_max=_common.sequences_needed(rule)))
        session = Session(llm, args, options)
        if prompt is None:
            session.converse()
        else:
            session.write_files(session.print_json(prompt) if args.json else session.complete(prompt))
    return 0


def _check_outputs(args: argparse.Namespace, prompt: str | None) -> None:
    """What would be refused at the end is refused before a model is loaded."""
    from ..gguf.atomic import check_target, same_target

    for flag, value in (("--json", args.json), ("--records", args.records), ("--html", args.html)):
        if value and prompt is None:
            raise ConfigError(f"{flag} needs a prompt (-p or -f)")
    given = (args.model, args.otter, args.reward_model, args.reward_otter, args.file, args.gbnf_file, args.schema_file)
    inputs = [path for path in given if path is not None]
    for path in filter(None, (args.records, args.html)):
        check_target(Path(path), inputs=inputs, force=args.force)
    if args.html and args.records and same_target(args.html, args.records):
        raise ConfigError("--html and --records name the same file")


def _reward_model(args: argparse.Namespace, rule: Guidance) -> TextModel:
    if args.reward_model is None:
        raise ConfigError("--reward-otter needs the base it belongs to: give --reward-model")
    if rule is None:
        raise ConfigError("--reward-model needs guidance: --guidance or --weight")
    return _common.load(args, (args.reward_model, args.reward_otter), n_seq_max=_common.sequences_needed(rule))


class Session:
    """A model, how it answers, and how that is shown."""

    def __init__(self, llm: TextModel, args: argparse.Namespace, options: dict[str, Any]) -> None:
        from ._colour import wants_colour

        if args.html and not llm.n_rewards:
            raise ConfigError("--html shows rewards, and a plain model predicts none: give a sidecar (--otter)")
        self.llm = llm
        self.args = args
        self.options = options
        self.colour = wants_colour(args.color, sys.stdout)
        self.system = [{"role": "system", "content": args.system_prompt}] if args.system_prompt else []
        self.messages = list(self.system)
        self.column = shown_column(llm.reward_labels, options["guidance"])

    def complete(self, prompt: str) -> Transcript:
        """Continue one prompt."""
        from ._colour import dim

        chunks = self.llm.create_completion(prompt, stream=True, **self.options)
        sys.stdout.write(dim(prompt, self.colour))
        return self.show(chunks, prompt)

    def print_json(self, prompt: str) -> Transcript:
        """Continue one prompt; its records are for their file alone."""
        from ._transcript import Transcript

        completion: Any = self.llm.create_completion(prompt, stream=False, prompt_rewards=True, **self.options)
        choice = completion["choices"][0]
        before = choice["prompt_rewards"]
        transcript = Transcript(prompt, before["token_rewards"][-1] if before else [])
        transcript.add(choice)
        choice.pop("steps", None)
        _common.print_json(completion)
        return transcript

    def write_files(self, transcript: Transcript) -> None:
        """The files of ``--records`` and ``--html``."""
        from ._transcript import write_text

        if self.args.records:
            write_text(self.args.records, transcript.records(), self.args.force)
        if self.args.html:
            write_text(self.args.html, transcript.page(self.llm, self.column), self.args.force)

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
            text = self.show(chunks).text
        except ContextFullError as error:
            self.messages.pop()
            print(f"{error}, or /reset", file=sys.stderr)
            return
        self.messages.append({"role": "assistant", "content": text})

    def show(self, chunks: Iterable[Any], prompt: str = "") -> Transcript:
        """Print chunks as they come, then a line about them on stderr. Ctrl-C ends it early."""
        from ._colour import Painter, RewardScale
        from ._transcript import Transcript

        transcript = Transcript(prompt, self.llm.last_rewards)
        insertion = self.llm.insertion
        scale = RewardScale(insertion, self.column, transcript.prompt_rewards[self.column]) if insertion else None
        painter = Painter(sys.stdout, scale if self.colour else None, self.column)
        begin = time.perf_counter()
        try:
            for chunk in chunks:
                choice = chunk["choices"][0]
                painter.write(choice["delta"]["content"] if "delta" in choice else choice["text"], choice["rewards"])
                transcript.add(choice)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        print()
        self._summary(time.perf_counter() - begin, transcript.rewards, scale)
        return transcript

    def _summary(self, seconds: float, rows: list[list[float]], scale: Any) -> None:
        if not sys.stderr.isatty():
            return
        parts = [f"{len(rows)} tokens, {len(rows) / max(seconds, 1e-9):.1f} tokens/s"]
        if scale and rows:
            label = self.llm.reward_labels[self.column]
            parts.append(f"{terminal_safe(label)} {rows[-1][self.column]:+.3f}")
            if self.colour:
                parts.append(scale.legend())
        print("  |  ".join(parts), file=sys.stderr)


def shown_column(labels: Sequence[str], rule: Guidance) -> int:
    """The reward that colours show: the one that guides, if it is a single one of the model's own, else the first."""
    from ..guidance.rules import innermost

    guide = innermost(rule)
    label = guide.label if guide is not None else None
    return labels.index(label) if isinstance(label, str) and label in labels else 0


def _read_line() -> str | None:
    """The next line of input, None at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
