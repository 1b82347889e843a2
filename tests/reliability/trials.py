"""What is done to writers: kills, faults, Ctrl-C, and the order in which they sync; with what must hold after each."""

from __future__ import annotations

import errno
import random
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .harness import Stage
from .watch import FAULTY, LET_THROUGH, Decision, Operation, Outcome

MAX_SECONDS_AFTER_CTRL_C = 2.0
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES)


@dataclass
class Report:
    """What came out of the trials of one writer."""

    trials: int = 0
    hits: int = 0
    """Trials in which something happened before the writer was done."""
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    """Seconds from Ctrl-C to the end, the longest."""

    def add(self, what: str, *problems: str | None) -> None:
        """Count a trial; its problems are failures."""
        self.trials += 1
        self.failures += [f"{what}: {problem}" for problem in problems if problem]


# ---- kill -9 ---------------------------------------------------------------------------------------------------


def kills(stage: Stage, moments: int, *, timed: bool = False, seed: int = 0) -> Report:
    """Kill the writer at moments spread over its run, every second time over old targets; then let it run.

    Moments are operations, of writes also the middle; ``timed``: seconds since the start.
    """
    report, draw = Report(), random.Random(seed)
    for moment in range(moments):
        place, over_old = (moment + draw.random()) / moments, moment % 2 == 0
        stage.reset(old=over_old)
        if timed:
            outcome = stage.run(signal_at=(place * stage.clean.seconds, signal.SIGKILL))
        else:
            at = int(place * len(stage.clean.operations))
            outcome = stage.run(_at(at, Decision(short=draw.random() < 0.5, signal=signal.SIGKILL)))
        report.hits += outcome.code == -signal.SIGKILL
        what = f"killed at {place:.2f}{' over old targets' if over_old else ''}"
        report.add(what, stage.problem(), stage.litter(), *_next_run(stage))
    return report


def _at(number: int, decision: Decision) -> Callable[[Operation], Decision]:
    left = iter(range(number, -1, -1))
    return lambda operation: decision if next(left, -1) == 0 else LET_THROUGH


def _next_run(stage: Stage) -> Iterable[str | None]:
    """The next run succeeds, or refuses to replace what is complete, and removes what was left."""
    complete = stage.problem(complete=True) is None
    outcome = stage.run()
    if outcome.code != 0 and not (complete and stage.writer.keeps):
        yield f"the next run ends with {outcome.code}: {outcome.output[-300:]}"
    yield stage.problem(complete=True)
    if left := stage.leftovers():
        yield f"the next run leaves {', '.join(left)}"


# ---- faults ----------------------------------------------------------------------------------------------------


def faults(
    stage: Stage, numbers: Sequence[int], *, persistent: bool, in_turn: bool = False, step: int = 1, first: int = 0
) -> Report:
    """Let the k-th operation fail, or this and all after it, for k = first, first + step ..., all.

    Args:
        numbers: Of errors; 0 = a short write. Each for every k, or one a k ``in_turn``.
    """
    report = Report()
    total = sum(operation.kind in FAULTY for operation in stage.clean.operations)
    for turn, k in enumerate(range(first, total, step)):
        for number in [numbers[turn % len(numbers)]] if in_turn else numbers:
            stage.reset(old=True)
            fault = _Fault(k, number, persistent)
            outcome = stage.run(fault)
            report.hits += fault.done
            name = "a short write" if number == 0 else errno.errorcode[number]
            what = f"operation {k + 1} of {total} ({fault.what}) fails with {name}{', and all after it' * persistent}"
            report.add(what, *_after_fault(stage, outcome, fault))
    return report


class _Fault:
    def __init__(self, k: int, number: int, persistent: bool) -> None:
        self.k, self.persistent = k, persistent
        self.decision = Decision(errno=number) if number else Decision(short=True)
        self.seen, self.done = 0, False
        self.what = ""
        self.renamed: list[Path] = []
        """New names that were given before it."""

    def __call__(self, operation: Operation) -> Decision:
        if operation.kind not in FAULTY:
            return LET_THROUGH
        self.seen += 1
        if self.decision.short and operation.kind != "write":
            return LET_THROUGH
        if self.seen - 1 == self.k or (self.persistent and self.seen > self.k):
            self.what = self.what or f"{operation.kind} of {operation.path.name}"
            self.done = True
            return self.decision
        if operation.kind == "rename" and operation.to and not self.done:
            self.renamed.append(operation.to)
        return LET_THROUGH


