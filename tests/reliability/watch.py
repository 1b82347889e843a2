"""A child process whose writing system calls are seen and decided one by one: seccomp's user notifications, Linux.

Unlike a preloaded library this sees every writer: Python, C++, Rust, and the processes that they start.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import os
import platform
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple

# linux/audit.h, asm/unistd.h; older calls (open, rename ...) exist on x86 alone.
_MACHINES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {"open": 2, "openat": 257, "write": 1, "pwrite64": 18, "writev": 20, "close": 3, "fsync": 74, "fdatasync": 75}
        | {
            "rename": 82,
            "renameat": 264,
            "renameat2": 316,
            "ftruncate": 77,
            "truncate": 76,
            "mkdir": 83,
            "mkdirat": 258,
        }
        | {"unlink": 87, "unlinkat": 263, "rmdir": 84},
    ),
    "aarch64": (
        0xC00000B7,
        {"openat": 56, "write": 64, "pwrite64": 68, "writev": 66, "close": 57, "fsync": 82, "fdatasync": 83}
        | {"renameat": 38, "renameat2": 276, "ftruncate": 46, "truncate": 45, "mkdirat": 34, "unlinkat": 35},
    ),
}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_PIDFD_GETFD = 438

# What is done, by the name of the call.
_KINDS = {"openat": "open", "pwrite64": "write", "writev": "write", "fdatasync": "fsync", "renameat": "rename"}
_KINDS |= {"renameat2": "rename", "ftruncate": "truncate", "mkdirat": "mkdir", "unlinkat": "unlink", "rmdir": "unlink"}

FAULTY = ("open", "write", "truncate", "fsync", "close", "rename", "mkdir")
"""The kinds of operations that can be made to fail. Removing is not among them: no writer can clean up without it."""

# linux/seccomp.h, linux/filter.h, linux/prctl.h
_SET_MODE_FILTER, _NEW_LISTENER, _GET_ACTION_AVAIL = 1, 1 << 3, 2
_ALLOW, _USER_NOTIF = 0x7FFF0000, 0x7FC00000
_RECV, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_NOTICE = struct.Struct("=QIIiIQ6Q")
_REPLY = struct.Struct("=QqiI")
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 38, 36
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_PATH_MAX = 4096

MAX_ORPHAN_SECONDS = 30.0
"""What the child started may outlive it by this."""

_libc = ctypes.CDLL(None, use_errno=True)


class Operation(NamedTuple):
    """One writing operation of the child on a path that is watched."""

    kind: str
    path: Path
    to: Path | None = None
    """The new name, of a rename."""


class Decision(NamedTuple):
    """What becomes of an operation; by default it is let through."""

    errno: int = 0
    """It fails with this number instead."""
    short: bool = False
    """Of a write only the first half is written."""
    signal: int = 0
    """Sent to the child: SIGKILL instead of the operation (after its first half if ``short``), others after it.
    SIGKILL also goes to the process whose operation it is."""


LET_THROUGH = Decision()


@dataclass
class Outcome:
    """How the child ended."""

    code: int = 0
    """Exit code, or minus the signal's number."""
    output: str = ""
    """Of stdout and stderr."""
    seconds: float = 0.0
    signalled: float | None = None
    """Seconds from the start at which a signal was sent."""
    operations: list[Operation] = field(default_factory=list)
    timed_out: bool = False
    """It was killed after the time that it was given, or what it started was."""


