"""Resident memory of this process, where Linux tells it."""

from __future__ import annotations

from pathlib import Path

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_memory() -> int:
    """Resident bytes now; zero where the system does not say."""
    return _status("VmRSS")


def peak_memory() -> int:
    """The most bytes that were resident since :func:`reset_peak_memory`; zero where the system does not say."""
    return _status("VmHWM")


def reset_peak_memory() -> None:
    """Count the peak from now on, where the system lets us."""
    try:
        _REFS.write_text("5")
    except OSError:
        return


def _status(key: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), 0)
