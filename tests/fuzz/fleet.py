"""Processes that run trials, and what is kept of those that end badly."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

REPOSITORY = Path(__file__).parents[2]
MAX_SECONDS = 10.0
"""Of processor time, without an answer; six times as long by the clock, where other processes are busy."""
MAX_ADDRESS_SPACE = 8 << 30
LIFE = 2000
"""Trials of a process, then another takes over: what one leaves behind cannot add up."""
SHOWN = 3
"""Bad ends of a kind that are tried again and kept; further ones are counted."""


class Job(NamedTuple):
    """Some trials of a kind."""

    name: str
    seed: int
    numbers: list[int]


class End(NamedTuple):
    """How a trial ended; ``bad`` is empty if well."""

    kind: str
    bad: str
    counts: dict[str, dict[str, int]]


class Child:
    """One process, which runs one trial at a time."""

    def __init__(self, seeds: Path, scratch: Path) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.scratch = scratch
        self.trials = 0
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", "--worker", str(seeds), str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(scratch / "stderr").open("wb"),
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1", "GGML_NO_BACKTRACE": "1"},
            preexec_fn=_limit,
        )
        assert self._popen.stdout is not None
        self.output = self._popen.stdout
        os.set_blocking(self.output.fileno(), False)
        self._pending = b""
        self.beat = ""
        self._heard = (time.monotonic(), 0.0)

    def ask(self, name: str, seed: int, number: int) -> None:
        """Begin a trial."""
        assert self._popen.stdin is not None
        self.trials += 1
        self._heard = (time.monotonic(), self._used())
        with contextlib.suppress(BrokenPipeError):  # it shows in its answer
            self._popen.stdin.write(f"{name} {seed} {number}\n".encode())
            self._popen.stdin.flush()

    def answer(self) -> End | None:
        """How the trial ended, if it has."""
        try:
            data = os.read(self.output.fileno(), 1 << 16)
        except BlockingIOError:
            return self._hung()
        if data:
            self._heard = (time.monotonic(), self._used())
            *lines, self._pending = (self._pending + data).split(b"\n")
            for line in lines:
                if line.startswith(b"> "):
                    self.beat = line[2:].decode("utf-8", "replace")
                elif line.startswith(b"= "):
                    kind, bad, counts = json.loads(line[2:])
                    return End(kind, f"{bad} (in: {self.beat})" if bad else "", counts)
            return None
        return End(self._kind(), self._death(), {})

    def _hung(self) -> End | None:
        since, used = self._heard
        waited = time.monotonic() - since
        if waited < MAX_SECONDS or (self._used() - used < MAX_SECONDS and waited < 6 * MAX_SECONDS):
            return None
        self.end(patience=0.0)
        return End(self._kind(), f"more than {MAX_SECONDS:g} seconds (in: {self.beat})", {})

    def _kind(self) -> str:
        return self.beat.partition(":")[0].partition(",")[0]

    def _death(self) -> str:
        code = self._popen.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        words = (self.scratch / "stderr").read_bytes()[-300:].decode("utf-8", "replace").strip().splitlines()
        return f"{how} (in: {self.beat}) {words[-1] if words else ''}"

    def _used(self) -> float:
        """Seconds of processor time."""
        try:
            fields = Path(f"/proc/{self._popen.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def exit_code(self) -> int | None:
        """Of the process, once it has ended; negative: the signal that ended it."""
        return self._popen.poll()

    def end(self, patience: float = 5.0) -> None:
        """End the process: with its input if it does so in time, and writes what it has counted, or else by force."""
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._popen.wait(patience)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Fleet:
    """Several processes, and the account of all trials."""

    def __init__(self, seeds: Path, scratch: Path, keep: Path) -> None:
        self._seeds = seeds
        self._scratch = scratch
        self._keep = keep
        self._children = 0
        self.trials: collections.Counter[str] = collections.Counter()
        self.counts: dict[str, collections.Counter[tuple[str, str]]] = collections.defaultdict(collections.Counter)
        self.bad: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
        self._begin = time.monotonic()

    def run(self, jobs: list[Job], n_children: int, minutes: float | None) -> None:
        """All trials; a line for each bad end at once."""
        until = time.monotonic() + 60 * minutes if minutes else float("inf")
        waiting = iter(jobs)
        total = sum(len(job.numbers) for job in jobs)
        selector = selectors.DefaultSelector()
        with tqdm(total=total, desc="Fuzzing", unit="trial", file=sys.stderr, disable=None) as bar:
            crews = [_Crew(self, selector, waiting) for _ in range(n_children)]
            try:
                while any(crew.busy for crew in crews):
                    selector.select(1.0)
                    for crew in crews:
                        bar.update(crew.step(going=time.monotonic() < until))
                    bar.set_postfix(bad=sum(map(len, self.bad.values())), refresh=False)
            except KeyboardInterrupt:
                tqdm.write("interrupted: what there is until now", file=sys.stderr)
            finally:
                for crew in crews:
                    crew.dismiss()

    def child(self) -> Child:
        """A new process."""
        self._children += 1
        return Child(self._seeds, self._scratch / f"child-{self._children}")

    def note(self, name: str, seed: int, number: int, end: End, scratch: Path) -> None:
        """Count a trial; tell and keep it if it ended badly."""
        self.trials[name] += 1
        for use, ends in end.counts.items():
            for how, count in ends.items():
                self.counts[name][use, how] += count
        if not end.bad:
            return
        again = f"{name}:{seed}:{number}"
        like = self.bad[name, end.bad.partition(" (in:")[0][:60]]
        like.append(again)
        if len(like) > SHOWN:
            return
        place = self._keep / again.replace(":", "-")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(scratch, place)
        second = self._single(name, seed, number)
        repeats = "again the same" if second.bad else "not when run alone"
        tqdm.write(
            f"BAD {again} {end.kind}: {end.bad}; {repeats}: python -m tests.fuzz --again {again}", file=sys.stderr
        )
        with (self._keep / "bad.txt").open("a") as file:
            file.write(f"{again} {end.kind}: {end.bad}; {repeats}: {second.bad}\n")

    def _single(self, name: str, seed: int, number: int) -> End:
        child = self.child()
        child.ask(name, seed, number)
        while (end := child.answer()) is None:
            time.sleep(0.01)
        child.end()
        shutil.rmtree(child.scratch, ignore_errors=True)
        return end

    def problems(self, name: str) -> list[str]:
        """A line for each way in which trials of a kind ended badly."""
        return [
            f"{len(like)} x {how}: {', '.join(like[:SHOWN])}"
            for (kind, how), like in sorted(self.bad.items())
            if kind == name
        ]

    def tell(self) -> int:
        """A line for each class; 1 if a trial ended badly."""
        seconds = time.monotonic() - self._begin
        for name, total in self.trials.items():
            bad = sum(len(like) for (kind, _), like in self.bad.items() if kind == name)
            print(f"{name}: {total:,} trials in {seconds:.0f} s ({total / seconds:.1f} a second), {bad} ended badly")
            for use in sorted({use for use, _ in self.counts[name]}):
                ends = {how: count for (of, how), count in sorted(self.counts[name].items()) if of == use}
                print(f"    {use:20} " + ", ".join(f"{count:,} {how}" for how, count in ends.items()))
        for name in self.trials:
            for problem in self.problems(name):
                print(f"BAD {name}: {problem}")
        return int(bool(self.bad))


class _Crew:
    """One process after the other, at work on what is waiting."""

    def __init__(self, fleet: Fleet, selector: selectors.BaseSelector, waiting: Iterator[Job]) -> None:
        self._fleet, self._selector, self._waiting = fleet, selector, waiting
        self._lot: collections.deque[tuple[str, int, int]] = collections.deque()
        self._now: tuple[str, int, int] | None = None
        self._child: Child | None = None
        self._next()

    @property
    def busy(self) -> bool:
        """Whether it has something to do."""
        return self._now is not None

    def step(self, *, going: bool) -> int:
        """Look for the answer; 1 if there is one."""
        if self._now is None or self._child is None:
            return 0
        end = self._child.answer()
        if end is None:
            return 0
        name, seed, number = self._now
        scratch = self._child.scratch
        lost = end.bad.startswith(("killed", "ended with", "more than"))
        self._fleet.note(name, seed, number, end, scratch)
        if lost or self._child.trials >= LIFE:
            self.dismiss()
        if going:
            self._next()
        else:
            self.dismiss()
            self._now = None
        return 1

    def _next(self) -> None:
        if not self._lot:
            name, seed, numbers = next(self._waiting, Job("", 0, []))
            self._lot.extend((name, seed, number) for number in numbers)
        if not self._lot:
            self._now = None
            self.dismiss()
            return
        if self._child is None:
            self._child = self._fleet.child()
            self._selector.register(self._child.output, selectors.EVENT_READ)
        self._now = self._lot.popleft()
        self._child.ask(*self._now)

    def dismiss(self) -> None:
        """End its process."""
        if self._child is not None:
            self._selector.unregister(self._child.output)
            self._child.end()
            shutil.rmtree(self._child.scratch, ignore_errors=True)
        self._child = None