def unavailable() -> str | None:
    """Why nothing can be watched here, or ``None``."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return "needs Linux on x86-64 or arm64"
    action = ctypes.c_uint32(_USER_NOTIF)
    if _libc.syscall(_SECCOMP[platform.machine()], _GET_ACTION_AVAIL, 0, ctypes.byref(action)) != 0:
        return "the kernel has no user notifications of seccomp"
    return None


def run(
    action: Callable[[], int],
    root: Path,
    decide: Callable[[Operation], Decision] = lambda operation: LET_THROUGH,
    *,
    signal_at: tuple[float, int] | None = None,
    timeout: float = 60.0,
) -> Outcome:
    """Run ``action`` in a forked child; its writing operations below ``root`` are recorded and decided.

    Args:
        action: Returns the exit code.
        decide: Called for each operation before it is done.
        signal_at: A signal for the child, and when, in seconds from its start.
        timeout: In seconds; then the child is killed.
    """
    ours, theirs = socket.socketpair()
    output = os.memfd_create("output")
    sys.stdout.flush()
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a killed child leaves behind is ours to wait for
    pid = os.fork()
    if pid == 0:
        _child(action, theirs, output)
    theirs.close()
    try:
        return _Supervisor(pid, root, decide).supervise(ours, output, signal_at, timeout)
    finally:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        ours.close()
        os.close(output)


def _child(action: Callable[[], int], channel: socket.socket, output: int) -> None:
    """Does not return: above it are the frames of the process that was copied."""
    code, running = 70, True

    def interrupted(number: int, frame: FrameType | None) -> None:
        if running:  # later an exception would leave this function
            raise KeyboardInterrupt

    try:
        os.setpgid(0, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.BufferedWriter(io.FileIO(fd, "w", closefd=False))) for fd in (1, 2)
        )
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        listener = _install_filter()
        socket.send_fds(channel, [b"."], [listener])
        os.close(listener)
        channel.close()
        signal.signal(signal.SIGINT, interrupted)
        code = action()
        running = False
    except BaseException:
        running = False
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


# ---- the filter ------------------------------------------------------------------------------------------------


def _install_filter() -> int:
    """Returns the listener. It holds for this process and all that it starts."""
    program = _program()
    code = ctypes.create_string_buffer(program)
    header = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(code))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    listener = _libc.syscall(_SECCOMP[platform.machine()], _SET_MODE_FILTER, _NEW_LISTENER, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)


def _program() -> bytes:
    """The filter: calls of the table ask the listener, opening only if it is for writing."""

    def line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    machine, calls = _MACHINES[platform.machine()]
    lines = [line(_LOAD, 4), line(_EQUAL, machine, 1, 0), line(_RETURN, _ALLOW), line(_LOAD, 0)]
    for name, number in calls.items():
        if name in ("open", "openat"):
            flags = 24 if name == "open" else 32
            lines += [line(_EQUAL, number, 0, 4), line(_LOAD, flags), line(_ANY_BIT, _WRITING, 0, 1)]
            lines += [line(_RETURN, _USER_NOTIF), line(_RETURN, _ALLOW)]
        else:
            lines += [line(_EQUAL, number, 0, 1), line(_RETURN, _USER_NOTIF)]
    return b"".join([*lines, line(_RETURN, _ALLOW)])


# ---- the supervisor --------------------------------------------------------------------------------------------


class _Supervisor:
    def __init__(self, pid: int, root: Path, decide: Callable[[Operation], Decision]) -> None:
        self.pid, self.root, self.decide = pid, str(root), decide
        self.names = {number: name for name, number in _MACHINES[platform.machine()][1].items()}
        self.outcome = Outcome()
        self.begin = time.monotonic()

    def supervise(
        self, channel: socket.socket, output: int, signal_at: tuple[float, int] | None, timeout: float
    ) -> Outcome:
        channel.settimeout(timeout)
        try:
            _, fds, _, _ = socket.recv_fds(channel, 1, 1)
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise
        listener = fds[0]
        try:
            self._serve(listener, signal_at, self.begin + timeout)
        finally:
            os.close(listener)
        _, status = os.waitpid(self.pid, 0)
        self._wait_for_orphans()
        self.outcome.code = os.waitstatus_to_exitcode(status)
        self.outcome.seconds = time.monotonic() - self.begin
        self.outcome.output = os.pread(output, 1 << 20, 0).decode(errors="replace")
        return self.outcome

    def _serve(self, listener: int, signal_at: tuple[float, int] | None, deadline: float) -> None:
        """Answer until no process is left that the filter holds for, or 5 s after the child was killed for time."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while True:
            until = min(deadline, self.begin + signal_at[0]) if signal_at else deadline
            events = poll.poll(max(0.0, until - time.monotonic()) * 1000)
            if events and events[0][1] & select.POLLIN:
                self._answer(listener)
            elif events:
                return
            if signal_at and time.monotonic() >= self.begin + signal_at[0]:
                self._signal(signal_at[1])
                signal_at = None
            if time.monotonic() >= deadline:
                if self.outcome.timed_out:  # processes that it started: without a listener their calls fail
                    return
                self.outcome.timed_out = True
                self._signal(signal.SIGKILL)
                deadline += 5

    def _wait_for_orphans(self) -> None:
        """Processes that it started: the kernel takes the filter from one that ends before it closes its files."""
        deadline = time.monotonic() + MAX_ORPHAN_SECONDS
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            while True:
                found, _ = os.waitpid(-self.pid, os.WNOHANG)
                self.outcome.timed_out |= time.monotonic() >= deadline
                if found == 0 and self.outcome.timed_out:
                    os.killpg(self.pid, signal.SIGKILL)
                time.sleep(0 if found else 0.001)

    def _signal(self, number: int) -> None:
        self.outcome.signalled = time.monotonic() - self.begin
        os.kill(self.pid, number)

    def _answer(self, listener: int) -> None:
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(listener, _RECV, notice)
        except OSError:  # killed meanwhile
            return
        key, pid, _, number, _, _, *arguments = _NOTICE.unpack(notice)
        decision, value = LET_THROUGH, 0
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            operation = self._operation(self.names[number], pid, arguments)
            if operation is not None:
                decision = self.decide(operation)
                self.outcome.operations.append(operation)
                if decision.short and operation.kind == "write":
                    value = _write_half(pid, self.names[number], arguments)
        if decision.signal == signal.SIGKILL:
            self._signal(decision.signal)
            with contextlib.suppress(ProcessLookupError):  # where it is a process that the child started: that one too
                os.kill(pid, decision.signal)
            return
        through = not decision.errno and not value
        with contextlib.suppress(FileNotFoundError):
            fcntl.ioctl(listener, _SEND, _REPLY.pack(key, value, -decision.errno, _CONTINUE if through else 0))
        if decision.signal:
            self._signal(decision.signal)

    def _operation(self, name: str, pid: int, arguments: list[int]) -> Operation | None:
        kind = _KINDS.get(name, name)
        to = None
        if name in ("open", "mkdir", "unlink", "rmdir", "truncate"):
            path = _text(pid, arguments[0])
        elif name in ("openat", "mkdirat", "unlinkat"):
            path = _at(pid, arguments[0], _text(pid, arguments[1]))
        elif name == "rename":
            path, to = _text(pid, arguments[0]), _text(pid, arguments[1])
        elif name in ("renameat", "renameat2"):
            path, to = (_at(pid, arguments[i], _text(pid, arguments[i + 1])) for i in (0, 2))
        else:
            path = os.readlink(f"/proc/{pid}/fd/{arguments[0]}")
        if not path.startswith(self.root) or (kind == "close" and not _is_written(pid, arguments[0])):
            return None
        return Operation(kind, Path(path), Path(to) if to else None)


