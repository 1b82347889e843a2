"""A process of its own for what may end a process: the test fails, and the others go on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_child(code: str, *arguments: object) -> str:
    """What ``code`` prints; fails if it ends by a signal or with an exception.

    Args:
        code: Python source; ``in_small_thread(function)`` calls a function in a thread with a stack of 512 kB, the
            least that a system gives one.
        arguments: ``sys.argv[1:]`` there.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PREAMBLE + textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-1000:]}"
    return done.stdout


_PREAMBLE = """
import sys, threading

def in_small_thread(function):
    threading.stack_size(512 << 10)
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()
"""
