"""The trials of one writer for a test, in a process of its own: a clean one, for its children are forked."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import trials
from .careless import CARELESS
from .harness import stage
from .trials import ERRORS, Report
from .writers import WRITERS

MAX_SECONDS = 600.0


@dataclass
class Examination:
    """What was found about one writer."""

    order: str | None
    kills: Report
    faults: Report
    short_writes: Report
    interrupts: Report

    def failures(self) -> list[str]:
        """All of them."""
        reports = (self.kills, self.faults, self.short_writes, self.interrupts)
        return [*([self.order] if self.order else []), *(failure for report in reports for failure in report.failures)]


def examine(name: str, n_kills: int, n_interrupts: int, fault_step: int, seed: int) -> Examination:
    """The trials of the writer of this name."""
    with stage({**WRITERS, **CARELESS}[name]) as made:
        once, forever = (
            trials.faults(made, ERRORS, persistent=persistent, in_turn=True, step=step, first=seed % step)
            for persistent, step in ((False, fault_step), (True, 3 * fault_step))
        )
        once.trials, once.hits = once.trials + forever.trials, once.hits + forever.hits
        once.failures += forever.failures
        return Examination(
            trials.order_problem(made.clean.operations),
            trials.kills(made, n_kills, seed=seed),
            once,
            trials.faults(made, [0], persistent=True, step=5 * fault_step),
            trials.interrupts(made, n_interrupts, seed=seed),
        )


@contextmanager
def clean_process() -> Iterator[Callable[..., Examination]]:
    """:func:`examine`, called there."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:

        def call(*arguments: Any) -> Examination:
            try:
                return pool.submit(examine, *arguments).result(MAX_SECONDS)
            except concurrent.futures.TimeoutError:
                for process in multiprocessing.active_children():
                    process.kill()  # or leaving the pool would wait for it
                raise

        yield call
