"""llama.cpp's converter as a process that has imported torch and transformers already, which takes seconds each time.

All else is as in the package: a process of its own, its arguments and environment, the lock that it inherits, its
stderr, its exit code, its end by ``kill``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn
from unittest import mock


@contextlib.contextmanager
def warm_converter() -> Iterator[None]:
    """Bases are converted by forks of this process in here."""
    from otter_gguf.converters import base

    with mock.patch.object(base.subprocess, "Popen", _Fork):
        yield


def import_converter() -> None:
    """What the script imports, in this process."""
    from otter_gguf.converters.base import find_script

    sys.path.insert(0, str(find_script().parent))
    try:
        for name in ("conversion.base", "conversion.llama", "transformers.models.llama.configuration_llama"):
            importlib.import_module(name)
    finally:
        sys.path.pop(0)


class _Fork:
    """What ``subprocess.Popen`` is to the package, for a command of this Python."""

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], **options: Any) -> None:
        assert command[0] == sys.executable
        assert not options["close_fds"]
        reading, writing = os.pipe()
        self.returncode: int | None = None
        # Not in the fork's own callbacks, which would swallow it; Popen has none.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            _run(command[1:], writing, env)
        os.close(writing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self.stderr = open(reading, errors=options["errors"])  # noqa: SIM115 (closed by its reader)

    def wait(self) -> int:
        """The exit code."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def _run(command: Sequence[str], stderr: int, env: Mapping[str, str]) -> NoReturn:
    """Run a script as the interpreter would, and end."""
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for source, target in ((nowhere, 0), (nowhere, 1), (stderr, 2)):
            os.dup2(source, target)
        sys.stdout, sys.stderr = (os.fdopen(target, "w", buffering=1, closefd=False) for target in (1, 2))
        os.environ.update(env)
        sys.argv = list(command)
        sys.path.insert(0, os.path.dirname(command[0]))
        runpy.run_path(command[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stderr.flush()
        finally:
            os._exit(code)
