"""Resident memory of this process, as Linux reports it."""

from __future__ import annotations

from pathlib import Path

_STATUS, _REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_memory() -> int:
    """Resident bytes now; zero if the system does not report them."""
    return _status("VmRSS")


def peak_memory() -> int:
    """Largest number of resident bytes since :func:`reset_peak_memory`; zero if the system does not report it."""
    return _status("VmHWM")


def reset_peak_memory() -> None:
    """Count the peak from now on, if the system allows it."""
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
