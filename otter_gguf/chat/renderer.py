"""The process that renders a stranger's chat template: it reads questions, one line of JSON each, and answers them.

Run as a file, with the import path as its argument, so that it starts fast: nothing of the package is imported. A
template sees immutable values in jinja2's sandbox; what no sandbox can stop, time and memory, ends with this process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import jinja2

    Compiler = Callable[[str], jinja2.Template]

Question = dict[str, Any]
Answer = dict[str, Any]


class TemplateRefusesError(Exception):
    """What a template raises itself, about the messages."""


def main() -> None:
    """Answer until nobody asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a process that measures itself may have handed down another
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    sys.path[:] = json.loads(sys.argv[1])
    limits = json.loads(sys.argv[2])
    _limit_memory(limits["memory"])
    compiled = functools.lru_cache(maxsize=1)(_environment().from_string)
    say({"ready": True})
    for line in sys.stdin.buffer:
        signal.setitimer(
            signal.ITIMER_PROF, limits["seconds"]
        )  # processor time, behind which SIGPROF ends this process
        answer = answer_to(json.loads(line), compiled, limits["output"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        say(answer)


def say(answer: Answer) -> None:
    """Write an answer."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def answer_to(question: Question, compiled: Compiler, max_output: int) -> Answer:
    """``text``, or what went wrong: ``wrong`` or ``failed``, ``long``, ``refused`` by the template itself.

    Without ``variables`` the template is compiled, and the text is empty.
    """
    try:
        template = compiled(question["source"])
    except Exception as error:
        return {"wrong": one_line(error)}
    try:
        parts, size = [], 0
        for part in template.generate(question["variables"]) if question["variables"] else ():
            parts.append(part)
            size += len(part)
            if size > max_output:
                return {"long": True}
    except TemplateRefusesError as error:
        return {"refused": str(error)[:1000]}
    except Exception as error:
        return {"failed": one_line(error)}
    return {"text": "".join(parts)}


def one_line(error: Exception) -> str:
    """An error in short."""
    return " ".join(f"{type(error).__name__}: {str(error)[:400]}".split())


def _limit_memory(size: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _environment() -> jinja2.Environment:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    functions: dict[str, Callable[..., Any]] = {"raise_exception": _refuse, "strftime_now": _strftime_now}
    environment.globals.update(functions)
    return environment


def _refuse(message: object) -> NoReturn:
    raise TemplateRefusesError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


if __name__ == "__main__":
    main()
