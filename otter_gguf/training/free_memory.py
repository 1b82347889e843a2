"""How much memory this process holds, and how much more it can get, as the operating system says it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still get on a device; ``None`` where nobody says.

    CUDA's own figure, with what torch keeps for later there. For the CPU the least of what the machine has left, what
    each control group (container) leaves, and the limit on address space; swap counts for nothing.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return free_system_memory() if device.type in ("cpu", "mps") else None


def free_system_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """The CPU's part of :func:`free_memory`, from the files that Linux keeps; elsewhere all of the machine's memory."""
    found = [*_machine(proc), *_control_groups(proc, cgroups), *_address_space(proc)]
    if found:
        return max(0, min(found))
    with contextlib.suppress(AttributeError, OSError, ValueError):  # macOS; Windows has no sysconf
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def resident_memory(proc: Path = _PROC) -> int | None:
    """Bytes of this process that are in memory; ``None`` where the system has no such file."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int((proc / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _machine(proc: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, KeyError, ValueError):
        yield _table(proc / "meminfo")["MemAvailable"] << 10


def _control_groups(proc: Path, root: Path) -> Iterator[int]:
    """What the group of this process and each group around it leave, in version 2's files and in version 1's."""
    with contextlib.suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield from _left(root, path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                yield from _left(root / "memory", path, *names)


def _left(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    """Limit less usage of a group and its parents. Cached files count as used there, but give way.

    A container may see the path of its group outside, of which nothing is there, and its own group at the root.
    """
    group = root / path.lstrip("/")
    for folder in [group, *group.parents][: len(group.parts) - len(root.parts) + 1]:
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max", which is no number
            left = int((folder / limit).read_text()) - int((folder / usage).read_text())
            with contextlib.suppress(OSError, KeyError):
                left += _table(folder / "memory.stat")[reclaimable]
            yield left


def _address_space(proc: Path) -> Iterator[int]:
    """``ulimit -v``, less what is taken."""
    with contextlib.suppress(ImportError, OSError, KeyError, ValueError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            yield soft - (_table(proc / "self/status")["VmSize"] << 10)


def _table(file: Path) -> dict[str, int]:
    """The numbers of lines such as ``VmRSS:   123 kB`` or ``inactive_file 123``."""
    rows = (line.replace(":", " ").split() for line in file.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