def _memory(pid: int, address: int, size: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def _text(pid: int, address: int) -> str:
    # A string may end right before a page that cannot be read.
    size = _PATH_MAX - address % _PATH_MAX
    found = _memory(pid, address, size)
    if b"\0" not in found:
        found += _memory(pid, address + size, _PATH_MAX)
    return os.fsdecode(found.split(b"\0", 1)[0])


def _at(pid: int, folder: int, path: str) -> str:
    """A path relative to an open folder; AT_FDCWD is negative."""
    if path.startswith("/"):
        return path
    link = "cwd" if folder & 0x80000000 else f"fd/{folder}"
    return os.path.join(os.readlink(f"/proc/{pid}/{link}"), path)


def _is_written(pid: int, descriptor: int) -> bool:
    lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines()
    flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
    return flags & os.O_ACCMODE != os.O_RDONLY


def _write_half(pid: int, name: str, arguments: list[int]) -> int:
    """Write the first half for the child; returns how many bytes that are, 0 if there is no half."""
    if name == "writev":
        address, size = struct.unpack("=QQ", _memory(pid, arguments[1], 16))  # the first of its buffers
    else:
        address, size = arguments[1], arguments[2]
    data = _memory(pid, address, size // 2)
    if not data:
        return 0
    process = os.pidfd_open(pid)
    try:
        descriptor = _libc.syscall(_PIDFD_GETFD, process, arguments[0], 0)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        try:
            return os.pwrite(descriptor, data, arguments[3]) if name == "pwrite64" else os.write(descriptor, data)
        finally:
            os.close(descriptor)
    finally:
        os.close(process)