def _after_fault(stage: Stage, outcome: Outcome, fault: _Fault) -> Iterable[str | None]:
    """A typed error on one line and nothing else than targets as they were; or no error, and all is new.

    A target is done behind its last new name: what fails there is an error too.
    """
    if outcome.code == 0:
        yield stage.problem(complete=True)
    elif outcome.code != 2 or "Traceback" in outcome.output or outcome.output.count("otter-gguf: ") != 1:
        yield f"ends with {outcome.code}: {outcome.output[-500:]}"
    else:
        clean = [operation.to for operation in stage.clean.operations if operation.kind == "rename" and operation.to]
        places = {target: stage.out / target for target in stage.writer.targets}
        done = {target for target, path in places.items() if 0 < _into(clean, path) == _into(fault.renamed, path)}
        yield stage.problem(old=set(stage.writer.targets) - done)
    if left := stage.leftovers():
        yield f"leaves {', '.join(left)}"


def _into(renamed: Iterable[Path], target: Path) -> int:
    """How many of the new names are the target's or in its folder."""
    return sum(path == target or target in path.parents for path in renamed)


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------


def interrupts(stage: Stage, moments: int, *, timed: bool = False, seed: int = 0) -> Report:
    """Send SIGINT at moments spread over the run; as :func:`kills`."""
    report, draw = Report(), random.Random(seed)
    for moment in range(moments):
        place = (moment + draw.random()) / moments
        stage.reset(old=moment % 2 == 0)
        if timed:
            outcome = stage.run(signal_at=(place * stage.clean.seconds, signal.SIGINT))
        else:
            at = int(place * len(stage.clean.operations))
            outcome = stage.run(_at(at, Decision(signal=signal.SIGINT)))
        report.hits += outcome.code == 130
        report.add(f"Ctrl-C at {place:.2f}", stage.problem(), stage.litter(), _after_ctrl_c(stage, outcome, report))
    return report


def _after_ctrl_c(stage: Stage, outcome: Outcome, report: Report) -> str | None:
    seconds = outcome.seconds - outcome.signalled if outcome.signalled is not None else 0.0
    report.slowest = max(report.slowest, seconds)
    if seconds > MAX_SECONDS_AFTER_CTRL_C:
        return f"ends {seconds:.2f} s later"
    if outcome.code == 0:  # too late
        return stage.problem(complete=True)
    return None if outcome.code == 130 else f"ends with {outcome.code}: {outcome.output[-500:]}"


# ---- order -----------------------------------------------------------------------------------------------------


def order_problem(operations: Iterable[Operation]) -> str | None:
    """What a power cut could break: data that gets its final name before it is synced, a name that never is.

    Hidden names are temporary. Files below ``checkpoint-N`` are written in place; there the manifest is what counts.
    """
    dirty: set[Path] = set()
    unsynced_folders: set[Path] = set()
    for kind, path, to in operations:
        if kind == "fsync":
            dirty.discard(path)
            unsynced_folders.discard(path)
        elif kind in ("open", "write", "truncate") and not path.name.endswith("(deleted)"):
            if not _is_temporary(path) and not _in_checkpoint(path):
                return f"{kind} of {path} under its final name"
            dirty.add(path)
        elif kind == "rename" and to is not None:
            moved = {file for file in dirty if file == path or path in file.parents}
            dirty = (dirty - moved) | {to / file.relative_to(path) for file in moved}
            if not _is_temporary(to):
                waiting = sorted(dirty if to.name == "otter_manifest.json" else moved)
                if waiting:
                    return f"{to} gets its name before {waiting[0].name} is synced"
                unsynced_folders.add(to.parent)
    for folder in sorted(unsynced_folders):
        return f"{folder} is not synced after a new name in it"
    return None


def _is_temporary(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _in_checkpoint(path: Path) -> bool:
    return any(part.startswith("checkpoint-") for part in path.parts)
