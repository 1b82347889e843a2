"""One run of a writer under watch, and what must hold after it: every target is the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from . import watch
from .watch import LET_THROUGH, Decision, Operation, Outcome
from .writers import Writer

_MEMORY = Path("/dev/shm")  # where syncing costs nothing
MAX_SECONDS = 300.0
"""A run that takes longer hangs; the slowest takes some seconds, many times that on a busy machine."""


@dataclass
class Stage:
    """A writer with its inputs, and what a run without trouble does."""

    writer: Writer
    folder: Path
    old: dict[str, str | None] = field(default_factory=dict)
    new: dict[str, str | None] = field(default_factory=dict)
    clean: Outcome = field(default_factory=Outcome)
    was_old: bool = True
    """Whether the last reset put old targets in place."""

    @property
    def out(self) -> Path:
        """Where it writes."""
        return self.folder / "out"

    def reset(self, *, old: bool) -> None:
        """An empty folder, or one with old targets."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        self.was_old = old
        if old:
            for target in self.writer.targets:
                if not target.endswith("/"):
                    (self.out / target).write_text("the old file")
            self.writer.old(self.folder / "inputs", self.out)

    def state(self) -> dict[str, str | None]:
        """What each target is; ``None`` = not there."""
        paths = {target: self.out / target for target in self.writer.targets}
        return {target: self._identity(path) if path.exists() else None for target, path in paths.items()}

    def _identity(self, path: Path) -> str | None:
        try:
            return self.writer.identity(path)
        except (ValueError, UnicodeDecodeError):
            return f"damaged: {path.read_bytes()[:40]!r}"

    def run(
        self,
        decide: Callable[[Operation], Decision] = lambda operation: LET_THROUGH,
        *,
        signal_at: tuple[float, int] | None = None,
    ) -> Outcome:
        """The writer in a child; see :func:`.watch.run`.

        Raises:
            AssertionError: It did not end.
        """
        inputs = self.folder / "inputs"
        outcome = watch.run(
            lambda: self.writer.run(inputs, self.out), self.out, decide, signal_at=signal_at, timeout=MAX_SECONDS
        )
        if outcome.timed_out:
            raise AssertionError(f"{self.writer.name} did not end within {MAX_SECONDS:.0f} s: {outcome.output[-500:]}")
        return outcome

    def leftovers(self) -> list[str]:
        """Hidden names: what a writer has not finished."""
        return sorted(
            str(path.relative_to(self.out))
            for path in self.out.rglob(".*")
            if not any(part.startswith(".") for part in path.relative_to(self.out).parts[:-1])
        )

    def litter(self) -> str | None:
        """More temporary names than one a target; a writer of parts has a folder for them besides."""
        left = self.leftovers()
        allowed = len(self.writer.targets) + self.writer.scratch
        return f"leaves {', '.join(left)}" if len(left) > allowed else None

    def problem(self, *, complete: bool = False, old: Collection[str] = ()) -> str | None:
        """The first target that is neither old nor new; that is not new, if ``complete``; not old, if it must be."""
        for target, found in self.state().items():
            is_new, was_there = found == self.new[target], self.was_old
            is_old = found == (self.old[target] if was_there else None)
            if complete and not is_new:
                return f"{target} is not complete"
            if target in old and not is_old:
                return f"{target} is not the old one any more"
            if not (is_old or is_new or (found is None and self.writer.gaps) or self._is_part(target, found)):
                return f"{target} is {'gone' if found is None else 'neither old nor new'}"
        return None

    def _is_part(self, target: str, found: str | None) -> bool:
        damaged = found is None or found.startswith("damaged")
        return not damaged and self.writer.is_part(self.out / target)


@contextlib.contextmanager
def stage(writer: Writer) -> Iterator[Stage]:
    """A writer with inputs in a temporary folder; it has run once over old targets, and once without."""
    tqdm.set_lock(threading.RLock())  # its own is shared by all forks: one that is killed with it would stop the rest
    with tempfile.TemporaryDirectory(
        prefix="otter-gguf-reliability-", dir=_MEMORY if _MEMORY.is_dir() else None
    ) as name:
        folder = Path(name)
        (folder / "inputs").mkdir()
        writer.prepare(folder / "inputs")
        made = Stage(writer, folder)
        made.reset(old=True)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            writer.run(made.folder / "inputs", made.out)  # here, so that children find everything imported
        made.reset(old=True)
        made.old = made.state()
        made.clean = made.run()
        made.new = made.state()
        if made.clean.code != 0 or None in made.new.values() or made.leftovers():
            raise AssertionError(f"{writer.name} fails without trouble: {made.clean.output} {made.leftovers()}")
        yield made
