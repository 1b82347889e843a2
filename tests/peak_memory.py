"""The most resident memory of this process since a moment, as Linux tells it; 0 where the system does not."""

from __future__ import annotations

from pathlib import Path


def reset_peak() -> int:
    """Resident memory at present in bytes; the peak counts from here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return peak()


def peak() -> int:
    """The peak in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
