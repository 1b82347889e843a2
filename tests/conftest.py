"""Settings of every test run.

No network; one thread for torch, whose pool is slower than its models here; a failure for each deprecated call of ours
(:mod:`tests.own_warnings`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest

from tests.own_warnings import own_deprecations

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Shells start background jobs with Ctrl-C ignored, which Python and its children inherit: tests of it would hang.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    with own_deprecations() as found:
        yield
    _fail_for(found)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    with own_deprecations() as found:
        yield
    _fail_for(found)


def _fail_for(deprecations: list[str]) -> None:
    if deprecations:
        pytest.fail("deprecated calls:\n" + "\n".join(dict.fromkeys(deprecations)), pytrace=False)
